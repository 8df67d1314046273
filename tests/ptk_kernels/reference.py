"""What the kernels compute, in plain Python: slow and obvious."""

from __future__ import annotations

import re

from ptk_kernels.loops import BASE, COUNT, OFFSET, PRIME
from ptk_kernels.shingle import LOWER, SEPARATORS, SINGLES

M = (1 << 64) - 1
ASCII_SEPARATORS = "\0-/:-@[-`{-\x7f"


def span(ranges: tuple[tuple[int, ...], ...]) -> str:
    return "".join(f"{chr(first)}-{chr(last)}" for first, last, *_ in ranges)


SMALL = {code: code + by for first, last, by in ((0x41, 0x5A, 0x20), *LOWER) for code in range(first, last + 1)}
WORD = re.compile(f"[{span(SINGLES)}]|[^{ASCII_SEPARATORS}{span(SEPARATORS)}{span(SINGLES)}]+")


def words(text: str) -> list[str]:
    return [word.translate(SMALL) for word in WORD.findall(text)]


def mix(value: int) -> int:
    value = (value ^ value >> 33) * 0xFF51AFD7ED558CCD & M
    value = (value ^ value >> 33) * 0xC4CEB9FE1A85EC53 & M
    return value ^ value >> 33


def word_hash(word: str) -> int:
    state = OFFSET
    for character in word:
        state = (state ^ ord(character)) * PRIME & M
    return mix(state)


def shingles(text: str | None, ngram: int) -> list[int]:
    hashes = [word_hash(word) for word in words(text or "")]
    size = min(ngram, len(hashes))
    grams = [hashes[at : at + size] for at in range(len(hashes) - size + 1)] if size else []
    return [mix((size * COUNT + sum(word * BASE ** (size - 1 - at) for at, word in enumerate(gram))) & M) for gram in grams]


def jaccard(left: set[int], right: set[int]) -> float:
    return len(left & right) / len(left | right) if left | right else 0.0
