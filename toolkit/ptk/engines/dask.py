"""Runs steps on a Dask cluster: the same functions, part by part, on the workers; Dask's shuffle where rows must meet.

The workers read and write the work store themselves, so it lies where all of them see it: in a shared folder or an object store. The
driver hands out what to do and is told counts: rows never pass through it. A worker that dies is no loss, since its parts are
done again, and files come into place whole.
"""

from __future__ import annotations

import contextlib
import itertools
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from ptk.engines.cluster import RESOURCE, Cluster
from ptk.engines.dask_models import ClusterSession, check_for_models
from ptk.engines.engine import (
    PLACES,
    Counts,
    Input,
    ReadTally,
    Report,
    check_malformed,
    compact_rows,
    read_pieces,
    reshaped_counts,
    settle,
    settle_repeats,
    write_aligned,
    write_ordered,
    write_reshaped,
)
from ptk.engines.polars import PolarsEngine
from ptk.operator import GROUP, KEY, REJECT, ROW, AssetOperator, FrameOperator, Reader, Reshape, Stage, find_operator
from ptk.places import Place, Remote, copy_out, listed, remove_tree
from ptk.plan import Node
from ptk.stages import keyed, numbered, reshaped, stage_input
from ptk.work import Rows

if TYPE_CHECKING:
    from distributed import Future

    from ptk.llm.backend import ResolvedModel, Session
    from ptk.params import Params
    from ptk.spec import Model

__all__ = ["DaskEngine"]

_ROWS_PER_PART = 100_000
_HASH = "_hash"
_PART = "_part"


