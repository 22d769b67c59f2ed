"""With a broken database every host answers the same bytes: 503 if it is unreachable, 500 without tables."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from psycopg2.extensions import parse_dsn

from local import hosts
from local.database import Urls
from tests.conformance.conftest import DOORS
from tests.support.cognito import UserPool
from tests.support.servers import api_on
from tools.client import SEED_BYTES, Transport, free_port, over_http
from tools.conform import suite

pytestmark = pytest.mark.slow

SOCKET = ".s.PGSQL.5432"
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
    "without tables": [500, 500, 500, 500, 422, 503, 200],
}


FAILURES = {"nowhere": ("1", "unavailable"), "without tables": (None, "internal")}
"""Each failure's Retry-After, and its slug in the answer to a list."""


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


def test_hosts_answer_identically_with_a_broken_database(
    database: Urls,
    environment: dict[str, str],
    user_pool: UserPool,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    """Each host first finds no server, then one without tables at the same address."""
    headers = {"Authorization": user_pool.token("acme"), "Content-Type": "application/json"}
    answers: dict[str, dict[str, Any]] = {failure: {} for failure in FAILURES}
    for door in DOORS:
        sockets = tmp_path / door
        sockets.mkdir()
        url = f"postgresql://orders_app@/postgres?host={sockets}"
        with door_with_database(door, url, environment, request) as send:
            for failure, (retry_after, slug) in FAILURES.items():
                if failure == "without tables":
                    (sockets / SOCKET).symlink_to(Path(parse_dsn(database.app)["host"]) / SOCKET)
                responses = {
                    name: send(method, target, headers, body)
                    for name, (method, target, body) in REQUESTS.items()
                }
                answers[failure][door] = {name: suite.masked(answer) for name, answer in responses.items()}
                assert [answer.status for answer in responses.values()] == STATUSES[failure], door
                assert responses["a list"].headers.get("retry-after") == retry_after
                assert responses["a list"].headers["access-control-allow-origin"] == "*"
                assert responses["a list"].slug == slug

    for by_door in answers.values():
        for door in DOORS:
            assert by_door[door] == by_door["local"], door
