from __future__ import annotations

import bz2
import csv
import gzip
import json
import lzma
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ptk.errors import UnreadableFile
from ptk.ops import records as module
from ptk.ops.read_pairs import ReadPairs, read_pairs
from ptk.ops.records import FileRecords, Piece, Unreadable, Verbatim

GOOD = {"prompt": "Which shelf?", "chosen": "The lower one.", "rejected": "It depends."}


def read(folder: Path, path: str, **options: Any) -> pl.DataFrame:
    params = ReadPairs.model_validate_json(json.dumps({"path": path, **options}), context={"root": folder})
    return pl.concat(list(read_pairs.function(params).all_batches()))


def verdicts(frame: pl.DataFrame) -> list[tuple[Any, ...]]:
    return frame.filter(pl.col("_reject").is_not_null()).select("_line", "_reject", "_detail").rows()


def parsed(path: Path) -> list[tuple[int, Any]]:
    """Return (line, record) of all records of a file, in its order."""
    found = FileRecords((path,))
    blocks = (block for piece in found.pieces() for block in found.blocks(piece))
    return [item for block in blocks if isinstance(block, Verbatim) for item in zip(block.lines, block.records, strict=True)]


def compressed_zstd(content: bytes) -> bytes:
    buffer = pa.BufferOutputStream()
    with pa.CompressedOutputStream(buffer, "zstd") as stream:
        stream.write(content)
    return bytes(buffer.getvalue())


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": compressed_zstd,
}


# ---- compression ----


@pytest.mark.parametrize("ending", sorted(COMPRESSORS))
@pytest.mark.parametrize("kind", ["jsonl", "csv", "json"])
def test_compressed_files_give_what_they_give_unpacked(tmp_path: Path, ending: str, kind: str) -> None:
    contents = {
        "jsonl": json.dumps(GOOD) + "\n",
        "csv": "prompt,chosen,rejected\nWhich shelf?,The lower one.,It depends.\n",
        "json": json.dumps([GOOD], indent=2),
    }
    (tmp_path / f"pairs.{kind}").write_text(contents[kind])
    compress = COMPRESSORS[ending]
    # Two members, one after another, are one file.
    (tmp_path / f"pairs.{kind}.{ending}").write_bytes(
        compress(contents[kind].encode()) + (compress(b"\n") if ending != "zst" else b"")
    )
    packed = read(tmp_path, f"pairs.{kind}.{ending}")
    assert packed.drop("_file").equals(read(tmp_path, f"pairs.{kind}").drop("_file"))
    assert packed.height == 1


