"""The catalog: commits versions, finds them again, and checks that they are what they were."""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
import polars as pl
from polars_hash import NonCryptographicHashingNameSpace

from ptk_catalog.dataset import Dataset
from ptk_catalog.diff import diff
from ptk_catalog.digest import column_sums, encode, rows_digest, type_name
from ptk_catalog.errors import BadData, BadReference, CatalogError, Conflict, Damaged, NewerFormat, NotFound
from ptk_catalog.export import Exported, Form, export
from ptk_catalog.lineage import row_lineage, version_lineage
from ptk_catalog.manifest import PLACE, Base, ColumnInfo, Group, Manifest, ModelManifest, Part, paths_of
from ptk_catalog.models import Model, files_of, folder_of, model_manifest, verify_model
from ptk_catalog.parts import Piece, cut, scan, write_parts, write_rows
from ptk_catalog.publications import PublicationLog
from ptk_catalog.references import check_entry, check_tag, parse_reference
from ptk_catalog.registry import Kind, Link, NewVersion, Registry, VersionRow
from ptk_catalog.storage import Storage
from ptk_catalog.sweep import Swept, sweep
from ptk_catalog.version import Version

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Catalog", "Commit", "Data", "ModelCommit", "Version", "open"]

Data = pl.DataFrame | pl.LazyFrame | str | Path | Sequence[str | Path]
"""Rows: a frame, or the path or paths of Parquet files."""

_FORMAT = 1
_MARKER = "catalog.json"
_REGISTRY = "registry.sqlite"
_ENVIRONMENT = "PTK_REGISTRY"
_RESERVED = frozenset({"_at", "_keep", "_text", "_times", "_ptk_key_text"})
_TRIES = 3
_ROWS_ASIDE = 1 << 13
"""Rows of a row group of a file that is written aside: they may be long, and a writer holds several groups."""


@dataclass(frozen=True, slots=True)
class Commit:
    """One version to be made.

    Without `base`, `data` is all of it and `key` names the columns that identify a row; left out, it is the key of the entry's
    newest version, or `pair_id`, or none: then rows are told apart by all their values, and no version can build on this one.
    With `base` (a reference), `data` holds the base's key and new or replaced columns; rows of the base that are not in `data`
    are left out of the new version, and so are the base's columns that `drop` names.

    `parents` are references to versions in this catalog, which lineage then follows, or other words that say what it was made from.
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
    drop: Sequence[str] = ()
    places: pl.LazyFrame | None = None
    """Where rows were read: the key, `_file` and `_line`. Kept beside the rows for `row_lineage`; no column, and not in the digest.
    Without a base alone: a version with a base has its base's."""


@dataclass(frozen=True, slots=True)
class ModelCommit:
    """One version of a model to be made: all files below `folder`, and what it was made of.

    `base_model` is a name as the model's library knows it, with its `base_revision`, or a reference to a model in this catalog.
    `trained_on` are references to versions of datasets in this catalog. `metrics` and `facts` are plain data.
    """

    entry: str
    folder: str | Path
    base_model: str | None = None
    base_revision: str | None = None
    trained_on: Sequence[str] = ()
    metrics: Mapping[str, Any] | None = None
    facts: Mapping[str, Any] | None = None
    parents: Sequence[str] = ()
    tags: Sequence[str] = ()
    move_tags: bool = False
    licence: str | None = None
    lineage: Mapping[str, Any] | None = None
    newest: int | None = None


