"""What an operator is, and where operators are found.

Four shapes, told apart by what they give:

- a **reader** makes rows from files and sets malformed ones aside,
- a **frame operator** decides about rows it is given: new columns and rejections, by key; it never drops or reorders rows,
- a **reshape** makes other rows out of the rows it is given,
- an **LLM operator** asks a model about rows and decides from its answers.

Every frame an operator receives carries the column `_key`, the row's key. A decision is a frame with `_key`, and any of `_reject`
(a short reason, null for rows that stay), `_detail` (that reason in words), `_raw` (what was rejected, verbatim) and new columns.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, Literal, get_type_hints

from ptk.errors import PtkError
from ptk.params import Params

if TYPE_CHECKING:
    import polars as pl

    from ptk.llm.request import Answer, Request

__all__ = [
    "DETAIL",
    "KEY",
    "RAW",
    "REJECT",
    "FrameOperator",
    "LlmOperator",
    "Operator",
    "Reader",
    "Reshape",
    "Source",
    "find_operator",
    "frame_operator",
    "operator_names",
    "reader",
    "reshape",
]

KEY = "_key"
REJECT = "_reject"
DETAIL = "_detail"
RAW = "_raw"

Scope = Literal["rows", "key", "dataset"]
Answers = Mapping[tuple[str, str], "Answer"]


@dataclass(frozen=True, slots=True)
class Operator:
    """One kind of step: its settings, the inputs it takes, and a version that is bumped when its results change."""

    name: str
    params: type[Params]
    version: int
    inputs: tuple[str, ...]
    help: str


@dataclass(frozen=True, slots=True)
class Source:
    """What a reader found: the columns of its rows, and the rows themselves, read anew at each call of `batches`.

    A batch is a frame with `columns` and with `_reject`, `_detail`, `_raw`, `_file` and `_line` (from 1) of malformed records.
    """

    columns: pl.Schema
    key: str
    batches: Callable[[], Iterator[pl.DataFrame]]
    max_malformed: float = 0.2
    """The run stops when a larger share of the records is malformed."""
    on_repeat: Literal["reject", "number"] = "reject"
    """What happens to rows that repeat a key."""


@dataclass(frozen=True, slots=True)
class Reader(Operator):
    """Makes rows from files: `function(params) -> Source`."""

    function: Callable[[Any], Source]


@dataclass(frozen=True, slots=True)
class FrameOperator(Operator):
    """Decides about rows: `function(frame, ..., params) -> decision`, pure.

    `scope` says which rows must be seen together: each alone (`rows`), those that share a value (`key`), or all (`dataset`).
    """

    function: Callable[..., pl.LazyFrame]
    scope: Scope


@dataclass(frozen=True, slots=True)
class Reshape(Operator):
    """Makes other rows: `function(frame, ..., params) -> rows`; the new rows' key column is `key(params)`."""

    function: Callable[..., pl.LazyFrame]
    key: Callable[[Any], str]


@dataclass(frozen=True, slots=True)
class LlmOperator(Operator):
    """Asks a model about rows.

    `requests(frame, answers so far, params)` yields what is to be asked; it is called again with the answers until it yields
    nothing new, at most `max_rounds` times. `collect(frame, answers, params)` returns the decision. Both are pure. Answers are
    found by (row key, slot).
    """

    requests: Callable[[pl.DataFrame, Answers, Any], Iterable[Request]]
    collect: Callable[[pl.DataFrame, Answers, Any], pl.DataFrame]
    max_rounds: int = 1


def _described(function: Callable[..., Any]) -> tuple[type[Params], tuple[str, ...], str]:
    hints = get_type_hints(function)
    names = list(inspect.signature(function).parameters)
    if not names or names[-1] != "params" or not issubclass(hints["params"], Params):
        raise TypeError(f"{function.__name__}: the last argument of an operator is `params`, annotated with a Params class")
    first_line = (inspect.getdoc(function) or "").split("\n")[0]
    if not first_line:
        raise TypeError(f"{function.__name__}: an operator needs a docstring; its first line is the operator's help")
    return hints["params"], tuple(names[:-1]), first_line


def reader(*, version: int = 1) -> Callable[[Callable[..., Source]], Reader]:
    """Make a function `(params) -> Source` a reader of that name."""

    def make(function: Callable[..., Source]) -> Reader:
        params, inputs, text = _described(function)
        return Reader(function.__name__, params, version, inputs, text, function)

    return make


def frame_operator(*, scope: Scope, version: int = 1) -> Callable[[Callable[..., pl.LazyFrame]], FrameOperator]:
    """Make a function `(frame, ..., params) -> decision` a frame operator of that name."""

    def make(function: Callable[..., pl.LazyFrame]) -> FrameOperator:
        params, inputs, text = _described(function)
        return FrameOperator(function.__name__, params, version, inputs, text, function, scope)

    return make


def reshape(*, key: Callable[[Any], str], version: int = 1) -> Callable[[Callable[..., pl.LazyFrame]], Reshape]:
    """Make a function `(frame, ..., params) -> rows` a reshape of that name."""

    def make(function: Callable[..., pl.LazyFrame]) -> Reshape:
        params, inputs, text = _described(function)
        return Reshape(function.__name__, params, version, inputs, text, function, key)

    return make


@cache
def _offered() -> Mapping[str, tuple[EntryPoint, ...]]:
    offered: dict[str, tuple[EntryPoint, ...]] = {}
    for point in entry_points(group="ptk.operators"):
        if point.value not in {other.value for other in offered.get(point.name, ())}:
            offered[point.name] = (*offered.get(point.name, ()), point)
    return offered


def operator_names() -> list[str]:
    """Return the names of all installed operators, ptk's own and third parties', sorted."""
    return sorted(_offered())


def find_operator(name: str) -> Operator:
    """Return the operator of that name, importing its module alone.

    Raises KeyError for an unknown name, PtkError where two packages offer the name or the module does not load.
    """
    points = _offered()[name]
    if len(points) > 1:
        raise PtkError(f"operator '{name}' is offered twice: {', '.join(point.value for point in points)}; uninstall one")
    try:
        operator = points[0].load()
    except (ImportError, AttributeError, TypeError) as error:
        raise PtkError(f"operator '{name}' ({points[0].value}) does not load: {error}") from error
    if not isinstance(operator, Operator):
        raise PtkError(f"operator '{name}' ({points[0].value}) is a {type(operator).__name__}, not an operator")
    return operator
