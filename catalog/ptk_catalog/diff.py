"""What is different between two versions, in the terms of preference data: plain data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import polars as pl
from polars_hash import NonCryptographicHashingNameSpace

from ptk_catalog.dataset import Dataset
from ptk_catalog.digest import encode
from ptk_catalog.errors import BadData
from ptk_catalog.version import Version

if TYPE_CHECKING:
    from ptk_catalog.catalog import Catalog

__all__ = ["diff"]

_SHOWN = 5
"""Keys that are named as examples."""
_RESPONSES = ("chosen", "rejected")


def diff(catalog: Catalog, before: str, after: str, *, measures: bool = True) -> dict[str, Any]:
    """Return what changed from one version to another; without `measures`, length bias and duplicates are left out.

    Raises NotFound, Damaged, BadData (no common key; a model and rows).
    """
    old, new = catalog.version(before), catalog.version(after)
    if old.kind != new.kind:
        raise BadData(f"{old.reference} is a {old.kind} and {new.reference} a {new.kind}; only like can be compared")
    told: dict[str, Any] = {
        "before": old.reference,
        "after": new.reference,
        "same": old.digest == new.digest,
        "licence": {"before": old.licence, "after": new.licence},
    }
    if old.kind == "model":
        return told | _models(old, new)
    sides = (Dataset(old, catalog.storage), Dataset(new, catalog.storage))
    told |= _rows(sides)
    if measures:
        told["length_bias"] = {"before": _length_bias(sides[0]), "after": _length_bias(sides[1])}
        told["duplicates"] = {"before": _duplicates(sides[0]), "after": _duplicates(sides[1])}
    return told


def _models(old: Version, new: Version) -> dict[str, Any]:
    files = [{file.name: file.sha256 for file in version.model.files} for version in (old, new)]
    names = sorted({*files[0], *files[1]})
    return {
        "files": {
            "added": [name for name in names if name not in files[0]],
            "removed": [name for name in names if name not in files[1]],
            "changed": [name for name in names if name in files[0] and name in files[1] and files[0][name] != files[1][name]],
        },
        "metrics": _changed_values(old.model.metrics, new.model.metrics),
        "base_model": {"before": old.model.base_model, "after": new.model.base_model},
        "trained_on": {"before": list(old.model.trained_on), "after": list(new.model.trained_on)},
    }


def _changed_values(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    names = [*old, *(name for name in new if name not in old)]
    return {name: {"before": old.get(name), "after": new.get(name)} for name in names if old.get(name) != new.get(name)}


def _rows(sides: tuple[Dataset, Dataset]) -> dict[str, Any]:
    old, new = (data.version for data in sides)
    key = old.manifest.key
    if not key or new.manifest.key != key:
        raise BadData(
            f"rows are told apart by their key, and {old.reference} has {', '.join(key) or 'none'}, "
            f"{new.reference} {', '.join(new.manifest.key) or 'none'}"
        )
    types = [data.schema for data in sides]
    infos = [{info.name: info for info in version.manifest.columns} for version in (old, new)]
    common = [name for name in types[0] if name in types[1] and name not in key]
    same_rows = old.rows == new.rows and all(infos[0][name].sum == infos[1][name].sum for name in key)
    # A column with the same sum over the same rows is the same: it need not be read.
    compared = [name for name in common if not (same_rows and infos[0][name] == infos[1][name])]
    joined = _joined(sides, key, compared)
    added = joined.filter(pl.col("_a").is_null())
    removed = joined.filter(pl.col("_b").is_null())
    both = joined.filter(pl.col("_a").is_not_null() & pl.col("_b").is_not_null())
    changed = {name: both.filter(pl.col(f"a:{name}") != pl.col(f"b:{name}")) for name in compared}
    changed = {name: rows for name, rows in changed.items() if rows.height}
    differing = pl.concat([rows.select(key) for rows in changed.values()]).unique() if changed else both.select(key).clear()
    return {
        "schema": {
            "added": {name: kind for name, kind in types[1].items() if name not in types[0]},
            "removed": {name: kind for name, kind in types[0].items() if name not in types[1]},
            "retyped": {name: [types[0][name], types[1][name]] for name in common if types[0][name] != types[1][name]},
        },
        "rows": {
            "before": old.rows,
            "after": new.rows,
            "added": added.height,
            "removed": removed.height,
            "changed": differing.height,
            "unchanged": both.height - differing.height,
            "examples": {
                "added": _keys(added, key),
                "removed": _keys(removed, key),
                "changed": _keys(differing, key),
            },
        },
        "columns": {name: {"changed": rows.height, "examples": _keys(rows, key)} for name, rows in changed.items()},
        "personas": {name: changed[name].height if name in changed else 0 for name in common if name.endswith("_persona")},
        "flipped": _flipped(sides),
    }


def _hash(data: Dataset, schema: pl.Schema, name: str) -> pl.Expr:
    hashed: pl.Expr = NonCryptographicHashingNameSpace(encode(pl.col(name), schema[name])).xxh3_64()
    return hashed


def _joined(sides: tuple[Dataset, Dataset], key: Sequence[str], compared: Sequence[str]) -> pl.DataFrame:
    """Return all keys of both, with `_a` and `_b` where they are there, and a hash of each compared value from each."""
    frames = []
    for side, data in zip(("a", "b"), sides, strict=True):
        rows = data.scan([*key, *compared])
        schema = rows.collect_schema()
        hashes = [_hash(data, schema, name).alias(f"{side}:{name}") for name in compared]
        frames.append(rows.select(*key, *hashes, pl.lit(True).alias(f"_{side}")))
    try:
        return frames[0].join(frames[1], on=list(key), how="full", coalesce=True).collect(engine="streaming")
    except pl.exceptions.PolarsError as error:
        raise BadData(f"the keys can't be compared: {str(error).splitlines()[0]}") from error


def _keys(rows: pl.DataFrame, key: Sequence[str]) -> list[Any]:
    shown = rows.select(key).sort(key).head(_SHOWN).rows()
    return [row[0] if len(key) == 1 else list(row) for row in shown]


def _flipped(sides: tuple[Dataset, Dataset]) -> dict[str, Any] | None:
    """Return how many pairs changed sides: `item_id` stays when the preference flips. None where versions are not of pairs."""
    wanted = ("item_id", *_RESPONSES)
    if any(name not in data.schema for data in sides for name in wanted):
        return None
    frames = []
    for data in sides:
        rows = data.scan(wanted)
        schema = rows.collect_schema()
        hashed = rows.select("item_id", *(_hash(data, schema, name).alias(name) for name in _RESPONSES))
        # Several annotators may have judged one item: which of their rows became which can't be told.
        frames.append(hashed.group_by("item_id").agg(pl.col(_RESPONSES).first(), pl.len().alias("times")))
    both = frames[0].join(frames[1], on="item_id", suffix="_after").collect(engine="streaming")
    once = both.filter((pl.col("times") == 1) & (pl.col("times_after") == 1))
    flipped = once.filter(
        (pl.col("chosen") == pl.col("rejected_after"))
        & (pl.col("rejected") == pl.col("chosen_after"))
        & (pl.col("chosen") != pl.col("rejected"))
    )
    return {
        "items": both.height,
        "flipped": flipped.height,
        "judged_several_times": both.height - once.height,
        "examples": _keys(flipped, ["item_id"]),
    }


def _text(dtype: pl.DataType, name: str) -> pl.Expr | None:
    """Return the text of a response: a text, or the turns of one."""
    if dtype == pl.String:
        return pl.col(name)
    inner = dtype.inner if isinstance(dtype, pl.List) else None
    if isinstance(inner, pl.Struct) and any(field.name == "content" and field.dtype == pl.String for field in inner.fields):
        return pl.col(name).list.eval(pl.element().struct.field("content")).list.join("")
    return None


def _length_bias(data: Dataset) -> dict[str, Any] | None:
    """Return the share of pairs whose chosen response is the longer, of those that differ, and by how many characters on average."""
    if any(name not in data.schema for name in _RESPONSES):
        return None
    rows = data.scan(_RESPONSES)
    schema = rows.collect_schema()
    texts = [_text(schema[name], name) for name in _RESPONSES]
    if texts[0] is None or texts[1] is None:
        return None
    more = texts[0].str.len_chars().cast(pl.Int64) - texts[1].str.len_chars().cast(pl.Int64)
    told = (
        rows.select(more.alias("more"))
        .select(
            longer=(pl.col("more") > 0).sum(),
            differ=(pl.col("more") != 0).sum(),
            mean=pl.col("more").mean(),
        )
        .collect(engine="streaming")
        .row(0, named=True)
    )
    return {
        "chosen_longer": told["longer"] / told["differ"] if told["differ"] else None,
        "mean_more_characters": told["mean"],
    }


def _duplicates(data: Dataset) -> dict[str, float | None]:
    """Return the share of rows that repeat an earlier row's prompt, and its item (prompt and both responses), where there are such columns."""
    told: dict[str, float | None] = {}
    for name in ("prompt", "item_id"):
        if name not in data.schema:
            told[name] = None
            continue
        rows = data.scan([name])
        hashed = rows.select(_hash(data, rows.collect_schema(), name).alias("hash"))
        count, different = hashed.select(pl.len(), pl.col("hash").n_unique().alias("n")).collect(engine="streaming").row(0)
        told[name] = 1 - different / count if count else None
    return told
