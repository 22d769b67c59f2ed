"""tests/support/log_leak_plugin.py finds leaked values in every kind of log output."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).parents[2]
TOKEN = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9.c2lnbmF0dXJl"
LEAKS = {
    "stdout": "print('order of John Doe')",
    "stderr": "import sys; print('john@example.com', file=sys.stderr)",
    "a child": "import subprocess; subprocess.run(['echo', 'call +1234567890'])",
    "a record": "import logging; logging.getLogger('order-api').error('to %s', '123 Main St')",
    "another library's record": "import logging; logging.getLogger('some.library').error('John Doe')",
    "a token": f"print('Authorization: Bearer {TOKEN}')",
    "a token's e-mail": "print('alice@acme-1.example')",
    "an e-mail in an order": "print('zoë a.b+c@mail.shop.example!')",
    "what was bought": "print('2 x WDG-001')",
    "a host's file": "check_log(write('said', 'mailed to john@example.com'))",
    "a host's pipe": "check_log_text('a pipe', '\"Widget\"')",
    "captured": "import os; os.write(1, b'John Doe'); capfd.readouterr()",
}


WRITE = """
from pathlib import Path
from tests.support.log_leak_plugin import check_log, check_log_text

def write(name, text):
    path = Path(name)
    path.write_text(text)
    return path
"""
A_SERVER = """
import psycopg2, pytest
from tests.support.servers import private_server

@pytest.fixture
def server():
    with private_server() as server:
        yield server

def refused(server):
    with pytest.raises(psycopg2.Error), psycopg2.connect(server.url("postgres")) as connection:
        connection.cursor().execute("do $$ begin raise 'no %', 'john@example.com'; end $$")

def test_by_a_fixture(server):
    refused(server)

def test_of_its_own():
    with private_server() as server:
        refused(server)
"""


def run(folder: Path, source: str) -> "subprocess.CompletedProcess[str]":
    test = folder / "test_leaks.py"
    test.write_text(source)
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "tests.support.log_leak_plugin",
            "-p",
            "no:cacheprovider",
            test,
        ],
        cwd=folder,
        # In CI pytest prints full summaries, which would repeat the lines counted below.
        env={
            **{name: value for name, value in os.environ.items() if name != "CI"},
            "PYTHONPATH": str(PROJECT),
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        },
        capture_output=True,
        text=True,
        check=False,
    )


def test_leaked_value_is_found_in_every_log(tmp_path: Path) -> None:
    tests = [WRITE, *(f"def test_{number}(capfd): {leak}" for number, leak in enumerate(LEAKS.values()))]

    result = run(tmp_path, "\n".join(tests))

    assert f"{len(LEAKS)} failed" in result.stdout, result.stdout
    assert result.stdout.count("A log holds what none may hold (tests/support/log_leak_plugin.py):") == len(
        LEAKS
    )
    for source in (
        "Captured stdout call",
        "Captured stderr call",
        "the logger order-api",
        "what the test captured",
        "the file said",
        "a pipe",
    ):
        assert f"{source} holds " in result.stdout, source


@pytest.mark.parametrize("scope", ["function", "session"])
def test_leak_during_fixture_teardown_is_found(tmp_path: Path, scope: str) -> None:
    """A host of session scope writes its last output after the last test."""
    fixture = f"@pytest.fixture(scope={scope!r})\ndef host():\n    yield\n    print('John Doe')\n"

    result = run(tmp_path, f"import pytest\n{fixture}\ndef test_serves(host): pass")

    assert "Captured stdout teardown holds 'John Doe'" in result.stdout, result.stdout
    assert result.returncode == 1


def test_leak_in_the_database_server_log_is_found(tmp_path: Path) -> None:
    result = run(tmp_path, A_SERVER)

    assert result.stdout.count("the file log holds 'john@example.com'") == 2, result.stdout
    assert result.returncode == 1


def test_run_without_leaks_passes(tmp_path: Path) -> None:
    text = "POST /orders 201 tenant-1 alice eyJ https://shop.example @example"

    result = run(
        tmp_path, f"{WRITE}\ndef test_quiet():\n    print('{text}')\n    check_log(write('log', '{text}'))"
    )

    assert (result.returncode, "1 passed" in result.stdout) == (0, True), result.stdout
