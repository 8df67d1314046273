"""What the catalog tells, for a terminal: differences as tables, lineage as a tree, rows as they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ptk.render import table

if TYPE_CHECKING:
    import polars as pl

__all__ = ["diff_as_text", "lineage_as_text", "row_lineage_as_text", "rows_as_text"]

_DIGITS = 12
"""Digits of a SHA-256 that are shown."""

Branch = tuple[str, Sequence["Branch"]]
"""A line of a tree and what hangs from it."""


# ---- differences ----


def diff_as_text(told: Mapping[str, Any]) -> str:
    """Return what is different as a table of before and after, and a line for each column and each kind of example."""
    lines = [f"{told['before']} -> {told['after']}{': the same' if told['same'] else ''}", ""]
    rows = list(_figures(told))
    lines += [table(["", "before", "after", "change"], rows), ""]
    lines += _of_models(told) if "files" in told else _of_rows(told)
    return "\n".join(lines).rstrip()


def _figures(told: Mapping[str, Any]) -> Iterator[list[str]]:
    if "rows" in told:
        rows = told["rows"]
        yield ["rows", f"{rows['before']:,}", f"{rows['after']:,}", _signed(rows["after"] - rows["before"])]
        bias = told["length_bias"]
        if bias["before"] is not None or bias["after"] is not None:
            yield _share("chosen is the longer", *((bias[side] or {}).get("chosen_longer") for side in ("before", "after")))
            yield _number(
                "chosen longer by, characters",
                *((bias[side] or {}).get("mean_more_characters") for side in ("before", "after")),
            )
        for name in ("prompt", "item_id"):
            shares = [told["duplicates"][side][name] for side in ("before", "after")]
            if any(share is not None for share in shares):
                yield _share(f"repeated {name}s" if name == "prompt" else "repeated items", *shares)
    for name, change in told.get("metrics", {}).items():
        yield _number(name, change["before"], change["after"])
    licence = told["licence"]
    yield [
        "licence",
        licence["before"] or "-",
        licence["after"] or "-",
        "" if licence["before"] == licence["after"] else "changed",
    ]


def _of_rows(told: Mapping[str, Any]) -> Iterator[str]:
    rows, flipped, schema = told["rows"], told["flipped"], told["schema"]
    counts = [
        ["rows added", rows["added"], rows["examples"]["added"]],
        ["rows removed", rows["removed"], rows["examples"]["removed"]],
        ["rows changed", rows["changed"], rows["examples"]["changed"]],
        *([["preferences flipped", flipped["flipped"], flipped["examples"]]] if flipped is not None else []),
        *(
            [f"{name} changed", count, told["columns"].get(name, {}).get("examples", [])]
            for name, count in told["personas"].items()
        ),
        *(
            [f"{name} changed", column["changed"], column["examples"]]
            for name, column in told["columns"].items()
            if name not in told["personas"]
        ),
    ]
    yield table(
        ["", "count", "such as"],
        [[name, f"{count:,}", ", ".join(_key(one) for one in shown) or "-"] for name, count, shown in counts],
    )
    if flipped is not None and flipped["judged_several_times"]:
        yield f"{flipped['judged_several_times']:,} items were judged several times; whether those flipped can't be told"
    for name, kind in schema["added"].items():
        yield f"column {name} is new: {kind}"
    for name, kind in schema["removed"].items():
        yield f"column {name} is gone: {kind}"
    for name, (before, after) in schema["retyped"].items():
        yield f"column {name} is {after}, and was {before}"


def _of_models(told: Mapping[str, Any]) -> Iterator[str]:
    for what, names in told["files"].items():
        yield from (f"file {name} {what}" for name in names)
    for name in ("base_model", "trained_on"):
        before, after = (told[name][side] for side in ("before", "after"))
        if before != after:
            yield f"{name.replace('_', ' ')}: {_said(before)} -> {_said(after)}"


def _share(name: str, before: float | None, after: float | None) -> list[str]:
    change = "" if before is None or after is None else f"{(after - before) * 100:+.1f} points"
    return [name, *("-" if value is None else f"{value:.1%}" for value in (before, after)), change]


def _number(name: str, before: Any, after: Any) -> list[str]:
    both = all(isinstance(value, (int, float)) for value in (before, after))
    return [name, *(_figure(value) for value in (before, after)), f"{after - before:+.4g}" if both else ""]


def _figure(value: Any) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _signed(count: int) -> str:
    return f"{count:+,}" if count else ""


def _key(value: Any) -> str:
    text = "/".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= _DIGITS else text[:_DIGITS]


def _said(value: Any) -> str:
    return (", ".join(map(str, value)) if isinstance(value, list) else str(value or "")) or "-"


# ---- lineage ----


def lineage_as_text(told: Mapping[str, Any]) -> str:
    """Return a version's lineage as a tree: how it was made, what it was made from, and what was built on it."""
    branches = list(_made(told))
    if told["to"]:
        branches.append(("built on it", [_built(item) for item in told["to"]]))
    return "\n".join(_tree((_version(told), branches)))


