"""The targets, and whether the results meet them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from bench import cold, http
from bench.contenders import OURS
from bench.report import Table

Json = dict[str, Any]
Sections = Mapping[str, Json]


@dataclass(frozen=True)
class Target:
    what: str
    section: str
    measured: Callable[[Json], float | None]
    """From the section's results; None when this run did not measure it."""
    limit: float
    unit: str = "x"
    at_least: bool = False

    def row(self, results: Sections) -> list[str] | None:
        section = results.get(self.section)
        value = self.measured(section) if section else None
        if value is None:
            return None
        met = value >= self.limit if self.at_least else value <= self.limit
        bound = f"at {'least' if self.at_least else 'most'} {self.limit:g}{self.unit}"
        return [
            self.what,
            bound,
            f"{value:{'.2f' if self.unit else 'g'}}{self.unit}",
            "met" if met else "NOT MET",
        ]


def _warm(contender: str, operation: str) -> Callable[[Json], float | None]:
    def ratio(results: Json) -> float | None:
        measured: Json | None = results["contenders"].get(contender)
        return measured["operations"][operation]["ratio"] if measured else None

    return ratio


def _trips(operation: str) -> Callable[[Json], float]:
    return lambda results: float(results["contenders"][OURS.key]["operations"][operation]["trips"])


def _first_trips(results: Json) -> float:
    return float(results["contenders"][OURS.key]["first_create"]["trips"])


def _warm_peak(results: Json) -> float:
    return float(results["contenders"][OURS.key]["peak_bytes"]) / 1e6


def _first_peak(results: Json) -> float:
    return float(results["starts"][f"{OURS.key} {cold.WITH}"]["peak_bytes"]) / 1e6


def _growth(results: Json) -> float | None:
    grown: int | None = results["growth"]["grown_bytes"]
    return None if grown is None else grown / 1e6


TARGETS = (
    Target("warm create, against the floor", "warm", _warm("ours", "create"), 1.6),
    Target("warm get, against the floor", "warm", _warm("ours", "get"), 2.7),
    Target("warm list of 50, against the floor", "warm", _warm("ours", "list"), 1.3),
    Target("the same with DB_PREPARE=off: create", "warm", _warm("ours_unprepared", "create"), 1.8),
    Target("the same with DB_PREPARE=off: get", "warm", _warm("ours_unprepared", "get"), 4.3),
    Target("the same with DB_PREPARE=off: list of 50", "warm", _warm("ours_unprepared", "list"), 1.4),
    Target("cold start, against FastAPI's without bytecode", "cold", cold.against_fastapi, 0.24),
    Target("cold start, against the bare imports and a connect", "cold", cold.against_imports, 1.2),
    Target(
        "HTTP create, requests/s against FastAPI",
        "http",
        partial(http.against_fastapi, "create"),
        5,
        "x",
        True,
    ),
    Target(
        "HTTP get, requests/s against FastAPI", "http", partial(http.against_fastapi, "get"), 5, "x", True
    ),
    Target(
        "HTTP list of 50, requests/s against FastAPI",
        "http",
        partial(http.against_fastapi, "list"),
        9,
        "x",
        True,
    ),
    Target("round trips of a create", "trips", _trips("create"), 1, ""),
    Target("round trips of a get", "trips", _trips("get"), 1, ""),
    Target("round trips of a list", "trips", _trips("list"), 1, ""),
    Target("round trips of a process's first create", "trips", _first_trips, 2, ""),
    Target("peak memory of the handler, at its first 201", "cold", _first_peak, 62, " MB"),
    Target("peak memory of the handler, after all its calls", "warm", _warm_peak, 62, " MB"),
    Target("growth of its memory over the requests behind it", "warm", _growth, 0.5, " MB"),
)


def table(results: Sections) -> Table:
    rows = [row for target in TARGETS if (row := target.row(results))]
    return Table("Targets", ["what", "target", "measured", "met"], rows, texts=2)
