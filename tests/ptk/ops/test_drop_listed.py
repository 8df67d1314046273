from __future__ import annotations

import gzip
import pickle
from pathlib import Path

import orjson
import polars as pl
import pytest
from pydantic import ValidationError

from ptk.ops.drop_listed import DropListed, drop_listed
from ptk.params import canonical
from ptk.stages import run_stages

FRAME = pl.DataFrame({"_key": ["a", "b", "c"], "user": [1, 2, None]})


def params(**settings: object) -> DropListed:
    return DropListed.model_validate_json(orjson.dumps(settings))


def taken(settings: DropListed) -> list[str]:
    decision = run_stages(drop_listed, [FRAME.lazy()], settings).collect()
    return decision.filter(pl.col("_reject").is_not_null())["_key"].to_list()


def test_rows_whose_key_is_listed_are_rejected() -> None:
    decision = run_stages(drop_listed, [FRAME.lazy()], DropListed(ids=("b", "z"))).collect()
    assert decision.rows() == [("a", None, None), ("b", "taken_down", "its key is in the list"), ("c", None, None)]


def test_ids_of_another_column_and_another_reason_can_be_given() -> None:
    settings = DropListed(ids=(2, "7"), column="user", reason="withdrawn")
    decision = run_stages(drop_listed, [FRAME.lazy()], settings).collect()
    assert decision.rows() == [("a", None, None), ("b", "withdrawn", "user is in the list"), ("c", None, None)]


@pytest.mark.parametrize(
    ("name", "content", "field"),
    [
        ("ids.txt", "\ufeffa\r\n\r\n c \n", None),
        ("ids.csv", "id\na\nc\n", None),
        ("ids.csv", 'why,id\n"asked, twice",a\nasked,c\n', "id"),
        ("ids.tsv", "why\tid\nasked\ta\nasked\tc\n", "id"),
        ("ids.jsonl", '"a"\n\n"c"\n', None),
        ("ids.jsonl", '{"id": "a"}\n{"id": "c"}\n', None),
        ("ids.jsonl", '{"id": "a", "n": 1}\n{"n": 2, "id": "c"}\n', "id"),
    ],
)
def test_ids_are_read_from_files(tmp_path: Path, name: str, content: str, field: str | None) -> None:
    (tmp_path / name).write_text(content, newline="")
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content.encode()))
    for path in (name, f"{name}.gz"):
        assert taken(params(path=str(tmp_path / path), field=field)) == ["a", "c"]


def test_inline_ids_and_those_of_several_files_are_taken_together(tmp_path: Path) -> None:
    (tmp_path / "1.txt").write_text("a\n")
    (tmp_path / "2.txt").write_text("c\n")
    assert params(path=str(tmp_path / "*.txt"), ids=["b", "a"]).listed == ("b", "a", "c")


def test_the_content_of_the_file_is_part_of_the_step_and_its_place_is_not(tmp_path: Path) -> None:
    (tmp_path / "1.txt").write_text("a\n")
    (tmp_path / "2.txt").write_text("a\n")
    (tmp_path / "3.txt").write_text("b\n")
    first, second, third = (canonical(params(path=str(tmp_path / f"{n}.txt"))) for n in (1, 2, 3))
    assert first == second != third


def test_settings_carry_their_ids_to_another_process(tmp_path: Path) -> None:
    (tmp_path / "1.txt").write_text("a\n")
    assert pickle.loads(pickle.dumps(params(path=str(tmp_path / "1.txt")))).listed == ("a",)


@pytest.mark.parametrize(
    ("name", "content", "field", "complaint"),
    [
        ("ids.csv", "id,why\na,asked\n", None, "ids.csv has the fields id, why; say in `field` which one holds the ids"),
        ("ids.csv", "id,why\na,asked\n", "idd", "ids.csv has no field 'idd'; did you mean 'id'?"),
        ("ids.csv", "why,id\nasked\n", "id", "ids.csv:2: there is no 'id'"),
        ("ids.jsonl", '"a"\n{"id": ', None, "ids.jsonl:2: not JSON"),
        ("ids.jsonl", '{"id": null}\n', None, "ids.jsonl:1: an id is text or a whole number"),
        ("ids.txt", "a\n", "id", "leave `field` out"),
        ("ids.txt.gz", "a\n", None, "ids.txt.gz can't be read"),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_refused(
    tmp_path: Path, name: str, content: str, field: str | None, complaint: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValidationError) as error:
        params(path=str(tmp_path / name), field=field)
    assert complaint in str(error.value)


@pytest.mark.parametrize("settings", [{}, {"ids": []}, {"ids": ["a"], "reason": "Taken down"}, {"path": "nowhere.txt"}])
def test_settings_that_can_not_be_right_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        params(**settings)


def test_a_column_that_holds_no_ids_fails_on_no_rows() -> None:
    frame = pl.LazyFrame(schema={"_key": pl.String, "score": pl.Float64})
    with pytest.raises(TypeError, match="column 'score' is Float64"):
        run_stages(drop_listed, [frame], DropListed(ids=("1",), column="score"))
