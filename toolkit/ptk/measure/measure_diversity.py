"""How many different personas there are in a set of them, and how much of what could be said of users they have said."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import polars as pl
from pydantic import Field

from ptk.measure.bootstrap import Estimate
from ptk.measure.table import Grouped, Line, group_columns, table_of
from ptk.operator import reshape
from ptk.params import COLUMN
from ptk.text import texts_of
from ptk_catalog.digest import row_id

__all__ = ["MeasureDiversity", "diversity", "measure_diversity"]

_WORD = r"[\p{L}\p{N}]+(?:[-'’][\p{L}\p{N}]+)*"
_SIZES = (1, 2)


class MeasureDiversity(Grouped):
    """Settings of measure_diversity."""

    columns: Annotated[tuple[str, ...], COLUMN] = Field(
        ("chosen_persona", "rejected_persona"),
        min_length=1,
        description="Columns of texts; all of them together are told too, where they are several.",
    )
    opening: str = Field(
        r"^the user\s+\w+\s+",
        description="Regular expression, without regard to case: what it finds is left out before words are counted.",
    )


@reshape(key="name", version=1)
def measure_diversity(frame: pl.LazyFrame, params: MeasureDiversity) -> pl.LazyFrame:
    """Make a table of the diversity of personas: distinct ones, distinct words and pairs of words, words shared, and coverage."""
    by = group_columns(params)
    parts = []
    for column, text in texts_of(frame, params.columns).items():
        shown = pl.when(text.str.strip_chars() != "").then(text.str.strip_chars().str.to_lowercase())
        parts.append(
            frame.select(*by, pl.lit(column).alias("_about"), shown.alias("_text")).filter(pl.col("_text").is_not_null())
        )
    if len(parts) > 1:
        parts.append(pl.concat(parts).with_columns(pl.lit(None, pl.String).alias("_about")))
    texts = pl.concat(parts).with_columns(
        _words=pl.col("_text").str.replace(f"(?i){params.opening}", "").str.extract_all(_WORD),
        _id=row_id({"_text": pl.String()}),
    )
    following = pl.concat_str(pl.element(), pl.element().shift(-1), separator=" ").drop_nulls()
    counted = {
        "persona": pl.concat_list(pl.col("_id")),
        "word": pl.col("_words"),
        "pair": pl.col("_words").list.eval(following),
        "type": pl.col("_words").list.unique(),
    }

    def counts(level: tuple[str, ...]) -> pl.LazyFrame:
        fine = [
            texts.select(*level, "_about", items.alias("_item"))
            .explode("_item")
            .filter(pl.col("_item").is_not_null())
            .group_by(*level, "_about", "_item")
            .agg(pl.len().alias("_times"))
            .group_by(*level, "_about", "_times")
            .agg(_count=pl.len())
            .with_columns(pl.lit(kind).alias("_kind"))
            for kind, items in counted.items()
        ]
        return pl.concat(fine)

    def lines(group: Mapping[str, str], found: pl.DataFrame) -> Iterator[Line]:
        for part in found.partition_by("_about", maintain_order=False):
            held = {
                kind: dict(part.filter(pl.col("_kind") == kind).sort("_times").select("_times", "_count").iter_rows())
                for kind in counted
            }
            about = part["_about"][0] if len(params.columns) > 1 else params.columns[0]
            for measure, value, n in diversity(held):
                yield Line(measure, about or "all", group, Estimate(value, None, None, None), n)

    return table_of(params, counts, lines)


def diversity(held: Mapping[str, Mapping[int, int]]) -> Iterator[tuple[str, float | None, int]]:
    """Yield measure, value and n from how many personas, words, pairs of words and types of a persona (`type`) occur how often.

    distinct_1 and distinct_2 are distinct n-grams by all of them (J. Li and others, NAACL 2016); effective_words is 2 to the entropy in
    bits of the words; shared_words is the mean over all pairs of personas of the words that both have; coverage is the estimated
    probability that a word of one more persona has been seen, 1 - words seen once / words (I. J. Good, Biometrika 40, 1953, p. 237);
    unseen_words the least number of words that are still to come, f1 (f1 - 1) / (2 (f2 + 1)) (A. Chao, Scand. J. Stat. 11, 1984, p. 265, in
    the form without bias).
    """
    personas, words = held["persona"], held["word"]
    number, tokens = _all(personas), _all(words)
    yield "personas", float(number), number
    yield "distinct_personas", _share(sum(personas.values()), number), number
    yield "most_copies", float(max(personas)) if personas else None, number
    for size, kind in zip(_SIZES, ("word", "pair"), strict=True):
        whole = _all(held[kind])
        yield f"distinct_{size}", _share(sum(held[kind].values()), whole), whole
    entropy = (
        -math.fsum(count * (times / tokens) * math.log2(times / tokens) for times, count in words.items()) if tokens else 0.0
    )
    yield "effective_words", 2**entropy if tokens else None, tokens
    pairs = number * (number - 1) / 2
    shared = math.fsum(count * times * (times - 1) / 2 for times, count in held["type"].items())
    yield "shared_words", shared / pairs if pairs else None, number
    once, twice = words.get(1, 0), words.get(2, 0)
    yield "coverage", 1 - once / tokens if tokens else None, tokens
    yield "unseen_words", once * (once - 1) / (2 * (twice + 1)) if tokens else None, tokens


def _all(held: Mapping[int, int]) -> int:
    return sum(times * count for times, count in held.items())


def _share(part: int, whole: int) -> Any:
    return part / whole if whole else None
