"""What a plan will cost: rows, requests and tokens per step, exact where the inputs are finished, else from a sample."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import polars as pl

from ptk.errors import SpecError
from ptk.execute import asking_for, request_kind
from ptk.llm.request import Answer, Request
from ptk.llm.scripted import ScriptedSession, ScriptedSettings
from ptk.operator import KEY, MARKS, REJECT, AssetOperator, FrameOperator, LlmOperator, Reader, Reshape
from ptk.plan import Node, Plan
from ptk.rates import model_id, seen_rates, this_machine
from ptk.spec import uses_model
from ptk.stages import keyed, reshaped, run_stages
from ptk.work import WorkStore

__all__ = ["Cost", "estimate"]

_SAMPLE = 1_000
_TOKENISED = 64
_STAND_IN = "The user is new to this, number {}, {}, and prefers what is plain."
"""Text in the place of one that a model has yet to write."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What one step takes and gives. `exact` is false where the numbers are scaled up from a sample or hang on answers to come."""

    rows_in: int
    rows_out: int
    exact: bool
    requests: int | None = None
    answered: int | None = None
    prompt_tokens: int | None = None
    """Prompt tokens of the requests to go; None where the tokenizer is not at hand."""
    most_output_tokens: int | None = None
    shared: float | None = None
    """Share of the prompt tokens to go with which an earlier prompt began, told from a sample; None where that can't be told."""
    seconds: float | None = None
    """Time for the requests to go, the model's start included, as fast as it was here before; None where it was not seen yet."""


@dataclass(frozen=True, slots=True)
class _Rows:
    frame: pl.DataFrame
    scale: float
    exact: bool


def estimate(plan: Plan, work: WorkStore) -> dict[str, Cost]:
    """Return the cost of every step by name. Reads at most a sample of each unfinished source; loads no model, asks nothing.

    Raises SpecError where an operator fails on the sample.
    """
    costs: dict[str, Cost] = {}
    rows: dict[str, _Rows] = {}
    for node in plan.nodes.values():
        if node.finished is not None:
            costs[node.name] = _known(node)
        else:
            costs[node.name] = _estimated(plan, node, rows, work)
    return costs


def _known(node: Node) -> Cost:
    result = node.finished
    assert result is not None
    requests = result.requests.asked + result.requests.answered_before if result.requests is not None else None
    tokens = 0 if requests is not None else None
    return Cost(result.rows_in, result.rows_out, True, requests, requests, tokens, tokens)


def _rows_of(plan: Plan, name: str, rows: dict[str, _Rows], work: WorkStore) -> _Rows:
    node = plan.nodes[name]
    if name not in rows and node.finished is not None:
        total = node.finished.rows_out
        frame = work.frame(node.key).head(_SAMPLE).collect()
        rows[name] = _Rows(frame, total / frame.height if frame.height else 1.0, total == frame.height)
    return rows[name]


def _estimated(plan: Plan, node: Node, rows: dict[str, _Rows], work: WorkStore) -> Cost:
    operator = node.step.operator
    if isinstance(operator, Reader):
        return _source_cost(plan, node, rows)
    inputs = [_rows_of(plan, name, rows, work) for name in node.step.rows.values()]
    frames = [
        keyed(item.frame.lazy(), plan.nodes[name].key_column)
        for item, name in zip(inputs, node.step.rows.values(), strict=True)
    ]
    first = inputs[0]
    exact = all(item.exact for item in inputs)
    rows_in = round(first.frame.height * first.scale)
    try:
        if isinstance(operator, Reshape):
            made = reshaped(operator, frames, node.step.params, node.key_column).collect()
            if REJECT in made.columns:
                made = made.filter(pl.col(REJECT).is_null()).drop(MARKS, strict=False)
            taken = sum(item.frame.height * item.scale for item in inputs)
            scale = taken / max(1, sum(item.frame.height for item in inputs))
            rows[node.name] = _Rows(made, scale, exact)
            return Cost(round(taken), round(made.height * scale), exact)
        if isinstance(operator, AssetOperator):
            rows[node.name] = _Rows(first.frame, first.scale, first.exact)
            return Cost(rows_in, rows_in, exact)
        if isinstance(operator, FrameOperator):
            decided = run_stages(operator, frames, node.step.params).collect()
            rows[node.name] = _Rows(_decided(frames[0], decided), first.scale, exact)
            return Cost(rows_in, round(rows[node.name].frame.height * first.scale), exact)
    except pl.exceptions.PolarsError as error:
        raise SpecError([plan.spec.document.violation(node.step.place(), str(error).splitlines()[0])]) from error
    assert isinstance(operator, LlmOperator)
    return _asking_cost(plan, node, operator, first, frames[0].collect(), rows, work)


def _decided(frame: pl.LazyFrame, decided: pl.DataFrame) -> pl.DataFrame:
    new = [name for name in decided.columns if name not in MARKS]
    marks = decided.select(KEY, *new, *([REJECT] if REJECT in decided.columns else [pl.lit(None, pl.String).alias(REJECT)]))
    joined = frame.drop(new, strict=False).join(marks.lazy(), on=KEY, how="left", maintain_order="left")
    return joined.filter(pl.col(REJECT).is_null()).drop(KEY, REJECT).collect()


