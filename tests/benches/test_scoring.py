"""What log-probabilities of real pairs cost, against the plain way: transformers' forward and log_softmax, one sequence at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from .fresh import told

pytestmark = [pytest.mark.bench, pytest.mark.model]

PAIRS = Path(__file__).resolve().parents[3] / "shared" / "data" / "persona_pairs.jsonl"
WORDS = 60
COUNT = 8
VOCABULARY = 152_000

START = """
import json, math, sys, time
from pathlib import Path

import torch

from ptk.llm.transformers_worker import Scorer

def scorer(folder):
    settings = {"model": str(folder), "adapter": None, "device": "cpu", "dtype": "float32", "window": 2048}
    return Scorer({**settings, "batch_tokens": 512, "trust_remote_code": False})

def asked(number, messages, text):
    return {"id": number, "messages": messages, "prefill": "", "continuation": text}

def plainly(made, sequences, dtype=torch.float32):
    found = []
    for prompt, answer in sequences:
        tokens = torch.tensor([[*prompt, *answer]])
        with torch.inference_mode():
            logs = torch.log_softmax(made.model(tokens).logits[0].to(dtype), -1)
        found.append(logs[len(prompt) - 1 : -1].gather(1, torch.tensor(answer)[:, None])[:, 0].tolist())
    return found

def taken(function, *given):
    wall, processor = time.perf_counter(), time.process_time()
    made = function(*given)
    return made, [time.perf_counter() - wall, time.process_time() - processor]
"""

SPEED = """
from ptk.llm.bundled import bundled_model_folder

made = scorer(bundled_model_folder("smollm2-135m-instruct"))
questions = [
    asked(number, [["system", pair[f"{given}_persona"]], ["user", pair["prompt"]]], " ".join(pair[side].split()[:WORDS]))
    for number, (pair, given, side) in enumerate(
        (json.loads(line), given, side)
        for line in Path(sys.argv[1]).read_text().splitlines()[:COUNT]
        for given in ("chosen", "rejected")
        for side in ("chosen", "rejected")
    )
]
sequences = [made._tokens(question) for question in questions]
prompt, answer = (sum(map(len, part)) for part in zip(*sequences))
ours = lambda: {found["id"]: found["scores"] for found in made.answers(questions)}
ours(), plainly(made, sequences[:4])  # the first calls are slower
times = {"ours": [], "plain": []}
for _ in range(2):  # in turn, since other work on the machine comes and goes
    scores, cost = taken(ours)
    times["ours"].append(cost)
    _, cost = taken(plainly, made, sequences)
    times["plain"].append(cost)
# In float32 it is log_softmax over the whole vocabulary that loses most.
known = plainly(made, sequences, torch.float64)
print(json.dumps({
    "times": times, "prompt": prompt, "answer": answer,
    "token": max(abs(a - b) for number, row in enumerate(known) for a, b in zip(row, scores[number], strict=True)),
    "sum": max(abs(math.fsum(row) - math.fsum(scores[number])) for number, row in enumerate(known)),
}))
"""

MEMORY = """
from fresh import most_memory

made = scorer(sys.argv[1])
texts = [" ".join(f"w{(7 * number + at) % 900}" for at in range(400)) for number in range(2)]
questions = [asked(number, [["user", "w1 w2 w3 " * 20]], text) for number, text in enumerate(texts)]
sequences = [made._tokens(question) for question in questions]
run = (lambda: list(made.answers(questions))) if sys.argv[2] == "ours" else (lambda: plainly(made, sequences))
if sys.argv[2] == "ours":
    list(made.answers([asked(0, [["user", "w1"]], "w2")]))
else:
    plainly(made, [(sequences[0][0][:2], sequences[0][1][:2])])
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
before = most_memory()
run()
print(json.dumps({"before": before, "above": most_memory() - before, "tokens": [len(part) for sequence in sequences for part in sequence]}))
"""


def run(code: str, *arguments: Any) -> Any:
    fixed = f"WORDS, COUNT = {WORDS}, {COUNT}\n"
    # As ptk starts its own process: threads that spin while they wait slow both ways down where other work runs beside.
    return told(START + fixed + code, *arguments, OMP_WAIT_POLICY="PASSIVE", GOMP_SPINCOUNT="0")


def test_four_scores_a_pair_of_real_pairs(capsys: pytest.CaptureFixture[str]) -> None:
    if not PAIRS.is_file():
        pytest.skip("no real pairs here")
    found = run(SPEED, PAIRS)
    (wall, processor), (plain_wall, plain_processor) = (min(found["times"][name]) for name in ("ours", "plain"))
    prompt, answer = found["prompt"], found["answer"]
    with capsys.disabled():
        print(
            f"\n{COUNT} pairs, 4 scores each, {prompt:,} prompt and {answer:,} answer tokens: ptk {wall:.1f} s ({processor:.1f} s of"
            f" processors), plainly {plain_wall:.1f} s ({plain_processor:.1f} s): {plain_wall / wall:.2f} times by the"
            f" clock, {plain_processor / processor:.2f} times of processors;"
            f" tokens alone allow {(prompt + answer) / (prompt / 2 + answer):.2f} times;"
            f" with log_softmax in float64 they differ by {found['token']:.1e} a token, {found['sum']:.1e} a response"
        )
    assert found["token"] < 1e-4


def test_memory_above_the_loaded_model_at_a_large_vocabulary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {word: number for number, word in enumerate(["<s>", "</s>", "[UNK]", *(f"w{n}" for n in range(900))])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    chat = "{% for m in messages %}<s> {{ m.content }} </s> {% endfor %}{% if add_generation_prompt %}<s> {% endif %}"
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="[UNK]", chat_template=chat
    ).save_pretrained(tmp_path)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=2048, tie_word_embeddings=True,
    )  # fmt: skip
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    ours, plain = (run(MEMORY, tmp_path, name) for name in ("ours", "plain"))
    with capsys.disabled():
        print(
            f"\nvocabulary of {VOCABULARY:,}, two responses of 400 tokens: above the loaded model ({ours['before']:.0f} MiB) ptk takes"
            f" {ours['above']:.0f} MiB, the plain way {plain['above']:.0f} MiB: {ours['above'] / plain['above']:.2f} of it"
        )
    assert ours["tokens"] == plain["tokens"] and min(ours["tokens"][1::2]) > 400
    assert ours["above"] < plain["above"] / 3
