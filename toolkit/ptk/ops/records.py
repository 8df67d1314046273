"""Files as records, in pieces that can be read apart: JSON Lines, JSON arrays, CSV and Parquet, compressed or not."""

from __future__ import annotations

import bz2
import csv
import gc
import gzip
import io
import lzma
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import orjson
import polars as pl
from polars.exceptions import DuplicateError

from ptk.errors import UnreadableFile

__all__ = ["FileRecords", "Look", "Piece", "Records", "Table", "Unreadable", "Verbatim"]

LOOKED_AT = 1_000
"""Records of a file from which the types of further columns are told."""
_LOOKED_AT_IN_ALL = 20_000
_LOOKED_AT_LEAST = 20
PIECE_BYTES = 64 << 20
_CHUNK = 4 << 20
_ROWS = 10_000
_LONGEST_LINE = 256 << 20
_LONGEST_QUOTE = 10_000
"""Lines after which a quote in a CSV file counts as never closed."""
_SHOWN = 1_000_000
"""Characters of a malformed record that are kept."""
_BOM = b"\xef\xbb\xbf"
_COMPRESSED = (".gz", ".bz2", ".xz", ".zst")


@dataclass(frozen=True, slots=True)
class Piece:
    """What is read in one go: bytes of JSON Lines or rows of a table, from `start` to before `stop`."""

    file: int
    start: int = 0
    stop: int | None = None
    line: int = 1
    """Number of the first line."""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A record that could not be parsed."""

    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Verbatim:
    """Records as they were parsed; one that is no object of fields is malformed."""

    file: str
    lines: Sequence[int]
    records: Sequence[Any]
    text: Callable[[int], str]
    """The text of the record at an index."""
    content: bytes = b""
    """The bytes that the records were parsed from, where they were JSON Lines."""
    line: Callable[[int], bytes] = lambda _: b""
    """Those of the record at an index."""


@dataclass(frozen=True, slots=True)
class Table:
    """Records as rows of a frame."""

    file: str
    first: int
    """Number of the first row, from 1."""
    frame: pl.DataFrame

    def verbatim(self, rows: Sequence[int] | None = None) -> Verbatim:
        """Return the rows, or those at some indexes, as records."""
        frame = self.frame if rows is None else self.frame[list(rows)]
        records = frame.to_dicts()
        lines = [self.first + index for index in (range(frame.height) if rows is None else rows)]
        return Verbatim(self.file, lines, records, lambda index: json_text(records[index]))


@dataclass(frozen=True, slots=True)
class Look:
    """What the first records of a file show: its records, or for a table the types of its columns."""

    name: str
    records: Sequence[dict[str, Any]] = ()
    types: Mapping[str, pl.DataType] | None = None


class Records(Protocol):
    """Where records come from."""

    def looks(self) -> Iterator[Look]:
        """Yield what the first records of every file show."""
        ...

    def pieces(self) -> Sequence[Piece]:
        """Return what can be read apart, in its order."""
        ...

    def blocks(self, piece: Piece) -> Iterator[Verbatim | Table]:
        """Yield the records of a piece."""
        ...


def json_text(value: Any) -> str:
    """Return `value` as JSON; what JSON has no type for becomes text."""
    try:
        return orjson.dumps(value, default=str).decode()
    except TypeError:  # a number of more than 64 bits
        return str(value)


@dataclass(frozen=True, slots=True)
class FileRecords:
    """The records of some files, one file after another."""

    paths: tuple[Path, ...]

    def looks(self) -> Iterator[Look]:
        each = max(_LOOKED_AT_LEAST, min(LOOKED_AT, _LOOKED_AT_IN_ALL // len(self.paths)))
        for index, path in enumerate(self.paths):
            if _kind(path) == "parquet":
                yield Look(path.name, types=_parquet_types(path))
                continue
            records: list[dict[str, Any]] = []
            for block in self.blocks(Piece(index), chunk=1 << 16):
                assert isinstance(block, Verbatim)
                records.extend(record for record in block.records if isinstance(record, dict))
                if len(records) >= each:
                    break
            yield Look(path.name, records[:each])

    def pieces(self) -> Sequence[Piece]:
        return [piece for index, path in enumerate(self.paths) for piece in _pieces_of(index, path)]

    def blocks(self, piece: Piece, chunk: int | None = None) -> Iterator[Verbatim | Table]:
        path = self.paths[piece.file]
        kind = _kind(path)
        if kind == "parquet":
            yield from _parquet_blocks(path, piece)
        elif kind in ("csv", "tsv"):
            yield from _csv_blocks(path, "\t" if kind == "tsv" else ",")
        elif kind == "json" and (array := _json_array(path)) is not None:
            for start in range(0, len(array), _ROWS):
                yield _array_block(path.name, start, array[start : start + _ROWS])
        else:
            yield from _json_blocks(path, piece, chunk or _CHUNK)


def _kind(path: Path) -> str:
    name = path.name.lower()
    for ending in _COMPRESSED:
        name = name.removesuffix(ending)
    kind = name.rpartition(".")[2]
    if kind == "parquet" and _compression(path):
        raise UnreadableFile(f"{path}: a Parquet file is compressed inside; unpack this one first")
    return kind if kind in ("parquet", "csv", "tsv", "json") else "jsonl"


def _compression(path: Path) -> str:
    ending = path.suffix.lower()
    return ending if ending in _COMPRESSED else ""


def _pieces_of(index: int, path: Path) -> Iterator[Piece]:
    kind = _kind(path)
    if kind == "parquet":
        yield from _row_groups(index, path)
    elif kind == "jsonl" and not _compression(path) and path.stat().st_size > PIECE_BYTES:
        yield from _byte_ranges(index, path)
    else:
        yield Piece(index)


def _byte_ranges(index: int, path: Path) -> Iterator[Piece]:
    """Yield pieces of whole lines of about PIECE_BYTES."""
    start, line, place, newlines = 0, 1, 0, 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            end = chunk.find(b"\n") if place - start >= PIECE_BYTES else -1
            if end >= 0:
                stop = place + end + 1
                yield Piece(index, start, stop, line)
                line += newlines + 1
                start = stop
                newlines = chunk.count(b"\n", end + 1)
            else:
                newlines += chunk.count(b"\n")
            place += len(chunk)
    if place > start or start == 0:
        yield Piece(index, start, None, line)


# ---- bytes ----


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    ending = _compression(path)
    kind = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "Zstandard"}.get(ending, "")
    try:
        with _open(path, ending) as file:
            yield file
    except (gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError) as error:
        raise UnreadableFile(f"{path}: not a whole {kind} file: {error}; fetch it again") from error
    except OSError as error:
        if kind and not isinstance(error, (FileNotFoundError, PermissionError)):
            raise UnreadableFile(f"{path}: not a whole {kind} file: {error}; fetch it again") from error
        raise UnreadableFile(f"{path}: can't be read: {error.strerror or error}") from error


def _open(path: Path, ending: str) -> Any:
    if ending == ".gz":
        return gzip.open(path, "rb")
    if ending == ".bz2":
        return bz2.open(path, "rb")
    if ending == ".xz":
        return lzma.open(path, "rb")
    if ending == ".zst":
        import pyarrow as pa

        return io.BufferedReader(_RawStream(pa.CompressedInputStream(pa.OSFile(str(path), "rb"), "zstd")), _CHUNK)
    return path.open("rb")


class _RawStream(io.RawIOBase):
    """A file of Arrow's as one that Python's buffers take."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = self._inner.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        self._inner.close()
        super().close()


