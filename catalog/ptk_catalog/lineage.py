"""Where a version, or one of its rows, comes from, and what was built on it: plain data, a tree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import polars as pl

from ptk_catalog.errors import BadData, NotFound
from ptk_catalog.version import Version

if TYPE_CHECKING:
    from ptk_catalog.catalog import Catalog

__all__ = ["row_lineage", "version_lineage"]

_LONGEST = 200
"""Characters of a value that are shown."""


def version_lineage(catalog: Catalog, reference: str) -> dict[str, Any]:
    """Return how a version was made, what it was made from (`from`), and what was built on it (`to`), each all the way.

    A version that stands in the tree already has `repeated` and no further branches. Raises NotFound, Damaged, OlderFormat.
    """
    found = catalog.version(reference)
    told = _backward(catalog, found, set())
    told["to"] = _forward(catalog, found, set())
    return told


def _facts(version: Version) -> dict[str, Any]:
    return {
        "version": version.reference,
        "kind": version.kind,
        "digest": version.digest,
        "rows": version.rows,
        "created_at": version.created_at,
        "licence": version.licence,
        "tags": list(version.tags),
    }


def _backward(catalog: Catalog, version: Version, seen: set[str]) -> dict[str, Any]:
    told = _facts(version)
    if version.reference in seen:
        return told | {"repeated": True}
    seen.add(version.reference)
    told |= _making(version)
    relations: dict[str, list[str]] = {}
    versions: dict[str, Version] = {}
    for how, source in catalog.made_from(version.reference):
        relations.setdefault(source.reference, []).append(how)
        versions[source.reference] = source
    told["from"] = [
        {"relations": hows, **_backward(catalog, versions[reference], seen)} for reference, hows in relations.items()
    ]
    named = set(relations)
    told["other_parents"] = [parent for parent in version.parents if parent not in named]
    return told


def _forward(catalog: Catalog, version: Version, seen: set[str]) -> list[dict[str, Any]]:
    relations: dict[str, list[str]] = {}
    versions: dict[str, Version] = {}
    for how, built in catalog.built_on(version.reference):
        relations.setdefault(built.reference, []).append(how)
        versions[built.reference] = built
    told = []
    for reference, hows in relations.items():
        branch: dict[str, Any] = {"relations": hows, **_facts(versions[reference])}
        if reference in seen:
            branch["repeated"] = True
        else:
            seen.add(reference)
            branch["to"] = _forward(catalog, versions[reference], seen)
        told.append(branch)
    return told


def _making(version: Version) -> dict[str, Any]:
    """Return how a version was made, as far as its maker recorded it."""
    lineage = version.lineage
    spec = lineage.get("spec") or {}
    told: dict[str, Any] = {
        "spec": {name: spec.get(name) for name in ("name", "digest")} if spec else None,
        "step": lineage.get("step"),
        "steps": [
            {name: step.get(name) for name in ("name", "operator", "version", "inputs", "rows_in", "rows_out", "rejected")}
            for step in lineage.get("steps", [])
        ],
        "models": [_model(model) for model in lineage.get("models", [])],
        "prompts": [_prompt(prompt) for prompt in lineage.get("prompts", [])],
        "sources": list(lineage.get("sources", [])),
        "origins": list(lineage.get("origins", [])),
        "licences": list(lineage.get("licences", [])),
    }
    if version.kind == "model":
        model = version.model
        told |= {"base_model": model.base_model, "base_revision": model.base_revision, "metrics": model.metrics}
    return told


def _model(model: Mapping[str, Any]) -> dict[str, Any]:
    return {name: model.get(name) for name in ("step", "model", "revision", "sampling")}


def _prompt(prompt: Mapping[str, Any]) -> dict[str, Any]:
    return {name: prompt.get(name) for name in ("step", "option", "name", "sha256")}


def row_lineage(catalog: Catalog, reference: str, row: str) -> dict[str, Any]:
    """Return, for the row whose key is or begins with `row`, each value with the version, step, model and prompts that made it.

    `read_from` has the file and the line in it, or the number of the record, that the row was read from; None where that is not known.

    Raises NotFound where no row, or several, have that key, BadData where rows have no key of one column.
    """
    found = catalog.version(reference)
    key = found.manifest.key
    if len(key) != 1:
        raise BadData(
            f"the rows of {found.reference} have {'no key' if not key else 'a key of several columns'}, so none can be named"
        )
    # The key may be a number; as text both are compared.
    text = pl.col(key[0]).cast(pl.String)
    data = catalog.load(found.reference)
    rows = data.scan().filter(text == row).collect(engine="streaming")
    if not rows.height:
        rows = data.scan().filter(text.str.starts_with(row)).head(2).collect(engine="streaming")
    if rows.height != 1:
        what = "no row" if not rows.height else "several rows"
        raise NotFound(f"{found.reference} has {what} whose {key[0]} begins with '{row}'")
    values = rows.row(0, named=True)
    origins = {column: _maker(catalog, found, column, key[0]) for column in values}
    versions = dict.fromkeys([found.reference, *(str(origin["made_in"]) for origin in origins.values())])
    return {
        "version": found.reference,
        "key": {key[0]: values[key[0]]},
        "read_from": _place(catalog, list(versions), key, values[key[0]]),
        "columns": [{"column": column, "value": _short(values[column]), **origins[column]} for column in values],
        "built_on_it": [version.reference for _, version in catalog.built_on(found.reference)],
    }


def _place(catalog: Catalog, versions: Sequence[str], key: tuple[str, ...], value: object) -> dict[str, Any] | None:
    """Return the file and line that a row was read from, as the first of the versions that knows it tells."""
    for reference in versions:
        data = catalog.load(reference)
        if data.manifest.key == key and (place := data.place([value])) is not None:
            return {"file": place[0], "line": place[1], "version": reference}
    return None


def _maker(catalog: Catalog, version: Version, column: str, key: str) -> dict[str, Any]:
    """Return which step of which version made a column, following it into the versions that were read."""
    lineage = version.lineage
    steps = {step["name"]: step for step in lineage.get("steps", [])}
    name = lineage.get("step")
    while name in steps:
        step = steps[name]
        inputs = list(step.get("inputs", {}).values())
        if column in step.get("columns", []):
            origin = next((one for one in lineage.get("origins", []) if one.get("step") == name), None)
            inner = _read_from(catalog, version, origin, column, key) if not inputs else None
            if inner is not None:
                return inner
            return {
                "made_in": version.reference,
                "step": name,
                "operator": f"{step['operator']} v{step['version']}",
                "models": [_model(model) for model in lineage.get("models", []) if model["step"] == name],
                "prompts": [_prompt(prompt) for prompt in lineage.get("prompts", []) if prompt["step"] == name],
                "sources": [source for source in lineage.get("sources", []) if source["step"] == name],
                "origin": origin,
                "spec": (lineage.get("spec") or {}).get("name"),
            }
        if not inputs:
            break
        name = inputs[0]  # a step decides about the rows of its first input
    base = version.manifest.base
    if not steps and base is not None:
        source = catalog.version(f"{base.entry}@v{base.number}")
        shared = {info.name: info.sum for info in source.manifest.columns}
        own = {info.name: info.sum for info in version.manifest.columns}
        if column in shared and (version.manifest.rows != source.manifest.rows or shared[column] == own[column]):
            return _maker(catalog, source, column, key)
    return {
        "made_in": version.reference,
        "step": None,
        "operator": None,
        "models": [],
        "prompts": [],
        "sources": [],
        "origin": None,
    }


def _read_from(
    catalog: Catalog, version: Version, origin: Mapping[str, Any] | None, column: str, key: str
) -> dict[str, Any] | None:
    """Return what made a column in the version of this catalog that a reader took it from as it was, or None."""
    if origin is None or origin.get("entry") not in version.parents:
        return None
    source = catalog.version(str(origin["entry"]))
    if source.manifest.key != (key,) or all(info.name != column for info in source.manifest.columns):
        return None
    written: Mapping[str, Any] = next(
        (step["params"] for step in version.lineage["steps"] if step["name"] == origin["step"]), {}
    )
    if column == "source" and "source" in written:
        return None
    return _maker(catalog, source, column, key)


def _short(value: Any) -> Any:
    if isinstance(value, list) and value and isinstance(value[-1], dict) and "content" in value[-1]:
        value = value[-1]["content"]
    text = value if isinstance(value, str) else None
    if text is None:
        return value if isinstance(value, (int, float, bool)) or value is None else str(value)[:_LONGEST]
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
