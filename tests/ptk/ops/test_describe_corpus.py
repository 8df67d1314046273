from __future__ import annotations

import json
import math
import random
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ptk.ops.describe_corpus import DescribeCorpus, describe_corpus, wilson

DATA = Path(__file__).resolve().parents[4] / "shared" / "data" / "persona_pairs.jsonl"


def table(frame: pl.DataFrame, **options: Any) -> pl.DataFrame:
    if "_key" not in frame.columns:
        frame = frame.with_columns(_key=pl.concat_str(pl.lit("k"), pl.int_range(pl.len()).cast(pl.String)))
    params = DescribeCorpus.model_validate_json(json.dumps(options))
    return describe_corpus.function(frame.lazy(), params=params).collect(engine="streaming")


def values(frame: pl.DataFrame, **options: Any) -> dict[str, float | None]:
    return dict(table(frame, **options).select("name", "value").iter_rows())


def words(*counts: int) -> list[str]:
    return [" ".join(["word"] * count) for count in counts]


def test_lengths_are_those_of_the_texts() -> None:
    found = values(pl.DataFrame({"prompt": ["a bb", "ccc", None, "", "a b c d e f"]}), languages=0, ngram=0)
    assert found == {
        "rows": 5.0,
        "missing/prompt": 1.0,
        "near_empty/prompt": 2.0,
        "words_mean/prompt": 2.25,
        "words_sd/prompt": statistics.stdev([2, 1, 0, 6]),
        "words_min/prompt": 0.0,
        "words_p5/prompt": 0.0,
        "words_median/prompt": 1.0,
        "words_p95/prompt": 6.0,
        "words_max/prompt": 6.0,
        "characters_mean/prompt": 4.5,
        "characters_sd/prompt": statistics.stdev([4, 3, 0, 11]),
        "characters_min/prompt": 0.0,
        "characters_p5/prompt": 0.0,
        "characters_median/prompt": 3.0,
        "characters_p95/prompt": 11.0,
        "characters_max/prompt": 11.0,
        "distinct/prompt": 5.0,
        "repeated/prompt": 0.0,
        "most_copies/prompt": 1.0,
    }


def test_turns_are_counted_where_there_are_turns() -> None:
    turns = [[{"role": "user", "content": "a b"}], [{"role": "user", "content": "c"}] * 3, []]
    found = values(pl.DataFrame({"prompt": turns}), languages=0)
    assert (found["turns_mean/prompt"], found["turns_max/prompt"], found["words_max/prompt"]) == (4 / 3, 3.0, 3.0)


def test_length_bias_has_a_share_and_a_mean_difference_with_intervals() -> None:
    frame = pl.DataFrame({"chosen": words(3, 5, 2, 4), "rejected": words(1, 2, 2, 6)})
    rows = {row["name"]: row for row in table(frame).iter_rows(named=True)}
    longer, difference = rows["chosen_longer_words/chosen"], rows["length_difference_words/chosen"]
    assert (longer["value"], longer["low"], longer["high"], longer["n"]) == (*wilson(2, 4), 4)
    assert rows["equally_long_words/chosen"]["value"] == 0.25
    half = 1.959963984540054 * statistics.stdev([2, 3, 0, -2]) / 2
    assert (difference["value"], difference["n"]) == (0.75, 4)
    assert (difference["low"], difference["high"]) == pytest.approx((0.75 - half, 0.75 + half))


def test_the_score_interval_is_that_of_the_textbook() -> None:
    # 81 of 263: L. D. Brown, T. T. Cai, A. DasGupta and others quote (0.2553, 0.3662) for this classical example.
    share, low, high = wilson(81, 263)
    assert (round(share or 0, 4), round(low or 0, 4), round(high or 0, 4)) == (0.3080, 0.2553, 0.3662)
    assert wilson(0, 10)[1] == 0.0 and wilson(10, 10)[2] == 1.0 and wilson(0, 0) == (None, None, None)


def test_verbosity_bias_goes_by_the_length_ratio() -> None:
    # Ratios 1.5 (chosen shorter) and 4 (chosen longer); equally long pairs are left out.
    frame = pl.DataFrame({"chosen": words(2, 2, 8, 8, 3), "rejected": words(3, 3, 2, 2, 3)})
    found = {row["name"]: (row["value"], row["n"]) for row in table(frame, quantiles=2).iter_rows(named=True)}
    assert {name: value for name, value in found.items() if name.endswith(("q1/chosen", "q2/chosen"))} == {
        "verbosity_bias_q1/chosen": (0.0, 2),
        "length_ratio_q1/chosen": (1.5, 2),
        "verbosity_bias_q2/chosen": (1.0, 2),
        "length_ratio_q2/chosen": (4.0, 2),
    }


