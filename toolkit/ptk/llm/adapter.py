"""A LoRA adapter in a folder, as PEFT saves it: what decides answers of it, and whether it belongs to a model."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import orjson

from ptk.errors import ModelNotFound
from ptk.files import sha256_of_file
from ptk.llm.model_files import (
    CATALOG,
    STEP,
    ModelFiles,
    ModelRoots,
    ModelVersion,
    find_model_folder,
    model_digest,
    read_json_file,
)

__all__ = ["Adapter", "find_adapter", "read_adapter", "vllm_rank"]

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin", "adapter_model.pt")
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The ranks that vLLM can make room for."""
UNKEYED = frozenset({"auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision", "task_type"})
"""Entries of the configuration that decide no answer: names, paths and versions."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter found on this machine."""

    folder: Path
    digest: str
    """SHA-256 over its weights and what of its configuration decides answers."""
    rank: int
    """The highest of its matrices."""
    plain: bool
    """Whether it is low-rank matrices and nothing else."""
    base: str | None
    """Name or path of the model that it was trained on, as its configuration has it."""
    version: ModelVersion | None = None
    """The version in the catalog, where it comes from there."""


def find_adapter(reference: str, roots: ModelRoots, model: str, files: ModelFiles) -> Adapter:
    """Return the adapter that a path, `catalog:ENTRY@REF` or `step:NAME` leads to. Raises ModelNotFound where it is none of the model's.

    `model` is what the spec calls the model, whose files are `files`.
    """
    try:
        found = find_model_folder(reference, roots)
        adapter = replace(read_adapter(found.folder), version=found.version)
    except ModelNotFound as error:
        raise ModelNotFound(str(error), "adapter") from error
    registered = None if found.version is None else found.version.base_model
    bases = [base for base in (adapter.base, registered) if base]
    if not bases:
        raise ModelNotFound(
            f"{adapter.folder / CONFIG} does not say which model the adapter was trained on (base_model_name_or_path)",
            "adapter",
        )
    if not any(_is_base(base, roots, model, files) for base in bases):
        at = str(adapter.folder / CONFIG) if found.version is None else f"the adapter's {CONFIG} and commit it again"
        raise ModelNotFound(
            f"adapter '{reference}' was trained on '{bases[-1]}', not on '{model}' ({files.folder}); name that model, or another"
            f" adapter. Where the two are the same under other names, correct base_model_name_or_path in {at}",
            "adapter",
        )
    return adapter


def read_adapter(folder: Path) -> Adapter:
    """Return the adapter in a folder. Raises ModelNotFound where it is not whole, or no LoRA adapter."""
    config = read_json_file(folder / CONFIG)
    weights = next((name for name in WEIGHTS if (folder / name).is_file()), None)
    lacking = [name for name, there in ((CONFIG, config), (WEIGHTS[0], weights)) if not there]
    if lacking or weights is None:
        raise ModelNotFound(f"the folder of an adapter ({folder}) lacks {', '.join(lacking)}")
    kind, rank, base = config.get("peft_type"), config.get("r"), config.get("base_model_name_or_path")
    if kind != "LORA" or not isinstance(rank, int) or rank < 1:
        raise ModelNotFound(f"{folder} holds no LoRA adapter (peft_type {kind}, rank {rank}); merge it into its model instead")
    ranks = [rank, *(value for value in (config.get("rank_pattern") or {}).values() if isinstance(value, int))]
    deciding = {name: value for name, value in config.items() if name not in UNKEYED and value is not None}
    content = [sha256_of_file(folder / weights), deciding]
    digest = hashlib.sha256(orjson.dumps(content, option=orjson.OPT_SORT_KEYS)).hexdigest()
    plain = not config.get("use_dora") and not config.get("modules_to_save")
    return Adapter(folder, digest, max(ranks), plain, base if isinstance(base, str) else None)


def vllm_rank(adapter: Adapter) -> int:
    """Return the rank that vLLM has to make room for. Raises ModelNotFound for an adapter that it can't apply."""
    if not adapter.plain:
        raise ModelNotFound(
            f"{adapter.folder} holds no plain LoRA adapter (DoRA, or modules saved whole); merge it into its model instead",
            "adapter",
        )
    if adapter.rank > RANKS[-1]:
        raise ModelNotFound(
            f"{adapter.folder}: vLLM applies adapters of rank {RANKS[-1]} at most, not {adapter.rank}", "adapter"
        )
    return next(room for room in RANKS if room >= adapter.rank)


def _is_base(base: str, roots: ModelRoots, model: str, files: ModelFiles) -> bool:
    """Return whether the model an adapter names is the one that the spec calls `model`."""
    names = {model}
    if files.version is not None:
        names |= {files.version.reference, f"{CATALOG}{files.version.reference}"}
    if base in names:
        return True
    there = roots.folder / Path(base).expanduser()
    if there.is_dir():
        return there.resolve() == files.folder or model_digest(there) == model_digest(files.folder)
    if model.startswith((CATALOG, STEP)):
        return False  # the name of its folder here says nothing
    # A path of another machine, or an id of the Hub: then only names can be compared.
    names |= {files.folder.name, str(read_json_file(files.folder / "config.json").get("_name_or_path") or files.folder.name)}
    if files.folder.parent.name == "snapshots":  # as huggingface_hub lays its cache out
        names.add(files.folder.parent.parent.name.removeprefix("models--").replace("--", "/", 1))
    return base in names or (Path(base).is_absolute() and there.name in names)
