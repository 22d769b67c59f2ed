"""`make conform`: sends the cases to a deployed stage, and prints a table of the differences."""

import http.client
import json
import os
import re
import ssl
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from urllib.parse import SplitResult, urlsplit

from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text

from tools.client import Answer
from tools.conform import suite
from tools.conform.cases import CASES, Case
from tools.conform.suite import Difference

USAGE = """
make conform URL=... TOKEN=... [OTHER_TOKEN=...] [TENANTLESS_TOKEN=...] [ORIGIN=...] [CURRENCY=...]

  URL               where the API answers: URL/health. On AWS the stack's output OrderApiUrl
  TOKEN             a token of a user with a tenant. The list places orders there: take a tenant for tests
  OTHER_TOKEN       one of a user of another tenant; without it those cases are left out
  TENANTLESS_TOKEN  one of a user without a tenant; the same
  ORIGIN            the stage's CORS_ORIGIN, when it is not *
  CURRENCY          the stage's DEFAULT_CURRENCY, when it is not USD

With `make run` going: make conform URL=http://127.0.0.1:8000 TOKEN=$(make -s token) \\
  OTHER_TOKEN=$(make -s token TENANT=globex)
docs/identity.md says where each provider's tokens come from."""
TOKENS = {"alice": "TOKEN", "stranger": "OTHER_TOKEN", "tenantless": "TENANTLESS_TOKEN"}
"""The variable with each caller's token."""
TIMEOUT = 30
"""Seconds to wait for an answer."""
TOO_MANY_REQUESTS = 429
RATE_LIMIT_WAIT = 10
"""Seconds of waiting for RATE_LIMIT, at most, for one request."""
MAX_EXCERPT = 160
DOCUMENT = "the OpenAPI document"
SAME_TENANT = ("another tenant's order", "another tenant's cursor")


class Unusable(Exception):
    """Nothing can be compared; the message has the reason and what to do."""


