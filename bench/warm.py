"""Warm: one long-lived process per contender, called repeatedly, as Lambda calls a warm instance."""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from bench import operations, plots
from bench.contenders import FLOOR, OURS, Contender
from bench.database import Database, pinned
from bench.figures import Json, summary
from bench.instances import Instance
from bench.operations import OPERATIONS, TITLES
from bench.report import Table, milliseconds, ratio
from bench.run import Run

TITLE = "Warm"
GROWTH_FROM = 2_000
"""Requests after which memory must have stopped growing."""


def measure(run: Run) -> Json:
    """Median, p99 and ratio to the floor of each contender's operations; and memory."""
    advance = run.steps(TITLE, run.size.warm_rounds)
    with pinned(run.database, run.core), instances(run.contenders, run.database, run.core) as started:
        same_answers(started, run.database)
        for _, instance in started:
            for operation in OPERATIONS:
                instance.ask("batch", operation=operation, calls=run.size.warm_up)
        on_one_core = all_on(run.core, run.database)
        times = {contender.key: {operation: Times() for operation in OPERATIONS} for contender, _ in started}
        for number in range(run.size.warm_rounds):
            for operation in OPERATIONS:
                for contender, instance in rotated(started, number):
                    took = instance.ask("batch", operation=operation, calls=run.size.warm_calls)
                    times[contender.key][operation].add(took)
            advance()
        memory = {contender.key: instance.ask("memory") for contender, instance in started}
    results = {
        contender.key: {
            "name": contender.name,
            "peak_bytes": memory[contender.key]["peak"],
            "operations": {
                operation: took.summary(times[FLOOR.key][operation])
                for operation, took in times[contender.key].items()
            },
        }
        for contender in run.contenders
    }
    return {"on_one_core": on_one_core, "contenders": results, "growth": _growth(run)}


class Times:
    """Nanoseconds of one contender's calls of one operation, round by round."""

    def __init__(self) -> None:
        self.wall: list[int] = []
        self.cpu: list[int] = []
        self.rounds: list[float] = []
        """The median of each."""

    def add(self, batch: Json) -> None:
        self.wall += batch["wall"]
        self.cpu += batch["cpu"]
        self.rounds.append(median(batch["wall"]))

    def summary(self, floor: "Times") -> Json:
        took = summary(self.wall)
        return {
            **took,
            "cpu_ms": median(self.cpu) / 1e6,
            # By round, because the machine's speed changes during a run.
            "ratio": median(own / base for own, base in zip(self.rounds, floor.rounds, strict=True)),
        }


@contextmanager
def instances(
    contenders: Sequence[Contender], database: Database, core: int | None, sockets: Path | None = None
) -> Iterator[list[tuple[Contender, Instance]]]:
    """A process of each contender, imported, for the database or a proxy whose socket is in `sockets`."""
    with ExitStack() as stack:
        started = []
        for contender in contenders:
            variables = {"DATABASE_URL": database.url(contender.role, sockets)}
            tree = contender.trees.with_bytecode
            instance = stack.enter_context(Instance(contender, tree, variables, core))
            instance.imported()
            started.append((contender, instance))
        yield started


def same_answers(started: Sequence[tuple[Contender, Instance]], database: Database) -> None:
    """Send each instance its operations. Raises SystemExit unless all give the same answers."""
    answers: dict[str, Json] = {}
    for contender, instance in started:
        for operation, events in _events(contender, instance, database).items():
            instance.ask("learn", operation=operation, events=events, status=operations.STATUS[operation])
            answer = instance.ask("call", event=events[0])
            if answer["status"] != operations.STATUS[operation]:
                raise SystemExit(
                    f"{contender.name} answers {operation} with {answer['status']}: {answer['body']}"
                )
            body = operations.masked(operation, answer["body"])
            first = answers.setdefault(operation, body)
            if body != first:
                other = started[0][0].name
                raise SystemExit(f"{contender.name} answers {operation} unlike {other}:\n{body}\n{first}")


def _events(contender: Contender, instance: Instance, database: Database) -> dict[str, list[Json]]:
    """The events for this contender, with its own cursors and idempotency keys."""
    page = instance.ask("call", event=operations.first_page())
    following = json.loads(page["body"])["next_cursor"]
    replayed = operations.create(key=f"bench-{contender.key}-{os.urandom(8).hex()}")
    instance.ask("call", event=replayed)
    return {
        "create": [operations.create()],
        "get": [operations.get(order_id) for order_id in database.sampled],
        "list": [operations.first_page()],
        "cursor": [operations.page_after(following)],
        "replay": [replayed],
    }


def rotated(started: Sequence[Any], number: int) -> Sequence[Any]:
    """Rotated by the round's number, so that no contender always follows the same one."""
    first = number % len(started)
    return [*started[first:], *started[:first]]


def all_on(core: int | None, database: Database) -> bool:
    """Whether every contender's backend runs on that core; else the report has a warning about the ratios."""
    backends = database.backends()
    return (
        core is not None and bool(backends) and all(os.sched_getaffinity(pid) == {core} for pid in backends)
    )


def _growth(run: Run) -> Json:
    """The growth of this project's memory after GROWTH_FROM requests, in bytes."""
    parts = 50
    advance = run.steps(f"{TITLE}: memory over {run.size.growth_calls:,} requests", parts)
    with pinned(run.database, run.core), instances([OURS], run.database, run.core) as started:
        same_answers(started, run.database)
        ((_, instance),) = started
        instance.ask("many", calls=GROWTH_FROM)
        before = instance.ask("memory")["now"]
        for _ in range(parts):
            instance.ask("many", calls=run.size.growth_calls // parts)
            advance()
        after = instance.ask("memory")["now"]
    grown = None if before is None else after - before
    return {"after": GROWTH_FROM, "calls": run.size.growth_calls // parts * parts, "grown_bytes": grown}


def tables(results: Json) -> list[Table]:
    contenders = results["contenders"].values()
    ratios = Table(
        "Warm: median, as a multiple of the floor's",
        ["contender", *TITLES.values(), "peak memory"],
        [
            [
                contender["name"],
                *[ratio(contender["operations"][operation]["ratio"]) for operation in OPERATIONS],
                f"{contender['peak_bytes'] / 1e6:.0f} MB",
            ]
            for contender in contenders
        ],
        [_growth_note(results["growth"])],
    )
    if not results["on_one_core"]:
        ratios.notes.append(
            "CLIENT AND SERVER WERE NOT PINNED TO ONE CORE here: these ratios are not comparable."
        )
    times = Table(
        "Warm: milliseconds, median and p99",
        ["contender", *TITLES.values()],
        [
            [
                contender["name"],
                *[milliseconds(contender["operations"][operation]) for operation in OPERATIONS],
            ]
            for contender in contenders
        ],
        [f"{next(iter(contenders))['operations']['create']['calls']} calls of each."],
    )
    return [ratios, times]


def _growth_note(growth: Json) -> str:
    if growth["grown_bytes"] is None:
        return "Growth of memory was not measured: this system does not tell a process its resident memory."
    return (
        f"This project's memory after {growth['after']:,} requests, and {growth['calls']:,} requests later: "
        f"{growth['grown_bytes'] / 1000:+,.0f} KB."
    )


def plot(results: Json, folder: Path) -> None:
    plots.grouped_bars(
        folder / "warm.png",
        "Warm requests: median time as a multiple of raw psycopg2's",
        "multiple of the floor (log scale)",
        list(TITLES.values()),
        {
            contender["name"]: [contender["operations"][operation]["ratio"] for operation in OPERATIONS]
            for contender in results["contenders"].values()
        },
        label="{:.1f}x",
    )
