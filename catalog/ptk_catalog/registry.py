"""The registry: which versions and tags there are, in SQL; one transaction decides a commit."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, IntegrityError

from ptk_catalog.errors import CatalogError, Conflict, NewerFormat, NotFound, TagExists

__all__ = ["NewVersion", "Registry", "VersionRow"]

_FORMAT = 1
_ATTEMPTS = 20

_tables = sa.MetaData()
_meta = sa.Table(
    "ptk_meta", _tables, sa.Column("name", sa.String(64), primary_key=True), sa.Column("value", sa.String(256), nullable=False)
)
_versions = sa.Table(
    "ptk_versions",
    _tables,
    sa.Column("entry", sa.String(512), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("digest", sa.String(80), nullable=False, index=True),
    sa.Column("manifest", sa.String(256), nullable=False),
    sa.Column("licence", sa.String(256)),
    sa.Column("rows", sa.BigInteger, nullable=False),
    sa.Column("created_at", sa.String(40), nullable=False),
)
_tags = sa.Table(
    "ptk_tags",
    _tables,
    sa.Column("entry", sa.String(512), primary_key=True),
    sa.Column("tag", sa.String(128), primary_key=True),
    sa.Column("number", sa.Integer, nullable=False),
)
_tag_log = sa.Table(
    "ptk_tag_log",
    _tables,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("entry", sa.String(512), nullable=False),
    sa.Column("tag", sa.String(128), nullable=False),
    sa.Column("moved_from", sa.Integer),
    sa.Column("moved_to", sa.Integer, nullable=False),
    sa.Column("at", sa.String(40), nullable=False),
)


@dataclass(frozen=True, slots=True)
class NewVersion:
    """A version whose files are written and that waits to be registered."""

    entry: str
    digest: str
    manifest: str
    licence: str | None
    rows: int
    tags: tuple[str, ...]
    move_tags: bool
    parent: int | None = None
    """Number the entry's newest version must have; None appends to whatever is newest."""


@dataclass(frozen=True, slots=True)
class VersionRow:
    """A registered version."""

    entry: str
    number: int
    digest: str
    manifest: str
    licence: str | None
    rows: int
    created_at: str


