"""The catalog's promises: what is committed is found again, whole, in one line of history, and nothing else ever shows."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ptk_catalog
from ptk_catalog import (
    BadData,
    BadReference,
    Catalog,
    CatalogError,
    Commit,
    Conflict,
    Damaged,
    NewerFormat,
    NotFound,
    TagExists,
    Version,
)

MESSAGES = pl.List(pl.Struct({"role": pl.String, "content": pl.String}))


def pairs(count: int, start: int = 0) -> pl.DataFrame:
    """Rows with a key, messages, a score and an empty value here and there."""
    return pl.DataFrame(
        {
            "pair_id": [f"p{n}" for n in range(start, start + count)],
            "prompt": [
                [{"role": "user", "content": f"Why {n}?"}, {"role": "assistant", "content": None}] for n in range(count)
            ],
            "score": [None if n % 5 == 0 else n / 3 for n in range(count)],
        },
        schema_overrides={"prompt": MESSAGES},
    )


def files_below(root: Path) -> dict[str, tuple[int, int]]:
    """Every file's size and modification time, by relative path."""
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


def part_paths(version: Version) -> list[list[str]]:
    return [[part.path for part in group.parts] for group in version.manifest.groups]


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return ptk_catalog.open(tmp_path / "store")


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of four rows, so that small frames fall into several."""
    monkeypatch.setattr("ptk_catalog.parts.ROWS_PER_PART", 4)


# Committing and loading


def test_nested_columns_come_back_as_they_were(catalog: Catalog) -> None:
    version = catalog.commit("hh/pairs", pairs(10), key="pair_id", licence="mit", lineage={"spec": {"name": "x"}})
    assert (version.reference, version.rows, version.created, version.tags) == ("hh/pairs@v1", 10, True, ())
    loaded = catalog.load("hh/pairs")
    assert loaded.collect().equals(pairs(10))
    assert loaded.collect().schema == pairs(10).schema
    assert loaded.schema == {"pair_id": "string", "prompt": "list<struct<content:string,role:string>>", "score": "float64"}
    assert (version.manifest.licence, version.manifest.lineage) == ("mit", {"spec": {"name": "x"}})


@pytest.mark.usefixtures("small_parts")
def test_frames_queries_and_files_of_the_same_rows_make_one_version(catalog: Catalog, tmp_path: Path) -> None:
    pairs(6).write_parquet(tmp_path / "0.parquet")
    pairs(10).tail(4).write_parquet(tmp_path / "1.parquet")
    first = catalog.commit("a", pairs(10), key="pair_id")
    for data in (pairs(10).lazy(), pairs(10).reverse(), [tmp_path / "1.parquet", tmp_path / "0.parquet"]):
        again = catalog.commit("a", data, key=["pair_id"])
        assert (again.reference, again.digest, again.created) == ("a@v1", first.digest, False)
    assert [version.reference for version in catalog.log("a")] == ["a@v1"]
    assert [part.rows for part in first.manifest.groups[0].parts] == [4, 4, 2]


def test_long_rows_lie_in_smaller_parts_and_row_groups(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"_AT_ONCE": 1, "BYTES_PER_PART": 40_000, "_BYTES_PER_GROUP": 21_000}.items():
        monkeypatch.setattr(f"ptk_catalog.parts.{name}", value)
    rows = pl.DataFrame({"pair_id": [f"p{number}" for number in range(9)], "text": ["a" * 10_000] * 6 + ["a"] * 3})
    version = catalog.commit("long", rows, key="pair_id")
    parts = version.manifest.groups[0].parts
    assert [part.rows for part in parts] == [4, 5]
    with pq.ParquetFile(catalog.storage.path(parts[0].path)) as file:
        assert [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)] == [2, 2]
    more = rows.select("pair_id", more="text").reverse()
    assert [part.rows for part in catalog.commit("long", more, base="long").manifest.groups[1].parts] == [4, 5]
    assert catalog.load("long", verify=True).collect().equals(rows.with_columns(more="text"))


def test_no_rows_are_a_version_too(catalog: Catalog) -> None:
    assert catalog.commit("empty", pairs(0), key="pair_id").rows == 0
    assert catalog.load("empty").collect().equals(pairs(0))
    catalog.verify("empty")


def test_another_licence_of_the_same_rows_is_another_version(catalog: Catalog) -> None:
    assert [catalog.commit("a", pairs(3), key="pair_id", licence=name).number for name in ("mit", "cc0-1.0", "cc0-1.0")] == [
        1,
        2,
        2,
    ]


def test_the_log_lists_versions_newest_first(catalog: Catalog) -> None:
    for count in (1, 2, 3):
        catalog.commit("a", pairs(count), key="pair_id")
    catalog.commit("b", pairs(9), key="pair_id")
    assert [(version.number, version.rows) for version in catalog.log("a")] == [(3, 3), (2, 2), (1, 1)]
    assert catalog.entries() == ["a", "b"]


@pytest.mark.parametrize(
    ("data", "key", "message"),
    [
        (pl.concat([pairs(3), pairs(1)]), None, "1 values of the key pair_id repeat: p0"),
        (pairs(3), "id", "no column 'id' to be the key; there is pair_id, prompt, score"),
        (pl.concat([pairs(3), pairs(1)]), "pair_id", "1 values of the key pair_id repeat: p0"),
        (pairs(3).with_columns(pair_id=pl.lit(None, pl.String)), "pair_id", "3 rows have no key"),
        (pairs(3).rename({"score": "_keep"}), "pair_id", "can't be called '_keep'"),
    ],
)
def test_data_without_a_proper_key_is_refused(catalog: Catalog, data: pl.DataFrame, key: str | None, message: str) -> None:
    with pytest.raises(BadData, match=message):
        catalog.commit("a", data, key=key)
    assert catalog.entries() == []


def test_a_key_left_out_is_that_of_the_newest_version_or_pair_id(catalog: Catalog) -> None:
    assert catalog.commit("a", pairs(3)).manifest.key == ("pair_id",)
    catalog.commit("b", pairs(3).with_columns(side=1), key=["pair_id", "side"])
    assert catalog.commit("b", pairs(4).with_columns(side=1)).manifest.key == ("pair_id", "side")


def test_rows_without_a_key_are_told_apart_by_all_their_values(catalog: Catalog) -> None:
    rows = pl.DataFrame({"text": ["x", "x", "y"], "n": [1, 1, None]})
    first = catalog.commit("a", rows)
    assert first.manifest.key == ()
    assert catalog.commit("a", rows.reverse().select("n", "text")).reference == "a@v1"
    assert catalog.commit("a", rows.unique()).reference == "a@v2"
    catalog.verify("a@v1")
    with pytest.raises(BadData, match="the rows of a@v1 have no key to build on"):
        catalog.commit("b", rows, base="a@v1")


def test_several_entries_are_committed_all_or_none(catalog: Catalog) -> None:
    catalog.commit("b", pairs(1), key="pair_id", tags=["stable"])
    new = [Commit("a", pairs(2), key="pair_id"), Commit("b", pairs(2), key="pair_id", tags=["stable"])]
    with pytest.raises(TagExists):
        catalog.commit_all(new)
    assert (catalog.entries(), [version.number for version in catalog.log("b")]) == (["b"], [1])
    new[1] = Commit("b", pairs(2), key="pair_id", tags=["stable"], move_tags=True)
    assert [version.reference for version in catalog.commit_all(new)] == ["a@v1", "b@v2"]


# Building on a base


@pytest.mark.usefixtures("small_parts")
def test_new_columns_of_a_base_are_aligned_by_key_and_share_its_parts(catalog: Catalog) -> None:
    base = catalog.commit("pairs", pairs(10), key="pair_id")
    personas = pairs(10).select("pair_id", persona=pl.format("likes {}", "pair_id")).filter(pl.col("pair_id") != "p4")
    version = catalog.commit("personas", personas.sample(fraction=1.0, shuffle=True, seed=1), base="pairs@v1")
    whole = pairs(10).join(personas, on="pair_id", how="inner", maintain_order="left")
    assert catalog.load("personas").collect().equals(whole)
    assert part_paths(version)[0] == part_paths(base)[0]
    assert [group.columns for group in version.manifest.groups] == [("pair_id", "prompt", "score"), ("persona",)]
    assert version.manifest.base is not None
    assert version.manifest.base.model_dump() == {"entry": "pairs", "number": 1, "digest": base.digest}
    assert catalog.commit("full", whole, key="pair_id").digest == version.digest
    catalog.verify("personas")
    chosen = catalog.load("personas").scan().select("persona").filter(pl.col("persona").str.ends_with("9"))
    assert chosen.collect().to_dict(as_series=False) == {"persona": ["likes p9"]}


@pytest.mark.usefixtures("small_parts")
def test_a_version_can_be_built_on_a_version_with_rejected_rows(catalog: Catalog) -> None:
    catalog.commit("a", pairs(10), key="pair_id")
    keys = pairs(10).select("pair_id")
    catalog.commit("a", keys.slice(2).with_columns(x=1), base="a@v1")
    third = catalog.commit("a", keys.slice(3, 5).with_columns(x=2, score=pl.lit("high")), base="a@v2")
    expected = pairs(10).slice(3, 5).with_columns(score=pl.lit("high"), x=2).select("pair_id", "prompt", "score", "x")
    assert catalog.load("a").collect().equals(expected.with_columns(pl.col("x").cast(pl.Int32)))
    assert catalog.commit("plain", catalog.load("a@v3").collect(), key="pair_id").digest == third.digest
    with pytest.raises(BadData, match="a@v2 has no row p0"):
        catalog.commit("a", keys.with_columns(y=1), base="a@v2")


def test_a_base_that_loses_no_row_needs_no_mask_and_keeps_its_sums(catalog: Catalog) -> None:
    base = catalog.commit("a", pairs(5), key="pair_id")
    version = catalog.commit("b", pairs(5).select("pair_id", x=pl.lit(1)), base="a")
    assert version.manifest.mask is None
    assert version.manifest.columns[:3] == base.manifest.columns


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (pl.DataFrame({"pair_id": ["p0", "zz"], "x": [1, 2]}), "a@v1 has no row zz"),
        (pl.DataFrame({"pair_id": ["p0", "p0"], "x": [1, 2]}), "repeat: p0"),
        (pl.DataFrame({"x": [1, 2]}), "lacks 'pair_id'"),
        (pl.DataFrame({"pair_id": [1], "x": [1]}), "the key 'pair_id' is int64, but string in a@v1"),
    ],
)
def test_columns_that_do_not_fit_their_base_are_refused(catalog: Catalog, data: pl.DataFrame, message: str) -> None:
    catalog.commit("a", pairs(3), key="pair_id")
    with pytest.raises(BadData, match=message):
        catalog.commit("b", data, base="a")
    assert catalog.entries() == ["a"]


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
@pytest.mark.usefixtures("small_parts")
def test_columns_find_their_rows_in_any_order_and_whatever_rows_are_left(tmp_path: Path, data: st.DataObject) -> None:
    catalog = ptk_catalog.open(tmp_path / uuid.uuid4().hex)
    whole = pairs(data.draw(st.integers(1, 14)))
    catalog.commit("a", whole, key="pair_id")
    rows = whole
    for name in ("first", "second"):
        keys = rows["pair_id"].to_list()
        chosen = data.draw(st.lists(st.sampled_from(keys), unique=True) if keys else st.just([]))
        if data.draw(st.booleans()):
            chosen = [key for key in keys if key in chosen or data.draw(st.booleans())]
        new = pl.DataFrame(
            {"pair_id": chosen, name: [f"{name} {key}" for key in chosen]}, schema={"pair_id": pl.String, name: pl.String}
        )
        rows = rows.join(new, on="pair_id", how="inner", maintain_order="left")
        version = catalog.commit("a", new if data.draw(st.booleans()) else new.lazy(), base="a")
        assert catalog.load("a", verify=True).collect().equals(rows)
        assert (version.manifest.mask is None) == (rows.height == whole.height)
        assert version.digest == catalog.commit(f"plain/{name}", rows, key="pair_id").digest


def test_a_query_is_run_once_for_a_version_with_a_base(catalog: Catalog) -> None:
    catalog.commit("a", pairs(6), key="pair_id")
    runs = []

    def number(frame: pl.DataFrame) -> pl.DataFrame:
        runs.append(frame.height)
        return frame.with_columns(x=len(runs))

    query = pairs(6).select("pair_id").lazy().map_batches(number, schema={"pair_id": pl.String, "x": pl.Int32})
    catalog.commit("b", query, base="a")
    assert sum(runs) == 6


# References and tags


def test_a_version_is_found_by_number_tag_and_digest(catalog: Catalog) -> None:
    first = catalog.commit("a", pairs(1), key="pair_id", tags=["stable"])
    second = catalog.commit("a", pairs(2), key="pair_id")
    prefix = first.digest[: len("sha256:") + 8]
    assert [catalog.version(f"a@{which}").number for which in ("v1", "v2", "stable", prefix, second.digest)] == [1, 2, 1, 1, 2]
    assert catalog.version("a").number == 2
    assert catalog.version("a@v1").tags == ("stable",)


@pytest.mark.parametrize("reference", ["b", "a@v2", "a@nope", "a@sha256:00000000"])
def test_what_is_not_there_is_not_found(catalog: Catalog, reference: str) -> None:
    catalog.commit("a", pairs(1), key="pair_id")
    with pytest.raises(NotFound) as caught:
        catalog.load(reference)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "name",
    [
        "",
        "../a",
        "a/../b",
        "/a",
        "a//b",
        "a/",
        "A",
        "a b",
        "a\n",
        ".a",
        "a..b",
        "a@",
        "a@V1",
        "a@v0",
        "a@sha256:12",
        "a@sha256:xyzxyzxyz",
    ],
)
def test_names_that_are_not_well_formed_or_leave_the_root_are_refused(catalog: Catalog, name: str) -> None:
    with pytest.raises(BadReference):
        catalog.load(name)
    with pytest.raises(BadReference):
        catalog.commit(name, pairs(1), key="pair_id")
    assert catalog.entries() == []


@pytest.mark.parametrize("tag", ["v3", "../x", "a/b", "sha256:12345678", "", "2026-11-01", "a@b"])
def test_a_tag_that_reads_like_something_else_is_refused(catalog: Catalog, tag: str) -> None:
    with pytest.raises(BadReference):
        catalog.commit("a", pairs(1), key="pair_id", tags=[tag])
    assert catalog.entries() == []


@pytest.mark.parametrize("path", ["/etc/passwd", "../secret", "parts/../../secret", "file:///etc/passwd", "s3://x/y", ""])
def test_a_path_that_leaves_the_root_is_refused(catalog: Catalog, path: str) -> None:
    with pytest.raises(CatalogError):
        catalog.storage.read(path)


def test_a_tag_moves_only_on_purpose_and_every_move_is_logged(catalog: Catalog) -> None:
    catalog.commit("a", pairs(1), key="pair_id", tags=["stable"])
    catalog.commit("a", pairs(2), key="pair_id")
    with pytest.raises(TagExists, match="stands on v1"):
        catalog.tag("a@v2", "stable")
    assert catalog.version("a@stable").number == 1
    catalog.tag("a@v2", "stable", move=True)
    catalog.tag("a@v2", "stable")
    assert catalog.version("a@stable").number == 2
    assert [move[:3] for move in catalog.tag_log("a")] == [("stable", None, 1), ("stable", 1, 2)]


def test_a_commit_made_from_an_older_version_conflicts(catalog: Catalog) -> None:
    version = catalog.commit("a", pairs(1), key="pair_id")
    catalog.commit("a", pairs(2), key="pair_id")
    with pytest.raises(Conflict, match="a is at v2 by now, not at v1"):
        catalog.commit("a", pairs(3), key="pair_id", newest=version.number)
    assert [one.number for one in catalog.log("a")] == [2, 1]


# Places


def test_a_moved_catalog_still_opens(catalog: Catalog, tmp_path: Path) -> None:
    catalog.commit("a", pairs(10), key="pair_id")
    catalog.commit("b", pairs(9).select("pair_id", x=pl.lit(1)), base="a")
    shutil.move(tmp_path / "store", tmp_path / "elsewhere")
    moved = ptk_catalog.open(tmp_path / "elsewhere", create=False)
    moved.verify("a")
    moved.verify("b")
    assert moved.load("a").collect().equals(pairs(10))
    assert moved.commit("a", pairs(3), key="pair_id").number == 2


@pytest.mark.parametrize("name", ["year=2026", "a[1]*", "50%20 é", "a;b,c", "what?#x"])
def test_a_folder_may_have_any_name(tmp_path: Path, name: str) -> None:
    catalog = ptk_catalog.open(tmp_path / name)
    catalog.commit("a", pairs(3), key="pair_id")
    assert ptk_catalog.open(tmp_path / name, create=False).load("a").collect().equals(pairs(3))


def test_no_file_of_a_catalog_names_the_folder_it_lies_in(catalog: Catalog, tmp_path: Path) -> None:
    catalog.commit("a", pairs(3), key="pair_id")
    for path in (tmp_path / "store").rglob("*"):
        assert not path.is_file() or str(tmp_path).encode() not in path.read_bytes()


def test_reading_leaves_every_file_as_it_was(catalog: Catalog, tmp_path: Path) -> None:
    catalog.commit("a", pairs(3), key="pair_id", tags=["stable"])
    before = files_below(tmp_path / "store")
    reader = ptk_catalog.open(tmp_path / "store", create=False)
    reader.load("a@stable").collect()
    reader.verify("a")
    reader.log("a")
    assert files_below(tmp_path / "store") == before


READ_AS_A_STRANGER = """
import os, sys
import polars, ptk_catalog.catalog
warm = ptk_catalog.open(sys.argv[2])  # a stranger may not be able to import what is needed later
warm.commit("a", polars.DataFrame({"k": [1]}), key="k")
warm.load("a").collect()
os.setuid(65534)
opened = ptk_catalog.open(sys.argv[1], create=False)
print([version.reference for version in opened.log("a")], opened.load("a").collect().height)
try:
    opened.commit("a", polars.DataFrame({"k": [1]}), key="k")
