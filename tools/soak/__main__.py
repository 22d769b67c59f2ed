"""`make soak`: injects faults under load, and counts lost, doubled and crossed orders."""

import argparse
import math
import os
import secrets
import signal
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tools.soak.report import Plan, Report
from tools.soak.sabotage import SABOTAGES
from tools.soak.soak import run

KILLS_A_MINUTE = 5
PRINT_INTERVAL = 5.0
"""Seconds between two progress lines when the output is no terminal; fewer at the start."""


def main() -> None:
    for stop in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(stop, signal.default_int_handler)
    # Child processes write into a file: the terminal shows only the progress.
    console = Console() if Console().is_terminal else Console(width=120)
    plan = _plan()
    console.print(f"seed {plan.seed}, {plan.seconds / 60:g} minutes, sabotage: {plan.sabotage or 'none'}")
    report = Report(plan)
    try:
        _run(report, console)
    except KeyboardInterrupt:
        console.print("Stopped before there were results; all started processes have ended.")
        raise SystemExit(130) from None
    except BaseException:
        _print(report, console)
        raise
    _print(report, console)
    if report.interrupted is not None:
        console.print("Stopped: these are the results so far; all started processes have ended.")
    raise SystemExit(report.exit_status())


def _print(report: Report, console: Console) -> None:
    outcomes = sorted(report.ledger.answers.items(), key=str)
    answers = ", ".join(f"{times} x {outcome}" for outcome, times in outcomes)
    slowest = f"slowest answer: {report.ledger.slowest:.1f} s"
    for part in (_faults(report), f"answers: {answers}; {slowest}", _totals(report)):
        console.print(part, highlight=False)
    problems = report.problems()
    for problem in problems:
        console.print(problem, style="red", highlight=False, markup=False)
    errors = [line for line in report.log.splitlines() if '"stack":' in line]
    for line in errors[-3:] if problems else ():
        console.print(line[:2000], highlight=False, markup=False)


def _plan() -> Plan:
    parser = argparse.ArgumentParser(prog="python -m tools.soak", description=__doc__)
    parser.add_argument("--minutes", type=_minutes, default=os.environ.get("MINUTES") or "10")
    parser.add_argument(
        "--sabotage",
        choices=SABOTAGES,
        default=os.environ.get("SABOTAGE") or None,
        help="remove a guard first: the run must then report broken promises",
    )
    parser.add_argument("--seed", type=_seed, default=os.environ.get("SEED") or str(secrets.randbelow(10**6)))
    chosen = parser.parse_args()
    if chosen.sabotage not in (None, *SABOTAGES):
        raise SystemExit(f"SABOTAGE is {chosen.sabotage!r}: use one of {', '.join(SABOTAGES)}")
    kills = max(1, round(chosen.minutes * KILLS_A_MINUTE))
    return Plan(chosen.minutes * 60, kills, chosen.seed, chosen.sabotage)


def _minutes(text: str) -> float:
    try:
        minutes = float(text)
    except ValueError:
        minutes = math.nan
    if not 0 < minutes < math.inf:
        raise SystemExit(f"MINUTES is {text!r}: use a number above 0, such as 10 or 0.5")
    return minutes


def _seed(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise SystemExit(
            f"SEED is {text!r}: use a whole number, such as the one that an earlier run has printed"
        )
    return int(text)


def _run(report: Report, console: Console) -> None:
    plan = report.plan
    columns = (BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("starting PostgreSQL and the API", total=plan.seconds)
        last_print = 0.0

        def show(report: Report, step: str) -> None:
            nonlocal last_print
            elapsed = time.monotonic() - report.started
            ledger = report.ledger
            text = (
                f"{report.kills} kills, {report.faults.total()} faults, {ledger.requests} requests, "
                f"{ledger.acknowledged()} acknowledged: {step}"
            )
            progress.update(task, completed=min(elapsed, plan.seconds), description=text)
            if not console.is_terminal and elapsed - last_print > min(PRINT_INTERVAL, elapsed / 2):
                last_print = elapsed
                console.print(f"{elapsed:5.0f} s  {text}", highlight=False)

        run(report, show)


def _faults(report: Report) -> Table:
    """By fault, the seconds from the database's recovery to the service's."""
    table = Table("fault", "injected", "hits", "back after, median", "slowest")
    for fault, times in sorted(report.faults.items()):
        took = sorted(report.recoveries.get(fault, []))  # empty for an interrupted fault
        seconds = (f"{took[len(took) // 2]:.2f} s", f"{took[-1]:.2f} s") if took else ("", "")
        table.add_row(fault, str(times), str(report.hits[fault]), *seconds)
    return table


def _totals(report: Report) -> Table:
    verdict, ledger = report.verdict, report.ledger
    table = Table("faults injected", "requests sent", "orders acknowledged", "lost", "doubled", "crossed")
    sent = (report.faults.total(), ledger.requests, ledger.acknowledged())
    broken = (verdict.lost, verdict.doubled, verdict.crossed) if verdict else ("?",) * 3
    table.add_row(*map(str, (*sent, *broken)))
    return table


if __name__ == "__main__":
    main()
