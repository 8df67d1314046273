"""Rows read by their number, with Arrow alone: Polars hangs in processes that were forked, as loaders' workers are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ptk_catalog.storage import Storage

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["StoredRows"]

_AT_ONCE = 1_000
"""Rows that are Python objects at a time."""


@dataclass(frozen=True, slots=True, eq=False)
class StoredRows:
    """Some of the rows that lie in the files of a version. Can be sent to other processes, forked ones too."""

    storage: Storage
    groups: Sequence[tuple[tuple[str, ...], tuple[tuple[str, int], ...]]]
    """Per column group the columns wanted and, of each part, path and rows."""
    columns: tuple[str, ...]
    total: int
    wanted: NDArray[np.bool_] | None
    """Which of the stored rows are wanted; None for all."""

    @property
    def count(self) -> int:
        return self.total if self.wanted is None else int(np.count_nonzero(self.wanted))

    def between(self, first: int, last: int) -> Iterator[dict[str, Any]]:
        """Yield the wanted rows from number `first` up to, but without, `last`, each as a dictionary."""
        if first >= last:
            return
        places: NDArray[np.int64] = (
            np.arange(first, last, dtype=np.int64) if self.wanted is None else np.flatnonzero(self.wanted)[first:last]
        )
        start = 0
        for number, (_, rows) in enumerate(self.groups[0][1]):
            low, high = np.searchsorted(places, [start, start + rows])
            if low < high:
                yield from self._of_part(number, places[low:high] - start)
            start += rows

    def _of_part(self, number: int, places: NDArray[np.int64]) -> Iterator[dict[str, Any]]:
        readers = [self._tables(parts[number][0], columns) for columns, parts in self.groups]
        waiting = [next(reader) for reader in readers]
        at = 0
        begun = 0
        while at < len(places):
            # Row groups of two files need not end at the same rows: take what all have.
            height = min(table.num_rows for table in waiting)
            until = int(np.searchsorted(places, begun + height))
            if until > at:
                taken = [table.take(pa.array(places[at:until] - begun)) for table in waiting]
                for rows in range(0, until - at, _AT_ONCE):
                    columns = {
                        name: table.column(name).slice(rows, _AT_ONCE).to_pylist()
                        for table in taken
                        for name in table.column_names
                    }
                    for values in zip(*(columns[name] for name in self.columns), strict=True):
                        yield dict(zip(self.columns, values, strict=True))
                at = until
            begun += height
            if at < len(places):
                waiting = [
                    table.slice(height) if table.num_rows > height else next(reader)
                    for table, reader in zip(waiting, readers, strict=True)
                ]

    def _tables(self, path: str, columns: Sequence[str]) -> Iterator[pa.Table]:
        with self.storage.open(path) as file, pq.ParquetFile(file) as parquet:
            for group in range(parquet.num_row_groups):
                yield parquet.read_row_group(group, columns=list(columns), use_threads=False)
