from __future__ import annotations

import re

import pytest

from ptk.llm.vllm_worker import Worker
from ptk.llm.worker import Refused


class Tokenizer:
    """Splits a text by a pattern; equal pieces get equal numbers."""

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.pieces: list[str] = []

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        found = re.findall(self.pattern, text)
        self.pieces += [piece for piece in found if piece not in self.pieces]
        return [self.pieces.index(piece) for piece in found]


def continued(pattern: str, text: str, choices: list[str]) -> tuple[list[str], list[str]]:
    """Return the pieces of the prompt and of the choices."""
    worker = object.__new__(Worker)
    worker.tokenizer = Tokenizer(pattern)
    tokens = worker.tokenizer.encode(text, add_special_tokens=False)
    prompt, made = worker.continued(text, tokens, choices, begun=True)
    return [worker.tokenizer.pieces[number] for number in prompt], [worker.tokenizer.pieces[number] for number in made]


def test_a_digit_is_a_token_of_its_own() -> None:
    assert continued(r"\d| |\w+", "response ", ["1", "2"]) == (["response", " "], ["1", "2"])


def test_a_blank_before_a_choice_may_be_part_of_its_token() -> None:
    assert continued(r" ?\d+| ?\w+| ", "a response ", ["1", "2"]) == (["a", " response"], [" 1", " 2"])
    assert continued(r" ?\d+| ?\w+| ", "a response", [" 1", " 2"]) == (["a", " response"], [" 1", " 2"])


@pytest.mark.parametrize(("text", "choices"), [("response ", ["1", "many more"]), ("response 4", ["1", "2"])])
def test_a_choice_that_is_not_one_token_is_refused(text: str, choices: list[str]) -> None:
    with pytest.raises(Refused, match="not one token"):
        continued(r"\d+| |\w+", text, choices)
