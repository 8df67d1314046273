"""A version of an entry: what the registry says of it, and its manifest, read when it is first asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any

from ptk_catalog.errors import CatalogError, Damaged
from ptk_catalog.manifest import Manifest, ModelManifest, read_manifest
from ptk_catalog.registry import Kind, VersionRow
from ptk_catalog.storage import Storage

__all__ = ["Version"]


class _ManifestFile:
    """A manifest that is read once."""

    __slots__ = ("read_already", "row", "storage")

    def __init__(self, storage: Storage, row: VersionRow, read_already: Manifest | ModelManifest | None = None) -> None:
        self.storage = storage
        self.row = row
        self.read_already = read_already

    def read(self) -> Manifest | ModelManifest:
        """Return the manifest. Raises Damaged where it is gone or not the one that was registered, NewerFormat."""
        if self.read_already is None:
            row = self.row
            content = self.storage.read(row.manifest)
            manifest = read_manifest(content, self.storage.path(row.manifest))
            if hashlib.sha256(content).hexdigest() != PurePosixPath(row.manifest).stem:
                raise Damaged(f"{self.storage.path(row.manifest)} was changed; restore it from a copy of the catalog")
            if (manifest.entry, manifest.digest) != (row.entry, row.digest):
                raise Damaged(f"{self.storage.path(row.manifest)} is not the manifest of {row.entry}@v{row.number}")
            self.read_already = manifest
        return self.read_already


@dataclass(frozen=True, slots=True)
class Version:
    """A version of an entry. `created` is false where a commit found the rows to be those of the newest version.

    `rows` is 0 for a model; `bytes` are those of all its files, shared ones included. What only the manifest knows is read when it
    is asked for, and may raise Damaged and NewerFormat.
    """

    entry: str
    number: int
    kind: Kind
    digest: str
    rows: int
    bytes: int
    licence: str | None
    created_at: str
    tags: tuple[str, ...]
    created: bool = False
    file: _ManifestFile = field(repr=False, compare=False, kw_only=True)

    @classmethod
    def of(cls, storage: Storage, row: VersionRow, *, created: bool = False) -> Version:
        """Return the version of a row of the registry."""
        file = _ManifestFile(storage, row)
        return cls(
            row.entry,
            row.number,
            row.kind,
            row.digest,
            row.rows,
            row.bytes,
            row.licence,
            row.created_at,
            row.tags,
            created,
            file=file,
        )

    @property
    def reference(self) -> str:
        """`entry@v3`."""
        return f"{self.entry}@v{self.number}"

    @property
    def manifest(self) -> Manifest:
        """The manifest of a dataset. Raises CatalogError for a model."""
        read = self.file.read()
        if isinstance(read, ModelManifest):
            raise CatalogError(f"{self.reference} is a model, not rows; get its folder with load_model")
        return read

    @property
    def model(self) -> ModelManifest:
        """The manifest of a model. Raises CatalogError for a dataset."""
        read = self.file.read()
        if isinstance(read, Manifest):
            raise CatalogError(f"{self.reference} is a dataset, not a model; get its rows with load")
        return read

    @property
    def parents(self) -> tuple[str, ...]:
        return self.file.read().parents

    @property
    def lineage(self) -> Mapping[str, Any]:
        """What the maker recorded of how it was made."""
        return self.file.read().lineage

    @property
    def created_by(self) -> str:
        return self.file.read().created_by

    def with_manifest(self, manifest: Manifest) -> Version:
        return replace(self, file=_ManifestFile(self.file.storage, self.file.row, manifest))
