"""The log of publications: which version went to which repository of a hub, as which commit, under which tag."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import sqlalchemy as sa

if TYPE_CHECKING:
    from ptk_catalog.registry import Registry

__all__ = ["Publication", "PublicationLog"]

_tables = sa.MetaData()
_publications = sa.Table(
    "ptk_publications",
    _tables,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("entry", sa.String(512), nullable=False, index=True),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("digest", sa.String(80), nullable=False),
    sa.Column("endpoint", sa.String(256), nullable=False),
    sa.Column("repo", sa.String(256), nullable=False),
    sa.Column("revision", sa.String(64), nullable=False),
    sa.Column("tag", sa.String(128), nullable=False),
    sa.Column("settings", sa.Text, nullable=False),
    sa.Column("at", sa.String(40), nullable=False),
)


@dataclass(frozen=True, slots=True)
class Publication:
    """A version as it was published: `revision` is the hub's commit, `settings` what decided the files beside the version."""

    entry: str
    number: int
    digest: str
    endpoint: str
    repo: str
    revision: str
    tag: str
    settings: str = ""
    at: str = ""

    @property
    def reference(self) -> str:
        """`entry@v3`."""
        return f"{self.entry}@v{self.number}"


class PublicationLog:
    """Publications of one catalog, kept in its registry; the table is made with the first of them."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def check_writable(self) -> None:
        """Raises CatalogError where the registry is open for reading only."""
        self._registry.check_writable()

    def add(self, publication: Publication) -> None:
        """Note a publication; one that is noted already, but for the time, is not noted again."""
        values = {name: getattr(publication, name) for name in Publication.__slots__}
        values["at"] = datetime.now(UTC).isoformat(timespec="milliseconds")
        known = [getattr(_publications.c, name) == value for name, value in values.items() if name != "at"]
        with self._registry._writing() as connection:
            _tables.create_all(connection)
            newest = (
                sa.select(sa.func.max(_publications.c.id))
                .where(_publications.c.endpoint == publication.endpoint, _publications.c.repo == publication.repo)
                .scalar_subquery()
            )
            if connection.execute(sa.select(_publications.c.id).where(_publications.c.id == newest, *known)).first() is None:
                connection.execute(_publications.insert().values(values))

    def of(self, *, entry: str | None = None, repo: str | None = None) -> Sequence[Publication]:
        """Return publications, oldest first: those of an entry, those in a repository, or all."""
        query = sa.select(*(_publications.c[name] for name in Publication.__slots__)).order_by(_publications.c.id)
        if entry is not None:
            query = query.where(_publications.c.entry == entry)
        if repo is not None:
            query = query.where(_publications.c.repo == repo)
        with self._registry._engine.connect() as connection:
            if not sa.inspect(connection).has_table(_publications.name):
                return []
            return [Publication(*row) for row in connection.execute(query)]