@pytest.mark.parametrize("ending", sorted(COMPRESSORS))
@pytest.mark.parametrize("damage", ["cut", "garbled", "not at all"])
def test_a_damaged_compressed_file_is_reported_with_its_path(tmp_path: Path, ending: str, damage: str) -> None:
    chance = random.Random(0)
    lines = [json.dumps({**GOOD, "prompt": f"Question {chance.random()}?"}) for _ in range(10_000)]
    content = bytearray(COMPRESSORS[ending]("\n".join(lines).encode()))
    if damage == "cut":
        del content[-len(content) // 3 :]
    elif damage == "garbled":
        content[len(content) // 2 : len(content) // 2 + 200] = bytes(200)
    else:
        content = bytearray(b"\n".join(line.encode() for line in lines[:3]))
    (tmp_path / f"pairs.jsonl.{ending}").write_bytes(content)
    with pytest.raises(UnreadableFile, match=rf"pairs\.jsonl\.{ending}: not a whole \w+ file: .+; fetch it again"):
        read(tmp_path, f"pairs.jsonl.{ending}")


# ---- pieces ----


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.sampled_from([b"", b" ", b'{"a": 1}', b'{"b": "some longer text"}', b"[", b"7", b"\xff"]), max_size=30),
    st.integers(1, 40),
    st.integers(1, 50),
    st.booleans(),
)
def test_pieces_and_chunks_of_any_size_give_the_same_records(
    tmp_path: Path, lines: list[bytes], piece: int, chunk: int, ended: bool
) -> None:
    path = tmp_path / "records.jsonl"
    path.write_bytes(b"\n".join(lines) + (b"\n" if ended else b""))
    expected = [
        (number, json.loads(line) if line[:1] in b"{7" else "bad") for number, line in enumerate(lines, start=1) if line.strip()
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PIECE_BYTES", piece)
        patch.setattr(module, "_CHUNK", chunk)
        found = FileRecords((path,))
        pieces = found.pieces()
        blocks = [block for one in pieces for block in found.blocks(one, chunk)]
    assert [one.start for one in pieces[1:]] == [one.stop for one in pieces[:-1]]
    assert pieces[-1].stop in (None, path.stat().st_size)
    got = [
        (line, "bad" if isinstance(record, Unreadable) else record)
        for block in blocks
        if isinstance(block, Verbatim)
        for line, record in zip(block.lines, block.records, strict=True)
    ]
    assert got == expected


def test_pieces_are_read_apart_in_any_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECE_BYTES", 2_000)
    monkeypatch.setattr(module, "_CHUNK", 500)
    records = [{**GOOD, "prompt": f"Question {number}?", "score": number} for number in range(200)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records[:120]))
    pl.DataFrame(records[120:]).write_parquet(tmp_path / "b.parquet", row_group_size=16)
    params = ReadPairs.model_validate_json('{"path": "*.*"}', context={"root": tmp_path})
    source = read_pairs.function(params)
    pieces = list(source.pieces())
    assert len(pieces) > 6
    assert {piece.file for piece in pieces} == {0, 1}
    shuffled = pickle.loads(pickle.dumps(pieces))
    random.Random(1).shuffle(shuffled)
    apart = pl.concat([batch for piece in shuffled for batch in source.batches(piece)]).sort("_file", "_line")
    whole = pl.concat(list(source.all_batches()))
    assert apart.equals(whole)
    assert whole["_line"].to_list() == [*range(1, 121), *range(1, 81)]
    assert whole["score"].to_list() == list(range(200))


def test_a_parquet_file_without_rows_has_its_columns(tmp_path: Path) -> None:
    pl.DataFrame(schema={**dict.fromkeys(GOOD, pl.String), "score": pl.Float32}).write_parquet(tmp_path / "pairs.parquet")
    params = ReadPairs.model_validate_json('{"path": "pairs.parquet"}', context={"root": tmp_path})
    source = read_pairs.function(params)
    assert source.columns["score"] == pl.Float64
    assert sum(batch.height for batch in source.all_batches()) == 0


# ---- bad bytes ----


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + bytes(100) + b"PAR1", b'{"prompt": "not parquet"}'])
def test_a_damaged_parquet_file_is_reported_with_its_path(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "pairs.parquet").write_bytes(content)
    with pytest.raises(UnreadableFile, match=r"pairs\.parquet: not a Parquet file: "):
        read(tmp_path, "pairs.parquet")


def test_parquet_data_that_is_damaged_inside_is_reported(tmp_path: Path) -> None:
    frame = pl.DataFrame({name: [f"{value} {number}" for number in range(20_000)] for name, value in GOOD.items()})
    frame.write_parquet(tmp_path / "pairs.parquet")
    content = bytearray((tmp_path / "pairs.parquet").read_bytes())
    content[100:5_000] = bytes(4_900)
    (tmp_path / "pairs.parquet").write_bytes(content)
    with pytest.raises(UnreadableFile, match=r"pairs\.parquet: not a Parquet file: "):
        read(tmp_path, "pairs.parquet")


def test_a_parquet_file_that_names_a_column_twice_is_refused(tmp_path: Path) -> None:
    table = pa.table([["a"], ["b"], ["c"], ["d"]], names=["prompt", "chosen", "rejected", "chosen"])
    import pyarrow.parquet as pq

    pq.write_table(table, tmp_path / "pairs.parquet")
    with pytest.raises(UnreadableFile, match=r"pairs\.parquet: the file names a column twice: .*chosen"):
        read(tmp_path, "pairs.parquet")


