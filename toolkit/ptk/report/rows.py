"""Figures of rows themselves: how long responses are, how margins spread, and how a model's loss went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ptk.report.caveats import SMALL
from ptk.report.evidence import Evidence, MeasureTable, base_of
from ptk.report.parts import Boxes, Caveat, Figure, Flow, Histograms, Lines, Table
from ptk.text import is_turns, text_of
from ptk.train.derive_rewards import margin_column
from ptk.train.score_pairs import SIDES, Condition, same_persona, score_column

__all__ = ["answer_lengths", "flow", "losses", "margin_spread", "pair_lengths", "with_margins"]

_BINS = 24
_MOST_GROUPS = 24
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_HEADER = ("", "rows", "5%", "25%", "median", "75%", "95%", "mean")


def _words(name: str, dtype: pl.DataType) -> pl.Expr:
    return text_of(name, dtype).str.count_matches(r"\S+").cast(pl.Float64)


def _is_text(dtype: pl.DataType | None) -> bool:
    return dtype == pl.String or is_turns(dtype)


def _five(values: NDArray[np.float64]) -> tuple[float, float, float, float, float]:
    least, first, median, third, most = (float(value) for value in np.quantile(values, _QUANTILES))
    return least, first, median, third, most


def _told(name: str, values: NDArray[np.float64]) -> tuple[str | int | float, ...]:
    return (name, values.size, *(round(value, 2) for value in _five(values)), round(float(values.mean()), 2))


def _few(named: Mapping[str, NDArray[np.float64]]) -> tuple[Caveat, ...]:
    few = [f"{name} ({values.size})" for name, values in named.items() if values.size < SMALL]
    return (Caveat("small_n", f"Of few rows: {', '.join(few[:4])}.", "doubt"),) if few else ()


def _histograms(
    values: Mapping[str, NDArray[np.float64]], axis: str, low: float, high: float, reference: float | None
) -> Histograms:
    edges = np.linspace(low, high, _BINS + 1)
    series = tuple(
        (name, tuple(round(float(share), 6) for share in np.histogram(np.clip(found, low, high), edges)[0] / found.size))
        for name, found in values.items()
    )
    capped = any(bool((found > high).any() or (found < low).any()) for found in values.values())
    return Histograms(tuple(float(edge) for edge in edges), series, axis, reference, capped)


def pair_lengths(evidence: Evidence) -> Figure | None:
    """Return the lengths of chosen and rejected responses, of the step with the most pairs."""
    found: list[tuple[int, str, pl.DataFrame]] = []
    for step, frame in evidence.last_rows().items():
        schema = frame.collect_schema()
        if not all(_is_text(schema.get(side)) for side in ("chosen", "rejected")):
            continue
        once = frame.unique("pair_id", maintain_order=False) if "pair_id" in schema else frame
        lengths = once.select(_words(side, schema[side]).alias(side) for side in ("chosen", "rejected"))
        counted = lengths.drop_nulls().collect(engine="streaming")
        found.append((counted.height, step, counted))
    if not found or max(found, key=lambda item: item[0])[0] == 0:
        return None
    height, step, counted = max(found, key=lambda item: (item[0], item[1]))
    values = {side: np.sort(counted[side].to_numpy()) for side in ("chosen", "rejected")}
    top = max(1.0, float(np.quantile(np.concatenate(list(values.values())), 0.99)))
    longer = int((counted["chosen"] > counted["rejected"]).sum()) / height
    shorter = int((counted["chosen"] < counted["rejected"]).sum()) / height
    medians = {side: float(np.median(found)) for side, found in values.items()}
    says = (
        f"Median words: chosen {medians['chosen']:.0f}, rejected {medians['rejected']:.0f}. The chosen response is the longer one in "
        f"{longer:.0%} of {height:,} pairs, the shorter one in {shorter:.0%}."
    )
    caveats = list(_few(values))
    if max(longer, shorter) > 0.6:
        text = f"Length alone tells chosen from rejected in {max(longer, shorter):.0%} of the pairs: a model may learn that, and a judge reward it."
        caveats.append(Caveat("length_tells", text, "doubt"))
    table = Table(_HEADER, tuple(_told(side, found) for side, found in values.items()))
    chart = _histograms(values, "words in a response", 0.0, top, None)
    return Figure(
        "lengths-pairs", "Length of chosen and rejected responses", says, chart, table, tuple(caveats), f"step {step}"
    )


def answer_lengths(evidence: Evidence) -> list[Figure]:
    """Return the lengths of what models wrote, by what they were given and by cell."""
    made: list[Figure] = []
    for step, frame in evidence.last_rows().items():
        schema = frame.collect_schema()
        answers = {name: given for name, given in evidence.answers(schema).items() if _is_text(schema[name])}
        if not answers:
            continue
        axes = [axis for axis in evidence.axes if axis in schema]
        named = [pl.col(axis).cast(pl.String).alias(f"_{number}") for number, axis in enumerate(axes)]
        lengths = frame.select(*named, *(_words(name, schema[name]).alias(name) for name in answers)).collect(
            engine="streaming"
        )
        groups = [f"_{number}" for number in range(len(axes))]
        values: dict[str, NDArray[np.float64]] = {}
        given_to: dict[str, str] = {}
        parts = lengths.partition_by(groups, as_dict=True) if groups else {(): lengths}
        for cell in sorted(parts, key=str):
            for name, given in answers.items():
                numbers = parts[cell][name].drop_nulls().to_numpy()
                if numbers.size:
                    label = " · ".join([name, *map(str, cell)])
                    values[label], given_to[label] = np.sort(numbers), given
        if not values:
            continue
        chart = Boxes(tuple((name, _five(found)) for name, found in list(values.items())[:_MOST_GROUPS]), "words in a response")
        medians = [f"{name} {np.median(found):.0f}" for name, found in list(values.items())[:4]]
        more = f"; {len(values) - 4} more in the table" if len(values) > 4 else ""
        caveats = list(_few(values))
        if len(values) > _MOST_GROUPS:
            caveats.append(
                Caveat("not_all_drawn", f"{_MOST_GROUPS} of {len(values)} are drawn; the table has them all.", "note")
            )
        rows = tuple((name, given_to[name], *_told(name, found)[1:]) for name, found in values.items())
        table = Table(("response", "given", *_HEADER[1:]), rows)
        title = "Length of responses by persona" if len(made) == 0 else f"Length of responses by persona, {step}"
        says = f"Median words: {'; '.join(medians)}{more}."
        made.append(Figure(f"lengths-{step.replace('_', '-')}", title, says, chart, table, tuple(caveats), f"step {step}"))
    return made


def margin_spread(evidence: Evidence, table: MeasureTable) -> Figure | None:
    """Return how the margins spread that a table of flips is of, where its rows are at hand."""
    frame = evidence.frames.get(table.source or "")
    rewards = str(table.params.get("rewards", "reward"))
    if frame is None:
        return None
    frame = with_margins(frame, rewards)
    schema = frame.collect_schema()
    values: dict[str, NDArray[np.float64]] = {}
    for given in get_args(Condition):
        if (column := margin_column(rewards, given)) in schema:
            numbers = frame.select(pl.col(column).cast(pl.Float64)).collect(engine="streaming")[column].drop_nulls().to_numpy()
            numbers = np.sort(numbers[np.isfinite(numbers)])
            if numbers.size:
                values["given none" if given == "none" else f"given the {given} persona"] = numbers
    if not values:
        return None
    reach = max(1e-6, float(np.quantile(np.abs(np.concatenate(list(values.values()))), 0.98)))
    above = [f"{name} {float((found > 0).mean()):.0%}" for name, found in values.items()]
    says = f"Share of pairs with a margin above 0, where the chosen response is the likelier: {'; '.join(above)}."
    chart = _histograms(values, "margin of the chosen response", -reach, reach, 0.0)
    rows = tuple(_told(name, found) for name, found in values.items())
    note = Caveat(
        "longer_weighs_more", "Margins of whole responses grow with their length: a few long pairs may decide a mean.", "note"
    )
    return Figure(
        f"margin-spread-{table.step.replace('_', '-')}",
        "How margins spread",
        says,
        chart,
        Table(_HEADER, rows),
        (note, *_few(values)),
        f"step {table.source}",
    )


def with_margins(frame: pl.LazyFrame, rewards: str) -> pl.LazyFrame:
    """Return rows with the margins that derive_rewards would make of scores without a reference, where no such step did."""
    schema = frame.collect_schema()
    made = []
    for given in get_args(Condition):
        sides = [score_column(rewards, side, given) for side in SIDES]
        if margin_column(rewards, given) not in schema and all(side in schema for side in sides):
            made.append((pl.col(sides[0]) - pl.col(sides[1])).alias(margin_column(rewards, given)))
    personas = [f"{side}_persona" for side in SIDES]
    if made and f"{rewards}_same_persona" not in schema and all(schema.get(name) == pl.String for name in personas):
        made.append(same_persona(*personas).alias(f"{rewards}_same_persona"))
    return frame.with_columns(made)


def losses(evidence: Evidence) -> list[Figure]:
    """Return the losses of training steps, from facts that list points with `step` or `epoch` and numbers called loss."""
    made = []
    for step in evidence.lineage["steps"]:
        series: dict[str, list[tuple[float, float]]] = {}
        across = "step"
        for value in _lists(step.get("facts")):
            across = "step" if all("step" in point for point in value) else "epoch"
            for point in value:
                for name, number in point.items():
                    if "loss" in name and _is_number(number) and _is_number(point.get(across)):
                        series.setdefault(name, []).append((float(point[across]), float(number)))
        if not series:
            continue
        ends = [f"{name.replace('_', ' ')} {places[0][1]:.3f} to {places[-1][1]:.3f}" for name, places in series.items()]
        rows = tuple(
            (
                name.replace("_", " "),
                len(places),
                round(places[0][1], 5),
                round(min(y for _, y in places), 5),
                round(places[-1][1], 5),
            )
            for name, places in series.items()
        )
        caveats = []
        held_out = {name: places for name, places in series.items() if any(word in name for word in ("eval", "valid"))}
        for name, places in held_out.items():
            least = min(places, key=lambda place: place[1])
            if len(places) > 2 and least[0] < places[-1][0] and places[-1][1] > least[1] * 1.02:
                text = f"{name.replace('_', ' ')} rose again after {across} {least[0]:g}: from there on the model learned its training rows by heart."
                caveats.append(Caveat("overfitting", text, "doubt"))
        if not held_out:
            caveats.append(
                Caveat(
                    "no_held_out_loss",
                    "No loss on held-out rows was kept: whether the model learned by heart can't be told.",
                    "doubt",
                )
            )
        lines = Lines(tuple((name.replace("_", " "), tuple(places)) for name, places in series.items()), across, "loss")
        table = Table(("loss", "points", "first", "least", "last"), rows)
        name = str(step["name"])
        slug = "".join(sign if sign.isalnum() else "-" for sign in name).strip("-").lower()
        made.append(
            Figure(f"loss-{slug}", f"Loss of {name}", f"{'; '.join(ends)}.", lines, table, tuple(caveats), f"step {name}")
        )
    return made


def _lists(facts: Any) -> list[Sequence[Mapping[str, Any]]]:
    if not isinstance(facts, Mapping):
        return []
    found: list[Sequence[Mapping[str, Any]]] = []
    for value in facts.values():
        if isinstance(value, Mapping):
            found += _lists(value)
        elif isinstance(value, (list, tuple)) and value and all(isinstance(item, Mapping) for item in value):
            points = [item for item in value if "step" in item or "epoch" in item]
            if points and any("loss" in name for point in points for name in point):
                found.append(points)
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and bool(np.isfinite(value))


def flow(evidence: Evidence) -> Figure:
    """Return the steps with their counts: how many rows came in, went on, and were set aside, cells of a matrix together."""
    order: dict[str, dict[str, Any]] = {}
    cells: dict[str, list[Mapping[str, Any]]] = {}
    for step in evidence.lineage["steps"]:
        cells.setdefault(base_of(step["name"]), []).append(step)
    for name, members in cells.items():
        own = [step for step in members if step["name"] != name] or members  # what puts cells together sets nothing aside
        counts: dict[str, int] = {}
        flags: dict[str, int] = {}
        for step in own:
            for into, what in ((counts, step["rejected"]), (flags, step["flagged"])):
                for reason, count in what.items():
                    into[reason] = into.get(reason, 0) + count
        order[name] = {
            "operator": own[0]["operator"],
            "cells": len(own),
            "in": sum(step["rows_in"] for step in own),
            "out": sum(step["rows_out"] for step in own),
            "rejected": dict(sorted(counts.items())),
            "flagged": dict(sorted(flags.items())),
        }
    inputs = evidence.inputs()
    edges = tuple((source, name) for name in order for source in sorted(inputs.get(name, ())) if source in order)
    steps = []
    rows = []
    for name, found in order.items():
        lost = sum(found["rejected"].values())
        told = f"{found['out']:,} rows" + (f", {lost:,} set aside" if lost else "")
        steps.append((name, str(found["operator"]), told, lost))
        rows.append(
            (
                name,
                found["operator"],
                found["cells"],
                ", ".join(sorted(inputs.get(name, ()))) or "files",
                found["in"],
                found["out"],
                ", ".join(f"{count:,} {reason}" for reason, count in found["rejected"].items()) or "-",
                ", ".join(f"{count:,} {flag}" for flag, count in found["flagged"].items()) or "-",
            )
        )
    lost = sum(sum(found["rejected"].values()) for found in order.values())
    largest = max(order.items(), key=lambda item: (sum(item[1]["rejected"].values()), item[0]))
    says = f"{len(order)} steps set {lost:,} rows aside" + (f", most of them {largest[0]}." if lost else ".")
    caveats = []
    for name, found in order.items():
        share = sum(found["rejected"].values()) / found["in"] if found["in"] else 0
        if share > 0.2 and found["operator"] not in ("sample_rows", "filter_rows"):
            caveats.append(
                Caveat(
                    "many_rejects",
                    f"{name} set {share:.0%} of its rows aside: what follows is about the others alone.",
                    "doubt",
                )
            )
        flagged = sum(found["flagged"].values()) / found["out"] if found["out"] else 0
        if flagged > 0.2:
            caveats.append(
                Caveat(
                    "many_flags",
                    f"{name} flagged {sum(found['flagged'].values()):,} times among {found['out']:,} rows.",
                    "doubt",
                )
            )
    header = ("step", "operator", "cells", "takes from", "rows in", "rows out", "set aside", "flagged")
    return Figure(
        "flow",
        "Steps and their counts",
        says,
        Flow(tuple(steps), edges),
        Table(header, tuple(rows)),
        tuple(caveats),
        "all steps",
    )
