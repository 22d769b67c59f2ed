"""A run: load, faults at random moments, and the reckoning at its end."""

import random
import time
from collections.abc import Callable, Iterator

from tools.soak.injections import KILLS, NETWORK, Fault, bring_back, cut_after_commit, said
from tools.soak.ledger import RESTING
from tools.soak.load import Customer, Load, Market
from tools.soak.report import Plan, Report
from tools.soak.soak_environment import SoakEnvironment, soak_environment

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
    rng = random.Random(plan.seed)
    with soak_environment(rng, plan.sabotage) as environment:
        market = Market(environment.ports, environment.tokens.token, report.ledger, plan.seed)
        probe = market.customer("probe", "prober")
        report.started = time.monotonic()
        try:
            with Load(market.customers()):
                try:
                    _inject_faults(environment, rng, probe, report, tell)
                    tell(report, "the last orders")
                except KeyboardInterrupt:
                    report.interrupt()
                    raise
        except KeyboardInterrupt:
            bring_back(environment)
        report.connections = environment.connections()
        report.said = "".join(
            each.log.read_text(errors="replace") for each in (environment.product, environment.unfiltered)
        )
        report.verdict = report.ledger.verdict(environment.rows(RESTING))


def _inject_faults(
    environment: SoakEnvironment, rng: random.Random, probe: Customer, report: Report, tell: Tell
) -> None:
    for fault in _in_turn(rng):
        if report.is_done:
            return
        tell(report, "load")
        time.sleep(rng.uniform(0.1, 1.5))
        tell(report, said(fault))
        began = time.monotonic()
        injected = fault(environment, rng)
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


def _in_turn(rng: random.Random) -> Iterator[Fault]:
    """Kills and faults of the network by turns, each kind as often as the others, in random order.

    First the one that finds most, for runs that see few.
    """
    yield cut_after_commit
    kills, network = _shuffled(KILLS, rng), _shuffled(NETWORK, rng)
    while True:
        yield next(kills)
        yield next(network)


def _shuffled(faults: tuple[Fault, ...], rng: random.Random) -> Iterator[Fault]:
    while True:
        yield from rng.sample(faults, len(faults))
