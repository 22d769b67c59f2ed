"""The results of `make bench-scale` as tables and as a plot."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import report
from bench.report import Table
from bench.scale_requests import (
    ANY_PAGE,
    AT_OFFSET,
    CREATES,
    DEEP_BY_CURSOR,
    DEEP_BY_OFFSET,
    DEEP_PAGE,
    EMPTY,
    GETS,
    OPERATIONS,
    PAGE_1,
    UNSYNCED,
    Operation,
)

Json = dict[str, Any]
TARGET = 1.2


@dataclass
class Step:
    """The results at one number of orders."""

    orders: int
    shops: int
    of_the_huge: int
    """Orders of the huge shop."""
    deep_page: int
    """The huge shop's page that is compared with its first."""
    database_bytes: int
    loaded: int
    """Orders added since the previous step, in load_seconds."""
    load_seconds: float
    many: dict[str, Json] = field(default_factory=dict)
    """Each operation's times in the growing database."""
    few: dict[str, Json] = field(default_factory=dict)
    """Each operation's times in the empty database, measured in turn with them."""

    def against_empty(self, operation: Operation) -> float | None:
        return _ratio(self.many.get(operation.key), self.few.get(operation.key))

    def against_page_1(self, operation: Operation) -> float | None:
        return _ratio(self.many.get(operation.key), self.many.get(PAGE_1.key))

    def title(self, operation: Operation) -> str:
        return operation.title.replace(f"page {DEEP_PAGE:,}", f"page {self.deep_page:,}")


def _ratio(measured: Json | None, against: Json | None) -> float | None:
    return measured["median_ms"] / against["median_ms"] if measured and against else None


def tables(steps: Sequence[Step]) -> list[Table]:
    last = steps[-1]
    columns = [f"{step.orders:,}" for step in steps]
    return [
        Table(
            f"Scale: at {last.orders:,} orders",
            ["ratio of medians", "target", "measured", ""],
            list(_targets(last)),
            [
                f"{last.shops:,} shops, most of them with a few orders; the huge one has "
                f"{last.of_the_huge:,}. Gets and creates hardly ever meet the same order or small shop twice."
            ],
        ),
        Table(
            "Scale: as a multiple of the same in an empty database, by number of orders",
            ["operation", *columns],
            [
                [operation.title, *[_ratio_text(step.against_empty(operation)) for step in steps]]
                for operation in OPERATIONS
                if last.against_empty(operation)
            ],
        ),
        Table(
            "Scale: milliseconds, median and p99, by number of orders",
            ["operation", *columns],
            [
                [last.title(operation), *[_times(step.many.get(operation.key)) for step in steps]]
                for operation in OPERATIONS
                if operation.key in last.many
            ],
            _smaller_pages(steps),
        ),
        Table(
            "Scale: what was loaded",
            ["orders", *columns],
            [
                ["shops", *[f"{step.shops:,}" for step in steps]],
                ["orders of the huge shop", *[f"{step.of_the_huge:,}" for step in steps]],
                ["size of the database", *[f"{step.database_bytes / 1e9:.2f} GB" for step in steps]],
                ["orders added", *[f"{step.loaded:,}" for step in steps]],
                ["in", *[f"{step.load_seconds:.0f} s" for step in steps]],
            ],
            ["By COPY and in the order of time, with every index and constraint in place."],
        ),
    ]


def _targets(last: Step) -> Iterator[list[str]]:
    for operation in (*GETS, *CREATES, *UNSYNCED):
        yield _target(f"{operation.title}, against an empty table", last.against_empty(operation))
    yield _target(f"{last.title(DEEP_BY_CURSOR)}, against page 1", last.against_page_1(DEEP_BY_CURSOR))
    for operation in (ANY_PAGE, DEEP_BY_OFFSET, AT_OFFSET):
        if ratio := last.against_page_1(operation):
            yield [f"{last.title(operation)}, against page 1", "", report.ratio(ratio), ""]


def _target(what: str, ratio: float | None) -> list[str]:
    met = "" if ratio is None else "met" if ratio <= TARGET else "NOT MET"
    return [what, f"at most {TARGET}x", _ratio_text(ratio), met]


def _smaller_pages(steps: Sequence[Step]) -> list[str]:
    smaller = [f"page {step.deep_page:,} at {step.orders:,}" for step in steps if step.deep_page < DEEP_PAGE]
    return (
        [f"The deepest whole page where there is no page {DEEP_PAGE:,}: {', '.join(smaller)}."]
        if smaller
        else []
    )


def _ratio_text(ratio: float | None) -> str:
    return "" if ratio is None else report.ratio(ratio)


def _times(times: Json | None) -> str:
    return report.milliseconds(times) if times else ""


def plot(steps: Sequence[Step], path: Path) -> None:
    """A line for each operation; its first point is the empty database."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    at = [EMPTY, *[step.orders for step in steps]]
    for operation in OPERATIONS:
        times = [steps[-1].few.get(operation.key), *[step.many.get(operation.key) for step in steps]]
        points = [(orders, took["median_ms"]) for orders, took in zip(at, times, strict=True) if took]
        if operation.is_drawn and points:
            axes.plot(*zip(*points, strict=True), marker="o", label=steps[-1].title(operation))
    axes.set(xscale="log", yscale="log", xlabel="orders in the database", ylabel="milliseconds, median")
    axes.set_xticks(at, ["empty", *[f"{orders:,}" for orders in at[1:]]])
    axes.set_xticks([], minor=True)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_title("How long a request takes among how many orders")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    figure.savefig(path, dpi=130)
