from __future__ import annotations

import random
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy import stats

from ptk.measure.measure_style import measure_style
from ptk.measure.style import FEATURES, features

from .tables import rows, table


def told(text: str | None) -> dict[str, Any]:
    return pl.DataFrame({"t": [text]}, schema={"t": pl.String}).select(**features(pl.col("t"))).row(0, named=True)


def test_features_of_a_text() -> None:
    text = "You could try it. It's quick!\n\n- rinse the rice\n- boil it\n1. rest\n2) serve, maybe"
    found = told(text)
    assert {name: found[name] for name in ("words", "sentences", "list_items")} == {
        "words": 14,
        "sentences": 2,
        "list_items": 4,
    }
    assert found["hedges_per_100_words"] == pytest.approx(100 * 2 / 14)


def test_readability_is_the_automated_index() -> None:
    # 9 words, 35 letters and digits, 2 sentences.
    text = "The cat sat on mats. It was 10 o'clock then."
    words = text.replace(".", "").split()
    letters = sum(character.isalnum() for character in text)
    assert told(text)["readability"] == pytest.approx(4.71 * letters / len(words) + 0.5 * len(words) / 2 - 21.43, abs=1e-9)


def test_what_has_no_words_has_no_readability() -> None:
    assert told("...") == {"words": 0, "sentences": 1, "list_items": 0, "hedges_per_100_words": None, "readability": None}
    assert set(told(None).values()) == {None}


def test_a_shift_is_that_within_rows() -> None:
    chance = random.Random(3)
    vocabulary = ["rice", "perhaps", "it.", "might", "water", "\n- pot", "pan."]
    frame = pl.DataFrame(
        {
            name: [
                " ".join(chance.choices(vocabulary, k=chance.randint(0, 30))) if chance.random() < 0.9 else None
                for _ in range(60)
            ]
            for name in ("with", "without")
        }
    )
    found = rows(measure_style, frame, columns=["with"], against="without", rounds=100)
    values = {name: frame.select(**features(pl.col(name))) for name in ("with", "without")}
    for feature in FEATURES:
        shown = values["with"][feature].drop_nulls().to_numpy().astype(float)
        assert (found[f"{feature}/with"]["value"], found[f"{feature}/with"]["n"]) == (
            pytest.approx(shown.mean(), abs=1e-9),
            len(shown),
        )
        shift = (values["with"][feature].cast(pl.Float64) - values["without"][feature].cast(pl.Float64)).drop_nulls().to_numpy()
        line = found[f"shift_{feature}/with"]
        assert (line["value"], line["n"]) == (pytest.approx(shift.mean(), abs=1e-9), len(shift))
        more, less = int((shift > 1e-9).sum()), int((shift < -1e-9).sum())
        assert line["p_value"] == pytest.approx(stats.binomtest(more, more + less).pvalue, abs=1e-9)
        assert found[f"more_{feature}/with"]["value"] == pytest.approx(np.mean(shift > 1e-9), abs=1e-9)
        # Rows without both texts are clusters too, with nothing in them.
        assert line["standard_error"] == pytest.approx(stats.sem(shift), rel=0.1)


def test_a_text_does_not_shift_from_itself() -> None:
    frame = pl.DataFrame({"a": ["x"], "b": ["y"]})
    with pytest.raises(ValueError, match="does not shift from itself"):
        table(measure_style, frame, columns=["a", "b"], against="a")
    with pytest.raises(ValueError, match="stands twice"):
        table(measure_style, frame, columns=["a", "a"])


def test_turns_are_measured_by_their_contents() -> None:
    frame = pl.DataFrame({"chosen": [[{"role": "assistant", "content": "one two."}]], "rejected": ["one"]})
    assert rows(measure_style, frame)["words/chosen"]["value"] == 2.0
