"""A model as it is published: its files as they are, and what can be told of them before they are pushed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptk.publish.checks import Check

if TYPE_CHECKING:
    from ptk_catalog import Catalog, Version

__all__ = ["model_checks", "model_files", "told_facts"]

_OURS = frozenset({"README.md", "spec.yaml"})
_PICKLED = (".bin", ".pt", ".pth", ".pkl", ".ckpt")


def told_facts(facts: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Return facts as lines of a table: one inside another has both their names, and what is not said is left out."""
    told: dict[str, Any] = {}
    for name, value in facts.items():
        if isinstance(value, Mapping):
            told |= told_facts(value, f"{before}{name} ")
        elif value not in (None, [], ()):
            told[f"{before}{name}"] = value
    return told


def model_files(catalog: Catalog, version: Version) -> dict[str, Path]:
    """Return the model's files by name; a card that a trainer wrote is left out for the one of the publication."""
    folder = catalog.load_model(version.reference)
    return {file.name: folder / file.name for file in version.model.files if file.name not in _OURS}


def model_checks(files: Mapping[str, Path]) -> list[Check]:
    """Return what was checked: whether the files can be loaded elsewhere, and without running code."""
    found = [*_pickles(files), *_adapter(files)]
    return found or [Check("ok", "model: no file is pickled, and none leads to this machine")]


def _pickles(files: Mapping[str, Path]) -> Iterator[Check]:
    for name in files:
        if name.endswith(_PICKLED):
            yield Check("warning", f"model: {name} may be a pickle, which runs code when it is loaded; save safetensors")


def _adapter(files: Mapping[str, Path]) -> Iterator[Check]:
    if "adapter_config.json" not in files:
        return
    try:
        base = json.loads(files["adapter_config.json"].read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (ValueError, AttributeError):
        yield Check("warning", "model: adapter_config.json is no JSON object")
        return
    if isinstance(base, str) and (base.startswith(("/", "~", ".")) or "\\" in base or base.count("/") > 1):
        yield Check(
            "failed",
            "model: adapter_config.json names its base model by a path of this machine, where nobody else finds it; "
            "train from a name of the Hub, or edit it and commit the model again",
        )
