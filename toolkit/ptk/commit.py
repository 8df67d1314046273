"""Registers what a run made: every output as a version in the catalog, all or none, with where its rows come from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from ptk.llm.prompt_files import ExemplarFile, PromptSetting
from ptk.operator import AssetOperator, Reader, Reshape
from ptk.ops.catalog_rows import CatalogEntry
from ptk.params import SourceFiles, canonical
from ptk.plan import Node, Plan
from ptk.spec import uses_model
from ptk.work import StepResult, WorkStore
from ptk_catalog import Commit, ModelCommit

if TYPE_CHECKING:
    from ptk_catalog import Catalog, Version

__all__ = ["commit_outputs", "lineage_of"]


def commit_outputs(plan: Plan, work: WorkStore, catalog: Catalog, results: Mapping[str, StepResult]) -> list[Version]:
    """Commit the outputs of a plan whose steps are finished; return their versions in the order of the spec.

    An output is not committed again where its newest version was made by the same step. Raises CatalogError.
    """
    commits: list[Commit | ModelCommit | Version] = []
    folders = ExitStack()
    for entry, output in plan.spec.outputs.items():
        node = plan.nodes[plan.spec.sources[entry]]
        newest = _newest(catalog, entry)
        same = newest is not None and newest.lineage.get("step_key") == node.key and newest.licence == output.licence
        if same and newest is not None and set(output.tags) <= set(newest.tags) and not plan.done_again(node.name):
            commits.append(newest)
            continue
        if output.kind == "model":
            commits.append(_model_commit(plan, node, catalog, results, entry, folders.enter_context(work.asset(node.key))))
            continue
        base, columns = _base(plan, node, catalog, results) or (None, list(node.schema))
        frame = work.frame(node.key)
        commits.append(
            Commit(
                entry=entry,
                data=frame if base is None else frame.select(columns),
                key=node.key_column,
                base=None if base is None else base.reference,
                drop=() if base is None else tuple(name for name in base.dataset.schema if name not in node.schema),
                parents=list(
                    dict.fromkeys([*(item.reference for item in _entries(plan, node, catalog)), *_models(plan, node, catalog)])
                ),
                tags=output.tags,
                move_tags=True,
                licence=output.licence,
                lineage=lineage_of(plan, node, results),
                places=None if base is not None else _places(plan, node, work),
            )
        )
    with folders:
        made = iter(catalog.commit_all([commit for commit in commits if isinstance(commit, (Commit, ModelCommit))]))
        return [next(made) if isinstance(commit, (Commit, ModelCommit)) else commit for commit in commits]


def _model_commit(
    plan: Plan, node: Node, catalog: Catalog, results: Mapping[str, StepResult], entry: str, folder: Path
) -> ModelCommit:
    """Return the commit of the model that a step made, with what its facts say of it."""
    output = plan.spec.outputs[entry]
    facts = results[node.name].facts
    made = facts.get("made") or {}
    versions = list(dict.fromkeys(_models(plan, node, catalog)))
    return ModelCommit(
        entry=entry,
        folder=folder,
        base_model=made.get("base"),
        base_revision=made.get("base_revision"),
        trained_on=list(dict.fromkeys(item.reference for item in _entries(plan, node, catalog))),
        metrics={name: value for name, value in (facts.get("metrics") or {}).items() if value is not None},
        facts={name: facts[name] for name in ("made", "rows", "cut", "settings") if name in facts},
        parents=versions,
        tags=output.tags,
        move_tags=True,
        licence=output.licence,
        lineage=lineage_of(plan, node, results),
    )


def _places(plan: Plan, node: Node, work: WorkStore) -> pl.LazyFrame | None:
    """Return where the rows of an output were read, by key, as far as readers before it know it."""
    found = [
        places
        for item in _steps(plan, node)
        if item.source is not None
        and item.key_column == node.key_column
        and item.schema[item.key_column] == node.schema[node.key_column]
        and (places := work.places(item.key)) is not None
    ]
    return pl.concat(found) if found else None


def _newest(catalog: Catalog, entry: str) -> Version | None:
    return catalog.version(entry) if entry in catalog.entries() else None


def _base(plan: Plan, node: Node, catalog: Catalog, results: Mapping[str, StepResult]) -> tuple[CatalogEntry, list[str]] | None:
    """Return the catalog version whose files an output can share, and the columns that it does not have as they are.

    That is where every step from the reader to the output decides about the reader's rows, and most of the rows are still there.
    """
    changed: set[str] = set()
    at = node
    while not isinstance(at.step.operator, Reader):
        if isinstance(at.step.operator, Reshape):
            return None
        if not isinstance(at.step.operator, AssetOperator):
            changed.update(results[at.name].new_columns)
        at = plan.input(at)
    entry = getattr(at.step.params, "entry", None)
    if at.source is None or not at.source.unchanged or not isinstance(entry, CatalogEntry):
        return None
    if not _is_in(entry, catalog) or entry.key != (node.key_column,):
        return None
    stored = sum(part.rows for part in entry.dataset.manifest.groups[0].parts)
    if results[node.name].rows_out * 2 < stored:
        return None  # readers would read the others each time
    shared = at.source.unchanged - changed
    return entry, [name for name in node.schema if name == node.key_column or name not in shared]


def _is_in(entry: CatalogEntry, catalog: Catalog) -> bool:
    return entry.dataset.storage.root == catalog.root


def _steps(plan: Plan, node: Node) -> list[Node]:
    """Return a step and all that it follows from, each after its inputs."""
    names: list[str] = []

    def visit(name: str) -> None:
        if name not in names:
            for source in plan.nodes[name].step.inputs.values():
                visit(source)
            names.append(name)

    visit(node.name)
    return [plan.nodes[name] for name in names]


def _entries(plan: Plan, node: Node, catalog: Catalog) -> Iterator[CatalogEntry]:
    """Yield the versions of this catalog that a step's rows were made from, its own rows' first."""
    for item in _steps(plan, node):
        for _, value in _settings(item):
            if isinstance(value, CatalogEntry) and _is_in(value, catalog):
                yield value


def _models(plan: Plan, node: Node, catalog: Catalog) -> Iterator[str]:
    """Yield the versions of this catalog that are models which a step's rows were made with."""
    for item in _steps(plan, node):
        for version in item.model.versions if item.model is not None else ():
            if version.catalog == catalog.root:
                yield version.reference