def test_duplicates_and_conflicts_are_counted() -> None:
    frame = pl.DataFrame(
        {
            "prompt": ["p", "p", "p", "p", "q", "r"],
            "chosen": ["a", "a", "b", "a", "a", "same"],
            "rejected": ["b", "b", "a", "c", "b", "same"],
        }
    )
    found = values(frame, languages=0)
    names = ("distinct", "repeated", "most_copies", "conflicting_items", "conflicting_rows", "identical_responses")
    assert [found[f"{name}/pair"] for name in names] == [5.0, 1.0, 2.0, 1.0, 3.0, 1.0]
    assert [found[f"{name}/prompt"] for name in names[:3]] == [3.0, 3.0, 4.0]


def test_numbers_are_described_where_they_are_finite() -> None:
    frame = pl.DataFrame(
        {"margin": [1.0, 2.0, None, math.nan, math.inf, 3.0], "agreement": [1, 1, 1, 0, 0, 0], "other": [1] * 6}
    )
    found = values(frame)
    assert (found["number_mean/margin"], found["missing/margin"], found["number_median/margin"]) == (2.0, 3.0, 2.0)
    assert found["number_mean/agreement"] == 0.5
    assert "number_mean/other" not in found
    assert values(frame, numbers=["other"])["number_mean/other"] == 1.0
    assert values(pl.DataFrame({"margin": [1.7e308] * 3}))["number_mean/margin"] is None
    with pytest.raises(TypeError, match="column 'text' is String, not numbers"):
        table(pl.DataFrame({"text": ["x"]}), numbers=["text"])


def test_everything_is_told_for_each_group_too() -> None:
    frame = pl.DataFrame({"prompt": ["p", "p", "q r", "p"], "source": ["a", "a/b", None, "a/b"]})
    found = values(frame, by="source", languages=0, ngram=0)
    assert {name: value for name, value in found.items() if name.startswith(("rows", "words_mean", "distinct"))} == {
        "rows": 4.0,
        "rows//a": 1.0,
        "rows//a%2Fb": 2.0,
        "rows//%null": 1.0,
        "words_mean/prompt": 1.25,
        "words_mean/prompt/a": 1.0,
        "words_mean/prompt/a%2Fb": 1.0,
        "words_mean/prompt/%null": 2.0,
        "distinct/prompt": 2.0,
        "distinct/prompt/a": 1.0,
        "distinct/prompt/a%2Fb": 1.0,
        "distinct/prompt/%null": 1.0,
    }
    row = table(frame, by="source").filter(pl.col("name") == "rows//a%2Fb").row(0, named=True)
    assert (row["measure"], row["column"], row["by"], row["group"]) == ("rows", None, "source", "a/b")


def test_repetition_and_variety_are_told_by_ngrams() -> None:
    texts = ["one two three", "la la la la", None, "", "one Two, three!"]
    frame = pl.DataFrame({"prompt": texts, "source": ["a", "b", "b", "b", "a"]})
    rows = {row["name"]: row for row in table(frame, by="source", ngram=2, languages=0).iter_rows(named=True)}
    # One two, two three; la la, three times; one two, two three once more.
    told = {name: (row["value"], row["n"]) for name, row in rows.items() if "ngrams" in name}
    assert told == {
        "repeated_ngrams/prompt": (pytest.approx(2 / 9), 3),
        "repeated_ngrams/prompt/a": (0.0, 2),
        "repeated_ngrams/prompt/b": (pytest.approx(2 / 3), 1),
        "distinct_ngrams/prompt": (pytest.approx(3 / 7), 7),
    }


def test_languages_are_told_from_a_sample_of_the_prompts() -> None:
    english = "How long does it take until the rice is done, and how much water do I need?"
    german = "Wie lange dauert es, bis der Reis gar ist, und wie viel Wasser brauche ich?"
    frame = pl.DataFrame({"prompt": [english] * 6 + [german] * 3 + ["?!"]})
    found = {row["name"]: (row["value"], row["n"]) for row in table(frame).iter_rows(named=True)}
    assert {name: value for name, value in found.items() if name.startswith("language")} == {
        "language_en/prompt": (0.6, 10),
        "language_de/prompt": (0.3, 10),
        "language_und/prompt": (0.1, 10),
    }
    sampled = table(frame, languages=4).filter(pl.col("measure").str.starts_with("language"))
    assert set(sampled["n"]) == {4}


