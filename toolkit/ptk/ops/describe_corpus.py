"""Describes a corpus as a table: counts, lengths, biases, duplicates and languages, one measure a row."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Annotated, Any

import polars as pl
from polars.io.plugins import register_io_source
from pydantic import Field

from ptk.operator import KEY, reshape
from ptk.params import COLUMN, Params
from ptk.text import is_turns, text_of
from ptk_catalog.digest import row_id

__all__ = ["DescribeCorpus", "describe_corpus", "wilson"]

_SCHEMA = pl.Schema(
    {
        "name": pl.String(),
        "measure": pl.String(),
        "column": pl.String(),
        "by": pl.String(),
        "group": pl.String(),
        "value": pl.Float64(),
        "low": pl.Float64(),
        "high": pl.Float64(),
        "n": pl.Int64(),
    }
)
_COUNTED = pl.Schema(
    {
        "grouped": pl.Boolean(),
        "group": pl.String(),
        "kind": pl.String(),
        "column": pl.String(),
        "value": pl.Float64(),
        "word": pl.String(),
        "count": pl.Int64(),
    }
)
"""How often each value of something counted occurs: all that the measures are made of."""
_SIDES = ("chosen", "rejected")
_NUMBERS = ("margin", "agreement")
_Z = 1.959963984540054
"""Quantile of the normal distribution for an interval of 95%."""
_DRAWN = 1_000
"""Texts in which different n-grams are counted: their share falls as texts are added, so it is told of always as many."""
_LOOKED_AT = 2_000
"""Characters of a text from which its language is told."""


class DescribeCorpus(Params):
    """Settings of describe_corpus."""

    by: Annotated[str | None, COLUMN] = Field(
        None, description="Column, such as source: everything is told for each of its values too."
    )
    texts: Annotated[tuple[str, ...], COLUMN] = Field(
        (), description="Further columns of texts or turns to measure, such as personas."
    )
    numbers: Annotated[tuple[str, ...] | None, COLUMN] = Field(
        None, description="Columns of numbers to describe; null takes `margin` and `agreement` where they are there."
    )
    near_empty: int = Field(1, ge=0, description="A text with at most so many words counts as nearly empty.")
    quantiles: int = Field(
        5, ge=1, le=100, description="Groups of equally many pairs, by length ratio, for the verbosity bias."
    )
    ngram: int = Field(3, ge=0, le=64, description="Words in the n-grams whose repetition and variety are told; 0 tells none.")
    languages: int = Field(1_000, ge=0, description="How many prompts to tell the language of; 0 tells none.")
    seed: int = Field(
        0, ge=-(1 << 63), lt=1 << 63, description="Another seed, other texts to tell the languages and the variety of."
    )


@reshape(key="name", version=2)
def describe_corpus(frame: pl.LazyFrame, params: DescribeCorpus) -> pl.LazyFrame:
    """Make a table of measures of a corpus: rows, lengths, length and verbosity bias, duplicates, n-grams, languages."""
    return _in_turn(list(_counts(frame, params))).map_batches(
        lambda counts: pl.DataFrame(list(_measures(counts, params)), schema=_SCHEMA, orient="row").sort("name"),
        schema=_SCHEMA,
        projection_pushdown=False,
        predicate_pushdown=False,
        slice_pushdown=False,
    )


def _in_turn(queries: Sequence[pl.LazyFrame]) -> pl.LazyFrame:
    """Return the rows of queries as one that runs them one after another: side by side, the slow ones keep the corpus in memory."""
    for query in queries:
        query.collect_schema()  # what is wrong with a column is said here, where it is known which error it is

    def read(
        columns: list[str] | None, predicate: pl.Expr | None, rows: int | None, _batch: int | None
    ) -> Iterator[pl.DataFrame]:
        for query in queries:
            made = query.collect(engine="streaming").select(list(_COUNTED) if columns is None else columns)
            if rows is not None:
                made = made.head(rows)
                rows -= made.height
            yield made if predicate is None else made.filter(predicate)

    return register_io_source(read, schema=_COUNTED)


def _counts(frame: pl.LazyFrame, params: DescribeCorpus) -> Iterator[pl.LazyFrame]:
    schema = frame.collect_schema()
    texts = {name: text_of(name, schema[name]) for name in params.texts}
    for name in ("prompt", *_SIDES):
        if name in schema and (schema[name] == pl.String or is_turns(schema[name])):
            texts.setdefault(name, text_of(name, schema[name]))
    if params.by is not None and schema[params.by].is_nested():
        raise TypeError(f"column '{params.by}' is {schema[params.by]}, whose values can't name groups")
    group = pl.lit(None, pl.String) if params.by is None else pl.col(params.by).cast(pl.String)
    group = group.alias("group")
    values = _values_of_a_row(schema, texts, params)
    names = {str(number): name for number, name in enumerate(values)}
    wide = frame.select(group, *(values[name].cast(pl.Float64).alias(number) for number, name in names.items()))
    fine = (
        wide.unpivot(index="group", variable_name="number")
        .group_by("group", "number", "value")
        .agg(count=pl.len())
        .with_columns(
            kind=pl.col("number").replace_strict({number: kind for number, (kind, _) in names.items()}, return_dtype=pl.String),
            column=pl.col("number").replace_strict(
                {number: column for number, (_, column) in names.items()}, return_dtype=pl.String
            ),
        )
    )
    yield from _both_levels(params, lambda by: fine.group_by(*by, "kind", "column", "value").agg(pl.col("count").sum()))
    if "prompt" in texts:
        prompts = frame.select(group, id=_short_id({"prompt": schema["prompt"]}))
        yield from _both_levels(params, lambda by: _copies(prompts, [*by, "id"], by, "prompt"))
    if all(side in texts for side in _SIDES):
        pairs = _pairs(frame, schema, group)
        yield from _both_levels(params, lambda by: _copies(pairs, [*by, "item", "forward"], by, "pair"))
        yield from _both_levels(params, lambda by: _conflicts(pairs, by))
    if params.ngram:
        for name, text in texts.items():
            yield _as_counted(_variety(frame, name, text, params), False)
    if "prompt" in texts and params.languages:
        yield _as_counted(_languages(frame, texts["prompt"], params), False)


def _both_levels(params: DescribeCorpus, counts: Callable[[list[str]], pl.LazyFrame]) -> Iterator[pl.LazyFrame]:
    """Yield what `counts` gives for all rows, and for each group where there are groups."""
    yield _as_counted(counts([]), False)
    if params.by is not None:
        yield _as_counted(counts(["group"]), True)


def _as_counted(frame: pl.LazyFrame, grouped: bool) -> pl.LazyFrame:
    there = frame.collect_schema()
    return frame.select(
        pl.lit(grouped).alias(name)
        if name == "grouped"
        else (pl.col(name) if name in there else pl.lit(None)).cast(dtype).alias(name)
        for name, dtype in _COUNTED.items()
    )


def _values_of_a_row(
    schema: pl.Schema, texts: dict[str, pl.Expr], params: DescribeCorpus
) -> dict[tuple[str, str | None], pl.Expr]:
    """Return what is counted of a row, by (kind, column)."""
    words = {name: text.str.count_matches(r"\S+").cast(pl.Int64) for name, text in texts.items()}
    characters = {name: text.str.len_chars().cast(pl.Int64) for name, text in texts.items()}
    values: dict[tuple[str, str | None], pl.Expr] = {("rows", None): pl.col(KEY).is_null()}
    for name, text in texts.items():
        values["words", name], values["characters", name] = words[name], characters[name]
        if is_turns(schema[name]):
            values["turns", name] = pl.col(name).list.len()
        if params.ngram:
            values["repeated", name] = _repeated_share(text, params.ngram)
    if all(side in texts for side in _SIDES):
        for unit, lengths in (("words", words), ("characters", characters)):
            values["difference", unit] = lengths["chosen"] - lengths["rejected"]
        longer = pl.max_horizontal(words["chosen"], words["rejected"])
        shorter = pl.min_horizontal(words["chosen"], words["rejected"])
        # The ratio in thousandths, twice, and one more where the chosen response is the longer: one number to count by.
        ratio = longer * 1_000 // pl.max_horizontal(shorter, pl.lit(1)) * 2 + (words["chosen"] > words["rejected"])
        there = words["chosen"].is_not_null() & words["rejected"].is_not_null()
        values["ratio", None] = pl.when(there & (longer > shorter)).then(ratio)
        values["identical", None] = texts["chosen"] == texts["rejected"]
    wanted = [name for name in _NUMBERS if name in schema and schema[name].is_numeric()]
    for name in wanted if params.numbers is None else params.numbers:
        if not (schema[name].is_numeric() or schema[name] == pl.Boolean):
            raise TypeError(f"column '{name}' is {schema[name]}, not numbers")
        values["number", name] = pl.when(pl.col(name).cast(pl.Float64).is_finite()).then(pl.col(name).cast(pl.Float64))
    return values


def _repeated_share(text: pl.Expr, ngram: int) -> pl.Expr:
    """Return the share of a text's n-grams that occurred in it before; null where it has none."""

    def counted(texts: pl.Series) -> pl.Series:
        from ptk_kernels.sets import ngram_counts

        size, different = map(pl.Series, ngram_counts(texts, ngram))
        return pl.select(pl.when(size > 0).then((size - different) / size)).to_series()

    return text.map_batches(counted, return_dtype=pl.Float64, is_elementwise=True)


