"""Gathers what a report is made from: of a finished run, from its work store, or of versions of the catalog."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
from polars.exceptions import PolarsError

from ptk.commit import lineage_of
from ptk.errors import PtkError
from ptk.publish.lineage import recorded
from ptk.report.evidence import MEASURES, Evidence, MeasureTable, base_of, merged
from ptk.study.answers import read_result

if TYPE_CHECKING:
    from ptk.plan import Node, Plan
    from ptk.work import StepResult, WorkStore
    from ptk_catalog import Catalog, Version

__all__ = ["evidence_of_run", "evidence_of_versions", "registered", "with_studies"]

_COLUMNS = ("name", "measure", "about", "value", "low", "high", "standard_error", "p_value", "p_adjusted", "n")


def with_studies(evidence: Evidence, paths: Sequence[Path]) -> Evidence:
    """Return evidence with what people answered in studies. Raises UnreadableFile."""
    results = [read_result(path) for path in paths]
    tables = [
        MeasureTable(
            f"study-{result.study}",
            "study",
            result.by,
            tuple({**dict.fromkeys((*_COLUMNS, *result.by)), **row} for row in result.rows),
            source=f"{result.source}, answered by {result.raters:,} people",
        )
        for result in results
    ]
    return replace(evidence, tables=(*evidence.tables, *tables))


def registered(plan: Plan, catalog: Catalog) -> list[Version]:
    """Return the versions that a run of the plan registered: for each output the newest whose rows its step made."""
    made_by = {entry: plan.nodes[plan.spec.sources[entry]].key for entry in plan.spec.outputs}
    found = {
        entry: next((version for version in catalog.log(entry) if version.lineage.get("step_key") == key), None)
        for entry, key in made_by.items()
        if entry in catalog.entries()
    }
    return [version for version in found.values() if version is not None]


def evidence_of_run(plan: Plan, work: WorkStore, versions: Sequence[Version] = ()) -> Evidence:
    """Return what the finished steps of a plan left behind; steps that are not finished are told by name.

    `versions` are what the run registered. Raises PtkError where no step is finished.
    """
    results: dict[str, StepResult] = {}
    for name, node in plan.nodes.items():
        finished = node.finished or plan.unfinished.get(name) or work.result(node.key)
        if finished is not None and all(source in results for source in node.step.inputs.values()):
            results[name] = finished
    if not results:
        raise PtkError(f"no step of {plan.spec.document.file} is finished; run it first: ptk run {plan.spec.document.file}")
    taken = {source for name in results for source in plan.nodes[name].step.inputs.values()}
    lineage = merged(lineage_of(plan, plan.nodes[name], results) for name in results if name not in taken)
    order = {name: number for number, name in enumerate(plan.nodes)}
    lineage["steps"].sort(key=lambda step: order[step["name"]])
    frames: dict[str, pl.LazyFrame] = {}
    tables: list[MeasureTable] = []
    axes: dict[str, None] = {}
    for base, nodes in _by_base(plan, results).items():
        cells = [node for node in nodes if node.step.cell is not None]
        named = list(dict.fromkeys(axis for node in cells for axis in node.step.cell.axes)) if cells else []  # type: ignore[union-attr]
        axes |= dict.fromkeys(named)
        axes |= dict.fromkeys(_laid_out_by(nodes[0].step.operator.name))
        frame = _together(cells or nodes, work, named)
        frames[base] = frame
        if (operator := nodes[0].step.operator.name) in MEASURES:
            first = (cells or nodes)[0]
            source = base_of(next(iter(first.step.inputs.values())))
            collected = frame.collect(engine="streaming").sort("name", *named)
            tables.append(MeasureTable.of(base, operator, collected, params=dict(first.step.written), source=source))
    return Evidence(
        name=plan.spec.name,
        of=f"A report of a run of the spec {plan.spec.name}: {len(results):,} of {len(plan.nodes):,} steps.",
        lineage=lineage,
        frames=frames,
        axes=tuple(axes),
        tables=tuple(tables),
        versions=tuple(_version(version) for version in versions),
        unfinished=tuple(name for name in plan.nodes if name not in results),
        unanswered={name: count for name, result in results.items() if (count := _unanswered(result))},
        took={name: _took(result) for name, result in results.items()},
    )


def _by_base(plan: Plan, results: Mapping[str, StepResult]) -> dict[str, list[Node]]:
    found: dict[str, list[Node]] = {}
    for name in results:
        node = plan.nodes[name]
        if not node.step.gathers:
            found.setdefault(node.step.base, []).append(node)
    return found


def _together(nodes: Sequence[Node], work: WorkStore, axes: Sequence[str]) -> pl.LazyFrame:
    """Return the rows of a step; those of the cells of a matrix with the axes' values beside."""
    if not axes:
        return work.frame(nodes[0].key)
    parts = []
    for node in nodes:
        assert node.step.cell is not None
        values = node.step.cell.axes
        frame = work.frame(node.key)
        schema = frame.collect_schema()
        parts.append(
            frame.with_columns(pl.lit(str(values[axis])).alias(axis) for axis in axes if axis in values and axis not in schema)
        )
    together = pl.concat(parts, how="diagonal_relaxed")
    try:
        together.collect_schema()
    except PolarsError as error:
        first = str(error).strip().split("\n")[0]
        raise PtkError(f"the cells of step '{nodes[0].step.base}' can't be shown together: {first}") from error
    return together


