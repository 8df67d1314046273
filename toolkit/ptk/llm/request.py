"""What is asked of a model and what comes back: values that every backend takes and gives."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import orjson
from pydantic import Field

from ptk.params import Params

__all__ = ["UNANSWERED", "Answer", "Constraint", "Message", "Request", "Sampling", "drawn", "request_key"]

UNANSWERED = "unanswered"
"""Reason in the error of a request that may be answered another time: the server was busy, slow or broken."""

Role = Literal["system", "user", "assistant"]


class Sampling(Params):
    """How tokens are drawn. Every field decides answers, so every field is part of a request's key."""

    temperature: float = Field(0.0, ge=0.0, description="0 is greedy.")
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    top_k: int = Field(0, ge=0, description="0 keeps all tokens.")
    max_tokens: int = Field(200, ge=1, description="The most tokens an answer may have.")
    seed: int = Field(0, description="Seed of sampled answers; has no effect at temperature 0.")
    repetition_penalty: float = Field(1.0, gt=0.0)
    stop: tuple[str, ...] = Field((), description="Strings at which an answer ends; they are not part of it.")


_GREEDY = Sampling()


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Constraint:
    """A form that the answer is held to while it is decoded."""

    kind: Literal["regex", "choice", "json"]
    value: str | tuple[str, ...]
    """A regular expression, the choices, or a JSON schema as text."""


@dataclass(frozen=True, slots=True)
class Request:
    """One question to a model. `row` and `slot` say whose it is and are no part of its key."""

    row: str
    """Key of the row that asks."""
    slot: str
    """Which of the row's questions this is, such as `chosen` or `rejected`."""
    messages: tuple[Message, ...]
    """Turns for the model's chat template; without any, `prefill` is plain text that the model continues."""
    sampling: Sampling = _GREEDY
    """Filled in from the model's settings, and from `decided`, before the request is sent."""
    prefill: str = ""
    """Text with which the answer begins; the model continues it."""
    constraint: Constraint | None = None
    scored: tuple[str, ...] = ()
    """Not empty: nothing is written; wanted are the log-probabilities of these continuations, each one token of the model's."""
    continuation: str | None = None
    """Not None: nothing is written; wanted is the log-probability of each token of this answer and of the end of its turn."""
    sample: int = 0
    """Which of several answers to the same question, drawn at a temperature above 0, this is."""
    decided: tuple[tuple[str, Any], ...] = ()
    """Fields of `sampling` that the operator decides for this question in place of the model's settings, with their values."""
    adapter: Path | None = None
    """Folder of the LoRA adapter to answer with, filled in from the model; the model's identity stands for it in the key."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model gave for the request of that key."""

    key: str
    """The request's key, as hexadecimal digits."""
    text: str
    """The generated text, without the prefill and without the stop string."""
    finish_reason: str
    """`stop`, `length`, or `error`."""
    prompt_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    """How many of the prompt's tokens the engine had already computed for an earlier request."""
    scores: tuple[float, ...] | None = None
    """Natural logarithms of the probabilities of the request's `scored`, in their order; `text` is then the likeliest of them. Or those
    of the tokens of its `continuation`; `text` is then empty."""
    error: str | None = None
    """Why there is no answer: a reason, a colon and words, such as `prompt_too_long: ...`. Never stored."""
    cut_tokens: int = 0
    """How many tokens of the prompt were left out, by declared policy, to fit the model's window."""

    @property
    def unanswered(self) -> bool:
        """Whether the request failed for now, and should be asked again in the next run."""
        return self.error is not None and self.error.partition(":")[0] == UNANSWERED


def drawn(request: Request) -> dict[str, Any]:
    """Return a request's sampling as plain data, with a seed of its own for each sample of one question."""
    sampling = request.sampling.model_dump()
    return {**sampling, "seed": (sampling["seed"] + 1_000_003 * request.sample) % (1 << 63)}


def request_key(request: Request, model: Mapping[str, Any]) -> str:
    """Return the SHA-256, in hexadecimal, of everything that decides the answer.

    `model` is the identity that the backend gives: its digest, dtype, quantisation, adapter and chat template. Which row asks is
    not part of it, so equal questions share one answer.
    """
    constraint = request.constraint
    content: list[Any] = [
        1,
        model,
        [[message.role, message.content] for message in request.messages],
        request.prefill,
        None if request.scored or request.continuation is not None else request.sampling.model_dump(),
        None if constraint is None else [constraint.kind, constraint.value],
    ]
    if request.scored:
        content.append({"scored": request.scored})
    if request.continuation is not None:
        content.append({"continuation": request.continuation})
    if request.sample and request.sampling.temperature > 0:
        content.append({"sample": request.sample})
    return hashlib.sha256(orjson.dumps(content, option=orjson.OPT_SORT_KEYS)).hexdigest()
