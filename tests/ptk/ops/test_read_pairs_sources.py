"""Pairs from the catalog and from the Hugging Face Hub; the Hub is a small one on this machine."""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from pydantic import ValidationError

import ptk_catalog
from ptk.errors import UnreadableFile
from ptk.ops.read_pairs import ReadPairs, read_pairs
from ptk.params import canonical, problems
from ptk.plan import make_plan
from ptk.spec import load_spec
from ptk.work import WorkStore

TEXTS = pl.DataFrame({"prompt": ["Q1?", "Q2?"], "chosen": ["a", "b"], "rejected": ["c", " "], "score": [1, 2]})


def settings(folder: Path, own: str | None = None, **options: Any) -> ReadPairs:
    """Return settings as a spec in `folder` has them whose own catalog is `own`."""
    return ReadPairs.model_validate_json(json.dumps(options), context={"root": folder, "catalog": own})


def rows(params: ReadPairs) -> pl.DataFrame:
    return pl.concat(list(read_pairs.function(params).all_batches()))


def wrong(folder: Path, own: str, **options: Any) -> list[tuple[Any, str]]:
    try:
        settings(folder, own, **options)
    except ValidationError as error:
        return list(problems(ReadPairs, error))
    return []


# ---- the catalog ----


@pytest.fixture
def canonical_pairs(tmp_path: Path) -> pl.DataFrame:
    """Pairs with personas, as steps make them."""
    records = [{"prompt": f"Q{number}?", "chosen": f"a{number}", "rejected": "c", "score": number} for number in range(6)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    frame = rows(settings(tmp_path, path="pairs.jsonl"))
    names = [name for name in frame.columns if not name.startswith("_")]
    return frame.select(*names, chosen_persona=pl.format("The user likes {}.", pl.col("score")), seen=pl.date(2026, 1, 2))


@pytest.fixture
def store(tmp_path: Path, canonical_pairs: pl.DataFrame) -> Path:
    catalog = ptk_catalog.open(tmp_path / "store")
    catalog.commit("advice", canonical_pairs.drop("chosen_persona"), tags=["raw"])
    some = canonical_pairs.filter(pl.col("score") != 3).select("pair_id", "chosen_persona")
    catalog.commit("advice", some, base="advice@raw", tags=["gold"])
    return tmp_path / "store"


def test_canonical_rows_of_an_entry_pass_as_they_are(tmp_path: Path, store: Path, canonical_pairs: pl.DataFrame) -> None:
    params = settings(tmp_path, "store", entry="advice@gold")
    source = read_pairs.function(params)
    wanted = canonical_pairs.filter(pl.col("score") != 3)
    frame = pl.concat(list(source.all_batches()))
    assert source.key == "pair_id"
    assert frame.select(source.columns.names()).equals(wanted.select(source.columns.names()))
    assert set(source.columns) == set(wanted.columns)
    assert set(frame["_file"]) == {"advice@v2"}
    assert frame["_reject"].null_count() == 5
    assert params.origin() == {"entry": "advice@v2", "digest": ptk_catalog.open(store).version("advice").digest}


def test_an_entry_s_columns_can_be_chosen_and_its_source_named(tmp_path: Path, store: Path) -> None:
    params = settings(tmp_path, "store", entry="advice@v2", keep=["score"], source="mine")
    source = read_pairs.function(params)
    assert set(source.columns) == {"pair_id", "item_id", "prompt", "chosen", "rejected", "score", "source"}
    assert set(rows(params)["source"]) == {"mine"}
    with pytest.raises(ValueError, match="advice@v2 has no column 'scores'; did you mean 'score'"):
        read_pairs.function(settings(tmp_path, "store", entry="advice", keep=["scores"]))


def test_an_entry_is_known_by_its_digest_and_not_by_its_place(tmp_path: Path, store: Path) -> None:
    moved = tmp_path / "elsewhere" / "moved"
    moved.parent.mkdir()
    store.rename(moved)
    by_tag = settings(tmp_path, "elsewhere/moved", entry="advice@gold")
    by_number = settings(tmp_path, None, entry="advice@v2", catalog=str(moved))
    assert canonical(by_tag) == canonical(by_number)
    assert canonical(by_tag) != canonical(settings(tmp_path, "elsewhere/moved", entry="advice@raw"))
    assert str(tmp_path) not in json.dumps(canonical(by_tag))


def test_what_is_written_out_but_says_nothing_new_changes_neither_key_nor_rows(tmp_path: Path, store: Path) -> None:
    bare = settings(tmp_path, "store", entry="advice")
    written = settings(tmp_path, "store", entry="advice", format="columns", fields={"prompt": "prompt"}, keep="all")
    assert canonical(bare) == canonical(written)
    assert rows(bare).equals(rows(written))


def test_an_entry_or_a_catalog_that_is_not_there_is_said_so(tmp_path: Path, store: Path) -> None:
    assert wrong(tmp_path, "store", entry="advise")[0][0] == ("entry",)
    assert "advise" in wrong(tmp_path, "store", entry="advise")[0][1]
    assert wrong(tmp_path, "nowhere", entry="advice") == [(("entry",), f"there is no catalog in {tmp_path / 'nowhere'}")]
    assert wrong(tmp_path, "store", entry="Advice!")[0][0] == ("entry",)
    assert not (tmp_path / "nowhere").exists()


def test_rows_of_an_entry_that_are_not_canonical_go_through_the_formats(tmp_path: Path) -> None:
    ptk_catalog.open(tmp_path / "store").commit("raw", TEXTS, key="prompt")
    (tmp_path / "pairs.jsonl").write_text(TEXTS.write_ndjson())
    entry, file = rows(settings(tmp_path, "store", entry="raw")), rows(settings(tmp_path, path="pairs.jsonl"))
    assert entry.drop("_file", "_raw").equals(file.drop("_file", "_raw"))
    assert entry["_reject"].to_list() == [None, "empty_text"]


def test_an_entry_of_other_rows_keeps_its_key(tmp_path: Path) -> None:
    turn = [[{"role": "user", "content": "alacrity"}]]
    ptk_catalog.open(tmp_path / "store").commit("words", pl.DataFrame({"prompt_id": ["x"], "prompt": turn}), key="prompt_id")
    source = read_pairs.function(settings(tmp_path, "store", entry="words"))
    assert (source.key, source.columns.names()) == ("prompt_id", ["prompt_id", "prompt"])


def test_pieces_of_an_entry_are_its_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, canonical_pairs: pl.DataFrame
) -> None:
    from ptk_catalog import catalog as catalog_module

    def in_twos(frame: pl.LazyFrame, sizes: Any = None, cut: Any = catalog_module.cut) -> Iterator[pl.DataFrame]:
        yield from frame.collect().iter_slices(2) if sizes is None else cut(frame, sizes)

    monkeypatch.setattr(catalog_module, "cut", in_twos)
    catalog = ptk_catalog.open(tmp_path / "store")
    catalog.commit("advice", canonical_pairs)
    catalog.commit("advice", canonical_pairs.filter(pl.col("score") != 1).select("pair_id", extra="score"), base="advice@v1")
    source = read_pairs.function(settings(tmp_path, "store", entry="advice@v2"))
    pieces = source.pieces()
    assert len(pieces) == 3
    apart = [pl.concat(list(source.batches(piece))) for piece in reversed(pieces)]
    assert [frame["extra"].to_list() for frame in apart] == [[4, 5], [2, 3], [0]]


