"""With a broken database every host answers the same bytes: 503 if it is unreachable, 500 without tables."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from local import hosts
from local.database import Urls
from tests.conformance.conftest import DOORS
from tests.support.cognito import UserPool
from tests.support.servers import api_on
from tools.client import SEED_BYTES, Transport, free_port, over_http
from tools.conform import suite

pytestmark = pytest.mark.slow

REQUESTS = {
    "a list": ("GET", "/orders", b""),
    "its head": ("HEAD", "/orders", b""),
    "an order": ("GET", "/orders/01936f3c-3b5e-7cc0-98c4-dc0c0c07398f", b""),
    "a new order": ("POST", "/orders", SEED_BYTES),
    "what is no order": ("POST", "/orders", b"{}"),
    "readiness": ("GET", "/health/ready", b""),
    "health": ("GET", "/health", b""),
}
STATUSES = {
    "nowhere": [503, 503, 503, 503, 422, 503, 200],
    "without tables": [500, 500, 500, 500, 422, 200, 200],
}


@contextmanager
def door_with_database(
    door: str, url: str, environment: dict[str, str], request: pytest.FixtureRequest
) -> Iterator[Transport]:
    """A transport to the door with another DATABASE_URL."""
    if door == "local":
        send: Transport = request.getfixturevalue("http")
        with api_on(url):
            yield send
        return
    built: Callable[[str], Path] = request.getfixturevalue("built")
    variables, port = {**environment, "DATABASE_URL": url}, free_port()
    with hosts.serving(door, built(door), variables, "127.0.0.1", port):
        yield over_http("127.0.0.1", port)


@pytest.mark.parametrize("failure", STATUSES)
def test_hosts_answer_identically_with_a_broken_database(
    failure: str,
    database: Urls,
    environment: dict[str, str],
    user_pool: UserPool,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    url = {
        "nowhere": f"postgresql://orders_app@/orders?host={tmp_path}",
        "without tables": database.app.replace("/orders?", "/postgres?"),
    }[failure]
    headers = {"Authorization": user_pool.token("acme"), "Content-Type": "application/json"}
    answers = {}
    for door in DOORS:
        with door_with_database(door, url, environment, request) as send:
            responses = {
                name: send(method, target, headers, body) for name, (method, target, body) in REQUESTS.items()
            }
        answers[door] = {name: suite.masked(answer) for name, answer in responses.items()}
        assert [answer.status for answer in responses.values()] == STATUSES[failure], door
        assert responses["a list"].headers.get("retry-after") == ("1" if failure == "nowhere" else None)
        assert responses["a list"].headers["access-control-allow-origin"] == "*"
        assert responses["a list"].slug == ("unavailable" if failure == "nowhere" else "internal")

    for door in DOORS:
        assert answers[door] == answers["local"], door
