"""Examples of a report: prompts with both personas, every model's answer and every verdict, as plain data for the page."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import orjson
import polars as pl

from ptk.report.evidence import Evidence, option_of
from ptk.report.parts import Examples
from ptk.text import is_turns

__all__ = ["examples_of"]

_LONGEST = 4_000
"""The most characters of a text that is shown."""
_MOST_BYTES = 8_000_000
"""Where the examples take more than this, fewer are shown."""
_FEW = 12
"""The most different values of a column that examples can be narrowed by."""
_LONGEST_VALUE = 40
_IDS = ("pair_id", "item_id")
_SIDES = ("chosen", "rejected")


def examples_of(evidence: Evidence, wanted: int, seed: int) -> Examples | None:
    """Return `wanted` examples, drawn by a hash of their ids: the same rows, the same examples. None where no rows have prompts."""
    frames = evidence.last_rows()
    if not frames or wanted == 0:
        return None
    shapes = {step: _Shape(evidence, frame.collect_schema()) for step, frame in frames.items()}
    # Rows where something was said of a pair, rather than rows that were merely kept.
    told = {step: shape for step, shape in shapes.items() if shape.answers or shape.verdicts}
    shapes = told or {step: shape for step, shape in shapes.items() if shape.personas} or shapes
    ids: set[str] = set()
    identity = next((name for name in _IDS if all(name in shape.schema for shape in shapes.values())), "prompt")
    for step in shapes:
        found = frames[step].select(_id(identity, shapes[step].schema)).unique().drop_nulls().collect(engine="streaming")
        ids.update(found["_id"].to_list())
    drawn = sorted(ids, key=lambda one: hashlib.sha256(f"{seed}\0{one}".encode()).digest())[:wanted]
    cells: dict[str, list[dict[str, Any]]] = {}
    for step, shape in shapes.items():
        rows = frames[step].with_columns(_id(identity, shape.schema)).filter(pl.col("_id").is_in(drawn))
        collected = rows.select("_id", *shape.columns()).collect(engine="streaming")
        for row in sorted(collected.iter_rows(named=True), key=shape.order):
            cells.setdefault(row["_id"], []).append(shape.cell(row, step))
    items: list[dict[str, Any]] = []
    size = 0
    for one in drawn:
        item = _item(one, cells.get(one, []), several=len(shapes) > 1)
        size += len(orjson.dumps(item))
        if size > _MOST_BYTES and items:
            break
        items.append(item)
    unit = "pairs" if identity == "pair_id" else "prompts"
    how = f"drawn by a hash of their ids, seed {seed}"
    if len(items) < len(drawn):
        how += f"; {len(drawn)} were asked for, and more would make the page too large"
    return Examples(tuple(items), len(ids), unit, how, _filters(items))


def _id(identity: str, schema: pl.Schema) -> pl.Expr:
    column = pl.col(identity)
    if is_turns(schema[identity]):
        column = column.list.eval(pl.element().struct.field("content")).list.join("\n")
    return column.cast(pl.String).alias("_id")


class _Shape:
    """Which columns of rows hold what."""

    def __init__(self, evidence: Evidence, schema: pl.Schema) -> None:
        self.schema = schema
        self.axes = [axis for axis in evidence.axes if axis in schema]
        self.answers = evidence.answers(schema)
        self.personas = [
            name
            for name, dtype in schema.items()
            if name.endswith("persona") and dtype == pl.String and name != "preferred_persona"
        ]
        self.verdicts: dict[str, str] = {}
        self.named: dict[str, dict[str, str]] = {}
        """What `first` and `second` are in a column of verdicts."""
        for step in evidence.steps_of("judge_personas"):
            for side in _SIDES:
                column = f"{option_of(step, f'{side}_persona')}_right"
                self.verdicts |= {column: "judge found its response"} if column in schema else {}
        for step in evidence.steps_of("judge_responses"):
            into = str(option_of(step, "into"))
            rubric = option_of(step, "rubric")
            rubric = rubric if isinstance(rubric, str) else getattr(rubric, "written", "")
            first, second = str(option_of(step, "first")), str(option_of(step, "second"))
            self.verdicts |= {into: f"{rubric}: {first} or {second}"} if into in schema else {}
            self.named[into] = {"first": first, "second": second}
        if "preferred_persona" in schema:
            self.verdicts["preferred_persona"] = "preferred persona"
        self.flags = [name for name, dtype in schema.items() if dtype == pl.List(pl.String) and name.endswith("flags")]
        taken = {*self.axes, *self.answers, *self.personas, *self.verdicts, *self.flags, *_IDS, "prompt", *_SIDES}
        self.facts = [
            name
            for name, dtype in schema.items()
            if name not in taken and dtype in (pl.String, pl.Boolean) and not name.endswith(("_id", "_flipped"))
        ]

    def columns(self) -> list[str]:
        verdicts = [
            name
            for column in self.verdicts
            for name in (column, f"{column.removesuffix('_right')}_margin", f"{column.removesuffix('_right')}_flipped")
            if name in self.schema
        ]
        sides = [side for side in _SIDES if side in self.schema]
        wanted = ["prompt", *sides, *self.axes, *self.answers, *self.personas, *verdicts, *self.flags, *self.facts]
        return list(dict.fromkeys(wanted))

    def order(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        return (*(str(row[axis]) for axis in self.axes), *(str(row[name]) for name in (*self.personas, *self.answers)))

    def cell(self, row: Mapping[str, Any], step: str) -> dict[str, Any]:
        """Return a row as plain data: what it is of, and what was said in it."""
        return {
            "step": step,
            "of": {axis: str(row[axis]) for axis in self.axes},
            "prompt": _turns(row["prompt"]),
            "pair": {side: _turns(row[side]) for side in _SIDES if side in row},
            "personas": {name: _cut(row[name]) for name in self.personas if row[name] is not None},
            "answers": [
                {"name": name, "given": given, "text": _text(row[name])}
                for name, given in self.answers.items()
                if row[name] is not None
            ],
            "verdicts": [self._verdict(row, name, what) for name, what in self.verdicts.items() if row[name] is not None],
            "flags": sorted({flag for name in self.flags for flag in row[name] or ()}),
            "facts": {
                name: str(row[name]) for name in self.facts if row[name] is not None and len(str(row[name])) <= _LONGEST_VALUE
            },
        }

    def _verdict(self, row: Mapping[str, Any], name: str, what: str) -> dict[str, Any]:
        stem = name.removesuffix("_right")
        margin = row.get(f"{stem}_margin")
        value = row[name]
        shown = self.named.get(name, {}).get(str(value), str(value))
        if isinstance(value, bool):
            shown = "right" if value else "wrong"
        return {
            "name": name,
            "what": what,
            "verdict": shown,
            "margin": None if margin is None else round(margin, 3),
            "flipped": row.get(f"{stem}_flipped"),
        }


def _item(one: str, cells: Sequence[dict[str, Any]], *, several: bool) -> dict[str, Any]:
    """Return an example: what is the same in all of its cells once, and the rest in each of them."""
    item: dict[str, Any] = {"id": one, "cells": [dict(cell) for cell in cells]}
    item["personas"] = _shared(item["cells"])
    for name in ("prompt", "pair", "facts"):
        values = [cell[name] for cell in cells]
        if values and all(value == values[0] for value in values):
            item[name] = values[0]
            for cell in item["cells"]:
                del cell[name]
        elif values and name == "prompt":
            item[name] = values[0]
    for cell in item["cells"]:
        if not several:
            del cell["step"]
        for name in ("personas", "answers", "verdicts", "flags", "facts", "pair", "of"):
            if name in cell and not cell[name]:
                del cell[name]
    # Rows in which nothing was said beside the pair itself have nothing to show once more.
    item["cells"] = [cell for cell in item["cells"] if set(cell) - {"step", "of", "prompt"}]
    return item


def _shared(cells: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Take the personas that are the same wherever they stand out of the cells, and return them."""
    found: dict[str, set[str]] = {}
    for cell in cells:
        for name, text in cell["personas"].items():
            found.setdefault(name, set()).add(text)
    shared = {name: next(iter(texts)) for name, texts in found.items() if len(texts) == 1}
    for cell in cells:
        cell["personas"] = {name: text for name, text in cell["personas"].items() if name not in shared}
    return shared


def _turns(value: Any) -> list[list[str]]:
    if isinstance(value, list):
        return [[str(turn.get("role", "")), _cut(turn.get("content", ""))] for turn in value if isinstance(turn, dict)]
    return [["", _cut(value)]]


def _text(value: Any) -> str:
    return "\n".join(text for _, text in _turns(value))


def _cut(value: Any) -> str:
    text = "" if value is None else str(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} … ({len(text) - _LONGEST:,} more characters)"


def _filters(items: Sequence[Mapping[str, Any]]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    values: dict[str, set[str]] = {}
    for item in items:
        for name, value in _narrowing(item):
            values.setdefault(name, set()).add(value)
    return tuple((name, tuple(sorted(found))) for name, found in values.items() if 1 < len(found) <= _FEW)


def _narrowing(item: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for part in (item, *item["cells"]):
        yield from part.get("facts", {}).items()
        yield from part.get("of", {}).items()
        for verdict in part.get("verdicts", ()):
            yield verdict["name"], verdict["verdict"]
        for flag in part.get("flags", ()):
            yield "flag", flag
