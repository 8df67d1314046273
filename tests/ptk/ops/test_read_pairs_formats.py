from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ptk.ops.read_pairs import ReadPairs, read_pairs
from ptk.params import problems

DATA = Path(__file__).parents[4] / "shared" / "data"


def source_of(folder: Path, path: str, **options: Any) -> Any:
    params = ReadPairs.model_validate_json(json.dumps({"path": path, **options}), context={"root": folder})
    return read_pairs.function(params)


def read(folder: Path, records: list[Any], **options: Any) -> pl.DataFrame:
    (folder / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return pl.concat(list(source_of(folder, "records.jsonl", **options).all_batches()))


def pairs(frame: pl.DataFrame, *names: str) -> list[tuple[Any, ...]]:
    """Return (prompt, chosen, rejected) as texts, with further columns, of the rows that are right."""
    good = frame.filter(pl.col("_reject").is_null())
    return [tuple(said(value) for value in row) for row in good.select("prompt", "chosen", "rejected", *names).rows()]


def said(value: Any) -> Any:
    """Return turns as `user: text / assistant: text`, one turn as its text, anything else as it is."""
    if not isinstance(value, list) or not value or not isinstance(value[0], dict):
        return value
    return value[0]["content"] if len(value) == 1 else " / ".join(f"{turn['role']}: {turn['content']}" for turn in value)


def rejects(frame: pl.DataFrame) -> list[tuple[Any, ...]]:
    return frame.filter(pl.col("_reject").is_not_null()).select("_line", "_reject", "_detail").rows()


def wrong(options: dict[str, Any]) -> list[tuple[Any, str]]:
    """Return (place, sentence) of what is wrong with options; there is a file to read."""
    try:
        ReadPairs.model_validate_json(json.dumps(options), context={"root": Path(__file__).parent})
    except ValidationError as error:
        return list(problems(ReadPairs, error))
    return []


# ---- options ----


HERE = {"path": Path(__file__).name}


@pytest.mark.parametrize(
    ("options", "place", "sentence"),
    [
        (
            {**HERE, "minimum_margin": 1},
            ("minimum_margin",),
            "'minimum_margin' goes with format ratings or scores, not with 'columns'",
        ),
        ({**HERE, "format": "votes", "pairs": "all"}, ("pairs",), "'pairs' goes with format ratings, not with 'votes'"),
        (
            {**HERE, "format": "ratings", "on_empty_turn": "keep"},
            ("on_empty_turn",),
            "'on_empty_turn' goes with format hh_transcripts, not with 'ratings'",
        ),
        (
            {**HERE, "fields": {"score": "s"}},
            ("fields",),
            "format 'columns' has no field 'score'; it has prompt, chosen, rejected",
        ),
        ({**HERE, "format": "terms", "fields": {"prompt": None}}, ("fields",), "format 'terms' needs a prompt"),
        (
            {**HERE, "format": "ratings", "fields": {"scores": "s", "text": "t"}},
            ("fields",),
            "with `scores` the responses are texts, so `text` and `score` name nothing",
        ),
        ({**HERE, "format": "votes", "values": {"tie": ["1"]}}, ("values",), "the vote '1' is named twice"),
        (
            {**HERE, "format": "votes", "values": {"response_1": []}},
            ("values",),
            "both responses need values that vote for them",
        ),
        ({}, (), "say where the records are: one of `path`, `hub` and `entry`"),
        (
            {**HERE, "hub": {"name": "org/set"}},
            (),
            "say where the records are: one of `path`, `hub` and `entry`; there are path and hub",
        ),
        ({**HERE, "catalog": "store"}, (), "`catalog` goes with `entry`"),
        (
            {"hub": {"name": "../set"}},
            ("hub", "name"),
            "'../set' is no id of a dataset on the Hugging Face Hub; it has the form org/set",
        ),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: dict[str, Any], place: Any, sentence: str) -> None:
    assert wrong(options) == [(place, sentence)]


def test_a_column_that_is_made_here_can_t_be_kept(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'item_id' can't be kept: a column of that name is made here"):
        read(tmp_path, [{"prompt": "a", "chosen": "b", "rejected": "c", "item_id": 3}], keep=["item_id"])


# ---- columns ----


def test_a_name_with_dots_leads_into_objects_and_lists(tmp_path: Path) -> None:
    record = {"data": {"question": "Which?", "answers": ["This.", "That."], "lang": "en"}, "a.b": 1, "_own": 2}
    fields = {"prompt": "data.question", "chosen": "data.answers.0", "rejected": "data.answers.1"}
    frame = read(
        tmp_path, [record, {"data": {"question": "More?", "answers": ["This."]}}], fields=fields, keep=["data.lang", "a.b"]
    )
    assert pairs(frame, "data.lang", "a.b") == [("Which?", "This.", "That.", "en", 1)]
    assert rejects(frame) == [(2, "missing_field", "field 'data.answers.1' is missing")]
    pl.DataFrame([record]).write_parquet(tmp_path / "records.parquet")
    source = source_of(tmp_path, "records.parquet", fields=fields, keep=["data.lang", "a.b"])
    assert pairs(pl.concat(list(source.all_batches())), "data.lang", "a.b") == pairs(frame, "data.lang", "a.b")


def test_conversations_without_a_prompt_share_their_first_turns(tmp_path: Path) -> None:
    def talk(*texts: str) -> list[dict[str, str]]:
        return [{"role": ("user", "assistant")[number % 2], "content": text} for number, text in enumerate(texts)]

    records = [
        {"chosen": talk("Which?", "This."), "rejected": talk("Which?", "That.")},
        {"chosen": talk("Which?", "Both.", "One!", "This."), "rejected": talk("Which?", "Both.", "One!", "That.")},
        {"chosen": talk("Which?", "Both.", "One!", "This."), "rejected": talk("Which?", "Both.", "Two!", "That.")},
        {"chosen": talk("Which?", "This."), "rejected": talk("Which?", "This.")},
        {"chosen": talk("Which?", "This."), "rejected": talk("What?", "That.")},
        {"chosen": talk("Which?", "This.", "Why?"), "rejected": talk("Which?", "That.")},
        {"chosen": "Which? This.", "rejected": "Which? That."},
    ]
    frame = read(tmp_path, records)
    assert pairs(frame) == [
        ("Which?", "This.", "That."),
        ("user: Which? / assistant: Both. / user: One!", "This.", "That."),
        (
            "Which?",
            "assistant: Both. / user: One! / assistant: This.",
            "assistant: Both. / user: Two! / assistant: That.",
        ),
        ("Which?", "This.", "This."),
    ]
    assert rejects(frame) == [
        (5, "no_shared_prompt", "the two conversations share no first turns that end with the user's"),
        (6, "wrong_roles", "the last turn of 'chosen' is the user's, not the assistant's"),
        (7, "wrong_type", "field 'chosen' is text, not a conversation: a list of turns"),
    ]
    whole = read(tmp_path, [{"prompt": "Other.", **record} for record in records], fields={"prompt": None})
    assert pairs(whole) == pairs(frame)


def test_an_explicit_and_an_implicit_prompt_give_the_same_ids(tmp_path: Path) -> None:
    question = {"role": "user", "content": "Which?"}
    sides = {name: {"role": "assistant", "content": name} for name in ("chosen", "rejected")}
    implicit = read(tmp_path, [{name: [question, turn] for name, turn in sides.items()}])
    explicit = read(tmp_path, [{"prompt": "Which?", **{name: [turn] for name, turn in sides.items()}}])
    assert implicit.select("pair_id", "item_id").equals(explicit.select("pair_id", "item_id"))


def test_a_field_of_the_pair_that_stands_twice_rejects_its_record(tmp_path: Path) -> None:
    (tmp_path / "twice.jsonl").write_text(
        '{"prompt": "a", "chosen": "b", "rejected": "c", "chosen": "d"}\n'
        '{"prompt": "a", "chosen": "b", "rejected": "chosen"}\n'
        '{"prompt": "a", "chosen": [{"role": "assistant", "content": "b", "content": "c"}], "rejected": "c"}\n'
    )
    frame = pl.concat(list(source_of(tmp_path, "twice.jsonl").all_batches()))
    assert rejects(frame) == [(1, "repeated_field", "field 'chosen' stands twice in the record")]
    assert pairs(frame) == [("a", "b", "chosen"), ("a", "c", "c")]


def test_transcripts_read_as_columns_are_told_by_their_looks(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="field 'prompt'; they have chosen, rejected; these look like transcripts: say `format: hh_tran"
    ):
        read(tmp_path, [{"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"}])


# ---- transcripts ----


def transcript(*turns: tuple[str, str]) -> str:
    return "".join(f"\n\n{speaker}: {text}" for speaker, text in turns)


H, A = "Human", "Assistant"
PLAIN = {"chosen": transcript((H, "Hi?"), (A, "Yes.")), "rejected": transcript((H, "Hi?"), (A, "No."))}
MARKED = {"chosen": transcript((H, "Hi?"), (A, "Ok. Human: bye")), "rejected": transcript((H, "Hi?"), (A, "Superhuman: no."))}
EMPTY = {"chosen": transcript((H, "Hi?"), (A, "")), "rejected": transcript((H, "Hi?"), (A, "No."))}
EARLY = {
    "chosen": transcript((H, "Hi?"), (A, "Yes."), (H, "So?"), (A, "One.")),
    "rejected": transcript((H, "Hi?"), (A, "Yes."), (H, "And?"), (A, "Two.")),
}
TWICE = {
    "chosen": transcript((H, "Hi?"), (H, "You?"), (A, "Yes.")),
    "rejected": transcript((H, "Hi?"), (H, "You?"), (A, "No.")),
}


def test_transcripts_become_shared_turns_and_two_last_ones(tmp_path: Path) -> None:
    longer = {name: transcript((H, "One?"), (A, "1"), (H, "Two?\n\nPlease."), (A, name)) for name in ("chosen", "rejected")}
    windows = {name: text.replace("\n", "\r\n").lstrip() for name, text in PLAIN.items()}
    frame = read(tmp_path, [PLAIN, windows, {**longer, "split": "test"}], format="hh_transcripts")
    assert frame["pair_id"].n_unique() == 2
    assert pairs(frame, "flags", "split")[1:] == [
        ("Hi?", "Yes.", "No.", [], None),
        ("user: One? / assistant: 1 / user: Two?\n\nPlease.", "chosen", "rejected", [], "test"),
    ]


@pytest.mark.parametrize(
    ("record", "word", "detail", "row"),
    [
        (
            MARKED,
            "marker_inside",
            "the text of turn 2 of 'chosen' holds a speaker's mark",
            ("Hi?", "Ok. Human: bye", "Superhuman: no."),
        ),
        (EMPTY, "empty_turn", "turn 2 of 2 of 'chosen' has no text", ("Hi?", "", "No.")),
        (
            EARLY,
            "early_split",
            "the transcripts, of 4 and 4 turns, share the first 1 as a prompt",
            ("Hi?", "assistant: Yes. / user: So? / assistant: One.", "assistant: Yes. / user: And? / assistant: Two."),
        ),
        (TWICE, "role_order", "turns 1 and 2 of 'chosen' are both the user's", ("user: Hi? / user: You?", "Yes.", "No.")),
    ],
)
def test_an_irregular_transcript_is_flagged_rejected_or_kept(
    tmp_path: Path, record: dict[str, str], word: str, detail: str, row: tuple[str, ...]
) -> None:
    option = f"on_{word}"
    flagged, kept, rejected = (
        read(tmp_path, [record], format="hh_transcripts", **{option: case}) for case in ("flag", "keep", "reject")
    )
    assert pairs(flagged, "flags") == [(*row, [word])]
    assert pairs(kept, "flags") == [(*row, [])]
    assert rejects(rejected) == [(1, word, detail)]


def test_a_transcript_that_can_t_be_a_pair_is_always_rejected(tmp_path: Path) -> None:
    keep = {f"on_{word}": "keep" for word in ("marker_inside", "empty_turn", "early_split", "role_order")}
    bad = [
        {**PLAIN, "chosen": "Hi? Yes."},
        {**PLAIN, "chosen": "Once upon a time\n\nHuman: Hi?\n\nAssistant: Yes."},
        {**PLAIN, "rejected": transcript((H, "Hi?"), (A, "No."), (H, "Bye."))},
        {**PLAIN, "rejected": transcript((H, "Ho?"), (A, "No."))},
        {"chosen": transcript((A, "Yes.")), "rejected": transcript((A, "No."))},
        {**PLAIN, "chosen": [{"role": "user", "content": "Hi?"}]},
        {**PLAIN, "chosen": None},
        {**PLAIN, "chosen": ""},
    ]
    assert rejects(read(tmp_path, [PLAIN, *bad], format="hh_transcripts", **keep)) == [
        (2, "no_turns", "field 'chosen' has no line that begins with Human: or Assistant:"),
        (3, "no_turns", "field 'chosen' begins with text that nobody says: 'Once upon a time'"),
        (4, "wrong_roles", "the last turn of 'rejected' is the user's, not the assistant's"),
        (5, "no_shared_prompt", "the two conversations share no first turns that end with the user's"),
        (6, "no_shared_prompt", "the two conversations share no first turns that end with the user's"),
        (7, "wrong_type", "field 'chosen' is a list, not a transcript"),
        (8, "missing_field", "field 'chosen' is null"),
        (9, "no_turns", "field 'chosen' has no line that begins with Human: or Assistant:"),
    ]


@settings(deadline=None)
@given(
    st.lists(st.text("ab \n:", min_size=1, max_size=6).filter(str.strip), min_size=1, max_size=4),
    st.tuples(st.text("ab", min_size=1), st.text("cd", min_size=1)),
)
def test_a_transcript_written_from_turns_is_read_as_those_turns(shared: list[str], last: tuple[str, str]) -> None:
    from ptk.ops.record_formats import FormatOptions, make_format

    shared = shared if len(shared) % 2 else shared[:-1] or ["a"]
    record = {
        name: transcript(*((H if number % 2 == 0 else A, text) for number, text in enumerate([*shared, end])))
        for name, end in zip(("chosen", "rejected"), last, strict=True)
    }
    made = make_format(FormatOptions(format="hh_transcripts")).rows(record)
    prompt = [(("user", "assistant")[number % 2], text.strip()) for number, text in enumerate(shared)]
    assert list(made) == [(prompt, [("assistant", last[0])], [("assistant", last[1])], [])]


def test_every_real_transcript_is_accounted_for() -> None:
    if not DATA.is_dir():
        pytest.skip("needs the real corpora")
    everything = pl.concat(list(source_of(DATA, "hh_harmless_raw.jsonl", format="hh_transcripts").all_batches()))
    assert everything["_reject"].null_count() == everything.height == 1_152
    assert everything["_line"].to_list() == list(range(1, 1_153))
    assert Counter(everything["flags"].explode().drop_nulls()) == {"marker_inside": 20, "role_order": 6, "early_split": 3}
    strict = {"on_marker_inside": "reject", "on_early_split": "reject", "on_role_order": "reject"}
    strictly = pl.concat(list(source_of(DATA, "hh_harmless_raw.jsonl", format="hh_transcripts", **strict).all_batches()))
    assert Counter(strictly["_reject"].drop_nulls()) == {"early_split": 3, "role_order": 3, "marker_inside": 16}
    for line, record in enumerate(map(json.loads, (DATA / "hh_harmless_raw.jsonl").read_text().splitlines()), start=1):
        row = everything.row(line - 1, named=True)
        for side in ("chosen", "rejected"):
            written = transcript(
                *(({"user": H, "assistant": A}[turn["role"]], turn["content"]) for turn in [*row["prompt"], *row[side]])
            )
            assert written.split() == record[side].split()


# ---- ratings ----


def rated(*responses: tuple[Any, Any], **more: Any) -> dict[str, Any]:
    return {"instruction": "Why?", "completions": [{"response": text, "overall": score} for text, score in responses], **more}


RATINGS = {
    "format": "ratings",
    "fields": {"prompt": "instruction", "responses": "completions", "text": "response", "score": "overall"},
}


def test_ratings_are_paired_as_asked(tmp_path: Path) -> None:
    record = rated(("b", 2), ("d", 5.5), ("c", 2), ("a", 4), source="set")
    own = ("margin", "chosen_score", "rejected_score", "source")
    best_worst = [("Why?", "d", "c", 3.5, 5.5, 2.0, "set")]
    best_rest = [("Why?", "d", "a", 1.5, 5.5, 4.0, "set"), ("Why?", "d", "b", 3.5, 5.5, 2.0, "set"), *best_worst]
    every = [*best_rest, ("Why?", "a", "b", 2.0, 4.0, 2.0, "set"), ("Why?", "a", "c", 2.0, 4.0, 2.0, "set")]
    assert pairs(read(tmp_path, [record], **RATINGS), *own) == best_worst
    assert pairs(read(tmp_path, [record], **RATINGS, pairs="best_vs_rest"), *own) == best_rest
    assert pairs(read(tmp_path, [record], **RATINGS, pairs="all"), *own) == every
    assert pairs(read(tmp_path, [record], **RATINGS, pairs="all", minimum_margin=3), *own) == best_rest[1:]
    backwards = {**record, "completions": record["completions"][::-1]}
    assert read(tmp_path, [backwards], **RATINGS, pairs="all").equals(read(tmp_path, [record], **RATINGS, pairs="all"))


def test_ratings_that_make_no_pair_say_why(tmp_path: Path) -> None:
    records = [
        rated(("a", 2), ("b", 2.0)),
        rated(("a", 2)),
        rated(),
        rated(("a", 2), ("b", 2.5)),
        rated(("a", 2), ("b", None)),
        rated(("a", 2), ("b", "high")),
        rated(("a", 2), ("b", "NaN")),
        rated(("a", 2), ("", 5)),
        rated(("a", 2), (None, 5)),
        rated(completions="none"),
        rated(completions=["a", "b"]),
        rated(("a", True), ("b", 3)),
        rated(("a", "1"), ("b", " 3.5 ")),
    ]
    frame = read(tmp_path, records, **RATINGS, minimum_margin=1)
    assert rejects(frame) == [
        (1, "tie", "all 2 responses have the score 2"),
        (2, "few_responses", "field 'completions' holds 1 responses; a pair needs 2"),
        (3, "few_responses", "field 'completions' holds 0 responses; a pair needs 2"),
        (4, "small_margin", "the scores differ by 0.5 at most, less than 1"),
        (5, "missing_field", "field 'overall' is null"),
        (6, "wrong_type", "field 'overall' is 'high', not a number"),
        (7, "not_finite", "field 'overall' is nan, not a finite number"),
        (8, "empty_text", "field 'completions' is empty"),
        (9, "missing_field", "field 'response' is null"),
        (10, "wrong_type", "field 'completions' is text, not a list"),
        (11, "wrong_type", "an item of 'completions' is text, not an object with text and score"),
        (12, "wrong_type", "field 'overall' is true or false, not a number"),
    ]
    assert pairs(frame, "margin") == [("Why?", "b", "a", 2.5)]


def test_scores_may_stand_in_a_list_beside_the_responses(tmp_path: Path) -> None:
    records = [
        {"prompt": "Why?", "responses": ["a", "b"], "ranks": [1, 3]},
        {"prompt": "Why?", "responses": ["a"], "ranks": [1, 3]},
    ]
    frame = read(tmp_path, records, format="ratings", fields={"scores": "ranks"})
    assert pairs(frame, "margin") == [("Why?", "b", "a", 2.0)]
    assert rejects(frame) == [(2, "wrong_type", "field 'ranks' is 2 scores beside 1 responses")]
    pl.DataFrame(records).write_parquet(tmp_path / "records.parquet")
    source = source_of(tmp_path, "records.parquet", format="ratings", fields={"scores": "ranks"})
    assert pl.concat(list(source.all_batches())).drop("_file", "_raw").equals(frame.drop("_file", "_raw"))


def test_a_nan_score_in_a_table_rejects_its_row(tmp_path: Path) -> None:
    frame = pl.DataFrame({"prompt": ["Why?"], "responses": [["a", "b"]], "ranks": [[1.0, float("nan")]]})
    frame.write_parquet(tmp_path / "records.parquet")
    source = source_of(tmp_path, "records.parquet", format="ratings", fields={"scores": "ranks"})
    assert rejects(pl.concat(list(source.all_batches()))) == [(1, "not_finite", "field 'ranks' is nan, not a finite number")]


# ---- scores ----

SCORES = {
    "format": "scores",
    "fields": {
        "prompt": "history",
        "response_1": "human_ref_A",
        "response_2": "human_ref_B",
        "score_1": "score_A",
        "score_2": "score_B",
    },
}


def scored(first: Any, second: Any, **more: Any) -> dict[str, Any]:
    return {"history": "Why?", "human_ref_A": "a", "human_ref_B": "b", "score_A": first, "score_B": second, **more}


def test_the_response_with_the_higher_score_is_chosen_and_ties_are_set_apart(tmp_path: Path) -> None:
    records = [
        scored(8, 2, domain="askbaking"),
        scored(2, 8),
        scored(3, 3),
        scored(0, 2),
        scored(float("nan"), 2),
        scored(None, 2),
        scored("x", 2),
    ]
    frame = read(tmp_path, records, **SCORES)
    assert pairs(frame, "margin", "chosen_score", "rejected_score", "score_ratio", "domain") == [
        ("Why?", "a", "b", 6.0, 8.0, 2.0, 4.0, "askbaking"),
        ("Why?", "b", "a", 6.0, 8.0, 2.0, 4.0, None),
        ("Why?", "b", "a", 2.0, 2.0, 0.0, None, None),
    ]
    assert rejects(frame)[0] == (3, "tie", "both responses have the score 3")
    assert [row[:2] for row in rejects(frame)] == [(3, "tie"), (5, "not_json"), (6, "missing_field"), (7, "wrong_type")]
    assert rejects(read(tmp_path, [scored(8, 2), scored(4, 2)], **SCORES, minimum_margin=3)) == [
        (2, "small_margin", "the scores differ by 2, less than 3")
    ]


def test_scores_are_read_from_csv(tmp_path: Path) -> None:
    (tmp_path / "shp.csv").write_text(
        "history,human_ref_A,human_ref_B,score_A,score_B\nWhy?,a,b,1.5,3\nWhy?,a,b,,3\nWhy?,a,b,inf,3\n"
    )
    frame = pl.concat(list(source_of(tmp_path, "shp.csv", **SCORES).all_batches()))
    assert pairs(frame, "margin") == [("Why?", "b", "a", 1.5)]
    assert rejects(frame) == [
        (3, "wrong_type", "field 'score_A' is '', not a number"),
        (4, "not_finite", "field 'score_A' is inf, not a finite number"),
    ]


# ---- votes ----


def voted(votes: Any, **more: Any) -> dict[str, Any]:
    return {"prompt": "Why?", "response_1": "a", "response_2": "b", "votes": votes, **more}


def test_the_majority_of_the_votes_chooses(tmp_path: Path) -> None:
    records = [
        voted([1, 1, 2]),
        voted({"ann": 2, "bob": 2, "cy": 2}),
        voted(2),
        voted([1, None, 1, 0]),
        voted([1, 2]),
        voted([0, 0, 1]),
        voted([0, 1]),
        voted([1, 3]),
        voted([]),
        voted(None),
        voted(["1", 1.0, "2"]),
    ]
    frame = read(tmp_path, records, format="votes")
    assert pairs(frame, "margin", "agreement") == [
        ("Why?", "a", "b", 1.0, 2 / 3),
        ("Why?", "b", "a", 3.0, 1.0),
        ("Why?", "b", "a", 1.0, 1.0),
        ("Why?", "a", "b", 2.0, 2 / 3),
        ("Why?", "a", "b", 1.0, 2 / 3),
    ]
    assert rejects(frame) == [
        (5, "tie", "1 votes for response 1, 1 for response 2, 0 for neither"),
        (6, "tie", "1 votes for response 1, 0 for response 2, 2 for neither"),
        (7, "tie", "1 votes for response 1, 0 for response 2, 1 for neither"),
        (8, "unknown_vote", "field 'votes': the vote 3 means nothing; see `values`"),
        (9, "no_votes", "there is no vote in votes"),
        (10, "missing_field", "field 'votes' is null"),
    ]


def test_votes_may_stand_in_several_fields_some_of_them_empty(tmp_path: Path) -> None:
    base = {"prompt": "Why?", "response_1": "a", "response_2": "b"}
    records = [{**base, "x": "left", "y": "right", "z": "left"}, {**base, "x": "right", "z": None}, base]
    options = {"fields": {"votes": ["x", "y", "z"]}, "values": {"response_1": ["left"], "response_2": ["right"], "tie": []}}
    frame = read(tmp_path, records, format="votes", **options)
    assert pairs(frame, "agreement") == [("Why?", "a", "b", 2 / 3), ("Why?", "b", "a", 1.0)]
    assert rejects(frame) == [(3, "no_votes", "there is no vote in x, y, z")]


def test_a_field_that_names_the_better_response_is_one_vote(tmp_path: Path) -> None:
    base = {"prompt": "Why?", "response_0": "a", "response_1": "b", "is_response_0_safe": True}
    frame = read(
        tmp_path,
        [{**base, "better_response_id": 0}, {**base, "better_response_id": 1}],
        format="votes",
        fields={"response_1": "response_0", "response_2": "response_1", "votes": "better_response_id"},
        values={"response_1": [0], "response_2": [1], "tie": []},
    )
    assert pairs(frame, "is_response_0_safe") == [("Why?", "a", "b", True), ("Why?", "b", "a", True)]


def test_the_majority_of_real_votes_is_the_one_that_was_published() -> None:
    if not DATA.is_dir():
        pytest.skip("needs the real corpora")
    options = {"format": "votes", "fields": {"votes": ["annotators.a1", "annotators.a2", "annotators.a3"]}}
    frame = pl.concat(list(source_of(DATA, "pandalm_human.jsonl", **options).all_batches()))
    assert Counter(frame["_reject"]) == {None: 404, "tie": 48, "empty_text": 30}
    records = [json.loads(line) for line in (DATA / "pandalm_human.jsonl").read_text().splitlines()]
    published = {index: (one["chosen"], one["rejected"]) for index, one in enumerate(records, start=1) if one["majority"]}
    for line, reason, chosen, rejected in frame.select("_line", "_reject", "chosen", "rejected").iter_rows():
        if reason == "tie":
            assert line not in published
        elif reason is None:
            assert (said(chosen), said(rejected)) == published[line]


# ---- terms ----


def test_terms_are_prompts_without_a_pair(tmp_path: Path) -> None:
    records = [{"term": "alacrity", "level": 3}, {"term": " "}, {"level": 1}, {"term": [{"role": "assistant", "content": "x"}]}]
    frame = read(tmp_path, records, format="terms", fields={"prompt": "term"}, source="words")
    source = source_of(tmp_path, "records.jsonl", format="terms", fields={"prompt": "term"}, source="words")
    assert (source.key, source.columns.names()) == ("prompt_id", ["prompt_id", "prompt", "level", "source"])
    row = frame.row(0, named=True)
    assert (said(row["prompt"]), row["level"], row["source"], len(row["prompt_id"])) == ("alacrity", 3, "words", 32)
    assert [reject[:2] for reject in rejects(frame)] == [(2, "empty_text"), (3, "missing_field"), (4, "wrong_roles")]


@pytest.mark.parametrize(
    ("format_name", "key", "own", "flags"),
    [
        ("columns", "pair_id", [], None),
        ("hh_transcripts", "pair_id", ["flags"], "flags"),
        ("ratings", "pair_id", ["margin", "chosen_score", "rejected_score"], None),
        ("scores", "pair_id", ["margin", "chosen_score", "rejected_score", "score_ratio"], None),
        ("votes", "pair_id", ["margin", "agreement"], None),
    ],
)
def test_all_pairs_have_the_same_columns_first(
    tmp_path: Path, format_name: str, key: str, own: list[str], flags: str | None
) -> None:
    (tmp_path / "none.jsonl").write_text("\n")
    source = source_of(tmp_path, "none.jsonl", format=format_name, source="mine")
    assert source.columns.names() == ["pair_id", "item_id", "prompt", "chosen", "rejected", *own, "source"]
    assert (source.key, source.flags, list(source.all_batches()) and sum(b.height for b in source.all_batches())) == (
        key,
        flags,
        0,
    )
