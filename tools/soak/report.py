"""The result of a run, and which promises were broken."""

import time
from collections import Counter
from dataclasses import dataclass, field

from tools.soak.injections import KILLS, NETWORK, Injected, cut_after_commit, fault_name, kill_worker
from tools.soak.ledger import TIMED_OUT, Ledger, Unanswered, Verdict
from tools.soak.soak_environment import MAX_IDLE_CONNECTIONS, MAX_REQUEST_SECONDS

MAX_RECOVERY_SECONDS = 5.0
"""Seconds after the database is back in which the service must be, without a restart."""
KILL_WINDOW = 2.0
"""Seconds after the kill of a worker in which its clients notice."""


@dataclass(frozen=True)
class Plan:
    seconds: float
    kills: int
    """At least so many rounds kill a process; the run lasts longer where it must."""
    seed: int
    sabotage: str | None = None
    kinds: int = len(KILLS + NETWORK)
    """At least so many kinds of fault are tried; the run lasts longer where it must."""


@dataclass
class Report:
    """What happened so far."""

    plan: Plan
    ledger: Ledger = field(default_factory=Ledger)
    started: float = field(default_factory=time.monotonic)
    faults: Counter[str] = field(default_factory=Counter)
    """Those that hit something."""
    missed: Counter[str] = field(default_factory=Counter)
    """Those that found nothing to hit."""
    hits: Counter[str] = field(default_factory=Counter)
    """How many processes, connections or answers each kind of fault hit."""
    recoveries: dict[str, list[float]] = field(default_factory=dict)
    """By fault, the seconds from the moment that the database was back."""
    kill_windows: list[tuple[float, float]] = field(default_factory=list)
    """Start and end (time.monotonic()) of the times in which the kill of a worker may cut off requests."""
    interrupted: float | None = None
    """When it was stopped (time.monotonic())."""
    connections: int = 0
    """Of the API, when its customers had gone."""
    log: str = ""
    """The output of both API processes."""
    verdict: Verdict | None = None
    """None until the database was checked."""

    @property
    def kills(self) -> int:
        return sum(self.faults[fault_name(fault)] for fault in KILLS)

    @property
    def is_done(self) -> bool:
        """Whether all that was planned has happened."""
        kinds = len({*self.faults, *self.missed})
        is_over = time.monotonic() - self.started > self.plan.seconds
        return is_over and self.kills >= self.plan.kills and kinds >= self.plan.kinds

    @property
    def slowest_recovery(self) -> float:
        return max((max(each) for each in self.recoveries.values()), default=0.0)

    def add(self, fault: str, began: float, injected: Injected) -> None:
        if not injected.hits:
            self.missed[fault] += 1
            return
        self.faults[fault] += 1
        self.hits[fault] += injected.hits
        if fault == fault_name(kill_worker):
            self.kill_windows.append((began, injected.repaired_at))

    def interrupt(self) -> None:
        """Perhaps just when a worker had been killed."""
        self.interrupted = time.monotonic()
        self.kill_windows.append((self.interrupted - KILL_WINDOW, float("inf")))

    def unexplained(self) -> list[Unanswered]:
        """Requests without an answer although no worker was killed."""
        return [
            each
            for each in self.ledger.unanswered
            if not any(
                each.ended >= began and each.started <= ended and each.ended <= ended + KILL_WINDOW
                for began, ended in self.kill_windows
            )
        ]

    def problems(self) -> list[str]:
        """Promises that were not kept; none if all is well."""
        verdict, ledger = self.verdict or Verdict(), self.ledger
        timeouts, unexplained = ledger.answers[TIMED_OUT], len(self.unexplained())
        found = {
            "nobody asked the database what is there": self.verdict is None,
            f"{verdict.lost} orders lost": verdict.lost,
            f"{verdict.doubled} orders doubled": verdict.doubled,
            f"{verdict.crossed} times something of another tenant, or what nobody sent": verdict.crossed,
            f"{len(ledger.unexpected)} answers that nobody should hear, such as "
            f"{ledger.unexpected[:1]}": ledger.unexpected,
            f"{timeouts} requests timed out": timeouts,
            f"a request took {ledger.slowest:.1f} s, more than {MAX_REQUEST_SECONDS:g}": ledger.slowest
            > MAX_REQUEST_SECONDS,
            f"{unexplained} requests were hung up on though no worker was killed": unexplained,
            f"the service was back after {self.slowest_recovery:.1f} s": self.slowest_recovery
            > MAX_RECOVERY_SECONDS,
            **{f"{times} times there was nothing to {fault}": times for fault, times in self.missed.items()},
        }
        if self.interrupted is None:
            found |= {
                f"{ledger.unfinished()} orders with a key were never acknowledged": ledger.unfinished(),
                "no commit was cut": not self.hits[fault_name(cut_after_commit)],
                f"{self.connections} connections left of at most {MAX_IDLE_CONNECTIONS}": self.connections
                > MAX_IDLE_CONNECTIONS,
            }
        return [text for text, is_one in found.items() if is_one]

    def exit_status(self) -> int:
        """130 after an interruption, as in a shell; 1 when a promise was broken."""
        return 1 if self.problems() else 0 if self.interrupted is None else 130
