"""Safe YAML with the line of every value: 1.2 scalars only, no duplicate keys, no tabs, no surprises."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ptk.errors import SpecError, Violation

__all__ = ["Document", "Location", "read_yaml"]

Location = tuple[str | int, ...]

_MOST_BYTES = 4 << 20
_MOST_VALUES = 200_000
_DEEPEST = 50


@dataclass(frozen=True, slots=True)
class Document:
    """A YAML file as plain data, with the line (from 1) of each value by its location."""

    file: str
    text: str
    data: Any
    lines: Mapping[Location, int]

    def line(self, location: Location) -> int:
        """Return the line of `location`, or of the nearest value that encloses it."""
        while location and location not in self.lines:
            location = location[:-1]
        return self.lines.get(location, 1)

    def violation(self, location: Location, what: str) -> Violation:
        return Violation(self.file, self.line(location), ".".join(str(part) for part in location), what)


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2's core scalars, so that `on`, `yes` and `2026-01-01` stay text."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - as the base class declares it


for _tag, _pattern, _first in [
    ("tag:yaml.org,2002:bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("tag:yaml.org,2002:null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:int", r"^[-+]?(?:0|[1-9][0-9]*)$", "-+0123456789"),
    ("tag:yaml.org,2002:float", r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$", "-+0123456789."),
    ("tag:yaml.org,2002:merge", r"^<<$", "<"),
]:
    _Loader.add_implicit_resolver(_tag, re.compile(_pattern), list(_first))


def read_yaml(path: Path, shown_as: str | None = None) -> Document:
    """Read a YAML file whose top level is a mapping.

    Raises SpecError with the file's line when it is missing, empty, binary, not YAML, or repeats a key.
    """
    file = shown_as or str(path)
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise SpecError([Violation(file, 0, "", "no such file")]) from None
    except IsADirectoryError:
        raise SpecError([Violation(file, 0, "", "this is a folder; name a YAML file in it")]) from None
    except OSError as error:
        raise SpecError([Violation(file, 0, "", f"can't be read: {error.strerror}")]) from None
    if len(raw) > _MOST_BYTES:
        raise SpecError([Violation(file, 0, "", f"{len(raw):,} bytes is more than a spec may have ({_MOST_BYTES:,})")])
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise SpecError([Violation(file, line, "", "this is not UTF-8 text; is it a spec at all?")]) from None
    if "\0" in text:
        raise SpecError([Violation(file, text[: text.index("\0")].count("\n") + 1, "", "this is a binary file")])
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 0
        raise SpecError([Violation(file, line, "", _plain_words(error))]) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise SpecError([Violation(file, 0, "", f"not YAML: {error}")]) from None
    if node is None:
        raise SpecError([Violation(file, 0, "", "the file is empty")])
    if not isinstance(node, yaml.MappingNode):
        raise SpecError([Violation(file, node.start_mark.line + 1, "", "the top level must be a mapping of keys to values")])
    reader = _Reader(file)
    data = reader.value(node, ())
    if reader.violations:
        raise SpecError(reader.violations)
    return Document(file, text, data, reader.lines)


def _plain_words(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or str(error)
    if "'\\t'" in problem:
        return "a tab can't indent YAML; use spaces"
    context = f"{error.context}: " if error.context else ""
    return f"not YAML: {context}{problem}"


class _Reader:
    """Turns YAML nodes into plain data, noting lines and violations on the way."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.lines: dict[Location, int] = {(): 1}
        self.violations: list[Violation] = []
        self._scalars = _Loader("")
        self._values = 0
        self._depth = 0

    def value(self, node: yaml.Node, location: Location) -> Any:
        self._values += 1
        if self._values > _MOST_VALUES:
            raise SpecError(
                [
                    Violation(
                        self.file, node.start_mark.line + 1, "", f"more than {_MOST_VALUES:,} values; aliases repeat too much"
                    )
                ]
            )
        if self._depth == _DEEPEST:
            what = f"more than {_DEEPEST} levels deep; does an alias stand inside what it names?"
            raise SpecError([Violation(self.file, node.start_mark.line + 1, "", what)])
        self.lines.setdefault(location, node.start_mark.line + 1)
        self._depth += 1
        value = self._plain(node, location)
        self._depth -= 1
        return value

    def _plain(self, node: yaml.Node, location: Location) -> Any:
        if isinstance(node, yaml.CollectionNode) and node.tag not in ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"):
            what = f"could not determine a constructor for the tag '{node.tag}'"
            self.violations.append(Violation(self.file, node.start_mark.line + 1, _dotted(location), what))
            return None
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, location)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, (*location, index)) for index, item in enumerate(node.value)]
        try:
            value = self._scalars.construct_object(node)
            if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
                raise ValueError("this whole number is too large: it has more than 64 bits")
            if isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value):
                raise ValueError("half of a surrogate pair is no text")
        except (yaml.YAMLError, ValueError) as error:
            what = error.problem if isinstance(error, yaml.MarkedYAMLError) and error.problem else str(error)
            self.violations.append(Violation(self.file, node.start_mark.line + 1, _dotted(location), what))
            return None
        return value

    def _mapping(self, node: yaml.MappingNode, location: Location) -> dict[str, Any]:
        result: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if key_node.tag == "tag:yaml.org,2002:merge":
                for source in value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]:
                    inherited = self.value(source, location)
                    if isinstance(inherited, dict):
                        merged = {**inherited, **merged}
                    else:
                        self.violations.append(
                            Violation(self.file, line, _dotted((*location, "<<")), "only a mapping can be merged")
                        )
                continue
            if not isinstance(key_node, yaml.ScalarNode):
                self.violations.append(Violation(self.file, line, _dotted(location), "a key must be plain text"))
                continue
            key = key_node.value
            if key in result:
                first = self.lines[(*location, key)]
                self.violations.append(
                    Violation(self.file, line, _dotted((*location, key)), f"this key stands already at line {first}")
                )
                continue
            self.lines[(*location, key)] = line
            result[key] = self.value(value_node, (*location, key))
        return {**merged, **result}


def _dotted(location: Location) -> str:
    return ".".join(str(part) for part in location)
