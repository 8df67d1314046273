"""What a backend is: it resolves a model reference without loading anything, then opens a session that answers requests."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Protocol

from pydantic import Field

from ptk.llm.cases import Cases
from ptk.llm.model_files import ModelRoots, ModelVersion
from ptk.llm.request import Answer, Request, Sampling
from ptk.params import REFERENCE, Params

__all__ = ["Backend", "ModelSettings", "ResolvedModel", "Session", "with_adapters"]


class ModelSettings(Params):
    """Base of a backend's settings: one entry under `models` in a spec."""

    backend: str
    sampling: Sampling = Sampling()
    cases: Annotated[str | None, REFERENCE] = Field(
        None,
        min_length=1,
        description="Solved cases that it is shown first, as tailor makes them with method: few_shot: a folder, catalog:ENTRY@REF, or "
        "step:NAME.",
    )


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """A model found: what it is, exactly, and where it lies on this machine."""

    reference: str
    """As written in the spec, such as `bundled/smollm2-135m-instruct`."""
    identity: Mapping[str, Any]
    """Everything about the model that decides answers, as JSON data: digest of weights and tokenizer, dtype, adapter."""
    limits: Mapping[str, Any]
    """What decides which requests are made and refused (the cases, the window), but no answer: part of a step's key, not of a
    request's."""
    path: Path | None = None
    """Folder with the model's files; of an endpoint's, the folder with its tokenizer, where one is named."""
    revision: str | None = None
    """Commit of a model from the Hub."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    """Further facts for the catalog: licence, parameters."""
    engine: str | None = None
    """Models with the same name here are answered by one session; None is a session of its own."""
    adapter: Path | None = None
    """Folder of the LoRA adapter that the engine applies to this model's requests."""
    adapters: tuple[Path, ...] = ()
    """Adapters of all models that the session will be asked for, filled in by whoever opens it."""
    cases: Cases | None = None
    """Solved cases that it is shown first, by the steps that show any."""
    versions: tuple[ModelVersion, ...] = ()
    """Versions of the catalog that the model and its adapter are."""
    waits_for: str | None = None
    """The step that has yet to make its files: until then it can't be asked, and its identity is a stand-in."""


def with_adapters(model: ResolvedModel, others: Iterable[ResolvedModel]) -> ResolvedModel:
    """Return the model with the adapters of all models, its own among them, that share its engine."""
    sharing = (other for other in (model, *others) if other is model or (model.engine and other.engine == model.engine))
    return replace(model, adapters=tuple(sorted({other.adapter for other in sharing if other.adapter is not None})))


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
    remote: bool
    """Whether its models run elsewhere, so that a session needs no memory here and no worker of a cluster."""
    gives: frozenset[str]
    """What its models can be asked for: `answers` to be written, `likelihoods` of answers that are given."""

    def resolve(self, settings: Any, roots: ModelRoots) -> ResolvedModel:
        """Find the model without loading it; names that are no other's lead where `roots` says. Raises ModelNotFound."""
        ...

    def device(self) -> str | None:
        """Return what kind of processor its models run on here, where that decides a setting that was left open, else None."""
        ...

    def open(self, settings: Any, model: ResolvedModel) -> Session:
        """Load the model. Raises BackendError."""
        ...

    def prompt_text(self, settings: Any, model: ResolvedModel, request: Request) -> str | None:
        """Return the text that the model continues, or None where the backend does not know it. Loads no model."""
        ...

    def count_tokens(self, settings: Any, model: ResolvedModel, requests: list[Request]) -> list[int] | None:
        """Return the prompt tokens of each request, or None where the tokenizer is not at hand. Loads no model."""
        ...

    def shared_tokens(self, settings: Any, model: ResolvedModel, requests: list[Request]) -> list[int] | None:
        """Return how many prompt tokens of each request need no computing when they are asked in this order: an earlier one began with them.

        None where that can't be told. Loads no model.
        """
        ...
