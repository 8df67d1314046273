"""Two LoRA adapters, the second trained upon the first, as one adapter of the model below both."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["stack_adapters", "unstackable"]

_PREFIX = "base_model.model."
_PAIRS = (("lora_A.weight", "lora_B.weight"), ("lora_embedding_A", "lora_embedding_B"))


def unstackable(config: Mapping[str, Any]) -> str | None:
    """Return which part of a LoRA adapter's configuration can't be written as a product of two matrices, or None."""
    for name, plain in (("use_dora", False), ("bias", "none"), ("modules_to_save", None), ("lora_bias", False)):
        if config.get(name) not in (plain, None, [], False):
            return name
    special = ("trainable_token_indices", "alora_invocation_tokens", "layer_replication", "target_parameters", "use_qalora")
    return next((name for name in special if config.get(name)), None)


def stack_adapters(first: Path, second: Path, target: Path) -> int:
    """Write into `target` the adapter that does what `first` and then `second` do; return its rank, the sum of theirs.

    W + s1 B1 A1 + s2 B2 A2 = W + [s1 B1, s2 B2] [A1; A2]: exact, but for the rounding of s B. What one of them leaves alone is zero
    there, so that all ranks are equal. Raises ValueError for adapters that are more than such products.
    """
    from safetensors.torch import load_file, save_file

    configs = [json.loads((folder / "adapter_config.json").read_text(encoding="utf-8")) for folder in (first, second)]
    for folder, config in zip((first, second), configs, strict=True):
        if (what := unstackable(config)) is not None:
            raise ValueError(f"the adapter in {folder} has `{what}`, so that no other can be trained upon it")
    weights = [load_file(folder / "adapter_model.safetensors") for folder in (first, second)]
    modules = sorted({_module(name)[0] for tensors in weights for name in tensors})
    ranks = [_most(tensors) for tensors in weights]
    made: dict[str, Any] = {}
    for module in modules:
        for left, right in _PAIRS:
            made |= _stacked(module, left, right, weights, configs, ranks)
    rank = sum(ranks)
    plain = all(not config.get("layers_to_transform") for config in configs)
    same = plain and isinstance(configs[0]["target_modules"], list)
    same = same and sorted(configs[0]["target_modules"]) == sorted(configs[1].get("target_modules") or ())
    content = {
        **configs[1],
        "r": rank,
        "lora_alpha": rank,
        "use_rslora": False,
        "lora_dropout": 0.0,
        "rank_pattern": {},
        "alpha_pattern": {},
        "layers_to_transform": None,
        "layers_pattern": None,
        "exclude_modules": None,
        "init_lora_weights": True,
        "target_modules": sorted(configs[0]["target_modules"])
        if same
        else [module.removeprefix(_PREFIX) for module in modules],
    }
    save_file(made, target / "adapter_model.safetensors", metadata={"format": "pt"})
    (target / "adapter_config.json").write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return rank


def _stacked(
    module: str, left: str, right: str, weights: list[dict[str, Any]], configs: list[dict[str, Any]], ranks: list[int]
) -> dict[str, Any]:
    """Return the two matrices of a module, by name; nothing where neither adapter has them."""
    import torch

    found = [(tensors.get(f"{module}.{left}"), tensors.get(f"{module}.{right}")) for tensors in weights]
    shape = next(((a, b) for a, b in found if a is not None and b is not None), None)
    if shape is None:
        return {}
    rows, columns = [], []
    for (a, b), config, rank in zip(found, configs, ranks, strict=True):
        whole_a, whole_b = torch.zeros(rank, shape[0].shape[1]), torch.zeros(shape[1].shape[0], rank)
        if a is not None and b is not None:
            whole_a[: a.shape[0]] = a.float()
            whole_b[:, : a.shape[0]] = b.float() * _scaling(module.removeprefix(_PREFIX), a.shape[0], config)
        rows.append(whole_a)
        columns.append(whole_b)
    dtype = shape[0].dtype
    both = torch.cat(rows, 0), torch.cat(columns, 1)
    return {f"{module}.{name}": tensor.to(dtype).contiguous() for name, tensor in zip((left, right), both, strict=True)}


def _module(name: str) -> tuple[str, str]:
    for pair in _PAIRS:
        for ending in pair:
            if name.endswith(f".{ending}"):
                return name.removesuffix(f".{ending}"), ending
    raise ValueError(f"'{name}' is no weight of a plain LoRA adapter")


def _most(tensors: Mapping[str, Any]) -> int:
    ranks = [int(tensor.shape[0]) for name, tensor in tensors.items() if _module(name)[1] in (pair[0] for pair in _PAIRS)]
    return max(ranks)


def _scaling(module: str, rank: int, config: Mapping[str, Any]) -> float:
    """Return alpha / r of a module, or alpha / sqrt(r) with rslora, as PEFT scales the product."""
    import re

    alpha = config["lora_alpha"]
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            alpha = value
            break
    return float(alpha / rank**0.5 if config.get("use_rslora") else alpha / rank)
