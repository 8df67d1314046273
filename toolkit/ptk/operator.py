"""What an operator is, and where operators are found.

Five shapes, told apart by what they give:

- a **reader** makes rows from files and sets malformed ones aside,
- a **frame operator** decides about rows it is given: new columns and rejections, by key; it never drops or reorders rows,
- a **reshape** makes other rows out of the rows it is given,
- an **LLM operator** asks a model about rows and decides from its answers,
- an **asset operator** writes a folder of files from the rows it is given.

Every frame an operator receives carries the column `_key`, the row's key. A decision is a frame with `_key`, and any of `_reject`
(a short reason, null for rows that stay), `_detail` (that reason in words), `_raw` (what was rejected, verbatim) and new columns.

Operators are pure functions of lazy frames and never know which engine runs them. What they declare is which rows must be
seen together, their `scope`:

- `rows`: each row alone. The function may be given any part of the rows.
- `key`: rows that are equal in the columns `by`. The function is given all rows of some of the groups.
- `dataset`: all rows at once.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, Literal, get_type_hints

from ptk.errors import PtkError
from ptk.params import ModelName, Params, marked_fields

if TYPE_CHECKING:
    import polars as pl

    from ptk.llm.request import Answer, Request

__all__ = [
    "ALIGNED",
    "DETAIL",
    "GROUP",
    "KEY",
    "MARKS",
    "RAW",
    "REJECT",
    "ROW",
    "AssetOperator",
    "FrameOperator",
    "LlmOperator",
    "MadeFiles",
    "Operator",
    "Reader",
    "Reshape",
    "Source",
    "Stage",
    "asset_operator",
    "find_operator",
    "frame_operator",
    "operator_names",
    "reader",
    "reshape",
    "staged_operator",
]

KEY = "_key"
REJECT = "_reject"
DETAIL = "_detail"
RAW = "_raw"
ALIGNED = "_aligned"
"""Beside a stored decision: whether it is about the row that stands there."""
MARKS = (KEY, REJECT, DETAIL, RAW, ALIGNED)
ROW = "_row"
"""Number of a row of a staged operator's input, from 0, UInt64: a short name for the row between stages, never part of a result."""
GROUP = "_group"
"""What a `key` stage groups an input by: an id of the values of the columns `by`, or the one integer column that `by` names."""

Scope = Literal["rows", "key", "dataset"]
MadeFiles = Literal["model", "adapter", "cases"]
Answers = Mapping[tuple[str, str], "Answer"]


@dataclass(frozen=True, slots=True)
class Operator:
    """One kind of step: its settings, the inputs it takes, and a version that is bumped when its results change.

    An input named `*frames` stands for one or more.
    """

    name: str
    params: type[Params]
    version: int
    inputs: tuple[str, ...]
    help: str


@dataclass(frozen=True, slots=True)
class Source:
    """What a reader found: the columns of its rows, and the rows themselves, piece by piece, read anew at each call.

    `pieces()` says what can be read apart (files, byte ranges of a file, row groups): small values that can be sent to another
    process, in the order in which they stand. `batches(piece)` yields frames with `columns` and with `_reject`, `_detail`, `_raw`,
    `_file` and `_line` (from 1) of malformed records.
    """

    columns: pl.Schema
    key: str
    batches: Callable[[Any], Iterator[pl.DataFrame]]
    pieces: Callable[[], Sequence[Any]] = lambda: (None,)
    max_malformed: float = 0.2
    """The run stops when a larger share of the records is malformed."""
    on_repeat: Literal["reject", "number"] = "reject"
    """What happens to rows that repeat a key."""
    flags: str | None = None
    """A column of lists of words, whose words are counted in the summary."""
    expected: frozenset[str] = frozenset()
    """Reasons for which a record makes no row although nothing is wrong with it: they don't count as malformed."""
    origin: Mapping[str, Any] = field(default_factory=dict)
    """What was found under a name that may move (a branch of the Hub, a tag of the catalog): shown, and kept with the rows."""
    unchanged: frozenset[str] = frozenset()
    """Columns that hold, by key, what the catalog version of `origin` holds: what is built on them can share its files."""

    def all_batches(self) -> Iterator[pl.DataFrame]:
        """Yield the batches of all pieces, one piece after another."""
        for piece in self.pieces():
            yield from self.batches(piece)


@dataclass(frozen=True, slots=True)
class Reader(Operator):
    """Makes rows from files: `function(params) -> Source`."""

    function: Callable[..., Source]


@dataclass(frozen=True, slots=True)
class Stage:
    """One leg of a frame operator: `function(frame, ..., params=params) -> rows`, pure.

    `inputs` names the operator's inputs and earlier stages. The scope is about the first of them: with `rows` the others are given
    whole; with `key` all are grouped by `by`, which each must have. A `key` or `dataset` stage is given, of the
    operator's inputs, only `_key`, `_row`, `_group` (key) and the columns in `reads`; of earlier stages everything.
    """

    name: str
    scope: Scope
    function: Callable[..., pl.LazyFrame]
    inputs: tuple[str, ...]
    by: tuple[str, ...] = ()
    reads: Mapping[str, tuple[str, ...]] | None = None
    """Input -> columns, beside `_key`, `_row` and `_group`. None: every column that the settings name."""


