"""The result of a run, and which promises were broken."""

import time
from collections import Counter
from dataclasses import dataclass, field

from tools.soak.injections import KILLS, NETWORK, Injected, cut_after_commit, fault_name, kill_worker
from tools.soak.ledger import TIMED_OUT, Ledger, Unanswered, Verdict
from tools.soak.soak_environment import MAX_IDLE_CONNECTIONS, MAX_REQUEST_SECONDS

MAX_RECOVERY_SECONDS = 5.0
"""Seconds from the database's recovery to the service's, without a restart."""
KILL_WINDOW = 2.0
"""Seconds after the kill of a worker in which its clients' connections end."""


@dataclass(frozen=True)
class Plan:
    seconds: float
    kills: int
    """The minimum of rounds that kill a process; the run takes longer if necessary."""
    seed: int
    sabotage: str | None = None
    kinds: int = len(KILLS + NETWORK)
    """The minimum of kinds of fault that are tried; the run takes longer if necessary."""


@dataclass
class Report:
    """The results so far."""

    plan: Plan
    ledger: Ledger = field(default_factory=Ledger)
    started: float = field(default_factory=time.monotonic)
    faults: Counter[str] = field(default_factory=Counter)
    """Faults with a target."""
    missed: Counter[str] = field(default_factory=Counter)
    """Faults without a target."""
    hits: Counter[str] = field(default_factory=Counter)
    """The number of affected processes, connections or answers by kind of fault."""
    recoveries: dict[str, list[float]] = field(default_factory=dict)
    """By fault, the seconds from the database's recovery to the service's."""
    kill_windows: list[tuple[float, float]] = field(default_factory=list)
    """Start and end (time.monotonic()) of the times in which the kill of a worker may cut off requests."""
    interrupted: float | None = None
    """When the run was stopped (time.monotonic())."""
    connections: int = 0
    """The API's connections to the database after the load."""
    log: str = ""
    """The output of both API processes."""
    verdict: Verdict | None = None
    """None until the database was checked."""

    @property
    def kills(self) -> int:
        return sum(self.faults[fault_name(fault)] for fault in KILLS)

    @property
    def is_done(self) -> bool:
        """Whether the plan is fulfilled."""
        kinds = len({*self.faults, *self.missed})
        is_over = time.monotonic() - self.started > self.plan.seconds
        return is_over and self.kills >= self.plan.kills and kinds >= self.plan.kinds

    @property
    def slowest_recovery(self) -> float:
        return max((max(seconds) for seconds in self.recoveries.values()), default=0.0)

    def add(self, fault: str, started: float, injected: Injected) -> None:
        if not injected.hits:
            self.missed[fault] += 1
            return
        self.faults[fault] += 1
        self.hits[fault] += injected.hits
        if fault == fault_name(kill_worker):
            self.kill_windows.append((started, injected.repaired_at))

    def interrupt(self) -> None:
        """A worker may have been killed just before."""
        self.interrupted = time.monotonic()
        self.kill_windows.append((self.interrupted - KILL_WINDOW, float("inf")))

    def unexplained(self) -> list[Unanswered]:
        """Requests without an answer although no worker was killed."""
        return [
            request
            for request in self.ledger.unanswered
            if not any(
                request.ended >= start and request.started <= end and request.ended <= end + KILL_WINDOW
                for start, end in self.kill_windows
            )
        ]

    def problems(self) -> list[str]:
        """The broken promises."""
        verdict, ledger = self.verdict or Verdict(), self.ledger
        timeouts, unexplained = ledger.answers[TIMED_OUT], len(self.unexplained())
        problems = {
            "the database was not checked": self.verdict is None,
            f"{verdict.lost} orders lost": verdict.lost,
            f"{verdict.doubled} orders doubled": verdict.doubled,
            f"{verdict.crossed} answers or rows with values of another tenant or request": verdict.crossed,
            f"{len(ledger.unexpected)} unexpected answers, such as "
            f"{ledger.unexpected[:1]}": ledger.unexpected,
            f"{timeouts} requests timed out": timeouts,
            f"a request took {ledger.slowest:.1f} s, more than {MAX_REQUEST_SECONDS:g}": ledger.slowest
            > MAX_REQUEST_SECONDS,
            f"{unexplained} requests got no answer though no worker was killed": unexplained,
            f"the service recovered after {self.slowest_recovery:.1f} s": self.slowest_recovery
            > MAX_RECOVERY_SECONDS,
            **{f"{fault} had no target {times} times": times for fault, times in self.missed.items()},
        }
        if self.interrupted is None:
            problems |= {
                f"{ledger.unfinished()} orders with a key were never acknowledged": ledger.unfinished(),
                "no connection was cut after a commit": not self.hits[fault_name(cut_after_commit)],
                f"{self.connections} connections left of at most {MAX_IDLE_CONNECTIONS}": self.connections
                > MAX_IDLE_CONNECTIONS,
            }
        return [problem for problem, exists in problems.items() if exists]

    def exit_status(self) -> int:
        """130 after an interruption, as in a shell; 1 when a promise was broken."""
        return 1 if self.problems() else 0 if self.interrupted is None else 130
