"""Adapters of the bundled model whose weights are drawn at random: they change what it says, and mean nothing."""

from __future__ import annotations

from pathlib import Path

import orjson

LAYERS, WIDTH = 30, 576


def random_adapter(folder: Path, base: Path | str, *, rank: int = 8, seed: int = 1) -> Path:
    """Write an adapter that says that it was trained on `base`, as PEFT saves it, and return its folder."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(seed)
    weights = {}
    for layer in range(LAYERS):
        name = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        weights[f"{name}.lora_A.weight"] = torch.randn(rank, WIDTH) * 0.1
        weights[f"{name}.lora_B.weight"] = torch.randn(WIDTH, rank) * 0.1
    folder.mkdir(exist_ok=True)
    save_file(weights, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": rank, "target_modules": ["q_proj"]}
    config |= {"base_model_name_or_path": str(base), "bias": "none", "lora_dropout": 0.0}
    (folder / "adapter_config.json").write_bytes(orjson.dumps(config))
    return folder