def _short_id(columns: dict[str, pl.DataType]) -> pl.Expr:
    """Return 64 bits of an id: two of a hundred million texts share one with a probability of 0.0003."""
    return row_id(columns).str.slice(0, 16).str.to_integer(base=16, dtype=pl.UInt64)


def _pairs(frame: pl.LazyFrame, schema: pl.Schema, group: pl.Expr) -> pl.LazyFrame:
    """Return an id of the two responses to a prompt in either order, and whether they stand in the order of their ids."""
    names = [name for name in ("prompt", *_SIDES) if name in schema]
    ids = {name: pl.when(pl.col(name).is_not_null()).then(_short_id({name: schema[name]})) for name in names}
    texts = frame.select(group, **ids).drop_nulls(_SIDES)
    ordered = texts.with_columns(_low=pl.min_horizontal(*_SIDES), _high=pl.max_horizontal(*_SIDES))
    same = [*(name for name in names if name not in _SIDES), "_low", "_high"]
    item = _short_id(dict.fromkeys(same, pl.UInt64()))
    return ordered.select("group", item=item, forward=pl.col("chosen") <= pl.col("rejected"))


def _copies(frame: pl.LazyFrame, same: list[str], by: list[str], column: str) -> pl.LazyFrame:
    """Return how many things occur how often; rows are copies where they are the same in the columns `same`."""
    sizes = frame.group_by(same).agg(value=pl.len())
    counted = sizes.group_by(*by, "value").agg(count=pl.len())
    return counted.with_columns(kind=pl.lit("copies"), column=pl.lit(column))


