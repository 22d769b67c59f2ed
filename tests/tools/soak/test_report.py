"""The soak report: broken promises are problems, and so is a run that could not have detected them."""

import time
from collections.abc import Callable

import pytest

from tools.client import Answer
from tools.soak.injections import Injected
from tools.soak.ledger import NO_ANSWER, TIMED_OUT, Ledger, RequestedOrder, Verdict
from tools.soak.report import Plan, Report
from tools.soak.soak_environment import MAX_IDLE_CONNECTIONS, MAX_REQUEST_SECONDS

WORKER_KILLED = 100.0


def clean_report(**changes: object) -> Report:
    """A report of a run with one cut commit, and one worker killed half a second after WORKER_KILLED."""
    report = Report(Plan(60, 1, seed=0), Ledger(), verdict=Verdict())
    report.add("cut after commit", 90, Injected(91, hits=6))
    report.add("kill worker", WORKER_KILLED, Injected(WORKER_KILLED + 0.5))
    report.ledger.sent(503, 90, 92)
    for name, value in changes.items():
        setattr(report, name, value)
    return report


def connection_closed(report: Report, started: float, ended: float) -> None:
    report.ledger.sent(NO_ANSWER, started, ended)


def test_a_clean_run_has_no_problems() -> None:
    report = clean_report()
    connection_closed(report, WORKER_KILLED - 1, WORKER_KILLED + 0.6)

    assert report.problems() == []
    assert report.exit_status() == 0


def no_commit_cut(report: Report) -> None:
    report.hits.clear()


def fault_without_target(report: Report) -> None:
    report.add("truncate", 100, Injected(110, hits=0))


def timed_out(report: Report) -> None:
    report.ledger.sent(TIMED_OUT, 100, 100 + MAX_REQUEST_SECONDS / 2)


def slow(report: Report) -> None:
    report.ledger.sent(201, 100, 101 + MAX_REQUEST_SECONDS)


def closed_before_the_kill(report: Report) -> None:
    connection_closed(report, WORKER_KILLED - 2, WORKER_KILLED - 0.1)


def closed_after_the_kill(report: Report) -> None:
    connection_closed(report, WORKER_KILLED + 0.6, WORKER_KILLED + 0.7)


def closed_long_after_the_kill(report: Report) -> None:
    connection_closed(report, WORKER_KILLED, WORKER_KILLED + 8)


def without_verdict(report: Report) -> None:
    report.verdict = None


def slow_recovery(report: Report) -> None:
    report.recoveries["stall"] = [0.1, 5.1, 0.1]


def connections_left(report: Report) -> None:
    report.connections = MAX_IDLE_CONNECTIONS + 1


def never_acknowledged(report: Report) -> None:
    report.ledger.add(RequestedOrder("acme", "alice", "acme/1", "key", [1]))


def server_error(report: Report) -> None:
    report.ledger.add_unexpected(Answer(500, {}, b""))


@pytest.mark.parametrize(
    ("cause_problem", "problem"),
    [
        (no_commit_cut, "no connection was cut after a commit"),
        (fault_without_target, "truncate had no target 1 times"),
        (timed_out, "1 requests timed out"),
        (slow, f"a request took 21.0 s, more than {MAX_REQUEST_SECONDS:g}"),
        (closed_before_the_kill, "1 requests got no answer though no worker was killed"),
        (closed_after_the_kill, "1 requests got no answer though no worker was killed"),
        (closed_long_after_the_kill, "1 requests got no answer though no worker was killed"),
        (without_verdict, "the database was not checked"),
        (slow_recovery, "the service recovered after 5.1 s"),
        (connections_left, f"{MAX_IDLE_CONNECTIONS + 1} connections left of at most {MAX_IDLE_CONNECTIONS}"),
        (never_acknowledged, "1 orders with a key were never acknowledged"),
        (server_error, "1 unexpected answers, such as [\"500 b''\"]"),
    ],
)
def test_every_kind_of_failure_is_a_problem(cause_problem: Callable[[Report], None], problem: str) -> None:
    report = clean_report()

    cause_problem(report)

    assert report.problems() == [problem]
    assert report.exit_status() == 1


def test_fault_without_a_target_is_not_counted() -> None:
    report = clean_report()

    fault_without_target(report)

    assert report.faults["truncate"] == 0


def test_interrupted_run_tolerates_unfinished_work() -> None:
    """When it stops, requests may be unfinished and a worker may just have been killed."""
    report = clean_report()
    report.interrupt()
    for cause_problem in (no_commit_cut, connections_left, never_acknowledged):
        cause_problem(report)
    connection_closed(report, time.monotonic() - 1, time.monotonic())

    assert report.problems() == []
    assert report.exit_status() == 130


@pytest.mark.parametrize("verdict", [Verdict(lost=1), Verdict(doubled=1), Verdict(crossed=1), None])
def test_broken_promise_fails_an_interrupted_run(verdict: Verdict | None) -> None:
    report = clean_report(verdict=verdict)
    report.interrupt()

    assert report.exit_status() == 1


def test_run_ends_when_every_planned_fault_happened() -> None:
    report = Report(Plan(seconds=0, kills=1, seed=0, kinds=3))
    report.started -= 1
    report.add("delay", 0, Injected(1))
    report.add("truncate", 0, Injected(1, hits=0))
    assert not report.is_done

    report.add("kill worker", 0, Injected(1))

    assert report.is_done
