"""Which words tell the personas of chosen responses from those of rejected ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator

from ptk.measure.bootstrap import Estimate, Floats
from ptk.measure.significance import adjusted
from ptk.measure.table import Grouped, Line, group_columns, table_of
from ptk.operator import reshape
from ptk.ops.describe_corpus import wilson
from ptk.params import COLUMN
from ptk.text import texts_of

__all__ = ["MeasureWords", "compared_part", "lemma", "log_odds", "measure_words"]

SIDES = ("chosen", "rejected")
_CONTRASTS = ("rather than", "over", "versus", "compared to", "instead of")
"""What follows one of these is what the user does not want."""
_CONTRAST = rf"(?s)(?:^|[^\w-])(?:{'|'.join(_CONTRASTS)})(?:[^\w-].*|$)"
_SENTENCE_END = r"""([.!?]["'”’)\]]*)\s+(["'“‘(\[]*\p{Lu})"""
_LETTERS = r"\p{L}+(?:[-'’]\p{L}+)*"
_Z = 1.959963984540054
_EXTRA: dict[str, pl.DataType] = {"side": pl.String(), "word": pl.String(), "rank": pl.Int64()}


class MeasureWords(Grouped):
    """Settings of measure_words."""

    chosen_persona: Annotated[str, COLUMN] = Field("chosen_persona", description="Column with the texts of the chosen side.")
    rejected_persona: Annotated[str, COLUMN] = Field(
        "rejected_persona", description="Column with the texts of the rejected side."
    )
    top: int = Field(10, ge=1, le=10_000, description="How many words to tell for each side.")
    least: int = Field(10, ge=1, description="Words that occur less often, on both sides together, are left out.")
    prior: float = Field(
        500.0, gt=0.0, description="log_odds: how many words the prior counts for, shared out as the words of both sides are."
    )
    language: str | None = Field(
        "en", description="Language of the lemmas, as simplemma names it; null counts words as they are."
    )

    @field_validator("language")
    @classmethod
    def _known(cls, language: str | None) -> str | None:
        if language is not None:
            from simplemma.strategies.dictionaries.dictionary_factory import SUPPORTED_LANGUAGES

            if language not in SUPPORTED_LANGUAGES:
                raise ValueError(f"no lemmas for the language '{language}'; there are {', '.join(sorted(SUPPORTED_LANGUAGES))}")
        return language

    @model_validator(mode="after")
    def _two(self) -> Self:
        if self.chosen_persona == self.rejected_persona:
            raise ValueError("both sides are the same column")
        for name in _EXTRA:
            if name in self.by:
                raise ValueError(f"'{name}' can't be a column to group by: the table has one of that name; rename it first")
        return self


@reshape(key="name", version=1)
def measure_words(frame: pl.LazyFrame, params: MeasureWords) -> pl.LazyFrame:
    """Make a table of the words that tell chosen personas from rejected ones: by share, and by log-odds with a test."""
    columns = dict(zip(SIDES, (params.chosen_persona, params.rejected_persona), strict=True))
    texts = texts_of(frame, tuple(columns.values()))
    by = group_columns(params)
    counted = [
        frame.select(*by, pl.lit(side).alias("_side"), compared_part(texts[column]).str.extract_all(_LETTERS).alias("_token"))
        .explode("_token")
        .filter(pl.col("_token").is_not_null())
        .group_by(*params.by, "_side", "_token")
        .agg(pl.len().alias("_count"))
        for side, column in columns.items()
    ]
    fine = pl.concat(counted)

    def counts(level: tuple[str, ...]) -> pl.LazyFrame:
        return fine.group_by(*level, "_side", "_token").agg(pl.col("_count").sum())

    def lines(group: Mapping[str, str], found: pl.DataFrame) -> Iterator[Line]:
        yield from _lines(group, _by_lemma(found, params.language), params)

    return table_of(params, counts, lines, _EXTRA)


def compared_part(text: pl.Expr) -> pl.Expr:
    """Return what a persona's first sentence says in lower case, up to the first `rather than`, `over`, `versus` and so on."""
    first = text.str.strip_chars().str.split("\n").list.first()
    first = first.str.replace(_SENTENCE_END, "${1}\n${2}").str.split("\n").list.first()
    return first.str.to_lowercase().str.replace(_CONTRAST, "")


def lemma(word: str, language: str | None) -> str:
    """Return the lemma of a word in lower case; words with a hyphen stay as they are, since dictionaries don't have them."""
    if language is None or "-" in word:
        return word
    from simplemma import lemmatize

    return str(lemmatize(word, lang=language)).lower()


def _by_lemma(found: pl.DataFrame, language: str | None) -> pl.DataFrame:
    """Return how often each lemma occurs on each side: columns `word`, `chosen`, `rejected`, sorted by word."""
    words = found["_token"].unique().sort()
    lemmas = pl.DataFrame(
        {"_token": words, "word": [lemma(word, language) for word in words]}, schema_overrides={"word": pl.String}
    )
    return (
        found.join(lemmas, on="_token")
        .group_by("word")
        .agg(pl.col("_count").filter(pl.col("_side") == side).sum().cast(pl.Int64).alias(side) for side in SIDES)
        .sort("word")
    )


def log_odds(chosen: NDArray[np.int64], rejected: NDArray[np.int64], prior: float) -> tuple[Floats, Floats]:
    """Return the log-odds ratio of each word between two sides, with an informative Dirichlet prior, and its standard error.

    With y the counts of a word, n the words of a side and a the prior's counts of the word (a0 of all): log((y1 + a) / (n1 + a0 - y1 - a))
    - log((y2 + a) / (n2 + a0 - y2 - a)), with the variance 1 / (y1 + a) + 1 / (y2 + a) (B. L. Monroe, M. P. Colaresi, K. M. Quinn,
    Political Analysis 16, 2008, equations 16 and 20). The prior has the words in the shares of both sides together.
    """
    both = chosen + rejected
    expected = prior * both / both.sum()
    sides = [(side + expected, side.sum() + prior - side - expected) for side in (chosen, rejected)]
    difference = np.log(sides[0][0] / sides[0][1]) - np.log(sides[1][0] / sides[1][1])
    return difference, np.sqrt(1 / sides[0][0] + 1 / sides[1][0])


def _lines(group: Mapping[str, str], words: pl.DataFrame, params: MeasureWords) -> Iterator[Line]:
    kept = (words["chosen"] + words["rejected"] >= params.least).to_numpy()
    if not kept.any():
        return
    counts = {side: words[side].to_numpy() for side in SIDES}
    named = words["word"].to_numpy()[kept]
    total = (counts["chosen"] + counts["rejected"])[kept]
    for side in SIDES:
        own = counts[side][kept]
        for rank, at in enumerate(_first(named, -own / total, -total, params.top), start=1):
            share, low, high = wilson(int(own[at]), int(total[at]))
            extra = {"side": side, "word": str(named[at]), "rank": rank}
            yield Line("salience", f"{side}/{named[at]}", group, Estimate(share, low, high, None), int(total[at]), extra=extra)
    if words.height < 2:
        return  # a word has odds against the others
    from scipy.special import ndtr

    difference, error = (values[kept] for values in log_odds(counts["chosen"], counts["rejected"], params.prior))
    p_values = 2 * ndtr(-np.abs(difference / error))
    corrected = adjusted(p_values.tolist())
    for side, sign in (("chosen", 1.0), ("rejected", -1.0)):
        z = sign * difference / error
        for rank, at in enumerate(_first(named, -z, -total, params.top), start=1):
            if z[at] <= 0:
                break
            value, spread = float(sign * difference[at]), float(error[at])
            found = Estimate(value, value - _Z * spread, value + _Z * spread, spread)
            extra = {"side": side, "word": str(named[at]), "rank": rank}
            tested = (float(p_values[at]), corrected[at])
            yield Line("log_odds", f"{side}/{named[at]}", group, found, int(total[at]), *tested, extra=extra)


def _first(named: NDArray[np.object_], by: Floats, then: NDArray[np.int64], top: int) -> Sequence[int]:
    """Return the places of the first `top` words by `by`, then by `then`, then by the alphabet."""
    return [int(at) for at in np.lexsort((named.astype(str), then, by))[:top]]