def test_what_is_not_there_is_not_described() -> None:
    assert values(pl.DataFrame({"n": [1, 2], "prompt": [1, 2]})) == {"rows": 2.0}
    assert values(pl.DataFrame({"chosen": ["a"]}))["words_max/chosen"] == 1.0
    assert "conflicting_items/pair" not in values(pl.DataFrame({"chosen": ["a"]}))


def test_further_texts_are_measured() -> None:
    assert values(pl.DataFrame({"persona": ["a b c"]}), texts=["persona"])["words_max/persona"] == 3.0
    with pytest.raises(TypeError, match="neither text nor a list of turns"):
        table(pl.DataFrame({"n": [1]}), texts=["n"])
    with pytest.raises(TypeError, match=r"column 'l' is List\(Int64\), whose values can't name groups"):
        table(pl.DataFrame({"l": [[1]]}), by="l")


def test_no_rows_are_no_rows() -> None:
    empty = pl.DataFrame(
        schema={"prompt": pl.String, "chosen": pl.String, "rejected": pl.String, "s": pl.String, "margin": pl.Float64}
    )
    assert values(empty, by="s") == {"rows": 0.0}


row = st.tuples(
    st.sampled_from(["p", "q q", "", None]),
    st.sampled_from(["a", "b b", "c c c"]),
    st.sampled_from(["a", "b b", "c c c"]),
    st.sampled_from(["s", "t", None]),
    st.sampled_from([0.1, 0.2, 0.3, 1e16, -1e16, None]),
)


@settings(max_examples=25, deadline=None)
@given(st.lists(row, max_size=30), st.randoms(use_true_random=False))
def test_the_table_depends_neither_on_order_nor_on_parts(rows: list[tuple[Any, ...]], chance: random.Random) -> None:
    names = ["prompt", "chosen", "rejected", "source", "margin"]
    schema = {**dict.fromkeys(names[:4], pl.String), "margin": pl.Float64}
    frame = pl.DataFrame(rows, schema=schema, orient="row").with_columns(_key=pl.int_range(pl.len()).cast(pl.String))
    order = list(range(frame.height))
    chance.shuffle(order)
    shuffled = frame[order]
    cut = chance.randint(0, frame.height)
    parts = pl.concat([shuffled.head(cut), shuffled.slice(cut)], rechunk=False)
    options = {"by": "source", "languages": 3}
    whole = table(frame, **options)
    assert table(parts, **options).equals(whole)
    assert whole["name"].n_unique() == whole.height


@pytest.mark.skipif(not DATA.exists(), reason="the corpora are not here")
def test_a_real_corpus_is_described() -> None:
    records = pl.read_ndjson(DATA)
    rows = {line["name"]: line for line in table(records, by="domain", texts=["chosen_persona"]).iter_rows(named=True)}
    lengths = records.select(pl.col("chosen", "rejected").str.count_matches(r"\S+").cast(pl.Int64))
    difference = (lengths["chosen"] - lengths["rejected"]).to_list()
    assert rows["rows"]["value"] == records.height
    assert rows["length_difference_words/chosen"]["value"] == pytest.approx(statistics.fmean(difference))
    assert rows["chosen_longer_words/chosen"]["value"] == sum(d > 0 for d in difference) / len(difference)
    assert rows["distinct/prompt"]["value"] == records["prompt"].n_unique()
    assert sum(line["value"] for name, line in rows.items() if name.startswith("rows//")) == records.height


def test_a_spec_registers_the_table(tmp_path: Path, ptk: Callable[..., Any]) -> None:
    records = [{"prompt": f"Q{n}?", "chosen": f"A {n}.", "rejected": f"B{n}."} for n in range(20)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (tmp_path / "spec.yaml").write_text(
        "ptk: 1\nname: told\nsteps:\n  pairs: {op: read_pairs, path: pairs.jsonl, source: mine}\n"
        "  told:  {op: describe_corpus, from: pairs, by: source}\noutputs:\n  small/told: {from: told}\n"
    )
    done = ptk("run", "spec.yaml")
    assert done.returncode == 0, done.stderr
    import ptk_catalog

    rows = ptk_catalog.open(tmp_path / "catalog" / "store").load("small/told@v1").collect()
    assert dict(rows.select("name", "value").iter_rows())["chosen_longer_words/chosen/mine"] == 1.0
