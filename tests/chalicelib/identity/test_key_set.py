"""The issuer's public keys: cached, refetched for an unknown key id, kept while the key server is down."""

import hmac
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.support.issuer import COGNITO, OIDC, Json, KeyServer, Provider, SigningKey, accepted, encoded
from tools.client import Client, Transport

OLD, NEW, UNLISTED = SigningKey("old"), SigningKey("new"), SigningKey("strange")
OCT = {"kty": "oct", "kid": "oct", "k": encoded(b"secret"), "use": "sig"}
ELLIPTIC = {"kty": "EC", "crv": "P-256", "kid": "ec", "x": "AA", "y": "AA", "use": "sig", "alg": "ES256"}

GetStatus = Callable[..., int]


class Clock:
    """A clock that tests can move forward; the times in the tokens are not moved."""

    def __init__(self) -> None:
        self.skipped = 0.0
        self.time = time.time

    def monotonic(self) -> float:
        return time.monotonic() + self.skipped

    def skip(self, seconds: float) -> None:
        self.skipped += seconds


@pytest.fixture
def clock(app: Any, monkeypatch: pytest.MonkeyPatch) -> Clock:  # noqa: ARG001 (it reads its settings first)
    from chalicelib.identity import jwks, key_set

    clock = Clock()
    for module in (jwks, key_set):
        monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture(params=[COGNITO, OIDC], ids=lambda provider: provider.name)
def provider(request: pytest.FixtureRequest) -> Provider:
    """One provider for each library that verifies signatures: all others take their keys in the same way."""
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def keys(clock: Clock, provider: Provider) -> Iterator[KeyServer]:  # noqa: ARG001 (as above)
    """A key server that lists the key OLD, which the API has not fetched yet."""
    keys = KeyServer(OLD.jwk())
    with accepted(provider.variables(keys)):
        yield keys
    keys.stop()


