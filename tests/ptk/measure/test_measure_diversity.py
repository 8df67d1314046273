from __future__ import annotations

import math
from collections import Counter
from itertools import combinations, pairwise

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ptk.measure.measure_diversity import measure_diversity

from .tables import rows, table

persona = st.lists(st.sampled_from(["calm", "quick", "deep", "plain", "kind"]), min_size=1, max_size=5).map(" ".join)


@settings(max_examples=50, deadline=None)
@given(st.lists(persona, min_size=1, max_size=12))
def test_diversity_is_that_of_the_slow_way(personas: list[str]) -> None:
    found = rows(measure_diversity, pl.DataFrame({"p": [f"The user is {text}." for text in personas]}), columns=["p"])
    words = [text.split() for text in personas]
    tokens = Counter(word for text in words for word in text)
    number = sum(tokens.values())
    grams = Counter(pair for text in words for pair in pairwise(text))
    once, twice = (sum(times == so_often for times in tokens.values()) for so_often in (1, 2))
    shared = [len(set(one) & set(other)) for one, other in combinations(words, 2)]
    wanted = {
        "personas": len(personas),
        "distinct_personas": len(set(personas)) / len(personas),
        "most_copies": max(Counter(personas).values()),
        "distinct_1": len(tokens) / number,
        "distinct_2": len(grams) / sum(grams.values()) if grams else None,
        "effective_words": 2 ** -sum(times / number * math.log2(times / number) for times in tokens.values()),
        "shared_words": sum(shared) / len(shared) if shared else None,
        "coverage": 1 - once / number,
        "unseen_words": once * (once - 1) / (2 * (twice + 1)),
    }
    assert {line["measure"] for line in found.values()} == set(wanted)
    for measure, value in wanted.items():
        assert found[f"{measure}/p"]["value"] == (None if value is None else pytest.approx(value, abs=1e-9)), measure


def test_columns_are_told_alone_and_together() -> None:
    frame = pl.DataFrame(
        {"chosen_persona": ["The user is calm", "the user is CALM "], "rejected_persona": ["The user is quick", None]}
    )
    found = rows(measure_diversity, frame.with_columns(domain=pl.lit("x")), by=["domain"])
    assert found["distinct_personas/chosen_persona"]["value"] == 0.5
    assert (found["distinct_personas/all"]["value"], found["distinct_personas/all"]["n"]) == (pytest.approx(2 / 3), 3)
    assert found["distinct_personas/all/domain=x"]["value"] == pytest.approx(2 / 3)


def test_no_personas_have_no_diversity() -> None:
    frame = pl.DataFrame({"p": [None, " "]}, schema={"p": pl.String})
    assert table(measure_diversity, frame, columns=["p"]).height == 0