def test_a_packed_parquet_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pairs.parquet.gz").write_bytes(gzip.compress(b""))
    with pytest.raises(UnreadableFile, match="a Parquet file is compressed inside; unpack this one first"):
        read(tmp_path, "pairs.parquet.gz")


@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.csv", "pairs.json"])
def test_utf_16_is_told_by_its_first_bytes(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(json.dumps(GOOD).encode("utf-16"))
    with pytest.raises(UnreadableFile, match=r"is UTF-16 text; make it UTF-8 first: iconv"):
        read(tmp_path, name)


def test_lines_of_another_encoding_are_rejected_and_the_others_read(tmp_path: Path) -> None:
    rows = [json.dumps({**GOOD, "prompt": "Café?"}, ensure_ascii=False)] * 2
    (tmp_path / "pairs.jsonl").write_bytes(rows[0].encode() + b"\n" + rows[1].encode("latin-1") + b"\n")
    frame = read(tmp_path, "pairs.jsonl")
    assert [row[:2] for row in verdicts(frame)] == [(2, "not_json")]
    assert frame["_detail"][1].endswith("the line is not UTF-8")
    (tmp_path / "pairs.csv").write_bytes("prompt,chosen,rejected\nCafé?,a,b\n".encode() + "Café?,a,b\n".encode("latin-1"))
    assert verdicts(read(tmp_path, "pairs.csv")) == [(3, "not_csv", "the row is not UTF-8")]


def test_a_byte_order_mark_crlf_and_nul_bytes(tmp_path: Path) -> None:
    line = json.dumps(GOOD).encode()
    (tmp_path / "pairs.jsonl").write_bytes(
        b"\xef\xbb\xbf" + line + b"\r\n" + line[:9] + b"\0" + line[9:] + b"\r\n" + b"\0" * 5000
    )
    assert [(line, reason) for line, reason, _ in verdicts(read(tmp_path, "pairs.jsonl"))] == [(2, "not_json"), (3, "not_json")]
    (tmp_path / "pairs.csv").write_bytes(b"\xef\xbb\xbfprompt,chosen,rejected\r\nA\0?,b,c\r\nD?,e,f\r\n")
    frame = read(tmp_path, "pairs.csv")
    assert verdicts(frame) == []
    assert [prompt[0]["content"] for prompt in frame["prompt"]] == ["A\0?", "D?"]


def test_a_line_of_50_megabytes_is_a_record_like_others(tmp_path: Path) -> None:
    long = "x" * 50_000_000
    with (tmp_path / "pairs.jsonl").open("w") as file:
        file.write(json.dumps(GOOD) + "\n" + json.dumps({**GOOD, "chosen": long}) + "\n" + '{"prompt": "' + long + "\n")
        file.write(json.dumps(GOOD) + "\n")
    frame = read(tmp_path, "pairs.jsonl")
    assert frame.select("_line", "_reject").rows() == [(1, None), (2, None), (3, "not_json"), (4, None)]
    assert len(frame["chosen"][1][0]["content"]) == 50_000_000
    assert len(frame["_raw"][2]) == 1_000_004


def test_a_line_without_an_end_is_rejected_and_not_held_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LONGEST_LINE", 1 << 20)
    good = json.dumps(GOOD).encode()
    for ending, last in ((b"", 0), (b"\n", 0), (b"\n" + good, 3), (b"\n\n" + good + b"\n", 4)):
        (tmp_path / "pairs.jsonl").write_bytes(good + b"\n" + b'{"a": "' + b"x" * (5 << 20) + ending)
        records = [
            (line, record if isinstance(record, dict) else record.reason) for line, record in parsed(tmp_path / "pairs.jsonl")
        ]
        assert records == [(1, GOOD), (2, "not_json"), *([(last, GOOD)] if last else [])]

    monkeypatch.setattr(module, "_CHUNK", 1 << 18)
    frame = read(tmp_path, "pairs.jsonl")
    assert verdicts(frame) == [(2, "not_json", "the line has more than 256 MiB")]
    assert len(frame["_raw"][1]) == 1_000


# ---- JSON arrays ----


def test_a_json_array_is_read_item_by_item(tmp_path: Path) -> None:
    (tmp_path / "pairs.json").write_text(json.dumps([GOOD, 7, {**GOOD, "chosen": ""}], indent=1))
    frame = read(tmp_path, "pairs.json")
    assert verdicts(frame) == [
        (2, "not_an_object", "a record is an object of fields, not a number"),
        (3, "empty_text", "field 'chosen' is empty"),
    ]
    assert frame["_raw"].to_list()[1] == "7"


def test_a_json_file_of_lines_is_read_as_lines(tmp_path: Path) -> None:
    (tmp_path / "pairs.json").write_text(json.dumps(GOOD) + "\n" + json.dumps(GOOD) + "\n")
    assert read(tmp_path, "pairs.json")["_line"].to_list() == [1, 2]


def test_a_json_array_that_is_cut_off_is_reported(tmp_path: Path) -> None:
    (tmp_path / "pairs.json").write_text(json.dumps([GOOD])[:-1])
    with pytest.raises(UnreadableFile, match=r"pairs\.json: begins as a JSON array and is none: .* at line 1"):
        read(tmp_path, "pairs.json")


# ---- CSV ----


def test_a_quote_that_is_left_open_rejects_its_line_alone(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text(
        "prompt,chosen,rejected\n"
        'Q1?,"good,bad\n'  # line 2: its quote would be closed on line 4
        "Q2?,yes,no\n"
        'Q3?,"yes","no"\n'
        "Q4?,yes,no\n"
        'Q5?,5" nails,a 6" nail\n'  # quotes inside of fields are no quotes
        'Q6?,"two\nlines",no\n'  # lines 7 and 8
        'Q7?,"yes,no\n'  # line 9: never closed
        "Q8?,yes,no\n"
    )
    frame = read(tmp_path, "pairs.csv", max_malformed=1.0)
    assert verdicts(frame) == [
        (2, "not_csv", "a quote is opened and not closed; it swallows the 2 lines that follow"),
        (9, "not_csv", "a quote is opened and not closed; it swallows the 1 lines that follow"),
    ]
    assert frame.filter(pl.col("_reject").is_not_null())["_raw"].to_list() == ['Q1?,"good,bad', 'Q7?,"yes,no']
    good = frame.filter(pl.col("_reject").is_null())
    assert good["_line"].to_list() == [3, 4, 5, 6, 7, 10]
    assert [prompt[0]["content"] for prompt in good["prompt"]] == ["Q2?", "Q3?", "Q4?", "Q5?", "Q6?", "Q8?"]
    assert good["chosen"][3][0]["content"] == '5" nails'


def test_an_open_quote_in_a_long_file_swallows_no_more_than_it_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LONGEST_QUOTE", 20)
    rows = [f"Q{number}?,yes,no\n" for number in range(100)]
    (tmp_path / "pairs.csv").write_text("prompt,chosen,rejected\n" + "".join(rows[:10]) + 'Q?,"yes,no\n' + "".join(rows[10:]))
    frame = read(tmp_path, "pairs.csv")
    assert [row[:2] for row in verdicts(frame)] == [(12, "not_csv")]
    assert frame.height == 101


def test_a_quote_out_of_place_on_one_line_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text('prompt,chosen,rejected\n"Say "hi""?,yes,no\n"A?" ,yes,no\n')
    frame = read(tmp_path, "pairs.csv")
    assert verdicts(frame) == []
    assert [prompt[0]["content"] for prompt in frame["prompt"]] == ['Say hi""?', "A? "]


def test_an_open_quote_in_the_header_is_reported(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text('"prompt,chosen,rejected\na,b,c\n')
    with pytest.raises(UnreadableFile, match=r"pairs\.csv: the header line: a quote is opened and not closed"):
        read(tmp_path, "pairs.csv")


def test_a_header_that_names_a_column_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text("prompt,chosen,rejected,chosen\na,b,c,d\n")
    with pytest.raises(UnreadableFile, match=r"names a column twice: prompt, chosen, rejected, chosen"):
        read(tmp_path, "pairs.csv")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.text('ab",\n\r é', max_size=6), min_size=2, max_size=2), max_size=8), st.sampled_from(",\t"))
