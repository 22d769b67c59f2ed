"""What looks for values in the logs of the whole suite (tests/canaries.py) sees them wherever they are."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent
TOKEN = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9.c2lnbmF0dXJl"
LEAKS = {
    "stdout": "print('order of John Doe')",
    "stderr": "import sys; print('john@example.com', file=sys.stderr)",
    "a child": "import subprocess; subprocess.run(['echo', 'call +1234567890'])",
    "a record": "import logging; logging.getLogger('order-api').error('to %s', '123 Main St')",
    "another library's record": "import logging; logging.getLogger('some.library').error('John Doe')",
    "a token": f"print('Authorization: Bearer {TOKEN}')",
    "captured": "import os; os.write(1, b'John Doe'); capfd.readouterr()",
}


def run(folder: Path, source: str) -> "subprocess.CompletedProcess[str]":
    test = folder / "test_leaks.py"
    test.write_text(source)
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "tests.canaries", "-p", "no:cacheprovider", test],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_canary_is_seen_wherever_it_is_logged(tmp_path: Path) -> None:
    tests = [f"def test_{number}(capfd): {leak}" for number, leak in enumerate(LEAKS.values())]

    done = run(tmp_path, "\n".join(tests))

    assert f"{len(LEAKS)} failed" in done.stdout, done.stdout
    assert done.stdout.count("A log holds what none may hold (tests/canaries.py):") == len(LEAKS)
    for where in (
        "Captured stdout call",
        "Captured stderr call",
        "the logger order-api",
        "what the test captured",
    ):
        assert f"{where} holds " in done.stdout, where


@pytest.mark.parametrize("scope", ["function", "session"])
def test_a_canary_of_a_fixture_is_seen(tmp_path: Path, scope: str) -> None:
    """A host that serves the whole session says its last words when the last test is over."""
    fixture = f"@pytest.fixture(scope={scope!r})\ndef host():\n    yield\n    print('John Doe')\n"

    done = run(tmp_path, f"import pytest\n{fixture}\ndef test_serves(host): pass")

    assert "Captured stdout teardown holds 'John Doe'" in done.stdout, done.stdout
    assert done.returncode == 1


def test_what_holds_none_is_green(tmp_path: Path) -> None:
    done = run(tmp_path, "def test_quiet():\n    print('POST /orders 201 tenant-1 alice eyJ')")

    assert (done.returncode, "1 passed" in done.stdout) == (0, True), done.stdout
