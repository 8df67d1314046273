"""The same catalog on a folder or S3, with its registry in SQLite or Postgres."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

import ptk_catalog
from ptk_catalog import BadData, Catalog, CatalogError, Conflict, Damaged, NewerFormat, NotFound, OlderFormat, TagExists

ROWS = pl.DataFrame({"k": [f"k{n}" for n in range(10)], "n": range(10), "text": [f"é {n}" for n in range(10)]})


@pytest.fixture(params=["folder and sqlite", "folder and postgres", "s3 and postgres", "s3 and sqlite"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, str | None]:
    """A root and the registry's URL."""
    root = str(request.getfixturevalue("bucket")) + "/team/store" if "s3" in request.param else str(tmp_path / "store")
    if "postgres" in request.param:
        return root, str(request.getfixturevalue("postgres"))
    return root, f"sqlite:///{tmp_path}/registry.sqlite" if "s3" in request.param else None


def test_what_is_committed_is_found_and_loaded(
    place: tuple[str, str | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PTK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("ptk_catalog.parts.ROWS_PER_PART", 4)
    root, registry = place
    catalog = ptk_catalog.open(root, registry=registry)
    first = catalog.commit("a", ROWS, key="k", tags=["stable"], licence="mit")
    second = catalog.commit("b", ROWS.select("k", x=pl.col("n") * 2).tail(7), base="a@stable", parents=["a"])
    opened = ptk_catalog.open(root, registry=registry, create=False)
    assert opened.load("a@stable", verify=True).collect().equals(ROWS)
    assert opened.load("b").collect(["x", "k"], [("n", ">=", 8)]).rows() == [(16, "k8"), (18, "k9")]
    assert opened.load("b").scan().select(pl.len()).collect().item() == 7
    assert opened.load("b").scan().head(2).collect()["k"].to_list() == ["k3", "k4"]
    assert [row["x"] for row in opened.load("b").to_torch(["x"])] == [6, 8, 10, 12, 14, 16, 18]
    assert opened.load("b").to_dask(["n"]).compute()["n"].tolist() == [3, 4, 5, 6, 7, 8, 9]
    opened.verify("b")
    assert [version.reference for version in opened.newest()] == ["a@v1", "b@v1"]
    assert [(how, version.reference) for how, version in opened.built_on("a")] == [("base", "b@v1"), ("parent", "b@v1")]
    with pytest.raises(TagExists):
        catalog.commit("a", ROWS.head(2), tags=["stable"])
    catalog.commit("a", ROWS.head(2), tags=["stable"], move_tags=True)
    assert [move[:3] for move in catalog.tag_log("a")] == [("stable", None, 1), ("stable", 1, 2)]
    assert catalog.version(f"a@{first.digest[:20]}").number == 1
    assert catalog.version("a@2100-01-01").number == 2
    with pytest.raises(Conflict):
        catalog.commit("a", ROWS.head(3), newest=1)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights").write_bytes(b"w" * 1000)
    catalog.commit_model("m", folder, trained_on=["b"])
    assert (catalog.load_model("m") / "weights").read_bytes() == b"w" * 1000
    catalog.verify("m")
    assert second.rows == 7


def test_a_sweep_removes_what_no_version_needs(place: tuple[str, str | None]) -> None:
    root, registry = place
    catalog = ptk_catalog.open(root, registry=registry)
    catalog.commit("a", ROWS, key="k", tags=["stable"])
    with pytest.raises(TagExists):
        catalog.commit("a", ROWS.head(5), tags=["stable"])
    assert catalog.gc() == ptk_catalog.Swept(files=0, bytes=0, young=2, kept=2)
    told = catalog.gc(grace=0, dry_run=True)
    assert (told.files, told.young, told.kept) == (2, 0, 2)
    assert catalog.gc(grace=0) == told
    assert catalog.gc(grace=0).files == 0
    catalog.verify("a")


def test_a_missing_and_a_changed_file_are_named(place: tuple[str, str | None]) -> None:
    root, registry = place
    catalog = ptk_catalog.open(root, registry=registry)
    version = catalog.commit("a", ROWS, key="k")
    part = version.manifest.groups[0].parts[0].path
    content = bytearray(catalog.storage.read(part))
    content[len(content) // 2] ^= 1
    catalog.storage.write(part, bytes(content))
    with pytest.raises(Damaged, match=part):
        catalog.verify("a")
    catalog.storage.remove(part)
    with pytest.raises(Damaged, match=f"{part} is missing"):
        ptk_catalog.open(root, registry=registry).load("a").scan()
    row = catalog.version("a").file.row.manifest
    catalog.storage.remove(row)
    with pytest.raises(Damaged, match=f"{row} is missing"):
        catalog.load("a")
    for care in (lambda: catalog.verify("a"), lambda: catalog.gc(grace=0)):
        with pytest.raises(Damaged, match=f"{row} is missing"):
            care()


# Registries elsewhere


def test_an_object_store_needs_a_registry(bucket: str, postgres: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadData, match="set PTK_REGISTRY"):
        ptk_catalog.open(f"{bucket}/store")
    monkeypatch.setenv("PTK_REGISTRY", postgres)
    ptk_catalog.open(f"{bucket}/store").commit("a", ROWS, key="k")
    assert ptk_catalog.open(f"{bucket}/store", create=False).entries() == ["a"]


def test_a_registry_belongs_to_one_catalog(tmp_path: Path, postgres: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ptk_catalog.open(tmp_path / "a", registry=postgres).commit("a", ROWS, key="k")
    with pytest.raises(CatalogError, match="belongs to another catalog") as caught:
        ptk_catalog.open(tmp_path / "b", registry=postgres)
    assert "secret-word" not in str(caught.value)
    other = ptk_catalog.open(tmp_path / "own")
    with pytest.raises(BadData, match="has a registry of its own"):
        ptk_catalog.open(other.root, registry=postgres)
    with pytest.raises(BadData, match="has its registry elsewhere"):
        ptk_catalog.open(tmp_path / "a")
    monkeypatch.setenv("PTK_REGISTRY", postgres)
    assert ptk_catalog.open(tmp_path / "a").entries() == ["a"]
    assert ptk_catalog.open(tmp_path / "own").entries() == []


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://someone:secret-word@127.0.0.1:1/none",
        "postgresql://:secret-word@@/",
        "secret-word",
        "nosuch://a:secret-word@b/c",
    ],
)
def test_no_password_is_told_when_a_registry_can_not_be_reached(tmp_path: Path, url: str) -> None:
    with pytest.raises(CatalogError, match="registry") as caught:
        ptk_catalog.open(tmp_path / "store", registry=url)
    assert "secret-word" not in str(caught.value)


def test_a_role_that_may_only_read_reads(tmp_path: Path, postgres: str) -> None:
    import psycopg

    ptk_catalog.open(tmp_path / "store", registry=postgres).commit("a", ROWS, key="k")
    role = f"reader_{postgres.rsplit('/', 1)[1]}"
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {role} LOGIN")
        connection.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")
    reader = ptk_catalog.open(tmp_path / "store", registry=postgres.replace("ptk:", f"{role}:"), create=False)
    assert reader.load("a").collect().equals(ROWS)
    with pytest.raises(CatalogError, match="can only be read: permission denied"):
        reader.commit("a", ROWS.head(1))


# Formats

OLD = """
CREATE TABLE ptk_meta (name VARCHAR(64) NOT NULL, value VARCHAR(256) NOT NULL, PRIMARY KEY (name));
CREATE TABLE ptk_versions (entry VARCHAR(512) NOT NULL, number INTEGER NOT NULL, digest VARCHAR(80) NOT NULL,
 manifest VARCHAR(256) NOT NULL, licence VARCHAR(256), rows BIGINT NOT NULL, created_at VARCHAR(40) NOT NULL,
 PRIMARY KEY (entry, number));
CREATE INDEX ix_ptk_versions_digest ON ptk_versions (digest);
CREATE TABLE ptk_tags (entry VARCHAR(512) NOT NULL, tag VARCHAR(128) NOT NULL, number INTEGER NOT NULL, PRIMARY KEY (entry, tag));
CREATE TABLE ptk_tag_log (id SERIAL_KEY, entry VARCHAR(512) NOT NULL, tag VARCHAR(128) NOT NULL,
 moved_from INTEGER, moved_to INTEGER NOT NULL, at VARCHAR(40) NOT NULL);
INSERT INTO ptk_meta VALUES ('format', '1');
"""


def made_old(catalog: Catalog, tmp_path: Path, postgres: str | None) -> None:
    """Turn the catalog's registry into one of the first format."""
    copied = [
        (row.entry, row.number, row.digest, row.manifest, row.licence, row.rows, row.created_at)
        for row in catalog._registry.versions()
    ]
    identity = catalog._registry.meta("catalog")
    statements = OLD.replace("SERIAL_KEY", "SERIAL PRIMARY KEY" if postgres else "INTEGER PRIMARY KEY")
    mark = "%s" if postgres else "?"
    insert = f"INSERT INTO ptk_versions VALUES ({', '.join([mark] * 7)})"
    if postgres:
        import psycopg

        with psycopg.connect(postgres, autocommit=True) as connection:
            connection.execute("DROP TABLE ptk_meta, ptk_versions, ptk_tags, ptk_tag_log, ptk_links, ptk_commits")
            for statement in filter(str.strip, statements.split(";")):
                connection.execute(statement)
            for row in copied:
                connection.execute(insert, row)
            connection.execute("INSERT INTO ptk_meta VALUES ('catalog', %s)", (identity,))
        return
    for name in ("registry.sqlite", "registry.sqlite-wal", "registry.sqlite-shm"):
        (tmp_path / "store" / name).unlink(missing_ok=True)
    with sqlite3.connect(tmp_path / "store" / "registry.sqlite") as connection:
        connection.executescript(statements)
        connection.executemany(insert, copied)


def test_a_registry_of_the_first_format_is_read_and_migrated(tmp_path: Path, registry: Callable[[], str | None]) -> None:
    url = registry()
    new = ptk_catalog.open(tmp_path / "store", registry=url)
    new.commit("a", ROWS, key="k", licence="mit")
    new.commit("b", ROWS.select("k", x=1), base="a", parents=["a", "a letter"])
    before = {version.reference: (version.kind, version.bytes) for version in new.newest()}
    made_old(new, tmp_path, url)
    old = ptk_catalog.open(tmp_path / "store", registry=url, create=False)
    assert old.load("b@v1").collect().equals(ROWS.with_columns(x=1))
    assert [(version.reference, version.kind, version.licence) for version in old.newest()] == [
        ("a@v1", "dataset", "mit"),
        ("b@v1", "dataset", None),
    ]
    for write in (
        lambda: old.commit("a", ROWS.head(1)),
        lambda: old.tag("a", "x"),
        old.gc,
        lambda: old.built_on("a"),
    ):
        with pytest.raises(OlderFormat, match="ptk catalog migrate"):
            write()
    assert old.migrate() == (1, 2)
    assert old.migrate() == (2, 2)
    again = ptk_catalog.open(tmp_path / "store", registry=url, create=False)
    assert {version.reference: (version.kind, version.bytes) for version in again.newest()} == before
    assert [(how, version.reference) for how, version in again.built_on("a")] == [("base", "b@v1"), ("parent", "b@v1")]
    assert again.commit("a", ROWS.head(1)).number == 2
    again.verify("b")


def test_a_registry_of_a_newer_format_is_refused(tmp_path: Path) -> None:
    ptk_catalog.open(tmp_path / "store")
    with sqlite3.connect(tmp_path / "store" / "registry.sqlite") as connection:
        connection.execute("UPDATE ptk_meta SET value = '3'")
    with pytest.raises(NewerFormat, match="the registry has format 3; this package reads up to 2"):
        ptk_catalog.open(tmp_path / "store")


def test_a_registry_that_is_no_database_is_named(tmp_path: Path) -> None:
    ptk_catalog.open(tmp_path / "store")
    for name in ("registry.sqlite-wal", "registry.sqlite-shm"):
        (tmp_path / "store" / name).unlink(missing_ok=True)
    (tmp_path / "store" / "registry.sqlite").write_bytes(b"no database at all" * 100)
    with pytest.raises(CatalogError, match=r"registry\.sqlite"):
        ptk_catalog.open(tmp_path / "store")


def test_a_copy_of_an_idle_catalog_is_a_catalog(tmp_path: Path) -> None:
    ptk_catalog.open(tmp_path / "store").commit("a", ROWS, key="k")
    shutil.copytree(tmp_path / "store", tmp_path / "copy")
    copy = ptk_catalog.open(tmp_path / "copy", create=False)
    copy.verify("a")
    copy.commit("a", ROWS.head(1))
    assert ptk_catalog.open(tmp_path / "store").version("a").number == 1
    with pytest.raises(NotFound):
        ptk_catalog.open(tmp_path / "store").version("a@v2")


BASE_INSTALL = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "datasets", "dask", "vllm", "transformers", "ptk", "psycopg", "s3fs", "deltalake"}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import json, ptk_catalog
data = ptk_catalog.open(sys.argv[1], create=False).load("a@v1", verify=True)
print(json.dumps(data.collect(["k"], [("n", "<", 2)]).to_series().to_list()))
"""


def test_the_base_install_alone_loads(tmp_path: Path) -> None:
    ptk_catalog.open(tmp_path / "store").commit("a", ROWS, key="k")
    done = subprocess.run([sys.executable, "-c", BASE_INSTALL, tmp_path / "store"], capture_output=True, check=False, text=True)
    assert (done.stderr, json.loads(done.stdout)) == ("", ["k0", "k1"])
