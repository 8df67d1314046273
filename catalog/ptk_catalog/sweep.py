"""Removing what no version needs: mark what the registered manifests refer to, then sweep what is old and unmarked."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial

from ptk_catalog.manifest import paths_of, read_manifest
from ptk_catalog.registry import Registry
from ptk_catalog.storage import Storage, StoredFile

__all__ = ["Swept", "sweep"]

_BELOW = ("parts", "files", "manifests", "staging")
_CLOCKS = 600.0
"""Seconds by which the clocks of writers and of the store may differ."""
_AT_ONCE = 500
"""Files that are removed before other writers get a turn."""


@dataclass(frozen=True, slots=True)
class Swept:
    """What a sweep removed, or with `dry_run` would remove; `young` files are needed by nothing but not old enough."""

    files: int = 0
    bytes: int = 0
    young: int = 0
    kept: int = 0
    """Files that versions need."""


def sweep(storage: Storage, registry: Registry, grace: float, *, dry_run: bool) -> Swept:
    """Remove the files that no registered version needs and that were written more than `grace` seconds ago.

    Files younger than the oldest running commit are left too. A commit that is registered while files are removed waits for that, and
    then looks whether its files are still there. Raises Damaged, NewerFormat where a manifest can't be read.
    """
    listed = [file for below in _BELOW for file in storage.files(below)]
    marked = _Marked(storage)
    marked.add(row.manifest for row in registry.versions())
    unneeded = [file for file in listed if file.path not in marked.paths]
    old = [file for file in unneeded if file.changed is not None and file.changed < time.time() - grace]
    swept: list[StoredFile] = []

    def remove(batch: list[StoredFile], manifests: set[str], started: float | None) -> None:
        marked.add(manifests)
        limit = time.time() - grace if started is None else min(time.time() - grace, started - _CLOCKS)
        for file in batch:
            changed = storage.changed(file.path)
            if file.path in marked.paths or changed is None or changed >= limit:
                continue
            if not dry_run:
                storage.remove(file.path)
            swept.append(file)

    for batch in _batches(old):
        registry.sweep(partial(remove, batch))
    return Swept(len(swept), sum(file.bytes for file in swept), len(unneeded) - len(swept), len(listed) - len(unneeded))


class _Marked:
    """What registered manifests refer to."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.manifests: set[str] = set()
        self.paths: set[str] = set()

    def add(self, manifests: Iterable[str]) -> None:
        for relative in set(manifests) - self.manifests:
            self.manifests.add(relative)
            self.paths.add(relative)
            self.paths.update(paths_of(read_manifest(self.storage.read(relative), self.storage.path(relative))))


def _batches(files: list[StoredFile]) -> Iterator[list[StoredFile]]:
    for start in range(0, len(files), _AT_ONCE):
        yield files[start : start + _AT_ONCE]