def test_well_formed_csv_is_read_as_it_was_written(tmp_path: Path, rows: list[list[str]], delimiter: str) -> None:
    path = tmp_path / ("rows.csv" if delimiter == "," else "rows.tsv")
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter, quoting=csv.QUOTE_ALL).writerows([["x", "y"], *rows])
    assert [record for _, record in parsed(path)] == [dict(zip(("x", "y"), row, strict=True)) for row in rows]


# ---- several files ----


def test_a_glob_that_matches_nothing_says_where_it_looked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no file matches '\*\.jsonl' \(looked for .*\)"):
        ReadPairs.model_validate_json('{"path": "*.jsonl"}', context={"root": tmp_path})


def test_a_field_of_later_files_alone_is_a_column(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({**GOOD, "score": 1}) + "\n")
    (tmp_path / "b.jsonl").write_text(json.dumps({**GOOD, "prompt": "B?", "score": 2.5, "topic": "home"}) + "\n")
    pl.DataFrame([{**GOOD, "prompt": "C?", "lang": "en"}]).write_parquet(tmp_path / "c.parquet")
    frame = read(tmp_path, "*.*")
    assert frame.select("score", "topic", "lang", "_reject").rows() == [
        (1.0, None, None, None),
        (2.5, "home", None, None),
        (None, None, "en", None),
    ]


