"""`make audit`: real bandit and pip-audit, the latter asking a service of advisories that the test plays."""

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

from audit import findings
from deploy import pins
from local.environments import PROJECT, environment

pytestmark = pytest.mark.slow

Json = dict[str, Any]
DJANGO = {"django": [{"id": "PYSEC-0000-1", "aliases": ["CVE-0000-1"]}]}
MINERVA = {"ecdsa": [{"id": "GHSA-wj6h-64fc-37mp", "aliases": ["CVE-2024-23342"]}]}


@pytest.fixture
def small(tmp_path: Path) -> list[str]:
    """A file of ours, cut down to ecdsa and the two versions of psycopg2-binary."""
    chosen = [
        pin.line
        for pin in pins.read(PROJECT / "shims/azure/requirements.txt")
        if pin.name in ("ecdsa", "psycopg2-binary")
    ]
    (tmp_path / "requirements.txt").write_text("\n".join(chosen))
    return [str(tmp_path / "requirements.txt")]


@contextmanager
def advisories(known: Json) -> Iterator[list[str]]:
    """pip-audit's options for a service that speaks OSV's protocol and knows this about packages, by name."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            package, version = asked["package"]["name"], asked["version"]
            found = known.get(f"{package}=={version}") or known.get(package) or []
            affected = [{"package": {"name": package, "ecosystem": "PyPI"}, "versions": [version]}]
            vulns = [{"details": "weak", "affected": affected, **each} for each in found]
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


def test_bandit_finds_in_the_code_what_is_accepted_with_a_reason_and_nothing_else() -> None:
    assert findings.of_the_code() == []


def test_a_new_weakness_and_an_accepted_one_that_is_gone_are_said(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("import subprocess\nsubprocess.call('ls ' + input(), shell=True)\n")
    known = [{"test": "B404", "files": {"app.py": 1}}, {"test": "B301", "files": {"app.py": 1}}]

    found = findings.of_the_code(tmp_path, known)

    assert len(found) == 2
    assert found[0].startswith("app.py:2: B602 subprocess call with shell=True")
    assert found[1] == "app.py: B301 is accepted 1 times and found 0 times"


def test_one_more_of_an_accepted_kind_is_said(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("def f(a: object) -> None:\n    assert a\n    assert not a\n")

    assert len(findings.of_the_code(tmp_path, [{"test": "B101", "files": {"app.py": 1}}])) == 2
    assert findings.of_the_code(tmp_path, [{"test": "B101", "files": {"app.py": 2}}]) == []


def test_the_accepted_advisories_are_found_and_nothing_else(small: list[str]) -> None:
    with advisories(DJANGO | MINERVA) as service:
        assert findings.of_the_dependencies(service, small) == []


def test_a_new_advisory_is_said_whatever_the_pins_marker(small: list[str]) -> None:
    new = {f"psycopg2-binary=={version}": [{"id": f"GHSA-{version}"}] for version in ("2.9.11", "2.9.13")}

    with advisories(DJANGO | MINERVA | new) as service:
        found = findings.of_the_dependencies(service, small)

    assert found == [f"psycopg2-binary {version}: GHSA-{version}" for version in ("2.9.11", "2.9.13")]


def test_an_accepted_advisory_that_is_gone_is_said(small: list[str]) -> None:
    with advisories(DJANGO) as service:
        found = findings.of_the_dependencies(service, small)

    assert found == ["ecdsa: CVE-2024-23342 is accepted and found no more"]


def test_a_service_that_knows_nothing_is_no_clean_record(small: list[str]) -> None:
    with (
        advisories(MINERVA) as service,
        pytest.raises(findings.Unasked, match=r"nothing against django==1\.2\. .* is no dependency"),
    ):
        findings.of_the_dependencies(service, small)


def audit(service: str, folder: Path = PROJECT) -> subprocess.CompletedProcess[str]:
    """`python -m audit` behind a proxy that is not there."""
    return subprocess.run(
        [sys.executable, "-m", "audit"],
        cwd=folder,
        env={"HTTPS_PROXY": "http://127.0.0.1:9", "PATH": "/usr/bin:/bin", "SERVICE": service},
        capture_output=True,
        text=True,
        check=False,
    )


def test_make_audit_says_that_nobody_could_be_asked_and_fails() -> None:
    """bandit's part still runs."""
    done = audit("osv")

    assert done.returncode == 2, done.stdout + done.stderr
    assert "pip-audit's last words: " in done.stderr
    assert "Proxy" in done.stderr.partition("pip-audit's last words: ")[2]
    assert "code (bandit): no findings" in done.stdout
    assert "NOT AUDITED" in done.stderr
    assert "HTTPS_PROXY" in done.stderr
    assert "dependencies (pip-audit): no" not in done.stdout


def test_a_finding_in_the_code_counts_also_where_nobody_could_be_asked(tmp_path: Path) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    for name in ("audit", "bench", "chalicelib", "deploy", "local", "shims"):
        shutil.copytree(
            PROJECT / name, folder / name, ignore=shutil.ignore_patterns("results", "__pycache__")
        )
    for name in ("app.py", "requirements.txt", "requirements-dev.txt"):
        shutil.copy(PROJECT / name, folder)
    (folder / "build").mkdir()
    (folder / "build/venvs").symlink_to(environment("audit").parents[2])
    with (folder / "app.py").open("a") as file:
        file.write("\nimport subprocess\nsubprocess.call('ls ' + input(), shell=True)\n")

    done = audit("osv", folder)

    assert done.returncode == 1, done.stdout + done.stderr
    assert "B602 subprocess call with shell=True" in done.stdout
    assert "NOT AUDITED" in done.stderr


@pytest.mark.parametrize("service", ["pipy", "esms"])
def test_a_service_that_nobody_knows_is_refused_by_name(service: str) -> None:
    done = audit(service)

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"SERVICE is {service!r}: use pypi or osv\n"


def test_every_dependency_is_without_a_weakness_that_is_known_today() -> None:
    """Asks the index itself. Where it cannot be asked, nothing is known, and this says so."""
    try:
        found = findings.of_the_dependencies()
    except findings.Unasked as error:
        pytest.skip(f"THE DEPENDENCIES WERE NOT AUDITED. {error}")

    assert found == []


def test_whatever_is_accepted_has_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert findings.accepted("code")
    assert findings.accepted("advisory")

    (tmp_path / "audit").mkdir()
    shutil.copy(PROJECT / "audit/accepted.toml", tmp_path / "audit")
    with (tmp_path / "audit/accepted.toml").open("a") as file:
        file.write('[[advisory]]\npackage = "six"\nid = "CVE-0000-2"\nreason = " "\n')
    monkeypatch.setattr(findings, "PROJECT", tmp_path)
    with pytest.raises(ValueError, match="without a reason"):
        findings.accepted("advisory")


@pytest.mark.parametrize("cloud", ["azure", "gcp", "oci"])
def test_ecdsa_is_never_loaded_to_verify_a_token(cloud: str) -> None:
    """The reason for which its weakness is accepted."""
    code = (
        "import sys, cognitojwt, jose.jwt, jose.jwk; key = jose.jwk.get_key('RS256');"
        "print(key.__module__, 'ecdsa' in sys.modules)"
    )

    said = subprocess.run([environment(cloud), "-I", "-c", code], capture_output=True, text=True, check=True)

    assert said.stdout.split() == ["jose.backends.cryptography_backend", "False"]
