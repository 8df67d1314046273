"""What the catalog costs: adding columns, reading some of many, committing many parts, finding one of many versions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from .fresh import all_told, told

pytestmark = [pytest.mark.bench, pytest.mark.timeout(1800)]

PAIRS = 1_000_000

MAKE = """
import sys
from pathlib import Path
import numpy as np
import polars as pl
from corpus import make_corpus

folder, pairs = Path(sys.argv[1]), int(sys.argv[2])
make_corpus(folder / "pairs", pairs)
draw = np.random.default_rng(1)
letters = np.array(list("etaoinshrdlucmfwypvbgkjqxz"))
words = pl.Series(["".join(draw.choice(letters[:20], draw.integers(3, 11))) for _ in range(5_000)])

def some(least, most):
    # A few words of a vocabulary with Zipf's frequencies.
    weights = 1 / np.arange(1, len(words) + 1)
    drawn = pl.DataFrame({str(n): words.gather(draw.choice(len(words), pairs, p=weights / weights.sum())) for n in range(most)})
    count = pl.Series(draw.integers(least, most + 1, pairs))
    parts = [pl.when(count > n).then(pl.col(str(n))) for n in range(most)]
    return drawn.select(pl.concat_str(parts, separator=" ", ignore_nulls=True)).to_series()

keys = pl.scan_parquet(folder / "pairs" / "*.parquet").select("pair_id").collect()
personas = keys.with_columns(
    pl.concat_str(pl.lit("The user is "), some(1, 4), pl.lit(" and prefers "), some(3, 9), pl.lit(".")).alias(name)
    for name in ("chosen_persona", "rejected_persona")
)
personas.write_parquet(folder / "personas.parquet")
personas.sample(fraction=1.0, shuffle=True, seed=0).write_parquet(folder / "shuffled.parquet")
"""

TIMED = """
import sys, time
from pathlib import Path
import polars as pl
import ptk_catalog
from steps import tell

def seconds(work):
    started = time.perf_counter()
    work()
    return time.perf_counter() - started

def both(work):
    # The clock's seconds, and the processor's, which other work on the machine does not change as much.
    busy = time.process_time()
    return seconds(work), time.process_time() - busy

def size(folder):
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())

folder = Path(sys.argv[1])
ZSTD = {"compression": "zstd", "compression_level": 3}
"""

ADD_COLUMNS = (
    TIMED
    + """
store, out = folder / sys.argv[2] / "store", folder / sys.argv[2] / "rewritten"
out.mkdir(parents=True)
catalog = ptk_catalog.open(store)
catalog.commit("pairs", sorted((folder / "pairs").glob("*.parquet")), key="pair_id")
before = size(store)
personas = folder / "personas.parquet"
ours = both(lambda: catalog.commit("personas", personas, base="pairs"))
written = size(store) - before
shuffled = both(lambda: catalog.commit("shuffled", folder / "shuffled.parquet", base="pairs"))
query = pl.scan_parquet(personas)
queried = both(lambda: catalog.commit("queried", query, base="pairs"))
assert catalog.version("shuffled").digest == catalog.version("queried").digest == catalog.version("personas").digest

def rewrite():
    new = pl.scan_parquet(personas)
    whole = pl.scan_parquet(folder / "pairs" / "*.parquet").join(new, on="pair_id", how="left", maintain_order="left")
    whole.sink_parquet(out / "rows.parquet", row_group_size=1 << 16, **ZSTD)

rewritten = both(rewrite)
alone = catalog.load("personas").scan(["chosen_persona", "rejected_persona"])
alone.sink_parquet(out / "alone.parquet", row_group_size=1 << 16, **ZSTD)
assert catalog.load("personas").collect(["pair_id", "chosen_persona"]).equals(
    pl.read_parquet(out / "rows.parquet", columns=["pair_id", "chosen_persona"]))
tell({"ours": ours, "shuffled": shuffled, "queried": queried, "rewritten": rewritten, "written": written,
      "alone": (out / "alone.parquet").stat().st_size, "whole": (out / "rows.parquet").stat().st_size})
"""
)

READ_TWO = (
    TIMED
    + """
import numpy as np
rows, parts = int(sys.argv[2]), 4
draw = np.random.default_rng(0)
frame = pl.DataFrame({"id": [f"row-{n}" for n in range(rows)], **{f"number{n}": draw.random(rows) for n in range(5)}})
frame = frame.with_columns(text=pl.format("some words {} and {}", pl.col("number0"), pl.col("id")), flag=pl.col("number1") > 0.5)
catalog = ptk_catalog.open(folder / "store")
catalog.commit("plain", frame, key="id")
catalog.commit("halves", frame.select("id", "number0", "text", "flag"), key="id")
catalog.commit("halves", frame.select("id", "number1", "number2", "number3", "number4"), base="halves")
(folder / "files").mkdir()
for number in range(parts):
    first, last = rows * number // parts, rows * (number + 1) // parts
    frame[first:last].write_parquet(folder / "files" / f"part-{number}.parquet", row_group_size=1 << 16, **ZSTD)