def row_lineage_as_text(told: Mapping[str, Any]) -> str:
    """Return a row's lineage as a tree: its values by the step that made them, with model, prompts and source."""
    makers: dict[str, tuple[Mapping[str, Any], list[Branch]]] = {}
    for column in told["columns"]:
        made_by = repr([column[name] for name in ("made_in", "step", "operator")])
        makers.setdefault(made_by, (column, []))[1].append((f"{column['column']}: {_value(column['value'])}", ()))
    branches: list[Branch] = []
    for maker, values in makers.values():
        how = "committed as it is" if maker["step"] is None else f"{maker['operator']} in step {maker['step']}"
        spec = f" of spec {maker['spec']}" if maker.get("spec") else ""
        branches.append((f"{how}{spec}, {maker['made_in']}", [*values, *_asked(maker), *_read(maker)]))
    if (place := told["read_from"]) is not None:
        branches.insert(0, (f"read from {place['file']}:{place['line']}, as {place['version']} knows", ()))
    if told["built_on_it"]:
        branches.append((f"built on it: {', '.join(told['built_on_it'])}", ()))
    key = ", ".join(f"{name} {value}" for name, value in told["key"].items())
    return "\n".join(_tree((f"{told['version']}, {key}", branches)))


def _version(told: Mapping[str, Any]) -> str:
    what = f"{told['rows']:,} rows" if told["kind"] == "dataset" else "model"
    tags = f", tags {', '.join(told['tags'])}" if told["tags"] else ""
    return f"{told['version']}  {what}, {told['licence'] or 'no licence'}{tags}, {told['created_at'][:19]}, {told['digest'][: 7 + _DIGITS]}"


def _made(told: Mapping[str, Any]) -> Iterator[Branch]:
    if told.get("repeated"):
        yield "as above", ()
        return
    if told.get("base_model"):
        yield f"base model {told['base_model']}{_revision(told['base_revision'])}", ()
    if told["spec"] is not None:
        steps = [_step(step, told) for step in told["steps"]]
        yield f"made by spec {told['spec']['name']} {_short(told['spec']['digest'])}, step {told['step']}", steps
    for source in told["from"]:
        yield f"from, as {' and '.join(source['relations'])}: {_version(source)}", list(_made(source))
    for parent in told["other_parents"]:
        yield f"from {parent}", ()


def _step(step: Mapping[str, Any], told: Mapping[str, Any]) -> Branch:
    rejected = "".join(f", {count:,} {reason}" for reason, count in (step["rejected"] or {}).items())
    counts = f": {step['rows_in']:,} in, {step['rows_out']:,} out{rejected}"
    of_step = {
        name: [item for item in told[name] if item.get("step") == step["name"]]
        for name in ("models", "prompts", "sources", "origins")
    }
    origin = of_step["origins"][0] if of_step["origins"] else None
    return f"{step['name']} ({step['operator']} v{step['version']}){counts}", [
        *_asked(of_step),
        *_read({**of_step, "origin": origin}),
    ]


def _asked(made: Mapping[str, Any]) -> Iterator[Branch]:
    for model in made["models"]:
        yield f"model {model['model']}{_revision(model['revision'])}", ()
    for prompt in made["prompts"]:
        yield f"{prompt['option']} {prompt['name']} {_short(prompt['sha256'])}", ()


def _read(made: Mapping[str, Any]) -> Iterator[Branch]:
    for source in made["sources"]:
        digests = source["sha256"] if isinstance(source["sha256"], list) else [source["sha256"]]
        for file, digest in zip(source["files"], digests, strict=False):
            yield f"file {file} {_short(digest)}", ()
    if made["origin"]:
        yield (
            ", ".join(
                f"{name} {value}"
                for name, value in made["origin"].items()
                if name not in ("step", "digest") and value is not None
            ),
            (),
        )


def _built(told: Mapping[str, Any]) -> Branch:
    rest = [("as above", ())] if told.get("repeated") else [_built(item) for item in told["to"]]
    return f"as {' and '.join(told['relations'])}: {_version(told)}", rest


def _revision(revision: str | None) -> str:
    return f" at {revision}" if revision else ""


def _short(digest: str | None) -> str:
    return "" if digest is None else digest.removeprefix("sha256:")[:_DIGITS]


def _value(value: Any) -> str:
    return "-" if value is None else " ".join(str(value).split())


def _tree(branch: Branch, before: str = "", below: str = "") -> Iterator[str]:
    yield (before + branch[0]).rstrip()
    last = len(branch[1]) - 1
    for number, inner in enumerate(branch[1]):
        mark, under = ("└─ ", "   ") if number == last else ("├─ ", "│  ")
        yield from _tree(inner, below + mark, below + under)


# ---- rows ----


def rows_as_text(rows: pl.DataFrame, total: int | None) -> str:
    """Return rows one below another, a line a column, turns of conversations each on a line of its own; `total` is how many there are, if known."""
    lines: list[str] = []
    width = max(map(len, rows.columns), default=0)
    for row in rows.iter_rows(named=True):
        for name, value in row.items():
            first, *more = _shown(value)
            lines.append(f"{name.ljust(width)}  {first}")
            lines += [f"{' ' * width}  {line}" for line in more]
        lines.append("")
    lines.append(f"the first {rows.height:,} rows that were found" if total is None else f"{rows.height:,} of {total:,} rows")
    return "\n".join(lines)


def _shown(value: Any) -> list[str]:
    if (
        isinstance(value, list)
        and value
        and all(isinstance(turn, dict) and {"role", "content"} <= turn.keys() for turn in value)
    ):
        return [f"{turn['role']}: {_value(turn['content'])}" for turn in value]
    return [_value(value)]
