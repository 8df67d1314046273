from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ptk_kernels import compiled
from ptk_kernels.loops import COUNT
from ptk_kernels.shingle import shingle
from ptk_kernels.views import string_views

from . import reference

ALPHABET = st.one_of(
    st.sampled_from("ab AB.,\n\t_'09"),
    st.sampled_from("äÖßéñÄ ÀÞ×÷ªº\xa0ΑΣςБЁя"),
    st.sampled_from("我喜欢吃。、「」ひカー・ｱＡｚ！ไทยกา한국어"),
    st.sampled_from("مرحبا،؟‌שלום־नमस्ते।👍🏽‍\ufe0f\ufeff\U0002a6d6\U000e0041"),
    st.characters(codec="utf-8"),
)
TEXTS = st.lists(st.none() | st.text(ALPHABET, max_size=40), max_size=30)


def rows(hashes: np.ndarray, offsets: np.ndarray) -> list[list[int]]:
    return [hashes[first:last].tolist() for first, last in pairwise(offsets)]


@settings(deadline=None)  # the first call compiles
@given(TEXTS, st.integers(1, 7))
@example(["", None, "a", "我a我a", "a我a", "a b c", "...", "x" * 12, "x" * 13, "ein zwei drei vier fünf sechs sieben"], 3)
def test_n_grams_are_those_of_the_reference(texts: list[str | None], ngram: int) -> None:
    found = rows(*shingle(pl.Series(texts, dtype=pl.String), ngram))
    assert found == [reference.shingles(text, ngram) for text in texts]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't STOP, now_then!", ["don", "t", "stop", "now", "then"]),
        ("Ärger über Öl – naïve café", ["ärger", "über", "öl", "naïve", "café"]),
        ("我喜欢, OK？", ["我", "喜", "欢", "ok"]),
        ("مرحبا، العالم؟", ["مرحبا", "العالم"]),
        ("Привет ΚΟΣΜΕ", ["привет", "κοσμε"]),
        ("한국어 텍스트", ["한국어", "텍스트"]),
        ("ok👍🏽ok", ["ok", "👍", "🏽", "ok"]),
        ("  \n\u00a0\u3000…—", []),
    ],
)
def test_words_of_a_text(text: str, words: list[str]) -> None:
    assert reference.words(text) == words
    assert shingle(pl.Series([text]), 1)[0].tolist() == [
        reference.mix((COUNT + reference.word_hash(word)) & reference.M) for word in words
    ]


def test_hashes_never_change() -> None:
    hashes, offsets = shingle(pl.Series(["The quick brown fox jumps over", None, "我喜欢", ""]), 5)
    assert [f"{value:016x}" for value in hashes.tolist()] == GOLDEN
    assert offsets.tolist() == [0, 2, 2, 3, 3]


GOLDEN = ["b642366b9d1f2654", "b5265a44d54fc970", "1a1f5a204d4e33da"]


@settings(deadline=None)  # the first call compiles
@given(TEXTS, st.integers(0, 5), st.integers(0, 30))
def test_slices_and_chunks_are_read_where_they_lie(texts: list[str | None], start: int, length: int) -> None:
    column = pl.Series(texts, dtype=pl.String)
    parts = pl.concat(
        [column, column.slice(start, length), pl.Series(["a text of more than twelve bytes"]), column], rechunk=False
    )
    expected = [reference.shingles(text, 2) for text in parts.to_list()]
    assert rows(*shingle(parts, 2)) == expected
    assert rows(*shingle(parts.slice(start, length), 2)) == expected[start : start + length]


def test_texts_are_not_copied() -> None:
    column = pl.Series(["a text of more than twelve bytes " * 40_000, None, "short"])
    before = {buffer.address for buffer in column.to_arrow(compat_level=pl.CompatLevel.newest()).buffers()[2:]}
    assert set(string_views(column).buffers.tolist()) == before


def test_a_column_of_nulls_has_no_n_grams() -> None:
    assert rows(*shingle(pl.Series([None, None]), 5)) == [[], []]
    assert rows(*shingle(pl.Series([], dtype=pl.String), 5)) == []


def test_what_is_not_text_is_refused() -> None:
    with pytest.raises(TypeError, match="texts are strings, not Int64"):
        shingle(pl.Series([1]), 5)
    with pytest.raises(ValueError, match="an n-gram has at least one word, not 0"):
        shingle(pl.Series(["a"]), 0)


def test_a_text_of_fifty_megabytes() -> None:
    word = "überlang "
    text = word * (50_000_000 // len(word.encode()))
    hashes, offsets = shingle(pl.Series(["x", text, "y"]), 5)
    assert offsets.tolist() == [0, 1, 1 + 5_000_000 - 4, 1 + 5_000_000 - 3]
    assert set(hashes[1:-1].tolist()) == set(reference.shingles(word * 5, 5))


def test_several_threads_give_what_one_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    column = pl.Series([f"text number {number} has some words" * (number % 5) for number in range(5_000)])
    monkeypatch.setattr(compiled, "thread_count", lambda: 1)
    one = shingle(column, 3)
    monkeypatch.setattr(compiled, "thread_count", lambda: 3)
    three = shingle(column, 3)
    assert [array.tolist() for array in one] == [array.tolist() for array in three]


CALL = (
    "import polars as pl; from ptk_kernels.shingle import shingle; print(shingle(pl.Series(['one two three']), 2)[0].tolist())"
)


def test_several_processes_compile_at_once_into_one_cache(tmp_path: Path) -> None:
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", CALL], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    answers = [process.communicate() for process in both]
    assert [answer[0] for answer in answers] == [f"{reference.shingles('one two three', 2)}\n"] * 2, answers
    assert list(tmp_path.rglob("*.nbi"))


def test_a_machine_without_a_place_for_compiled_code_compiles_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def add(left, right):  # type: ignore[no-untyped-def]
        return left + right

    from numba.core import caching  # type: ignore[import-untyped]

    monkeypatch.setattr(caching.FunctionCache._impl_class, "_locator_classes", [])
    assert compiled.compiled(add)(1, 2) == 3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*fork")
def test_a_forked_child_has_threads_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "thread_count", lambda: 2)
    assert compiled.in_parts(lambda start, stop: (start, stop), 10, 5) == [(0, 5), (5, 10)]
    child = os.fork()
    if child == 0:
        os._exit(0 if compiled.in_parts(lambda start, stop: (start, stop), 10, 5) == [(0, 5), (5, 10)] else 1)
    assert os.waitpid(child, 0)[1] == 0
