"""Rows become tokens, options are TRL's, and a tiny model is trained, stacked, killed and gone on with."""

from __future__ import annotations

import json
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from pydantic import ValidationError

from ptk.errors import PtkError
from ptk.llm.backend import ResolvedModel
from ptk.llm.local_model import torch_device
from ptk.operator import DETAIL, KEY, REJECT
from ptk.params import canonical
from ptk.train import tailor as module
from ptk.train.stacked_adapter import unstackable
from ptk.train.tailor import Tailor
from ptk.train.training_rows import RowTokens, cuts, rows_digest, training_rows
from ptk.train.trl_options import OWN_LORA, OWN_OPTIONS, UNKEYED_OPTIONS, installed, snapshot
from tiny_model import tiny_model

PTK = [sys.executable, "-c", "from ptk.cli import main; main()"]
TURN = pl.List(pl.Struct({"role": pl.String, "content": pl.String}))
BRISK, SLOW = "The user is brisk.", "The user is slow."


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("base") / "tiny")


def turn(role: str, content: str) -> list[dict[str, str]]:
    return [{"role": role, "content": content}]


def record(key: str = "k", **given: Any) -> dict[str, Any]:
    texts = {"prompt": turn("user", "Why?"), "chosen": turn("assistant", "So."), "rejected": turn("assistant", "Who knows.")}
    return {KEY: key, **texts, "persona": BRISK, "pair_id": f"pair-{key}", **given}


def frame(*rows: dict[str, Any]) -> pl.DataFrame:
    return pl.DataFrame(list(rows))


# ---- tokens ----


def test_prompt_and_response_are_made_into_tokens_apart_as_when_the_model_answers(base: Path) -> None:
    from tokenizers import Tokenizer

    made = training_rows(frame(record()), "dpo", RowTokens.read(base, "tiny"), 512).row(0, named=True)
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    prompt = "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    assert made["prompt_ids"] == tokenizer.encode(prompt).ids
    assert made["chosen_ids"] == tokenizer.encode("So.<|im_end|>").ids
    assert made["chosen_whole"] == len(made["prompt_ids"]) + len(made["chosen_ids"])
    assert made[REJECT] is None


def test_plain_text_ends_with_the_end_token_and_no_text_is_taken_for_one(base: Path) -> None:
    tokens = RowTokens.read(base, "tiny")
    row = {KEY: "k", "prompt": "Prompt: Why?\nResponse:", "completion": " So <|im_end|> it is."}
    made = training_rows(frame(row), "sft", tokens, 512).row(0, named=True)
    assert made["completion_ids"][-1] == tokens.end
    assert made["completion_ids"].count(tokens.end) == 1


def test_what_is_too_long_is_cut_and_counted_or_rejected(base: Path) -> None:
    tokens = RowTokens.read(base, "tiny")
    rows = frame(record("short"), record("long", chosen=turn("assistant", "x" * 100)))
    cut = training_rows(rows, "dpo", tokens, 60)
    assert cut.select((pl.col("prompt_ids").list.len() + pl.col("chosen_ids").list.len()).max()).item() == 60
    told = cuts(cut, 60)
    assert (told["rows"], told["cut_rows"], told["cut_share"]) == (2, 1, 0.5)
    assert told["longest"] == [["long", told["longest_tokens"]]]
    assert training_rows(rows, "dpo", tokens, 60, cut=False)[REJECT].to_list() == [None, "too_long"]


def test_rows_that_teach_nothing_are_rejected_with_a_reason(base: Path) -> None:
    rows = frame(
        record("prompt", prompt=[]),
        record("side", rejected=turn("assistant", " ")),
        record("long", prompt=turn("user", "y" * 300)),
        record("persona", persona="z" * 300),
        record("same", rejected=turn("assistant", "So.")),
        record("turns", prompt=turn("assistant", "Hm.")),
    )
    made = training_rows(rows, "dpo", RowTokens.read(base, "tiny"), 128)
    reasons = ["empty_prompt", "empty_response", "prompt_too_long", "persona_too_long", "same_responses", "no_user_turn"]
    assert made[REJECT].to_list() == reasons
    assert made.filter(pl.col(REJECT) == "persona_too_long")[DETAIL].to_list() == [
        "the persona alone has 300 tokens, and max_length is 128"
    ]


def test_a_digest_of_rows_does_not_depend_on_their_order(base: Path) -> None:
    rows = training_rows(frame(record("a"), record("b", prompt=turn("user", "How?"))), "dpo", RowTokens.read(base, "tiny"), 512)
    assert rows_digest(rows) == rows_digest(rows.reverse()) != rows_digest(rows.head(1))


