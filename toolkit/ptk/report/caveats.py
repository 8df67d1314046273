"""What a reader must know before believing a figure, told by rule from the numbers behind it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ptk.report.evidence import Evidence, MeasureTable
from ptk.report.parts import Caveat

__all__ = ["SMALL", "holds", "judge_caveats", "line_caveats", "model_caveats", "named"]

SMALL = 30
"""Fewer than these many are told by name: an interval of fewer is too narrow."""
_MOST_FLIPPED = 0.25
_LEVEL = 0.05
_GENERATES = ("generate_responses", "infer_personas", "infer_user_persona")
_JUDGES = ("judge_personas", "judge_responses", "compare_personas")

Row = Mapping[str, Any]


def holds(row: Row, reference: float) -> bool:
    """Return whether a row's interval holds the value that means nothing."""
    return row["low"] is not None and row["high"] is not None and row["low"] <= reference <= row["high"]


def named(names: Sequence[str], most: int = 3) -> str:
    """Return names in a sentence: the first ones, and how many more there are."""
    shown = ", ".join(names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


def line_caveats(lines: Sequence[tuple[str, Row]], reference: float | None = None, what: str = "") -> list[Caveat]:
    """Return the caveats of rows of a table, each with its label: small n, intervals that tell nothing, and their like.

    `reference` is the value that means nothing, and `what` says so, as in `chance (0.5)`.
    """
    known = [(label, row) for label, row in lines if row["value"] is not None]
    made: list[Caveat] = []
    undefined = [label for label, row in lines if row["value"] is None]
    if undefined:
        made.append(Caveat("undefined", f"The rows do not define it for {named(undefined)}.", "note"))
    small = [f"{label} (n {row['n']:,})" for label, row in known if row["n"] < SMALL]
    if small:
        made.append(Caveat("small_n", f"Of few: {named(small)}. Intervals of fewer than {SMALL} are too narrow.", "doubt"))
    bare = [label for label, row in known if row["low"] is None]
    if bare and len(bare) == len(known):
        made.append(
            Caveat(
                "no_interval",
                "There are no intervals: how far chance goes can't be told.",
                "note" if reference is None else "doubt",
            )
        )
    same = [label for label, row in known if row["low"] is not None and row["low"] == row["high"] and row["n"] > 1]
    if same:
        text = f"No two verdicts differ for {named(same)}: the interval is a point. That nothing else was seen does not say that nothing else can be."
        made.append(Caveat("one_point", text, "note"))
    if reference is not None:
        crossing = [label for label, row in known if holds(row, reference) and row["low"] != row["high"]]
        if crossing:
            made.append(
                Caveat(
                    "interval_crosses",
                    f"The interval holds {what} for {len(crossing)} of {len(known)}: {named(crossing)}. Nothing can be said of those either way.",
                    "doubt" if len(crossing) < len(known) else "alarm",
                )
            )
    lucky = [
        label
        for label, row in known
        if row["p_value"] is not None and row["p_adjusted"] is not None and row["p_value"] < _LEVEL <= row["p_adjusted"]
    ]
    if lucky:
        text = f"Below {_LEVEL} alone, but not once all tests of the table count: {named(lucky)}."
        made.append(Caveat("many_tests", text, "doubt"))
    return made


def _whole(tables: Iterable[MeasureTable], measure: str, about: Sequence[str | None]) -> list[tuple[MeasureTable, Row]]:
    """Return the rows of a measure over all rows of its table, or over those of a cell."""
    return [
        (table, row)
        for table in tables
        for row in table.rows
        if row["measure"] == measure and row["about"] in about and row["value"] is not None
        if sum(row[name] is not None for name in table.by)
        == min(sum(other[name] is not None for name in table.by) for other in table.rows)
    ]


def judge_caveats(evidence: Evidence, tables: Sequence[MeasureTable]) -> list[Caveat]:
    """Return what there is to doubt about the judges of a run; it goes with every figure that rests on their verdicts."""
    made: list[Caveat] = []
    judged = evidence.steps_of(*_JUDGES)
    if not judged:
        return made
    accuracies = [table for table in tables if table.operator == "measure_accuracy"]
    for table, row in _whole(accuracies, "accuracy", ["both"]):
        told = (
            f"{row['value']:.2f} ({row['low']:.2f} to {row['high']:.2f})" if row["low"] is not None else f"{row['value']:.2f}"
        )
        if row["high"] is not None and row["high"] < 0.5:
            text = f"In '{table.step}' the judge did worse than chance at telling whose response a persona's is: {told}."
            made.append(Caveat("weaker_than_chance", text, "alarm"))
        elif row["low"] is not None and row["low"] <= 0.5:
            text = f"In '{table.step}' the judge can't be told from chance at finding a persona's response: {told}."
            made.append(Caveat("no_better_than_chance", text, "alarm"))
    agreements = [table for table in tables if any(row["measure"] == "kappa" for row in table.rows)]
    for table, row in _whole(agreements, "kappa", _abouts(agreements)):
        if row["high"] is not None and row["high"] <= 0:
            made.append(
                Caveat(
                    "weaker_than_chance",
                    f"In '{table.step}' the judge agrees less than chance would: kappa {row['value']:.2f}.",
                    "alarm",
                )
            )
        elif row["low"] is not None and row["low"] <= 0:
            made.append(
                Caveat(
                    "no_better_than_chance",
                    f"In '{table.step}' the judge's agreement can't be told from chance: kappa {row['value']:.2f}.",
                    "alarm",
                )
            )
    doubtful = [table for table in tables if table.operator in ("measure_accuracy", "measure_preference", "measure_position")]
    flips = [(t, r) for t, r in _whole(doubtful, "flipped", _abouts(doubtful)) if r["value"] > _MOST_FLIPPED]
    if flips:
        table, row = max(flips, key=lambda item: (item[1]["value"], item[0].step))
        text = f"The judge's verdict changed with the order of the two texts in {row['value']:.0%} of its questions ({table.step}, {row['about']})."
        made.append(Caveat("order_decides", text, "doubt"))
    leaning = [
        (t, r) for t, r in _whole(doubtful, "said_first", _abouts(doubtful)) if r["low"] is not None and not holds(r, 0.5)
    ]
    if leaning:
        table, row = max(leaning, key=lambda item: (abs(item[1]["value"] - 0.5), item[0].step))
        place = "first" if row["value"] > 0.5 else "second"
        share = row["value"] if row["value"] > 0.5 else 1 - row["value"]
        text = f"The judge leans to what stands {place}: {share:.0%} of its verdicts ({table.step}, {row['about']})."
        made.append(Caveat("leans_to_a_place", text, "doubt"))
    models = {item["step"]: item["model"] for item in evidence.lineage["models"]}
    judges = {models.get(step["name"]) for step in judged} - {None}
    own = sorted(str(model) for model in judges & {models.get(step["name"]) for step in evidence.steps_of(*_GENERATES)})
    if own:
        made.append(Caveat("own_judge", f"{named(own)} judges texts that it wrote itself; models favour their own.", "doubt"))
    if not agreements and not evidence.steps_of("mismatch_personas"):
        text = "Nothing in this run says how far the judge can be trusted: it was compared neither with people nor with personas of other rows."
        made.append(Caveat("judge_untested", text, "doubt"))
    return made


def _abouts(tables: Sequence[MeasureTable]) -> list[str | None]:
    return list(dict.fromkeys(row["about"] for table in tables for row in table.rows))


def model_caveats(evidence: Evidence) -> list[Caveat]:
    """Return what there is to know of a run's models: some answer by rule, some are too small for what they are asked."""
    models = sorted({str(item["model"]) for item in evidence.lineage["models"]})
    made: list[Caveat] = []
    if any(model.startswith("scripted/") for model in models):
        made.append(
            Caveat(
                "scripted",
                "A scripted model answered: its answers are made up by a rule, and every number that rests on them says nothing.",
                "alarm",
            )
        )
    if any(model.startswith("bundled/") for model in models):
        made.append(
            Caveat(
                "bundled",
                "The bundled model has 135 million parameters: it shows that the parts work together, and is no judge of anything.",
                "alarm",
            )
        )
    return made
