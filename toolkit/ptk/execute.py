"""Runs a plan: steps one after another into the work store, then every output into the catalog, all or none."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import polars as pl
from polars.exceptions import PolarsError

from ptk.budget import Budget, BudgetExceeded
from ptk.commit import commit_outputs
from ptk.delivery import deliver
from ptk.engines.engine import Counts, Engine, Input, batches_of, new_columns, settle, write_aligned, write_batches
from ptk.engines.polars import PolarsEngine
from ptk.errors import ModelNotFound, PtkError, StoreError
from ptk.llm.answers import AnswerStore
from ptk.llm.ask import Asking, Tally
from ptk.llm.backend import with_adapters
from ptk.llm.request import Request
from ptk.memory import peak_memory
from ptk.operator import KEY, AssetOperator, FrameOperator, LlmOperator, Reader, Reshape
from ptk.params import OutputFolder
from ptk.places import Place, listed
from ptk.plan import Node, Plan, model_roots
from ptk.progress import Reporter
from ptk.rates import Kind, Rate, model_id, note_rate, this_machine
from ptk.spec import uses_model
from ptk.stages import keyed
from ptk.work import Asked, Layer, StepResult, WorkStore

if TYPE_CHECKING:
    from ptk.llm.backend import Session
    from ptk_catalog import Catalog, Version

__all__ = ["CellsFailed", "RunSummary", "StepSummary", "asking_for", "request_kind", "run_order", "run_plan"]

_COUNTED = 64
"""Requests whose tokens are counted to tell those of all."""


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
    failed: Mapping[str, str] = field(default_factory=dict)
    """Cells that failed, each with what went wrong."""
    skipped: tuple[str, ...] = ()
    """Steps that need what failed."""

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
            "failed": dict(self.failed),
            "skipped": list(self.skipped),
        }


class CellsFailed(PtkError):
    """Cells of a matrix failed; all that does not need them is finished, and nothing was registered. Carries the summary."""

    def __init__(self, summary: RunSummary) -> None:
        self.summary = summary
        failed = "".join(f"\n  {name}: {what}" for name, what in summary.failed.items())
        skipped = f"\n  not run, since they need what failed: {', '.join(summary.skipped)}" if summary.skipped else ""
        super().__init__(
            f"{len(summary.failed):,} cell{'s' if len(summary.failed) > 1 else ''} failed and nothing was registered; what is "
            f"finished is kept:{failed}{skipped}\nMend what failed and run the same command again; only these steps are left to do."
        )


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
            "unanswered": result.requests.unanswered,
            "truncated": result.requests.truncated,
            "seconds": 0.0 if step.cached else round(result.requests.seconds, 3),
            "took": _took(result.requests),
        }
    return {
        "operator": step.operator,
        "cached": step.cached,
        "why": step.why,
        "rows_in": result.rows_in,
        "rows_out": result.rows_out,
        "rejected": result.rejected,
        "flagged": result.flagged,
        "facts": result.facts,
        "requests": requests,
        "seconds": 0.0 if step.cached else round(result.seconds, 3),
    }


def _took(asked: Asked) -> dict[str, Any] | None:
    """Return what asking took when the step ran, in this run or an earlier one; None where all was answered before."""
    if not asked.asked:
        return None
    seconds = asked.seconds or None
    return {
        "requests": asked.asked,
        "seconds": round(asked.seconds, 3),
        "starting_seconds": round(asked.starting, 3),
        "prompt_tokens_per_second": seconds and round(asked.prompt_tokens / seconds, 1),
        "output_tokens_per_second": seconds and round(asked.output_tokens / seconds, 1),
        "cached_share": round(asked.cached_tokens / asked.prompt_tokens, 4) if asked.prompt_tokens else None,
        "peak_bytes": asked.peak_bytes,
        "engine_peak_bytes": asked.engine_peak_bytes,
    }


@dataclass(slots=True)
class _Sessions:
    """Open engines: at most one at a time, shared by the steps that follow each other on it; and what may be asked of them."""

    budget: Budget
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


def run_plan(
    plan: Plan,
    work: WorkStore,
    open_catalog: Callable[[], Catalog],
    reporter: Reporter,
    engine: Engine | None = None,
    budget: Budget | None = None,
) -> RunSummary:
    """Run what has to run and commit the outputs.

    A kill at any moment loses at most the step at work, and of that no answer that was stored; the catalog changes last and at
    once. The engine is Polars on this machine unless another is given. A cell of a matrix that fails stops only what needs it;
    the others are finished before CellsFailed is raised. Raises BudgetExceeded, TooManyMalformed, BackendError, StoreError,
    CatalogError.
    """
    started = time.monotonic()
    engine = engine or PolarsEngine()
    work.clear_abandoned()
    sessions = _Sessions(budget=budget or Budget())
    done: dict[str, StepSummary] = {}
    failed: dict[str, str] = {}
    skipped: list[str] = []
    made: dict[str, StepResult] = {}
    files = ExitStack()
    try:
        for name in [node.name for node in run_order(plan)]:
            node = plan.nodes[name]
            if any(source in failed or source in skipped for source in node.step.inputs.values()):
                skipped.append(node.name)
                continue
            if node.model is not None and node.model.waits_for is not None:
                node = _with_its_model(plan, node, work, files)
                plan = replace(plan, nodes={**plan.nodes, name: node})
            # Two steps of one key do the same: once is enough.
            result = node.finished or made.get(node.key)
            if result is None:
                try:
                    result = made[node.key] = _run_step_or_say_why(plan, node, work, engine, sessions, reporter)
                except (BudgetExceeded, StoreError):
                    raise
                except PtkError as error:
                    if node.step.cell is None:
                        raise
                    sessions.close()  # what is left of a model that failed is of no use to the others
                    failed[node.name] = str(error)
                    reporter.end("failed; going on with what does not need it")
                    continue
            if result.asset:
                _deliver(plan, node, work)
            done[node.name] = StepSummary(node.name, node.step.operator.name, node.finished is not None, node.why, result)
    finally:
        sessions.close()
        files.close()
    _remember(plan, work, done)
    summaries = [done[name] for name in plan.nodes if name in done]
    if failed:
        left_out = tuple(name for name in plan.nodes if name in skipped)
        raise CellsFailed(RunSummary(plan.spec.name, summaries, [], None, time.monotonic() - started, failed, left_out))
    versions: list[Version] = []
    catalog = None
    if plan.spec.outputs and plan.sample is None:
        opened = open_catalog()
        catalog = opened.root
        versions = commit_outputs(plan, work, opened, {name: step.result for name, step in done.items()})
    return RunSummary(plan.spec.name, summaries, versions, catalog, time.monotonic() - started)


def run_order(plan: Plan) -> list[Node]:
    """Return the steps in the order in which they run: each after its inputs, and what asks one model together.

    A model is loaded for one stretch of steps, so what can be done without another model is done first.
    """
    left = dict(plan.nodes)
    order: list[Node] = []
    loaded: str | None = None
    while left:
        ready = [node for node in left.values() if not any(source in left for source in node.step.inputs.values())]
        node = next((node for node in ready if _asks(node) in (None, loaded)), ready[0])
        loaded = _asks(node) or loaded
        order.append(left.pop(node.name))
    return order


def _with_its_model(plan: Plan, node: Node, work: WorkStore, files: ExitStack) -> Node:
    """Return the node of a step whose model's files are there by now, with that model. Raises PtkError where they are not right."""
    declared = plan.spec.models[uses_model(node.step) or ""]
    folders = {
        reference: files.enter_context(work.asset(plan.nodes[node.step.inputs[declared.slot(option)]].key))
        for option, reference in declared.made.items()
    }
    try:
        model = declared.resolve(model_roots(plan.spec, folders))
    except ModelNotFound as error:
        line = plan.spec.document.line(("models", declared.name, error.option))
        raise PtkError(f"{plan.spec.document.file}:{line}: models.{declared.name}.{error.option}: {error}") from error
    return replace(node, model=model)


