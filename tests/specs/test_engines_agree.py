"""A spec gives the same digests on every engine, however rows are cut, in whatever order and in however many files they come."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import ptk_catalog
from ptk.engines.engine import Engine
from ptk.engines.polars import PolarsEngine
from ptk.execute import run_plan
from ptk.operator import DETAIL, REJECT
from ptk.plan import make_plan
from ptk.progress import Quiet
from ptk.spec import load_spec
from ptk.work import WorkStore

from . import transcripts

SPECS = Path(__file__).resolve().parents[2] / "specs"
REAL = SPECS.parents[1] / "shared" / "data" / "hh_harmless_raw.jsonl"
PAIRS = 3_000

STUDY = """\
ptk: 1
name: study
steps:
  forum:   {op: read_pairs, path: forum/*.parquet, source: forum, on_repeat: number}
  rated:
    op: read_pairs
    path: rated/*.jsonl
    format: scores
    fields: {response_1: a, response_2: b, score_1: score_a, score_2: score_b}
    minimum_margin: 1
    source: rated
  voted:   {op: read_pairs, path: voted/*.jsonl, format: votes, source: voted}
  people:  {op: read_pairs, path: people/*.jsonl, format: terms, fields: {prompt: name}}
  all:     {op: concat_rows, from: [forum, rated, voted], columns: union, on_repeat: first, origin: origin}
  filled:  {op: drop_empty, from: all, columns: [chosen, user]}
  differ:  {op: drop_identical, from: filled, normalise: [whitespace, case]}
  even:    {op: keep_lengths, from: differ, minimum: 2, most_ratio: 8}
  derived:
    op: derive_columns
    from: even
    columns: {gap: LENGTH(chosen_text) - LENGTH(rejected_text), fine: score > 3, share: gap * 1.0 / LENGTH(prompt_text)}
  scored:  {op: filter_rows, from: derived, where: {low_score: score IS NULL OR score >= 1, long_gap: ABS(gap) < 200}}
  listed:  {op: drop_listed, from: scored, column: user, ids: [u3, u5, nobody]}
  known:   {op: join_rows, from: {frame: listed, other: people}, on: [user], columns: [age, user_tags], on_missing: 'null'}
  bound:   {op: join_rows, from: {frame: listed, other: voted}, on: [prompt], columns: [agreement], prefix: voted_}
  single:  {op: drop_duplicates, from: known, on: [prompt, chosen]}
  novel:
    op: drop_near_duplicates
    from: single
    on: [prompt, chosen]
    threshold: 0.6
    keep: [{column: score, order: desc}, {column: gap}]
    cluster: family
  private: {op: flag_pii, from: novel, action: mask}
  polite:  {op: flag_unsafe, from: private, words: [kettle], scores: {score: 4.9}, labels: {user: u7}}
  few:     {op: sample_rows, from: polite, n: 100, per: [source, fine], seed: 3}
  some:    {op: sample_rows, from: polite, share: 0.3}
  parts:
    op: split_rows
    from: polite
    parts: {few_shot: 7, test: 150, sft: 0.5, dpo: 0.3}
    rest: val
    near_duplicates: {threshold: 0.5, ngram: 3}
  per:     {op: split_rows, from: polite, parts: {few_shot: 5, test: 60}, per: source, column: part}
  test:    {op: filter_rows, from: parts, where: split = 'test'}
  train:   {op: filter_rows, from: parts, where: split <> 'test'}
  apart:   {op: decontaminate, from: {frame: train, against: test}, on: [prompt, chosen], ngram: 4}
  back:    {op: concat_rows, from: [apart, test], columns: common}
  told:    {op: describe_corpus, from: back, by: source, numbers: [score, margin, share], texts: [user]}
  narrow:  {op: select_columns, from: back, drop: [user_tags, item_id], rename: {gap: difference}}
  drawn:   {op: sample_rows, from: back, n: "${matrix.n}", matrix: {n: [40, 90], seed: [1, 2], exclude: [{n: 90, seed: 2}]}}
  longer:  {op: keep_lengths, from: drawn, minimum: 12, matrix: {seed: [1, 2]}}
  files:   {op: export_rows, from: back, path: out/trl, form: trl_explicit, columns: [pair_id, score], split_by: split}
  table:   {op: export_rows, from: narrow, path: out/rows, format: parquet, records_per_file: 500}
outputs:
  study/people: {from: people}
  study/bound:  {from: bound}
  study/polite: {from: polite}
  study/few:    {from: few}
  study/some:   {from: some}
  study/per:    {from: per}
  study/back:   {from: back}
  study/told:   {from: told}
  study/narrow: {from: narrow}
  study/drawn:  {from: drawn}
  study/one:    {from: "drawn[90,1]"}
  study/longer: {from: longer}
"""


@dataclass(frozen=True)
class Outcome:
    """What must be the same: counts, flags and rejected rows of each step, the digests of the outputs, the files made."""

    counts: dict[str, tuple[int, int, dict[str, int], dict[str, int]]]
    rejects: dict[str, Counter[Any]]
    digests: dict[str, str]
    files: dict[str, bytes]


def pairs(draw: random.Random) -> list[dict[str, Any]]:
    """Return records with repeated and nearly repeated prompts and pairs, and scores that are null or NaN or equal."""
    prompts = [transcripts.sentence(draw, draw.randint(4, 25)) for _ in range(PAIRS // 3)]
    made: list[dict[str, Any]] = []
    for number in range(PAIRS):
        prompt = draw.choice(prompts)
        chosen, rejected = (transcripts.sentence(draw, draw.randint(1, 40)) for _ in "ab")
        if made and number % 11 == 0:
            chosen = made[-1]["chosen"]
        if number % 7 == 0:
            prompt = prompt.replace(".", ", please.")
        if made and number % 13 == 0:
            prompt, chosen = made[-1]["prompt"], made[-1]["chosen"].replace(".", " indeed.")
        if number % 50 == 0:
            rejected = chosen.upper()
        if number % 60 == 0:
            chosen += " ada@example.org"
        score = draw.choice([None, float("nan"), 5.0, *(draw.randint(0, 50) / 10 for _ in range(9))])
        made.append(
            {
                "prompt": prompt,
                "chosen": chosen,
                "rejected": rejected,
                "score": score,
                "user": f"u{number % 40}" if number % 29 else " ",
            }
        )
        if number % 41 == 0:
            made.append({**made[-1], "user": "u7", "score": 4.0})
    return made


def lay_study(folder: Path, order: int | None) -> Path:
    """Write the study and its data; with `order` lines are permuted and spread over several files in another order."""
    draw = random.Random(5)
    everything = pairs(draw)
    forum, rest = everything[: PAIRS // 2], everything[PAIRS // 2 :]
    rated = [
        {
            "prompt": pair["prompt"],
            "a": pair["chosen"],
            "b": pair["rejected"],
            "score_a": draw.randint(0, 9),
            "score_b": draw.choice([3, 3.5, "4", None, 1e300]),
            "user": pair["user"],
        }
        for pair in rest[: PAIRS // 4]
    ]
    voted: list[Any] = [
        {
            "prompt": pair["prompt"],
            "response_1": pair["chosen"],
            "response_2": pair["rejected"],
            "votes": draw.choices([0, 1, 2, None], [1, 4, 2, 1], k=draw.randint(0, 7)),
            "user": pair["user"],
        }
        for pair in rest[PAIRS // 4 :]
    ]
    # Pairs that another source has too, and lines that hold none.
    voted += [
        {"prompt": pair["prompt"], "response_1": pair["chosen"], "response_2": pair["rejected"], "votes": [1]}
        for pair in forum[::30]
    ]
    voted += ["{", {"prompt": "Alone."}, {"prompt": "", "response_1": "a b", "response_2": "b a", "votes": [1]}]
    people = [{"name": f"{n}", "user": f"u{n % 30}", "age": 20 + n, "user_tags": ["a"] * (n % 3)} for n in range(33)]
    (folder / "forum").mkdir(parents=True)
    for name, part in spread([json.dumps(pair) for pair in forum], order).items():
        frame = pl.DataFrame([json.loads(line) for line in part], schema_overrides={"score": pl.Float64})
        frame.write_parquet(folder / "forum" / f"{name}.parquet", row_group_size=100)
    for kind, records in (("rated", rated), ("voted", voted), ("people", people)):
        write(folder / kind, [line if isinstance(line, str) else json.dumps(line) for line in records], order)
    (folder / "spec.yaml").write_text(STUDY)
    return folder / "spec.yaml"


def spread(lines: list[str], order: int | None) -> dict[str, list[str]]:
    if order is None:
        return {"all": lines}
    draw = random.Random(order)
    mixed = draw.sample(lines, len(lines))
    cut = sorted(draw.sample(range(len(mixed)), 3))
    parts = [mixed[first:last] for first, last in zip([0, *cut], [*cut, len(mixed)], strict=True)]
    return dict(zip(draw.sample("abcd", 4), parts, strict=True))


def write(folder: Path, lines: list[str], order: int | None) -> None:
    for name, part in spread(lines, order).items():
        transcripts.write_lines(folder / f"{name}.jsonl", part)


def lay_hh(lines: list[str]) -> Callable[[Path, int | None], Path]:
    def lay(folder: Path, order: int | None) -> Path:
        write(folder / "raw", lines, order)
        return Path(shutil.copy(SPECS / "hh_clean.yaml", folder))

    return lay


def lay_quickstart(folder: Path, order: int | None) -> Path:
    shutil.copytree(SPECS, folder / "specs")
    spec, data = folder / "specs" / "quickstart.yaml", folder / "specs" / "data" / "quickstart.jsonl"
    lines = data.read_text().splitlines()
    transcripts.write_lines(data, [line for part in spread(lines, order).values() for line in part])
    text = spec.read_text().replace("backend: vllm", "backend: scripted").replace("bundled/smollm2-135m-instruct", "persona")
    spec.write_text(text)
    return spec


def layouts() -> dict[str, Callable[[Path, int | None], Path]]:
    hh = REAL.read_text().splitlines() if REAL.exists() else transcripts.transcripts()
    return {"study": lay_study, "quickstart": lay_quickstart, "hh_clean": lay_hh(hh)}


LAYOUTS = layouts()


def outcome(spec: Path, engine: Engine) -> Outcome:
    work = WorkStore(spec.parent / ".ptk")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("HH_TRANSCRIPTS", "raw/*.jsonl")
        plan = make_plan(load_spec(spec), work)
    summary = run_plan(plan, work, lambda: ptk_catalog.open(spec.parent / "store"), Quiet(), engine)
    rejects: dict[str, Counter[Any]] = {}
    for step in summary.steps:
        frame = work.rejects(step.result.key).collect()
        names = [name for name in (step.result.key_column, REJECT, DETAIL) if name in frame.columns]
        rejects[step.name] = Counter(frame.select(names).rows())
    return Outcome(
        {
            step.name: (step.result.rows_in, step.result.rows_out, dict(step.result.rejected), dict(step.result.flagged))
            for step in summary.steps
        },
        rejects,
        {version.entry: version.digest for version in summary.versions},
        {str(path.relative_to(spec.parent)): path.read_bytes() for path in (spec.parent / "out").rglob("*") if path.is_file()},
    )


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """A Dask cluster in this process, whose workers may hold models."""
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None, resources={"GPU": 1}
    ) as running:
        yield running.scheduler_address


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Outcome]:
    """Return what a spec gives on Polars, in the order in which its data were written."""
    known: dict[str, Outcome] = {}

    def found(name: str) -> Outcome:
        if name not in known:
            spec = LAYOUTS[name](tmp_path_factory.mktemp("expected"), None)
            known[name] = outcome(spec, PolarsEngine())
        return known[name]

    return found


@pytest.mark.parametrize(
    ("engine", "parts", "order"),
    [("polars", 300, None), ("polars", 500_000, 1), ("dask", 1, None), ("dask", 2, 2), ("dask", 7, 3)],
)
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_spec_gives_one_digest_an_output(
    name: str,
    engine: str,
    parts: int,
    order: int | None,
    tmp_path: Path,
    cluster: str,
    expected: Callable[[str], Outcome],
) -> None:
    spec = LAYOUTS[name](tmp_path, order)
    if engine == "polars":
        found = outcome(spec, PolarsEngine(bucket_rows=parts))
    else:
        from ptk.engines.dask import DaskEngine

        opened = DaskEngine(tmp_path / ".ptk", scheduler=cluster, partitions=parts)
        try:
            found = outcome(spec, opened)
        finally:
            opened.close()
    wanted = expected(name)
    assert found.counts == wanted.counts
    assert [step for step in wanted.rejects if found.rejects[step] != wanted.rejects[step]] == []
    assert found.digests == wanted.digests
    assert found.files.keys() == wanted.files.keys()
    assert [path for path, content in wanted.files.items() if found.files[path] != content] == []


def test_the_study_meets_every_kind_of_row(expected: Callable[[str], Outcome]) -> None:
    """What the engines agree on would mean little if nothing were rejected, flagged, matched or kept together."""
    counts = expected("study").counts
    reasons = {reason for _, _, rejected, _ in counts.values() for reason in rejected}
    assert reasons == {
        *("missing_field", "not_json", "empty_text", "no_votes", "tie", "small_margin", "repeat"),
        *("empty", "identical", "too_short", "uneven", "long_gap", "low_score", "taken_down", "no_match", "several_matches"),
        *("duplicate", "near_duplicate", "not_sampled", "in_no_part", "filtered", "contaminated"),
    }
    flags = {flag for _, _, _, flagged in counts.values() for flag in flagged}
    assert flags == {"email", "score", "user", "words_in_prompt", "words_in_chosen", "words_in_rejected"}
    left_out = sum(counts[name][1] for name in ("forum", "rated", "voted")) - counts["all"][1]
    assert left_out > 0
