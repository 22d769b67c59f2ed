"""The log: one JSON object per line, for each request and each record of the logger `order-api`.

The text of an exception may quote what a client sent: a database quotes the row, a parser the value. So a
line has an exception's type and stack, and its text only if its class has `is_safe_to_log`.
"""

import json
import logging
import sys
import time
import traceback
from contextlib import suppress
from types import TracebackType

from chalicelib.observability import record as request_record

MAX_FRAMES = 20

log = logging.getLogger("order-api")


class Output:
    """Where this process's lines go, and in which form."""

    def __init__(self) -> None:
        self.has_severity = False
        """Whether a line repeats its level as `severity`, the member that Google's Cloud Logging reads."""
        self.through_root = False
        """Whether lines go to the root logger's handlers: some hosts do not collect standard output."""

    def write(self, line: str, level: str) -> None:
        if self.through_root:
            _to_root(line, level)
        else:
            sys.stdout.write(f"{line}\n")  # one write: threads share the stream
            sys.stdout.flush()


output = Output()
"""One per process; the gateway changes it for its host."""


class Handler(logging.Handler):
    """Writes the logger's records as lines."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            error = record.exc_info[1] if record.exc_info else None
            line = {
                **_first_members(record.created, record.levelname),
                **request_record.members(),
                "message": self.message(record),
                **({"errors": _chain(error), "stack": _frames(error.__traceback__)} if error else {}),
            }
            write(json.dumps(line, separators=(",", ":")), record.levelname)
        except Exception:
            self.handleError(record)

    def message(self, record: logging.LogRecord) -> str:
        return record.getMessage()

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: ARG002 (logging's name)
        """Reports a record that cannot be written, without its values; logging's own method prints them."""
        line = {
            **_first_members(time.time(), "ERROR"),
            "message": "a record of the log could not be written",
        }
        write(json.dumps(line, separators=(",", ":")), "ERROR")


class LibraryHandler(Handler):
    """For a library's records: keeps numbers, and replaces every other value with its type's name."""

    def message(self, record: logging.LogRecord) -> str:
        if not isinstance(record.msg, str):
            return f"({type(record.msg).__name__})"
        values = record.args if isinstance(record.args, tuple) else ()
        safe = tuple(v if isinstance(v, int | float) else f"({type(v).__name__})" for v in values)
        try:
            return record.msg % safe if safe else record.msg
        except (TypeError, ValueError):  # %d cannot format a type's name
            return record.msg


def adopt(library: str) -> None:
    """Write a library's records as lines too, without the values in them: one may be a credential."""
    logger = logging.getLogger(library)
    logger.handlers[:] = [LibraryHandler()]
    logger.setLevel(logging.WARNING)
    logger.propagate = False


def start() -> None:
    """Write the logger's records as lines, once: root's handlers would write them a second time."""
    log.handlers[:] = [handler for handler in log.handlers if not isinstance(handler, Handler)]
    log.addHandler(Handler())
    log.setLevel(logging.WARNING)
    log.propagate = False


def time_at(seconds: float) -> str:
    """RFC 3339, UTC, of seconds since 1970. Without datetime, which takes five times as long."""
    milliseconds = int(seconds * 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{milliseconds % 1000:03}Z"


def write(line: str, level: str) -> None:
    """Never raises: a broken log must not fail a request."""
    with suppress(OSError, ValueError):
        output.write(line, level)


def _first_members(seconds: float, level: str) -> dict[str, str]:
    severity = {"severity": level} if output.has_severity else {}
    return {"time": time_at(seconds), "level": level, **severity}


def _to_root(line: str, level: str) -> None:
    root, number = logging.getLogger(), logging.getLevelNamesMapping()[level]
    if root.isEnabledFor(number):
        root.handle(logging.LogRecord(log.name, number, __file__, 0, line, None, None))


def _chain(error: BaseException | None) -> list[str]:
    """The error and its causes."""
    errors: list[str] = []
    while error is not None and len(errors) < MAX_FRAMES:
        name = type(error).__qualname__
        errors.append(f"{name}: {error}" if getattr(type(error), "is_safe_to_log", False) else name)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return errors


def _frames(trace: TracebackType | None) -> list[str]:
    """The call stack as `file:line function`, the raising frame last."""
    frames = [
        f"{frame.f_code.co_filename}:{line} {frame.f_code.co_name}"
        for frame, line in traceback.walk_tb(trace)
    ]
    return frames[-MAX_FRAMES:]
