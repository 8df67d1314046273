from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import polars as pl
import pytest

from ptk.engines import polars as engine
from ptk.errors import PtkError, TooManyMalformed
from ptk.operator import FrameOperator, Operator, Reader, Reshape, Source
from ptk.params import Params
from ptk.plan import Node
from ptk.spec import Step

COLUMNS = pl.Schema({"id": pl.String, "value": pl.Int64})
FRAME = pl.DataFrame({"id": ["a", "b", "c", "d"], "value": [1, 2, 3, 4]})


class NoParams(Params):
    pass


def node(operator: Operator, source: Source | None = None, schema: pl.Schema = COLUMNS) -> Node:
    step = Step("mine", operator, {"frame": "rows"} if operator.inputs else {}, NoParams(), {})
    return Node(step, "0" * 40, "id", schema, source, None, None, "new")


def frame_step(function: Callable[..., pl.LazyFrame], scope: Literal["rows", "key", "dataset"] = "rows") -> Node:
    return node(FrameOperator("decide_so", NoParams, 1, ("frame",), "Decide so.", function, scope))


def decide(folder: Path, step: Node, frame: pl.DataFrame = FRAME) -> tuple[engine.Counts, pl.DataFrame]:
    counts = engine.decide(step, [(frame.lazy(), "id")], folder)
    return counts, pl.read_parquet(folder / "decisions/*.parquet")


def odd_rejected(frame: pl.LazyFrame, params: NoParams) -> pl.LazyFrame:
    odd = pl.col("value") % 2 == 1
    return frame.select("_key", double=pl.col("value") * 2, _reject=pl.when(odd).then(pl.lit("odd")))


def test_a_decision_is_written_row_by_row_and_counted_by_reason(tmp_path: Path) -> None:
    counts, decisions = decide(tmp_path, frame_step(odd_rejected))
    assert counts == (4, {"odd": 2})
    assert decisions.sort("_key").to_dicts() == [
        {"_key": "a", "double": 2, "_reject": "odd", "_detail": None, "_raw": None},
        {"_key": "b", "double": 4, "_reject": None, "_detail": None, "_raw": None},
        {"_key": "c", "double": 6, "_reject": "odd", "_detail": None, "_raw": None},
        {"_key": "d", "double": 8, "_reject": None, "_detail": None, "_raw": None},
    ]


@pytest.mark.parametrize("scope", ["rows", "key", "dataset"])
def test_an_operator_that_drops_rows_is_refused(tmp_path: Path, scope: Literal["rows", "key", "dataset"]) -> None:
    step = frame_step(lambda frame, params: frame.select("_key").filter(pl.col("_key") != "b"), scope)
    message = (
        "step 'mine': operator decide_so was given 4 rows and decided about 3 or in another order; a decision keeps every row"
    )
    with pytest.raises(PtkError, match=message):
        decide(tmp_path, step)


@pytest.mark.parametrize("scope", ["rows", "key", "dataset"])
def test_an_operator_that_decides_twice_about_a_row_is_refused(
    tmp_path: Path, scope: Literal["rows", "key", "dataset"]
) -> None:
    step = frame_step(lambda frame, params: pl.concat([frame.select("_key"), frame.select("_key").head(1)]), scope)
    with pytest.raises(PtkError, match="was given 4 rows and decided about 5"):
        decide(tmp_path, step)


@pytest.mark.parametrize("scope", ["rows", "key", "dataset"])
def test_an_operator_that_decides_about_other_rows_is_refused(tmp_path: Path, scope: Literal["rows", "key", "dataset"]) -> None:
    step = frame_step(lambda frame, params: frame.select(pl.col("_key").replace("b", "z")), scope)
    with pytest.raises(PtkError, match="a decision keeps every row"):
        decide(tmp_path, step)


def test_a_rows_operator_that_reorders_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PtkError, match="in another order"):
        decide(tmp_path, frame_step(lambda frame, params: frame.select("_key").reverse()))


@pytest.mark.parametrize("scope", ["key", "dataset"])
def test_decisions_about_groups_come_in_any_order_and_are_put_in_that_of_the_rows(
    tmp_path: Path, scope: Literal["key", "dataset"]
) -> None:
    step = frame_step(lambda frame, params: frame.select("_key", double=pl.col("value") * 2).reverse(), scope)
    _, decisions = decide(tmp_path, step)
    assert decisions.select("_key", "double").rows() == [("a", 2), ("b", 4), ("c", 6), ("d", 8)]


