"""Likelihoods by transformers: batched, prefixes shared, and equal to the plain way."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ptk.errors import BackendError, ModelNotFound
from ptk.llm.model_files import ModelRoots
from ptk.llm.request import Message, Request
from ptk.llm.transformers_backend import TransformersSession, TransformersSettings, backend
from ptk.llm.transformers_worker import Group, Scorer, _of_one_length, batches
from ptk.params import canonical

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

CHAT = "{% for m in messages %}<s>{{ m.role }} {{ m.content }}</s>\n{% endfor %}{% if add_generation_prompt %}<s>assistant {% endif %}"
LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = [*LETTERS, "user", "assistant", "system", "Prompt:", "Persona:", "Response:"]

TINY: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 2},
    "qwen3": {"num_key_value_heads": 1, "head_dim": 8, "tie_word_embeddings": True},
    "gemma2": {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 4, "final_logit_softcapping": 5.0},
    "granite": {"num_key_value_heads": 2, "logits_scaling": 4.0},
    "gpt2": {},
    "cohere": {"num_key_value_heads": 2, "logit_scale": 0.25},
}


def tiny_model(folder: Path, kind: str) -> Path:
    """Write a random model of an architecture, with a tokenizer of one token a word and a chat template."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["<s>", "</s>", "[UNK]", *WORDS]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="[UNK]", chat_template=CHAT
    )
    made.save_pretrained(folder)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    if kind == "gpt2":
        sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
    config = transformers.AutoConfig.for_model(
        kind, **{"vocab_size": len(words), "max_position_embeddings": 128, **sizes, **TINY[kind]}
    )
    torch.manual_seed(3)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():  # as they are drawn, every token is about as likely
            parameter.mul_(3.0)
    model.save_pretrained(folder)
    return folder


def scorer(folder: Path, **given: Any) -> Scorer:
    settings = {"model": str(folder), "adapter": None, "device": "cpu", "dtype": "float32", "window": 64, "batch_tokens": 40}
    return Scorer({**settings, "trust_remote_code": False, **given})


def asked(number: int, prompt: str, continuation: str | None, **given: Any) -> dict[str, Any]:
    content = {"id": number, "messages": [["user", prompt]], "prefill": "", "continuation": continuation}
    return {**content, **given}


def asked_plainly(number: int, text: str, continuation: str) -> dict[str, Any]:
    return asked(number, "", continuation, messages=[], prefill=text)


def plainly(model: Any, prompt: list[int], continuation: list[int]) -> list[float]:
    """Return the scores of one sequence, computed alone, over the whole vocabulary."""
    tokens = torch.tensor([prompt + continuation])
    with torch.inference_mode():
        logs = torch.log_softmax(model(tokens).logits[0].double(), -1)
    return [float(logs[len(prompt) + at - 1, token]) for at, token in enumerate(continuation)]


QUESTIONS = [
    asked(0, "a b c d e", "f g"),
    asked(1, "a b c d e", "h i j k l m n o p"),
    asked(2, "q", "r"),
    asked(3, "q r s t u v w x y z a b", "c d e f"),
    asked(4, "a b c d e", "f g"),
    asked(5, "z", "y x w v u t s r q p o n"),
    asked_plainly(6, "Prompt: a Response:", "b c"),
]


@pytest.mark.parametrize("kind", sorted(TINY))
def test_scores_are_those_of_every_sequence_computed_alone(tmp_path: Path, kind: str) -> None:
    made = scorer(tiny_model(tmp_path, kind))
    found = {answer["id"]: answer for answer in made.answers(QUESTIONS)}
    assert sorted(found) == list(range(7))
    assert (
        len(made._tokens(QUESTIONS[1])[1]) == 10
    )  # nine words and the end of the turn: the tokenizer is the one that was written
    for question in QUESTIONS:
        prompt, continuation = made._tokens(question)
        assert found[question["id"]]["scores"] == pytest.approx(plainly(made.model, list(prompt), continuation), abs=1e-4)
    shared = found[0]["prompt_tokens"]
    assert [found[number]["cached_tokens"] for number in (0, 1, 4)] == [0, shared, shared]
    assert found[6]["output_tokens"] == 3  # two words and the end token


def test_what_can_not_be_scored_is_refused_and_disturbs_no_other(tmp_path: Path) -> None:
    made = scorer(tiny_model(tmp_path, "llama"))
    found = {
        answer["id"]: answer.get("error")
        for answer in made.answers(
            [asked(0, "a", "b"), asked(1, "a " * 70, "b"), asked(2, "a", None), asked_plainly(3, "", "b")]
        )
    }
    assert found == {
        0: None,
        1: "prompt_too_long: 75 prompt tokens + 2 answer tokens > 64",
        2: "refused: this backend writes no answers",
        3: "refused: the prompt is empty",
    }


