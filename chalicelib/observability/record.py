"""What is known of the request that is being answered: its log line and its metrics are made of this.

One record a request, in a context variable, so that threads never share one. A gateway of ours opens it, or
else the app; whoever opened it has the line written, once, when the answer is ready.
"""

import hashlib
import time
from contextvars import ContextVar
from itertools import count
from json.encoder import encode_basestring_ascii
from types import TracebackType
from typing import Any

from chalice.app import Response

from chalicelib.caller import Caller
from chalicelib.errors import Problem
from chalicelib.observability import logs, metrics, traces

METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}

_requests = count()


class Record:
    """One request. Nothing that a client chose gets in here but the ids of its token and of its trace."""

    __slots__ = (
        *("cold_start", "host", "method", "open", "problem", "request_id", "route", "started", "status"),
        *("tenant", "trace", "trips", "user", "waits"),
    )

    def __init__(self, request_id: str, host: str) -> None:
        self.request_id, self.host = request_id, host
        self.started = time.perf_counter()
        self.cold_start = next(_requests) == 0
        self.open = 0
        self.method = self.route = ""
        self.status = 0
        self.problem = ""
        self.tenant: str | None = None
        self.user: str | None = None
        self.trace: traces.Trace | None = None
        self.trips: list[float] = []
        """Seconds that each string took which was sent to the database."""
        self.waits: list[float] = []
        """Seconds until there was a connection: its turn in the pool, and opening one where none rested."""

    def describe(self, method: str, route: str, traceparent: str | None) -> None:
        """What was asked. `route` is the template: a path can hold anything, and so can a method."""
        if not self.method:
            self.method = method if method in METHODS else "_OTHER"
            self.route = route
            self.trace = traces.received(traceparent)

    def refuse(self, problem: Problem) -> Response:
        """The problem as the answer to this request."""
        self.problem = problem.slug
        return problem.response(self.request_id)

    @property
    def named_route(self) -> str:
        return f"{self.method} {self.route}".strip()

    def members(self) -> dict[str, Any]:
        """What every line has that is written during this request."""
        trace = {"trace_id": self.trace.trace_id, "span_id": self.trace.span_id} if self.trace else {}
        return {
            "request_id": self.request_id,
            "tenant": self.tenant,
            "user": self.user,
            "route": self.named_route,
            "host": self.host,
            **trace,
        }


_current: ContextVar[Record | None] = ContextVar("record", default=None)


def begin(request_id: str, host: str) -> Record:
    """Open this request's record, or go on with the one that the gateway has opened."""
    record = _current.get()
    if record is None or record.request_id != request_id:
        record = Record(request_id, host)
        _current.set(record)
    record.open += 1
    return record


def end(record: Record, status: int) -> None:
    """Write the line and count what it says, when whoever opened the record is done."""
    record.open -= 1
    if record.open:
        return
    record.status = status
    seconds = time.perf_counter() - record.started
    more = metrics.measure(record, seconds)
    level = "ERROR" if status >= metrics.SERVER_ERROR else "INFO"
    logs.write(_line(record, level, seconds, more), level)
    _current.set(None)


def _line(record: Record, level: str, seconds: float, more: str) -> str:
    """The request's line, its members as members() has them; the json module takes three times as long."""
    trace, problem = record.trace, record.problem
    ids = f'"trace_id":"{trace.trace_id}","span_id":"{trace.span_id}",' if trace else ""
    slug = f',"problem":"{problem}"' if problem else ""
    severity = f'"severity":"{level}",' if logs.severity_too else ""
    return (
        f'{{"time":"{logs.time_at(time.time())}","level":"{level}",{severity}"request_id":{_json(record.request_id)},'
        f'"tenant":{_json(record.tenant)},"user":{_json(record.user)},"route":{_json(record.named_route)},'
        f'"host":"{record.host}",{ids}"status":{record.status},"ms":{seconds * 1000:.3f},'
        f'"database_ms":{sum(record.trips) * 1000:.3f},"database_trips":{len(record.trips)},'
        f'"pool_ms":{sum(record.waits) * 1000:.3f},"cold_start":{"true" if record.cold_start else "false"}'
        f"{slug}{more}}}"
    )


def _json(text: str | None) -> str:
    return "null" if text is None else encode_basestring_ascii(text)


def start_anew() -> None:
    """The next request is the first one of this process."""
    global _requests  # noqa: PLW0603 (one count a process)
    _requests = count()
    _current.set(None)


def members() -> dict[str, Any]:
    """Which request a line belongs to that is written now; nothing between requests."""
    record = _current.get()
    return record.members() if record else {}


logs.context = members


def asked_by(caller: Caller) -> None:
    """Who asks, once it is verified."""
    if record := _current.get():
        record.tenant, record.user = _without_address(caller.tenant_id), _without_address(caller.user_id)


def trip() -> "_Timed":
    """Around sending one string to the database and getting its answer."""
    record = _current.get()
    return _Timed(record.trips if record else [])


def pool_wait() -> "_Timed":
    """Around getting a connection."""
    record = _current.get()
    return _Timed(record.waits if record else [])


def comment() -> bytes:
    """What a string ends with that is sent to the database: the trace, as sqlcommenter writes it.

    Nothing where the client named no trace (https://google.github.io/sqlcommenter/spec/).
    """
    record = _current.get()
    if record is None or record.trace is None:
        return b""
    return f" /*traceparent='{record.trace.traceparent}'*/".encode()


def outgoing_headers() -> dict[str, str]:
    """For a request that we make on behalf of this one: the trace, where the client named one."""
    record = _current.get()
    return {"traceparent": record.trace.traceparent} if record and record.trace else {}


class _Timed:
    """Adds the seconds that a block took to a list, however it ended."""

    __slots__ = ("_into", "_started")

    def __init__(self, into: list[float]) -> None:
        self._into = into

    def __enter__(self) -> None:
        self._started = time.perf_counter()

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        self._into.append(time.perf_counter() - self._started)


def _without_address(name: str) -> str:
    """The name; where it is an e-mail address, a digest that tells one from another."""
    return f"sha256:{hashlib.sha256(name.encode()).hexdigest()[:16]}" if "@" in name else name
