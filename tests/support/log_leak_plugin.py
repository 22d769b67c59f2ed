"""A pytest plugin: no token, body, e-mail or address is in anything that a test's processes log.

The whole suite sends the seed order and real tokens, so that each of its values is a canary. Looked at is
what pytest captured of a test (both streams, down to the file descriptors, so that hosts in processes of
their own are heard too), the text of every record of the loggers, and each file or pipe that a test gave to
a host or a server for its log (`hear`). A test during which a canary shows is red, and says where. The log
of the session's own PostgreSQL, conftest.py looks at when it has stopped.
"""

import json
import logging
import re
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

SEED = json.loads((Path(__file__).parents[2] / "test_order.json").read_text())
PLANTED = (
    *(SEED["customer_name"], SEED["customer_phone"], SEED["shipping_address"]),
    *(SEED["items"][0]["product_name"], SEED["items"][0]["product_sku"]),
)
EMAIL = r"[\w.+-]+@(?:[\w-]+\.)*example(?:\.com)?\b"
"""The order's, the tokens' (`alice@<tenant>.example`), and that of SnapStart's rehearsal."""
TOKEN = r"eyJ[\w-]{8,}\.(?:eyJ)?[\w-]*"
"""A JSON Web Token begins with the base64 of `{"`."""
_CANARY = re.compile("|".join([*map(re.escape, PLANTED), EMAIL, TOKEN]))
_CONTEXT = 60
_SEEN = pytest.StashKey[set[tuple[str, str]]]()
Report = Generator[None, pytest.TestReport, pytest.TestReport]


class Ear(logging.Handler):
    """Hears what loggers say, as they say it."""

    def __init__(self) -> None:
        super().__init__(logging.NOTSET)
        self.heard: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.heard += sightings(f"a record of the logger {record.name}", record.getMessage())

    def take(self) -> list[str]:
        heard, self.heard = self.heard, []
        return heard


_ear = Ear()


def sightings(where: str, text: str) -> list[str]:
    """Each canary in the text, with what stands around it."""
    found = []
    for canary in _CANARY.finditer(text):
        around = text[max(0, canary.start() - _CONTEXT) : canary.end() + _CONTEXT]
        found.append(f"{where} holds {canary[0][:40]!r}: ...{around!r}...")
    return found


def hear(log: Path) -> None:
    """What a process wrote into a file of its own counts as said by the test that is running or ending."""
    if log.exists():
        hear_text(f"the file {log.name}", log.read_text("utf-8", "replace"))


def hear_text(where: str, text: str) -> None:
    """The same for what came through a pipe."""
    _ear.heard += sightings(where, text)


def pytest_configure() -> None:
    for name in (None, "order-api"):
        logging.getLogger(name).addHandler(_ear)
    read = pytest.CaptureFixture.readouterr

    def readouterr(self: pytest.CaptureFixture[Any]) -> Any:
        """What a test reads itself is in no report."""
        captured = read(self)
        for text in captured:
            _ear.heard += sightings("what the test captured", str(text))
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
            found += sightings(title, text)
    if found and report.outcome != "failed":
        report.outcome = "failed"
        report.longrepr = "\n".join(
            ["A log holds what none may hold (tests/support/log_leak_plugin.py):", *found[:20]]
        )
    return report