@pytest.fixture
def short_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorter than in production, so that the tests are faster."""
    from chalicelib.identity import key_set

    monkeypatch.setattr(key_set, "WAIT_TIMEOUT", 1.5)


@pytest.fixture
def get_status(http: Transport, provider: Provider) -> GetStatus:
    """Returns the status of a request whose token this key signed."""

    def get_status(key: SigningKey, **header: Any) -> int:
        return Client(http, key.token(provider.claims("acme"), **header)).get("/orders").status

    return get_status


def unlisted_key(number: int) -> SigningKey:
    return UNLISTED.named(f"unknown-{number}")


def concurrent_statuses(get_status: GetStatus, keys: list[SigningKey]) -> list[int]:
    """Sends one request per key concurrently; returns the statuses."""
    with ThreadPoolExecutor(len(keys)) as threads:
        return list(threads.map(get_status, keys))


def test_keys_are_fetched_once_an_hour(get_status: GetStatus, keys: KeyServer, clock: Clock) -> None:
    for _ in range(3):
        assert get_status(OLD) == 200
        clock.skip(1000)

    assert keys.fetches == 1


def test_concurrent_first_requests_share_one_fetch(get_status: GetStatus, keys: KeyServer) -> None:
    assert concurrent_statuses(get_status, [OLD] * 20) == [200] * 20

    assert keys.fetches == 1


def test_rotated_key_is_fetched_on_first_use(get_status: GetStatus, keys: KeyServer, clock: Clock) -> None:
    assert get_status(OLD) == 200
    clock.skip(61)
    keys.publish(OLD.jwk(), NEW.jwk())

    assert concurrent_statuses(get_status, [NEW, OLD] * 5) == [200] * 10
    assert keys.fetches == 2


def test_withdrawn_key_is_dropped_by_the_next_fetch(
    get_status: GetStatus, keys: KeyServer, clock: Clock
) -> None:
    assert get_status(OLD) == 200
    clock.skip(61)
    keys.publish(NEW.jwk())

    assert (get_status(NEW), get_status(OLD)) == (200, 401)


def test_withdrawn_key_invalidates_its_cached_tokens(
    http: Transport, provider: Provider, get_status: GetStatus, keys: KeyServer, clock: Clock
) -> None:
    alice = Client(http, OLD.token(provider.claims("acme")))
    assert [alice.get("/orders").status for _ in range(2)] == [200, 200]
    clock.skip(61)
    keys.publish(NEW.jwk())
    assert get_status(NEW) == 200

    assert alice.get("/orders").status == 401


@pytest.mark.usefixtures("keys")
def test_cached_token_expires(http: Transport, provider: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    alice = Client(http, OLD.token(provider.claims("acme")))
    assert [alice.get("/orders").status for _ in range(2)] == [200, 200]
    later = time.time() + 24 * 3600

    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: later)
        assert alice.get("/orders").status == 401
    assert alice.get("/orders").status == 200


@pytest.mark.usefixtures("keys")
def test_cached_token_does_not_admit_altered_tokens(http: Transport, provider: Provider) -> None:
    valid = OLD.token(provider.claims("acme"))
    assert Client(http, valid).get("/orders").status == 200
    header, payload, signature = valid.split(".")
    foreign_payload = OLD.token(provider.claims("globex")).split(".")[1]

    for token in (f"{header}.{foreign_payload}.{signature}", f"{header}.{payload}.", f"{valid}A", valid[:-1]):
        assert Client(http, token).get("/orders").status == 401


@pytest.mark.usefixtures("keys")
def test_repeated_token_is_verified_once(http: Transport, provider: Provider) -> None:
    from chalicelib.identity import tokens

    alice = Client(http, OLD.token(provider.claims("acme")))
    before = tokens._verified_claims.cache_info().misses
    for _ in range(3):
        assert alice.get("/orders").status == 200

    # Two: the first request fetches the keys, which starts a new cache version.
    assert tokens._verified_claims.cache_info().misses - before == 2


def test_unknown_keys_cause_one_fetch_a_minute(get_status: GetStatus, keys: KeyServer, clock: Clock) -> None:
    assert get_status(OLD) == 200
    clock.skip(61)

    for number in range(20):
        assert get_status(unlisted_key(number)) == 401
    assert keys.fetches == 2
    clock.skip(50)
    assert get_status(unlisted_key(1)) == 401
    assert keys.fetches == 2
    clock.skip(11)
    assert get_status(unlisted_key(1)) == 401
    assert keys.fetches == 3


def test_twenty_unknown_keys_at_once_cause_one_fetch(
    get_status: GetStatus, keys: KeyServer, clock: Clock
) -> None:
    assert get_status(OLD) == 200
    clock.skip(61)

    assert concurrent_statuses(get_status, [unlisted_key(number) for number in range(20)]) == [401] * 20

    assert keys.fetches == 2


def test_unknown_keys_in_the_first_requests_are_rejected(get_status: GetStatus, keys: KeyServer) -> None:
    assert concurrent_statuses(get_status, [unlisted_key(number) for number in range(20)]) == [401] * 20

    assert keys.fetches == 1
    assert get_status(OLD) == 200


def test_known_keys_work_while_the_server_is_down(
    get_status: GetStatus, keys: KeyServer, clock: Clock
) -> None:
    assert get_status(OLD) == 200
    keys.stop()

    for _ in range(3):
        clock.skip(61)
        assert (get_status(NEW), get_status(OLD)) == (401, 200)
    keys.publish(NEW.jwk())
    keys.start()
    clock.skip(61)
    assert get_status(NEW) == 200


@pytest.mark.parametrize("status", [404, 429, 500, 503])
def test_key_server_error_response_adds_no_keys(
    get_status: GetStatus, keys: KeyServer, clock: Clock, status: int
) -> None:
    assert get_status(OLD) == 200
    keys.publish(NEW.jwk())
    keys.status = status
    clock.skip(61)

    assert (get_status(NEW), get_status(OLD)) == (401, 200)


def test_concurrent_requests_fetch_a_failing_server_once(get_status: GetStatus, keys: KeyServer) -> None:
    keys.status = 503

    assert concurrent_statuses(get_status, [OLD] * 20) == [401] * 20

    assert keys.fetches == 1


def test_failed_first_fetch_is_retried_later(get_status: GetStatus, keys: KeyServer, clock: Clock) -> None:
    keys.stop()
    assert get_status(OLD) == 401
    keys.start()

    clock.skip(10)

    assert get_status(OLD) == 200


@pytest.mark.usefixtures("short_wait")
def test_hanging_key_server_does_not_delay_known_keys(
    get_status: GetStatus, keys: KeyServer, clock: Clock
) -> None:
    assert get_status(OLD) == 200
    clock.skip(61)
    keys.released.clear()
    with ThreadPoolExecutor(5) as threads:
        started = time.monotonic()
        requests = [threads.submit(get_status, unlisted_key(number)) for number in range(5)]
        while keys.fetches < 2 and time.monotonic() - started < 2:
            time.sleep(0.01)

        assert get_status(OLD) == 200

        assert not any(request.done() for request in requests)
        assert [request.result() for request in requests] == [401] * 5
    assert time.monotonic() - started < 3
    assert keys.fetches == 2


@pytest.mark.usefixtures("short_wait")
def test_trickling_key_server_times_out(get_status: GetStatus, keys: KeyServer) -> None:
    """Each byte arrives before the socket's timeout; the complete body does not."""
    keys.byte_delay = 0.25

    started = time.monotonic()
    status = get_status(OLD)

    assert (status, time.monotonic() - started < 3) == (401, True)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"{",
        b"\xff",
        b"null",
        b"[]",
        b"{}",
        b'"keys"',
        b'{"keys":null}',
        b'{"keys":5}',
        b'{"keys":""}',
        b'{"keys":"abc"}',
        b'{"keys":{}}',
        b'{"keys":[]}',
        b'{"keys":[null]}',
        b'{"keys":[{}]}',
        b'{"keys":[{"kty":"RSA"}]}',
        b'{"keys":[{"kty":"oct","kid":"old","k":"AA"}]}',
    ],
    ids=repr,
)
def test_malformed_key_list_replaces_no_keys(
    get_status: GetStatus, keys: KeyServer, clock: Clock, body: bytes
) -> None:
    assert get_status(OLD) == 200
    keys.body = body
    clock.skip(61)

    assert (get_status(NEW), get_status(OLD)) == (401, 200)
    assert keys.fetches == 2


