"""The text of a column that holds text or turns, as one expression, and the words of a text."""

from __future__ import annotations

import re

import polars as pl

__all__ = ["is_turns", "text_of", "texts_of", "words"]

_WORD = re.compile(r"\w+(?:['’]\w+)*")


def is_turns(dtype: pl.DataType | None) -> bool:
    """Return whether a column of that type holds lists of turns: structs with a text `content`."""
    if not isinstance(dtype, pl.List):
        return False
    inner = dtype.inner
    return isinstance(inner, pl.Struct) and any(field.name == "content" and field.dtype == pl.String for field in inner.fields)


def text_of(column: str, dtype: pl.DataType) -> pl.Expr:
    """Return the text of `column`: itself, or the contents of its turns joined by newlines. Null stays null, no turns are "".

    Raises TypeError for a column that holds neither text nor turns.
    """
    if is_turns(dtype):
        return pl.col(column).list.eval(pl.element().struct.field("content")).list.join("\n")
    if dtype == pl.String:
        return pl.col(column)
    if isinstance(dtype, (pl.Categorical, pl.Enum)) or dtype == pl.Null:
        return pl.col(column).cast(pl.String)
    raise TypeError(f"column '{column}' is {dtype}, neither text nor a list of turns with a `content`")


def texts_of(frame: pl.LazyFrame, columns: tuple[str, ...]) -> dict[str, pl.Expr]:
    """Return the text of each of some columns of `frame`. Raises TypeError as `text_of`, ValueError for a column that is not there."""
    schema = frame.collect_schema()
    for column in columns:
        if column not in schema:
            raise ValueError(
                f"there is no column '{column}'; the rows have {', '.join(name for name in schema if name[0] != '_')}"
            )
    return {column: text_of(column, schema[column]) for column in columns}


def words(text: str) -> list[str]:
    """Return the words of `text` in lower case."""
    return [word.lower() for word in _WORD.findall(text)]