def test_a_model_without_pad_token_is_padded_with_its_end_token_and_one_without_both_is_refused(tmp_path: Path) -> None:
    tokens = RowTokens.read(tiny_model(tmp_path / "nopad", pad=None), "tiny")
    assert tokens.pad == tokens.end
    broken = tiny_model(tmp_path / "noend")
    config = json.loads((broken / "tokenizer_config.json").read_text())
    (broken / "tokenizer_config.json").write_text(json.dumps({**config, "eos_token": None}))
    with pytest.raises(PtkError, match="names no eos_token"):
        RowTokens.read(broken, "tiny")


# ---- settings ----


def settings(**given: Any) -> Tailor:
    return Tailor(model="base", **given)


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"trl": {"learning_rat": 1e-4}}, "DPOConfig has no option 'learning_rat'; did you mean 'learning_rate'"),
        ({"trl": {"learning_rate": "fast"}}, "'learning_rate' is number, not \"fast\""),
        ({"trl": {"lr_scheduler_type": "cosin"}}, "'lr_scheduler_type' can't be 'cosin'; did you mean 'cosine'"),
        ({"trl": {"seed": 1}}, "'seed': write seed beside `trl`"),
        ({"trl": {"hub_token": "x"}}, "a token comes from the environment alone"),
        ({"trl": {"beta": 0.1}, "method": "sft"}, "SFTConfig has no option 'beta'"),
        ({"trl": {"model_init_kwargs": {"token": "x"}}}, "a token comes from the environment alone"),
        ({"lora": {"rank": 8}}, "LoraConfig has no option 'rank'"),
        ({"accelerate": {"num_proceses": 2}}, "launch has no option 'num_proceses'; did you mean 'num_processes'"),
        ({"tuning": "full", "lora": {"r": 8}}, "`lora` goes with tuning: lora"),
        ({"tuning": "full", "quantize": "4bit"}, "quantised weights can't be trained"),
        ({"quantize": "4bit", "save": "merged"}, "is not merged into quantised weights"),
        ({"train": ("a",)}, "write `split`, the name of that column"),
        ({"validation": 1.5}, "a share for `validation` lies between 0 and 1"),
        ({"validation": None, "patience": 2}, "there is no `validation`"),
    ],
)
def test_settings_that_do_not_fit_are_refused_when_the_spec_is_read(given: dict[str, Any], what: str) -> None:
    with pytest.raises(ValidationError) as error:
        settings(**given)
    assert what in str(error.value)


def test_what_ptk_sets_itself_is_an_option_of_trl() -> None:
    known = {name for method in ("sft", "dpo", "kto", "orpo") for name in snapshot()[method]}
    assert known >= OWN_OPTIONS.keys()
    assert known >= UNKEYED_OPTIONS
    assert snapshot()["lora"].keys() >= OWN_LORA.keys()


@pytest.mark.slow
def test_the_snapshot_is_that_of_the_installed_trl_and_peft() -> None:
    assert snapshot() == installed()


def test_a_preset_stands_below_what_is_written_and_the_papers_is_the_papers() -> None:
    paper = settings(preset="paper")
    told = paper.trainer_options()
    assert (told["learning_rate"], told["beta"], told["num_train_epochs"], told["max_length"]) == (5e-6, 0.1, 10, 512)
    assert paper.lora_options() == {"r": 16, "lora_alpha": 32, "lora_dropout": 0.05}
    assert settings(preset="paper", method="sft").trainer_options()["learning_rate"] == 2e-5
    assert settings(preset="paper", trl={"learning_rate": 1e-3}).trainer_options()["learning_rate"] == 1e-3
    assert settings(tuning="full").lora_options() is None


def test_a_key_knows_what_changes_weights_and_nothing_else() -> None:
    plain = canonical(settings(trl={"learning_rate": 1e-4}))
    assert canonical(settings(trl={"learning_rate": 1e-4, "report_to": "tensorboard"}, checkpoint_minutes=1.0)) == plain
    for other in ({"trl": {"learning_rate": 2e-4}}, {"seed": 1}, {"lora": {"r": 4}}, {"accelerate": {"num_processes": 2}}):
        assert canonical(settings(**{"trl": {"learning_rate": 1e-4}, **other})) != plain


# ---- parts ----