except ptk_catalog.CatalogError as error:
    print(error)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a user who may not write")
@pytest.mark.parametrize("with_log", [False, True])
def test_a_folder_that_can_only_be_read_opens_with_all_its_commits(tmp_path: Path, with_log: bool) -> None:
    store = tmp_path / "50%20 é?"
    writer = ptk_catalog.open(store)
    for count in (1, 2):
        writer.commit("a", pairs(count), key="pair_id")
    if with_log:  # what a killed writer leaves: a commit that is only in SQLite's log
        connection = writer._registry._engine.raw_connection()
        connection.execute("PRAGMA wal_autocheckpoint=0")
        connection.execute("SELECT * FROM ptk_meta").fetchall()
        writer.commit("a", pairs(3), key="pair_id")
        assert (store / "registry.sqlite-wal").stat().st_size > 0
        shutil.copytree(store, tmp_path / "copy")
        connection.close()
        store = tmp_path / "copy"
    for parent in (tmp_path, *tmp_path.parents[:2]):
        parent.chmod(0o755)
    command = [sys.executable, "-c", READ_AS_A_STRANGER, str(store), str(tmp_path / "warm")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    versions = ["a@v3", "a@v2", "a@v1"] if with_log else ["a@v2", "a@v1"]
    expected = f"{versions} {len(versions)}\nthis catalog can only be read: its folder can't be written\n"
    assert (done.stdout, done.stderr) == (expected, "")


READ_MOUNTED = """
import sys, polars, ptk_catalog
opened = ptk_catalog.open(sys.argv[1], create=False)
opened.verify("a")
print([version.reference for version in opened.log("a")], opened.load("a", verify=True).collect().height)
for write in (lambda: opened.commit("a", polars.DataFrame({"k": [1]}), key="k"), lambda: opened.tag("a@v1", "x"), opened.gc):
    try:
        write()
    except ptk_catalog.CatalogError as error:
        print(error)
"""
MOUNT = 'mount --bind "$0" "$1" && mount -o remount,ro,bind "$1" && shift && exec "$@"'


def can_mount() -> bool:
    return shutil.which("unshare") is not None and not subprocess.run(["unshare", "-m", "true"], check=False).returncode


@pytest.mark.skipif(not can_mount(), reason="this user may not mount")
def test_a_folder_that_is_mounted_read_only_opens_and_loads(catalog: Catalog, tmp_path: Path) -> None:
    catalog.commit("a", pairs(3), key="pair_id")
    catalog.commit("a", pairs(2))
    mount = tmp_path / "mounted"
    mount.mkdir()
    inside = [sys.executable, "-c", READ_MOUNTED, str(mount)]
    command = ["unshare", "-m", "sh", "-c", MOUNT, str(tmp_path / "store"), str(mount), *inside]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    refused = "this catalog can only be read: its folder can't be written\n" * 3
    assert (done.stdout, done.stderr) == (f"['a@v2', 'a@v1'] 2\n{refused}", "")


def test_a_place_without_a_catalog_is_not_found_and_stays_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="there is no catalog"):
        ptk_catalog.open(tmp_path / "nothing", create=False)
    assert list(tmp_path.iterdir()) == []


