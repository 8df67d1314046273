"""How the hot loops are compiled and spread over threads."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from itertools import pairwise
from typing import Any, TypeVar

import numba

__all__ = ["compiled", "in_parts", "thread_count"]

Part = TypeVar("Part")


def compiled(function: Callable[..., Any]) -> Any:
    """Compile a loop to machine code that runs without the interpreter's lock, and keep the code on disk where that is possible.

    Not `parallel=True`: Polars calls from several threads at once, which Numba's own thread pools either do not survive or do not
    survive across a fork. `in_parts` calls the same code from ordinary threads instead.
    """
    with suppress(RuntimeError):  # neither beside the module nor in the user's cache folder may anything be written
        return numba.njit(nogil=True, cache=True, boundscheck=False, error_model="numpy")(function)
    return numba.njit(nogil=True, boundscheck=False, error_model="numpy")(function)


def thread_count() -> int:
    """Return how many threads the kernels use: all cores, or NUMBA_NUM_THREADS."""
    return int(numba.config.NUMBA_NUM_THREADS)


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="ptk_kernels")


# A forked child has none of the threads.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)


def in_parts(function: Callable[[int, int], Part], rows: int, least: int) -> list[Part]:
    """Return `function(start, stop)` for the parts of `rows` rows, in their order; a part has at least about `least` rows."""
    parts = max(1, min(thread_count(), rows // max(least, 1)))
    bounds = [rows * part // parts for part in range(parts + 1)]
    if parts == 1:
        return [function(0, rows)]
    futures = [_pool(parts).submit(function, *between) for between in pairwise(bounds)]
    return [future.result() for future in futures]
