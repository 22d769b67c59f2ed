"""`chalice local` answers the conformance list with no deviations but those in docs/local.md."""

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
"""Each case with a different answer: the actual status, and why."""


@pytest.fixture(scope="module")
def deviating(environment: dict[str, str], user_pool: UserPool) -> dict[str, Answer]:
    """The answers of `chalice local` that differ from the list."""
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
            expected, actual = suite.expected()[name], suite.masked(deviating[name])
            cors = {header for header in expected["headers"] if header.startswith("access-control-")}
            assert {header: expected["headers"][header] for header in cors} == actual["headers"]