def test_a_share_for_validation_keeps_the_records_of_a_pair_together() -> None:
    rows = frame(*(record(f"{pair}-{side}", pair_id=f"p{pair}") for pair in range(20) for side in "ab"))
    made = module._parted(rows, settings(validation=0.25))
    assert made.group_by("pair_id").agg(pl.col("part").n_unique())["part"].to_list() == [1] * 20
    assert made.filter(pl.col("part") == "validation")["pair_id"].n_unique() == 5
    assert module._parted(rows.reverse(), settings(validation=0.25)).sort(KEY).equals(made.sort(KEY))


def test_parts_are_named_by_a_column_and_other_rows_are_left_alone() -> None:
    rows = frame(record("a", split="sft"), record("b", split="val"), record("c", split="test"))
    made = module._parted(rows, settings(split="split", train=("sft",), validation=("val",)))
    assert made["part"].to_list() == ["train", "validation", None]


def test_nothing_is_trained_where_too_much_is_cut_or_no_row_is_left(base: Path) -> None:
    made = training_rows(
        frame(record("a"), record("b", chosen=turn("assistant", "x" * 99))), "dpo", RowTokens.read(base, "t"), 60
    )
    with pytest.raises(
        PtkError, match=r"cuts the end of a response in 1 of 2 rows \(50%\), and max_cut is 0.1; the longest: b"
    ):
        module._check_cuts(cuts(made, 60), settings())
    rows = made.select(KEY)
    with pytest.raises(PtkError, match="there is no row to learn from: of 2 rows 2 belong to other parts"):
        module._check_counts({"train": 0, "validation": 0}, rows, made.clear(), settings())


# ---- what goes wrong ----


def test_quantised_weights_need_a_gpu(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "torch_device", lambda: "cpu")
    with pytest.raises(PtkError, match="quantize: 4bit needs a GPU"):
        module._check_base(settings(quantize="4bit"), ResolvedModel("tiny", {}, {}, base))


def test_an_adapter_that_is_more_than_two_matrices_can_not_be_stacked(tmp_path: Path, base: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"use_dora": True, "bias": "none"}))
    model = ResolvedModel("tiny + x", {}, {}, base, adapter=tmp_path)
    with pytest.raises(PtkError, match=r"has `use_dora`.* write save: merged"):
        module._check_base(settings(), model)
    assert unstackable({"bias": "none", "use_dora": False, "modules_to_save": None}) is None


def test_a_loss_that_is_no_number_names_the_pairs_and_a_full_disk_the_checkpoint_that_is_kept(tmp_path: Path) -> None:
    failed = {"kind": "not_finite", "what": "the loss is nan in step 3", "rows": ["k", "k"], "last_checkpoint": 2}
    told = module._failure(failed, frame(record()).lazy(), tmp_path)
    assert "the loss is nan in step 3, in a batch of the rows k of the pairs pair-k" in told
    assert "the checkpoint of step 2 is kept" in told
    full = {"kind": "checkpoint", "what": "No space left on device", "free": 0, "step": 4, "last_checkpoint": None}
    told = module._failure(full, frame(record()).lazy(), tmp_path)
    assert "No space left on device (0 MiB are free in" in told
    assert "no checkpoint was saved yet. Make room and run the same command again" in told


# ---- training ----


def write_pairs(folder: Path, count: int = 24) -> None:
    words = ["red", "blue", "green", "warm", "cold"]
    pairs = [
        {
            "prompt": f"Say {words[number % 5]} {number}?",
            "chosen": f"Short {number}.",
            "rejected": f"A long {words[number % 5]} tale {number}.",
            "chosen_persona": BRISK,
            "rejected_persona": SLOW,
        }
        for number in range(count)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))


