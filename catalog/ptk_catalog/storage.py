"""The files of a catalog, by path relative to its root: a local folder, or any object store that fsspec reaches."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import fsspec

from ptk_catalog.errors import CatalogError, Damaged

if TYPE_CHECKING:
    from io import BufferedReader

__all__ = ["Storage", "StoredFile"]

_OUTSIDE = frozenset({"", ".", ".."})
"""Segments that no path has: the first is what an absolute path begins with."""
_AT_ONCE = 32
"""Requests to an object store at a time."""


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file below the root. `changed` is in seconds since 1970; None where the store does not tell."""

    path: str
    bytes: int
    changed: float | None


class Storage:
    """Reads, and writes once: a file that is there is never changed."""

    def __init__(self, root: str) -> None:
        self.is_local = "://" not in root or root.startswith("file://")
        self.root = str(Path(root.removeprefix("file://")).expanduser().absolute()) if self.is_local else root.rstrip("/")

    def path(self, relative: str) -> str:
        """Return the full path or URL of `relative`. Raises CatalogError where it would leave the root."""
        if not _OUTSIDE.isdisjoint(relative.split("/")) or "\\" in relative or ":" in relative:
            raise CatalogError(f"'{relative}' leads out of the catalog {self.root}; its manifest was tampered with")
        return f"{self.root}/{relative}"

    def exists(self, relative: str) -> bool:
        path = self.path(relative)
        return Path(path).exists() if self.is_local else bool(self._remote().exists(path))

    def missing(self, relatives: Iterable[str]) -> list[str]:
        """Return those paths at which there is no file."""
        paths = list(dict.fromkeys(relatives))
        if self.is_local or len(paths) < 2:
            return [path for path in paths if not self.exists(path)]
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            return [path for path, there in zip(paths, threads.map(self.exists, paths), strict=True) if not there]

    def files(self, below: str) -> Iterator[StoredFile]:
        """Yield the files below a folder."""
        top = self.path(below)
        if self.is_local:
            for folder, _, names in os.walk(top):
                for name in names:
                    path = Path(folder, name)
                    try:
                        found = path.stat()
                    except FileNotFoundError:
                        continue  # a writer renamed or removed it
                    yield StoredFile(path.relative_to(self.root).as_posix(), found.st_size, found.st_mtime)
            return
        system = self._remote()
        system.invalidate_cache()
        root = system._strip_protocol(self.root).rstrip("/")
        for path, found in sorted(system.find(top, detail=True).items()):
            yield StoredFile(str(path).removeprefix(root).lstrip("/"), int(found.get("size") or 0), _changed(found))

    def changed(self, relative: str) -> float | None:
        """Return when a file was last written, in seconds since 1970; None where there is none, or the store does not tell."""
        try:
            if self.is_local:
                return Path(self.path(relative)).stat().st_mtime
            system = self._remote()
            system.invalidate_cache()
            return _changed(system.info(self.path(relative)))
        except FileNotFoundError:
            return None

    def remove(self, relative: str) -> None:
        """Remove a file, if it is there."""
        if self.is_local:
            Path(self.path(relative)).unlink(missing_ok=True)
        elif self.exists(relative):
            self._remote().rm_file(self.path(relative))

    def open(self, relative: str) -> BufferedReader:
        """Open a file for reading. Raises Damaged when it is not there."""
        path = self.path(relative)
        try:
            opened = Path(path).open("rb") if self.is_local else self._remote().open(path)  # noqa: SIM115
        except FileNotFoundError:
            raise Damaged(f"{path} is missing; restore it from a copy of the catalog") from None
        return cast("BufferedReader", opened)

    def fetch(self, relative: str, target: Path) -> str:
        """Copy a file to `target` on this machine; return its SHA-256. Raises Damaged when it is not there."""
        digest = hashlib.sha256()
        with self.open(relative) as source, target.open("wb") as copy:
            while block := source.read(1 << 20):
                digest.update(block)
                copy.write(block)
        return digest.hexdigest()

    def read(self, relative: str) -> bytes:
        """Return a file's content. Raises Damaged when it is not there."""
        with self.open(relative) as file:
            return file.read()

    def sha256(self, relative: str) -> str:
        """Return the SHA-256 of a file's content. Raises Damaged when it is not there."""
        with self.open(relative) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def write(self, relative: str, content: bytes) -> None:
        """Write a new file, whole or not at all, and wait until the disk has it."""
        if not self.is_local:
            with self._remote().open(self.path(relative), "wb") as file:
                file.write(content)
            return
        aside = self.aside()
        with aside.open("wb") as file:
            file.write(content)
        self.take_in(aside, relative)

    def aside(self) -> Path:
        """Return a path of a file that does not exist yet, for writing before `take_in`."""
        folder = Path(self.root, "staging") if self.is_local else Path(tempfile.gettempdir())
        folder.mkdir(parents=True, exist_ok=True)
        return folder / uuid.uuid4().hex

    def copy_in(self, source: Path, digest: str, relative: str) -> None:
        """Copy a file of another place in, under the name that its digest gives it. Raises CatalogError where it changes meanwhile."""
        aside = self.aside()
        try:
            shutil.copyfile(source, aside)
            with aside.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                    raise CatalogError(f"{source} changed while it was committed; commit it again")
            self.take_in(aside, relative)
        finally:
            aside.unlink(missing_ok=True)

    def take_in(self, aside: Path, relative: str) -> None:
        """Give a file written aside its name, even where that is taken: a name is a digest, so the content is the same.

        Writing it again makes it young, so that no sweep of old files takes it from a running commit, and mends a damaged one.
        """
        if self.is_local:
            target = Path(self.path(relative))
            target.parent.mkdir(parents=True, exist_ok=True)
            _fsync(aside)
            aside.replace(target)
            for folder in target.parents:
                _fsync(folder)
                if folder == Path(self.root):
                    break
        else:
            self._remote().put_file(str(aside), self.path(relative))
            aside.unlink()

    def _remote(self) -> fsspec.AbstractFileSystem:
        return fsspec.core.url_to_fs(self.root)[0]


def _changed(found: dict[str, Any]) -> float | None:
    """Return a file's time from what an fsspec file system says of it; each has its own word for it."""
    for name in ("LastModified", "last_modified", "mtime", "updated", "created"):
        value = found.get(name)
        if isinstance(value, datetime):
            return value.timestamp()
        if isinstance(value, (int, float)):
            return float(value)
        if isinstance(value, str):
            try:
                return datetime.fromisoformat(value).timestamp()
            except ValueError:
                continue
    return None


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