class Catalog:
    """A catalog below one folder or URL. Use `ptk_catalog.open`."""

    def __init__(self, storage: Storage, registry: Registry) -> None:
        self.storage = storage
        self._registry = registry

    @property
    def root(self) -> str:
        return self.storage.root

    @property
    def publications(self) -> PublicationLog:
        """What was published from this catalog, and where."""
        return PublicationLog(self._registry)

    # ---- commits ----

    def commit(
        self,
        entry: str,
        data: Data,
        *,
        key: Sequence[str] | str | None = None,
        base: str | None = None,
        drop: Sequence[str] = (),
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
        commit = Commit(entry, data, key, base, parents, tags, move_tags, licence, lineage, statistics, newest, drop)
        return self.commit_all([commit])[0]

    def commit_model(
        self,
        entry: str,
        folder: str | Path,
        *,
        base_model: str | None = None,
        base_revision: str | None = None,
        trained_on: Sequence[str] = (),
        metrics: Mapping[str, Any] | None = None,
        facts: Mapping[str, Any] | None = None,
        parents: Sequence[str] = (),
        tags: Sequence[str] = (),
        move_tags: bool = False,
        licence: str | None = None,
        lineage: Mapping[str, Any] | None = None,
        newest: int | None = None,
    ) -> Version:
        """Make the files of `folder` the next version of a model; see `ModelCommit` for the arguments.

        Files that the catalog has already are stored once. Files and facts equal to the newest version's make no version.
        Raises BadData, BadReference, NotFound, TagExists, Conflict.
        """
        commit = ModelCommit(
            entry,
            folder,
            base_model,
            base_revision,
            trained_on,
            metrics,
            facts,
            parents,
            tags,
            move_tags,
            licence,
            lineage,
            newest,
        )
        return self.commit_all([commit])[0]

    def commit_all(self, commits: Sequence[Commit | ModelCommit]) -> list[Version]:
        """Make several versions, all or none: their files are written first, and one transaction registers them."""
        self._registry.check_writable()
        if not commits:
            return []
        for attempt in range(_TRIES):
            try:
                with self._registry.committing() as lease:
                    prepared = [self._prepare(commit) for commit in commits]
                    written = [path for _, paths in prepared for path in paths]
                    registered = self._registry.commit(
                        [new for new, _ in prepared], lease=lease, check=partial(self._check_there, written)
                    )
            except _SweptMeanwhileError as error:
                if attempt == _TRIES - 1:
                    raise Conflict(f"{error}: a sweep with too short a grace time took it again and again") from None
            else:
                return [Version.of(self.storage, row, created=fresh) for row, fresh in registered]
        raise AssertionError

    def _check_there(self, paths: Sequence[str]) -> None:
        """Raise where a sweep took files for old ones in the moment in which they were written anew."""
        if gone := self.storage.missing(paths):
            raise _SweptMeanwhileError(f"{self.storage.path(gone[0])} was removed while it was committed")

    # ---- finding ----

    def entries(self) -> list[str]:
        """Return the names of all entries, sorted."""
        return self._registry.entries()

    def newest(self) -> list[Version]:
        """Return the newest version of every entry, sorted by name. No manifest is read."""
        return [Version.of(self.storage, row) for row in self._registry.newest()]

    def log(self, entry: str) -> list[Version]:
        """Return the versions of an entry, newest first. No manifest is read. Raises NotFound."""
        self._registry.find(check_entry(entry))
        return [Version.of(self.storage, row) for row in self._registry.versions(entry)]

    def version(self, reference: str) -> Version:
        """Return the version that a reference means; its manifest is read when it is asked for. Raises BadReference, NotFound."""
        meant = parse_reference(reference)
        found = self._registry.find(meant.entry, number=meant.number, tag=meant.tag, digest=meant.digest, as_of=meant.as_of)
        return Version.of(self.storage, found)

    def load(self, reference: str, *, verify: bool = False) -> Dataset:
        """Return the rows of a version, ready to read; with `verify`, after all of it was read and compared with its digests.

        Raises BadReference, NotFound, CatalogError (a model), NewerFormat, and Damaged: where the manifest is not whole, and when
        rows are asked for and a file is missing.
        """
        found = self.version(reference)
        dataset = Dataset(found.with_manifest(found.manifest), self.storage)
        if verify:
            dataset.verify()
        return dataset

    def load_model(self, reference: str, *, to: str | Path | None = None, verify: bool = False) -> Path:
        """Return a local folder with the files of a model; with `to`, a copy there, else one in the cache of this machine.

        The cache holds links to the files of a local catalog, which must not be edited, and copies of those of an object
        store, which are always verified. Raises BadReference, NotFound, Damaged.
        """
        found = self.version(reference)
        return folder_of(found, self.storage, None if to is None else Path(to), verify=verify)

    # ---- tags ----

    def tag(self, reference: str, tag: str, *, move: bool = False) -> None:
        """Set a tag on a version. Raises TagExists where it stands on another and `move` is false."""
        meant = self.version(reference)
        self._registry.tag(meant.entry, meant.number, check_tag(tag), move=move)

    def tag_log(self, entry: str) -> list[tuple[str, int | None, int, str]]:
        """Return every move of an entry's tags, oldest first: (tag, from number, to number, when)."""
        return self._registry.tag_log(check_entry(entry))

    # ---- what was made from what ----

    def made_from(self, reference: str) -> list[tuple[str, Version]]:
        """Return the versions in this catalog that a version was made from, each after how: `base`, `parent`, `trained_on`."""
        found = self.version(reference)
        return [self._linked(link) for link in self._registry.links(found.entry, found.number)]

    def built_on(self, reference: str) -> list[tuple[str, Version]]:
        """Return the versions that were made from a version, each after how: `base`, `parent`, `trained_on`."""
        found = self.version(reference)
        return [self._linked(link) for link in self._registry.linked(found.entry, found.number)]

    def lineage(self, reference: str) -> dict[str, Any]:
        """Return how a version was made, and the versions before and after it, as a tree of plain data."""
        return version_lineage(self, reference)

    def row_lineage(self, reference: str, row: str) -> dict[str, Any]:
        """Return what made each value of the row whose key is, or begins with, `row`, as plain data."""
        return row_lineage(self, reference, row)

    def diff(self, before: str, after: str, *, measures: bool = True) -> dict[str, Any]:
        """Return what is different between two versions, as plain data; `measures` are length bias and duplicates, which read most."""
        return diff(self, before, after, measures=measures)

    def export(self, reference: str, folder: str | Path, *, form: Form = "delta") -> Exported:
        """Write a version into a new folder as a Delta table (needs deltalake) or plain Parquet, with a Croissant description."""
        return export(self.load(reference), Path(folder), form)

    def _linked(self, link: Link) -> tuple[str, Version]:
        return link.relation, Version.of(self.storage, self._registry.find(link.entry, number=link.number))

    # ---- care ----

    def verify(self, reference: str) -> Version:
        """Read a version whole and compare it with its digests. Raises Damaged, naming the file or column that differs."""
        found = self.version(reference)
        if found.kind == "model":
            verify_model(found, self.storage)
        else:
            Dataset(found, self.storage).verify()
        return found

    def gc(self, *, grace: float = 24 * 3600.0, dry_run: bool = False) -> Swept:
        """Remove files that no version needs, nor a running commit, and that are older than `grace` seconds.

        Versions and tags are never removed. Raises Damaged or NewerFormat, and removes nothing, where a manifest can't be read.
        """
        self._registry.check_writable()
        return sweep(self.storage, self._registry, grace, dry_run=dry_run)

    def migrate(self) -> tuple[int, int]:
        """Bring the registry to the format of this package; return the format it had and the one it has."""

        def described(row: VersionRow) -> tuple[int, list[Link]]:
            manifest = Version.of(self.storage, row).manifest
            links = [] if manifest.base is None else [Link("base", manifest.base.entry, manifest.base.number)]
            return _bytes_of(manifest), links + self._parent_links(manifest.parents)

        return self._registry.migrate(described)

    def _parent_links(self, parents: Iterable[str], relation: str = "parent") -> list[Link]:
        """Return links to those parents that are versions in this catalog."""
        links = []
        for parent in parents:
            try:
                found = self.version(parent)
            except (BadReference, NotFound):
                continue
            links.append(Link(relation, found.entry, found.number))
        return links

    def _resolved(self, parents: Iterable[str]) -> tuple[str, ...]:
        """Return parents with what may move (a tag, the newest) resolved to numbers."""
        resolved = []
        for parent in parents:
            try:
                resolved.append(self.version(parent).reference)
            except (BadReference, NotFound):
                resolved.append(parent)
        return tuple(resolved)

    def _prepare(self, commit: Commit | ModelCommit) -> tuple[NewVersion, list[str]]:
        """Write a version's files; return what is to be registered, and the paths of what was written."""
        check_entry(commit.entry)
        for tag in commit.tags:
            check_tag(tag)
        parents = self._resolved(commit.parents)
        if isinstance(commit, ModelCommit):
            return self._prepare_model(commit, parents)
        base = None
        if commit.base is None:
            if commit.drop:
                raise BadData(
                    f"{commit.entry}: `drop` names columns of a base, and there is no base; leave them out of the data"
                )
            manifest = self._plain(commit, _as_frame(commit.data))
        else:
            base = self.version(commit.base)
            with self._fixed(commit.data) as fixed:
                manifest = self._augmented(commit, fixed, base)
        manifest = manifest.model_copy(update={"parents": parents})
        links = [] if base is None else [Link("base", base.entry, base.number)]
        shared = set() if base is None else set(paths_of(base.manifest))
        written = [path for path in paths_of(manifest) if path not in shared]
        return self._write_manifest(commit, manifest, written, (*links, *self._parent_links(parents)))

    def _prepare_model(self, commit: ModelCommit, parents: tuple[str, ...]) -> tuple[NewVersion, list[str]]:
        trained_on = [self.version(reference) for reference in commit.trained_on]
        for seen in trained_on:
            if seen.kind != "dataset":
                raise BadData(f"{commit.entry}: {seen.reference} is a model; trained_on names datasets, base_model a model")
        base_model = commit.base_model
        links = [Link("trained_on", seen.entry, seen.number) for seen in trained_on] + self._parent_links(parents)
        if base_model is not None and "@" in base_model:
            base = self.version(base_model)
            if base.kind != "model":
                raise BadData(f"{commit.entry}: {base.reference} is a dataset; base_model names a model")
            base_model = base.reference
            links.append(Link("base", base.entry, base.number))
        manifest = model_manifest(
            commit.entry,
            files_of(Path(commit.folder)),
            Model(
                base_model=base_model,
                base_revision=commit.base_revision,
                trained_on=tuple(seen.reference for seen in trained_on),
                metrics=dict(commit.metrics or {}),
                facts=dict(commit.facts or {}),
            ),
            parents=parents,
            licence=commit.licence,
            lineage=dict(commit.lineage or {}),
            created_at=_now(),
            created_by=_creator(),
        )
        for file in manifest.files:
            self.storage.copy_in(Path(commit.folder, file.name), file.sha256, file.path)
        return self._write_manifest(commit, manifest, [file.path for file in manifest.files], tuple(links))

    def _write_manifest(
        self, commit: Commit | ModelCommit, manifest: Manifest | ModelManifest, written: list[str], links: tuple[Link, ...]
    ) -> tuple[NewVersion, list[str]]:
        content = manifest.as_bytes()
        digest = hashlib.sha256(content).hexdigest()
        relative = f"manifests/{digest[:2]}/{digest}.json"
        self.storage.write(relative, content)
        kind: Kind = "dataset" if isinstance(manifest, Manifest) else "model"
        new = NewVersion(
            entry=commit.entry,
            digest=manifest.digest,
            manifest=relative,
            licence=commit.licence,
            rows=manifest.rows if isinstance(manifest, Manifest) else 0,
            tags=tuple(commit.tags),
            move_tags=commit.move_tags,
            parent=commit.newest,
            kind=kind,
            bytes=_bytes_of(manifest),
            links=links,
        )
        return new, [*written, relative]

    def _plain(self, commit: Commit, frame: pl.LazyFrame) -> Manifest:
        columns = frame.collect_schema()
        key = self._key(commit, columns)
        for name in key:
            if name not in columns:
                raise BadData(f"{commit.entry}: there is no column '{name}' to be the key; there is {', '.join(columns)}")
        _check_columns(commit.entry, columns)
        parts, sums = write_rows(self.storage, (Piece(piece, piece) for piece in cut(frame)), key, list(columns))
        _check_key(commit.entry, scan(self.storage, parts), key)
        groups = (Group(columns=tuple(columns), parts=parts), *self._places(commit, parts, key))
        rows = sum(part.rows for part in parts)
        return self._manifest(commit, key, rows, {name: type_name(dtype) for name, dtype in columns.items()}, sums, groups)

    def _places(self, commit: Commit, parts: Sequence[Part], key: Sequence[str]) -> Iterator[Group]:
        """Yield the group without columns that holds where rows were read, if that is known of any."""
        if commit.places is None or not key:
            return
        known = commit.places.select(*key, *PLACE).unique(list(key), keep="any")
        keys = scan(self.storage, parts).select(key)
        placed = keys.join(known, on=list(key), how="left", maintain_order="left").select(PLACE)
        pieces = cut(placed, [part.rows for part in parts])
        yield Group(columns=(), parts=write_parts(self.storage, pieces))

    def _key(self, commit: Commit, columns: pl.Schema) -> tuple[str, ...]:
        """Return the key given, or that of the entry's newest version, or `pair_id` where there is one, or none."""
        if commit.key is not None:
            return (commit.key,) if isinstance(commit.key, str) else tuple(commit.key)
        try:
            return Version.of(self.storage, self._registry.find(commit.entry)).manifest.key
        except NotFound:
            pass
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
        dropped = set(commit.drop)
        for name in commit.drop:
            if name in key or name in added or all(name != column.name for column in old.columns):
                raise BadData(
                    f"{commit.entry}: can't drop '{name}': it is the key, or new, or not a column of {base.reference}"
                )
        stored = Dataset(base.with_manifest(old.model_copy(update={"mask": None})), self.storage).scan().select(key)
        for name, dtype in stored.collect_schema().items():
            if columns[name] != dtype:
                raise BadData(
                    f"{commit.entry}: the key '{name}' is {type_name(columns[name])}, but {type_name(dtype)} in {base.reference}; cast it"
                )
        sizes = [part.rows for part in old.groups[0].parts]
        with self._ordered(commit.entry, frame, base, stored) as (rows, numbers):
            kept = old.rows if numbers is None else len(numbers)
            parts: tuple[Part, ...] = ()
            new_sums: dict[str, str] = {}
            if added:
                parts, new_sums = write_rows(self.storage, _laid_out(rows, numbers, sizes, list(added)), key, list(added))
        all_kept = kept == sum(sizes)
        mask = None if all_kept or numbers is None else write_parts(self.storage, _masks(numbers, sizes))
        groups = [
            group.model_copy(
                update={"columns": tuple(name for name in group.columns if name not in added and name not in dropped)}
            )
            for group in old.groups
        ]
        groups = [group for group in groups if group.columns]
        if added:
            groups.append(Group(columns=tuple(added), parts=parts))
        groups += [group for group in old.groups if not group.columns]  # where rows were read
        remaining = [column for column in old.columns if column.name not in dropped]
        types = {column.name: column.type for column in remaining} | {name: type_name(dtype) for name, dtype in added.items()}
        sums = {column.name: column.sum for column in remaining if column.name not in added}
        if kept != old.rows:
            draft = self._manifest(commit, key, kept, types, dict.fromkeys(types, ""), tuple(groups), mask, base)
            sums = column_sums(Dataset(base.with_manifest(draft), self.storage).scan(), key, list(sums))
        return self._manifest(commit, key, kept, types, sums | new_sums, tuple(groups), mask, base)

    @contextmanager
    def _fixed(self, data: Data) -> Iterator[pl.LazyFrame]:
        """Give data that is the same each time it is read: a query is run once, into a file."""
        if not isinstance(data, pl.LazyFrame):
            yield _as_frame(data)
            return
        aside = self.storage.aside()
        try:
            data.sink_parquet(aside, compression="lz4", row_group_size=_ROWS_ASIDE)
            yield pl.scan_parquet(aside, glob=False, hive_partitioning=False)
        finally:
            aside.unlink(missing_ok=True)

    @contextmanager
    def _ordered(
        self, entry: str, frame: pl.LazyFrame, base: Version, stored: pl.LazyFrame
    ) -> Iterator[tuple[pl.LazyFrame, NDArray[np.int64] | None]]:
        """Give the rows in the base's order, and the numbers of the base's stored rows that they are; None where they are all of them.

        Raises BadData for a key that repeats, is null, or is not one of the base's rows.
        """
        manifest = base.manifest
        key = list(manifest.key)
        kept = _kept_rows(self.storage, manifest)
        theirs = stored if manifest.mask is None else Dataset(base, self.storage).scan(key)
        if _are_the_same(theirs, frame.select(key), manifest.rows):
            yield frame, kept
            return
        _check_key(entry, frame, key)
        numbered = stored.with_row_index("_at")
        if manifest.mask is not None:
            masks = scan(self.storage, manifest.mask).select("_keep")
            numbered = pl.concat([numbered, masks], how="horizontal").filter(pl.col("_keep")).drop("_keep")
        aside = self.storage.aside()
        try:
            placed = frame.join(numbered, on=key, how="left").sort("_at", nulls_last=False)
            placed.sink_parquet(aside, compression="lz4", row_group_size=_ROWS_ASIDE)
            rows = pl.scan_parquet(aside, glob=False, hive_partitioning=False)
            strangers = rows.filter(pl.col("_at").is_null()).select(key).sort(key).head(1).collect()
            if strangers.height:
                raise BadData(
                    f"{entry}: {base.reference} has no row {', '.join(map(str, strangers.row(0)))}; a base's columns are for its rows"
                )
            yield rows.drop("_at"), rows.select(pl.col("_at").cast(pl.Int64)).collect().to_series().to_numpy()
        finally:
            aside.unlink(missing_ok=True)

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
            created_at=_now(),
            created_by=_creator(),
        )


