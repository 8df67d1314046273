"""The answer store: every answer a model ever gave, by the key of its request, in Parquet segments.

Segments lie in a folder per model identity. A segment is written aside, flushed to disk and renamed, so a kill loses at most the
answers that were not yet appended, and several runs can append at once. Many small segments are merged into a larger one, which
is renamed into place before those it replaces are removed: a kill between the two leaves answers twice, which is harmless, as of
several answers with one key the newest counts, and every answer carries its time. In an object store segments are written as they are,
since it takes in whole files alone, and two processes may merge the same ones. Answers stay in the order of their time, not
of their keys, which are hashes: what one run asked lies together, so asking it again reads few segments.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import orjson
import polars as pl

from ptk.errors import StoreError
from ptk.llm.request import Answer
from ptk.places import Place, Remote, listed, place_of

__all__ = ["AnswerStore", "Cleared", "ModelAnswers", "clear_answers", "stored_models"]

_T = TypeVar("_T")

_SCHEMA: dict[str, Any] = {
    "key": pl.Binary,
    "text": pl.String,
    "finish_reason": pl.String,
    "prompt_tokens": pl.Int32,
    "output_tokens": pl.Int32,
    "cached_tokens": pl.Int32,
    "scores": pl.List(pl.Float64),
    "cut_tokens": pl.Int32,
}
_AT = "at"
"""Nanoseconds since 1970 at which an answer was stored; in segments without that column, the time in the segment's name."""
_FILE = "_file"
_MANY = 64
"""Small segments that may lie about before they are merged, and after how many appended ones that is looked at again."""
_SMALL = 16 << 20
"""A segment of that many bytes is not merged any more."""
_MERGED = 32 << 20
"""The most bytes of segments that are merged into one: what a merge may cost."""
_MOST_PARTS = 4096
_ABANDONED_SECONDS = 3600.0
_TRIES = 100


@dataclass(frozen=True, slots=True)
class ModelAnswers:
    """What is stored of one model."""

    folder: Place
    name: str | None
    """What its identity is called in words, where the identity was noted."""
    identity: Mapping[str, Any] | None
    answers: int
    segments: int
    bytes: int
    newest: float | None
    """Seconds since 1970."""


@dataclass(frozen=True, slots=True)
class Cleared:
    """What was removed of one model, or would be."""

    folder: Place
    name: str | None
    answers: int
    """Answers removed because an option asked for it."""
    leftovers: int
    """Half-written files of processes that are gone."""
    merged: int
    """Small segments that became fewer large ones."""


class AnswerStore:
    """The stored answers of one model. `name` is what the model is called where its answers are listed."""

    def __init__(self, root: Place, identity: Mapping[str, Any], name: str | None = None) -> None:
        digest = hashlib.sha256(orjson.dumps(identity, option=orjson.OPT_SORT_KEYS)).hexdigest()
        self.folder = root / digest[:16]
        self._noted = orjson.dumps({"identity": identity, "name": name}, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS)
        self._segments = _Segments(self.folder)
        self._appended = 0

    def missing(self, keys: pl.DataFrame) -> pl.Series:
        """Return those of `keys["key"]` that have no stored answer, each once. Raises StoreError where a segment is damaged."""
        wanted = keys.select("key").unique()
        return wanted.join(self._segments.read(lambda files: _hits(files, wanted)), on="key", how="anti")["key"]

    def find(self, keys: pl.DataFrame) -> pl.DataFrame:
        """Return `keys` with the columns of their stored answers beside, null where there is none, in the same order.

        Of several answers to one question, which only asking again on purpose gives, the newest counts. Raises StoreError where
        a segment is damaged.
        """
        wanted = keys.select("key").unique()

        def found(files: Sequence[Place]) -> pl.DataFrame:
            holding = [place_of(file) for file in _hits(files, wanted)[_FILE].unique().sort()]
            held = [
                _compact(_scan(group).join(wanted.lazy(), on="key", how="semi", maintain_order="left"))
                for group in _grouped({path: path.stat().st_size for path in holding})
            ]  # a group at a time: the streaming engine reads ahead in all files that it is given
            return _newest(pl.concat([_scan([]).collect(), *held])).drop(_AT)

        return keys.join(self._segments.read(found), on="key", how="left", maintain_order="left")

    def append(self, answers: Sequence[Answer]) -> None:
        """Store answers as one segment. Raises StoreError when the disk does not take it; nothing half written remains.

        Now and then merges small segments, at most 32 MiB of them; where that fails, they stay as they are.
        """
        if not answers:
            return
        now = time.time_ns()
        columns = {
            "key": [bytes.fromhex(answer.key) for answer in answers],
            **{name: [getattr(answer, name) for answer in answers] for name in list(_SCHEMA)[1:]},
            _AT: [now] * len(answers),
        }
        self._segments.write(pl.DataFrame(columns, schema={**_SCHEMA, _AT: pl.Int64}), now)
        if self._appended % _MANY == 0:
            with suppress(StoreError, OSError):
                self._segments.write_file("identity.json", self._noted, replace=False)
                self._segments.merge_some()
        self._appended += 1


