"""The rejected rows of the steps that a version was made by, as one table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import TYPE_CHECKING

import polars as pl

from ptk.errors import PublishError, StoreError
from ptk.operator import DETAIL, RAW, REJECT
from ptk.publish.layout import PAIR
from ptk.publish.lineage import recorded

if TYPE_CHECKING:
    from ptk.work import WorkStore
    from ptk_catalog import Version

__all__ = ["rejected_rows"]


def rejected_rows(version: Version, pair_types: Mapping[str, pl.DataType], work: WorkStore) -> pl.LazyFrame | None:
    """Return step, operator, reason, detail, raw text, file and line of every rejected row, and its pair where it was one.

    None where no step rejected any. Raises PublishError where the work store no longer has them.
    """
    frames = []
    for step in recorded(version)["steps"]:
        if not step["rejected"]:
            continue
        try:
            rows = work.rejects(step["key"])
        except StoreError as error:
            raise PublishError(
                f"the rejected rows of step '{step['name']}' are not in {work.root}; run the spec again there, or name it with --work"
            ) from error
        schema = rows.collect_schema()
        frames.append(
            rows.select(
                pl.lit(step["name"]).alias("step"),
                pl.lit(step["operator"]).alias("operator"),
                pl.col(REJECT).alias("reason"),
                pl.col(DETAIL).cast(pl.String).alias("detail"),
                pl.col(RAW).cast(pl.String).alias("raw"),
                _file() if "_file" in schema else pl.lit(None, pl.String).alias("file"),
                pl.col("_line").cast(pl.Int64).alias("line") if "_line" in schema else pl.lit(None, pl.Int64).alias("line"),
                *(
                    pl.col(name) if schema.get(name) == kind else pl.lit(None, kind).alias(name)
                    for name, kind in pair_types.items()
                    if name in PAIR
                ),
            )
        )
    return pl.concat(frames) if frames else None


def _file() -> pl.Expr:
    # Where it lay on the machine that read it is nobody's business.
    return pl.col("_file").map_elements(lambda path: PurePath(path).name, return_dtype=pl.String).alias("file")