def open(place: str | Path, *, registry: str | None = None, create: bool = True) -> Catalog:  # noqa: A001
    """Open the catalog in a folder or below an fsspec URL; with `create`, make one where there is none.

    `registry` is a SQLAlchemy URL; by default a SQLite file in the folder, or for an object store what the environment variable
    PTK_REGISTRY says. Raises NotFound, NewerFormat, Damaged, BadData (an object store needs a registry elsewhere).
    """
    storage = Storage(os.fspath(place))
    if not storage.is_local and registry is None:
        registry = os.environ.get(_ENVIRONMENT) or None
        if registry is None:
            raise BadData(
                f"{storage.root}: an object store can't hold the registry; give registry='postgresql://...', or set {_ENVIRONMENT}"
            )
    if storage.exists(_MARKER):
        return _existing(storage, registry)
    if not create:
        raise NotFound(f"there is no catalog in {storage.root}")
    try:
        if storage.is_local:
            Path(storage.root).mkdir(parents=True, exist_ok=True)
        opened = _registry_of(storage, registry)
        marker = {"format": _FORMAT, "kind": "ptk catalog"}
        if registry is not None:
            marker["id"] = _owned(storage, opened, uuid.uuid4().hex)
        # The marker comes last: a catalog that has one has its registry.
        storage.write(_MARKER, orjson.dumps(marker))
    except OSError as error:
        raise CatalogError(f"can't make a catalog in {storage.root}: {error.strerror or error}") from error
    return Catalog(storage, opened)