class _Segments:
    """The segments in one folder, read, written and merged by several processes at once."""

    def __init__(self, folder: Place) -> None:
        self.folder = folder

    def listed(self) -> list[Place]:
        """Return the segments, oldest first.

        While a folder is read, a merge can put its segment where the reading has been already and remove parts where it has not
        been yet. Two readings that agree missed nothing.
        """
        before: list[Place] | None = None
        while True:
            now = listed(self.folder, "*.parquet")
            if now == before:
                return now
            before = now

    def sizes(self) -> dict[Place, int]:
        """Return the bytes of each segment, oldest first."""
        sizes = {}
        for path in self.listed():
            with suppress(FileNotFoundError):
                sizes[path] = path.stat().st_size
        return sizes

    def read(self, work: Callable[[Sequence[Place]], _T]) -> _T:
        """Return what `work` gives for the segments; where a merge removed some of them meanwhile, for a new list of them."""
        files: list[Place] = []
        for _ in range(_TRIES):
            files = self.listed()
            try:
                return work(files)
            except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
                if all(path.exists() for path in files):
                    raise _explained(self.folder, files, error) from error
        raise StoreError(
            f"can't read answers in {self.folder}: files in it keep vanishing; see what removes them and run again"
        )

    def write(self, frame: pl.DataFrame, newest: int) -> Place:
        """Write a segment. Raises StoreError when the disk does not take it; nothing half written remains."""
        segment = io.BytesIO()  # Polars' own writing reports a full disk as an error of computation
        frame.write_parquet(segment, compression="zstd", row_group_size=1 << 15)
        return self.write_file(f"{newest:020}-{uuid.uuid4().hex}.parquet", segment.getbuffer())

    def write_file(self, name: str, content: bytes | memoryview, *, replace: bool = True) -> Place:
        """Write a file aside, flush it to disk and rename it. Raises StoreError."""
        path = self.folder / name
        if not replace and path.exists():
            return path
        if isinstance(path, Remote):
            path.write_bytes(content)
            return path
        aside = path.with_name(f"{path.stem}-{uuid.uuid4().hex[:8]}.aside")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with aside.open("wb") as file:
                with suppress(OSError):  # held while this process lives, where the file system knows locks
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
        except OSError as error:
            with suppress(OSError):
                aside.unlink(missing_ok=True)
            raise StoreError(f"can't store answers in {self.folder}: {error.strerror}; make room and run again") from error
        return path

    def merge_some(self) -> None:
        """Merge small segments once where there are many, unless another process is at it. Raises StoreError."""
        small = sorted(((size, path) for path, size in self.sizes().items() if size < _SMALL), key=lambda part: part[0])
        if len(small) <= _MANY:
            return
        parts: list[Place] = []
        total = 0
        for size, path in small:
            # Larger ones wait until what is merged with them is as large: so an answer is rewritten only a few times.
            if total + size > _MERGED or len(parts) == _MOST_PARTS or (len(parts) > _MANY // 2 and size > total):
                break
            parts.append(path)
            total += size
        with self._alone(wait=False) as alone:
            if alone:
                self._merge(sorted(parts, key=str))

    def merge_all(self, *, dry_run: bool) -> int:
        """Merge all small segments; return how many there were. Raises StoreError."""
        with self._alone(wait=True) if not dry_run else nullcontext():
            small = {path: size for path, size in self.sizes().items() if size < _SMALL}
            groups = [group for group in _grouped(small) if len(group) > 1]
            if not dry_run:
                for group in groups:
                    self._merge(group)
            return sum(map(len, groups))

    def remove_older(self, than: int, *, dry_run: bool) -> int:
        """Remove answers stored before a time in nanoseconds; return how many. Raises StoreError."""
        removed = 0
        with self._alone(wait=True) if not dry_run else nullcontext():
            for path in self.listed():
                seen = self._read_if_there([path], lambda files: _scan(files).select(pl.col(_AT).fill_null(0)).collect())
                if seen is None or not (old := int((seen[_AT] < than).sum())):
                    continue
                removed += old
                if dry_run:
                    continue
                if old < seen.height:
                    self._merge([path], than)
                else:
                    self._remove([path])
        return removed

    def remove_all(self, *, dry_run: bool) -> int:
        """Remove every answer and the note of the model's identity; return how many answers there were. Raises StoreError."""
        with self._alone(wait=True) if not dry_run else nullcontext():
            files = self.listed()
            count = self.read(_count)
            if not dry_run:
                self._remove([*files, self.folder / "identity.json"])
        if not dry_run:
            with suppress(OSError):  # something is in it that is not ours, or a run just began to append
                (self.folder / "lock").unlink(missing_ok=True)
                self.folder.rmdir()
        return count

    def remove_leftovers(self, *, dry_run: bool) -> int:
        """Remove files half written more than an hour ago by processes that are gone; return how many."""
        removed = 0
        for aside in self.folder.glob("*.aside"):
            with suppress(OSError):  # it is gone, renamed, or not ours to remove
                if time.time() - aside.stat().st_mtime < _ABANDONED_SECONDS or _is_held(aside):
                    continue
                if not dry_run:
                    aside.unlink()
                removed += 1
        return removed

    def _merge(self, parts: Sequence[Place], oldest: int | None = None) -> None:
        """Put one segment in the place of several, of each key the newest answer; nothing is done where a part is gone."""
        merged = self._read_if_there(parts, lambda files: _newest(_scan(files).collect(engine="streaming")))
        if merged is None:
            return
        if oldest is not None:
            merged = merged.filter(pl.col(_AT) >= oldest)
        self.write(merged, max(_time_of(path) for path in parts))
        with suppress(OSError):
            _flush_folder(self.folder)  # the new name is on disk before the old ones go
        self._remove(parts)

    def _read_if_there(self, files: Sequence[Place], work: Callable[[Sequence[Place]], _T]) -> _T | None:
        try:
            return work(files)
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
            if all(path.exists() for path in files):
                raise _explained(self.folder, files, error) from error
            return None

    def _remove(self, files: Sequence[Place]) -> None:
        try:
            for path in files:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(f"can't remove {error.filename}: {error.strerror}") from error

    @contextmanager
    def _alone(self, *, wait: bool) -> Iterator[bool]:
        """Hold the folder's lock; give whether it is held. It spares double work: what is stored is safe without it."""
        if isinstance(self.folder, Remote):
            yield True
            return
        try:
            lock = (self.folder / "lock").open("ab")
        except OSError as error:
            raise StoreError(f"can't write to {self.folder}: {error.strerror}") from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            except OSError:
                pass  # a file system without locks
            yield True


def stored_models(root: Place) -> list[ModelAnswers]:
    """Return what is stored of each model below a folder of answers. Raises StoreError where a segment is damaged."""
    found = []
    for folder in _folders(root):
        segments = _Segments(folder)
        sizes = segments.sizes()
        name, identity = _identity(folder)
        newest = max(map(_time_of, sizes), default=0)
        count = segments.read(_count)
        found.append(
            ModelAnswers(folder, name, identity, count, len(sizes), sum(sizes.values()), newest / 1e9 if newest else None)
        )
    return found


def clear_answers(
    root: Place, *, keep_days: float | None = None, model: str | None = None, dry_run: bool = False
) -> list[Cleared]:
    """Merge small segments and remove what dead processes left half written, of every model; return what was done of each.

    Answers are removed only where that is asked for: those stored more than `keep_days` days ago, or all answers of the models
    whose folder or name begins with `model`. Raises StoreError where no model's does, or where a segment is damaged.
    """
    folders = _folders(root)
    if model is not None:
        folders = [folder for folder in folders if model and any(part.startswith(model) for part in _called(folder))]
        if not folders:
            raise StoreError(f"no model in {root} begins with '{model}'; `ptk answers ls` lists them")
    cleared = []
    for folder in folders:
        segments = _Segments(folder)
        name, _ = _identity(folder)
        leftovers = segments.remove_leftovers(dry_run=dry_run)
        removed = merged = 0
        if model is not None:
            removed = segments.remove_all(dry_run=dry_run)
        else:
            if keep_days is not None:
                removed = segments.remove_older(time.time_ns() - int(keep_days * 86_400e9), dry_run=dry_run)
            merged = segments.merge_all(dry_run=dry_run)
        cleared.append(Cleared(folder, name, removed, leftovers, merged))
    return cleared


def _folders(root: Place) -> list[Place]:
    return [path for path in listed(root, "*") if path.is_dir()]


def _called(folder: Place) -> list[str]:
    name, _ = _identity(folder)
    return [folder.name] if name is None else [folder.name, name]


def _identity(folder: Place) -> tuple[str | None, Mapping[str, Any] | None]:
    """Return what a model is called and its identity, as far as that was noted."""
    try:
        noted = orjson.loads((folder / "identity.json").read_bytes())
        name, identity = noted["name"], noted["identity"]
    except (OSError, orjson.JSONDecodeError, KeyError, TypeError):
        return None, None
    if name is None and isinstance(identity, dict):
        name = ", ".join(f"{part} {_brief(value)}" for part, value in identity.items() if isinstance(value, (str, int, float)))
    return name or None, identity


def _brief(value: object) -> str:
    return text if len(text := str(value)) <= 24 else f"{text[:20]}..."


def _scan(files: Sequence[Place], *, named: bool = False) -> pl.LazyFrame:
    """Return the answers in segments, each with the time at which it was stored, oldest segment first."""
    if not files:
        return pl.LazyFrame(schema={**_SCHEMA, _AT: pl.Int64, **({_FILE: pl.String} if named else {})})
    scanned = pl.scan_parquet(
        list(map(str, files)),
        schema={**_SCHEMA, _AT: pl.Int64},
        missing_columns="insert",  # segments of earlier versions lack the columns that came later
        extra_columns="ignore",
        include_file_paths=_FILE,
        glob=False,
    )
    in_name = pl.col(_FILE).str.extract(r"(\d{20})-\w+\.parquet$").cast(pl.Int64)
    scanned = scanned.with_columns(pl.coalesce(_AT, in_name))
    return scanned if named else scanned.drop(_FILE)


def _grouped(sizes: Mapping[Place, int]) -> list[list[Place]]:
    """Cut segments, in their order, into groups of so many bytes and files as may be merged into one."""
    groups: list[list[Place]] = [[]]
    total = 0
    for path, size in sizes.items():
        if groups[-1] and (total + size > _MERGED or len(groups[-1]) == _MOST_PARTS):
            groups.append([])
            total = 0
        groups[-1].append(path)
        total += size
    return groups


def _hits(files: Sequence[Place], wanted: pl.DataFrame) -> pl.DataFrame:
    """Return where wanted keys are stored: key and file. Reads nothing but keys."""
    stored = _scan(files, named=True).select("key", _FILE)
    return stored.join(wanted.lazy().select("key"), on="key", how="semi").unique().collect(engine="streaming")


def _compact(answers: pl.LazyFrame) -> pl.DataFrame:
    """Collect answers into memory of their own: texts that were picked from many else keep the memory of all."""
    picked = pl.from_arrow(answers.collect(engine="streaming").to_arrow(compat_level=pl.CompatLevel.oldest()))
    assert isinstance(picked, pl.DataFrame)
    return picked


def _newest(answers: pl.DataFrame) -> pl.DataFrame:
    return answers.sort(_AT, maintain_order=True).unique("key", keep="last", maintain_order=True)


def _is_held(aside: Place) -> bool:
    """Return whether the process that writes it lives; no, where the file system knows no locks."""
    if isinstance(aside, Remote):
        return False
    with aside.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            pass
    return False


def _count(files: Sequence[Place]) -> int:
    return int(_scan(files).select(pl.len()).collect(engine="streaming").item())


def _time_of(path: Place) -> int:
    digits = path.name.partition("-")[0]
    return int(digits) if digits.isdigit() else 0


def _explained(folder: Place, files: Sequence[Place], error: BaseException) -> StoreError:
    """Return what is wrong with the first damaged segment, or else the error as it came."""
    for path in files:
        try:
            _scan([path]).collect(engine="streaming")
        except OSError as unreadable:
            return StoreError(f"can't read {path}: {unreadable.strerror or unreadable}")
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as damage:
            return StoreError(
                f"{path} is damaged ({_first_line(damage)}); delete it and run again: the answers in it are then asked again"
            )
    return StoreError(f"can't read answers in {folder}: {_first_line(error)}")


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _flush_folder(folder: Place) -> None:
    if isinstance(folder, Remote):
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
