"""A model that is asked through ptk, against the same engine asked by itself, and against the loops that people write instead.

On a GPU the same tests run on that; the numbers of the page are from a CPU. PTK_BENCH_REQUESTS says how many requests of
infer_personas are measured.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from ptk.label.infer_personas import InferPersonas, infer_personas
from ptk.label.judge_personas import JudgePersonas, judge_personas
from ptk.llm.answers import AnswerStore
from ptk.llm.ask import Asking, Tally
from ptk.llm.backend import ResolvedModel
from ptk.llm.model_files import ModelRoots
from ptk.llm.request import Request, Sampling
from ptk.llm.vllm_backend import VllmSettings, _environment, backend, device, engine_arguments
from ptk.operator import KEY, LlmOperator

pytest.importorskip("vllm")
pytest.importorskip("transformers")
pytestmark = [pytest.mark.bench, pytest.mark.model]

SPECS = Path(__file__).resolve().parents[2] / "specs"
REQUESTS, TURNS, TOKENS = int(os.environ.get("PTK_BENCH_REQUESTS", "200")), 4, 40
LOOP, BATCH = 4, 32
"""Requests that the loops over transformers are measured on."""

WAITING = """
import json, resource, sys, time

def answered(work):
    for line in sys.stdin:
        chats = json.loads(line)
        started, busy = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
        told = work(**chats)
        after = resource.getrusage(resource.RUSAGE_SELF)
        seconds = time.perf_counter() - started
        processor = after.ru_utime + after.ru_stime - busy.ru_utime - busy.ru_stime
        print(json.dumps({"seconds": seconds, "processor": processor, **told}), file=told_to, flush=True)

told_to, sys.stdout = sys.stdout, sys.stderr
"""

BARE = """
from vllm import LLM, SamplingParams

llm = LLM(**json.loads(sys.argv[1]))

def chat(chats, most, logprobs=None):
    given = SamplingParams(temperature=0.0, max_tokens=most, logprobs=logprobs)
    begun = chats[0][-1]["role"] == "assistant"
    done = llm.chat(chats, given, use_tqdm=False, add_generation_prompt=not begun, continue_final_message=begun)
    return {
        "texts": [output.outputs[0].text for output in done],
        "prompt": sum(len(output.prompt_token_ids) for output in done),
        "output": sum(len(output.outputs[0].token_ids) for output in done),
        "cached": sum(output.num_cached_tokens or 0 for output in done),
    }

answered(chat)
"""

LOOPS = """
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

