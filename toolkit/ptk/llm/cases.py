"""Solved cases that a model is shown before it is asked: few-shot prompts, as a part of the model."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import orjson
from pydantic import Field, ValidationError

from ptk.errors import ModelNotFound
from ptk.llm.model_files import ModelRoots, ModelVersion, find_model_folder
from ptk.llm.persona_turns import PersonaPlace, persona_turns, plain_prompt
from ptk.llm.prompt_files import Exemplar, as_text
from ptk.llm.request import Message
from ptk.params import Params, problems

__all__ = ["CASES_FILE", "ONE_SYSTEM_MESSAGE", "Case", "Cases", "asked", "find_cases", "write_cases"]

CASES_FILE = "cases.json"
ONE_SYSTEM_MESSAGE = "solved cases have a persona each, and there is one system message; write place: tag"


class Case(Params):
    """A request, the persona that asked, where there is one, and the response that it preferred."""

    prompt: str = Field(min_length=1)
    persona: str | None = Field(None, min_length=1)
    preferred: str = Field(min_length=1)


class _CaseFile(Params):
    cases: tuple[Case, ...] = Field(min_length=1)


@dataclass(frozen=True, slots=True)
class Cases:
    """The cases of one model, in the order in which they are shown."""

    cases: tuple[Case, ...]
    version: ModelVersion | None = None
    """The version in the catalog, where they come from there."""

    @property
    def digest(self) -> str:
        """SHA-256 over the cases in their order."""
        return hashlib.sha256(orjson.dumps([case.model_dump() for case in self.cases])).hexdigest()


def write_cases(cases: tuple[Case, ...], folder: Path) -> str:
    """Write the cases into a folder that `find_cases` reads; return their digest."""
    content = {"cases": [case.model_dump(exclude_none=True) for case in cases]}
    (folder / CASES_FILE).write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    return Cases(cases).digest


def find_cases(reference: str, roots: ModelRoots) -> Cases:
    """Return the cases that a folder, `catalog:ENTRY@REF` or `step:NAME` leads to. Raises ModelNotFound."""
    try:
        found = find_model_folder(reference, roots, "cases")
    except ModelNotFound as error:
        raise ModelNotFound(str(error), "cases") from error
    file = found.folder / CASES_FILE
    try:
        content = _CaseFile.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        raise ModelNotFound(
            f"'{reference}' ({found.folder}) lacks {CASES_FILE}; `tailor` with method: few_shot makes solved cases", "cases"
        ) from None
    except OSError as error:
        raise ModelNotFound(f"{file} can't be read: {error.strerror}", "cases") from error
    except ValidationError as error:
        place, what = next(problems(_CaseFile, error))
        where = ".".join(map(str, place))
        raise ModelNotFound(f"{file}: {f'{where}: ' if where else ''}{what}", "cases") from None
    return Cases(content.cases, found.version)


def asked(
    turns: tuple[Message, ...],
    persona: str | None,
    place: PersonaPlace,
    template: Literal["chat", "plain"],
    cases: tuple[Case | Exemplar, ...] = (),
) -> tuple[tuple[Message, ...], str]:
    """Return the turns with which a model is asked for a response, solved cases first; of plain text no turns, and the text."""
    solved, text = _solved(cases, personas=persona is not None, place=place)
    if template == "plain":
        shown = as_text([{"role": turn.role, "content": turn.content} for turn in turns])
        return (), text + plain_prompt(shown, persona, place)
    own = persona_turns(turns, persona, place)
    head = own[:1] if own[0].role == "system" else ()
    return (*head, *solved, *own[len(head) :]), ""


@lru_cache(maxsize=8)
def _solved(cases: tuple[Case | Exemplar, ...], *, personas: bool, place: PersonaPlace) -> tuple[tuple[Message, ...], str]:
    """Return solved cases as turns, and as plain text; without their personas where those are not shown."""
    turns: list[Message] = []
    texts: list[str] = []
    for case in cases:
        persona = case.persona if personas else None
        turns += [*persona_turns((Message("user", case.prompt),), persona, place), Message("assistant", case.preferred)]
        texts.append(f"{plain_prompt(case.prompt, persona, place)} {case.preferred}\n\n")
    return tuple(turns), "".join(texts)
