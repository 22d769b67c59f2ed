"""The doors: every host in its own virtual environment, with the built folder as its only project code."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy import hosts as builds
from local import hosts
from tests.support.builds import AwsBuild
from tests.support.cognito import UserPool
from tools.client import Answer, Transport, free_port, over_http
from tools.conform import suite
from tools.conform.cases import Case

DOORS = ("local", "lambda", "azure", "gcp", "oci")


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Callable[[str], Path]:
    """The folder that `make build-<cloud>` writes, made when it is first asked for."""
    folder = tmp_path_factory.mktemp("build")

    def find(cloud: str) -> Path:
        if cloud == "lambda":
            aws: AwsBuild = request.getfixturevalue("aws_build")
            return aws.folder
        if not (folder / cloud).exists():
            builds.build(cloud, folder / cloud)
        return folder / cloud

    return find


@pytest.fixture(scope="session", params=DOORS)
def door(request: pytest.FixtureRequest, environment: dict[str, str]) -> Iterator[tuple[str, Transport]]:
    """A host's name, and a transport that sends requests to it over a real connection."""
    if request.param == "local":
        yield "local", request.getfixturevalue("http")
        return
    find = request.getfixturevalue("built")
    port = free_port()
    with hosts.serving(request.param, find(request.param), environment, "127.0.0.1", port):
        yield request.param, over_http("127.0.0.1", port)


@pytest.fixture(scope="session")
def answers(
    door: tuple[str, Transport], user_pool: UserPool, request: pytest.FixtureRequest
) -> dict[str, tuple[Case, Answer]]:
    """This door's answers to the whole conformance list, which is sent once."""
    name, send = door
    tenant = f"conformance-{name}"
    callers = {
        "alice": user_pool.token(tenant),
        "stranger": user_pool.token(f"{tenant}-stranger"),
        "tenantless": user_pool.token(None),
    }
    results = list(suite.run(send, callers))
    if request.config.getoption("--record-conformance") and name == "local":
        suite.record(results)
    return {case.name: (case, answer) for case, answer in results}
