from __future__ import annotations

import random
import re
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ptk.ops.decontaminate import Decontaminate, decontaminate
from ptk.stages import run_stages

from .partitioned import run_partitioned

TEST = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"


def rows(*texts: str | None, column: str = "text") -> pl.DataFrame:
    keys = [f"k{number}" for number in range(len(texts))]
    return pl.DataFrame({"_key": keys, column: texts}, schema={"_key": pl.String, column: pl.String})


def decided(frame: pl.DataFrame, against: pl.DataFrame, **options: Any) -> pl.DataFrame:
    params = Decontaminate(**{"on": ("text",), **options})
    decision = run_stages(decontaminate, [frame.lazy(), against.lazy()], params).collect(engine="streaming")
    assert decision["_key"].to_list() == frame["_key"].to_list()
    return decision


def rejected(frame: pl.DataFrame, against: pl.DataFrame, **options: Any) -> list[str]:
    return decided(frame, against, **options).drop_nulls("_reject")["_key"].to_list()


def test_a_row_that_quotes_thirteen_words_is_rejected() -> None:
    quoted = "He said: " + " ".join(TEST.upper().split()[1:14]) + ". And left."
    shorter = "He said: " + " ".join(TEST.split()[1:13]) + ". And left."
    assert decided(rows(quoted, shorter), rows(TEST)).to_dict(as_series=False) == {
        "_key": ["k0", "k1"],
        "_reject": ["contaminated", None],
        "_detail": ["1 of 5 13-grams of text occur in the rows to keep clear of", None],
    }


def test_a_share_of_the_n_grams_may_be_allowed() -> None:
    frame = rows("a b c d", "a b x d", "x y z")
    against = rows("a b c", "q")
    assert rejected(frame, against, ngram=2) == ["k0", "k1"]
    assert rejected(frame, against, ngram=2, most=0.5) == ["k0"]
    assert rejected(frame, against, ngram=2, most=0.7) == []


def test_texts_of_fewer_words_are_compared_whole() -> None:
    assert rejected(rows("What is two plus two?", "Well, what is two plus two?"), rows("what is two plus two")) == ["k0"]


def test_texts_without_words_are_never_contaminated() -> None:
    assert rejected(rows(None, "", "..."), rows(None, "", "...")) == []


def test_no_rows_to_keep_clear_of_reject_nothing() -> None:
    assert rejected(rows(TEST), rows()) == []
    assert decided(rows(), rows()).schema == {"_key": pl.String, "_reject": pl.String, "_detail": pl.String}


def test_columns_are_looked_at_one_by_one() -> None:
    turns = pl.DataFrame({"_key": ["a", "b"], "text": ["what is two", "x"], "reply": [[{"role": "user", "content": TEST}], []]})
    against = rows("What is two?", column="question")
    found = decided(turns, against, on=("reply", "text"), against_on=("question",))
    assert found["_detail"].to_list() == ["1 of 4 13-grams of reply, text occur in the rows to keep clear of", None]


def test_a_column_that_is_not_there_is_an_error_before_any_row_is_read() -> None:
    with pytest.raises(ValueError, match="there is no column 'text'"):
        decided(rows(), rows(column="question"))
    with pytest.raises(ValueError, match="there is no column 'answer'"):
        decided(rows(), rows(), against_on=("answer",))


TEXTS = st.lists(st.none() | st.lists(st.sampled_from(["red", "Green", "blue,"]), max_size=8).map(" ".join), max_size=12)


@settings(deadline=None)
@given(TEXTS, TEXTS, st.integers(1, 4), st.sampled_from([0.0, 0.3, 0.9]), st.randoms(use_true_random=False))
def test_what_is_rejected_is_what_the_reference_rejects(
    texts: list[str | None], others: list[str | None], ngram: int, most: float, chance: random.Random
) -> None:
    def grams(text: str | None) -> list[tuple[str, ...]]:
        words = re.findall("[a-z]+", (text or "").lower())
        size = min(ngram, len(words))
        return [tuple(words[at : at + size]) for at in range(len(words) - size + 1)] if size else []

    known = {gram for text in others for gram in grams(text)}
    counts = [(sum(gram in known for gram in grams(text)), len(grams(text))) for text in texts]
    frame, against = rows(*texts), rows(*others)
    expected = [f"k{number}" for number, (shared, size) in enumerate(counts) if shared > most * size]
    assert rejected(frame, against, ngram=ngram, most=most) == expected
    params = Decontaminate(on=("text",), ngram=ngram, most=most)
    parted = run_partitioned(decontaminate, [frame, against], params, 3, chance.randrange(99)).sort("_key")
    assert parted.equals(decided(frame, against, ngram=ngram, most=most).sort("_key"))
