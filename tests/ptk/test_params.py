"""Settings know which of their fields decide rows, and what is wrong with them is told in words."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import Field, TypeAdapter, ValidationError

from ptk.params import (
    COLUMN,
    MODEL,
    UNKEYED,
    Column,
    ModelName,
    Params,
    SourceFiles,
    Unkeyed,
    canonical,
    existing_file,
    marked_fields,
    problems,
    suggestion,
)


class Inner(Params):
    depth: int = 1
    folder: Annotated[str, UNKEYED] = "here"


class Settings(Params):
    on: Annotated[tuple[str, ...], COLUMN] = Field(("a",), min_length=1)
    model: Annotated[str, MODEL] = "labeler"
    seconds: Annotated[float, UNKEYED] = 0.0
    inner: Inner = Inner()
    cases: tuple[Inner, ...] = ()
    keep: tuple[str, ...] | None = None


def told(data: dict[str, Any]) -> list[tuple[tuple[str | int, ...], str]]:
    with pytest.raises(ValidationError) as caught:
        Settings.model_validate(data, strict=False)
    return list(problems(Settings, caught.value))


def test_marks_tell_what_a_field_is() -> None:
    assert {mark.__name__: list(marked_fields(Settings, mark)) for mark in (Column, ModelName, Unkeyed)} == {
        "Column": ["on"],
        "ModelName": ["model"],
        "Unkeyed": ["seconds"],
    }
    assert list(marked_fields(Settings(), Column)) == ["on"]


def test_what_can_not_change_rows_is_in_no_key() -> None:
    slow = Settings(seconds=9.0, model="other", inner=Inner(folder="there"), cases=(Inner(depth=2, folder="away"),))
    assert canonical(slow) == {"on": ["a"], "inner": {"depth": 1}, "cases": [{"depth": 2}], "keep": None}


def test_every_other_setting_is_in_the_key() -> None:
    plain = canonical(Settings())
    others = [Settings(on=("b",)), Settings(inner=Inner(depth=2)), Settings(cases=(Inner(),)), Settings(keep=("x",))]
    assert [canonical(other) == plain for other in others] == [False] * 4


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError):
        Settings().seconds = 1.0  # type: ignore[misc]


@pytest.mark.parametrize("value", ["3", 3.0, True])
def test_types_are_not_converted_silently(value: Any) -> None:
    with pytest.raises(ValidationError):
        Inner(depth=value)


@pytest.mark.parametrize(
    ("name", "known", "expected"),
    [
        ("promt", ["prompt", "chosen"], "; did you mean 'prompt'?"),
        ("zzz", ["prompt", "chosen"], "; there is chosen, prompt"),
        ("zzz", [], ""),
        (
            "zzz",
            [f"n{number:02}" for number in range(14)],
            f"; there is {', '.join(f'n{number:02}' for number in range(12))} ...",
        ),
    ],
)
def test_a_name_near_enough_is_suggested(name: str, known: list[str], expected: str) -> None:
    assert suggestion(name, known) == expected


def test_problems_are_told_in_words_at_their_place() -> None:
    assert told({"on": [], "second": 1.0, "inner": {"dept": 1}}) == [
        (("on",), "must not be empty"),
        (("inner", "dept"), "unknown option 'dept'; did you mean 'depth'?"),
        (("second",), "unknown option 'second'; did you mean 'seconds'?"),
    ]


def test_options_of_settings_in_a_list_are_suggested_too() -> None:
    assert told({"cases": [{"depth": 1}, {"dept": 1}]}) == [
        (("cases", 1, "dept"), "unknown option 'dept'; did you mean 'depth'?")
    ]


def test_a_list_whose_items_are_wrong_is_not_called_empty_as_well() -> None:
    assert told({"on": [3]}) == [(("on", 0), "should be a valid string, not 3")]


def test_long_values_are_shortened() -> None:
    ((_, what),) = told({"inner": "x" * 500})
    assert what.endswith(', not "' + "x" * 56 + "...")
    assert len(what) < 200


def test_a_path_names_its_files_and_counts_by_their_content(tmp_path: Path) -> None:
    for name, content in [("b.jsonl", "two"), ("a.jsonl", "one"), ("c.txt", "three")]:
        (tmp_path / name).write_text(content)
    found = SourceFiles.from_text("*.jsonl", tmp_path)
    assert found == SourceFiles("*.jsonl", (tmp_path / "a.jsonl", tmp_path / "b.jsonl"))
    assert canonical(found) == canonical(SourceFiles.from_text(str(tmp_path / "?.jsonl"), Path("/")))
    before = canonical(found)
    (tmp_path / "a.jsonl").write_text("changed")
    assert canonical(found)[1] == before[1]
    assert canonical(found)[0] != before[0]


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path: Path) -> None:
    (tmp_path / "a[1].jsonl").write_text("x")
    assert SourceFiles.from_text("a[1].jsonl", tmp_path).paths == (tmp_path / "a[1].jsonl",)


def test_paths_are_validated_against_the_root_given(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("x")
    adapter = TypeAdapter(SourceFiles)
    assert adapter.validate_python("a.jsonl", context={"root": tmp_path}).paths == (tmp_path / "a.jsonl",)
    assert adapter.json_schema() == {"type": "string", "minLength": 1}


def test_a_name_that_the_file_system_does_not_take_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="can't be looked at: File name too long"):
        TypeAdapter(SourceFiles).validate_python("a" * 300, context={"root": tmp_path})


def test_a_missing_file_is_told_with_a_near_name(tmp_path: Path) -> None:
    (tmp_path / "cases.yaml").write_text("x")
    assert existing_file("cases.yaml", tmp_path) == tmp_path / "cases.yaml"
    with pytest.raises(ValueError, match=r"no such file: 'case\.yaml' \(looked for .*\); did you mean 'cases\.yaml'\?"):
        existing_file("case.yaml", tmp_path)
