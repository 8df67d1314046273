"""A backend without a model: answers by a rule, for tests and for trying a spec's plumbing. Its answers mean nothing."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from ptk.llm.backend import ModelSettings, ResolvedModel
from ptk.llm.model_files import ModelRoots
from ptk.llm.request import Answer, Request
from ptk.params import UNKEYED

__all__ = ["ScriptedBackend", "ScriptedSettings", "backend"]

_TRAITS = ("patient", "busy", "curious", "careful", "practical", "playful", "sceptical", "methodical")
_WISHES = (
    "short direct answers",
    "worked examples",
    "plain steps in order",
    "reasons before advice",
    "a warm tone",
    "several options",
)


class ScriptedSettings(ModelSettings):
    """Settings of the scripted backend."""

    backend: Literal["scripted"]
    model: Literal["persona", "echo"] = Field(
        "persona", description="persona: a made-up persona; echo: the question's last line."
    )
    unparsable: float = Field(0.0, ge=0.0, le=1.0, description="Share of answers that are no persona.")
    seconds: Annotated[float, UNKEYED] = Field(0.0, ge=0.0, description="How long an answer takes.")


class ScriptedBackend:
    """Answers from a hash of the question: the same question, the same answer."""

    settings = ScriptedSettings
    remote = False
    gives = frozenset({"answers", "likelihoods"})

    def resolve(self, settings: ScriptedSettings, roots: ModelRoots) -> ResolvedModel:
        identity = {"scripted": settings.model, "unparsable": settings.unparsable, "version": 1}
        return ResolvedModel(f"scripted/{settings.model}", identity, {})

    def device(self) -> str | None:
        return None

    def open(self, settings: ScriptedSettings, model: ResolvedModel) -> ScriptedSession:
        return ScriptedSession(settings)

    def prompt_text(self, settings: ScriptedSettings, model: ResolvedModel, request: Request) -> str | None:
        return None

    def count_tokens(self, settings: ScriptedSettings, model: ResolvedModel, requests: list[Request]) -> list[int] | None:
        return [_words(request) for request in requests]

    def shared_tokens(self, settings: ScriptedSettings, model: ResolvedModel, requests: list[Request]) -> list[int] | None:
        return [0] * len(requests)


class ScriptedSession:
    """Answers one request after another."""

    def __init__(self, settings: ScriptedSettings) -> None:
        self._settings = settings

    def __enter__(self) -> ScriptedSession:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def answer(self, requests: Iterable[tuple[str, Request]]) -> Iterator[Answer]:
        for key, request in requests:
            if self._settings.seconds:
                time.sleep(self._settings.seconds)
            if request.continuation is not None:
                yield self._likelihood(key, request, request.continuation)
                continue
            if request.scored:
                yield self._scored(key, request)
                continue
            text = self._text(request)
            yield Answer(key, text, "stop", _words(request), len(text.split()))

    def _scored(self, key: str, request: Request) -> Answer:
        drawn = [_number(f"{_question(request)}\0{choice}") % 1000 / 100 + 0.01 for choice in request.scored]
        scores = tuple(math.log(share / (sum(drawn) + 1)) for share in drawn)
        text = request.scored[scores.index(max(scores))]
        return Answer(key, text, "stop", _words(request), 1, scores=scores)

    def _likelihood(self, key: str, request: Request, continuation: str) -> Answer:
        before = "\0".join([*(message.content for message in request.messages), request.prefill])
        words = [*continuation.split(), ""]
        scores = tuple(-(_number(f"{before}\0{at}\0{word}") % 1000 + 1) / 200 for at, word in enumerate(words))
        return Answer(key, "", "stop", _words(request), len(words), scores=scores)

    def _text(self, request: Request) -> str:
        if self._settings.model == "echo":
            return _question(request).splitlines()[-1]
        # Hashed here, not taken from the key, so that a wrong key is not hidden by a matching answer.
        number = _number(_question(request) + (f"\0{request.sample}" if request.sample else ""))
        if number % 1000 < self._settings.unparsable * 1000:
            return "I would rather not say."
        trait, wish = _TRAITS[number % len(_TRAITS)], _WISHES[number // 8 % len(_WISHES)]
        return f"The user is a {trait} person number {number % 10_000} and prefers {wish} every time."


def _question(request: Request) -> str:
    return request.messages[-1].content if request.messages else request.prefill


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])


def _words(request: Request) -> int:
    return sum(len(text.split()) for text in (*(message.content for message in request.messages), request.prefill))


backend: Any = ScriptedBackend()
