"""What a version is, as stored: frozen models of the JSON manifests of datasets and models."""

from __future__ import annotations

import hashlib
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator

from ptk_catalog.errors import Damaged, NewerFormat

__all__ = [
    "FORMAT",
    "PLACE",
    "Base",
    "ColumnInfo",
    "Group",
    "Manifest",
    "ModelFile",
    "ModelManifest",
    "Part",
    "paths_of",
    "read_manifest",
]

FORMAT = 2
"""The highest format this package reads. A manifest names the lowest that holds it: 1 for rows, 2 for models."""


PLACE = ("_file", "_line")


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
    """Columns that lie together in the same files. One without columns holds where each row was read: `_file` and `_line`."""

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


class ModelFile(_Stored):
    """A file of a model: its name within the model's folder, and its content by SHA-256."""

    name: str
    sha256: str
    bytes: int

    @property
    def path(self) -> str:
        """Where the content lies, relative to the catalog's root."""
        return f"files/{self.sha256[:2]}/{self.sha256}"

    @field_validator("name")
    @classmethod
    def _stays_inside(cls, name: str) -> str:
        parts = PurePosixPath(name)
        if not parts.parts or parts.is_absolute() or ".." in parts.parts or "\\" in name or ":" in name or str(parts) != name:
            raise ValueError(f"'{name}' can't name a file of a model: it leads out of its folder or is not plain")
        return name

    @field_validator("sha256")
    @classmethod
    def _is_a_digest(cls, text: str) -> str:
        if len(text) != 64 or not set(text) <= set("0123456789abcdef"):
            raise ValueError(f"'{text}' is no SHA-256")
        return text


class ModelManifest(_Stored):
    """One version of an entry that is a model: a folder of files, and what it was made of."""

    format: Literal[2] = 2
    kind: Literal["model"] = "model"
    entry: str
    digest: str
    files: tuple[ModelFile, ...]
    base_model: str | None = None
    """The model it was made from: a name as its library knows it, or a reference `entry@v3` to a model in this catalog."""
    base_revision: str | None = None
    trained_on: tuple[str, ...] = ()
    """References to the versions of datasets that it saw, as `entry@v3`."""
    metrics: dict[str, Any] = {}
    facts: dict[str, Any] = {}
    parents: tuple[str, ...] = ()
    licence: str | None = None
    lineage: dict[str, Any] = {}
    created_at: str
    created_by: str

    def as_bytes(self) -> bytes:
        return orjson.dumps(self.model_dump(mode="json"), option=orjson.OPT_SORT_KEYS)

    def content_digest(self) -> str:
        """Return the digest of what the model is: its files, and what is said of it, but neither when nor how it was made."""
        said = self.model_dump(mode="json", include={"base_model", "base_revision", "trained_on", "metrics", "facts"})
        files = sorted([file.name, file.sha256, file.bytes] for file in self.files)
        return "sha256:" + hashlib.sha256(orjson.dumps({"files": files, **said}, option=orjson.OPT_SORT_KEYS)).hexdigest()


_MANIFEST: TypeAdapter[Manifest | ModelManifest] = TypeAdapter(
    Annotated[Manifest | ModelManifest, Field(discriminator="format")]
)


def read_manifest(content: bytes, path: str) -> Manifest | ModelManifest:
    """Return the manifest. Raises NewerFormat, or Damaged where it is none."""
    try:
        return _MANIFEST.validate_json(content)
    except ValidationError as error:
        try:
            written = orjson.loads(content)["format"]
        except (orjson.JSONDecodeError, KeyError, TypeError):
            written = None
        if isinstance(written, int) and written > FORMAT:
            raise NewerFormat(
                f"{path} has format {written}; this package reads up to {FORMAT}: upgrade preference-toolkit"
            ) from None
        raise Damaged(f"{path} is no manifest: {str(error).splitlines()[0]}") from error


def paths_of(manifest: Manifest | ModelManifest) -> list[str]:
    """Return the paths of all files a version needs beside its manifest, relative to the root, each once."""
    if isinstance(manifest, ModelManifest):
        return list(dict.fromkeys(file.path for file in manifest.files))
    parts = [part for group in manifest.groups for part in group.parts] + list(manifest.mask or ())
    return list(dict.fromkeys(part.path for part in parts))