def test_no_rows_give_no_decisions_with_all_columns(tmp_path: Path) -> None:
    counts, decisions = decide(tmp_path, frame_step(odd_rejected), FRAME.head(0))
    assert counts == (0, {})
    assert decisions.columns == ["_key", "double", "_reject", "_detail", "_raw"]


def test_the_rows_that_stay_are_written_with_their_new_columns(tmp_path: Path) -> None:
    decide(tmp_path, frame_step(odd_rejected))
    engine.compact(FRAME.lazy(), ("double",), tmp_path)
    assert pl.read_parquet(tmp_path / "rows/*.parquet").to_dicts() == [
        {"id": "b", "value": 2, "double": 4},
        {"id": "d", "value": 4, "double": 8},
    ]


def test_a_new_column_takes_the_place_of_an_old_one_where_rows_are_compacted(tmp_path: Path) -> None:
    decide(tmp_path, frame_step(lambda frame, params: frame.select("_key", value=pl.col("value") * 10)))
    engine.compact(FRAME.lazy(), ("value",), tmp_path)
    assert pl.read_parquet(tmp_path / "rows/*.parquet")["value"].to_list() == [10, 20, 30, 40]


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
    folder: Path, *batches: list[dict[str, Any]], sample: int | None = None, **settings: Any
) -> tuple[engine.Counts, pl.DataFrame, pl.DataFrame]:
    """Return the counts, the rows and the rejects of a reader that gives these batches."""

    def given() -> Iterator[pl.DataFrame]:
        for batch in batches:
            yield pl.DataFrame(batch, schema=BATCH)

    source = Source(COLUMNS, "id", given, **settings)
    reader = Reader("read_so", NoParams, 1, (), "Read so.", lambda params: source)
    folder.mkdir(exist_ok=True)
    counts = engine.read(node(reader, source), folder, sample, lambda done: None)
    return counts, *(pl.read_parquet(folder / kind / "*.parquet") for kind in ("rows", "rejects"))


def test_a_reader_s_rows_and_rejects_are_parted(tmp_path: Path) -> None:
    counts, rows, rejects = read(
        tmp_path, [record("a", 1), record("", 0, 2, "not_json")], [record("b", 2, 3)], max_malformed=0.5
    )
    assert counts == (3, {"not_json": 1})
    assert rows.rows() == [("a", 1), ("b", 2)]
    assert rejects.rows() == [("not_json", "not_json", "not_json", "rows.jsonl", 2)]


def test_too_many_malformed_records_stop_the_run_and_the_first_are_shown(tmp_path: Path) -> None:
    batch = [record("a", 1), *(record("", 0, line, "not_json") for line in range(2, 9))]
    message = r"step 'mine': 7 of 8 rows are malformed \(88%\), and max_malformed is 0.2:\n  rows.jsonl:2: not_json: not_json\n"
    with pytest.raises(TooManyMalformed, match=message) as caught:
        read(tmp_path, batch)
    assert str(caught.value).count("rows.jsonl:") == 3


def test_exactly_the_allowed_share_does_not_stop_the_run(tmp_path: Path) -> None:
    batch = [record(f"k{n}", n) for n in range(4)] + [record("", 0, 5, "not_json")]
    assert read(tmp_path, batch, max_malformed=0.2)[0] == (5, {"not_json": 1})


def test_repeats_are_rejected_and_do_not_count_as_malformed(tmp_path: Path) -> None:
    counts, rows, rejects = read(tmp_path, [record("a", 1)] * 9 + [record("b", 2)], max_malformed=0.0)
    assert counts == (10, {"repeat": 8})
    assert sorted(rows.rows()) == [("a", 1), ("b", 2)]
    assert set(rejects["_detail"]) == {"id a stands already"}


def test_which_of_several_rows_of_one_key_stays_does_not_depend_on_their_order(tmp_path: Path) -> None:
    repeats = [record("a", value) for value in range(10)]
    first = read(tmp_path / "first", repeats)[1]
    second = read(tmp_path / "second", repeats[5:], repeats[:5][::-1])[1]
    assert first.height == 1 and first.equals(second)


