"""Rows of a version in the catalog, found by its reference and known by its digest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationInfo
from pydantic_core import CoreSchema, core_schema

from ptk.errors import UnreadableFile
from ptk.ops.records import Look, Piece, Table

if TYPE_CHECKING:
    from ptk_catalog import Dataset

__all__ = ["CatalogEntry", "CatalogRecords"]

_ROWS = 10_000


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """A version in a catalog; what counts is its digest."""

    written: str
    place: str
    dataset: Dataset

    @property
    def reference(self) -> str:
        return self.dataset.version.reference

    @property
    def digest(self) -> str:
        return self.dataset.version.digest

    @property
    def key(self) -> tuple[str, ...]:
        return tuple(self.dataset.manifest.key)

    def canonical(self) -> str:
        return self.digest

    @classmethod
    def find(cls, written: str, place: str) -> CatalogEntry:
        """Return the version that a reference means. Raises ValueError with a sentence for the user."""
        import ptk_catalog

        try:
            return cls(written, place, ptk_catalog.open(place, create=False).load(written))
        except ptk_catalog.CatalogError as error:
            raise ValueError(str(error)) from error

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        def validate(value: str, info: ValidationInfo) -> CatalogEntry:
            context = info.context or {}
            root = Path(context.get("root", Path.cwd()))
            own = (info.data or {}).get("catalog")
            return cls.find(value, _place(own if own is not None else context.get("catalog"), root))

        return core_schema.with_info_after_validator_function(validate, core_schema.str_schema(strict=True, min_length=1))

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": "string", "minLength": 1}


def _place(written: Any, root: Path) -> str:
    if not isinstance(written, str):
        return "catalog/store"
    return written if "://" in written else str(root / Path(written).expanduser())


@dataclass(frozen=True, slots=True)
class CatalogRecords:
    """The rows of a version, a piece a part."""

    entry: CatalogEntry

    def looks(self) -> Iterator[Look]:
        with _whole(self.entry):
            types = dict(self.entry.dataset.scan().collect_schema())
        yield Look(self.entry.reference, types=types)

    def pieces(self) -> Sequence[Piece]:
        pieces: list[Piece] = []
        start = 0
        for part in self.entry.dataset.manifest.groups[0].parts:
            pieces.append(Piece(len(pieces), start, start + part.rows, start + 1))
            start += part.rows
        return pieces or [Piece(0, 0, 0)]

    def blocks(self, piece: Piece) -> Iterator[Table]:
        first = piece.line
        with _whole(self.entry):
            for batch in self._part(piece).collect_batches(chunk_size=_ROWS, maintain_order=True):
                if batch.height:
                    yield Table(self.entry.reference, first, batch)
                first += batch.height

    def _part(self, piece: Piece) -> pl.LazyFrame:
        """Return the rows of the part of every column group at a piece."""
        return self.entry.dataset.part(piece.file).scan()


@contextmanager
def _whole(entry: CatalogEntry) -> Iterator[None]:
    """Report a version whose files are gone or damaged as a file that can't be read."""
    from ptk_catalog import CatalogError

    try:
        yield
    except CatalogError as error:
        raise UnreadableFile(str(error)) from error
    except (pl.exceptions.PolarsError, OSError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UnreadableFile(f"{entry.reference} in {entry.place} can't be read: {first}; see `ptk catalog verify`") from error
