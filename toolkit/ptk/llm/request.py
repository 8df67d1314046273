"""What is asked of a model and what comes back: values that every backend takes and gives."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import orjson
from pydantic import Field

from ptk.params import Params

__all__ = ["Answer", "Constraint", "Message", "Request", "Sampling", "request_key"]

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
    sampling: Sampling = _GREEDY
    """Filled in from the model's settings before the request is sent."""
    prefill: str = ""
    """Text with which the answer begins; the model continues it."""
    constraint: Constraint | None = None


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
    error: str | None = None
    """Why there is no answer: `prompt_too_long: ...`; only failures that would repeat are answers."""


def request_key(request: Request, model: Mapping[str, Any]) -> str:
    """Return the SHA-256, in hexadecimal, of everything that decides the answer.

    `model` is the identity that the backend gives: its digest, dtype, quantisation, adapter and chat template. Which row asks is
    not part of it, so equal questions share one answer.
    """
    constraint = request.constraint
    content = [
        1,
        model,
        [[message.role, message.content] for message in request.messages],
        request.prefill,
        request.sampling.model_dump(),
        None if constraint is None else [constraint.kind, constraint.value],
    ]
    return hashlib.sha256(orjson.dumps(content, option=orjson.OPT_SORT_KEYS)).hexdigest()
