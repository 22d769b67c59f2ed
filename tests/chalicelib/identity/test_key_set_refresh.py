"""Cached keys age: they are refreshed in the background, and withdrawn keys stop being accepted."""

import gzip
import linecache
import logging
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from tests.chalicelib.identity.test_key_set import Clock, concurrent_statuses, unlisted_key
from tests.support.issuer import COGNITO, OIDC, PROVIDERS, KeyServer, Provider, SigningKey, accepted
from tools.client import Client, Transport

OLD, NEW = SigningKey("old"), SigningKey("new")
HOUR = 3601
PROJECT = Path(__file__).parents[3]

Get = Callable[[SigningKey], int]
Fault = Callable[[KeyServer], None]


@pytest.fixture(params=[COGNITO, OIDC], ids=lambda provider: provider.name)
def provider(request: pytest.FixtureRequest) -> Provider:
    """One provider per token library: Entra and Firebase use the same one as OIDC."""
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def clock(app: Any, monkeypatch: pytest.MonkeyPatch) -> Clock:  # noqa: ARG001 (it reads its settings first)
    from chalicelib.identity import jwks, key_set

    clock = Clock()
    for module in (jwks, key_set):
        monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture
def keys(clock: Clock, provider: Provider) -> Iterator[KeyServer]:  # noqa: ARG001 (as above)
    """A key server that lists the key OLD, which the API has not fetched yet."""
    keys = KeyServer(OLD.jwk())
    with accepted(provider.variables(keys)):
        yield keys
    keys.stop()


@pytest.fixture
def get(http: Transport, provider: Provider) -> Get:
    """Returns the status of a request whose token this key signed; one token per key."""
    tokens: dict[str, str] = {}

    def get(key: SigningKey) -> int:
        token = tokens.setdefault(key.kid, key.token(provider.claims("acme")))
        return Client(http, token).get("/orders").status

    return get


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def wait_for_fetches(keys: KeyServer) -> None:
    """Waits until no fetch of this process is running."""
    from chalicelib.identity import tokens

    for fetch in tokens._key_set()._fetches:
        fetch.join(5)
        assert not fetch.is_alive(), keys.url


@pytest.mark.parametrize("provider", PROVIDERS, indirect=True, ids=lambda provider: provider.name)
def test_withdrawn_key_is_rejected_within_about_an_hour(get: Get, keys: KeyServer, clock: Clock) -> None:
    """Also for a token whose verification is cached."""
    assert [get(OLD), get(OLD)] == [200, 200]
    keys.publish(NEW.jwk())
    clock.skip(3500)
    assert (get(OLD), keys.fetches) == (200, 1)

    clock.skip(200)
    get(OLD)

    eventually(lambda: get(OLD) == 401)
    assert keys.fetches == 2
    assert (get(NEW), keys.fetches) == (200, 2)