# Damage


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.usefixtures("small_parts")
def test_verify_names_a_part_with_a_flipped_bit_and_a_new_commit_mends_it(catalog: Catalog, tmp_path: Path) -> None:
    version = catalog.commit("a", pairs(10), key="pair_id")
    part = version.manifest.groups[0].parts[1].path
    flip(tmp_path / "store" / part)
    with pytest.raises(Damaged, match=part):
        catalog.verify("a")
    catalog.commit("a", pairs(10), key="pair_id")
    catalog.verify("a")


@pytest.mark.usefixtures("small_parts")
def test_load_and_verify_name_a_missing_part(catalog: Catalog, tmp_path: Path) -> None:
    catalog.commit("a", pairs(10), key="pair_id")
    part = catalog.version("a").manifest.groups[0].parts[2].path
    (tmp_path / "store" / part).unlink()
    with pytest.raises(Damaged, match=f"{part} is missing"):
        catalog.verify("a")
    with pytest.raises(Damaged, match=f"{part} is missing"):
        catalog.load("a").scan()


def manifest_path(store: Path) -> Path:
    (path,) = (store / "manifests").rglob("*.json")
    return path


def test_a_manifest_that_was_changed_or_is_missing_is_named(catalog: Catalog, tmp_path: Path) -> None:
    catalog.commit("a", pairs(3), key="pair_id", licence="mit")
    path = manifest_path(tmp_path / "store")
    content = path.read_bytes()
    path.write_bytes(content.replace(b'"mit"', b'"cc0"'))
    with pytest.raises(Damaged, match=f"{path.name} was changed"):
        catalog.load("a")
    path.write_bytes(content[:50])
    with pytest.raises(Damaged, match=path.name):
        catalog.load("a")
    path.unlink()
    with pytest.raises(Damaged, match=f"{path.name} is missing"):
        catalog.load("a")


