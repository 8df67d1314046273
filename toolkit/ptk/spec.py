"""A spec file, read and checked as a whole: YAML -> Spec, every error at its file and line."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import orjson
from pydantic import Field, ValidationError

from ptk.errors import PtkError, SpecError, Violation
from ptk.operator import LlmOperator, Operator, find_operator, operator_names
from ptk.params import ModelName, Params, marked_fields, problems, suggestion
from ptk.yamlfile import Document, Location, read_yaml

if TYPE_CHECKING:
    from ptk.llm.backend import Backend, ModelSettings

__all__ = ["Model", "Output", "Spec", "SpecFile", "Step", "backend_names", "find_backend", "load_spec", "uses_model"]

_NAME = re.compile(r"[a-z][a-z0-9_-]*")
_ENTRY = re.compile(r"[a-z0-9][a-z0-9._-]*(/[a-z0-9][a-z0-9._-]*)*")
_TAG = re.compile(r"[a-z][a-z0-9._-]*")
_VERSION_LIKE = re.compile(r"v[0-9]+")
_ENV = re.compile(r"\$\{env:([^}]*)\}")


class Output(Params):
    """One catalog entry that the spec writes."""

    from_: str = Field(alias="from", description="The step whose rows become the next version of the entry.")
    licence: str | None = Field(None, description="Licence of the rows, as an SPDX id or as the Hub writes it.")
    tags: tuple[str, ...] = Field((), description="Tags that are moved to the version this run commits.")


class SpecFile(Params):
    """The top level of a spec file. Steps and models are checked further against their operator and backend."""

    ptk: Literal[1] = Field(description="Version of the spec language.")
    name: str = Field(description="Name of the dataset or experiment.")
    catalog: str | None = Field(None, description="Where the catalog is: a folder, relative to this file, or a URL.")
    models: dict[str, dict[str, Any]] = Field({}, description="Models by name.")
    steps: dict[str, dict[str, Any]] = Field(min_length=1, description="Steps by name, in any order.")
    outputs: dict[str, Output] = Field({}, description="Catalog entries by name.")


@dataclass(frozen=True, slots=True)
class Model:
    """A declared model: its backend and that backend's settings."""

    name: str
    backend: Backend
    settings: ModelSettings


@dataclass(frozen=True, slots=True)
class Step:
    """A declared step: its operator, where its inputs come from, and its settings."""

    name: str
    operator: Operator
    inputs: Mapping[str, str]
    """Input name -> step name, in the operator's order."""
    params: Params
    written: Mapping[str, Any]
    """The settings as they stand in the file, environment values unexpanded: what may be shown and stored."""


@dataclass(frozen=True, slots=True)
class Spec:
    """A spec file without errors; steps are in an order in which each comes after its inputs."""

    name: str
    path: Path
    document: Document
    digest: str
    catalog: str | None
    models: Mapping[str, Model]
    steps: Mapping[str, Step]
    outputs: Mapping[str, Output]


