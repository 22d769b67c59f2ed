"""The plain `chalice local` command: the same list, and no deviation but those of docs/local.md."""

from pathlib import Path

import pytest

from local import hosts
from tests.support.cognito import UserPool
from tools.client import Answer, free_port, over_http
from tools.conform import suite

pytestmark = pytest.mark.slow

UNDECODABLE = suite.NO_ANSWER, "Chalice ends the connection at a token that it cannot decode"
NO_ROUTE = 403, "API Gateway's own answer to an unknown path"
SLASH_STRIPPED = 200, "a trailing slash is stripped"
SLASHES_MERGED = 200, "slashes at the start of a path become one, as http.server does it"
BARE_PREFLIGHT = 200, "the preflight has CORS headers and no others"
DEVIATIONS = {
    "an empty token": UNDECODABLE,
    "a word for a token": UNDECODABLE,
    "dots for a token": UNDECODABLE,
    "basic credentials": UNDECODABLE,
    "the root": NO_ROUTE,
    "an unknown path": NO_ROUTE,
    "a path below an order": NO_ROUTE,
    "a doubled slash inside": NO_ROUTE,
    "a dot segment": NO_ROUTE,
    "a path in capitals": NO_ROUTE,
    "a percent-encoded path": NO_ROUTE,
    "a POST to nowhere": NO_ROUTE,
    "the head of nowhere": NO_ROUTE,
    "the preflight of nowhere": NO_ROUTE,
    "a trailing slash": SLASH_STRIPPED,
    "a trailing slash behind an id": SLASH_STRIPPED,
    "a doubled slash": SLASHES_MERGED,
    "the preflight of the list": BARE_PREFLIGHT,
    "the preflight of an order": BARE_PREFLIGHT,
    "the preflight of health": BARE_PREFLIGHT,
}
"""Each case that is answered otherwise, with the status that comes and why."""


@pytest.fixture(scope="module")
def deviating(environment: dict[str, str], user_pool: UserPool) -> dict[str, Answer]:
    """What `chalice local` answers where the list says something else."""
    callers = {
        "alice": user_pool.token("chalice-door"),
        "stranger": user_pool.token("chalice-door-stranger"),
        "tenantless": user_pool.token(None),
    }
    port = free_port()
    with hosts.serving("aws", Path("app.py"), environment, "127.0.0.1", port):
        answers = list(suite.run(over_http("127.0.0.1", port), callers))
    expected = suite.expected()
    return {
        case.name: answer for case, answer in answers if suite.differences(case, answer, expected[case.name])
    }


def test_chalice_local_deviates_only_as_documented(deviating: dict[str, Answer]) -> None:
    statuses = {name: answer.status for name, answer in deviating.items()}

    assert statuses == {name: status for name, (status, _) in DEVIATIONS.items()}


def test_chalice_local_keeps_cors_in_its_preflight(deviating: dict[str, Answer]) -> None:
    for name, deviation in DEVIATIONS.items():
        if deviation == BARE_PREFLIGHT:
            wanted, found = suite.expected()[name], suite.masked(deviating[name])
            cors = {header for header in wanted["headers"] if header.startswith("access-control-")}
            assert {header: wanted["headers"][header] for header in cors} == found["headers"]
