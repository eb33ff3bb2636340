"""Counters, histograms and gauges, kept in dictionaries until somebody reads them."""

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import TypeVar

Labels = tuple[tuple[str, str], ...]

DURATION_S = tuple(0.01 * 2**n for n in range(14))
"""Bucket bounds for seconds: those of the GenAI conventions, 0.01 doubling to 81.92."""

MAX_SERIES = 2_000
"""Label sets per meter; what is beyond is counted together."""

OVERFLOW: Labels = (("otel.metric.overflow", "true"),)


class Counter:
    """A sum that only grows, per label set. Keep labels few: never an account, a key or a path."""

    def __init__(self, name: str, unit: str, description: str) -> None:
        self.name = name
        self.unit = unit
        self.description = description
        self.values: dict[Labels, float] = {}

    def add(self, amount: float = 1, **labels: str) -> None:
        key = tuple(labels.items())
        values = self.values
        if key in values:
            values[key] += amount
        else:
            key = _bounded(values, key)
            values[key] = values.get(key, 0) + amount


@dataclass(slots=True)
class Row:
    """What a histogram holds for one label set. `counts` has one more entry than the bounds."""

    counts: list[int]
    sum: float = 0.0
    least: float = inf
    most: float = -inf


class Histogram:
    """Counts of values per bucket, per label set. A bucket holds what is at most its bound."""

    def __init__(self, name: str, unit: str, description: str, bounds: Sequence[float]) -> None:
        self.name = name
        self.unit = unit
        self.description = description
        self.bounds = tuple(bounds)
        self.rows: dict[Labels, Row] = {}

    def record(self, value: float, **labels: str) -> None:
        key = tuple(labels.items())
        row = self.rows.get(key)
        if row is None:
            key = _bounded(self.rows, key)
            row = self.rows.setdefault(key, Row([0] * (len(self.bounds) + 1)))
        row.counts[bisect_left(self.bounds, value)] += 1
        row.sum += value
        if value < row.least:
            row.least = value
        if value > row.most:
            row.most = value


class Gauge:
    """A value that is read when it is exported, from another thread."""

    def __init__(
        self, name: str, unit: str, description: str, read: Callable[[], float | None]
    ) -> None:
        self.name = name
        self.unit = unit
        self.description = description
        self.read = read


Meter = Counter | Histogram | Gauge
M = TypeVar("M", Counter, Histogram)

_meters: dict[str, Meter] = {}


def counter(name: str, unit: str, description: str) -> Counter:
    """Return the counter of this name; the first call makes it. `add(1, status="200")`."""
    return _once(Counter(name, unit, description))


def histogram(
    name: str, unit: str, description: str, bounds: Sequence[float] = DURATION_S
) -> Histogram:
    """Return the histogram of this name; the first call makes it. `record(0.25, status="200")`."""
    return _once(Histogram(name, unit, description, bounds))


def gauge(name: str, unit: str, description: str, read: Callable[[], float | None]) -> Gauge:
    """Export what `read` returns (None: nothing now); a later call of the same name replaces it."""
    made = Gauge(name, unit, description, read)
    if not isinstance(_meters.setdefault(name, made), Gauge):
        raise TypeError(f"meter {name} exists as another kind")
    _meters[name] = made
    return made


def meters() -> Mapping[str, Meter]:
    return dict(_meters)


def _once(made: M) -> M:
    found = _meters.setdefault(made.name, made)
    if not isinstance(found, type(made)):
        raise TypeError(f"meter {made.name} exists as another kind")
    return found


def _bounded(series: Mapping[Labels, object], key: Labels) -> Labels:
    return key if len(series) < MAX_SERIES else OVERFLOW
