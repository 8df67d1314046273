"""What can be wrong with a persona that a model wrote: pure functions of texts.

A persona may have the right form and still say nothing of the person: small models repeat a solved case that they were shown,
quote the pair, or name the answer in place of the person who would like it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

from ptk.label.flaws import repeated_share
from ptk.text import words

__all__ = [
    "CHECKS",
    "copied_share",
    "grams",
    "grams_of",
    "is_leaked",
    "is_one_sentence",
    "names_protected",
    "persona_failings",
]

CHECKS = {
    "several_sentences": "it must be one sentence",
    "length": "it must have {least} to {most} words",
    "repetitive": "it says the same again and again",
    "copied_exemplar": "it repeats one of the solved cases",
    "copied_pair": "it repeats the wording of the request or of a response",
    "leaked": "it speaks of the responses, not of the person",
    "protected": "it must not speak of age, gender, origin, religion, health or orientation",
    "identical": "the persona who would prefer the other response was described with the same sentence",
}
"""What a persona of the right form is checked for, and what is said of one that fails."""

_GRAM = 4
_MOST_REPEATED = 0.2
"""Share of its runs of four words that may stand in a persona twice; in one sentence hardly any do."""
_OPENING = re.compile(r"(?i)\s*the user\s+(?:is|has|likes|wants|needs|values)\s+")
_SENTENCE_END = re.compile(r"[.!?]+[\"')\]]*\s+(?=[A-Z\"'(])")
_ABBREVIATION = re.compile(r"\b(?:e\.g|i\.e|etc|vs|cf|approx|Dr|Mr|Mrs|Ms|St)\.\s+")

_ANSWER = r"(?:answer|response|reply|option|choice|text|message)"
_LEAKS = re.compile(
    rf"""(?xi) \b(?:
        (?:pick|choose|select|favou?r|prefer)(?:s|d|ed|ing)?\s+(?:the|this|that)\s+(?:[\w-]+,?\s+){{0,2}}{_ANSWER}\b
        | (?:picking|choosing|picked|chose|chosen)\s+(?:the|this|that)\s+(?:[\w-]+,?\s+){{0,2}}{_ANSWER}\b
        | would\s+(?:likely\s+|probably\s+)?(?:pick|choose|select)\b
        | (?:the|this|that)\s+(?:first|second|1st|2nd|other|former|latter|preferred|rejected|chosen|above|given)\s+{_ANSWER}
        | (?:the|this|that)\s+(?:preferred|chosen|rejected)\s+one
        | (?:this|that)\s+{_ANSWER}\b
        | (?:these|those|both|neither)(?:\s+of\s+the)?\s+{_ANSWER}s?\b
        | {_ANSWER}\s+(?:[12]|a|b|one|two)\b(?=\s*(?:$|[.,;]|is|was|to|over|because))
    )"""
)

_PROTECTED = {
    "age": "age aged year-old teen teens teenage teenager teenagers child kid toddler adolescent elderly senior seniors pensioner "
    "pensioners retiree retirees retired middle-aged millennial millennials boomer boomers octogenarian",
    "gender": "gender man men male males woman women female females boy boys girl girls lady ladies gentleman gentlemen masculine "
    "feminine mother father mom mum dad husband wife transgender trans nonbinary non-binary cisgender he she his her",
    "origin": "race racial ethnic ethnicity nationality immigrant immigrants migrant migrants refugee refugees foreigner foreigners black "
    "caucasian african asian hispanic latino latina latinx arab arabic american british chinese european french german indian irish "
    "italian japanese korean mexican polish russian spanish turkish roma romani aboriginal native-born",
    "religion": "religion religious christian christians catholic protestant muslim muslims islamic jew jews jewish hindu hindus buddhist "
    "buddhists sikh atheist atheists agnostic churchgoer devout pious mormon",
    "health": "disabled disability disabilities autistic autism adhd dyslexia dyslexic blind deaf depressed depression diabetic diabetes "
    "pregnant pregnancy bipolar schizophrenic cancer illness disease chronically wheelchair obese alcoholic addict",
    "orientation": "gay lesbian bisexual homosexual heterosexual queer lgbt lgbtq pansexual asexual",
    "politics": "democrat democrats republican republicans liberal-leaning conservative-leaning left-wing right-wing socialist communist",
}
_PROTECTED_WORDS = {word: kind for kind, listed in _PROTECTED.items() for word in listed.split()}
_PROTECTED_WORD = re.compile(
    r"(?i)(?<![\w-])(?:" + "|".join(sorted(map(re.escape, _PROTECTED_WORDS), key=len, reverse=True)) + r")(?![\w-])"
    r"|\b\d{1,3}[- ]years?[- ]old\b|\bin (?:his|her|their) (?:teens|twenties|thirties|forties|fifties|sixties|seventies|eighties)\b"
)


def grams(text: str) -> frozenset[tuple[str, ...]]:
    """Return every four words that follow each other in `text`."""
    found = words(text)
    return frozenset(tuple(found[at : at + _GRAM]) for at in range(len(found) - _GRAM + 1))


@lru_cache(maxsize=4096)
def _own(persona: str) -> frozenset[tuple[str, ...]]:
    """Return the four-word runs of a persona without its opening, which the form gives to all of them."""
    return grams(_OPENING.sub("", persona, count=1))


def grams_of(texts: Iterable[str]) -> frozenset[tuple[str, ...]]:
    """Return the runs of four words of several texts."""
    return frozenset[tuple[str, ...]]().union(*map(grams, texts))


def copied_share(persona: str, sources: frozenset[tuple[str, ...]]) -> float:
    """Return the share of the persona's runs of four words that are among `sources`; 0 where it has none."""
    own = _own(persona)
    return len(own & sources) / len(own) if own else 0.0


def is_one_sentence(text: str) -> bool:
    """Return whether no sentence ends inside `text`."""
    return bool(text.strip()) and not _SENTENCE_END.search(_ABBREVIATION.sub("", text.strip()))


def is_leaked(persona: str) -> bool:
    """Return whether the persona names the answer it was inferred from: `would pick the answer`, `this response`."""
    return _LEAKS.search(persona) is not None


def names_protected(persona: str) -> str | None:
    """Return the kind of protected attribute that the persona names, such as `age`, or None."""
    found = _PROTECTED_WORD.search(persona)
    return None if found is None else _PROTECTED_WORDS.get(found[0].lower(), "age")


def persona_failings(
    persona: str,
    exemplars: frozenset[tuple[str, ...]],
    pair: frozenset[tuple[str, ...]],
    *,
    most_copied: float,
    lengths: tuple[int, int],
) -> list[str]:
    """Return the names of the checks that the persona fails, in the order of `CHECKS`; `identical` needs both and is not among them.

    `exemplars` and `pair` are the runs of four words of what it may be copied from.
    """
    least, most = lengths
    found = {
        "several_sentences": not is_one_sentence(persona),
        "length": not least <= len(words(persona)) <= most,
        "repetitive": repeated_share(persona) > _MOST_REPEATED,
        "copied_exemplar": copied_share(persona, exemplars) > most_copied,
        "copied_pair": copied_share(persona, pair) > most_copied,
        "leaked": is_leaked(persona),
        "protected": names_protected(persona) is not None,
    }
    return [name for name, failed in found.items() if failed]
