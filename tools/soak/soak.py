"""A run: load, faults at random moments, and the check of every promise at its end."""

import random
import time
from collections.abc import Callable, Iterator

from tools.soak.injections import KILLS, NETWORK, Fault, cut_after_commit, fault_name, restart_database
from tools.soak.ledger import STORED_ORDERS
from tools.soak.load import Customer, CustomerFactory, Load
from tools.soak.report import Plan, Report
from tools.soak.soak_environment import SoakEnvironment, soak_environment

PROBES_IN_A_ROW = 4
"""Consecutive probes that must succeed, so that each of several workers has probably answered."""
RECOVERY_TIMEOUT = 30.0
Show = Callable[[Report, str], None]


def soak(plan: Plan) -> Report:
    report = Report(plan)
    run(report)
    return report


def run(report: Report, show: Show = lambda *_: None) -> None:
    """Run the plan; `show` is called for each step. Interrupted under load, it checks the results so far.

    Raises when a request hangs, a customer fails or PostgreSQL does not recover.
    """
    plan = report.plan
    rng = random.Random(plan.seed)
    with soak_environment(rng, plan.sabotage) as environment:
        factory = CustomerFactory(environment.ports, environment.tokens.token, report.ledger, plan.seed)
        probe = factory.customer("probe", "prober")
        report.started = time.monotonic()
        try:
            with Load(factory.customers()):
                try:
                    _inject_faults(environment, rng, probe, report, show)
                    show(report, "the last orders")
                except KeyboardInterrupt:
                    report.interrupt()
                    raise
        except KeyboardInterrupt:
            restart_database(environment)
        report.connections = environment.connections()
        report.log = "".join(
            door.log.read_text(errors="replace") for door in (environment.product, environment.unfiltered)
        )
        report.verdict = report.ledger.verdict(environment.rows(STORED_ORDERS))


def _inject_faults(
    environment: SoakEnvironment, rng: random.Random, probe: Customer, report: Report, show: Show
) -> None:
    for fault in _sequence(rng):
        if report.is_done:
            return
        show(report, "load")
        time.sleep(rng.uniform(0.1, 1.5))
        show(report, fault_name(fault))
        started = time.monotonic()
        injected = fault(environment, rng)
        report.add(fault_name(fault), started, injected)
        if injected.hits:
            report.recoveries.setdefault(fault_name(fault), []).append(recovery(probe, injected.repaired_at))


def recovery(probe: Customer, repaired_at: float) -> float:
    """Seconds from the repair to the first of PROBES_IN_A_ROW successful probes."""
    good, first = 0, repaired_at
    while good < PROBES_IN_A_ROW:
        if probe.is_served():
            first = first if good else time.monotonic()
            good += 1
            continue
        good = 0
        if time.monotonic() - repaired_at > RECOVERY_TIMEOUT:
            return RECOVERY_TIMEOUT
        time.sleep(0.05)
    return first - repaired_at


def _sequence(rng: random.Random) -> Iterator[Fault]:
    """Kills and network faults alternate, each kind equally often, in random order.

    The first is the one that finds most bugs, for short runs.
    """
    yield cut_after_commit
    kills, network = _shuffled(KILLS, rng), _shuffled(NETWORK, rng)
    while True:
        yield next(kills)
        yield next(network)


def _shuffled(faults: tuple[Fault, ...], rng: random.Random) -> Iterator[Fault]:
    while True:
        yield from rng.sample(faults, len(faults))
