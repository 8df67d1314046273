"""The registry: which versions, tags and links between versions there are, in SQL; one transaction decides a commit."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import socket
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, SQLAlchemyError

from ptk_catalog.errors import CatalogError, Conflict, Damaged, NewerFormat, NotFound, OlderFormat, TagExists

__all__ = ["FORMAT", "Kind", "Link", "NewVersion", "Registry", "VersionRow"]

FORMAT = 2
"""The format this package writes. It reads those before it, too; `migrate` brings one up to date."""

_ATTEMPTS = 20
_LONGEST_COMMIT = 7 * 24 * 3600.0
"""Seconds after which a running commit of another machine, which can't be asked, counts as killed."""

Kind = Literal["dataset", "model"]

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
    sa.Column("kind", sa.String(16), nullable=False, server_default="dataset"),
    sa.Column("bytes", sa.BigInteger, nullable=False, server_default="0"),
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
_links = sa.Table(
    "ptk_links",
    _tables,
    sa.Column("entry", sa.String(512), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("relation", sa.String(16), primary_key=True),
    sa.Column("to_entry", sa.String(512), primary_key=True),
    sa.Column("to_number", sa.Integer, primary_key=True),
    sa.Index("ix_ptk_links_to", "to_entry", "to_number"),
)
_commits = sa.Table(
    "ptk_commits",
    _tables,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("host", sa.String(256), nullable=False),
    sa.Column("pid", sa.Integer, nullable=False),
    sa.Column("started", sa.Float, nullable=False),
)
_SINCE_2 = ("kind", "bytes")


@dataclass(frozen=True, slots=True)
class Link:
    """What a version was made from: `base` (it shares files with it, or it is the model trained on), `parent` or `trained_on`."""

    relation: str
    entry: str
    number: int


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
    kind: Kind = "dataset"
    bytes: int = 0
    links: tuple[Link, ...] = ()


@dataclass(frozen=True, slots=True)
class VersionRow:
    """A registered version. `bytes` are those of its files, shared ones included."""

    entry: str
    number: int
    digest: str
    manifest: str
    licence: str | None
    rows: int
    created_at: str
    kind: Kind
    bytes: int
    tags: tuple[str, ...] = ()


class Registry:
    """Versions and tags of one catalog, in SQLite (WAL) or any database SQLAlchemy reaches."""

    def __init__(self, url: str | sa.URL, *, read_only: bool = False) -> None:
        try:
            self._url = sa.make_url(url)
        except ArgumentError:
            raise CatalogError("the registry's URL can't be read; it looks like postgresql://user@host/database") from None
        if self._url.drivername in ("postgres", "postgresql"):
            self._url = self._url.set(drivername="postgresql+psycopg")
        self._sqlite = self._url.get_backend_name() == "sqlite"
        options: dict[str, Any] = {"connect_args": {"timeout": 30}} if self._sqlite else {}
        try:
            # No pool, though opening SQLite takes longer than a query: a connection that is kept survives a fork, a registry put in
            # the place of another, and the locks that a copy of its file takes from it.
            self._engine = sa.create_engine(self._url, poolclass=sa.NullPool, **options)
        except ModuleNotFoundError as error:
            raise CatalogError(
                f'the registry {self.name} needs {error.name}: pip install "preference-toolkit[postgres]"'
            ) from error
        except SQLAlchemyError as error:
            raise CatalogError(f"the registry {self.name} can't be used: {_first_line(error)}") from error
        self._read_only = read_only
        if self._sqlite:
            sa.event.listen(self._engine, "connect", self._prepare_sqlite)
            sa.event.listen(self._engine, "begin", self._begin_sqlite)
        if not read_only:
            self._create()
        self.format = self._read_format()

    @property
    def name(self) -> str:
        """The registry's URL without its password."""
        return self._url.render_as_string(hide_password=True)

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
        """Raises CatalogError where the registry is open for reading only, OlderFormat where it has to be migrated first."""
        if self._read_only:
            raise CatalogError("this catalog can only be read: its folder can't be written")
        if self.format < FORMAT:
            raise OlderFormat(
                f"the registry has format {self.format}, and this package writes {FORMAT}: run `ptk catalog migrate`; reading works as it is"
            )

    def _prepare_sqlite(self, connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # SQLAlchemy begins; see _begin_sqlite

    def _begin_sqlite(self, connection: sa.Connection) -> None:
        # One query is a transaction of its own, and what a connection is told costs it time: one that reads is told nothing.
        if connection.get_execution_options().get("ptk_writes", False):
            connection.exec_driver_sql("PRAGMA journal_mode=WAL")
            connection.exec_driver_sql("PRAGMA synchronous=FULL")
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    def _create(self) -> None:
        try:
            with self._connected() as connection:
                known = sa.inspect(connection).has_table("ptk_meta")
        except DBAPIError as error:
            raise CatalogError(f"can't reach the registry {self.name}: {_first_line(error)}") from error
        for attempt in range(_ATTEMPTS):
            if known:
                return
            try:
                with self._transaction() as connection:
                    _tables.create_all(connection)
                    if connection.execute(sa.select(_meta.c.value)).first() is None:
                        connection.execute(_meta.insert().values(name="format", value=str(FORMAT)))
                known = True
            except DBAPIError:  # two openers at once: one creates
                if attempt == _ATTEMPTS - 1:
                    raise
                time.sleep(0.05)
                with self._connected() as connection:
                    known = sa.inspect(connection).has_table("ptk_meta")

    def _read_format(self) -> int:
        try:
            with self._connected() as connection:
                written = connection.execute(sa.select(_meta.c.value).where(_meta.c.name == "format")).scalar()
        except DBAPIError as error:
            raise Damaged(f"{self.name} is no registry of a catalog: {_first_line(error)}") from error
        if written is None or int(written) > FORMAT:
            raise NewerFormat(
                f"the registry has format {written}; this package reads up to {FORMAT}: upgrade preference-toolkit"
            )
        return int(written)

    def meta(self, name: str) -> str | None:
        """Return a value kept beside the versions."""
        with self._connected() as connection:
            value = connection.execute(sa.select(_meta.c.value).where(_meta.c.name == name)).scalar()
        return None if value is None else str(value)

    def own(self, identity: str) -> str:
        """Give the registry to the catalog of that identity, unless it belongs to one; return the identity it has."""
        with self._writing() as connection:
            known = connection.execute(sa.select(_meta.c.value).where(_meta.c.name == "catalog")).scalar()
            if known is None:
                connection.execute(_meta.insert().values(name="catalog", value=identity))
            return identity if known is None else str(known)

    @contextmanager
    def _connected(self, **options: Any) -> Iterator[sa.Connection]:
        try:
            opened = self._engine.connect()
        except DBAPIError as error:
            raise CatalogError(f"can't reach the registry {self.name}: {_first_line(error)}") from error
        with opened.execution_options(**options) if options else opened as connection:
            yield connection

    @contextmanager
    def _transaction(self) -> Iterator[sa.Connection]:
        """A transaction that writes."""
        with self._connected(ptk_writes=True) as connection, connection.begin():
            yield connection

    @contextmanager
    def _writing(self) -> Iterator[sa.Connection]:
        """A transaction that writes, one at a time: the others wait, so each sees what was decided before it."""
        self.check_writable()
        try:
            with self._transaction() as connection:
                # SQLite has begun with its one lock of writers. Elsewhere this row is that lock.
                connection.execute(sa.select(_meta.c.value).where(_meta.c.name == "format").with_for_update()).scalar()
                yield connection
        except DBAPIError as error:
            if "permission denied" in str(error.orig).lower():
                raise CatalogError(f"the registry {self.name} can only be read: {_first_line(error)}") from error
            raise

    # ---- commits ----

    @contextmanager
    def committing(self) -> Iterator[str]:
        """Note that a commit is running, so that no sweep takes the files it writes; give its id."""
        lease = uuid.uuid4().hex
        with self._retrying("begin a commit") as attempt:
            attempt(
                lambda connection: connection.execute(
                    _commits.insert().values(id=lease, host=socket.gethostname(), pid=os.getpid(), started=time.time())
                )
            )
        try:
            yield lease
        except BaseException:
            with self._retrying("end a commit") as attempt:
                attempt(lambda connection: connection.execute(_commits.delete().where(_commits.c.id == lease)))
            raise

    @contextmanager
    def _retrying(self, what: str) -> Iterator[Callable[[Callable[[sa.Connection], Any]], Any]]:
        """Give a function that runs another within a write transaction, again where a lock or another writer was in its way."""

        def attempt(work: Callable[[sa.Connection], Any]) -> Any:
            for number in range(_ATTEMPTS):
                try:
                    with self._writing() as connection:
                        return work(connection)
                except IntegrityError:
                    pass  # another writer took the number between our look and our insert
                except DBAPIError as error:
                    if not _is_passing(error):
                        raise CatalogError(f"the registry {self.name} failed: {_first_line(error)}") from error
                time.sleep(min(0.01 * 2**number, 1.0))
            raise Conflict(f"could not {what}: other writers were faster {_ATTEMPTS} times")

        yield attempt

    def commit(
        self, versions: Sequence[NewVersion], *, lease: str | None = None, check: Callable[[], None] = lambda: None
    ) -> list[tuple[VersionRow, bool]]:
        """Register versions, all or none, and set their tags; return each with whether it is new.

        `check` is called when nobody else can commit or sweep any more, and may raise. A version whose rows and licence are those of
        the entry's newest is not registered again. Raises Conflict, TagExists.
        """

        def register(connection: sa.Connection) -> list[tuple[VersionRow, bool]]:
            check()
            registered = [self._register(connection, version) for version in versions]
            if lease is not None:
                connection.execute(_commits.delete().where(_commits.c.id == lease))
            return registered

        with self._retrying(f"register {', '.join(version.entry for version in versions)}") as attempt:
            return list(attempt(register))

    def _register(self, connection: sa.Connection, new: NewVersion) -> tuple[VersionRow, bool]:
        newest = connection.execute(
            sa.select(_versions).where(_versions.c.entry == new.entry).order_by(_versions.c.number.desc()).limit(1)
        ).first()
        number = newest.number if newest else 0
        if newest and newest.kind != new.kind:
            raise Conflict(f"{new.entry} is a {newest.kind}, and can't become a {new.kind}; choose another name")
        if new.parent is not None and new.parent != number:
            raise Conflict(f"{new.entry} is at v{number} by now, not at v{new.parent}; look at what changed and commit again")
        fresh = newest is None or newest.digest != new.digest or newest.licence != new.licence
        if newest is None or fresh:
            # Writers' clocks may differ; a later version is never earlier, so that what a date means stays.
            now = max(_now(), newest.created_at if newest else "")
            row = VersionRow(new.entry, number + 1, new.digest, new.manifest, new.licence, new.rows, now, new.kind, new.bytes)
            connection.execute(_versions.insert().values(**{column.name: getattr(row, column.name) for column in _versions.c}))
            self._link(connection, row.entry, row.number, new.links)
        else:
            row = VersionRow(*tuple(newest))
        for tag in new.tags:
            self._set_tag(connection, new.entry, tag, row.number, move=new.move_tags)
        tags = sa.select(_tags.c.tag).where((_tags.c.entry == row.entry) & (_tags.c.number == row.number)).order_by(_tags.c.tag)
        return replace(row, tags=tuple(connection.execute(tags).scalars())), fresh

    def _link(self, connection: sa.Connection, entry: str, number: int, links: Sequence[Link]) -> None:
        rows = [
            {"entry": entry, "number": number, "relation": link.relation, "to_entry": link.entry, "to_number": link.number}
            for link in dict.fromkeys(links)
        ]
        if rows:
            connection.execute(_links.insert(), rows)

    def _set_tag(self, connection: sa.Connection, entry: str, tag: str, number: int, *, move: bool) -> None:
        here = (_tags.c.entry == entry) & (_tags.c.tag == tag)
        current = connection.execute(sa.select(_tags.c.number).where(here)).scalar()
        if current == number:
            return
        if current is None:
            connection.execute(_tags.insert().values(entry=entry, tag=tag, number=number))
        elif not move:
            raise TagExists(
                f"tag '{tag}' of {entry} stands on v{current}; move it on purpose to set it on v{number} (--move; move=True)"
            )
        else:
            moved = connection.execute(_tags.update().where(here & (_tags.c.number == current)).values(number=number))
            if moved.rowcount != 1:
                raise Conflict(f"tag '{tag}' of {entry} was moved by another writer just now")
        connection.execute(_tag_log.insert().values(entry=entry, tag=tag, moved_from=current, moved_to=number, at=_now()))

    def tag(self, entry: str, number: int, tag: str, *, move: bool) -> None:
        """Set a tag. Raises TagExists where it stands elsewhere and `move` is false."""
        with self._retrying(f"set tag '{tag}' of {entry}") as attempt:
            attempt(lambda connection: self._set_tag(connection, entry, tag, number, move=move))

    def sweep(self, remove: Callable[[set[str], float | None], None]) -> None:
        """Call `remove(manifests, started)` while nobody can commit.

        It is given the paths of all registered manifests, and the time at which the oldest running commit began, or None. Commits
        whose process is known to be gone, and those that began a week ago, are forgotten.
        """

        def work(connection: sa.Connection) -> None:
            oldest: float | None = None
            for lease in connection.execute(sa.select(_commits)).all():
                if _is_gone(lease.host, lease.pid, lease.started):
                    connection.execute(_commits.delete().where(_commits.c.id == lease.id))
                else:
                    oldest = lease.started if oldest is None else min(oldest, lease.started)
            remove(set(connection.execute(sa.select(_versions.c.manifest)).scalars()), oldest)

        with self._retrying("sweep") as attempt:
            attempt(work)

    def migrate(self, described: Callable[[VersionRow], tuple[int, Sequence[Link]]]) -> tuple[int, int]:
        """Bring the registry to the format of this package; return the format it had and the one it has.

        `described` tells a version's bytes and links from its manifest. All of it is one transaction.
        """
        before = self.format
        if self._read_only:
            self.check_writable()
        if before == 1:
            rows = [row for entry in self.entries() for row in self.versions(entry)]
            facts = {(row.entry, row.number): described(row) for row in rows}
            with self._transaction() as connection:
                now = connection.execute(sa.select(_meta.c.value).where(_meta.c.name == "format").with_for_update()).scalar()
                if now == "1":
                    for name in _SINCE_2:
                        column = sa.schema.CreateColumn(_versions.c[name]).compile(dialect=self._engine.dialect)
                        connection.exec_driver_sql(f"ALTER TABLE ptk_versions ADD COLUMN {column}")
                    _tables.create_all(connection)
                    for row in connection.execute(sa.select(_versions)).all():
                        known = facts.get((row.entry, row.number)) or described(VersionRow(*tuple(row)))
                        here = (_versions.c.entry == row.entry) & (_versions.c.number == row.number)
                        connection.execute(_versions.update().where(here).values(bytes=known[0]))
                        self._link(connection, row.entry, row.number, known[1])
                    connection.execute(_meta.update().where(_meta.c.name == "format").values(value=str(FORMAT)))
            self.format = self._read_format()
        return before, self.format

    # ---- reading ----

    def _listed(self, query: sa.Select[Any], entry: str | None = None) -> list[VersionRow]:
        """Return the versions of a query, with their tags; `entry` names the one that all of them are of."""
        tagged: dict[tuple[str, int], list[str]] = {}
        tags = sa.select(_tags).order_by(_tags.c.tag)
        with self._connected() as connection:
            for row in connection.execute(tags if entry is None else tags.where(_tags.c.entry == entry)):
                tagged.setdefault((row.entry, row.number), []).append(row.tag)
            return [VersionRow(*(*row, tuple(tagged.get((row.entry, row.number), ())))) for row in connection.execute(query)]

    def entries(self) -> list[str]:
        with self._connected() as connection:
            return list(connection.execute(sa.select(_versions.c.entry).distinct().order_by(_versions.c.entry)).scalars())

    def newest(self) -> list[VersionRow]:
        """Return the newest version of every entry, sorted by name."""
        last = sa.select(_versions.c.entry, sa.func.max(_versions.c.number).label("number")).group_by(_versions.c.entry)
        found = last.subquery()
        joined = (_versions.c.entry == found.c.entry) & (_versions.c.number == found.c.number)
        return self._listed(_select(self.format).join_from(_versions, found, joined).order_by(_versions.c.entry))

    def versions(self, entry: str | None = None) -> list[VersionRow]:
        """Return an entry's versions, newest first; or those of all entries."""
        query = _select(self.format).order_by(_versions.c.entry, _versions.c.number.desc())
        return self._listed(query if entry is None else query.where(_versions.c.entry == entry), entry)

    def tags(self, entry: str) -> dict[str, int]:
        """Return an entry's tags and the numbers they stand on."""
        query = sa.select(_tags.c.tag, _tags.c.number).where(_tags.c.entry == entry).order_by(_tags.c.tag)
        with self._connected() as connection:
            return {row.tag: row.number for row in connection.execute(query)}

    def tag_log(self, entry: str) -> list[tuple[str, int | None, int, str]]:
        """Return every move of an entry's tags, oldest first: (tag, from, to, when)."""
        query = sa.select(_tag_log).where(_tag_log.c.entry == entry).order_by(_tag_log.c.id)
        with self._connected() as connection:
            return [(row.tag, row.moved_from, row.moved_to, row.at) for row in connection.execute(query)]

    def links(self, entry: str, number: int) -> list[Link]:
        """Return what a version was made from. Raises OlderFormat."""
        self._check_links()
        query = sa.select(_links.c.relation, _links.c.to_entry, _links.c.to_number)
        with self._connected() as connection:
            rows = connection.execute(query.where((_links.c.entry == entry) & (_links.c.number == number)))
            return sorted((Link(*row) for row in rows), key=_link_order)

    def linked(self, entry: str, number: int) -> list[Link]:
        """Return what was made from a version. Raises OlderFormat."""
        self._check_links()
        query = sa.select(_links.c.relation, _links.c.entry, _links.c.number)
        with self._connected() as connection:
            rows = connection.execute(query.where((_links.c.to_entry == entry) & (_links.c.to_number == number)))
            return sorted((Link(*row) for row in rows), key=_link_order)

    def _check_links(self) -> None:
        if self.format < FORMAT:
            raise OlderFormat(
                f"a registry of format {self.format} does not know what was built on what: run `ptk catalog migrate`"
            )

    def find(
        self,
        entry: str,
        *,
        number: int | None = None,
        tag: str | None = None,
        digest: str | None = None,
        as_of: datetime | None = None,
    ) -> VersionRow:
        """Return the version meant, or the newest. Raises NotFound, saying what there is."""
        asked = {"number": number, "tag": tag, "digest": digest, "as_of": None if as_of is None else _text(as_of)}
        how, value = next(((how, value) for how, value in asked.items() if value is not None), ("newest", None))
        found = self._found(how, entry, value)
        if found and len({row.digest for row in found}) == 1:
            tags = tuple(row.tag for row in found if row.number == found[0].number and row.tag is not None)
            version = list(found[0])[:-1]
            return VersionRow(*(*version, tags))
        newest = self._found("newest", entry)
        if not newest:
            known = self.entries()
            shown = ", ".join(known[:12]) + (f" and {len(known) - 12:,} more" if len(known) > 12 else "")
            raise NotFound(f"the catalog has no entry '{entry}'; it has {shown or 'none yet'}")
        if number is not None:
            raise NotFound(f"{entry} has no v{number}; its newest version is v{newest[0].number}")
        if tag is not None:
            known_tags = ", ".join(self.tags(entry)) or "none"
            raise NotFound(f"{entry} has no tag '{tag}'; its tags: {known_tags}; its newest version: v{newest[0].number}")
        if digest is not None:
            raise NotFound(f"{entry} has {'several versions' if found else 'no version'} with a digest that begins {digest}")
        assert as_of is not None
        first = self.versions(entry)[-1]
        raise NotFound(f"{entry} had no version yet at {_text(as_of)}; its first is of {first.created_at}")

    def _found(self, how: str, entry: str, value: object = None) -> Sequence[sa.Row[Any]]:
        with self._connected() as connection:
            return connection.execute(_finding(self.format)[how], {"entry": entry, "value": value}).all()


@functools.cache
def _finding(written: int) -> dict[str, sa.Select[Any]]:
    """Return queries for a version of `entry`, a row for each of its tags or one: made once, as that takes longer than to run one."""
    entry: sa.BindParameter[str] = sa.bindparam("entry")
    on = (_tags.c.entry == _versions.c.entry) & (_tags.c.number == _versions.c.number)
    query = _select(written).add_columns(_tags.c.tag).join_from(_versions, _tags, on, isouter=True)
    query = query.where(_versions.c.entry == entry).order_by(_versions.c.number.desc(), _tags.c.tag)
    value: sa.BindParameter[Any] = sa.bindparam("value")
    last = sa.select(sa.func.max(_versions.c.number)).where(_versions.c.entry == entry)
    tagged = sa.select(_tags.c.number).where((_tags.c.entry == entry) & (_tags.c.tag == value))
    return {
        "newest": query.where(_versions.c.number == last.scalar_subquery()),
        "number": query.where(_versions.c.number == value),
        "tag": query.where(_versions.c.number == tagged.scalar_subquery()),
        "digest": query.where(_versions.c.digest.startswith(value)),
        "as_of": query.where(_versions.c.number == last.where(_versions.c.created_at <= value).scalar_subquery()),
    }


def _select(written: int) -> sa.Select[Any]:
    """Return a query for versions as a registry of that format has them."""
    if written >= FORMAT:
        return sa.select(_versions)
    old = [column for column in _versions.c if column.name not in _SINCE_2]
    return sa.select(*old, sa.literal("dataset").label("kind"), sa.literal(0).label("bytes"))


def _link_order(link: Link) -> tuple[str, str, int]:
    return link.relation, link.entry, link.number


def _sqlite_url(database: str, options: dict[str, str] | None = None) -> sa.URL:
    return sa.URL.create("sqlite", database=database, query=options or {})


def _text(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds")


def _now() -> str:
    return _text(datetime.now(UTC))


def _first_line(error: SQLAlchemyError) -> str:
    return (str(getattr(error, "orig", None) or error).strip().splitlines() or [type(error).__name__])[0]


def _is_passing(error: DBAPIError) -> bool:
    text = str(error.orig).lower()
    return "locked" in text or "serialize" in text or "deadlock" in text


def _is_gone(host: str, pid: int, started: float) -> bool:
    if time.time() - started > _LONGEST_COMMIT:
        return True
    if host != socket.gethostname():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
