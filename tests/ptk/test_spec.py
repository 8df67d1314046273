"""A wrong spec is told at its file and line, in words, all mistakes at once, and before anything is written."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ptk.cli import main
from ptk.errors import SpecError
from ptk.spec import load_spec

Complaints = Callable[..., list[str]]


@pytest.fixture
def complaints(project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Complaints:
    """Run the command line in the project on a spec that is wrong, and return the lines it complains with."""
    monkeypatch.chdir(project)
    before = {path.name for path in project.iterdir()}

    def run(
        *changes: tuple[str, str], content: str | bytes | None = None, command: str = "run", options: tuple[str, ...] = ()
    ) -> list[str]:
        spec = project / "spec.yaml"
        text = spec.read_text()
        for old, new in changes:
            assert text.count(old) >= 1, old
            text = text.replace(old, new, 1)
        spec.write_bytes(content if isinstance(content, bytes) else (text if content is None else content).encode())
        monkeypatch.setattr(sys, "argv", ["ptk", command, "spec.yaml", *options])
        with pytest.raises(SystemExit) as stopped:
            main()
        printed = capsys.readouterr()
        assert (stopped.value.code, printed.out) == (2, "")
        assert {path.name for path in project.iterdir()} == before, "something was written"
        return printed.err.replace(str(project), "ROOT").splitlines()

    return run


UNIQUE = "{op: drop_duplicates, from: pairs, on: [prompt]}"

ONE_CHANGE: dict[str, tuple[str, str, list[str]]] = {
    "unknown operator": (
        "drop_duplicates",
        "drop_duplicate",
        ["spec.yaml:7: steps.unique.op: unknown operator 'drop_duplicate'; did you mean 'drop_duplicates'?"],
    ),
    "no operator": (
        "op: drop_duplicates, ",
        "",
        ["spec.yaml:7: steps.unique: 'op' is missing: say which operator this step runs (`ptk ops` lists them)"],
    ),
    "misspelt option": (
        "path: pairs.jsonl",
        "path: pairs.jsonl, max_malformd: 0.5",
        ["spec.yaml:6: steps.pairs.max_malformd: unknown option 'max_malformd'; did you mean 'max_malformed'?"],
    ),
    "misspelt option that is needed": (
        "on: [prompt]",
        "onn: [prompt]",
        [
            "spec.yaml:7: steps.unique.on: 'on' is missing",
            "spec.yaml:7: steps.unique.onn: unknown option 'onn'; did you mean 'on'?",
        ],
    ),
    "misspelt option inside an option": (
        "path: pairs.jsonl",
        "path: pairs.jsonl, fields: {promt: question}",
        ["spec.yaml:6: steps.pairs.fields.promt: unknown option 'promt'; did you mean 'prompt'?"],
    ),
    "misspelt option of a model": (
        "model: persona}",
        "model: persona, sampling: {temprature: 0.0}}",
        ["spec.yaml:4: models.labeler.sampling.temprature: unknown option 'temprature'; did you mean 'temperature'?"],
    ),
    "misspelt option of an output": (
        "licence:",
        "license:",
        ["spec.yaml:10: outputs.small/personas.license: unknown option 'license'; did you mean 'licence'?"],
    ),
    "misspelt section": (
        "outputs:",
        "ouputs:",
        ["spec.yaml:9: ouputs: unknown option 'ouputs'; did you mean 'outputs'?"],
    ),
    "text for a list": (
        "on: [prompt]",
        "on: prompt",
        ['spec.yaml:7: steps.unique.on: should be a valid array, not "prompt"'],
    ),
    "a number for text, in a list": (
        "on: [prompt]",
        "on: [3]",
        ["spec.yaml:7: steps.unique.on.0: should be a valid string, not 3"],
    ),
    "an empty list": ("on: [prompt]", "on: []", ["spec.yaml:7: steps.unique.on: must not be empty"]),
    "text for a number": (
        "path: pairs.jsonl",
        "path: pairs.jsonl, max_malformed: lots",
        ['spec.yaml:6: steps.pairs.max_malformed: should be a valid number, not "lots"'],
    ),
    "a number out of its range": (
        "path: pairs.jsonl",
        "path: pairs.jsonl, max_malformed: 2",
        ["spec.yaml:6: steps.pairs.max_malformed: should be less than or equal to 1, not 2"],
    ),
    "neither of two types": (
        "path: pairs.jsonl",
        "path: pairs.jsonl, keep: some",
        [
            "spec.yaml:6: steps.pairs.keep: should be 'all', not \"some\"",
            'spec.yaml:6: steps.pairs.keep: should be a valid array, not "some"',
        ],
    ),
    "a number for a name": ("name: small", "name: 3", ["spec.yaml:2: name: should be a valid string, not 3"]),
    "a step that is no mapping": (UNIQUE, "yes", ['spec.yaml:7: steps.unique: should be an object, not "yes"']),
    "a later version of the language": ("ptk: 1", "ptk: 2", ["spec.yaml:1: ptk: should be 1, not 2"]),
    "missing from": (
        "from: pairs, ",
        "",
        ["spec.yaml:7: steps.unique: 'from' is missing: drop_duplicates takes frame from other steps"],
    ),
    "from nowhere": (
        "from: pairs,",
        "from: pair,",
        ["spec.yaml:7: steps.unique.from: there is no step 'pair'; did you mean 'pairs'?"],
    ),
    "from for a reader": (
        "path: pairs.jsonl",
        "path: pairs.jsonl, from: unique",
        ["spec.yaml:6: steps.pairs.from: read_pairs reads files and takes no `from`"],
    ),
    "from a list": (
        "from: pairs,",
        "from: [pairs],",
        ["spec.yaml:7: steps.unique.from: `from` is a step's name, or a mapping of input names to steps' names"],
    ),
    "from with a misspelt input": (
        "from: pairs,",
        "from: {fram: pairs},",
        [
            "spec.yaml:7: steps.unique.from: input 'frame' of drop_duplicates is missing",
            "spec.yaml:7: steps.unique.from.fram: drop_duplicates has no input 'fram'; did you mean 'frame'?",
        ],
    ),
    "a circle": (
        "from: pairs,",
        "from: personas,",
        ["spec.yaml:7: steps.unique.from: steps feed on each other: unique -> personas -> unique"],
    ),
    "a circle of one": (
        "from: pairs,",
        "from: unique,",
        ["spec.yaml:7: steps.unique.from: steps feed on each other: unique -> unique"],
    ),
    "missing data file": (
        "path: pairs.jsonl",
        "path: pair.jsonl",
        ["spec.yaml:6: steps.pairs.path: no such file: 'pair.jsonl' (looked for ROOT/pair.jsonl); did you mean 'pairs.jsonl'?"],
    ),
    "a glob without files": (
        "path: pairs.jsonl",
        "path: 'data/*.csv'",
        ["spec.yaml:6: steps.pairs.path: no file matches 'data/*.csv' (looked for ROOT/data/*.csv)"],
    ),
    "a folder for a file": (
        "path: pairs.jsonl",
        "path: .",
        ["spec.yaml:6: steps.pairs.path: '.' is a folder; name its files, such as './*.jsonl'"],
    ),
    "missing exemplar file": (
        "exemplars: exemplars.yaml",
        "exemplars: exemplar.yaml",
        [
            "spec.yaml:8: steps.personas.exemplars: no such file: 'exemplar.yaml' (looked for ROOT/exemplar.yaml); "
            "did you mean 'exemplars.yaml'?"
        ],
    ),
    "unknown prompt": (
        "exemplars: exemplars.yaml",
        "exemplars: exemplars.yaml, prompt: infer_persona",
        [
            "spec.yaml:8: steps.personas.prompt: no prompt 'infer_persona' ships with ptk; there is infer_personas, "
            "infer_personas_contrast, infer_personas_two_step, infer_personas_zero_shot, or write the path of a .yaml file"
        ],
    ),
    "a column that does not exist": (
        "on: [prompt]",
        "on: [chosen, promt]",
        ["spec.yaml:7: steps.unique.on.1: there is no column 'promt'; did you mean 'prompt'?"],
    ),
    "a column like no other": (
        "on: [prompt]",
        "on: [zzz]",
        ["spec.yaml:7: steps.unique.on.0: there is no column 'zzz'; there is chosen, item_id, pair_id, prompt, rejected"],
    ),
    "a field that no record has": (
        "path: pairs.jsonl",
        "path: pairs.jsonl, fields: {prompt: question}",
        [
            "spec.yaml:6: steps.pairs.fields: no record of pairs.jsonl has a field 'question'; they have prompt, chosen, rejected"
        ],
    ),
    "a model that can't be found": (
        "model: persona}",
        "model: persna}",
        ["spec.yaml:4: models.labeler.model: should be 'persona' or 'echo', not \"persna\""],
    ),
    "a bundled model that is not there": (
        "backend: scripted, model: persona",
        "backend: vllm, model: bundled/nope",
        ["spec.yaml:4: models.labeler.model: no bundled model 'bundled/nope'; there is bundled/smollm2-135m-instruct"],
    ),
    "unknown backend": (
        "backend: scripted",
        "backend: scriptd",
        ["spec.yaml:4: models.labeler.backend: unknown backend 'scriptd'; did you mean 'scripted'?"],
    ),
    "no backend": (
        "backend: scripted, ",
        "",
        ["spec.yaml:4: models.labeler: 'backend' is missing; there is openai, scripted, transformers, vllm"],
    ),
    "unknown model": (
        "model: labeler",
        "model: labeller",
        ["spec.yaml:8: steps.personas.model: unknown model 'labeller'; did you mean 'labeler'?"],
    ),
    "no models at all": (
        "models:\n  labeler: {backend: scripted, model: persona}\n",
        "",
        ["spec.yaml:6: steps.personas.model: unknown model 'labeler'; the spec declares no `models`"],
    ),
    "two outputs of one name": (
        "tags: [latest]}\n",
        "tags: [latest]}\n  small/personas: {from: unique}\n",
        ["spec.yaml:11: outputs.small/personas: this key stands already at line 10"],
    ),
    "two steps of one name": (
        "outputs:",
        "  pairs: {op: read_pairs, path: pairs.jsonl}\noutputs:",
        ["spec.yaml:9: steps.pairs: this key stands already at line 6"],
    ),
    "a tab": ("  pairs:", "\tpairs:", ["spec.yaml:6: a tab can't indent YAML; use spaces"]),
    "an output from nowhere": (
        "{from: personas",
        "{from: persona",
        ["spec.yaml:10: outputs.small/personas.from: there is no step 'persona'; did you mean 'personas'?"],
    ),
    "a tag like a version": (
        "[latest]",
        "[latest, v1]",
        ["spec.yaml:10: outputs.small/personas.tags.1: 'v1' is no tag: a lower-case word that does not look like v1"],
    ),
    "a tag with a space": (
        "[latest]",
        "[Latest one]",
        ["spec.yaml:10: outputs.small/personas.tags.0: 'Latest one' is no tag: a lower-case word that does not look like v1"],
    ),
    "a step with capitals": (
        "outputs:",
        "  Again: {op: read_pairs, path: pairs.jsonl}\noutputs:",
        ["spec.yaml:9: steps.Again: a name is lower-case letters, digits, '_' and '-', and begins with a letter"],
    ),
    "a name that leaves its folder": (
        "name: small",
        "name: a/../b",
        ["spec.yaml:2: name: 'a/../b' is no name: lower-case letters, digits, '.', '_', '-' and '/'"],
    ),
    "an unset environment value": (
        "path: pairs.jsonl",
        "path: '${env:PTK_TEST_NOWHERE}/pairs.jsonl'",
        [
            "spec.yaml:6: steps.pairs.path: the environment has no variable 'PTK_TEST_NOWHERE'; "
            "set it, as in: PTK_TEST_NOWHERE=... ptk run ..."
        ],
    ),
}


@pytest.mark.parametrize("what", ONE_CHANGE)
def test_a_mistake_is_told_at_its_place(complaints: Complaints, what: str) -> None:
    old, new, expected = ONE_CHANGE[what]
    assert complaints((old, new)) == expected


@pytest.mark.parametrize(
    "entry", ["Small/Personas", "small//personas", "../personas", "small@v1", "small/", "a..b", "a b", "é"]
)
def test_an_entry_that_is_no_name_is_told_at_its_place(complaints: Complaints, entry: str) -> None:
    rule = "an entry's name is lower-case letters, digits, '.', '_' and '-', in parts joined by '/'"
    assert complaints(("small/personas:", f'"{entry}":')) == [f"spec.yaml:10: outputs.{entry}: {rule}"]


def test_a_name_that_ends_in_a_line_break_is_no_name(project: Path) -> None:
    text = (project / "spec.yaml").read_text()
    (project / "spec.yaml").write_text(
        text.replace("small/personas:", '"small/personas\\n":').replace("[latest]", '["latest\\n"]')
    )
    with pytest.raises(SpecError) as caught:
        load_spec(project / "spec.yaml")
    assert [violation.where for violation in caught.value.violations] == [
        "outputs.small/personas\n",
        "outputs.small/personas\n.tags.0",
    ]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "spec.yaml: the file is empty"),
        (b"# only a comment\n", "spec.yaml: the file is empty"),
        (b"PAR1\x15\x04\x15\xff\xfe", "spec.yaml:1: this is not UTF-8 text; is it a spec at all?"),
        (b"ptk: 1\nname: a\x00b\n", "spec.yaml:2: this is a binary file"),
        (b"just words\n", "spec.yaml:1: the top level must be a mapping of keys to values"),
        (b"ptk: 1\nname: a\nsteps: {}\n", "spec.yaml:3: steps: must not be empty"),
        (b"ptk: 1\nname: a\nsteps: [read_pairs]\n", 'spec.yaml:3: steps: should be an object, not ["read_pairs"]'),
        (b"ptk: 1\nname: a\n", "spec.yaml:1: steps: 'steps' is missing"),
    ],
)
def test_a_file_that_is_no_spec_is_an_error(complaints: Complaints, content: bytes, expected: str) -> None:
    assert complaints(content=content) == [expected]


def test_a_missing_spec_is_an_error() -> None:
    with pytest.raises(SpecError) as caught:
        load_spec(Path("nowhere.yaml"))
    assert str(caught.value) == "nowhere.yaml: no such file"


FOUR_MISTAKES = """\
ptk: 1
name: small
models:
  labeler: {backend: scripted, model: persna}
