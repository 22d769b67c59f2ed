"""A pytest plugin: no token, body, e-mail or address is in anything that a test's processes log.

The whole suite sends the seed order and real tokens, so that each of its values is a canary. Looked at is
what pytest captured of a test (both streams, down to the file descriptors, so that hosts in processes of
their own are heard too), the text of every record of the loggers, and each file or pipe that a test gave to
a host or a server for its log (`hear`). A test during which a canary shows is red, and says where. The log
of the session's own PostgreSQL, conftest.py looks at when it has stopped.
"""

import logging
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from tools.log_leaks import find_leaks

_SEEN = pytest.StashKey[set[tuple[str, str]]]()
Report = Generator[None, pytest.TestReport, pytest.TestReport]


class Ear(logging.Handler):
    """Hears what loggers say, as they say it."""

    def __init__(self) -> None:
        super().__init__(logging.NOTSET)
        self.heard: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.heard += find_leaks(f"a record of the logger {record.name}", record.getMessage())

    def take(self) -> list[str]:
        heard, self.heard = self.heard, []
        return heard


_ear = Ear()


def hear(log: Path) -> None:
    """What a process wrote into a file of its own counts as said by the test that is running or ending."""
    if log.exists():
        hear_text(f"the file {log.name}", log.read_text("utf-8", "replace"))


def hear_text(where: str, text: str) -> None:
    """The same for what came through a pipe."""
    _ear.heard += find_leaks(where, text)


def pytest_configure() -> None:
    for name in (None, "order-api"):
        logging.getLogger(name).addHandler(_ear)
    read = pytest.CaptureFixture.readouterr

    def readouterr(self: pytest.CaptureFixture[Any]) -> Any:
        """What a test reads itself is in no report."""
        captured = read(self)
        for text in captured:
            _ear.heard += find_leaks("what the test captured", str(text))
        return captured

    pytest.CaptureFixture.readouterr = readouterr  # type: ignore[method-assign]


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item) -> Report:
    report = yield
    found = _ear.take()
    seen = item.stash.setdefault(_SEEN, set())
    for title, text in report.sections:  # those of a test's set-up are in all its reports
        if (title, text) not in seen and not title.startswith(
            "Captured log"
        ):  # pytest's own, with tracebacks
            seen.add((title, text))
            found += find_leaks(title, text)
    if found and report.outcome != "failed":
        report.outcome = "failed"
        report.longrepr = "\n".join(
            ["A log holds what none may hold (tests/support/log_leak_plugin.py):", *found[:20]]
        )
    return report
