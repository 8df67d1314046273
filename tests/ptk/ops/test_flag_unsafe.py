from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import orjson
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from polars.exceptions import PolarsError
from pydantic import ValidationError

from ptk.ops.flag_unsafe import FlagUnsafe, flag_unsafe
from ptk.stages import run_stages
from ptk_catalog.digest import row_id

FRAME = pl.DataFrame(
    {
        "_key": list("abcd"),
        "rejected_safe": [True, False, None, True],
        "harms": [["theft"], [], None, ["fraud", "arson"]],
        "toxicity": [0.1, float("nan"), 0.9, None],
        "rejected": ["You KILL it", "skilled", "c++ rocks", None],
    }
)


def flags(frame: pl.DataFrame = FRAME, **settings: object) -> list[list[str]]:
    params = FlagUnsafe.model_validate_json(orjson.dumps(settings))
    return run_stages(flag_unsafe, [frame.lazy()], params).collect(engine="streaming")["unsafe"].to_list()


def test_labels_flag_rows_by_their_values() -> None:
    assert flags(labels={"rejected_safe": False}) == [[], ["rejected_safe"], [], []]
    assert flags(labels={"rejected_safe": [False, None]}) == [[], ["rejected_safe"], ["rejected_safe"], []]


def test_a_list_of_labels_flags_where_one_of_them_does() -> None:
    assert flags(labels={"harms": ["arson", "theft"]}) == [["harms"], [], [], ["harms"]]


def test_scores_flag_from_a_threshold_on_and_no_score_says_nothing() -> None:
    assert flags(scores={"toxicity": 0.9}) == [[], [], ["toxicity"], []]


def test_words_are_found_whole_and_in_any_case() -> None:
    assert flags(words=["kill", "C++"], columns=["rejected"]) == [["words_in_rejected"], [], ["words_in_rejected"], []]


@pytest.mark.parametrize(
    ("word", "text", "there"),
    [
        ("kill", "kill", True),
        ("kill", "(Kill)!", True),
        ("kill", "skill", False),
        ("kill", "kill_it", False),
        ("hot wire", "how to HOT\n  wire a car", True),
        ("a.b", "axb", False),
        ("äpfel", "A\u0308PFEL", True),
        ("kill", "ｋｉｌｌ", True),
        ("über", "darüber", False),
        ("杀人", "他杀人了", True),
        ("c++", "c+", False),
        ("c++", "use c++, please", True),
    ],
)
def test_what_counts_as_the_word(word: str, text: str, there: bool) -> None:
    frame = pl.DataFrame({"_key": ["a"], "prompt": [text]})
    assert flags(frame, words=[word], columns=["prompt"]) == [["words_in_prompt"] if there else []]


def test_a_long_list_of_words_finds_each(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("\ufeff" + "\n".join(f"word{n}" for n in range(1_300)) + "\n\n")
    frame = pl.DataFrame({"_key": ["a", "b", "c"], "prompt": ["Word0!", "a word1299", "word1300"]})
    found = flags(frame, word_files=str(tmp_path / "words.txt"), columns=["prompt"])
    assert found == [["words_in_prompt"], ["words_in_prompt"], []]


@given(st.lists(st.sampled_from(["ab", "b", "c+", "Ä"]), min_size=1, unique=True), st.text(alphabet="abcÄä+ .", max_size=12))
def test_words_are_found_as_a_slow_search_finds_them(words: list[str], text: str) -> None:
    def has(word: str) -> bool:
        low, word = text.lower(), word.lower()
        starts = [at for at in range(len(low)) if low.startswith(word, at)]
        edge = [(low[at - 1 : at] if at else "", low[at + len(word) : at + len(word) + 1]) for at in starts]
        return any(not before.isalnum() and not after.isalnum() for before, after in edge)

    frame = pl.DataFrame({"_key": ["a"], "prompt": [text]})
    assert bool(flags(frame, words=words, columns=["prompt"])[0]) == any(has(word) for word in words)


def test_unsafe_rows_can_be_rejected_and_all_that_shows_it_is_said() -> None:
    params = FlagUnsafe(
        labels={"rejected_safe": False}, scores={"toxicity": 0.5}, words=("c++",), columns=("rejected",), action="reject"
    )
    decision = run_stages(flag_unsafe, [FRAME.lazy()], params).collect()
    assert decision["_reject"].to_list() == [None, "unsafe", "unsafe", None]
    assert decision["_detail"].to_list() == [None, "unsafe by rejected_safe", "unsafe by toxicity, words_in_rejected", None]


def test_no_rows_give_a_column_that_a_catalog_can_keep() -> None:
    params = FlagUnsafe(labels={"rejected_safe": False})
    decision = run_stages(flag_unsafe, [FRAME.clear().lazy()], params).collect()
    assert decision.schema == {"_key": pl.String, "unsafe": pl.List(pl.String)}
    assert decision.select(row_id(dict(decision.schema))).height == 0


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"labels": {"rejected_saf": False}}, "did you mean 'rejected_safe'?"),
        ({"labels": {"rejected_safe": "no"}}, "column 'rejected_safe' is Boolean, which never is 'no'"),
        ({"scores": {"harms": 0.5}}, "and a score is a number"),
        ({"words": ["x"], "columns": ["toxicity"]}, "column 'toxicity' is Float64"),
    ],
)
def test_what_does_not_fit_the_columns_fails_on_no_rows(settings: dict[str, object], complaint: str) -> None:
    with pytest.raises((PolarsError, ValueError, TypeError)) as error:
        flags(FRAME.clear(), **settings)
    assert complaint in str(error.value)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"words": [" "]},
        {"labels": {"x": []}},
        {"labels": {"x": 0.5}},
        {"labels": 3},
        {"labels": {"x": 1}, "scores": {"x": 1.0}},
        {"word_files": "nowhere"},
    ],
)
def test_settings_that_can_not_be_right_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        FlagUnsafe.model_validate_json(orjson.dumps(settings))


def test_a_spec_flags_and_rejects(project: Path, ptk: Callable[..., CompletedProcess[str]]) -> None:
    (project / "spec.yaml").write_text("""\
ptk: 1
name: small
steps:
  pairs: {op: read_pairs, path: pairs.jsonl}
  safe:  {op: flag_unsafe, from: pairs, words: [number 3, rather], columns: [prompt, rejected]}
  none:  {op: flag_unsafe, from: safe, words: [answer 3], columns: [chosen], action: reject}
  seen:  {op: flag_pii, from: none, kinds: [email, phone]}
outputs:
  small/seen: {from: seen, licence: cc0-1.0}
""")
    ran = ptk("run", "spec.yaml")
    assert ran.returncode == 0, ran.stderr
    assert "1 unsafe" in ran.stdout
