"""Cold: from the start of a new process, as Lambda starts one, to its first placed order.

A bare interpreter, read-only files, a new connection; with bytecode for every module, and without any, as in
a zip made by `pip install --target`. The files are in the page cache.
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
    """Time to the first 201, the import's part of it, peak memory then, and this project's ratios."""
    # A process's first create cannot reuse a prepared statement: UNPREPARED would give the same figures.
    contenders = [contender for contender in run.contenders if contender is not UNPREPARED]
    starts = [(contender, bytecode) for contender in contenders for bytecode in (WITH, WITHOUT)] + [
        (IMPORTS, WITH)
    ]
    advance = run.steps(TITLE, (run.size.cold_warm_up + run.size.cold_rounds) * len(starts))
    times: dict[tuple[str, str], list[Json]] = {
        (contender.key, bytecode): [] for contender, bytecode in starts
    }
    with pinned(run.database, run.core):
        for number in range(-run.size.cold_warm_up, run.size.cold_rounds):
            for contender, bytecode in rotated(starts, number):
                took = _start(run, contender, bytecode)
                if number >= 0:
                    times[contender.key, bytecode].append(took)
                advance()
    results = {
        f"{contender.key} {bytecode}": {
            "contender": contender.key,
            "name": contender.name,
            "bytecode": bytecode,
            **summary([start["wall_ns"] for start in times[contender.key, bytecode]]),
            "import_ms": median([start["import_ns"] for start in times[contender.key, bytecode]]) / 1e6,
            "peak_bytes": median([start["peak"] for start in times[contender.key, bytecode]]),
        }
        for contender, bytecode in starts
    }
    return {"starts": results, "ratios": _ratios(results)}


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


def _ratios(results: Json) -> Json:
    """This project with bytecode, as it is built, compared with all others."""
    ours = results[f"{OURS.key} {WITH}"]["median_ms"]
    return {name: ours / start["median_ms"] for name, start in results.items()}


def tables(results: Json) -> list[Table]:
    rows = [
        [
            start["name"],
            start["bytecode"],
            milliseconds(start, 0),
            f"{start['import_ms']:.0f}",
            f"{start['peak_bytes'] / 1e6:.0f} MB",
            ratio(results["ratios"][name]),
        ]
        for name, start in results["starts"].items()
    ]
    calls = next(iter(results["starts"].values()))["calls"]
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


def plot(results: Json, folder: Path) -> None:
    names = list(dict.fromkeys(start["name"] for start in results["starts"].values()))
    values = {(start["name"], start["bytecode"]): start["median_ms"] for start in results["starts"].values()}
    plots.grouped_bars(
        folder / "cold.png",
        "Cold start: a fresh process to its first 201",
        "milliseconds, median",
        names,
        {bytecode: [values.get((name, bytecode), 0) for name in names] for bytecode in (WITH, WITHOUT)},
        label="{:.0f}",
        log=False,
    )


def against_fastapi(results: Json) -> float | None:
    """As each is deployed: this project with bytecode, a plain zip without."""
    against: float | None = results["ratios"].get(f"{FASTAPI.key} {WITHOUT}")
    return against


def against_imports(results: Json) -> float | None:
    against: float | None = results["ratios"].get(f"{IMPORTS.key} {WITH}")
    return against
