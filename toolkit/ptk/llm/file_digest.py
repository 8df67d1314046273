"""SHA-256 of files, remembered in the user's cache so that a model's weights are read once and not at every run."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable
from pathlib import Path

import orjson
from platformdirs import user_cache_path

__all__ = ["digest_of_files", "file_sha256", "user_cache"]

# A file changed this shortly before it was read could change again within the same tick of its file system's clock.
SETTLED_NS = 2_000_000_000


def user_cache() -> Path:
    """Return the folder for what ptk can make again: `PTK_CACHE` where it is set, else the user's cache folder."""
    return Path(os.environ.get("PTK_CACHE") or user_cache_path("ptk"))


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, as hexadecimal digits; an unchanged file is not read again.

    A file counts as unchanged while its real path, size, modification time and inode stay. Raises OSError.
    """
    path = path.resolve(strict=True)
    stat = path.stat()
    state = [str(path), stat.st_size, stat.st_mtime_ns, stat.st_ino]
    memory = user_cache() / "file-sha256" / hashlib.sha256(str(path).encode()).hexdigest()[:32]
    try:
        remembered = orjson.loads(memory.read_bytes())
        if remembered["state"] == state:
            return str(remembered["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # nothing remembered, or nothing readable: the file itself decides
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if time.time_ns() - stat.st_mtime_ns > SETTLED_NS:
        _remember(memory, {"state": state, "sha256": digest})
    return digest


def digest_of_files(folder: Path, names: Iterable[str]) -> str:
    """Return the SHA-256 over the sorted (name, SHA-256) of files in `folder`; where the folder lies does not matter."""
    return hashlib.sha256(orjson.dumps([[name, file_sha256(folder / name)] for name in sorted(names)])).hexdigest()


def _remember(memory: Path, content: dict[str, object]) -> None:
    """Write aside and rename; a cache that can't be written costs time, never the run."""
    aside = memory.with_name(f"{memory.name}.{os.getpid()}")
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        aside.write_bytes(orjson.dumps(content))
        aside.replace(memory)
    except OSError:
        aside.unlink(missing_ok=True)
