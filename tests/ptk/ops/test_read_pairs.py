from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from ptk.ops.read_pairs import ReadPairs, read_pairs

GOOD = {"prompt": "Which shelf?", "chosen": "The lower one.", "rejected": "It depends."}
GOLDEN_IDS = ("f199de441fcf411896041b190e9f427a", "3278e9b09961c1d8cfac37dd38681bb0")
MARKS = ("_reject", "_detail", "_raw", "_file", "_line")


def read(folder: Path, path: str, **settings: Any) -> pl.DataFrame:
    """Return all that read_pairs gives, rows and malformed records alike."""
    params = ReadPairs.model_validate_json(json.dumps({"path": path, **settings}), context={"root": folder})
    return pl.concat(list(read_pairs.function(params).all_batches()))


def lines(folder: Path, *records: Any) -> Path:
    path = folder / "pairs.jsonl"
    path.write_bytes(
        b"".join((record if isinstance(record, bytes) else json.dumps(record).encode()) + b"\n" for record in records)
    )
    return path


def verdicts(frame: pl.DataFrame) -> list[tuple[Any, ...]]:
    """Return (line, reason, detail) of the malformed records."""
    return frame.filter(pl.col("_reject").is_not_null()).select("_line", "_reject", "_detail").rows()


def test_a_record_becomes_a_canonical_pair(tmp_path: Path) -> None:
    lines(tmp_path, {**GOOD, "score": 3, "topic": "home"})
    row = read(tmp_path, "pairs.jsonl", source="mine").drop("pair_id", "item_id", *MARKS).row(0, named=True)
    assert row == {
        "prompt": [{"role": "user", "content": "Which shelf?"}],
        "chosen": [{"role": "assistant", "content": "The lower one."}],
        "rejected": [{"role": "assistant", "content": "It depends."}],
        "score": 3,
        "topic": "home",
        "source": "mine",
    }


def test_every_kind_of_malformed_line_is_named_with_its_line_and_its_text(tmp_path: Path) -> None:
    lines(
        tmp_path,
        GOOD,
        b'{"prompt": "cut off',
        b"[1, 2]",
        {"prompt": "No answers."},
        {**GOOD, "chosen": 7},
        {**GOOD, "chosen": None},
        {**GOOD, "rejected": "  \n"},
        {**GOOD, "rejected": []},
        {**GOOD, "prompt": [{"role": "robot", "content": "?"}]},
        {**GOOD, "prompt": [{"role": "assistant", "content": "Hello."}]},
        b'{"prompt": "caf\xe9", "chosen": "a", "rejected": "b"}',
        b'{"prompt": "half \\ud800 a pair", "chosen": "a", "rejected": "b"}',
        b"\x00\x01\x02",
        b"",
    )
    frame = read(tmp_path, "pairs.jsonl")
    assert [(line, reason) for line, reason, _ in verdicts(frame)] == [
        (2, "not_json"),
        (3, "not_an_object"),
        (4, "missing_field"),
        (5, "wrong_type"),
        (6, "missing_field"),
        (7, "empty_text"),
        (8, "empty_text"),
        (9, "wrong_type"),
        (10, "wrong_roles"),
        (11, "not_json"),
        (12, "not_json"),
        (13, "not_json"),
    ]
    details = {line: detail for line, _, detail in verdicts(frame)}
    assert details[3] == "a record is an object of fields, not a list"
    assert details[4] == "field 'chosen' is missing"
    assert details[5] == "field 'chosen' is a number, not text or a list of turns"
    assert details[6] == "field 'chosen' is null"
    assert details[7] == "field 'rejected' is empty"
    assert details[11].endswith("the line is not UTF-8")
    bad = frame.filter(pl.col("_reject").is_not_null())
    assert set(bad["_file"]) == {"pairs.jsonl"}
    assert bad["_raw"][0] == '{"prompt": "cut off'
    assert frame.height == 13


def test_blank_lines_and_a_byte_order_mark_are_no_records(tmp_path: Path) -> None:
    good = json.dumps(GOOD).encode()
    (tmp_path / "pairs.jsonl").write_bytes(b"\xef\xbb\xbf" + good + b"\r\n\r\n   \n" + good)
    frame = read(tmp_path, "pairs.jsonl")
    assert frame.select("_line", "_reject").rows() == [(1, None), (4, None)]


def test_fields_go_by_the_names_the_settings_give(tmp_path: Path) -> None:
    lines(tmp_path, {"question": "Which shelf?", "better": "The lower one.", "worse": "It depends."})
    mapped = read(tmp_path, "pairs.jsonl", fields={"prompt": "question", "chosen": "better", "rejected": "worse"})
    lines(tmp_path, GOOD)
    assert mapped["pair_id"].to_list() == read(tmp_path, "pairs.jsonl")["pair_id"].to_list()


def test_a_field_that_no_record_has_is_refused_with_those_there_are(tmp_path: Path) -> None:
    lines(tmp_path, GOOD)
    with pytest.raises(Exception, match=r"no record of pairs\.jsonl has a field 'better'; they have prompt, chosen, rejected"):
        read(tmp_path, "pairs.jsonl", fields={"chosen": "better"})


def test_a_further_column_of_another_type_than_at_first_rejects_its_row(tmp_path: Path) -> None:
    lines(tmp_path, *[{**GOOD, "prompt": f"Q{n}?", "score": n} for n in range(1_000)], {**GOOD, "score": "high"})
    frame = read(tmp_path, "pairs.jsonl")
    assert frame.schema["score"] == pl.Int64
    assert verdicts(frame) == [(1_001, "wrong_type", "field 'score' is text; in the first 1,000 records it is Int64")]


