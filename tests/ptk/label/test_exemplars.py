from __future__ import annotations

import math
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from ptk.label.exemplars import fixed_cases, nearest_cases
from ptk.llm.prompt_files import Exemplar, ExemplarFile
from ptk.text import words


def cases(*prompts: str) -> ExemplarFile:
    return ExemplarFile("cases.yaml", tuple(Exemplar(prompt=text, preferred="A", other="B", persona="C") for text in prompts))


FOUR = cases("How do I water a cactus?", "How long does rice take to cook?", "Should I adopt a cat?", "How do I cook beans?")


def test_fixed_cases_are_the_first_ones() -> None:
    assert fixed_cases(FOUR, 2) == (0, 1)
    assert fixed_cases(FOUR, None) == (0, 1, 2, 3)


def test_the_nearest_cases_share_rare_words_and_keep_the_order_of_the_file() -> None:
    assert nearest_cases(FOUR, 1, "Is my cat lonely?") == (2,)
    assert nearest_cases(FOUR, 2, "beans or rice: what can I cook?") == (1, 3)
    assert nearest_cases(FOUR, 1, "Beans or rice: what can I cook?") == (3,)  # the shorter of two with as many words


def test_where_nothing_is_near_the_first_ones_are_taken() -> None:
    assert nearest_cases(FOUR, 2, "Qu'est-ce que c'est?") == (0, 1)
    assert nearest_cases(FOUR, 2, "") == (0, 1)


def slow(texts: list[str], query: str) -> list[float]:
    """Return BM25 as its formula is written."""
    found = [words(text) for text in texts]
    mean = sum(map(len, found)) / len(found) or 1.0
    scores = []
    for text in found:
        score = 0.0
        for word in set(words(query)):
            n = sum(word in other for other in found)
            idf = math.log(1 + (len(found) - n + 0.5) / (n + 0.5))
            tf = text.count(word)
            score += idf * tf * 2.2 / (tf + 1.2 * (0.25 + 0.75 * len(text) / mean)) if tf else 0.0
        scores.append(score)
    return scores


TEXTS = st.lists(st.sampled_from("abcde"), min_size=1, max_size=8).map(" ".join)


@given(st.lists(TEXTS, min_size=1, max_size=6), TEXTS, st.integers(1, 6))
@settings(deadline=None)  # the first one imports bm25s
def test_no_case_that_is_left_out_is_nearer_than_one_that_is_taken(texts: list[str], query: str, count: int) -> None:
    taken = nearest_cases(cases(*texts), count, query)
    scores = slow(texts, query)
    assert len(taken) == min(count, len(texts))
    left = [score for number, score in enumerate(scores) if number not in taken]
    assert not left or min(scores[number] for number in taken) >= max(left) - 1e-9


def test_the_path_of_a_file_decides_nothing(tmp_path: Path) -> None:
    assert nearest_cases(FOUR, 1, "cat") == nearest_cases(ExemplarFile("other.yaml", FOUR.exemplars), 1, "cat")
