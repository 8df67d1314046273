from __future__ import annotations

import csv
import gzip
import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from pydantic import ValidationError

from ptk.errors import PtkError
from ptk.ops import export_rows as module
from ptk.ops.export_rows import ExportRows, export_rows

GOLDEN = {
    "rows": [
        '{"pair_id":"a","prompt":[{"role":"user","content":"Which shelf?"}],"chosen":[{"role":"assistant","content":"The lower."}],'
        '"rejected":[{"role":"assistant","content":"It depends."}],"split":"train","score":1.5}',
        '{"pair_id":"b","prompt":[{"role":"system","content":"Be brief."},{"role":"user","content":"Café?"}],'
        '"chosen":[{"role":"assistant","content":"Yes\\u2028."}],"rejected":[{"role":"assistant","content":"No \\"way\\".\\n"}],'
        '"split":"test","score":null}',
    ],
    "trl_explicit": [
        '{"prompt":[{"role":"user","content":"Which shelf?"}],"chosen":[{"role":"assistant","content":"The lower."}],'
        '"rejected":[{"role":"assistant","content":"It depends."}]}',
        '{"prompt":[{"role":"system","content":"Be brief."},{"role":"user","content":"Café?"}],'
        '"chosen":[{"role":"assistant","content":"Yes\\u2028."}],"rejected":[{"role":"assistant","content":"No \\"way\\".\\n"}]}',
    ],
    "trl_implicit": [
        '{"chosen":[{"role":"user","content":"Which shelf?"},{"role":"assistant","content":"The lower."}],'
        '"rejected":[{"role":"user","content":"Which shelf?"},{"role":"assistant","content":"It depends."}]}',
        '{"chosen":[{"role":"system","content":"Be brief."},{"role":"user","content":"Café?"},'
        '{"role":"assistant","content":"Yes\\u2028."}],'
        '"rejected":[{"role":"system","content":"Be brief."},{"role":"user","content":"Café?"},'
        '{"role":"assistant","content":"No \\"way\\".\\n"}]}',
    ],
    "kto": [
        '{"prompt":[{"role":"user","content":"Which shelf?"}],"completion":[{"role":"assistant","content":"The lower."}],"label":true}',
        '{"prompt":[{"role":"user","content":"Which shelf?"}],"completion":[{"role":"assistant","content":"It depends."}],"label":false}',
        '{"prompt":[{"role":"system","content":"Be brief."},{"role":"user","content":"Café?"}],'
        '"completion":[{"role":"assistant","content":"Yes\\u2028."}],"label":true}',
        '{"prompt":[{"role":"system","content":"Be brief."},{"role":"user","content":"Café?"}],'
        '"completion":[{"role":"assistant","content":"No \\"way\\".\\n"}],"label":false}',
    ],
    "sft": [
        '{"prompt":[{"role":"user","content":"Which shelf?"}],"completion":[{"role":"assistant","content":"The lower."}]}',
        '{"prompt":[{"role":"system","content":"Be brief."},{"role":"user","content":"Café?"}],'
        '"completion":[{"role":"assistant","content":"Yes\\u2028."}]}',
    ],
    "messages": [
        '{"messages":[{"role":"user","content":"Which shelf?"},{"role":"assistant","content":"The lower."}]}',
        '{"messages":[{"role":"system","content":"Be brief."},{"role":"user","content":"Café?"},'
        '{"role":"assistant","content":"Yes\\u2028."}]}',
    ],
}


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def two_pairs() -> pl.DataFrame:
    """Return two pairs, not in the order of their keys."""
    rows = [
        {
            "pair_id": "b",
            "prompt": [turn("system", "Be brief."), turn("user", "Café?")],
            "chosen": [turn("assistant", "Yes\u2028.")],
            "rejected": [turn("assistant", 'No "way".\n')],
            "split": "test",
            "score": float("nan"),
        },
        {
            "pair_id": "a",
            "prompt": [turn("user", "Which shelf?")],
            "chosen": [turn("assistant", "The lower.")],
            "rejected": [turn("assistant", "It depends.")],
            "split": "train",
            "score": 1.5,
        },
    ]
    return pl.DataFrame(rows).with_columns(_key=pl.col("pair_id"))


