"""A backend without a model: answers by a rule, for tests and for trying a spec's plumbing. Its answers mean nothing."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from ptk.llm.backend import ModelSettings, ResolvedModel
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

    def resolve(self, settings: ScriptedSettings, root: Path) -> ResolvedModel:
        identity = {"scripted": settings.model, "unparsable": settings.unparsable, "version": 1}
        return ResolvedModel(f"scripted/{settings.model}", identity, {})

    def open(self, settings: ScriptedSettings, model: ResolvedModel) -> ScriptedSession:
        return ScriptedSession(settings)

    def count_tokens(self, settings: ScriptedSettings, model: ResolvedModel, requests: list[Request]) -> list[int] | None:
        return [_words(request) for request in requests]


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
            text = self._text(request)
            yield Answer(key, text, "stop", _words(request), len(text.split()))

    def _text(self, request: Request) -> str:
        if self._settings.model == "echo":
            return request.messages[-1].content.splitlines()[-1]
        # Hashed here, not taken from the key, so that a wrong key is not hidden by a matching answer.
        number = int.from_bytes(hashlib.sha256(request.messages[-1].content.encode()).digest()[:8])
        if number % 1000 < self._settings.unparsable * 1000:
            return "I would rather not say."
        trait, wish = _TRAITS[number % len(_TRAITS)], _WISHES[number // 8 % len(_WISHES)]
        return f"The user is a {trait} person number {number % 10_000} and prefers {wish} every time."


def _words(request: Request) -> int:
    return sum(len(message.content.split()) for message in request.messages)


backend: Any = ScriptedBackend()
