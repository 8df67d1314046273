"""Draws charts with matplotlib, as SVG or PNG. The same chart gives the same bytes."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ptk.report.parts import Boxes, Chart, Flow, Heat, Histograms, Lines, Points, Stacks
from ptk.site.graph import Node, drawn

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

__all__ = ["png", "svg"]

_WIDTH = 6.4
"""Inches of 72 units each in SVG."""
_INK, _QUIET, _RULE, _PAPER = "#1a1d24", "#5a6272", "#d9dde4", "#ffffff"
_SERIES = ("#3b6fd4", "#c2571a", "#18794e", "#7a4bbd", "#8a6d00", "#4c7f8f")
"""Told apart by people who do not see red and green alike; series differ in their mark too."""
_TIE = "#6b7484"
_ON = "#fefefe"
"""Letters on a bar."""
_MARKS = ("o", "s", "D", "^", "v", "P")
_THEME = {
    _INK: "var(--ink)",
    _QUIET: "var(--quiet)",
    _RULE: "var(--rule)",
    _PAPER: "var(--card)",
    _TIE: "var(--tie)",
    _ON: "var(--on)",
    **{colour: f"var(--series-{number})" for number, colour in enumerate(_SERIES)},
}
_NAME = 42
"""The most characters of a label."""


def svg(chart: Chart, name: str, *, themed: bool) -> str:
    """Return the chart as SVG; a themed one is part of a page and takes its colours and its letters from there.

    `name` keeps what the drawing refers to apart from other drawings of the page.
    """
    with _drawn(chart) as drawing:
        out = io.StringIO()
        drawing.savefig(
            out,
            format="svg",
            bbox_inches="tight",
            pad_inches=0.06,
            metadata={"Date": None, "Creator": None},
            transparent=themed,
        )
    text = out.getvalue()
    if not themed:
        return text
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    used = set(re.findall(r"(?:href=\"#|url\(#)([^\")]+)", text))
    text = re.sub(r' id="([^"]+)"', lambda found: f' id="{name}-{found[1]}"' if found[1] in used else "", text)
    text = re.sub(r"(href=\"#|url\(#)", rf"\g<1>{name}-", text)
    text = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", text)
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)
    opening = re.search(r"<svg [^>]*>", text)
    assert opening is not None
    kept = re.findall(r'(?:viewBox|width|height)="[^"]*"' if isinstance(chart, Flow) else r'viewBox="[^"]*"', opening[0])
    text = f'<svg {" ".join(kept)} xmlns:xlink="http://www.w3.org/1999/xlink">{text[opening.end() :]}'
    for colour, theme in _THEME.items():
        text = text.replace(colour, theme)
    return re.sub(r"\n\s*", "\n", text)


def png(chart: Chart) -> bytes:
    """Return the chart as a PNG of about 1,000 pixels' width."""
    with _drawn(chart) as drawing:
        out = io.BytesIO()
        drawing.savefig(out, format="png", dpi=160, bbox_inches="tight", pad_inches=0.06, metadata={"Software": None})
    return out.getvalue()


@contextmanager
def _drawn(chart: Chart) -> Iterator[Drawing]:
    import matplotlib as mpl
    from matplotlib.figure import Figure as Drawing

    settings: dict[str, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "ptk",
        "font.family": "DejaVu Sans",
        "font.size": 9,
        "text.color": _INK,
        "axes.labelcolor": _QUIET,
        "axes.edgecolor": _RULE,
        "axes.facecolor": "none",
        "figure.facecolor": _PAPER,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        "axes.axisbelow": True,
        "axes.grid": True,
        "axes.grid.axis": "x",
        "grid.color": _RULE,
        "grid.linewidth": 0.6,
        "xtick.color": _QUIET,
        "ytick.color": _RULE,
        "ytick.labelcolor": _INK,
        "ytick.left": False,
        "legend.frameon": False,
        "legend.fontsize": 8.5,
        "axes.unicode_minus": False,
        "text.parse_math": False,
        "path.simplify": True,
    }
    with mpl.rc_context(settings):
        drawing = Drawing(figsize=(_WIDTH, _height(chart)))
        axes = drawing.add_subplot()
        _DRAW[type(chart)](axes, chart)
        yield drawing


def _height(chart: Chart) -> float:
    match chart:
        case Points(marks):
            labels = {mark.label for mark in marks}
            return 0.9 + max(0.24 * max(2, len(labels)), 0.13 * len(marks))
        case Stacks(_, stacks):
            return 0.9 + 0.3 * max(1, len(stacks))
        case Heat(rows):
            return 1.0 + 0.34 * len(rows)
        case Boxes(boxes):
            return 0.7 + 0.3 * max(1, len(boxes))
        case _:
            return 2.7


