"""Runs a plan: steps one after another into the work store, then every output into the catalog, all or none."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
from polars.exceptions import PolarsError

from ptk.engines import polars as engine
from ptk.errors import PtkError, StoreError
from ptk.llm.answers import AnswerStore
from ptk.llm.ask import Asking, Tally
from ptk.operator import DETAIL, KEY, RAW, REJECT, FrameOperator, LlmOperator, Reader, Reshape
from ptk.params import SourceFiles, canonical
from ptk.plan import Node, Plan, keyed
from ptk.progress import Reporter
from ptk.spec import uses_model
from ptk.work import Asked, StepResult, WorkStore
from ptk_catalog import Commit

if TYPE_CHECKING:
    from ptk.llm.backend import Session
    from ptk_catalog import Catalog, Version

__all__ = ["RunSummary", "StepSummary", "asking_for", "run_plan"]


@dataclass(frozen=True, slots=True)
class StepSummary:
    """What became of one step in one run."""

    name: str
    operator: str
    cached: bool
    why: str
    result: StepResult


@dataclass(frozen=True, slots=True)
class RunSummary:
    """What a run did. `versions` are the outputs in the order of the spec; a sampled run commits none."""

    spec: str
    steps: list[StepSummary]
    versions: list[Version]
    catalog: str | None
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """Return the summary as plain data."""
        return {
            "spec": self.spec,
            "seconds": round(self.seconds, 3),
            "steps": {step.name: _step_json(step) for step in self.steps},
            "outputs": [
                {
                    "entry": version.entry,
                    "version": f"v{version.number}",
                    "digest": version.digest,
                    "rows": version.rows,
                    "new": version.created,
                    "tags": list(version.tags),
                }
                for version in self.versions
            ],
            "catalog": self.catalog,
        }


def _step_json(step: StepSummary) -> dict[str, Any]:
    result = step.result
    requests = None
    if result.requests is not None:
        total = result.requests.asked + result.requests.answered_before
        asked = 0 if step.cached else result.requests.asked
        requests = {
            "asked": asked,
            "answered_before": total - asked,
            "prompt_tokens": 0 if step.cached else result.requests.prompt_tokens,
            "output_tokens": 0 if step.cached else result.requests.output_tokens,
            "cached_tokens": 0 if step.cached else result.requests.cached_tokens,
            "seconds": 0.0 if step.cached else round(result.requests.seconds, 3),
        }
    return {
        "operator": step.operator,
        "cached": step.cached,
        "why": step.why,
        "rows_in": result.rows_in,
        "rows_out": result.rows_out,
        "rejected": result.rejected,
        "requests": requests,
        "seconds": 0.0 if step.cached else round(result.seconds, 3),
    }


@dataclass(slots=True)
class _Sessions:
    """Open models: at most one at a time, shared by the steps that follow each other on it."""

    stack: ExitStack = field(default_factory=ExitStack)
    name: str | None = None
    session: Session | None = None

    def get(self, name: str, opened: Callable[[], Session]) -> Session:
        if self.name != name or self.session is None:
            self.close()
            self.session = self.stack.enter_context(opened())
            self.name = name
        return self.session

    def close(self) -> None:
        self.stack.close()
        self.name = self.session = None


def run_plan(plan: Plan, work: WorkStore, open_catalog: Callable[[], Catalog], reporter: Reporter) -> RunSummary:
    """Run what has to run and commit the outputs.

    A kill at any moment loses at most the step at work, and of that no answer that was stored; the catalog changes last and at
    once. Raises TooManyMalformed, BackendError, StoreError, CatalogError.
    """
    started = time.monotonic()
    work.clear_abandoned()
    sessions = _Sessions()
    summaries: list[StepSummary] = []
    try:
        for node in plan.nodes.values():
            result = node.finished
            if result is None:
                result = _run_step_or_say_why(plan, node, work, sessions, reporter)
            summaries.append(StepSummary(node.name, node.step.operator.name, node.finished is not None, node.why, result))
    finally:
        sessions.close()
    work.remember(plan.memory, {node.name: _memory(plan, node) for node in plan.nodes.values()})
    versions: list[Version] = []
    catalog = None
    if plan.spec.outputs and plan.sample is None:
        opened = open_catalog()
        catalog = opened.root
        versions = _commit(plan, work, opened, {step.name: step for step in summaries})
    return RunSummary(plan.spec.name, summaries, versions, catalog, time.monotonic() - started)


def _run_step_or_say_why(plan: Plan, node: Node, work: WorkStore, sessions: _Sessions, reporter: Reporter) -> StepResult:
    try:
        return _run_step(plan, node, work, sessions, reporter)
    except PolarsError as error:
        place = plan.spec.document.line(("steps", node.name))
        reason = str(error).strip().split("\n")[0]
        raise PtkError(
            f"{plan.spec.document.file}:{place}: steps.{node.name}: {node.step.operator.name} failed: {reason}"
        ) from error
    except OSError as error:
        raise StoreError(
            f"step '{node.name}': {error.strerror or error} ({error.filename or work.root}); mend it and run again"
        ) from error


def _memory(plan: Plan, node: Node) -> dict[str, Any]:
    operator = node.step.operator
    return {
        "key": node.key,
        "operator": operator.name,
        "version": operator.version,
        "params": dict(node.step.written),
        "inputs": {slot: plan.nodes[source].key for slot, source in node.step.inputs.items()},
    }


def _run_step(plan: Plan, node: Node, work: WorkStore, sessions: _Sessions, reporter: Reporter) -> StepResult:
    operator = node.step.operator
    started = time.monotonic()
    reporter.begin(node.name, f"{operator.name} ({node.why})")
    inputs = [(work.frame(plan.nodes[name].key), plan.nodes[name].key_column) for name in node.step.inputs.values()]
    asked: Asked | None = None
    with work.staging() as folder:
        if isinstance(operator, Reader):
            rows_in, rejected = engine.read(node, folder, plan.sample, lambda done: reporter.advance(done, None))
        elif isinstance(operator, FrameOperator):
            rows_in, rejected = engine.decide(node, inputs, folder)
        elif isinstance(operator, Reshape):
            rows_in, rejected = engine.reshape_rows(node, inputs, folder)
        else:
            asking = asking_for(plan, node, work, lambda tally: reporter.advance(*_progress(tally)))
            asked = _ask(plan, node, asking, sessions, folder, inputs[0])
            rows_in, rejected = engine.settle(node, inputs[0], folder)
        decides = isinstance(operator, (FrameOperator, LlmOperator))
        rows_out = rows_in - sum(rejected.values())
        compacted = decides and rows_out * 2 < rows_in
        new_columns = _new_columns(folder) if decides else ()
        if compacted:
            engine.compact(inputs[0][0], new_columns, folder)
        result = StepResult(
            key=node.key,
            operator=operator.name,
            version=operator.version,
            key_column=node.key_column,
            input_key=plan.input(node).key if decides else None,
            compacted=compacted,
            rows_in=rows_in,
            rows_out=rows_out,
            rejected=rejected,
            new_columns=new_columns,
            seconds=time.monotonic() - started,
            requests=asked,
        )
        work.finish(folder, result)
    reporter.end(describe(result))
    return result


def describe(result: StepResult) -> str:
    """Return a step's counts in a few words."""
    rejected = "".join(f", {count:,} {reason}" for reason, count in result.rejected.items())
    return f"{result.rows_in:,} rows in, {result.rows_out:,} out{rejected}  ({result.seconds:.1f} s)"


