"""A run: load, faults at random moments, and the reckoning at its end."""

import random
import time
from collections.abc import Callable, Iterator

from tools.soak.injections import KILLS, NETWORK, Fault, bring_back, cut_after_commit, said
from tools.soak.ledger import RESTING
from tools.soak.load import Customer, Load, Market
from tools.soak.report import Plan, Report
from tools.soak.soak_environment import Stage, stage

IN_A_ROW = 4
"""Probes that must succeed one after the other: each of several workers is to answer."""
GIVE_UP = 30.0
Tell = Callable[[Report, str], None]


def soak(plan: Plan) -> Report:
    report = Report(plan)
    run(report)
    return report


def run(report: Report, tell: Tell = lambda *_: None) -> None:
    """Do as planned; `tell` hears of each step. Interrupted under load, it reckons up what happened so far.

    Raises when a request hangs, a customer cannot go on or PostgreSQL does not come back.
    """
    plan = report.plan
    chance = random.Random(plan.seed)
    with stage(chance, plan.sabotage) as scene:
        market = Market(scene.ports, scene.shops.token, report.ledger, plan.seed)
        probe = market.customer("probe", "prober")
        report.started = time.monotonic()
        try:
            with Load(market.customers()):
                try:
                    _break(scene, chance, probe, report, tell)
                    tell(report, "the last orders")
                except KeyboardInterrupt:
                    report.interrupt()
                    raise
        except KeyboardInterrupt:
            bring_back(scene)
        report.connections = scene.connections()
        report.said = "".join(
            each.log.read_text(errors="replace") for each in (scene.product, scene.forgetful)
        )
        report.verdict = report.ledger.verdict(scene.rows(RESTING))


def _break(scene: Stage, chance: random.Random, probe: Customer, report: Report, tell: Tell) -> None:
    for fault in _in_turn(chance):
        if report.is_done:
            return
        tell(report, "load")
        time.sleep(chance.uniform(0.1, 1.5))
        tell(report, said(fault))
        began = time.monotonic()
        injected = fault(scene, chance)
        report.add(said(fault), began, injected)
        if injected.hits:
            report.recoveries.setdefault(said(fault), []).append(recovery(probe, injected.whole))


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
