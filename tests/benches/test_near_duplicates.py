"""Near-duplicates from raw text to kept rows on one thread: ptk, datasketch, and rensa with shingles made in Python."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from .fresh import told

pytestmark = pytest.mark.bench

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
WORD = re.compile(r"[^\W_]+")

PLANTED = 1_000
COPIES = 8
ALIKE, NEAR_MISS = (0.82, 0.88), (0.48, 0.66)
FEW, MANY, MOST = 10_000, 100_000, 1_000_000

PTK = """
import json, sys, time
import polars as pl
from fresh import most_memory
from ptk.ops.drop_near_duplicates import DropNearDuplicates, drop_near_duplicates
from ptk.stages import run_stages

def kept(frame):
    decision = run_stages(drop_near_duplicates, [frame], DropNearDuplicates(on=("text",), threshold=0.7, ngram=5))
    # Stages share nothing but the scan, as in an engine, which runs them one by one.
    apart = pl.QueryOptFlags(comm_subplan_elim=False)
    return decision.filter(pl.col("_reject").is_null()).select("_key").collect(engine="streaming", optimizations=apart)

started = time.perf_counter()
kept(pl.scan_parquet(sys.argv[1]).head(500))
first = time.perf_counter() - started
best = None
for _ in range(int(sys.argv[2])):
    wall, cpu = time.perf_counter(), time.process_time()
    keys = kept(pl.scan_parquet(sys.argv[1]))["_key"]
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    best = min(best or (cpu, wall), (cpu, wall))
peak = most_memory()
keys.to_frame().write_parquet(sys.argv[3])
print(json.dumps({"cpu": best[0], "wall": best[1], "peak": peak, "first": first}))
"""

RIVAL = """
import json, re, sys, time
import polars as pl
from fresh import most_memory

WORD = re.compile(r"\\w+")

def shingles(text):
    words = WORD.findall(text.lower())
    return {" ".join(words[at : at + 5]) for at in range(max(1, len(words) - 4))}

def datasketch(keys, texts):
    from datasketch import MinHash, MinHashLSH
    index = MinHashLSH(threshold=0.7, num_perm=128)
    kept = []
    sets = ([shingle.encode() for shingle in shingles(text)] for text in texts)
    for key, minhash in zip(keys, MinHash.generator(sets, num_perm=128)):
        if not index.query(minhash):
            index.insert(key, minhash, check_duplication=False)
            kept.append(key)
    return kept

def rensa(keys, texts):
    from rensa import RMinHash, RMinHashLSH
    matrix = RMinHash.digest_matrix_from_token_sets([list(shingles(text)) for text in texts], 128, 1)
    flags = RMinHashLSH(0.7, 128, 16).insert_matrix_and_query_duplicate_flags(matrix)
    return [key for key, flag in zip(keys, flags) if not flag]

kept = {"datasketch": datasketch, "rensa": rensa}[sys.argv[4]]
frame = pl.read_parquet(sys.argv[1])
keys, texts = frame["_key"].to_list(), frame["text"].to_list()
kept(keys[:100], texts[:100])
best = None
for _ in range(int(sys.argv[2])):
    wall, cpu = time.perf_counter(), time.process_time()
    stay = kept(keys, texts)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    best = min(best or (cpu, wall), (cpu, wall))
pl.DataFrame({"_key": stay}).write_parquet(sys.argv[3])
print(json.dumps({"cpu": best[0], "wall": best[1], "peak": most_memory()}))
"""


def vocabulary(draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return 30,000 words and how often they occur: as Zipf says, the short ones most."""
    letters = np.array(list("etaoinshrdlucmfwypvbgkjqxz"))
    shares = 1 / np.arange(1, 27)
    lengths = np.sort(np.minimum(14, 1 + draw.geometric(0.18, 60_000)))
    words = ["".join(draw.choice(letters, length, p=shares / shares.sum())) for length in lengths]
    words = list(dict.fromkeys(words))[:30_000]
    frequency = 1 / (np.arange(len(words)) + 2.7)
    return np.array(words, object), frequency / frequency.sum()


def replaced(draw: np.random.Generator, words: list[str], similarity: float) -> list[str]:
    """Return words of which a stretch is other words, so long that about this share of the 5-grams stays the same."""
    grams = len(words) - 4
    stretch = max(1, round(grams * (1 - similarity) / (1 + similarity)) - 4)
    start = int(draw.integers(4, len(words) - stretch - 4))
    return [
        *words[:start],
        *(f"{word}{draw.integers(1000)}" for word in words[start : start + stretch]),
        *words[start + stretch :],
    ]


def similarity_of(left: list[str], right: list[str]) -> float:
    """Return the Jaccard similarity of two texts' 5-grams."""
    first, second = ({tuple(words[at : at + 5]) for at in range(len(words) - 4)} for words in (left, right))
    return len(first & second) / len(first | second)


