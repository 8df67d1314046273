"""What values an option of a library's settings class takes, as its annotation says, and whether a value is one of them."""

from __future__ import annotations

import enum
import types
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin

import orjson

from ptk.params import suggestion

__all__ = ["json_types", "value_problem"]


def json_types(annotation: Any) -> tuple[set[str], set[str] | None]:
    """Return the JSON types that an annotation takes, and the texts, None where any text will do."""
    origin = get_origin(annotation)
    if origin is Literal:
        values = get_args(annotation)
        return {_type_of(value) for value in values}, {value for value in values if isinstance(value, str)}
    if origin in (Union, types.UnionType):
        kinds, texts = set(), set[str]()
        open_text = False
        for member in get_args(annotation):
            member_kinds, member_texts = json_types(member)
            kinds |= member_kinds
            open_text |= "string" in member_kinds and member_texts is None
            texts |= member_texts or set()
        return kinds, None if open_text or not texts else texts
    plain = {type(None): "null", bool: "boolean", int: "integer", float: "number", str: "string"}
    if annotation in plain:
        return {plain[annotation]}, None
    base = origin or annotation
    if isinstance(base, type) and issubclass(base, (list, tuple, set, frozenset)):
        return {"array"}, None
    if isinstance(base, type) and issubclass(base, enum.Enum):
        return {"string", "integer"}, None
    return {"object"}, None  # a mapping, or one of the library's own settings classes, which take a mapping


def value_problem(name: str, value: Any, known: Mapping[str, Any]) -> str | None:
    """Return what is wrong with an option's value, in words; `known` has its `types`, and its `values` where they are told."""
    if _type_of(value) not in known["types"] and not (_type_of(value) == "integer" and "number" in known["types"]):
        shown = orjson.dumps(value).decode()
        return f"'{name}' is {' or '.join(known['types'])}, not {shown if len(shown) <= 40 else shown[:37] + '...'}"
    if isinstance(value, str) and known.get("values") and value not in known["values"]:
        return f"'{name}' can't be '{value}'{suggestion(value, known['values'])}"
    return None


def _type_of(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    names = {int: "integer", float: "number", str: "string", list: "array", tuple: "array", dict: "object"}
    return names.get(type(value), type(value).__name__)
