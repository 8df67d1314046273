"""Finds the near-duplicates of a corpus: the stages that operators which drop them or keep them together have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from ptk.operator import KEY, ROW, Stage
from ptk.text import texts_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy.typing as npt

__all__ = ["CLUSTER", "cluster_stages", "joined_text", "shingle_lists"]

CLUSTER = "_cluster"
"""What a cluster is called: the smallest `_key` of its rows."""

_ALL_PAIRS = 16
"""In a bucket of at most so many different texts each is compared with each."""
_WINDOW = 4
"""In a larger one each is compared with so many that follow it in the order of the ties, and with the first."""

_BAND, _TIE, _BANDS = "_band", "_tie", "_bands"
_OTHER, _SAME, _OTHERS, _EQUALS = "_other", "_same", "_others", "_equals"
_PART, _COMPARED, _SET, _ROOT = "_part", "_compared", "_set", "_root"
_LIST = pl.List(pl.UInt64)
_PAIR = {ROW: pl.UInt64(), _OTHER: pl.UInt64(), _SAME: pl.Boolean()}
_LINKED = {ROW: pl.UInt64(), _PART: pl.UInt64(), _COMPARED: pl.Boolean(), _OTHERS: _LIST, _EQUALS: _LIST}
_ROOTED = {ROW: pl.UInt64(), _ROOT: pl.UInt64()}


def cluster_stages(
    on: str | tuple[str, ...],
    *,
    threshold: float = 0.7,
    ngram: int = 5,
    permutations: int = 128,
    prefix: str = "",
    frame: str = "frame",
) -> tuple[Stage, ...]:
    """Return stages that find clusters of near-duplicates among the rows of the operator's input `frame`.

    The text of a row is that of the columns `on`, one after another: texts, or lists of turns `{role, content}`. Two rows are
    near-duplicates where the Jaccard similarity of their sets of word n-grams, which is computed exactly, is at least
    `threshold`; clusters are the connected components. The last stage, named `{prefix}clusters`, gives the rows that have a
    near-duplicate and no others: `_row` (UInt64) and `_cluster` (the smallest `_key` of the cluster, with the key's type). Rows
    without any word are nobody's near-duplicates. Names of stages begin with `prefix`, so that an operator can have several.

    Which pairs are compared is up to MinHash bands: with `permutations` functions at most, a pair at the threshold is found with a
    chance of 0.98, a more similar one with a larger one. Nothing depends on the numbers of rows.
    """
    columns = (on,) if isinstance(on, str) else tuple(on)

    def documents(frame: pl.LazyFrame, params: Any) -> pl.LazyFrame:
        """Return the buckets that each text falls into."""
        found = joined_text(frame, columns).map_batches(
            lambda texts: _buckets(texts, ngram, threshold, permutations),
            return_dtype=pl.Struct({_BAND: _LIST, _TIE: _LIST}),
            is_elementwise=True,
        )
        rows = frame.select(ROW, found.alias(_BANDS)).unnest(_BANDS)
        return rows.filter(pl.col(_BAND).is_not_null()).explode(_BAND, _TIE)

    def candidates(documents: pl.LazyFrame, params: Any) -> pl.LazyFrame:
        """Return the pairs that are worth a comparison, and those that need none because their n-grams are the same."""
        return _table(documents, (_BAND, _TIE, ROW), _pairs, _PAIR)

    def linked(candidates: pl.LazyFrame, params: Any) -> pl.LazyFrame:
        """Return the rows of these pairs: with whom each is to be compared, its equals, and the connected part it belongs to."""
        return _table(candidates, (ROW, _OTHER, _SAME), _linked, _LINKED)

    def wanted(frame: pl.LazyFrame, linked: pl.LazyFrame, params: Any) -> pl.LazyFrame:
        """Return these rows with their n-grams, where they are to be compared."""
        # The pairs go along: Polars would compute them anew if two stages took them.
        rows = _rows_of(frame, linked)
        sets = shingle_lists(pl.when(_COMPARED).then(joined_text(frame, columns)), ngram)
        return rows.select(_PART, ROW, _OTHERS, _EQUALS, sets.alias(_SET))

    def verified(wanted: pl.LazyFrame, params: Any) -> pl.LazyFrame:
        """Return the near-duplicates: within each part those that are connected by pairs which are similar enough."""
        return _table(wanted, (ROW, _OTHERS, _EQUALS, _SET), lambda rows: _verified(rows, threshold), _ROOTED)

    def clusters(verified: pl.LazyFrame, frame: pl.LazyFrame, params: Any) -> pl.LazyFrame:
        """Return the connected components."""
        rows = _rows_of(frame.select(ROW, KEY), verified)
        return rows.select(ROW, pl.col(KEY).min().over(_ROOT).alias(CLUSTER))

    names = {name: prefix + name for name in ("documents", "candidates", "linked", "wanted", "verified", "clusters")}
    return (
        Stage(names["documents"], "rows", documents, (frame,)),
        Stage(names["candidates"], "key", candidates, (names["documents"],), (_BAND,)),
        Stage(names["linked"], "dataset", linked, (names["candidates"],)),
        Stage(names["wanted"], "rows", wanted, (frame, names["linked"])),
        Stage(names["verified"], "key", verified, (names["wanted"],), (_PART,)),
        Stage(names["clusters"], "dataset", clusters, (names["verified"], frame), reads={frame: ()}),
    )


def joined_text(frame: pl.LazyFrame, columns: tuple[str, ...]) -> pl.Expr:
    """Return the text of some columns, one after another on lines of their own; null where all are."""
    texts = list(texts_of(frame, columns).values())
    if len(texts) == 1:
        return texts[0]
    nothing = pl.all_horizontal(text.is_null() for text in texts)
    return pl.when(~nothing).then(pl.concat_str(texts, separator="\n", ignore_nulls=True))


def shingle_lists(text: pl.Expr, ngram: int) -> pl.Expr:
    """Return the hashes of a text's n-grams of words, each once; an empty list where it has none."""
    return text.map_batches(lambda texts: _sets(texts, ngram), return_dtype=_LIST, is_elementwise=True)


def _rows_of(frame: pl.LazyFrame, few: pl.LazyFrame) -> pl.LazyFrame:
    """Return the rows of `frame` that are in `few`, with the columns of both; `frame` streams past `few`, which is held."""
    return frame.join(few, on=ROW, build_side="force_right")


def _table(
    frame: pl.LazyFrame,
    columns: tuple[str, ...],
    function: Callable[[pl.DataFrame], pl.DataFrame],
    schema: Mapping[str, pl.DataType],
) -> pl.LazyFrame:
    """Return what `function` makes of some columns of all rows.

    As an expression and not by `LazyFrame.map_batches`, which Polars computes anew for each use of the result.
    """

    def made(rows: pl.Series) -> pl.Series:
        return function(rows.struct.unnest()).to_struct() if len(rows) else pl.Series(dtype=pl.Struct(schema))

    return frame.select(pl.struct(columns).map_batches(made, return_dtype=pl.Struct(schema)).alias(ROW)).unnest(ROW)


def _buckets(texts: pl.Series, ngram: int, threshold: float, permutations: int) -> pl.Series:
    if texts.is_empty():
        return pl.Series(dtype=pl.Struct({_BAND: _LIST, _TIE: _LIST}))
    from ptk_kernels.minhash import band_hashes, banding

    buckets, ties, present = band_hashes(texts, ngram, banding(threshold, permutations))
    width = buckets.shape[1]
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(present, dtype=np.int64) * width])
    if not present.all():
        buckets, ties = buckets[present], ties[present]
    columns = {_BAND: buckets, _TIE: ties}
    lists = [_lists(values.reshape(-1), offsets, present).alias(name) for name, values in columns.items()]
    return pl.DataFrame(lists).to_struct()


