"""Cold: from the start of a fresh process to its first placed order, as Lambda starts one.

A bare interpreter, read-only files, a fresh connection; with bytecode beside every module and without any,
as a zip made by `pip install --target` has none. The files are in the page cache.
"""

import time
from pathlib import Path
from statistics import median

from bench import operations, plots
from bench.contenders import FASTAPI, IMPORTS, OURS, UNPREPARED, Contender
from bench.database import pinned
from bench.figures import Json, summary
from bench.instances import Instance
from bench.report import Table, milliseconds, ratio
from bench.run import Run
from bench.warm import rotated

TITLE = "Cold"
WITH, WITHOUT = "with bytecode", "without"


def measure(run: Run) -> Json:
    """Time to the first 201, of which of import; peak memory at that moment; and our ratio to each."""
    # The first create of a process prepares nothing that it could use again: one of ours is enough.
    contenders = [each for each in run.contenders if each is not UNPREPARED]
    starts = [(each, bytecode) for each in contenders for bytecode in (WITH, WITHOUT)] + [(IMPORTS, WITH)]
    advance = run.steps(TITLE, (run.size.cold_rounds + 1) * len(starts))
    times: dict[tuple[str, str], list[Json]] = {(each.key, bytecode): [] for each, bytecode in starts}
    with pinned(run.database, run.core):
        for number in range(run.size.cold_rounds + 1):
            for contender, bytecode in rotated(starts, number):
                took = _start(run, contender, bytecode)
                if number:  # before the first round, the files may not have been in the page cache
                    times[contender.key, bytecode].append(took)
                advance()
    found = {
        f"{contender.key} {bytecode}": {
            "contender": contender.key,
            "name": contender.name,
            "bytecode": bytecode,
            **summary([each["wall_ns"] for each in times[contender.key, bytecode]]),
            "import_ms": median([each["import_ns"] for each in times[contender.key, bytecode]]) / 1e6,
            "peak_bytes": median([each["peak"] for each in times[contender.key, bytecode]]),
        }
        for contender, bytecode in starts
    }
    return {"starts": found, "ratios": _ratios(found)}


def _start(run: Run, contender: Contender, bytecode: str) -> Json:
    trees = contender.trees
    tree = trees.with_bytecode if bytecode == WITH else trees.without_bytecode
    event = operations.create()
    before = time.perf_counter_ns()
    with Instance(contender, tree, {"DATABASE_URL": run.database.url(contender.role)}, run.core) as instance:
        instance.tell("call", event=event)
        import_ns = instance.imported()
        answer = instance.answer()
        wall_ns = time.perf_counter_ns() - before
        if answer["status"] != 201:
            raise SystemExit(
                f"{contender.name} answers its first request with {answer['status']}: {answer['body']}"
            )
        return {"wall_ns": wall_ns, "import_ns": import_ns, "peak": instance.ask("memory")["peak"]}


def _ratios(found: Json) -> Json:
    """This project with its bytecode, as it ships, against each other one as it may be shipped."""
    ours = found[f"{OURS.key} {WITH}"]["median_ms"]
    return {name: ours / each["median_ms"] for name, each in found.items()}


def tables(found: Json) -> list[Table]:
    rows = [
        [
            each["name"],
            each["bytecode"],
            milliseconds(each, 0),
            f"{each['import_ms']:.0f}",
            f"{each['peak_bytes'] / 1e6:.0f} MB",
            ratio(found["ratios"][name]),
        ]
        for name, each in found["starts"].items()
    ]
    calls = next(iter(found["starts"].values()))["calls"]
    return [
        Table(
            "Cold: a fresh process to its first 201",
            [
                "contender",
                "files",
                "ms, median and p99",
                "of that import",
                "peak memory",
                "this project (with bytecode) against it",
            ],
            rows,
            [f"{calls} starts of each, files in the page cache, no file is ever written."],
            texts=2,
        )
    ]


def plot(found: Json, folder: Path) -> None:
    names = list(dict.fromkeys(each["name"] for each in found["starts"].values()))
    values = {(each["name"], each["bytecode"]): each["median_ms"] for each in found["starts"].values()}
    plots.grouped_bars(
        folder / "cold.png",
        "Cold start: a fresh process to its first 201",
        "milliseconds, median",
        names,
        {bytecode: [values.get((name, bytecode), 0) for name in names] for bytecode in (WITH, WITHOUT)},
        label="{:.0f}",
        log=False,
    )


def against_fastapi(found: Json) -> float | None:
    """As each is shipped: ours with bytecode, a plain zip without."""
    against: float | None = found["ratios"].get(f"{FASTAPI.key} {WITHOUT}")
    return against


def against_imports(found: Json) -> float | None:
    against: float | None = found["ratios"].get(f"{IMPORTS.key} {WITH}")
    return against
