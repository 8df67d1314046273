"""Models that a step of the same spec makes, and those of the catalog: found, ordered, keyed by content, and told of in lineage."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import orjson
import polars as pl
import pytest

import ptk.operator
import ptk.spec
import ptk_catalog
from ptk.errors import PtkError, SpecError
from ptk.execute import RunSummary, run_plan
from ptk.llm.adapter import find_adapter
from ptk.llm.backend import ModelSettings, ResolvedModel
from ptk.llm.model_files import ModelFiles, ModelRoots, find_model_files, model_digest
from ptk.llm.request import Request
from ptk.llm.scripted import ScriptedSession, ScriptedSettings
from ptk.operator import Operator, asset_operator
from ptk.params import MODEL, REFERENCE, Params
from ptk.places import place_of
from ptk.plan import Plan, make_plan
from ptk.progress import Quiet
from ptk.prompt import requests_of
from ptk.spec import load_spec
from ptk.work import WorkStore
from servers import new_bucket

SPEC = """\
ptk: 1
name: tuned
models:
  base:  {backend: folders, model: base}
  tuned: {backend: folders, model: base, adapter: "step:trained"}
  whole: {backend: folders, model: "step:merged"}
steps:
  before:  {op: infer_personas, from: pairs, model: base, exemplars: exemplars.yaml}
  after:   {op: infer_personas, from: pairs, model: tuned, exemplars: exemplars.yaml}
  again:   {op: infer_personas, from: pairs, model: whole, exemplars: exemplars.yaml}
  merged:  {op: train, from: pairs, model: tuned, makes: model}
  trained: {op: train, from: pairs, model: base}
  pairs:   {op: read_pairs, path: pairs.jsonl}
outputs:
  tuned/personas: {from: after}
