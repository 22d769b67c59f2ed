"""`make bench`: measure this project and its peers, and write the results."""

import argparse
import json
import os
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench import cold, contenders, cores, cost, database, http, machine, report, targets, trips, warm
from bench.contenders import CONTENDERS, FLOOR, IMPORTS, OURS, PROJECT, Contender
from bench.run import SIZES, Run

Json = dict[str, Any]
RESULTS = PROJECT / "bench" / "results"
SECTIONS: Mapping[str, ModuleType] = {"warm": warm, "cold": cold, "http": http, "trips": trips, "cost": cost}


def main() -> None:
    for stop in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(stop, signal.default_int_handler)
    chosen = _chosen()
    try:
        results, tables = _measured(chosen)
    except KeyboardInterrupt:
        raise SystemExit("\nStopped. Nothing was written.") from None
    chosen.results.mkdir(parents=True, exist_ok=True)
    for name in chosen.sections:
        plot = getattr(SECTIONS[name], "plot", None)
        if plot and results["sections"][name]:
            plot(results["sections"][name], chosen.results)
    (chosen.results / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (chosen.results / "results.md").write_text(report.markdown(results["header"], tables))
    print(f"Written: {chosen.results}/results.md, results.json and the plots beside them")


def _measured(chosen: argparse.Namespace) -> tuple[Json, list[report.Table]]:
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    header = machine.described(chosen.command)
    with Progress(*columns, console=console) as progress:
        _install(chosen.contenders, progress)
        core = cores.of_contenders()
        cores.leave(core)
        with database.loaded() as loaded:
            header |= {
                "PostgreSQL": f"{loaded.version}, with {' and '.join(database.SETTINGS)} off",
                "data": database.described(),
                "pinned": _pinning(core),
                **{contender.name: machine.versions(contender) for contender in chosen.contenders},
            }
            run = Run(SIZES[chosen.size], chosen.contenders, loaded, core, progress)
            if core is None:
                run.warn(header["pinned"])
            for name in chosen.sections:
                run.results[name] = SECTIONS[name].measure(run)
    results = run.results
    tables = [table for name in chosen.sections for table in SECTIONS[name].tables(results[name])]
    tables.append(targets.table(results))
    for table in tables:
        table.show(console)
    packages = {contender.key: contenders.packages(contender) for contender in chosen.contenders}
    return {"header": header, "packages": packages, "sections": results}, tables


def _install(chosen: list[Contender], progress: Progress) -> None:
    task = progress.add_task("Installing", total=len(chosen) + 1)

    def advance(name: str) -> None:
        progress.update(task, description=f"Installing {name}", advance=1)

    contenders.install([*chosen, IMPORTS], advance)
    progress.update(task, description="Installed")


def _pinning(core: int | None) -> str:
    if core is None:
        return "NOTHING: this system cannot pin processes to a core, so that ratios depend on its scheduler"
    return f"contenders and their database connections together on core {core}; http on all cores"


def _chosen() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    quick = os.environ.get("QUICK", "") not in ("", "0")
    parser.add_argument("--size", choices=SIZES, default="quick" if quick else "full")
    parser.add_argument("--only", default=os.environ.get("ONLY", ""), help=f"of {','.join(SECTIONS)}")
    parser.add_argument(
        "--contenders",
        default=os.environ.get("CONTENDERS", ""),
        help=f"of {','.join(contender.key for contender in CONTENDERS)}; ours and floor are always there",
    )
    parser.add_argument("--results", type=Path, help="where to write; default bench/results")
    chosen = parser.parse_args()
    chosen.sections = _listed("ONLY", chosen.only, list(SECTIONS))
    if "cost" in chosen.sections and (
        missing := [name for name in cost.NEEDS if name not in chosen.sections]
    ):
        raise SystemExit(f"cost follows from {', '.join(cost.NEEDS)}: name {', '.join(missing)} too")
    always = {OURS.key, FLOOR.key}
    keys = {*_listed("CONTENDERS", chosen.contenders, [contender.key for contender in CONTENDERS]), *always}
    chosen.contenders = [contender for contender in CONTENDERS if contender.key in keys]
    is_whole = len(chosen.sections) == len(SECTIONS) and len(chosen.contenders) == len(CONTENDERS)
    is_whole = is_whole and shutil.which("wrk") is not None  # the section would be skipped
    # Published results come from one complete run: a partial run must not overwrite them.
    folder = RESULTS / ("partial" if not is_whole else "quick" if chosen.size != "full" else "")
    chosen.results = chosen.results or folder
    chosen.command = _command(chosen)
    return chosen


def _listed(name: str, text: str, allowed: list[str]) -> list[str]:
    """The members of a comma-separated list, in the order of `allowed`; all if the list is empty."""
    named = [part.strip() for part in text.split(",") if part.strip()] or allowed
    if unknown := [part for part in named if part not in allowed]:
        raise SystemExit(f"{name} is {text!r}, and {unknown[0]!r} is not one of {', '.join(allowed)}")
    return [part for part in allowed if part in named]


def _command(chosen: argparse.Namespace) -> str:
    words = ["make bench"]
    if chosen.size != "full":
        words.append("QUICK=1" if chosen.size == "quick" else "(smoke)")
    if len(chosen.sections) < len(SECTIONS):
        words.append(f"ONLY={','.join(chosen.sections)}")
    if len(chosen.contenders) < len(CONTENDERS):
        words.append(f"CONTENDERS={','.join(contender.key for contender in chosen.contenders)}")
    return " ".join(words)


if __name__ == "__main__":
    main()
