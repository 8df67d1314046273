"""A version's rows, to be read as a LazyFrame, a DataFrame, a Dask or a Hugging Face dataset."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars as pl

from ptk_catalog.errors import Damaged
from ptk_catalog.manifest import Manifest, Part
from ptk_catalog.parts import scan
from ptk_catalog.storage import Storage

if TYPE_CHECKING:
    from ptk_catalog.catalog import Version

__all__ = ["Dataset"]

_KEEP = "_keep"


@dataclass(frozen=True, slots=True)
class Dataset:
    """One version, ready to read. Nothing is read until a method is called."""

    version: Version
    storage: Storage

    @property
    def manifest(self) -> Manifest:
        return self.version.manifest

    @property
    def schema(self) -> dict[str, str]:
        """Column names and the stable names of their types."""
        return {column.name: column.type for column in self.manifest.columns}

    def files(self) -> list[str]:
        """Return the paths of all Parquet files of the version. Raises Damaged when one is missing."""
        parts = [part for group in self.manifest.groups for part in group.parts] + list(self.manifest.mask or ())
        for part in parts:
            if not self.storage.exists(part.path):
                raise Damaged(
                    f"{self.version.reference}: {self.storage.path(part.path)} is missing; restore it from a copy of the catalog"
                )
        return [self.storage.path(part.path) for part in parts]

    def scan(self) -> pl.LazyFrame:
        """Return the rows lazily: a selection of columns reads only the files that hold them. Raises Damaged."""
        self.files()
        names = [column.name for column in self.manifest.columns]
        if len(self.manifest.groups) == 1 and self.manifest.mask is None:
            return scan(self.storage, self.manifest.groups[0].parts).select(names)
        sides = [scan(self.storage, group.parts).select(group.columns) for group in self.manifest.groups]
        if self.manifest.mask is None:
            return pl.concat(sides, how="horizontal").select(names)
        sides.append(scan(self.storage, self.manifest.mask).select(_KEEP))
        return pl.concat(sides, how="horizontal").filter(pl.col(_KEEP)).select(names)

    def collect(self) -> pl.DataFrame:
        """Return all rows."""
        return self.scan().collect(engine="streaming")

    def to_dask(self) -> Any:
        """Return a Dask DataFrame, a partition a part. Needs dask."""
        import dask.dataframe as dd

        self.files()
        pieces = range(len(self.manifest.groups[0].parts))
        return dd.from_map(self._pandas_part, pieces, meta=self._pandas_part(None))

    def _pandas_part(self, index: int | None) -> Any:
        """Return the rows of the parts at `index` as pandas with Arrow types; none for None."""
        import pandas as pd

        at = slice(index, index + 1) if index is not None else slice(0, 1)
        groups = tuple(group.model_copy(update={"parts": group.parts[at]}) for group in self.manifest.groups)
        mask: tuple[Part, ...] | None = self.manifest.mask[at] if self.manifest.mask is not None else None
        version = self.version.with_manifest(self.manifest.model_copy(update={"groups": groups, "mask": mask}))
        frame = Dataset(version, self.storage).scan()
        table = (frame.head(0) if index is None else frame).collect().to_arrow()
        return table.to_pandas(types_mapper=pd.ArrowDtype)

    def to_datasets(self) -> Any:
        """Return a Hugging Face `datasets.Dataset`. Needs datasets."""
        import datasets

        return datasets.Dataset.from_polars(self.collect())
