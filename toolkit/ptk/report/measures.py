"""Figures of tables of measures: what is drawn of each operator's table, and what it says in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ptk.report.caveats import Row, holds, line_caveats
from ptk.report.evidence import MeasureTable
from ptk.report.parts import Caveat, Chart, Figure, Heat, HeatCell, Mark, Points, Stack, Stacks, Table

__all__ = ["JUDGED", "Finding", "doubts_of", "figures_of", "findings_of", "group_name", "shown"]

JUDGED = ("measure_preference", "measure_wins", "control_length", "compare_outputs", "compare_groups")
"""Operators whose measures are made of judges' verdicts: what there is to doubt of the judge goes with their figures."""
WHOLE = "all rows"
"""What a row is told for that is told for no group."""
_MOST_MARKS = 48
_CHANCE = (0.5, "chance (0.5)")
_NO_DIFFERENCE = (0.0, "no difference (0)")

Finding = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Kind:
    """One figure of a table: which of its measures, and the value that means nothing."""

    name: str
    title: str
    measures: tuple[str, ...]
    axis: str
    reference: tuple[float, str] | None = None
    limits: tuple[float, float] | None = None
    bars: bool = False
    by_measure: bool = False
    """Whether each measure has a mark of its own colour, in place of each thing that it is about."""


def group_name(row: Row, by: Sequence[str]) -> str:
    """Return the values that a row is told for; of some of several columns with their names, since a value may be called `all`."""
    values = [(name, str(row[name])) for name in by if row[name] is not None]
    if not values:
        return WHOLE
    return " · ".join(value if len(values) == len(by) else f"{name} {value}" for name, value in values)


def shown(table: MeasureTable, rows: Sequence[Row], most: int = _MOST_MARKS) -> list[Row]:
    """Return what is drawn of rows: over all, over each value alone, and over the finest groups, as many levels as there is room for."""
    levels: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        levels.setdefault(tuple(name for name in table.by if row[name] is not None), []).append(row)
    sizes = sorted(levels, key=lambda level: (len(level), [table.by.index(name) for name in level]))
    if not sizes:
        return []
    least, largest = len(sizes[0]), len(sizes[-1])
    wanted = [level for level in sizes if len(level) in (least, least + 1)]
    wanted += [level for level in sizes if len(level) == largest and level not in wanted]
    found: list[Row] = []
    for level in wanted:
        if not found or len(found) + len(levels[level]) <= most:
            found += levels[level]
    return found


def _number(value: Any) -> str:
    return "-" if value is None else f"{value:.3g}" if abs(value) >= 100 else f"{value:.2f}"


def told(row: Row) -> str:
    """Return a value with its interval in words."""
    interval = f" ({_number(row['low'])} to {_number(row['high'])})" if row["low"] is not None else ""
    return f"{_number(row['value'])}{interval}"


def table_of(table: MeasureTable, rows: Sequence[Row], extra: Sequence[str] = ()) -> Table:
    """Return rows of measures as they stand below a figure."""
    by = [name for name in table.by if any(row[name] is not None for row in rows)]
    header = ("measure", "about", *by, *extra, "value", "low", "high", "n", "p", "p adjusted")
    made = [
        (
            row["measure"],
            row["about"],
            *(row[name] if row[name] is not None else "(all)" for name in by),
            *(row[name] for name in extra),
            *(_round(row[name]) for name in ("value", "low", "high")),
            row["n"],
            *(_round(row[name]) for name in ("p_value", "p_adjusted")),
        )
        for row in rows
    ]
    empty = [all(line[at] is None for line in made) for at in range(len(header))]
    kept = [at for at in range(len(header)) if not empty[at] or header[at] in ("value", "n")]
    return Table(tuple(header[at] for at in kept), tuple(tuple(line[at] for at in kept) for line in made))


