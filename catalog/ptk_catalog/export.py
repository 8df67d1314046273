"""A version written out for others: a Delta table or plain Parquet files, with a Croissant description beside."""

from __future__ import annotations

import hashlib
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import orjson
import polars as pl

from ptk_catalog.croissant import DescribedFile, Records, croissant
from ptk_catalog.dataset import Dataset
from ptk_catalog.errors import CatalogError
from ptk_catalog.parts import cut, rows_per_group

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Exported", "Form", "export"]

Form = Literal["delta", "parquet"]

_AT_ONCE = 1 << 12
"""Rows that are handed to the writer of a table at a time."""


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written: the folder, and its Parquet files relative to it."""

    folder: Path
    files: tuple[str, ...]
    rows: int


def export(data: Dataset, folder: Path, form: Form) -> Exported:
    """Write a version into a new folder, whole or not at all. Raises CatalogError, Damaged."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CatalogError(f"{folder} is there already; name a new folder")
    aside = folder.with_name(f"{folder.name}.{uuid.uuid4().hex}")
    try:
        aside.mkdir(parents=True)
        schema = data.arrow_schema()
        if form == "delta":
            _write_delta(data, schema, aside)
        else:
            _write_parquet(data, schema, aside)
        files = [_described(aside, path) for path in sorted(aside.glob("*.parquet"))]
        records = Records("rows", schema, "*.parquet", key=data.manifest.key)
        described = croissant(data.version, [records], files)
        (aside / "croissant.json").write_bytes(orjson.dumps(described, option=orjson.OPT_INDENT_2))
        if folder.exists():
            folder.rmdir()
        aside.rename(folder)
    except OSError as error:
        raise CatalogError(f"can't write to {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return Exported(folder, tuple(file.path for file in files), data.version.rows)


def _batches(data: Dataset, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    for frame in data.scan().collect_batches(chunk_size=_AT_ONCE, maintain_order=True, engine="streaming"):
        table = frame.to_arrow(compat_level=pl.CompatLevel.oldest()).cast(schema)
        yield from table.to_batches(max_chunksize=_AT_ONCE)


def _write_delta(data: Dataset, schema: pa.Schema, folder: Path) -> None:
    try:
        from deltalake import CommitProperties, write_deltalake
    except ModuleNotFoundError as error:
        raise CatalogError('a Delta table needs deltalake: pip install "preference-toolkit[delta]"') from error
    import pyarrow as pa
    from deltalake.exceptions import DeltaError

    version = data.version
    try:
        write_deltalake(
            folder,
            pa.RecordBatchReader.from_batches(schema, _batches(data, schema)),
            name=version.entry,
            description=f"{version.reference}, {version.digest}",
            commit_properties=CommitProperties(
                custom_metadata={"ptk_reference": version.reference, "ptk_digest": version.digest}
            ),
        )
    except (DeltaError, pa.ArrowInvalid) as error:
        raise CatalogError(f"{version.reference} can't be a Delta table: {str(error).splitlines()[0]}") from error


def _write_parquet(data: Dataset, schema: pa.Schema, folder: Path) -> None:
    import pyarrow.parquet as pq

    for number, piece in enumerate(cut(data.scan())):
        table = piece.to_arrow(compat_level=pl.CompatLevel.oldest()).cast(schema)
        pq.write_table(table, folder / f"part-{number:05}.parquet", row_group_size=rows_per_group(piece), compression="zstd")


def _described(folder: Path, path: Path) -> DescribedFile:
    with path.open("rb") as file:
        return DescribedFile(
            path.relative_to(folder).as_posix(), path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()
        )
