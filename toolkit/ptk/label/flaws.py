"""What can be wrong with a text that a model generated, told from the text alone: it is empty, repeats itself, or breaks off."""

from __future__ import annotations

import re
from typing import Literal

__all__ = ["FLAWS", "flaws", "is_cut_off", "repeated_share"]

FLAWS = {
    "empty": "it has no letter or digit",
    "repetitive": "it says the same again and again",
    "truncated": "it breaks off",
}
"""What a text is flagged for, and what that means; a text has no flaw or some of them."""

Flaw = Literal["empty", "repetitive", "truncated"]

_WORD = re.compile(r"\w+(?:['’-]\w+)*")
_GRAM = 4
_CLOSED = re.compile(r"""[.!?…。！？。।؟:;*_`"'”’»)\]}>|~]\s*\Z""")
_ITEM = re.compile(r"\s*(?:[-*+•#>|]|\d+[.)]|```)")
_SENTENCE_WORDS = 5
"""A last line of fewer words may be a heading, a name or a signature."""


def repeated_share(text: str) -> float:
    """Return the share of runs of four words that stood in the text before, in [0, 1): 1 - distinct / all; 0 for fewer than two runs.

    It is the measure seq-rep-4 of Welleck et al., "Neural text generation with unlikelihood training" (ICLR 2020). Words are runs of
    letters and digits, in lower case, so text in scripts without blanks between words has hardly any.
    """
    words = [word.lower() for word in _WORD.findall(text)]
    runs = list(zip(*(words[start:] for start in range(_GRAM)), strict=False))
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def is_cut_off(text: str) -> bool:
    """Return whether the last line is a sentence without an end: five words or more, no mark at the end, not an item of a list.

    A guess, for texts of which nobody kept why the model stopped: verse and notes end like this too.
    """
    last = text.rstrip().rsplit("\n", 1)[-1]
    return len(_WORD.findall(last)) >= _SENTENCE_WORDS and _CLOSED.search(last) is None and _ITEM.match(last) is None


def flaws(text: str | None, finish_reason: str | None = None, *, most_repeated: float = 0.3) -> list[Flaw]:
    """Return the flaws of a generated text, in the order of `FLAWS`.

    `finish_reason` is why the model stopped, as the answers have it: with `length` the text is truncated, with any other it is not;
    without one that is guessed from the text. A text whose `repeated_share` is over `most_repeated` is repetitive.
    """
    if text is None or not any(map(str.isalnum, text)):
        return ["empty", "truncated"] if finish_reason == "length" else ["empty"]
    found: list[Flaw] = []
    if repeated_share(text) > most_repeated:
        found.append("repetitive")
    if finish_reason == "length" if finish_reason is not None else is_cut_off(text):
        found.append("truncated")
    return found
