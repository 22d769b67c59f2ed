"""Trips: the traffic with the database, and the effect of network latency."""

import tempfile
from pathlib import Path
from statistics import median

from bench import operations, plots
from bench.contenders import FLOOR, Contender
from bench.database import pinned
from bench.figures import Json
from bench.instances import Instance
from bench.operations import OPERATIONS, TITLES
from bench.report import Table
from bench.run import Run
from bench.warm import instances, rotated, same_answers
from tools.postgres_proxy import Proxy
from tools.postgres_traffic import Traffic

TITLE = "Trips"
DELAYS = (0.0, 0.0005, 0.001, 0.002)
"""Seconds added to each round trip."""
MEASURED = ("create", "get", "list")
BEFORE_COUNTING = 5
"""Calls of each operation, so that its statements are prepared on the connection."""


def measure(run: Run) -> Json:
    """Round trips and bytes of each operation and of a process's first create; medians with each delay."""
    rounds = run.size.trips_rounds
    advance = run.steps(TITLE, 2 * len(run.contenders) + rounds * len(DELAYS))
    with tempfile.TemporaryDirectory(prefix="order-api-proxy-") as folder:
        proxy = Proxy(Path(folder), run.database.sockets, parses=False)
        try:
            with pinned(run.database, run.core):
                first = {}
                for contender in run.contenders:
                    first[contender.key] = _first_create(contender, proxy, run, Path(folder))
                    advance()
                with instances(run.contenders, run.database, run.core, Path(folder)) as started:
                    same_answers(started, run.database)
                    counted = {}
                    for contender, instance in started:
                        counted[contender.key] = _counted(instance, proxy)
                        advance()
                    times: dict[tuple[str, str, float], list[int]] = {}
                    for number in range(rounds):
                        for delay in DELAYS:
                            proxy.delay = delay
                            for operation in MEASURED:
                                for contender, instance in rotated(started, number):
                                    took = instance.ask(
                                        "batch", operation=operation, calls=run.size.trips_calls
                                    )
                                    times.setdefault((contender.key, operation, delay), []).extend(
                                        took["wall"]
                                    )
                            advance()
        finally:
            proxy.close()
    return {
        "delays_ms": [delay * 1e3 for delay in DELAYS],
        "contenders": {
            contender.key: {
                "name": contender.name,
                "first_create": first[contender.key],
                "operations": counted[contender.key],
                "median_ms": {
                    operation: [median(times[contender.key, operation, delay]) / 1e6 for delay in DELAYS]
                    for operation in MEASURED
                },
            }
            for contender in run.contenders
        },
    }


def _first_create(contender: Contender, proxy: Proxy, run: Run, sockets: Path) -> Json:
    """Traffic of a new process's first create, with its connect (over TCP with TLS, plus two handshakes)."""
    variables = {"DATABASE_URL": run.database.url(contender.role, sockets)}
    with (
        proxy.watched() as traffic,
        Instance(contender, contender.trees.with_bytecode, variables, run.core) as instance,
    ):
        instance.imported()
        answer = instance.ask("call", event=operations.create())
        if answer["status"] != 201:
            raise SystemExit(
                f"{contender.name} answers its first request with {answer['status']}: {answer['body']}"
            )
        return _figures(traffic)


def _counted(instance: Instance, proxy: Proxy) -> Json:
    results = {}
    for operation in OPERATIONS:
        instance.ask("batch", operation=operation, calls=BEFORE_COUNTING)
        with proxy.watched() as traffic:
            instance.ask("batch", operation=operation, calls=1)
        results[operation] = _figures(traffic)
    return results


def _figures(traffic: Traffic) -> Json:
    return {"trips": traffic.trips, "sent": traffic.sent, "received": traffic.received}


def tables(results: Json) -> list[Table]:
    contenders = results["contenders"].values()
    trips = Table(
        "Trips: round trips to the database (bytes sent / received)",
        ["contender", *TITLES.values(), "first create of a process"],
        [
            [
                contender["name"],
                *[_traffic(contender["operations"][operation]) for operation in OPERATIONS],
                _traffic(contender["first_create"]),
            ]
            for contender in contenders
        ],
        ["The first create connects, over a unix socket: TCP and TLS add their own handshakes for everyone."],
    )
    delays = results["delays_ms"]
    latencies = [
        Table(
            f"Trips: {TITLES[operation]}, median milliseconds with a longer way to the database",
            ["contender", *[f"+{delay:g} ms a round trip" for delay in delays]],
            [
                [contender["name"], *[f"{took:.2f}" for took in contender["median_ms"][operation]]]
                for contender in contenders
            ],
        )
        for operation in MEASURED
    ]
    latencies[-1].notes.append(
        "All through the same proxy, whose own time is in each of them, also in the first. The one trip of "
        f"the floor's get took {_really_added(results)} ms longer: a waiting process sleeps, and takes some "
        "time to wake up."
    )
    return [trips, *latencies]


def _really_added(results: Json) -> str:
    without, *longer = results["contenders"][FLOOR.key]["median_ms"]["get"]
    return ", ".join(f"{took - without:.2f}" for took in longer)


def _traffic(results: Json) -> str:
    return f"{results['trips']} ({results['sent']:,} / {results['received']:,})"


def plot(results: Json, folder: Path) -> None:
    contenders = results["contenders"].values()
    plots.lines(
        folder / "trips.png",
        "A longer way to the database",
        "milliseconds added to a round trip",
        "milliseconds a request, median",
        {
            TITLES[operation]: {
                contender["name"]: contender["median_ms"][operation] for contender in contenders
            }
            for operation in MEASURED
        },
        results["delays_ms"],
    )