class Registry:
    """Versions and tags of one catalog, in SQLite (WAL) or any database SQLAlchemy reaches."""

    def __init__(self, url: str | sa.URL, *, read_only: bool = False) -> None:
        self._sqlite = sa.make_url(url).get_backend_name() == "sqlite"
        options: dict[str, Any] = {"connect_args": {"timeout": 30}} if self._sqlite else {"isolation_level": "SERIALIZABLE"}
        self._engine = sa.create_engine(url, poolclass=sa.NullPool, **options)
        self._read_only = read_only
        if self._sqlite:
            sa.event.listen(self._engine, "connect", self._prepare_sqlite)
            sa.event.listen(self._engine, "begin", self._begin_sqlite)
        if not read_only:
            self._create()
        self._check_format()

    @classmethod
    def in_file(cls, path: Path) -> Registry:
        """Open the SQLite registry at `path`; where the folder can't be written, for reading only."""
        if os.access(path.parent, os.W_OK) and (not path.exists() or os.access(path, os.W_OK)):
            return cls(_sqlite_url(str(path)))
        log = path.with_name(path.name + "-wal")
        if log.exists() and log.stat().st_size:
            # The last commits are only in the log, which SQLite does not read where it can't write beside it.
            copy = Path(tempfile.mkdtemp(prefix="ptk-registry-"))
            atexit.register(shutil.rmtree, copy, ignore_errors=True)
            for file in (path, log):
                shutil.copyfile(file, copy / file.name)
            return cls(_sqlite_url(str(copy / path.name)), read_only=True)
        options = {"mode": "ro", "immutable": "1", "uri": "true"}
        return cls(_sqlite_url(f"file:{quote(str(path))}", options), read_only=True)

    def check_writable(self) -> None:
        """Raises CatalogError where the registry is open for reading only."""
        if self._read_only:
            raise CatalogError("this catalog can only be read: its folder can't be written")

    def _prepare_sqlite(self, connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # SQLAlchemy begins; see _begin_sqlite
        if not self._read_only:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")

    def _begin_sqlite(self, connection: sa.Connection) -> None:
        writes = connection.get_execution_options().get("ptk_writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    def _create(self) -> None:
        with self._engine.connect() as connection:
            known = sa.inspect(connection).has_table("ptk_meta")
        if not known:
            with self._writing() as connection:
                _tables.create_all(connection)
                if connection.execute(sa.select(_meta.c.value)).first() is None:
                    connection.execute(_meta.insert().values(name="format", value=str(_FORMAT)))

    def _check_format(self) -> None:
        with self._engine.connect() as connection:
            written = connection.execute(sa.select(_meta.c.value).where(_meta.c.name == "format")).scalar()
        if written is None or int(written) > _FORMAT:
            raise NewerFormat(
                f"the registry has format {written}; this package reads up to {_FORMAT}: upgrade preference-toolkit"
            )

    @contextmanager
    def _writing(self) -> Iterator[sa.Connection]:
        self.check_writable()
        with self._engine.connect().execution_options(ptk_writes=True) as connection, connection.begin():
            yield connection

    def commit(self, versions: Sequence[NewVersion]) -> list[tuple[VersionRow, bool]]:
        """Register versions, all or none, and set their tags; return each with whether it is new.

        A version whose rows and licence are those of the entry's newest is not registered again. Raises Conflict, TagExists.
        """
        for attempt in range(_ATTEMPTS):
            try:
                with self._writing() as connection:
                    return [self._register(connection, version) for version in versions]
            except IntegrityError:
                pass  # another writer took the number between our look and our insert
            except DBAPIError as error:
                if not _is_passing(error):
                    raise
            time.sleep(min(0.01 * 2**attempt, 1.0))
        raise Conflict(
            f"could not register {', '.join(version.entry for version in versions)}: other writers were faster {_ATTEMPTS} times"
        )

    def _register(self, connection: sa.Connection, new: NewVersion) -> tuple[VersionRow, bool]:
        newest = connection.execute(
            sa.select(_versions).where(_versions.c.entry == new.entry).order_by(_versions.c.number.desc()).limit(1)
        ).first()
        number = newest.number if newest else 0
        if new.parent is not None and new.parent != number:
            raise Conflict(f"{new.entry} is at v{number} by now, not at v{new.parent}; look at what changed and commit again")
        fresh = newest is None or newest.digest != new.digest or newest.licence != new.licence
        if newest is None or fresh:
            row = VersionRow(new.entry, number + 1, new.digest, new.manifest, new.licence, new.rows, _now())
            connection.execute(_versions.insert().values(**{name: getattr(row, name) for name in VersionRow.__slots__}))
        else:
            row = VersionRow(*tuple(newest))
        for tag in new.tags:
            self._set_tag(connection, new.entry, tag, row.number, move=new.move_tags)
        return row, fresh

    def _set_tag(self, connection: sa.Connection, entry: str, tag: str, number: int, *, move: bool) -> None:
        here = (_tags.c.entry == entry) & (_tags.c.tag == tag)
        current = connection.execute(sa.select(_tags.c.number).where(here)).scalar()
        if current == number:
            return
        if current is None:
            connection.execute(_tags.insert().values(entry=entry, tag=tag, number=number))
        elif not move:
            raise TagExists(f"tag '{tag}' of {entry} stands on v{current}; move it on purpose to set it on v{number}")
        else:
            moved = connection.execute(_tags.update().where(here & (_tags.c.number == current)).values(number=number))
            if moved.rowcount != 1:
                raise Conflict(f"tag '{tag}' of {entry} was moved by another writer just now")
        connection.execute(_tag_log.insert().values(entry=entry, tag=tag, moved_from=current, moved_to=number, at=_now()))

    def tag(self, entry: str, number: int, tag: str, *, move: bool) -> None:
        """Set a tag. Raises TagExists where it stands elsewhere and `move` is false."""
        with self._writing() as connection:
            self._set_tag(connection, entry, tag, number, move=move)

    def entries(self) -> list[str]:
        with self._engine.connect() as connection:
            return list(connection.execute(sa.select(_versions.c.entry).distinct().order_by(_versions.c.entry)).scalars())

    def versions(self, entry: str) -> list[VersionRow]:
        """Return an entry's versions, newest first."""
        query = sa.select(_versions).where(_versions.c.entry == entry).order_by(_versions.c.number.desc())
        with self._engine.connect() as connection:
            return [VersionRow(*row) for row in connection.execute(query)]

    def tags(self, entry: str) -> dict[str, int]:
        """Return an entry's tags and the numbers they stand on."""
        query = sa.select(_tags.c.tag, _tags.c.number).where(_tags.c.entry == entry).order_by(_tags.c.tag)
        with self._engine.connect() as connection:
            return {row.tag: row.number for row in connection.execute(query)}

    def tag_log(self, entry: str) -> list[tuple[str, int | None, int, str]]:
        """Return every move of an entry's tags, oldest first: (tag, from, to, when)."""
        query = sa.select(_tag_log).where(_tag_log.c.entry == entry).order_by(_tag_log.c.id)
        with self._engine.connect() as connection:
            return [(row.tag, row.moved_from, row.moved_to, row.at) for row in connection.execute(query)]

    def find(self, entry: str, *, number: int | None = None, tag: str | None = None, digest: str | None = None) -> VersionRow:
        """Return the version meant, or the newest. Raises NotFound, saying what there is."""
        versions = self.versions(entry)
        if not versions:
            known = self.entries()
            raise NotFound(f"the catalog has no entry '{entry}'; it has {', '.join(known) or 'none yet'}")
        if tag is not None:
            tags = self.tags(entry)
            if tag not in tags:
                raise NotFound(
                    f"{entry} has no tag '{tag}'; its tags: {', '.join(tags) or 'none'}; its newest version: v{versions[0].number}"
                )
            number = tags[tag]
        if digest is not None:
            found = [row for row in versions if row.digest.startswith(digest)]
            if not found or len({row.digest for row in found}) > 1:
                raise NotFound(
                    f"{entry} has {'no version' if not found else 'several versions'} with a digest that begins {digest}"
                )
            return found[0]
        if number is None:
            return versions[0]
        for row in versions:
            if row.number == number:
                return row
        raise NotFound(f"{entry} has no v{number}; its newest version is v{versions[0].number}")


def _sqlite_url(database: str, options: dict[str, str] | None = None) -> sa.URL:
    return sa.URL.create("sqlite", database=database, query=options or {})


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _is_passing(error: DBAPIError) -> bool:
    text = str(error.orig).lower()
    return "locked" in text or "serialize" in text or "deadlock" in text
