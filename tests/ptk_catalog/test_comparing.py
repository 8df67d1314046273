"""What changed between versions, what a version and its rows were made of, and versions written out for others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import ptk_catalog
from ptk_catalog import BadData, Catalog, CatalogError, NotFound
from ptk_catalog.digest import row_id


def pairs(*rows: tuple[str, str, str], **further: list[Any]) -> pl.DataFrame:
    """Rows of (prompt, chosen, rejected) with the ids that readers make."""
    frame = pl.DataFrame(rows, schema=["prompt", "chosen", "rejected"], orient="row")
    text = pl.String()
    return frame.select(
        row_id({"prompt": text, "chosen": text, "rejected": text}).alias("pair_id"),
        pl.concat_str("prompt", pl.min_horizontal("chosen", "rejected"), pl.max_horizontal("chosen", "rejected")).alias(
            "item_id"
        ),
        pl.all(),
        *(pl.Series(name, values) for name, values in further.items()),
    )


FIRST = pairs(
    ("Why?", "So.", "It depends."),
    ("How?", "Slowly, and with care.", "Fast."),
    ("When?", "Now.", "Later."),
    chosen_persona=["brief", "careful", "hasty"],
    score=[1, 2, 3],
)
# The second pair flipped, the third is gone, one is new, and a persona and a type changed.
SECOND = pairs(
    ("Why?", "So.", "It depends."),
    ("How?", "Fast.", "Slowly, and with care."),
    ("Why?", "Why not?", "No."),
    chosen_persona=["curt", "hasty", "curious"],
    score=[1.0, 2.0, 3.0],
)


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return ptk_catalog.open(tmp_path / "store")


def test_a_difference_is_told_in_the_terms_of_pairs(catalog: Catalog) -> None:
    catalog.commit("a", FIRST, key="pair_id", licence="mit")
    catalog.commit(
        "a", SECOND.with_columns(more=pl.lit("x")).drop("item_id").with_columns(SECOND["item_id"]), licence="cc0-1.0"
    )
    told = catalog.diff("a@v1", "a")
    assert (told["before"], told["after"], told["same"]) == ("a@v1", "a@v2", False)
    assert told["licence"] == {"before": "mit", "after": "cc0-1.0"}
    rows = {name: count for name, count in told["rows"].items() if name != "examples"}
    assert rows == {"before": 3, "after": 3, "added": 2, "removed": 2, "changed": 1, "unchanged": 0}
    assert told["rows"]["examples"]["changed"] == [FIRST["pair_id"][0]]
    assert told["flipped"] == {"items": 2, "flipped": 1, "judged_several_times": 0, "examples": [FIRST["item_id"][1]]}
    assert told["personas"] == {"chosen_persona": 1}
    assert told["columns"]["chosen_persona"] == {"changed": 1, "examples": [FIRST["pair_id"][0]]}
    assert told["schema"] == {"added": {"more": "string"}, "removed": {}, "retyped": {"score": ["int64", "float64"]}}
    assert told["length_bias"]["before"] == {"chosen_longer": 1 / 3, "mean_more_characters": pytest.approx((-8 + 17 - 2) / 3)}
    assert told["length_bias"]["after"]["chosen_longer"] == 1 / 3
    assert told["duplicates"] == {
        "before": {"prompt": 0.0, "item_id": 0.0},
        "after": {"prompt": pytest.approx(1 / 3), "item_id": 0.0},
    }
    assert set(told) - set(catalog.diff("a@v1", "a", measures=False)) == {"length_bias", "duplicates"}
    assert json.loads(json.dumps(told)) == told


def test_a_version_does_not_differ_from_itself_or_from_its_rows_in_another_order(catalog: Catalog) -> None:
    catalog.commit("a", FIRST, key="pair_id")
    catalog.commit("b", FIRST.reverse(), key="pair_id")
    for other in ("a", "b"):
        told = catalog.diff("a", other)
        assert (told["same"], told["rows"]["unchanged"], told["rows"]["added"], told["columns"]) == (True, 3, 0, {})


def test_items_that_were_judged_several_times_are_not_said_to_have_flipped(catalog: Catalog) -> None:
    both = pairs(("Why?", "So.", "No."), ("Why?", "No.", "So."))
    catalog.commit("a", both, key="pair_id")
    catalog.commit("a", both.head(1))
    assert catalog.diff("a@v1", "a@v2")["flipped"] == {"items": 1, "flipped": 0, "judged_several_times": 1, "examples": []}


def test_what_can_not_be_compared_is_refused(catalog: Catalog, tmp_path: Path) -> None:
    catalog.commit("a", FIRST, key="pair_id")
    catalog.commit("none", FIRST.drop("pair_id"), key=[])
    catalog.commit("number", pl.DataFrame({"pair_id": [1]}), key="pair_id")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "w").write_bytes(b"w")
    catalog.commit_model("m", tmp_path / "model")
    with pytest.raises(BadData, match="none@v1 none"):
        catalog.diff("a", "none")
    with pytest.raises(BadData, match="the keys can't be compared"):
        catalog.diff("a", "number")
    with pytest.raises(BadData, match="a@v1 is a dataset and m@v1 a model"):
        catalog.diff("a", "m")


def test_models_differ_in_files_metrics_and_what_they_were_made_of(catalog: Catalog, tmp_path: Path) -> None:
    catalog.commit("a", FIRST, key="pair_id")
    folder = tmp_path / "model"
    folder.mkdir()
    for name, content in (("same", b"s"), ("weights", b"1"), ("old", b"o")):
        (folder / name).write_bytes(content)
    catalog.commit_model("m", folder, base_model="org/base", metrics={"loss": 0.5})
    (folder / "old").unlink()
    (folder / "weights").write_bytes(b"2")
    (folder / "new").write_bytes(b"n")
    catalog.commit_model("m", folder, base_model="org/other", trained_on=["a"], metrics={"loss": 0.4})
    told = catalog.diff("m@v1", "m@v2")
    assert told["files"] == {"added": ["new"], "removed": ["old"], "changed": ["weights"]}
    assert told["metrics"] == {"loss": {"before": 0.5, "after": 0.4}}
    assert told["base_model"] == {"before": "org/base", "after": "org/other"}
    assert told["trained_on"] == {"before": [], "after": ["a@v1"]}


def test_lineage_goes_back_and_forward_all_the_way(catalog: Catalog, tmp_path: Path) -> None:
    catalog.commit("raw", FIRST, key="pair_id", parents=["a letter"])
    catalog.commit("mid", FIRST.select("pair_id", note=pl.lit("x")), base="raw", parents=["raw"])
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "w").write_bytes(b"w")
    catalog.commit_model("m", tmp_path / "model", trained_on=["mid", "raw"])
    back = catalog.lineage("m")
    assert [(item["version"], item["relations"]) for item in back["from"]] == [
        ("mid@v1", ["trained_on"]),
        ("raw@v1", ["trained_on"]),
    ]
    assert [(item["version"], item["relations"]) for item in back["from"][0]["from"]] == [("raw@v1", ["base", "parent"])]
    assert back["from"][1]["repeated"]
    assert back["from"][0]["from"][0]["other_parents"] == ["a letter"]
    forward = catalog.lineage("raw")["to"]
    assert [item["version"] for item in forward] == ["mid@v1", "m@v1"]
    assert [item["version"] for item in forward[0]["to"]] == ["m@v1"]


def test_a_row_is_traced_through_the_versions_that_it_was_built_on(catalog: Catalog) -> None:
    catalog.commit("raw", FIRST, key="pair_id")
    catalog.commit("mid", FIRST.select("pair_id", note=pl.lit("x")), base="raw")
    key = FIRST["pair_id"][1]
    told = catalog.row_lineage("mid", key[:10])
    assert told["key"] == {"pair_id": key}
    assert {item["column"]: item["made_in"] for item in told["columns"]} == {
        **dict.fromkeys(FIRST.columns, "raw@v1"),
        "note": "mid@v1",
    }
    assert catalog.row_lineage("raw", key)["built_on_it"] == ["mid@v1"]
    with pytest.raises(NotFound, match="no row whose pair_id begins with 'zz'"):
        catalog.row_lineage("mid", "zz")
    with pytest.raises(NotFound, match="several rows"):
        catalog.row_lineage("mid", "")


@pytest.mark.parametrize("form", ["parquet", "delta"])
def test_a_version_of_several_groups_is_written_out_whole_with_a_valid_description(
    catalog: Catalog, tmp_path: Path, form: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog.commit("raw", FIRST, key="pair_id", licence="mit")
    catalog.commit(
        "mid", FIRST.select("pair_id", turns=[[{"role": "user", "content": "é"}]]).tail(2), base="raw", licence="mit"
    )
    monkeypatch.setattr("ptk_catalog.parts.ROWS_PER_PART", 1)
    monkeypatch.setattr("ptk_catalog.export._AT_ONCE", 1)
    made = catalog.export("mid", tmp_path / "out", form=form)
    whole = catalog.load("mid").collect()
    if form == "delta":
        table = pytest.importorskip("deltalake").DeltaTable(tmp_path / "out")
        assert table.metadata().name == "mid"
        back = pl.read_delta(str(tmp_path / "out"))
    else:
        assert len(made.files) == 2
        back = pl.read_parquet([tmp_path / "out" / name for name in made.files])
    assert back.sort("pair_id").select(whole.columns).equals(whole.sort("pair_id"))
    described = json.loads((tmp_path / "out" / "croissant.json").read_text())
    assert {item["@id"] for item in described["distribution"]} == {*made.files, "rows-files"}
    assert described["recordSet"][0]["key"] == [{"@id": "rows/pair_id"}]
    mlcroissant = pytest.importorskip("mlcroissant")
    assert mlcroissant.Dataset(described).metadata.name == "mid"  # raises where the description is not valid
    with pytest.raises(CatalogError, match="is there already"):
        catalog.export("mid", tmp_path / "out", form=form)


def test_where_a_row_was_read_is_kept_beside_the_rows_and_is_no_part_of_them(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ptk_catalog.parts.ROWS_PER_PART", 2)
    places = FIRST.select("pair_id", _file=pl.lit("a.jsonl"), _line=pl.int_range(1, 4, dtype=pl.Int64)).reverse().head(2)
    plain = catalog.commit("plain", FIRST, key="pair_id")
    raw = catalog.commit_all([ptk_catalog.Commit("raw", FIRST, key="pair_id", places=places.lazy())])[0]
    assert raw.digest == plain.digest
    data = catalog.load("raw", verify=True)
    assert data.collect().equals(FIRST)
    assert pl.read_parquet(data.files()).equals(FIRST)
    assert list(data.to_torch(["score"])) == [{"score": 1}, {"score": 2}, {"score": 3}]
    keys = FIRST["pair_id"]
    assert [data.place([key]) for key in keys] == [None, ("a.jsonl", 2), ("a.jsonl", 3)]
    catalog.commit("mid", FIRST.select("pair_id", note=pl.lit("x")).tail(2), base="raw")
    assert catalog.load("mid", verify=True).place([keys[2]]) == ("a.jsonl", 3)
    assert catalog.row_lineage("mid", keys[1])["read_from"] == {"file": "a.jsonl", "line": 2, "version": "mid@v1"}
    assert catalog.row_lineage("plain", keys[1])["read_from"] is None
    assert catalog.gc(grace=0).files == 0