def _existing(storage: Storage, registry: str | None) -> Catalog:
    marker = orjson.loads(storage.read(_MARKER))
    if marker["format"] > _FORMAT:
        raise NewerFormat(
            f"{storage.root} has format {marker['format']}; this package reads up to {_FORMAT}: upgrade preference-toolkit"
        )
    identity = marker.get("id")
    if registry is None and identity is not None:
        registry = os.environ.get(_ENVIRONMENT) or None
        if registry is None:
            raise BadData(f"{storage.root} has its registry elsewhere; give registry='postgresql://...', or set {_ENVIRONMENT}")
    if registry is None and not storage.exists(_REGISTRY):
        raise Damaged(f"{storage.path(_REGISTRY)} is missing; restore it from a copy of the catalog")
    if registry is not None and identity is None and storage.exists(_REGISTRY):
        raise BadData(f"{storage.root} has a registry of its own; leave `registry` out")
    opened = _registry_of(storage, registry)
    if identity is not None and opened.meta("catalog") != identity:
        raise CatalogError(
            f"the registry {opened.name} is not that of {storage.root}: it belongs to another catalog, or to none"
        )
    return Catalog(storage, opened)


def _owned(storage: Storage, registry: Registry, identity: str) -> str:
    """Return the identity of a new catalog: a registry belongs to one, and a maker that was killed goes on with what it gave."""
    known = registry.own(identity)
    if known != identity and registry.entries():
        raise CatalogError(
            f"the registry {registry.name} belongs to another catalog than {storage.root}; give each its own database"
        )
    return known