def test_types_that_differ_between_files_widen(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({**GOOD, "score": 1, "more": [1], "when": "2026-01-02"}) + "\n")
    (tmp_path / "b.jsonl").write_text(json.dumps({**GOOD, "prompt": "B?", "score": "high", "more": []}) + "\n")
    pl.DataFrame([{**GOOD, "prompt": "C?", "more": [0.5]}]).with_columns(
        when=pl.date(2026, 1, 2), score=pl.lit(7, pl.Int8)
    ).write_parquet(tmp_path / "c.parquet")
    frame = read(tmp_path, "*.*")
    assert frame.select("score", "more", "when", "_reject").rows() == [
        ("1", [1.0], "2026-01-02", None),
        ("high", [], None, None),
        ("7", [0.5], '"2026-01-02"', None),
    ]


def test_a_field_that_no_file_has_is_refused_with_those_there_are(tmp_path: Path) -> None:
    for name in "abcde":
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(GOOD) + "\n")
    with pytest.raises(
        ValueError, match=r"no record of a\.jsonl, b\.jsonl, c\.jsonl and 2 more has a field 'topic'; they have prompt"
    ):
        read(tmp_path, "*.jsonl", keep=["topic"])


def test_brackets_in_a_name_are_no_pattern(tmp_path: Path) -> None:
    (tmp_path / "year=2026").mkdir()
    pl.DataFrame([GOOD]).write_parquet(tmp_path / "year=2026" / "[a]*.parquet")
    frame = read(tmp_path, "year=2026/[[]a]*.parquet")
    assert (frame.height, "year" in frame.columns) == (1, False)


def test_nulls_and_nan_in_a_table_are_rejected_or_kept_by_column(tmp_path: Path) -> None:
    rows = [{**GOOD, "score": float("nan")}, {**GOOD, "chosen": None, "score": 1.0}, {**GOOD, "prompt": " ", "score": None}]
    pl.DataFrame(rows).write_parquet(tmp_path / "pairs.parquet")
    frame = read(tmp_path, "pairs.parquet")
    assert verdicts(frame) == [(2, "missing_field", "field 'chosen' is null"), (3, "empty_text", "field 'prompt' is empty")]
    assert frame["score"].is_nan().to_list() == [True, None, None]


def test_a_piece_is_a_small_value() -> None:
    assert len(pickle.dumps(Piece(3, 10, 20, 5))) < 200
