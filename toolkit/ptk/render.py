"""Plans, summaries and catalog entries as text for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import polars as pl

    from ptk.cost import Cost
    from ptk.execute import RunSummary
    from ptk.plan import Node, Plan
    from ptk_catalog import Version

__all__ = [
    "plan_as_json",
    "plan_as_text",
    "rejects_as_json",
    "rejects_as_text",
    "summary_as_text",
    "table",
    "version_as_json",
    "version_as_text",
]


_MOST_SHOWN = 160
"""Characters of a reason or of a rejected text that a line shows."""


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return aligned columns, numbers to the right."""
    lines = [list(header), *[list(row) for row in rows]]
    widths = [max(len(line[index]) for line in lines) for index in range(len(header))]
    numeric = [all(_is_number(line[index]) for line in lines[1:]) for index in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width) for cell, width, right in zip(line, widths, numeric, strict=True)
        ).rstrip()
        for line in lines
    )


def _is_number(text: str) -> bool:
    return text.lstrip("~").replace(",", "").replace(".", "").replace("-", "").isdigit() or text in ("", "-")


def plan_as_text(plan: Plan, costs: dict[str, Cost]) -> str:
    rows = []
    for node in plan.nodes.values():
        cost = costs[node.name]
        mark = "" if cost.exact else "~"
        requests = "-" if cost.requests is None else f"{mark}{cost.answered:,} + {mark}{cost.requests - (cost.answered or 0):,}"
        tokens = "-" if cost.prompt_tokens is None else f"{mark}{cost.prompt_tokens:,}"
        state = "cached" if node.finished is not None else "run"
        why = "" if node.finished is not None else node.why
        rows.append(
            [
                node.name,
                node.step.operator.name,
                state,
                why,
                f"{mark}{cost.rows_in:,}",
                f"{mark}{cost.rows_out:,}",
                requests,
                tokens,
            ]
        )
    header = ["step", "operator", "", "why", "rows in", "rows out", "requests answered + to go", "prompt tokens to go"]
    lines = [f"{plan.spec.name} ({plan.spec.document.file})", "", table(header, rows), ""]
    for node in plan.nodes.values():
        lines.append(f"{node.name}: {', '.join(f'{name} {dtype}' for name, dtype in node.schema.items())}")
    running = plan.to_run()
    lines.append("")
    if not running:
        lines.append("Everything is cached; a run does no work.")
    else:
        lines.append(f"{len(running)} of {len(plan.nodes)} steps to run. ~ marks numbers from a sample.")
    return "\n".join(lines)


def plan_as_json(plan: Plan, costs: dict[str, Cost]) -> dict[str, Any]:
    steps = {}
    for node in plan.nodes.values():
        cost = costs[node.name]
        steps[node.name] = {
            "operator": node.step.operator.name,
            "status": "cached" if node.finished is not None else "run",
            "why": node.why,
            "key": node.key,
            "schema": {name: str(dtype) for name, dtype in node.schema.items()},
            "rows_in": cost.rows_in,
            "rows_out": cost.rows_out,
            "exact": cost.exact,
            "requests": None
            if cost.requests is None
            else {
                "answered": cost.answered,
                "to_go": cost.requests - (cost.answered or 0),
                "prompt_tokens": cost.prompt_tokens,
                "most_output_tokens": cost.most_output_tokens,
            },
        }
    return {"spec": plan.spec.name, "digest": plan.spec.digest, "steps": steps, "outputs": list(plan.spec.outputs)}


def rejects_as_json(node: Node, rows: pl.DataFrame) -> dict[str, Any]:
    return {"step": node.name, "rejected": node.finished.rejected if node.finished else {}, "rows": rows.to_dicts()}


def rejects_as_text(node: Node, rows: pl.DataFrame) -> str:
    """Return a line for each rejected row: where it stood or its key, the reason, the reason in words, and what was rejected."""
    lines = []
    for row in rows.iter_rows(named=True):
        place = f"{row['_file']}:{row['_line']}" if row.get("_file") else row.get(node.key_column) or "-"
        words = [place, row["_reject"], row["_detail"], row["_raw"]]
        lines.append("  ".join(" ".join(str(word).split())[:_MOST_SHOWN] for word in words if word is not None))
    total = sum(node.finished.rejected.values()) if node.finished else 0
    lines.append(f"{len(rows):,} of {total:,} rejected rows of step {node.name}")
    return "\n".join(lines)