CHAIN = """\
ptk: 1
name: chain
models:
  base:   {backend: transformers, model: tiny}
  first:  {backend: transformers, model: tiny, adapter: "step:sft"}
  tuned:  {backend: transformers, model: tiny, adapter: "step:dpo"}
  merged: {backend: transformers, model: "step:whole"}
steps:
  pairs:   {op: read_pairs, path: pairs.jsonl, keep: [chosen_persona, rejected_persona]}
  records: {op: tailoring_records, from: pairs}
  sft:     {op: tailor, from: records, model: base, method: sft, preset: cpu, trl: {num_train_epochs: 2, learning_rate: 1.0e-2}}
  dpo:     {op: tailor, from: records, model: first, preset: cpu, trl: {num_train_epochs: 2, learning_rate: RATE}}
  scores:  {op: score_pairs, from: pairs, model: tuned, into: dpo}
  whole:   {op: merge_adapter, from: dpo, model: tuned}
  merged:  {op: score_pairs, from: scores, model: merged, into: whole}
outputs:
  tiny/scores: {from: merged}
  tiny/dpo:    {from: dpo, kind: model, licence: cc0-1.0}
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    tiny_model(tmp_path / "tiny")
    write_pairs(tmp_path)
    monkeypatch.setenv("PTK_CACHE", str(tmp_path / "cache"))
    yield tmp_path


def run(project: Path, spec: str, *more: str) -> dict[str, Any]:
    (project / "spec.yaml").write_text(spec)
    done = subprocess.run([*PTK, "run", "spec.yaml", "--json", *more], cwd=project, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


@pytest.mark.slow
@pytest.mark.model
def test_sft_then_dpo_then_scores_run_as_one_spec_and_another_learning_rate_runs_dpo_and_what_follows(project: Path) -> None:
    import ptk_catalog

    told = run(project, CHAIN.replace("RATE", "1.0e-2"))["steps"]
    assert told["sft"]["facts"]["rows"]["train"] == told["dpo"]["facts"]["rows"]["train"] == 38
    assert told["dpo"]["facts"]["made"]["rank"] == 32
    assert told["dpo"]["facts"]["metrics"]["final_eval_loss"] != told["sft"]["facts"]["metrics"]["final_eval_loss"]
    assert told["scores"]["rows_out"] == 24
    again = run(project, CHAIN.replace("RATE", "2.0e-2"))["steps"]
    assert {name: step["cached"] for name, step in again.items()} == {
        "pairs": True,
        "records": True,
        "sft": True,
        "dpo": False,
        "scores": False,
        "whole": False,
        "merged": False,
    }
    reference = again["dpo"]["facts"]["timing"]["reference"]
    assert (reference["computed"], reference["found"]) == (0, 48)
    catalog = ptk_catalog.open(project / "catalog" / "store")
    scored = catalog.load("tiny/scores").collect()
    for given in ("none", "chosen", "rejected"):
        both = scored[f"dpo_chosen_given_{given}"], scored[f"whole_chosen_given_{given}"]
        assert both[0].to_list() == pytest.approx(both[1].to_list(), abs=1e-3)
    folder = catalog.load_model("tiny/dpo")
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {file.name for file in folder.iterdir()}
    version = catalog.version("tiny/dpo")
    assert version.model.base_model == "tiny"
    assert version.model.metrics["steps"] == again["dpo"]["facts"]["metrics"]["steps"]


def kill_after_a_checkpoint(project: Path, spec: str) -> None:
    (project / "spec.yaml").write_text(spec)
    process = subprocess.Popen([*PTK, "run", "spec.yaml"], cwd=project, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and not any(project.glob("cache/training/*/checkpoints/*/ptk-whole")):
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()


def loss(told: dict[str, Any], step: str = "sft") -> tuple[float, float]:
    metrics = told["steps"][step]["facts"]["metrics"]
    return metrics["final_train_loss"], metrics["final_eval_loss"]


ONE = """\
ptk: 1
name: one
models: {base: {backend: transformers, model: tiny}}
steps:
  pairs:   {op: read_pairs, path: pairs.jsonl, keep: [chosen_persona, rejected_persona]}
  records: {op: tailoring_records, from: pairs}
  sft:     {op: tailor, from: records, model: base, preset: cpu, lora: {lora_dropout: 0.1}, MORE}