@dataclass(frozen=True, slots=True)
class FrameOperator(Operator):
    """Decides about rows: the last of its stages returns the decision about the first input.

    Most have one stage and are made by `frame_operator`; `staged_operator` makes those for which rows must meet several times.
    """

    function: Callable[..., Any]
    """What the author wrote."""
    stages: Callable[[Any], tuple[Stage, ...]]
    flags: str | None = None
    """A new column of lists of words, whose words are counted in the summary."""

    def scope(self, params: Any) -> Scope:
        """Return `rows` where each row is decided about alone."""
        stages = self.stages(params)
        return stages[0].scope if len(stages) == 1 else "dataset"


@dataclass(frozen=True, slots=True)
class Reshape(Operator):
    """Makes other rows: `function(frame, ..., params=params) -> rows`; the new rows' key column is `key(params, inputs' keys)`.

    Rows without that column have it from `_key`, where the function hands that on. What it could not make a row of has `_reject`,
    and `_detail`. With scope `rows` the first input may be given in parts, the others whole.
    """

    function: Callable[..., pl.LazyFrame]
    key: Callable[[Any, Sequence[str]], str]
    scope: Literal["rows", "dataset"]
    apart: bool = False
    """Its inputs must not be the same rows: a comparison of a thing with itself is refused when a spec is planned."""


@dataclass(frozen=True, slots=True)
class AssetOperator(Operator):
    """Writes files: `function(frame, ..., params=params, folder=folder) -> facts`; the facts, plain data, are kept with the step.

    Its rows are those of its first input, unchanged, but where the function returns `(facts, decision)`: that rejects those it could not
    use. Where its settings name a model (`MODEL`), the function is given that too, found and not loaded: `model=model`; and where it
    takes long, `report(done, of, note)`, to say how far it is.
    """

    function: Callable[..., Mapping[str, Any] | tuple[Mapping[str, Any], pl.DataFrame]]
    check: Callable[..., object] | None = None
    """`check(frame, ..., params=params)` is called with no rows when a spec is planned, and raises where they do not fit."""
    makes: Callable[[Any], MadeFiles] | None = None
    """`makes(params)` says that its folder is a model, an adapter of one, or solved cases for one, so that a model of the spec may
    name the step."""
    reports: bool = False
    """Whether the function takes `report`."""

    def loads_model(self, params: Any) -> bool:
        """Return whether it computes with the model that its settings name: solved cases are drawn for one, and need none."""
        return self.makes is None or self.makes(params) != "cases"


@dataclass(frozen=True, slots=True)
class LlmOperator(Operator):
    """Asks a model about rows.

    `requests(frame, answers so far, params)` yields what is to be asked; it is called again with the answers until it yields
    nothing new, at most `max_rounds` times. `collect(frame, answers, params)` returns the decision. Both are pure. Answers are
    found by (row key, slot).
    """

    requests: Callable[..., Iterable[Request]]
    collect: Callable[[pl.DataFrame, Answers, Any], pl.DataFrame]
    max_rounds: int = 1
    wants: Literal["answers", "likelihoods"] = "answers"
    """What it asks of its model, which not every backend gives."""
    shows_cases: Callable[[Any], str | None] | None = None
    """`shows_cases(params)` says what stands against showing the solved cases that a model has, None where nothing does;
    `requests` then takes them: `requests(frame, answers, params, cases)`. Without it no model that has some can be asked."""
    report: Callable[[pl.LazyFrame, Any], Mapping[str, Any]] | None = None
    """`report(decided, params)` sums up all rows with their decisions, `_reject` included: plain data for the summary and the catalog."""


def _described(function: Callable[..., Any], after: tuple[str, ...] = ()) -> tuple[type[Params], tuple[str, ...], str]:
    """Return settings, inputs and help of a function whose last arguments are `params` and those named in `after`."""
    hints = get_type_hints(function)
    signature = inspect.signature(function).parameters
    names = list(signature)
    inputs = names[: len(names) - 1 - len(after)]
    if names[len(inputs) :] != ["params", *after] or not issubclass(hints["params"], Params):
        wanted = " and ".join(["`params`, annotated with a Params class,", *(f"`{name}`" for name in after)])
        raise TypeError(f"{function.__name__}: the last argument of an operator is {wanted.removesuffix(',')}")
    first_line = (inspect.getdoc(function) or "").split("\n")[0]
    if not first_line:
        raise TypeError(f"{function.__name__}: an operator needs a docstring; its first line is the operator's help")
    several = {name for name in inputs if signature[name].kind is inspect.Parameter.VAR_POSITIONAL}
    return hints["params"], tuple(f"*{name}" if name in several else name for name in inputs), first_line


