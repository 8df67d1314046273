"""The backend that gives likelihoods of texts, by transformers in a child process: when the session ends, so does all it held.

vLLM writes faster, but for the log-probabilities of a prompt it shares no prefix between requests and holds rows of the whole
vocabulary.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

import orjson
from pydantic import Field

from ptk.llm.backend import ModelSettings, ResolvedModel
from ptk.llm.child import child_environment, computing
from ptk.llm.engine_process import EngineSession
from ptk.llm.local_model import LocalModels, find_local_model, torch_device
from ptk.llm.model_files import ModelRoots
from ptk.llm.request import Request
from ptk.params import REFERENCE, UNKEYED

__all__ = ["TransformersBackend", "TransformersSession", "TransformersSettings", "backend"]

WORKER = "ptk.llm.transformers_worker"
AHEAD = 512
"""Requests that are sorted by length together."""


class TransformersSettings(ModelSettings):
    """Settings of the transformers backend: a model, with or without a LoRA adapter, whose likelihoods are wanted."""

    backend: Literal["transformers"]
    model: Annotated[str, REFERENCE] = Field(
        min_length=1, description="bundled/NAME, catalog:ENTRY@REF, step:NAME, a folder, or an id of the Hugging Face Hub."
    )
    revision: str | None = Field(None, description="Branch, tag or commit of a model from the Hub.")
    adapter: Annotated[str | None, REFERENCE] = Field(
        None,
        min_length=1,
        description="A LoRA adapter that was trained on the model: a folder, catalog:ENTRY@REF, or step:NAME.",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="auto: float32 on a CPU; on a GPU the 16-bit type of the model's config, bfloat16 where it has none.",
    )
    max_model_len: int | None = Field(
        None,
        ge=1,
        description="Window: the most tokens of prompt and answer together. Left out: the model's own, at most 2048.",
    )
    trust_remote_code: bool = Field(False, description="Run Python code that comes with the model.")
    batch_tokens: Annotated[int | None, UNKEYED] = Field(
        None, ge=1, description="The most tokens computed at once. Left out: 512 on a CPU, 16384 on a GPU."
    )
    startup_timeout: Annotated[float, UNKEYED] = Field(900.0, gt=0, description="Seconds after which a start has failed.")


class TransformersBackend(LocalModels):
    """Gives likelihoods with transformers."""

    settings = TransformersSettings
    remote = False
    gives = frozenset({"likelihoods"})

    def resolve(self, settings: TransformersSettings, roots: ModelRoots) -> ResolvedModel:
        """Find the model and its adapter without loading them. Raises ModelNotFound."""
        found = find_local_model(settings, roots, torch_device())
        return replace(found, identity={"engine": "transformers", **found.identity})

    def device(self) -> str:
        """Return where torch runs here."""
        return torch_device()

    def open(self, settings: TransformersSettings, model: ResolvedModel) -> TransformersSession:
        """Load the model in a process of its own and wait until it answers. Raises BackendError."""
        return TransformersSession(settings, model)

    def shared_tokens(self, settings: TransformersSettings, model: ResolvedModel, requests: list[Request]) -> list[int] | None:
        """Return zeros: a prompt is computed once for all its continuations, and for no other prompt."""
        return [0] * len(requests)


class TransformersSession(EngineSession):
    """A model in transformers, in a child process."""

    def __init__(self, settings: TransformersSettings, model: ResolvedModel) -> None:
        on = torch_device()
        first_line = {
            "model": str(model.path),
            "adapter": None if model.adapter is None else str(model.adapter),
            "device": on,
            "dtype": model.identity["dtype"],
            "window": model.limits["max_model_len"],
            "trust_remote_code": settings.trust_remote_code,
            "batch_tokens": settings.batch_tokens or (512 if on == "cpu" else 16384),
            "at_once": AHEAD,
        }
        environment = child_environment(forced={"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}, defaults=computing())
        # Twice as many as are sorted together, so that the next ones are there when these are done.
        super().__init__(model.reference, first_line, environment, ahead=2 * AHEAD, timeout=settings.startup_timeout)

    def _worker(self) -> str:
        return WORKER

    def _request_line(self, number: int, request: Request) -> bytes:
        content = {
            "id": number,
            "messages": [[message.role, message.content] for message in request.messages],
            "prefill": request.prefill,
            "continuation": request.continuation,
        }
        return orjson.dumps(content, option=orjson.OPT_APPEND_NEWLINE)


backend: Any = TransformersBackend()