def test_a_manifest_of_a_newer_format_is_refused(catalog: Catalog, tmp_path: Path) -> None:
    catalog.commit("a", pairs(3), key="pair_id")
    path = manifest_path(tmp_path / "store")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 3, "shards": []}))
    with pytest.raises(NewerFormat, match="has format 3; this package reads up to 2"):
        catalog.load("a")


def test_a_catalog_of_a_newer_format_is_refused(catalog: Catalog, tmp_path: Path) -> None:
    (tmp_path / "store" / "catalog.json").write_text('{"format": 9}')
    with pytest.raises(NewerFormat, match="has format 9; this package reads up to 1"):
        ptk_catalog.open(tmp_path / "store")


def test_a_registry_that_is_gone_is_not_replaced_by_an_empty_one(catalog: Catalog, tmp_path: Path) -> None:
    catalog.commit("a", pairs(3), key="pair_id")
    (tmp_path / "store" / "registry.sqlite").unlink()
    with pytest.raises(Damaged, match=r"registry\.sqlite is missing"):
        ptk_catalog.open(tmp_path / "store")


# Other libraries


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("convert", [lambda data: data.to_dask().compute(), lambda data: data.to_datasets().to_pandas()])
def test_other_libraries_get_the_kept_rows(catalog: Catalog, convert: Callable[[ptk_catalog.Dataset], object]) -> None:
    catalog.commit("a", pairs(10), key="pair_id")
    catalog.commit("b", pairs(10).select("pair_id", x=pl.lit("é")).tail(7), base="a")
    got = pl.from_pandas(convert(catalog.load("b")))  # type: ignore[call-overload]
    assert got.select(pl.all().exclude("prompt")).equals(catalog.load("b").collect().select(pl.all().exclude("prompt")))
    assert got["prompt"][0].to_list() == pairs(10)["prompt"][3].to_list()


def test_importing_the_package_alone_loads_no_library() -> None:
    code = "import ptk_catalog, sys; print(sorted({'polars', 'sqlalchemy', 'pydantic', 'fsspec'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_every_public_name_is_listed_in_order_and_can_be_had() -> None:
    assert ptk_catalog.__all__ == sorted(ptk_catalog.__all__)
    assert all(getattr(ptk_catalog, name) for name in ptk_catalog.__all__)
