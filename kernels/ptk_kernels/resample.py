"""Sums over rows that are drawn with replacement: the loop of a bootstrap."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ptk_kernels.compiled import compiled, in_parts

__all__ = ["resampled_sums"]

_U = np.uint64
_STEP, _M1, _M2 = _U(0x9E3779B97F4A7C15), _U(0xBF58476D1CE4E5B9), _U(0x94D049BB133111EB)
_S11, _S27, _S30, _S31 = _U(11), _U(27), _U(30), _U(31)
_UNIT = 1.0 / (1 << 53)


@compiled
def _draw(streams, values, totals):  # type: ignore[no-untyped-def]
    """Add up, for each stream of numbers, as many rows of `values` as there are, drawn with replacement."""
    rows, width = values.shape
    for each in range(len(streams)):
        state = streams[each]
        for _ in range(rows):
            # SplitMix64 (G. L. Steele and others, OOPSLA 2014); its upper 53 bits are a number in [0, 1).
            state += _STEP
            mixed = (state ^ (state >> _S30)) * _M1
            mixed = (mixed ^ (mixed >> _S27)) * _M2
            at = int(((mixed ^ (mixed >> _S31)) >> _S11) * _UNIT * rows)
            for column in range(width):
                totals[each, column] += values[at, column]


def resampled_sums(values: npt.NDArray[np.float64], rounds: int, seed: int) -> npt.NDArray[np.float64]:
    """Return the column sums over n rows drawn with replacement from the n rows of `values` (n, k), for each round: (rounds, k).

    Each round has a stream of numbers of its own, so the sums do not depend on the number of threads.
    """
    streams = np.random.SeedSequence(seed).generate_state(rounds, dtype=np.uint64)
    totals = np.zeros((rounds, values.shape[1]))
    given = np.ascontiguousarray(values, dtype=np.float64)
    in_parts(lambda start, stop: _draw(streams[start:stop], given, totals[start:stop]), rounds, 1)
    return totals
