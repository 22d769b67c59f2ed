"""A pytest plugin: which tests run in the same process when `make test` runs several.

xdist hands out whole groups in this order (`--dist loadscope --no-loadscope-reorder`). A group is a door of
conformance/conftest.py, or else a file, so that one process starts each host, build and server once.
"""

import re
from typing import Any

import pytest

SLOWEST = (
    "tests/tools/soak/test_soak.py",
    "door-local",
    "door-azure",
    "door-gcp",
    "door-oci",
    "door-lambda",
    "tests/bench/test_bench.py",
    "tests/chalicelib/settings/test_secrets.py",
    "tests/local/test_local_hosts.py",
    "tests/chalicelib/database/test_pgbouncer.py",
    "tests/faults/test_resources.py",
    "tests/conformance/test_key_servers.py",
    "tests/docs/test_readme.py",
    "tests/deploy/test_build_aws.py",
    "tests/tenancy/test_suite_mutants.py",
    "tests/deploy/test_template.py",
    "tests/tenancy/test_tenancy_matrix.py",
    "tests/chalicelib/test_flood.py",
    "tests/faults/test_failover.py",
)
"""The longest groups start first, so that the run does not end with one busy process."""

EXIT_SECONDS = 30
"""How long an interrupted run waits for its processes, which stop their servers first. execnet interrupts a
test after 5 seconds and ends the process after 15; xdist by itself would kill it after 10."""


def pytest_configure(config: pytest.Config) -> None:
    if config.pluginmanager.hasplugin("xdist"):
        from xdist.workermanage import NodeManager

        NodeManager.EXIT_TIMEOUT = EXIT_SECONDS


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Not xdist's `loadgroup`: with pytest 9.2 it ignores the groups, because `nodeid` cannot be set."""
    from xdist.scheduler import LoadScopeScheduling

    class GroupScheduling(LoadScopeScheduling):  # type: ignore[misc] # xdist has no types
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    return GroupScheduling(config, log) if config.getoption("dist") == "loadscope" else None


def group_of(nodeid: str) -> str:
    door = re.match(r"tests/conformance/.*::\w+\[(azure|gcp|lambda|local|oci)\b", nodeid)
    return f"door-{door[1]}" if door else nodeid.partition("::")[0]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if " at 0x" in item.nodeid:
            raise pytest.UsageError(f"{item.nodeid}: the id of a test must be the same in every process")
    if hasattr(config, "workerinput"):  # a process of xdist
        items.sort(key=_rank)


def _rank(item: pytest.Item) -> int:
    """Its index in SLOWEST. The sort is stable: all other tests keep their order."""
    group = group_of(item.nodeid)
    return SLOWEST.index(group) if group in SLOWEST else len(SLOWEST)
