"""Short runs of `make soak`: no broken promises, and the right ones when a guard is removed."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.support.waiting import until
from tools.soak.injections import KILLS
from tools.soak.report import Plan, Report
from tools.soak.soak import soak

pytestmark = pytest.mark.slow
PROJECT = Path(__file__).parents[3]


KINDS = 2 * len(KILLS)


def run(seconds: float, kills: int, kinds: int, sabotage: str | None = None) -> Report:
    return soak(Plan(seconds, kills, random.randrange(10**6), sabotage, kinds))


def evidence(report: Report) -> str:
    return f"{report.plan}\n{report.faults}\n{report.ledger.answers}\n{report.log[-5000:]}"


def test_faults_under_load_break_no_promise() -> None:
    report = run(seconds=10, kills=len(KILLS), kinds=KINDS)

    assert report.problems() == [], evidence(report)
    assert len(report.faults) >= KINDS
    assert report.ledger.acknowledged() > 100
    assert report.ledger.answers[503] > 0


@pytest.mark.parametrize(
    ("sabotage", "broken", "kills"),
    [("rls", "crossed", 0), ("idempotency", "doubled", 0), ("durability", "lost", 2)],
)
def test_sabotaged_run_breaks_the_matching_promise(sabotage: str, broken: str, kills: int) -> None:
    """Orders are lost when the database is killed: at least one of two kills does that."""
    report = run(seconds=2, kills=kills, kinds=1, sabotage=sabotage)

    assert report.verdict is not None
    columns = {name: getattr(report.verdict, name) for name in ("lost", "doubled", "crossed")}
    assert columns.pop(broken) > 0, evidence(report)
    assert set(columns.values()) == {0}
    assert report.problems()


@pytest.fixture
def folder() -> Iterator[Path]:
    """TMPDIR of a soak; PostgreSQL's user can enter it."""
    folder = Path(tempfile.mkdtemp(prefix="order-api-soak-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def is_starting(folder: Path) -> bool:
    return bool(list(folder.glob("*/unfiltered.log")))


def is_under_load(folder: Path) -> bool:
    """Some faults were injected, and some orders acknowledged."""
    return bool(re.search(r" [1-9]\d* faults, .* [1-9]\d* acknowledged", (folder / "output").read_text()))


@pytest.mark.parametrize("state", [is_starting, is_under_load])
def test_interrupted_soak_reports_and_cleans_up(folder: Path, state: Callable[[Path], bool]) -> None:
    """SIGINT to the process group, as a terminal sends it for Ctrl-C."""
    log = folder / "output"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "tools.soak", "--minutes", "5"],
            cwd=PROJECT,
            env={**os.environ, "TMPDIR": str(folder)},
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        until(lambda: state(folder), 180)
        until(lambda: all_processes_run(folder))  # a fault may have killed one of them
    finally:
        os.killpg(process.pid, signal.SIGINT)

    status = process.wait(60)
    text = log.read_text()
    assert status == 130, text
    assert "all started processes have ended" in text
    until(lambda: not processes_of(folder))
    assert [path.name for path in folder.iterdir()] == ["output"]
    if state is is_under_load:
        assert re.search(r"cut after commit +│ +[1-9]", text), text
        assert re.search(r"(│ +[1-9]\d* +){3}(│ 0 +){3}│", text), text


def all_processes_run(folder: Path) -> bool:
    names = " ".join(process.name() for process in processes_of(folder))
    return "postgres" in names and "functions-f" in names


def processes_of(folder: Path) -> list[psutil.Process]:
    """Processes whose TMPDIR is this folder."""
    processes = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("TMPDIR") == str(folder):
                processes.append(process)
    return processes