def _source_cost(plan: Plan, node: Node, rows: dict[str, _Rows]) -> Cost:
    assert node.source is not None
    wanted = min(plan.sample or _SAMPLE, _SAMPLE)
    taken: list[pl.DataFrame] = []
    kept = seen = 0
    more = False
    for batch in node.source.all_batches():
        good = batch.filter(pl.col(REJECT).is_null()).select(node.source.columns.names())
        if kept < wanted:
            taken.append(good.head(wanted - kept))
        kept += good.height
        seen += batch.height
        more = kept > wanted
        if plan.sample is not None and kept >= wanted:
            break
    frame = pl.concat(taken) if taken else pl.DataFrame(schema=node.source.columns)
    key, height = node.source.key, frame.height
    if node.source.on_repeat == "number":
        nth = pl.int_range(pl.len()).over(key)
        frame = frame.with_columns(pl.when(nth > 0).then(pl.format("{} {}", key, nth)).otherwise(key).alias(key))
    else:
        frame = frame.unique(key, keep="first", maintain_order=True)
        kept = round(kept * frame.height / height) if height else 0
    if plan.sample is not None:
        rows[node.name] = _Rows(frame, plan.sample / wanted if more else 1.0, plan.sample <= _SAMPLE)
    else:
        rows[node.name] = _Rows(frame, kept / frame.height if frame.height else 1.0, not more)
    given = round(frame.height * rows[node.name].scale)
    return Cost(given if plan.sample is not None else seen, given, rows[node.name].exact)


def _asking_cost(
    plan: Plan, node: Node, operator: LlmOperator, source: _Rows, frame: pl.DataFrame, rows: dict[str, _Rows], work: WorkStore
) -> Cost:
    asking = asking_for(plan, node, work)
    asking.batches = lambda: [frame]
    outstanding = asking.outstanding()
    total = asking.request_count()
    rows[node.name] = _Rows(_made_up(operator, frame, node.step.params), source.scale, False)
    declared = plan.spec.models[uses_model(node.step) or ""]
    asked = [request for _, request in zip(range(_TOKENISED), asking.to_ask(), strict=False)]
    to_go = outstanding * source.scale
    tokens, shared = _tokens(plan, node, asked, to_go)
    return Cost(
        rows_in=round(frame.height * source.scale),
        rows_out=round(frame.height * source.scale),
        exact=source.exact,
        requests=round(total * source.scale),
        answered=round((total - outstanding) * source.scale),
        prompt_tokens=tokens,
        most_output_tokens=round(to_go * declared.settings.sampling.max_tokens),
        shared=shared,
        seconds=_seconds(node, work, asked, tokens, shared, to_go),
    )


def _made_up(operator: LlmOperator, frame: pl.DataFrame, params: Any) -> pl.DataFrame:
    """Return the rows as if a model had answered, so that what asks about its answers can be counted; none is rejected for them."""
    answers: dict[tuple[str, str], Answer] = {}
    with ScriptedSession(ScriptedSettings(backend="scripted")) as session:
        for _ in range(operator.max_rounds):
            asked = {(one.row, one.slot): one for one in operator.requests(frame, answers, params)}
            fresh = [(place, one) for place, one in asked.items() if place not in answers]
            # Each as another sample, so that no two answers are the same: equal questions about them would be asked once.
            given = session.answer((str(number), replace(one, sample=number)) for number, (_, one) in enumerate(fresh))
            answers |= {fresh[int(answer.key)][0]: answer for answer in given}
            if not fresh:
                break
    decided = operator.collect(frame, answers, params)
    new = [name for name in decided.columns if name not in MARKS]
    joined = frame.drop(new, strict=False).join(decided.select(KEY, *new), on=KEY, how="left", maintain_order="left")
    return joined.drop(KEY).with_columns(
        pl.col(name).fill_null(pl.format(_STAND_IN, pl.int_range(pl.len()), pl.lit(name)))
        for name in new
        if decided.schema[name] == pl.String
    )


def _tokens(plan: Plan, node: Node, asked: list[Request], to_go: float) -> tuple[int | None, float | None]:
    """Return the prompt tokens of the requests to go, and the share of them with which an earlier prompt began."""
    declared = plan.spec.models[uses_model(node.step) or ""]
    assert node.model is not None
    if not asked:
        return 0, None
    if node.model.waits_for is not None and (node.model.path is None or "cases" in declared.made):
        return None, None
    counts = declared.backend.count_tokens(declared.settings, node.model, asked)
    if counts is None:
        return None, None
    shared = declared.backend.shared_tokens(declared.settings, node.model, asked)
    share = None if shared is None or not sum(counts) else sum(shared) / sum(counts)
    return round(sum(counts) / len(counts) * to_go), share


def _seconds(
    node: Node, work: WorkStore, asked: list[Request], tokens: int | None, shared: float | None, to_go: float
) -> float | None:
    """Return how long the requests to go will take by the rates that were seen on this machine, or None."""
    assert node.model is not None
    if not asked:
        return 0.0
    seen = seen_rates(work.rates, model_id(node.model.identity), request_kind(asked[0]), this_machine())
    if seen is None or tokens is None:
        return None
    return seen.starting + seen.seconds(tokens * (1 - (shared or 0.0)), to_go * seen.output_tokens)
