"""What a version is, as stored: frozen models of the JSON manifest."""

from __future__ import annotations

from typing import Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, ValidationError

from ptk_catalog.errors import Damaged, NewerFormat

__all__ = ["FORMAT", "Base", "ColumnInfo", "Group", "Manifest", "Part", "read_manifest"]

FORMAT = 1
"""The format this package writes; a manifest with a higher one is refused."""


class _Stored(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Part(_Stored):
    """One Parquet file of a column group."""

    path: str
    """Relative to the catalog's root; the file's name is the SHA-256 of its content."""
    rows: int
    bytes: int
    statistics: dict[str, dict[str, Any]] = {}
    """Per column of plain values: `min`, `max`, `nulls`."""

    @property
    def sha256(self) -> str:
        return self.path.rsplit("/", 1)[-1].removesuffix(".parquet")


class Group(_Stored):
    """Columns that lie together in the same files."""

    columns: tuple[str, ...]
    parts: tuple[Part, ...]


class ColumnInfo(_Stored):
    """A column: its name, the stable name of its type, and the sum that stands for its values."""

    name: str
    type: str
    sum: str


class Base(_Stored):
    """The version that a version adds columns to or takes rows from."""

    entry: str
    number: int
    digest: str


class Manifest(_Stored):
    """One version of an entry. All groups, and the mask, are cut into parts at the same rows."""

    format: Literal[1] = 1
    entry: str
    digest: str
    key: tuple[str, ...]
    rows: int
    columns: tuple[ColumnInfo, ...]
    groups: tuple[Group, ...]
    mask: tuple[Part, ...] | None = None
    """Parts with one boolean column `_keep`; null where every row of the parts is kept."""
    base: Base | None = None
    parents: tuple[str, ...] = ()
    licence: str | None = None
    lineage: dict[str, Any] = {}
    statistics: dict[str, Any] = {}
    created_at: str
    created_by: str

    def as_bytes(self) -> bytes:
        return orjson.dumps(self.model_dump(mode="json"), option=orjson.OPT_SORT_KEYS)


def read_manifest(content: bytes, path: str) -> Manifest:
    """Return the manifest. Raises NewerFormat, or Damaged where it is none."""
    try:
        data = orjson.loads(content)
        written = data["format"]
        if isinstance(written, int) and written > FORMAT:
            raise NewerFormat(f"{path} has format {written}; this package reads up to {FORMAT}: upgrade preference-toolkit")
        return Manifest.model_validate_json(content)
    except (orjson.JSONDecodeError, KeyError, TypeError, ValidationError) as error:
        raise Damaged(f"{path} is no manifest: {str(error).splitlines()[0]}") from error