def _round(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def _points(table: MeasureTable, kind: Kind) -> Figure | None:
    rows = [row for row in table.rows if row["measure"] in kind.measures]
    # What is drawn of one measure is drawn of all: their marks stand side by side.
    abouts = list(dict.fromkeys(row["about"] for row in rows))
    drawn = [row for row in shown(table, rows) if row["value"] is not None]
    if not drawn:
        return None
    several = len({row["measure"] for row in drawn}) > 1

    short = _without_beginning(abouts)

    def series(row: Row) -> str:
        if kind.by_measure:
            return str(row["measure"]).replace("_", " ") if several else ""
        return short[row["about"]] if len(abouts) > 1 else ""

    def label(row: Row) -> str:
        group = group_name(row, table.by)
        if kind.by_measure and len(abouts) > 1:
            return f"{short[row['about']]} · {group}" if group != WHOLE else short[row["about"]]
        return group

    marks = tuple(Mark(label(row), row["value"], row["low"], row["high"], series(row)) for row in drawn)
    if len({mark.series for mark in marks}) > 6:  # colours that can't be told apart: each has a line of its own
        marks = tuple(
            Mark(f"{mark.series} · {mark.label}" if mark.label != WHOLE else mark.series, mark.value, mark.low, mark.high)
            for mark in marks
        )
    reference = kind.reference or (None, "")
    chart = Points(marks, kind.axis, reference[0], reference[1], kind.limits, kind.bars)
    return _figure(table, kind, chart, drawn, rows, reference[0], reference[1])


def _figure(
    table: MeasureTable,
    kind: Kind,
    chart: Chart | None,
    drawn: Sequence[Row],
    rows: Sequence[Row],
    reference: float | None,
    what: str,
    per_mark: int = 1,
) -> Figure:
    names = [_whole_name(row, table.by) for row in drawn]
    lines = "; ".join(f"{name} {told(row)}, n {row['n']:,}" for name, row in list(zip(names, drawn, strict=True))[:4])
    more = f"; {len(drawn) - 4} more in the table" if len(drawn) > 4 else ""
    found = line_caveats(list(zip(names, drawn, strict=True)), reference, what)
    defined = sum(row["value"] is not None for row in rows)
    if defined > len(drawn) * per_mark:
        found.append(
            Caveat("not_all_drawn", f"{len(drawn) * per_mark} of {defined} rows are drawn; the table goes on.", "note")
        )
    source = f"{table.step} of {table.source}" if table.operator == "study" else f"step {table.step} ({table.operator})"
    if table.made_here:
        source = f"measured for this report by {table.operator} from the rows of step {table.source}, as no step of the run did"
    return Figure(
        f"{kind.name}-{table.step.replace('_', '-')}",
        kind.title,
        f"{lines}{more}.",
        chart,
        table_of(table, rows),
        tuple(found),
        source,
    )


def _without_beginning(abouts: Sequence[str | None]) -> dict[str | None, str]:
    """Return what rows are about without an outcome's name that all of them begin with: of `told/quality`, `quality`."""
    named = {about: str(about or "") for about in abouts}
    beginnings = {name.rpartition("/")[0] for name in named.values()}
    if len(named) > 1 and len(beginnings) == 1:
        return {about: name.rpartition("/")[2] for about, name in named.items()}
    return named


def _whole_name(row: Row, by: Sequence[str]) -> str:
    group = group_name(row, by)
    about = str(row["about"]) if row["about"] else str(row["measure"]).replace("_", " ")
    return about if group == WHOLE else f"{about} · {group}"


def _stacks(table: MeasureTable, kind: Kind, names: tuple[str, str, str]) -> Figure | None:
    parts = ("wins", "ties", "losses")
    groups: dict[tuple[Any, ...], dict[str, Row]] = {}
    rows = [row for row in table.rows if row["measure"] in parts]
    for row in shown(table, rows, len(parts) * _MOST_MARKS):
        groups.setdefault((row["about"], *(row[name] for name in table.by)), {})[row["measure"]] = row
    whole = {
        place: found
        for place, found in groups.items()
        if len(found) == len(parts) and all(row["value"] is not None for row in found.values())
    }
    if not whole:
        return None
    stacks = []
    abouts = list(dict.fromkeys(place[0] for place in whole))
    short = _without_beginning(abouts)
    for place in sorted(whole, key=lambda place: abouts.index(place[0])):
        first = whole[place]["wins"]
        label = group_name(first, table.by)
        if len(abouts) > 1:
            label = short[place[0]] if label == WHOLE else f"{short[place[0]]} · {label}"
        stacks.append(Stack(label, tuple(whole[place][part]["value"] for part in parts)))
    chart = Stacks(names, tuple(stacks[:_MOST_MARKS]), kind.axis)
    drawn = [found["wins"] for found in whole.values()][:_MOST_MARKS]
    figure = _figure(table, kind, chart, drawn, rows, None, "", per_mark=len(parts))
    said = "; ".join(
        f"{stack.label}: " + ", ".join(f"{name} {share:.0%}" for name, share in zip(names, stack.shares, strict=True))
        for stack in stacks[:4]
    )
    more = f"; {len(stacks) - 4} more in the table" if len(stacks) > 4 else ""
    return Figure(figure.name, kind.title, f"{said}{more}.", chart, figure.table, figure.caveats, figure.made_of)


def _heat(table: MeasureTable) -> Figure | None:
    rows = [row for row in table.rows if row["measure"] == "delta_pq"]
    most = max((sum(row[name] is not None for name in table.by) for row in rows), default=0)
    finest = [row for row in rows if sum(row[name] is not None for name in table.by) == most and row["value"] is not None]
    if not finest:
        return None
    by = [name for name in table.by if any(row[name] is not None for row in finest)]
    abouts = list(dict.fromkeys(row["about"] for row in finest))
    down, across = (by[:-1], by[-1:]) if len(by) > 1 else (by, [])

    def column(row: Row) -> str:
        return " · ".join(
            [*(str(row[name]) for name in across), *([str(row["about"])] if len(abouts) > 1 or not across else [])]
        )

    def line(row: Row) -> str:
        return " · ".join(str(row[name]) for name in down) or "all"

    columns, lines = sorted({column(row) for row in finest}), sorted({line(row) for row in finest})
    place = {(line(row), column(row)): row for row in finest}
    cells = tuple(
        tuple(
            HeatCell(round(place[at, to]["value"], 6), place[at, to]["low"] is None or holds(place[at, to], 0.0))
            if (at, to) in place
            else None
            for to in columns
        )
        for at in lines
    )
    chart = Heat(tuple(lines), tuple(columns), cells, "Delta PQ x 100; in brackets: the interval holds 0")
    kind = Kind("delta-pq", "Delta PQ over the grid", ("delta_pq",), "Delta PQ")
    best = max(finest, key=lambda row: (row["value"], row["name"]))
    worst = min(finest, key=lambda row: (row["value"], row["name"]))
    figure = _figure(table, kind, chart, finest, rows, *_NO_DIFFERENCE)
    said = (
        f"Highest: {_whole_name(best, table.by)} {told(best)}; lowest: {_whole_name(worst, table.by)} {told(worst)}; of {len(finest)}. "
        "1 would be every verdict won on both rubrics, -1 every verdict lost."
    )
    return Figure(figure.name, kind.title, said, chart, figure.table, figure.caveats, figure.made_of)


def _words(table: MeasureTable) -> Iterator[Figure]:
    for measure, title, axis in (
        ("log_odds", "Words that tell the sides apart, by log-odds", "log-odds for a word's side, with 95% interval"),
        ("salience", "Words that tell the sides apart, by share", "share of the word's occurrences on its side"),
    ):
        rows = [row for row in table.rows if row["measure"] == measure]
        base = [row for row in rows if all(row[name] is None for name in table.by)] or rows
        # One pair of colours: where there are groups, each has its rows in the table.
        drawn = [row for row in base if row["rank"] is not None and row["rank"] <= 10 and row["value"] is not None][:40]
        if not drawn:
            continue
        drawn.sort(key=lambda row: (str(row["side"]), row["rank"], group_name(row, table.by)))
        marks = tuple(
            Mark(
                str(row["word"]) if group_name(row, table.by) == WHOLE else f"{row['word']} · {group_name(row, table.by)}",
                row["value"],
                row["low"],
                row["high"],
                str(row["side"]),
            )
            for row in drawn
        )
        reference = _NO_DIFFERENCE if measure == "log_odds" else _CHANCE
        kind = Kind(f"words-{measure.replace('_', '-')}", title, (measure,), axis)
        chart = Points(marks, axis, *reference, (0, 1) if measure == "salience" else None)
        figure = _figure(table, kind, chart, drawn, rows, *reference)
        said = " ".join(
            f"{side.capitalize()}: {', '.join(str(row['word']) for row in drawn if row['side'] == side) or 'none'}."
            for side in ("chosen", "rejected")
        )
        shown_rows = table_of(table, rows, ("rank",))
        yield Figure(figure.name, title, said, chart, shown_rows, figure.caveats, figure.made_of)


def _words_by_group(table: MeasureTable) -> Figure | None:
    """Return the first words of each side, a row for each group: the table without a drawing, as there are many groups of few words."""
    rows = [row for row in table.rows if row["measure"] == "salience" and row["rank"] is not None and row["rank"] <= 10]
    groups: dict[str, dict[str, list[str]]] = {}
    for row in sorted(rows, key=lambda row: row["rank"]):
        words = groups.setdefault(group_name(row, table.by), {"chosen": [], "rejected": []})
        words[str(row["side"])].append(f"{row['word']} {row['value']:.2f}")
    if len(groups) < 2:
        return None
    lines = tuple(
        (name, ", ".join(words["chosen"]) or None, ", ".join(words["rejected"]) or None)
        for name, words in sorted(groups.items())
    )
    kind = Kind("words-by-group", "Words that tell the sides apart, by group", ("salience",), "")
    figure = _figure(table, kind, None, rows, rows, *_CHANCE)
    shown_rows = Table(("of", "chosen side", "rejected side"), lines)
    says = f"The words whose share on their side is highest, with that share, for {len(groups)} groups."
    return Figure(figure.name, kind.title, says, None, shown_rows, figure.caveats, figure.made_of)


_KINDS: Mapping[str, tuple[Kind, ...]] = {
    "measure_accuracy": (
        Kind(
            "persona-accuracy",
            "Accuracy of inferred personas",
            ("accuracy",),
            "share of judgements that find the persona's own response",
            _CHANCE,
            (0, 1),
            bars=True,
        ),
    ),
    "measure_preference": (
        Kind(
            "persona-win-rate",
            "How often the chosen persona is preferred, ties left out",
            ("win_rate",),
            "wins / (wins + losses)",
            _CHANCE,
            (0, 1),
        ),
    ),
    "measure_wins": (Kind("win-rates", "Win rates", ("win_rate",), "wins / (wins + losses)", _CHANCE, (0, 1)),),
    "control_length": (
        Kind(
            "win-rates-equal-length",
            "Win rates as they would be at equal length",
            ("win_rate", "length_controlled_win_rate"),
            "win rate",
            _CHANCE,
            (0, 1),
            by_measure=True,
        ),
    ),
    "measure_flips": (
        Kind(
            "persona-flips",
            "Does the preference follow the persona",
            ("flips", "follows_persona", "prefers_chosen", "shifts"),
            "share of pairs",
            None,
            (0, 1),
            by_measure=True,
        ),
        Kind(
            "margins",
            "Margins by persona",
            ("margin", "shift_size"),
            "mean margin of the chosen response",
            (0.0, "neither is likelier (0)"),
        ),
    ),
    "measure_agreement": (
        Kind(
            "judge-agreement",
            "How far the judge agrees with people",
            ("agreement", "agreement_without_ties", "kappa", "kappa_without_ties", "kappa_linear", "kappa_quadratic"),
            "share, or kappa",
            (0.0, "chance (0, for kappa)"),
            by_measure=True,
        ),
    ),
    "measure_diversity": (
        Kind(
            "diversity",
            "How many different personas",
            ("distinct_personas", "distinct_1", "distinct_2", "coverage"),
            "share",
            None,
            (0, 1),
            by_measure=True,
        ),
    ),
    "measure_style": (
        Kind("style-words", "Length by column", ("words",), "mean words", by_measure=True),
        Kind("style-lists", "Items of lists by column", ("list_items",), "mean items", by_measure=True),
        Kind("style-hedges", "Hedging by column", ("hedges_per_100_words",), "hedges in 100 words", by_measure=True),
        Kind("style-readability", "Readability by column", ("readability",), "automated readability index", by_measure=True),
        Kind("style-shift", "How length shifts", ("shift_words",), "mean difference in words", _NO_DIFFERENCE, by_measure=True),
    ),
    "compare_outputs": (
        Kind(
            "difference",
            "Two outputs compared",
            ("difference",),
            "mean difference, left - right",
            _NO_DIFFERENCE,
            by_measure=True,
        ),
    ),
    "compare_groups": (
        Kind("differences", "Every two compared", ("difference",), "mean difference", _NO_DIFFERENCE, by_measure=True),
    ),
    "study": (
        Kind("people-ratings", "Ratings by people", ("mean_rating",), "mean rating, 1 to 5", None, (1, 5), by_measure=True),
        Kind(
            "people-differences",
            "Ratings compared",
            ("difference",),
            "mean difference of one person's ratings",
            _NO_DIFFERENCE,
            by_measure=True,
        ),
        Kind("people-choices", "Choices of people", ("win_rate",), "wins / (wins + losses)", _CHANCE, (0, 1), by_measure=True),
        Kind(
            "people-judge",
            "How far the judge agrees with people",
            ("agreement", "agreement_without_ties", "kappa", "kappa_without_ties"),
            "share, or kappa",
            (0.0, "chance (0, for kappa)"),
            by_measure=True,
        ),
        Kind(
            "people-agreement", "How far people agree", ("alpha",), "Krippendorff's alpha", (0.0, "chance (0)"), by_measure=True
        ),
    ),
}


_DOUBTS = (
    Kind(
        "judge-place",
        "Does the judge lean to a place",
        ("said_first",),
        "share of verdicts for what stood first",
        _CHANCE,
        (0, 1),
    ),
    Kind(
        "judge-flips",
        "How often the order decides",
        ("flipped",),
        "share of questions whose verdict changed with the order",
        None,
        (0, 1),
    ),
)
_DOUBTED = ("measure_accuracy", "measure_preference", "measure_position")


def doubts_of(table: MeasureTable) -> list[Figure]:
    """Return the figures of how far a judge's verdicts depend on the places of the texts."""
    made = (_points(table, kind) for kind in _DOUBTS) if table.operator in _DOUBTED else ()
    return [figure for figure in made if figure is not None]


def figures_of(table: MeasureTable) -> list[Figure]:
    """Return the figures of a table."""
    made: list[Figure | None] = []
    if table.operator == "measure_preference":
        kind = Kind("persona-preference", "Preference between the two personas", (), "share of verdicts")
        made.append(_stacks(table, kind, ("chosen persona", "tie", "rejected persona")))
    if table.operator == "measure_wins":
        made.append(_heat(table))
        kind = Kind("outcomes", "Wins, ties and losses", (), "share of verdicts")
        made.append(_stacks(table, kind, ("wins", "ties", "losses")))
    if table.operator == "study":
        kind = Kind("people-outcomes", "What people chose", (), "share of choices")
        made.append(_stacks(table, kind, ("wins", "ties", "losses")))
    if table.operator == "measure_words":
        made.extend(_words(table))
        made.append(_words_by_group(table))
    made.extend(_points(table, kind) for kind in _KINDS.get(table.operator, ()))
    return [figure for figure in made if figure is not None]


_SENTENCES: Mapping[tuple[str, str], tuple[str, float, str, str, str]] = {
    ("measure_accuracy", "accuracy"): (
        "The judge finds the right response from a persona ({about}) in {told} of {n} judgements",
        0.5,
        "more often than chance",
        "less often than chance",
        "chance would do as well",
    ),
    ("measure_preference", "win_rate"): (
        "The chosen persona is preferred in {told} of {n} decided verdicts",
        0.5,
        "more often than the rejected one",
        "less often than the rejected one",
        "neither is preferred for certain",
    ),
    ("measure_wins", "win_rate"): (
        "Win rate, {about}: {told} of {n} decided verdicts",
        0.5,
        "better",
        "worse",
        "no difference can be told",
    ),
    ("measure_wins", "delta_pq"): (
        "Delta PQ, {about}: {told}, from {n} rows",
        0.0,
        "better on quality and personalization together",
        "worse on quality and personalization together",
        "no difference can be told",
    ),
    ("measure_flips", "shift_size"): (
        "A persona moves the margin by {told} over {n} pairs",
        0.0,
        "to its own side",
        "to the other side",
        "it may have no effect",
    ),
    ("measure_agreement", "kappa"): (
        "The judge agrees with people by a kappa of {told} over {n} labels",
        0.0,
        "more than chance gives",
        "less than chance gives",
        "chance would do as well",
    ),
    ("compare_outputs", "difference"): (
        "{step}, left less right: {told} over {n} rows",
        0.0,
        "left is higher",
        "right is higher",
        "no difference can be told",
    ),
    ("study", "kappa"): (
        "The judge agrees with people, {about}, by a kappa of {told} over {n} rows",
        0.0,
        "more than chance gives",
        "less than chance gives",
        "chance would do as well",
    ),
    ("study", "win_rate"): (
        "People, {about}: {told} of {n} decided choices",
        0.5,
        "better",
        "worse",
        "no difference can be told",
    ),
}


def findings_of(table: MeasureTable, figures: Sequence[Figure]) -> list[Finding]:
    """Return what a table says over all of its rows, a sentence for each, with the name of the figure that shows it."""
    made: list[Finding] = []
    least = min((sum(row[name] is not None for name in table.by) for row in table.rows), default=0)
    for row in table.rows:
        found = _SENTENCES.get((table.operator, row["measure"]))
        if found is None or row["value"] is None or sum(row[name] is not None for name in table.by) > least:
            continue
        sentence, reference, above, below, neither = found
        words = neither if row["low"] is None or holds(row, reference) else above if row["value"] > reference else below
        if row["n"] == 0:
            words = "every one was a tie, which by definition is this"
        elif row["low"] is None:
            words = "without an interval, so chance can't be ruled out"
        said = sentence.format(step=table.step, about=row["about"], told=told(row), n=f"{row['n']:,}")
        group = group_name(row, table.by)
        shown_in = _shown_in(table, row["measure"], figures)
        made.append((f"{said}{f' ({group})' if group != WHOLE else ''}: {words}.", shown_in))
    return made


def _shown_in(table: MeasureTable, measure: str, figures: Sequence[Figure]) -> str:
    for figure in figures:
        if any(line and line[0] == measure for line in figure.table.rows):
            return figure.name
    return figures[0].name if figures else ""
