"""A pytest plugin that fails a test if its processes log a token, a body, an e-mail or an address.

All tests send the seed order and real tokens, so the plugin searches for those values. It searches:
- the output that pytest captured: stdout and stderr at file descriptor level, including child processes,
- the text of every log record,
- each log file or pipe that a test passes to `check_log` or `check_log_text`.
A test with a leak fails, and its report names the source. conftest.py checks the log of the session's
PostgreSQL after it has stopped.
"""

import logging
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from tools.log_leaks import find_leaks

_CHECKED = pytest.StashKey[set[tuple[str, str]]]()
Report = Generator[None, pytest.TestReport, pytest.TestReport]


class LeakHandler(logging.Handler):
    """Searches every log record for leaks when it is emitted, and collects them."""

    def __init__(self) -> None:
        super().__init__(logging.NOTSET)
        self.leaks: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.leaks += find_leaks(f"a record of the logger {record.name}", record.getMessage())

    def drain(self) -> list[str]:
        leaks, self.leaks = self.leaks, []
        return leaks


_handler = LeakHandler()


def check_log(log: Path) -> None:
    """Searches a log file; its leaks fail the test that is running or being torn down."""
    if log.exists():
        check_log_text(f"the file {log.name}", log.read_text("utf-8", "replace"))


def check_log_text(source: str, text: str) -> None:
    """The same for text from a pipe."""
    _handler.leaks += find_leaks(source, text)


def pytest_configure() -> None:
    for name in (None, "order-api"):
        logging.getLogger(name).addHandler(_handler)
    original = pytest.CaptureFixture.readouterr

    def readouterr(self: pytest.CaptureFixture[Any]) -> Any:
        """Output that a test reads itself is missing in its report, so it is searched here."""
        captured = original(self)
        for text in captured:
            _handler.leaks += find_leaks("what the test captured", str(text))
        return captured

    pytest.CaptureFixture.readouterr = readouterr  # type: ignore[method-assign]


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item) -> Report:
    report = yield
    leaks = _handler.drain()
    checked = item.stash.setdefault(_CHECKED, set())
    for title, text in report.sections:  # the sections of the setup are in all three reports
        if (title, text) not in checked and not title.startswith(
            "Captured log"
        ):  # records were searched above; these contain tracebacks
            checked.add((title, text))
            leaks += find_leaks(title, text)
    if leaks and report.outcome != "failed":
        report.outcome = "failed"
        report.longrepr = "\n".join(
            ["A log holds what none may hold (tests/support/log_leak_plugin.py):", *leaks[:20]]
        )
    return report
