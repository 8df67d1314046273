"""Conditions on rows: a filter that Polars applies, and which parts provably hold no row that meets it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
import polars as pl

from ptk_catalog.digest import plain_type
from ptk_catalog.errors import BadData
from ptk_catalog.manifest import Manifest

__all__ = ["Condition", "Where", "matching_parts", "parse_where"]

Where = pl.Expr | Sequence[tuple[str, str, Any]]
"""Which rows: a Polars expression, or conditions (column, operator, value) that must all hold; operators are
`==`, `!=`, `<`, `<=`, `>`, `>=` and `in`."""

_OPERATORS = ("==", "!=", "<", "<=", ">", ">=", "in")
_OF_POLARS = {"Eq": "==", "Lt": "<", "LtEq": "<=", "Gt": ">", "GtEq": ">="}
_MIRRORED = {"==": "==", "<": ">", "<=": ">=", ">": "<", ">=": "<="}


@dataclass(frozen=True, slots=True)
class Condition:
    """A comparison of a column with a value, or for `in` with several."""

    column: str
    operator: str
    value: Any

    def expression(self) -> pl.Expr:
        column = pl.col(self.column)
        if self.operator == "in":
            return column.is_in(list(self.value))
        compared: pl.Expr = {
            "==": column.__eq__,
            "!=": column.__ne__,
            "<": column.__lt__,
            "<=": column.__le__,
            ">": column.__gt__,
            ">=": column.__ge__,
        }[self.operator](self.value)
        return compared


def parse_where(where: Where, columns: Iterable[str]) -> tuple[pl.Expr, list[Condition]]:
    """Return the filter, and those comparisons in it that every row that passes must meet. Raises BadData."""
    known = list(columns)
    if isinstance(where, pl.Expr):
        found = where
        conditions = list(_comparisons(where))
    else:
        conditions = [_condition(item) for item in where]
        if not conditions:
            raise BadData("`where` has no condition; leave it out to get all rows")
        found = pl.all_horizontal([condition.expression() for condition in conditions])
    for name in found.meta.root_names():
        if name not in known:
            raise BadData(f"`where` names '{name}', and there is no such column; there is {', '.join(known)}")
    return found, conditions


def _condition(item: Any) -> Condition:
    if not isinstance(item, tuple) or len(item) != 3:
        raise BadData(f"{item!r} is no condition; write (column, operator, value), such as ('score', '>', 0.5)")
    condition = Condition(*item)
    if condition.operator not in _OPERATORS:
        raise BadData(f"'{condition.operator}' is no operator of a condition; there is {', '.join(_OPERATORS)}")
    if condition.value is None:
        raise BadData(f"nothing compares with None; use pl.col('{condition.column}').is_null()")
    if condition.operator == "in" and (isinstance(condition.value, str) or not isinstance(condition.value, Iterable)):
        raise BadData("`in` takes a list of values")
    return condition


def _comparisons(expression: pl.Expr) -> Iterator[Condition]:
    """Yield the plain comparisons that are joined by `and`; what is not recognised is left out, and prunes nothing."""
    try:
        tree = orjson.loads(expression.meta.serialize(format="json"))
    except (pl.exceptions.PolarsError, orjson.JSONDecodeError, TypeError):
        return
    waiting = [tree]
    while waiting:
        binary = waiting.pop().get("BinaryExpr")
        if not isinstance(binary, dict):
            continue
        left, operator, right = binary["left"], binary["op"], binary["right"]
        if operator in ("And", "LogicalAnd"):
            waiting += [left, right]
        elif operator in _OF_POLARS:
            if "Column" in left and (value := _literal(right)) is not None:
                yield Condition(left["Column"], _OF_POLARS[operator], value)
            elif "Column" in right and (value := _literal(left)) is not None:
                yield Condition(right["Column"], _MIRRORED[_OF_POLARS[operator]], value)


def _literal(node: Any) -> Any:
    """Return a whole number, a number, a truth value or a text that a literal stands for; None for others."""
    literal = node.get("Literal")
    value = literal.get("Dyn") or literal.get("Scalar") if isinstance(literal, dict) else None
    if not isinstance(value, dict) or len(value) != 1:
        return None
    ((kind, content),) = value.items()
    wanted = {"Int": int, "Float": float, "String": str, "Boolean": bool}.get(kind)
    return content if wanted is not None and isinstance(content, wanted) else None


def matching_parts(manifest: Manifest, conditions: Iterable[Condition]) -> list[int]:
    """Return the numbers of the parts in which a row may meet all conditions, as far as their statistics tell."""
    count = len(manifest.groups[0].parts)
    may = [True] * count
    types = {column.name: column.type for column in manifest.columns}
    for condition in conditions:
        for group in manifest.groups:
            if condition.column not in group.columns:
                continue
            told = [part.statistics.get(condition.column) for part in group.parts]
            rows = [part.rows for part in group.parts]
            found = _may_match(condition, types[condition.column], told, rows)
            may = [before and now for before, now in zip(may, found, strict=True)]
    return [number for number, wanted in enumerate(may) if wanted]


def _may_match(condition: Condition, type_: str, told: Sequence[dict[str, Any] | None], rows: Sequence[int]) -> list[bool]:
    dtype = plain_type(type_)
    values = list(condition.value) if condition.operator == "in" else [condition.value]
    if dtype is None or condition.operator == "!=" or any(isinstance(value, float) and math.isnan(value) for value in values):
        return [True] * len(told)
    # Polars compares the bounds as it compares the values: with the column's own type, and its rules for the literal.
    low, high = pl.col("low"), pl.col("high")

    def test(value: Any) -> pl.Expr:
        if condition.operator in ("==", "in"):
            found: pl.Expr = (low <= value) & (high >= value)
            return found
        return Condition("low" if condition.operator in ("<", "<=") else "high", condition.operator, value).expression()

    bounds = [item or {} for item in told]
    try:
        frame = pl.DataFrame(
            {"low": [item.get("min") for item in bounds], "high": [item.get("max") for item in bounds]},
            schema={"low": dtype, "high": dtype},
        )
        found = frame.select(pl.any_horizontal([test(value) for value in values] or [pl.lit(False)])).to_series().to_list()
    except (pl.exceptions.PolarsError, TypeError, OverflowError):
        return [True] * len(told)
    matching = []
    for item, hit, count in zip(bounds, found, rows, strict=True):
        if dtype.is_float():
            # A bound that JSON can't hold (an infinity) is null, and NaN counts as greater than every number.
            unknown = item.get("min") is None or item.get("max") is None
            unknown = unknown or (condition.operator in (">", ">=") and item.get("nans") != 0)
        else:
            unknown = item.get("min") is None and item.get("nulls") != count
        matching.append(unknown or bool(hit))
    return matching
