"""A version's rows as a PyTorch dataset: this file wraps torch, and is imported by what needs it alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import torch.distributed
from torch.utils.data import IterableDataset, get_worker_info

from ptk_catalog.stored_rows import StoredRows

__all__ = ["TorchRows"]


class TorchRows(IterableDataset):  # type: ignore[misc]
    """Rows as dictionaries; every rank and every loader worker gets a range of its own."""

    def __init__(self, rows: StoredRows, rank: int | None, world_size: int | None) -> None:
        self.rows = rows
        self.rank = rank
        self.world_size = world_size

    def __iter__(self) -> Iterator[dict[str, Any]]:
        rank, ranks = self._rank()
        first, last = _range(0, self.rows.count, rank, ranks)
        worker = get_worker_info()
        if worker is not None:
            first, last = _range(first, last, worker.id, worker.num_workers)
        return self.rows.between(first, last)

    def _rank(self) -> tuple[int, int]:
        if self.rank is not None and self.world_size is not None:
            return self.rank, self.world_size
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def _range(first: int, last: int, number: int, of: int) -> tuple[int, int]:
    """Return the range that is number `number` of `of` even ones."""
    return first + (last - first) * number // of, first + (last - first) * (number + 1) // of
