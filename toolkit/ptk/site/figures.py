"""Small figures: where the bars of a histogram and of counts stand; templates draw them as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Bars", "Histogram", "bars", "histogram"]

WIDTH = 320
BASE = 66
LINE = 22

_NAME = 26
"""The most characters of a name; all of it is the bar's tooltip."""


@dataclass(frozen=True, slots=True)
class Histogram:
    """Bars for equal ranges: `bars` holds x, y, width, height and count of each."""

    bars: tuple[tuple[float, float, float, float, int], ...]
    low: str
    high: str
    what: str
    """The figure in words, for who does not see it."""


@dataclass(frozen=True, slots=True)
class Bars:
    """A bar for each name: `bars` holds name, shortened name, y, width and count of each."""

    bars: tuple[tuple[str, str, int, float, int], ...]
    what: str

    @property
    def height(self) -> int:
        return len(self.bars) * LINE + 2


def histogram(counts: Sequence[int], low: str, high: str, what: str) -> Histogram:
    """Return bars for equal ranges from `low` to `high`."""
    most = max([*counts, 1])
    width = WIDTH / max(1, len(counts))
    drawn = []
    for number, count in enumerate(counts):
        height = 0.0 if count == 0 else max(1.5, count / most * (BASE - 4))
        drawn.append(
            (round(number * width + 0.5, 1), round(BASE - height, 1), round(max(1.0, width - 1), 1), round(height, 1), count)
        )
    return Histogram(tuple(drawn), low, high, what)


def bars(counts: Sequence[tuple[str, int]], what: str) -> Bars:
    """Return a bar for each name."""
    most = max([count for _, count in counts] + [1])
    drawn = []
    for number, (name, count) in enumerate(counts):
        shown = name if len(name) <= _NAME else f"{name[: _NAME - 1]}…"
        drawn.append((name, shown, number * LINE, round(max(1.5, count / most * 120), 1), count))
    return Bars(tuple(drawn), what)
