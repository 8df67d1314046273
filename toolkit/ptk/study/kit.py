"""Makes a kit for a blind study: a page and sheets to give to people, and the key, which is kept."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import orjson
import polars as pl

from ptk.errors import PtkError, StoreError
from ptk.params import suggestion
from ptk.study.form import Item, Key, Kind, Question, questions_of
from ptk.text import is_turns

__all__ = ["Kit", "Wanted", "make_kit"]

_MARKER = ".ptk-study"
_SIDES = ("chosen", "rejected")
_VERDICTS = ("first", "second", "tie")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a study is to be of. `columns` are those that are rated: personas, or responses; of a choice the first is the one that wins."""

    kind: Kind
    columns: tuple[str, ...]
    persona: str | None
    rows: int
    raters: int
    seed: int
    judge: Mapping[str, str] = field(default_factory=dict)
    """Question -> the column of a judge's verdicts, first, second or tie, that people's choices are compared with."""


@dataclass(frozen=True, slots=True)
class Kit:
    """What was made: how many items, of how many rows, and where they lie."""

    folder: Path
    study: str
    items: int
    rows: int
    left_out: int
    """Rows that lack a text which the study shows."""


def make_kit(frame: pl.LazyFrame, key_column: str, source: str, wanted: Wanted, folder: Path) -> Kit:
    """Write a kit into a new or replaced folder: `give/study.html`, `give/sheets/*.csv`, and `key.json`, which is kept.

    Rows are drawn, and A and B placed, by a hash with the seed. Raises PtkError for a column that is not there, or no rows.
    """
    schema = frame.collect_schema()
    _check(schema, wanted)
    shown = _shown(schema, wanted)
    needed = dict.fromkeys([*shown, *wanted.judge.values()])
    collected = frame.select(pl.col(key_column).cast(pl.String).alias("_key"), *needed).collect(engine="streaming")
    whole = [row for row in collected.iter_rows(named=True) if all(_text(row[name]).strip() for name in shown)]
    drawn = sorted(whole, key=lambda row: _hash(wanted.seed, "row", row["_key"]))[: wanted.rows]
    if not drawn:
        raise PtkError(f"no row of {source} has all of {', '.join(shown)}")
    questions = questions_of(wanted.kind, persona=wanted.persona is not None)
    items, texts = [], []
    for row in drawn:
        for item, shows in _items(row, schema, wanted):
            items.append(item)
            texts.append(shows)
    content = orjson.dumps([texts, [question.model_dump() for question in questions]])
    study = hashlib.sha256(content).hexdigest()[:12]
    key = Key(
        study=study,
        kind=wanted.kind,
        source=source,
        seed=wanted.seed,
        first=wanted.columns[0] if wanted.kind == "choices" else None,
        second=wanted.columns[1] if wanted.kind == "choices" else None,
        persona=wanted.persona,
        key_column=key_column,
        questions=questions,
        items=tuple(items),
        prompts={row["_key"]: _text(row["prompt"]) for row in drawn},
        judged={
            row["_key"]: {question: row[column] for question, column in wanted.judge.items() if row[column] in _VERDICTS}
            for row in (drawn if wanted.judge else ())
        },
    )
    page = _page(study, wanted.kind, questions, texts)
    sheets = {
        f"rater-{number}.csv": _sheet(study, f"rater-{number}", questions, texts, wanted.seed)
        for number in range(1, wanted.raters + 1)
    }
    _write(folder, page, sheets, orjson.dumps(key.model_dump(mode="json"), option=orjson.OPT_INDENT_2))
    return Kit(folder, study, len(items), len(drawn), collected.height - len(whole))


def _check(schema: pl.Schema, wanted: Wanted) -> None:
    named = ["prompt", *wanted.columns, *([wanted.persona] if wanted.persona is not None else [])]
    for name in [*named, *(_SIDES if wanted.kind == "personas" else ())]:
        if name not in schema:
            raise PtkError(f"there is no column '{name}'{suggestion(name, schema)}")
        if schema[name] != pl.String and not is_turns(schema[name]):
            raise PtkError(f"column '{name}' is {schema[name]}, neither text nor turns")
    if wanted.kind == "choices" and (len(wanted.columns) != 2 or wanted.columns[0] == wanted.columns[1]):
        raise PtkError("a choice is between two columns of responses; name both, as in --column told --column untold")
    for question, column in wanted.judge.items():
        asked = [one.name for one in questions_of(wanted.kind, persona=wanted.persona is not None)]
        if wanted.kind != "choices" or question not in asked:
            raise PtkError(f"people are not asked to choose by '{question}', so no judge can be compared with them")
        if schema.get(column) != pl.String:
            raise PtkError(f"there is no column '{column}' of verdicts{suggestion(column, schema)}")
    if wanted.kind in ("personas", "ratings") and not wanted.columns:
        raise PtkError("name the columns to rate, as in --column chosen_persona")
    if wanted.kind == "write" and (wanted.columns or wanted.persona):
        raise PtkError("people write their own personas for prompts alone; leave out --column and --persona")


