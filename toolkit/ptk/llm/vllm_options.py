"""What vLLM's engine and the servers' requests can be told, checked without importing them: a snapshot beside this file.

`python -m ptk.llm.vllm_options` writes the snapshot anew from the installed vllm and openai; a test compares it with them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import orjson

from ptk.llm.option_types import json_types, value_problem
from ptk.params import suggestion

__all__ = ["UNKEYED_ARGUMENTS", "chat_fields", "engine_problems", "quantization_problem", "snapshot"]

SNAPSHOT = Path(__file__).with_suffix(".json")

UNKEYED_ARGUMENTS = frozenset(
    {
        "async_scheduling",
        "block_size",
        "cpu_offload_gb",
        "disable_custom_all_reduce",
        "disable_log_stats",
        "distributed_executor_backend",
        "enable_chunked_prefill",
        "enable_prefix_caching",
        "enforce_eager",
        "long_prefill_token_threshold",
        "max_num_scheduled_tokens",
        "max_parallel_loading_workers",
        "num_gpu_blocks_override",
        "safetensors_load_strategy",
        "use_tqdm_on_load",
    }
)
"""Arguments that decide where and how fast tokens are computed, but not which; all others are part of a model's identity."""

_OPTIONS = (
    *("dtype", "gpu_memory_utilization", "max_model_len", "max_num_batched_tokens", "max_num_seqs", "pipeline_parallel_size"),
    *("quantization", "revision", "tensor_parallel_size", "trust_remote_code"),
)
_CODE = (
    *("io_processor_plugin", "logits_processors", "model_class_overrides", "reasoning_parser_plugin", "scheduler_cls"),
    *("worker_cls", "worker_extension_cls"),
)
OWN_ARGUMENTS: Mapping[str, str] = {
    **{name: f"write {name} beside `engine`, not in it" for name in _OPTIONS},
    **dict.fromkeys(_CODE, "it names code to run, which a spec may not"),
    **dict.fromkeys(("model", "model_weights", "served_model_name"), "`model` names the model"),
    **dict.fromkeys(("tokenizer", "tokenizer_revision", "hf_config_path", "code_revision"), "it comes with the model"),
    **dict.fromkeys(("enable_lora", "max_loras", "max_lora_rank", "max_cpu_loras"), "it follows from `adapter`"),
    **dict.fromkeys(("runner", "convert", "structured_outputs_config", "skip_tokenizer_init"), "ptk sets it"),
    "hf_token": "a token comes from the environment alone: set HF_TOKEN",
    "kv_cache_memory_bytes": "write kv_cache_gib beside `engine`",
    "seed": "write seed under `sampling`",
}
"""Engine arguments that ptk sets itself, and where what they hold is said."""


@cache
def snapshot() -> Mapping[str, Any]:
    """Return `engine` (argument -> JSON types and values it may have), `quantization`, `vllm_chat`, `openai_chat`, `versions`."""
    content: Mapping[str, Any] = orjson.loads(SNAPSHOT.read_bytes())
    return content


def engine_problems(arguments: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with engine arguments that a spec passes through, in words."""
    known = snapshot()["engine"]
    for name, value in arguments.items():
        if name in OWN_ARGUMENTS:
            yield f"engine: '{name}': {OWN_ARGUMENTS[name]}"
        elif name not in known:
            yield f"engine: vLLM's engine has no argument '{name}'{suggestion(name, set(known) - set(OWN_ARGUMENTS))}"
        elif problem := value_problem(name, value, known[name]):
            yield f"engine: {problem}"


def quantization_problem(name: str) -> str | None:
    """Return what is wrong with the name of a quantisation method, or None."""
    known = snapshot()["quantization"]
    return None if name in known else f"vLLM knows no quantization '{name}'{suggestion(name, known)}"


def chat_fields(server: str) -> frozenset[str]:
    """Return the fields that a chat completion's body may have on a kind of server; empty where nobody knows."""
    return frozenset(snapshot().get(f"{server}_chat", ()))


def installed() -> dict[str, Any]:
    """Return what the snapshot should be, from the installed vllm and openai."""
    import dataclasses

    import openai
    import vllm
    from openai.types.chat.completion_create_params import CompletionCreateParamsBase
    from vllm.engine.arg_utils import EngineArgs
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS

    engine = {}
    for field in dataclasses.fields(EngineArgs):
        if field.name.startswith("_"):
            continue
        kinds, texts = json_types(field.type)
        if field.default is None:  # some are declared narrower than their own default
            kinds.add("null")
        engine[field.name] = {"types": sorted(kinds), **({"values": sorted(texts)} if texts else {})}
    return {
        "versions": {"vllm": vllm.__version__, "openai": openai.__version__},
        "engine": engine,
        "quantization": sorted(QUANTIZATION_METHODS),
        "vllm_chat": sorted(ChatCompletionRequest.model_fields),
        "openai_chat": sorted(CompletionCreateParamsBase.__annotations__),
    }


if __name__ == "__main__":
    SNAPSHOT.write_bytes(orjson.dumps(installed(), option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS) + b"\n")