def summary_as_text(summary: RunSummary, catalog_argument: str | None) -> str:
    rows = []
    for step in summary.steps:
        result = step.result
        rejected = ", ".join(f"{count:,} {reason}" for reason, count in result.rejected.items())
        seconds = "cached" if step.cached else f"{result.seconds:.1f} s"
        rows.append([step.name, step.operator, f"{result.rows_in:,}", f"{result.rows_out:,}", rejected or "-", seconds])
    lines = [table(["step", "operator", "rows in", "rows out", "rejected", ""], rows), ""]
    for step in summary.steps:
        asked = step.result.requests
        if asked is not None and step.cached:
            lines.append(f"{step.name}: {asked.asked + asked.answered_before:,} requests, all answered before")
        elif asked is not None:
            rate = f", {asked.output_tokens / asked.seconds:,.0f} tokens/s" if asked.asked and asked.seconds else ""
            share = (
                f", {asked.cached_tokens / asked.prompt_tokens:.0%} of the prompt tokens from the prefix cache"
                if asked.cached_tokens
                else ""
            )
            lines.append(
                f"{step.name}: {asked.asked:,} requests asked, {asked.answered_before:,} answered before; "
                f"{asked.prompt_tokens:,} prompt and {asked.output_tokens:,} answer tokens{rate}{share}"
            )
    cached = sum(step.cached for step in summary.steps)
    lines.append(
        f"Everything was cached ({summary.seconds:.1f} s)."
        if cached == len(summary.steps)
        else f"Done in {summary.seconds:.1f} s."
    )
    if not summary.versions and summary.catalog is None:
        lines.append("Nothing was registered in the catalog.")
    for version in summary.versions:
        tags = f", tags: {', '.join(version.tags)}" if version.tags else ""
        what = "committed" if version.created else "unchanged"
        lines += ["", f"{what}  {version.reference}  {version.rows:,} rows  {version.digest[:19]}{tags}"]
        lines.append(
            f'load it:   ptk_catalog.open("{catalog_argument or summary.catalog}").load("{version.reference}").collect()'
        )
    return "\n".join(lines)


def version_as_json(version: Version) -> dict[str, Any]:
    return {
        "entry": version.entry,
        "version": f"v{version.number}",
        "digest": version.digest,
        "rows": version.rows,
        "created_at": version.created_at,
        "tags": list(version.tags),
        "licence": version.manifest.licence,
        "key": list(version.manifest.key),
        "schema": {column.name: column.type for column in version.manifest.columns},
        "bytes": sum(part.bytes for group in version.manifest.groups for part in group.parts),
        "lineage": version.manifest.lineage,
    }


def version_as_text(version: Version) -> str:
    manifest = version.manifest
    facts = version_as_json(version)
    lines = [
        f"{version.reference}  {version.digest}",
        f"  committed  {version.created_at} by {manifest.created_by}",
        f"  tags       {', '.join(version.tags) or '-'}",
        f"  licence    {manifest.licence or '-'}",
        f"  rows       {version.rows:,} ({facts['bytes']:,} bytes), key {', '.join(manifest.key)}",
        "  columns",
        *(f"    {column.name}: {column.type}" for column in manifest.columns),
    ]
    if steps := manifest.lineage.get("steps"):
        lines.append("  made by")
        for step in steps:
            rejected = "".join(f", {count:,} {reason}" for reason, count in step["rejected"].items())
            lines.append(f"    {step['name']} ({step['operator']}): {step['rows_in']:,} in, {step['rows_out']:,} out{rejected}")
    for model in manifest.lineage.get("models", []):
        lines.append(
            f"  model      {model['model']}{' ' + model['revision'] if model['revision'] else ''} in step {model['step']}"
        )
    for source in manifest.lineage.get("sources", []):
        lines.append(f"  source     {', '.join(source['files'])} in step {source['step']}")
    return "\n".join(lines)
