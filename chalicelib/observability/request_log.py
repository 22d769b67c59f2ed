"""The log line of each request: opened when the request arrives, written when its answer is ready."""

import time
from itertools import count
from json.encoder import encode_basestring_ascii

from chalicelib.observability import logs, metrics
from chalicelib.observability.record import Record, current


class _RequestCount:
    """How many requests this process has had. next() of itertools.count is atomic: no lock is needed."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._numbers = count()

    def is_first(self) -> bool:
        """Counts one more request."""
        return next(self._numbers) == 0


_requests = _RequestCount()
"""One per process."""


def open_record(request_id: str, host: str) -> Record:
    """The new record of the current request. Its caller closes it; nothing else does."""
    record = Record(request_id, host, cold_start=_requests.is_first())
    current.set(record)
    return record


def close_record(record: Record, status: int) -> None:
    """Measure the request and write its line."""
    record.status = status
    seconds = time.perf_counter() - record.started
    metric_members = metrics.measure(record, seconds)
    level = "ERROR" if record.is_server_error else "INFO"
    logs.write(_line(record, level, seconds, metric_members), level)
    current.set(None)


def reset() -> None:
    """Make the next request the first of this process: SnapStart restores a copy that has had some."""
    _requests.reset()
    current.set(None)


def _line(record: Record, level: str, seconds: float, metric_members: str) -> str:
    """Has the members of Record.members() too. Built as text: the json module takes three times as long."""
    trace, problem = record.trace, record.problem
    ids = f'"trace_id":"{trace.trace_id}","span_id":"{trace.span_id}",' if trace else ""
    slug = f',"problem":"{problem}"' if problem else ""
    severity = f'"severity":"{level}",' if logs.output.has_severity else ""
    return (
        f'{{"time":"{logs.time_at(time.time())}","level":"{level}",{severity}"request_id":{_json(record.request_id)},'
        f'"tenant":{_json(record.tenant)},"user":{_json(record.user)},"route":{_json(record.named_route)},'
        f'"host":"{record.host}",{ids}"status":{record.status},"ms":{seconds * 1000:.3f},'
        f'"database_ms":{sum(record.trips) * 1000:.3f},"database_trips":{len(record.trips)},'
        f'"pool_ms":{sum(record.waits) * 1000:.3f},"cold_start":{"true" if record.cold_start else "false"}'
        f"{slug}{metric_members}}}"
    )


def _json(text: str | None) -> str:
    return "null" if text is None else encode_basestring_ascii(text)
