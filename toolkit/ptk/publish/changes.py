"""What is different between a version that was published and the one that will be, in words for its card."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ptk_catalog.errors import BadData, CatalogError

if TYPE_CHECKING:
    from ptk_catalog import Catalog, Version

__all__ = ["changes_between"]


def changes_between(catalog: Catalog, before: str, version: Version) -> list[str]:
    """Return the differences from the version `before`, a reference; empty where the rows are the same."""
    try:
        earlier = catalog.version(before)
        if earlier.digest == version.digest:
            return []
        if earlier.kind != version.kind:
            return [f"what was published before, {before}, is a {earlier.kind}"]
        told = catalog.diff(before, version.reference, measures=False)
    except BadData:
        return list(_without_a_key(earlier, version))
    except CatalogError:
        return [f"{before} is no longer in the catalog, so it can't be told what changed"]
    if version.kind == "model":
        return list(_of_models(told)) or ["what is said of the model changed"]
    return list(_of_rows(told)) or ["values of rows changed"]


def _of_rows(told: Mapping[str, Any]) -> Iterator[str]:
    rows, schema = told["rows"], told["schema"]
    for what in ("added", "removed"):
        if rows[what]:
            yield f"{_rows(rows[what])} {what}"
    if told["flipped"] is not None and (flipped := told["flipped"]["flipped"]):
        yield f"{'1 preference was' if flipped == 1 else f'{flipped:,} preferences were'} flipped"
    for what, word in (("added", "new"), ("removed", "gone")):
        yield from (f"the column `{name}` is {word}" for name in schema[what])
    for name, (was, now) in schema["retyped"].items():
        yield f"the column `{name}` is {now}, and was {was}"
    for name, column in told["columns"].items():
        if name not in schema["retyped"]:
            count = column["changed"]
            yield f"{'1 value' if count == 1 else f'{count:,} values'} of the column `{name}` changed"


def _without_a_key(old: Version, new: Version) -> Iterator[str]:
    """Yield what the columns and counts of versions tell whose rows can't be matched."""
    if old.rows != new.rows:
        yield f"there are {new.rows:,} rows, and were {old.rows:,}"
    before, now = ({column.name for column in version.manifest.columns} for version in (old, new))
    yield from (f"the column `{name}` is new" for name in sorted(now - before))
    yield from (f"the column `{name}` is gone" for name in sorted(before - now))
    if old.manifest.key != new.manifest.key:
        was, now_by = (", ".join(version.manifest.key) or "all their values" for version in (old, new))
        yield f"rows are told apart by {now_by}, and were by {was}"
    elif old.rows == new.rows and before == now:
        yield "values of rows changed"


def _of_models(told: Mapping[str, Any]) -> Iterator[str]:
    for what, word in (("added", "is new"), ("removed", "is gone"), ("changed", "changed")):
        yield from (f"the file `{name}` {word}" for name in told["files"][what])
    base, data = told["base_model"], told["trained_on"]
    if base["before"] != base["after"]:
        yield f"the base model is `{base['after']}`, and was `{base['before']}`"
    if data["before"] != data["after"]:
        was, now = (", ".join(f"`{name}`" for name in data[side]) or "nothing" for side in ("before", "after"))
        yield f"it was trained on {now}, and before on {was}"
    for name, values in told["metrics"].items():
        if values["before"] is not None and values["after"] is not None:
            yield f"{name} is {_figure(values['after'])}, and was {_figure(values['before'])}"


def _rows(count: int) -> str:
    return "1 row was" if count == 1 else f"{count:,} rows were"


def _figure(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
