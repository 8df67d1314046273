"""YAML is read with the line of every value, and what could surprise is an error at its line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ptk.errors import SpecError
from ptk.yamlfile import Document, read_yaml


def read(folder: Path, content: str | bytes) -> Document:
    path = folder / "some.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_yaml(path, "some.yaml")


def complaints(folder: Path, content: str | bytes) -> list[str]:
    with pytest.raises(SpecError) as caught:
        read(folder, content)
    return [str(violation) for violation in caught.value.violations]


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("on", "on"),
        ("off", "off"),
        ("yes", "yes"),
        ("No", "No"),
        ("y", "y"),
        ("2026-01-01", "2026-01-01"),
        ("12:30:00", "12:30:00"),
        ("1_000", "1_000"),
        ("0x1F", "0x1F"),
        ("true", True),
        ("False", False),
        ("~", None),
        ("null", None),
        ("", None),
        ("0", 0),
        ("-12", -12),
        ("9223372036854775807", 2**63 - 1),
        ("1.5", 1.5),
        ("1e-3", 0.001),
        (".5", 0.5),
        ("'1'", "1"),
        ('"true"', "true"),
    ],
)
def test_scalars_are_those_of_yaml_1_2(tmp_path: Path, written: str, meant: Any) -> None:
    value = read(tmp_path, f"key: {written}\n").data["key"]
    assert (value, type(value)) == (meant, type(meant))


def test_words_that_other_readers_take_for_booleans_stay_keys(tmp_path: Path) -> None:
    assert read(tmp_path, "on: 1\nyes: 2\nno: 3\n3: 4\nnull: 5\n").data == {"on": 1, "yes": 2, "no": 3, "3": 4, "null": 5}


def test_every_value_has_the_line_where_it_stands(tmp_path: Path) -> None:
    document = read(tmp_path, "# a comment\na:\n  - x\n  - b: 1\n    c: {d: 2,\n        e: 3}\n")
    assert document.data == {"a": ["x", {"b": 1, "c": {"d": 2, "e": 3}}]}
    assert {
        place: document.line(place) for place in [("a",), ("a", 0), ("a", 1, "b"), ("a", 1, "c", "d"), ("a", 1, "c", "e")]
    } == {
        ("a",): 2,
        ("a", 0): 3,
        ("a", 1, "b"): 4,
        ("a", 1, "c", "d"): 5,
        ("a", 1, "c", "e"): 6,
    }


def test_a_place_that_is_not_in_the_file_has_the_line_of_what_encloses_it(tmp_path: Path) -> None:
    document = read(tmp_path, "a: 1\nb:\n  c: 2\n")
    assert [document.line(("b", "missing", 3)), document.line(("nowhere",))] == [2, 1]


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    assert read(tmp_path, b"\xef\xbb\xbfptk: 1\n").data == {"ptk": 1}


def test_windows_line_ends_count_as_one_line(tmp_path: Path) -> None:
    document = read(tmp_path, "a: 1\r\nb: text\r\n")
    assert (document.data, document.line(("b",))) == ({"a": 1, "b": "text"}, 2)


def test_an_anchor_can_be_repeated_and_merged(tmp_path: Path) -> None:
    text = "base: &base {n: 1, seed: 2}\none: *base\ntwo: {<<: *base, seed: 3}\n"
    assert read(tmp_path, text).data == {"base": {"n": 1, "seed": 2}, "one": {"n": 1, "seed": 2}, "two": {"n": 1, "seed": 3}}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", ["some.yaml: the file is empty"]),
        ("\n\n", ["some.yaml: the file is empty"]),
        ("# nothing\n", ["some.yaml: the file is empty"]),
        (bytes(range(256)), ["some.yaml:2: this is not UTF-8 text; is it a spec at all?"]),
        (b"a: 1\nb: \0\n", ["some.yaml:2: this is a binary file"]),
        ("- a\n- b\n", ["some.yaml:1: the top level must be a mapping of keys to values"]),
        ("text\n", ["some.yaml:1: the top level must be a mapping of keys to values"]),
        ("a:\n\tb: 1\n", ["some.yaml:2: a tab can't indent YAML; use spaces"]),
        ("a: 1\n\nb: 2\na: 3\n", ["some.yaml:4: a: this key stands already at line 1"]),
        (
            "a: {b: 1, b: 2}\nc:\n  d: 1\n  d: 2\n",
            ["some.yaml:1: a.b: this key stands already at line 1", "some.yaml:4: c.d: this key stands already at line 3"],
        ),
        ("a: [1, 2\nb: 3\n", ["some.yaml:2: not YAML: while parsing a flow sequence: expected ',' or ']', but got ':'"]),
        ("a: 1\n? [x, y]\n: 2\n", ["some.yaml:2: a key must be plain text"]),
        ("a: 1\nb: {<<: 3}\n", ["some.yaml:2: b.<<: only a mapping can be merged"]),
        ("a: 99999999999999999999\n", ["some.yaml:1: a: this whole number is too large: it has more than 64 bits"]),
        ('a: "\\ud800"\n', ["some.yaml:1: a: half of a surrogate pair is no text"]),
        (
            "a: 1\nb: !!python/object/apply:os.getcwd []\n",
            ["some.yaml:2: b: could not determine a constructor for the tag 'tag:yaml.org,2002:python/object/apply:os.getcwd'"],
        ),
    ],
)
def test_what_can_not_be_meant_is_an_error_at_its_line(tmp_path: Path, content: str | bytes, expected: list[str]) -> None:
    assert complaints(tmp_path, content) == expected


@pytest.mark.parametrize(
    "content",
    ["a: 1\nb: &b [*b]\n", "a: 1\nb: &b {c: *b}\n", "a: 1\nb: &b {<<: *b}\n", f"a: 1\nb: {'[' * 300}{']' * 300}\n"],
)
def test_what_has_no_end_or_is_too_deep_is_an_error(tmp_path: Path, content: str) -> None:
    assert complaints(tmp_path, content) == ["some.yaml:2: more than 50 levels deep; does an alias stand inside what it names?"]


def test_nesting_that_overflows_the_parser_is_an_error(tmp_path: Path) -> None:
    assert complaints(tmp_path, f"a: {'[' * 5000}\n")[0].startswith("some.yaml: not YAML: maximum recursion depth")


def test_aliases_that_multiply_are_an_error_before_they_fill_the_memory(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    assert complaints(tmp_path, "\n".join(lines)) == ["some.yaml:1: more than 200,000 values; aliases repeat too much"]


def test_a_huge_file_is_refused_before_it_is_parsed(tmp_path: Path) -> None:
    assert complaints(tmp_path, b"#" * (5 << 20)) == ["some.yaml: 5,242,880 bytes is more than a spec may have (4,194,304)"]


def test_a_missing_file_and_a_folder_are_errors(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as missing:
        read_yaml(tmp_path / "no.yaml", "no.yaml")
    with pytest.raises(SpecError) as folder:
        read_yaml(tmp_path, "here")
    assert [str(missing.value), str(folder.value)] == [
        "no.yaml: no such file",
        "here: this is a folder; name a YAML file in it",
    ]
