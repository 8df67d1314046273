"""A step that stands for many: its matrix, the cells it expands into, and which of them another step's `from` means."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from ptk.params import suggestion
from ptk.yamlfile import Location

__all__ = [
    "Cell",
    "Gathering",
    "Grid",
    "Grids",
    "Unresolved",
    "as_text",
    "axes_without_effect",
    "filled_in",
    "of_cell",
    "read_grid",
]

Scalar = str | bool | int | float
Complain = Callable[[Location, str], None]

_AXIS = re.compile(r"[a-z][a-z0-9_]*")
_RESERVED = ("exclude", "from", "matrix", "op")
_USE = re.compile(r"\$\{matrix\.([^}]*)\}")
_REFERENCE = re.compile(r"([^\[\]]*)(?:\[([^\[\]]*)\])?")
_MOST_CELLS = 1_000
_LONGEST_VALUE = 200


class Unresolved(ValueError):
    """A reference to a step leads nowhere; the message is for the user."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One combination of a step's axes; a step without a matrix is one cell without axes."""

    name: str
    """Such as `personas[small]`."""
    axes: Mapping[str, Scalar]


@dataclass(frozen=True, slots=True)
class Grid:
    """A step as declared: its axes, their cells, and where in the file an axis that is an option of the step is written."""

    base: str
    axes: Mapping[str, tuple[Scalar, ...]]
    cells: tuple[Cell, ...]
    places: Mapping[str, Location] = field(default_factory=dict)

    def place(self, cell: Cell, option: str) -> Location | None:
        """Return where the value of an option is written that an axis sets, or None where none does."""
        if option not in self.places:
            return None
        return (*self.places[option], self.axes[option].index(cell.axes[option]))


@dataclass(frozen=True, slots=True)
class Gathering:
    """The rows of several cells of a step put together: what a step is given that lacks some of the axes."""

    name: str
    """The step's own name where all its cells are meant, else such as `personas[small,*]`."""
    base: str
    cells: tuple[Cell, ...]
    axes: tuple[str, ...]
    """The axes in which the cells differ: columns of the rows."""

    @property
    def values(self) -> dict[str, list[Scalar]]:
        """The columns that tell the cells apart, each with a value for every cell."""
        return {axis: [cell.axes[axis] for cell in self.cells] for axis in self.axes}


def as_text(value: Scalar) -> str:
    """Return a value of an axis as it stands in the name of a cell."""
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def read_grid(
    name: str, written: Mapping[str, Any], options: Collection[str], models: Collection[str], complain: Complain
) -> Grid:
    """Return the grid of a step.

    `options` are those of the step's operator, `models` those of them that name one model: a list in the place of a name is an axis.
    Complains of what is wrong with the matrix; what is left of it is returned, so that the rest of the step can be looked at.
    """
    location: Location = ("steps", name)
    axes: dict[str, tuple[Scalar, ...]] = {}
    places: dict[str, Location] = {}
    matrix = written.get("matrix", {})
    for option in models:
        if isinstance(written.get(option), list):
            places[option] = (*location, option)
            axes[option] = _values(option, written[option], places[option], complain)
    if not isinstance(matrix, dict) or ("matrix" in written and not set(matrix) - {"exclude"}):
        complain((*location, "matrix"), "a matrix is a mapping of axes to lists of values, such as {model: [small, large]}")
        matrix = {}
    for axis, values in matrix.items():
        place = (*location, "matrix", axis)
        if axis == "exclude":
            continue
        if not _AXIS.fullmatch(axis) or axis in _RESERVED:
            complain(
                place, f"'{axis}' is no name of an axis: lower-case letters, digits and '_', a letter first, no key of a step"
            )
        elif axis in options and axis in written and axis not in _used(written[axis]):
            what = f"'{axis}' is set twice, by the option and by the axis of that name; leave the option out, or call the axis otherwise"
            complain(place, what)
        else:
            axes[axis] = _values(axis, values, place, complain)
            if axis in options and axis not in written:
                places[axis] = place
    axes = {axis: values for axis, values in axes.items() if values}
    places = {option: place for option, place in places.items() if option in axes}
    return Grid(name, axes, tuple(_cells(name, axes, matrix.get("exclude"), complain)), places)


