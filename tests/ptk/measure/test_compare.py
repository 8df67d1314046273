from __future__ import annotations

import json
import random
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from ptk.measure.compare_groups import compare_groups
from ptk.measure.compare_outputs import compare_outputs

from .tables import rows, table

right_or_wrong = st.one_of(st.none(), st.booleans())


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.integers(0, 60), right_or_wrong, min_size=1),
    st.dictionaries(st.integers(0, 60), right_or_wrong, min_size=1),
)
def test_two_outputs_are_paired_by_key_and_tested_by_mcnemar(ours: dict[int, Any], theirs: dict[int, Any]) -> None:
    left, right = (
        pl.DataFrame(
            {"_key": [str(key) for key in some], "correct": list(some.values())},
            schema={"_key": pl.String, "correct": pl.Boolean},
        )
        for some in (ours, theirs)
    )
    found = rows(compare_outputs, left, right, value="correct", rounds=60)
    pairs = [(ours[key], theirs[key]) for key in ours if ours[key] is not None and theirs.get(key) is not None]
    assert found["left_alone"]["value"] == sum(value is not None for value in ours.values()) - len(pairs)
    assert found["right_alone"]["value"] == sum(value is not None for value in theirs.values()) - len(pairs)
    assert found["difference"]["n"] == len(pairs)
    if not pairs:
        assert found["difference"]["value"] is None
        return
    table_of = [[sum(pair == (a, b) for pair in pairs) for b in (True, False)] for a in (True, False)]
    for name, at in (("left", 0), ("right", 1)):
        assert found[name]["value"] == pytest.approx(np.mean([pair[at] for pair in pairs]), abs=1e-9)
    assert found["difference"]["value"] == pytest.approx(np.mean([a - b for a, b in pairs]), abs=1e-9)
    assert found["equal"]["value"] == pytest.approx(np.mean([a == b for a, b in pairs]), abs=1e-9)
    better, decided = table_of[0][1], table_of[0][1] + table_of[1][0]
    assert (found["better"]["value"], found["better"]["n"]) == (pytest.approx(better / decided) if decided else None, decided)
    if decided:
        assert found["better"]["p_value"] == pytest.approx(mcnemar(table_of, exact=True).pvalue, abs=1e-9)


def scored(count: int, seed: int, better: float = 0.0) -> pl.DataFrame:
    chance = random.Random(seed)
    return pl.DataFrame(
        {
            "_key": [str(number) for number in range(count)],
            "prompt": [f"p{number // 2}" for number in range(count)],
            "domain": ["a" if number % 4 < 2 else "b" for number in range(count)],
            "score": [round(chance.gauss(better, 1), 3) for _ in range(count)],
        }
    )


def test_numbers_are_tested_by_rank_over_prompts() -> None:
    left, right = scored(80, 0, 0.3), scored(80, 1)
    found = rows(compare_outputs, left, right.sample(fraction=1, shuffle=True, seed=2), value="score", by=["domain"])
    apart = left.with_columns(d=left["score"] - right["score"])
    for suffix, some in (("", apart), ("/domain=a", apart.filter(pl.col("domain") == "a"))):
        means = some.group_by("prompt").agg(pl.col("d").mean())["d"].to_numpy()
        wanted = stats.wilcoxon(means, zero_method="wilcox", correction=False, method="asymptotic").pvalue
        assert found[f"signed_rank{suffix}"]["p_value"] == pytest.approx(wanted, abs=1e-9)
        line = found[f"difference{suffix}"]
        assert line["standard_error"] == pytest.approx(stats.sem(means), abs=1e-9)
        by_t = stats.ttest_1samp(means, 0).pvalue
        assert line["p_value"] == pytest.approx(by_t, abs=0.06)  # a bootstrap of the same thing


def test_verdicts_count_as_they_are_told_to() -> None:
    left = pl.DataFrame({"_key": ["a", "b", "c", "d"], "verdict": ["first", "tie", "second", "what"]})
    right = pl.DataFrame({"_key": ["a", "b", "c", "d"], "other": ["tie", "tie", "tie", "first"]})
    found = rows(compare_outputs, left, right, value="verdict", right_value="other", rounds=0)
    assert (found["left"]["value"], found["right"]["value"], found["left"]["n"], found["right_alone"]["value"]) == (
        0.5,
        0.5,
        3,
        1,
    )
    harsh = rows(
        compare_outputs, left, right, value="verdict", right_value="other", rounds=0, scores={"first": 1, "tie": 0, "second": 0}
    )
    assert harsh["difference"]["value"] == pytest.approx(1 / 3)