def _check_encoding(path: Path, beginning: bytes) -> None:
    if beginning.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UnreadableFile(f"{path}: is UTF-16 text; make it UTF-8 first: iconv -f UTF-16 -t UTF-8")


def shown(text: str) -> str:
    """Return `text` as it is kept beside a rejected record: whole, unless it is huge."""
    return text if len(text) <= _SHOWN else text[:_SHOWN] + " ..."


# ---- JSON ----


@dataclass(frozen=True, slots=True)
class _LongLine:
    beginning: bytes


def _json_blocks(path: Path, piece: Piece, chunk: int) -> Iterator[Verbatim]:
    with _opened(path) as file:
        if piece.start:
            file.seek(piece.start)
        left = None if piece.stop is None else piece.stop - piece.start
        for number, content, lines in _line_blocks(file, piece.line, left, chunk):
            if number == 1:
                _check_encoding(path, content[:2])
            yield _json_block(path.name, number, content, lines)


def _line_blocks(file: Any, number: int, left: int | None, chunk: int) -> Iterator[tuple[int, bytes, list[Any]]]:
    """Yield (number of the first line, bytes, lines); a line of more than _LONGEST_LINE bytes is a _LongLine."""
    waiting: list[bytes] = []
    size = 0
    skipped: bytes | None = None
    while got := file.read(chunk if left is None else min(chunk, left)):
        if left is not None:
            left -= len(got)
        if skipped is not None:
            end = got.find(b"\n")
            if end < 0:
                continue
            yield number, b"", [_LongLine(skipped)]
            number, skipped, got = number + 1, None, got[end + 1 :]
        end = got.rfind(b"\n")
        if end < 0:
            waiting.append(got)
            size += len(got)
            if size > _LONGEST_LINE:
                waiting, size, skipped = [], 0, b"".join(waiting)[:1_000]
            continue
        content = b"".join([*waiting, got[:end]])
        waiting = [got[end + 1 :]]
        size = len(waiting[0])
        lines = content.split(b"\n")
        yield number, content, lines
        number += len(lines)
    if skipped is not None:
        yield number, b"", [_LongLine(skipped)]
    elif last := b"".join(waiting):
        yield number, last, [last]