def many(count: int, seed: int = 0) -> pl.DataFrame:
    numbers = list(range(count))
    random.Random(seed).shuffle(numbers)
    return pl.DataFrame(
        {
            "_key": [f"k{n:05}" for n in numbers],
            "prompt": [f"Q{n}?" for n in numbers],
            "chosen": [f"A{n}." for n in numbers],
            "rejected": [f"B{n}." for n in numbers],
            "split": [("train", "val", "test")[n % 3] for n in numbers],
        }
    )


def export(frame: pl.DataFrame, folder: Path, **options: Any) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    params = ExportRows.model_validate_json(json.dumps({"path": "out", **options}), context={"root": folder})
    facts = export_rows.function(frame.lazy(), params=params, folder=folder)
    assert {path.name for path in folder.iterdir()} == set(facts["files"])
    for name, told in facts["files"].items():
        content = (folder / name).read_bytes()
        assert (told["bytes"], told["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    return dict(facts)


@pytest.mark.parametrize("form", GOLDEN)
def test_a_form_is_written_as_it_always_was(form: str, tmp_path: Path) -> None:
    facts = export(two_pairs(), tmp_path, form=form)
    assert (tmp_path / "data.jsonl").read_bytes().decode() == "".join(line + "\n" for line in GOLDEN[form])
    assert (facts["form"], facts["format"], facts["rows"]) == (form, "jsonl", len(GOLDEN[form]))
    assert facts["files"]["data.jsonl"]["rows"] == len(GOLDEN[form])


def test_columns_are_added_to_a_form_or_chosen_from_the_rows(tmp_path: Path) -> None:
    export(two_pairs(), tmp_path / "kto", form="kto", columns=["split", "pair_id"], format="csv")
    lines = list(csv.DictReader((tmp_path / "kto" / "data.csv").open(newline="")))
    assert [(line["pair_id"], line["split"], line["label"]) for line in lines] == [
        ("a", "train", "true"),
        ("a", "train", "false"),
        ("b", "test", "true"),
        ("b", "test", "false"),
    ]
    assert json.loads(lines[2]["prompt"]) == [turn("system", "Be brief."), turn("user", "Café?")]
    export(two_pairs(), tmp_path / "rows", columns=["score", "pair_id"])
    assert (tmp_path / "rows" / "data.jsonl").read_text() == '{"score":1.5,"pair_id":"a"}\n{"score":null,"pair_id":"b"}\n'


def test_text_becomes_one_turn_of_the_role_it_stands_for(tmp_path: Path) -> None:
    export(many(1), tmp_path, form="trl_implicit")
    assert json.loads((tmp_path / "data.jsonl").read_text()) == {
        "chosen": [turn("user", "Q0?"), turn("assistant", "A0.")],
        "rejected": [turn("user", "Q0?"), turn("assistant", "B0.")],
    }


def test_each_value_of_a_column_gets_a_file_and_long_ones_a_series(tmp_path: Path) -> None:
    facts = export(many(20), tmp_path, form="kto", split_by="split", records_per_file=5)
    assert {name: told["rows"] for name, told in facts["files"].items()} == {
        "test-00000-of-00003.jsonl": 5,
        "test-00001-of-00003.jsonl": 5,
        "test-00002-of-00003.jsonl": 2,
        "train-00000-of-00003.jsonl": 5,
        "train-00001-of-00003.jsonl": 5,
        "train-00002-of-00003.jsonl": 4,
        "val-00000-of-00003.jsonl": 5,
        "val-00001-of-00003.jsonl": 5,
        "val-00002-of-00003.jsonl": 4,
    }


@pytest.mark.parametrize("form", ["rows", "kto"])
@pytest.mark.parametrize("kind", ["jsonl", "parquet", "csv"])
@pytest.mark.parametrize("compress", ["none", "gzip", "zstd"])
def test_bytes_depend_neither_on_order_nor_on_how_much_is_sorted_at_once(
    form: str, kind: str, compress: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"form": form, "format": kind, "compress": compress, "split_by": "split"}
    whole = export(many(300), tmp_path / "whole", **options)
    assert export(many(300, seed=1), tmp_path / "again", **options) == whole
    monkeypatch.setattr(module, "_AT_ONCE", 10)
    monkeypatch.setattr(module, "_PIECES", 3)
    pieces = export(many(300, seed=2), tmp_path / "pieces", **options)
    if kind != "parquet":  # its row groups show what was sorted at once
        assert pieces == whole
    ending = {"jsonl": "jsonl", "parquet": "parquet", "csv": "csv"}[kind]
    suffix = "" if kind == "parquet" else {"none": "", "gzip": ".gz", "zstd": ".zst"}[compress]
    read = {"jsonl": pl.read_ndjson, "parquet": pl.read_parquet, "csv": pl.read_csv}[kind]
    for split in ("train", "val", "test"):
        rows = read(tmp_path / "pieces" / f"{split}.{ending}{suffix}")  # type: ignore[operator]
        expected = many(300).filter(pl.col("split") == split).sort("_key")
        if form == "rows":
            assert rows.equals(expected.drop("_key"))
        else:
            assert rows["label"].to_list() == [True, False] * 100


def test_gzip_files_hold_the_same_lines(tmp_path: Path) -> None:
    export(many(50), tmp_path / "plain")
    export(many(50), tmp_path / "packed", compress="gzip")
    assert (
        gzip.decompress((tmp_path / "packed" / "data.jsonl.gz").read_bytes())
        == (tmp_path / "plain" / "data.jsonl").read_bytes()
    )


def test_json_holds_no_number_that_json_has_not(tmp_path: Path) -> None:
    odd = pl.DataFrame(
        {
            "_key": ["a"],
            "x": [float("inf")],
            "xs": [[float("nan"), 1.0]],
            "s": [{"y": float("-inf")}],
            "t": ["\x00\x1f\u0085 \ud7ff"],
        }
    )
    export(odd, tmp_path)
    text = (tmp_path / "data.jsonl").read_bytes().decode()
    assert len(text.splitlines()) == 1
    assert json.loads(text, parse_constant=pytest.fail) == {
        "x": None,
        "xs": [None, 1.0],
        "s": {"y": None},
        "t": "\x00\x1f\u0085 \ud7ff",
    }


def test_csv_tells_nothing_from_empty_text(tmp_path: Path) -> None:
    frame = pl.DataFrame({"_key": ["a", "b"], "t": ["", None], "x": [float("nan"), 1.0], "l": [None, ['say "hi"']]})
    export(frame, tmp_path, format="csv")
    assert (tmp_path / "data.csv").read_text() == 't,x,l\n"",,\n,1.0,"[""say \\""hi\\""""]"\n'


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "csv"])
def test_no_rows_give_an_empty_file_with_the_columns(kind: str, tmp_path: Path) -> None:
    facts = export(many(0), tmp_path, format=kind)
    assert {name: told["rows"] for name, told in facts["files"].items()} == {f"data.{kind}": 0}
    if kind == "parquet":
        assert pl.read_parquet(tmp_path / "data.parquet").columns == ["prompt", "chosen", "rejected", "split"]
    assert export(many(0), tmp_path / "split", format=kind, split_by="split")["files"] == {}


