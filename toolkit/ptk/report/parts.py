"""What a report is made of: sections of figures, each with its table and its caveats, and examples. Plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = [
    "Boxes",
    "Caveat",
    "Cell",
    "Chart",
    "Examples",
    "Figure",
    "Flow",
    "Heat",
    "HeatCell",
    "Histograms",
    "Lines",
    "Mark",
    "Points",
    "Report",
    "Section",
    "Stack",
    "Stacks",
    "Table",
]

Cell = str | int | float | bool | None
Weight = Literal["note", "doubt", "alarm"]


@dataclass(frozen=True, slots=True)
class Caveat:
    """What a reader must know before believing a figure, and by which rule it was said."""

    rule: str
    text: str
    weight: Weight = "note"


@dataclass(frozen=True, slots=True)
class Table:
    """Rows below a figure."""

    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True, slots=True)
class Mark:
    """A value with its interval."""

    label: str
    value: float
    low: float | None
    high: float | None
    series: str = ""


@dataclass(frozen=True, slots=True)
class Points:
    """Values with intervals, one below the other, as bars or as dots; `reference` is the line that means nothing."""

    marks: tuple[Mark, ...]
    axis: str
    reference: float | None = None
    reference_name: str = ""
    limits: tuple[float, float] | None = None
    bars: bool = False


@dataclass(frozen=True, slots=True)
class Stack:
    """Shares that add up to 1, by the names of the chart's parts."""

    label: str
    shares: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Stacks:
    """Stacked shares, one below the other."""

    parts: tuple[str, ...]
    stacks: tuple[Stack, ...]
    axis: str


@dataclass(frozen=True, slots=True)
class HeatCell:
    """A value of a grid; one whose interval holds 0 is shown as doubtful."""

    value: float
    doubtful: bool


@dataclass(frozen=True, slots=True)
class Heat:
    """A grid of values around 0."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: tuple[tuple[HeatCell | None, ...], ...]
    axis: str


@dataclass(frozen=True, slots=True)
class Histograms:
    """Distributions over the same ranges: `shares` of each series by range; `edges` are one more than the ranges."""

    edges: tuple[float, ...]
    series: tuple[tuple[str, tuple[float, ...]], ...]
    axis: str
    reference: float | None = None
    capped: bool = False
    """Whether the last range holds all that lies beyond it."""


@dataclass(frozen=True, slots=True)
class Boxes:
    """Distributions by five numbers: the 5th percentile, quartiles and median, and the 95th percentile."""

    boxes: tuple[tuple[str, tuple[float, float, float, float, float]], ...]
    axis: str


@dataclass(frozen=True, slots=True)
class Lines:
    """Curves."""

    series: tuple[tuple[str, tuple[tuple[float, float], ...]], ...]
    across: str
    axis: str


@dataclass(frozen=True, slots=True)
class Flow:
    """Steps as boxes, and which takes from which. A step: name, operator, a line of counts, how many rows it set aside."""

    steps: tuple[tuple[str, str, str, int], ...]
    edges: tuple[tuple[str, str], ...]


Chart = Points | Stacks | Heat | Histograms | Boxes | Lines | Flow


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure with what it says in words, its table and its caveats. `name` is its place in the report and the name of its file."""

    name: str
    title: str
    says: str
    chart: Chart | None
    table: Table
    caveats: tuple[Caveat, ...] = ()
    made_of: str = ""
    """Which step's rows it shows."""


@dataclass(frozen=True, slots=True)
class Section:
    """Figures that belong together, and how to read them."""

    name: str
    title: str
    about: str
    figures: tuple[Figure, ...]


@dataclass(frozen=True, slots=True)
class Examples:
    """Some examples, as plain data for the page, and of how many they are."""

    items: tuple[Mapping[str, Any], ...]
    total: int
    unit: str
    how: str
    """How they were drawn, in words."""
    filters: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """What examples can be narrowed by, with the values that occur."""


@dataclass(frozen=True, slots=True)
class Report:
    """All of it. `took` holds what differs between runs that give the same: times, and who answered when; it is out of the digest."""

    title: str
    of: str
    """What it is a report of, in words."""
    findings: tuple[tuple[str, str], ...]
    """What the numbers say, each with the name of its figure."""
    caveats: tuple[Caveat, ...]
    run: Mapping[str, Any]
    """Spec, sources, licences, models, prompts, versions, unfinished steps: plain data."""
    sections: tuple[Section, ...]
    examples: Examples | None
    took: Mapping[str, Any] = field(default_factory=dict)

    def figures(self) -> tuple[Figure, ...]:
        return tuple(figure for section in self.sections for figure in section.figures)