def test_a_model_that_changes_its_logits_in_an_unknown_way_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_model(tmp_path, "llama")
    forward = transformers.LlamaForCausalLM.forward

    def changed(self: Any, *given: Any, **named: Any) -> Any:
        output = forward(self, *given, **named)
        output.logits = output.logits * 0.5
        return output

    monkeypatch.setattr(transformers.LlamaForCausalLM, "forward", changed)
    with pytest.raises(ValueError, match="changes its logits in a way that is not known here"):
        scorer(folder)


def test_batches_hold_groups_of_about_one_length_and_no_more_tokens_than_allowed() -> None:
    groups = [Group(tuple(range(n)), [(n, [1] * 5), (-n, [1] * 3)]) for n in (30, 2, 4, 31, 3)]
    made = [[len(group.prompt) for group in batch] for batch in batches(groups, 60)]
    assert made == [[2, 3, 4], [30], [31]]
    assert list(batches([], 10)) == []


def test_continuations_of_about_one_length_are_computed_together() -> None:
    assert list(_of_one_length([5, 9, 9, 2, 8, 1], 1)) == [[1, 2, 4], [0], [3, 5]]
    assert list(_of_one_length([5, 9, 9, 2, 8, 1], 0)) == [[1, 2], [4], [0], [3], [5]]
    assert list(_of_one_length([5, 9, 2], 99)) == [[1, 0, 2]]


# ------------------------------------------------------------------------------------------------------------- resolving


def settings(**given: Any) -> TransformersSettings:
    return TransformersSettings(backend="transformers", **{"model": "model", **given})


def adapter(folder: Path, base: Path, **given: Any) -> Path:
    """Write a LoRA adapter with random weights."""
    from peft import LoraConfig, get_peft_model

    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    torch.manual_seed(5)
    config = LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(model, config).save_pretrained(folder)
    return folder


def test_an_adapter_decides_the_identity_and_its_place_does_not(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    base = tiny_model(tmp_path / "model", "llama")
    adapter(tmp_path / "one", base)
    config = json.loads((tmp_path / "one" / "adapter_config.json").read_text())
    (tmp_path / "two").mkdir()
    for file in (tmp_path / "one").iterdir():
        (tmp_path / "two" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "two" / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "model"}))
    plain, one, two = (backend.resolve(settings(adapter=name), ModelRoots(tmp_path)) for name in (None, "one", "two"))
    assert one.identity == two.identity != plain.identity
    assert one.identity == {**plain.identity, "adapter": one.identity["adapter"]}
    assert one.reference == "model + one"

    tuned, untuned = scorer(base, adapter=str(tmp_path / "one")), scorer(base)
    prompt, continuation = tuned._tokens(QUESTIONS[1])
    (answer,) = tuned.answers(QUESTIONS[1:2])
    from peft import PeftModel

    kept_apart = PeftModel.from_pretrained(untuned.model, tmp_path / "one")
    assert answer["scores"] == pytest.approx(plainly(kept_apart, list(prompt), continuation), abs=1e-4)
    assert answer["scores"] != pytest.approx(next(iter(scorer(base).answers(QUESTIONS[1:2])))["scores"], abs=1e-2)


def test_an_adapter_of_another_base_and_a_folder_that_is_none_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    tiny_model(tmp_path / "model", "llama")
    adapter(tmp_path / "foreign", tiny_model(tmp_path / "other", "qwen3"))
    with pytest.raises(ModelNotFound, match=r"adapter 'foreign' was trained on '.*other', not on 'model'"):
        backend.resolve(settings(adapter="foreign"), ModelRoots(tmp_path))
    with pytest.raises(ModelNotFound, match=r"the folder of an adapter \(.*model\) lacks adapter_config.json"):
        backend.resolve(settings(adapter="model"), ModelRoots(tmp_path))


def test_settings_that_can_not_change_a_score_stay_out_of_the_key() -> None:
    assert canonical(settings(batch_tokens=7, startup_timeout=3.0)) == canonical(settings())


# ------------------------------------------------------------------------------------------------------------ the process


def requests(count: int) -> Iterator[tuple[str, Request]]:
    for number in range(count):
        ask = Message("user", f"{WORDS[number // 2 % 26]} b c")
        yield str(number), Request(str(number), "s", (ask,), continuation=WORDS[number % 26])


def test_a_session_answers_each_request_once_and_leaves_no_process(tmp_path: Path) -> None:
    tiny_model(tmp_path / "model", "llama")
    chosen = settings(batch_tokens=64)
    with backend.open(chosen, backend.resolve(chosen, ModelRoots(tmp_path))) as session:
        assert isinstance(session, TransformersSession)
        found = list(session.answer(requests(50)))
        process = session.process_id
    assert sorted(int(answer.key) for answer in found) == list(range(50))
    assert all(answer.scores and len(answer.scores) == 2 and answer.error is None for answer in found)
    assert sum(answer.cached_tokens > 0 for answer in found) == 25
    assert not Path(f"/proc/{process}").exists()


def test_a_model_that_does_not_load_is_an_error_that_says_why(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "model", "llama")
    (folder / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(BackendError, match=r"the engine of model did not start"):
        backend.open(settings(), backend.resolve(settings(), ModelRoots(tmp_path)))
