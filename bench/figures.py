"""Statistics of measured times."""

import math
from collections.abc import Sequence
from statistics import median
from typing import Any

Json = dict[str, Any]


def percentile(values: Sequence[float], percent: float) -> float:
    """The nearest rank: the smallest value that at least `percent` of them do not exceed."""
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


def summary(nanoseconds: Sequence[float]) -> Json:
    """Median and 99th percentile in milliseconds, and the number of values."""
    return {
        "median_ms": median(nanoseconds) / 1e6,
        "p99_ms": percentile(nanoseconds, 99) / 1e6,
        "calls": len(nanoseconds),
    }