def _registry_of(storage: Storage, url: str | None) -> Registry:
    return Registry(url) if url is not None else Registry.in_file(Path(storage.path(_REGISTRY)))


def _bytes_of(manifest: Manifest | ModelManifest) -> int:
    if isinstance(manifest, ModelManifest):
        return sum(file.bytes for file in manifest.files)
    parts = {part.path: part.bytes for group in manifest.groups for part in group.parts}
    return sum(parts.values()) + sum(part.bytes for part in manifest.mask or ())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _as_frame(data: Data) -> pl.LazyFrame:
    if isinstance(data, pl.DataFrame):
        return data.lazy()
    if isinstance(data, pl.LazyFrame):
        return data
    if isinstance(data, (str, Path)):
        return pl.scan_parquet(data)
    return pl.scan_parquet([Path(path) for path in data])


def _kept_rows(storage: Storage, manifest: Manifest) -> NDArray[np.int64] | None:
    """Return the numbers of the stored rows that a version keeps; None where it keeps all."""
    if manifest.mask is None:
        return None
    return np.flatnonzero(scan(storage, manifest.mask).select("_keep").collect().to_series().to_numpy())


def _are_the_same(theirs: pl.LazyFrame, ours: pl.LazyFrame, rows: int) -> bool:
    """Return whether keys are those of a base, in its order: then nothing has to be joined."""
    if ours.select(pl.len()).collect(engine="streaming").item() != rows:
        return False
    names = theirs.collect_schema().names()
    sides = [
        side.select(pl.col(name).alias(f"{mark}{number}") for number, name in enumerate(names))
        for mark, side in (("a", theirs), ("b", ours))
    ]
    same = pl.all_horizontal(pl.col(f"a{number}").eq_missing(pl.col(f"b{number}")) for number in range(len(names))).all()
    return bool(pl.concat(sides, how="horizontal").select(same).collect(engine="streaming").item())


