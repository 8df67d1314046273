"""The catalog: commits versions, finds them again, and checks that they are what they were."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import orjson
import polars as pl

from ptk_catalog.dataset import Dataset
from ptk_catalog.digest import column_sums, encode, rows_digest, type_name
from ptk_catalog.errors import BadData, CatalogError, Damaged, NewerFormat, NotFound
from ptk_catalog.manifest import Base, ColumnInfo, Group, Manifest, Part, read_manifest
from ptk_catalog.parts import cut, scan, write_parts
from ptk_catalog.references import check_entry, check_tag, parse_reference
from ptk_catalog.registry import NewVersion, Registry, VersionRow
from ptk_catalog.storage import Storage

__all__ = ["Catalog", "Commit", "Data", "Version", "open"]

Data = pl.DataFrame | pl.LazyFrame | str | Path | Sequence[str | Path]
"""Rows: a frame, or the path or paths of Parquet files."""

_FORMAT = 1
_MARKER = "catalog.json"
_REGISTRY = "registry.sqlite"
_RESERVED = frozenset({"_keep", "_kept", "_here", "_text", "_times", "_ptk_key_text"})


@dataclass(frozen=True, slots=True)
class Version:
    """A version of an entry. `created` is false where a commit found the rows to be those of the newest version."""

    entry: str
    number: int
    digest: str
    rows: int
    created_at: str
    tags: tuple[str, ...]
    manifest: Manifest
    created: bool = False

    @property
    def reference(self) -> str:
        """`entry@v3`."""
        return f"{self.entry}@v{self.number}"

    def with_manifest(self, manifest: Manifest) -> Version:
        return replace(self, manifest=manifest)


@dataclass(frozen=True, slots=True)
class Commit:
    """One version to be made.

    Without `base`, `data` is all of it and `key` names the columns that identify a row; left out, it is the key of the entry's
    newest version, or `pair_id`, or none: then rows are told apart by all their values, and no version can build on this one.
    With `base` (a reference), `data` holds the base's key and new or replaced columns; rows of the base that are not in `data`
    are left out of the new version.
    """

    entry: str
    data: Data
    key: Sequence[str] | str | None = None
    base: str | None = None
    parents: Sequence[str] = ()
    tags: Sequence[str] = ()
    move_tags: bool = False
    licence: str | None = None
    lineage: Mapping[str, Any] | None = None
    statistics: Mapping[str, Any] | None = None
    newest: int | None = None
    """Number the entry's newest version must still have (0: the entry must be new), else Conflict; None appends to any."""


