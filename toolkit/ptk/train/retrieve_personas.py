"""Retrieves for each row the personas of rows with the nearest prompts, never of the row itself or of one nearly the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Self

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import Field, model_validator

from ptk.llm.encoder import Encoder, EncoderFiles
from ptk.operator import DETAIL, KEY, REJECT, frame_operator
from ptk.params import COLUMN, Params
from ptk.text import texts_of
from ptk.train.neighbours import POOL, Likeness, Neighbour, Ranking, fused, nearest, rankers

__all__ = ["RetrievePersonas", "retrieve_personas"]

_ID, _TEXT = "_id", "_text"


class RetrievePersonas(Params):
    """Settings of retrieve_personas."""

    on: Annotated[str, COLUMN] = Field("prompt", description="Column, of both inputs, whose texts are compared.")
    personas: tuple[str, ...] = Field(
        ("chosen_persona", "rejected_persona"), min_length=1, description="Columns of `train` with the personas to retrieve."
    )
    rank_by: tuple[Ranking, ...] = Field(
        ("bm25",),
        min_length=1,
        description="How texts are ranked: bm25, by shared words; dense, by one vector a text; late_interaction, by one a token. "
        "Several are fused.",
    )
    encoder: EncoderFiles | None = Field(
        None, description="Model that makes the vectors: bundled/NAME, a folder, or an id of the Hugging Face Hub."
    )
    k: int = Field(1, ge=1, le=POOL, description="How many neighbours to retrieve.")
    within: Annotated[tuple[str, ...], COLUMN] = Field(
        (), description="Columns, of both inputs, in which a row and its neighbours must be equal, such as domain."
    )
    threshold: float = Field(
        0.7, gt=0.0, le=1.0, description="Jaccard similarity of n-grams from which a row is the same and no neighbour."
    )
    ngram: int = Field(5, ge=1, le=64, description="Words in these n-grams.")
    into: str = Field(
        "retrieved", pattern=r"^[a-z][a-z0-9_]*$", description="Name of the new column; further ones begin with it."
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if len(set(self.rank_by)) < len(self.rank_by):
            raise ValueError("`rank_by` names a ranking twice")
        if len(set(self.personas)) < len(self.personas):
            raise ValueError("`personas` names a column twice")
        clash = next((name for name in self.personas if name in ("key", "score")), None)
        if clash is not None:
            raise ValueError(f"a column '{clash}' can't be retrieved: a neighbour has a {clash} of its own; rename it first")
        needs = any(ranking != "bm25" for ranking in self.rank_by)
        if needs != (self.encoder is not None):
            raise ValueError("`encoder` goes with dense and late_interaction, which need one; bm25 does not")
        return self


def _reads(params: RetrievePersonas) -> Mapping[str, Sequence[str]]:
    shared = (params.on, *params.within)
    return {"frame": shared, "train": (*shared, *params.personas)}


@frame_operator(scope="dataset", reads=_reads, version=1)
def retrieve_personas(frame: pl.LazyFrame, train: pl.LazyFrame, params: RetrievePersonas) -> pl.LazyFrame:
    """Give each row of `frame` the personas of the rows of `train` whose prompts are nearest, never its own."""
    known_schema, schema = train.collect_schema(), frame.collect_schema()
    for name in params.within:
        if schema[name] != known_schema[name]:
            raise TypeError(f"'{name}' is {schema[name]} in `frame` and {known_schema[name]} in `train`, so no rows would fit")
    personas = [pl.col(name).cast(pl.String).str.strip_chars() for name in params.personas]
    whole = pl.all_horizontal(*((pl.col(name).str.len_chars() > 0).fill_null(False) for name in params.personas))
    # By key, so that nothing depends on the order or the parts in which rows come.
    known = _rows(train, params, personas).filter(whole & (pl.col(_TEXT) != "")).sort(KEY).collect()
    asked = _rows(frame, params, []).sort(KEY).collect()
    return _decided(asked, known, params).lazy()


def _rows(frame: pl.LazyFrame, params: RetrievePersonas, more: Sequence[pl.Expr]) -> pl.LazyFrame:
    text = texts_of(frame, (params.on,))[params.on].str.strip_chars().fill_null("")
    return frame.select(KEY, pl.col(KEY).cast(pl.String).alias(_ID), text.alias(_TEXT), *params.within, *more)


def _schema(params: RetrievePersonas, key: pl.DataType) -> dict[str, Any]:
    neighbour = pl.Struct({"key": pl.String, "score": pl.Float64, **dict.fromkeys(params.personas, pl.String)})
    firsts = {f"{params.into}_{name}": pl.String for name in params.personas}
    return {KEY: key, **firsts, params.into: pl.List(neighbour), REJECT: pl.String, DETAIL: pl.String}


def _decided(asked: pl.DataFrame, known: pl.DataFrame, params: RetrievePersonas) -> pl.DataFrame:
    rows: list[dict[str, Any]] = []
    given = known.select(pl.col(_ID).alias("key"), *params.personas)
    for key, text, found in _found(asked, known, params):
        if found:
            neighbours = [{**given.row(one.number, named=True), "score": one.score} for one in found]
            firsts = {f"{params.into}_{name}": neighbours[0][name] for name in params.personas}
            rows.append({KEY: key, **firsts, params.into: neighbours})
        elif not text:
            rows.append({KEY: key, REJECT: "empty_text", DETAIL: f"column '{params.on}' is empty"})
        else:
            other = "no other row that shares a word" if params.rank_by == ("bm25",) else "no other row"
            rows.append({KEY: key, REJECT: "no_neighbour", DETAIL: f"{other} has personas to give"})
    schema = _schema(params, asked.schema[KEY])
    return pl.from_dicts(rows, schema=schema) if rows else pl.DataFrame(schema=schema)


def _found(asked: pl.DataFrame, known: pl.DataFrame, params: RetrievePersonas) -> Iterator[tuple[Any, str, list[Neighbour]]]:
    """Yield each row's key, text and neighbours."""
    keys, texts = asked[KEY].to_list(), asked[_TEXT].to_list()
    others = known[_TEXT].to_list()
    if not keys:
        return
    if not others:
        yield from ((key, text, []) for key, text in zip(keys, texts, strict=True))
        return
    # Each text is computed once, whatever rows have it.
    queries, query_of = np.unique(np.array(texts, dtype=object), return_inverse=True)
    encoder = Encoder(params.encoder) if params.encoder is not None else None
    scorers = rankers(params.rank_by, list(queries), others, encoder)
    if encoder is not None:
        encoder.close()
    likeness = Likeness(list(queries), others, params.ngram, params.threshold)
    ids, known_ids = asked[_ID].to_list(), known[_ID].to_numpy()
    groups = _groups(asked, known, params.within)
    for row, (key, text) in enumerate(zip(keys, texts, strict=True)):
        query = int(query_of[row])
        allowed = groups(row) & (known_ids != ids[row])

        def barred(numbers: npt.NDArray[np.int64], query: int = query) -> npt.NDArray[np.bool_]:
            return likeness.alike(query, numbers)

        depth = params.k if len(scorers) == 1 else POOL
        ranked = {
            ranking: nearest(scores(query), depth, allowed, barred) if text else [] for ranking, scores in scorers.items()
        }
        yield key, text, next(iter(ranked.values())) if len(ranked) == 1 else fused(ranked, params.k)


def _groups(asked: pl.DataFrame, known: pl.DataFrame, within: Sequence[str]) -> Any:
    """Return the function from a row's number to which of the known rows are equal to it in `within`; null equals null."""
    if not within:
        everything = np.ones(known.height, np.bool_)
        return lambda _row: everything
    both = pl.concat([asked.select(within), known.select(within)])
    number = both.select(pl.struct(within).rank("dense")).to_series().to_numpy()
    ours, theirs = number[: asked.height], number[asked.height :]
    masks = {int(group): theirs == group for group in np.unique(ours)}
    return lambda row: masks[int(ours[row])]
