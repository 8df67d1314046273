"""Named settings of a training: those of a published method, and small ones for a machine without a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["PRESETS", "preset_lora", "preset_trainer"]

_PAPER = {"num_train_epochs": 10, "max_length": 512}
_CPU = {
    "num_train_epochs": 1,
    "max_length": 384,
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "gradient_checkpointing": False,
    "lr_scheduler_type": "linear",
    "warmup_steps": 0.1,
}

# `paper`: Balepur et al., ACL 2025. Their adapters have rank 16, alpha 32 and dropout 0.05; ORPO and KTO are not among their methods and take
# DPO's learning rate.
PRESETS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "paper": {
        "lora": {"r": 16, "lora_alpha": 32, "lora_dropout": 0.05},
        "sft": {**_PAPER, "learning_rate": 2e-5},
        "dpo": {**_PAPER, "learning_rate": 5e-6, "beta": 0.1},
        "kto": {**_PAPER, "learning_rate": 5e-6, "beta": 0.1},
        "orpo": {**_PAPER, "learning_rate": 5e-6, "beta": 0.1},
    },
    "cpu": {
        "lora": {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0},
        "sft": {**_CPU, "learning_rate": 5e-4},
        "dpo": {**_CPU, "learning_rate": 2e-4, "beta": 0.1},
        "kto": {**_CPU, "learning_rate": 2e-4, "beta": 0.1},
        "orpo": {**_CPU, "learning_rate": 2e-4, "beta": 0.1},
    },
}


def preset_trainer(preset: str | None, method: str) -> Mapping[str, Any]:
    """Return a preset's options of TRL's trainer; none without a preset."""
    return {} if preset is None else PRESETS[preset].get(method, {})


def preset_lora(preset: str | None) -> Mapping[str, Any]:
    """Return a preset's options of PEFT's LoraConfig; none without a preset."""
    return {} if preset is None else PRESETS[preset]["lora"]