class Catalog:
    """A catalog below one folder or URL. Use `ptk_catalog.open`."""

    def __init__(self, storage: Storage, registry: Registry) -> None:
        self.storage = storage
        self._registry = registry

    @property
    def root(self) -> str:
        return self.storage.root

    def commit(
        self,
        entry: str,
        data: Data,
        *,
        key: Sequence[str] | str | None = None,
        base: str | None = None,
        parents: Sequence[str] = (),
        tags: Sequence[str] = (),
        move_tags: bool = False,
        licence: str | None = None,
        lineage: Mapping[str, Any] | None = None,
        statistics: Mapping[str, Any] | None = None,
        newest: int | None = None,
    ) -> Version:
        """Make `data` the next version of `entry`; see `Commit` for the arguments. Rows equal to the newest version's make none.

        Raises BadData, BadReference, NotFound, TagExists, Conflict.
        """
        commit = Commit(entry, data, key, base, parents, tags, move_tags, licence, lineage, statistics, newest)
        return self.commit_all([commit])[0]

    def commit_all(self, commits: Sequence[Commit]) -> list[Version]:
        """Make several versions, all or none: their files are written first, and one transaction registers them."""
        self._registry.check_writable()
        prepared = [self._prepare(commit) for commit in commits]
        registered = self._registry.commit([new for new, _ in prepared])
        return [self._version(row, created=fresh) for row, fresh in registered]

    def entries(self) -> list[str]:
        """Return the names of all entries, sorted."""
        return self._registry.entries()

    def log(self, entry: str) -> list[Version]:
        """Return the versions of an entry, newest first. Raises NotFound."""
        self._registry.find(check_entry(entry))
        return [self._version(row) for row in self._registry.versions(entry)]

    def version(self, reference: str) -> Version:
        """Return the version that a reference means. Raises BadReference, NotFound, Damaged."""
        meant = parse_reference(reference)
        return self._version(self._registry.find(meant.entry, number=meant.number, tag=meant.tag, digest=meant.digest))

    def load(self, reference: str) -> Dataset:
        """Return the rows of a version, ready to read. Raises BadReference, NotFound, Damaged."""
        return Dataset(self.version(reference), self.storage)

    def tag(self, reference: str, tag: str, *, move: bool = False) -> None:
        """Set a tag on a version. Raises TagExists where it stands on another and `move` is false."""
        meant = self.version(reference)
        self._registry.tag(meant.entry, meant.number, check_tag(tag), move=move)

    def tag_log(self, entry: str) -> list[tuple[str, int | None, int, str]]:
        """Return every move of an entry's tags, oldest first: (tag, from number, to number, when)."""
        return self._registry.tag_log(check_entry(entry))

    def verify(self, reference: str) -> Version:
        """Read a version whole and compare it with its digests. Raises Damaged, naming the file or column that differs."""
        found = self.version(reference)
        manifest = found.manifest
        for group in manifest.groups:
            for part in group.parts:
                self._verify_part(found, part)
        for part in manifest.mask or ():
            self._verify_part(found, part)
        frame = Dataset(found, self.storage).scan()
        rows = frame.select(pl.len()).collect(engine="streaming").item()
        if rows != manifest.rows:
            raise Damaged(f"{found.reference}: has {rows:,} rows, not {manifest.rows:,} as its manifest says")
        sums = column_sums(frame, manifest.key)
        for column in manifest.columns:
            if sums[column.name] != column.sum:
                raise Damaged(f"{found.reference}: the values of column '{column.name}' are not those that were committed")
        types = {column.name: column.type for column in manifest.columns}
        if rows_digest(manifest.key, rows, types, sums) != found.digest:
            raise Damaged(f"{found.reference}: its rows are not those of {found.digest}")
        return found

    def _verify_part(self, found: Version, part: Part) -> None:
        if self.storage.sha256(part.path) != part.sha256:
            raise Damaged(
                f"{found.reference}: {self.storage.path(part.path)} was changed; restore it from a copy of the catalog"
            )

    def _version(self, row: VersionRow, *, created: bool = False) -> Version:
        content = self.storage.read(row.manifest)
        manifest = read_manifest(content, self.storage.path(row.manifest))
        if hashlib.sha256(content).hexdigest() != Path(row.manifest).stem:
            raise Damaged(f"{self.storage.path(row.manifest)} was changed; restore it from a copy of the catalog")
        if (manifest.entry, manifest.digest) != (row.entry, row.digest):
            raise Damaged(f"{self.storage.path(row.manifest)} is not the manifest of {row.entry}@v{row.number}")
        tags = tuple(tag for tag, number in self._registry.tags(row.entry).items() if number == row.number)
        return Version(row.entry, row.number, row.digest, row.rows, row.created_at, tags, manifest, created)

    def _prepare(self, commit: Commit) -> tuple[NewVersion, Manifest]:
        check_entry(commit.entry)
        for tag in commit.tags:
            check_tag(tag)
        frame = _as_frame(commit.data)
        if commit.base is None:
            manifest = self._plain(commit, frame)
        else:
            # It is read several times, and must be the same each time: a query is run once.
            aside = self.storage.aside()
            try:
                frame.sink_parquet(aside)
                manifest = self._augmented(commit, pl.scan_parquet(aside), self.version(commit.base))
            finally:
                aside.unlink(missing_ok=True)
        content = manifest.as_bytes()
        digest = hashlib.sha256(content).hexdigest()
        relative = f"manifests/{digest[:2]}/{digest}.json"
        self.storage.write(relative, content)
        new = NewVersion(
            entry=commit.entry,
            digest=manifest.digest,
            manifest=relative,
            licence=commit.licence,
            rows=manifest.rows,
            tags=tuple(commit.tags),
            move_tags=commit.move_tags,
            parent=commit.newest,
        )
        return new, manifest

    def _plain(self, commit: Commit, frame: pl.LazyFrame) -> Manifest:
        columns = frame.collect_schema()
        key = self._key(commit, columns)
        for name in key:
            if name not in columns:
                raise BadData(f"{commit.entry}: there is no column '{name}' to be the key; there is {', '.join(columns)}")
        _check_columns(commit.entry, columns)
        parts = write_parts(self.storage, cut(frame))
        stored = scan(self.storage, parts)
        _check_key(commit.entry, stored, key)
        sums = column_sums(stored, key)
        group = Group(columns=tuple(columns), parts=parts)
        rows = sum(part.rows for part in parts)
        return self._manifest(commit, key, rows, {name: type_name(dtype) for name, dtype in columns.items()}, sums, (group,))

    def _key(self, commit: Commit, columns: pl.Schema) -> tuple[str, ...]:
        """Return the key given, or that of the entry's newest version, or `pair_id` where there is one, or none."""
        if commit.key is not None:
            return (commit.key,) if isinstance(commit.key, str) else tuple(commit.key)
        if versions := self._registry.versions(commit.entry):
            return self._version(versions[0]).manifest.key
        return ("pair_id",) if "pair_id" in columns else ()

    def _augmented(self, commit: Commit, frame: pl.LazyFrame, base: Version) -> Manifest:
        """Return the manifest of `base` with the columns of `frame` beside, sharing the base's files."""
        old = base.manifest
        key = old.key
        if not key:
            raise BadData(
                f"{commit.entry}: the rows of {base.reference} have no key to build on; commit them with key=... first"
            )
        if commit.key is not None and tuple([commit.key] if isinstance(commit.key, str) else commit.key) != key:
            raise BadData(
                f"{commit.entry}: the key of {base.reference} is {', '.join(key)}; a version that builds on it has the same"
            )
        columns = frame.collect_schema()
        for name in key:
            if name not in columns:
                raise BadData(f"{commit.entry}: the data lacks '{name}', the key of {base.reference}")
        added = {name: dtype for name, dtype in columns.items() if name not in key}
        _check_columns(commit.entry, columns)
        whole = Dataset(base.with_manifest(old.model_copy(update={"mask": None})), self.storage).scan().select(key)
        if old.mask is None:
            keys = whole.with_columns(_kept=pl.lit(True))
        else:
            keys = pl.concat([whole, scan(self.storage, old.mask).select(pl.col("_keep").alias("_kept"))], how="horizontal")
        for name, dtype in whole.collect_schema().items():
            if columns[name] != dtype:
                raise BadData(
                    f"{commit.entry}: the key '{name}' is {type_name(columns[name])}, but {type_name(dtype)} in {base.reference}; cast it"
                )
        _check_key(commit.entry, frame, key)
        strangers = (
            frame.select(key).join(keys.filter(pl.col("_kept")), on=list(key), how="anti").head(3).collect(engine="streaming")
        )
        if strangers.height:
            raise BadData(
                f"{commit.entry}: {base.reference} has no row {', '.join(map(str, strangers.row(0)))}; a base's columns are for its rows"
            )
        aligned = keys.join(
            frame.with_columns(_here=pl.lit(True)), on=list(key), how="left", maintain_order="left"
        ).with_columns(_keep=pl.col("_kept") & pl.col("_here").fill_null(False))
        sizes = [part.rows for part in old.groups[0].parts]
        groups = [
            group.model_copy(update={"columns": tuple(name for name in group.columns if name not in added)})
            for group in old.groups
        ]
        groups = [group for group in groups if group.columns]
        if added:
            groups.append(Group(columns=tuple(added), parts=write_parts(self.storage, cut(aligned.select(list(added)), sizes))))
        mask = write_parts(self.storage, cut(aligned.select("_keep"), sizes))
        kept = aligned.filter(pl.col("_keep")).select(pl.len()).collect(engine="streaming").item()
        all_kept = kept == sum(sizes)
        types = {column.name: column.type for column in old.columns} | {name: type_name(dtype) for name, dtype in added.items()}
        sums = {column.name: column.sum for column in old.columns if column.name not in added}
        draft = self._manifest(
            commit, key, kept, types, dict.fromkeys(types, ""), tuple(groups), None if all_kept else mask, base
        )
        rows = Dataset(base.with_manifest(draft), self.storage).scan()
        stale = list(types) if kept != old.rows else list(added)
        return self._manifest(
            commit, key, kept, types, sums | column_sums(rows, key, stale), tuple(groups), None if all_kept else mask, base
        )

    def _manifest(
        self,
        commit: Commit,
        key: tuple[str, ...],
        rows: int,
        types: Mapping[str, str],
        sums: Mapping[str, str],
        groups: tuple[Group, ...],
        mask: tuple[Part, ...] | None = None,
        base: Version | None = None,
    ) -> Manifest:
        return Manifest(
            entry=commit.entry,
            digest=rows_digest(key, rows, types, sums),
            key=key,
            rows=rows,
            columns=tuple(ColumnInfo(name=name, type=types[name], sum=sums[name]) for name in types),
            groups=groups,
            mask=mask,
            base=Base(entry=base.entry, number=base.number, digest=base.digest) if base else None,
            parents=tuple(commit.parents),
            licence=commit.licence,
            lineage=dict(commit.lineage or {}),
            statistics=dict(commit.statistics or {}),
            created_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
            created_by=f"preference-toolkit {_own_version()}",
        )


