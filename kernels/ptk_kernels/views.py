"""Texts of a Polars column as the kernels see them: Arrow string views, whose bytes are read where they lie."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

__all__ = ["Views", "string_views"]


@dataclass(frozen=True, slots=True)
class Views:
    """`words[row]` is the view of a row: two 64-bit words, see Arrow's format; `buffers` are addresses and owner keeps them alive."""

    words: npt.NDArray[np.uint64]
    buffers: npt.NDArray[np.uint64]
    valid: npt.NDArray[np.bool_]
    owner: Any

    @property
    def height(self) -> int:
        return len(self.valid)


def string_views(texts: pl.Series) -> Views:
    """Return the views of a column of strings. Not a byte of the texts is copied, only views, and those only of several chunks.

    Raises TypeError for a column of another type.
    """
    if texts.dtype == pl.Null:
        texts = texts.cast(pl.String)
    if texts.dtype != pl.String:
        raise TypeError(f"texts are strings, not {texts.dtype}")
    array = texts.to_arrow(compat_level=pl.CompatLevel.newest())
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    validity, views, *data = array.buffers()
    height = len(array)
    if height == 0:
        return Views(np.empty((0, 2), np.uint64), np.empty(0, np.uint64), np.empty(0, np.bool_), array)
    words = np.frombuffer(views, np.uint64, 2 * height, 16 * array.offset).reshape(height, 2)
    if validity is None:
        valid = np.ones(height, np.bool_)
    else:
        bits = np.frombuffer(validity, np.uint8)
        valid = np.unpackbits(bits, count=array.offset + height, bitorder="little")[array.offset :].view(np.bool_)
    addresses = np.array([0 if buffer is None else buffer.address for buffer in data] or [0], np.uint64)
    return Views(words, addresses, valid, array)
