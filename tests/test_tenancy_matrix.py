"""Every route, asked by everybody, naming another tenant in every way: nobody gets across."""

import json
from typing import Any

import pytest

from tests.client import Transport
from tests.cognito import UserPool
from tests.tenancy_rule import Operation, Rows, Scene
from tests.trespass import WAYS, WAYS_AT_ONCE, Way


@pytest.fixture
def scene(app: Any, user_pool: UserPool, rows: Rows, in_process: Transport) -> Scene:
    from chalicelib import openapi

    return Scene(app, json.loads(openapi.document()), user_pool, rows, plainly=in_process)


def is_protected(operation: Operation) -> bool:
    return operation.protected


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_naming_another_tenant_changes_nothing(way: Way, scene: Scene, in_process: Transport) -> None:
    assert scene.trespasses(way, in_process) == []


@pytest.mark.parametrize("way", WAYS_AT_ONCE, ids=str)
def test_naming_another_tenant_over_http_changes_nothing(way: Way, scene: Scene, http: Transport) -> None:
    assert scene.trespasses(way, http, is_protected) == []


def test_a_key_that_another_tenant_or_user_has_used_replays_the_own_order(
    scene: Scene, in_process: Transport, http: Transport
) -> None:
    assert scene.replays(in_process) == []
    assert scene.replays(http) == []