def _shortened(label: str) -> str:
    """Return a label that has room: of a long one its beginning and its end, where labels mostly differ."""
    return label if len(label) <= _NAME else f"{label[: _NAME // 2]}…{label[len(label) - _NAME // 2 + 1 :]}"


def _rows(axes: Axes, labels: list[str]) -> None:
    axes.set_yticks(range(len(labels)), [_shortened(label) for label in labels])
    axes.set_ylim(len(labels) - 0.4, -0.6)


def _legend(axes: Axes, count: int) -> None:
    """A line above the chart: beside it there is no room on a phone."""
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=min(count, 4), borderaxespad=0.2, handlelength=1.2)


def _points(axes: Axes, chart: Points) -> None:
    labels = list(dict.fromkeys(mark.label for mark in chart.marks))
    series = list(dict.fromkeys(mark.series for mark in chart.marks))
    place = {label: number for number, label in enumerate(labels)}
    if chart.limits:
        axes.set_xlim(*chart.limits)
    if chart.reference is not None:
        axes.axvline(chart.reference, color=_INK, linewidth=1.1, linestyle=(0, (4, 3)), zorder=1.5)
    # Marks of one label stand around it; most labels have one of each series.
    beside = {label: [mark.series for mark in chart.marks if mark.label == label] for label in labels}
    room = 0.76 / max(map(len, beside.values()))
    for number, name in enumerate(series):
        marks = [mark for mark in chart.marks if mark.series == name]
        at = [place[mark.label] + (beside[mark.label].index(name) - (len(beside[mark.label]) - 1) / 2) * room for mark in marks]
        colour = _SERIES[number % len(_SERIES)]
        values = [mark.value for mark in marks]
        known = [(y, mark) for y, mark in zip(at, marks, strict=True) if mark.low is not None and mark.high is not None]
        if chart.bars:
            axes.barh(at, values, height=room * 0.8, color=colour, alpha=0.85, label=name or None)
        if known:
            axes.hlines(
                [y for y, _ in known],
                [mark.low or 0.0 for _, mark in known],
                [mark.high or 0.0 for _, mark in known],
                color=_INK if chart.bars else colour,
                linewidth=1.5,
            )
        if not chart.bars:
            axes.plot(
                values,
                at,
                linestyle="none",
                marker=_MARKS[number % len(_MARKS)],
                markersize=5,
                color=colour,
                label=name or None,
                clip_on=False,  # a share of 0 or 1 is drawn whole
                zorder=3,
            )
    _rows(axes, labels)
    axes.set_xlabel(chart.axis + (f"; dashed: {chart.reference_name}" if chart.reference_name else ""))
    if series != [""]:
        _legend(axes, len(series))


def _stacks(axes: Axes, chart: Stacks) -> None:
    colours = (_SERIES[0], _TIE, _SERIES[1])
    at = range(len(chart.stacks))
    before = [0.0] * len(chart.stacks)
    for number, name in enumerate(chart.parts):
        shares = [stack.shares[number] for stack in chart.stacks]
        axes.barh(at, shares, left=before, height=0.68, color=colours[number % 3], label=name)
        for y, (start, share) in enumerate(zip(before, shares, strict=True)):
            if share >= 0.08:
                axes.text(start + share / 2, y, f"{share:.0%}", ha="center", va="center", fontsize=8, color=_ON, weight="bold")
        before = [start + share for start, share in zip(before, shares, strict=True)]
    axes.set_xlim(0, 1)
    axes.set_xlabel(chart.axis)
    _rows(axes, [stack.label for stack in chart.stacks])
    _legend(axes, len(chart.parts))


def _heat(axes: Axes, chart: Heat) -> None:
    from matplotlib.colors import to_hex
    from matplotlib.patches import Rectangle

    most = max([abs(cell.value) for row in chart.cells for cell in row if cell is not None] + [0.05])
    axes.grid(visible=False)
    for y, row in enumerate(chart.cells):
        for x, cell in enumerate(row):
            if cell is None:
                axes.text(x, y, "-", ha="center", va="center", color=_QUIET)
                continue
            strength = min(1.0, abs(cell.value) / most)
            end = (0.12, 0.33, 0.68) if cell.value >= 0 else (0.66, 0.27, 0.05)
            shade = tuple(0.955 + (part - 0.955) * strength for part in end)
            axes.add_patch(Rectangle((x - 0.48, y - 0.46), 0.96, 0.92, facecolor=to_hex(shade), linewidth=0))
            text = f"{100 * cell.value:+.1f}"
            # Dark letters on light shades and the other way round; doubtful ones stand in brackets.
            axes.text(
                x,
                y,
                f"({text})" if cell.doubtful else text,
                ha="center",
                va="center",
                fontsize=8.5,
                color="#fdfdfd" if strength > 0.55 else "#16181d",
                weight="normal" if cell.doubtful else "bold",
            )
    axes.set_xlim(-0.5, len(chart.columns) - 0.5)
    axes.xaxis.tick_top()
    turned = len(chart.columns) > 4 or max(len(name) for name in chart.columns) > 14
    axes.set_xticks(
        range(len(chart.columns)),
        [_shortened(name) for name in chart.columns],
        rotation=30 if turned else 0,
        ha="left" if turned else "center",
        rotation_mode="anchor",
    )
    axes.tick_params(axis="x", length=0, labelcolor=_INK)
    for side in axes.spines.values():
        side.set_visible(False)
    _rows(axes, list(chart.rows))
    axes.set_ylim(len(chart.rows) - 0.5, -0.5)
    axes.set_xlabel(chart.axis)


