"""A spec file, read and checked as a whole: YAML -> Spec, every error at its file and line."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import orjson
from pydantic import Field, ValidationError

from ptk.errors import PtkError, SpecError, Violation
from ptk.grid import Cell, Gathering, Grid, Grids, Unresolved, axes_without_effect, of_cell, read_grid
from ptk.llm.model_files import STEP, ModelRoots
from ptk.operator import AssetOperator, LlmOperator, Operator, find_operator, operator_names
from ptk.params import ModelName, ModelReference, Params, marked_fields, problems, suggestion
from ptk.publish.settings import Publish
from ptk.report.settings import ReportSettings
from ptk.yamlfile import Document, Location, read_yaml

if TYPE_CHECKING:
    from ptk.llm.backend import Backend, ModelSettings, ResolvedModel

__all__ = ["Model", "Output", "Spec", "SpecFile", "Step", "backend_names", "find_backend", "load_spec", "uses_model"]

_NAME = re.compile(r"[a-z][a-z0-9_-]*")
_ENTRY = re.compile(r"[a-z0-9][a-z0-9._-]*(/[a-z0-9][a-z0-9._-]*)*")
_TAG = re.compile(r"[a-z][a-z0-9._-]*")
_VERSION_LIKE = re.compile(r"v[0-9]+")
_KINDS = {"model": "a model", "adapter": "an adapter", "cases": "solved cases"}
"""What a step can make of a model, by the option that names the step."""
_ENV = re.compile(r"\$\{env:([^}]*)\}")


class Output(Params):
    """One catalog entry that the spec writes."""

    from_: str = Field(alias="from", description="The step whose rows become the next version of the entry.")
    kind: Literal["rows", "model"] = Field(
        "rows", description="What becomes the version: the step's rows, or the model that it made."
    )
    licence: str | None = Field(None, description="Licence of the rows, as an SPDX id or as the Hub writes it.")
    tags: tuple[str, ...] = Field((), description="Tags that are moved to the version this run commits.")
    publish: Publish | None = Field(
        None, description="Where the version is published on the Hugging Face Hub once it is committed."
    )


class SpecFile(Params):
    """The top level of a spec file. Steps and models are checked further against their operator and backend."""

    ptk: Literal[1] = Field(description="Version of the spec language.")
    name: str = Field(description="Name of the dataset or experiment.")
    catalog: str | None = Field(None, description="Where the catalog is: a folder, relative to this file, or a URL.")
    models: dict[str, dict[str, Any]] = Field({}, description="Models by name.")
    steps: dict[str, dict[str, Any]] = Field(min_length=1, description="Steps by name, in any order.")
    outputs: dict[str, Output] = Field({}, description="Catalog entries by name.")
    report: ReportSettings | None = Field(None, description="What is written for people to read, once the run is finished.")


@dataclass(frozen=True, slots=True)
class Model:
    """A declared model: its backend and that backend's settings."""

    name: str
    backend: Backend
    settings: ModelSettings
    made: Mapping[str, str] = field(default_factory=dict)
    """Options whose files a step makes -> that step, as it stands behind `step:`."""

    def slot(self, option: str) -> str:
        """Return the name of the input by which a step that uses the model comes after the one that makes its files."""
        return f"{self.name}.{option}"

    def resolve(self, roots: ModelRoots, without: Collection[str] = ()) -> ResolvedModel:
        """Find the model without loading it, as if the options in `without` were not written. Raises ModelNotFound."""
        settings = self.settings.model_copy(update=dict.fromkeys(without))
        found = self.backend.resolve(settings, roots)
        if settings.cases is None:
            return found
        from ptk.llm.cases import find_cases  # not before a model has some: it brings the templates' engine

        cases = find_cases(settings.cases, roots)
        versions = found.versions if cases.version is None else (*found.versions, cases.version)
        return replace(found, cases=cases, limits={**found.limits, "cases": cases.digest}, versions=versions)


