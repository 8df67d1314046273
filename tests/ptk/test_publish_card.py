"""The README and the Croissant file of a publication."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

import ptk_catalog
from ptk.publish.card import card, is_ours, merged
from ptk.publish.layout import configurations, write_config
from ptk.publish.licences import Source
from ptk_catalog.croissant import Repository, croissant

NASTY = "evil | `x` <script>alert(1)</script>\n\n# heading"


def version(folder: Path, **more: Any) -> ptk_catalog.Version:
    rows = pl.DataFrame({"pair_id": ["a", "b"], "prompt": ["p", "q"], "chosen": ["c", "c"], "rejected": ["r", "r"]})
    rows = rows.with_columns(chosen_persona=pl.lit("The user ..."), **{"odd|name": pl.lit(1)})
    lineage = {
        "spec": {"name": "demo", "text": "ptk: 1\n", "digest": "sha256:0"},
        "steps": [
            {
                "name": "pairs",
                "operator": "read_pairs",
                "rows_in": 12_000,
                "rows_out": 2,
                "rejected": {"malformed": 11_998, NASTY: 1},
                "flagged": {},
                "params": {"prompt": NASTY},
            }
        ],
        "prompts": [{"step": "pairs", "option": "prompt", "name": NASTY, "sha256": "0", "content": {"system": NASTY}}],
        "models": [{"step": "pairs", "model": NASTY, "revision": None, "identity": {}}],
    }
    return ptk_catalog.open(folder / "store").commit("demo/set", rows, **{"licence": "cc-by-4.0", "lineage": lineage, **more})


def made(folder: Path, **more: Any) -> str:
    found = version(folder, **more)
    frame = ptk_catalog.open(folder / "store").load("demo/set").scan()
    columns = [column.name for column in found.manifest.columns]
    configs = [write_config(frame, name, names, folder) for name, names in configurations(columns, found.manifest.key).items()]
    sources = [Source(NASTY, "mit", NASTY, "sha256:1", hub="org/other")]
    return card(found, "org/name", "v1", configs, sources, "`demo/set@v0`", ["1 row was added"])


def header(readme: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(readme.split("---\n")[1])
    return found


def test_the_header_says_what_the_hub_asks_for(tmp_path: Path) -> None:
    found = header(made(tmp_path))
    assert found["license"] == "cc-by-4.0"
    assert found["source_datasets"] == ["org/other"]
    assert found["size_categories"] == ["n<1K"]
    assert {"preference", "dpo", "personas"} <= set(found["tags"])
    assert [config["config_name"] for config in found["configs"]] == ["pairs", "personas"]
    assert found["configs"][0] == {
        "config_name": "pairs",
        "default": True,
        "data_files": [{"split": "train", "path": "data/train-*"}],
    }
    assert found["dataset_info"][0]["splits"][0]["num_examples"] == 2


@pytest.mark.parametrize(
    ("licence", "expected"),
    [(None, {"license": "unknown"}), ("Our Own", {"license": "other", "license_name": "our-own"}), ("MIT", {"license": "mit"})],
)
def test_a_licence_that_the_hub_has_no_id_for_goes_by_its_name(
    licence: str | None, expected: dict[str, str], tmp_path: Path
) -> None:
    found = header(made(tmp_path, licence=licence))
    assert {name: value for name, value in found.items() if name.startswith("license")} == expected


def test_the_body_tells_counts_changes_sources_and_limits(tmp_path: Path) -> None:
    readme = made(tmp_path)
    assert "| 12,000 | 2 | 1 `evil" in readme
    assert ", 11,998 `malformed` | - |" in readme
    assert "Since `demo/set@v0`:\n\n- 1 row was added" in readme
    assert 'load_dataset("org/name", "personas", revision="v1")' in readme
    assert "Personas were inferred by a model" in readme
    assert "\n\n\n" not in readme


def test_text_from_data_stays_text(tmp_path: Path) -> None:
    readme = made(tmp_path)
    code = re.compile(r"^    .*$|`[^`]*`", re.MULTILINE)  # where nothing has a meaning
    assert "<script>" in readme
    assert "<script>" not in code.sub("", readme)
    assert "\n# heading" not in readme
    assert "| `odd\\|name` | `int32` |" in readme


def test_what_people_wrote_into_a_card_is_kept(tmp_path: Path) -> None:
    first = made(tmp_path)
    there = first.replace("pretty_name: demo/set", "pretty_name: mine\nlanguage: [en]\nlicense_name: old")
    there = there.replace("<!-- ptk: begin", "# Welcome\n\n<!-- ptk: begin").replace("1 row was added", "OLD") + "\nThanks!\n"
    new = merged(first, there)
    assert header(new)["language"] == ["en"]
    assert header(new)["pretty_name"] == "demo/set"
    assert "license_name" not in header(new)
    assert new.index("# Welcome") < new.index("# demo/set") < new.index("Thanks!")
    assert "OLD" not in new
    assert merged(first, new) == new
    assert merged(first, first) == first


def test_a_readme_of_somebody_else_is_told_from_ours(tmp_path: Path) -> None:
    assert is_ours(made(tmp_path))
    assert not is_ours("# A dataset\n")


def test_croissant_names_files_and_fields(tmp_path: Path) -> None:
    found = version(tmp_path)
    frame = pl.LazyFrame({"prompt": [[{"role": "user", "content": "x"}]], "score": [0.5]})
    config = write_config(frame, "full", ["prompt", "score"], tmp_path)
    address = "http://hub/datasets/org/name"
    told = croissant(found, [config.records], Repository(address, f"{address}/tree/v1"))
    assert [item["@id"] for item in told["distribution"]] == ["repo", "full-files"]
    prompt, score = told["recordSet"][0]["field"]
    assert prompt["repeated"]
    assert [field["@id"] for field in prompt["subField"]] == ["full/prompt/role", "full/prompt/content"]
    assert score["dataType"] == "sc:Float"
    mlcroissant = pytest.importorskip("mlcroissant")
    assert mlcroissant.Dataset(told).metadata.name == "demo-set"  # raises where the description is not valid
    assert score["source"] == {"fileSet": {"@id": "full-files"}, "extract": {"column": "score"}}
