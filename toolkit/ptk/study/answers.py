"""Reads people's answers to a study: checks them against the key, and measures what they say and how far people agree."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import orjson
import polars as pl
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from ptk.errors import PtkError, StoreError, UnreadableFile
from ptk.measure.compare_groups import CompareGroups, compare_groups
from ptk.measure.measure_agreement import MeasureAgreement, measure_agreement
from ptk.measure.measure_wins import MeasureWins, Outcome, measure_wins
from ptk.measure.significance import adjusted
from ptk.measure.table import Measuring, Statistic, measured, ratio
from ptk.params import Params
from ptk.study.form import SCALES, Item, Key, Question

__all__ = [
    "Answers",
    "StudyResult",
    "alpha_of",
    "no_answers",
    "read_answers",
    "read_key",
    "read_result",
    "result_of",
    "written",
]

_CHOICES = {"a": "A", "b": "B", "tie": "tie", "neither": "tie"}
_ROUNDS = 2_000
_ALPHA_ROUNDS = 500
_MOST_BYTES = 64_000_000


@dataclass(frozen=True, slots=True)
class Answers:
    """What people said, one answer each: rater, item, question, value; and what was set aside, each with where and why."""

    given: tuple[tuple[str, str, str, int | str], ...]
    rejected: tuple[tuple[str, str], ...]
    """(where, reason)"""


class StudyResult(Params):
    """What a study gave: counts and a table of measures, as a report takes it up."""

    format: Literal[1] = 1
    study: str
    kind: str
    source: str
    raters: int
    items: int
    answers: int
    rejected: Mapping[str, int]
    by: tuple[str, ...] = Field(())
    rows: tuple[Mapping[str, Any], ...]
    personas: tuple[Mapping[str, str], ...] = ()
    """What people wrote of themselves, where they were asked to."""


def read_key(path: Path) -> Key:
    """Return the key of a study. Raises UnreadableFile."""
    try:
        return Key.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise UnreadableFile(
            f"{path} is no key of a study: it is the key.json beside the folder that was given away"
        ) from error


def read_result(path: Path) -> StudyResult:
    """Return what `ptk study read` wrote. Raises UnreadableFile."""
    try:
        return StudyResult.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise UnreadableFile(f"{path} is nothing that `ptk study read` wrote") from error


def read_answers(key: Key, paths: Iterable[Path]) -> Answers:
    """Return what people answered in files that the page saved, or in sheets.

    Blank answers are none. What does not fit is set aside: another study's rows, unknown items, answers that are none, and second
    answers of one person to one question. Raises UnreadableFile for a file that is neither.
    """
    questions = {question.name: question for question in key.questions}
    items = {item.item for item in key.items}
    given: dict[tuple[str, str, str], int | str] = {}
    rejected: list[tuple[str, str]] = []
    for path in paths:
        for where, study, rater, item, name, value in _said(path, list(questions)):
            if value is None or str(value).strip() == "":
                continue
            if study != key.study:
                rejected.append((where, "another_study"))
            elif not rater:
                rejected.append((where, "no_rater"))
            elif item not in items:
                rejected.append((where, "unknown_item"))
            elif (question := questions.get(name)) is None:
                rejected.append((where, "unknown_question"))
            elif (answer := _answer(question, value)) is None:
                rejected.append((where, "no_such_answer"))
            elif (rater, item, name) in given:
                if given[rater, item, name] != answer:
                    rejected.append((where, "answered_twice"))
            else:
                given[rater, item, name] = answer
    return Answers(tuple((*place, answer) for place, answer in sorted(given.items())), tuple(rejected))


def _answer(question: Question, value: Any) -> int | str | None:
    if question.form == "text":
        return " ".join(str(value).split())[:600] or None
    if question.form == "choice":
        return _CHOICES.get(str(value).strip().lower())
    try:
        number = float(str(value).strip().replace(",", "."))
    except ValueError:
        return None
    return int(number) if number.is_integer() and SCALES[0] <= number <= SCALES[1] else None


def _said(path: Path, questions: Sequence[str]) -> Iterator[tuple[str, str, str, str, str, Any]]:
    """Yield where, study, rater, item, question and value of each answer in a file."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise UnreadableFile(f"{path} is larger than {_MOST_BYTES:,} bytes; answers of one person are not")
        content = path.read_bytes()
    except OSError as error:
        raise UnreadableFile(f"can't read {path}: {error.strerror or error}") from error
    if path.suffix == ".json":
        yield from _said_in_json(path, content)
        return
    try:
        lines = list(csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline="")))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UnreadableFile(f"{path} is no sheet of a study: {error}") from error
    if not lines or any(name not in lines[0] for name in ("study", "rater", "item")):
        raise UnreadableFile(f"{path} is no sheet of a study: its columns begin with study, rater, item")
    for number, line in enumerate(lines, start=1):
        for name in questions:
            yield (
                f"{path.name}, row {number}",
                line["study"] or "",
                (line["rater"] or "").strip(),
                line["item"] or "",
                name,
                line.get(name),
            )