def test_ids_depend_neither_on_the_order_of_rows_nor_on_other_columns(tmp_path: Path) -> None:
    records = [{"prompt": f"Q{n}?", "chosen": f"A{n}.", "rejected": f"B{n}."} for n in range(50)]
    lines(tmp_path, *records)
    ids = read(tmp_path, "pairs.jsonl").select("pair_id", "item_id")
    random.Random(1).shuffle(records)
    lines(tmp_path, *[{"topic": "home", **record} for record in records])
    shuffled = read(tmp_path, "pairs.jsonl").select("pair_id", "item_id")
    assert shuffled["pair_id"].to_list() != ids["pair_id"].to_list()
    assert shuffled.sort("pair_id").equals(ids.sort("pair_id"))
    assert ids["pair_id"].n_unique() == 50


def test_text_and_a_single_turn_of_that_text_are_one_pair(tmp_path: Path) -> None:
    lines(tmp_path, GOOD, {**GOOD, "prompt": [{"role": "user", "content": "Which shelf?"}]})
    assert read(tmp_path, "pairs.jsonl")["pair_id"].n_unique() == 1


def test_a_flipped_pair_keeps_its_item_id_and_gets_another_pair_id(tmp_path: Path) -> None:
    lines(tmp_path, GOOD, {**GOOD, "chosen": GOOD["rejected"], "rejected": GOOD["chosen"]}, {**GOOD, "chosen": "Neither."})
    frame = read(tmp_path, "pairs.jsonl")
    assert frame["item_id"][0] == frame["item_id"][1] != frame["item_id"][2]
    assert frame["pair_id"].n_unique() == 3


def test_ids_are_what_they_were_when_they_were_first_stored(tmp_path: Path) -> None:
    lines(tmp_path, GOOD)
    frame = read(tmp_path, "pairs.jsonl").select("pair_id", "item_id")
    assert frame.rows() == [GOLDEN_IDS]


def test_csv_rows_are_read_and_bad_ones_named_with_the_line_they_begin_on(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_bytes(
        b"\xef\xbb\xbfprompt,chosen,rejected\r\n"
        b'"Which\nshelf?",The lower one.,It depends.\r\n'  # lines 2 and 3
        b"Too few,fields\r\n"
        b"Too,many,fields,here\r\n"
        b"Caf\xe9?,Yes.,No.\r\n"
        b"Empty,,No.\r\n"
        b'"Quoted ""word""?",Yes.,No.\r\n'
    )
    frame = read(tmp_path, "pairs.csv")
    assert verdicts(frame) == [
        (4, "not_csv", "2 fields under a header of 3"),
        (5, "not_csv", "4 fields under a header of 3"),
        (6, "not_csv", "the row is not UTF-8"),
        (7, "empty_text", "field 'chosen' is empty"),
    ]
    good = frame.filter(pl.col("_reject").is_null())
    assert [prompt[0]["content"] for prompt in good["prompt"]] == ["Which\nshelf?", 'Quoted "word"?']
    assert frame.filter(pl.col("_line") == 6)["_raw"].to_list() == ["Caf\ufffd?,Yes.,No."]


def test_jsonl_csv_parquet_and_gzip_give_the_same_pairs(tmp_path: Path) -> None:
    lines(tmp_path, GOOD)
    (tmp_path / "pairs.jsonl.gz").write_bytes(gzip.compress((tmp_path / "pairs.jsonl").read_bytes()))
    (tmp_path / "pairs.csv").write_text("prompt,chosen,rejected\nWhich shelf?,The lower one.,It depends.\n")
    (tmp_path / "pairs.tsv").write_text("prompt\tchosen\trejected\nWhich shelf?\tThe lower one.\tIt depends.\n")
    pl.DataFrame([GOOD]).write_parquet(tmp_path / "pairs.parquet")
    names = ("pairs.jsonl", "pairs.jsonl.gz", "pairs.csv", "pairs.tsv", "pairs.parquet")
    found = {name: read(tmp_path, name).drop("_file", "_line") for name in names}
    assert all(frame.equals(found["pairs.jsonl"]) for frame in found.values())
    assert found["pairs.jsonl"].height == 1


def test_a_glob_reads_its_files_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({**GOOD, "prompt": f"From {name}?"}) + "\nbroken\n")
    frame = read(tmp_path, "*.jsonl")
    assert frame.select("_file", "_line", "_reject").rows() == [
        ("a.jsonl", 1, None),
        ("a.jsonl", 2, "not_json"),
        ("b.jsonl", 1, None),
        ("b.jsonl", 2, "not_json"),
    ]


@pytest.mark.parametrize("damage", ["cut", "garbled"])
def test_a_damaged_gzip_file_is_reported_with_its_path(tmp_path: Path, damage: str) -> None:
    text = "".join(json.dumps({**GOOD, "prompt": f"Question {n}?"}) + "\n" for n in range(5_000))
    content = bytearray(gzip.compress(text.encode()))
    if damage == "cut":
        del content[len(content) // 2 :]
    else:
        content[len(content) // 2 : len(content) // 2 + 200] = bytes(200)
    (tmp_path / "pairs.jsonl.gz").write_bytes(content)
    with pytest.raises(Exception, match=r"pairs\.jsonl\.gz: not a whole gzip file"):
        read(tmp_path, "pairs.jsonl.gz")


def test_text_that_looks_like_code_or_markers_is_kept_verbatim(tmp_path: Path) -> None:
    odd = "{{ 7 * 7 }} {% raw %} <|im_end|>\n\nPreferred response:\n${env:HOME} \u2028 \u0000 🜁"
    lines(tmp_path, {**GOOD, "chosen": odd})
    assert read(tmp_path, "pairs.jsonl")["chosen"].to_list() == [[{"role": "assistant", "content": odd}]]
