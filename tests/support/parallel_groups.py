"""A pytest plugin: which tests run in the same process when `make test` runs several.

xdist hands out whole groups (`--dist loadgroup`), in this order (`--no-loadscope-reorder`). A group is a door
of conformance/conftest.py, or else a file: so each host, build and server is started once, by one process.
"""

import pytest

LONGEST: tuple[str, ...] = ()
"""These begin first, so that no process is left alone with a long one at the end."""


def group_of(item: pytest.Item) -> str:
    parameters = (
        item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    )
    door = parameters.get("door")
    return f"door-{door}" if isinstance(door, str) else item.nodeid.partition("::")[0]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.xdist_group(group_of(item)))
