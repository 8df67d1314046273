"""Makes a report of evidence: figures of every measure, measures that no step made, caveats, findings and examples."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import orjson
import polars as pl
from polars.exceptions import PolarsError

from ptk.measure.measure_accuracy import measure_accuracy
from ptk.measure.measure_flips import measure_flips
from ptk.measure.measure_preference import measure_preference
from ptk.measure.measure_style import measure_style
from ptk.measure.measure_wins import measure_wins
from ptk.measure.measure_words import measure_words
from ptk.operator import Reshape
from ptk.report.caveats import judge_caveats, model_caveats, named
from ptk.report.evidence import Evidence, MeasureTable, option_of
from ptk.report.examples import examples_of
from ptk.report.measures import JUDGED, doubts_of, figures_of, findings_of
from ptk.report.parts import Caveat, Figure, Report, Section
from ptk.report.rows import answer_lengths, flow, losses, margin_spread, pair_lengths, with_margins
from ptk.train.derive_rewards import margin_column

__all__ = ["digest_of", "report_of"]

_MOST_DOMAINS = 12
_MOST_BY = 4
_MOST_STYLE_BY = 1
_SIDES = ("chosen", "rejected")

_SECTIONS: Sequence[tuple[str, str, str, tuple[str, ...]]] = (
    (
        "personas",
        "Are the personas right?",
        "A persona is right where a judge that sees it, and both responses, picks the response that it was inferred from. At 0.5 the judge "
        "might as well toss a coin. Right means that a persona tells two responses apart, not that any person is like it.",
        ("measure_accuracy", "measure_preference", "measure_words", "measure_diversity"),
    ),
    (
        "tailoring",
        "Are people served better?",
        "Two systems' responses, judged side by side in both orders by the rubrics quality and personalization. Delta PQ is half the sum of "
        "what both win rates lie above one half, doubled: it is between -1 and 1, and 0 where neither system is better.",
        ("measure_wins", "control_length", "compare_outputs", "compare_groups"),
    ),
    (
        "margins",
        "Does the model hear the persona?",
        "No judge is asked here: a margin is how much likelier the model finds the chosen response than the rejected one. A model that hears "
        "its persona has margins above 0 for the chosen persona, and below 0 for the rejected one.",
        ("measure_flips",),
    ),
    (
        "texts",
        "Length and style",
        "What can be told of texts by counting. Judges and people alike favour long answers, so look here before you believe a win rate.",
        ("measure_style",),
    ),
    (
        "judge",
        "Can the judge be believed?",
        "A judge is a model too. One that sees no difference picks a place, and its verdict changes with the order.",
        ("measure_agreement", "measure_position"),
    ),
    ("people", "What people say", "Answers of people to a blind kit.", ("study",)),
    ("training", "Training", "How the loss of each trained model went.", ()),
    (
        "steps",
        "Steps and counts",
        "What each step was given, what it let through, and what it set aside. No row goes without a word.",
        (),
    ),
)


def report_of(
    evidence: Evidence,
    *,
    title: str | None = None,
    examples: int = 200,
    seed: int = 0,
    progress: Callable[[str], None] = lambda what: None,
) -> Report:
    """Return the report of some evidence. What no step measured, and the rows allow, is measured here."""
    progress("measuring")
    made, failures = _measured_here(evidence)
    tables = (*evidence.tables, *made)
    judge = judge_caveats(evidence, tables)
    models = model_caveats(evidence)
    made_up = tuple(caveat for caveat in models if caveat.rule == "scripted")
    progress("drawing up figures")
    sections: list[Section] = []
    findings: list[tuple[str, str]] = []
    for name, heading, about, operators in _SECTIONS:
        figures: list[Figure] = []
        if name == "texts":
            figures += [figure for figure in [pair_lengths(evidence)] if figure is not None]
            figures += answer_lengths(evidence)
        if name == "training":
            figures += losses(evidence)
        if name == "steps":
            figures.append(flow(evidence))
        for operator in operators:
            of_operator = [table for table in tables if table.operator == operator]
            for table in of_operator:
                doubts = (*judge, *made_up) if operator in JUDGED else made_up if operator != "study" else ()
                found = [_titled(figure, table, of_operator, doubts) for figure in figures_of(table)]
                several = len({other.step for other in of_operator}) > 1
                findings += [(f"{table.step}: {said}" if several else said, at) for said, at in findings_of(table, found)]
                figures += found
                if operator == "measure_flips" and (spread := margin_spread(evidence, table)) is not None:
                    figures.append(_titled(spread, table, of_operator, made_up))
        if name == "judge":
            doubted = [table for table in tables if doubts_of(table)]
            for table in doubted:
                figures += [_titled(figure, table, doubted, made_up) for figure in doubts_of(table)]
        if figures:
            sections.append(Section(name, heading, about, tuple(figures)))
    progress("drawing examples")
    caveats = [*models, *judge, *failures]
    if evidence.unfinished:
        text = f"Not finished, and so not in this report: {named(evidence.unfinished, 6)}."
        caveats.insert(0, Caveat("unfinished", text, "alarm"))
    if evidence.unanswered:
        lacking = [f"{count:,} of {step}" for step, count in evidence.unanswered.items()]
        text = f"Requests without an answer: {named(lacking, 6)}. Their rows are not counted; the next run asks them again."
        caveats.insert(0, Caveat("unanswered", text, "doubt"))
    return Report(
        title=title or evidence.name,
        of=evidence.of,
        findings=tuple(findings),
        caveats=tuple(caveats),
        run={
            **{name: evidence.lineage[name] for name in ("spec", "sources", "origins", "licences", "models", "prompts")},
            "versions": list(evidence.versions),
            "unfinished": list(evidence.unfinished),
        },
        sections=tuple(sections),
        examples=examples_of(evidence, examples, seed),
        took=evidence.took,
    )


def digest_of(report: Report) -> str:
    """Return the SHA-256 of all that a report says but for what differs between runs that give the same: times, and what was asked when."""
    content = orjson.dumps(replace(report, took={}), option=orjson.OPT_SORT_KEYS)
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _titled(figure: Figure, table: MeasureTable, others: Sequence[MeasureTable], doubts: Sequence[Caveat]) -> Figure:
    title = f"{figure.title}, {table.step}" if len({other.step for other in others}) > 1 else figure.title
    return replace(figure, title=title, caveats=(*figure.caveats, *doubts))


def _measured_here(evidence: Evidence) -> tuple[list[MeasureTable], list[Caveat]]:
    """Return tables of what no step measured, from the last rows, and what could not be measured."""
    present = {table.operator for table in evidence.tables}
    made: list[MeasureTable] = []
    failures: list[Caveat] = []
    for step, frame in evidence.last_rows().items():
        schema = frame.collect_schema()
        by = _groups(evidence, frame, schema)
        for operator, options in _wanted(evidence, schema, by):
            if operator.name in present:
                continue
            try:
                params = operator.params.model_validate_json(orjson.dumps({"by": by, **options}))
                rows = with_margins(frame, options["rewards"]) if "rewards" in options else frame
                table = operator.function(rows, params=params).collect(engine="streaming")
            except (ValueError, TypeError, PolarsError) as error:
                reason = str(error).strip().split("\n")[0]
                failures.append(Caveat("not_measured", f"{operator.name} of step {step} did not work: {reason}.", "note"))
                continue
            made.append(MeasureTable.of(step, operator.name, table, params=options, source=step, made_here=True))
    return made, failures


def _groups(evidence: Evidence, frame: pl.LazyFrame, schema: pl.Schema) -> list[str]:
    """Return the columns that measures are told for: the axes of matrices, and the domain."""
    axes = [axis for axis in evidence.axes if axis in schema]
    if "domain" in schema and "domain" not in axes:
        different = frame.select(pl.col("domain").n_unique()).collect(engine="streaming").item()
        if 1 < different <= _MOST_DOMAINS:
            axes.append("domain")
    return axes[:_MOST_BY]


def _wanted(evidence: Evidence, schema: pl.Schema, by: Sequence[str]) -> Iterator[tuple[Reshape, dict[str, Any]]]:
    """Yield the measures that rows allow, by what the steps before them made, with their options."""
    for step in evidence.steps_of("judge_personas")[:1]:
        columns = {f"{side}_persona": option_of(step, f"{side}_persona") for side in _SIDES}
        if all(f"{column}_flipped" in schema for column in columns.values()):
            yield measure_accuracy, columns
    if evidence.steps_of("compare_personas") and "preferred_persona_flipped" in schema:
        yield measure_preference, {}
    if outcomes := _outcomes(evidence, schema):
        yield measure_wins, {"outcomes": outcomes}
    # Rewards beside a reference, where there are any; else the scores themselves.
    derived = [option_of(step, "into") for step in evidence.steps_of("derive_rewards", "score_pairs")]
    for into in dict.fromkeys(derived):
        margins = with_margins(pl.LazyFrame(schema=schema), str(into)).collect_schema()
        if all(margin_column(str(into), side) in margins for side in _SIDES):
            yield measure_flips, {"rewards": into}
            break
    if all(schema.get(f"{side}_persona") == pl.String for side in _SIDES):
        yield measure_words, {}
    answers = list(evidence.answers(schema))
    if answers:
        # It has twenty measures for each group: of all cells of a large grid they would take most of the time.
        styled = [*(side for side in _SIDES if side in schema), *answers][:12]
        yield measure_style, {"columns": styled, "by": by[:_MOST_STYLE_BY]}


def _outcomes(evidence: Evidence, schema: pl.Schema) -> list[dict[str, str]]:
    """Return what judge_responses judged as outcomes of measure_wins: verdicts on the same two responses belong together."""
    plain: dict[tuple[str, str], dict[str, str]] = {}
    fitted: dict[str, tuple[str, str, str]] = {}
    for step in evidence.steps_of("judge_responses"):
        into = str(option_of(step, "into"))
        if into not in schema:
            continue
        pair = (str(option_of(step, "first")), str(option_of(step, "second")))
        rubric = option_of(step, "rubric")
        persona = option_of(step, "persona")
        if persona is None:
            plain.setdefault(pair, {}).setdefault(rubric if isinstance(rubric, str) else rubric.written, into)
        else:
            fitted.setdefault(into, (*pair, str(persona)))
    made: list[dict[str, str]] = []
    several = len({pair[:2] for pair in fitted.values()}) < len(fitted)
    for into, (first, second, persona) in fitted.items():
        outcome = {"name": f"{first} against {second}{f' for {persona}' if several else ''}", "personalization": into}
        if quality := plain.get((first, second), {}).get("quality"):
            outcome["quality"] = quality
        made.append(outcome)
    paired = {(first, second) for first, second, _ in fitted.values()}
    for (first, second), rubrics in plain.items():
        for rubric, into in rubrics.items():
            if rubric != "quality":
                made.append({"name": f"{first} against {second}, {rubric}", "quality": into})
            elif (first, second) not in paired:
                made.append({"name": f"{first} against {second}", "quality": into})
    return made