def test_numbered_repeats_all_stay_under_keys_that_do_not_depend_on_their_order(tmp_path: Path) -> None:
    repeats = [record("a", value) for value in range(5)] + [record("b", 7)]
    counts, first, _ = read(tmp_path / "first", repeats, on_repeat="number")
    _, second, _ = read(tmp_path / "second", repeats[::-1], on_repeat="number")
    assert counts == (6, {})
    assert first["id"].n_unique() == 6 and {"a", "b"} < set(first["id"])
    assert sorted(first["value"]) == [0, 1, 2, 3, 4, 7]
    assert first.sort("id").equals(second.sort("id"))


def test_a_sample_takes_the_first_good_rows(tmp_path: Path) -> None:
    batches = [[record(f"k{10 * b + n}", n) for n in range(10)] for b in range(3)]
    counts, rows, _ = read(tmp_path, *batches, sample=12)
    assert counts == (12, {})
    assert rows["id"].to_list() == [f"k{n}" for n in range(12)]


def test_a_sample_is_not_stopped_by_malformed_records_that_are_few_in_what_was_read(tmp_path: Path) -> None:
    batch = [record(f"k{n}", n) for n in range(90)] + [record("", 0, line, "not_json") for line in range(90, 100)]
    (rows_in, rejected), rows, _ = read(tmp_path, batch, sample=2)
    assert rows.height == 2
    assert rows_in == rows.height + sum(rejected.values())


def test_an_empty_source_gives_no_rows_with_all_columns(tmp_path: Path) -> None:
    counts, rows, rejects = read(tmp_path)
    assert counts == (0, {})
    assert rows.schema == COLUMNS
    assert rejects.columns == ["_reject", "_detail", "_raw", "_file", "_line"]


def test_a_reshape_s_rows_must_have_keys_of_their_own(tmp_path: Path) -> None:
    twice = Reshape(
        "double_up",
        NoParams,
        1,
        ("frame",),
        "Double up.",
        lambda frame, params: pl.concat([frame, frame]).select("id", "value"),
        lambda params: "id",
    )
    with pytest.raises(PtkError, match="step 'mine': 4 of 8 rows repeat the key 'id'"):
        engine.reshape_rows(node(twice), [(FRAME.lazy(), "id")], tmp_path)


def test_a_reshape_s_rows_are_written(tmp_path: Path) -> None:
    tail = Reshape("last_rows", NoParams, 1, ("frame",), "Last rows.", lambda frame, params: frame.tail(1), lambda params: "id")
    assert engine.reshape_rows(node(tail), [(FRAME.lazy(), "id")], tmp_path) == (1, {})
    assert pl.read_parquet(tmp_path / "rows/*.parquet").rows() == [("d", 4)]


@pytest.mark.parametrize("size", [1, 3, 4, 10])
def test_batches_are_of_one_size_in_the_order_of_the_rows(tmp_path: Path, size: int) -> None:
    FRAME.head(1).write_parquet(tmp_path / "1.parquet")
    FRAME.tail(3).write_parquet(tmp_path / "2.parquet")
    batches = list(engine.batches_of(pl.scan_parquet(tmp_path / "*.parquet"), size))
    assert [batch.height for batch in batches] == [size] * (4 // size) + [4 % size] * (4 % size > 0)
    assert pl.concat(batches).equals(FRAME)


def test_a_frame_of_no_rows_has_no_batches() -> None:
    assert list(engine.batches_of(FRAME.head(0).lazy())) == []


def test_decisions_that_come_in_batches_are_written_in_their_order(tmp_path: Path) -> None:
    batches = [pl.DataFrame({"_key": [key], "score": [number]}) for number, key in enumerate("abcd")]
    engine.write_decisions(batches, batches[0].schema, tmp_path)
    step = frame_step(odd_rejected)
    assert engine.settle(step, (FRAME.lazy(), "id"), tmp_path) == (4, {})
    assert pl.read_parquet(tmp_path / "decisions/*.parquet")["score"].to_list() == [0, 1, 2, 3]


def test_decisions_about_no_rows_still_tell_their_columns(tmp_path: Path) -> None:
    engine.write_decisions([], pl.Schema({"_key": pl.String, "score": pl.Int64}), tmp_path)
    assert pl.read_parquet(tmp_path / "decisions/*.parquet").columns == ["_key", "score", "_reject", "_detail", "_raw"]
