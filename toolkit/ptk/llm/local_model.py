"""What the backends that run a model on this machine have in common: its files, where it runs, in which type, its window, its prompts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ptk.errors import ModelNotFound
from ptk.llm.adapter import find_adapter
from ptk.llm.backend import ResolvedModel
from ptk.llm.chat_template import RENDERING, ChatTemplateError, read_chat_template, token_counter
from ptk.llm.model_files import ModelRoots, find_model_files, model_digest, read_json_file
from ptk.llm.request import Request

__all__ = ["LocalModels", "find_local_model", "gpu_is_visible", "torch_device"]

_WINDOW = 2048
"""Most tokens of a window that nobody declared."""


class LocalModels:
    """What a backend tells of prompts from the files of a model alone, without loading it."""

    def prompt_text(self, settings: Any, model: ResolvedModel, request: Request) -> str | None:
        """Return the messages as the model's chat template writes them, with the beginning of the answer; None without one.

        Raises ChatTemplateError.
        """
        assert model.path is not None
        template = read_chat_template(model.path)
        return None if template is None else template.render(request.messages, request.prefill)

    def count_tokens(self, settings: Any, model: ResolvedModel, requests: list[Request]) -> list[int] | None:
        """Return the prompt tokens of each request, or None where the model has no tokenizer.json."""
        assert model.path is not None
        count = token_counter(model.path)
        return None if count is None else count(requests)


def find_local_model(settings: Any, roots: ModelRoots, device: str) -> ResolvedModel:
    """Find the model and the adapter that the settings name, without loading them. Raises ModelNotFound.

    The settings have `model`, `revision`, `adapter`, `dtype` and `max_model_len`. What decides answers beside these files, the type of
    their numbers and the way prompts are written, the backend adds to the identity.
    """
    files = find_model_files(settings.model, settings.revision, roots)
    try:
        read_chat_template(files.folder)
    except ChatTemplateError as error:
        raise ModelNotFound(str(error)) from error
    config = read_json_file(files.folder / "config.json")
    adapter = None if settings.adapter is None else find_adapter(settings.adapter, roots, settings.model, files)
    versions = (files.version, None if adapter is None else adapter.version)
    return ResolvedModel(
        settings.model if settings.adapter is None else f"{settings.model} + {settings.adapter}",
        {
            "digest": model_digest(files.folder),
            "dtype": _dtype(settings.dtype, config, device),
            "rendering": RENDERING,
            **({} if adapter is None else {"adapter": adapter.digest}),
        },
        {"max_model_len": _window(settings.max_model_len, config)},
        files.folder,
        files.revision,
        files.notes,
        adapter=None if adapter is None else adapter.folder,
        versions=tuple(version for version in versions if version is not None),
    )


def gpu_is_visible() -> bool:
    """Return whether there is a GPU of NVIDIA's that is not hidden, without importing torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    hidden = visible is not None and (not visible.strip() or visible.strip().startswith("-1"))
    return not hidden and (Path("/proc/driver/nvidia/version").exists() or Path("/dev/dxg").exists())


def torch_device() -> str:
    """Return where torch runs here, `cuda` or `cpu`, without importing it: not the CPU build, and a GPU that is not hidden."""
    try:
        cpu_build = version("torch").endswith("+cpu")
    except PackageNotFoundError:
        return "cpu"
    return "cuda" if gpu_is_visible() and not cpu_build else "cpu"


def _dtype(declared: str, config: Mapping[str, Any], device: str) -> str:
    """Return the type of the weights: the declared one; for `auto` float32 on a CPU, else the 16-bit type of the config."""
    if declared != "auto":
        return declared
    if device == "cpu":
        return "float32"
    inner = config.get("text_config") or {}
    own = config.get("dtype") or config.get("torch_dtype") or inner.get("dtype") or inner.get("torch_dtype")
    return own if own in ("float16", "bfloat16") else "bfloat16"


def _window(declared: int | None, config: Mapping[str, Any]) -> int:
    """Return the most tokens of prompt and answer together: the declared number, else the model's own, at most 2048."""
    if declared is not None:
        return declared
    own = config.get("max_position_embeddings") or (config.get("text_config") or {}).get("max_position_embeddings")
    return min(own, _WINDOW) if isinstance(own, int) else _WINDOW