def _asks(node: Node) -> str | None:
    """Return what a step needs loaded: a name that steps share which are answered by one engine."""
    if node.finished is not None or node.model is None:
        return None
    name = uses_model(node.step) or ""
    return node.model.engine or f"{name} {model_id(node.model.identity)}"


def _run_step_or_say_why(
    plan: Plan, node: Node, work: WorkStore, engine: Engine, sessions: _Sessions, reporter: Reporter
) -> StepResult:
    try:
        return _run_step(plan, node, work, engine, sessions, reporter)
    except PolarsError as error:
        place = plan.spec.document.line(node.step.place())
        reason = str(error).strip().split("\n")[0]
        raise PtkError(
            f"{plan.spec.document.file}:{place}: steps.{node.name}: {node.step.operator.name} failed: {reason}"
        ) from error
    except OSError as error:
        raise StoreError(
            f"step '{node.name}': {error.strerror or error} ({error.filename or work.root}); mend it and run again"
        ) from error


def _remember(plan: Plan, work: WorkStore, done: Mapping[str, StepSummary]) -> None:
    before = work.remembered(plan.memory)
    noted = {name: _memory(plan, plan.nodes[name]) if name in done else before.get(name) for name in plan.nodes}
    work.remember(plan.memory, {name: memory for name, memory in noted.items() if memory is not None})


