"""A run: load, faults at random moments, and the reckoning at its end."""

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from tests.faults.injections import KILLS, NETWORK, Fault, cut_after_commit, said
from tests.faults.ledger import RESTING, Ledger, Verdict
from tests.faults.load import Customer, Load, Market
from tests.faults.proxy import Shot
from tests.faults.stage import MOST_AT_REST, Stage, stage

LONGEST_RECOVERY = 5.0
"""Seconds after the database is back in which the service must be, without a restart."""
IN_A_ROW = 4
"""Probes that must succeed one after the other: each of several workers is to answer."""
GIVE_UP = 30.0


@dataclass(frozen=True)
class Plan:
    seconds: float
    kills: int
    """At least so many rounds kill a process; the run lasts longer where it must."""
    seed: int
    sabotage: str | None = None


@dataclass
class Report:
    """What happened so far."""

    plan: Plan
    ledger: Ledger
    started: float = field(default_factory=time.monotonic)
    faults: Counter[str] = field(default_factory=Counter)
    recoveries: dict[str, list[float]] = field(default_factory=dict)
    """By fault, the seconds from the moment that the database was back."""
    commits_cut: int = 0
    connections: int = 0
    """Of the API, when its customers had gone."""
    said: str = ""
    """By the product, until its end."""
    verdict: Verdict = field(default_factory=Verdict)

    @property
    def kills(self) -> int:
        return sum(self.faults[said(fault)] for fault in KILLS)

    @property
    def slowest_recovery(self) -> float:
        return max((max(each) for each in self.recoveries.values()), default=0.0)

    def problems(self) -> list[str]:
        """Promises that were not kept; none if all is well."""
        verdict, ledger = self.verdict, self.ledger
        found = {
            f"{verdict.lost} orders lost": verdict.lost,
            f"{verdict.doubled} orders doubled": verdict.doubled,
            f"{verdict.crossed} times something of another tenant": verdict.crossed,
            f"{ledger.unfinished()} orders with a key were never acknowledged": ledger.unfinished(),
            f"{len(ledger.unexpected)} answers that nobody should hear, such as "
            f"{ledger.unexpected[:1]}": ledger.unexpected,
            f"the service was back after {self.slowest_recovery:.1f} s": self.slowest_recovery
            > LONGEST_RECOVERY,
            f"{self.connections} connections left of at most {MOST_AT_REST}": self.connections > MOST_AT_REST,
        }
        return [text for text, is_one in found.items() if is_one]


def soak(plan: Plan, tell: Callable[[Report, str], None] = lambda *_: None) -> Report:
    """Do as planned; `tell` hears of each step. Raises when a request hangs or a customer cannot go on."""
    chance = random.Random(plan.seed)
    with stage(chance, plan.sabotage) as scene:
        ledger = Ledger()
        market = Market(scene.ports, scene.shops.token, ledger, plan.seed)
        probe = market.customer("probe", "prober")
        report = Report(plan, ledger)
        with Load(market.customers()):
            for fault in _in_turn(chance):
                if time.monotonic() - report.started > plan.seconds and report.kills >= plan.kills:
                    break
                tell(report, "load")
                time.sleep(chance.uniform(0.1, 1.5))
                _inject(fault, scene, chance, probe, report, tell)
            tell(report, "the last orders")
        report.commits_cut = scene.proxy.fired[Shot.CUT_AFTER_COMMIT]
        report.connections = scene.connections()
        report.said = scene.product.log.read_text(errors="replace")
        report.verdict = ledger.verdict(scene.rows(RESTING))
    return report


def _inject(
    fault: Fault,
    scene: Stage,
    chance: random.Random,
    probe: Customer,
    report: Report,
    tell: Callable[[Report, str], None],
) -> None:
    tell(report, said(fault))
    back = fault(scene, chance)
    report.faults[said(fault)] += 1
    report.recoveries.setdefault(said(fault), []).append(recovery(probe, back))


def recovery(probe: Customer, back: float) -> float:
    """Seconds from `back` to the first of the probes that succeed from then on."""
    good, first = 0, back
    while good < IN_A_ROW:
        if probe.is_served():
            first = first if good else time.monotonic()
            good += 1
            continue
        good = 0
        if time.monotonic() - back > GIVE_UP:
            return GIVE_UP
        time.sleep(0.05)
    return first - back


def _in_turn(chance: random.Random) -> Iterator[Fault]:
    """Kills and faults of the network by turns, each kind as often as the others, in random order.

    First the one that finds most, for runs that see few.
    """
    yield cut_after_commit
    kills, network = _shuffled(KILLS, chance), _shuffled(NETWORK, chance)
    while True:
        yield next(kills)
        yield next(network)


def _shuffled(faults: tuple[Fault, ...], chance: random.Random) -> Iterator[Fault]:
    while True:
        yield from chance.sample(faults, len(faults))
