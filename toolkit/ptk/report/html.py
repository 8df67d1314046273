"""A report as one page that needs no network: figures, tables and examples are in it."""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files
from typing import Any

import orjson

from ptk.report.charts import svg
from ptk.report.make import digest_of
from ptk.report.parts import Figure, Report

__all__ = ["MOST_ROWS", "as_html", "cell_text"]

MOST_ROWS = 120
"""Rows of a table that the page shows; a folder of tables has them all."""
_STATIC = 3
"""Examples that are there without scripts."""


def as_html(report: Report) -> str:
    """Return the report as a page. The same report gives the same text."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    # What a page shows comes from data: everything is escaped unless it was made here.
    templates = Environment(
        loader=PackageLoader("ptk.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    templates.filters |= {"number": lambda value: f"{value:,}", "cell": cell_text, "is_number": _is_number}
    assets = files("ptk.report") / "assets"
    script = (assets / "report.js").read_text(encoding="utf-8")
    style = (files("ptk.site") / "assets" / "style.css").read_text(encoding="utf-8")
    style += (assets / "report.css").read_text(encoding="utf-8")
    examples = report.examples
    data = b"{}"
    if examples is not None:
        data = orjson.dumps({"items": examples.items, "filters": [name for name, _ in examples.filters]})
    return templates.get_template(
        "report.html"
    ).render(
        report=report,
        most=MOST_ROWS,
        digest=digest_of(report),
        style=Markup(style),  # noqa: S704 - our own files
        script=Markup(script),  # noqa: S704
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        # No text of an example can end the element that holds it.
        data=Markup(data.decode().replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")),  # noqa: S704
        drawing=lambda figure: Markup(_drawing(figure)),  # noqa: S704 - labels are escaped by what draws them
        static=() if examples is None else examples.items[:_STATIC],
        anchors={figure.name: figure.title for figure in report.figures()},
    )


def _drawing(figure: Figure) -> str:
    assert figure.chart is not None
    return svg(figure.chart, figure.name, themed=True).replace("<svg ", '<svg aria-hidden="true" focusable="false" ', 1)


def cell_text(value: Any) -> str:
    """Return the value of a table's cell as it is shown."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"
    return str(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
