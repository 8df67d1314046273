"""Makes a corpus of preference pairs of any size for the benchmarks: seeded, with lengths as real prompts and responses have them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from ptk_catalog.digest import row_id

TURNS = pl.List(pl.Struct({"role": pl.String, "content": pl.String}))
MAKE = """
import sys
from pathlib import Path
from corpus import make_corpus
make_corpus(Path(sys.argv[1]), int(sys.argv[2]))
"""
"""A script that makes a corpus in a process of its own: a folder, and how many pairs."""

_BATCH = 100_000
_SENTENCES = 50_000


def make_corpus(folder: Path, pairs: int, *, repeats: float = 0.05, seed: int = 0) -> Path:
    """Write `pairs` canonical pairs as Parquet parts below `folder` and return the folder; a share of the prompts occurs twice.

    Beside pair_id, prompt, chosen and rejected there are `score` (float, 1 to 5), `annotator` (int) and `source` (8 values). About 160
    words a pair. Made batch by batch, so any size needs little memory.
    """
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(seed)
    sentences = _sentences(draw)
    for number, start in enumerate(range(0, pairs, _BATCH)):
        height = min(_BATCH, pairs - start)
        batch = pl.DataFrame(
            {
                "prompt": _texts(draw, sentences, height, 3),
                "chosen": _texts(draw, sentences, height, 5),
                "rejected": _texts(draw, sentences, height, 5),
                "score": draw.integers(10, 51, height) / 10,
                "annotator": draw.integers(0, 1_000, height),
                "source": np.array([f"set-{index}" for index in range(8)])[draw.integers(0, 8, height)],
            }
        )
        again = draw.random(height) < repeats
        first = np.maximum(np.arange(height) - 1, 0)
        batch = batch.with_columns(
            prompt=pl.when(pl.Series(again)).then(pl.col("prompt").gather(first)).otherwise(pl.col("prompt"))
        )
        turned = batch.with_columns(
            pl.concat_list(pl.struct(role=pl.lit("user" if name == "prompt" else "assistant"), content=pl.col(name))).alias(
                name
            )
            for name in ("prompt", "chosen", "rejected")
        )
        rows = turned.select(row_id(dict.fromkeys(("prompt", "chosen", "rejected"), TURNS)).alias("pair_id"), *batch.columns)
        rows.write_parquet(folder / f"part-{number:05}.parquet")
    return folder


def _sentences(draw: np.random.Generator) -> pl.Series:
    """Return sentences of 6 to 18 words from a vocabulary with Zipf's frequencies."""
    letters = np.array(list("etaoinshrdlucmfwypvbgkjqxz"))
    vocabulary = ["".join(draw.choice(letters[:20], draw.integers(2, 11))) for _ in range(20_000)]
    weights = 1 / np.arange(1, len(vocabulary) + 1)
    words = draw.choice(len(vocabulary), _SENTENCES * 18, p=weights / weights.sum())
    lengths = draw.integers(6, 19, _SENTENCES)
    return pl.Series(
        [
            " ".join(vocabulary[word] for word in words[index * 18 : index * 18 + lengths[index]]) + "."
            for index in range(_SENTENCES)
        ]
    )


def _texts(draw: np.random.Generator, sentences: pl.Series, height: int, most: int) -> pl.Series:
    """Return texts of 2 to `most` sentences."""
    lengths = draw.integers(min(2, most), most + 1, height)
    chosen = pl.DataFrame(
        {f"s{index}": sentences.gather(draw.integers(0, len(sentences), height)) for index in range(most)} | {"n": lengths}
    )
    parts = [pl.when(pl.col("n") > index).then(pl.col(f"s{index}")) for index in range(most)]
    return chosen.select(pl.concat_str(parts, separator=" ", ignore_nulls=True)).to_series()