def _laid_out(
    rows: pl.LazyFrame, numbers: NDArray[np.int64] | None, sizes: Sequence[int], columns: list[str]
) -> Iterator[Piece]:
    """Yield rows in order as pieces for parts of `sizes` rows; what has no row is null."""
    if numbers is None:
        for piece in cut(rows, sizes):
            yield Piece(piece.select(columns), piece)
        return
    bounds = np.cumsum([0, *sizes])
    counts = np.diff(np.searchsorted(numbers, bounds))
    taken = cut(rows, [int(count) for count in counts if count])
    empty = pl.DataFrame(schema=rows.collect_schema())
    done = 0
    for first, size, count in zip(bounds, sizes, counts, strict=False):
        piece = next(taken) if count else empty
        at = pl.Series([None], dtype=pl.UInt32).extend_constant(None, size - 1) if size else pl.Series(dtype=pl.UInt32)
        if count:
            at = at.scatter(numbers[done : done + count] - first, pl.int_range(int(count), dtype=pl.UInt32, eager=True))
        done += count
        yield Piece(piece.select(pl.col(columns).gather(at)), piece)


def _masks(numbers: NDArray[np.int64], sizes: Sequence[int]) -> Iterator[pl.DataFrame]:
    """Yield for each part which of its rows are kept."""
    kept = np.zeros(sum(sizes), dtype=np.bool_)
    kept[numbers] = True
    for last, size in zip(np.cumsum(sizes), sizes, strict=True):
        yield pl.DataFrame({"_keep": kept[last - size : last]})