steps:
  pairs:    {op: read_pairs, path: pear.jsonl}
  unique:   {op: drop_duplicate, from: pairs, on: [prompt]}
  personas: {op: infer_personas, from: unique, model: labeler, exemplars: exemplars.yaml}
outputs:
  small/personas: {from: persons, licence: cc0-1.0}
"""


@pytest.mark.parametrize("command", ["run", "plan", "validate"])
def test_every_mistake_is_told_at_once_in_the_order_of_the_file(complaints: Complaints, command: str) -> None:
    assert complaints(content=FOUR_MISTAKES, command=command) == [
        "spec.yaml:4: models.labeler.model: should be 'persona' or 'echo', not \"persna\"",
        "spec.yaml:6: steps.pairs.path: no such file: 'pear.jsonl' (looked for ROOT/pear.jsonl); did you mean 'pairs.jsonl'?",
        "spec.yaml:7: steps.unique.op: unknown operator 'drop_duplicate'; did you mean 'drop_duplicates'?",
        "spec.yaml:10: outputs.small/personas.from: there is no step 'persons'; did you mean 'personas'?",
    ]


def test_columns_of_several_steps_are_told_at_once(complaints: Complaints) -> None:
    again = "  again: {op: drop_duplicates, from: pairs, on: [chose]}\noutputs:"
    assert complaints(("on: [prompt]", "on: [promt]"), ("outputs:", again)) == [
        "spec.yaml:7: steps.unique.on.0: there is no column 'promt'; did you mean 'prompt'?",
        "spec.yaml:9: steps.again.on.0: there is no column 'chose'; did you mean 'chosen'?",
    ]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            "exemplars:\n  - prompt: a\n    prefered: b\n    other: c\n    persona: d\n",
            [
                "ROOT/exemplars.yaml:2: exemplars.0.preferred: 'preferred' is missing",
                "ROOT/exemplars.yaml:3: exemplars.0.prefered: unknown option 'prefered'; did you mean 'preferred'?",
            ],
        ),
        ("exemplars:\n\t- prompt: a\n", ["ROOT/exemplars.yaml:2: a tab can't indent YAML; use spaces"]),
        ("exemplars: []\n", ["ROOT/exemplars.yaml:1: exemplars: must not be empty"]),
        ("", ["ROOT/exemplars.yaml: the file is empty"]),
    ],
)
def test_a_mistake_in_an_exemplar_file_is_told_at_its_place_there(
    complaints: Complaints, project: Path, content: str, expected: list[str]
) -> None:
    (project / "exemplars.yaml").write_text(content)
    assert complaints() == expected


def test_a_mistake_in_a_prompt_file_is_told_at_its_place_there(project: Path) -> None:
    (project / "prompt.yaml").write_text("prompt: 1\nsystem: s\nuser: '{{ prompt'\nanswer: a\nform: f\n")
    text = (
        (project / "spec.yaml")
        .read_text()
        .replace("exemplars: exemplars.yaml", "exemplars: exemplars.yaml, prompt: prompt.yaml")
    )
    (project / "spec.yaml").write_text(text)
    with pytest.raises(SpecError) as caught:
        load_spec(project / "spec.yaml")
    assert [(item.file, item.line, item.where) for item in caught.value.violations] == [
        (str(project / "prompt.yaml"), 3, "user")
    ]


def test_a_step_to_force_that_is_not_there_is_an_error(complaints: Complaints) -> None:
    assert complaints(options=("--force", "persona")) == [
        "spec.yaml: --force: there is no step 'persona'; did you mean 'personas'?"
    ]


def test_on_needs_no_quotes(project: Path) -> None:
    spec = load_spec(project / "spec.yaml")
    assert dict(spec.steps["unique"].written) == {"on": ["prompt"]}


def test_steps_may_stand_in_any_order(project: Path) -> None:
    lines = (project / "spec.yaml").read_text().splitlines(keepends=True)
    (project / "spec.yaml").write_text("".join([*lines[:5], *reversed(lines[5:8]), *lines[8:]]))
    assert list(load_spec(project / "spec.yaml").steps) == ["pairs", "unique", "personas"]


def test_from_may_name_the_input(project: Path) -> None:
    text = (project / "spec.yaml").read_text().replace("from: pairs,", "from: {frame: pairs},")
    (project / "spec.yaml").write_text(text)
    assert dict(load_spec(project / "spec.yaml").steps["unique"].inputs) == {"frame": "pairs"}


def test_paths_are_against_the_file_not_the_current_folder(
    project: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert load_spec(project / "spec.yaml").steps["pairs"].params.path.paths == (project / "pairs.jsonl",)  # type: ignore[attr-defined]


def test_environment_values_are_expanded_but_kept_out_of_what_may_be_shown(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PTK_TEST_PLACE", str(project))
    text = (project / "spec.yaml").read_text().replace("path: pairs.jsonl", "path: '${env:PTK_TEST_PLACE}/pairs.jsonl'")
    (project / "spec.yaml").write_text(text)
    step = load_spec(project / "spec.yaml").steps["pairs"]
    assert step.params.path.paths == (project / "pairs.jsonl",)  # type: ignore[attr-defined]
    assert dict(step.written) == {"path": "${env:PTK_TEST_PLACE}/pairs.jsonl"}


def test_the_catalog_can_come_from_the_environment(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PTK_TEST_PLACE", "somewhere")
    (project / "spec.yaml").write_text((project / "spec.yaml").read_text() + 'catalog: "${env:PTK_TEST_PLACE}/store"\n')
    spec = load_spec(project / "spec.yaml")
    assert spec.catalog == "somewhere/store"
    assert "somewhere" not in spec.document.text
