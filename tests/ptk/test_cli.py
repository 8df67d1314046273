"""The command line: one JSON document on stdout, exit codes, a fast help, and nothing stored that must not be."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import ptk_catalog
from ptk.cli import main

Ptk = Callable[..., subprocess.CompletedProcess[str]]
Inside = Callable[..., tuple[int, str, str]]


@pytest.fixture
def inside(project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Inside:
    """Run the command line in this process, in the project, and return (exit code, stdout, stderr)."""
    monkeypatch.chdir(project)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ptk", *arguments])
        with pytest.raises(SystemExit) as stopped:
            main()
        printed = capsys.readouterr()
        return int(stopped.value.code or 0), printed.out, printed.err

    return run


def document(result: tuple[int, str, str]) -> Any:
    """Return the one JSON document that a command printed."""
    code, out, err = result
    assert code == 0, err
    return json.loads(out)


def test_help_imports_nothing_heavy(tmp_path: Path) -> None:
    heavy = (
        "polars",
        "torch",
        "vllm",
        "dask",
        "pydantic",
        "sqlalchemy",
        "fsspec",
        "yaml",
        "rich",
        "orjson",
        "pyarrow",
        "numpy",
    )
    code = (
        "import sys\nfrom ptk.cli import cli\n"
        "for command in ([], ['run'], ['catalog']):\n"
        "    try:\n        cli([*command, '--help'])\n"
        "    except SystemExit as stopped:\n        assert stopped.code == 0\n"
        f"print('LOADED', [name for name in {heavy!r} if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "LOADED []"


def test_a_spec_with_mistakes_is_refused_before_anything_heavy_is_imported(project: Path) -> None:
    (project / "spec.yaml").write_text((project / "spec.yaml").read_text().replace("on: [prompt]", "onn: [prompt]"))
    code = (
        "import sys, atexit\nfrom ptk.cli import main\n"
        "atexit.register(lambda: print([name for name in ('torch', 'vllm', 'dask', 'sqlalchemy') if name in sys.modules]))\n"
        "sys.argv = ['ptk', 'run', 'spec.yaml']\nmain()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=project, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr.splitlines()) == (
        2,
        "[]\n",
        [
            "spec.yaml:7: steps.unique.on: 'on' is missing",
            "spec.yaml:7: steps.unique.onn: unknown option 'onn'; did you mean 'on'?",
        ],
    )


def test_a_run_prints_one_json_document_and_all_else_on_stderr(project: Path, ptk: Ptk) -> None:
    done = ptk("run", "spec.yaml", "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert list(summary) == ["spec", "seconds", "steps", "outputs", "catalog", "failed", "skipped", "published", "report"]
    counts = {"rows_in": 10, "rows_out": 10, "rejected": {}}
    assert {name: {field: step[field] for field in counts} for name, step in summary["steps"].items()} == {
        "pairs": counts,
        "unique": counts,
        "personas": counts,
    }
    assert all(step["seconds"] > 0 for step in summary["steps"].values())
    requests = {name: step["requests"] for name, step in summary["steps"].items()}
    assert (requests["pairs"], requests["unique"]) == (None, None)
    assert (requests["personas"]["asked"], requests["personas"]["answered_before"]) == (20, 0)
    (output,) = summary["outputs"]
    assert (output["entry"], output["version"], output["new"], output["tags"]) == ("small/personas", "v1", True, ["latest"])
    assert output["digest"].startswith("sha256:")
    assert "personas: infer_personas (new)" in done.stderr

    again = json.loads(ptk("run", "spec.yaml", "--json").stdout)
    assert [(step["cached"], step["seconds"]) for step in again["steps"].values()] == [(True, 0.0)] * 3
    assert {name: again["steps"]["personas"]["requests"][name] for name in ("asked", "answered_before")} == {
        "asked": 0,
        "answered_before": 20,
    }
    assert again["outputs"] == [{**output, "new": False}]


def test_rejected_rows_are_counted_by_reason(project: Path, inside: Inside) -> None:
    lines = (project / "pairs.jsonl").read_text().splitlines()
    repeated = json.loads(lines[0]) | {"chosen": "Another answer."}
    (project / "pairs.jsonl").write_text("\n".join([*lines, json.dumps(repeated), "{not json"]) + "\n")
    steps = document(inside("run", "spec.yaml", "--json"))["steps"]
    assert {name: (step["rows_in"], step["rows_out"], step["rejected"]) for name, step in steps.items()} == {
        "pairs": (12, 11, {"not_json": 1}),
        "unique": (11, 10, {"duplicate": 1}),
        "personas": (10, 10, {}),
    }


def test_a_plan_prints_one_json_document(inside: Inside) -> None:
    plan = document(inside("plan", "spec.yaml", "--json"))
    assert (plan["spec"], plan["outputs"], list(plan["steps"])) == (
        "small",
        ["small/personas"],
        ["pairs", "unique", "personas"],
    )
    personas = plan["steps"]["personas"]
    assert {name: personas[name] for name in ("operator", "status", "why", "rows_in", "rows_out", "exact")} == {
        "operator": "infer_personas",
        "status": "run",
        "why": "new",
        "rows_in": 10,
        "rows_out": 10,
        "exact": True,
    }
    assert (personas["requests"]["answered"], personas["requests"]["to_go"]) == (0, 20)
    assert personas["requests"]["prompt_tokens"] > 0
    assert personas["schema"]["chosen_persona"] == "String"


def test_a_dry_run_prints_the_plan_and_does_nothing(project: Path, inside: Inside) -> None:
    before = sorted(path.name for path in project.iterdir())
    assert document(inside("run", "spec.yaml", "--dry-run", "--json")) == document(inside("plan", "spec.yaml", "--json"))
    assert sorted(path.name for path in project.iterdir()) == before


def test_the_operators_print_one_json_document(inside: Inside) -> None:
    found = {item["name"]: item for item in document(inside("ops", "--json"))}
    assert {"read_pairs", "drop_duplicates", "keep_lengths", "sample_rows", "infer_personas"} <= set(found)
    assert (found["read_pairs"]["inputs"], found["infer_personas"]["inputs"]) == ([], ["frame"])
    assert all(item["help"] and item["version"] >= 1 for item in found.values())


def test_the_operators_are_listed_with_their_options(inside: Inside) -> None:
    _, out, _ = inside("ops")
    assert "    on: Columns whose values may occur together once. (needed)" in out.splitlines()


def test_the_catalog_prints_one_json_document_a_command(project: Path, inside: Inside) -> None:
    run = document(inside("run", "spec.yaml", "--json"))
    listed = document(inside("catalog", "ls", "--json"))
    logged = document(inside("catalog", "log", "small/personas", "--json"))
    shown = document(inside("catalog", "show", "small/personas@latest", "--json"))
    verified = document(inside("catalog", "verify", "small/personas@v1", "--json"))
    tagged = document(inside("catalog", "tag", "small/personas@v1", "good", "--json"))
    facts = {"entry": "small/personas", "version": "v1", "digest": run["outputs"][0]["digest"], "rows": 10, "tags": ["latest"]}
    assert [{name: item[name] for name in facts} for item in (*listed, *logged, shown)] == [facts] * 3
    assert listed == logged == [{name: shown[name] for name in listed[0]}]
    assert (shown["licence"], shown["key"], len(shown["schema"])) == ("cc0-1.0", ["pair_id"], 8)
    assert [step["name"] for step in shown["lineage"]["steps"]] == ["pairs", "unique", "personas"]
    assert verified == {"entry": "small/personas", "version": "v1", "digest": facts["digest"], "verified": True}
    assert tagged == {"entry": "small/personas", "version": "v1", "tags": ["good", "latest"]}


def test_the_summary_in_words_says_what_was_done_and_how_to_load_it(project: Path, inside: Inside) -> None:
    code, out, _ = inside("run", "spec.yaml")
    lines = out.splitlines()
    assert code == 0
    assert any(line.startswith("personas: 20 requests asked, 0 answered before; ") for line in lines)
    assert any(line.startswith("committed  small/personas@v1  10 rows  sha256:") for line in lines)
    load = next(line for line in lines if line.startswith("load it:"))
    names: dict[str, Any] = {}
    exec(f"import ptk_catalog\nframe = {load.removeprefix('load it:').strip()}", names)
    assert names["frame"].height == 10

    _, out, _ = inside("run", "spec.yaml")
    assert "personas: 20 requests, all answered before" in out
    assert any(line.startswith("Everything was cached") for line in out.splitlines())
    assert "unchanged  small/personas@v1" in out


def test_a_sample_registers_nothing(project: Path, inside: Inside) -> None:
    summary = document(inside("run", "spec.yaml", "--sample", "3", "--json"))
    assert (summary["steps"]["personas"]["rows_out"], summary["outputs"], summary["catalog"]) == (3, [], None)
    assert not (project / "catalog").exists()
    _, out, _ = inside("run", "spec.yaml", "--sample", "3")
    assert "Nothing was registered in the catalog." in out


def test_the_catalog_is_swept_and_brought_up_to_date(project: Path, inside: Inside) -> None:
    inside("run", "spec.yaml")
    orphan = project / "catalog" / "store" / "parts" / "aa" / f"{'a' * 64}.parquet"
    orphan.parent.mkdir(exist_ok=True)
    orphan.write_bytes(b"left by a killed commit")
    first = document(inside("catalog", "gc", "--json"))
    assert (first["files"], first["young"]) == (0, 1)
    told = document(inside("catalog", "gc", "--grace-hours", "0", "--dry-run", "--json"))
    assert (told["files"], told["bytes"], orphan.exists()) == (1, 23, True)
    code, out, _ = inside("catalog", "gc", "--grace-hours", "0")
    assert (code, out.split(" removed")[0], orphan.exists()) == (0, "1 files of 23 bytes", False)
    assert document(inside("catalog", "verify", "small/personas", "--json"))["verified"]
    migrated = document(inside("catalog", "migrate", "--json"))
    assert migrated["before"] == migrated["now"]


def test_a_model_in_the_catalog_is_listed_and_shown(project: Path, inside: Inside) -> None:
    (project / "adapter").mkdir()
    (project / "adapter" / "adapter_config.json").write_text("{}")
    made = ptk_catalog.open(project / "catalog" / "store")
    made.commit_model("models/small", project / "adapter", base_model="org/base", metrics={"loss": 1.5})
    shown = document(inside("catalog", "show", "models/small", "--json"))
    assert (shown["kind"], shown["base_model"], shown["metrics"], shown["files"]) == (
        "model",
        "org/base",
        {"loss": 1.5},
        {"adapter_config.json": 2},
    )
    code, out, _ = inside("catalog", "show", "models/small")
    assert (code, out.splitlines()[0]) == (0, "models/small@v1")
    assert "models/small" in inside("catalog", "ls")[1]


def test_versions_are_compared_walked_and_written_out(project: Path, inside: Inside) -> None:
    inside("run", "spec.yaml")
    lines = (project / "pairs.jsonl").read_text().splitlines()
    flipped = json.loads(lines[0])
    flipped["chosen"], flipped["rejected"] = flipped["rejected"], flipped["chosen"]
    (project / "pairs.jsonl").write_text("\n".join([json.dumps(flipped), *lines[2:]]))
    inside("run", "spec.yaml")
    told = document(inside("catalog", "diff", "small/personas@v1", "small/personas@v2", "--json"))
    assert (told["rows"]["before"], told["rows"]["after"], told["rows"]["added"], told["rows"]["removed"]) == (10, 9, 1, 2)
    assert told["flipped"]["flipped"] == 1
    code, out, _ = inside("catalog", "diff", "small/personas@v1", "small/personas@v2")
    assert (code, "flipped" in out) == (0, True)

    walked = document(inside("catalog", "lineage", "small/personas@v1", "--json"))
    assert walked["version"] == "small/personas@v1"
    key = ptk_catalog.open(project / "catalog" / "store").load("small/personas@v1").collect()["pair_id"][0]
    row = document(inside("catalog", "lineage", "small/personas@v1", "--row", key[:12], "--json"))
    assert "chosen_persona" in json.dumps(row)
    assert inside("catalog", "lineage", "small/personas@v1", "--row", "nobody")[0] == 2

    made = document(inside("catalog", "export", "small/personas@v1", "out", "--form", "parquet", "--json"))
    assert made["rows"] == sum(pl.read_parquet(project / "out" / name).height for name in made["files"]) == 10
    assert (project / "out" / "croissant.json").is_file()
    assert inside("catalog", "export", "small/personas@v1", "out")[0] != 0


def test_differences_are_a_table_and_lineage_is_a_tree(project: Path, inside: Inside) -> None:
    inside("run", "spec.yaml")
    lines = (project / "pairs.jsonl").read_text().splitlines()
    flipped = json.loads(lines[0])
    flipped["chosen"], flipped["rejected"] = flipped["rejected"], flipped["chosen"]
    (project / "pairs.jsonl").write_text("\n".join([json.dumps(flipped), *lines[2:]]))
    inside("run", "spec.yaml")
    told = inside("catalog", "diff", "small/personas@v1", "small/personas@v2")[1].splitlines()
    assert told[0] == "small/personas@v1 -> small/personas@v2"
    assert {"rows 10 9", "rows removed 2", "preferences flipped 1"} <= {" ".join(line.split()[:3]) for line in told}
    tree = inside("catalog", "lineage", "small/personas@v2")[1].splitlines()
    assert tree[0].startswith("small/personas@v2  9 rows, cc0-1.0, tags latest, ")
    assert tree[1].startswith("└─ made by spec small ")
    assert tree[2:4] == ["   ├─ pairs (read_pairs v2): 9 in, 9 out", tree[3]]
    assert tree[3].startswith("   │  └─ file pairs.jsonl ")
    assert "      ├─ model scripted/persona" in tree
    key = ptk_catalog.open(project / "catalog" / "store").load("small/personas").collect()["pair_id"][0]
    row = inside("catalog", "lineage", "small/personas", "--row", key[:12])[1].splitlines()
    assert row[0] == f"small/personas@v2, pair_id {key}"
    assert any(line.startswith("│  ├─ prompt: Question ") for line in row)
    assert any(line.startswith("   ├─ chosen_persona: The user is ") for line in row)


def test_rows_are_printed_or_written_to_a_file(project: Path, inside: Inside) -> None:
    inside("run", "spec.yaml")
    whole = ptk_catalog.open(project / "catalog" / "store").load("small/personas").collect()
    printed = inside("catalog", "load", "small/personas", "--column", "prompt", "--column", "pair_id", "--first", "2")[1]
    assert printed.splitlines()[0].split() == ["prompt", "user:", "Question", "0?"]
    assert printed.splitlines()[-1] == "2 of 10 rows"
    some = document(
        inside("catalog", "load", "small/personas@v1", "--where", "LENGTH(prompt_text) > 5", "--first", "3", "--json")
    )
    assert [row["prompt"] for row in some] == whole["prompt"].head(3).to_list()
    for name, read in (
        ("rows.parquet", pl.read_parquet),
        ("rows.arrow", pl.read_ipc),
        ("rows.jsonl", lambda path: pl.read_ndjson(path, schema=whole.schema)),
    ):
        made = document(inside("catalog", "load", "small/personas", name, "--verify", "--json"))
        assert (made["rows"], made["file"]) == (10, name)
        assert read(project / name).equals(whole)
    assert inside("catalog", "load", "small/personas", "ids.csv", "--column", "pair_id")[1] == (
        "small/personas@v1: 10 rows written to ids.csv\n"
    )
    assert pl.read_csv(project / "ids.csv").equals(whole.select("pair_id"))
    for arguments, message in (
        (("rows.parquet",), "rows.parquet is there already; name a new file"),
        (("rows.xls",), "the ending says what is written"),
        (("rows.csv",), "CSV can't hold prompt, chosen, rejected"),
        (("--column", "nope"), "has no column 'nope'"),
        (("--where", "nope > 3"), "there is no column 'nope'"),
        (("--where", "LENGTH(pair_id)"), "and not true or false"),
    ):
        code, out, err = inside("catalog", "load", "small/personas", *arguments)
        assert (code == 0, out) == (False, "")
        assert message in err
    assert sorted(path.name for path in project.glob("rows.*")) == ["rows.arrow", "rows.jsonl", "rows.parquet"]


def test_a_model_is_loaded_into_a_folder(project: Path, inside: Inside) -> None:
    weights = project / "weights"
    weights.mkdir()
    (weights / "adapter.bin").write_bytes(b"w" * 10)
    made = ptk_catalog.open(project / "catalog" / "store")
    made.commit("a", pl.DataFrame({"k": [1]}), key="k")
    made.commit_model("models/small", weights, trained_on=["a"])
    assert document(inside("catalog", "show", "a", "--json"))["models_trained_on_it"] == ["models/small@v1"]
    assert "  trained    models/small@v1" in inside("catalog", "show", "a")[1].splitlines()
    assert document(inside("catalog", "show", "models/small", "--json"))["trained_on"] == ["a@v1"]
    assert document(inside("catalog", "load", "models/small", "copy", "--json"))["files"] == ["adapter.bin"]
    assert (project / "copy" / "adapter.bin").read_bytes() == b"w" * 10
    assert inside("catalog", "load", "models/small")[0] == 2


def test_a_registry_elsewhere_is_named_by_an_option_or_the_environment(
    project: Path, inside: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = f"sqlite:///{project}/elsewhere.sqlite"
    ptk_catalog.open(project / "shelf", registry=registry).commit("a", pl.DataFrame({"k": [1]}), key="k")
    code, _, err = inside("catalog", "ls", "--catalog", "shelf")
    assert (code, "set PTK_REGISTRY" in err) == (1, True)
    assert document(inside("catalog", "ls", "--catalog", "shelf", "--registry", registry, "--json"))[0]["entry"] == "a"
    monkeypatch.setenv("PTK_REGISTRY", registry)
    assert document(inside("catalog", "log", "a", "--catalog", "shelf", "--json"))[0]["rows"] == 1


def test_the_catalog_is_where_the_option_or_the_spec_says(project: Path, inside: Inside) -> None:
    (project / "spec.yaml").write_text("catalog: shelf\n" + (project / "spec.yaml").read_text())
    assert document(inside("run", "spec.yaml", "--json"))["catalog"] == str(project / "shelf")
    assert document(inside("run", "spec.yaml", "--catalog", "other", "--json"))["catalog"] == str(project / "other")
    assert [(project / name / "catalog.json").is_file() for name in ("shelf", "other", "catalog/store")] == [True, True, False]


def test_a_project_without_outputs_makes_no_catalog(project: Path, inside: Inside) -> None:
    text = (project / "spec.yaml").read_text()
    (project / "spec.yaml").write_text(text[: text.index("outputs:")])
    code, out, _ = inside("run", "spec.yaml")
    assert (code, (project / "catalog").exists()) == (0, False)
    assert "Nothing was registered in the catalog." in out


def test_environment_values_are_stored_nowhere(project: Path, inside: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "s3cr3t-place-in-the-environment"
    (project / secret).mkdir()
    for name in ("pairs.jsonl", "exemplars.yaml"):
        (project / name).rename(project / secret / name)
    monkeypatch.setenv("PTK_TEST_PLACE", secret)
    text = (project / "spec.yaml").read_text()
    for name in ("pairs.jsonl", "exemplars.yaml"):
        text = text.replace(f": {name}", f": '${{env:PTK_TEST_PLACE}}/{name}'")
    (project / "spec.yaml").write_text(text)
    (project / secret / "pairs.jsonl").open("a").write("{not json\n")

    printed = [inside(*arguments) for arguments in (("plan", "spec.yaml", "--json"), ("run", "spec.yaml", "--json"))]
    printed.append(inside("catalog", "show", "small/personas", "--json"))
    assert [code for code, _, _ in printed] == [0, 0, 0]
    assert [place for _, out, err in printed for place in (out, err) if secret in place] == []
    stored = [path for folder in (".ptk", "catalog") for path in (project / folder).rglob("*") if path.is_file()]
    assert len(stored) > 8
    assert [str(path) for path in stored if secret.encode() in path.read_bytes()] == []
    lineage = json.loads(printed[-1][1])["lineage"]
    assert lineage["steps"][0]["params"] == {"path": "${env:PTK_TEST_PLACE}/pairs.jsonl"}


@pytest.mark.parametrize(
    ("arguments", "code", "last_line"),
    [
        (("rnu", "spec.yaml"), 2, "Error: No such command 'rnu'. Did you mean 'run'?"),
        (("run",), 2, "Error: Missing argument 'SPEC'."),
        (("run", "spec.yaml", "--smaple", "3"), 2, "Error: No such option '--smaple'. Did you mean '--sample'?"),
        (("run", "spec.yaml", "--sample", "0"), 2, "Error: Invalid value for '--sample': 0 is not in the range x>=1."),
        (("run", "nowhere.yaml"), 2, "nowhere.yaml: no such file"),
        (("run", "."), 2, ".: this is a folder; name a YAML file in it"),
        (("catalog", "ls"), 2, "there is no catalog in ROOT/catalog/store"),
        (("run", "spec.yaml", "--work", "spec.yaml"), 1, "ptk: can't read ROOT/spec.yaml: Not a directory"),
    ],
)
def test_a_command_that_can_not_be_meant_is_told(
    project: Path, inside: Inside, arguments: tuple[str, ...], code: int, last_line: str
) -> None:
    found, out, err = inside(*arguments)
    assert (found, out, err.replace(str(project), "ROOT").splitlines()[-1]) == (code, "", last_line)


def test_a_file_in_the_place_of_the_catalog_is_told(project: Path, inside: Inside) -> None:
    code, out, err = inside("run", "spec.yaml", "--catalog", "spec.yaml")
    assert (code, out) == (1, "")
    assert err.splitlines()[-1].startswith(f"ptk: can't make a catalog in {project}/spec.yaml: ")


def test_a_mostly_unreadable_file_stops_the_run_before_a_model_is_asked(project: Path, inside: Inside) -> None:
    with (project / "pairs.jsonl").open("a") as file:
        file.write("{not json\n" * 5)
    code, out, err = inside("run", "spec.yaml")
    assert (code, out) == (3, "")
    assert "Traceback" not in err
    assert "ptk: step 'pairs': 5 of 15 rows are malformed (33%), and max_malformed is 0.2:" in err.splitlines()
    assert not (project / "catalog").exists()
    assert not (project / ".ptk" / "answers").exists()


def test_a_reference_that_leads_nowhere_is_told(project: Path, inside: Inside) -> None:
    document(inside("run", "spec.yaml", "--json"))
    codes = [inside("catalog", "show", name)[0] for name in ("small/personas@v9", "small/nothing", "small/personas@V1", "@")]
    assert codes == [2, 2, 2, 2]


def test_validate_says_that_all_is_fine_and_writes_nothing(project: Path, inside: Inside) -> None:
    before = sorted(path.name for path in project.iterdir())
    assert inside("validate", "spec.yaml") == (0, "spec.yaml: fine: 3 steps, 1 outputs\n", "")
    assert sorted(path.name for path in project.iterdir()) == before


def test_rejected_rows_are_shown_with_their_line_and_their_reason(
    project: Path, ptk: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    (project / "pairs.jsonl").open("a").write('{"prompt": "Why?", "chosen": "Because.", "rejected": ""}\n')
    early = ptk("rejects", "spec.yaml", "pairs")
    assert (early.returncode, early.stderr) == (1, "ptk: step 'pairs' is not finished (new); run the spec first\n")
    assert ptk("run", "spec.yaml").returncode == 0
    shown = ptk("rejects", "spec.yaml", "pairs").stdout.splitlines()
    assert shown[0].startswith("pairs.jsonl:11  empty_text  field 'rejected' is empty  {")
    assert shown[1:] == ["1 of 1 rejected rows of step pairs"]
    found = json.loads(ptk("rejects", "spec.yaml", "pairs", "--json").stdout)
    assert (found["rejected"], found["rows"][0]["_line"]) == ({"empty_text": 1}, 11)
    unknown = ptk("rejects", "spec.yaml", "peirs")
    assert (unknown.returncode, unknown.stderr) == (2, "spec.yaml: peirs: there is no such step; did you mean 'pairs'?\n")


def test_what_a_model_will_see_is_printed_for_a_row(inside: Inside) -> None:
    assert inside("run", "spec.yaml")[0] == 0
    shown = document(inside("prompt", "show", "spec.yaml", "personas", "--json"))
    assert [item["slot"] for item in shown] == ["chosen", "rejected"]
    row = shown[0]["row"]
    code, out, _ = inside("prompt", "show", "spec.yaml", "personas", "--row", row[:12])
    assert code == 0
    assert out.count(f"=== row {row}, ") == 2
    assert shown[0]["messages"][-1]["content"] in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("personas", "--row", "nowhere"), "ptk: step 'personas' is given no row whose pair_id begins with 'nowhere'"),
        (("personas", "--row", ""), "ptk: step 'personas' is given several rows whose pair_id begins with ''"),
        (("unique",), "ptk: step 'unique' (drop_duplicates) asks no model"),
        (("personsa",), "spec.yaml: personsa: there is no such step; did you mean 'personas'?"),
    ],
)
def test_a_prompt_that_can_not_be_shown_is_told(inside: Inside, arguments: tuple[str, ...], message: str) -> None:
    assert inside("run", "spec.yaml")[0] == 0
    code, out, err = inside("prompt", "show", "spec.yaml", *arguments)
    assert (code > 0, out, err.strip()) == (True, "", message)


def test_a_run_stops_before_it_would_ask_too_much(inside: Inside, project: Path) -> None:
    code, _, err = inside("run", "spec.yaml", "--max-requests", "19")
    assert code == 1
    assert err.endswith("ptk: step 'personas' would ask for 20 requests, and --max-requests is 19; nothing of it was asked\n")
    assert not list((project / ".ptk").rglob("answers/**/*.parquet"))
    code, _, err = inside("run", "spec.yaml", "--max-tokens", "500")
    assert code == 1 and "and --max-tokens is 500; nothing of it was asked" in err
    assert inside("run", "spec.yaml", "--max-requests", "20", "--max-tokens", "100000")[0] == 0
    assert inside("run", "spec.yaml", "--max-requests", "0", "--max-tokens", "0")[0] == 0