def _json_block(file: str, number: int, content: bytes, lines: list[Any]) -> Verbatim:
    numbers: Sequence[int] = range(number, number + len(lines))
    try:
        with _uncollected():
            records: list[Any] = [orjson.loads(line) for line in lines]
    except orjson.JSONDecodeError:
        long = {at for at, line in zip(numbers, lines, strict=True) if isinstance(line, _LongLine)}
        kept = [(at, stripped) for at, line in zip(numbers, lines, strict=True) if (stripped := _stripped(line, at))]
        numbers, lines = [at for at, _ in kept], [line for _, line in kept]
        records = [_TOO_LONG if at in long else _parsed(line) for at, line in kept]

    def text(index: int) -> str:
        return shown(lines[index].strip().decode("utf-8", errors="replace"))

    return Verbatim(file, numbers, records, text, content, lambda index: lines[index])


@contextmanager
def _uncollected() -> Iterator[None]:
    """Keep the garbage collector from looking through parsed records again and again: there are no cycles in them."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


_TOO_LONG = Unreadable("not_json", f"the line has more than {_LONGEST_LINE >> 20} MiB")


def _stripped(line: bytes | _LongLine, number: int) -> bytes:
    if isinstance(line, _LongLine):
        return line.beginning
    return line.removeprefix(_BOM).strip() if number == 1 else line.strip()


def _parsed(line: bytes) -> Any:
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError as error:
        encoding = "" if _is_utf8(line) else "; the line is not UTF-8"
        return Unreadable("not_json", f"{error.msg} at column {error.colno}{encoding}")


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def _json_array(path: Path) -> list[Any] | None:
    """Return the items of a file that is one JSON array, None where it is JSON Lines."""
    with _opened(path) as file:
        beginning = file.read(1 << 12)
        _check_encoding(path, beginning[:2])
        if not beginning.removeprefix(_BOM).lstrip().startswith(b"["):
            return None
        content = beginning + file.read()
    try:
        items = orjson.loads(content.removeprefix(_BOM))
    except orjson.JSONDecodeError as error:
        raise UnreadableFile(f"{path}: begins as a JSON array and is none: {error.msg} at line {error.lineno}") from error
    return list(items)


def _array_block(file: str, start: int, items: list[Any]) -> Verbatim:
    return Verbatim(file, range(start + 1, start + 1 + len(items)), items, lambda index: shown(json_text(items[index])))


# ---- CSV ----


class _OpenQuoteError(Exception):
    pass


class _Lines:
    """Lines of a CSV file, for a parser that may be told to begin again at a line that it took."""

    def __init__(self, source: Iterator[str]) -> None:
        self._source = source
        self._back: deque[str] = deque()
        self.taken: list[str] = []
        self.number = 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        if len(self.taken) > _LONGEST_QUOTE:
            raise _OpenQuoteError
        line = self._back.popleft() if self._back else next(self._source)
        self.taken.append(line)
        self.number += 1
        return line

    def put_back(self) -> None:
        """Give back all lines of the row but the first."""
        self._back.extendleft(reversed(self.taken[1:]))
        self.number -= len(self.taken) - 1


def _csv_blocks(path: Path, delimiter: str) -> Iterator[Verbatim]:
    with _opened(path) as file:
        beginning = file.peek(2)[:2] if hasattr(file, "peek") else b""
        _check_encoding(path, beginning)
        text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
        rows = _csv_rows(_Lines(iter(text)), delimiter)
        first: list[str] | Unreadable = next(rows, (1, [], ""))[1]
        if isinstance(first, Unreadable):
            raise UnreadableFile(f"{path}: the header line: {first.detail}")
        header = [_readable(name) for name in first]
        if len(set(header)) < len(header):
            raise UnreadableFile(f"{path}: the header names a column twice: {', '.join(header)}")
        lines: list[int] = []
        records: list[Any] = []
        texts: dict[int, str] = {}
        for line, row, text_of_line in rows:
            if not row:
                continue
            record = row if isinstance(row, Unreadable) else _csv_record(header, row)
            if isinstance(record, Unreadable):
                texts[len(records)] = shown(_readable(text_of_line if isinstance(row, Unreadable) else delimiter.join(row)))
            lines.append(line)
            records.append(record)
            if len(records) >= _ROWS:
                yield _csv_block(path.name, lines, records, texts, delimiter)
                lines, records, texts = [], [], {}
        if records:
            yield _csv_block(path.name, lines, records, texts, delimiter)


def _csv_block(file: str, lines: list[int], records: list[Any], texts: Mapping[int, str], delimiter: str) -> Verbatim:
    return Verbatim(
        file,
        lines,
        records,
        lambda index: texts[index] if index in texts else shown(delimiter.join(records[index].values())),
    )


def _csv_record(header: list[str], row: list[str]) -> dict[str, str] | Unreadable:
    text = "".join(row)
    if not text.isascii() and not _is_unicode(text):
        return Unreadable("not_csv", "the row is not UTF-8")
    if len(row) != len(header):
        return Unreadable("not_csv", f"{len(row)} fields under a header of {len(header)}")
    return dict(zip(header, row, strict=True))


def _csv_rows(lines: _Lines, delimiter: str) -> Iterator[tuple[int, list[str] | Unreadable, str]]:
    """Yield (line it begins on, fields, text of an unreadable line) of every row.

    A quote that is left open swallows lines until another quote comes. Where that shows, its line alone is unreadable, and
    reading goes on at the next line.
    """
    csv.field_size_limit(1 << 40)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        lines.taken.clear()
        begins = lines.number + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except (csv.Error, _OpenQuoteError) as error:
            reader = csv.reader(lines, delimiter=delimiter, strict=True)
            first = lines.taken[0] if lines.taken else ""
            ended = isinstance(error, _OpenQuoteError) or "end of data" in str(error)
            loose = None if ended or len(lines.taken) > 1 else _loose_row(first, delimiter)
            if loose is not None:
                yield begins, loose, ""
                continue
            swallowed = len(lines.taken) - 1
            lines.put_back()
            after = f"; it swallows the {swallowed:,} lines that follow" if swallowed else ""
            yield begins, Unreadable("not_csv", f"a quote is opened and not closed{after}"), first.rstrip("\r\n")
            continue
        yield begins, row, ""


def _loose_row(line: str, delimiter: str) -> list[str] | None:
    """Return the fields of a line whose quotes are out of place, None where one of them stays open."""
    asked = 0

    def one() -> Iterator[str]:
        nonlocal asked
        yield line
        asked += 1

    try:
        row = next(csv.reader(one(), delimiter=delimiter))
    except (csv.Error, StopIteration):
        return None
    return None if asked else row


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _readable(text: str) -> str:
    """Return `text` with a replacement character for every byte that was not UTF-8."""
    return text.encode(errors="surrogateescape").decode(errors="replace")


# ---- Parquet ----


def _scan(path: Path) -> pl.LazyFrame:
    return pl.scan_parquet(path, glob=False, hive_partitioning=False)


def _not_parquet(path: Path, error: Exception) -> UnreadableFile:
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if isinstance(error, DuplicateError):
        return UnreadableFile(f"{path}: the file names a column twice: {first}")
    return UnreadableFile(f"{path}: not a Parquet file: {first}")


def _parquet_types(path: Path) -> dict[str, pl.DataType]:
    try:
        return dict(_scan(path).collect_schema())
    except (pl.exceptions.PolarsError, OSError) as error:
        raise _not_parquet(path, error) from error


def _row_groups(index: int, path: Path) -> Iterator[Piece]:
    """Yield pieces of whole row groups of together about PIECE_BYTES."""
    import pyarrow as pa
    from pyarrow.parquet import read_metadata

    try:
        metadata = read_metadata(path)
    except (pa.ArrowException, OSError) as error:
        raise _not_parquet(path, error) from error
    start = stop = size = 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        stop += group.num_rows
        size += group.total_byte_size
        if size >= PIECE_BYTES:
            yield Piece(index, start, stop, start + 1)
            start, size = stop, 0
    if stop > start or start == 0:
        yield Piece(index, start, stop, start + 1)


def _parquet_blocks(path: Path, piece: Piece) -> Iterator[Table]:
    frame = _scan(path)
    if piece.stop is not None:
        frame = frame.slice(piece.start, piece.stop - piece.start)
    first = piece.start + 1
    try:
        for batch in frame.collect_batches(chunk_size=_ROWS, maintain_order=True):
            if batch.height:
                yield Table(path.name, first, batch)
            first += batch.height
    except (pl.exceptions.PolarsError, OSError) as error:
        raise _not_parquet(path, error) from error


def first_words(names: Iterable[str], most: int = 3) -> str:
    """Return some names, and that there are more."""
    listed = list(names)
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")