def test_expired_keys_refresh_without_delaying_requests(
    get: Get, keys: KeyServer, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    from chalicelib.identity import key_set

    monkeypatch.setattr(key_set, "WAIT_TIMEOUT", 20)
    assert get(OLD) == 200
    keys.released.clear()
    clock.skip(HOUR)

    started = time.monotonic()
    assert concurrent_statuses(get, [OLD] * 10) == [200] * 10

    assert time.monotonic() - started < 10
    eventually(lambda: keys.fetches == 2)


def test_concurrent_requests_refresh_expired_keys_once(get: Get, keys: KeyServer, clock: Clock) -> None:
    assert get(OLD) == 200
    clock.skip(HOUR)

    assert concurrent_statuses(get, [OLD] * 20) == [200] * 20
    wait_for_fetches(keys)
    assert concurrent_statuses(get, [OLD] * 20) == [200] * 20

    assert keys.fetches == 2


def test_unchanged_keys_keep_verified_tokens_cached(get: Get, keys: KeyServer, clock: Clock) -> None:
    from chalicelib.identity import tokens

    assert [get(OLD), get(OLD)] == [200, 200]
    before = tokens._verified_claims.cache_info().misses
    clock.skip(HOUR)

    assert get(OLD) == 200
    wait_for_fetches(keys)
    assert get(OLD) == 200

    assert keys.fetches == 2
    assert tokens._verified_claims.cache_info().misses == before


def test_frozen_process_still_ages_its_keys(get: Get, keys: KeyServer, clock: Clock) -> None:
    """A frozen machine's monotonic clock may stand still."""
    assert get(OLD) == 200
    keys.publish(NEW.jwk())

    clock.time = lambda: time.time() + HOUR
    get(OLD)

    eventually(lambda: get(OLD) == 401)


def test_request_waits_for_keys_older_than_a_day(get: Get, keys: KeyServer, clock: Clock) -> None:
    """On hosts that freeze between requests a background fetch may never finish."""
    assert get(OLD) == 200
    keys.publish(NEW.jwk())

    clock.skip(24 * HOUR)

    assert get(OLD) == 401


def down(keys: KeyServer) -> None:
    keys.stop()


def failing(keys: KeyServer) -> None:
    keys.status = 503


def garbled(keys: KeyServer) -> None:
    keys.body = b"<!doctype html><title>Sign in</title>"


def cut_short(keys: KeyServer) -> None:
    keys.body = keys.body[:-40]


def endless(keys: KeyServer) -> None:
    """The keys, then 500 MB of spaces: still valid JSON."""
    keys.padding = 500_000_000


def compressed(keys: KeyServer) -> None:
    """Compressed although no Accept-Encoding was sent; 50 MB when decompressed."""
    keys.headers = {"Content-Encoding": "gzip"}
    keys.body = gzip.compress(keys.body + b" " * 50_000_000)


def emptied(keys: KeyServer) -> None:
    keys.publish()


def shortened(keys: KeyServer) -> None:
    keys.publish(SigningKey("new", 1024).jwk())


FAULTS = [down, failing, garbled, cut_short, endless, compressed, emptied, shortened]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_old_keys_serve_until_the_key_server_recovers(
    get: Get, keys: KeyServer, clock: Clock, fault: Fault
) -> None:
    assert get(OLD) == 200
    keys.publish(NEW.jwk())
    fault(keys)
    for _ in range(3):
        clock.skip(HOUR)
        assert get(OLD) == 200
        wait_for_fetches(keys)
        assert get(OLD) == 200
    assert keys.padded < 20_000_000

    keys.status, keys.headers, keys.padding = 200, {}, 0
    keys.publish(NEW.jwk())
    if fault is down:
        keys.start()
    clock.skip(61)
    get(OLD)

    eventually(lambda: get(OLD) == 401)
    assert get(NEW) == 200


def test_failing_key_server_is_retried_with_backoff(get: Get, keys: KeyServer, clock: Clock) -> None:
    assert get(OLD) == 200
    keys.status = 500
    clock.skip(61)
    fetch_seconds = []

    for second in range(0, 300, 5):
        before = keys.fetches
        assert get(unlisted_key(second)) == 401
        wait_for_fetches(keys)
        fetch_seconds += [second] * (keys.fetches - before)
        clock.skip(5)

    pauses = [later - earlier for earlier, later in pairwise(fetch_seconds)]
    assert pauses == [5, 10, 20, 40, 60, 60, 60]


def test_one_request_waits_for_a_failed_key_server(get: Get, keys: KeyServer, clock: Clock) -> None:
    assert get(OLD) == 200
    keys.status = 500
    clock.skip(61)
    assert get(unlisted_key(0)) == 401
    keys.released.clear()
    clock.skip(61)
    waiting_request = threading.Thread(target=get, args=[unlisted_key(1)])
    waiting_request.start()
    eventually(lambda: keys.fetches == 3)

    assert concurrent_statuses(get, [unlisted_key(number) for number in range(2, 10)]) == [401] * 8

    assert waiting_request.is_alive()
    keys.released.set()
    waiting_request.join(5)


def test_late_response_does_not_replace_newer_keys(get: Get, keys: KeyServer, clock: Clock) -> None:
    assert get(OLD) == 200
    hold, no_hold = threading.Event(), keys.released
    keys.released = hold
    clock.skip(HOUR)
    assert get(OLD) == 200
    eventually(lambda: keys.held == 1)
    keys.released = no_hold
    keys.publish(NEW.jwk())
    clock.skip(20)
    assert get(NEW) == 200

    hold.set()
    wait_for_fetches(keys)

    assert (get(NEW), get(OLD), keys.fetches) == (200, 401, 3)


def test_response_that_arrived_during_a_freeze_is_used(get: Get, keys: KeyServer, clock: Clock) -> None:
    """Otherwise a host that freezes between requests never gets keys. Their age counts from the request."""
    assert get(OLD) == 200
    keys.publish(NEW.jwk())
    keys.released.clear()
    clock.skip(HOUR)
    assert get(OLD) == 200
    eventually(lambda: keys.held == 1)

    clock.skip(HOUR)
    keys.released.set()
    wait_for_fetches(keys)

    assert (get(NEW), keys.fetches) == (200, 2)
    clock.skip(61)
    assert get(NEW) == 200
    eventually(lambda: keys.fetches == 3)


def test_number_of_hanging_fetches_is_limited(get: Get, keys: KeyServer, clock: Clock) -> None:
    """A server that sends single bytes never triggers the socket timeout."""
    assert get(OLD) == 200
    keys.released.clear()

    for _ in range(10):
        clock.skip(HOUR)
        assert get(OLD) == 200

    eventually(lambda: keys.fetches == 1 + 3)
    assert sum(type(thread).__name__ == "_Fetch" for thread in threading.enumerate()) == 3


def test_fork_during_a_fetch_blocks_neither_process() -> None:
    keys = KeyServer(OLD.jwk())
    program = """
import os, sys, time
from chalicelib.identity import key_set
key_set.FETCH_TIMEOUT, key_set.FIRST_RETRY_DELAY, key_set.WAIT_TIMEOUT = 2, 0, 0.1
key_set.MAX_CONCURRENT_FETCHES = 1
keys = key_set.KeySet(sys.argv[1])
def has_key():
    try:
        return bool(keys.get("old"))
    except key_set.NoSuchKey:
        return False
assert not has_key()
child = os.fork()
if child:
    print("forked", flush=True)
    sys.stdin.readline()
deadline = time.monotonic() + 20
while not has_key():
    assert time.monotonic() < deadline
    time.sleep(0.05)
if child:
    assert os.waitpid(child, 0)[1] == 0
"""
    keys.released.clear()
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", program, keys.url],
        cwd=PROJECT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"forked\n"
        keys.released.set()
        process.communicate(b"\n", 30)

    assert process.returncode == 0
    keys.stop()


def test_threads_waiting_for_one_fetch_all_get_keys() -> None:
    """Before Python 3.13, two threads that join a third race between two lines of threading.py."""
    from chalicelib.identity.key_set import KeySet

    keys = KeyServer(OLD.jwk())
    keys.released.clear()
    key_set = KeySet(keys.url)
    pauses = {"first": ("self._stop()", 0.1), "second": ("lock.release()", 0.3)}

    def get(name: str) -> object:
        line, seconds = pauses[name]

        def trace(frame: FrameType, event: str, _: object) -> Any:
            code = frame.f_code
            source_line = linecache.getline(code.co_filename, frame.f_lineno).strip()
            if code.co_name == "_wait_for_tstate_lock" and (event, source_line) == ("line", line):
                time.sleep(seconds)
            return trace if code.co_filename == threading.__file__ else None

        sys.settrace(trace)
        try:
            return key_set.get("old")["kid"]
        finally:
            sys.settrace(None)

    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(get, "first")
        eventually(lambda: keys.held == 1)
        time.sleep(0.1)
        second = threads.submit(get, "second")
        time.sleep(0.1)
        keys.released.set()

        assert (first.result(), second.result()) == ("old", "old")
    keys.stop()


# The log


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:1/keys@2?sig=s3cret",
        "http://127.0.0.1:1/keys@2?sig=s3 cret#s3cret",
        "http://keys:s3cret@127.0.0.1/keys@2?sig=s3cret",
    ],
)
def test_failed_key_fetch_is_logged_without_url_secrets(caplog: pytest.LogCaptureFixture, url: str) -> None:
    from chalicelib.identity.key_set import KeySet, NoSuchKey

    with pytest.raises(NoSuchKey):
        KeySet(url).get("old")

    (line,) = log_lines(caplog)
    assert re.match(r"cannot fetch the token keys from http://127\.0\.0\.1(:1)?/keys@2: ", line)
    assert "s3" not in caplog.text


