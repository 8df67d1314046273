"""How much of each prompt an engine has computed already for the ones before it, as its prefix cache would find it."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Sequence

__all__ = ["shared_prefixes"]


def shared_prefixes(prompts: Iterable[Sequence[int]], block: int) -> Iterator[int]:
    """Yield for each prompt, given as tokens, how many of its first tokens began an earlier prompt.

    A cache finds whole blocks of `block` tokens, each known by all tokens up to its end, and never the last token of a prompt, which
    is computed for what follows it. The cache is taken to be large enough: nothing falls out of it.
    """
    known: set[bytes] = set()
    for tokens in prompts:
        shared = 0
        found = True
        so_far = hashlib.blake2b(digest_size=16)
        for start in range(0, len(tokens) - block + 1, block):
            so_far.update(array("q", tokens[start : start + block]).tobytes())
            name = so_far.digest()
            found = found and name in known
            shared += block if found and start + block < len(tokens) else 0
            known.add(name)
        yield shared
