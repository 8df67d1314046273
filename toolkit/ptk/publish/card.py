"""The card of a published version: a README whose header the Hub and `datasets` read, and whose body people read."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import yaml

from ptk.llm.cases import CASES_FILE
from ptk.publish.layout import PAIR, Config, column_types
from ptk.publish.licences import HUB_LICENCES, Source, normalised
from ptk.publish.lineage import recorded
from ptk.publish.models import told_facts

if TYPE_CHECKING:
    from ptk_catalog import Version

__all__ = ["card", "is_ours", "merged", "model_card"]

_BEGIN = "<!-- ptk: begin; what stands up to the end mark is replaced by the next publication -->"
_END = "<!-- ptk: end -->"
_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))
_HUB_ID = re.compile(r"(?!bundled/)[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_HEADER = re.compile(r"\A---\r?\n(.*?)\r?\n---\r?\n", re.DOTALL)


def card(
    version: Version,
    repo: str,
    tag: str,
    configs: Sequence[Config],
    sources: Sequence[Source],
    previous: str | None,
    changes: Sequence[str],
) -> str:
    """Return the README of a dataset; `changes` says what is different from `previous`, a reference."""
    manifest = version.manifest
    columns = [column.name for column in manifest.columns]
    lineage = recorded(version)
    body = _template("card.md.jinja").render(
        _facts(version, repo, tag, sources, previous, changes),
        rows=f"{version.rows:,}",
        key=manifest.key,
        is_pairs=set(PAIR) <= set(columns),
        has_personas=any(name.endswith("_persona") for name in columns),
        configs=configs,
        models=lineage["models"],
        prompts=lineage["prompts"],
    )
    return _readme(_dataset_header(version, configs, sources), body)


def model_card(
    version: Version,
    repo: str,
    tag: str,
    files: Collection[str],
    trained_on: Sequence[tuple[str, Sequence[str]]],
    sources: Sequence[Source],
    previous: str | None,
    changes: Sequence[str],
) -> str:
    """Return the README of a model; `trained_on` holds references to datasets, and the repositories they were published in."""
    model = version.model
    is_adapter = "adapter_config.json" in files
    is_transformers = "config.json" in files and not is_adapter
    is_cases = set(files) == {CASES_FILE}
    body = _template("model.md.jinja").render(
        _facts(version, repo, tag, sources, previous, changes),
        base_model=model.base_model,
        base_revision=model.base_revision,
        is_adapter=is_adapter,
        is_transformers=is_transformers,
        is_cases=is_cases,
        metrics=model.metrics,
        facts=told_facts(model.facts),
        trained_on=trained_on,
        has_personas=any("persona" in reference for reference, _ in trained_on),
    )
    header = {"pretty_name": version.entry, **_licence(version)}
    if is_adapter or is_transformers:
        header["library_name"] = "peft" if is_adapter else "transformers"
    on_hub = model.base_model is not None and not model.base_model.startswith("bundled/")
    if on_hub and not is_cases and _HUB_ID.fullmatch(str(model.base_model)):
        header |= {"base_model": model.base_model, "base_model_relation": "adapter" if is_adapter else "finetune"}
    if datasets := sorted({repo for _, places in trained_on for repo in places}):
        header["datasets"] = datasets
    return _readme({**header, "tags": ["ptk"]}, body)


def _facts(
    version: Version, repo: str, tag: str, sources: Sequence[Source], previous: str | None, changes: Sequence[str]
) -> dict[str, Any]:
    """Return what every card tells."""
    lineage = recorded(version)
    return {
        "title": _cell(version.entry),
        "entry": version.entry,
        "number": version.number,
        "committed": version.created_at[:10],
        "digest": version.digest,
        "previous": previous,
        "changes": changes,
        "repo": repo,
        "tag": tag,
        "spec_name": _cell(lineage["spec"]["name"]) if lineage["spec"]["text"] else "",
        "steps": lineage["steps"],
        "sources": sources,
    }


def _readme(header: Mapping[str, Any], body: str) -> str:
    text = yaml.safe_dump(dict(header), sort_keys=False, allow_unicode=True, width=1000)
    tidy = re.sub(r"\n{3,}", "\n\n", body.strip())
    return f"---\n{text}---\n{_BEGIN}\n{tidy}\n{_END}\n"


def is_ours(readme: str) -> bool:
    """Return whether a repository's README was written by `card`."""
    return _BEGIN in readme


