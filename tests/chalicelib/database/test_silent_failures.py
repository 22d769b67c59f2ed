"""A 5xx answer has a fixed short detail: no cause, no statement, no value."""

from pathlib import Path

import pytest

from chalicelib.errors import Internal, Problem, Unavailable
from local.database import Urls
from tests.support.servers import api_on
from tools.client import SEED_BYTES, Client

REQUESTS = [
    ("GET", "/orders", b""),
    ("GET", "/orders/01936f3c-3b5e-7cc0-98c4-dc0c0c07398f", b""),
    ("POST", "/orders", SEED_BYTES),
]


@pytest.mark.parametrize(
    ("failure", "problem"),
    [("no server", Unavailable), ("no tables", Internal), ("no such database", Unavailable)],
)
@pytest.mark.parametrize(("method", "path", "body"), REQUESTS, ids=lambda value: str(value)[:12])
def test_failure_response_hides_its_cause(
    alice: Client,
    database: Urls,
    tmp_path: Path,
    failure: str,
    problem: type[Problem],
    method: str,
    path: str,
    body: bytes,
) -> None:
    url = {
        "no server": f"postgresql://orders_app:hunter2@/orders?host={tmp_path}",
        "no tables": database.app.replace("/orders?", "/postgres?"),
        "no such database": database.app.replace("/orders?", "/absent?"),
    }[failure]

    with api_on(url):
        answer = alice.send(method, path, body, {"Content-Type": "application/json", "Idempotency-Key": "k1"})

    assert answer.json == {
        "type": f"urn:order-api:problem:{problem.slug}",
        "title": problem.title,
        "status": problem.status,
        "detail": problem.detail,
        "request_id": answer.headers["x-request-id"],
        "errors": [],
    }
    assert len(problem.detail) < 120