def log_lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.startswith("order-api")]


def test_invalid_tokens_evict_nothing_and_are_logged_rarely(
    in_process: Transport,
    keys: KeyServer,  # noqa: ARG001 (they are fetched)
    provider: Provider,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from chalicelib.identity import tokens

    valid = OLD.token(provider.claims("acme"))
    header, payload, signature = valid.split(".")
    alice = Client(in_process, valid)
    assert [alice.get("/orders").status for _ in range(2)] == [200, 200]
    before = tokens._verified_claims.cache_info()
    caplog.clear()

    for number in range(700):
        unlisted = unlisted_key(number)
        for invalid in (
            f"{header}.{payload}.{signature[: number - 700]}",
            unlisted.signed({"alg": "RS256", "kid": unlisted.kid}, {}) if number < 100 else f"{number}.a.b",
            f"{header}.{payload[: number - 700]}.{signature}",
        ):
            assert Client(in_process, invalid).get("/orders").status == 401

    after = tokens._verified_claims.cache_info()
    assert alice.get("/orders").status == 200
    assert (after.currsize, after.hits) == (before.currsize, before.hits)
    assert tokens._verified_claims.cache_info().hits == before.hits + 1
    lines = log_lines(caplog)
    assert sorted(line.partition(" (")[0] for line in lines) == [
        "refused a token: malformed",
        "refused a token: signature",
        "refused a token: unknown key",
    ]


REASONS: dict[str, Callable[[Provider], str]] = {
    "unknown key": lambda provider: unlisted_key(1).token(provider.claims("acme")),
    "signature": lambda provider: NEW.token(provider.claims("acme"), kid="old"),
    "algorithm": lambda provider: OLD.token(provider.claims("acme"), alg="none"),
    "kind": lambda provider: OLD.token(provider.claims("acme"), typ="logout+jwt"),
    "expired": lambda provider: OLD.token(provider.claims("acme", exp=1)),
    "not valid yet": lambda provider: OLD.token(provider.claims("acme", nbf=4_000_000_000)),
    "issuer": lambda provider: OLD.token(provider.claims("acme", iss="https://x.example")),
    "audience": lambda provider: OLD.token(provider.claims("acme", aud="another")),
    "too long": lambda provider: OLD.token(provider.claims("acme", a="x" * 20_000)),
    "malformed": lambda _provider: "eyJhIjoxfQ.eyJhIjoxfQ.AAAA",
}


@pytest.mark.usefixtures("keys")
@pytest.mark.parametrize("reason", REASONS)
def test_refusal_log_gives_the_reason_without_the_token(
    in_process: Transport,
    clock: Clock,
    provider: Provider,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    reason: str,
) -> None:
    from chalicelib.identity import refusal_log

    monkeypatch.setattr(refusal_log, "time", clock)
    invalid_token = REASONS[reason](provider)
    caplog.set_level(logging.DEBUG)

    answers = [Client(in_process, invalid_token).get("/orders") for _ in range(5)]
    clock.skip(61)
    answers.append(Client(in_process, invalid_token).get("/orders"))

    assert {answer.status for answer in answers} == {401}
    first, second = log_lines(caplog)
    assert first.startswith("refused a token: ")
    assert reason in first
    assert second == first.replace("(1 since", "(5 since")
    output = caplog.text + "".join(answer.body.decode() for answer in answers)
    for part in invalid_token.split("."):
        assert part not in output
    assert "acme" not in output


def test_missing_token_is_not_logged(
    in_process: Transport, keys: KeyServer, caplog: pytest.LogCaptureFixture
) -> None:
    for headers in ({}, {"authorization": ""}, {"authorization": "Basic YWxpY2U6c2VjcmV0"}):
        assert in_process("GET", "/orders", headers, b"").status == 401

    assert (log_lines(caplog), keys.fetches) == ([], 0)