def merged(new: str, there: str | None) -> str:
    """Return the new README with what people wrote into the one that is there: before and after the marks, and further keys."""
    if there is None or not is_ours(there):
        return new
    header, body = _parted(new)
    old_header, old_body = _parted(there)
    before, _, rest = old_body.partition(_BEGIN)
    after = rest.partition(_END)[2]
    kept = {name: value for name, value in old_header.items() if name not in header and name not in _OURS}
    text = yaml.safe_dump({**header, **kept}, sort_keys=False, allow_unicode=True, width=1000)
    return f"---\n{text}---\n{before}{body.strip()}{after or chr(10)}"


_OURS = frozenset(
    {
        *("license", "license_name", "source_datasets", "size_categories", "dataset_info", "configs"),
        *("library_name", "base_model", "base_model_relation", "datasets"),
    }
)
"""Keys of the header that are left out where they no longer hold."""


def _parted(readme: str) -> tuple[dict[str, Any], str]:
    found = _HEADER.match(readme)
    try:
        header = yaml.safe_load(found.group(1)) if found else {}
    except yaml.YAMLError:
        header = {}
    return header if isinstance(header, dict) else {}, readme[found.end() :] if found else readme


def _licence(version: Version) -> dict[str, Any]:
    """Return the licence as the Hub's header wants it."""
    if version.licence is None:
        return {"license": "unknown"}
    if normalised(version.licence) in HUB_LICENCES:
        return {"license": normalised(version.licence)}
    return {"license": "other", "license_name": normalised(version.licence)}


def _dataset_header(version: Version, configs: Sequence[Config], sources: Sequence[Source]) -> dict[str, Any]:
    header: dict[str, Any] = {"pretty_name": version.entry, **_licence(version)}
    hub = sorted({source.hub for source in sources if source.hub is not None})
    header["source_datasets"] = hub or ["original"]
    header["size_categories"] = [next((name for bound, name in _SIZES if version.rows < bound), "n>10M")]
    columns = {column.name for column in version.manifest.columns}
    tags = ["ptk"]
    if set(PAIR) <= columns:
        tags += ["preference", "dpo", "trl"]
    if any(name.endswith("_persona") for name in columns):
        tags.append("personas")
    header["tags"] = tags
    header["dataset_info"] = [_info(config) for config in configs]
    header["configs"] = [
        {
            "config_name": config.name,
            **({"default": True} if number == 0 else {}),
            "data_files": [{"split": split.name, "path": f"{config.folder}/{split.name}-*"} for split in config.splits],
        }
        for number, config in enumerate(configs)
    ]
    return header


def _info(config: Config) -> dict[str, Any]:
    """Return the `dataset_info` of a configuration, in the form of the installed `datasets`."""
    from datasets import DatasetInfo, Features, SplitDict, SplitInfo

    splits = SplitDict()
    for split in config.splits:
        splits.add(SplitInfo(split.name, num_bytes=split.bytes, num_examples=split.rows))
    info = DatasetInfo(
        features=Features.from_arrow_schema(config.schema),
        splits=splits,
        download_size=sum(shard.file.stat().st_size for shard in config.shards),
        dataset_size=sum(split.bytes for split in config.splits),
    )
    return {"config_name": config.name, **info._to_yaml_dict()}


def _template(name: str) -> Any:
    from jinja2 import Environment, StrictUndefined

    # The result is Markdown; `cell` takes the meaning from characters of names that come from data.
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)  # noqa: S701
    environment.filters |= {
        "cell": _cell,
        "code": _code,
        "number": lambda value: f"{value:,}",
        "counts": _counts,
        "figure": lambda value: f"{value:.4g}" if isinstance(value, float) else _cell(value),
        "columns": lambda config: column_types(config.schema).items(),
        "indented": _indented,
    }
    return environment.from_string((files("ptk.publish") / name).read_text(encoding="utf-8"))


def _counts(counts: Mapping[str, int] | None) -> str:
    return ", ".join(f"{count:,} {_code(name)}" for name, count in (counts or {}).items()) or "-"


def _indented(content: Any) -> str:
    """Return plain data as YAML in an indented block, which nothing inside can end."""
    text = yaml.dump(content, Dumper=_Blocks, sort_keys=False, allow_unicode=True, width=120)
    return "\n".join(f"    {line}" for line in text.splitlines())


class _Blocks(yaml.SafeDumper):
    """Writes texts of several lines as they are, line by line."""


_Blocks.add_representer(
    str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)
)


def _code(text: Any) -> str:
    """Return text as a code span for a cell of a table."""
    return "`" + " ".join(str(text).split()).replace("`", "'").replace("|", "\\|") + "`"


def _cell(text: Any) -> str:
    """Return text for a cell of a table: on one line, and nothing in it is Markdown or HTML."""
    line = " ".join(str(text).split())
    return re.sub(r"([\\`*\[\]|#])", r"\\\1", line).replace("<", "&lt;").replace(">", "&gt;")
