"""pip-audit's findings about the pinned dependencies, without those that audit/accepted.toml accepts."""

import json
import subprocess
import tempfile
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from deploy import pins
from local.environments import PROJECT, REQUIREMENTS, environment

LOCKED = [
    "requirements.txt",
    "requirements-dev.txt",
    "deploy/requirements.txt",
    *REQUIREMENTS.values(),
    "bench/peers/chalice_orm/requirements.txt",
    "bench/peers/fastapi_sqlmodel/requirements.txt",
    "bench/peers/powertools/requirements.txt",
]
CONTROL = "django==1.2"
"""Audited with the others: a service without an advisory about this release has no data."""
WHY_CONTROL = (
    f"{CONTROL} is no dependency here. It is audited because it has had known weaknesses for years, "
    "so the service must report one"
)
UNREACHABLE = (
    "The advisories could not be read, so nothing is known about the dependencies. Is the service "
    "reachable? A proxy: HTTPS_PROXY; OSV instead of the package index: make audit SERVICE=osv"
)


class NotAudited(Exception):
    """The advisory service gave no reliable answer: it is unknown whether there are advisories."""


def accepted() -> list[dict[str, str]]:
    """The entries of accepted.toml. Raises ValueError on one without a reason."""
    entries: list[dict[str, str]] = tomllib.loads((PROJECT / "audit/accepted.toml").read_text())["advisory"]
    for entry in entries:
        if not entry.get("reason", "").strip():
            raise ValueError(f"audit/accepted.toml accepts {entry} without a reason")
    return entries


def findings(service: Sequence[str] = (), requirements: Iterable[str] = LOCKED) -> list[str]:
    """Advisories about any pin that are not accepted, and accepted ones that no longer apply.

    `service` are pip-audit's options. Raises NotAudited.
    """
    entries = accepted()
    obsolete, new = [*entries], set()
    for package, version, names in _advisories(service, requirements):
        matching = [entry for entry in entries if entry["package"] == package and entry["id"] in names]
        obsolete = [entry for entry in obsolete if entry not in matching]
        if not matching:
            new.add(f"{package} {version}: {', '.join(names)}")
    return [
        *sorted(new),
        *(f"{entry['package']}: {entry['id']} is accepted, but no longer found" for entry in obsolete),
    ]


def _advisories(service: Sequence[str], requirements: Iterable[str]) -> Iterator[tuple[str, str, list[str]]]:
    """Package, version and the advisory's names; no environment marker excludes a pin."""
    versions: dict[str, list[str]] = {}
    for name in requirements:
        for pin in pins.read(PROJECT / name):
            if pin.version not in versions.setdefault(pin.name, []):
                versions[pin.name].append(pin.version)
    # pip-audit takes one version of a package at a time.
    for number in range(max(map(len, versions.values()))):
        lines = [
            f"{name}=={pinned[number]}" for name, pinned in sorted(versions.items()) if number < len(pinned)
        ]
        for package in _pip_audit(lines, service):
            for advisory in package["vulns"]:
                yield package["name"], package["version"], [advisory["id"], *advisory["aliases"]]


def _pip_audit(lines: Sequence[str], service: Sequence[str]) -> list[Mapping[str, Any]]:
    """pip-audit's report on these pins and CONTROL. pip-audit itself reads a 404 as "no advisories"."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join([*lines, CONTROL]))
        file.flush()
        options = ["--no-deps", "--disable-pip", "--progress-spinner", "off", "--format", "json"]
        pip_audit = str(environment("audit").with_name("pip-audit"))
        command = [pip_audit, *options, *service, "--requirement", file.name]
        done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)  # noqa: S603
    try:
        packages: list[Mapping[str, Any]] = json.loads(done.stdout)["dependencies"]
    except ValueError:
        last_line = (done.stderr.strip().splitlines() or ["none"])[-1].strip()
        raise NotAudited(f"{UNREACHABLE}\n  pip-audit's last line: {last_line}") from None
    _refuse_unreliable(packages)
    return [package for package in packages if package["name"] != "django"]


def _refuse_unreliable(packages: Sequence[Mapping[str, Any]]) -> None:
    if skipped := [package for package in packages if "skip_reason" in package]:
        first = f"{skipped[0]['name']} ({skipped[0]['skip_reason']})"
        raise NotAudited(
            f"{UNREACHABLE}. Not audited: {len(skipped)} packages, such as {first}. {WHY_CONTROL}"
        )
    if not any(package["vulns"] for package in packages if package["name"] == "django"):
        raise NotAudited(f"{UNREACHABLE}. It answers, but has nothing against {CONTROL}. {WHY_CONTROL}")
