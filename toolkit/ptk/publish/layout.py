"""The Parquet files of a publication: configurations, splits and shards, as `datasets.load_dataset` expects them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from ptk.errors import PublishError
from ptk_catalog.croissant import Records
from ptk_catalog.parts import cut

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["PAIR", "SHARD", "Config", "Shard", "Split", "configurations", "write_config"]

PAIR = ("prompt", "chosen", "rejected")
SHARD = re.compile(r"[a-z]+/[\w.]+-\d{5}-of-\d{5}\.parquet")
"""What the path of a shard that ptk wrote looks like."""

_SPLIT = "split"
_SPLIT_NAME = re.compile(r"\w+(\.\w+)*")
_FOLDERS = {"pairs": "data", "default": "data"}
_SHARD_BYTES = 500_000_000
"""The most bytes of a shard in memory; files are smaller, as they are compressed."""
_GROUP_BYTES = 64_000_000
_LOOKED_AT = 1000


@dataclass(frozen=True, slots=True)
class Shard:
    """One Parquet file: where it goes in the repository and where it lies here."""

    path: str
    file: Path
    rows: int


@dataclass(frozen=True, slots=True)
class Split:
    """The rows of a split. `bytes` is what they take as Arrow."""

    name: str
    rows: int
    bytes: int
    shards: tuple[Shard, ...]


@dataclass(frozen=True, slots=True)
class Config:
    """A configuration (subset) of the published dataset: some columns of the rows, by split."""

    name: str
    folder: str
    splits: tuple[Split, ...]
    schema: pa.Schema
    largest_group: int
    """Bytes of the largest row group, uncompressed."""

    @property
    def rows(self) -> int:
        return sum(split.rows for split in self.splits)

    @property
    def records(self) -> Records:
        """What a Croissant description says of it."""
        splits = ", ".join(split.name for split in self.splits)
        return Records(self.name, self.schema, f"{self.folder}/*.parquet", f"{self.rows:,} rows in the splits {splits}.")

    @property
    def shards(self) -> tuple[Shard, ...]:
        return tuple(shard for split in self.splits for shard in split.shards)


def configurations(columns: Sequence[str], key: Sequence[str]) -> dict[str, list[str]]:
    """Return the columns of every configuration, the default one first.

    Pairs are published as trainers want them, with ids and nothing else beside; where there is more, the whole rows are a second
    configuration: `personas`, or `full` where there are none. Rows that are no pairs have one configuration, `default`.
    """
    if not set(PAIR) <= set(columns):
        return {"default": list(columns)}
    ids = [name for name in columns if (name in key or name == "item_id") and name not in PAIR]
    pairs = [*ids, *PAIR]
    further = [name for name in columns if name not in pairs and name != _SPLIT]
    if not further:
        return {"pairs": pairs}
    return {"pairs": pairs, "personas" if any(name.endswith("_persona") for name in further) else "full": list(columns)}


def write_config(frame: pl.LazyFrame, name: str, columns: Sequence[str], target: Path) -> Config:
    """Write the rows as Parquet shards below `target`, a split for each value of a column `split`.

    Equal rows in equal order give equal files. Raises PublishError where a split has no name that the Hub takes.
    """
    folder = _FOLDERS.get(name, name)
    (target / folder).mkdir(parents=True, exist_ok=True)
    schema = _arrow_schema(frame.select(columns))
    group = _rows_a_group(frame.select(columns))
    splits, largest = [], 0
    for split, rows in _splits(frame):
        shards, size, biggest = _write_split(rows.select(columns), schema, group, target / folder, f"{folder}/{split}")
        splits.append(Split(split, sum(shard.rows for shard in shards), size, shards))
        largest = max(largest, biggest)
    return Config(name, folder, tuple(splits), schema, largest)


def _splits(frame: pl.LazyFrame) -> Iterator[tuple[str, pl.LazyFrame]]:
    """Yield the splits, `train` first and the others by name; all rows are `train` where they are not split."""
    if frame.collect_schema().get(_SPLIT) != pl.String:
        yield "train", frame
        return
    names = frame.select(pl.col(_SPLIT).unique()).collect(engine="streaming")[_SPLIT].to_list()
    for name in names:
        if name is None or not _SPLIT_NAME.fullmatch(name):
            raise PublishError(
                f"a row's `split` is {name!r}, which can't name a split on the Hub: letters, digits and '_'; rename it in the spec"
            )
    for name in sorted(names, key=lambda name: (name != "train", name)) or ["train"]:
        yield name, frame.filter(pl.col(_SPLIT) == name)


def _rows_a_group(frame: pl.LazyFrame) -> int:
    """Return the rows of a row group: a power of two, so that a slightly longer text somewhere does not move every boundary."""
    head = frame.head(_LOOKED_AT).collect()
    a_row = max(1.0, head.estimated_size() / max(1, head.height))
    rows = 1 << 16
    while rows > 1 << 8 and rows * a_row > _GROUP_BYTES:
        rows //= 2
    return rows


def _write_split(
    rows: pl.LazyFrame, schema: pa.Schema, group: int, folder: Path, stem: str
) -> tuple[tuple[Shard, ...], int, int]:
    """Write one split; return its shards, its bytes as Arrow and those of its largest row group."""
    import pyarrow.parquet as pq

    written: list[tuple[Path, int]] = []
    total = in_shard = shard_rows = largest = 0
    writer: Any = None
    try:
        for piece in cut(rows, itertools.repeat(group)):
            # Pages end where a chunk in memory ends, and those fall as the threads of the query ran: make it one.
            table = piece.rechunk().to_arrow(compat_level=pl.CompatLevel.oldest()).cast(schema).combine_chunks()
            if writer is not None and in_shard + table.nbytes > _SHARD_BYTES:
                writer.close()
                writer, in_shard, shard_rows = None, 0, 0
            if writer is None:
                written.append((folder / f"{stem.rsplit('/', 1)[-1]}-{len(written):05d}.parquet", 0))
                # Cut where the content says, not at fixed sizes: the Hub then stores only what changed since the last version.
                writer = pq.ParquetWriter(
                    written[-1][0], schema, compression="zstd", use_content_defined_chunking=True, write_page_index=True
                )
            writer.write_table(table, row_group_size=max(1, table.num_rows))
            shard_rows += table.num_rows
            in_shard += table.nbytes
            total += table.nbytes
            largest = max(largest, table.nbytes)
            written[-1] = (written[-1][0], shard_rows)
    finally:
        if writer is not None:
            writer.close()
    shards = []
    for number, (path, count) in enumerate(written):
        name = f"{stem}-{number:05d}-of-{len(written):05d}.parquet"
        shards.append(Shard(name, path.rename(folder / name.rsplit("/", 1)[-1]), count))
    return tuple(shards), total, largest


def _arrow_schema(frame: pl.LazyFrame) -> pa.Schema:
    """Return the columns' types as other tools write them: text and lists with 32-bit offsets, no dictionaries."""
    import pyarrow as pa

    empty = pl.DataFrame(schema=frame.collect_schema()).to_arrow(compat_level=pl.CompatLevel.oldest())
    return pa.schema([pa.field(field.name, _plain(field.type)) for field in empty.schema])


def _plain(kind: pa.DataType) -> pa.DataType:
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        return _plain(kind.value_type)
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind) or pa.types.is_null(kind):
        return pa.string()
    if pa.types.is_large_binary(kind):
        return pa.binary()
    if pa.types.is_large_list(kind) or pa.types.is_list(kind):
        return pa.list_(_plain(kind.value_type))
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(_plain(kind.value_type), kind.list_size)
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(field.name, _plain(field.type)) for field in kind])
    return kind


def column_types(schema: pa.Schema) -> Mapping[str, str]:
    """Return the columns and their types as text."""
    return {field.name: str(field.type).replace("item: ", "").replace("element: ", "") for field in schema}