def _check_columns(entry: str, columns: Mapping[str, pl.DataType]) -> None:
    for name, dtype in columns.items():
        type_name(dtype)
        if name in _RESERVED:
            raise BadData(f"{entry}: a column can't be called '{name}', which the catalog uses itself; rename it")


def _check_key(entry: str, frame: pl.LazyFrame, key: Iterable[str]) -> None:
    names = list(key)
    if not names:
        return
    schema = frame.collect_schema()
    text = pl.concat_str(*(encode(pl.col(name), schema[name]) for name in names))
    nulls, rows, different = (
        frame.select(
            pl.any_horizontal(pl.col(names).is_null()).sum().alias("nulls"),
            pl.len().alias("rows"),
            NonCryptographicHashingNameSpace(text).xxh3_64().n_unique().alias("different"),
        )
        .collect(engine="streaming")
        .row(0)
    )
    if nulls:
        raise BadData(f"{entry}: {nulls:,} rows have no key ({', '.join(names)})")
    if different == rows:
        return
    # Two keys may share a hash of 64 bits: their texts tell.
    repeated = (
        frame.select(*names, text.alias("_text"))
        .group_by("_text")
        .agg(pl.len().alias("_times"), *(pl.col(name).first() for name in names))
        .filter(pl.col("_times") > 1)
        .select(names)
        .collect(engine="streaming")
    )
    if repeated.height:
        first = ", ".join(str(row[0] if len(row) == 1 else row) for row in repeated.head(3).iter_rows())
        raise BadData(f"{entry}: {repeated.height:,} values of the key {', '.join(names)} repeat: {first}")


def _creator() -> str:
    try:
        return f"preference-toolkit {version('preference-toolkit')}"
    except PackageNotFoundError:
        return "preference-toolkit, not installed"


class _SweptMeanwhileError(CatalogError):
    """A file of this commit was swept before it was registered."""