def load_spec(path: Path) -> Spec:
    """Read and check a spec file as a whole.

    Raises SpecError with every violation found.
    """
    document = read_yaml(path)
    return _Checker(path, document).spec()


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

    def __init__(self, path: Path, document: Document) -> None:
        self.path = path
        self.document = document
        self.root = path.resolve().parent
        self.violations: list[Violation] = []
        self.unset: set[Location] = set()

    def spec(self) -> Spec:
        data = self._expanded(self.document.data, ())
        file = self._validated(SpecFile, data, ())
        # Steps and models are checked even where the rest is wrong, so that one look shows every mistake.
        models = {name: self._model(name, value) for name, value in self._mappings(data, "models")}
        steps = {name: self._step(name, value, set(models)) for name, value in self._mappings(data, "steps")}
        good_steps = {name: step for name, step in steps.items() if step is not None}
        declared = set(data["steps"]) if isinstance(data.get("steps"), dict) else set()
        self._check_references(declared, good_steps)
        self._check_outputs(data, declared)
        if self.violations or file is None:
            raise SpecError(self.violations)
        return Spec(
            name=file.name,
            path=self.path,
            document=self.document,
            digest="sha256:" + hashlib.sha256(self.document.text.encode()).hexdigest(),
            catalog=file.catalog,
            models={name: model for name, model in models.items() if model is not None},
            steps=self._ordered(good_steps),
            outputs=file.outputs,
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

    def _validated(self, model: type[Params], data: Any, location: Location) -> Any:
        try:
            return model.model_validate_json(orjson.dumps(data), context={"root": self.root})
        except ValidationError as error:
            for place, what in problems(model, error):
                self._complain((*location, *place), what)
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
        return None if settings is None else Model(name, backend, settings)

    def _step(self, name: str, value: dict[str, Any], models: set[str]) -> Step | None:
        location = ("steps", name)
        wanted = value.get("op")
        if wanted is None:
            self._complain(location, "'op' is missing: say which operator this step runs (`ptk ops` lists them)")
            return None
        if wanted not in operator_names():
            self._complain((*location, "op"), f"unknown operator '{wanted}'{suggestion(str(wanted), operator_names())}")
            return None
        try:
            operator = find_operator(wanted)
        except PtkError as error:
            self._complain((*location, "op"), str(error))
            return None
        inputs = self._inputs(operator, value.get("from"), location)
        params = self._validated(
            operator.params, {key: item for key, item in value.items() if key not in ("op", "from")}, location
        )
        if params is None:
            return None
        for field in marked_fields(params, ModelName):
            model = getattr(params, field)
            if model not in models:
                known = suggestion(model, models) if models else "; the spec declares no `models`"
                self._complain((*location, field), f"unknown model '{model}'{known}")
        written = {key: item for key, item in self.document.data["steps"][name].items() if key not in ("op", "from")}
        return Step(name, operator, inputs, params, written)

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

    def _check_references(self, declared: set[str], good: Mapping[str, Step]) -> None:
        for step in good.values():
            for source in step.inputs.values():
                if source not in declared:
                    self._complain(
                        ("steps", step.name, "from"),
                        f"there is no step '{source}'{suggestion(source, declared - {step.name})}",
                    )
        done: set[str] = set()
        for name in good:
            trail: list[str] = []
            self._walk(name, good, trail, done)

    def _walk(self, name: str, steps: Mapping[str, Step], trail: list[str], done: set[str]) -> None:
        if name in done or name not in steps:
            return
        if name in trail:
            circle = " -> ".join([*trail[trail.index(name) :], name])
            self._complain(("steps", name, "from"), f"steps feed on each other: {circle}")
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

    def _check_outputs(self, data: Any, steps: set[str]) -> None:
        if isinstance(name := data.get("name"), str) and not _ENTRY.fullmatch(name):
            self._complain(("name",), f"'{name}' is no name: lower-case letters, digits, '.', '_', '-' and '/'")
        for entry, output in (data.get("outputs") or {}).items() if isinstance(data.get("outputs"), dict) else ():
            place = ("outputs", entry)
            if not _ENTRY.fullmatch(entry) or ".." in entry:
                self._complain(place, "an entry's name is lower-case letters, digits, '.', '_' and '-', in parts joined by '/'")
            if not isinstance(output, dict):
                continue
            source, tags = output.get("from"), output.get("tags")
            if isinstance(source, str) and source not in steps:
                self._complain((*place, "from"), f"there is no step '{source}'{suggestion(source, steps)}")
            for index, tag in enumerate(tags if isinstance(tags, list) else ()):
                if isinstance(tag, str) and (not _TAG.fullmatch(tag) or _VERSION_LIKE.fullmatch(tag)):
                    self._complain((*place, "tags", index), f"'{tag}' is no tag: a lower-case word that does not look like v1")


def uses_model(step: Step) -> str | None:
    """Return the name of the model that a step asks, or None."""
    if isinstance(step.operator, LlmOperator):
        for field in marked_fields(step.params, ModelName):
            name: str = getattr(step.params, field)
            return name
    return None
