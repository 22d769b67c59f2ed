"""The tests of orders, of keys and of tenants hold on an API whose statements have forgotten the tenant."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).parents[2]
THAT_SAY_WHAT_A_TENANT_SEES = (
    "tests/tenancy/test_tenancy.py",
    "tests/chalicelib/orders/test_repository.py",
    "tests/chalicelib/orders/test_idempotency_key.py",
    "tests/chalicelib/database/test_round_trips.py",
)
BY_THE_API_ALONE = {
    "tests/tenancy/test_tenancy.py::test_tenant_comes_only_from_the_token",
    "tests/tenancy/test_tenancy.py::test_concurrent_threads_never_mix_tenants",
    "tests/chalicelib/orders/test_repository.py::test_foreign_absent_and_malformed_ids_get_equal_404s",
}
"""Tests that ask the API and nobody else: with one of the two guards they hold."""


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_tests_pass_without_the_tenant_filter() -> None:
    """Row-level security holds, and nobody notices."""
    done = run("--mutant=no-tenant-filter", *THAT_SAY_WHAT_A_TENANT_SEES)

    # A test that failed or was skipped would be counted in this line.
    passed = re.search(r"^(\d+) passed in ", done.stdout, re.MULTILINE)
    assert passed, done.stdout + done.stderr
    assert int(passed[1]) > 80
    assert done.returncode == 0


def test_tests_fail_without_filter_and_row_level_security() -> None:
    """The mutant is one: it is row-level security that holds above."""
    tests = sorted(BY_THE_API_ALONE)

    done = run("--mutant=no-tenant-filter", "--mutant=no-row-level-security", *tests)

    assert set(re.findall(r"^FAILED (\S+)", done.stdout, re.MULTILINE)) == BY_THE_API_ALONE, done.stdout


def test_tests_pass_without_row_level_security() -> None:
    done = run("--mutant=no-row-level-security", *sorted(BY_THE_API_ALONE))

    assert re.search(rf"^{len(BY_THE_API_ALONE)} passed in ", done.stdout, re.MULTILINE), done.stdout