def _memory(plan: Plan, node: Node) -> dict[str, Any]:
    operator = node.step.operator
    return {
        "key": node.key,
        "operator": operator.name,
        "version": operator.version,
        "params": dict(node.step.written),
        "inputs": {slot: plan.nodes[source].key for slot, source in node.step.inputs.items()},
    }


def _run_step(plan: Plan, node: Node, work: WorkStore, engine: Engine, sessions: _Sessions, reporter: Reporter) -> StepResult:
    operator = node.step.operator
    started = time.monotonic()
    reporter.begin(node.name, f"{operator.name} ({node.why})")
    inputs = [_input(plan.nodes[name], work) for name in node.step.rows.values()]
    asked: Asked | None = None
    facts: Mapping[str, Any] = {}
    decision: pl.DataFrame | None = None
    with work.staging(shared=engine.is_distributed) as folder:
        if isinstance(operator, Reader):
            counts = engine.read(node, folder, plan.sample, lambda done: reporter.advance(done, None))
        elif isinstance(operator, FrameOperator):
            counts = engine.decide(node, inputs, folder)
        elif isinstance(operator, Reshape):
            counts = engine.reshape(node, inputs, folder)
        elif isinstance(operator, AssetOperator):
            (folder / "files").mkdir()
            if node.model is not None:
                sessions.close()  # it loads a model itself
            made = engine.write_files(node, inputs, folder / "files", reporter.advance)
            facts, decision = made if isinstance(made, tuple) else (made, None)
            counts = Counts(inputs[0].height)
            if decision is not None:
                decided_rows = inputs[0].scan().select(KEY)
                write_aligned(decided_rows, decision.lazy(), folder / "decisions" / "part-00000.parquet")
                counts = settle(node, folder, inputs[0].height)
        else:
            asking = asking_for(plan, node, work, lambda tally: reporter.advance(*_progress(tally)))
            asked = _ask(plan, node, work, asking, engine, sessions, folder)
            counts = settle(node, folder, inputs[0].height)
            assert isinstance(operator, LlmOperator)
            if operator.report is not None:
                facts = operator.report(_decided(inputs[0], folder), node.step.params)
        rows_out = counts.rows - sum(counts.rejected.values()) if counts.made is None else counts.made
        decides = isinstance(operator, (FrameOperator, LlmOperator)) or decision is not None
        added = new_columns(folder) if decides else ()
        compacted = decides and rows_out * 2 < counts.rows
        if compacted:
            below = inputs[0].rows
            engine.compact(Input(replace(below, layers=(*below.layers, _layer(folder))), node.key_column, rows_out), folder)
        result = StepResult(
            key=node.key,
            operator=operator.name,
            version=operator.version,
            key_column=node.key_column,
            input_key=plan.input(node).key if decides or isinstance(operator, AssetOperator) else None,
            compacted=compacted,
            asset=isinstance(operator, AssetOperator),
            rows_in=counts.rows,
            rows_out=rows_out,
            rejected=dict(counts.rejected),
            flagged=dict(counts.flagged),
            new_columns=added,
            facts=dict(facts),
            seconds=time.monotonic() - started,
            requests=asked,
        )
        work.finish(folder, result)
    reporter.end(describe(result))
    return result


def _layer(folder: Place) -> Layer:
    return Layer(tuple(map(str, listed(folder / "decisions", "*.parquet"))), new_columns(folder), True)


def _decided(item: Input, folder: Place) -> pl.LazyFrame:
    rows = replace(item.rows, layers=(*item.rows.layers, _layer(folder)))
    return keyed(rows.scan_decided(), item.key)


def _input(source: Node, work: WorkStore) -> Input:
    result = work.result(source.key)
    return Input(work.rows(source.key), source.key_column, result.rows_out if result is not None else 0)


def _deliver(plan: Plan, node: Node, work: WorkStore) -> None:
    for name in type(node.step.params).model_fields:
        target = getattr(node.step.params, name)
        if isinstance(target, OutputFolder):
            with work.asset(node.key) as files:
                deliver(files, target.path, f"step '{node.name}' of spec '{plan.spec.name}'")