def _shown(schema: pl.Schema, wanted: Wanted) -> list[str]:
    persona = [wanted.persona] if wanted.persona is not None else []
    return ["prompt", *(_SIDES if wanted.kind == "personas" else ()), *wanted.columns, *persona]


def _items(row: Mapping[str, Any], schema: pl.Schema, wanted: Wanted) -> Iterator[tuple[Item, dict[str, str]]]:
    """Yield what a row is asked about, and the texts that are shown, which tell nothing of what they are of."""

    def name_of(what: str) -> str:
        return _hash(wanted.seed, "item", row["_key"], what)[:10]

    shown = {"prompt": _text(row["prompt"])}
    if wanted.persona is not None:
        shown["persona"] = _text(row[wanted.persona])
    if wanted.kind == "write":
        yield Item(item=name_of(""), row=row["_key"], of="persona"), {"item": name_of(""), **shown}
    elif wanted.kind == "choices":
        first, second = wanted.columns
        a, b = (first, second) if int(_hash(wanted.seed, "place", row["_key"]), 16) % 2 == 0 else (second, first)
        item = Item(item=name_of(first), row=row["_key"], of=a, other=b)
        yield item, {"item": item.item, **shown, "A": _text(row[a]), "B": _text(row[b])}
    else:
        for column in wanted.columns:
            item = Item(item=name_of(column), row=row["_key"], of=column)
            texts = {"item": item.item, **shown}
            if wanted.kind == "personas":
                # Which of the two is marked follows the persona's side: that is what is asked about, not who was chosen.
                own, other = ("rejected", "chosen") if "rejected" in column else ("chosen", "rejected")
                yield item, {**texts, "persona": _text(row[column]), "marked": _text(row[own]), "unmarked": _text(row[other])}
            else:
                yield item, {**texts, "response": _text(row[column])}


def _hash(*parts: Any) -> str:
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()


def _text(value: Any) -> str:
    if isinstance(value, list):
        several = len(value) > 1
        return "\n\n".join(
            f"{turn.get('role', '')}: {turn.get('content') or ''}" if several else turn.get("content") or "" for turn in value
        )
    return "" if value is None else str(value)


def _page(study: str, kind: Kind, questions: Sequence[Question], texts: Sequence[Mapping[str, str]]) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    templates = Environment(loader=PackageLoader("ptk.study"), autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    assets = files("ptk.study") / "assets"
    script = (assets / "study.js").read_text(encoding="utf-8")
    style = (files("ptk.site") / "assets" / "style.css").read_text(encoding="utf-8") + (assets / "study.css").read_text(
        encoding="utf-8"
    )
    # In an order that tells nothing; each person gets one of their own.
    shuffled = sorted(texts, key=lambda shows: shows["item"])
    data = orjson.dumps({"study": study, "kind": kind, "questions": [one.model_dump() for one in questions], "items": shuffled})
    return templates.get_template("study.html").render(
        kind=kind,
        study=study,
        style=Markup(style),  # noqa: S704 - our own files
        script=Markup(script),  # noqa: S704
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        data=Markup(data.decode().replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")),  # noqa: S704
    )


def _sheet(study: str, rater: str, questions: Sequence[Question], texts: Sequence[Mapping[str, str]], seed: int) -> bytes:
    """Return a sheet for one person: items in an order of their own, and an empty column for each question."""
    shown = [name for name in texts[0] if name != "item"]
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(["study", "rater", "item", *shown, *(question.name for question in questions)])
    for shows in sorted(texts, key=lambda shows: _hash(seed, rater, shows["item"])):
        # A sheet program would take a text that begins with one of these for a formula.
        cells = [f"'{shows[name]}" if shows[name][:1] in ("=", "+", "-", "@", "\t", "\r") else shows[name] for name in shown]
        writer.writerow([study, rater, shows["item"], *cells, *("" for _ in questions)])
    return out.getvalue().encode("utf-8-sig")


def _write(folder: Path, page: str, sheets: Mapping[str, bytes], key: bytes) -> None:
    if folder.exists() and not (folder / _MARKER).exists() and any(folder.iterdir()):
        raise StoreError(f"{folder} holds files that are no kit of a study; name another folder")
    aside = folder.absolute().with_name(f".{folder.name}-{uuid.uuid4().hex[:8]}")
    replaced = aside.with_name(f"{aside.name}-replaced")
    try:
        (aside / "give" / "sheets").mkdir(parents=True)
        (aside / _MARKER).write_text("A kit of a study, written by ptk; it is replaced as a whole.\n", encoding="utf-8")
        (aside / "give" / "study.html").write_text(page, encoding="utf-8")
        for name, content in sheets.items():
            (aside / "give" / "sheets" / name).write_bytes(content)
        (aside / "key.json").write_bytes(key)
        if folder.exists():
            folder.rename(replaced)
        aside.rename(folder)
    except OSError as error:
        raise StoreError(f"can't write the kit to {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)
