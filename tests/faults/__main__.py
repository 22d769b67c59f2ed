"""`make soak`: break things under load for minutes, and count what was lost, doubled and crossed."""

import argparse
import os
import secrets
import signal
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tests.faults.soak import Plan, Report, soak
from tests.faults.stage import SABOTAGES

KILLS_A_MINUTE = 5


def main() -> None:
    for stop in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(stop, signal.default_int_handler)
    # What is started says what it says into a file; the terminal is for the progress alone.
    console = Console() if Console().is_terminal else Console(width=120)
    plan = _plan()
    console.print(f"seed {plan.seed}, {plan.seconds / 60:g} minutes, sabotage: {plan.sabotage or 'none'}")
    try:
        report = _shown(plan, console)
    except KeyboardInterrupt:
        raise SystemExit("\nStopped; everything that was started has ended.") from None
    heard = sorted(report.ledger.answers.items(), key=str)
    answers = ", ".join(f"{times} x {what}" for what, times in heard)
    for part in (_faults(report), f"answers: {answers}", _reckoning(report)):
        console.print(part, highlight=False)
    problems = report.problems()
    for problem in problems:
        console.print(f"[red]{problem}[/red]", highlight=False)
    if problems and "Traceback" in report.said:
        last = "".join(report.said.rpartition("Traceback")[1:])
        console.print(last[:5000], highlight=False, markup=False)
    raise SystemExit(1 if problems else 0)


def _plan() -> Plan:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--minutes", type=float, default=os.environ.get("MINUTES") or "10")
    parser.add_argument(
        "--sabotage",
        choices=SABOTAGES,
        default=os.environ.get("SABOTAGE") or None,
        help="take a guard away first: the same run must then not print zeros",
    )
    parser.add_argument("--seed", type=int, default=os.environ.get("SEED") or str(secrets.randbelow(10**6)))
    chosen = parser.parse_args()
    if chosen.sabotage not in (None, *SABOTAGES):
        raise SystemExit(f"SABOTAGE is {chosen.sabotage!r}: use one of {', '.join(SABOTAGES)}")
    kills = max(1, round(chosen.minutes * KILLS_A_MINUTE))
    return Plan(chosen.minutes * 60, kills, chosen.seed, chosen.sabotage)


def _shown(plan: Plan, console: Console) -> Report:
    columns = (BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("starting PostgreSQL and the API", total=plan.seconds)
        said = 0.0

        def tell(report: Report, doing: str) -> None:
            nonlocal said
            elapsed = time.monotonic() - report.started
            ledger = report.ledger
            text = (
                f"{report.kills} kills, {report.faults.total()} faults, {ledger.requests} requests, "
                f"{ledger.acknowledged()} acknowledged: {doing}"
            )
            progress.update(task, completed=min(elapsed, plan.seconds), description=text)
            if not console.is_terminal and elapsed - said > 15:
                said = elapsed
                console.print(f"{elapsed:5.0f} s  {text}", highlight=False)

        return soak(plan, tell)


def _faults(report: Report) -> Table:
    """How long the service took to be back, each time from when the database was."""
    table = Table("fault", "injected", "back after, median", "slowest")
    for fault, times in sorted(report.faults.items()):
        took = sorted(report.recoveries[fault])
        table.add_row(fault, str(times), f"{took[len(took) // 2]:.2f} s", f"{took[-1]:.2f} s")
    return table


def _reckoning(report: Report) -> Table:
    verdict, ledger = report.verdict, report.ledger
    table = Table("faults injected", "requests sent", "orders acknowledged", "lost", "doubled", "crossed")
    sent = (report.faults.total(), ledger.requests, ledger.acknowledged())
    table.add_row(*map(str, (*sent, verdict.lost, verdict.doubled, verdict.crossed)))
    return table


if __name__ == "__main__":
    main()