def _conflicts(pairs: pl.LazyFrame, by: list[str]) -> pl.LazyFrame:
    """Return how many items have how many rows; 0 stands for those that are preferred one way alone."""
    ways = pl.col("forward").any() & pl.col("forward").not_().any()
    items = pairs.group_by(*by, "item").agg(value=pl.when(ways).then(pl.len()).otherwise(0))
    return items.group_by(*by, "value").agg(count=pl.len()).with_columns(kind=pl.lit("conflict"))


def _drawn(frame: pl.LazyFrame, text: pl.Expr, count: int, params: DescribeCorpus) -> pl.LazyFrame:
    """Return `count` of the texts that are there, as `_text`: the same for the same keys and seed."""
    key = frame.collect_schema()[KEY]
    there = frame.select(KEY, _text=text, _seed=pl.lit(params.seed, pl.Int64)).filter(pl.col("_text").is_not_null())
    return there.select("_text", _number=row_id({"_seed": pl.Int64(), KEY: key})).bottom_k(count, by="_number")


def _variety(frame: pl.LazyFrame, name: str, text: pl.Expr, params: DescribeCorpus) -> pl.LazyFrame:
    """Return how many different n-grams some texts have together, and how many with repetition."""

    def counted(drawn: pl.DataFrame) -> pl.DataFrame:
        from ptk_kernels.shingle import shingle

        hashes = pl.Series(shingle(drawn["_text"], params.ngram)[0])
        return pl.DataFrame({"value": [hashes.n_unique()], "count": [len(hashes)]})

    made = _drawn(frame, text, _DRAWN, params).map_batches(
        counted, schema={"value": pl.Int64, "count": pl.Int64}, projection_pushdown=False, predicate_pushdown=False
    )
    return made.filter(pl.col("count") > 0).with_columns(kind=pl.lit("variety"), column=pl.lit(name))


