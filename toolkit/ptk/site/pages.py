"""Writes the site: a page for all entries, and one for every version, each with what the catalog knows of it."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import polars as pl

from ptk.errors import StoreError
from ptk.publish.changes import changes_between
from ptk.publish.lineage import recorded
from ptk.publish.models import told_facts
from ptk.publish.sources import sources_of
from ptk.site.figures import Bars, bars
from ptk.site.graph import Drawing, Node, drawn
from ptk.site.statistics import column_statistics

if TYPE_CHECKING:
    from ptk_catalog import Catalog, Version

__all__ = ["SiteSummary", "write_site"]

_MARKER = ".ptk-site"
_ROWS = 20
_LONGEST = 4000
"""The most characters of a value that a sample row shows."""
_PAIR = ("prompt", "chosen", "rejected")


@dataclass(frozen=True, slots=True)
class SiteSummary:
    """What was written."""

    folder: Path
    entries: int
    pages: int


def write_site(catalog: Catalog, out: Path, progress: Callable[[str], None] = lambda what: None) -> SiteSummary:
    """Write the catalog as a site into `out`; a site that is there is replaced at once, when the new one is whole.

    Statistics and rows are shown of the newest version of each entry and of tagged ones. Raises StoreError where `out` holds
    something else, CatalogError where a version can't be read.
    """
    if out.exists() and not (out / _MARKER).exists() and any(out.iterdir()):
        raise StoreError(f"{out} holds files that are no site of a catalog; name another folder")
    aside = out.absolute().with_name(f".{out.name}-{uuid.uuid4().hex[:8]}")
    try:
        summary = _Site(catalog, aside, progress).write()
        replaced = aside.with_name(f"{aside.name}-replaced")
        if out.exists():
            out.rename(replaced)
        aside.rename(out)
        shutil.rmtree(replaced, ignore_errors=True)
    except OSError as error:
        raise StoreError(f"can't write the site to {out}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return SiteSummary(out, summary[0], summary[1])


class _Site:
    """One writing of a site into an empty folder."""

    def __init__(self, catalog: Catalog, folder: Path, progress: Callable[[str], None]) -> None:
        from jinja2 import Environment, PackageLoader, StrictUndefined

        self.catalog = catalog
        self.folder = folder
        self.progress = progress
        # What a page shows comes from data: everything is escaped unless it was made here.
        self.templates = Environment(
            loader=PackageLoader("ptk.site"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
        )
        self.templates.filters |= {"number": lambda value: f"{value:,}", "bytes": _bytes, "day": lambda text: text[:10]}
        self.published = catalog.publications.of()

    def write(self) -> tuple[int, int]:
        self.folder.mkdir(parents=True)
        (self.folder / _MARKER).write_text(
            "A site of a catalog, written by ptk; it is replaced as a whole.\n", encoding="utf-8"
        )
        assets = self.folder / "assets"
        assets.mkdir()
        for asset in (files("ptk.site") / "assets").iterdir():
            (assets / asset.name).write_bytes(asset.read_bytes())
        entries = []
        pages = 1
        for entry in self.catalog.entries():
            self.progress(entry)
            versions = self.catalog.log(entry)
            for version in versions:
                self._write_version(version, versions)
                pages += 1
            entries.append(self._listed(versions))
        self._render("index.html", "index.html", entries=entries)
        return len(entries), pages

    def _render(self, template: str, page: str, **values: Any) -> None:
        path = self.folder / page
        path.parent.mkdir(parents=True, exist_ok=True)
        root = os.path.relpath(self.folder, path.parent)
        path.write_text(self.templates.get_template(template).render(root=root, **values), encoding="utf-8")

    def _listed(self, versions: list[Version]) -> dict[str, Any]:
        newest = versions[0]
        columns = [] if newest.kind == "model" else [column.name for column in newest.manifest.columns]
        lineage = recorded(newest)
        tags = sorted({tag for version in versions for tag in version.tags})
        words = [newest.entry, newest.kind, newest.licence or "", *tags, *columns]
        words += [step["operator"] for step in lineage["steps"]]
        words += [str(model["model"]) for model in lineage["models"]]
        if newest.kind == "model":
            words += [newest.model.base_model or "", *newest.model.trained_on]
        return {
            "version": newest,
            "versions": len(versions),
            "tags": tags,
            "columns": columns,
            "link": _page(newest),
            "words": " ".join(words).lower(),
        }

    def _write_version(self, version: Version, versions: list[Version]) -> None:
        here = _page(version)
        root = os.path.relpath(".", PurePath(here).parent)

        def link(other: Version) -> str:
            return f"{root}/{_page(other)}"

        lineage = recorded(version)
        previous = next((item for item in versions if item.number < version.number), None)
        shared = {
            "version": version,
            "versions": versions,
            "link": link,
            "lineage": lineage,
            "graph": self._graph(version, lineage, link),
            "made_from": [
                (relation, item, link(item)) for relation, item in _each_once(self.catalog.made_from(version.reference))
            ],
            "built_on": [
                (relation, item, link(item)) for relation, item in _each_once(self.catalog.built_on(version.reference))
            ],
            "sources": sources_of(version, self.catalog, lambda kind, name, revision: None),
            "rejected": [(step["name"], _rejects(step)) for step in lineage["steps"] if step["rejected"]],
            "published": [item for item in self.published if (item.entry, item.number) == (version.entry, version.number)],
        }
        if version.kind == "model":
            self._render("model.html", here, model=version.model, told=told_facts(version.model.facts), **shared)
            return
        is_whole = version.number == versions[0].number or bool(version.tags)
        dataset = self.catalog.load(version.reference)
        names = [column.name for column in version.manifest.columns]
        self._render(
            "dataset.html",
            here,
            manifest=version.manifest,
            is_whole=is_whole,
            is_pairs=set(_PAIR) <= set(names),
            has_personas=any(name.endswith("_persona") for name in names),
            columns=column_statistics(dataset) if is_whole else [],
            rows=list(_sample(dataset.scan().head(_ROWS).collect())) if is_whole else [],
            previous=previous,
            changes=changes_between(self.catalog, previous.reference, version) if previous is not None and is_whole else None,
            **shared,
        )

    def _graph(self, version: Version, lineage: Mapping[str, Any], link: Callable[[Version], str]) -> Drawing:
        """Return what the version was made from, the steps between, and what was built on it."""
        nodes: dict[str, Node] = {}
        edges: list[tuple[str, str]] = []
        made_from = _each_once(self.catalog.made_from(version.reference))
        drawn_above: set[str] = set()
        for step in lineage["steps"]:
            name = f"step {step['name']}"
            nodes[name] = Node(step["name"], f"{step['operator']}: {step['rows_out']:,} rows", "step")
        for step in lineage["steps"]:
            edges += [
                (f"step {source}", f"step {step['name']}")
                for source in dict.fromkeys(step["inputs"].values())
                if f"step {source}" in nodes
            ]
        for number, source in enumerate(lineage["sources"]):
            if f"step {source['step']}" in nodes:
                name = f"source {number}"
                nodes[name] = Node(", ".join(source["files"]), "file" if len(source["files"]) == 1 else "files", "source")
                edges.append((name, f"step {source['step']}"))
        for number, origin in enumerate(lineage["origins"]):
            if f"step {origin['step']}" not in nodes:
                continue
            above = next((item for _, item in made_from if item.reference == origin.get("entry")), None)
            name = f"origin {number}"
            if above is not None:
                name = above.reference
                nodes[name] = Node(above.reference, f"{above.rows:,} rows", "version", link(above))
                drawn_above.add(name)
            elif "hub" in origin:
                nodes[name] = Node(str(origin["hub"]), f"Hub, {str(origin.get('commit', ''))[:8]}", "source")
            else:
                nodes[name] = Node(str(origin.get("entry", origin["step"])), "another catalog", "source")
            edges.append((name, f"step {origin['step']}"))
        this = version.reference
        nodes[this] = Node(this, "this version", "this")
        if f"step {lineage['step']}" in nodes:
            edges.append((f"step {lineage['step']}", this))
        for relation, item in made_from:
            if item.reference not in drawn_above and item.reference != this:
                nodes[item.reference] = Node(item.reference, relation, item.kind, link(item))
                edges.append((item.reference, this))
        for relation, item in _each_once(self.catalog.built_on(this)):
            if item.reference not in nodes:
                nodes[item.reference] = Node(item.reference, relation, item.kind, link(item))
                edges.append((this, item.reference))
        return drawn(nodes, list(dict.fromkeys(edges)))


def _each_once(linked: Iterable[tuple[str, Version]]) -> list[tuple[str, Version]]:
    """Return versions with all relations that they have, in words."""
    relations: dict[str, list[str]] = {}
    versions: dict[str, Version] = {}
    for relation, version in linked:
        relations.setdefault(version.reference, []).append(relation.replace("_", " "))
        versions[version.reference] = version
    return [(", ".join(relations[name]), version) for name, version in versions.items()]


def _page(version: Version) -> str:
    # No segment of an entry's name holds an '@', so no page stands where another entry needs a folder.
    return f"e/{version.entry}@v{version.number}.html"


def _rejects(step: Mapping[str, Any]) -> Bars:
    counts = sorted(step["rejected"].items(), key=lambda item: (-item[1], item[0]))
    return bars(counts, f"Rejected rows of step {step['name']}")


def _sample(frame: pl.DataFrame) -> Iterator[dict[str, Any]]:
    """Yield rows ready to be shown: what a pair is made of, its personas, and everything else."""
    for row in frame.iter_rows(named=True):
        turns = {name: _turns(row[name]) for name in _PAIR if name in row}
        personas = {name.removesuffix("_persona"): _cut(value) for name, value in row.items() if name.endswith("_persona")}
        rest = {name: _shown(value) for name, value in row.items() if name not in turns and not name.endswith("_persona")}
        first = " ".join(" ".join(text for _, text in turns.get("prompt", [])).split())
        yield {"turns": turns, "personas": personas, "rest": rest, "title": first[:140] or "(no text)"}


def _turns(value: Any) -> list[tuple[str, str]]:
    if isinstance(value, str):
        return [("", _cut(value))]
    if isinstance(value, list) and all(isinstance(turn, dict) for turn in value):
        return [(str(turn.get("role", "")), _cut(turn.get("content", ""))) for turn in value]
    return [("", _shown(value))]


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return _cut(", ".join(map(_shown, value))) if value else "-"
    if isinstance(value, dict):
        return _cut("; ".join(f"{name}: {_shown(item)}" for name, item in value.items()))
    if isinstance(value, float):
        return f"{value:.6g}"
    return "-" if value is None else _cut(value)


def _cut(value: Any) -> str:
    text = "" if value is None else str(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} … ({len(text) - _LONGEST:,} more characters)"


def _bytes(count: int) -> str:
    size = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:,.0f} {unit}" if unit == "bytes" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:,.1f} TB"
