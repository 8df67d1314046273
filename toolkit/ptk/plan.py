"""A spec, planned: each step with its key, the columns it gives, and why it will run or need not."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson
import polars as pl
from polars.exceptions import PolarsError

from ptk.errors import ModelNotFound, PtkError, SpecError, UnreadableFile, Violation
from ptk.operator import DETAIL, KEY, RAW, REJECT, FrameOperator, LlmOperator, Reader, Reshape, Source
from ptk.params import Column, canonical, marked_fields, suggestion
from ptk.spec import Model, Spec, Step, uses_model
from ptk.work import StepResult, WorkStore

if TYPE_CHECKING:
    from ptk.llm.backend import ResolvedModel

__all__ = ["Node", "Plan", "make_plan"]


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
    """The model an LLM step asks."""
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

    @property
    def memory(self) -> str:
        """Name under which the work store remembers this plan's steps; runs on a sample are remembered apart."""
        return _memory(self.spec, self.sample)

    def input(self, node: Node) -> Node:
        """Return the node whose rows `node` decides about."""
        return self.nodes[next(iter(node.step.inputs.values()))]

    def finished_node(self, name: str) -> Node:
        """Return the node of a step that is finished. Raises SpecError for an unknown step, PtkError for one still to run."""
        if name not in self.nodes:
            raise SpecError(
                [Violation(self.spec.document.file, 0, name, f"there is no such step{suggestion(name, self.nodes)}")]
            )
        node = self.nodes[name]
        if node.finished is None:
            raise PtkError(f"step '{name}' is not finished ({node.why}); run the spec first")
        return node

    def to_run(self) -> list[Node]:
        return [node for node in self.nodes.values() if node.finished is None]


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
    if planner.violations:
        raise SpecError(planner.violations)
    return Plan(spec, planner.nodes, sample, frozenset(planner.forced))


class _Planner:
    def __init__(self, spec: Spec, work: WorkStore, sample: int | None, force: Collection[str]) -> None:
        self.spec = spec
        self.work = work
        self.sample = sample
        self.nodes: dict[str, Node] = {}
        self.violations: list[Violation] = []
        self.models: dict[str, ResolvedModel | None] = {}
        self.before = work.remembered(_memory(spec, sample))
        self.forced = set(force)
        for name in force:
            if name not in spec.steps:
                raise SpecError(
                    [Violation(spec.document.file, 0, "--force", f"there is no step '{name}'{suggestion(name, spec.steps)}")]
                )
        for step in spec.steps.values():
            if any(source in self.forced for source in step.inputs.values()):
                self.forced.add(step.name)

    def add(self, name: str) -> None:
        step = self.spec.steps[name]
        inputs = {slot: self.nodes.get(source) for slot, source in step.inputs.items()}
        model = self._model(step)
        if any(node is None for node in inputs.values()) or (uses_model(step) and model is None):
            return  # what it needs is wrong already, and said
        known = {slot: node for slot, node in inputs.items() if node is not None}
        shape = self._shape(step, known)
        if shape is None:
            return
        schema, key_column, source = shape
        key = self._key(step, known, model)
        finished = None if name in self.forced else self.work.result(key)
        why = "cached" if finished is not None else self._reason(step, known, key)
        self.nodes[name] = Node(step, key, key_column, schema, source, model, finished, why)

    def _model(self, step: Step) -> ResolvedModel | None:
        name = uses_model(step)
        if name is None:
            return None
        if name not in self.models:
            declared: Model = self.spec.models[name]
            try:
                self.models[name] = declared.backend.resolve(declared.settings, self.spec.path.resolve().parent)
            except ModelNotFound as error:
                self.models[name] = None
                self._complain(("models", name, "model"), str(error))
        return self.models[name]

    def _key(self, step: Step, inputs: Mapping[str, Node], model: ResolvedModel | None) -> str:
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
            settings = self.spec.models[uses_model(step) or ""].settings
            content["model"] = [model.identity, model.limits, canonical(settings.sampling)]
        return hashlib.sha256(orjson.dumps(content, option=orjson.OPT_SORT_KEYS)).hexdigest()[:40]

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
        if inputs:
            self._check_columns(step, next(iter(inputs.values())).schema)
            if len(self.violations) > before:
                return None
        try:
            return self._try_shape(step, inputs)
        except PolarsError as error:
            self._complain(self._place(step, str(error)), _first_line(error))
        except UnreadableFile as error:
            self._complain(("steps", step.name, "path"), str(error))
        except (ValueError, TypeError, KeyError) as error:
            if isinstance(step.operator, Reader):
                self._complain(self._place(step, str(error)), str(error))
                return None
            self._complain(("steps", step.name), f"{step.operator.name} fails on no rows: {_first_line(error)}")
        except SpecError as error:
            self.violations.extend(error.violations)
        return None

    def _try_shape(self, step: Step, inputs: Mapping[str, Node]) -> tuple[pl.Schema, str, Source | None]:
        operator = step.operator
        empty = {slot: keyed(pl.LazyFrame(schema=node.schema), node.key_column) for slot, node in inputs.items()}
        if isinstance(operator, Reader):
            source = operator.function(step.params)
            return source.columns, source.key, source
        if isinstance(operator, Reshape):
            rows = operator.function(*empty.values(), step.params).collect()
            key = operator.key(step.params)
            if key not in rows.columns:
                raise ValueError(f"its rows have no key column '{key}'")
            return rows.schema, key, None
        first = next(iter(inputs.values()))
        if isinstance(operator, FrameOperator):
            decision = operator.function(*empty.values(), step.params).collect()
        elif isinstance(operator, LlmOperator):
            frame = next(iter(empty.values())).collect()
            list(operator.requests(frame, {}, step.params))
            decision = operator.collect(frame, {}, step.params)
        else:
            raise TypeError(f"{type(operator).__name__} is no kind of operator")
        if KEY not in decision.columns:
            raise ValueError(f"its decision lacks '{KEY}'")
        new = {name: dtype for name, dtype in decision.schema.items() if name not in (KEY, REJECT, DETAIL, RAW)}
        if first.key_column in new:
            raise ValueError(f"it gives '{first.key_column}', the key, which no step may change")
        kept = {name: dtype for name, dtype in first.schema.items() if name not in new}
        return pl.Schema({**kept, **new}), first.key_column, None

    def _check_columns(self, step: Step, schema: pl.Schema) -> None:
        for field in marked_fields(step.params, Column):
            value = getattr(step.params, field)
            for index, column in enumerate((value,) if isinstance(value, str) else value or ()):
                if column not in schema:
                    place = ("steps", step.name, field) if isinstance(value, str) else ("steps", step.name, field, index)
                    self._complain(place, f"there is no column '{column}'{suggestion(column, schema)}")

    def _place(self, step: Step, message: str) -> tuple[str | int, ...]:
        """Return where in the file a message of Polars belongs: the setting that holds a word it quotes, else the step."""
        for word in re.findall(r"[\"'`]([^\"'`]+)[\"'`]", message):
            for name, value in step.written.items():
                if word in str(value):
                    return ("steps", step.name, name)
        return ("steps", step.name)


def keyed(frame: pl.LazyFrame, key_column: str) -> pl.LazyFrame:
    """Return `frame` with the row's key beside as `_key`: what every operator is given."""
    return frame.with_columns(pl.col(key_column).alias(KEY))


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__


def _short(value: Any) -> str:
    text = orjson.dumps(value, default=str).decode()
    return text if len(text) <= 40 else text[:37] + "..."
