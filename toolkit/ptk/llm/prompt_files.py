"""Prompts and exemplars as data: YAML files with sandboxed Jinja templates, counted by the digest of their content."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import orjson
from jinja2 import StrictUndefined, TemplateError, TemplateSyntaxError
from jinja2.meta import find_undeclared_variables
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import Field, ValidationError

from ptk.errors import SpecError
from ptk.params import Params, PathSetting, existing_file, problems
from ptk.yamlfile import Document, read_yaml

__all__ = [
    "Exemplar",
    "ExemplarFile",
    "PersonaComparisonPrompt",
    "PersonaJudgePrompt",
    "PromptFile",
    "PromptSetting",
    "RubricPrompt",
    "ScreenPrompt",
    "UserPersonaPrompt",
    "as_text",
    "first_line",
    "rendered",
]

_SHIPPED = Path(__file__).parent / "prompts"


class _QuestionText(Params):
    prompt: Literal[1]
    system: str = Field(min_length=1)
    user: str = Field(min_length=1)
    form: str = Field(min_length=1)


class _PromptText(_QuestionText):
    answer: str = Field(min_length=1)


class _ChoiceText(_PromptText):
    begin: str | None = Field(None, min_length=1)


class _ScreenText(_QuestionText):
    yes: str = Field(min_length=1)
    no: str = Field(min_length=1)


class _PersonaPromptText(_PromptText):
    think: str | None = Field(None, min_length=1)
    think_form: str | None = Field(None, min_length=1)
    repair: str | None = Field(None, min_length=1)


class Exemplar(Params):
    """A solved case shown to the model: a request, two responses, how they differ, and the persona that prefers the first."""

    prompt: str = Field(min_length=1)
    preferred: str = Field(min_length=1)
    other: str = Field(min_length=1)
    persona: str = Field(min_length=1)
    difference: str | None = Field(None, min_length=1)


class _ExemplarTexts(Params):
    exemplars: tuple[Exemplar, ...] = Field(min_length=1)


@lru_cache(maxsize=256)
def _template(text: str) -> Any:
    return ImmutableSandboxedEnvironment(undefined=StrictUndefined, autoescape=False).from_string(text)


def rendered(template: str, values: Mapping[str, Any]) -> str:
    """Return a sandboxed template with its values. Raises ValueError, with a sentence for the user, where it is broken or fails."""
    try:
        return str(_template(template).render(values))
    except TemplateSyntaxError as error:
        raise ValueError(f"not a Jinja template: {error}") from None
    except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"the template fails: {error}") from None


def _read(path: Path, model: type[Params]) -> tuple[Any, Document]:
    document = read_yaml(path)
    try:
        return model.model_validate_json(orjson.dumps(document.data)), document
    except ValidationError as error:
        raise SpecError([document.violation(place, what) for place, what in problems(model, error)]) from None


@dataclass(frozen=True)
class PromptSetting(PathSetting):
    """A prompt: instruction, templates of turns, and the form that answers are held to. Each kind of question has a subclass.

    It is written as the name of a prompt of its kind that ships with ptk, or as the path of a file.
    """

    written: str
    content: Any

    layout: ClassVar[type[_QuestionText]] = _PromptText
    """The file's keys."""
    names: ClassVar[tuple[str, ...]] = ()
    """Those that ship with ptk."""
    sees: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """What each template may show."""
    examples: ClassVar[Mapping[str, Any]] = {}
    """For what a template sees that is no text: a value to try it with."""
    shows: ClassVar[tuple[str, ...]] = ()
    """What `user` must show, so that the question can be answered at all."""
    forms: ClassVar[tuple[str, ...]] = ("form",)
    """The keys that are regular expressions."""
    groups: ClassVar[int] = 0
    """How many groups `form` must have."""

    @classmethod
    def shipped(cls, name: str) -> Self:
        """Return the prompt of that name that ships with ptk."""
        return cls(name, _read(_SHIPPED / f"{name}.yaml", cls.layout)[0])

    @classmethod
    def from_text(cls, text: str, root: Path) -> Self:
        if not text.endswith((".yaml", ".yml")):
            if text not in cls.names:
                names = ", ".join(sorted(cls.names))
                raise ValueError(f"no prompt '{text}' ships with ptk; there is {names}, or write the path of a .yaml file")
            return cls.shipped(text)
        content, document = _read(existing_file(text, root), cls.layout)
        for name in cls.forms:
            if (form := getattr(content, name)) is None:
                continue
            try:
                groups = re.compile(form).groups
            except re.error as error:
                raise SpecError([document.violation((name,), f"not a regular expression: {error}")]) from None
            if cls.groups and groups != cls.groups:
                raise SpecError([document.violation((name,), f"needs {cls.groups} group, around the 1 or 2; it has {groups}")])
        for name, values in cls.sees.items():
            if (template := getattr(content, name)) is None:
                continue
            try:
                rendered(template, {value: cls.examples.get(value, "text") for value in values})
            except ValueError as error:
                raise SpecError([document.violation((name,), str(error))]) from None
        made = cls(text, content)
        unseen = [name for name in cls.shows if not made.mentions(name)]
        if unseen:
            raise SpecError([document.violation(("user",), f"the template does not show {{{{ {unseen[0]} }}}}")])
        return made

    def canonical(self) -> str:
        return hashlib.sha256(orjson.dumps(self.content.model_dump(exclude_none=True))).hexdigest()

    def mentions(self, name: str, template: str = "user") -> bool:
        """Return whether a template, by default that of the question, shows the value of that name."""
        return name in find_undeclared_variables(ImmutableSandboxedEnvironment().parse(getattr(self.content, template)))

    def system(self) -> str:
        return str(self.content.system).strip()

    def user(self, values: Mapping[str, Any]) -> str:
        return str(_template(self.content.user).render(values)).strip()

    def begin(self, values: Mapping[str, str]) -> str:
        """Return what the answer begins with, blanks at its end included; nothing where the prompt's kind or file has no `begin`."""
        return str(_template(getattr(self.content, "begin", None) or "").render(values))

    def answer(self, values: Mapping[str, str]) -> str:
        return str(_template(self.content.answer).render(values)).strip()