def open(place: str | Path, *, registry: str | None = None, create: bool = True) -> Catalog:  # noqa: A001
    """Open the catalog in a folder or below an fsspec URL; with `create`, make one where there is none.

    `registry` is a SQLAlchemy URL; by default a SQLite file in the folder. Raises NotFound, NewerFormat, BadData (an object
    store needs a registry elsewhere).
    """
    storage = Storage(os.fspath(place))
    if not storage.is_local and registry is None:
        raise BadData(f"{storage.root}: an object store can't hold the registry; give registry='postgresql://...'")
    if storage.exists(_MARKER):
        written = orjson.loads(storage.read(_MARKER))["format"]
        if written > _FORMAT:
            raise NewerFormat(
                f"{storage.root} has format {written}; this package reads up to {_FORMAT}: upgrade preference-toolkit"
            )
        if registry is None and not storage.exists(_REGISTRY):
            raise Damaged(f"{storage.path(_REGISTRY)} is missing; restore it from a copy of the catalog")
        return Catalog(storage, _registry_of(storage, registry))
    if not create:
        raise NotFound(f"there is no catalog in {storage.root}")
    try:
        if storage.is_local:
            Path(storage.root).mkdir(parents=True, exist_ok=True)
        opened = Catalog(storage, _registry_of(storage, registry))
        # The marker comes last: a catalog that has one has its registry.
        storage.write(_MARKER, orjson.dumps({"format": _FORMAT, "kind": "ptk catalog"}))
    except OSError as error:
        raise CatalogError(f"can't make a catalog in {storage.root}: {error.strerror or error}") from error
    return opened


