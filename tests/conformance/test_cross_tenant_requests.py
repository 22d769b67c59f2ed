"""Every door with every requester and every way to name another tenant, also the headers of every cloud."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.support.cognito import UserPool
from tests.support.cross_tenant_requests import WAYS_AT_ONCE, Way
from tests.support.tenancy_rule import Operation, Scene
from tools.client import Transport

pytestmark = pytest.mark.slow

Rows = Callable[..., list[tuple[Any, ...]]]


def is_protected(operation: Operation) -> bool:
    return operation.protected


@pytest.mark.parametrize("way", WAYS_AT_ONCE, ids=str)
def test_naming_another_tenant_has_no_effect(
    way: Way,
    door: tuple[str, Transport],
    app: Any,
    user_pool: UserPool,
    rows: Rows,
    in_process: Transport,
) -> None:
    """No door identifies the caller by a header of its platform, though each platform has such headers."""
    _, send = door
    document = in_process("GET", "/openapi.json", {}, b"").json
    scene = Scene(app, document, user_pool, rows, baseline=in_process)

    assert scene.cross_tenant_requests(way, send, is_protected) == []
