"""Pairs are scored under each persona, on the scripted backend and on the model that ships."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import psutil
import pytest
from pydantic import ValidationError

from ptk.llm.request import Answer, Message
from ptk.operator import DETAIL, KEY, REJECT
from ptk.train.score_pairs import ScorePairs, score_pairs

PTK = [sys.executable, "-c", "from ptk.cli import main; main()"]
TURN = pl.List(pl.Struct({"role": pl.String, "content": pl.String}))
SCHEMA = {
    KEY: pl.String,
    "prompt": TURN,
    "chosen": TURN,
    "rejected": TURN,
    "chosen_persona": pl.String,
    "rejected_persona": pl.String,
}


def turn(role: str, content: str) -> list[dict[str, str]]:
    return [{"role": role, "content": content}]


def row(key: str = "k", **given: Any) -> dict[str, Any]:
    pair = {
        "prompt": turn("user", "Why?"),
        "chosen": turn("assistant", "Because."),
        "rejected": turn("assistant", "Who knows."),
    }
    return {KEY: key, **pair, "chosen_persona": "The user is A.", "rejected_persona": "The user is B.", **given}


def frame(*rows: dict[str, Any]) -> pl.DataFrame:
    return pl.DataFrame(list(rows), schema=SCHEMA)


def settings(**given: Any) -> ScorePairs:
    return ScorePairs(model="m", **given)


def test_each_response_is_asked_for_under_each_condition_and_shares_its_prompt() -> None:
    asked = list(score_pairs.requests(frame(row()), {}, settings()))
    assert [(request.slot, request.messages, request.continuation) for request in asked] == [
        (f"{side}|{given}", (*said, Message("user", "Why?")), text)
        for given, said in (
            ("none", ()),
            ("chosen", (Message("system", "The user is A."),)),
            ("rejected", (Message("system", "The user is B."),)),
        )
        for side, text in (("chosen", "Because."), ("rejected", "Who knows."))
    ]


def test_the_plain_template_writes_the_prompt_and_no_chat() -> None:
    (request, _) = score_pairs.requests(frame(row()), {}, settings(template="plain", place="tag", given=("chosen",)))
    assert request.messages == ()
    assert request.prefill == "Prompt: Why?\nPersona: The user is A.\nResponse:"
    assert request.continuation == " Because."


def test_sums_and_tokens_are_laid_beside_the_pair() -> None:
    answers = {
        ("k", f"{side}|{given}"): Answer("", "", "stop", scores=(-1.0 * place, -0.5))
        for place, (side, given) in enumerate([("chosen", "none"), ("rejected", "none")], 1)
    }
    made = score_pairs.collect(frame(row()), answers, settings(given=("none",), into="base", per_token=True))
    assert made.drop(REJECT, DETAIL).rows(named=True) == [
        {
            KEY: "k",
            "base_chosen_given_none": -1.5,
            "base_chosen_given_none_tokens": [-1.0, -0.5],
            "base_rejected_given_none": -2.5,
            "base_rejected_given_none_tokens": [-2.0, -0.5],
            "base_chosen_tokens": 2,
            "base_rejected_tokens": 2,
        }
    ]


BAD = [
    ({"chosen_persona": " "}, "no_persona", "column 'chosen_persona' is empty"),
    ({"rejected": turn("assistant", "  ")}, "empty_response", "'rejected' is empty"),
    ({"chosen": turn("assistant", "a") * 2}, "several_turns", "'chosen' has 2 turns; a response is one"),
    ({"chosen": turn("user", "a")}, "wrong_role", "'chosen' is a turn of the user"),
    ({"prompt": turn("user", "a") + turn("assistant", "b")}, "no_user_turn", "'prompt' does not end with a turn of the user"),
    ({"prompt": []}, "empty_prompt", "'prompt' is empty"),
]


@pytest.mark.parametrize(("changed", "reason", "detail"), BAD)
def test_what_can_not_be_scored_asks_nothing_and_is_rejected(changed: dict[str, Any], reason: str, detail: str) -> None:
    given = frame(row(**changed))
    assert list(score_pairs.requests(given, {}, settings())) == []
    assert score_pairs.collect(given, {}, settings()).select(REJECT, DETAIL).rows() == [(reason, detail)]


@pytest.mark.parametrize(
    ("answer", "reason", "detail"),
    [
        (None, "no_scores", "the model gave no log-probabilities"),
        (Answer("", "", "error", error="prompt_too_long: 9 > 8"), "prompt_too_long", "9 > 8"),
        (Answer("", "", "stop", scores=(-1.0, math.nan)), "not_finite", "a log-probability of 'chosen' is not a number"),
    ],
)
def test_an_answer_without_scores_rejects_its_row(answer: Answer | None, reason: str, detail: str) -> None:
    answers = {} if answer is None else {("k", "chosen|none"): answer}
    made = score_pairs.collect(frame(row()), answers, settings(given=("none",)))
    assert made.select(REJECT, DETAIL).rows() == [(reason, detail)]


def test_settings_that_contradict_are_refused() -> None:
    with pytest.raises(ValidationError, match="`rejected_persona` must name a column"):
        settings(rejected_persona=None)
    with pytest.raises(ValidationError, match="plain text has no system message"):
        settings(template="plain")
    with pytest.raises(ValidationError, match="names a condition twice"):
        settings(given=("none", "none"))


SPEC = """\
ptk: 1
name: scored
models:
  scorer: {scorer}
  writer: {{backend: scripted, model: persona}}
