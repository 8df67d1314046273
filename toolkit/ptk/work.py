"""The work store: what finished steps left behind, by key, in `.ptk/steps`.

A step's folder is written aside and renamed when it is whole, so it is there and right, or not there. It holds `result.json` and

- `rows/*.parquet` where the step made rows (readers, reshapes), with `rejects/*.parquet` for records that never became rows,
- `decisions/*.parquet` where it decided about the rows of its first input: `_key`, `_reject`, `_detail`, `_raw` and the new
  columns, row by row as the input has them. The text of the input is not written again; where most rows were rejected, the
  rows that stay are kept as `rows/*.parquet` too, so that what follows does not read the others each time.
"""

from __future__ import annotations

import os
import shutil
import socket
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import orjson
import polars as pl
from pydantic import ValidationError

from ptk.errors import StoreError
from ptk.operator import DETAIL, KEY, RAW, REJECT
from ptk.params import Params

__all__ = ["Asked", "StepResult", "WorkStore"]

_MARKS = (KEY, REJECT, DETAIL, RAW)


class Asked(Params):
    """What an LLM step asked: fresh requests, requests whose answers were stored already, and the fresh ones' cost."""

    asked: int = 0
    answered_before: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    seconds: float = 0.0


class StepResult(Params):
    """What a finished step gave; `rows_in` = `rows_out` + the sum of `rejected`."""

    format: Literal[1] = 1
    key: str
    operator: str
    version: int
    key_column: str
    input_key: str | None
    """Key of the step whose rows were decided about, or None where the step made rows."""
    compacted: bool = False
    rows_in: int
    rows_out: int
    rejected: dict[str, int]
    new_columns: tuple[str, ...] = ()
    seconds: float
    requests: Asked | None = None


class WorkStore:
    """Finished steps below one folder, usually `.ptk`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.steps = root / "steps"

    @property
    def answers(self) -> Path:
        return self.root / "answers"

    def result(self, key: str) -> StepResult | None:
        """Return the finished step of that key, or None. A step whose input's rows are gone counts as not there."""
        try:
            result = StepResult.model_validate_json((self._folder(key) / "result.json").read_bytes())
        except (FileNotFoundError, ValidationError):
            return None
        if result.input_key is not None and not result.compacted and self.result(result.input_key) is None:
            return None
        return result

    def frame(self, key: str) -> pl.LazyFrame:
        """Return the rows that the step lets through, lazily."""
        result = self._existing(key)
        if result.input_key is None or result.compacted:
            return self._scan(key, "rows")
        frame = self._decided(result)
        if result.rejected:
            frame = frame.filter(pl.col(REJECT).is_null())
        return frame.drop(_MARKS, strict=False)

    def rejects(self, key: str) -> pl.LazyFrame:
        """Return the rows that the step set aside, with `_reject`, `_detail` and `_raw`; a reader's also with `_file` and `_line`."""
        result = self._existing(key)
        if result.input_key is None:
            if not (self._folder(key) / "rejects").is_dir():
                return pl.LazyFrame(schema={REJECT: pl.String, DETAIL: pl.String, RAW: pl.String})
            return self._scan(key, "rejects")
        return self._decided(result).filter(pl.col(REJECT).is_not_null()).drop(KEY, strict=False)

    def _decided(self, result: StepResult) -> pl.LazyFrame:
        if result.input_key is None:
            raise StoreError(f"step {result.key} decided about no rows")
        rows = self.frame(result.input_key).drop(result.new_columns, strict=False)
        return pl.concat([rows, self._scan(result.key, "decisions").drop(KEY)], how="horizontal")

    def _existing(self, key: str) -> StepResult:
        result = self.result(key)
        if result is None:
            raise StoreError(f"{self._folder(key)} is gone; run the spec again")
        return result

    def _folder(self, key: str) -> Path:
        return self.steps / key[:2] / key

    def _scan(self, key: str, kind: str) -> pl.LazyFrame:
        return pl.scan_parquet(sorted((self._folder(key) / kind).glob("*.parquet")))

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """Give a folder to write a step's files into; it is removed unless `finish` took it over."""
        folder = self.steps / "staging" / f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        try:
            folder.mkdir(parents=True)
        except OSError as error:
            raise StoreError(f"can't write to {self.root}: {error.strerror}") from error
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def finish(self, staged: Path, result: StepResult) -> None:
        """Make the staged folder the result of its key, at once and for good. A result that is there already is replaced."""
        (staged / "result.json").write_bytes(orjson.dumps(result.model_dump(mode="json"), option=orjson.OPT_INDENT_2))
        for path in [*staged.rglob("*"), staged]:
            _fsync(path)
        folder = self._folder(result.key)
        folder.parent.mkdir(parents=True, exist_ok=True)
        if folder.exists():
            folder.rename(staged.with_name(staged.name + "-replaced"))
        staged.rename(folder)
        _fsync(folder.parent)
        shutil.rmtree(staged.with_name(staged.name + "-replaced"), ignore_errors=True)

    def clear_abandoned(self) -> None:
        """Remove what killed runs of this machine left half written."""
        host = socket.gethostname()
        for folder in (self.steps / "staging").glob(f"{host}-*"):
            pid = folder.name.removeprefix(f"{host}-").split("-")[0]
            if pid.isdigit() and not _is_alive(int(pid)):
                shutil.rmtree(folder, ignore_errors=True)

    def remember(self, spec_name: str, steps: Mapping[str, Any]) -> None:
        """Note what each step of a spec looked like when it last finished, so that a plan can say what changed."""
        path = self._memory(spec_name)
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}")
        aside.write_bytes(orjson.dumps(steps))
        aside.replace(path)

    def remembered(self, spec_name: str) -> dict[str, Any]:
        """Return what `remember` noted, or nothing."""
        try:
            noted = orjson.loads(self._memory(spec_name).read_bytes())
        except (FileNotFoundError, orjson.JSONDecodeError):
            return {}
        except OSError as error:
            raise StoreError(f"can't read {self.root}: {error.strerror}") from error
        return noted if isinstance(noted, dict) else {}

    def _memory(self, spec_name: str) -> Path:
        return self.root / "last" / f"{spec_name.replace('/', '--')}.json"


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