def _histograms(axes: Axes, chart: Histograms) -> None:
    axes.grid(visible=True, axis="y")
    axes.grid(visible=False, axis="x")
    for number, (name, shares) in enumerate(chart.series):
        colour = _SERIES[number % len(_SERIES)]
        axes.stairs(shares, chart.edges, fill=True, color=colour, alpha=0.22)
        axes.stairs(
            shares, chart.edges, color=colour, linewidth=1.5, label=name, linestyle=("-", (0, (5, 2)), (0, (1, 1)))[number % 3]
        )
    if chart.reference is not None:
        axes.axvline(chart.reference, color=_INK, linewidth=1.1, linestyle=(0, (4, 3)))
    axes.set_xlim(chart.edges[0], chart.edges[-1])
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.tick_params(axis="y", labelcolor=_QUIET)
    axes.set_xlabel(chart.axis + ("; the last range holds all beyond it" if chart.capped else ""))
    _legend(axes, len(chart.series))


def _boxes(axes: Axes, chart: Boxes) -> None:
    for y, (_, (least, first, median, third, most)) in enumerate(chart.boxes):
        axes.hlines(y, least, most, color=_SERIES[0], linewidth=1.2)
        axes.barh(y, max(third - first, 1e-9), left=first, height=0.5, color=_SERIES[0], alpha=0.5)
        axes.vlines(median, y - 0.25, y + 0.25, color=_INK, linewidth=2)
    _rows(axes, [label for label, _ in chart.boxes])
    axes.set_xlim(left=min(0.0, *(five[0] for _, five in chart.boxes)))
    axes.set_xlabel(chart.axis)


def _lines(axes: Axes, chart: Lines) -> None:
    axes.grid(visible=True, axis="both")
    for number, (name, places) in enumerate(chart.series):
        axes.plot(
            [x for x, _ in places],
            [y for _, y in places],
            color=_SERIES[number % len(_SERIES)],
            linewidth=1.5,
            marker=_MARKS[number % len(_MARKS)],
            markersize=3 if len(places) <= 60 else 0,
            label=name,
        )
    axes.tick_params(axis="y", labelcolor=_QUIET)
    axes.set_xlabel(chart.across)
    axes.set_title(chart.axis, loc="right", fontsize=8.5, color=_QUIET)
    _legend(axes, len(chart.series))


def _flow(axes: Axes, chart: Flow) -> None:
    """Boxes from left to right, each after all that it takes from, in the size in which they can be read."""
    from matplotlib.patches import FancyBboxPatch

    placed = drawn({name: Node(name, told, "step") for name, _, told, _ in chart.steps}, list(chart.edges))
    lost = {name: count for name, _, _, count in chart.steps}
    axes.set_position((0, 0, 1, 1))
    axes.get_figure().set_size_inches(placed.width / 96, placed.height / 96)  # type: ignore[union-attr]
    boxes = {box.node.title: box for box in placed.boxes}
    for source, target in chart.edges:
        start, end = boxes[source], boxes[target]
        axes.annotate(
            "",
            xy=(end.x, end.y + end.height / 2),
            xytext=(start.x + start.width, start.y + start.height / 2),
            arrowprops={"arrowstyle": "->", "color": _QUIET, "linewidth": 0.9, "shrinkA": 0, "shrinkB": 0},
        )
    for name, box in boxes.items():
        edge = _SERIES[1] if lost[name] else _SERIES[0]
        axes.add_patch(
            FancyBboxPatch(
                (box.x + 4, box.y + 4), box.width - 8, box.height - 8, boxstyle="round,pad=4", facecolor=_PAPER, edgecolor=edge
            )
        )
        axes.text(box.x + 8, box.y + 17, box.title, fontsize=9, weight="bold", va="center")
        axes.text(box.x + 8, box.y + 35, box.note, fontsize=7.6, color=_QUIET, va="center")
    axes.set_xlim(0, placed.width)
    axes.set_ylim(placed.height, 0)
    axes.set_axis_off()


_DRAW: dict[type, Callable[[Any, Any], None]] = {
    Points: _points,
    Stacks: _stacks,
    Heat: _heat,
    Histograms: _histograms,
    Boxes: _boxes,
    Lines: _lines,
    Flow: _flow,
}
