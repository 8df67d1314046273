"""The exemplars that ship are what they ask of a model: their personas pass the checks, and all prompts can show them."""

from __future__ import annotations

import re
from itertools import combinations
from pathlib import Path

import pytest

from ptk.label.checks import copied_share, grams, grams_of, persona_failings
from ptk.llm.prompt_files import Exemplar, ExemplarFile, PromptFile
from ptk.text import words

FOLDER = Path(__file__).resolve().parents[2] / "specs" / "exemplars"
NAMES = ("advice", "dialogue", "forum", "mnemonics")
LITTLE = frozenset(
    words(
        "a an the is are and or but of in on at for with to from as than over that which who their them they it be being before own "
        "prefers user something someone one others without into by not"
    )
)


def exemplars(name: str) -> tuple[Exemplar, ...]:
    return ExemplarFile.from_text(f"{name}.yaml", FOLDER).exemplars


def test_there_are_five_for_each_kind_of_text() -> None:
    assert sorted(path.stem for path in FOLDER.iterdir()) == sorted(NAMES)
    assert [len(exemplars(name)) for name in NAMES] == [5] * 4


@pytest.mark.parametrize("name", NAMES)
def test_every_persona_passes_the_checks_and_takes_no_wording_from_its_pair(name: str) -> None:
    cases = exemplars(name)
    for case in cases:
        others = grams_of(other.persona for other in cases if other is not case)
        pair = (case.prompt, case.preferred, case.other, case.difference or "")
        assert persona_failings(case.persona, others, grams_of(pair), most_copied=0.0, lengths=(5, 60)) == []
        assert copied_share(case.persona, grams_of(pair)) == 0.0
        shared = (set(words(case.persona)) - LITTLE) & set(words(" ".join(pair[:3])))
        assert len(shared) <= 1, f"{case.persona}: {shared}"


@pytest.mark.parametrize("name", NAMES)
def test_every_persona_has_the_form_that_a_model_is_asked_for(name: str) -> None:
    for case in exemplars(name):
        assert re.fullmatch(r"The user is [^.]+ and prefers [^.]+\.", case.persona)
        for prompt in map(PromptFile.shipped, PromptFile.names):
            answer = prompt.answer(case.model_dump())
            assert re.fullmatch(prompt.content.form, answer), answer
            if prompt.content.think_form is not None:
                assert re.fullmatch(prompt.content.think_form, case.difference or "")


def test_no_two_personas_are_alike() -> None:
    personas = [case.persona for name in NAMES for case in exemplars(name)]
    for one, other in combinations(personas, 2):
        assert copied_share(one, grams(other)) == 0.0, (one, other)