steps:
  pairs:    {{op: read_pairs, path: pairs.jsonl, keep: [chosen_persona, rejected_persona]}}
  scored:   {{op: score_pairs, from: pairs, model: scorer, into: base}}
outputs:
  scored/pairs: {{from: scored, licence: cc0-1.0, tags: [latest]}}
"""


def lay_out(folder: Path, scorer: str, count: int) -> None:
    records = [
        {
            "prompt": f"How do I boil {number + 2} eggs?",
            "chosen": "Put them into boiling water for eight minutes." + " Then cool them." * (number % 3),
            "rejected": "It depends on how you like them, on their size and on the pot.",
            "chosen_persona": "The user is in a hurry and prefers bare steps.",
            "rejected_persona": "The user is a careful cook and prefers to know what matters.",
        }
        for number in range(count)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "spec.yaml").write_text(SPEC.format(scorer=scorer))


def test_a_backend_that_gives_no_likelihoods_is_refused_at_the_steps_line(tmp_path: Path, ptk: Callable[..., Any]) -> None:
    pytest.importorskip("vllm")
    lay_out(tmp_path, "{backend: vllm, model: bundled/smollm2-135m-instruct}", 2)
    done = ptk("plan", "spec.yaml")
    assert done.returncode == 2
    assert (
        "spec.yaml:8: steps.scored.model: score_pairs asks for likelihoods, which backend 'vllm' does not give" in done.stderr
    )


def test_the_whole_way_on_the_scripted_backend(tmp_path: Path, ptk: Callable[..., Any]) -> None:
    lay_out(tmp_path, "{backend: scripted, model: persona}", 5)
    summary = json.loads(ptk("run", "spec.yaml", "--json").stdout)
    step = summary["steps"]["scored"]
    assert (step["rows_out"], step["requests"]["asked"]) == (5, 30)
    assert set(step["facts"]) == {
        "pairs",
        "chosen_preferred_given_none",
        "chosen_preferred_given_chosen",
        "chosen_preferred_given_rejected",
        "same_persona",
        "flip",
        "shift",
    }


SCORER = "{backend: transformers, model: bundled/smollm2-135m-instruct, batch_tokens: 256}"


@pytest.mark.model
def test_the_scores_of_the_model_that_ships_are_those_of_the_plain_way(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    import ptk_catalog
    from ptk.llm.bundled import bundled_model_folder

    lay_out(tmp_path, SCORER, 2)  # one response is longer than the other three, so that they are padded
    subprocess.run([*PTK, "run", "spec.yaml"], cwd=tmp_path, capture_output=True, text=True, check=True)
    rows = ptk_catalog.open(tmp_path / "catalog" / "store").load("scored/pairs@latest").collect()
    assert rows.height == 2
    folder = bundled_model_folder("smollm2-135m-instruct")
    torch.set_num_threads(1)  # threads that wait for each other take minutes where other work keeps the processors
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for pair in rows.iter_rows(named=True):
        for given in ("none", "chosen", "rejected"):
            said = [] if given == "none" else [{"role": "system", "content": pair[f"{given}_persona"]}]
            for side in ("chosen", "rejected"):
                messages = [*said, *pair["prompt"]]
                before = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
                whole = tokenizer.apply_chat_template([*messages, *pair[side]], tokenize=False)
                start = len(tokenizer(before, add_special_tokens=False)["input_ids"])
                tokens = tokenizer(whole.rstrip("\n"), add_special_tokens=False, return_tensors="pt")["input_ids"]
                with torch.inference_mode():
                    logs = torch.log_softmax(model(tokens).logits[0].double(), -1)
                wanted = logs[start - 1 : -1].gather(1, tokens[0, start:, None]).sum().item()
                assert pair[f"base_{side}_given_{given}"] == pytest.approx(wanted, abs=1e-4)
                assert pair[f"base_{side}_tokens"] == tokens.shape[1] - start


@pytest.mark.model
@pytest.mark.slow
def test_a_killed_scoring_loses_nothing_that_was_stored(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    lay_out(tmp_path, SCORER, 30)
    killed = subprocess.Popen([*PTK, "run", "spec.yaml"], cwd=tmp_path, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    answers = tmp_path / ".ptk" / "answers"
    deadline = time.monotonic() + 240
    while not list(answers.rglob("*.parquet")) and killed.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    children = psutil.Process(killed.pid).children(recursive=True)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    _, alive = psutil.wait_procs(children, timeout=15)
    assert not alive, "the model outlived the run"

    done = subprocess.run([*PTK, "run", "spec.yaml", "--json"], cwd=tmp_path, capture_output=True, text=True, check=True)
    step = json.loads(done.stdout)["steps"]["scored"]
    assert step["rows_out"] == 30
    assert step["requests"]["answered_before"] >= 1
    assert step["requests"]["asked"] + step["requests"]["answered_before"] == 180
