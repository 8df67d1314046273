"""What a step's model is shown for one row: the requests, and each as the very text that the model continues."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import polars as pl

from ptk.errors import PtkError
from ptk.execute import asking_for
from ptk.llm.request import Request, request_key
from ptk.operator import KEY, LlmOperator
from ptk.plan import Node, Plan
from ptk.spec import uses_model
from ptk.stages import keyed
from ptk.work import WorkStore

__all__ = ["Shown", "requests_of"]


@dataclass(frozen=True, slots=True)
class Shown:
    """A request of a row, and the text that the model is given; None where the backend leaves that to a server."""

    step: str
    request: Request
    key: str
    text: str | None

    def as_json(self) -> dict[str, Any]:
        """Return the request as plain data."""
        request = self.request
        return {
            "step": self.step,
            "row": request.row,
            "slot": request.slot,
            "key": self.key,
            "messages": [{"role": message.role, "content": message.content} for message in request.messages],
            "prefill": request.prefill,
            "constraint": None if request.constraint is None else [request.constraint.kind, request.constraint.value],
            "scored": list(request.scored),
            "sampling": request.sampling.model_dump(),
            "text": self.text,
        }


def requests_of(plan: Plan, work: WorkStore, step: str, row: str | None) -> list[Shown]:
    """Return what a step first asks about the row of that key, by default about its first row. Asks nothing.

    For a step with a matrix, what each of its cells asks. Raises PtkError where the step asks no model, its input is not
    finished, or there is no such row.
    """
    return [shown for node in plan.named(step) for shown in _of_cell(plan, work, node, row)]


def _of_cell(plan: Plan, work: WorkStore, node: Node, row: str | None) -> list[Shown]:
    step = node.name
    if not isinstance(node.step.operator, LlmOperator) or node.model is None:
        raise PtkError(f"step '{step}' ({node.step.operator.name}) asks no model")
    if node.model.waits_for is not None:
        raise PtkError(f"step '{step}' asks a model that step '{node.model.waits_for}' has yet to make; run the spec first")
    source = plan.finished(plan.input(node))
    frame = keyed(work.frame(source.key), source.key_column)
    found = frame.head(1) if row is None else frame.filter(pl.col(KEY).str.starts_with(row)).head(2)
    rows = found.collect()
    if rows.height != 1:
        which = "" if row is None else f" whose {source.key_column} begins with '{row}'"
        raise PtkError(f"step '{step}' is given {'several rows' if rows.height else 'no row'}{which}")
    asking = asking_for(plan, node, work)
    asking.batches = lambda: [rows]
    declared = plan.spec.models[uses_model(node.step) or ""]
    return [
        Shown(
            node.name,
            request,
            request_key(request, node.model.identity),
            declared.backend.prompt_text(declared.settings, node.model, request),
        )
        for request in asking.first_requests()
    ]