def _values(axis: str, written: Any, place: Location, complain: Complain) -> tuple[Scalar, ...]:
    if not isinstance(written, list) or not written:
        complain(place, f"axis '{axis}' needs a list of values")
        return ()
    good: list[Scalar] = []
    for index, value in enumerate(written):
        if not isinstance(value, (str, bool, int, float)) or (isinstance(value, float) and not math.isfinite(value)):
            complain((*place, index), "a value of an axis is text, a number, true or false")
        elif not as_text(value).strip() or re.search(r"[\[\],\n\r*]", as_text(value)) or len(as_text(value)) > _LONGEST_VALUE:
            what = f"a value of an axis is part of a step's name: 1 to {_LONGEST_VALUE} characters, no brackets, commas, '*' or line ends"
            complain((*place, index), what)
        elif as_text(value) in map(as_text, good):
            complain((*place, index), f"'{as_text(value)}' stands twice in axis '{axis}'")
        else:
            good.append(value)
    if len({"number" if type(value) in (int, float) else type(value) for value in good}) > 1:
        complain(
            place, f"the values of axis '{axis}' are of several kinds; they make a column of text, numbers, or true and false"
        )
    return tuple(good)


def _cells(name: str, axes: Mapping[str, tuple[Scalar, ...]], excluded: Any, complain: Complain) -> Iterator[Cell]:
    place: Location = ("steps", name, "matrix", "exclude")
    if not axes:
        yield Cell(name, {})
        return
    count = math.prod(len(values) for values in axes.values())
    if count > _MOST_CELLS:
        complain(("steps", name, "matrix"), f"{count:,} cells are more than a step may have ({_MOST_CELLS:,})")
        return
    left_out = [
        _excluded(entry, axes, (*place, index), complain) for index, entry in enumerate(_entries(excluded, place, complain))
    ]
    kept = False
    for values in itertools.product(*axes.values()):
        cell = dict(zip(axes, values, strict=True))
        if any(entry and all(cell[axis] in wanted for axis, wanted in entry.items()) for entry in left_out):
            continue
        kept = True
        yield Cell(f"{name}[{','.join(map(as_text, values))}]", cell)
    if not kept:
        complain(place, "this leaves no cell")


def _entries(excluded: Any, place: Location, complain: Complain) -> Sequence[Any]:
    if excluded is None:
        return ()
    if not isinstance(excluded, list):
        complain(place, "`exclude` is a list of mappings of axes to values, such as [{model: small, style: long}]")
        return ()
    return excluded


def _excluded(entry: Any, axes: Mapping[str, tuple[Scalar, ...]], place: Location, complain: Complain) -> dict[str, list[Any]]:
    if not isinstance(entry, dict) or not entry:
        complain(place, "an entry of `exclude` is a mapping of axes to values, such as {model: small, style: long}")
        return {}
    found: dict[str, list[Any]] = {}
    for axis, value in entry.items():
        wanted = value if isinstance(value, list) else [value]
        if axis not in axes:
            complain((*place, axis), f"there is no axis '{axis}'{suggestion(axis, axes)}")
            return {}
        for item in wanted:
            if item not in axes[axis]:
                complain(
                    (*place, axis), f"axis '{axis}' has no value {item!r}{suggestion(str(item), map(as_text, axes[axis]))}"
                )
        found[axis] = wanted
    return found


def filled_in(value: Any, axes: Mapping[str, Scalar], location: Location, complain: Complain) -> Any:
    """Return `value` with every `${matrix.AXIS}` inside replaced; a text that is nothing else takes the type of the axis's value."""
    if isinstance(value, dict):
        return {key: filled_in(item, axes, (*location, key), complain) for key, item in value.items()}
    if isinstance(value, list):
        return [filled_in(item, axes, (*location, index), complain) for index, item in enumerate(value)]
    if not isinstance(value, str):
        return value
    for axis in _USE.findall(value):
        if axis not in axes:
            complain(location, f"the step has no axis '{axis}'{suggestion(axis, axes) if axes else '; it has no matrix'}")
            return value
    if (whole := _USE.fullmatch(value)) is not None:
        return axes[whole[1]]
    return _USE.sub(lambda match: as_text(axes[match[1]]), value)


