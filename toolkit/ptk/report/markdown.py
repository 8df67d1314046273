"""A report as Markdown, with its figures in a folder beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ptk.report.html import cell_text
from ptk.report.make import digest_of
from ptk.report.parts import Caveat, Report, Table

__all__ = ["as_markdown"]

_EXAMPLES = 5
_MOST_ROWS = 40
_WEIGHTS = {"alarm": "**Do not rely on this.** ", "doubt": "**Careful.** ", "note": ""}
_SPECIAL = str.maketrans({sign: f"\\{sign}" for sign in "\\`*_[]<>#|"})


def as_markdown(report: Report, figures: str) -> str:
    """Return the report as Markdown that shows the SVG files of the folder `figures`. The same report gives the same text."""
    return "\n".join(_lines(report, figures)) + "\n"


def _lines(report: Report, figures: str) -> Iterator[str]:
    yield from (f"# {_plain(report.title)}", "", _plain(report.of), "")
    yield from ("## What the numbers say", "")
    yield from (f"- {_plain(text)}" for text, _ in report.findings)
    if not report.findings:
        yield "Nothing was measured here that can be said in a sentence."
    yield ""
    if report.caveats:
        yield from ("### Before you believe it", "")
        yield from _caveats(report.caveats)
    for section in report.sections:
        yield from (f"## {section.title}", "", section.about, "")
        for figure in section.figures:
            yield from (f"### {_plain(figure.title)}", "", _plain(figure.says), "")
            if figure.chart is not None:
                yield from (f"![{_plain(figure.title)}. {_plain(figure.says)}]({figures}/{figure.name}.svg)", "")
            yield from _caveats(figure.caveats)
            yield from _table(figure.table)
            yield from (f"Made of: {_plain(figure.made_of)}", "")
    if report.examples is not None:
        shown = report.examples.items[:_EXAMPLES]
        yield from ("## Examples", "")
        yield from (f"{len(shown)} of {report.examples.total:,} {report.examples.unit}, {report.examples.how}.", "")
        for number, item in enumerate(shown, start=1):
            yield from _example(number, item)
    yield from ("## What was run, and from what data", "")
    for source in report.run["sources"]:
        yield f"- {_plain(', '.join(source['files']))} in step {_plain(source['step'])}"
    for model in report.run["models"]:
        yield f"- model {_plain(model['model'])} in step {_plain(model['step'])}"
    for version in report.run["versions"]:
        yield f"- {_plain(version['reference'])}: {version['rows']:,} rows, {_plain(version['licence'] or 'no licence given')}"
    text = report.run["spec"]["text"]
    if text:
        fence = "`" * (3 + max((len(run) for run in _runs(text)), default=0))
        yield from ("", f"{fence}yaml", text.rstrip("\n"), fence)
    yield from ("", f"Report {digest_of(report)}")


def _runs(text: str) -> list[str]:
    """Return the runs of backticks in a text, which a fence around it must be longer than."""
    return [run for run in "".join(sign if sign == "`" else " " for sign in text).split() if len(run) >= 3]


def _plain(text: Any) -> str:
    """Return text that Markdown shows as it is, on one line."""
    return " ".join(str(text).split()).translate(_SPECIAL)


def _caveats(caveats: tuple[Caveat, ...]) -> Iterator[str]:
    for caveat in caveats:
        yield f"> - {_WEIGHTS[caveat.weight]}{_plain(caveat.text)}"
    if caveats:
        yield ""


def _table(table: Table) -> Iterator[str]:
    if not table.rows:
        return
    yield f"| {' | '.join(_plain(name or 'of') for name in table.header)} |"
    yield f"|{'---|' * len(table.header)}"
    for row in table.rows[:_MOST_ROWS]:
        yield f"| {' | '.join(_plain(cell_text(value)) for value in row)} |"
    if (more := len(table.rows) - _MOST_ROWS) > 0:
        yield from ("", f"{more:,} more rows are left out here.")
    yield ""


def _example(number: int, item: Mapping[str, Any]) -> Iterator[str]:
    yield from (f"### Example {number}", "")
    for role, text in item.get("prompt", ()):
        yield from _quoted(role or "prompt", text)
    for side, turns in item.get("pair", {}).items():
        yield from _quoted(side, "\n".join(text for _, text in turns))
    for name, text in item.get("personas", {}).items():
        yield from _quoted(name.replace("_", " "), text)
    for cell in item["cells"]:
        of = ", ".join(f"{name} {value}" for name, value in cell.get("of", {}).items())
        for name, text in cell.get("personas", {}).items():
            yield from _quoted(", ".join(filter(None, [of, name.replace("_", " ")])), text)
        for answer in cell.get("answers", ()):
            yield from _quoted(", ".join(filter(None, [of, answer["name"], answer["given"]])), answer["text"])
        for verdict in cell.get("verdicts", ()):
            yield f"- {_plain(of)}{': ' if of else ''}{_plain(verdict['name'])} ({_plain(verdict['what'])}): **{_plain(verdict['verdict'])}**"
    yield ""


def _quoted(name: str, text: str) -> Iterator[str]:
    yield from (f"**{_plain(name)}**", "")
    yield from (f"> {line.translate(_SPECIAL)}" for line in text.splitlines() or [""])
    yield ""
