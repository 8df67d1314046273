"""The work store: what finished steps left behind, by key, in `.ptk/steps`.

A step's folder is written aside and renamed when it is whole, so it is there and right, or not there. In an object store, where nothing
can be renamed, its files lie under a name of their own in `steps/staging`, and `result.json`, written last, says where. It holds
`result.json` and

- `rows/*.parquet` where the step made rows (readers, reshapes), with `rejects/*.parquet` for records that never became rows,
  and for a reader of files `places/*.parquet`: by key, the file and line that a row was read from,
- `decisions/*.parquet` where it decided about the rows of its first input: `_reject`, `_detail`, `_raw` and the new
  columns, row by row as the input has them. The text of the input is not written again; where most rows were rejected, the
  rows that stay are kept as `rows/*.parquet` too, so that what follows does not read the others each time,
- `files/` where it made files.

How rows fall into Parquet files has no meaning: files are read in the order of their names, as one.
"""

from __future__ import annotations

import itertools
import os
import shutil
import socket
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import orjson
import polars as pl
from pydantic import Field, ValidationError

from ptk.errors import StoreError
from ptk.operator import ALIGNED, DETAIL, KEY, MARKS, RAW, REJECT
from ptk.params import Params
from ptk.places import Place, Remote, copy_in, copy_out, listed, remove_tree

__all__ = ["Asked", "Layer", "Rows", "StepResult", "WorkStore"]


class Asked(Params):
    """What an LLM step asked: fresh requests, requests whose answers were stored already, and what the fresh ones took."""

    asked: int = 0
    answered_before: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    seconds: float = 0.0
    """From the first request sent to the last answer stored."""
    starting: float = 0.0
    """Seconds until the model was there."""
    peak_bytes: int | None = None
    """Most memory that ptk's process had taken by the end of the step."""
    engine_peak_bytes: int | None = None
    """Most memory of the processes below it, which hold the engine, each one's peak added."""
    unanswered: int = 0
    """Requests that failed for now: the step counts as unfinished, and the next run asks them again."""
    truncated: int = 0
    """Requests, answered before or now, of whose prompt something was left out to fit the model's window."""


class StepResult(Params):
    """What a finished step gave. `rows_in` = `rows_out` + the sum of `rejected`, but where a reshape made other rows."""

    format: Literal[2] = 2
    key: str
    operator: str
    version: int
    key_column: str
    input_key: str | None
    """Key of the step whose rows were decided about, or None where the step made rows."""
    compacted: bool = False
    asset: bool = False
    """Whether the step made files; its rows are those of its input, but for those it decided against."""
    rows_in: int
    rows_out: int
    rejected: dict[str, int]
    flagged: dict[str, int] = Field(default_factory=dict)
    """Rows by flag, where the step flags rows; a row may have several flags."""
    new_columns: tuple[str, ...] = ()
    facts: dict[str, Any] = Field(default_factory=dict)
    """What an asset operator says of the files it made, or an LLM operator of its answers."""
    seconds: float
    requests: Asked | None = None
    staged: str | None = None
    """In an object store, the name under which its files lie."""