class DaskEngine:
    """A cluster: an existing scheduler's, or `workers` processes of one thread each on this machine, which end with the engine.

    `partitions` fixes into how many parts rows are cut; by default it follows from their number. Results never depend on it. Raises
    PtkError when the scheduler can't be reached, when it has no workers, or when they run other versions or see other files.
    """

    is_distributed = True

    def __init__(
        self,
        work: Place,
        *,
        scheduler: str | None = None,
        workers: int | None = None,
        partitions: int | None = None,
        memory_limit: str = "auto",
    ) -> None:
        self.partitions = partitions
        self.cluster = Cluster(work, scheduler=scheduler, workers=workers, memory_limit=memory_limit)
        self.client = self.cluster.client

    def close(self) -> None:
        self.cluster.close()

    def read(self, node: Node, folder: Place, sample: int | None, on_progress: Callable[[int], None]) -> Counts:
        assert node.source is not None
        if sample is not None:
            return PolarsEngine().read(node, folder, sample, on_progress)
        tally = ReadTally()
        tasks = [
            self.client.submit(_read, node.step.operator.name, node.step.params, number, piece, folder, pure=False)
            for number, piece in enumerate(node.source.pieces())
        ]
        for found in self._results(tasks, node):
            tally.add(found)
            on_progress(tally.kept + tally.rejected)
        check_malformed(node, folder, tally)
        return settle_repeats(node, folder, tally)

    def decide(self, node: Node, inputs: Sequence[Input], folder: Place) -> Counts:
        operator = node.step.operator
        assert isinstance(operator, FrameOperator)
        stages = operator.stages(node.step.params)
        given = {name: self._given(item) for name, item in zip(operator.inputs, inputs, strict=True)}
        for stage in stages:
            last = stage is stages[-1]
            if stage.scope == "rows":
                target = folder / "decisions" if last else folder / "aside" / stage.name
                self._by_rows(node, stage, given, target, last)
            elif stage.scope == "key":
                target = folder / "aside" / stage.name
                self._by_groups(node, stage, given, target, last)
            else:
                target = folder / "aside" / stage.name
                self._done(node, [self.client.submit(_run_whole, _Task(node, stage), given, target, last, pure=False)])
            given[stage.name] = _Given(tuple(_Part((part,)) for part in _parts_in(target)))
            if last and stage.scope != "rows":
                self._ordered(node, stage.name, given, folder / "decisions")
        remove_tree(folder / "aside")
        return settle(node, folder, inputs[0].height)

    def reshape(self, node: Node, inputs: Sequence[Input], folder: Place) -> Counts:
        operator = node.step.operator
        assert isinstance(operator, Reshape)
        whole = [_whole(item) for item in inputs]
        parts = [_Part(rows, inputs[0].key) for rows in self._parts(inputs[0])] if operator.scope == "rows" else whole[:1]
        columns = node.schema.names()
        tasks = [
            self.client.submit(
                _reshape,
                _Task(node),
                [part, *whole[1:]],
                columns,
                node.key_column,
                [_part_path(folder / kind, number) for kind in ("rows", "rejects")],
                pure=False,
            )
            for number, part in enumerate(parts)
        ]
        self._done(node, tasks)
        return reshaped_counts(node, folder, sum(item.height for item in inputs))

    def write_files(
        self, node: Node, inputs: Sequence[Input], folder: Place, report: Report
    ) -> Mapping[str, Any] | tuple[Mapping[str, Any], pl.DataFrame]:
        # What a worker could say on its way has no way back: it says nothing until it is done.
        operator = node.step.operator
        loads = node.model is not None and isinstance(operator, AssetOperator) and operator.loads_model(node.step.params)
        if loads:
            check_for_models(self.cluster)
        resources = {RESOURCE: 1} if loads else None
        task = self.client.submit(
            _write_files,
            _Task(node),
            [_whole(item) for item in inputs],
            folder,
            {} if node.model is None else {"model": node.model},
            resources=resources,
            pure=False,
        )
        made: Mapping[str, Any] | tuple[Mapping[str, Any], pl.DataFrame] = next(iter(self._results([task], node)))
        return made

    def compact(self, about: Input, folder: Place) -> None:
        tasks = [
            self.client.submit(_compact, rows, _part_path(folder / "rows", number), pure=False)
            for number, rows in enumerate(self._parts(about))
        ]
        self._done(None, tasks)

    def session(self, declared: Model, model: ResolvedModel) -> Session:
        if declared.backend.remote:
            return declared.backend.open(declared.settings, model)
        return ClusterSession(self.cluster, declared, model)

    def _parts(self, item: Input) -> list[Rows]:
        return item.rows.parts(self._count(item.height))

    def _count(self, height: int) -> int:
        if self.partitions is not None:
            return self.partitions
        return max(len(self.cluster.workers()), 1, -(-height // _ROWS_PER_PART))

    def _given(self, item: Input) -> _Given:
        return _Given(tuple(_Part(rows, item.key) for rows in self._parts(item)), _whole(item))

    def _by_rows(self, node: Node, stage: Stage, given: Mapping[str, _Given], target: Place, last: bool) -> None:
        first, *others = stage.inputs
        tasks = [
            self.client.submit(
                _run_part,
                _Task(node, stage),
                {first: part, **{name: given[name].all() for name in others}},
                _part_path(target, number),
                last,
                pure=False,
            )
            for number, part in enumerate(given[first].parts)
        ]
        self._done(node, tasks)

    def _by_groups(self, node: Node, stage: Stage, given: Mapping[str, _Given], target: Place, last: bool) -> None:
        task = _Task(node, stage)
        buckets = max(len(given[name].parts) for name in stage.inputs)

        def load(name: str) -> Callable[[_Part], pl.LazyFrame]:
            return lambda part: task.grouped(name, part)

        self._shuffled(
            node,
            [(given[name].parts, load(name), _HASH) for name in stage.inputs],
            buckets,
            lambda frames, number: task.run_group(frames, _part_path(target, number), last),
        )

    def _ordered(self, node: Node, stage: str, given: Mapping[str, _Given], target: Place) -> None:
        """Bring decisions that carry `_row` back to the parts of the rows they are about."""
        parts = next(iter(given.values())).parts
        firsts = [part.rows.first for part in parts if isinstance(part.rows, Rows)]

        def load(part: _Part) -> pl.LazyFrame:
            number = pl.lit(pl.Series(firsts, dtype=pl.UInt64)).search_sorted(pl.col(ROW), side="right").cast(pl.Int64) - 1
            return part.scan().with_columns(number.alias(_PART))

        def write(frames: list[pl.DataFrame], _bucket: int) -> None:
            for (number,), rows in frames[0].partition_by(_PART, as_dict=True).items():
                write_ordered(rows.drop(_PART).lazy(), firsts[int(str(number))], _part_path(target, int(str(number))))

        self._shuffled(node, [(given[stage].parts, load, _PART)], len(parts), write)
        schema = given[stage].all().scan().drop(ROW).collect_schema()
        if not _parts_in(target):
            write_aligned(
                pl.LazyFrame(schema={KEY: pl.String}), pl.LazyFrame(schema={KEY: pl.String, **schema}), _part_path(target, 0)
            )

    def _shuffled(
        self,
        node: Node,
        inputs: Sequence[tuple[Sequence[_Part], Callable[[_Part], pl.LazyFrame], str]],
        buckets: int,
        run: Callable[[list[pl.DataFrame], int], None],
    ) -> None:
        """Let rows of each input that are equal in its named column meet, and run the function on every bucket of them."""
        import dask
        import dask.dataframe as dd

        columns: list[Any] = []
        schemas: list[pl.Schema] = []
        with dask.config.set({"dataframe.convert-string": False, "dataframe.shuffle.method": "p2p"}):
            for parts, load, by in inputs:
                schema = load(parts[0]).collect_schema()
                schemas.append(schema)
                frame = dd.from_map(
                    _Loading(load), list(parts), meta=_to_pandas(pl.DataFrame(schema=schema)), enforce_metadata=False
                )
                columns.append(frame.shuffle(on=by, npartitions=buckets).to_delayed(optimize_graph=True))
        tasks = [
            dask.delayed(_Running(run, tuple(schemas)))(list(frames), number, pure=False)
            for number, frames in enumerate(zip(*columns, strict=True))
        ]
        self._done(node, self.client.compute(tasks))

    def _done(self, node: Node | None, tasks: list[Future]) -> None:
        for _ in self._results(tasks, node):
            pass

    def _results(self, tasks: Iterable[Future], node: Node | None) -> Iterator[Any]:
        yield from self.cluster.results(set(tasks), _step(node))


@dataclass(frozen=True, slots=True)
class _Part:
    """Some rows of an operator's input, with its key column, or of an earlier stage."""

    rows: Rows | tuple[str, ...]
    key: str | None = None

    def scan(self) -> pl.LazyFrame:
        if isinstance(self.rows, Rows):
            assert self.key is not None
            return keyed(self.rows.scan(), self.key)
        return pl.scan_parquet(list(self.rows))

    @property
    def first(self) -> int:
        return self.rows.first if isinstance(self.rows, Rows) else 0


@dataclass(frozen=True, slots=True)
class _Given:
    """What a stage may take: parts, and the whole."""

    parts: tuple[_Part, ...]
    whole: _Part | None = None

    def all(self) -> _Part:
        if self.whole is not None:
            return self.whole
        return _Part(tuple(itertools.chain.from_iterable(part.rows for part in self.parts if isinstance(part.rows, tuple))))


class _Task:
    """An operator's stage as a worker finds it: by the operator's name, as that may be no value to send."""

    def __init__(self, node: Node, stage: Stage | None = None) -> None:
        self.operator, self.params = node.step.operator.name, node.step.params
        self.stage = stage.name if stage is not None else None

    def found(self) -> tuple[FrameOperator, Stage, bool]:
        operator = find_operator(self.operator)
        assert isinstance(operator, FrameOperator)
        stages = operator.stages(self.params)
        return (
            operator,
            next(stage for stage in stages if stage.name == self.stage),
            len(stages) > 1 or stages[0].scope != "rows",
        )

    def given(self, name: str, part: _Part) -> pl.LazyFrame:
        """Return an input as the stage is given it."""
        operator, stage, staged = self.found()
        if name not in operator.inputs:
            return part.scan()
        frame = numbered(part.scan(), part.first) if staged else part.scan()
        return stage_input(stage, name, frame, self.params)

    def grouped(self, name: str, part: _Part) -> pl.LazyFrame:
        """Return an input of a `key` stage with a number that is equal for rows of a group."""
        frame = self.given(name, part)
        by = (GROUP,) if GROUP in frame.collect_schema() else self.found()[1].by
        number = (pl.col(by[0]) if len(by) == 1 else pl.struct(by)).hash()
        return frame.with_columns(number.reinterpret(dtype=pl.Int64).alias(_HASH))

    def run_group(self, frames: list[pl.DataFrame], path: Place, last: bool) -> None:
        stage = self.found()[1]
        given = [frame.drop(_HASH).lazy() for frame in frames]
        rows = stage.function(*given, params=self.params)
        if last:
            rows = rows.join(given[0].select(KEY, ROW), on=KEY, how="inner")
        _sink(rows, path)


def _run_part(task: _Task, parts: Mapping[str, _Part], path: Place, last: bool) -> None:
    stage = task.found()[1]
    given = [task.given(name, parts[name]) for name in stage.inputs]
    made = stage.function(*given, params=task.params)
    if last:
        with _renamed(path) as aside:
            write_aligned(given[0], made, aside)
    else:
        _sink(made, path)


def _run_whole(task: _Task, given: Mapping[str, _Given], target: Place, last: bool) -> None:
    stage = task.found()[1]
    frames = [task.given(name, given[name].all()) for name in stage.inputs]
    rows = stage.function(*frames, params=task.params)
    if last:
        rows = rows.join(frames[0].select(KEY, ROW), on=KEY, how="inner")
    _sink(rows, _part_path(target, 0))


def _read(operator: str, params: Params, number: int, piece: Any, folder: Place) -> ReadTally:
    reader = find_operator(operator)
    assert isinstance(reader, Reader)
    for kind in ("rows", "rejects", PLACES):  # a piece that is read again replaces what a dead worker left of it
        for left in listed(folder / kind, f"part-{number:05}-*.parquet"):
            left.unlink(missing_ok=True)
    return read_pieces(reader.function(params=params), [(number, piece)], folder)


def _reshape(task: _Task, inputs: list[_Part], columns: list[str], key: str, paths: list[Place]) -> None:
    operator = find_operator(task.operator)
    assert isinstance(operator, Reshape)
    made = reshaped(operator, [part.scan() for part in inputs], task.params, key)
    if REJECT not in made.collect_schema():
        with _renamed(paths[0]) as rows:
            compact_rows(made.select(columns), rows)
        return
    with _renamed(paths[0]) as rows, _renamed(paths[1]) as rejects:
        write_reshaped(made, columns, rows, rejects)


def _compact(rows: Rows, path: Place) -> None:
    with _renamed(path) as aside:
        compact_rows(rows.scan(), aside)


def _write_files(
    task: _Task, inputs: list[_Part], folder: Place, more: Mapping[str, Any]
) -> Mapping[str, Any] | tuple[Mapping[str, Any], pl.DataFrame]:
    operator = find_operator(task.operator)
    assert isinstance(operator, AssetOperator)
    frames = [part.scan() for part in inputs]
    if operator.reports:
        more = {**more, "report": _silent}
    if isinstance(folder, Path):
        return operator.function(*frames, params=task.params, folder=folder, **more)
    with tempfile.TemporaryDirectory(prefix="ptk-") as local:
        made = operator.function(*frames, params=task.params, folder=Path(local), **more)
        copy_out(Path(local), folder)
    return made


def _silent(done: int, of: int | None, note: str) -> None: ...


@dataclass(frozen=True, slots=True)
class _Loading:
    """Loads a part for the shuffle, as pandas with Arrow's types."""

    load: Callable[[_Part], pl.LazyFrame]

    def __call__(self, part: _Part) -> Any:
        return _to_pandas(self.load(part).collect(engine="streaming"))


@dataclass(frozen=True, slots=True)
class _Running:
    """Runs a function on what the shuffle brought together."""

    run: Callable[[list[pl.DataFrame], int], None]
    schemas: tuple[pl.Schema, ...]

    def __call__(self, frames: list[Any], number: int) -> None:
        self.run([_from_pandas(frame, schema) for frame, schema in zip(frames, self.schemas, strict=True)], number)


def _to_pandas(frame: pl.DataFrame) -> Any:
    nested = [name for name, dtype in frame.schema.items() if dtype.is_nested()]
    # Dask's shuffle does not take Arrow's nested types: they travel as JSON.
    flat = frame.with_columns(pl.struct(name).struct.json_encode().alias(name) for name in nested)
    return flat.to_pandas(use_pyarrow_extension_array=True)


def _from_pandas(frame: Any, schema: pl.Schema) -> pl.DataFrame:
    flat = pl.DataFrame(pl.from_pandas(frame))
    nested = {name: pl.Struct({name: dtype}) for name, dtype in schema.items() if dtype.is_nested()}
    unpacked = (pl.col(name).str.json_decode(dtype).struct.field(name) for name, dtype in nested.items())
    return flat.with_columns(unpacked).cast(schema).select(schema.names())


def _sink(rows: pl.LazyFrame, path: Place) -> None:
    with _renamed(path) as aside:
        rows.sink_parquet(str(aside), engine="streaming", compression="lz4", mkdir=True)


@contextlib.contextmanager
def _renamed(path: Place) -> Iterator[Place]:
    """Give a path to write to; what stands there is renamed to `path` when it is whole. An object store takes in whole files alone."""
    if isinstance(path, Remote):
        yield path
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}-{uuid.uuid4().hex[:8]}")
    try:
        yield aside
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def _part_path(folder: Place, number: int) -> Place:
    return folder / f"part-{number:05}.parquet"


def _parts_in(folder: Place) -> list[str]:
    return list(map(str, listed(folder, "part-*.parquet")))


def _whole(item: Input) -> _Part:
    return _Part(item.rows, item.key)


def _step(node: Node | None) -> str:
    return f"step '{node.name}': " if node is not None else ""
