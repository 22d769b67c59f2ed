"""Plots of the results."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

Series = Mapping[str, Sequence[float]]
"""One value for each group, by the contender's name."""
COLOURS = ("#0b7a75", "#7fc8c2", "#8a8a8a", "#d98e04", "#7a5195", "#c8443c", "#4f6d9a")


def grouped_bars(
    path: Path, title: str, axis: str, groups: Sequence[str], series: Series, label: str, log: bool = True
) -> None:
    figure, axes = _figure(title, wide=max(8.0, 0.42 * len(groups) * len(series) + 2))
    width = 0.8 / len(series)
    for number, (name, values) in enumerate(series.items()):
        places = [group + (number - (len(series) - 1) / 2) * width for group in range(len(groups))]
        bars = axes.bar(places, values, width, label=name, color=COLOURS[number % len(COLOURS)])
        shown = [label.format(value) if value else "" for value in values]  # 0: there is no such bar
        axes.bar_label(bars, shown, fontsize=7, padding=1)
    axes.set_xticks(range(len(groups)), [fill(group, 13) for group in groups], fontsize=9)
    axes.set_ylabel(axis)
    if log:
        axes.set_yscale("log")
    axes.margins(y=0.12)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    _save(figure, path)


def lines(
    path: Path, title: str, across: str, axis: str, panels: Mapping[str, Series], at: Sequence[float]
) -> None:
    """A panel for each operation, side by side, with a line for each contender."""
    figure, all_axes = _figure(title, wide=4.2 * len(panels) + 2, panels=len(panels))
    for axes, (name, series) in zip(all_axes, panels.items(), strict=True):
        for number, (contender, values) in enumerate(series.items()):
            axes.plot(at, values, marker="o", label=contender, color=COLOURS[number % len(COLOURS)])
        axes.set_title(name, fontsize=10)
        axes.set_xlabel(across)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    all_axes[0].set_ylabel(axis)
    all_axes[-1].legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    _save(figure, path)


def _figure(title: str, wide: float, panels: int = 1) -> tuple[Any, Any]:
    # Imported here: it takes half a second, and some sections have no plot.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(wide, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=12)
    return figure, figure.subplots(1, panels)


def _save(figure: Any, path: Path) -> None:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
