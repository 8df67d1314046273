"""Plans, summaries and catalog entries as text for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import polars as pl

    from ptk.cost import Cost
    from ptk.execute import RunSummary
    from ptk.plan import Node, Plan
    from ptk.prompt import Shown
    from ptk.publish.publication import Publication
    from ptk.study.answers import StudyResult
    from ptk.work import Asked
    from ptk_catalog import Version

__all__ = [
    "plan_as_json",
    "plan_as_text",
    "preview_as_text",
    "prompts_as_text",
    "published_as_text",
    "registered_as_json",
    "rejects_as_json",
    "rejects_as_text",
    "reported_as_text",
    "study_as_text",
    "summary_as_text",
    "table",
    "version_as_json",
    "version_as_text",
]


_MOST_SHOWN = 160
"""Characters of a reason or of a rejected text that a line shows."""
_GIB = 1 << 30
_REJECTED_SHOWN = 10


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
    plain = text.lstrip("~").replace(" ± ", "")
    return plain.replace(",", "").replace(".", "").replace("-", "").isdigit() or text in ("", "-")


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
    told = [_asking(name, cost) for name, cost in costs.items() if cost.requests and cost.requests > (cost.answered or 0)]
    if told:
        lines += [*told, ""]
    for names, schema in _schemas(plan):
        lines.append(f"{names}: {', '.join(f'{name} {dtype}' for name, dtype in schema.items())}")
    for node in plan.nodes.values():
        if node.source is not None and node.source.origin:
            lines.append(f"{node.name} reads {_origin(node.source.origin)}")
    running = plan.to_run()
    lines.append("")
    if not running:
        lines.append("Everything is cached; a run does no work.")
    else:
        lines.append(f"{len(running)} of {len(plan.nodes)} steps to run. ~ marks numbers from a sample.")
    return "\n".join(lines)


def _asking(step: str, cost: Cost) -> str:
    """Return how long a step's requests will take, and how much of their prompts is shared."""
    time = "time unknown: no run of this model was seen here yet" if cost.seconds is None else f"~{_duration(cost.seconds)}"
    shared = "" if not cost.shared else f"; ~{cost.shared:.0%} of the prompt tokens begin as an earlier prompt does"
    return f"{step}: {time}{shared}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _schemas(plan: Plan) -> Iterator[tuple[str, pl.Schema]]:
    """Yield the columns of each step; cells of a step with the same columns are told once."""
    told: dict[tuple[str, bool, tuple[Any, ...]], list[Node]] = {}
    for node in plan.nodes.values():
        told.setdefault((node.step.base, node.step.cell is not None, tuple(node.schema.items())), []).append(node)
    for (base, _, _), nodes in told.items():
        yield nodes[0].name if len(nodes) == 1 else f"{base} ({len(nodes):,} cells)", nodes[0].schema


def _facts(step: str, facts: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line of figures, then a table for each fact that is a list of groups."""
    tables = {name: value for name, value in facts.items() if isinstance(value, (list, tuple)) and _is_groups(value)}
    figures = {name: value for name, value in facts.items() if name not in tables}
    if figures:
        yield f"{step}: {', '.join(f'{name} {_figure(value)}' for name, value in figures.items())}"
    for name, groups in tables.items():
        yield f"{step}, {name} {', '.join(groups[0].get('of', ()))}:" if name == "by" else f"{step}, {name}:"
        yield "\n".join(f"  {line}" for line in _groups(groups).splitlines())


def _trained(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures of a training that are shown."""
    shown = ("steps", "epochs", "final_train_loss", "final_eval_loss", "best_step", "eval_rewards/accuracies")
    measured = {name: facts["metrics"].get(name) for name in shown}
    rows = {name: facts["rows"].get(name) for name in ("train", "validation")} if "rows" in facts else {}
    cut = {"cut": facts["cut"]["cut_share"]} if "cut" in facts else {}
    return {name: value for name, value in {**rows, **cut, **measured}.items() if value is not None}


def _is_groups(value: Sequence[Any]) -> bool:
    return bool(value) and all(isinstance(group, dict) for group in value)


def _groups(groups: Sequence[Mapping[str, Any]]) -> str:
    """Return a table with a row for each group; a standard error stands with the figure before it."""
    flat = [{**group.get("of", {}), **{name: value for name, value in group.items() if name != "of"}} for group in groups]
    header: list[str] = []
    rows: list[list[str]] = [[] for _ in flat]
    for name in dict.fromkeys(name for group in flat for name in group):
        cells = ["-" if group.get(name) is None else _figure(group[name]) for group in flat]
        if name.endswith("standard_error") and header:
            for row, cell in zip(rows, cells, strict=True):
                row[-1] += f" ± {cell}" if cell != "-" else ""
        else:
            header.append(name.replace("_", " "))
            for row, cell in zip(rows, cells, strict=True):
                row.append(cell)
    return table(header, rows)


def _figure(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def _origin(origin: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in origin.items() if value is not None)


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
                "shared_prompt_share": cost.shared,
                "seconds": cost.seconds,
            },
        }
    return {"spec": plan.spec.name, "digest": plan.spec.digest, "steps": steps, "outputs": list(plan.spec.outputs)}


