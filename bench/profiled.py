"""Profiles each operation of the built zip, in a bare interpreter as worker.py.

`python -I -S -B profiled.py <folder> <calls>`, with the events as JSON on standard input.
"""

import cProfile
import importlib
import json
import pstats
import sys
from typing import Any

Json = dict[str, Any]


def main(folder: str, calls: int) -> None:
    sys.path.insert(0, folder)
    handler = importlib.import_module("app").app
    profiles = {}
    for operation, event in json.load(sys.stdin).items():
        text = json.dumps(event)
        for _ in range(20):
            handler(json.loads(text), None)
        profile = cProfile.Profile()
        for _ in range(calls):
            parsed = json.loads(text)
            profile.enable()
            handler(parsed, None)
            profile.disable()
        profiles[operation] = _by_part(profile, folder, calls)
    print(json.dumps(profiles))


def _by_part(profile: cProfile.Profile, folder: str, calls: int) -> dict[str, float]:
    """Microseconds of a call by part of the program."""
    parts: dict[str, float] = {}
    for (file, _, function), (_, _, own, *_) in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        part = _part(file, function, folder)
        parts[part] = parts.get(part, 0.0) + own / calls * 1e6
    return parts


def _part(file: str, function: str, folder: str) -> str:
    if "'execute' of 'psycopg2" in function:
        return "the database: in psycopg2's execute"
    for package, part in (
        ("psycopg2", "psycopg2, besides"),
        ("pydantic", "pydantic"),
        ("uuid_utils", "uuid-utils"),
    ):
        if package in function or f"{folder}/{package}" in file:
            return part
    if file.startswith(f"{folder}/chalice/"):
        return "Chalice"
    if file.startswith(folder):
        return "this project"
    return "the standard library and built-ins"


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
