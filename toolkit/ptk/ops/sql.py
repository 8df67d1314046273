"""SQL expressions about one row: read, held to what a row can answer alone, and applied to frames.

Polars parses the SQL. Its expression tree is then walked, and only kinds of nodes and functions that are known to look at one row
are let through: what Polars may add later is refused, not misjudged.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson
import polars as pl
from polars.exceptions import ColumnNotFoundError, PolarsError

from ptk.operator import GROUP, MARKS, ROW
from ptk.params import suggestion
from ptk.text import is_turns, text_of

__all__ = ["RowExpression", "read_expression"]

_OURS = (*MARKS, ROW, GROUP)
_QUOTED = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"")
_OF_THE_CLOCK = re.compile(r"(?i)\b(?:now\s*\(|current_date\b|current_time\b|current_timestamp\b|localtime\b|localtimestamp\b)")
_SUBQUERY = re.compile(r"(?i)\bselect\b")
_GROUPS = {"StringExpr", "ListExpr", "ArrayExpr", "TemporalExpr", "StructExpr", "Sql", "Pow", "Trigonometry", "Cast"}
"""Groups of functions that are about one row, except those in `_OF_MANY_ROWS`."""
_OF_MANY_ROWS = {"ConcatVertical"}
_MEMBERS = {
    "Boolean": {
        *("IsNull", "IsNotNull", "Not", "IsNan", "IsNotNan", "IsFinite", "IsInfinite", "IsIn", "IsBetween", "IsClose"),
        *("AnyHorizontal", "AllHorizontal"),
    },
    "Bitwise": {"CountOnes", "CountZeros", "LeadingOnes", "LeadingZeros", "TrailingOnes", "TrailingZeros"},
}
_FUNCTIONS = {
    *("Abs", "Sign", "Ceil", "Floor", "Round", "RoundSF", "Truncate", "Exp", "Log", "Log1p", "Atan2", "Negate", "Clip"),
    *("Coalesce", "FillNull", "MaxHorizontal", "MinHorizontal", "SumHorizontal", "MeanHorizontal", "AsStruct"),
}


_ARITHMETIC = {"Plus", "Minus", "Multiply", "Divide", "TrueDivide", "FloorDivide", "Modulus"}
_ARITHMETIC_FUNCTIONS = {"Abs", "Negate", "Pow"}
_TO_64_BITS = orjson.loads(pl.col("x").cast(pl.Int64).meta.serialize(format="json"))["Cast"]


@dataclass(frozen=True, slots=True)
class RowExpression:
    """One SQL expression and the columns it names."""

    sql: str
    tree: Any
    columns: tuple[str, ...]

    def over(self, frame: pl.LazyFrame, name: str) -> pl.LazyFrame:
        """Return `frame` with the expression's value as column `name`.

        Text can be reached by one name whether it is in turns or not: `prompt_text` are the contents of `prompt`, unless a column
        has that name.
        Raises PolarsError for a column that is not there or has another type.
        """
        schema = frame.collect_schema()
        texts = {column: text for column in self.columns if (text := _as_text(column, schema)) is not None}
        for column in self.columns:
            if column not in schema and column not in texts:
                offered = [*schema, *(f"{turns}_text" for turns, dtype in schema.items() if is_turns(dtype))]
                known = [other for other in offered if other not in _OURS]
                quoted = f"; text is written in single quotes, as '{column}'" if f'"{column}"' in self.sql else ""
                raise ColumnNotFoundError(f"there is no column '{column}'{quoted or suggestion(column, known)}")
        given = frame.with_columns(text.alias(column) for column, text in texts.items()) if texts else frame
        # Not a plain select: a constant has to become a column as long as the frame.
        computed = _widened(self.tree, {**schema, **dict.fromkeys(texts, pl.String())})
        made = given.with_columns(_as_expression(computed).alias(name))
        return made.drop([column for column in texts if column != name])


def _widened(tree: Any, schema: Mapping[str, pl.DataType]) -> Any:
    """Return an expression's tree with whole numbers in 64 bits, with a sign, wherever they are reckoned with.

    Lengths are unsigned in Polars and results keep the width of what they were made of, so `LENGTH(a) - LENGTH(b)` would wrap
    around below zero, and 2 * 100 in 8 bits be -56.
    """
    if isinstance(tree, list):
        return [_widened(part, schema) for part in tree]
    if not isinstance(tree, dict):
        return tree
    whole = {name: _widened(part, schema) for name, part in tree.items()}
    match whole:
        case {"BinaryExpr": {"op": op, "left": left, "right": right} as content} if op in _ARITHMETIC:
            return {"BinaryExpr": {**content, "left": _in_64_bits(left, schema), "right": _in_64_bits(right, schema)}}
        case {"Function": {"function": function, "input": given} as content} if _is_arithmetic(function):
            return {"Function": {**content, "input": [_in_64_bits(part, schema) for part in given]}}
        case _:
            return whole


def _is_arithmetic(function: Any) -> bool:
    match function:
        case {"Sql": {"Binary": _}}:
            return True
        case _:
            return _name(function) in _ARITHMETIC_FUNCTIONS


def _in_64_bits(tree: Any, schema: Mapping[str, pl.DataType]) -> Any:
    if "Literal" in tree:
        return tree
    (dtype,) = pl.LazyFrame(schema=schema).select(_as_expression(tree).alias("x")).collect_schema().values()
    return {"Cast": {**_TO_64_BITS, "expr": tree}} if dtype.is_integer() and dtype not in (pl.Int64, pl.Int128) else tree


def _as_expression(tree: Any) -> pl.Expr:
    return pl.Expr.deserialize(io.BytesIO(orjson.dumps(tree)), format="json")


def _as_text(column: str, schema: Mapping[str, pl.DataType]) -> pl.Expr | None:
    turns = column.removesuffix("_text")
    if (
        column in schema
        or turns == column
        or turns not in schema
        or not (is_turns(schema[turns]) or schema[turns] == pl.String)
    ):
        return None
    return text_of(turns, schema[turns])


def read_expression(sql: str) -> RowExpression:
    """Return the expression that `sql` writes. Raises ValueError, with a sentence, for one that is not about a row alone."""
    bare = _QUOTED.sub(" ", sql)
    if _SUBQUERY.search(bare):
        raise ValueError(f"`{sql}` holds a query; an expression is about the columns of one row")
    if found := _OF_THE_CLOCK.search(bare):
        name = found.group().rstrip("( \t\n")
        raise ValueError(f"`{sql}` asks the clock ({name}), so its result would differ from run to run; write the date down")
    try:
        expression = pl.sql_expr(sql)
        tree = orjson.loads(expression.meta.serialize(format="json"))
    except (PolarsError, orjson.JSONDecodeError) as error:
        raise ValueError(f"`{sql}` is no SQL expression: {_first_line(error)}") from error
    columns: dict[str, None] = {}
    for kind, what in _walk(tree):
        if kind == "column":
            columns[what] = None
        elif kind == "pattern":
            _check_pattern(sql, what)
        else:
            raise ValueError(
                f"`{sql}` depends on which rows are seen together ({what}); an expression may look at one row alone, "
                "so that its result does not change with the other rows"
            )
    for column in columns:
        if column in _OURS:
            raise ValueError(f"`{sql}` names '{column}', which is ptk's own and no column of the rows")
    return RowExpression(sql, tree, tuple(columns))


def _walk(node: Any) -> Iterator[tuple[str, str]]:
    """Yield (`column`, name), (`pattern`, regular expression) and (`refused`, what it is) of a tree as Polars writes it down."""
    if not isinstance(node, dict) or len(node) != 1:
        yield "refused", _in_words(node if isinstance(node, str) else "an unknown part")
        return
    ((kind, content),) = node.items()
    if kind == "Column":
        yield "column", content
    elif kind == "Literal":
        return
    elif kind == "BinaryExpr":
        yield from _walk(content["left"])
        yield from _walk(content["right"])
    elif kind == "Ternary":
        for part in ("predicate", "truthy", "falsy"):
            yield from _walk(content[part])
    elif kind == "Cast":
        yield from _walk(content["expr"])
    elif kind == "Alias":
        yield from _walk(content[0])
    elif kind == "Eval" and content.get("variant") == "List":
        yield from _walk(content["expr"])  # what is evaluated within is about the items of one row's list
    elif kind == "Function":
        function = content["function"]
        if not _is_about_one_row(function):
            yield "refused", _in_words(_name(function))
        yield from (("pattern", pattern) for pattern in _patterns(content))
        for argument in content["input"]:
            yield from _walk(argument)
    else:
        yield "refused", _in_words(_name(content) if kind == "Agg" else kind)


def _is_about_one_row(function: Any) -> bool:
    if isinstance(function, str):
        return function in _FUNCTIONS
    ((group, member),) = function.items() if isinstance(function, dict) and len(function) == 1 else (("", ""),)
    if group in _GROUPS:
        return _name(member) not in _OF_MANY_ROWS
    if group in _MEMBERS:
        return _name(member) in _MEMBERS[group]
    return group in _FUNCTIONS


def _patterns(call: Mapping[str, Any]) -> Iterator[str]:
    """Yield the regular expression, written down as a constant, of a call of a function of text."""
    match call:
        case {
            "function": {
                "StringExpr": {"Contains": {"literal": False}} | {"Replace": {"literal": False}} | {"Find": {"literal": False}}
            },
            "input": [_, {"Literal": {"Scalar": {"String": str(pattern)}}}, *_],
        }:
            yield pattern


def _check_pattern(sql: str, pattern: str) -> None:
    try:
        pl.select(pl.lit("").str.contains(pattern))
    except PolarsError as error:
        raise ValueError(f"`{sql}`: '{pattern}' is no regular expression: {_first_line(error)}") from error


def _name(node: Any) -> str:
    """Return the name of a function or a kind of node, which may carry settings."""
    return str(next(iter(node), "")) if isinstance(node, dict) else str(node)


_WORDS = {
    "Mean": "an average",
    "Len": "a count of rows",
    "Count": "a count of rows",
    "NUnique": "a count of values",
    "Over": "a window function",
    "Explode": "UNNEST",
    "Selector": "COLUMNS",
    "Shift": "a neighbouring row",
    "Range": "a number of the row",
}


def _in_words(name: str) -> str:
    return _WORDS.get(name, name.upper() if name.isalpha() else name)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