def reader(*, version: int = 1) -> Callable[[Callable[..., Source]], Reader]:
    """Make a function `(params) -> Source` a reader of that name."""

    def make(function: Callable[..., Source]) -> Reader:
        params, inputs, text = _described(function)
        return Reader(function.__name__, params, version, inputs, text, function)

    return make


def frame_operator(
    *,
    scope: Scope,
    by: Callable[[Any], Sequence[str]] | None = None,
    reads: Callable[[Any], Sequence[str] | Mapping[str, Sequence[str]]] | None = None,
    flags: str | None = None,
    version: int = 1,
) -> Callable[[Callable[..., pl.LazyFrame]], FrameOperator]:
    """Make a function `(frame, ..., params) -> decision` a frame operator of that name.

    With scope `key`, `by(params)` names the columns in which rows that must meet are equal; the frames then carry `_group`, an id
    of those values. With `key` and `dataset` a function is given `_key` and the columns that `reads(params)` names, for
    all inputs or by input; by default those that the settings name as columns (`COLUMN`).
    """
    if (scope == "key") != (by is not None):
        raise TypeError("`by` goes with scope `key`, and scope `key` needs it")

    def make(function: Callable[..., pl.LazyFrame]) -> FrameOperator:
        params_class, inputs, text = _described(function)

        def stages(params: Any) -> tuple[Stage, ...]:
            wanted = None
            if reads is not None:
                given = reads(params)
                wanted = (
                    {name: tuple(columns) for name, columns in given.items()}
                    if isinstance(given, Mapping)
                    else dict.fromkeys(inputs, tuple(given))
                )
            return (Stage("decide", scope, function, inputs, tuple(by(params)) if by else (), wanted),)

        return FrameOperator(function.__name__, params_class, version, inputs, text, function, stages, flags)

    return make


def staged_operator(
    *, inputs: tuple[str, ...] = ("frame",), flags: str | None = None, version: int = 1
) -> Callable[[Callable[..., Sequence[Stage]]], FrameOperator]:
    """Make a function `(params) -> stages` a frame operator of that name: each stage sees the rows that must meet for it.

    The operator's inputs carry `_row` beside `_key`; what goes from stage to stage should be ids, not text. The last stage has scope
    `rows`, takes the first input first, and returns the decision.
    """

    def make(function: Callable[..., Sequence[Stage]]) -> FrameOperator:
        params_class, none, text = _described(function)
        if none:
            raise TypeError(f"{function.__name__}: a staged operator's function takes `params` alone")

        def stages(params: Any) -> tuple[Stage, ...]:
            made = tuple(function(params))
            if made[-1].scope != "rows" or made[-1].inputs[0] != inputs[0]:
                raise TypeError(f"{function.__name__}: the last stage has scope `rows` and takes `{inputs[0]}` first")
            return made

        return FrameOperator(function.__name__, params_class, version, inputs, text, function, stages, flags)

    return make


def reshape(
    *,
    key: str | Callable[[Any, Sequence[str]], str],
    scope: Literal["rows", "dataset"] = "dataset",
    apart: bool = False,
    version: int = 1,
) -> Callable[[Callable[..., pl.LazyFrame]], Reshape]:
    """Make a function `(frame, ..., params) -> rows` a reshape of that name.

    `key` names the new rows' key column, or tells it from the settings and the inputs' key columns. With scope
    `rows` the function makes the new rows from each row of the first input alone; the other inputs are given whole. With `apart` no
    two inputs may be the same rows.
    """

    def make(function: Callable[..., pl.LazyFrame]) -> Reshape:
        params, inputs, text = _described(function)
        told: Callable[[Any, Sequence[str]], str] = (lambda _params, _keys: key) if isinstance(key, str) else key
        return Reshape(function.__name__, params, version, inputs, text, function, told, scope, apart)

    return make


def asset_operator(
    *,
    check: Callable[..., object] | None = None,
    makes: Callable[[Any], MadeFiles] | None = None,
    version: int = 1,
) -> Callable[[Callable[..., Mapping[str, Any] | tuple[Mapping[str, Any], pl.DataFrame]]], AssetOperator]:
    """Make a function `(frame, ..., params, folder) -> facts` an operator of that name that writes files into `folder`.

    Where a field of its settings is marked `MODEL`, the argument after that is `model`, the ResolvedModel; a last one may be
    `report`. `check(frame, ..., params)` is called
    with no rows when a spec is planned; a ValueError or TypeError it raises is told at the step's line. `makes(params)` says what
    a model of the spec may take `folder` for.
    """

    def make(function: Callable[..., Mapping[str, Any] | tuple[Mapping[str, Any], pl.DataFrame]]) -> AssetOperator:
        taken = tuple(name for name in inspect.signature(function).parameters if name in ("model", "report"))
        params, inputs, text = _described(function, after=("folder", *taken))
        if ("model" in taken) != any(marked_fields(params, ModelName)):
            raise TypeError(f"{function.__name__}: an argument `model` and a setting marked MODEL go together")
        return AssetOperator(function.__name__, params, version, inputs, text, function, check, makes, "report" in taken)

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
