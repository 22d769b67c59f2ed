"""One JSON object a line, whoever logs: the requests' lines and those of the logger `order-api`.

An error's text may hold what a client sent: a database quotes the row, a parser the value. So a line says an
error's type and where it was raised, and its text only when its class promises `says_no_values`.
"""

import json
import logging
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import TracebackType
from typing import Any

MOST_FRAMES = 20

log = logging.getLogger("order-api")


def _no_request() -> dict[str, Any]:
    return {}


context: Callable[[], dict[str, Any]] = _no_request
"""The members of the request that is being answered; telemetry.py sets it."""

severity_too = False
"""Whether a line names its level a second time, where Google's Cloud Logging looks; the gateway sets it."""


class Handler(logging.Handler):
    """Writes the logger's records as lines."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            error = record.exc_info[1] if record.exc_info else None
            line = {
                **_opening(record.created, record.levelname),
                **context(),
                "message": self.words(record),
                **({"errors": _chain(error), "stack": _frames(error.__traceback__)} if error else {}),
            }
            write(json.dumps(line, separators=(",", ":")), record.levelname)
        except Exception:
            self.handleError(record)

    def words(self, record: logging.LogRecord) -> str:
        return record.getMessage()

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: ARG002 (logging's name)
        """Says that a record is lost; logging's own would print what it was to say."""
        line = {
            **_opening(time.time(), "ERROR"),
            "message": "a record of the log could not be written",
        }
        write(json.dumps(line, separators=(",", ":")), "ERROR")


class LibrarysHandler(Handler):
    """For records that are not ours: numbers stay, of every other value only the type is said."""

    def words(self, record: logging.LogRecord) -> str:
        if not isinstance(record.msg, str):
            return f"({type(record.msg).__name__})"
        values = record.args if isinstance(record.args, tuple) else ()
        told = tuple(v if isinstance(v, int | float) else f"({type(v).__name__})" for v in values)
        try:
            return record.msg % told if told else record.msg
        except (TypeError, ValueError):  # a word where a number was to stand
            return record.msg


def adopt(library: str) -> None:
    """Have a library's logger write lines too, without what it quotes: that may be a credential."""
    its = logging.getLogger(library)
    its.handlers[:] = [LibrarysHandler()]
    its.setLevel(logging.WARNING)
    its.propagate = False


def start() -> None:
    """Have the logger write lines, and nothing else write its records: root handlers would double them."""
    log.handlers[:] = [each for each in log.handlers if not isinstance(each, Handler)]
    log.addHandler(Handler())
    log.setLevel(logging.WARNING)
    log.propagate = False


def through_root() -> None:
    """Hand lines to the root logger's handlers, where a host collects no standard output."""
    global _sink  # noqa: PLW0603 (one way out a process)
    _sink = _to_root


def time_at(seconds: float) -> str:
    """RFC 3339, UTC, of seconds since 1970; made without datetime, which takes five times as long."""
    milliseconds = int(seconds * 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{milliseconds % 1000:03}Z"


def _opening(seconds: float, level: str) -> dict[str, str]:
    severity = {"severity": level} if severity_too else {}
    return {"time": time_at(seconds), "level": level, **severity}


def write(line: str, level: str) -> None:
    """Never raises: a request is not to fail because nobody reads its line."""
    with suppress(OSError, ValueError):
        _sink(line, level)


def _to_stdout(line: str, _level: str) -> None:
    sys.stdout.write(f"{line}\n")  # in one piece: threads share it
    sys.stdout.flush()


def _to_root(line: str, level: str) -> None:
    root, number = logging.getLogger(), logging.getLevelNamesMapping()[level]
    if root.isEnabledFor(number):
        root.handle(logging.LogRecord(log.name, number, __file__, 0, line, None, None))


_sink = _to_stdout


def _chain(error: BaseException | None) -> list[str]:
    """The error, and what it came of."""
    found: list[str] = []
    while error is not None and len(found) < MOST_FRAMES:
        name = type(error).__qualname__
        found.append(f"{name}: {error}" if getattr(type(error), "says_no_values", False) else name)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return found


def _frames(found: TracebackType | None) -> list[str]:
    """Where it was raised, that place last."""

    def frames() -> Iterator[str]:
        for frame, line in traceback.walk_tb(found):
            yield f"{frame.f_code.co_filename}:{line} {frame.f_code.co_name}"

    return list(frames())[-MOST_FRAMES:]