def _pairs(documents: pl.DataFrame) -> pl.DataFrame:
    from ptk_kernels.sets import bucket_pairs, occurs_again

    shared = documents.filter(pl.Series(occurs_again(documents[_BAND].to_numpy()))).sort(_BAND, _TIE, ROW)
    buckets, ties, rows = (shared[name].to_numpy() for name in (_BAND, _TIE, ROW))
    left, right, same = bucket_pairs(buckets, ties, rows, _ALL_PAIRS, _WINDOW)
    return pl.DataFrame({ROW: np.minimum(left, right), _OTHER: np.maximum(left, right), _SAME: same}, schema=_PAIR).unique()


def _linked(candidates: pl.DataFrame) -> pl.DataFrame:
    from ptk_kernels.sets import components

    pairs = candidates.unique().sort(ROW, _OTHER)
    rows = np.unique(np.concatenate([pairs[ROW].to_numpy(), pairs[_OTHER].to_numpy()]))
    numbers = {name: np.searchsorted(rows, pairs[name].to_numpy()) for name in (ROW, _OTHER)}
    same = pairs[_SAME].to_numpy()
    compared = np.zeros(len(rows), np.bool_)
    for ends in numbers.values():
        compared[ends[~same]] = True
    lists = {}
    for name, mask in ((_OTHERS, ~same), (_EQUALS, same)):
        offsets = np.searchsorted(numbers[ROW][mask], np.arange(len(rows) + 1)).astype(np.int64)
        lists[name] = _lists(pairs[_OTHER].to_numpy()[mask], offsets)
    parts = rows[components(len(rows), (numbers[ROW], numbers[_OTHER]))]
    return pl.DataFrame({ROW: rows, _PART: parts, _COMPARED: compared, **lists}, schema=_LINKED)


def _verified(wanted: pl.DataFrame, threshold: float) -> pl.DataFrame:
    from ptk_kernels.sets import components

    ordered = wanted.sort(ROW)
    rows = ordered[ROW].to_numpy()

    def pairs(column: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        others, offsets = _flat(ordered[column])
        return np.repeat(np.arange(len(rows)), np.diff(offsets)), np.searchsorted(rows, others)

    roots = components(len(rows), pairs(_EQUALS), pairs(_OTHERS), _flat(ordered[_SET]), threshold)
    several = np.bincount(roots, minlength=len(rows))[roots] > 1
    return pl.DataFrame({ROW: rows[several], _ROOT: rows[roots[several]]}, schema=_ROOTED)


def _sets(texts: pl.Series, ngram: int) -> pl.Series:
    if texts.is_empty():
        return pl.Series(dtype=_LIST)
    from ptk_kernels.sets import shingle_sets

    return _lists(*shingle_sets(texts, ngram))


def _lists(
    values: npt.NDArray[np.uint64], offsets: npt.NDArray[np.int64], present: npt.NDArray[np.bool_] | None = None
) -> pl.Series:
    """Return a column of lists that shares the memory of `values`; null where not `present`."""
    import pyarrow as pa

    mask = None if present is None else pa.array(~present)
    made = pl.from_arrow(pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(values), mask=mask))
    assert isinstance(made, pl.Series)
    return made


def _flat(lists: pl.Series) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]:
    """Return the values of a column of lists and their offsets, without a copy where it has one chunk; null counts as empty."""
    array = lists.rechunk().to_arrow()
    first, last = array.offsets[0].as_py(), array.offsets[-1].as_py()
    return array.values.to_numpy()[first:last], array.offsets.to_numpy() - first