def _said_in_json(path: Path, content: bytes) -> Iterator[tuple[str, str, str, str, str, Any]]:
    try:
        found = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise UnreadableFile(f"{path} is no file that the page of a study saved: {error}") from error
    if not isinstance(found, dict) or not isinstance(found.get("answers"), dict):
        raise UnreadableFile(f"{path} is no file that the page of a study saved: it has no answers")
    for item, answers in found["answers"].items():
        for name, value in (answers if isinstance(answers, dict) else {}).items():
            yield f"{path.name}, item {item}", str(found.get("study")), str(found.get("rater") or "").strip(), item, name, value


def result_of(key: Key, answers: Answers, *, rounds: int = _ROUNDS, seed: int = 0) -> StudyResult:
    """Return what the answers say: means and differences of ratings, choices and win rates, and Krippendorff's alpha of each question.

    Intervals draw prompts with all that was said of them. Differences are of one person's ratings of one row, with paired tests.
    """
    items = {item.item: item for item in key.items}
    tables: list[pl.DataFrame] = []
    if key.kind in ("personas", "ratings"):
        tables += _ratings(key, answers, items, rounds, seed)
    if key.kind == "choices":
        tables.append(_choices(key, answers, items, rounds, seed))
        tables += _judge_agreement(key, answers, items, rounds, seed)
    if key.kind != "write":
        tables.append(_agreement(key, answers, seed))
    rows = pl.concat(tables, how="diagonal_relaxed").to_dicts() if tables else []
    counts: dict[str, int] = {}
    for _, reason in answers.rejected:
        counts[reason] = counts.get(reason, 0) + 1
    return StudyResult(
        study=key.study,
        kind=key.kind,
        source=key.source,
        raters=len({rater for rater, *_ in answers.given}),
        items=len({item for _, item, _, _ in answers.given}),
        answers=len(answers.given),
        rejected=dict(sorted(counts.items())),
        by=("of",) if key.kind in ("personas", "ratings") else (),
        rows=tuple(rows),
        personas=tuple(
            {"rater": rater, "row": items[item].row, "prompt": key.prompts[items[item].row], "persona": str(value)}
            for rater, item, name, value in answers.given
            if key.kind == "write" and name == "persona"
        ),
    )


def _wide(key: Key, answers: Answers, items: Mapping[str, Item]) -> pl.DataFrame:
    """Return a row for each person and item, with a column for each question."""
    names = [question.name for question in key.questions]
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for rater, item, name, value in answers.given:
        at = items[item]
        row = rows.setdefault(
            (rater, item), {"rater": rater, "row": at.row, "prompt": key.prompts[at.row], "of": at.of, **dict.fromkeys(names)}
        )
        if name not in names:
            continue
        row[name] = _column_of(key, at, value) if isinstance(value, str) else value
    kind = pl.String() if key.kind == "choices" else pl.Float64()
    schema = {**dict.fromkeys(("rater", "row", "prompt", "of"), pl.String()), **dict.fromkeys(names, kind)}
    return pl.DataFrame(list(rows.values()), schema=schema, strict=False, orient="row")