@dataclass(frozen=True)
class PromptFile(PromptSetting):
    """A prompt that asks for the persona who prefers one response, at once or after a first question about the two responses."""

    content: _PersonaPromptText

    layout = _PersonaPromptText
    names = ("infer_personas", "infer_personas_zero_shot", "infer_personas_contrast", "infer_personas_two_step")
    forms = ("form", "think_form")
    sees: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "think": ("prompt", "preferred", "other"),
        "user": ("prompt", "preferred", "other", "difference"),
        "answer": ("prompt", "preferred", "other", "difference", "persona"),
        "repair": ("reasons",),
    }

    @classmethod
    def from_text(cls, text: str, root: Path) -> Self:
        made = super().from_text(text, root)
        if made.content.think is None and made.mentions("difference"):
            raise ValueError(
                f"'{text}': 'user' shows {{{{ difference }}}}, which only a prompt with 'think' has found out by then"
            )
        if made.content.think is None and made.content.think_form is not None:
            raise ValueError(f"'{text}': 'think_form' is the form of an answer to 'think', which is not there")
        return made

    @property
    def needs_difference(self) -> bool:
        """Return whether a solved case has to say how its responses differ."""
        return self.content.think is not None or self.mentions("difference", "answer")

    def think(self, values: Mapping[str, str]) -> str:
        return str(_template(self.content.think or "").render(values)).strip()

    def repair(self, reasons: str) -> str:
        return str(_template(self.content.repair or "").render(reasons=reasons)).strip()


@dataclass(frozen=True)
class PersonaJudgePrompt(PromptSetting):
    """A prompt that asks which of two responses the user described by a persona would prefer: 1 or 2."""

    content: _ChoiceText

    layout = _ChoiceText
    names = ("judge_personas",)
    sees: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "user": ("prompt", "first", "second", "persona"),
        "begin": ("prompt", "first", "second", "persona"),
        "answer": ("choice",),
    }
    shows = ("first", "second", "persona")
    groups = 1


@dataclass(frozen=True)
class PersonaComparisonPrompt(PromptSetting):
    """A prompt that asks which of two personas most people would prefer: 1 or 2."""

    content: _ChoiceText

    layout = _ChoiceText
    names = ("compare_personas",)
    sees: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "user": ("first", "second"),
        "begin": ("first", "second"),
        "answer": ("choice",),
    }
    shows = ("first", "second")
    groups = 1


@dataclass(frozen=True)
class RubricPrompt(PromptSetting):
    """A prompt that asks which of two responses is better by a rubric: 1 or 2."""

    content: _ChoiceText

    layout = _ChoiceText
    names = ("quality", "personalization", "harmlessness")
    sees: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "user": ("prompt", "first", "second", "persona"),
        "begin": ("prompt", "first", "second", "persona"),
        "answer": ("choice",),
    }
    shows = ("first", "second")
    groups = 1


@dataclass(frozen=True)
class ScreenPrompt(PromptSetting):
    """A prompt that asks which of two sentences is true of a text, one that would flag it and one that would not: 1 or 2."""

    content: _ScreenText

    layout = _ScreenText
    names = ("harm",)
    sees: ClassVar[Mapping[str, tuple[str, ...]]] = {"user": ("text", "prompt", "first", "second")}
    shows = ("text", "first", "second")
    groups = 1


@dataclass(frozen=True)
class UserPersonaPrompt(PromptSetting):
    """A prompt that asks for the persona who explains several choices of one user."""

    content: _QuestionText

    layout = _QuestionText
    names = ("infer_user_persona",)
    sees: ClassVar[Mapping[str, tuple[str, ...]]] = {"user": ("pairs",)}
    examples: ClassVar[Mapping[str, Any]] = {"pairs": [{"prompt": "text", "preferred": "text", "other": "text"}]}
    shows = ("pairs",)


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
        return hashlib.sha256(orjson.dumps([item.model_dump(exclude_none=True) for item in self.exemplars])).hexdigest()

    def canonical(self) -> str:
        return self._digest


def as_text(messages: Sequence[Mapping[str, str]]) -> str:
    """Return a conversation as the text a model is shown: a single turn as it is, several with their roles before them."""
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(f"{message['role'].capitalize()}: {message['content']}" for message in messages)


def first_line(text: str) -> str:
    """Return the first line with words in it, trimmed; the empty string where there is none."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")
