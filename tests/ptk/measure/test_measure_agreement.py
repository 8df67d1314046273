from __future__ import annotations

import math
import warnings
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from ptk.measure.measure_agreement import measure_agreement

from .tables import rows, table

LABELS = ["first", "tie", "second"]
label = st.sampled_from([*LABELS, "other", None])


def kappa(left: list[Any], right: list[Any], labels: list[str], weights: str | None) -> float | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = cohen_kappa_score(left, right, labels=labels, weights=weights)
    return None if math.isnan(found) else float(found)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(label, label), min_size=1, max_size=40))
def test_kappa_is_that_of_scikit_learn(pairs: list[tuple[Any, Any]]) -> None:
    frame = pl.DataFrame(pairs, schema={"judge": pl.String, "human": pl.String}, orient="row")
    found = rows(measure_agreement, frame, left="judge", right="human", rounds=20)
    known = [pair for pair in pairs if set(pair) <= set(LABELS)]
    assert found["left_out"]["value"] == len(pairs) - len(known)
    for suffix, some, labels in (
        ("", known, LABELS),
        ("_without_ties", [p for p in known if "tie" not in p], ["first", "second"]),
    ):
        line = found[f"agreement{suffix}"]
        assert line["n"] == len(some)
        if not some:
            assert line["value"] is None
            continue
        assert line["value"] == pytest.approx(sum(a == b for a, b in some) / len(some), abs=1e-9)
        left, right = zip(*some, strict=True)
        for name, weights in (("kappa", None), ("kappa_linear", "linear"), ("kappa_quadratic", "quadratic")):
            if f"{name}{suffix}" not in found:
                assert suffix and weights
                continue
            wanted = kappa(list(left), list(right), labels, weights)
            got = found[f"{name}{suffix}"]["value"]
            assert got == (None if wanted is None else pytest.approx(wanted, abs=1e-9))


def test_labels_may_be_true_and_false_or_numbers() -> None:
    frame = pl.DataFrame({"a": [True, False, True, None], "b": [True, True, True, True]})
    found = rows(measure_agreement, frame, left="a", right="b", labels=["true", "false"])
    assert (found["agreement"]["value"], found["agreement"]["n"], found["kappa"]["value"]) == (pytest.approx(2 / 3), 3, 0.0)
    assert "kappa_linear" not in found and "agreement_without_ties" not in found
    numbers = pl.DataFrame({"a": [1, 2, 0], "b": [1, 2, 2]})
    assert (
        rows(measure_agreement, numbers, left="a", right="b", labels=["1", "0", "2"], tie="0")["agreement_without_ties"]["n"]
        == 2
    )


def test_kappa_has_an_interval() -> None:
    frame = pl.DataFrame({"a": ["first", "second"] * 30, "b": ["first", "second", "second"] * 20})
    line = rows(measure_agreement, frame, left="a", right="b")["kappa"]
    assert line["low"] < line["value"] < line["high"] and line["standard_error"] > 0


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"right": "a"}, "the same column"),
        ({"right": "b", "labels": ["x", "x"]}, "stands twice"),
        ({"right": "c"}, "not labels"),
    ],
)
def test_settings_without_sense_are_refused(options: dict[str, Any], what: str) -> None:
    with pytest.raises((ValueError, TypeError), match=what):
        table(measure_agreement, pl.DataFrame({"a": ["x"], "b": ["x"], "c": [["x"]]}), left="a", **options)