"""


class FolderSettings(ModelSettings):
    backend: Literal["folders"]
    model: Annotated[str, REFERENCE]
    adapter: Annotated[str | None, REFERENCE] = None


class FolderBackend:
    """Finds models as vllm does, and answers as the scripted backend does."""

    settings = FolderSettings
    remote = False
    gives = frozenset({"answers"})

    def __init__(self) -> None:
        self.opened: list[ResolvedModel] = []

    def resolve(self, settings: FolderSettings, roots: ModelRoots) -> ResolvedModel:
        files = find_model_files(settings.model, None, roots)
        adapter = None if settings.adapter is None else find_adapter(settings.adapter, roots, settings.model, files)
        identity = {"digest": model_digest(files.folder), "adapter": None if adapter is None else adapter.digest}
        versions = [version for version in (files.version, adapter.version if adapter else None) if version is not None]
        return ResolvedModel(
            settings.model,
            identity,
            {},
            files.folder,
            adapter=None if adapter is None else adapter.folder,
            versions=tuple(versions),
            engine=f"folders {identity['digest']}",
        )

    def device(self) -> str | None:
        return "cpu"

    def open(self, settings: FolderSettings, model: ResolvedModel) -> ScriptedSession:
        self.opened.append(model)
        return ScriptedSession(ScriptedSettings(backend="scripted"))

    def prompt_text(self, settings: Any, model: ResolvedModel, request: Request) -> str | None:
        return None

    def count_tokens(self, settings: Any, model: ResolvedModel, requests: list[Request]) -> list[int] | None:
        return [len(request.messages) for request in requests]

    def shared_tokens(self, settings: Any, model: ResolvedModel, requests: list[Request]) -> list[int] | None:
        return None


class Train(Params):
    model: Annotated[str, MODEL]
    makes: Literal["adapter", "model"] = "adapter"
    weights: str = "one"
    base: str = "base"


def write_adapter(folder: Path, weights: str, base: str = "base") -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    (folder / "adapter_model.safetensors").write_text(weights)
    (folder / "adapter_config.json").write_bytes(orjson.dumps({"peft_type": "LORA", "r": 8, "base_model_name_or_path": base}))
    return folder


def write_model(folder: Path, weights: str) -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_text(weights)
    return folder


trained_on: list[ResolvedModel] = []


def train(frame: pl.LazyFrame, params: Train, folder: Path, model: ResolvedModel) -> Mapping[str, Any]:
    """Train."""
    trained_on.append(model)
    rows = frame.select(pl.len()).collect().item()
    if params.makes == "adapter":
        write_adapter(folder, f"{params.weights} {rows}", params.base)
    else:
        write_model(folder, f"{params.weights} {rows} {model.identity}")
    return {"rows": rows}


class Point:
    def __init__(self, offered: Any) -> None:
        self.offered, self.value, self.name = offered, "elsewhere", "elsewhere"

    def load(self) -> Any:
        return self.offered


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FolderBackend:
    """A backend and an operator that trains, as an installed package would bring them, and a base model to train on."""
    made, operators, backends = FolderBackend(), ptk.operator._offered(), ptk.spec._backends()
    operator: Operator = asset_operator(makes=lambda params: params.makes)(train)
    monkeypatch.setattr(ptk.operator, "_offered", lambda: {**operators, "train": (Point(operator),)})
    monkeypatch.setattr(ptk.spec, "_backends", lambda: {**backends, "folders": Point(made)})
    monkeypatch.setenv("PTK_CACHE", str(tmp_path / "cache"))
    trained_on.clear()
    write_model(tmp_path / "base", "base weights")
    return made


def planned(project: Path, text: str, **settings: Any) -> tuple[Plan, WorkStore]:
    (project / "spec.yaml").write_text(text)
    work = WorkStore(project / ".ptk")
    return make_plan(load_spec(project / "spec.yaml"), work, **settings), work


def run(project: Path, text: str = SPEC, **settings: Any) -> RunSummary:
    plan, work = planned(project, text, **settings)
    return run_plan(plan, work, lambda: ptk_catalog.open(project / "catalog"), Quiet())


def asked(summary: RunSummary) -> dict[str, tuple[int, int]]:
    told = summary.as_json()["steps"]
    return {
        name: (step["requests"]["asked"], step["requests"]["answered_before"])
        for name, step in told.items()
        if step["requests"] is not None
    }


def steps_run(summary: RunSummary) -> list[str]:
    return [step.name for step in summary.steps if not step.cached]


def test_a_model_that_a_step_makes_is_used_after_it_in_the_same_run(project: Path, backend: FolderBackend) -> None:
    before, _ = planned(project, SPEC)
    assert (model := before.nodes["after"].model) is not None and model.waits_for == "trained"
    summary = run(project)
    assert asked(summary) == {"before": (20, 0), "after": (20, 0), "again": (20, 0)}
    assert [model.adapter is not None for model in trained_on] == [False, True]
    after, work = planned(project, SPEC)
    assert {name: node.key for name, node in after.nodes.items()} == {name: node.key for name, node in before.nodes.items()}
    assert after.to_run() == []
    made = after.nodes["after"].model
    assert made is not None and made.waits_for is None and made.adapter == work.asset_folder(after.nodes["trained"].key)
    (version,) = summary.versions
    assert [step["name"] for step in version.lineage["steps"]] == ["pairs", "trained", "after"]
    told = version.lineage["models"]
    assert [(item["step"], item["identity"]) for item in told] == [
        ("trained", {"digest": made.identity["digest"], "adapter": None}),
        ("after", dict(made.identity)),
    ]


def test_an_engine_is_started_again_for_an_adapter_that_was_made_meanwhile(project: Path, backend: FolderBackend) -> None:
    run(project)
    told = [(model.reference, model.adapter is not None, len(model.adapters)) for model in backend.opened]
    assert told == [("base", False, 0), ("base", True, 1), ("step:merged", False, 0)]


def test_answers_go_by_the_content_of_what_was_made_not_by_the_step(project: Path, backend: FolderBackend) -> None:
    run(project)
    # Trained by other settings, and come out the same: only the name of its base is written otherwise.
    otherwise = SPEC.replace("model: base}\n  pairs", "model: base, base: ./base}\n  pairs")
    summary = run(project, otherwise)
    assert (asked(summary)["after"], steps_run(summary)) == ((0, 20), ["trained", "after", "merged", "again"])
    run(project, force=["pairs"])
    changed = SPEC.replace("model: base}\n  pairs", "model: base, weights: two}\n  pairs")
    plan, _ = planned(project, changed)
    assert [(node.name, node.why) for node in plan.to_run()] == [
        ("trained", 'params changed: weights null -> "two"'),
        ("after", "input changed: trained"),
        ("merged", "input changed: trained"),
        ("again", "input changed: merged"),
    ]
    assert asked(run(project, changed))["after"] == (20, 0)


def test_how_answers_are_drawn_is_nothing_to_what_is_made(project: Path, backend: FolderBackend) -> None:
    before, _ = planned(project, SPEC)
    after, _ = planned(project, SPEC.replace("model: base}\n  tuned", "model: base, sampling: {max_tokens: 9}}\n  tuned"))
    changed = {name for name, node in after.nodes.items() if node.key != before.nodes[name].key}
    assert changed == {"before"}


def test_a_forced_step_that_makes_the_same_again_costs_no_requests(project: Path, backend: FolderBackend) -> None:
    run(project)
    assert asked(run(project, force=["trained"])) == {"before": (0, 20), "after": (0, 20), "again": (0, 20)}
    assert len(trained_on) == 4


def test_a_model_that_lies_in_an_object_store_is_copied_here_for_as_long_as_it_is_used(
    project: Path, backend: FolderBackend, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("s3fs")
    (project / "spec.yaml").write_text(SPEC)
    work = WorkStore(place_of(f"{new_bucket(s3_server, monkeypatch)}/work"))

    def again() -> RunSummary:
        plan = make_plan(load_spec(project / "spec.yaml"), work)
        return run_plan(plan, work, lambda: ptk_catalog.open(project / "catalog"), Quiet())

    first = again()
    assert asked(first) == {"before": (20, 0), "after": (20, 0), "again": (20, 0)}
    (used,) = {model.adapter for model in backend.opened if model.adapter is not None}
    assert not used.exists()
    assert steps_run(again()) == []
    told = first.versions[0].lineage["models"][1]["identity"]
    assert told["adapter"] is not None and "made by" not in told


def test_each_cell_uses_what_the_cell_with_its_axes_made(project: Path, backend: FolderBackend) -> None:
    text = SPEC
    for old, new in (
        ("model: base}\n  pairs", "model: base, matrix: {weights: [one, two]}}\n  pairs"),
        ("from: pairs, model: tuned, exemplars", "from: pairs, model: tuned, matrix: {weights: [one, two]}, exemplars"),
        ("model: tuned, makes: model", "model: other, makes: model"),
        ("steps:", '  other: {backend: folders, model: base, adapter: "step:trained[two]"}\nsteps:'),
    ):
        text = text.replace(old, new, 1)
    plan, _ = planned(project, text)
    assert dict(plan.nodes["after[two]"].step.inputs) == {"frame": "pairs", "tuned.adapter": "trained[two]"}
    assert dict(plan.nodes["merged"].step.inputs) == {"frame": "pairs", "other.adapter": "trained[two]"}
    summary = run(project, text)
    assert asked(summary)["after[one]"] == asked(summary)["after[two]"] == (20, 0)
    with pytest.raises(SpecError, match=r"'trained' is several steps to 'merged'; name one, such as step:trained\[one\]"):
        planned(project, text.replace("model: other, makes", "model: tuned, makes"))


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("step:trained", "step:traind", "models.tuned.adapter: there is no step 'traind'; did you mean 'trained'?"),
        ("step:trained", "step:pairs", "step 'pairs' (read_pairs) makes no model, not an adapter"),
        ("step:merged", "step:trained", "step 'trained' (train) makes an adapter, not a model"),
        ("model: base}\n  pairs", "model: tuned}\n  pairs", "steps feed on each other: trained -> trained"),
        ("model: base, adapter", "model: bade, adapter", "models.tuned.model: no model 'bade'"),
    ],
)
def test_a_name_that_leads_nowhere_is_told_at_its_line(
    project: Path, backend: FolderBackend, old: str, new: str, complaint: str
) -> None:
    assert old in SPEC
    with pytest.raises(SpecError) as error:
        planned(project, SPEC.replace(old, new))
    assert complaint in str(error.value)
    assert "spec.yaml:" in str(error.value)


def test_what_turns_out_to_be_of_another_base_stops_the_run_at_the_models_line(project: Path, backend: FolderBackend) -> None:
    text = SPEC.replace("model: base}\n  pairs", "model: base, base: /of/another}\n  pairs")
    with pytest.raises(
        PtkError, match=r"spec.yaml:5: models.tuned.adapter: adapter 'step:trained' was trained on '/of/another'"
    ):
        run(project, text)
    # What was trained is kept, and looked at when the spec is planned.
    with pytest.raises(
        SpecError, match=r"spec.yaml:5: models.tuned.adapter: adapter 'step:trained' was trained on '/of/another'"
    ):
        planned(project, text)


def test_a_prompt_of_a_model_that_is_not_made_yet_is_not_shown(project: Path, backend: FolderBackend) -> None:
    run(project)
    plan, work = planned(project, SPEC, force=["trained"])
    with pytest.raises(PtkError, match="asks a model that step 'trained' has yet to make; run the spec first"):
        requests_of(plan, work, "after", None)


# ---------------------------------------------------------------------------------------------------------- the catalog

OF_CATALOG = """\
ptk: 1
name: tuned
catalog: catalog
models:
  tuned: {backend: folders, model: "catalog:kept/base@stable", adapter: "catalog:kept/adapter"}
