"""The tenant tests pass on an API without its tenant filter, because row-level security isolates alone."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).parents[2]
TENANT_TESTS = (
    "tests/tenancy/test_tenancy.py",
    "tests/chalicelib/orders/test_repository.py",
    "tests/chalicelib/orders/test_idempotency_key.py",
    "tests/chalicelib/database/test_round_trips.py",
)
API_ONLY_TESTS = {
    "tests/tenancy/test_tenancy.py::test_tenant_comes_only_from_the_token",
    "tests/tenancy/test_tenancy.py::test_concurrent_threads_never_mix_tenants",
    "tests/chalicelib/orders/test_repository.py::test_foreign_absent_and_malformed_ids_get_equal_404s",
}
"""Tests that use only the API, not the database: they pass with either of the two guards."""


def run_pytest(*arguments: str) -> "subprocess.CompletedProcess[str]":
    without_plugins = ["-p", "no:cacheprovider", "-p", "no:hypothesispytest"]
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *without_plugins, *arguments],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_tests_pass_without_the_tenant_filter() -> None:
    """Row-level security alone isolates the tenants."""
    result = run_pytest("--mutant=no-tenant-filter", *TENANT_TESTS)

    # pytest would count failed and skipped tests in this line too.
    passed = re.search(r"^(\d+) passed in ", result.stdout, re.MULTILINE)
    assert passed, result.stdout + result.stderr
    assert int(passed[1]) > 80
    assert result.returncode == 0


def test_tests_fail_without_filter_and_row_level_security() -> None:
    """Negative control: without row-level security the missing filter is detected."""
    tests = sorted(API_ONLY_TESTS)

    result = run_pytest("--mutant=no-tenant-filter", "--mutant=no-row-level-security", *tests)

    assert set(re.findall(r"^FAILED (\S+)", result.stdout, re.MULTILINE)) == API_ONLY_TESTS, result.stdout


def test_tests_pass_without_row_level_security() -> None:
    result = run_pytest("--mutant=no-row-level-security", *sorted(API_ONLY_TESTS))

    assert re.search(rf"^{len(API_ONLY_TESTS)} passed in ", result.stdout, re.MULTILINE), result.stdout
