"""Few-shot tailoring, which trains nothing: solved cases out of records, drawn by seed, for a model to be shown."""

from __future__ import annotations

import polars as pl

from ptk.errors import PtkError
from ptk.llm.cases import Case
from ptk.operator import DETAIL, KEY, REJECT
from ptk.text import texts_of
from ptk_catalog.digest import row_id

__all__ = ["check_case_records", "draw_cases"]

_FIELDS = ("prompt", "persona", "preferred")
_NUMBER = "_number"


def check_case_records(frame: pl.LazyFrame) -> None:
    """Raise ValueError or TypeError where the rows are no records of solved cases."""
    texts_of(frame, _FIELDS)


def draw_cases(records: pl.DataFrame, count: int, seed: int) -> tuple[tuple[Case, ...], pl.DataFrame]:
    """Return so many cases, and the decision about the records: those without request or response make no case.

    The cases and their order are decided by seed and keys alone, in whatever order the records come. Raises PtkError where there
    are fewer.
    """
    told = records.select(KEY, *(text.alias(name) for name, text in texts_of(records.lazy(), _FIELDS).items()))
    lacking = pl.coalesce(
        pl.when(pl.col(name).fill_null("").str.strip_chars() == "").then(pl.lit(name)) for name in ("prompt", "preferred")
    )
    told = told.with_columns(
        pl.when(lacking.is_not_null()).then(pl.lit("empty_text")).alias(REJECT),
        pl.format("'{}' is empty", lacking).alias(DETAIL),
    )
    whole = told.filter(pl.col(REJECT).is_null())
    if whole.height < count:
        raise PtkError(f"there are {whole.height:,} records to draw from, and `cases` is {count}; write a smaller number")
    number = row_id({"_seed": pl.Int64(), KEY: told.schema[KEY]})
    drawn = (
        whole.lazy().with_columns(_seed=pl.lit(seed, pl.Int64)).with_columns(number.alias(_NUMBER)).sort(_NUMBER).head(count)
    )
    # A persona without words is nobody.
    persona = pl.when(pl.col("persona").str.strip_chars() != "").then(pl.col("persona"))
    rows = drawn.select("prompt", persona.alias("persona"), "preferred").collect()
    return tuple(Case(**row) for row in rows.iter_rows(named=True)), told.select(KEY, REJECT, DETAIL)