def _registry_of(storage: Storage, url: str | None) -> Registry:
    return Registry(url) if url is not None else Registry.in_file(Path(storage.path(_REGISTRY)))


def _as_frame(data: Data) -> pl.LazyFrame:
    if isinstance(data, pl.DataFrame):
        return data.lazy()
    if isinstance(data, pl.LazyFrame):
        return data
    if isinstance(data, (str, Path)):
        return pl.scan_parquet(data)
    return pl.scan_parquet([Path(path) for path in data])


def _check_columns(entry: str, columns: Mapping[str, pl.DataType]) -> None:
    for name, dtype in columns.items():
        type_name(dtype)
        if name in _RESERVED:
            raise BadData(f"{entry}: a column can't be called '{name}', which the catalog uses itself; rename it")


def _check_key(entry: str, frame: pl.LazyFrame, key: Iterable[str]) -> None:
    names = list(key)
    if not names:
        return
    nulls = frame.select(pl.any_horizontal(pl.col(names).is_null()).sum()).collect(engine="streaming").item()
    if nulls:
        raise BadData(f"{entry}: {nulls:,} rows have no key ({', '.join(names)})")
    schema = frame.collect_schema()
    repeated = (
        frame.select(*names, pl.concat_str(*(encode(pl.col(name), schema[name]) for name in names)).alias("_text"))
        .group_by("_text")
        .agg(pl.len().alias("_times"), *(pl.col(name).first() for name in names))
        .filter(pl.col("_times") > 1)
        .select(names)
        .collect(engine="streaming")
    )
    if repeated.height:
        first = ", ".join(str(row[0] if len(row) == 1 else row) for row in repeated.head(3).iter_rows())
        raise BadData(f"{entry}: {repeated.height:,} values of the key {', '.join(names)} repeat: {first}")


def _own_version() -> str:
    try:
        return version("preference-toolkit")
    except PackageNotFoundError:
        return "unknown"
