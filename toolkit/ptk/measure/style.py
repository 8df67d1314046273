"""Features of a text's style as expressions: length, lists, hedging and readability."""

from __future__ import annotations

import polars as pl

__all__ = ["FEATURES", "HEDGES", "REALS", "features"]

HEDGES = (
    "apparently", "appear", "appears", "arguably", "broadly", "could", "generally", "in general", "in most cases", "it depends",
    "largely", "likely", "mainly", "may", "maybe", "might", "mostly", "normally", "occasionally", "often", "perhaps", "possibly",
    "presumably", "probably", "rarely", "relatively", "roughly", "seem", "seemingly", "seems", "somewhat", "sometimes", "suggest",
    "suggests", "tend", "tend to", "tends", "to some extent", "typically", "unlikely", "usually",
)  # fmt: skip
"""English words and phrases that make a statement less certain; a phrase counts once."""

_HEDGE = rf"(?i)\b(?:{'|'.join(sorted(HEDGES, key=len, reverse=True))})\b"
_MARK = r"(?m)^[ \t]*(?:[-*+•]|\d{1,3}[.)])[ \t]+"
"""What an item of a list begins with: no word, and no end of a sentence."""
_WORD = r"[\p{L}\p{N}]+(?:[-'’][\p{L}\p{N}]+)*"
_SIGN = r"[\p{L}\p{N}]"
_SENTENCE = r"""[.!?]+["'”’)\]]*(?:\s|$)"""

FEATURES = ("words", "sentences", "list_items", "hedges_per_100_words", "readability")
REALS = ("hedges_per_100_words", "readability")
"""Those that are no whole numbers."""


def features(text: pl.Expr) -> dict[str, pl.Expr]:
    """Return each of `FEATURES` of `text`; null where the text is null, and for the last two where it has no word.

    Readability is the automated readability index, about the school grade in the United States of an English text: 4.71 characters per
    word + 0.5 words per sentence - 21.43 (R. J. Senter and E. A. Smith, AMRL-TR-66-220, 1967), where characters are letters and digits.
    """
    items = text.str.count_matches(_MARK + r"\S").cast(pl.Int64)
    text = text.str.replace_all(_MARK, "")
    words = text.str.count_matches(_WORD).cast(pl.Int64)
    # What has words and no mark at its end is one sentence.
    sentences = pl.max_horizontal(text.str.count_matches(_SENTENCE).cast(pl.Int64), (words > 0).cast(pl.Int64))
    sentences = pl.when(words.is_not_null()).then(sentences)
    some = pl.when(words > 0).then(words.cast(pl.Float64))
    return {
        "words": words,
        "sentences": sentences,
        "list_items": items,
        "hedges_per_100_words": 100 * text.str.count_matches(_HEDGE) / some,
        "readability": 4.71 * text.str.count_matches(_SIGN) / some + 0.5 * some / sentences - 21.43,
    }
