"""Measurements of the current request: for its log line, its metrics and the trace it passes on.

One record per request, in a context variable, so that threads never share one. request_log.py opens and
closes it.
"""

import hashlib
import time
from contextvars import ContextVar
from types import TracebackType
from typing import Any

from chalicelib.observability import traces

METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
RATE_LIMITED, SERVER_ERROR = 429, 500


class Record:
    """One request. Of what a client sends it holds only the ids of the token and of the trace."""

    __slots__ = (
        "cold_start",
        "host",
        "method",
        "problem",
        "request_id",
        "route",
        "started",
        "status",
        "tenant",
        "trace",
        "trips",
        "user",
        "waits",
    )

    def __init__(self, request_id: str, host: str, *, cold_start: bool = False) -> None:
        self.request_id, self.host, self.cold_start = request_id, host, cold_start
        self.started = time.perf_counter()
        self.method = self.route = ""
        self.status = 0
        self.problem = ""
        self.tenant: str | None = None
        self.user: str | None = None
        self.trace: traces.Trace | None = None
        self.trips: list[float] = []
        """Seconds of each round trip to the database."""
        self.waits: list[float] = []
        """Seconds until a connection was there: the wait for a place in the pool, and opening a new one."""

    def describe(self, method: str, route: str, traceparent: str | None) -> None:
        """`route` is the template: a path can hold anything, and so can a method."""
        self.method = method if method in METHODS else "_OTHER"
        self.route = route
        self.trace = traces.received(traceparent)

    def identify(self, tenant_id: str, user_id: str) -> None:
        """Name the verified caller."""
        self.tenant, self.user = _without_address(tenant_id), _without_address(user_id)

    @property
    def named_route(self) -> str:
        return f"{self.method} {self.route}".strip()

    @property
    def is_server_error(self) -> bool:
        return self.status >= SERVER_ERROR

    @property
    def is_rate_limited(self) -> bool:
        return self.status == RATE_LIMITED

    def members(self) -> dict[str, Any]:
        """What each line has that is logged during this request."""
        trace = {"trace_id": self.trace.trace_id, "span_id": self.trace.span_id} if self.trace else {}
        return {
            "request_id": self.request_id,
            "tenant": self.tenant,
            "user": self.user,
            "route": self.named_route,
            "host": self.host,
            **trace,
        }


current: ContextVar[Record | None] = ContextVar("record", default=None)
"""The record of this thread's or task's request; None between requests. Only request_log.py sets it."""


def members() -> dict[str, Any]:
    """The current request's members for a log line; empty between requests."""
    record = current.get()
    return record.members() if record else {}


def trip() -> "_Timed":
    """Times one round trip: sending a string to the database and receiving its answer."""
    record = current.get()
    return _Timed(record.trips if record else [])


def pool_wait() -> "_Timed":
    """Times getting a connection."""
    record = current.get()
    return _Timed(record.waits if record else [])


def comment() -> bytes:
    """An SQL comment with the trace, in sqlcommenter's format (https://google.github.io/sqlcommenter/spec/).

    Empty where the client named no trace.
    """
    record = current.get()
    if record is None or record.trace is None:
        return b""
    return f" /*traceparent='{record.trace.traceparent}'*/".encode()


def outgoing_headers() -> dict[str, str]:
    """Headers for a request made on behalf of this one: the trace, where the client named one."""
    record = current.get()
    return {"traceparent": record.trace.traceparent} if record and record.trace else {}


class _Timed:
    """Appends the seconds that a block took to a list, also when the block raises."""

    __slots__ = ("_seconds", "_started")

    def __init__(self, seconds: list[float]) -> None:
        self._seconds = seconds

    def __enter__(self) -> None:
        self._started = time.perf_counter()

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        self._seconds.append(time.perf_counter() - self._started)


def _without_address(name: str) -> str:
    """The name; a digest in place of an e-mail address, so that users stay distinguishable."""
    return f"sha256:{hashlib.sha256(name.encode()).hexdigest()[:16]}" if "@" in name else name