def _progress(tally: Tally) -> tuple[int, int | None, str]:
    rate = f"{tally.output_tokens:,} tokens" if tally.asked else "starting the model"
    return tally.answered_before + tally.asked, tally.total, rate


def _new_columns(folder: Path) -> tuple[str, ...]:
    schema = pl.scan_parquet(folder / "decisions" / "*.parquet").collect_schema()
    return tuple(name for name in schema if name not in (KEY, REJECT, DETAIL, RAW))


def asking_for(plan: Plan, node: Node, work: WorkStore, on_progress: Callable[[Tally], None] = lambda tally: None) -> Asking:
    """Return the asking of an LLM step whose input is finished."""
    operator = node.step.operator
    assert isinstance(operator, LlmOperator)
    assert node.model is not None
    source = plan.input(node)
    settings = plan.spec.models[uses_model(node.step) or ""].settings
    return Asking(
        operator=operator,
        params=node.step.params,
        batches=lambda: engine.batches_of(keyed(work.frame(source.key), source.key_column)),
        model=node.model,
        sampling=settings.sampling,
        store=AnswerStore(work.answers, node.model.identity),
        on_progress=on_progress,
    )


def _ask(plan: Plan, node: Node, asking: Asking, sessions: _Sessions, folder: Path, about: tuple[pl.LazyFrame, str]) -> Asked:
    name = uses_model(node.step) or ""
    declared = plan.spec.models[name]
    model = node.model
    assert model is not None
    # Only the step named with --force asks again; what follows it is done again from what is stored.
    again = node.name in plan.forced and not any(source in plan.forced for source in node.step.inputs.values())
    empty = keyed(about[0], about[1]).head(0).collect()
    schema = asking.operator.collect(empty, {}, node.step.params).schema
    decisions = asking.run(lambda: sessions.get(name, lambda: declared.backend.open(declared.settings, model)), again=again)
    engine.write_decisions(decisions, schema, folder)
    tally = asking.tally
    return Asked(
        asked=tally.asked,
        answered_before=tally.answered_before,
        prompt_tokens=tally.prompt_tokens,
        output_tokens=tally.output_tokens,
        cached_tokens=tally.cached_tokens,
        seconds=tally.seconds,
    )


