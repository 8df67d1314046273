"""Writes a report: a page, Markdown with its figures, or a folder of figures and tables; each whole or not at all."""

from __future__ import annotations

import csv
import io
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ptk.errors import StoreError
from ptk.report.charts import png, svg
from ptk.report.html import as_html
from ptk.report.markdown import as_markdown
from ptk.report.parts import Report
from ptk.report.settings import FORMS

__all__ = ["Written", "write_report"]

_MARKER = ".ptk-report"


@dataclass(frozen=True, slots=True)
class Written:
    """A file or folder that was written, and its size in bytes."""

    path: Path
    bytes: int


def write_report(report: Report, places: Sequence[Path]) -> list[Written]:
    """Write a report to each of some places: `.html`, `.md` (its figures go into a folder beside it) or a folder.

    What a report left there is replaced. Raises StoreError where it can't be written, or a folder holds something else.
    """
    for to in places:
        if to.suffix not in (*FORMS, ""):
            raise StoreError(
                f"can't write a report to {to}: write .html or .md, or a folder for figures and tables, without an end"
            )
    # Drawing takes most of the time: what several places need is drawn once.
    drawings = _drawings(report) if any(to.suffix != ".html" for to in places) else {}
    return [_written(report, to, drawings) for to in places]


def _written(report: Report, to: Path, drawings: Mapping[str, bytes]) -> Written:
    try:
        if to.suffix == ".html":
            return Written(to, _write(to, as_html(report).encode()))
        if to.suffix == ".md":
            folder = to.with_name(f"{to.stem}-figures")
            size = _write_folder(folder, drawings)
            return Written(to, size + _write(to, as_markdown(report, folder.name).encode()))
        return Written(to, _write_folder(to, {**drawings, **_tables(report)}))
    except OSError as error:
        raise StoreError(f"can't write the report to {to}: {error.strerror or error}") from error


def _drawings(report: Report) -> dict[str, bytes]:
    made: dict[str, bytes] = {}
    for figure in report.figures():
        if figure.chart is not None:
            made[f"{figure.name}.svg"] = svg(figure.chart, figure.name, themed=False).encode()
            made[f"{figure.name}.png"] = png(figure.chart)
    return made


def _tables(report: Report) -> dict[str, bytes]:
    made: dict[str, bytes] = {}
    for figure in report.figures():
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(name or "of" for name in figure.table.header)
        writer.writerows(figure.table.rows)
        made[f"{figure.name}.csv"] = out.getvalue().encode()
    return made


def _write(path: Path, content: bytes) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        aside.write_bytes(content)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    return len(content)


def _write_folder(folder: Path, contents: Mapping[str, bytes]) -> int:
    if folder.exists() and not (folder / _MARKER).exists() and any(folder.iterdir()):
        raise StoreError(f"{folder} holds files that are no figures of a report; name another place")
    aside = folder.absolute().with_name(f".{folder.name}-{uuid.uuid4().hex[:8]}")
    replaced = aside.with_name(f"{aside.name}-replaced")
    try:
        aside.mkdir(parents=True)
        (aside / _MARKER).write_text("Figures of a report, written by ptk; they are replaced as a whole.\n", encoding="utf-8")
        for name, content in contents.items():
            (aside / name).write_bytes(content)
        if folder.exists():
            folder.rename(replaced)
        aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)
    return sum(map(len, contents.values()))