def _languages(frame: pl.LazyFrame, text: pl.Expr, params: DescribeCorpus) -> pl.LazyFrame:
    drawn = _drawn(frame, text.str.slice(0, _LOOKED_AT), params.languages, params)
    told = drawn.map_batches(_languages_of, schema={"word": pl.String()}, projection_pushdown=False, predicate_pushdown=False)
    return told.group_by("word").agg(count=pl.len()).with_columns(kind=pl.lit("language"), column=pl.lit("prompt"))


def _languages_of(drawn: pl.DataFrame) -> pl.DataFrame:
    """Tell the language of texts as an ISO 639-1 code; `und` where a text has no letters."""
    words: list[str] = []
    if drawn.height:
        from py3langid import classify

        words = [classify(text)[0] if any(map(str.isalpha, text)) else "und" for text in drawn["_text"]]
    return pl.DataFrame({"word": words}, schema={"word": pl.String})


_Measure = tuple[str, str | None, float | None, float | None, float | None, int]
"""Measure, column, value, low, high, n."""


def _measures(counts: pl.DataFrame, params: DescribeCorpus) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of the table."""
    if counts.is_empty():
        yield "rows", "rows", None, None, None, 0.0, None, None, 0
    levels = counts.sort("grouped", "group", "kind", "column", "word", "value", nulls_last=True)
    for _, level in levels.group_by("grouped", "group", maintain_order=True):
        grouped, group = level["grouped"][0], level["group"][0]
        place = [] if not grouped else ["%null" if group is None else _escaped(group)]
        by = params.by if grouped else None
        for (kind, column), part in level.group_by("kind", "column", maintain_order=True):
            for measure, about, value, low, high, n in _of_kind(str(kind), column, part, params):
                name = "/".join([measure, *([_escaped(about or "")] if about or place else []), *place])
                yield name, measure, about, by, group, value, low, high, n


def _escaped(text: str) -> str:
    return text.replace("%", "%25").replace("/", "%2F")


def _of_kind(kind: str, column: str | None, part: pl.DataFrame, params: DescribeCorpus) -> Iterator[_Measure]:
    everything = int(part["count"].sum())
    there = part.filter(pl.col("value").is_not_null())
    histogram = list(there.select("value", "count").iter_rows())
    n = sum(count for _, count in histogram)
    if kind == "rows":
        yield "rows", None, float(everything), None, None, everything
    elif kind in ("words", "characters", "turns", "number"):
        if kind in ("words", "number"):
            yield "missing", column, float(everything - n), None, None, everything
        if kind == "words":
            empty = sum(count for value, count in histogram if value <= params.near_empty)
            yield "near_empty", column, float(empty), None, None, n
        for measure, value in _spread(histogram, n):
            yield f"{kind}_{measure}", column, value, None, None, n
    elif kind == "repeated":
        yield "repeated_ngrams", column, *_mean_with_interval(histogram, n), n
    elif kind == "variety":
        for different, count in histogram:
            yield "distinct_ngrams", column, different / count, None, None, count
    elif kind == "difference":
        for measure, share in (
            ("chosen_longer", sum(count for value, count in histogram if value > 0)),
            ("equally_long", sum(count for value, count in histogram if value == 0)),
        ):
            yield f"{measure}_{column}", "chosen", *wilson(share, n), n
        yield f"length_difference_{column}", "chosen", *_mean_with_interval(histogram, n), n
    elif kind == "ratio":
        yield from _verbosity(histogram, n, params.quantiles)
    elif kind == "identical":
        yield "identical_responses", "pair", float(sum(count for value, count in histogram if value)), None, None, n
    elif kind == "copies":
        rows = int(sum(value * count for value, count in histogram))
        yield "distinct", column, float(n), None, None, rows
        yield "repeated", column, float(rows - n), None, None, rows
        yield "most_copies", column, max(value for value, _ in histogram), None, None, rows
    elif kind == "conflict":
        yield "conflicting_items", "pair", float(sum(count for value, count in histogram if value)), None, None, n
        yield "conflicting_rows", "pair", math.fsum(value * count for value, count in histogram), None, None, n
    else:
        for word, count in part.select("word", "count").iter_rows():
            yield f"language_{word}", column, *wilson(count, everything), everything


def _spread(histogram: list[tuple[float, int]], n: int) -> Iterator[tuple[str, float | None]]:
    """Yield mean, standard deviation and nearest-rank quantiles; `histogram` is sorted by value."""
    mean = sd = None
    with suppress(OverflowError):  # numbers near the largest a float holds
        mean = math.fsum(value * count for value, count in histogram) / n if n else None
        if mean is not None and n > 1:
            sd = math.sqrt(math.fsum(count * (value - mean) ** 2 for value, count in histogram) / (n - 1))
    yield "mean", mean if mean is not None and math.isfinite(mean) else None
    yield "sd", sd if sd is not None and math.isfinite(sd) else None
    for name, percent in (("min", 0), ("p5", 5), ("median", 50), ("p95", 95), ("max", 100)):
        yield name, _quantile(histogram, n, percent)


def _quantile(histogram: list[tuple[float, int]], n: int, percent: int) -> float | None:
    """Return the smallest value that is not exceeded by `percent` of the values."""
    rank, seen = max(1, -(-n * percent // 100)), 0
    for value, count in histogram:
        seen += count
        if seen >= rank:
            return value
    return None


def _mean_with_interval(histogram: list[tuple[float, int]], n: int) -> tuple[float | None, float | None, float | None]:
    """Return the mean and its interval of 95% by the central limit theorem: mean -+ z s / sqrt(n)."""
    found = dict(_spread(histogram, n))
    mean, sd = found["mean"], found["sd"]
    if mean is None or sd is None:
        return mean, None, None
    half = _Z * sd / math.sqrt(n)
    return mean, mean - half, mean + half


def wilson(hits: int, n: int) -> tuple[float | None, float | None, float | None]:
    """Return a share and its score interval of 95% (E. B. Wilson, J. Am. Stat. Assoc. 22, 1927, p. 209)."""
    if not n:
        return None, None, None
    share, square = hits / n, _Z * _Z
    middle = (share + square / (2 * n)) / (1 + square / n)
    half = _Z / (1 + square / n) * math.sqrt(share * (1 - share) / n + square / (4 * n * n))
    return share, 0.0 if hits == 0 else middle - half, 1.0 if hits == n else middle + half


def _verbosity(histogram: list[tuple[float, int]], n: int, quantiles: int) -> Iterator[_Measure]:
    """Yield, for pairs by their length ratio, the share whose chosen response is the longer; equal ratios stay together."""
    ratios: dict[int, list[int]] = {}
    for value, count in histogram:
        ratios.setdefault(int(value) // 2, [0, 0])[int(value) % 2] += count
    bins: dict[int, list[int]] = {}
    before = 0
    for ratio, (shorter, longer) in ratios.items():
        count = shorter + longer
        place = min(quantiles * (2 * before + count) // (2 * n), quantiles - 1)
        before += count
        held = bins.setdefault(place, [0, 0, 0])
        held[0], held[1], held[2] = ratio, held[1] + longer, held[2] + count
    for place, (ratio, longer, count) in bins.items():
        yield f"verbosity_bias_q{place + 1}", "chosen", *wilson(longer, count), count
        yield f"length_ratio_q{place + 1}", "chosen", ratio / 1_000, None, None, count