def make_corpus(folder: Path, height: int) -> tuple[Path, dict[str, str], dict[str, str]]:
    """Write texts of 60 to 140 words as Parquet, shuffled; return its path and the planted pairs and near-misses."""
    draw = np.random.default_rng(height)
    words, frequency = vocabulary(draw)
    texts: list[str] = []
    pairs: dict[str, str] = {}
    misses: dict[str, str] = {}
    while len(texts) < height:
        size = min(20_000, height - len(texts))
        lengths = draw.integers(60, 141, size)
        drawn = words[draw.choice(len(words), int(lengths.sum()), p=frequency)]
        rows = np.split(drawn, np.cumsum(lengths)[:-1])
        if not texts:
            for number in range(2 * PLANTED):
                alike = number < PLANTED
                one = rows[2 * number].tolist()
                other = replaced(draw, one, draw.uniform(0.84, 0.86) if alike else draw.uniform(0.5, 0.64))
                low, high = ALIKE if alike else NEAR_MISS
                assert low <= similarity_of(one, other) <= high
                rows[2 * number + 1] = np.array(other, object)
                (pairs if alike else misses)[f"{2 * number:08}"] = f"{2 * number + 1:08}"
        texts += [". ".join(" ".join(row[at : at + 12]).capitalize() for at in range(0, len(row), 12)) + "." for row in rows]
    path = folder / f"{height}.parquet"
    frame = pl.DataFrame({"_key": [f"{number:08}" for number in range(height)], "text": texts})
    frame.sample(fraction=1, shuffle=True, seed=1).write_parquet(path, row_group_size=50_000)
    return path, pairs, misses


def measured(script: str, corpus: Path, times: int, *more: str) -> tuple[dict[str, Any], set[str]]:
    """Return what a process of one thread measured, and the keys it kept."""
    one = dict.fromkeys(
        ("POLARS_MAX_THREADS", "NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"), "1"
    )
    kept = corpus.with_suffix(".kept")
    return told(script, corpus, times, kept, *more, **one), set(pl.read_parquet(kept)["_key"])


def test_near_duplicates_from_text_to_kept_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = []
    speed: dict[tuple[str, int], float] = {}
    seen: dict[tuple[str, int], tuple[float, float]] = {}
    for height in (FEW, MANY, MOST):
        corpus, pairs, misses = make_corpus(tmp_path, height)
        rivals = ("datasketch", "rensa") if height == FEW else ()
        for name in ("ptk", *rivals):
            times = 1 if height == MOST or name == "datasketch" else 3
            took, kept = measured(PTK if name == "ptk" else RIVAL, corpus, times, *(() if name == "ptk" else (name,)))
            found = sum(one not in kept or other not in kept for one, other in pairs.items())
            dropped = height - len(kept)
            wrong = sum(key not in kept for key in (*misses, *misses.values()))
            speed[name, height] = height / took["cpu"]
            seen[name, height] = (found / PLANTED, found / max(dropped, 1))
            lines.append(
                f"{name:10} {height:>9,} documents: {speed[name, height]:>9,.0f} a second ({took['wall']:.2f} s, {took['cpu']:.2f} s of "
                f"processor time), recall {found / PLANTED:.3f}, precision {found / max(dropped, 1):.3f} ({wrong} near-misses dropped), "
                f"peak memory {took['peak']:,.0f} MiB"
                + (f"; first call with compiling or loading {took['first']:.1f} s" if name == "ptk" else "")
            )
        corpus.unlink()
    slower = speed["ptk", MANY] / speed["ptk", MOST]
    over = {name: speed["ptk", MANY] / speed[name, FEW] for name in ("datasketch", "rensa")}
    lines.append(f"time a document at {MOST:,} against {MANY:,}: {slower:.2f} x")
    lines.append(
        f"ptk against datasketch {over['datasketch']:.1f} x, against rensa with shingles made in Python {over['rensa']:.1f} x"
    )
    with capsys.disabled():
        print("\n" + "\n".join(lines))
    assert all(recall >= 0.98 and precision >= 0.99 for (name, _), (recall, precision) in seen.items() if name == "ptk")
    assert over["datasketch"] >= 20 and over["rensa"] >= 10
    assert slower < 2


def real_texts() -> list[str]:
    """Return the text of each record of the real corpora, each once: prompt and responses, and what else it says."""
    lines = (line for path in sorted(DATA.glob("*.jsonl")) for line in path.read_text(encoding="utf-8").splitlines())
    return sorted({"\n".join(texts_in(json.loads(line))) for line in lines})


def texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from texts_in(item)


def grams_of(text: str) -> set[tuple[str, ...]]:
    words = WORD.findall(text.lower())
    return {tuple(words[at : at + 5]) for at in range(max(1, len(words) - 4))} if words else set()