@pytest.mark.parametrize(
    "other",
    [
        {},
        None,
        5,
        [],
        "old",
        {"kty": "RSA"},
        {"kty": "RSA", "kid": None},
        {"kty": "RSA", "kid": "broken"},
        {"kty": "RSA", "kid": "broken", "n": "*", "e": 5},
        {"kty": ["RSA"]},
        {**OCT, "kid": "old"},
        OCT,
        ELLIPTIC,
        UNLISTED.jwk(kid=None),
        UNLISTED.jwk(kid=5),
        UNLISTED.jwk(kid=["old"]),
    ],
    ids=lambda other: json.dumps({**other, "n": ""} if isinstance(other, dict) else other),
)
def test_valid_key_is_used_beside_unusable_ones(get_status: GetStatus, keys: KeyServer, other: Any) -> None:
    """RFC 7517, section 5: keys that are not understood are ignored, the others are not."""
    keys.publish(other, OLD.jwk())

    assert get_status(OLD) == 200


@pytest.mark.parametrize(
    "key",
    [
        UNLISTED.jwk(alg="RS384"),
        UNLISTED.jwk(alg="RS512"),
        UNLISTED.jwk(alg="PS256"),
        UNLISTED.jwk(alg="HS256"),
        UNLISTED.jwk(alg="RSA-OAEP"),
        UNLISTED.jwk(use="enc"),
        UNLISTED.jwk(kty="oct"),
        UNLISTED.jwk(kty="rsa"),
        UNLISTED.jwk(kty=None),
        UNLISTED.jwk(kid=None),
    ],
    ids=lambda key: " ".join(f"{name}={key.get(name)}" for name in ("kty", "alg", "use", "kid")),
)
def test_only_rs256_signing_keys_are_used(get_status: GetStatus, keys: KeyServer, key: Json) -> None:
    keys.publish(key, OLD.jwk())

    assert get_status(UNLISTED) == 401
    assert get_status(UNLISTED, alg=key.get("alg")) == 401
    assert get_status(OLD) == 200


@pytest.mark.parametrize("members", [{"alg": None}, {"use": None}, {"alg": None, "use": None}], ids=str)
def test_key_without_alg_and_use_is_accepted(
    get_status: GetStatus, keys: KeyServer, members: dict[str, None]
) -> None:
    keys.publish(OLD.jwk(**members))

    assert get_status(OLD) == 200


@pytest.mark.parametrize("alg", ["HS256", "RS256", None])
@pytest.mark.parametrize("named", ["HS256", "RS256"])
def test_symmetric_key_in_the_key_list_is_rejected(
    http: Transport, provider: Provider, keys: KeyServer, alg: str | None, named: str
) -> None:
    keys.publish({**OCT, **({"alg": alg} if alg else {})})
    signing_input = f"{encoded({'alg': named, 'kid': 'oct'})}.{encoded(provider.claims('acme'))}"
    signature = hmac.digest(b"secret", signing_input.encode(), "sha256")

    assert Client(http, f"{signing_input}.{encoded(signature)}").get("/orders").status == 401


@pytest.mark.parametrize("status", [301, 302, 307])
def test_key_server_redirect_is_not_followed(get_status: GetStatus, keys: KeyServer, status: int) -> None:
    redirect_target = KeyServer(UNLISTED.jwk())
    keys.status, keys.headers, keys.body = status, {"Location": redirect_target.url}, b""

    assert get_status(UNLISTED) == 401

    assert (keys.fetches, redirect_target.fetches) == (1, 0)
    redirect_target.stop()