def test_a_spec_reads_from_its_own_catalog(tmp_path: Path, store: Path) -> None:
    (tmp_path / "spec.yaml").write_text(
        "ptk: 1\nname: again\ncatalog: store\nsteps:\n"
        "  pairs: {op: read_pairs, entry: advice@gold}\n"
        "  few: {op: sample_rows, from: pairs, n: 2}\n"
    )
    plan = make_plan(load_spec(tmp_path / "spec.yaml"), WorkStore(tmp_path / ".ptk"))
    assert "chosen_persona" in plan.nodes["few"].schema


def test_a_version_whose_files_are_gone_or_damaged_is_reported(tmp_path: Path, store: Path) -> None:
    source = read_pairs.function(settings(tmp_path, "store", entry="advice@raw"))
    part = Path(ptk_catalog.open(store).load("advice@raw").files()[0])
    content = part.read_bytes()
    part.chmod(0o644)
    part.write_bytes(content[: len(content) // 2])
    with pytest.raises(UnreadableFile, match=r"advice@v1 in .* can't be read: .*; see `ptk catalog verify`"):
        for piece in source.pieces():
            list(source.batches(piece))
    part.unlink()
    with pytest.raises(UnreadableFile, match=r"is missing; restore it from a copy of the catalog"):
        read_pairs.function(settings(tmp_path, "store", entry="advice@raw"))


# ---- the Hub ----

COMMIT = "a" * 40
OTHER = "b" * 40
TOKEN = "hf_thisIsASecretOfTheUser"


class FakeHub(http.server.BaseHTTPRequestHandler):
    """Answers for one dataset, `org/set`, of one commit, as the Hub does."""

    files: dict[str, bytes]
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        api, raw = "/api/datasets/org/set", f"/datasets/org/set/resolve/{COMMIT}/"
        if path in (api, f"{api}/revision/main", f"{api}/revision/{COMMIT}"):
            names = [{"rfilename": name} for name in self.files]
            self.reply_json({"id": "org/set", "sha": COMMIT, "private": False, "gated": False, "tags": [], "siblings": names})
        elif path.startswith(f"{api}/revision/"):
            self.reply(b"{}", {"x-error-code": "RevisionNotFound"}, 404)
        elif path.startswith(f"{api}/tree/{COMMIT}"):
            self.reply_json(self.listed(path.removeprefix(f"{api}/tree/{COMMIT}").strip("/")))
        elif path.startswith(raw) and path.removeprefix(raw) in self.files:
            content = self.files[path.removeprefix(raw)]
            self.reply(content, {"x-repo-commit": COMMIT, "etag": f'"{hashlib.sha1(content).hexdigest()}"'})
        else:
            self.reply(b"{}", {"x-error-code": "EntryNotFound" if "/resolve/" in path else "RepoNotFound"}, 404)

    do_HEAD = do_GET  # noqa: N815

    def listed(self, folder: str) -> list[dict[str, Any]]:
        inside = {name.removeprefix(f"{folder}/") if folder else name: name for name in self.files if name.startswith(folder)}
        files = [{"type": "file", "path": name, "size": 1, "oid": "0"} for short, name in inside.items() if "/" not in short]
        folders = {short.split("/")[0] for short in inside if "/" in short}
        return [*files, *({"type": "directory", "path": name, "size": 0, "oid": "0"} for name in folders)]

    def reply_json(self, value: Any) -> None:
        self.reply(json.dumps(value).encode(), {"content-type": "application/json"})

    def reply(self, content: bytes, headers: dict[str, str], status: int = 200) -> None:
        self.send_response(status)
        for name, value in {"content-length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@pytest.fixture
def hub() -> Iterator[str]:
    """The address of a Hub with one dataset."""
    pytest.importorskip("datasets")
    table = io.BytesIO()
    TEXTS.write_parquet(table)
    files = {"data/train-00000-of-00001.parquet": table.getvalue(), "README.md": b"---\nlicense: mit\n---\n"}
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Hub", (FakeHub,), {"files": files}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


READ = """
import json, sys, time
from ptk.ops.read_pairs import ReadPairs, read_pairs
from ptk.params import canonical
for text in sys.argv[1:]:
    started = time.monotonic()
    params = ReadPairs.model_validate_json(text)
    try:
        source = read_pairs.function(params)
        batches = [batch.drop("prompt", "chosen", "rejected").to_dicts() for batch in source.all_batches()]
        said = {"rows": [row for batch in batches for row in batch], "key": canonical(params)["hub"], "origin": params.origin()}
    except ValueError as error:
        said = {"error": str(error)}
    print(json.dumps(said | {"seconds": time.monotonic() - started}))
"""


def asked(home: Path, hubs: list[dict[str, Any]], **environment: str) -> list[dict[str, Any]]:
    """Return what reading each of the datasets gave, in a process of its own: the Hub's address is told at import."""
    outer = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", READ, *(json.dumps({"hub": hub}) for hub in hubs)],
        env=outer | {"HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", "HF_TOKEN": TOKEN} | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert TOKEN not in done.stdout + done.stderr
    assert done.stderr == ""
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_dataset_of_the_hub_is_pinned_read_and_found_again_without_it(tmp_path: Path, hub: str) -> None:
    set_ = {"name": "org/set"}
    whole, by_branch, split, config, revision, stranger = asked(
        tmp_path,
        [
            set_,
            {**set_, "revision": "main"},
            {**set_, "split": "test"},
            {**set_, "config": "more"},
            {**set_, "revision": "v9"},
            {"name": "org/other"},
        ],
        HF_ENDPOINT=hub,
    )
    assert whole["key"] == whole["origin"] == {"hub": "org/set", "commit": COMMIT, "config": None, "split": "train"}
    assert [(row["_line"], row["score"], row["_reject"]) for row in whole["rows"]] == [(1, 1, None), (2, None, "empty_text")]
    assert {row["_file"] for row in whole["rows"]} == {"org/set@aaaaaaaa"}
    (tmp_path / "pairs.jsonl").write_text(TEXTS.write_ndjson())
    assert whole["rows"][0]["pair_id"] == rows(settings(tmp_path, path="pairs.jsonl"))["pair_id"][0]
    assert by_branch["rows"] == whole["rows"]
    assert split["error"] == """the Hub dataset 'org/set': Unknown split "test". Should be one of ['train']."""
    assert "BuilderConfig 'more' not found" in config["error"]
    assert revision["error"] == "the Hub dataset 'org/set' has no revision 'v9'"
    assert stranger["error"].startswith("the Hugging Face Hub has no dataset 'org/other', or it is private: then set HF_TOKEN")

    # Where the Hub is away, what was downloaded is read by its commit, and by nothing else.
    for environment in ({"HF_ENDPOINT": "http://127.0.0.1:9"}, {"HF_HUB_OFFLINE": "1"}):
        again, other, branch = asked(tmp_path, [{**set_, "revision": COMMIT}, {**set_, "revision": OTHER}, set_], **environment)
        assert again["rows"] == whole["rows"]
        why = "HF_HUB_OFFLINE is set" if "HF_HUB_OFFLINE" in environment else "ConnectError"
        sentence = (
            f"the Hugging Face Hub could not be asked about 'org/set' ({why}); check the network, or download the dataset's files and "
            "read them with `path`, or give a whole commit id as `revision` where it was downloaded before"
        )
        assert (other["error"], branch["error"]) == (sentence, sentence)
        assert max(again["seconds"], other["seconds"], branch["seconds"]) < 20  # datasets alone would try for longer


def test_a_hub_that_does_not_answer_is_said_at_its_line(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text(
        "ptk: 1\nname: hub\nsteps:\n  pairs:\n    op: read_pairs\n    hub: {name: org/set}\n    format: ratings\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", "from ptk.cli import main; main()", "validate", "spec.yaml"],
        cwd=tmp_path,
        env=os.environ | {"HF_HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(
        "spec.yaml:6: steps.pairs.hub: the Hugging Face Hub could not be asked about 'org/set' (Connect"
    )
    assert len(done.stderr.splitlines()) == 1