def _commit(plan: Plan, work: WorkStore, catalog: Catalog, steps: Mapping[str, StepSummary]) -> list[Version]:
    commits: list[Commit | Version] = []
    for entry, output in plan.spec.outputs.items():
        node = plan.nodes[output.from_]
        newest = _newest(catalog, entry)
        same = (
            newest is not None
            and newest.manifest.lineage.get("step_key") == node.key
            and newest.manifest.licence == output.licence
        )
        if same and newest is not None and set(output.tags) <= set(newest.tags) and output.from_ not in plan.forced:
            commits.append(newest)
            continue
        commits.append(
            Commit(
                entry=entry,
                data=work.frame(node.key),
                key=node.key_column,
                tags=output.tags,
                move_tags=True,
                licence=output.licence,
                lineage=_lineage(plan, node, steps),
            )
        )
    made = iter(catalog.commit_all([commit for commit in commits if isinstance(commit, Commit)]))
    return [next(made) if isinstance(commit, Commit) else commit for commit in commits]


def _newest(catalog: Catalog, entry: str) -> Version | None:
    return catalog.version(entry) if entry in catalog.entries() else None


def _lineage(plan: Plan, node: Node, steps: Mapping[str, StepSummary]) -> dict[str, Any]:
    """Return where the rows of a step come from: spec, files by digest, models, prompts, and the counts of every step before it."""
    names: list[str] = []

    def visit(name: str) -> None:
        for source in plan.nodes[name].step.inputs.values():
            visit(source)
        if name not in names:
            names.append(name)

    visit(node.name)
    nodes = [plan.nodes[name] for name in names]
    return {
        "spec": {"name": plan.spec.name, "text": plan.spec.document.text, "digest": plan.spec.digest},
        "step": node.name,
        "step_key": node.key,
        "steps": [
            {
                "name": item.name,
                "operator": item.step.operator.name,
                "version": item.step.operator.version,
                "key": item.key,
                "inputs": dict(item.step.inputs),
                "params": dict(item.step.written),
                "rows_in": steps[item.name].result.rows_in,
                "rows_out": steps[item.name].result.rows_out,
                "rejected": steps[item.name].result.rejected,
            }
            for item in nodes
        ],
        "sources": [
            {"step": item.name, "files": [path.name for path in value.paths], "sha256": canonical(value)}
            for item in nodes
            for value in (getattr(item.step.params, name) for name in type(item.step.params).model_fields)
            if isinstance(value, SourceFiles)
        ],
        "models": [
            {
                "step": item.name,
                "model": item.model.reference,
                "revision": item.model.revision,
                "identity": dict(item.model.identity),
            }
            for item in nodes
            if item.model is not None
        ],
    }
