"""`make bench-profile`: where the time of this project goes, warm by cProfile and cold by -X importtime."""

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
from bench.instances import LAMBDAS_OWN, WORKER
from bench.report import Table, markdown

CALLS = 2_000
STARTS = 5
LISTED = 14
"""Packages whose imports are listed by themselves."""
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
    found: Json = json.loads(done.stdout.splitlines()[-1])  # behind the log
    return found


def _imports(database: Database) -> dict[str, float]:
    """Milliseconds that each top-level package's own modules took to import until the first 201."""
    what = [str(OURS.trees.with_bytecode), OURS.module, OURS.attribute, "-", "1"]
    command = json.dumps({"do": "call", "event": operations.create()}) + "\n"
    done = _run(database, ["-X", "importtime", str(WORKER), *what], command)
    took: dict[str, float] = {}
    for own, name in re.findall(r"^import time:\s*(\d+) \|\s*\d+ \|\s*(\S+)$", done.stderr, re.MULTILINE):
        top = name.partition(".")[0]
        took[top] = took.get(top, 0.0) + int(own) / 1e3
    return took


def _run(database: Database, arguments: list[str], said: str) -> subprocess.CompletedProcess[str]:
    environment = {**LAMBDAS_OWN, **OURS.variables, "DATABASE_URL": database.url(OURS.role)}
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-I", "-S", "-B", *arguments],
        input=said,
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
        {part for found in calls.values() for part in found}, key=lambda part: -calls["create"].get(part, 0)
    )
    total = {operation: sum(found.values()) for operation, found in calls.items()}
    rows = [
        [
            part,
            *(
                f"{found.get(part, 0):.0f} ({found.get(part, 0) / total[operation]:.0%})"
                for operation, found in calls.items()
            ),
        ]
        for part in parts
    ]
    notes = [f"cProfile over {CALLS:,} calls of each; it slows Python's own code down and not the database."]
    return Table("Profile: microseconds of a warm call", ["where", *calls], rows, notes)


def _cold(starts: list[dict[str, float]]) -> Table:
    """The fastest of the starts: what else ran on the machine only adds to one."""
    fastest = min(starts, key=lambda took: sum(took.values()))
    total = sum(fastest.values())
    most = sorted(fastest.items(), key=lambda each: -each[1])
    rows = [[name, f"{took:.1f}", f"{took / total:.0%}"] for name, took in most[:LISTED]]
    rest = sum(took for _, took in most[LISTED:])
    rows += [
        [f"{len(most) - LISTED} others", f"{rest:.1f}", f"{rest / total:.0%}"],
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