def _column_of(key: Key, item: Item, value: str) -> str:
    """Return `first` or `second` for A or B, which only the key can tell; `tie` stays."""
    if value not in ("A", "B"):
        return value
    return "first" if (item.of if value == "A" else item.other) == key.first else "second"


def _ratings(key: Key, answers: Answers, items: Mapping[str, Item], rounds: int, seed: int) -> list[pl.DataFrame]:
    wide = _wide(key, answers, items)
    names = [question.name for question in key.questions]
    sums: dict[str, pl.Expr] = {}
    statistics = []
    for name in names:
        sums |= {name: pl.col(name), f"{name}_n": pl.col(name).is_not_null()}
        statistics.append(
            Statistic("mean_rating", name, lambda t, name=name: ratio(t[name], t[f"{name}_n"]), f"{name}_n")  # type: ignore[misc]
        )
    params = Measuring(by=("of",), cluster=("prompt",), rounds=rounds, seed=seed)
    tables = [measured(wide.lazy(), sums, statistics, params).collect()]
    if len({item.of for item in items.values()}) > 1:
        compared = []
        for name in names:
            settings = CompareGroups(value=name, of="of", on=("rater", "row"), cluster=("prompt",), rounds=rounds, seed=seed)
            rated = wide.filter(pl.col(name).is_not_null())
            if not rated.is_empty():
                made = compare_groups.function(rated.lazy(), params=settings).collect()
                compared.append(made.with_columns(pl.format(f"{name}: {{}}", "about").alias("about")))
        if compared:
            # Each scale is a test of its own: those of one kind are adjusted together.
            for part in pl.concat(compared).partition_by("measure", maintain_order=True):
                together = pl.Series("p_adjusted", adjusted(part["p_value"].to_list()), dtype=pl.Float64)
                tables.append(part.with_columns(together))
    return tables


def _choices(key: Key, answers: Answers, items: Mapping[str, Item], rounds: int, seed: int) -> pl.DataFrame:
    wide = _wide(key, answers, items)
    names = [question.name for question in key.questions]
    about = f"{key.first} against {key.second}"
    outcome = Outcome(
        name=about, quality="answerability", personalization="personalization" if "personalization" in names else None
    )
    params = MeasureWins(outcomes=(outcome,), cluster=("prompt",), rounds=rounds, seed=seed)
    made = measure_wins.function(wide.lazy(), params=params).collect()
    # The question of quality that people are asked has a name of its own.
    return made.with_columns(pl.col("about").str.replace("/quality", "/answerability", literal=True))


def _judge_agreement(key: Key, answers: Answers, items: Mapping[str, Item], rounds: int, seed: int) -> list[pl.DataFrame]:
    """Return how far a judge agrees with what most people chose of a row; where none is chosen most often, that is a tie."""
    tables = []
    for question in key.questions:
        votes: dict[str, list[str]] = {}
        for _, item, name, value in answers.given:
            if name == question.name:
                votes.setdefault(items[item].row, []).append(_column_of(key, items[item], str(value)))
        rows = [
            {"prompt": key.prompts[row], "judge": key.judged[row][question.name], "people": _most(said)}
            for row, said in sorted(votes.items())
            if question.name in key.judged.get(row, {})
        ]
        if rows:
            params = MeasureAgreement(left="judge", right="people", cluster=("prompt",), rounds=rounds, seed=seed)
            made = measure_agreement.function(pl.LazyFrame(rows), params=params).collect()
            tables.append(made.with_columns(about=pl.lit(question.name)))
    return tables


def _most(said: Sequence[str]) -> str:
    counts = {word: said.count(word) for word in ("first", "second", "tie")}
    most = [word for word, count in counts.items() if count == max(counts.values())]
    return most[0] if len(most) == 1 else "tie"