def describe(result: StepResult) -> str:
    """Return a step's counts in a few words."""
    rejected = "".join(f", {count:,} {reason}" for reason, count in result.rejected.items())
    flagged = "".join(f", {count:,} flagged {flag}" for flag, count in result.flagged.items())
    return f"{result.rows_in:,} rows in, {result.rows_out:,} out{rejected}{flagged}  ({result.seconds:.1f} s)"


def _progress(tally: Tally) -> tuple[int, int | None, str]:
    rate = f"{tally.output_tokens:,} tokens" if tally.asked else "starting the model"
    return tally.answered_before + tally.asked, tally.total, rate


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
        batches=lambda: batches_of(keyed(work.frame(source.key), source.key_column)),
        model=node.model,
        sampling=settings.sampling,
        store=AnswerStore(work.answers, node.model.identity),
        on_progress=on_progress,
    )


def _ask(plan: Plan, node: Node, work: WorkStore, asking: Asking, engine: Engine, sessions: _Sessions, folder: Place) -> Asked:
    name = uses_model(node.step) or ""
    declared = plan.spec.models[name]
    model = node.model
    assert model is not None
    # Only the step named with --force asks again; what follows it is done again from what is stored.
    again = node.name in plan.forced and not any(source in plan.forced for source in node.step.inputs.values())
    empty = keyed(pl.LazyFrame(schema=plan.input(node).schema), plan.input(node).key_column).collect()
    schema = asking.operator.collect(empty, {}, node.step.params).schema

    others = [
        other.model for other in plan.nodes.values() if other.model is not None and isinstance(other.step.operator, LlmOperator)
    ]
    sharing = with_adapters(model, others)
    # An engine makes room for adapters when it is started, and steps may have made some since.
    session = f"{_asks(node)} {sharing.adapters}"

    def opened() -> Session:
        return engine.session(declared, sharing)

    asking.allow = lambda requests: sessions.budget.take(node.name, requests, _most_tokens(plan, node, asking, requests))
    write_batches(asking.batches(), asking.run(lambda: sessions.get(session, opened), again=again), schema, folder)
    tally = asking.tally
    peak = peak_memory()
    if isinstance(engine, PolarsEngine) and tally.asked:
        _note_rate(work, node, asking)
    return Asked(
        asked=tally.asked,
        answered_before=tally.answered_before,
        prompt_tokens=tally.prompt_tokens,
        output_tokens=tally.output_tokens,
        cached_tokens=tally.cached_tokens,
        seconds=tally.seconds,
        starting=tally.starting,
        peak_bytes=peak.own,
        engine_peak_bytes=peak.children if tally.asked else None,
        unanswered=tally.unanswered,
        truncated=tally.truncated,
    )


def _note_rate(work: WorkStore, node: Node, asking: Asking) -> None:
    """Note how fast the model answered. What a cluster's workers do says nothing about this machine."""
    assert node.model is not None
    first = next(iter(asking.first_requests()), None)
    if first is not None:
        tally = asking.tally
        rate = Rate(
            model=model_id(node.model.identity),
            kind=request_kind(first),
            machine=this_machine(),
            requests=tally.asked,
            computed_tokens=tally.prompt_tokens - tally.cached_tokens,
            output_tokens=tally.output_tokens,
            seconds=tally.seconds,
            starting=tally.starting,
        )
        note_rate(work.rates, rate)


def request_kind(request: Request) -> Kind:
    """Return what decides, beside the model, how fast a request is answered."""
    return "scored" if request.scored else "constrained" if request.constraint is not None else "written"


def _most_tokens(plan: Plan, node: Node, asking: Asking, requests: int) -> int:
    """Return the most tokens that requests can take, prompt and answer; prompts are counted on a sample."""
    declared = plan.spec.models[uses_model(node.step) or ""]
    assert node.model is not None
    sample = list(itertools.islice(asking.first_requests(), _COUNTED))
    counts = declared.backend.count_tokens(declared.settings, node.model, sample)
    if counts is None:  # no tokenizer at hand: three characters a token are few in any language with spaces
        counts = [sum(len(message.content) for message in request.messages) // 3 for request in sample]
    answers = [1 if request.scored else asking.sampling.max_tokens for request in sample]
    return round(requests * (sum(counts) + sum(answers)) / max(1, len(sample)))