@dataclass(frozen=True, slots=True)
class Step:
    """A step: its operator, where its inputs come from, and its settings. A declared step with a matrix is several of them."""

    name: str
    operator: Operator
    inputs: Mapping[str, str]
    """Input name -> step name, in the operator's order; then the steps that make files of its model."""
    params: Params
    written: Mapping[str, Any]
    """The settings as they stand in the file, environment values unexpanded: what may be shown and stored."""
    base: str
    """Name of the step in the file."""
    cell: Cell | None = None
    """What it is of a matrix; None for a step without one, and for cells put together."""
    gathers: bool = False
    """Whether it puts the cells of a matrix together."""
    places: Mapping[str, Location] = field(default_factory=dict)
    """Where the value of an option stands that an axis sets."""
    files: frozenset[str] = frozenset()
    """The inputs that are files of its model, not rows."""

    @property
    def rows(self) -> Mapping[str, str]:
        """The inputs that the operator takes: input name -> step name."""
        return {slot: source for slot, source in self.inputs.items() if slot not in self.files}

    def place(self, *inside: str | int) -> Location:
        """Return the location, in the file, of the step or of what lies in its settings."""
        if inside and str(inside[0]) in self.places:
            return self.places[str(inside[0])]
        return ("steps", self.base, *inside)


@dataclass(frozen=True, slots=True)
class Spec:
    """A spec file without errors; steps are in an order in which each comes after its inputs.

    A step with a matrix is there as its cells, such as `personas[small]`, and under its own name where another step or an output
    takes all of them together.
    """

    name: str
    path: Path
    document: Document
    digest: str
    catalog: str | None
    """Where entries are read from, as written in the file or given in its place."""
    models: Mapping[str, Model]
    steps: Mapping[str, Step]
    outputs: Mapping[str, Output]
    sources: Mapping[str, str]
    """Output -> the step whose rows it takes."""
    report: ReportSettings | None = None

    def named(self, name: str) -> list[str]:
        """Return the steps that a name means: all cells where it is that of a step with a matrix; none where it is unknown."""
        cells = [step.name for step in self.steps.values() if step.base == name and step.cell is not None]
        return cells or ([name] if name in self.steps else [])

    def names(self) -> set[str]:
        """Return all that `named` knows: steps, and declared steps with a matrix."""
        return {*self.steps, *(step.base for step in self.steps.values())}


def load_spec(path: Path, catalog: str | None = None) -> Spec:
    """Read and check a spec file as a whole; `catalog` is where entries are read from, in place of the spec's own.

    Raises SpecError with every violation found.
    """
    document = read_yaml(path)
    return _Checker(path, document, catalog).spec()


@cache
def _backends() -> Mapping[str, Any]:
    return {point.name: point for point in entry_points(group="ptk.backends")}


def backend_names() -> list[str]:
    """Return the names of all installed backends, sorted."""
    return sorted(_backends())


def find_backend(name: str) -> Backend:
    """Return the backend of that name. Raises KeyError for an unknown name."""
    backend: Backend = _backends()[name].load()
    return backend