def _unanswered(result: StepResult) -> int:
    return 0 if result.requests is None else result.requests.unanswered


def _took(result: StepResult) -> dict[str, Any]:
    asked = result.requests
    return {
        "seconds": round(result.seconds, 1),
        "requests": None if asked is None else asked.asked + asked.answered_before,
        "prompt_tokens": None if asked is None else asked.prompt_tokens,
        "output_tokens": None if asked is None else asked.output_tokens,
    }


def evidence_of_versions(catalog: Catalog, references: Sequence[str]) -> Evidence:
    """Return what versions of the catalog hold, and what it knows of how they were made. Raises CatalogError."""
    versions = [catalog.version(reference) for reference in references]
    lineages = [recorded(version) for version in versions]
    lineage = merged(lineages)
    frames: dict[str, pl.LazyFrame] = {}
    tables: list[MeasureTable] = []
    for version, own in zip(versions, lineages, strict=True):
        if version.kind == "model":
            continue
        steps = {step["name"]: step for step in own["steps"]}
        made_by = str(own["step"] or version.entry)
        dataset = catalog.load(version.reference)
        step = steps.get(made_by)
        operators = {step["operator"]} if step is not None else set()
        if step is not None and step["operator"] == "concat_rows" and base_of(made_by) == made_by:
            operators = {steps[source]["operator"] for source in step["inputs"].values() if source in steps}
        operator = next(iter(operators)) if len(operators) == 1 else ""
        base = base_of(made_by)
        if operator in MEASURES:
            table = dataset.collect().sort("name")
            source = next((base_of(name) for name in (step or {"inputs": {}})["inputs"].values()), None)
            params = (step or {}).get("params", {})
            tables.append(MeasureTable.of(base, operator, table, key=dataset.manifest.key[0], params=params, source=source))
        else:
            frames[base if base not in frames else version.reference] = dataset.scan()
    return Evidence(
        name=" and ".join(version.reference for version in versions),
        of=f"A report of {', '.join(version.reference for version in versions)} as the catalog has {'it' if len(versions) == 1 else 'them'}.",
        lineage=lineage,
        frames=frames,
        axes=tuple(_axes(lineage)),
        tables=tuple(tables),
        versions=tuple(_version(version) for version in versions),
    )


def _axes(lineage: Mapping[str, Any]) -> list[str]:
    """Return the axes of matrices whose cells were put together on the way, and what rows were laid out by."""
    found: dict[str, None] = {}
    for step in lineage["steps"]:
        values = step.get("params", {}).get("values") if step["operator"] == "concat_rows" else None
        found |= dict.fromkeys(values if isinstance(values, Mapping) else ())
        found |= dict.fromkeys(_laid_out_by(step["operator"]))
    return list(found)


def _laid_out_by(operator: str) -> tuple[str, ...]:
    """Return the column by which an operator lays rows out, one row for each value: it tells cells apart as an axis does."""
    return ("inference",) if operator == "assign_personas" else ()


def _version(version: Version) -> dict[str, Any]:
    return {
        "reference": version.reference,
        "rows": version.rows,
        "licence": version.licence,
        "digest": version.digest,
    }
