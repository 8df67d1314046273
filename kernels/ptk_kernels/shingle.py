"""Word n-grams of texts as 64-bit hashes, read from Arrow buffers.

A text is cut into words like this; `tests/ptk_kernels/reference.py` has the same in a few lines of plain Python:

- ASCII letters and digits, and every code point from U+0080 that is neither a separator nor a word by itself, make up words.
- Code points in SEPARATORS and all other ASCII separate words.
- Code points in SINGLES (ideographs, kana, Thai, Lao, Burmese, Khmer, emoji) are words by themselves: these scripts have no spaces.
- A to Z, and the capitals of Latin-1, Greek, Cyrillic and the full-width forms, count as their small letters.

Nothing else is normalised. The tables are written out here, so that hashes are the same on every machine and with every version of
Python. A word's hash is FNV-1a over its code points, 64 bits, and then `mix`. The hash of an n-gram is `mix` of the sum, modulo 2^64, of
n * COUNT and of its words' hashes, the word that is k words before the last one multiplied by BASE to the k-th power.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl

from ptk_kernels.compiled import in_parts
from ptk_kernels.loops import BASE, SINGLE, shingle_rows
from ptk_kernels.views import Views, string_views

__all__ = ["LOWER", "SEPARATORS", "SINGLES", "Ragged", "joined", "shingle", "shingles_of_rows"]

SEPARATORS = (
    (0x80, 0xA9), (0xAB, 0xB4), (0xB6, 0xB9), (0xBB, 0xBF), (0xD7, 0xD7), (0xF7, 0xF7), (0x37E, 0x37E), (0x387, 0x387),
    (0x55A, 0x55F), (0x589, 0x58A), (0x5BE, 0x5BE), (0x5C0, 0x5C0), (0x5C3, 0x5C3), (0x5F3, 0x5F4), (0x60C, 0x60D),
    (0x61B, 0x61F), (0x66A, 0x66D), (0x6D4, 0x6D4), (0x964, 0x965), (0x1680, 0x1680), (0x2000, 0x206F), (0x20A0, 0x20CF),
    (0x2190, 0x25FF), (0x27C0, 0x2BFF), (0x2E00, 0x2E7F), (0x3000, 0x3004), (0x3008, 0x3020), (0x3030, 0x3030),
    (0x303D, 0x303F), (0x30A0, 0x30A0), (0x30FB, 0x30FB), (0xFE00, 0xFE1F), (0xFE30, 0xFE6F), (0xFEFF, 0xFEFF),
    (0xFF00, 0xFF0F), (0xFF1A, 0xFF20), (0xFF3B, 0xFF40), (0xFF5B, 0xFF65), (0xFFE0, 0xFFFF),
)  # fmt: skip
"""First and last code points of what separates words, beyond ASCII."""

SINGLES = (
    (0xE00, 0xE4F), (0xE80, 0xECF), (0x1000, 0x109F), (0x1780, 0x17D3), (0x2600, 0x27BF), (0x2E80, 0x2FFF), (0x3005, 0x3007),
    (0x3021, 0x302F), (0x3031, 0x303C), (0x3040, 0x309F), (0x30A1, 0x30FA), (0x30FC, 0x312F), (0x31A0, 0x31BF), (0x31F0, 0x31FF),
    (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0xFF66, 0xFF9F), (0x1F000, 0x1FAFF), (0x20000, 0x3FFFF),
)  # fmt: skip
"""First and last code points of what is a word by itself."""

LOWER = (
    (0xC0, 0xD6, 0x20), (0xD8, 0xDE, 0x20), (0x391, 0x3A1, 0x20), (0x3A3, 0x3AB, 0x20), (0x400, 0x40F, 0x50), (0x410, 0x42F, 0x20),
    (0xFF21, 0xFF3A, 0x20),
)  # fmt: skip
"""First and last code points of capitals beyond ASCII, and how far behind them their small letters stand."""

Ragged = tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]
"""Values of all rows one after another, and where each row's begin and end: one offset more than rows."""

_LEAST_ROWS = 256


def _ascii_table() -> npt.NDArray[np.uint8]:
    """Return for each byte what it counts as in a word, 0 for separators."""
    table = np.zeros(256, np.uint8)
    for character in b"abcdefghijklmnopqrstuvwxyz0123456789":
        table[character] = character
    table[ord("A") : ord("Z") + 1] = table[ord("a") : ord("z") + 1]
    return table


def _code_point_table() -> npt.NDArray[np.uint32]:
    """Return for each code point below 2^18 what it counts as: 0 for separators, the highest bit for words by themselves."""
    table = np.arange(1 << 18, dtype=np.uint32)
    for first, last in SEPARATORS:
        table[first : last + 1] = 0
    for first, last, distance in LOWER:
        table[first : last + 1] += np.uint32(distance)
    for first, last in SINGLES:
        table[first : last + 1] |= np.uint32(SINGLE)
    return table


_ASCII = _ascii_table()
_POINTS = _code_point_table()

_U = np.uint64


def power_of(ngram: int) -> np.uint64:
    """Return what the hash of the first word of an n-gram is multiplied by."""
    return _U(pow(BASE, ngram - 1, 1 << 64))


def shingles_of_rows(views: Views, start: int, stop: int, ngram: int, scratch: npt.NDArray[np.uint64] | None = None) -> Ragged:
    """Return the n-grams of rows `start` to `stop` and their offsets; `scratch` is used for the former where it is large enough."""
    lengths = views.words[start:stop, 0] & _U(0xFFFFFFFF)
    most = int(lengths[views.valid[start:stop]].sum()) // 2 + stop - start  # a word and what ends it are two bytes
    out = scratch if scratch is not None and len(scratch) >= most else np.empty(most, np.uint64)
    offsets = np.empty(stop - start + 1, np.int64)
    base = _U(views.words.ctypes.data)
    used = shingle_rows(
        views.words, base, views.buffers, views.valid, start, stop, ngram, power_of(ngram), _ASCII, _POINTS, out, offsets
    )
    return out[:used], offsets


def shingle(texts: pl.Series, ngram: int) -> Ragged:
    """Return the hashes of all texts' word n-grams one after another, and the offsets of the texts among them.

    Those of a text stand in its order, repeated ones included. A text of fewer than `ngram` words has one, of all its words; a text
    without a word, and null, has none. Raises ValueError for n-grams of less than one word, TypeError for a column that is not text.
    """
    if ngram < 1:
        raise ValueError(f"an n-gram has at least one word, not {ngram}")
    views = string_views(texts)
    hashes, offsets = joined(
        in_parts(lambda start, stop: shingles_of_rows(views, start, stop, ngram), views.height, _LEAST_ROWS)
    )
    return hashes.copy(), offsets


def joined(parts: list[Ragged]) -> Ragged:
    """Return the values of all parts one after another, and the offsets into them."""
    if len(parts) == 1:
        return parts[0]
    sizes = np.cumsum([0, *(len(values) for values, _ in parts)])
    offsets = [offsets[1:] + size for (_, offsets), size in zip(parts, sizes[:-1], strict=True)]
    return np.concatenate([values for values, _ in parts]), np.concatenate([np.zeros(1, np.int64), *offsets])
