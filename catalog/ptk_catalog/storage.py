"""The files of a catalog, by path relative to its root: a local folder, or any object store that fsspec reaches."""

from __future__ import annotations

import hashlib
import os
import tempfile
import uuid
from pathlib import Path, PurePosixPath

import fsspec

from ptk_catalog.errors import CatalogError, Damaged

__all__ = ["Storage"]


class Storage:
    """Reads, and writes once: a file that is there is never changed."""

    def __init__(self, root: str) -> None:
        self.is_local = "://" not in root or root.startswith("file://")
        self.root = str(Path(root.removeprefix("file://")).expanduser().absolute()) if self.is_local else root.rstrip("/")

    def path(self, relative: str) -> str:
        """Return the full path or URL of `relative`. Raises CatalogError where it would leave the root."""
        parts = PurePosixPath(relative)
        if not parts.parts or parts.is_absolute() or ".." in parts.parts or "\\" in relative or ":" in relative:
            raise CatalogError(f"'{relative}' leads out of the catalog {self.root}; its manifest was tampered with")
        return f"{self.root}/{parts}"

    def exists(self, relative: str) -> bool:
        path = self.path(relative)
        return Path(path).exists() if self.is_local else bool(self._remote().exists(path))

    def read(self, relative: str) -> bytes:
        """Return a file's content. Raises Damaged when it is not there."""
        try:
            with fsspec.open(self.path(relative), "rb") as file:
                return bytes(file.read())
        except FileNotFoundError:
            raise Damaged(f"{self.path(relative)} is missing; restore it from a copy of the catalog") from None

    def sha256(self, relative: str) -> str:
        """Return the SHA-256 of a file's content. Raises Damaged when it is not there."""
        try:
            with fsspec.open(self.path(relative), "rb") as file:
                digest = hashlib.sha256()
                while block := file.read(1 << 20):
                    digest.update(block)
                return digest.hexdigest()
        except FileNotFoundError:
            raise Damaged(f"{self.path(relative)} is missing; restore it from a copy of the catalog") from None

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


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
