"""What TRL's trainers and PEFT's LoRA can be told, checked without importing them: a snapshot beside this file.

`python -m ptk.train.trl_options` writes the snapshot anew from the installed trl and peft; a test compares it with them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import orjson

from ptk.llm.option_types import json_types, value_problem
from ptk.params import suggestion

__all__ = ["METHODS", "UNKEYED_OPTIONS", "launch_problems", "lora_problems", "snapshot", "trainer_problems"]

SNAPSHOT = Path(__file__).with_suffix(".json")
METHODS = ("sft", "dpo", "kto", "orpo")

UNKEYED_OPTIONS = frozenset(
    {
        "dataloader_in_order",
        "dataloader_multiprocessing_context",
        "dataloader_num_workers",
        "dataloader_persistent_workers",
        "dataloader_pin_memory",
        "dataloader_prefetch_factor",
        "dataset_num_proc",
        "ddp_backend",
        "ddp_timeout",
        "disable_tqdm",
        "eval_accumulation_steps",
        "include_num_input_tokens_seen",
        "log_level",
        "log_level_replica",
        "log_on_each_node",
        "logging_first_step",
        "logging_nan_inf_filter",
        "logging_steps",
        "logging_strategy",
        "project",
        "report_to",
        "run_name",
        "save_on_each_node",
        "save_total_limit",
        "skip_memory_metrics",
        "torch_empty_cache_steps",
        "trackio_bucket_id",
        "trackio_space_id",
        "trackio_static_space_id",
    }
)
"""Options that decide how a training is watched, stored and fed, but no weight; all others are part of a step's key."""

OWN_OPTIONS: Mapping[str, str] = {
    **dict.fromkeys(("seed", "data_seed"), "write seed beside `trl`, not in it"),
    **dict.fromkeys(("output_dir", "resume_from_checkpoint", "do_train", "do_eval", "do_predict"), "ptk sets it"),
    **dict.fromkeys(("remove_unused_columns", "label_names", "restore_callback_states_from_checkpoint"), "ptk sets it"),
    **dict.fromkeys(
        ("dataset_text_field", "dataset_kwargs", "chat_template_path", "assistant_only_loss"), "ptk makes the tokens"
    ),
    **dict.fromkeys(("completion_only_loss", "eos_token", "pad_token", "padding_value"), "ptk makes the tokens"),
    **dict.fromkeys(
        ("push_to_hub", "hub_model_id", "hub_strategy", "hub_private_repo"), "`ptk publish` puts models on the Hub"
    ),
    **dict.fromkeys(("hub_always_push", "hub_revision"), "`ptk publish` puts models on the Hub"),
    **dict.fromkeys(("local_rank",), "`accelerate` starts several processes"),
    "hub_token": "a token comes from the environment alone: set HF_TOKEN",
    "generate_during_eval": "a later step generates",
    "is_encoder_decoder": "models that write after their prompt alone are tailored",
    "truncation_mode": "the end of a response is cut; see `on_long`",
    "save_only_model": "without the optimizer's state a training can't go on after a kill",
}
"""Options of TRL's classes that ptk sets itself, and where what they hold is said."""

OWN_LORA: Mapping[str, str] = {
    **dict.fromkeys(
        ("base_model_name_or_path", "revision", "inference_mode", "peft_type", "peft_version", "auto_mapping"), "ptk sets it"
    ),
    "task_type": "it is CAUSAL_LM",
}

OWN_LAUNCH: Mapping[str, str] = {
    **dict.fromkeys(("help", "module", "no_python", "training_script", "training_script_args", "quiet"), "ptk sets it"),
    **dict.fromkeys(("aws_access_key_id", "aws_secret_access_key"), "a secret comes from the environment alone"),
}


@cache
def snapshot() -> Mapping[str, Any]:
    """Return by method, for `lora` and `accelerate`: option -> JSON types and values it may have; and `versions`."""
    content: Mapping[str, Any] = orjson.loads(SNAPSHOT.read_bytes())
    return content


def trainer_problems(method: str, options: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with options of TRL's class of settings for a method, in words."""
    kind = f"TRL {snapshot()['versions']['trl']}'s {method.upper()}Config"
    yield from _problems("trl", kind, options, snapshot()[method], OWN_OPTIONS)


def lora_problems(options: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with options of PEFT's LoraConfig, in words."""
    kind = f"PEFT {snapshot()['versions']['peft']}'s LoraConfig"
    yield from _problems("lora", kind, options, snapshot()["lora"], OWN_LORA)


def launch_problems(options: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with options of `accelerate launch`, in words."""
    kind = f"accelerate {snapshot()['versions']['accelerate']}'s launch"
    yield from _problems("accelerate", kind, options, snapshot()["accelerate"], OWN_LAUNCH)


def _problems(
    place: str, kind: str, options: Mapping[str, Any], known: Mapping[str, Any], own: Mapping[str, str]
) -> Iterator[str]:
    for name, value in options.items():
        if name not in known:
            yield f"{place}: {kind} has no option '{name}'{suggestion(name, set(known) - set(own))}"
        elif name in own:
            yield f"{place}: '{name}': {own[name]}"
        elif problem := value_problem(name, value, known[name]):
            yield f"{place}: {problem}"


def installed() -> dict[str, Any]:
    """Return what the snapshot should be, from the installed trl and peft."""
    import accelerate
    import peft
    import trl
    from trl.experimental.orpo import ORPOConfig

    classes = {"sft": trl.SFTConfig, "dpo": trl.DPOConfig, "kto": trl.KTOConfig, "orpo": ORPOConfig, "lora": peft.LoraConfig}
    versions = {"trl": trl.__version__, "peft": peft.__version__, "accelerate": accelerate.__version__}
    options = {name: _options(kind) for name, kind in classes.items()}
    return {"versions": versions, **options, "accelerate": _launch_options()}


def _launch_options() -> dict[str, Any]:
    from accelerate.commands.launch import launch_command_parser

    # What it is given is text in the end: a number may be one of the command line.
    return {
        action.dest: {"types": ["boolean"] if action.nargs == 0 else ["array", "integer", "number", "string"]}
        for action in launch_command_parser()._actions
    }


def _options(kind: Any) -> dict[str, Any]:
    import dataclasses
    import enum
    from typing import get_args, get_type_hints

    hints = get_type_hints(kind)
    options = {}
    for field in dataclasses.fields(kind):
        kinds, texts = json_types(hints[field.name])
        members = [
            member for member in get_args(hints[field.name]) if isinstance(member, type) and issubclass(member, enum.Enum)
        ]
        if members:  # beside such a class stands `str`, for the texts of its members
            texts = {str(value.value) for member in members for value in member}
            kinds -= {"integer"}
        if (choices := field.metadata.get("choices")) is not None:
            texts = {str(choice) for choice in choices}
        if field.default is None:  # some are declared narrower than their own default
            kinds.add("null")
        if field.name == "init_lora_weights":
            texts = None  # one of its values is a pattern
        if field.name == "loss_type" and "array" in kinds:
            kinds.add("string")
        options[field.name] = {"types": sorted(kinds), **({"values": sorted(texts)} if texts else {})}
    return options


if __name__ == "__main__":
    SNAPSHOT.write_bytes(orjson.dumps(installed(), option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS) + b"\n")