@pytest.mark.parametrize("value", ["../up", "", ".hidden", "a/b", "a b", None, "x" * 101])
def test_a_value_that_cannot_name_a_file_is_refused(value: str | None, tmp_path: Path) -> None:
    frame = many(3).with_columns(split=pl.lit(value, pl.String))
    with pytest.raises(PtkError, match="can't name a file"):
        export(frame, tmp_path, split_by="split")
    assert list(tmp_path.iterdir()) == []


def test_a_column_of_lists_can_not_name_files(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"column 'split' is List\(String\), whose values can't name files"):
        export(many(2).with_columns(split=pl.Series([["a"], ["b"]])), tmp_path, split_by="split")


def test_values_that_differ_in_case_alone_are_refused(tmp_path: Path) -> None:
    frame = many(2).with_columns(split=pl.Series(["Train", "train"]))
    with pytest.raises(PtkError, match="'Train' and 'train', which name one file on some systems"):
        export(frame, tmp_path, split_by="split")


def test_a_pair_without_a_response_is_refused_by_forms_made_of_it(tmp_path: Path) -> None:
    frame = two_pairs().with_columns(rejected=pl.when(pl.col("_key") == "a").then("rejected"))
    with pytest.raises(PtkError, match="1 rows have no 'rejected', which `form: kto` is made of; the first is b"):
        export(frame, tmp_path, form="kto")
    assert export(frame, tmp_path, form="sft")["rows"] == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "kto", "columns": ["label"]}, "makes a field 'label'"),
        ({"columns": ["a", "a"]}, "names a column twice"),
        ({"name": "../x"}, "can't be the name of a file"),
        ({"path": "/etc"}, "is not inside the folder"),
        ({"format": "xml"}, "should be 'jsonl', 'parquet' or 'csv'"),
    ],
)
def test_a_wrong_setting_is_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=message):
        ExportRows.model_validate_json(json.dumps({"path": "out", **options}), context={"root": tmp_path})


