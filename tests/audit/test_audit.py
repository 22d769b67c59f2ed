"""`make audit`: the real pip-audit, against a local advisory service."""

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from audit import advisories
from deploy import pins
from local.environments import PROJECT, environment

pytestmark = pytest.mark.slow

Json = dict[str, Any]
DJANGO = {"django": [{"id": "PYSEC-0000-1", "aliases": ["CVE-0000-1"]}]}
MINERVA = {"ecdsa": [{"id": "GHSA-wj6h-64fc-37mp", "aliases": ["CVE-2024-23342"]}]}


@pytest.fixture
def small_requirements(tmp_path: Path) -> list[str]:
    """Path of a requirements file with only ecdsa and the two versions of psycopg2-binary."""
    lines = [
        pin.line
        for pin in pins.read(PROJECT / "shims/azure/requirements.txt")
        if pin.name in ("ecdsa", "psycopg2-binary")
    ]
    (tmp_path / "requirements.txt").write_text("\n".join(lines))
    return [str(tmp_path / "requirements.txt")]


@contextmanager
def serving(advisories_by_package: Json) -> Iterator[list[str]]:
    """Yields pip-audit's options for a local service with OSV's protocol.

    Keys are `name` or `name==version`, values are lists of advisories.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            package, version = query["package"]["name"], query["version"]
            advisories_of_package = (
                advisories_by_package.get(f"{package}=={version}") or advisories_by_package.get(package) or []
            )
            affected = [{"package": {"name": package, "ecosystem": "PyPI"}, "versions": [version]}]
            vulns = [
                {"details": "weak", "affected": affected, **advisory} for advisory in advisories_of_package
            ]
            body = json.dumps({"vulns": vulns} if vulns else {}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=[0.05], daemon=True).start()
        yield [
            "--vulnerability-service",
            "osv",
            "--osv-url",
            f"http://127.0.0.1:{server.server_port}/v1/query",
        ]
        server.shutdown()


@pytest.mark.parametrize("folder", ["", "audit/", "chalicelib/orders/", "deploy/", "local/", "shims/oci/"])
def test_lint_refuses_a_weakness_in_the_code(folder: str) -> None:
    """ruff's `S` rules are those of bandit."""
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "ruff",
            "check",
            "--output-format",
            "concise",
            "--stdin-filename",
            f"{folder}app.py",
            "-",
        ],
        cwd=PROJECT,
        input="import subprocess\n\nsubprocess.call('ls ' + input(), shell=True)\n",
        capture_output=True,
        text=True,
        check=False,
    )

    assert "S602 `subprocess` call with `shell=True`" in result.stdout


def test_only_accepted_advisories_are_found(small_requirements: list[str]) -> None:
    with serving(DJANGO | MINERVA) as service:
        assert advisories.findings(service, small_requirements) == []


def test_new_advisory_is_reported_for_every_environment_marker(small_requirements: list[str]) -> None:
    new = {f"psycopg2-binary=={version}": [{"id": f"GHSA-{version}"}] for version in ("2.9.11", "2.9.13")}

    with serving(DJANGO | MINERVA | new) as service:
        findings = advisories.findings(service, small_requirements)

    assert findings == [f"psycopg2-binary {version}: GHSA-{version}" for version in ("2.9.11", "2.9.13")]


def test_stale_accepted_advisory_is_reported(small_requirements: list[str]) -> None:
    with serving(DJANGO) as service:
        findings = advisories.findings(service, small_requirements)

    assert findings == ["ecdsa: CVE-2024-23342 is accepted, but no longer found"]


def test_service_without_known_advisories_fails_the_audit(small_requirements: list[str]) -> None:
    with (
        serving(MINERVA) as service,
        pytest.raises(advisories.NotAudited, match=r"nothing against django==1\.2\. .* is no dependency"),
    ):
        advisories.findings(service, small_requirements)


def audit(service: str) -> subprocess.CompletedProcess[str]:
    """`python -m audit` with a proxy that does not exist."""
    return subprocess.run(
        [sys.executable, "-m", "audit"],
        cwd=PROJECT,
        env={"HTTPS_PROXY": "http://127.0.0.1:9", "PATH": "/usr/bin:/bin", "SERVICE": service},
        capture_output=True,
        text=True,
        check=False,
    )


def test_make_audit_without_a_service_ends_with_2() -> None:
    result = audit("osv")

    assert result.returncode == 2, result.stdout + result.stderr
    assert "pip-audit's last line: " in result.stderr
    assert "Proxy" in result.stderr.partition("pip-audit's last line: ")[2]
    assert "NOT AUDITED" in result.stderr
    assert "HTTPS_PROXY" in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize("service", ["pipy", "esms"])
def test_unknown_advisory_service_is_rejected_by_name(service: str) -> None:
    result = audit(service)

    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == f"SERVICE is {service!r}: use pypi or osv\n"


def test_dependencies_have_no_unaccepted_advisories_today() -> None:
    """Queries the real package index; skipped with a message when it cannot be reached."""
    try:
        findings = advisories.findings()
    except advisories.NotAudited as error:
        pytest.skip(f"THE DEPENDENCIES WERE NOT AUDITED. {error}")

    assert findings == []


def test_every_accepted_finding_has_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert advisories.accepted()

    (tmp_path / "audit").mkdir()
    shutil.copy(PROJECT / "audit/accepted.toml", tmp_path / "audit")
    with (tmp_path / "audit/accepted.toml").open("a") as file:
        file.write('[[advisory]]\npackage = "six"\nid = "CVE-0000-2"\nreason = " "\n')
    monkeypatch.setattr(advisories, "PROJECT", tmp_path)
    with pytest.raises(ValueError, match="without a reason"):
        advisories.accepted()


@pytest.mark.parametrize("cloud", ["azure", "gcp", "oci"])
def test_token_verification_does_not_import_ecdsa(cloud: str) -> None:
    """This is why the advisory for ecdsa is accepted."""
    code = (
        "import sys, cognitojwt, jose.jwt, jose.jwk; key = jose.jwk.get_key('RS256');"
        "print(key.__module__, 'ecdsa' in sys.modules)"
    )

    result = subprocess.run(
        [environment(cloud), "-I", "-c", code], capture_output=True, text=True, check=True
    )

    assert result.stdout.split() == ["jose.backends.cryptography_backend", "False"]
