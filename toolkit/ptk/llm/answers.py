"""The answer store: every answer a model ever gave, by the key of its request, in append-only Parquet segments.

Segments lie in a folder per model identity. A segment is written aside, flushed to disk and renamed, so a kill loses at most the
answers that were not yet appended, and several runs can append at once.
"""

from __future__ import annotations

import hashlib
import io
import os
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson
import polars as pl

from ptk.errors import StoreError
from ptk.llm.request import Answer

__all__ = ["AnswerStore"]

_SCHEMA = {
    "key": pl.Binary,
    "text": pl.String,
    "finish_reason": pl.String,
    "prompt_tokens": pl.Int32,
    "output_tokens": pl.Int32,
    "cached_tokens": pl.Int32,
}


class AnswerStore:
    """The stored answers of one model."""

    def __init__(self, root: Path, identity: Mapping[str, Any]) -> None:
        digest = hashlib.sha256(orjson.dumps(identity, option=orjson.OPT_SORT_KEYS)).hexdigest()
        self.folder = root / digest[:16]

    def _scan(self) -> pl.LazyFrame:
        segments = sorted(self.folder.glob("*.parquet"))
        return pl.scan_parquet(segments) if segments else pl.LazyFrame(schema=_SCHEMA)

    def missing(self, keys: pl.DataFrame) -> pl.Series:
        """Return those of `keys["key"]` that have no stored answer, each once."""
        wanted = keys.lazy().select("key").unique()
        return wanted.join(self._scan().select("key"), on="key", how="anti").collect(engine="streaming")["key"]

    def find(self, keys: pl.DataFrame) -> pl.DataFrame:
        """Return `keys` with the columns of their stored answers beside, null where there is none, in the same order.

        Of several answers to one question, which only asking again on purpose gives, the newest counts.
        """
        wanted = keys.lazy().select("key").unique()
        found = self._scan().join(wanted, on="key", how="semi", maintain_order="left").collect(engine="streaming")
        found = found.unique("key", keep="last", maintain_order=True)
        return keys.join(found, on="key", how="left", maintain_order="left")

    def append(self, answers: Sequence[Answer]) -> None:
        """Store answers as one segment. Raises StoreError when the disk does not take it; nothing half written remains."""
        if not answers:
            return
        columns = {
            "key": [bytes.fromhex(answer.key) for answer in answers],
            **{name: [getattr(answer, name) for answer in answers] for name in list(_SCHEMA)[1:]},
        }
        segment = io.BytesIO()  # Polars' own writing reports a full disk as an error of computation
        pl.DataFrame(columns, schema=_SCHEMA).write_parquet(segment, compression="zstd")
        name = f"{time.time_ns():020}-{uuid.uuid4().hex}"
        aside = self.folder / f"{name}.aside"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with aside.open("wb") as file:
                file.write(segment.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            aside.replace(self.folder / f"{name}.parquet")
        except OSError as error:
            with suppress(OSError):
                aside.unlink(missing_ok=True)
            raise StoreError(f"can't store answers in {self.folder}: {error.strerror}; make room and run again") from error
