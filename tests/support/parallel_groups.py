"""A pytest plugin: which tests run in the same process when `make test` runs several.

xdist hands out whole groups (`--dist loadgroup`), in this order (`--no-loadscope-reorder`). A group is a door
of conformance/conftest.py, or else a file, so that one process starts each host, build and server once.
"""

import pytest

SLOWEST_FILES = (
    "tests/bench/test_bench.py",
    "tests/tenancy/test_suite_mutants.py",
    "tests/chalicelib/settings/test_secrets.py",
    "tests/docs/test_readme.py",
    "tests/local/test_local_hosts.py",
    "tests/tools/soak/test_soak.py",
    "tests/support/test_ended_runs.py",
    "tests/deploy/test_build_aws.py",
    "tests/chalicelib/test_snapstart.py",
    "tests/chalicelib/database/test_pgbouncer.py",
)
"""The longest files start first, so that the run does not end with one busy process."""

EXIT_SECONDS = 30
"""How long an interrupted run waits for its processes, which stop their servers first. execnet interrupts a
test after 5 seconds and ends the process after 15; xdist by itself would kill it after 10."""


def pytest_configure(config: pytest.Config) -> None:
    if config.pluginmanager.hasplugin("xdist"):
        from xdist.workermanage import NodeManager

        NodeManager.EXIT_TIMEOUT = EXIT_SECONDS


def group_of(item: pytest.Item) -> str:
    parameters = (
        item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    )
    door = parameters.get("door")
    return f"door-{door}" if isinstance(door, str) else item.nodeid.partition("::")[0]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if " at 0x" in item.nodeid:
            raise pytest.UsageError(f"{item.nodeid}: the id of a test must be the same in every process")
        item.add_marker(pytest.mark.xdist_group(group_of(item)))
    if hasattr(config, "workerinput"):  # a process of xdist
        items.sort(key=_rank)


def _rank(item: pytest.Item) -> int:
    """Its index in SLOWEST_FILES. The sort is stable: all other tests keep their order."""
    group = group_of(item)
    return SLOWEST_FILES.index(group) if group in SLOWEST_FILES else len(SLOWEST_FILES)