def of_cell(
    grid: Grid, cell: Cell, written: Mapping[str, Any], complain: Complain = lambda location, what: None
) -> dict[str, Any]:
    """Return what a cell's step looks like written out: without the matrix, each axis of an option's name in its place."""
    plain = {key: value for key, value in written.items() if key != "matrix" and key not in grid.places}
    made: dict[str, Any] = filled_in(plain, cell.axes, ("steps", grid.base), complain)
    return made | {option: cell.axes[option] for option in grid.places}


def axes_without_effect(grid: Grid, written: Mapping[str, Any], of_inputs: Collection[str]) -> list[str]:
    """Return the axes that set no option, are used in no text, and are none of the inputs'."""
    used = _used({key: value for key, value in written.items() if key != "matrix"})
    return [axis for axis in grid.axes if axis not in grid.places and axis not in used and axis not in of_inputs]


def _used(value: Any) -> set[str]:
    """Return the axes that are named inside a value."""
    return set(_USE.findall(orjson.dumps(value).decode()))


@dataclass(slots=True)
class Grids:
    """All steps of a spec by name, and the gatherings that references to them needed so far."""

    grids: dict[str, Grid]
    gatherings: dict[str, Gathering] = field(default_factory=dict)

    def base(self, reference: str) -> str | None:
        """Return the name of the declared step that a reference is about, or None where there is none."""
        parsed = _REFERENCE.fullmatch(reference)
        return parsed[1] if parsed is not None and parsed[1] in self.grids else None

    def find(self, reference: str, axes: Mapping[str, Scalar] | None = None, but: str = "") -> str:
        """Return the name of the step that `reference` means to a step with these axes: a step, a cell or a gathering.

        Axes that both have connect by value; cells that differ in further axes are put together. Raises Unresolved.
        """
        parsed = _REFERENCE.fullmatch(reference)
        base = self.base(reference)
        if parsed is None or base is None:
            raise Unresolved(f"there is no step '{reference}'{suggestion(reference, set(self.grids) - {but})}")
        grid = self.grids[base]
        if not grid.cells:
            return base  # it is wrong itself, and that was said
        if parsed[2] is not None:
            return self._written_out(grid, reference, parsed[2])
        wanted = {axis: value for axis, value in (axes or {}).items() if axis in grid.axes}
        for axis, value in wanted.items():
            if value not in grid.axes[axis]:
                raise Unresolved(
                    f"axis '{axis}' is {as_text(value)} here, and step '{base}' has {', '.join(map(as_text, grid.axes[axis]))}; equal "
                    f"values connect: write the same values, or call one axis otherwise, as in matrix: {{other: [...]}}"
                )
        return self._among(grid, wanted)

    def _written_out(self, grid: Grid, reference: str, inside: str) -> str:
        parts = [part.strip() for part in inside.split(",")]
        if len(parts) != len(grid.axes):
            what = f"has the axes {', '.join(grid.axes)}" if grid.axes else "has no matrix"
            raise Unresolved(f"'{reference}' is no cell: step '{grid.base}' {what}")
        wanted: dict[str, Scalar] = {}
        for (axis, values), part in zip(grid.axes.items(), parts, strict=True):
            if part == "*":
                continue
            known = {as_text(value): value for value in values}
            if part not in known:
                raise Unresolved(f"'{reference}' is no cell: axis '{axis}' has no value '{part}'{suggestion(part, known)}")
            wanted[axis] = known[part]
        return self._among(grid, wanted)

    def _among(self, grid: Grid, wanted: Mapping[str, Scalar]) -> str:
        cells = tuple(cell for cell in grid.cells if all(cell.axes[axis] == value for axis, value in wanted.items()))
        if not cells:
            raise Unresolved(
                f"step '{grid.base}' has no cell with {', '.join(f'{axis} {as_text(value)}' for axis, value in wanted.items())}: "
                "it is excluded there; exclude it here too"
            )
        if len(wanted) == len(grid.axes):
            return cells[0].name
        places = ",".join(as_text(wanted[axis]) if axis in wanted else "*" for axis in grid.axes)
        name = f"{grid.base}[{places}]" if wanted else grid.base
        together = tuple(axis for axis in grid.axes if axis not in wanted)
        self.gatherings[name] = Gathering(name, grid.base, cells, together)
        return name
