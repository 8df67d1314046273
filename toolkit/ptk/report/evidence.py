"""What a report is made from: how rows came about, tables of measures, and the rows themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import polars as pl

__all__ = ["MEASURES", "Evidence", "MeasureTable", "base_of", "merged", "option_of"]

MEASURES = (
    "compare_groups",
    "compare_outputs",
    "control_length",
    "measure_accuracy",
    "measure_agreement",
    "measure_diversity",
    "measure_flips",
    "measure_position",
    "measure_preference",
    "measure_style",
    "measure_wins",
    "measure_words",
)
"""Operators whose rows are measures."""

_RECORDS = ("tailoring_records",)
_NUMBERS = ("value", "low", "high", "standard_error", "p_value", "p_adjusted", "n", "rank")
_TEXTS = ("name", "measure", "about", "side", "word")


@dataclass(frozen=True, slots=True)
class MeasureTable:
    """Rows of measures of one step, all cells of a matrix together; `by` are the columns that tell groups apart."""

    step: str
    operator: str
    by: tuple[str, ...]
    rows: tuple[Mapping[str, Any], ...]
    params: Mapping[str, Any] = field(default_factory=dict)
    source: str | None = None
    """The step whose rows were measured."""
    made_here: bool = False
    """Whether the report measured it, since no step did."""

    @classmethod
    def of(cls, step: str, operator: str, frame: pl.DataFrame, *, key: str = "name", **more: Any) -> MeasureTable:
        """Return the table of a frame with that key; every column that is no part of each table tells groups apart."""
        by = [name for name in frame.columns if name not in (*_NUMBERS, *_TEXTS, key)]
        shown = frame.with_columns(pl.col(by).cast(pl.String)) if by else frame
        return cls(step, operator, tuple(by), tuple(shown.iter_rows(named=True)), **more)


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that a report is made from. What it says of the making is as the catalog keeps it of a version."""

    name: str
    of: str
    lineage: Mapping[str, Any]
    """`spec`, `steps`, `sources`, `origins`, `licences`, `models`, `prompts`."""
    frames: Mapping[str, pl.LazyFrame]
    """Rows by step, of the steps that are at hand; those of all cells of a matrix under the step's own name."""
    axes: tuple[str, ...]
    """Columns that tell cells of matrices apart."""
    tables: tuple[MeasureTable, ...]
    versions: tuple[Mapping[str, Any], ...] = ()
    unfinished: tuple[str, ...] = ()
    unanswered: Mapping[str, int] = field(default_factory=dict)
    """Requests that a model did not answer, by step: the next run asks them again."""
    took: Mapping[str, Any] = field(default_factory=dict)
    """By step, what it took when it ran."""

    def steps_of(self, *operators: str) -> list[Mapping[str, Any]]:
        """Return the steps of some operators."""
        return [step for step in self.lineage["steps"] if step["operator"] in operators]

    def inputs(self) -> dict[str, set[str]]:
        """Return, for each step, which others it takes from; the cells of a matrix are one step."""
        found: dict[str, set[str]] = {}
        for step in self.lineage["steps"]:
            name = base_of(step["name"])
            found.setdefault(name, set()).update(base_of(source) for source in step["inputs"].values())
        return {name: sources - {name} for name, sources in found.items()}

    def last_rows(self) -> dict[str, pl.LazyFrame]:
        """Return rows with prompts, by step, that no other such step takes further.

        Records to learn from are none: they say again what their rows say, some of them with exchanged sides.
        """
        left_out = {base_of(table.step) for table in self.tables} | {base_of(step["name"]) for step in self.steps_of(*_RECORDS)}
        rows = {
            name: frame
            for name, frame in self.frames.items()
            if name not in left_out and name not in self._made_of(left_out) and "prompt" in frame.collect_schema()
        }
        taken = {source for name, sources in self.inputs().items() if name in rows for source in sources}
        return {name: frame for name, frame in rows.items() if name not in taken}

    def _made_of(self, sources: set[str]) -> set[str]:
        """Return the steps whose rows are those of some steps, through any number of steps between; rows are a step's first input."""
        found: set[str] = set()
        for step in self.lineage["steps"]:  # each comes after its inputs
            first = next(iter(step["inputs"].values()), None)
            if first is not None and base_of(first) in sources | found:
                found.add(base_of(step["name"]))
        return found - sources

    def answers(self, schema: pl.Schema) -> dict[str, str]:
        """Return the columns of `schema` that hold what models wrote for the prompts, each with what it was given."""
        found: dict[str, str] = {}
        for step in self.steps_of("generate_responses"):
            into, samples = option_of(step, "into"), option_of(step, "samples") or 1
            persona = option_of(step, "persona")
            names = [into] if samples == 1 else [f"{into}_{number}" for number in range(1, samples + 1)]
            given = f"given {persona}" if persona else "given no persona"
            found |= {name: given for name in names if name in schema}
        return found


def base_of(step: str) -> str:
    """Return the name of a step without its cell: of `judged[small,1]` it is `judged`."""
    return step.partition("[")[0]


def merged(lineages: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return several lineages as one, each step and each source once, in the order in which they come."""
    made: dict[str, Any] = {"spec": {"name": "", "text": ""}}
    parts: tuple[tuple[str, Callable[[Any], Any]], ...] = (
        ("steps", lambda item: item["name"]),
        ("sources", repr),
        ("origins", repr),
        ("licences", repr),
        ("models", repr),
        ("prompts", lambda item: (item["step"], item["option"], item["name"])),
    )
    for name, _ in parts:
        made[name] = []
    seen: set[tuple[str, Any]] = set()
    for lineage in lineages:
        made["spec"] = made["spec"] if made["spec"]["text"] else lineage["spec"]
        for name, identity in parts:
            for item in lineage[name]:
                if (name, key := identity(item)) not in seen:
                    seen.add((name, key))
                    made[name].append(item)
    return made


def option_of(step: Mapping[str, Any], name: str) -> Any:
    """Return an option of a step: as it is written, else the operator's default; None where neither is known."""
    written = step.get("params")
    if isinstance(written, Mapping) and name in written:
        return written[name]
    from ptk.operator import find_operator

    try:
        field_ = find_operator(step["operator"]).params.model_fields.get(name)
    except KeyError:
        return None
    return None if field_ is None or field_.is_required() else field_.default