def _agreement(key: Key, answers: Answers, seed: int) -> pl.DataFrame:
    rows = []
    place = {item.item: number for number, item in enumerate(key.items)}
    items = {item.item: item for item in key.items}
    for question in key.questions:
        said = [(rater, item, value) for rater, item, name, value in answers.given if name == question.name]
        raters = sorted({rater for rater, _, _ in said})
        table = np.full((len(raters), len(place)), np.nan)
        labels = {"first": 0.0, "tie": 1.0, "second": 2.0}
        for rater, item, value in said:
            # A is now the one column, now the other: what people agree on is the column.
            told = _column_of(key, items[item], value) if isinstance(value, str) else value
            table[raters.index(rater), place[item]] = labels[told] if isinstance(told, str) else float(told)
        alpha, low, high = alpha_of(table, "ordinal", [key.prompts[item.row] for item in key.items], seed)
        several = int(((~np.isnan(table)).sum(axis=0) > 1).sum())
        rows.append(
            {
                "name": f"alpha/{question.name}",
                "measure": "alpha",
                "about": question.name,
                "value": alpha,
                "low": low,
                "high": high,
                "n": several,
            }
        )
    numbers = dict.fromkeys(("value", "low", "high", "standard_error", "p_value", "p_adjusted"), pl.Float64())
    schema = {**dict.fromkeys(("name", "measure", "about"), pl.String()), **numbers, "n": pl.Int64()}
    return pl.DataFrame(rows, schema=schema, orient="row")


def alpha_of(
    table: NDArray[np.float64], level: Literal["nominal", "ordinal", "interval"], clusters: Sequence[str], seed: int
) -> tuple[float | None, float | None, float | None]:
    """Return Krippendorff's alpha of ratings (raters, items), NaN where there is none, and its 95% interval.

    The interval draws whole clusters of items anew. None where fewer than two people rated any item, or all said the same.
    """
    import krippendorff

    def of(part: NDArray[np.float64]) -> float | None:
        kept = part[:, (~np.isnan(part)).sum(axis=0) > 1]
        if kept.size == 0 or len(np.unique(kept[~np.isnan(kept)])) < 2:
            return None
        return float(krippendorff.alpha(reliability_data=kept, level_of_measurement=level))

    value = of(table)
    if value is None:
        return None, None, None
    names = list(dict.fromkeys(clusters))
    members = [np.array([at for at, one in enumerate(clusters) if one == name]) for name in names]
    if len(members) < 2:
        return value, None, None
    random = np.random.default_rng(seed)
    drawn = []
    for _ in range(_ALPHA_ROUNDS):
        chosen = random.integers(len(members), size=len(members))
        if (found := of(table[:, np.concatenate([members[at] for at in chosen])])) is not None:
            drawn.append(found)
    if not drawn:
        return value, None, None
    low, high = np.quantile(drawn, (0.025, 0.975))
    return value, float(low), float(high)


def written(result: StudyResult, output: Path | None, personas: Path | None) -> None:
    """Write the result, and the personas that people wrote as JSON Lines with their prompts, where a path is given."""
    try:
        if output is not None:
            output.parent.mkdir(parents=True, exist_ok=True)
            output.write_bytes(orjson.dumps(result.model_dump(mode="json"), option=orjson.OPT_INDENT_2))
        if personas is not None:
            personas.parent.mkdir(parents=True, exist_ok=True)
            lines = [
                orjson.dumps({"prompt": one["prompt"], "user_persona": one["persona"], "user": one["rater"]})
                for one in result.personas
            ]
            personas.write_bytes(b"".join(line + b"\n" for line in lines))
    except OSError as error:
        raise StoreError(f"can't write {error.filename}: {error.strerror or error}") from error


def no_answers(answers: Answers) -> PtkError:
    """Return what is wrong where nothing could be read."""
    reasons = ", ".join(sorted({reason for _, reason in answers.rejected})) or "every answer is blank"
    return PtkError(f"there are no answers to read: {reasons}")
