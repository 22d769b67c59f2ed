"""`make bench-profile`: profiles this project, warm with cProfile and cold with -X importtime."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from bench import machine, operations
from bench.contenders import OURS, PROJECT, install
from bench.database import Database, loaded
from bench.figures import Json
from bench.instances import LAMBDA_VARIABLES, WORKER
from bench.report import Table, markdown

CALLS = 2_000
STARTS = 5
LISTED = 14
"""The number of packages that are listed separately."""
RESULTS = PROJECT / "bench" / "results"


def main() -> None:
    with Progress() as progress:
        task = progress.add_task("Profiling", total=STARTS + 2)
        install([OURS], lambda _: None)
        progress.advance(task)
        with loaded() as database:
            calls = _calls(database)
            progress.advance(task)
            starts = []
            for _ in range(STARTS):
                starts.append(_imports(database))
                progress.advance(task)
    tables = [_warm(calls), _cold(starts)]
    for table in tables:
        table.show(Console(width=140))
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "profile.md").write_text(markdown(machine.described("make bench-profile"), tables))
    print(f"Written: {RESULTS / 'profile.md'}")


def _calls(database: Database) -> Json:
    script = Path(__file__).with_name("profiled.py")
    events = {
        "create": operations.create(),
        "get": operations.get(database.sampled[0]),
        "list": operations.first_page(),
    }
    done = _run(database, [str(script), str(OURS.trees.with_bytecode), str(CALLS)], json.dumps(events))
    calls: Json = json.loads(done.stdout.splitlines()[-1])  # after the log lines
    return calls


def _imports(database: Database) -> dict[str, float]:
    """Milliseconds that each top-level package's own modules took to import until the first 201."""
    arguments = [str(OURS.trees.with_bytecode), OURS.module, OURS.attribute, "-", "1"]
    command = json.dumps({"do": "call", "event": operations.create()}) + "\n"
    done = _run(database, ["-X", "importtime", str(WORKER), *arguments], command)
    took: dict[str, float] = {}
    for own, name in re.findall(r"^import time:\s*(\d+) \|\s*\d+ \|\s*(\S+)$", done.stderr, re.MULTILINE):
        top = name.partition(".")[0]
        took[top] = took.get(top, 0.0) + int(own) / 1e3
    return took


def _run(database: Database, arguments: list[str], stdin: str) -> subprocess.CompletedProcess[str]:
    environment = {**LAMBDA_VARIABLES, **OURS.variables, "DATABASE_URL": database.url(OURS.role)}
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-I", "-S", "-B", *arguments],
        input=stdin,
        env={"PATH": os.environ.get("PATH", ""), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"The profiled process failed:\n{done.stderr[-2000:]}")
    return done


def _warm(calls: Json) -> Table:
    parts = sorted(
        {part for profile in calls.values() for part in profile},
        key=lambda part: -calls["create"].get(part, 0),
    )
    total = {operation: sum(profile.values()) for operation, profile in calls.items()}
    rows = [
        [
            part,
            *(
                f"{profile.get(part, 0):.0f} ({profile.get(part, 0) / total[operation]:.0%})"
                for operation, profile in calls.items()
            ),
        ]
        for part in parts
    ]
    notes = [f"cProfile over {CALLS:,} calls of each; it slows Python's own code down and not the database."]
    return Table("Profile: microseconds of a warm call", ["where", *calls], rows, notes)


def _cold(starts: list[dict[str, float]]) -> Table:
    """The fastest of the starts, because other load on the machine only adds time."""
    fastest = min(starts, key=lambda took: sum(took.values()))
    total = sum(fastest.values())
    slowest_first = sorted(fastest.items(), key=lambda package: -package[1])
    rows = [[name, f"{took:.1f}", f"{took / total:.0%}"] for name, took in slowest_first[:LISTED]]
    rest = sum(took for _, took in slowest_first[LISTED:])
    rows += [
        [f"{len(slowest_first) - LISTED} others", f"{rest:.1f}", f"{rest / total:.0%}"],
        ["together", f"{total:.1f}", ""],
    ]
    notes = [f"-X importtime, which adds to each module; the fastest of {STARTS} starts, with bytecode."]
    return Table(
        "Profile: milliseconds of imports until the first 201",
        ["package", "own modules", "share"],
        rows,
        notes,
    )


if __name__ == "__main__":
    main()
