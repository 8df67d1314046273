"""What a plan will cost: rows, requests and tokens per step, exact where the inputs are finished, else from a sample."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from ptk.errors import SpecError
from ptk.execute import asking_for
from ptk.llm.request import Request
from ptk.operator import DETAIL, KEY, RAW, REJECT, FrameOperator, LlmOperator, Reader, Reshape
from ptk.plan import Node, Plan, keyed
from ptk.spec import uses_model
from ptk.work import WorkStore

__all__ = ["Cost", "estimate"]

_SAMPLE = 1_000
_TOKENISED = 64


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
    inputs = [_rows_of(plan, name, rows, work) for name in node.step.inputs.values()]
    frames = [
        keyed(item.frame.lazy(), plan.nodes[name].key_column)
        for item, name in zip(inputs, node.step.inputs.values(), strict=True)
    ]
    first = inputs[0]
    exact = all(item.exact for item in inputs)
    rows_in = round(first.frame.height * first.scale)
    try:
        if isinstance(operator, Reshape):
            made = operator.function(*frames, node.step.params).collect()
            rows[node.name] = _Rows(made, first.scale, exact)
            return Cost(round(made.height * first.scale), round(made.height * first.scale), exact)
        if isinstance(operator, FrameOperator):
            decision = operator.function(*frames, node.step.params).collect()
            rows[node.name] = _Rows(_decided(frames[0], decision), first.scale, exact)
            return Cost(rows_in, round(rows[node.name].frame.height * first.scale), exact)
    except pl.exceptions.PolarsError as error:
        raise SpecError([plan.spec.document.violation(("steps", node.name), str(error).splitlines()[0])]) from error
    assert isinstance(operator, LlmOperator)
    return _asking_cost(plan, node, operator, first, frames[0].collect(), rows, work)


def _decided(frame: pl.LazyFrame, decision: pl.DataFrame) -> pl.DataFrame:
    new = [name for name in decision.columns if name not in (KEY, REJECT, DETAIL, RAW)]
    marks = decision.select(KEY, *new, *([REJECT] if REJECT in decision.columns else [pl.lit(None, pl.String).alias(REJECT)]))
    joined = frame.drop(new, strict=False).join(marks.lazy(), on=KEY, how="left", maintain_order="left")
    return joined.filter(pl.col(REJECT).is_null()).drop(KEY, REJECT).collect()


def _source_cost(plan: Plan, node: Node, rows: dict[str, _Rows]) -> Cost:
    assert node.source is not None
    wanted = min(plan.sample or _SAMPLE, _SAMPLE)
    taken: list[pl.DataFrame] = []
    kept = seen = 0
    more = False
    for batch in node.source.batches():
        good = batch.filter(pl.col(REJECT).is_null()).select(node.source.columns.names())
        if kept < wanted:
            taken.append(good.head(wanted - kept))
        kept += good.height
        seen += batch.height
        more = kept > wanted
        if plan.sample is not None and kept >= wanted:
            break
    frame = pl.concat(taken) if taken else pl.DataFrame(schema=node.source.columns)
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
    schema = operator.collect(frame.head(0), {}, node.step.params).schema
    new = [name for name in schema if name not in (KEY, REJECT, DETAIL, RAW)]
    given = frame.drop(KEY).with_columns(pl.lit(None, schema[name]).alias(name) for name in new)
    rows[node.name] = _Rows(given, source.scale, False)
    declared = plan.spec.models[uses_model(node.step) or ""]
    asked = [request for _, request in zip(range(_TOKENISED), asking.to_ask(), strict=False)]
    return Cost(
        rows_in=round(frame.height * source.scale),
        rows_out=round(frame.height * source.scale),
        exact=source.exact,
        requests=round(total * source.scale),
        answered=round((total - outstanding) * source.scale),
        prompt_tokens=_tokens(plan, node, asked, outstanding * source.scale),
        most_output_tokens=round(outstanding * source.scale * declared.settings.sampling.max_tokens),
    )


def _tokens(plan: Plan, node: Node, asked: list[Request], outstanding: float) -> int | None:
    declared = plan.spec.models[uses_model(node.step) or ""]
    assert node.model is not None
    if not asked:
        return 0
    counts = declared.backend.count_tokens(declared.settings, node.model, asked)
    return None if counts is None else round(sum(counts) / len(counts) * outstanding)