@dataclass(frozen=True)
class Stage:
    """A deployed API, and those of its settings that change its answers."""

    url: SplitResult
    callers: suite.Callers
    origin: str = "*"
    currency: str = "USD"

    @classmethod
    def from_variables(cls, variables: Mapping[str, str]) -> "Stage":
        """From the variables of `make conform`. Raises Unusable."""
        given = {name: value.strip() for name, value in variables.items()}
        missing = [name for name in ("URL", "TOKEN") if not given.get(name)]
        if missing:
            raise Unusable(f"{' and '.join(missing)} must be set.\n{USAGE}")
        tokens = {caller: _token(name, given[name]) for caller, name in TOKENS.items() if given.get(name)}
        if len(set(tokens.values())) < len(tokens):
            raise Unusable("TOKEN, OTHER_TOKEN and TENANTLESS_TOKEN must be of three different users")
        return cls(_url(given["URL"]), tokens, given.get("ORIGIN") or "*", given.get("CURRENCY") or "USD")

    def send(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """Send the target unchanged, after the URL's path. A rate-limited request had no effect: it is sent
        again after Retry-After. Raises Unusable when that takes longer than RATE_LIMIT_WAIT.
        """
        started = time.monotonic()
        while (answer := self._send_once(method, target, headers, body)).status == TOO_MANY_REQUESTS:
            seconds = answer.headers.get("retry-after", "")
            if not seconds.isdecimal():
                break
            pause = max(1, int(seconds))
            if time.monotonic() - started + pause > RATE_LIMIT_WAIT:
                raise Unusable("The stage's RATE_LIMIT is too low for this list: raise it or unset it")
            time.sleep(pause)
        return answer

    def _send_once(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """A new connection for each request."""
        secure = self.url.scheme == "https"
        connect = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        connection = connect(self.url.hostname or "", self.url.port, timeout=TIMEOUT)
        try:
            with suppress(BrokenPipeError, ConnectionResetError):  # it may have answered before all was sent
                connection.request(method, self.url.path + target, body or None, dict(headers))
            response = connection.getresponse()
            received = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, received, response.read())
        finally:
            connection.close()

    def expected(self) -> dict[str, suite.Json]:
        wanted = suite.expected()
        for answer in wanted.values():
            if "access-control-allow-origin" in answer["headers"]:
                answer["headers"]["access-control-allow-origin"] = self.origin
        document = wanted[DOCUMENT]
        document["body"] = document["body"].replace('"default": "USD"', f'"default": "{self.currency}"')
        return wanted


def _token(name: str, text: str) -> str:
    token = re.sub("(?i)^bearer +", "", text)
    if not re.fullmatch("[!-~]+", token):
        raise Unusable(f"{name} is not a token: it holds blanks or other characters that no token has")
    return token


def _url(text: str) -> SplitResult:
    try:
        url = urlsplit(text.rstrip("/"))
        good = url.scheme in ("http", "https") and url.hostname and (url.port or 1)
    except ValueError:
        good = False
    if good and "@" in url.netloc:
        raise Unusable("URL holds a user name or a password: leave them out")
    if not good or url.query or url.fragment or not re.fullmatch("[!-~]*", url.path):
        raise Unusable(f"URL is {text!r}: use the API's address, such as https://api.example.com/dev")
    return url


def newest(stage: Stage) -> dict[str, str]:
    """Each caller's newest order before the run, to exclude older ones; '' where there is none.

    Raises Unusable when this is no order API, or does not accept the tokens.
    """
    health = _get(stage, "/health", {})
    if health.status in range(300, 400) and "location" in health.headers:
        raise Unusable(
            f"{_full_url(stage, '/health')} redirects to {health.headers['location']}: set URL to that"
        )
    if suite.members(health) != {"status": "ok"}:
        raise Unusable(
            f"This is not the order API: {_full_url(stage, '/health')} answers {health.status} "
            f"{_short(repr(health.body))}. Does URL lack the stage, as in https://api.example.com/dev?"
        )
    return {caller: _newest(stage, caller) for caller in stage.callers if caller != "tenantless"}


def _newest(stage: Stage, caller: str) -> str:
    name = TOKENS[caller]
    answer = _get(stage, "/orders?limit=1", {"Authorization": f"Bearer {stage.callers[caller]}"})
    body = suite.members(answer)
    if answer.status == 401:
        raise Unusable(
            f"{name} is refused: has it expired, is it of the issuer and audience that the stage accepts, "
            "and from Cognito the ID token?"
        )
    if answer.status == 403:
        raise Unusable(f"{name} names no tenant: the claim that says it is absent (docs/identity.md)")
    if answer.status != 200 or "orders" not in body:
        raise Unusable(
            f"{_full_url(stage, '/orders')} with {name} answers {answer.status} {_short(repr(answer.body))}. "
            f"Look into the stage's log for {answer.headers.get('x-request-id', 'it')}"
        )
    return str(body["orders"][0]["order_id"]) if body["orders"] else ""


def _get(stage: Stage, target: str, headers: Mapping[str, str]) -> Answer:
    try:
        return stage.send("GET", target, headers, b"")
    except ssl.SSLCertVerificationError as error:
        raise Unusable(
            f"The certificate of {stage.url.netloc} is not trusted: {error.verify_message}. "
            "An authority of your own: set SSL_CERT_FILE to its certificate"
        ) from None
    except ssl.SSLError as error:
        raise Unusable(f"{stage.url.netloc} does not speak TLS: {error.reason}. Is it http?") from None
    except TimeoutError:
        raise Unusable(f"{_full_url(stage, target)} did not answer in {TIMEOUT} seconds") from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "strerror", None) or repr(error)
        raise Unusable(f"{_full_url(stage, target)} cannot be reached: {reason}") from None


def without_older_orders(case: Case, answer: Answer, newest: Mapping[str, str]) -> Answer:
    """A list without the orders from before the run, because order ids sort by time.

    All newer orders stay: if tenants are not separated, the stranger's list shows this run's, and differs.
    """
    page = suite.members(answer)
    before = newest.get(case.caller, "")
    since = [order for order in page.get("orders", []) if order["order_id"] > before]
    if len(since) == len(page.get("orders", [])):
        return answer
    fresh = {**page, "orders": since, "next_cursor": None}
    return replace(answer, body=json.dumps(fresh, separators=(",", ":"), ensure_ascii=False).encode())


