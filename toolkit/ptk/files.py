"""Digests of files' content, remembered so that an unchanged file is hashed once."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import time
from pathlib import Path

__all__ = ["cache_folder", "sha256_of_file"]

_SETTLED_NS = 2_000_000_000
"""A file changed this shortly ago could change again within one tick of its file system's clock."""


def cache_folder() -> Path:
    """Return the user's cache folder of ptk: `$PTK_CACHE`, or the platform's usual place."""
    if place := os.environ.get("PTK_CACHE"):
        return Path(place).expanduser()
    import platformdirs

    return platformdirs.user_cache_path("ptk")


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 of a file's content as hexadecimal digits.

    Remembered by (path, size, modification time in ns, inode), as git does for its index. A cache that can't be written only
    costs time.
    """
    path = path.resolve()
    stat = path.stat()
    stamp = f"{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ino}"
    memory = _open_memory()
    try:
        if memory is not None:
            row = memory.execute("SELECT digest FROM files WHERE path = ? AND stamp = ?", (str(path), stamp)).fetchone()
            if row is not None:
                return str(row[0])
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if memory is not None and time.time_ns() - stat.st_mtime_ns > _SETTLED_NS:
            try:
                with memory:
                    memory.execute("INSERT OR REPLACE INTO files VALUES (?, ?, ?)", (str(path), stamp, digest))
            except sqlite3.Error:
                pass  # another run holds the lock: the digest is right all the same
        return digest
    finally:
        if memory is not None:
            memory.close()


def _open_memory() -> sqlite3.Connection | None:
    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        memory = sqlite3.connect(folder / "files.sqlite", timeout=2.0)
        memory.execute("CREATE TABLE IF NOT EXISTS files (path TEXT PRIMARY KEY, stamp TEXT, digest TEXT)")
        return memory
    except (OSError, sqlite3.Error):
        return None