def test_rows_are_paired_by_columns_too() -> None:
    left = scored(20, 3).with_columns(item=pl.col("_key"), _key=pl.concat_str(pl.lit("l"), "_key"))
    right = scored(20, 4).with_columns(item=pl.col("_key"), _key=pl.concat_str(pl.lit("r"), "_key"))
    assert rows(compare_outputs, left, right, value="score", rounds=0)["difference"]["n"] == 0
    assert rows(compare_outputs, left, right, value="score", on=["item"], rounds=0)["difference"]["n"] == 20
    with pytest.raises(pl.exceptions.ComputeError, match="1:1"):
        table(compare_outputs, left, right, value="score", on=["domain"])


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"right_value": "scor"}, "`right` has no column 'scor'; did you mean 'score'?"),
        ({"value": "list"}, "neither numbers nor labels"),
        ({"scores": {"first": 1e400}}, "no number"),
    ],
)
def test_what_can_not_be_compared_is_refused(options: dict[str, Any], what: str) -> None:
    frame = scored(4, 0).with_columns(list=pl.concat_list("score"))
    with pytest.raises((ValueError, TypeError), match=what):
        table(compare_outputs, frame, frame, **{"value": "score", **options})


def test_every_two_groups_are_compared_and_adjusted_together() -> None:
    frames = [
        scored(60, seed, seed / 4).with_columns(model=pl.lit(name), item=pl.col("_key")) for seed, name in enumerate("abc")
    ]
    long = pl.concat(frames).with_columns(_key=pl.concat_str("model", "_key")).sample(fraction=1, shuffle=True, seed=5)
    found = rows(compare_groups, long, value="score", of="model", on=["item"], by=["domain"])
    assert {line["about"] for line in found.values()} == {"a - b", "a - c", "b - c"}
    for (one, left), (other, right) in combinations(zip("abc", frames, strict=True), 2):
        alone = rows(compare_outputs, left, right, value="score", by=["domain"])
        for name in ("difference", "signed_rank", "better", "left"):
            line = found[f"{name}/{one} - {other}"]
            same = ("value", "low", "high", "standard_error", "p_value", "n")
            assert [line[key] for key in same] == pytest.approx(
                [alone[name][key] for key in same], nan_ok=True
            ) or name == "left"
    for measure in ("difference", "signed_rank", "better"):
        lines = [line for line in found.values() if line["measure"] == measure]
        assert len(lines) == 9
        wanted = multipletests([line["p_value"] for line in lines], method="fdr_bh")[1]
        assert [line["p_adjusted"] for line in lines] == pytest.approx(list(wanted), abs=1e-9)


def test_one_group_has_nothing_to_be_compared_with() -> None:
    frame = scored(4, 0).with_columns(model=pl.lit("a"), item=pl.col("_key"))
    assert table(compare_groups, frame, value="score", of="model", on=["item"]).height == 0
    with pytest.raises(ValueError, match="can't be grouped or paired by"):
        table(compare_groups, frame, value="score", of="model", on=["item"], by=["model"])


SPEC = """\
ptk: 1
name: compared
steps:
  pairs: {op: read_pairs, path: pairs.jsonl}
  one:   {op: derive_columns, from: pairs, columns: {correct: "n < 3"}}
  same:  {op: derive_columns, from: pairs, columns: {correct: "n < 3"}}
  other: {op: derive_columns, from: pairs, columns: {correct: "n < 5"}}
  told:  {op: compare_outputs, from: {left: LEFT, right: RIGHT}, value: correct}
outputs:
  small/told: {from: told}
"""


@pytest.mark.parametrize(
    ("left", "right", "said"),
    [
        ("one", "one", "compare_outputs compares 'one' twice: nothing with itself"),
        ("one", "same", "compare_outputs compares 'one' and 'same', which give the same rows: nothing with itself"),
        ("one", "other", None),
    ],
)
def test_nothing_is_compared_with_itself(
    tmp_path: Path, ptk: Callable[..., Any], left: str, right: str, said: str | None
) -> None:
    records = [{"prompt": f"Q{n}?", "chosen": f"A {n}.", "rejected": f"B{n}.", "n": n} for n in range(8)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (tmp_path / "spec.yaml").write_text(SPEC.replace("LEFT", left).replace("RIGHT", right))
    done = ptk("run", "spec.yaml")
    if said is not None:
        assert done.returncode == 2 and f"spec.yaml:8: steps.told.from: {said}" in done.stderr.replace("\n", " ")
        return
    assert done.returncode == 0, done.stderr
    import ptk_catalog

    found = ptk_catalog.open(tmp_path / "catalog" / "store").load("small/told@v1").collect()
    assert dict(found.select("name", "value").iter_rows())["difference"] == pytest.approx(-0.25)
