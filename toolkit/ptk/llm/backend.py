"""What a backend is: it resolves a model reference without loading anything, then opens a session that answers requests."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ptk.llm.request import Answer, Request, Sampling
from ptk.params import Params

__all__ = ["Backend", "ModelSettings", "ResolvedModel", "Session"]


class ModelSettings(Params):
    """Base of a backend's settings: one entry under `models` in a spec."""

    backend: str
    sampling: Sampling = Sampling()


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """A model found: what it is, exactly, and where it lies on this machine."""

    reference: str
    """As written in the spec, such as `bundled/smollm2-135m-instruct`."""
    identity: Mapping[str, Any]
    """Everything about the model that decides answers, as JSON data: digest of weights and tokenizer, dtype, adapter."""
    limits: Mapping[str, Any]
    """What decides which requests are refused (the window), but no answer: part of a step's key, not of a request's."""
    path: Path | None = None
    """Folder with the model's files, or None for an endpoint."""
    revision: str | None = None
    """Commit of a model from the Hub."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    """Further facts for the catalog: licence, parameters."""


class Session(Protocol):
    """A loaded model. Leaving the `with` block frees every byte that it held."""

    def __enter__(self) -> Session: ...

    def __exit__(self, *exc: object) -> None: ...

    def answer(self, requests: Iterable[tuple[str, Request]]) -> Iterator[Answer]:
        """Take (key, request) pairs lazily and yield each answer as soon as it is finished, in any order.

        Raises BackendError when the engine fails and a restart did not help. Answers yielded before that are good.
        """
        ...


class Backend(Protocol):
    """One way to reach models. Third parties add backends by the entry point group `ptk.backends`."""

    settings: type[ModelSettings]

    def resolve(self, settings: Any, root: Path) -> ResolvedModel:
        """Find the model without loading it; relative paths are against `root`. Raises ModelNotFound."""
        ...

    def open(self, settings: Any, model: ResolvedModel) -> Session:
        """Load the model. Raises BackendError."""
        ...

    def count_tokens(self, settings: Any, model: ResolvedModel, requests: list[Request]) -> list[int] | None:
        """Return the prompt tokens of each request, or None where the tokenizer is not at hand. Loads no model."""
        ...