def prompts_as_text(shown: Sequence[Shown]) -> str:
    """Return requests as the models see them, each under a line that says whose it is."""
    lines = []
    several = len({item.step for item in shown}) > 1
    for item in shown:
        request = item.request
        held = ""
        if request.scored:
            held = f", scored: {' | '.join(request.scored)}"
        elif request.constraint is not None:
            held = f", held to the {request.constraint.kind} {request.constraint.value}"
        lines.append(f"=== {item.step + ': ' if several else ''}row {request.row}, {request.slot}{held}")
        if item.text is not None:
            lines.append(item.text)
        else:
            lines.extend(f"[{message.role}]\n{message.content}" for message in request.messages)
            begun = f"[assistant]\n{request.prefill}" if request.messages else request.prefill
            lines.extend([begun] if request.prefill else [])
    return "\n".join(lines)


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
        counts = [f"{count:,} {reason}" for reason, count in result.rejected.items()]
        counts += [f"{count:,} flagged {flag}" for flag, count in result.flagged.items()]
        rejected = ", ".join(counts)
        seconds = "cached" if step.cached else f"{result.seconds:.1f} s"
        rows.append([step.name, step.operator, f"{result.rows_in:,}", f"{result.rows_out:,}", rejected or "-", seconds])
    for name, what in summary.failed.items():
        rows.append([name, "", "", "", what.splitlines()[0][:_MOST_SHOWN], "failed"])
    rows += [[name, "", "", "", "-", "not run"] for name in summary.skipped]
    lines = [table(["step", "operator", "rows in", "rows out", "rejected", ""], rows), ""]
    for step in summary.steps:
        if step.result.rows_in and not step.result.rows_out:
            lines.append(f"note: {step.name} let none of its {step.result.rows_in:,} rows through")
        if (asked := step.result.requests) is not None:
            lines.append(f"{step.name}: {_asked(asked, step.cached)}")
            if asked.truncated:
                lines.append(f"{step.name}: {asked.truncated:,} prompts were cut to fit the model's window")
            if asked.unanswered:
                lines.append(f"{step.name}: {asked.unanswered:,} requests had no answer; the same command asks them again")
        if step.result.requests is not None and step.result.facts:
            lines += _facts(step.name, step.result.facts)
        elif "metrics" in step.result.facts:
            lines += _facts(step.name, _trained(step.result.facts))
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
        held = "a model" if version.kind == "model" else f"{version.rows:,} rows"
        lines += ["", f"{what}  {version.reference}  {held}  {version.digest[:19]}{tags}"]
        load = f'load_model("{version.reference}")' if version.kind == "model" else f'load("{version.reference}").collect()'
        lines.append(f'load it:   ptk_catalog.open("{catalog_argument or summary.catalog}").{load}')
    return "\n".join(lines)


def _asked(asked: Asked, cached: bool) -> str:
    """Return what an LLM step asked and what that took; of a cached step, what it took when it ran."""
    if not asked.asked:
        return f"{asked.answered_before:,} requests, all answered before"
    parts = [f"{asked.prompt_tokens:,} prompt and {asked.output_tokens:,} answer tokens"]
    if asked.seconds:
        speed = [f"{tokens / asked.seconds:,.0f}" for tokens in (asked.prompt_tokens, asked.output_tokens)]
        parts[0] += f" in {asked.seconds:.1f} s ({' and '.join(speed)} tokens/s)"
    if asked.prompt_tokens:
        parts.append(f"{asked.cached_tokens / asked.prompt_tokens:.0%} of the prompt tokens from the prefix cache")
    if asked.peak_bytes is not None:
        engine = "" if asked.engine_peak_bytes is None else f", its engine {asked.engine_peak_bytes / _GIB:.2f} GiB"
        parts.append(f"ptk took {asked.peak_bytes / _GIB:.2f} GiB{engine}")
    if cached:
        return f"{asked.asked + asked.answered_before:,} requests, all answered before; when asked: {', '.join(parts)}"
    return f"{asked.asked:,} requests asked, {asked.answered_before:,} answered before; {', '.join(parts)}"


def registered_as_json(version: Version) -> dict[str, Any]:
    """Return what the registry alone says of a version: no manifest is read."""
    return {
        "entry": version.entry,
        "version": f"v{version.number}",
        "kind": version.kind,
        "digest": version.digest,
        "rows": version.rows,
        "bytes": version.bytes,
        "created_at": version.created_at,
        "tags": list(version.tags),
        "licence": version.licence,
    }