steps:
  pairs: {op: read_pairs, path: pairs.jsonl}
  after: {op: infer_personas, from: pairs, model: tuned, exemplars: exemplars.yaml}
outputs:
  tuned/personas: {from: after}
"""


@pytest.fixture
def catalog(project: Path, backend: FolderBackend) -> ptk_catalog.Catalog:
    made = ptk_catalog.open(project / "catalog")
    made.commit_model("kept/base", project / "base", licence="apache-2.0", tags=["stable"])
    folder = write_adapter(project / "adapter", "weights", "somewhere/else")
    made.commit_model("kept/adapter", folder, base_model="kept/base@v1")
    made.commit("kept/rows", pl.DataFrame({"pair_id": ["a"]}))
    return made


def test_a_model_of_the_catalog_is_found_by_reference_and_kept_by_version(
    project: Path, backend: FolderBackend, catalog: ptk_catalog.Catalog
) -> None:
    (version,) = run(project, OF_CATALOG).versions
    digests = [catalog.version(entry).digest for entry in ("kept/base", "kept/adapter")]
    (told,) = version.lineage["models"]
    assert told["versions"] == [
        {"version": "kept/base@v1", "digest": digests[0]},
        {"version": "kept/adapter@v1", "digest": digests[1]},
    ]
    assert [(how, one.reference) for how, one in catalog.made_from("tuned/personas")] == [
        ("parent", "kept/adapter@v1"),
        ("parent", "kept/base@v1"),
    ]


def test_a_tag_that_moved_to_other_weights_asks_anew_and_to_the_same_does_not(
    project: Path, backend: FolderBackend, catalog: ptk_catalog.Catalog
) -> None:
    run(project, OF_CATALOG)
    catalog.commit_model("kept/base", project / "base", metrics={"loss": 1.0}, tags=["stable"], move_tags=True)
    told = OF_CATALOG.replace("kept/adapter", "kept/adapter@v1")
    with pytest.raises(SpecError, match=r"adapter 'catalog:kept/adapter@v1' was trained on 'kept/base@v1'"):
        planned(project, told)
    catalog.commit_model("kept/adapter", project / "adapter", base_model="kept/base@v2")
    assert asked(run(project, OF_CATALOG)) == {"after": (0, 20)}
    (project / "base" / "model.safetensors").write_text("other weights")
    catalog.commit_model("kept/base", project / "base", tags=["stable"], move_tags=True)
    catalog.commit_model("kept/adapter", project / "adapter", base_model="kept/base@v3")
    assert asked(run(project, OF_CATALOG)) == {"after": (20, 0)}


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("kept/base@stable", "kept/nothing", "models.tuned.model: no model 'catalog:kept/nothing': "),
        ("kept/base@stable", "kept/base@v7", "no model 'catalog:kept/base@v7': "),
        ("kept/base@stable", "kept/base@best", "no model 'catalog:kept/base@best': "),
        ("kept/base@stable", "kept/rows", "kept/rows@v1 is a dataset, not a model"),
        (
            "kept/base@stable",
            "kept/adapter",
            "'catalog:kept/adapter' is an adapter, not a whole model; write `adapter: catalog",
        ),
        ('"catalog:kept/adapter"', '"catalog:kept/base"', "models.tuned.adapter: the folder of an adapter"),
        ("catalog: catalog", "catalog: nowhere", "there is no catalog in"),
    ],
)
def test_an_entry_that_is_not_there_or_not_that_kind_is_told(
    project: Path, backend: FolderBackend, catalog: ptk_catalog.Catalog, old: str, new: str, complaint: str
) -> None:
    with pytest.raises(SpecError) as error:
        planned(project, OF_CATALOG.replace(old, new))
    assert complaint in str(error.value)


def test_the_revision_of_a_model_of_the_catalog_is_part_of_its_reference(catalog: ptk_catalog.Catalog, project: Path) -> None:
    roots = ModelRoots(project, str(project / "catalog"))
    with pytest.raises(PtkError, match="write catalog:kept/base@v1"):
        find_model_files("catalog:kept/base", "v1", roots)
    found: ModelFiles = find_model_files("catalog:kept/base@v1", None, roots)
    assert (found.notes, (found.folder / "config.json").read_text()) == ({"licence": "apache-2.0"}, "{}")


class Plain(Params):
    pass


def named_and_not_taken(frame: pl.LazyFrame, params: Train, folder: Path) -> Mapping[str, Any]:
    """Take none."""
    return {}


def taken_and_not_named(frame: pl.LazyFrame, params: Plain, folder: Path, model: ResolvedModel) -> Mapping[str, Any]:
    """Take one."""
    return {}


@pytest.mark.parametrize("function", [named_and_not_taken, taken_and_not_named])
def test_an_operator_names_a_model_in_its_settings_if_and_only_if_it_takes_one(function: Callable[..., Any]) -> None:
    with pytest.raises(TypeError, match="argument `model` and a setting marked MODEL go together"):
        asset_operator()(function)
