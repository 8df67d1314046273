"""A local encoder of texts: one vector a text, or one a token, by transformers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from ptk.errors import ModelNotFound
from ptk.llm.local_model import torch_device
from ptk.llm.model_files import ModelRoots, find_model_files, model_digest, read_json_file
from ptk.params import PathSetting

__all__ = ["Encoder", "EncoderFiles", "Vectors"]

Vectors = npt.NDArray[np.float32]

_BATCH_TOKENS = 8_192
_MOST_TOKENS = 512
"""The most tokens of a text that are looked at, where the model does not say it."""
_LAYERS = ("Transformer", "Pooling", "Normalize")


@dataclass(frozen=True, slots=True)
class EncoderFiles(PathSetting):
    """A model whose hidden states stand for texts: `bundled/NAME`, a folder, or an id of the Hub, `org/name` or `org/name@REVISION`."""

    written: str
    folder: Path

    @classmethod
    def from_text(cls, text: str, root: Path) -> EncoderFiles:
        if any(find_spec(package) is None for package in ("torch", "transformers")):
            raise ValueError("an encoder needs torch and transformers; install preference-toolkit[train] or [cpu]")
        name, _, revision = text, "", None
        if "@" in text and not (root / Path(text).expanduser()).is_dir():
            name, _, revision = text.partition("@")
        try:
            folder = find_model_files(name, revision or None, ModelRoots(root)).folder
            _layers(folder)
        except ModelNotFound as error:
            raise ValueError(str(error)) from error
        return cls(text, folder)

    def canonical(self) -> str:
        """Return the digest of what decides vectors."""
        return _digest(self.folder)


@lru_cache(maxsize=8)
def _digest(folder: Path) -> str:
    return hashlib.sha256(orjson.dumps([model_digest(folder), _pooling(folder)])).hexdigest()


def _layers(folder: Path) -> None:
    """Raise ModelNotFound where a sentence model does more to its hidden states than is done here."""
    modules = folder / "modules.json"
    try:
        layers = orjson.loads(modules.read_bytes()) if modules.is_file() else []
        names = [str(layer["type"]).rsplit(".", 1)[-1] for layer in layers]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ModelNotFound(f"{modules} can't be read: {error}") from error
    unknown = [name for name in names if name not in _LAYERS]
    if unknown:
        raise ModelNotFound(f"{modules} has layers that are not known here: {', '.join(unknown)}; take a model without them")
    _pooling(folder)


def _pooling(folder: Path) -> str:
    """Return `mean` or `cls`: how a sentence model makes one vector of its tokens'. Raises ModelNotFound for other ways."""
    settings = read_json_file(folder / "1_Pooling" / "config.json")
    chosen = [name for name, value in settings.items() if name.startswith("pooling_mode_") and value is True]
    if not chosen or chosen == ["pooling_mode_mean_tokens"]:
        return "mean"
    if chosen == ["pooling_mode_cls_token"]:
        return "cls"
    raise ModelNotFound(f"{folder} pools by {', '.join(chosen)}; take a model that pools by mean_tokens or cls_token")


class Encoder:
    """A loaded encoder. Texts of about one length are computed together, in batches that the texts alone decide."""

    def __init__(self, files: EncoderFiles) -> None:
        import torch
        from transformers import AutoModel, AutoTokenizer

        folder = files.folder
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        device = torch_device()
        self._model = AutoModel.from_pretrained(folder, dtype=torch.float32).to(device).eval()
        self._device = device
        self._pooling = _pooling(folder)
        own = [
            read_json_file(folder / "sentence_bert_config.json").get("max_seq_length"),
            getattr(self._model.config, "max_position_embeddings", None),
        ]
        self._most = min([_MOST_TOKENS, *(value for value in own if isinstance(value, int) and value > 0)])

    def close(self) -> None:
        """Let go of the model and of its memory."""
        import gc

        import torch

        del self._model
        gc.collect()
        if self._device == "cuda":
            torch.cuda.empty_cache()

    def vectors(self, texts: Sequence[str]) -> Vectors:
        """Return a vector of length 1 for each text, (n, d)."""
        made = dict(self._each(texts, self._pooled))
        return np.stack([made[number] for number in range(len(texts))]) if made else np.zeros((0, 1), np.float32)

    def token_vectors(self, texts: Sequence[str]) -> list[Vectors]:
        """Return for each text the vectors of its tokens, (t, d), each of length 1, without those of special tokens.

        Where there are none but special tokens, theirs are returned; of a text without any token, one vector of zeros.
        """
        made = dict(self._each(texts, self._by_token))
        return [made[number] for number in range(len(texts))]

    def _each(self, texts: Sequence[str], function: Any) -> Iterator[tuple[int, Vectors]]:
        import torch

        encoded = (
            self._tokenizer(list(texts), truncation=True, max_length=self._most, return_special_tokens_mask=True)
            if texts
            else {}
        )
        tokens, special = encoded.get("input_ids", []), encoded.get("special_tokens_mask", [])
        order = sorted(range(len(texts)), key=lambda number: (len(tokens[number]), texts[number]))
        with torch.inference_mode():
            for batch in _batches(order, tokens):
                width = max(1, *(len(tokens[number]) for number in batch))
                ids, mask = torch.zeros((2, len(batch), width), dtype=torch.long)
                for place, number in enumerate(batch):
                    ids[place, : len(tokens[number])] = torch.tensor(tokens[number], dtype=torch.long)
                    mask[place, : len(tokens[number])] = 1
                hidden = self._model(input_ids=ids.to(self._device), attention_mask=mask.to(self._device)).last_hidden_state
                hidden = hidden.float().cpu()
                for place, number in enumerate(batch):
                    count = len(tokens[number])
                    yield number, function(hidden[place, :count], special[number])

    def _pooled(self, hidden: Any, special: Sequence[int]) -> Vectors:
        vector = hidden[0] if self._pooling == "cls" and len(hidden) else hidden.sum(0) / max(1, len(hidden))
        unit: Vectors = _unit(vector[None, :].numpy())[0]
        return unit

    def _by_token(self, hidden: Any, special: Sequence[int]) -> Vectors:
        kept = [at for at, mark in enumerate(special) if not mark] or list(range(len(special)))
        return _unit(hidden[kept].numpy()) if kept else np.zeros((1, hidden.shape[-1]), np.float32)


def _batches(order: Sequence[int], tokens: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Yield texts, which come from short to long, in batches of so many tokens at most with their padding, or of one text."""
    batch: list[int] = []
    for number in order:
        if batch and (len(batch) + 1) * len(tokens[number]) > _BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


def _unit(vectors: npt.NDArray[Any]) -> Vectors:
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    unit: Vectors = (vectors / np.maximum(lengths, 1e-12)).astype(np.float32)
    return unit