for version in ("plain", "halves"):
    for columns in (["text", "number1"], ["number0", "flag"]):
        def ours():
            assert catalog.load(version).scan(columns).collect().height == rows
        def plain():
            assert pl.scan_parquet(folder / "files" / "*.parquet").select(columns).collect().height == rows
        dataset = catalog.load(version)
        def loaded():
            assert dataset.scan(columns).collect().height == rows
        ours(), plain(), loaded()
        times = zip(*[(seconds(ours), seconds(plain), seconds(loaded)) for _ in range(15)])
        tell({"version": version, "columns": columns, **dict(zip(("ours", "plain", "loaded"), map(sorted, times)))})
"""
)

MANY_PARTS = (
    TIMED
    + """
import os
import ptk_catalog.parts
from ptk_catalog.parts import cut
parts = 64
frame = pl.read_parquet(folder / "pairs" / "*.parquet")
ptk_catalog.parts.ROWS_PER_PART = -(-frame.height // parts)
here = folder / sys.argv[2]
(here / "files").mkdir(parents=True)
catalog = ptk_catalog.open(here / "store")

def alone():
    for number, piece in enumerate(cut(frame.lazy())):
        path = here / "files" / f"part-{number}.parquet"
        piece.write_parquet(path, row_group_size=1 << 16, statistics=True, **ZSTD)
        with path.open("rb") as file:
            os.fsync(file)

plain = both(alone)
ours = both(lambda: catalog.commit("pairs", frame, key="pair_id"))
again = both(alone)
assert len(list((here / "files").iterdir())) == len(catalog.version("pairs").manifest.groups[0].parts) == parts
tell({"ours": ours, "plain": [min(one) for one in zip(plain, again)], "bytes": size(here / "files")})
"""
)

LONG_ROWS = (
    TIMED
    + """
from steps import measured
rows, words = int(sys.argv[2]), int(sys.argv[3])
(folder / "long").mkdir()
for number in range(0, rows, 5_000):
    text = " ".join(f"word{number + at}" for at in range(words))
    turns = pl.concat_list(pl.struct(role=pl.lit("assistant"), content=pl.format("{} {}", "pair_id", pl.lit(text))))
    keys = pl.select(pair_id=pl.format("p{}", pl.int_range(number, number + 5_000)))
    keys.with_columns(chosen=turns, rejected=turns).write_parquet(folder / "long" / f"{number:08}.parquet")
catalog = ptk_catalog.open(folder / "store")
query = pl.scan_parquet(folder / "long" / "*.parquet")
size = sum(pl.read_parquet(path).estimated_size() for path in (folder / "long").glob("*.parquet"))
tell({"bytes": size, **{name: measured(lambda: (work(), rows)[1]) for name, work in {
    "commit": lambda: catalog.commit("pairs", query.select("pair_id", "chosen"), key="pair_id"),
    "add": lambda: catalog.commit("both", query.select("pair_id", "rejected"), base="pairs"),
    "verify": lambda: catalog.verify("both"),
}.items()}})
"""
)

MANY_VERSIONS = (
    TIMED
    + """
import hashlib
from ptk_catalog.registry import NewVersion
versions, entries = 10_000, 1_000
catalog = ptk_catalog.open(folder / "store")
base = catalog.commit("warm", pl.DataFrame({"k": range(100), "x": range(100)}), key="k").manifest
new = []
for number in range(versions):
    # Half of the versions are of one entry.
    entry = f"team/entry-{number % entries}" if number < versions // 2 else "team/entry-0"
    manifest = base.model_copy(update={"entry": entry, "digest": "sha256:" + hashlib.sha256(str(number).encode()).hexdigest()})
    content = manifest.as_bytes()
    digest = hashlib.sha256(content).hexdigest()
    path = Path(catalog.storage.path(f"manifests/{digest[:2]}/{digest}.json"))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    tags = (f"t{number}",) if number % 100 == 0 else ()
    new.append(NewVersion(entry, manifest.digest, f"manifests/{digest[:2]}/{digest}.json", "mit", 100, tags, False, bytes=1))
catalog._registry.commit(new)
told = {}
for name, work in {
    "open": lambda: ptk_catalog.open(folder / "store", create=False),
    "ls": lambda: ptk_catalog.open(folder / "store", create=False).newest(),
    "log": lambda: ptk_catalog.open(folder / "store", create=False).log("team/entry-0"),
    "load": lambda: ptk_catalog.open(folder / "store", create=False).load("team/entry-7@v3").collect(),
    "load by tag": lambda: ptk_catalog.open(folder / "store", create=False).load("team/entry-0@t0").collect(),
    "load by digest": lambda: ptk_catalog.open(folder / "store", create=False).load(f"team/entry-0@{new[-1].digest[:20]}").collect(),
    "load by date": lambda: ptk_catalog.open(folder / "store", create=False).load("team/entry-0@2100-01-01").collect(),
    "built_on": lambda: ptk_catalog.open(folder / "store", create=False).built_on("team/entry-0"),
}.items():
    work()
    told[name] = sorted(seconds(work) for _ in range(9))
assert len(catalog.newest()) == entries + 1 and len(catalog.log("team/entry-0")) == versions // 2 + 5
tell(told)
"""
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    all_told(MAKE, folder, PAIRS)
    return folder


def least(runs: list[dict[str, Any]], name: str) -> tuple[float, float]:
    """Return the least of the clock's and of the processor's seconds."""
    return min(run[name][0] for run in runs), min(run[name][1] for run in runs)


def test_two_persona_columns_against_rewriting_the_table(corpus: Path) -> None:
    runs = [told(ADD_COLUMNS, corpus, f"add-{number}") for number in range(3)]
    written, alone, whole = (runs[0][name] for name in ("written", "alone", "whole"))
    clock, busy = least(runs, "rewritten")
    print(f"\ntwo persona columns added to {PAIRS:,} pairs; Polars rewrites the table ({whole / 2**20:,.0f} MiB) in ", end="")
    print(f"{clock:.2f} s, {busy:.2f} s of the processor:")
    for name, what in (("ours", "a file"), ("queried", "a query"), ("shuffled", "a file in another order")):
        ours, ours_busy = least(runs, name)
        print(f"  {what:23} {ours:6.2f} s, {ours_busy:6.2f} s: Polars / ptk = {clock / ours:.1f}, {busy / ours_busy:.1f}")
    print(f"  {written / 2**20:,.0f} MiB written, {written / alone:.3f} times the bytes of the two columns")
    assert written < 1.2 * alone
    assert clock >= 5 * least(runs, "ours")[0]


def test_reading_two_of_eight_columns_against_plain_files(tmp_path: Path) -> None:
    print(f"\ntwo of eight columns of {PAIRS:,} rows, lazily:")
    slower: list[str] = []
    for run in all_told(READ_TWO, tmp_path, PAIRS):
        ours, plain, loaded = (min(run[name]) for name in ("ours", "plain", "loaded"))
        told_columns = f"{run['version']:7} {', '.join(run['columns']):16}"
        print(f"  {told_columns} ptk {ours * 1000:6.1f} ms, scan_parquet {plain * 1000:6.1f} ms: {ours / plain:.2f}; ", end="")
        print(f"of a version that was loaded before {loaded * 1000:6.1f} ms: {loaded / plain:.2f}")
        slower += [told_columns] * (ours > 1.2 * plain)
    assert not slower, slower


def test_a_commit_of_many_parts_against_writing_the_parts(corpus: Path) -> None:
    runs = [told(MANY_PARTS, corpus, f"parts-{number}") for number in range(3)]
    (ours, ours_busy), (plain, plain_busy) = least(runs, "ours"), least(runs, "plain")
    print(f"\n64 parts of {PAIRS:,} pairs, {runs[0]['bytes'] / 2**20:,.0f} MiB:")
    print(
        f"  commit {ours:.2f} s, {ours_busy:.2f} s of the processor; Polars writing and flushing them alone {plain:.2f} s, {plain_busy:.2f} s: ",
        end="",
    )
    print(f"{ours / plain:.2f}, {ours_busy / plain_busy:.2f}")
    assert ours <= 1.3 * plain


def test_long_rows_take_no_more_memory(tmp_path: Path) -> None:
    run = told(LONG_ROWS, tmp_path, 200_000, 900)
    print(f"\n200,000 rows of {run['bytes'] / 200_000:,.0f} bytes, {run['bytes'] / 2**20:,.0f} MiB:")
    for name in ("commit", "add", "verify"):
        print(f"  {name:8} {run[name]['seconds']:5.1f} s, peak {run[name]['mebibytes']:,.0f} MiB")
        assert run[name]["mebibytes"] < 3072


def test_finding_one_of_many_versions(tmp_path: Path) -> None:
    times = told(MANY_VERSIONS, tmp_path)
    print("\n10,000 versions of 1,000 entries, half of them of one entry, each with opening the catalog:")
    for name, seconds in times.items():
        print(f"  {name:14} {min(seconds) * 1000:6.1f} ms (most {max(seconds) * 1000:.1f})")
    assert all(min(seconds) < 0.3 for seconds in times.values())
