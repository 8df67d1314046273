"""What the middle of an LLM operator costs: keys, joins, chunks and collect, on the scripted backend."""

from __future__ import annotations

from pathlib import Path

import pytest

from .fresh import told

REQUESTS = 100_000

MEASURE = """
import json, sys, time
from pathlib import Path
import polars as pl
from fresh import most_memory
from ptk.engines import engine
from ptk.label.infer_personas import InferPersonas, infer_personas
from ptk.llm.answers import AnswerStore
from ptk.llm.ask import Asking
from ptk.llm.model_files import ModelRoots
from ptk.llm.request import Sampling
from ptk.llm.scripted import ScriptedSettings, backend

folder, count = Path(sys.argv[1]), int(sys.argv[2])
rows = pl.scan_parquet(folder / "rows.parquet")
params = InferPersonas.model_validate_json(
    '{"model": "labeler", "exemplars": "exemplars.yaml"}', context={"root": folder}
)
settings = ScriptedSettings(backend="scripted", model="persona")
model = backend.resolve(settings, ModelRoots(folder))


bare_requests = 0
started = time.perf_counter()
with backend.open(settings, model) as session:
    for batch in engine.batches_of(rows):
        questions = (("", request) for request in infer_personas.requests(batch, {}, params))
        bare_requests += sum(1 for _ in session.answer(questions))
bare = time.perf_counter() - started
assert bare_requests == count
before = most_memory()


def asking():
    store = AnswerStore(folder / "answers", model.identity)
    return Asking(infer_personas, params, lambda: engine.batches_of(rows), model, Sampling(), store)


def decided(asking):
    with backend.open(settings, model) as session:
        return sum(decision.height for decision in asking.run(lambda: session))


first = asking()
started = time.perf_counter()
assert decided(first) == count // 2
whole = time.perf_counter() - started
assert first.tally.asked == count

second = asking()
started = time.perf_counter()
assert decided(second) == count // 2
again = time.perf_counter() - started
assert (second.tally.asked, second.tally.answered_before) == (0, count)
print(json.dumps({"bare": bare, "whole": whole, "again": again, "before": before, "peak": most_memory()}))
"""


def rows(count: int) -> object:
    import polars as pl

    number = pl.int_range(count, eager=True).cast(pl.String)
    text = "It depends on the wall, the brackets and the wood, and on what you mean to put on it. " * 4

    def turns(role: str, content: pl.Expr) -> pl.Expr:
        return pl.concat_list(pl.struct(role=pl.lit(role), content=content))

    return pl.DataFrame({"_key": number}).with_columns(
        prompt=turns("user", pl.format("Question number {}: which shelf holds more, and why?", "_key")),
        chosen=turns("assistant", pl.format("The lower one, number {}. " + text, "_key")),
        rejected=turns("assistant", pl.format("Neither, number {}. " + text, "_key")),
    )


@pytest.mark.bench
def test_the_middle_costs_under_two_milliseconds_a_request(tmp_path: Path) -> None:
    case = "  - {prompt: 'Which shelf holds more?', preferred: The lower one., other: It depends., persona: %s}\n"
    persona = "The user is in a hurry and prefers a bare answer to a tour of the reasons."
    (tmp_path / "exemplars.yaml").write_text("exemplars:\n" + case % persona * 5)
    rows(REQUESTS // 2).write_parquet(tmp_path / "rows.parquet")  # type: ignore[attr-defined]
    seen = told(MEASURE, tmp_path, REQUESTS)
    each = {name: seen[name] / REQUESTS * 1000 for name in ("bare", "whole", "again")}
    middle = each["whole"] - each["bare"]
    print(
        f"\n{REQUESTS:,} requests: a bare loop over the session {each['bare']:.3f} ms a request, "
        f"with the middle {each['whole']:.3f} ms ({each['whole'] / each['bare']:.1f}x), the middle alone {middle:.3f} ms; "
        f"all answered before {each['again']:.3f} ms; peak memory {seen['peak']:,.0f} MiB, "
        f"{seen['before']:,.0f} MiB before the middle"
    )
    assert middle < 2.0