class _Checker:
    """Collects violations while it turns a document into a Spec."""

    def __init__(self, path: Path, document: Document, catalog: str | None) -> None:
        self.path = path
        self.document = document
        self.catalog = catalog
        self.root = path.resolve().parent
        self.violations: list[Violation] = []
        self.unset: set[Location] = set()

    def spec(self) -> Spec:
        data = self._expanded(self.document.data, ())
        if self.catalog is None and isinstance(data, dict):
            self.catalog = data.get("catalog")
        file = self._validated(SpecFile, data, ())
        # Steps and models are checked even where the rest is wrong, so that one look shows every mistake.
        models = {name: self._model(name, value) for name, value in self._mappings(data, "models")}
        declared = list(data["steps"]) if isinstance(data.get("steps"), dict) else []
        grids = Grids({name: Grid(name, {}, (Cell(name, {}),)) for name in declared})
        cells: list[Step] = []
        for name, value in self._mappings(data, "steps"):
            before = len(self.violations)
            operator = self._operator(name, value)
            grid = self._grid(name, value, operator)
            if operator is None or len(self.violations) > before:
                grids.grids[name] = replace(grid, cells=())
                continue
            grids.grids[name] = grid
            cells.extend(self._cells(grid, value, operator, set(models)))
        steps = self._connected(cells, grids, {name: model for name, model in models.items() if model is not None})
        sources = self._check_outputs(data, grids)
        steps |= {name: self._gathered(gathering) for name, gathering in grids.gatherings.items()}
        self._check_circles(steps)
        if self.violations or file is None:
            raise SpecError(self.violations)
        return Spec(
            name=file.name,
            path=self.path,
            document=self.document,
            digest="sha256:" + hashlib.sha256(self.document.text.encode()).hexdigest(),
            catalog=self.catalog,
            models={name: model for name, model in models.items() if model is not None},
            steps=self._ordered(steps),
            outputs=file.outputs,
            sources=sources,
            report=file.report,
        )

    def _complain(self, location: Location, what: str) -> None:
        if location not in self.unset:  # what a missing environment value leads to is no further mistake
            self.violations.append(self.document.violation(location, what))

    def _mappings(self, data: Any, section: str) -> Iterator[tuple[str, dict[str, Any]]]:
        entries = data.get(section)
        if isinstance(entries, dict):
            for name, value in entries.items():
                if not _NAME.fullmatch(name):
                    self._complain(
                        (section, name), "a name is lower-case letters, digits, '_' and '-', and begins with a letter"
                    )
                if isinstance(value, dict):
                    yield name, value

    def _expanded(self, value: Any, location: Location) -> Any:
        if isinstance(value, dict):
            return {key: self._expanded(item, (*location, key)) for key, item in value.items()}
        if isinstance(value, list):
            return [self._expanded(item, (*location, index)) for index, item in enumerate(value)]
        if isinstance(value, str) and "${env:" in value:

            def look_up(match: re.Match[str]) -> str:
                name = match.group(1)
                if name not in os.environ:
                    self._complain(
                        location, f"the environment has no variable '{name}'; set it, as in: {name or 'NAME'}=... ptk run ..."
                    )
                    unset.append(name)
                return os.environ.get(name, "")

            unset: list[str] = []
            expanded = _ENV.sub(look_up, value)
            if unset:
                self.unset.add(location)
            return expanded
        return value

    def _validated(
        self, model: type[Params], data: Any, location: Location, places: Mapping[str, Location] | None = None
    ) -> Any:
        try:
            return model.model_validate_json(
                orjson.dumps(data),
                context={"root": self.root, "catalog": self.catalog},
            )
        except ValidationError as error:
            for place, what in problems(model, error):
                elsewhere = (places or {}).get(str(place[0])) if place else None
                self._complain(elsewhere or (*location, *place), what)
        except SpecError as error:
            self.violations.extend(error.violations)
        return None

    def _model(self, name: str, value: dict[str, Any]) -> Model | None:
        location = ("models", name)
        wanted = value.get("backend")
        if wanted is None:
            self._complain(location, f"'backend' is missing{suggestion('', backend_names())}")
            return None
        if wanted not in backend_names():
            self._complain((*location, "backend"), f"unknown backend '{wanted}'{suggestion(str(wanted), backend_names())}")
            return None
        backend = find_backend(wanted)
        settings = self._validated(backend.settings, value, location)
        if settings is None:
            return None
        written = {option: getattr(settings, option) or "" for option in marked_fields(settings, ModelReference)}
        made = {option: text.removeprefix(STEP) for option, text in written.items() if text.startswith(STEP)}
        return Model(name, backend, settings, made)

    def _operator(self, name: str, value: dict[str, Any]) -> Operator | None:
        location = ("steps", name)
        wanted = value.get("op")
        if wanted is None:
            self._complain(location, "'op' is missing: say which operator this step runs (`ptk ops` lists them)")
            return None
        if wanted not in operator_names():
            self._complain((*location, "op"), f"unknown operator '{wanted}'{suggestion(str(wanted), operator_names())}")
            return None
        try:
            return find_operator(wanted)
        except PtkError as error:
            self._complain((*location, "op"), str(error))
            return None

    def _grid(self, name: str, value: dict[str, Any], operator: Operator | None) -> Grid:
        options = [] if operator is None else [field.alias or name for name, field in operator.params.model_fields.items()]
        models = [] if operator is None else list(marked_fields(operator.params, ModelName))
        return read_grid(name, value, options, models, self._complain)

    def _cells(self, grid: Grid, value: dict[str, Any], operator: Operator, models: set[str]) -> Iterator[Step]:
        """Yield the steps that a declared step stands for, each taking from what is written under `from`."""
        raw = self.document.data["steps"][grid.base]
        for cell in grid.cells:
            before = len(self.violations)
            filled = of_cell(grid, cell, value, self._complain)
            if len(self.violations) > before:
                continue
            places = {option: place for option in grid.places if (place := grid.place(cell, option)) is not None}
            inputs = self._inputs(operator, filled.get("from"), ("steps", grid.base))
            settings = {key: item for key, item in filled.items() if key not in ("op", "from")}
            params = self._validated(operator.params, settings, ("steps", grid.base), places)
            if params is None:
                continue
            written = {key: item for key, item in of_cell(grid, cell, raw).items() if key not in ("op", "from")}
            step = Step(cell.name, operator, inputs, params, written, grid.base, cell if cell.axes else None, places=places)
            for option in marked_fields(params, ModelName):
                model = getattr(params, option)
                if model not in models:
                    known = suggestion(model, models) if models else "; the spec declares no `models`"
                    self._complain(step.place(option), f"unknown model '{model}'{known}")
            yield step

    def _gathered(self, gathering: Gathering) -> Step:
        """Return the step that puts the cells of a matrix together."""
        operator = find_operator("concat_rows")
        written = {"columns": "union", "on_repeat": "rekey", "values": gathering.values}
        params = operator.params.model_validate_json(orjson.dumps(written))
        inputs = {f"frames.{number}": cell.name for number, cell in enumerate(gathering.cells, start=1)}
        return Step(gathering.name, operator, inputs, params, written, gathering.base, gathers=True)

    def _inputs(self, operator: Operator, written: Any, location: Location) -> dict[str, str]:
        wanted = operator.inputs
        place = (*location, "from")
        if not wanted:
            if written is not None:
                self._complain(place, f"{operator.name} reads files and takes no `from`")
            return {}
        if written is None:
            self._complain(location, f"'from' is missing: {operator.name} takes {' and '.join(wanted)} from other steps")
            return {}
        if wanted[0].startswith("*"):
            several = [written] if isinstance(written, str) else written
            if not isinstance(several, list) or not several or not all(isinstance(item, str) for item in several):
                self._complain(place, f"`from` of {operator.name} is a list of steps' names")
                return {}
            return {f"{wanted[0][1:]}.{number}": item for number, item in enumerate(several, start=1)}
        if isinstance(written, str):
            if len(wanted) > 1:
                self._complain(
                    place,
                    f"{operator.name} takes {len(wanted)} inputs; write {{{', '.join(f'{name}: STEP' for name in wanted)}}}",
                )
                return {}
            return {wanted[0]: written}
        if isinstance(written, dict) and all(isinstance(item, str) for item in written.values()):
            for name in written:
                if name not in wanted:
                    self._complain((*place, name), f"{operator.name} has no input '{name}'{suggestion(name, wanted)}")
            for name in wanted:
                if name not in written:
                    self._complain(place, f"input '{name}' of {operator.name} is missing")
            return {name: written[name] for name in wanted if name in written}
        self._complain(place, "`from` is a step's name, or a mapping of input names to steps' names")
        return {}

    def _connected(self, cells: list[Step], grids: Grids, models: Mapping[str, Model]) -> dict[str, Step]:
        """Return the steps by name, each taking from the steps that its `from` means, and those that make its model's files."""
        steps: dict[str, Step] = {}
        fed: dict[str, set[str]] = {}
        declared = {step.name: step for step in cells}
        for model in models.values():
            for option, reference in model.made.items():
                if grids.base(reference) is None:
                    known = suggestion(reference, grids.grids)
                    self._complain(("models", model.name, option), f"there is no step '{reference}'{known}")
        for step in cells:
            inputs: dict[str, str] = {}
            for slot, reference in step.inputs.items():
                source = self._found(grids, reference, step)
                if source is not None:
                    inputs[slot] = source
                    fed.setdefault(step.base, set()).update(grids.grids[grids.base(reference) or ""].axes)
            asked = models.get(uses_model(step) or "")
            if asked is not None and asked.settings.cases is not None:
                self._check_cases(step, asked)
            files: dict[str, str] = {}
            for option, reference in ({} if asked is None else asked.made).items():
                assert asked is not None
                source = self._making(grids, declared, asked, option, step)
                if source is not None:
                    files[asked.slot(option)] = source
                    fed.setdefault(step.base, set()).update(grids.grids[grids.base(reference) or ""].axes)
            steps[step.name] = replace(step, inputs=inputs | files, files=frozenset(files))
        if self.violations:
            return steps  # whether an axis has an effect can't be told where an input is missing
        for base, options in {step.base: type(step.params).model_fields for step in cells}.items():
            written = self.document.data["steps"][base]
            for axis in axes_without_effect(grids.grids[base], written, fed.get(base, ())):
                self._complain(
                    ("steps", base, "matrix", axis),
                    f"axis '{axis}' changes nothing: the step has no option and no input with an axis of that name, and nothing "
                    f"says ${{matrix.{axis}}}{near if (near := suggestion(axis, options)).startswith('; did') else ''}",
                )
        return steps

    def _check_cases(self, step: Step, model: Model) -> None:
        """Complain of a step that would not show the solved cases of its model."""
        if not isinstance(step.operator, LlmOperator) or step.operator.shows_cases is None:
            self._complain(
                step.place("model"),
                f"{step.operator.name} shows no solved cases, and model '{model.name}' has some; declare the model once more without "
                "`cases`",
            )
        elif (problem := step.operator.shows_cases(step.params)) is not None:
            self._complain(step.place(), f"model '{model.name}' has solved cases: {problem}")

    def _found(self, grids: Grids, reference: str, step: Step) -> str | None:
        try:
            return grids.find(reference, step.cell.axes if step.cell is not None else None, step.base)
        except Unresolved as error:
            self._complain(step.place("from"), str(error))
            return None

    def _making(self, grids: Grids, declared: Mapping[str, Step], model: Model, option: str, step: Step) -> str | None:
        """Return the step that makes files of the model that `step` uses, or None after complaining."""
        reference, place = model.made[option], ("models", model.name, option)
        if grids.base(reference) is None:
            return None  # that was said
        try:
            source = grids.find(reference, step.cell.axes if step.cell is not None else None, step.base)
        except Unresolved as error:
            self._complain(place, str(error))
            return None
        if source in grids.gatherings:
            cells = [cell.name for cell in grids.gatherings[source].cells]
            self._complain(place, f"'{reference}' is several steps to '{step.name}'; name one, such as {STEP}{cells[0]}")
            return None
        maker = declared.get(source)
        if maker is None:
            return None  # it is wrong itself, and that was said
        makes = maker.operator.makes if isinstance(maker.operator, AssetOperator) else None
        if makes is None or makes(maker.params) != option:
            made = "no model" if makes is None else _KINDS[makes(maker.params)]
            self._complain(place, f"step '{source}' ({maker.operator.name}) makes {made}, not {_KINDS[option]}")
            return None
        return source

    def _check_circles(self, steps: Mapping[str, Step]) -> None:
        done: set[str] = set()
        for name in steps:
            trail: list[str] = []
            self._walk(name, steps, trail, done)

    def _walk(self, name: str, steps: Mapping[str, Step], trail: list[str], done: set[str]) -> None:
        if name in done or name not in steps:
            return
        if name in trail:
            circle = " -> ".join([*trail[trail.index(name) :], name])
            self._complain(steps[name].place("from"), f"steps feed on each other: {circle}")
            done.update(trail)
            return
        trail.append(name)
        for source in steps[name].inputs.values():
            self._walk(source, steps, trail, done)
        if trail and trail[-1] == name:
            trail.pop()
        done.add(name)

    def _ordered(self, steps: Mapping[str, Step]) -> dict[str, Step]:
        ordered: dict[str, Step] = {}

        def place(name: str) -> None:
            if name not in ordered:
                for source in steps[name].inputs.values():
                    place(source)
                ordered[name] = steps[name]

        for name in steps:
            place(name)
        return ordered

    def _check_outputs(self, data: Any, grids: Grids) -> dict[str, str]:
        """Return, for each output, the step whose rows it takes."""
        sources: dict[str, str] = {}
        if isinstance(name := data.get("name"), str) and not _ENTRY.fullmatch(name):
            self._complain(("name",), f"'{name}' is no name: lower-case letters, digits, '.', '_', '-' and '/'")
        for entry, output in (data.get("outputs") or {}).items() if isinstance(data.get("outputs"), dict) else ():
            place = ("outputs", entry)
            if not _ENTRY.fullmatch(entry) or ".." in entry:
                self._complain(place, "an entry's name is lower-case letters, digits, '.', '_' and '-', in parts joined by '/'")
            if not isinstance(output, dict):
                continue
            source, tags = output.get("from"), output.get("tags")
            if isinstance(source, str):
                try:
                    sources[entry] = grids.find(source)
                except Unresolved as error:
                    self._complain((*place, "from"), str(error))
            for index, tag in enumerate(tags if isinstance(tags, list) else ()):
                if isinstance(tag, str) and (not _TAG.fullmatch(tag) or _VERSION_LIKE.fullmatch(tag)):
                    self._complain((*place, "tags", index), f"'{tag}' is no tag: a lower-case word that does not look like v1")
        return sources


def uses_model(step: Step) -> str | None:
    """Return the name of the model that a step asks, or makes files with; None where it has none."""
    for option in marked_fields(step.params, ModelName):
        name: str = getattr(step.params, option)
        return name
    return None
