"""A spec, planned: each step with its key, the columns it gives, and why it will run or need not."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import polars as pl
from polars.exceptions import PolarsError

from ptk.errors import ModelNotFound, PtkError, SpecError, UnreadableFile, Violation
from ptk.llm.model_files import ModelRoots
from ptk.operator import KEY, MARKS, AssetOperator, FrameOperator, LlmOperator, Reader, Reshape, Source
from ptk.params import OutputFolder, canonical, named_columns, suggestion
from ptk.spec import Model, Spec, Step, uses_model
from ptk.stages import keyed, reshaped, run_stages
from ptk.work import StepResult, WorkStore

if TYPE_CHECKING:
    from ptk.llm.backend import ResolvedModel

__all__ = ["Node", "Plan", "make_plan", "model_roots"]


@dataclass(frozen=True, slots=True)
class Node:
    """One step, planned."""

    step: Step
    key: str
    key_column: str
    schema: pl.Schema
    """Columns of the rows it gives."""
    source: Source | None
    """What a reader found; None for other steps."""
    model: ResolvedModel | None
    """The model that the step asks, or makes files with."""
    finished: StepResult | None
    """The finished step in the work store; None where it has to run."""
    why: str
    """`cached`, or the reason it runs."""

    @property
    def name(self) -> str:
        return self.step.name


@dataclass(frozen=True, slots=True)
class Plan:
    """A graph of steps in an order in which each comes after its inputs."""

    spec: Spec
    nodes: Mapping[str, Node]
    sample: int | None
    forced: frozenset[str]
    """Steps the user wants done again, and all that follow from them."""
    unfinished: Mapping[str, StepResult]
    """Steps some of whose requests had no answer in the last run, and all that follow from them: they are done again."""

    @property
    def memory(self) -> str:
        """Name under which the work store remembers this plan's steps; runs on a sample are remembered apart."""
        return _memory(self.spec, self.sample)

    def input(self, node: Node) -> Node:
        """Return the node whose rows `node` decides about."""
        return self.nodes[next(iter(node.step.inputs.values()))]

    def named(self, name: str) -> list[Node]:
        """Return the nodes that a step's name means: all cells of a step with a matrix. Raises SpecError for an unknown one."""
        return [self.nodes[step] for step in _named(self.spec, name)]

    def finished(self, node: Node) -> Node:
        """Return the node of a step that is finished. Raises PtkError for one still to run."""
        if node.name in self.unfinished:
            return replace(node, finished=self.unfinished[node.name])
        if node.finished is None:
            raise PtkError(f"step '{node.name}' is not finished ({node.why}); run the spec first")
        return node

    def done_again(self, name: str) -> bool:
        """Return whether a step that was finished before is done again, so that its key does not tell its rows."""
        return name in self.forced or name in self.unfinished

    def to_run(self) -> list[Node]:
        return [node for node in self.nodes.values() if node.finished is None]


def _named(spec: Spec, name: str, where: str = "") -> list[str]:
    steps = spec.named(name)
    if not steps:
        near = suggestion(name, spec.names())
        what = f"there is no step '{name}'{near}" if where else f"there is no such step{near}"
        raise SpecError([Violation(spec.document.file, 0, where or name, what)])
    return steps


def model_roots(spec: Spec, steps: Mapping[str, Path] | None = None) -> ModelRoots:
    """Return where a spec's names of models lead; `steps` are folders that steps made, by what stands behind `step:`."""
    folder = spec.path.resolve().parent
    catalog = spec.catalog
    if catalog is not None and "://" not in catalog:
        catalog = str(folder / Path(catalog).expanduser())
    return ModelRoots(folder, catalog, steps or {})


def _memory(spec: Spec, sample: int | None) -> str:
    return spec.name if sample is None else f"{spec.name}@{sample}"


def make_plan(spec: Spec, work: WorkStore, *, sample: int | None = None, force: Collection[str] = ()) -> Plan:
    """Plan a spec: nothing is run, but every frame operator on no rows, which tells the schemas.

    `sample` takes at most that many rows of each source. Raises SpecError: a column that does not exist, a model that can't be
    found, an unknown step in `force`.
    """
    planner = _Planner(spec, work, sample, force)
    for name in spec.steps:
        planner.add(name)
    planner.check_folders()
    planner.check_outputs()
    if planner.violations:
        raise SpecError(planner.violations)
    return Plan(spec, planner.nodes, sample, frozenset(planner.forced), planner.unfinished)


