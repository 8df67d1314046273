"""A version's rows, to be read as a LazyFrame, a DataFrame, files, a Dask, a Hugging Face or a PyTorch dataset."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from ptk_catalog.conditions import Where, matching_parts, parse_where
from ptk_catalog.digest import column_sums, rows_digest
from ptk_catalog.errors import BadData, CatalogError, Damaged
from ptk_catalog.manifest import PLACE, Manifest, paths_of
from ptk_catalog.parts import scan
from ptk_catalog.storage import Storage
from ptk_catalog.stored_rows import StoredRows

if TYPE_CHECKING:
    import pyarrow as pa

    from ptk_catalog.version import Version

__all__ = ["Dataset"]

_KEEP = "_keep"
_STREAMED = 1 << 16
"""Rows that a shard of a stream holds at most."""
_ARROW_ROWS = 10_000


@dataclass(frozen=True, slots=True)
class Dataset:
    """One version, ready to read. Rows are read when a method asks for them; only the manifest was read before.

    Most methods take `columns`, the names to read, and `where`, a Polars expression or a list of conditions such as
    `[("score", ">=", 0.5), ("split", "in", ["train", "validation"])]`. Both are pushed down: files of other columns are not
    opened, and parts whose statistics say that no row can meet a plain comparison are not read.
    """

    version: Version
    storage: Storage

    @property
    def manifest(self) -> Manifest:
        return self.version.manifest

    @property
    def schema(self) -> dict[str, str]:
        """Column names and the stable names of their types."""
        return {column.name: column.type for column in self.manifest.columns}

    def check(self) -> None:
        """Raise Damaged where a file of the version is missing, and NewerFormat or Damaged where its manifest can't be read."""
        if missing := self.storage.missing(paths_of(self.manifest)):
            raise Damaged(
                f"{self.version.reference}: {self.storage.path(missing[0])} is missing; restore it from a copy of the catalog"
            )

    def verify(self) -> None:
        """Read everything and compare it with its digests. Raises Damaged, naming the file or column that differs."""
        manifest, reference = self.manifest, self.version.reference
        for path in paths_of(manifest):
            if self.storage.sha256(path) != path.rsplit("/", 1)[-1].removesuffix(".parquet"):
                raise Damaged(f"{reference}: {self.storage.path(path)} was changed; restore it from a copy of the catalog")
        frame = self.scan()
        rows = frame.select(pl.len()).collect(engine="streaming").item()
        if rows != manifest.rows:
            raise Damaged(f"{reference}: has {rows:,} rows, not {manifest.rows:,} as its manifest says")
        sums = column_sums(frame, manifest.key)
        for column in manifest.columns:
            if sums[column.name] != column.sum:
                raise Damaged(f"{reference}: the values of column '{column.name}' are not those that were committed")
        types = {column.name: column.type for column in manifest.columns}
        if rows_digest(manifest.key, rows, types, sums) != self.version.digest:
            raise Damaged(f"{reference}: its rows are not those of {self.version.digest}")

    # ---- as Polars, and as files ----

    def scan(self, columns: Sequence[str] | None = None, where: Where | None = None) -> pl.LazyFrame:
        """Return the rows lazily, in order. Raises Damaged, BadData."""
        if where is None:
            return self._scan(self._named(columns))
        chosen, condition = self._pruned(where)
        named = self._named(columns)
        if not chosen.manifest.groups[0].parts:
            return self._scan(named).clear()
        return chosen._scan(list(dict.fromkeys([*named, *condition.meta.root_names()]))).filter(condition).select(named)

    def collect(self, columns: Sequence[str] | None = None, where: Where | None = None) -> pl.DataFrame:
        """Return the rows."""
        return self.scan(columns, where).collect(engine="streaming")

    def files(self) -> list[str]:
        """Return the paths or URLs of the Parquet files that together are the version, and nothing else.

        Raises BadData where its rows and columns do not lie alone in files, because it was built on another version: export it.
        """
        self.check()
        manifest = self.manifest
        own = sum(bool(group.columns) for group in manifest.groups) == 1 and manifest.mask is None
        if own:
            with self.storage.open(manifest.groups[0].parts[0].path) as file:
                own = set(pl.read_parquet_schema(file)) == set(manifest.groups[0].columns)
        if not own:
            raise BadData(
                f"{self.version.reference} shares files with the version it was built on, so they are not its rows alone: "
                f"write it out with `ptk catalog export {self.version.reference}`, or read it with scan()"
            )
        return [self.storage.path(part.path) for part in manifest.groups[0].parts]

    def place(self, key: Sequence[object]) -> tuple[str, int] | None:
        """Return the file, and the line or number in it, that the row with that key was read from; None where that is not known."""
        groups = [group for group in self.manifest.groups if not group.columns]
        if not groups:
            return None
        whole = replace(self, version=self.version.with_manifest(self.manifest.model_copy(update={"mask": None})))
        beside = pl.concat([whole.scan(self.manifest.key), scan(self.storage, groups[0].parts).select(PLACE)], how="horizontal")
        here = [pl.col(name) == value for name, value in zip(self.manifest.key, key, strict=True)]
        found = beside.filter(here).select(PLACE).collect(engine="streaming")
        return None if not found.height or found.row(0)[0] is None else found.row(0)

    def part(self, number: int) -> Dataset:
        """Return one part: some of the rows, which lie in the same files of every column group."""
        return self._only([number])

    def _only(self, numbers: Sequence[int]) -> Dataset:
        manifest = self.manifest
        groups = tuple(
            group.model_copy(update={"parts": tuple(group.parts[number] for number in numbers)}) for group in manifest.groups
        )
        mask = None if manifest.mask is None else tuple(manifest.mask[number] for number in numbers)
        return replace(self, version=self.version.with_manifest(manifest.model_copy(update={"groups": groups, "mask": mask})))

    def _pruned(self, where: Where) -> tuple[Dataset, pl.Expr]:
        condition, comparisons = parse_where(where, self.schema)
        numbers = matching_parts(self.manifest, comparisons)
        return (self if len(numbers) == len(self.manifest.groups[0].parts) else self._only(numbers)), condition

    def _named(self, columns: Sequence[str] | None) -> list[str]:
        if columns is None:
            return list(self.schema)
        if isinstance(columns, str) or not columns:
            raise BadData("`columns` is a list of names")
        for name in columns:
            if name not in self.schema:
                raise BadData(f"{self.version.reference} has no column '{name}'; it has {', '.join(self.schema)}")
        return list(columns)

    def _scan(self, names: Sequence[str], first: int = 0, rows: int | None = None) -> pl.LazyFrame:
        """Return columns of the kept rows among `rows` stored ones from `first` on."""
        self.check()
        sides = []
        for group in self.manifest.groups:
            if wanted := [name for name in group.columns if name in names]:
                sides.append(scan(self.storage, group.parts).select(wanted))
        if self.manifest.mask is not None:
            sides.append(scan(self.storage, self.manifest.mask).select(_KEEP))
        if first or rows is not None:
            sides = [side.slice(first, rows) for side in sides]
        whole = sides[0] if len(sides) == 1 else pl.concat(sides, how="horizontal")
        return (whole if self.manifest.mask is None else whole.filter(pl.col(_KEEP))).select(names)

    # ---- as other libraries' ----

    def to_dask(self, columns: Sequence[str] | None = None, where: Where | None = None) -> Any:
        """Return a Dask DataFrame, a partition a part that may hold rows. Needs dask."""
        import dask.dataframe as dd

        self.check()
        condition, comparisons = (None, []) if where is None else parse_where(where, self.schema)
        numbers = matching_parts(self.manifest, comparisons) or [0]
        names = self._named(columns)

        def partition(number: int) -> Any:
            return self._pandas(self.part(number).scan(names, condition))

        return dd.from_map(partition, numbers, meta=self._pandas(self.part(numbers[0]).scan(names).clear()))

    def _pandas(self, frame: pl.LazyFrame) -> Any:
        """Return rows as pandas with Arrow types."""
        import pandas as pd

        return frame.collect().to_arrow(compat_level=pl.CompatLevel.oldest()).to_pandas(types_mapper=pd.ArrowDtype)

    def to_datasets(
        self,
        columns: Sequence[str] | None = None,
        where: Where | None = None,
        *,
        streaming: bool = False,
        cache: str | Path | None = None,
    ) -> Any:
        """Return a Hugging Face `datasets.Dataset`, or with `streaming` an `IterableDataset`. Needs datasets.

        The former is memory-mapped: its rows are written once, as Arrow, below `cache` (by default the cache folder of datasets),
        and take no memory. The latter reads the catalog's own files as it goes, and can be shared out among nodes and workers.
        """
        import datasets

        names = self._named(columns)
        if streaming:
            rows = self._stored_rows(names, where)
            features = datasets.Features.from_arrow_schema(self._arrow_schema(names))
            shards = [(first, min(first + _STREAMED, rows.count)) for first in range(0, rows.count, _STREAMED)] or [(0, 0)]
            return datasets.IterableDataset.from_generator(
                _streamed, features=features, gen_kwargs={"shards": shards, "rows": rows}
            )
        folder = Path(cache) if cache is not None else Path(datasets.config.HF_DATASETS_CACHE) / "ptk_catalog"
        return datasets.Dataset.from_file(str(self._arrow_file(folder, names, where)))

    def to_torch(
        self,
        columns: Sequence[str] | None = None,
        where: Where | None = None,
        *,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> Any:
        """Return a PyTorch `IterableDataset` of rows as dictionaries, shared out among ranks and loader workers. Needs torch.

        Each row is given exactly once over all ranks and workers, and ranks get as many rows as each other, or one more. Rank and
        number of ranks are those of torch.distributed, or of the environment (RANK, WORLD_SIZE), where they are not given.
        """
        from ptk_catalog.torch_rows import TorchRows

        if (rank is None) != (world_size is None) or (
            rank is not None and world_size is not None and not 0 <= rank < world_size
        ):
            raise BadData("give both `rank` and `world_size`, a rank from 0 and below the number of ranks, or neither")
        return TorchRows(self._stored_rows(self._named(columns), where), rank, world_size)

    def _stored_rows(self, names: Sequence[str], where: Where | None) -> StoredRows:
        """Return the rows that are kept and meet `where` as places in the files."""
        self.check()
        manifest = self.manifest
        groups = [
            (tuple(name for name in group.columns if name in names), tuple((part.path, part.rows) for part in group.parts))
            for group in manifest.groups
        ]
        total = sum(part.rows for part in manifest.groups[0].parts)
        wanted = None
        if where is not None or manifest.mask is not None:
            whole = replace(self, version=self.version.with_manifest(manifest.model_copy(update={"mask": None})))
            kept = pl.lit(True)
            sides = []
            if manifest.mask is not None:
                sides.append(scan(self.storage, manifest.mask).select(_KEEP))
                kept = pl.col(_KEEP)
            if where is not None:
                condition, _ = parse_where(where, self.schema)
                sides.append(whole._scan(condition.meta.root_names()))
                kept = kept & condition.fill_null(False)
            wanted = pl.concat(sides, how="horizontal").select(kept.alias(_KEEP)).collect(engine="streaming")[_KEEP].to_numpy()
        return StoredRows(self.storage, [group for group in groups if group[0]], tuple(names), total, wanted)

    def arrow_schema(self, columns: Sequence[str] | None = None) -> pa.Schema:
        """Return the columns' types as plain Arrow types, without large, view and dictionary forms."""
        return self._arrow_schema(self._named(columns))

    def _arrow_schema(self, names: Sequence[str]) -> pa.Schema:
        import pyarrow as pa

        empty = self.scan(names).clear().collect().to_arrow(compat_level=pl.CompatLevel.oldest())
        return pa.schema([pa.field(field.name, _plain(field.type)) for field in empty.schema])

    def _arrow_file(self, folder: Path, names: Sequence[str], where: Where | None) -> Path:
        """Return an Arrow stream of the rows, written where it is not there yet."""
        import pyarrow as pa

        condition = None if where is None else parse_where(where, self.schema)[0]
        told = [self.version.file.row.manifest, *names, "" if condition is None else condition.meta.serialize(format="json")]
        target = folder / f"{hashlib.sha256(repr(told).encode()).hexdigest()[:40]}.arrow"
        self.check()
        if not target.exists():
            aside = target.with_name(f"{target.name}.{uuid.uuid4().hex}")
            try:
                folder.mkdir(parents=True, exist_ok=True)
                schema = self._arrow_schema(names)
                with aside.open("wb") as file, pa.ipc.new_stream(file, schema) as stream:
                    rows = self.scan(names, where)
                    for batch in rows.collect_batches(chunk_size=_ARROW_ROWS, maintain_order=True, engine="streaming"):
                        table = batch.to_arrow(compat_level=pl.CompatLevel.oldest())
                        stream.write_table(table.cast(schema), max_chunksize=_ARROW_ROWS)
                aside.replace(target)
            except OSError as error:
                raise CatalogError(f"can't write to {folder}: {error.strerror or error}; name another with `cache`") from error
            finally:
                aside.unlink(missing_ok=True)
        return target


def _streamed(shards: Sequence[tuple[int, int]], rows: StoredRows) -> Iterator[dict[str, Any]]:
    for first, last in shards:
        yield from rows.between(first, last)


def _plain(type_: pa.DataType) -> pa.DataType:
    """Return an Arrow type without large, view and dictionary forms: what Parquet from the Hub would have."""
    import pyarrow as pa
    import pyarrow.types as kinds

    if kinds.is_dictionary(type_):
        return _plain(type_.value_type)
    if kinds.is_large_string(type_) or kinds.is_string_view(type_):
        return pa.string()
    if kinds.is_large_binary(type_) or kinds.is_binary_view(type_):
        return pa.binary()
    if kinds.is_large_list(type_) or kinds.is_list(type_):
        return pa.list_(_plain(type_.value_type))
    if kinds.is_fixed_size_list(type_):
        return pa.list_(_plain(type_.value_type), type_.list_size)
    if kinds.is_struct(type_):
        return pa.struct([pa.field(field.name, _plain(field.type)) for field in type_])
    return type_
