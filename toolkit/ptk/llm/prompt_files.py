"""Prompts and exemplars as data: YAML files with sandboxed Jinja templates, counted by the digest of their content."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

import orjson
from jinja2 import StrictUndefined, TemplateError, TemplateSyntaxError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import Field, ValidationError

from ptk.errors import SpecError
from ptk.params import Params, PathSetting, existing_file, problems
from ptk.yamlfile import Document, read_yaml

__all__ = ["Exemplar", "ExemplarFile", "PromptFile", "as_text"]

_SHIPPED = Path(__file__).parent / "prompts"


class _PromptText(Params):
    prompt: Literal[1]
    system: str = Field(min_length=1)
    user: str = Field(min_length=1)
    answer: str = Field(min_length=1)
    form: str = Field(min_length=1)


class Exemplar(Params):
    """A solved case shown to the model: a request, two responses, and the persona that prefers the first."""

    prompt: str = Field(min_length=1)
    preferred: str = Field(min_length=1)
    other: str = Field(min_length=1)
    persona: str = Field(min_length=1)


class _ExemplarTexts(Params):
    exemplars: tuple[Exemplar, ...] = Field(min_length=1)


@lru_cache(maxsize=256)
def _template(text: str) -> Any:
    return ImmutableSandboxedEnvironment(undefined=StrictUndefined, autoescape=False).from_string(text)


def _read(path: Path, model: type[Params]) -> tuple[Any, Document]:
    document = read_yaml(path)
    try:
        return model.model_validate_json(orjson.dumps(document.data)), document
    except ValidationError as error:
        raise SpecError([document.violation(place, what) for place, what in problems(model, error)]) from None


@dataclass(frozen=True)
class PromptFile(PathSetting):
    """A prompt: instruction, templates of a turn and of its answer, and the form that answers are held to."""

    written: str
    content: _PromptText

    @classmethod
    def shipped(cls, name: str) -> PromptFile:
        """Return the prompt of that name that ships with ptk."""
        return cls(name, _read(_SHIPPED / f"{name}.yaml", _PromptText)[0])

    @classmethod
    def from_text(cls, text: str, root: Path) -> PromptFile:
        if not text.endswith((".yaml", ".yml")):
            names = sorted(path.stem for path in _SHIPPED.glob("*.yaml"))
            if text not in names:
                raise ValueError(
                    f"no prompt '{text}' ships with ptk; there is {', '.join(names)}, or write the path of a .yaml file"
                )
            return cls.shipped(text)
        content, document = _read(existing_file(text, root), _PromptText)
        try:
            re.compile(content.form)
        except re.error as error:
            raise SpecError([document.violation(("form",), f"not a regular expression: {error}")]) from None
        for name in ("user", "answer"):
            try:
                _template(getattr(content, name)).render(dict.fromkeys(Exemplar.model_fields, "text"))
            except TemplateSyntaxError as error:
                raise SpecError([document.violation((name,), f"not a Jinja template: {error}")]) from None
            except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as error:
                raise SpecError([document.violation((name,), f"the template fails: {error}")]) from None
        return cls(text, content)

    def canonical(self) -> str:
        return hashlib.sha256(orjson.dumps(self.content.model_dump())).hexdigest()

    def user(self, values: Mapping[str, str]) -> str:
        return str(_template(self.content.user).render(values)).strip()

    def answer(self, values: Mapping[str, str]) -> str:
        return str(_template(self.content.answer).render(values)).strip()


@dataclass(frozen=True)
class ExemplarFile(PathSetting):
    """Exemplars of one domain."""

    written: str
    exemplars: tuple[Exemplar, ...]

    @classmethod
    def from_text(cls, text: str, root: Path) -> ExemplarFile:
        return cls(text, _read(existing_file(text, root), _ExemplarTexts)[0].exemplars)

    @cached_property
    def _digest(self) -> str:
        return hashlib.sha256(orjson.dumps([item.model_dump() for item in self.exemplars])).hexdigest()

    def canonical(self) -> str:
        return self._digest


def as_text(messages: Sequence[Mapping[str, str]]) -> str:
    """Return a conversation as the text a model is shown: a single turn as it is, several with their roles before them."""
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(f"{message['role'].capitalize()}: {message['content']}" for message in messages)