def _settings(node: Node) -> Iterator[tuple[str, Any]]:
    for name in type(node.step.params).model_fields:
        yield name, getattr(node.step.params, name)


def lineage_of(plan: Plan, node: Node, results: Mapping[str, StepResult]) -> dict[str, Any]:
    """Return where the rows of a step come from: spec, files by digest, models, prompts, and the counts of every step before it."""
    nodes = _steps(plan, node)
    return {
        "spec": {"name": plan.spec.name, "text": plan.spec.document.text, "digest": plan.spec.digest},
        "step": node.name,
        "step_key": node.key,
        "steps": [_step(plan, item, results[item.name]) for item in nodes],
        "sources": [
            {"step": item.name, "files": [path.name for path in value.paths], "sha256": canonical(value)}
            for item in nodes
            for _, value in _settings(item)
            if isinstance(value, SourceFiles)
        ],
        "origins": [
            {"step": item.name, **item.source.origin} for item in nodes if item.source is not None and item.source.origin
        ],
        "licences": [licence for item in nodes for licence in _licences(item)],
        "models": [
            {
                "step": item.name,
                "model": item.model.reference,
                "revision": item.model.revision,
                "identity": dict(item.model.identity),
                "versions": [{"version": version.reference, "digest": version.digest} for version in item.model.versions],
                "sampling": canonical(plan.spec.models[name].settings.sampling),
            }
            for item in nodes
            if item.model is not None and (name := uses_model(item.step)) is not None
        ],
        "prompts": [
            {
                "step": item.name,
                "option": option,
                "name": Path(value.written).name,
                "sha256": value.canonical(),
                "content": _content(value),
            }
            for item in nodes
            for option, value in _settings(item)
            if isinstance(value, (PromptSetting, ExemplarFile))
        ],
    }


def _step(plan: Plan, node: Node, result: StepResult) -> dict[str, Any]:
    decides = not isinstance(node.step.operator, (Reader, Reshape, AssetOperator))
    return {
        "name": node.name,
        "operator": node.step.operator.name,
        "version": node.step.operator.version,
        "key": node.key,
        "inputs": dict(node.step.inputs),
        "params": dict(node.step.written),
        # What decides rows reads the columns of its input; what makes rows, makes all of theirs.
        "columns": list(result.new_columns) if decides else [] if result.asset else list(node.schema),
        "rows_in": result.rows_in,
        "rows_out": result.rows_out,
        "rejected": result.rejected,
        "flagged": result.flagged,
        "facts": result.facts,
    }


def _licences(node: Node) -> Iterator[dict[str, Any]]:
    """Yield the licences and terms of what a reader read: as the spec says, and as versions of the catalog carry them."""
    params = node.step.params
    said = {name: getattr(params, name, None) for name in ("licence", "terms")}
    for option, value in _settings(node):
        if isinstance(value, CatalogEntry):
            version = value.dataset.version
            licence = said["licence"] or version.licence
            yield {"step": node.name, "source": value.reference, "licence": licence, "terms": said["terms"]}
            # What the version itself was made from binds too.
            yield from ({**before, "step": node.name} for before in version.lineage.get("licences", []))
        elif isinstance(value, SourceFiles):
            yield {"step": node.name, "source": str(node.step.written.get(option, option)), **said}
    if node.source is not None and "entry" not in node.source.origin and node.source.origin:
        yield {"step": node.name, "source": str(next(iter(node.source.origin.values()))), **said}


def _content(value: PromptSetting | ExemplarFile) -> Any:
    if isinstance(value, PromptSetting):
        return value.content.model_dump(mode="json", exclude_none=True)
    return [item.model_dump(mode="json") for item in value.exemplars]