_Found = tuple["ResolvedModel", Any, tuple[Any, ...]]
"""A model, what stands for it in the key of a step, and what stands beside it there for its answers."""


class _Planner:
    def __init__(self, spec: Spec, work: WorkStore, sample: int | None, force: Collection[str]) -> None:
        self.spec = spec
        self.work = work
        self.sample = sample
        self.nodes: dict[str, Node] = {}
        self.violations: list[Violation] = []
        self.models: dict[tuple[str, ...], _Found | None] = {}
        self.before = work.remembered(_memory(spec, sample))
        self.forced: set[str] = set()
        self.unfinished: dict[str, StepResult] = {}
        for name in force:
            self.forced.update(_named(spec, name, "--force"))
        for step in spec.steps.values():
            if any(source in self.forced for source in step.inputs.values()):
                self.forced.add(step.name)

    def add(self, name: str) -> None:
        step = self.spec.steps[name]
        inputs = {slot: self.nodes.get(source) for slot, source in step.inputs.items()}
        known = {slot: node for slot, node in inputs.items() if node is not None}
        found = self._model(step, known)
        if len(known) < len(inputs) or (uses_model(step) and found is None):
            return  # what it needs is wrong already, and said
        if isinstance(step.operator, Reshape) and step.operator.apart and not self._are_apart(step, known):
            return
        shape = self._shape(step, {slot: known[slot] for slot in step.rows})
        if shape is None:
            return
        schema, key_column, source = shape
        model, identity, answers = found or (None, None, ())
        # Files are made with the model itself; how long its answers may be, and how they are drawn, is nothing to them.
        asked = () if isinstance(step.operator, AssetOperator) else answers
        key = self._key(step, known, None if model is None else [identity, *asked])
        finished = None if name in self.forced else self.work.result(key)
        why = self._reason(step, known, key) if finished is None else self._unfinished(step, finished) or "cached"
        if finished is not None and why != "cached":
            self.unfinished[name] = finished
            finished = None
        self.nodes[name] = Node(step, key, key_column, schema, source, model, finished, why)

    def _are_apart(self, step: Step, inputs: Mapping[str, Node]) -> bool:
        """Complain of inputs that are the same rows, under one name or two: steps with one key give the same."""
        seen: dict[str, Node] = {}
        for node in inputs.values():
            other = seen.setdefault(node.key, node)
            if other is not node or list(step.inputs.values()).count(node.name) > 1:
                same = (
                    f"'{node.name}' twice" if other is node else f"'{other.name}' and '{node.name}', which give the same rows"
                )
                self._complain(("steps", step.name, "from"), f"{step.operator.name} compares {same}: nothing with itself")
                return False
        return True

    def check_outputs(self) -> None:
        """Complain of outputs whose model no step makes."""
        for entry, output in self.spec.outputs.items():
            step = self.spec.steps[self.spec.sources[entry]]
            operator = step.operator
            makes = operator.makes(step.params) if isinstance(operator, AssetOperator) and operator.makes is not None else None
            if output.kind == "model" and makes is None:
                self._complain(
                    ("outputs", entry, "kind"), f"step '{step.name}' ({operator.name}) makes no model; write kind: rows"
                )

    def check_folders(self) -> None:
        """Complain of steps that write to one folder: each would remove the files of the other."""
        writers: dict[Path, str] = {}
        for step in self.spec.steps.values():
            for field in type(step.params).model_fields:
                folder = getattr(step.params, field)
                if isinstance(folder, OutputFolder):
                    other = writers.setdefault(folder.path.resolve(), step.name)
                    if other != step.name:
                        what = f"step '{other}' writes to '{folder.written}' too; each step needs a folder of its own"
                        self._complain(step.place(field), what)

    def _model(self, step: Step, inputs: Mapping[str, Node]) -> _Found | None:
        """Return a step's model; None where it has none, or after complaining."""
        name = uses_model(step)
        if name is None:
            return None
        declared: Model = self.spec.models[name]
        operator = step.operator
        if isinstance(operator, LlmOperator) and operator.wants not in getattr(declared.backend, "gives", ("answers",)):
            what = f"{operator.name} asks for {operator.wants}, which backend '{declared.settings.backend}' does not give"
            self._complain(step.place("model"), f"{what}; declare the model once more with `backend: transformers`")
            return None
        if isinstance(operator, AssetOperator) and declared.backend.remote and operator.loads_model(step.params):
            what = f"{operator.name} needs a model's files, and backend '{declared.settings.backend}' has none here"
            self._complain(step.place("model"), f"{what}; declare the model once more with `backend: transformers`")
            return None
        makers = [inputs.get(slot) for slot in step.files]
        if any(node is None for node in makers):
            return None
        cell = (name, *(step.inputs[slot] for slot in sorted(step.files)))
        if cell not in self.models:
            try:
                self.models[cell] = self._resolved(declared, step, inputs)
            except ModelNotFound as error:
                self.models[cell] = None
                self._complain(("models", name, error.option), str(error))
        return self.models[cell]

    def _resolved(self, declared: Model, step: Step, inputs: Mapping[str, Node]) -> _Found:
        """Return a model, what stands for it in keys, and what does for its answers beside. Raises ModelNotFound.

        The key of a step whose model's files another step makes has that step's key, as it has those of its inputs, so that it is the
        same before the files are there and after. Until then the model is one that can't be asked.
        """
        from ptk.llm.backend import ResolvedModel
        from ptk.llm.cases import find_cases

        settings, sampling = declared.settings, canonical(declared.settings.sampling)
        if not declared.made:
            found = declared.resolve(model_roots(self.spec))
            return found, found.identity, (found.limits, sampling)
        if "model" in declared.made:
            whole = ResolvedModel(f"step:{declared.made['model']}", {}, {})
            beside = ("sampling", "cases")
            known_settings = {name: value for name, value in canonical(settings).items() if name not in beside}
            identity: Any = [known_settings, declared.backend.device()]
            limits: Any = None
            if settings.cases is not None and "cases" not in declared.made:
                limits = find_cases(settings.cases, model_roots(self.spec)).digest
        else:
            whole = declared.resolve(model_roots(self.spec), without=declared.made)
            identity, limits = whole.identity, whole.limits
        makers = {option: inputs[declared.slot(option)] for option in declared.made}
        folders = {
            declared.made[option]: self.work.asset_folder(node.key)
            for option, node in makers.items()
            if node.finished is not None
        }
        known = {reference: folder for reference, folder in folders.items() if folder is not None}
        if len(known) == len(makers):
            return declared.resolve(model_roots(self.spec, known)), identity, (limits, sampling)
        stand_in = {"made by": sorted(node.key for node in makers.values()), "of": identity}
        waits_for = next(node.name for node in makers.values())
        return replace(whole, identity=stand_in, engine=None, waits_for=waits_for), identity, (limits, sampling)

    def _key(self, step: Step, inputs: Mapping[str, Node], model: Any) -> str:
        content: dict[str, Any] = {
            "format": 1,
            "operator": step.operator.name,
            "version": step.operator.version,
            "params": canonical(step.params),
            "inputs": {slot: node.key for slot, node in inputs.items()},
        }
        if isinstance(step.operator, Reader) and self.sample is not None:
            content["sample"] = self.sample
        if model is not None:
            content["model"] = model
        return hashlib.sha256(orjson.dumps(content, option=orjson.OPT_SORT_KEYS)).hexdigest()[:40]

    def _unfinished(self, step: Step, finished: StepResult) -> str | None:
        """Return why a finished step is done again: a model did not answer some of its requests, or of those before it."""
        if finished.requests is not None and finished.requests.unanswered:
            return f"{finished.requests.unanswered:,} requests had no answer"
        return next((f"input changes: {name}" for name in step.inputs.values() if name in self.unfinished), None)

    def _reason(self, step: Step, inputs: Mapping[str, Node], key: str) -> str:
        if step.name in self.forced:
            return "forced"
        before = self.before.get(step.name)
        if not isinstance(before, dict):
            return "new"
        if before.get("key") == key:
            return "its finished rows are gone"
        if before.get("operator") != step.operator.name:
            return f"operator changed: {before.get('operator')} -> {step.operator.name}"
        if before.get("version") != step.operator.version:
            return f"{step.operator.name} has version {step.operator.version}, was {before.get('version')}"
        written, old = dict(step.written), before.get("params", {})
        changed = [
            name for name in [*old, *(name for name in written if name not in old)] if old.get(name) != written.get(name)
        ]
        if changed:
            name = changed[0]
            more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
            return f"params changed: {name} {_short(old.get(name))} -> {_short(written.get(name))}{more}"
        for slot, node in inputs.items():
            if before.get("inputs", {}).get(slot) != node.key:
                return f"input changed: {node.name}"
        return "files changed" if step.operator.inputs == () else "model, prompt or environment changed"

    def _complain(self, location: tuple[str | int, ...], what: str) -> None:
        self.violations.append(self.spec.document.violation(location, what))

    def _shape(self, step: Step, inputs: Mapping[str, Node]) -> tuple[pl.Schema, str, Source | None] | None:
        """Return (columns, key column, source) of a step's rows, or None after complaining."""
        before = len(self.violations)
        if step.gathers:
            self._check_axes(step, inputs)
        if inputs:
            self._check_columns(step, next(iter(inputs.values())).schema)
            if len(self.violations) > before:
                return None
        try:
            return self._try_shape(step, inputs)
        except PolarsError as error:
            self._complain(self._place(step, str(error)), _first_line(error))
        except UnreadableFile as error:
            self._complain(step.place("path"), str(error))
        except (ValueError, TypeError, KeyError) as error:
            if isinstance(step.operator, Reader):
                self._complain(self._place(step, str(error)), str(error))
            elif step.gathers:
                self._complain(step.place("matrix"), f"the cells of '{step.base}' can't be put together: {_first_line(error)}")
            else:
                self._complain(step.place(), f"{step.operator.name} fails on no rows: {_first_line(error)}")
        except SpecError as error:
            self.violations.extend(error.violations)
        return None

    def _try_shape(self, step: Step, inputs: Mapping[str, Node]) -> tuple[pl.Schema, str, Source | None]:
        operator = step.operator
        empty = {slot: keyed(pl.LazyFrame(schema=node.schema), node.key_column) for slot, node in inputs.items()}
        if isinstance(operator, Reader):
            source = operator.function(params=step.params)
            return source.columns, source.key, source
        if isinstance(operator, Reshape):
            key = operator.key(step.params, [node.key_column for node in inputs.values()])
            rows = reshaped(operator, list(empty.values()), step.params, key).collect()
            if key not in rows.columns:
                raise ValueError(f"its rows have no key column '{key}'")
            return pl.Schema({name: dtype for name, dtype in rows.schema.items() if name not in MARKS}), key, None
        first = next(iter(inputs.values()))
        if isinstance(operator, AssetOperator):
            if operator.check is not None:
                operator.check(*empty.values(), params=step.params)
            return first.schema, first.key_column, None
        if isinstance(operator, FrameOperator):
            decided = run_stages(operator, list(empty.values()), step.params).collect()
        elif isinstance(operator, LlmOperator):
            frame = next(iter(empty.values())).collect()
            list(operator.requests(frame, {}, step.params))
            decided = operator.collect(frame, {}, step.params)
        else:
            raise TypeError(f"{type(operator).__name__} is no kind of operator")
        if KEY not in decided.columns:
            raise ValueError(f"its decision lacks '{KEY}'")
        new = {name: dtype for name, dtype in decided.schema.items() if name not in MARKS}
        if first.key_column in new:
            raise ValueError(f"it gives '{first.key_column}', the key, which no step may change")
        kept = {name: dtype for name, dtype in first.schema.items() if name not in new}
        return pl.Schema({**kept, **new}), first.key_column, None

    def _check_axes(self, step: Step, inputs: Mapping[str, Node]) -> None:
        for axis in step.written["values"]:
            if any(axis in node.schema for node in inputs.values()):
                self._complain(
                    step.place("matrix", axis),
                    f"the rows of '{step.base}' have a column '{axis}' already, and all cells together need one for the axis; call the "
                    f"axis otherwise, as in matrix: {{one_{axis}: [...]}}, and write ${{matrix.one_{axis}}} where an option takes its value",
                )

    def _check_columns(self, step: Step, schema: pl.Schema) -> None:
        for place, column in named_columns(step.params):
            if column not in schema:
                self._complain(step.place(*place), f"there is no column '{column}'{suggestion(column, schema)}")

    def _place(self, step: Step, message: str) -> tuple[str | int, ...]:
        """Return where in the file a message of Polars belongs: the setting that holds a word it quotes, else the step."""
        for word in re.findall(r"[\"'`]([^\"'`]+)[\"'`]", message):
            for name, value in step.written.items():
                if word in str(value):
                    return step.place(name)
        return step.place()


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__


def _short(value: Any) -> str:
    text = orjson.dumps(value, default=str).decode()
    return text if len(text) <= 40 else text[:37] + "..."