"""


@pytest.mark.model
def test_a_model_is_trained_and_registered_and_rows_that_teach_nothing_are_set_aside(project: Path) -> None:
    import ptk_catalog

    with (project / "pairs.jsonl").open("a") as file:
        same = {"chosen": "Yes.", "rejected": "Yes.", "chosen_persona": BRISK, "rejected_persona": SLOW}
        file.write(json.dumps({"prompt": "Equal?", **same}) + "\n")
    more = "method: dpo, trl: {max_steps: 2, learning_rate: 1.0e-2}"
    registers = "outputs: {tiny/dpo: {from: sft, kind: model, licence: cc0-1.0}}\n"
    told = run(project, ONE.replace("MORE", more) + registers)
    step = told["steps"]["sft"]
    assert (step["rows_in"], step["rows_out"], step["rejected"]) == (50, 48, {"same_responses": 2})
    assert step["facts"]["metrics"]["steps"] == 2
    assert [point["step"] for point in step["facts"]["curve"] if "loss" in point] == [1, 2]
    assert step["facts"]["cut"]["cut_rows"] == 0
    catalog = ptk_catalog.open(project / "catalog" / "store")
    manifest = catalog.version("tiny/dpo").model
    assert {file.name for file in manifest.files} == {"adapter_config.json", "adapter_model.safetensors"}
    assert (manifest.base_model, manifest.facts["rows"]["train"]) == ("tiny", 38)
    assert not list((project / "cache" / "training").iterdir())


@pytest.mark.slow
@pytest.mark.model
def test_a_training_that_was_killed_goes_on_from_its_checkpoint_to_the_same_loss(project: Path, tmp_path: Path) -> None:
    spec = ONE.replace("MORE", "method: sft, trl: {num_train_epochs: 40, learning_rate: 1.0e-2, save_total_limit: 2}")
    kill_after_a_checkpoint(project, spec)
    resumed = run(project, spec)
    assert resumed["steps"]["sft"]["facts"]["timing"]["resumed_at"] is not None
    whole = run(project, spec, "--force", "sft")
    assert whole["steps"]["sft"]["facts"]["timing"]["resumed_at"] is None
    assert loss(resumed) == pytest.approx(loss(whole), abs=1e-5)


@pytest.mark.slow
@pytest.mark.model
def test_a_disk_that_fills_in_a_checkpoint_leaves_the_last_one_and_training_goes_on_from_it(project: Path) -> None:
    more = "method: sft, checkpoint_minutes: null, trl: {num_train_epochs: 60, learning_rate: 1.0e-2, logging_steps: 50}"
    spec = ONE.replace("MORE", more)
    kill_after_a_checkpoint(project, spec)

    def fill() -> None:  # as a full disk would, it lets the small files through, and not the optimizer's state
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))

    done = subprocess.run([*PTK, "run", "spec.yaml"], cwd=project, capture_output=True, text=True, check=False, preexec_fn=fill)
    assert done.returncode == 1
    assert "a checkpoint could not be written" in done.stderr
    assert re.search(r"the checkpoint of step \d+ is kept in ", done.stderr)
    kept = sorted(project.glob("cache/training/*/checkpoints/checkpoint-*"))
    assert kept
    assert all((place / "ptk-whole").is_file() for place in kept)
    told = run(project, spec)["steps"]["sft"]["facts"]
    assert told["timing"]["resumed_at"] is not None
    assert told["metrics"]["epochs"] == 60


@pytest.mark.slow
@pytest.mark.model
def test_a_loss_that_is_no_number_stops_with_the_pairs_of_its_batch(project: Path) -> None:
    spec = ONE.replace("MORE", "method: sft, trl: {learning_rate: 1.0e+30, max_grad_norm: 1.0e+30}")
    (project / "spec.yaml").write_text(spec)
    done = subprocess.run([*PTK, "run", "spec.yaml"], cwd=project, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "training stopped: the loss is nan in step" in done.stderr
    assert "of the pairs " in done.stderr


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.skipif(torch_device() != "cpu", reason="several processes are tried on a CPU")
def test_accelerate_starts_several_processes(project: Path) -> None:
    more = "method: dpo, accelerate: {multi_gpu: true, num_processes: 2, mixed_precision: 'no'}, trl: {learning_rate: 1.0e-2}"
    told = run(project, ONE.replace("MORE", more))
    assert told["steps"]["sft"]["facts"]["timing"]["processes"] == 2
    assert told["steps"]["sft"]["facts"]["timing"]["reference"]["computed"] == 48


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.parametrize("method", ["kto", "orpo"])
def test_other_methods_learn_from_the_same_records(project: Path, method: str) -> None:
    told = run(project, ONE.replace("MORE", f"method: {method}, trl: {{learning_rate: 1.0e-2, num_train_epochs: 3}}"))
    curve = [point["loss"] for point in told["steps"]["sft"]["facts"]["curve"] if "loss" in point]
    assert curve[-1] < curve[0]


@pytest.mark.slow
@pytest.mark.model
def test_all_weights_are_trained_with_tuning_full_and_merged_weights_are_a_model(project: Path) -> None:
    spec = ONE.replace("MORE", "method: sft, MODE, trl: {learning_rate: 1.0e-2}")
    lora = spec.replace("lora: {lora_dropout: 0.1}, ", "")
    for mode in ("tuning: full", "save: merged"):
        told = run(project, lora.replace("MODE", mode))
        assert told["steps"]["sft"]["facts"]["made"]["form"] == "model"