class Report:
    """The comparisons so far."""

    def __init__(self, callers: suite.Callers) -> None:
        self.alike = 0
        self.differing: dict[str, list[Difference]] = {}
        absent = {caller: f"for want of {name}" for caller, name in TOKENS.items() if caller not in callers}
        self.left_out = {case.name: absent.get(case.caller, "not reached") for case in CASES}
        """Each case that was not compared, with the reason."""

    def add(self, case: Case, answer: Answer, wanted: suite.Json) -> None:
        if case.name == DOCUMENT and answer.status == 404:
            self.left_out[case.name] = "since DOCS is off"
            return
        del self.left_out[case.name]
        differences = suite.differences(case, answer, wanted)
        if differences:
            self.differing[case.name] = differences
        else:
            self.alike += 1

    def print(self, console: Console) -> None:
        if self.differing:
            console.print(_table(self.differing))
        if all(name in self.differing for name in SAME_TENANT):
            console.print("Is OTHER_TOKEN of another tenant than TOKEN? If it is, tenants see each other!")
        reasons = Counter(self.left_out.values())
        why = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
        left_out = f"{len(self.left_out)} left out" + (f" ({why})" if why else "")
        console.print(f"{self.alike} alike, {len(self.differing)} differ, {left_out}", highlight=False)


def _table(differing: Mapping[str, Iterable[Difference]]) -> Table:
    table = Table("case", "part", "expected", "came", show_lines=True)
    for name, differences in differing.items():
        # If the status differs, everything else does too: the body explains more than the headers.
        has_other_status = any(difference.part == "status" for difference in differences)
        shown = [
            difference
            for difference in differences
            if not has_other_status or difference.part in ("status", "body")
        ]
        for number, (part, expected, received) in enumerate(shown):
            cells = ["" if number else name, part, *_excerpts(expected, received)]
            table.add_row(*(Text(cell, overflow="fold") for cell in cells))
    return table


def _excerpts(expected: str, received: str) -> tuple[str, str]:
    """Both from shortly before the first difference."""
    pairs = enumerate(zip(expected, received, strict=False))
    same = next((at for at, (one, other) in pairs if one != other), min(len(expected), len(received)))
    start = max(0, same - 40) if max(len(expected), len(received)) > MAX_EXCERPT else 0
    return _short(expected, start), _short(received, start)


def _short(text: str, start: int = 0) -> str:
    """An excerpt on one line, with control characters escaped."""
    excerpt = text[start : start + MAX_EXCERPT]
    printable = "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in excerpt)
    return f"{'…' if start else ''}{printable}{'…' if len(text) > start + MAX_EXCERPT else ''}"


def _full_url(stage: Stage, target: str) -> str:
    return f"{stage.url.geturl()}{target}"


def compare(stage: Stage) -> int:
    """Print the differences. 0: none; 1: some; 130: stopped by Ctrl-C."""
    console, progress = Console(), Console(stderr=True)
    before, wanted = newest(stage), stage.expected()
    placing = sum(case.status == 201 for case in CASES)
    progress.print(
        f"This places up to {placing} orders in the tenant of TOKEN. They stay there.", highlight=False
    )
    report, stopped = Report(stage.callers), 0
    answers, silent = suite.run(stage.send, stage.callers), 0
    try:
        for case, answer in track(answers, "Sending", len(CASES), console=progress, transient=True):
            report.add(case, without_older_orders(case, answer, before), wanted[case.name])
            silent = silent + 1 if answer.status == suite.NO_ANSWER else 0
            if silent >= 3 and not _is_up(stage):  # a host may close a connection and keep running
                progress.print("The API has stopped answering.")
                break
    except KeyboardInterrupt:
        stopped = 130
    report.print(console)
    return stopped or bool(report.differing)


def _is_up(stage: Stage) -> bool:
    with suppress(Unusable):
        return _get(stage, "/health", {}).status == 200
    return False


def main() -> int:
    """The exit status; 2 when nothing can be compared."""
    try:
        return compare(Stage.from_variables(os.environ))
    except Unusable as unusable:
        sys.stderr.write(f"{unusable}\n")
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