def test_columns_that_a_form_or_a_format_cannot_hold_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no column 'rejected'"):
        export(many(2).drop("rejected"), tmp_path, form="kto")
    with pytest.raises(TypeError, match="column 'prompt' is Int64, neither text nor a list of turns"):
        export(many(2).with_columns(prompt=pl.lit(1, pl.Int64)), tmp_path, form="kto")
    with pytest.raises(TypeError, match="column 'b' is Binary; jsonl holds no bytes"):
        export(many(2).with_columns(b=pl.lit(b"x")), tmp_path)


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize("form", ["trl_explicit", "trl_implicit", "kto", "sft", "messages"])
def test_datasets_load_the_files_and_trl_knows_their_form(form: str, kind: str, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    trl = pytest.importorskip("trl.data_utils")
    frame = pl.concat(
        [two_pairs().drop("pair_id", "score"), two_pairs().drop("pair_id", "score").with_columns(_key=pl.lit("c"))]
    )
    export(frame.unique("_key", maintain_order=True), tmp_path / "out", form=form, format=kind, split_by="split")
    files = {split: str(tmp_path / "out" / f"{split}.{kind}") for split in ("train", "test")}
    loader = "json" if kind == "jsonl" else "parquet"
    loaded = datasets.load_dataset(loader, data_files=files, cache_dir=str(tmp_path / "cache"))
    example = loaded["train"][0]
    assert trl.is_conversational(example)
    explicit = {
        "prompt": [turn("user", "Which shelf?")],
        "chosen": [turn("assistant", "The lower.")],
        "rejected": [turn("assistant", "It depends.")],
    }
    if form.startswith("trl_"):
        assert trl.maybe_extract_prompt(dict(example)) == explicit
    elif form == "kto":
        assert loaded["train"][:]["label"] == [True, False]
        assert set(example) == {"prompt", "completion", "label"}
    elif form == "sft":
        assert example == {"prompt": explicit["prompt"], "completion": explicit["chosen"]}
    else:
        assert example == {"messages": explicit["prompt"] + explicit["chosen"]}


def test_a_spec_exports_rows_and_passes_them_on(tmp_path: Path, ptk: Callable[..., Any]) -> None:
    records = [{"prompt": f"Q{n}?", "chosen": f"A{n}.", "rejected": f"B{n}."} for n in range(20)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (tmp_path / "spec.yaml").write_text(
        "ptk: 1\nname: out\nsteps:\n  pairs: {op: read_pairs, path: pairs.jsonl}\n"
        "  parts: {op: split_rows, from: pairs, parts: {test: 5}, rest: train}\n"
        "  files: {op: export_rows, from: parts, path: out/pairs, form: trl_explicit, split_by: split}\n"
    )
    done = ptk("run", "spec.yaml")
    assert done.returncode == 0, done.stderr
    lines = {name: (tmp_path / "out" / "pairs" / f"{name}.jsonl").read_text().splitlines() for name in ("train", "test")}
    assert {name: len(found) for name, found in lines.items()} == {"train": 15, "test": 5}
    assert set(json.loads(lines["test"][0])) == {"prompt", "chosen", "rejected"}
