"""What a run registers: files shared with the version that was read, and where every column comes from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import ptk_catalog
from ptk.engines.dask import DaskEngine
from ptk.engines.polars import PolarsEngine
from ptk.execute import RunSummary, run_plan
from ptk.plan import make_plan
from ptk.progress import Quiet
from ptk.spec import load_spec
from ptk.work import WorkStore
from ptk_catalog import Version

AGAIN = """\
ptk: 1
name: again
models:
  labeler: {backend: scripted, model: persona}
steps:
  pairs:    {op: read_pairs, entry: raw@stable, licence: mit, terms: Ask first.}
  kept:     {op: filter_rows, from: pairs, where: CONDITION}
  personas: {op: infer_personas, from: kept, model: labeler, exemplars: exemplars.yaml}
outputs:
  personas: {from: personas}
"""


def run(folder: Path, spec: str) -> RunSummary:
    work = WorkStore(folder / ".ptk")
    plan = make_plan(load_spec(folder / spec, str(folder / "catalog")), work)
    return run_plan(plan, work, lambda: ptk_catalog.open(folder / "catalog"), Quiet())


@pytest.fixture
def raw(project: Path) -> Path:
    """The project, with its ten pairs committed as raw@v1."""
    (project / "raw.yaml").write_text(
        "ptk: 1\nname: raw\nsteps:\n  pairs: {op: read_pairs, path: pairs.jsonl, licence: cc0-1.0}\n"
        "outputs:\n  raw: {from: pairs, licence: cc-by-4.0, tags: [stable]}\n"
    )
    run(project, "raw.yaml")
    return project


def again(folder: Path, condition: str = "'true'") -> Version:
    (folder / "again.yaml").write_text(AGAIN.replace("CONDITION", condition))
    (version,) = run(folder, "again.yaml").versions
    return version


def test_new_columns_of_a_version_that_was_read_are_all_that_is_written(raw: Path) -> None:
    catalog = ptk_catalog.open(raw / "catalog", create=False)
    version = again(raw)
    base = catalog.version("raw@v1")
    assert version.manifest.groups[0].parts == base.manifest.groups[0].parts
    assert version.manifest.groups[1].columns == ("chosen_persona", "rejected_persona", "persona_flags")
    assert (version.manifest.base.entry, version.manifest.mask) == ("raw", None) if version.manifest.base else False
    assert version.parents == ("raw@v1",)
    assert [(how, one.reference) for how, one in catalog.built_on("raw")] == [
        ("base", "personas@v1"),
        ("parent", "personas@v1"),
    ]
    catalog.verify("personas")
    whole = catalog.commit("whole", catalog.load("personas").collect(), key="pair_id")
    assert whole.digest == version.digest


def test_rows_that_were_rejected_are_masked_and_a_small_rest_is_written_anew(raw: Path) -> None:
    ids = ptk_catalog.open(raw / "catalog").load("raw").collect()["pair_id"].sort().to_list()
    most = again(raw, f"\"pair_id <> '{ids[0]}'\"")
    assert (most.rows, most.manifest.mask is not None, len(most.manifest.groups)) == (9, True, 3)
    few = again(raw, f"\"pair_id < '{ids[3]}'\"")
    assert (few.rows, few.manifest.mask, few.manifest.base, few.parents) == (3, None, None, ("raw@v1",))
    for version in (most, few):
        ptk_catalog.open(raw / "catalog").verify(version.reference)


def test_columns_that_were_replaced_or_left_out_are_not_shared(raw: Path) -> None:
    (raw / "other.yaml").write_text(
        "ptk: 1\nname: other\nsteps:\n  pairs: {op: read_pairs, entry: raw, keep: [], source: ours}\n"
        "  told: {op: derive_columns, from: pairs, columns: {item_id: \"'x'\", length: '1'}}\n"
        "outputs:\n  other: {from: told}\n"
    )
    catalog = ptk_catalog.open(raw / "catalog")
    catalog.commit("raw", catalog.load("raw").collect().with_columns(source=pl.lit("theirs"), extra=1), key="pair_id")
    (version,) = run(raw, "other.yaml").versions
    rows = catalog.load("other").collect()
    assert set(rows.columns) == {"pair_id", "item_id", "prompt", "chosen", "rejected", "source", "length"}
    assert (rows["source"].unique().to_list(), rows["item_id"].unique().to_list()) == (["ours"], ["x"])
    assert set(version.manifest.groups[1].columns) == {"source", "item_id", "length"}
    catalog.verify("other")


def test_another_catalog_is_read_and_not_shared_with(raw: Path) -> None:
    spec = raw / "again.yaml"
    spec.write_text(AGAIN.replace("CONDITION", "'true'"))
    work = WorkStore(raw / ".ptk2")
    plan = make_plan(load_spec(spec, str(raw / "catalog")), work)
    (version,) = run_plan(plan, work, lambda: ptk_catalog.open(raw / "elsewhere"), Quiet()).versions
    assert (version.manifest.base, version.parents) == (None, ())
    ptk_catalog.open(raw / "elsewhere").verify("personas")


def test_lineage_tells_steps_columns_prompts_licences_and_models(raw: Path) -> None:
    lineage: Any = again(raw).lineage
    steps = {step["name"]: step for step in lineage["steps"]}
    assert steps["personas"]["columns"] == ["chosen_persona", "rejected_persona", "persona_flags"]
    assert {step["name"]: step["version"] for step in lineage["steps"]} == {
        name: step["version"] for name, step in steps.items()
    }
    assert [(one["option"], one["name"], len(one["sha256"])) for one in lineage["prompts"]] == [
        ("exemplars", "exemplars.yaml", 64),
        ("prompt", "infer_personas", 64),
    ]
    assert lineage["origins"][0]["entry"] == "raw@v1"
    assert [(one["source"], one["licence"], one["terms"]) for one in lineage["licences"]] == [
        ("raw@v1", "mit", "Ask first."),
        ("pairs.jsonl", "cc0-1.0", None),
    ]
    assert lineage["models"][0]["sampling"]["max_tokens"] > 0


@pytest.mark.parametrize("on_repeat", ["reject", "number"])
@pytest.mark.parametrize("engine", ["polars", "dask"])
def test_every_row_knows_the_file_and_line_that_it_was_read_from(project: Path, engine: str, on_repeat: str) -> None:
    lines = (project / "pairs.jsonl").read_text().splitlines()
    (project / "more.jsonl").write_text("\n".join(["{not json", lines[3], *lines[:2]]) + "\n")
    (project / "raw.yaml").write_text(
        "ptk: 1\nname: raw\nsteps:\n"
        f"  pairs: {{op: read_pairs, path: '*.jsonl', on_repeat: {on_repeat}, max_malformed: 0.5}}\n"
        "  decent: {op: filter_rows, from: pairs, where: \"prompt_text <> 'Question 7?'\"}\noutputs:\n  raw: {from: decent}\n"
    )
    work = WorkStore(project / ".ptk")
    plan = make_plan(load_spec(project / "raw.yaml", str(project / "catalog")), work)
    opened = PolarsEngine() if engine == "polars" else DaskEngine(project / ".ptk", workers=1)
    try:
        run_plan(plan, work, lambda: ptk_catalog.open(project / "catalog"), Quiet(), opened)
    finally:
        opened.close()
    catalog = ptk_catalog.open(project / "catalog", create=False)
    data = catalog.load("raw", verify=True)
    rows = data.collect()
    assert rows.height == (9 if on_repeat == "reject" else 12)
    places = [data.place([row]) for row in rows["pair_id"]]
    assert len(set(places)) == len(places)
    for row, place in zip(rows.to_dicts(), places, strict=True):
        assert place is not None
        read = json.loads((project / place[0]).read_text().splitlines()[place[1] - 1])
        assert [read["prompt"], read["chosen"]] == [row["prompt"][0]["content"], row["chosen"][0]["content"]]
    (project / "again.yaml").write_text(
        AGAIN.replace("raw@stable", "raw").replace("CONDITION", "\"prompt_text = 'Question 5?'\"")
    )
    run(project, "again.yaml")
    (row,) = catalog.load("personas").collect()["pair_id"]
    assert catalog.version("personas").manifest.base is None  # most rows were left out: written anew, and traced all the same
    assert catalog.row_lineage("personas", row)["read_from"] == {"file": "pairs.jsonl", "line": 6, "version": "raw@v1"}
