"""Places of files: a folder of a file system, or one of an object store with the same few methods."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeAlias

from ptk.errors import StoreError

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

__all__ = ["Place", "Remote", "copy_in", "copy_out", "listed", "place_of", "remove_tree"]


@dataclass(frozen=True)
class Remote:
    """A file or a folder of an object store that fsspec and Polars reach by a URL, such as `s3://bucket/prefix`.

    It has what is used of `pathlib.Path`. Folders come with the files in them. A file is there whole or not at all, since stores take
    in a file when its last byte has come; nothing can be renamed.
    """

    url: str

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str | PurePosixPath) -> Remote:
        return Remote(f"{self.url}/{name}")

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]

    @property
    def parent(self) -> Remote:
        return Remote(self.url.rpartition("/")[0])

    @property
    def files(self) -> AbstractFileSystem:
        """The file system; what it remembers of folders is forgotten, as others write there too."""
        import fsspec

        protocol = self.url.partition("://")[0]
        try:
            files = fsspec.filesystem(protocol)
        except (ImportError, ValueError) as error:
            raise StoreError(f"can't reach {self.url}: {error}; install what reads {protocol}://, such as s3fs") from error
        files.invalidate_cache()
        return files

    def absolute(self) -> Remote:
        return self

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """Do nothing: folders come with the files in them."""

    def exists(self) -> bool:
        with self.reached():
            return bool(self.files.exists(self.url))

    def is_dir(self) -> bool:
        with self.reached():
            return bool(self.files.isdir(self.url))

    def glob(self, pattern: str) -> Iterator[Remote]:
        """Yield what is in the folder under a name that fits."""
        with self.reached():
            found = self.files.glob(f"{self.url}/{pattern}")
        yield from (Remote(self.files.unstrip_protocol(path)) for path in found)

    def rglob(self, pattern: str) -> Iterator[Remote]:
        """Yield the files below the folder whose names fit."""
        with self.reached():
            found = [path for path in self.files.find(self.url) if PurePosixPath(path).match(pattern)]
        yield from (Remote(self.files.unstrip_protocol(path)) for path in found)

    def stat(self) -> Any:
        """Return the size, as `st_size`. Raises FileNotFoundError."""
        with self.reached(FileNotFoundError):
            return SimpleNamespace(st_size=int(self.files.size(self.url)))

    def touch(self) -> None:
        self.write_bytes(b"")

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove the file. Stores do not tell whether there was one."""
        with suppress(FileNotFoundError), self.reached(FileNotFoundError):
            self.files.rm_file(self.url)

    def rmdir(self) -> None:
        """Do nothing: a folder goes with the last file in it."""

    def read_bytes(self) -> bytes:
        """Return the content. Raises FileNotFoundError."""
        with self.reached(FileNotFoundError), self.files.open(self.url, "rb") as file:
            return bytes(file.read())

    def write_bytes(self, content: bytes | memoryview) -> None:
        with self.reached():
            self.files.pipe_file(self.url, bytes(content))

    @contextmanager
    def reached(self, *expected: type[Exception]) -> Iterator[None]:
        """Say of whatever goes wrong where it did, but of what is expected: each store has errors of its own."""
        try:
            yield
        except Exception as error:
            if isinstance(error, (*expected, StoreError)):
                raise
            reason = str(error).strip().split("\n")[0] or type(error).__name__
            raise StoreError(
                f"can't use {self.url}: {reason}; see that it is there, and that the credentials are set"
            ) from error


Place: TypeAlias = Path | Remote


def place_of(text: str) -> Place:
    """Return the place that a path or a URL means. `file://` is a path."""
    if "://" not in text or text.startswith("file://"):
        return Path(text.removeprefix("file://"))
    return Remote(text.rstrip("/"))


def listed(folder: Place, pattern: str) -> list[Place]:
    """Return what is in a folder under a name that fits, in the order of names."""
    found: list[Place] = [*folder.glob(pattern)]
    return sorted(found, key=lambda place: place.name)


def remove_tree(place: Place) -> None:
    """Remove a folder and what is in it; nothing where it is not there."""
    if isinstance(place, Path):
        shutil.rmtree(place, ignore_errors=True)
        return
    for file in list(place.rglob("*")):
        file.unlink(missing_ok=True)


def copy_out(folder: Path, target: Remote) -> None:
    """Copy the files of a folder to an object store."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with target.reached():
                target.files.put_file(str(path), f"{target}/{path.relative_to(folder).as_posix()}")


def copy_in(source: Remote, folder: Path) -> None:
    """Copy the files below a place of an object store into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in source.rglob("*"):
        path = folder / file.url.removeprefix(f"{source.url}/")
        path.parent.mkdir(parents=True, exist_ok=True)
        with source.reached():
            source.files.get_file(file.url, str(path))
