"""What a run records of a version's making, as far as a version has it: a catalog takes any lineage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ptk_catalog import Version

__all__ = ["recorded"]

_NEEDED: Mapping[str, Mapping[str, Any]] = {
    "steps": {"name": str, "operator": str, "rows_in": int, "rows_out": int},
    "sources": {"step": str, "files": list, "sha256": (str, list)},
    "origins": {"step": str},
    "licences": {"step": str},
    "models": {"step": str, "model": str},
    "prompts": {"step": str, "option": str, "name": str},
}
_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "steps": {"inputs": {}, "rejected": {}, "flagged": {}},
    "licences": {"licence": None, "terms": None},
    "models": {"revision": None},
    "prompts": {"content": None},
}


def recorded(version: Version) -> dict[str, Any]:
    """Return `spec`, `step`, `steps`, `sources`, `origins`, `licences`, `models` and `prompts`; empty where there is nothing of it."""
    lineage = version.lineage
    spec = lineage.get("spec")
    spec = spec if isinstance(spec, dict) and isinstance(spec.get("text"), str) else {"text": ""}
    found: dict[str, Any] = {"spec": {"name": version.entry, **spec}, "step": lineage.get("step")}
    for name, needed in _NEEDED.items():
        items = lineage.get(name)
        found[name] = [
            {**_DEFAULTS.get(name, {}), **item}
            for item in (items if isinstance(items, list) else ())
            if isinstance(item, dict) and all(isinstance(item.get(key), kind) for key, kind in needed.items())
        ]
    return found