settings = json.loads(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(settings["model"], padding_side="left")
kind = getattr(torch, settings["dtype"])
model = AutoModelForCausalLM.from_pretrained(settings["model"], dtype=kind).to(settings["device"])

def generate(chats, most, size):
    texts, output = [], 0
    for start in range(0, len(chats), size):
        given = tokenizer.apply_chat_template(
            chats[start : start + size], add_generation_prompt=True, return_tensors="pt", return_dict=True, padding=True
        ).to(settings["device"])
        with torch.inference_mode():
            made = model.generate(**given, max_new_tokens=most, do_sample=False)
        made = made[:, given["input_ids"].shape[1] :]
        output += int((made != tokenizer.pad_token_id).sum())
        texts += tokenizer.batch_decode(made, skip_special_tokens=True)
    return {"texts": texts, "output": output}

answered(generate)
"""


class Rival:
    """A process that has a model loaded and answers chats, line by line."""

    def __init__(self, program: str, settings: dict[str, Any]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", WAITING + program, json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_environment(),
            text=True,
        )

    def ask(self, requests: Sequence[Request], **given: Any) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        chats = [
            [
                *({"role": turn.role, "content": turn.content} for turn in request.messages),
                *([{"role": "assistant", "content": request.prefill}] if request.prefill else []),
            ]
            for request in requests
        ]
        self.process.stdin.write(json.dumps({"chats": chats, **given}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, "the rival ended"
        told: dict[str, Any] = json.loads(line)
        return told

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def rival(program: str, settings: dict[str, Any]) -> Iterator[Rival]:
    made = Rival(program, settings)
    try:
        yield made
    finally:
        made.close()


@dataclass
class Spent:
    """Time by the clock and by the processors, and what was done in it."""

    seconds: float = 0.0
    processor: float = 0.0
    requests: int = 0

    def add(self, seconds: float, processor: float, requests: int) -> None:
        self.seconds += seconds
        self.processor += processor
        self.requests += requests

    def each(self) -> tuple[float, float]:
        return self.seconds / self.requests, self.processor / self.requests


def against(rival: Spent, ours: Spent) -> tuple[float, float]:
    """Return how much longer the rival takes for a request, by the clock and by the processors."""
    clock, busy = (theirs / mine for theirs, mine in zip(rival.each(), ours.each(), strict=True))
    return clock, busy


SETTINGS = VllmSettings(backend="vllm", model="bundled/smollm2-135m-instruct", sampling=Sampling(max_tokens=TOKENS))


@pytest.fixture(scope="module")
def model() -> ResolvedModel:
    return backend.resolve(SETTINGS, ModelRoots(SPECS))


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def pairs(count: int) -> pl.DataFrame:
    """Return pairs of the corpus that ships, each once more with other words where more are asked for than there are."""
    lines = [json.loads(line) for line in (SPECS / "data" / "quickstart.jsonl").read_text().splitlines()]
    rows = [
        {
            KEY: str(number),
            "prompt": [turn("user", f"{line['prompt']}{' Please be brief.' if number >= len(lines) else ''}")],
            "chosen": [turn("assistant", line["chosen"])],
            "rejected": [turn("assistant", line["rejected"])],
        }
        for number in range(count)
        for line in [lines[number % len(lines)]]
    ]
    return pl.DataFrame(rows)


def processor(process: int) -> float:
    """Return the processor time that a process has taken so far, in seconds."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def ask(operator: LlmOperator, params: Any, frame: pl.DataFrame, model: ResolvedModel, session: Any, folder: Path) -> Any:
    """Return (seconds, processor seconds of both processes, tally, requests) of asking all that an operator asks of a frame."""
    asking = Asking(operator, params, lambda: [frame], model, SETTINGS.sampling, AnswerStore(folder, model.identity))
    own = resource.getrusage(resource.RUSAGE_SELF)
    before = own.ru_utime + own.ru_stime + processor(session.process_id)
    started = time.perf_counter()
    rows = sum(decision.height for decision in asking.run(lambda: session))
    seconds = time.perf_counter() - started
    own = resource.getrusage(resource.RUSAGE_SELF)
    busy = own.ru_utime + own.ru_stime + processor(session.process_id) - before
    assert rows == frame.height
    return seconds, busy, asking.tally, list(asking.first_requests())


def added(tallies: Sequence[Tally]) -> tuple[float, int, int]:
    """Return the cached share of the prompts, the requests asked, and the tokens written."""
    prompt, cached = (sum(getattr(tally, f"{name}_tokens") for tally in tallies) for name in ("prompt", "cached"))
    return cached / prompt, sum(tally.asked for tally in tallies), sum(tally.output_tokens for tally in tallies)


@pytest.fixture
def params() -> InferPersonas:
    given = json.dumps({"model": "m", "exemplars": "exemplars/advice.yaml", "constrain": False})
    return InferPersonas.model_validate_json(given, context={"root": SPECS})


def test_personas_come_as_fast_as_from_the_bare_engine(
    tmp_path: Path, model: ResolvedModel, params: InferPersonas, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = pairs(REQUESTS // 2 + 2)
    ours, bare = Spent(), Spent()
    tallies: list[Tally] = []
    prompt = cached = 0
    with (
        rival(BARE, engine_arguments(SETTINGS, model, device())) as engine,
        backend.open(SETTINGS, model) as session,
    ):
        _, _, _, first = ask(infer_personas, params, frame.head(2), model, session, tmp_path)
        engine.ask(first, most=TOKENS)
        for part in frame.slice(2).iter_slices(REQUESTS // 2 // TURNS):
            seconds, busy, tally, asked = ask(infer_personas, params, part, model, session, tmp_path)
            ours.add(seconds, busy, tally.asked)
            tallies.append(tally)
            seen = engine.ask(asked, most=TOKENS)
            bare.add(seen["seconds"], seen["processor"], len(asked))
            prompt, cached = prompt + seen["prompt"], cached + seen["cached"]
            assert abs(tally.output_tokens - seen["output"]) <= 0.02 * seen["output"]
    share, count, _ = added(tallies)
    clock, busy = against(bare, ours)
    with capsys.disabled():
        print(
            f"\n{count} requests of infer_personas, {sum(t.prompt_tokens for t in tallies) // count} tokens a prompt, on {device()}: "
            f"{count / ours.seconds:.2f} requests/s; cached share {share:.3f} (bare engine {cached / prompt:.3f}); throughput against "
            f"LLM.chat: {clock:.2f} by the clock, {busy:.2f} by the processors"
        )
    assert count == REQUESTS
    assert share >= cached / prompt - 0.01
    assert clock >= 0.95


def test_personas_come_faster_than_from_loops_over_transformers(
    tmp_path: Path, model: ResolvedModel, params: InferPersonas, capsys: pytest.CaptureFixture[str]
) -> None:
    ours, loop, batch = Spent(), Spent(), Spent()
    frame = pairs(BATCH // 2 + 2)
    with (
        rival(LOOPS, {"model": str(model.path), "dtype": model.identity["dtype"], "device": device()}) as loops,
        backend.open(SETTINGS, model) as session,
    ):
        _, _, _, first = ask(infer_personas, params, frame.head(2), model, session, tmp_path)
        loops.ask(first, most=4, size=4)
        seconds, busy, tally, requests = ask(infer_personas, params, frame.slice(2), model, session, tmp_path)
        ours.add(seconds, busy, tally.asked)
        seen = loops.ask(requests[:LOOP], most=TOKENS, size=1)
        loop.add(seen["seconds"], seen["processor"], LOOP)
        seen = loops.ask(requests, most=TOKENS, size=BATCH)
        batch.add(seen["seconds"], seen["processor"], len(requests))
    (one, one_busy), (many, many_busy) = against(loop, ours), against(batch, ours)
    with capsys.disabled():
        print(
            f"\n{BATCH} requests of infer_personas on {device()}, against transformers a row at a time ({LOOP} rows): {one:.1f} x by "
            f"the clock, {one_busy:.1f} x by the processors; in batches of {BATCH}: {many:.1f} x and {many_busy:.1f} x"
        )
    assert one >= 8
    assert many >= 2


def test_a_judge_by_probabilities_computes_one_token(
    tmp_path: Path, model: ResolvedModel, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = pairs(21).with_columns(
        chosen_persona=pl.format("The user is busy, number {}, and prefers what is short.", KEY),
        rejected_persona=pl.format("The user is curious, number {}, and prefers what is thorough.", KEY),
    )
    ours, bare, written = Spent(), Spent(), Spent()
    tallies: list[Tally] = []
    prompt = cached = 0
    by_probability, by_text = JudgePersonas(model="m"), JudgePersonas(model="m", answer="text")
    with (
        rival(BARE, engine_arguments(SETTINGS, model, device())) as engine,
        backend.open(SETTINGS, model) as session,
    ):
        _, _, _, asked = ask(judge_personas, by_probability, frame.head(1), model, session, tmp_path)
        engine.ask(asked, most=1)
        for part in frame.slice(1).iter_slices(10):
            seconds, busy, tally, asked = ask(judge_personas, by_probability, part, model, session, tmp_path)
            ours.add(seconds, busy, tally.asked)
            tallies.append(tally)
            seen = engine.ask(asked, most=1, logprobs=2)
            bare.add(seen["seconds"], seen["processor"], len(asked))
            prompt, cached = prompt + seen["prompt"], cached + seen["cached"]
        # Their prompts are in the cache by now, so this is what the words alone cost.
        seconds, busy, tally, _ = ask(judge_personas, by_text, frame.slice(1, 5), model, session, tmp_path)
        written.add(seconds, busy, tally.asked)
    share, count, output = added(tallies)
    clock, busy = against(bare, ours)
    with capsys.disabled():
        print(
            f"\n{count} questions of judge_personas by log-probabilities on {device()}: {count / ours.seconds:.2f} a second, "
            f"{output} tokens computed; cached share {share:.3f} (bare engine {cached / prompt:.3f}); throughput against LLM.chat with "
            f"max_tokens=1: {clock:.2f} by the clock, {busy:.2f} by the processors; an answer written to at most {TOKENS} tokens, its prompt in "
            f"the cache, takes {written.each()[1] / ours.each()[1]:.1f} x the processor time"
        )
    # The same questions: but for the blank before the choice, which may belong to the choice's token.
    assert abs(sum(tally.prompt_tokens for tally in tallies) - prompt) <= count
    assert output == count
    assert share >= cached / prompt - 0.01
    assert clock >= 0.8  # 120 short questions: repeated, it was between 0.87 and 1.38