def plant(draw: np.random.Generator, texts: list[str]) -> tuple[dict[int, str], dict[int, str]]:
    """Return near-duplicates and near-misses of some texts, by their number: a stretch of each is from another text."""
    alike: dict[int, str] = {}
    misses: dict[int, str] = {}
    words = [text.split() for text in texts]
    # Some stretches repeat words of the text or meet none of a wanted similarity: texts are tried several times.
    long = [number for number, found in enumerate(words) if len(found) >= 30]
    for number in itertools.chain.from_iterable(draw.permutation(long).tolist() for _ in range(5)):
        if number in alike or number in misses:
            continue
        target, (low, high) = (misses, NEAR_MISS) if len(misses) < len(alike) else (alike, ALIKE)
        similarity = draw.uniform(0.84, 0.86) if target is alike else draw.uniform(0.5, 0.64)
        one, donor = words[number], words[int(draw.integers(len(words)))]
        stretch = max(1, round((len(one) - 4) * (1 - similarity) / (1 + similarity)) - 4)
        if len(donor) < stretch:
            continue
        start = int(draw.integers(4, len(one) - stretch - 3))
        other = " ".join([*one[:start], *donor[:stretch], *one[start + stretch :]])
        left, right = grams_of(texts[number]), grams_of(other)
        if low <= len(left & right) / len(left | right) <= high:
            target[number] = other
        if len(misses) == PLANTED:
            break
    return alike, misses


def near_duplicates(texts: list[str], threshold: float) -> dict[int, set[int]]:
    """Return for each text the others that are at least so similar, by counting the 5-grams that each two share."""
    grams = [grams_of(text) for text in texts]
    holders: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
    shared: Counter[tuple[int, int]] = Counter()
    for number, found in enumerate(grams):
        for gram in found:
            holders[gram].append(number)
    for numbers in holders.values():
        shared.update(itertools.combinations(numbers, 2))
    near: defaultdict[int, set[int]] = defaultdict(set)
    for (left, right), count in shared.items():
        if count / (len(grams[left]) + len(grams[right]) - count) >= threshold:
            near[left].add(right)
            near[right].add(left)
    return near


@pytest.mark.skipif(not DATA.exists(), reason="needs the real corpora")
def test_near_duplicates_planted_in_real_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = real_texts()
    alike, misses = plant(np.random.default_rng(7), texts)
    everything = [*texts, *alike.values(), *misses.values()]
    numbers = {text: number for number, text in enumerate(everything)}
    near = near_duplicates(everything, 0.7)
    lines = [f"{len(texts):,} real records with {len(alike):,} near-duplicates and {len(misses):,} near-misses planted:"]
    for name in ("ptk", "datasketch", "rensa"):
        keys = kept_of(name, everything, tmp_path / "real.parquet")[1]
        kept = set(map(int, keys))
        found = sum(number not in kept or numbers[text] not in kept for number, text in alike.items()) / len(alike)
        dropped = set(range(len(everything))) - kept
        right = sum(number in near for number in dropped) / len(dropped)
        wrong = sum(numbers[text] not in kept and numbers[text] not in near for text in misses.values())
        lines.append(
            f"{name:10} recall {found:.3f}, precision {right:.3f} ({len(dropped):,} dropped, {wrong} near-misses among them)"
        )
        if name == "ptk":
            assert (len(alike), len(misses)) == (PLANTED, PLANTED)
            assert found >= 0.98 and right >= 0.99
    many = [*texts, *(changed(text, number) for number in range(1, COPIES) for text in texts)]
    seconds = {name: kept_of(name, many, tmp_path / "many.parquet")[0] for name in ("ptk", "datasketch", "rensa")}
    lines.append(f"{len(many):,} records, the real ones and {COPIES - 1} copies of each with every third word changed:")
    lines += [f"{name:10} {took:.2f} s of processor time" for name, took in seconds.items()]
    lines.append(
        "ptk against " + ", ".join(f"{name} {seconds[name] / seconds['ptk']:.1f} x" for name in ("datasketch", "rensa"))
    )
    with capsys.disabled():
        print("\n" + "\n".join(lines))


def changed(text: str, number: int) -> str:
    """Return a text with every third word made another one, so that it has no 5-gram in common with the text."""
    return " ".join(f"{word}{number}" if place % 3 == 0 else word for place, word in enumerate(text.split()))


def kept_of(name: str, texts: list[str], corpus: Path) -> tuple[float, set[str]]:
    """Return the processor time that a process of one thread took for these texts, and the keys it kept."""
    frame = pl.DataFrame({"_key": [f"{number:08}" for number in range(len(texts))], "text": texts})
    frame.sample(fraction=1, shuffle=True, seed=1).write_parquet(corpus, row_group_size=50_000)
    script, more = (PTK, ()) if name == "ptk" else (RIVAL, (name,))
    took, kept = measured(script, corpus, 1 if name == "datasketch" else 3, *more)
    return took["cpu"], kept
