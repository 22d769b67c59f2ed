"""What bandit finds in the code and pip-audit in its dependencies, less what audit/accepted.toml accepts."""

import json
import subprocess
import tempfile
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from deploy import pins
from local.environments import PROJECT, REQUIREMENTS, environment

Json = dict[str, Any]

CODE = ("app.py", "audit", "chalicelib", "deploy", "local", "shims")
LOCKED = (
    *("requirements.txt", "requirements-dev.txt", "deploy/requirements.txt", *REQUIREMENTS.values()),
    *(f"bench/peers/{peer}/requirements.txt" for peer in ("chalice_orm", "fastapi_sqlmodel", "powertools")),
)
LONG_KNOWN = "django==1.2"
"""Asked with the others: a service that knows nothing against this one knows nothing."""
CONTROL = (
    f"{LONG_KNOWN} is no dependency here. It is asked about because it has been known to be weak for years, "
    "and so must be found"
)
UNREACHABLE = (
    "The advisories could not be asked, so nothing is known about the dependencies. Is the service "
    "reachable? A proxy: HTTPS_PROXY; OSV instead of the package index: make audit SERVICE=osv"
)


class Unasked(Exception):
    """No advisory service has judged the dependencies: neither good nor bad is known."""


def accepted(kind: str) -> list[Json]:
    """The entries of accepted.toml: `advisory` or `code`. Raises ValueError on one without a reason."""
    entries: list[Json] = tomllib.loads((PROJECT / "audit/accepted.toml").read_text())[kind]
    for entry in entries:
        if not entry.get("reason", "").strip():
            raise ValueError(f"audit/accepted.toml accepts {entry} without a reason")
    return entries


def of_the_code(folder: Path = PROJECT, known: Sequence[Json] | None = None) -> list[str]:
    """What bandit finds there and nobody accepts, and what is accepted and not found."""
    command = ["bandit", "--quiet", "--recursive", "--format", "json", "--exit-zero"]
    places = [name for name in CODE if (folder / name).exists()]
    report = json.loads(_run([*command, *places], folder).stdout)
    if report["errors"]:
        raise SystemExit(f"bandit could not read everything: {report['errors']}")
    found = Counter(map(_place, report["results"]))
    expected = {
        (entry["test"], name): times
        for entry in (accepted("code") if known is None else known)
        for name, times in entry["files"].items()
    }
    more = [
        f"{each['filename'].removeprefix('./')}:{each['line_number']}: {each['test_id']} {each['issue_text']}"
        for each in report["results"]
        if found[_place(each)] > expected.get(_place(each), 0)
    ]
    gone = [
        f"{name}: {test} is accepted {times} times and found {found[test, name]} times"
        for (test, name), times in sorted(expected.items())
        if found[test, name] < times
    ]
    return more + gone


def _place(finding: Json) -> tuple[str, str]:
    return finding["test_id"], finding["filename"].removeprefix("./")


def of_the_dependencies(
    service: Sequence[str] = (), requirements: Iterable[str] = LOCKED, known: Sequence[Json] | None = None
) -> list[str]:
    """Advisories about any pin, whatever its marker, that nobody accepts; and accepted ones that are gone.

    `service` are pip-audit's options. Raises Unasked when it did not get, or cannot have got, the answers.
    """
    known = accepted("advisory") if known is None else known
    unmet = [*known]
    found = []
    for package, version, names in _advisories(service, requirements):
        reasons = [entry for entry in known if entry["package"] == package and entry["id"] in names]
        unmet = [entry for entry in unmet if entry not in reasons]
        if not reasons:
            found.append(f"{package} {version}: {', '.join(names)}")
    gone = [f"{entry['package']}: {entry['id']} is accepted and found no more" for entry in unmet]
    return sorted(set(found)) + gone


def _advisories(service: Sequence[str], requirements: Iterable[str]) -> Iterator[tuple[str, str, list[str]]]:
    """Package, version, and the advisory's names; without markers, so that no pin is left out."""
    versions: dict[str, list[str]] = {}
    for name in requirements:
        for pin in pins.read(PROJECT / name):
            if pin.version not in versions.setdefault(pin.name, []):
                versions[pin.name].append(pin.version)
    _asked([], service)
    # pip-audit takes one version of a package at a time.
    for turn in range(max(map(len, versions.values()))):
        lines = [f"{name}=={found[turn]}" for name, found in sorted(versions.items()) if turn < len(found)]
        for package in _asked(lines, service):
            for each in package["vulns"]:
                yield package["name"], package["version"], [each["id"], *each["aliases"]]


def _asked(lines: Sequence[str], service: Sequence[str]) -> list[Mapping[str, Any]]:
    """What pip-audit says of each, asked with LONG_KNOWN. By itself it takes a 404 for a clean record."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join([*lines, LONG_KNOWN]))
        file.flush()
        command = ["pip-audit", "--no-deps", "--disable-pip", "--progress-spinner", "off", "--format", "json"]
        done = _run([*command, *service, "--requirement", file.name], PROJECT)
    try:
        packages: list[Mapping[str, Any]] = json.loads(done.stdout)["dependencies"]
    except ValueError:
        last = (done.stderr.strip().splitlines() or ["none"])[-1].strip()
        raise Unasked(f"{UNREACHABLE}\n  pip-audit's last words: {last}") from None
    if skipped := [f"{each['name']} ({each['skip_reason']})" for each in packages if "skip_reason" in each]:
        raise Unasked(f"{UNREACHABLE}. Not judged: {len(skipped)} packages, such as {skipped[0]}. {CONTROL}")
    if not any(each["vulns"] for each in packages if each["name"] == "django"):
        raise Unasked(f"{UNREACHABLE}. It answers, but knows nothing against {LONG_KNOWN}. {CONTROL}")
    return [each for each in packages if each["name"] != "django"]


def _run(command: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    tool = environment("audit").with_name(command[0])
    return subprocess.run(  # noqa: S603
        [tool, *command[1:]], cwd=folder, capture_output=True, text=True, check=False
    )
