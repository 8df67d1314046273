"""Rejects rows whose text overlaps with that of other rows, such as those of a test set."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import polars as pl
from pydantic import Field

from ptk.operator import DETAIL, KEY, REJECT, Stage, staged_operator
from ptk.ops.near_duplicates import shingle_lists
from ptk.params import COLUMN, Params
from ptk.text import texts_of

__all__ = ["Decontaminate", "decontaminate"]

_SHINGLE, _SHARED, _SIZE = "_shingle", "_shared", "_size"
_COUNTS = {_SHARED: pl.Int64(), _SIZE: pl.Int64()}


class Decontaminate(Params):
    """Settings of decontaminate."""

    on: Annotated[tuple[str, ...], COLUMN] = Field(min_length=1, description="Columns of `frame` whose texts are looked at.")
    against_on: tuple[str, ...] | None = Field(
        None, min_length=1, description="Columns of `against` whose texts may not occur; those in `on` where left out."
    )
    ngram: int = Field(13, ge=1, le=64, description="Words in the n-grams that are looked for.")
    most: float = Field(0.0, ge=0.0, lt=1.0, description="Largest share of a row's n-grams that may occur in `against`.")


@staged_operator(inputs=("frame", "against"), version=1)
def decontaminate(params: Decontaminate) -> tuple[Stage, ...]:
    """Reject rows of `frame` whose text shares n-grams of words with any row of `against`."""
    return (
        Stage("known", "rows", _known, ("against",)),
        Stage("decide", "rows", _decided, ("frame", "known")),
    )


def _known(against: pl.LazyFrame, params: Any) -> pl.LazyFrame:
    """Return the n-grams of `against`, each once in a part."""
    texts = texts_of(against, params.against_on or params.on)
    parts = [against.select(shingle_lists(text, params.ngram).alias(_SHINGLE)) for text in texts.values()]
    return pl.concat(parts).explode(_SHINGLE).drop_nulls().unique()


def _decided(frame: pl.LazyFrame, known: pl.LazyFrame, params: Any) -> pl.LazyFrame:
    columns = texts_of(frame, params.on)
    # Collected here, not in the function that is called for each batch: a query may not wait for another inside itself.
    values = known.collect(engine="streaming")[_SHINGLE]
    overlap = _overlap_with(values, params.ngram)
    counts = [text.map_batches(overlap, return_dtype=pl.Struct(_COUNTS), is_elementwise=True) for text in columns.values()]
    rows = frame.select(KEY, **{str(number): count for number, count in enumerate(counts)})
    sums = {
        name: pl.sum_horizontal(pl.col(str(number)).struct.field(name) for number in range(len(counts))) for name in _COUNTS
    }
    contaminated = pl.col(_SHARED) > params.most * pl.col(_SIZE)
    words = f"{{}} of {{}} {params.ngram}-grams of {', '.join(params.on)} occur in the rows to keep clear of"
    return rows.select(KEY, **sums).select(
        KEY,
        pl.when(contaminated).then(pl.lit("contaminated")).alias(REJECT),
        pl.when(contaminated).then(pl.format(words, _SHARED, _SIZE)).alias(DETAIL),
    )


def _overlap_with(values: pl.Series, ngram: int) -> Callable[[pl.Series], pl.Series]:
    """Return the function that counts in texts the n-grams that are among `values`, and all."""
    if values.is_empty():
        return lambda texts: pl.DataFrame(
            {name: pl.repeat(0, len(texts), dtype=pl.Int64, eager=True) for name in _COUNTS}
        ).to_struct()
    from ptk_kernels.sets import Members

    members = Members(values.to_numpy())

    def overlap(texts: pl.Series) -> pl.Series:
        shared, size = members.overlap(texts, ngram)
        return pl.DataFrame({_SHARED: shared, _SIZE: size}, schema=_COUNTS).to_struct()

    return overlap