@dataclass(frozen=True, slots=True)
class Layer:
    """Decisions that lie upon rows: a row each, in their order."""

    files: tuple[str, ...]
    new_columns: tuple[str, ...]
    rejects: bool
    """Whether it rejects any row; what lies above it has one row for each that stays."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Where the rows of a finished step lie: files, and layers of decisions upon them; the whole of it or a range.

    A plain value that can be sent to another process, which sees the same files.
    """

    files: tuple[str, ...]
    layers: tuple[Layer, ...] = ()
    ranges: tuple[tuple[int, int], ...] | None = None
    """(first row, rows) in the files and in each layer; None for all of it."""
    first: int = 0
    """Number of its first row among all rows of the step."""

    def scan(self) -> pl.LazyFrame:
        """Return the rows that stay, lazily."""
        frame = self._scan(0)
        for number in range(1, len(self.layers) + 1):
            frame = self._upon(frame, number)
            if self.layers[number - 1].rejects:
                frame = frame.filter(pl.col(REJECT).is_null())
            frame = frame.drop(MARKS, strict=False)
        return frame

    def scan_rejects(self) -> pl.LazyFrame:
        """Return the rows that the topmost layer rejects, lazily, with `_reject`, `_detail`, `_raw`."""
        return self.scan_decided().filter(pl.col(REJECT).is_not_null())

    def scan_decided(self) -> pl.LazyFrame:
        """Return all rows that the topmost layer decides about, lazily, with `_reject`, `_detail`, `_raw`."""
        below = Rows(self.files, self.layers[:-1], None if self.ranges is None else self.ranges[:-1]).scan()
        return self._upon(below, len(self.layers)).drop(KEY, ALIGNED, strict=False)

    def parts(self, count: int) -> list[Rows]:
        """Return ranges that together are all rows, in their order, about even before any row was rejected."""
        total = int(pl.scan_parquet(list(self.files)).select(pl.len()).collect(engine="streaming").item())
        edges = [number * total // count for number in range(count + 1)]
        spans = [(low, high - low) for low, high in itertools.pairwise(edges)]
        levels = [spans]
        for layer in self.layers:
            levels.append(spans)
            if layer.rejects:
                scanned = pl.scan_parquet(list(layer.files))
                staying = pl.collect_all(
                    [scanned.slice(first, rows).select(pl.col(REJECT).null_count()) for first, rows in spans],
                    engine="streaming",
                )
                heights = [int(frame.item()) for frame in staying]
                spans = list(zip(itertools.accumulate([0, *heights[:-1]]), heights, strict=True))
        return [
            Rows(self.files, self.layers, tuple(level[number] for level in levels), spans[number][0]) for number in range(count)
        ]

    def _scan(self, number: int) -> pl.LazyFrame:
        frame = pl.scan_parquet(list(self.files if number == 0 else self.layers[number - 1].files))
        return frame if self.ranges is None else frame.slice(*self.ranges[number])

    def _upon(self, frame: pl.LazyFrame, number: int) -> pl.LazyFrame:
        covered = frame.drop(self.layers[number - 1].new_columns, strict=False)
        return pl.concat([covered, self._scan(number)], how="horizontal")


class WorkStore:
    """Finished steps below one folder, usually `.ptk`, or below a URL of an object store."""

    def __init__(self, root: Place) -> None:
        self.root = root.absolute()
        self.steps = self.root / "steps"

    @property
    def answers(self) -> Place:
        return self.root / "answers"

    @property
    def rates(self) -> Place:
        return self.root / "rates"

    def result(self, key: str) -> StepResult | None:
        """Return the finished step of that key, or None. A step whose input's rows are gone counts as not there."""
        result = self._noted(key)
        below = result
        while below is not None and below.input_key is not None and not below.compacted:
            below = self._noted(below.input_key)
        return None if below is None else result

    def _noted(self, key: str) -> StepResult | None:
        try:
            return StepResult.model_validate_json((self._folder(key) / "result.json").read_bytes())
        except (FileNotFoundError, ValidationError):
            return None
        except OSError as error:
            raise StoreError(f"can't read {self.root}: {error.strerror or error}") from error

    def frame(self, key: str) -> pl.LazyFrame:
        """Return the rows that the step lets through, lazily."""
        return self.rows(key).scan()

    def rows(self, key: str) -> Rows:
        """Return where the rows that the step lets through lie."""
        layers: list[Layer] = []
        result = self._existing(key)
        while result.input_key is not None and not result.compacted:
            if not result.asset or self._files(result, "decisions"):
                layers.insert(0, self._layer(result))
            result = self._noted(result.input_key) or self._existing(result.input_key)
        return Rows(self._files(result, "rows"), tuple(layers))

    @contextmanager
    def asset(self, key: str) -> Iterator[Path]:
        """Give the folder of files that the step made; from an object store it is copied in for as long as it is needed."""
        files = self._place(self._existing(key)) / "files"
        if isinstance(files, Path):
            yield files
            return
        with tempfile.TemporaryDirectory(prefix="ptk-") as folder:
            copy_in(files, Path(folder))
            yield Path(folder)

    def asset_folder(self, key: str) -> Path | None:
        """Return where the files that the step made lie, or None where that is no folder of this machine."""
        files = self._place(self._existing(key)) / "files"
        return files if isinstance(files, Path) else None

    def rejects(self, key: str) -> pl.LazyFrame:
        """Return the rows that the step set aside, with `_reject`, `_detail` and `_raw`; a reader's also with `_file` and `_line`."""
        result = self._existing(key)
        if result.input_key is None or (result.asset and not self._files(result, "decisions")):
            files = self._files(result, "rejects")
            if not files:
                return pl.LazyFrame(schema={REJECT: pl.String, DETAIL: pl.String, RAW: pl.String})
            return pl.scan_parquet(list(files))
        below = self.rows(result.input_key)
        return Rows(below.files, (*below.layers, self._layer(result))).scan_rejects()

    def places(self, key: str) -> pl.LazyFrame | None:
        """Return for the rows that a reader read the key, `_file` and `_line`; None where that is not known."""
        files = self._files(self._existing(key), "places")
        return pl.scan_parquet(list(files)) if files else None

    def _layer(self, result: StepResult) -> Layer:
        return Layer(self._files(result, "decisions"), result.new_columns, bool(result.rejected))

    def _existing(self, key: str) -> StepResult:
        result = self.result(key)
        if result is None:
            raise StoreError(f"{self._folder(key)} is gone; run the spec again")
        return result

    def _folder(self, key: str) -> Place:
        return self.steps / key[:2] / key

    def _place(self, result: StepResult) -> Place:
        return self._folder(result.key) if result.staged is None else self.steps / "staging" / result.staged

    def _files(self, result: StepResult, kind: str) -> tuple[str, ...]:
        return tuple(map(str, listed(self._place(result) / kind, "*.parquet")))

    @contextmanager
    def staging(self, *, shared: bool = False) -> Iterator[Place]:
        """Give a folder to write a step's files into; it is removed unless `finish` took it over.

        Where the work store is an object store it is a temporary folder of this machine, unless it has to be `shared` with others.
        """
        folder = self.steps / "staging" / f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        if isinstance(folder, Remote) and not shared:
            with tempfile.TemporaryDirectory(prefix="ptk-") as local:
                yield Path(local)
            return
        try:
            folder.mkdir(parents=True)
        except OSError as error:
            raise StoreError(f"can't write to {self.root}: {error.strerror}") from error
        taken_over = False
        try:
            yield folder
            taken_over = isinstance(folder, Remote)
        finally:
            if not taken_over:
                remove_tree(folder)

    def finish(self, staged: Place, result: StepResult) -> None:
        """Make the staged folder the result of its key, at once and for good. A result that is there already is replaced."""
        if isinstance(self.root, Remote):
            self._finish_remote(staged, result)
            return
        assert isinstance(staged, Path)
        (staged / "result.json").write_bytes(_as_json(result))
        for path in [*staged.rglob("*"), staged]:
            _fsync(path)
        folder = self._folder(result.key)
        assert isinstance(folder, Path)
        folder.parent.mkdir(parents=True, exist_ok=True)
        if folder.exists():
            folder.rename(staged.with_name(staged.name + "-replaced"))
        staged.rename(folder)
        _fsync(folder.parent)
        shutil.rmtree(staged.with_name(staged.name + "-replaced"), ignore_errors=True)

    def _finish_remote(self, staged: Place, result: StepResult) -> None:
        before = self._noted(result.key)
        name = staged.name if isinstance(staged, Remote) else f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        written = result.model_copy(update={"staged": name})
        place = self._place(written)
        if isinstance(staged, Path):
            assert isinstance(place, Remote)
            copy_out(staged, place)
        # The first says that the files are not left over from a killed run, the second makes them the result.
        for folder in (place, self._folder(result.key)):
            (folder / "result.json").write_bytes(_as_json(written))
        if before is not None:
            remove_tree(self._place(before))

    def clear_abandoned(self) -> None:
        """Remove what killed runs of this machine left half written."""
        host = socket.gethostname()
        for folder in listed(self.steps / "staging", f"{host}-*"):
            pid = folder.name.removeprefix(f"{host}-").split("-")[0]
            is_finished = isinstance(folder, Remote) and (folder / "result.json").exists()
            if pid.isdigit() and not is_finished and not _is_alive(int(pid)):
                remove_tree(folder)

    def remember(self, spec_name: str, steps: Mapping[str, Any]) -> None:
        """Note what each step of a spec looked like when it last finished, so that a plan can say what changed."""
        path = self._memory(spec_name)
        if isinstance(path, Remote):
            path.write_bytes(orjson.dumps(steps))
            return
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
            raise StoreError(f"can't read {self.root}: {error.strerror or error}") from error
        return noted if isinstance(noted, dict) else {}

    def _memory(self, spec_name: str) -> Place:
        return self.root / "last" / f"{spec_name.replace('/', '--')}.json"


def _as_json(result: StepResult) -> bytes:
    return orjson.dumps(result.model_dump(mode="json"), option=orjson.OPT_INDENT_2)


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