def version_as_json(version: Version, models: Sequence[str] = ()) -> dict[str, Any]:
    """Return what a version is and how it was made; `models` are those that were trained on it."""
    if version.kind == "model":
        said = version.model.model_dump(mode="json", include={"base_model", "base_revision", "trained_on", "metrics"})
        return {
            **{name: value for name, value in registered_as_json(version).items() if name != "rows"},
            "files": {file.name: file.bytes for file in version.model.files},
            **said,
            "lineage": dict(version.lineage),
        }
    return {
        **registered_as_json(version),
        "key": list(version.manifest.key),
        "schema": {column.name: column.type for column in version.manifest.columns},
        "models_trained_on_it": list(models),
        "lineage": version.manifest.lineage,
    }


def version_as_text(version: Version, models: Sequence[str] = ()) -> str:
    if version.kind == "model":
        told = version_as_json(version).items()
        return "\n".join([version.reference, *(f"  {name:13} {value}" for name, value in told if name != "lineage")])
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
            rejected += "".join(f", {count:,} flagged {flag}" for flag, count in step.get("flagged", {}).items())
            lines.append(f"    {step['name']} ({step['operator']}): {step['rows_in']:,} in, {step['rows_out']:,} out{rejected}")
    for model in manifest.lineage.get("models", []):
        lines.append(
            f"  model      {model['model']}{' ' + model['revision'] if model['revision'] else ''} in step {model['step']}"
        )
    lines += [f"  trained    {model}" for model in models]
    for source in manifest.lineage.get("sources", []):
        lines.append(f"  source     {', '.join(source['files'])} in step {source['step']}")
    return "\n".join(lines)


def preview_as_text(publication: Publication) -> str:
    """Return what a push would do: files, bytes, what changed, licences, checks."""
    remote, settings = publication.remote, publication.settings
    visibility = "private" if (settings.private if remote.head is None else remote.private) else "public"
    state = f"to be made, {visibility}" if remote.head is None else visibility
    lines = [f"{publication.version.reference} -> {publication.repository.address} ({state}), tag {publication.tag}", ""]
    rows = [[item.path, f"{item.bytes:,}", item.state] for item in publication.changes]
    lines += [table(["file", "bytes", ""], rows), ""]
    lines.append(f"{publication.new_bytes:,} bytes to upload, {publication.shared_bytes:,} bytes there already")
    for config in publication.configs:
        splits = ", ".join(f"{split.name} {split.rows:,}" for split in config.splits)
        lines.append(f"configuration {config.name}: {splits} rows")
    if publication.previous is not None:
        what = "; ".join(publication.differences) or "the rows are the same"
        lines.append(f"since {publication.previous}: {what}")
    lines += [f"licence: {concern}" for concern in publication.concerns]
    lines += [f"{'' if check.state == 'ok' else f'{check.state}: '}{check.what}" for check in publication.checks]
    if publication.is_there and publication.tag in remote.tags:
        lines.append("Nothing changed: there is nothing to push.")
    return "\n".join(lines)


def study_as_text(result: StudyResult, rejected: Sequence[tuple[str, str]]) -> str:
    """Return what people said in a study, and what of it was set aside."""
    lines = [f"study {result.study}: {result.answers:,} answers of {result.raters:,} people to {result.items:,} items"]
    lines += [f"  {where}: {reason}, set aside" for where, reason in rejected[:_REJECTED_SHOWN]]
    if len(rejected) > _REJECTED_SHOWN:
        lines.append(f"  and {len(rejected) - _REJECTED_SHOWN:,} more, set aside")
    told = ("mean_rating", "difference", "wins", "ties", "losses", "win_rate", "delta_pq", "agreement", "kappa", "alpha")
    rows = [
        [
            row["measure"].replace("_", " "),
            str(row["about"] or "-"),
            str(row.get("of") or "all"),
            "-" if row["value"] is None else f"{row['value']:.3f}",
            "-" if row["low"] is None else f"{row['low']:.3f} to {row['high']:.3f}",
            f"{row['n']:,}",
        ]
        for row in result.rows
        if row["measure"] in told
    ]
    if rows:
        lines += ["", table(["measure", "about", "of", "value", "interval", "n"], rows)]
    if result.personas:
        lines.append(f"{len(result.personas):,} personas that people wrote")
    return "\n".join(lines)


def reported_as_text(told: Mapping[str, Any]) -> str:
    """Return where a report was written, and what is in it."""
    lines = [f"report     {item['path']}  {item['bytes'] / 1e6:.1f} MB" for item in told["files"]]
    what = f"{told['figures']} figures, {told['examples']:,} of {told['of']:,} examples; report {told['digest'][:19]}"
    return "\n".join([*lines, f"           {what}"])


def published_as_text(done: Mapping[str, Any]) -> str:
    """Return where a version is to be found now, and how to load it."""
    call = "datasets.load_dataset" if done["kind"] == "dataset" else "huggingface_hub.snapshot_download"
    return "\n".join(
        [
            f"published  {done['version']}  {done['what']}: {done['repo']}, tag {done['tag']}, commit {done['revision'][:8]}",
            f'load it:   {call}("{done["repo"]}", revision="{done["tag"]}")',
        ]
    )
