"""What every engine does the same: one suite, run on each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import ptk.operator
from ptk.engines.engine import Counts, Engine, Input, batches_of, new_columns, settle, write_batches
from ptk.engines.polars import PolarsEngine
from ptk.errors import PtkError, TooManyMalformed
from ptk.operator import Operator, Reader, Source, Stage, frame_operator, reshape, staged_operator
from ptk.params import Params
from ptk.plan import Node
from ptk.spec import Step
from ptk.work import Layer, Rows

COLUMNS = pl.Schema({"id": pl.String, "value": pl.Int64})
FRAME = pl.DataFrame({"id": ["a", "b", "c", "d"], "value": [1, 2, 3, 4]})
MANY = pl.DataFrame({"id": [f"k{number:03}" for number in range(100)], "value": [number % 7 for number in range(100)]})


class NoParams(Params):
    pass


class Point:
    def __init__(self, operator: Operator) -> None:
        self.operator, self.value = operator, operator.name

    def load(self) -> Operator:
        return self.operator


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A Dask cluster in this process, so that its workers know the operators that tests make up."""
    from distributed import LocalCluster

    with LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None) as running:
        yield running


@pytest.fixture(params=["polars", "polars in buckets", "dask", "dask in 7 parts"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    if request.param.startswith("polars"):
        yield PolarsEngine(bucket_rows=3 if "buckets" in request.param else 500_000)
        return
    from ptk.engines.dask import DaskEngine

    address = request.getfixturevalue("cluster").scheduler_address
    made = DaskEngine(tmp_path, scheduler=address, partitions=7 if "7" in request.param else None)
    yield made
    made.close()


def node(operator: Operator, source: Source | None = None, schema: pl.Schema = COLUMNS) -> Node:
    step = Step("mine", operator, dict.fromkeys(operator.inputs, "rows"), NoParams(), {}, "mine")
    return Node(step, "0" * 40, "id", schema, source, None, None, "new")


@pytest.fixture
def offer(monkeypatch: pytest.MonkeyPatch) -> Callable[[Operator], Node]:
    """Offer an operator, as an installed package would, and return a step of it."""

    def offered(operator: Operator) -> Node:
        monkeypatch.setattr(ptk.operator, "_offered", lambda: {operator.name: (Point(operator),)})
        return node(operator)

    return offered


def lying(folder: Path, frame: pl.DataFrame, parts: int = 2) -> Input:
    """Return the frame as the rows of a finished step, in some files."""
    folder.mkdir(parents=True, exist_ok=True)
    size = max(1, -(-frame.height // parts))
    for number, part in enumerate(frame.iter_slices(size) if frame.height else [frame]):
        part.write_parquet(folder / f"part-{number}.parquet")
    return Input(Rows(tuple(sorted(map(str, folder.glob("*.parquet"))))), "id", frame.height)


def upon(item: Input, folder: Path, counts: Counts) -> Input:
    """Return the rows that the decisions in `folder` leave of an input."""
    files = tuple(sorted(map(str, (folder / "decisions").glob("*.parquet"))))
    layer = Layer(files, new_columns(folder), bool(counts.rejected))
    rejected = sum(counts.rejected.values())
    return Input(Rows(item.rows.files, (*item.rows.layers, layer)), item.key, item.height - rejected)


def decide(engine: Engine, folder: Path, step: Node, *frames: pl.DataFrame) -> tuple[Counts, pl.DataFrame, pl.DataFrame]:
    """Return the counts, the rows that stay, and the rejected ones."""
    inputs = [lying(folder / f"input-{number}", frame) for number, frame in enumerate(frames or (FRAME,))]
    counts = engine.decide(step, inputs, folder)
    left = upon(inputs[0], folder, counts)
    return counts, left.rows.scan().collect(), left.rows.scan_rejects().collect()


@frame_operator(scope="rows")
def reject_odd(frame: pl.LazyFrame, params: NoParams) -> pl.LazyFrame:
    """Reject odd values and double the others."""
    odd = pl.col("value") % 2 == 1
    return frame.select("_key", double=pl.col("value") * 2, _reject=pl.when(odd).then(pl.lit("odd")))


def keep_first(frame: pl.LazyFrame, params: NoParams) -> pl.LazyFrame:
    """Keep the smallest key of each value, and tell it to the others."""
    first = pl.col("_key").min().over("value")
    return frame.select("_key", first=first, _reject=pl.when(pl.col("_key") != first).then(pl.lit("later"))).reverse()


def by_scope(function: Callable[..., pl.LazyFrame], scope: Any) -> Operator:
    columns = ("value",)
    by = (lambda params: columns) if scope == "key" else None
    return frame_operator(scope=scope, by=by, reads=lambda params: columns)(function)


def test_a_decision_is_laid_beside_the_rows_and_counted_by_reason(engine: Engine, tmp_path: Path, offer: Any) -> None:
    counts, rows, rejects = decide(engine, tmp_path, offer(reject_odd))
    assert counts == Counts(4, {"odd": 2})
    assert rows.rows() == [("b", 2, 4), ("d", 4, 8)]
    assert rejects.select("id", "_reject", "_detail").rows() == [("a", "odd", None), ("c", "odd", None)]


@pytest.mark.parametrize("scope", ["key", "dataset"])
def test_rows_that_must_meet_do_and_decisions_come_back_in_the_order_of_the_rows(
    engine: Engine, tmp_path: Path, offer: Any, scope: str
) -> None:
    counts, rows, rejects = decide(engine, tmp_path, offer(by_scope(keep_first, scope)), MANY)
    assert counts == Counts(100, {"later": 93})
    assert rows["id"].to_list() == [f"k{number:03}" for number in range(7)]
    assert rejects["id"].to_list() == MANY["id"].to_list()[7:]
    assert rejects["first"].to_list() == [f"k{number % 7:03}" for number in range(7, 100)]


def test_decisions_about_what_decisions_left_over(engine: Engine, tmp_path: Path, offer: Any) -> None:
    item = lying(tmp_path / "rows", MANY, parts=3)
    for number, operator in enumerate((reject_odd, by_scope(keep_first, "key"), reject_odd)):
        folder = tmp_path / f"step-{number}"
        folder.mkdir()
        item = upon(item, folder, engine.decide(offer(operator), [item], folder))
    assert item.rows.scan().select("id", "value", "double", "first").collect().rows() == [
        ("k000", 0, 0, "k000"),
        ("k002", 2, 4, "k002"),
        ("k004", 4, 8, "k004"),
        ("k006", 6, 12, "k006"),
    ]


@staged_operator(inputs=("frame", "other"))
def count_others(params: NoParams) -> tuple[Stage, ...]:
    """Tell each row how many rows of another input have its value, and reject rows that have none."""

    def pairs(frame: pl.LazyFrame, other: pl.LazyFrame, params: NoParams) -> pl.LazyFrame:
        counted = other.group_by("value").agg(pl.col("_key").n_unique().alias("others"))
        return frame.join(counted, on="value").select("_row", "others")

    def total(pairs: pl.LazyFrame, params: NoParams) -> pl.LazyFrame:
        return pairs.select("_row", "others", pl.col("others").sum().alias("total"))

    def told(frame: pl.LazyFrame, total: pl.LazyFrame, params: NoParams) -> pl.LazyFrame:
        joined = frame.select("_key", "_row").join(total, on="_row", how="left", maintain_order="left")
        return joined.select("_key", "others", "total", _reject=pl.when(pl.col("others").is_null()).then(pl.lit("alone")))

    reads = {"frame": ("value",), "other": ("value",)}
    return (
        Stage("pairs", "key", pairs, ("frame", "other"), ("value",), reads),
        Stage("total", "dataset", total, ("pairs",)),
        Stage("told", "rows", told, ("frame", "total")),
    )


def test_stages_hand_each_other_what_they_found(engine: Engine, tmp_path: Path, offer: Any) -> None:
    other = pl.DataFrame({"id": ["x", "y", "z"], "value": [2, 2, 4]})
    counts, rows, _ = decide(engine, tmp_path, offer(count_others), FRAME, other)
    assert counts == Counts(4, {"alone": 2})
    assert rows.rows() == [("b", 2, 2, 3), ("d", 4, 1, 3)]


def test_groups_of_turns_meet_as_groups_of_words_do(engine: Engine, tmp_path: Path, offer: Any) -> None:
    turns = pl.col("value").map_elements(lambda value: [{"role": "user", "content": str(value)}])
    frame = MANY.with_columns(turns.alias("prompt"))
    operator = frame_operator(scope="key", by=lambda params: ("prompt",), reads=lambda params: ("prompt",))(
        lambda_named(
            "keep_first", lambda frame: frame.select("_key", many=pl.len().over("prompt"), same=pl.len().over("_group"))
        )
    )
    _, rows, _ = decide(engine, tmp_path, offer(operator), frame)
    assert rows["many"].to_list() == rows["same"].to_list() == [15 if number % 7 < 2 else 14 for number in range(100)]


def lambda_named(name: str, body: Callable[[pl.LazyFrame], pl.LazyFrame]) -> Callable[..., pl.LazyFrame]:
    def function(frame: pl.LazyFrame, params: NoParams) -> pl.LazyFrame:
        """Do so."""
        return body(frame)

    function.__name__ = name
    return function


@pytest.mark.parametrize("scope", ["rows", "key", "dataset"])
@pytest.mark.parametrize(
    "body",
    [
        lambda frame: frame.select("_key").filter(pl.col("_key") != "b"),
        lambda frame: pl.concat([frame.select("_key"), frame.select("_key").head(1)]),
        lambda frame: frame.select(pl.col("_key").replace("b", "z")),
        lambda frame: frame.select(pl.when(pl.col("_key") != "b").then("_key").alias("_key")),
    ],
    ids=["drops", "repeats", "renames", "forgets"],
)
def test_an_operator_that_does_not_decide_about_each_row_is_refused(
    engine: Engine, tmp_path: Path, offer: Any, scope: str, body: Callable[[pl.LazyFrame], pl.LazyFrame]
) -> None:
    step = offer(by_scope(lambda_named("decide_so", body), scope))
    message = "step 'mine': operator decide_so did not decide about each of the 4 rows it was given, once and in their order"
    with pytest.raises(PtkError, match=message):
        decide(engine, tmp_path, step)


def test_a_rows_operator_that_reorders_is_refused(engine: Engine, tmp_path: Path, offer: Any) -> None:
    step = offer(by_scope(lambda_named("turn_round", lambda frame: frame.select("_key").reverse()), "rows"))
    with pytest.raises(PtkError, match="in their order"):
        decide(engine, tmp_path, step, pl.concat([FRAME, MANY]))


@pytest.mark.parametrize("scope", ["rows", "key", "dataset"])
def test_no_rows_give_no_decisions_with_all_columns(engine: Engine, tmp_path: Path, offer: Any, scope: str) -> None:
    counts, rows, rejects = decide(engine, tmp_path, offer(by_scope(keep_first, scope)), FRAME.head(0))
    assert counts == Counts(0)
    assert rows.schema == {"id": pl.String, "value": pl.Int64, "first": pl.String}
    assert rejects.height == 0


def test_flags_are_counted_among_the_rows_that_stay(engine: Engine, tmp_path: Path, offer: Any) -> None:
    @frame_operator(scope="rows", flags="marks")
    def flag_so(frame: pl.LazyFrame, params: NoParams) -> pl.LazyFrame:
        """Flag so."""
        marks = pl.when(pl.col("value") > 2).then(pl.lit("big")), pl.when(pl.col("value") % 2 == 0).then(pl.lit("even"))
        rejected = pl.when(pl.col("value") == 3).then(pl.lit("three"))
        return frame.select("_key", marks=pl.concat_list(marks).list.drop_nulls(), _reject=rejected)

    counts, rows, _ = decide(engine, tmp_path, offer(flag_so))
    assert counts == Counts(4, {"three": 1}, {"big": 1, "even": 2})
    assert rows["marks"].to_list() == [[], ["even"], ["big", "even"]]


def test_the_rows_that_stay_are_written_with_their_new_columns(engine: Engine, tmp_path: Path, offer: Any) -> None:
    item = lying(tmp_path / "rows-in", MANY)
    left = upon(item, tmp_path, engine.decide(offer(reject_odd), [item], tmp_path))
    engine.compact(left, tmp_path)
    assert pl.read_parquet(tmp_path / "rows/*.parquet").equals(left.rows.scan().collect())


def test_a_new_column_takes_the_place_of_an_old_one(engine: Engine, tmp_path: Path, offer: Any) -> None:
    step = offer(by_scope(lambda_named("tenfold", lambda frame: frame.select("_key", value=pl.col("value") * 10)), "rows"))
    assert decide(engine, tmp_path, step)[1].rows() == [("a", 10), ("b", 20), ("c", 30), ("d", 40)]


def record(key: str, value: int, line: int = 1, reject: str | None = None) -> dict[str, Any]:
    marks = {"_reject": reject, "_detail": reject, "_raw": reject, "_file": "rows.jsonl", "_line": line}
    return {"id": key, "value": value, **marks}


BATCH = {
    **COLUMNS,
    "_reject": pl.String,
    "_detail": pl.String,
    "_raw": pl.String,
    "_file": pl.String,
    "_line": pl.Int64,
}


def read(
    engine: Engine, offer: Any, folder: Path, *batches: list[dict[str, Any]], sample: int | None = None, **settings: Any
) -> tuple[Counts, pl.DataFrame, pl.DataFrame]:
    """Return the counts, the rows and the rejects of a reader that gives these batches, each a piece of its own."""

    def given(piece: int) -> Iterator[pl.DataFrame]:
        yield pl.DataFrame(batches[piece], schema=BATCH)

    source = Source(COLUMNS, "id", given, pieces=lambda: range(len(batches)), **settings)
    reader = Reader("read_so", NoParams, 1, (), "Read so.", lambda params: source)
    offer(reader)
    folder.mkdir(exist_ok=True)
    counts = engine.read(node(reader, source), folder, sample, lambda done: None)
    return counts, *(pl.read_parquet(folder / kind / "*.parquet") for kind in ("rows", "rejects"))


def test_a_reader_s_rows_and_rejects_are_parted(engine: Engine, offer: Any, tmp_path: Path) -> None:
    counts, rows, rejects = read(
        engine, offer, tmp_path, [record("a", 1), record("", 0, 2, "not_json")], [record("b", 2, 3)], max_malformed=0.5
    )
    assert counts == Counts(3, {"not_json": 1})
    assert rows.rows() == [("a", 1), ("b", 2)]
    assert rejects.rows() == [("not_json", "not_json", "not_json", "rows.jsonl", 2)]


def test_too_many_malformed_records_stop_the_run_and_the_first_are_shown(engine: Engine, offer: Any, tmp_path: Path) -> None:
    batch = [record("a", 1), *(record("", 0, line, "not_json") for line in range(2, 9))]
    message = r"step 'mine': 7 of 8 rows are malformed \(88%\), and max_malformed is 0.2:\n  rows.jsonl:2: not_json: not_json\n"
    with pytest.raises(TooManyMalformed, match=message) as caught:
        read(engine, offer, tmp_path, batch)
    assert str(caught.value).count("rows.jsonl:") == 3


def test_exactly_the_allowed_share_does_not_stop_the_run(engine: Engine, offer: Any, tmp_path: Path) -> None:
    batch = [record(f"k{n}", n) for n in range(4)] + [record("", 0, 5, "not_json")]
    assert read(engine, offer, tmp_path, batch, max_malformed=0.2)[0] == Counts(5, {"not_json": 1})


def test_repeats_are_rejected_and_do_not_count_as_malformed(engine: Engine, offer: Any, tmp_path: Path) -> None:
    counts, rows, rejects = read(engine, offer, tmp_path, [record("a", 1)] * 9 + [record("b", 2)], max_malformed=0.0)
    assert counts == Counts(10, {"repeat": 8})
    assert sorted(rows.rows()) == [("a", 1), ("b", 2)]
    assert set(rejects["_detail"]) == {"id a stands already"}


def test_which_of_several_rows_of_one_key_stays_does_not_depend_on_their_order(
    engine: Engine, offer: Any, tmp_path: Path
) -> None:
    repeats = [record("a", value) for value in range(10)]
    first = read(engine, offer, tmp_path / "first", repeats)[1]
    second = read(engine, offer, tmp_path / "second", repeats[5:], repeats[:5][::-1])[1]
    assert first.height == 1 and first.equals(second)


def test_numbered_repeats_all_stay_under_keys_that_do_not_depend_on_their_order(
    engine: Engine, offer: Any, tmp_path: Path
) -> None:
    repeats = [record("a", value) for value in range(5)] + [record("b", 7)]
    counts, first, _ = read(engine, offer, tmp_path / "first", repeats, on_repeat="number")
    _, second, _ = read(engine, offer, tmp_path / "second", repeats[::-1], on_repeat="number")
    assert counts == Counts(6, {})
    assert first["id"].n_unique() == 6 and {"a", "b"} < set(first["id"])
    assert sorted(first["value"]) == [0, 1, 2, 3, 4, 7]
    assert first.sort("id").equals(second.sort("id"))


def test_a_sample_takes_the_first_good_rows(engine: Engine, offer: Any, tmp_path: Path) -> None:
    batches = [[record(f"k{10 * b + n}", n) for n in range(10)] for b in range(3)]
    counts, rows, _ = read(engine, offer, tmp_path, *batches, sample=12)
    assert counts == Counts(12, {})
    assert rows["id"].to_list() == [f"k{n}" for n in range(12)]


def test_a_sample_is_not_stopped_by_malformed_records_that_are_few_in_what_was_read(
    engine: Engine, offer: Any, tmp_path: Path
) -> None:
    batch = [record(f"k{n}", n) for n in range(90)] + [record("", 0, line, "not_json") for line in range(90, 100)]
    counts, rows, _ = read(engine, offer, tmp_path, batch, sample=2)
    assert rows.height == 2
    assert counts.rows == rows.height + sum(counts.rejected.values())


def test_an_empty_source_gives_no_rows_with_all_columns(engine: Engine, offer: Any, tmp_path: Path) -> None:
    counts, rows, rejects = read(engine, offer, tmp_path)
    assert counts == Counts(0, {})
    assert rows.schema == COLUMNS
    assert rejects.columns == ["_reject", "_detail", "_raw", "_file", "_line"]


@pytest.mark.parametrize("scope", ["rows", "dataset"])
def test_a_reshape_s_rows_must_have_keys_of_their_own(engine: Engine, offer: Any, tmp_path: Path, scope: Any) -> None:
    twice = lambda_named("double_up", lambda frame: pl.concat([frame, frame]).select("id", "value"))
    with pytest.raises(PtkError, match="step 'mine': 4 of 8 rows repeat the key 'id'"):
        engine.reshape(offer(reshape(key="id", scope=scope)(twice)), [lying(tmp_path / "input", FRAME)], tmp_path)


@pytest.mark.parametrize("scope", ["rows", "dataset"])
def test_a_reshape_s_rows_are_written(engine: Engine, offer: Any, tmp_path: Path, scope: Any) -> None:
    large = lambda_named("large_ones", lambda frame: frame.filter(pl.col("value") > 2))
    step = offer(reshape(key="id", scope=scope)(large))
    assert engine.reshape(step, [lying(tmp_path / "input", FRAME)], tmp_path) == Counts(4, made=2)
    assert pl.read_parquet(tmp_path / "rows/*.parquet").rows() == [("c", 3), ("d", 4)]


@pytest.mark.parametrize("size", [1, 3, 4, 10])
def test_batches_are_of_one_size_in_the_order_of_the_rows(tmp_path: Path, size: int) -> None:
    FRAME.head(1).write_parquet(tmp_path / "1.parquet")
    FRAME.tail(3).write_parquet(tmp_path / "2.parquet")
    batches = list(batches_of(pl.scan_parquet(tmp_path / "*.parquet"), size))
    assert [batch.height for batch in batches] == [size] * (4 // size) + [4 % size] * (4 % size > 0)
    assert pl.concat(batches).equals(FRAME)


def test_a_frame_of_no_rows_has_no_batches() -> None:
    assert list(batches_of(FRAME.head(0).lazy())) == []


def test_decisions_that_come_in_batches_are_written_in_their_order(tmp_path: Path) -> None:
    asked = [pl.DataFrame({"_key": [key]}) for key in "abcd"]
    write_batches(asked, [batch.with_columns(score=pl.lit(1)) for batch in asked], pl.Schema(), tmp_path)
    assert settle(node(reject_odd), tmp_path, 4) == Counts(4)
    assert pl.read_parquet(tmp_path / "decisions/*.parquet")["score"].to_list() == [1, 1, 1, 1]


def test_decisions_about_no_rows_still_tell_their_columns(tmp_path: Path) -> None:
    write_batches([], [], pl.Schema({"_key": pl.String, "score": pl.Int64}), tmp_path)
    assert new_columns(tmp_path) == ("score",)
