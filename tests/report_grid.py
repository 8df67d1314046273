"""Evidence of a made-up grid: rows of 36 cells and fewer, judged at random, and what is known of the steps that made them."""

from __future__ import annotations

import random
from typing import Any

import polars as pl

from ptk.measure.measure_accuracy import measure_accuracy
from ptk.measure.measure_wins import measure_wins
from ptk.report.evidence import Evidence, MeasureTable
from ptk.stages import keyed

AXES = {
    "method": ("few-shot", "sft", "dpo"),
    "training": ("none", "chosen", "all"),
    "inference": ("none", "chosen", "rejected", "retrieved"),
}
WORDS = ("the", "rice", "is", "done", "when", "it", "has", "taken", "up", "all", "water", "so", "look", "at", "the", "pot")
NASTY = '</script><script>window.hacked = 1</script><img src=x onerror="window.hacked = 1"> & "quoted" `tick` | pipe'


def text(chance: random.Random, least: int, most: int) -> str:
    return " ".join(chance.choices(WORDS, k=chance.randint(least, most))) + "."


def judgement(chance: random.Random, name: str, words: tuple[str, str], lean: float) -> dict[str, Any]:
    first, flipped = chance.random() < lean, chance.random() < 0.3
    return {
        name: "tie" if flipped else words[0 if first else 1],
        f"{name}_margin": chance.gauss(0, 1),
        f"{name}_flipped": flipped,
        f"{name}_answers": 2,
        f"{name}_unparsed": 0,
        f"{name}_first": chance.randint(0, 2) if flipped else 1,
    }


def rows(pairs: int, axes: dict[str, tuple[str, ...]], seed: int = 0, extra: str = "") -> pl.DataFrame:
    """Return judged rows: each pair in each cell; the later a value of the first axis stands, the more often it wins."""
    chance = random.Random(seed)
    cells: list[dict[str, str]] = [{}]
    for axis, values in axes.items():
        cells = [{**cell, axis: value} for cell in cells for value in values]
    made = []
    for number in range(pairs):
        pair = {
            "pair_id": f"p{number:06d}",
            "prompt": [{"role": "user", "content": f"Question {number}? {extra}"}],
            "chosen": [{"role": "assistant", "content": text(chance, 20, 60)}],
            "rejected": [{"role": "assistant", "content": text(chance, 5, 20)}],
            "domain": ("cooking", "cycling")[number % 2],
            "chosen_persona": f"The user is thorough and prefers reasons, number {number}.",
            "rejected_persona": f"The user is busy and prefers brevity, number {number}.",
        }
        for cell in cells:
            lean = 0.3 + 0.2 * next(iter(axes.values())).index(next(iter(cell.values()))) if cell else 0.6
            right = judgement(chance, "chosen_persona", ("first", "second"), 0.8)
            wrong = judgement(chance, "rejected_persona", ("first", "second"), 0.7)
            made.append(
                {
                    **pair,
                    **cell,
                    "cell_id": "-".join([str(number), *cell.values()]),
                    "told": text(chance, 10, 50),
                    "untold": text(chance, 10, 30),
                    **judgement(chance, "better", ("first", "second"), lean),
                    **judgement(chance, "fitted", ("first", "second"), lean),
                    **{name: value for name, value in right.items() if name != "chosen_persona"},
                    "chosen_persona_right": None if right["chosen_persona_flipped"] else right["chosen_persona"] == "first",
                    **{name: value for name, value in wrong.items() if name != "rejected_persona"},
                    "rejected_persona_right": None
                    if wrong["rejected_persona_flipped"]
                    else wrong["rejected_persona"] == "first",
                    "told_flags": ["repetitive"] if chance.random() < 0.1 else [],
                }
            )
    return pl.DataFrame(made, infer_schema_length=None)


def step(name: str, operator: str, source: str | None, rows_out: int, **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "operator": operator,
        "inputs": {} if source is None else {"frame": source},
        "params": more.pop("params", {}),
        "rows_in": rows_out + sum(more.get("rejected", {}).values()),
        "rows_out": rows_out,
        "rejected": {},
        "flagged": {},
        "facts": {},
        **more,
    }


def lineage(count: int, axes: dict[str, tuple[str, ...]]) -> dict[str, Any]:
    steps = [
        step("pairs", "read_pairs", None, count, rejected={"not_json": 3}),
        step("personas", "infer_personas", "pairs", count),
        step("right", "judge_personas", "personas", count),
        step("untold", "generate_responses", "right", count, params={"into": "untold"}),
        step("told", "generate_responses", "untold", count, params={"into": "told", "persona": "chosen_persona"}),
        step("better", "judge_responses", "told", count, params={"into": "better", "first": "told", "second": "untold"}),
        step(
            "judged",
            "judge_responses",
            "better",
            count,
            params={
                "into": "fitted",
                "first": "told",
                "second": "untold",
                "rubric": "personalization",
                "persona": "chosen_persona",
            },
            flagged={"repetitive": count // 10},
        ),
    ]
    return {
        "spec": {"name": "grid", "text": "ptk: 1\nname: grid\n", "digest": "sha256:0"},
        "steps": steps,
        "sources": [{"step": "pairs", "files": ["corpus.jsonl"], "sha256": ["0" * 64]}],
        "origins": [],
        "licences": [{"step": "pairs", "source": "corpus.jsonl", "licence": "mit", "terms": None}],
        "models": [
            {"step": "told", "model": "some/model", "revision": "main"},
            {"step": "judged", "model": "a/judge", "revision": None},
        ],
        "prompts": [{"step": "judged", "option": "rubric", "name": "quality", "content": {"system": "Be fair."}}],
    }


def measured(frame: pl.DataFrame, axes: dict[str, tuple[str, ...]], rounds: int = 100) -> tuple[MeasureTable, ...]:
    """Return the tables that steps of the grid would have made."""
    given = keyed(frame.lazy(), "cell_id")
    outcomes = [{"name": "told", "quality": "better", "personalization": "fitted"}]
    tables = []
    for name, operator, options in (
        ("accuracy", measure_accuracy, {"by": ["domain"], "rounds": rounds}),
        ("wins", measure_wins, {"by": list(axes), "rounds": rounds, "outcomes": outcomes}),
    ):
        params = operator.params.model_validate(
            {**options, "by": tuple(options["by"]), **({"outcomes": tuple(outcomes)} if "outcomes" in options else {})}
        )
        made = operator.function(given, params=params).collect()
        tables.append(MeasureTable.of(name, operator.name, made, source="judged"))
    return tuple(tables)


def evidence(pairs: int = 12, axes: dict[str, tuple[str, ...]] | None = None, rounds: int = 100, extra: str = "") -> Evidence:
    axes = {"method": AXES["method"]} if axes is None else axes
    frame = rows(pairs, axes, extra=extra)
    known = lineage(frame.height, axes)
    tables = measured(frame, axes, rounds)
    known["steps"] += [step(table.step, table.operator, "judged", len(table.rows)) for table in tables]
    return Evidence(
        name="grid",
        of="A made-up grid.",
        lineage=known,
        frames={"judged": frame.lazy()},
        axes=tuple(axes),
        tables=tables,
        versions=({"reference": "grid/judged@v1", "rows": frame.height, "licence": "mit", "digest": "sha256:" + "0" * 64},),
        took={"judged": {"seconds": 1.0, "requests": 5, "prompt_tokens": 10, "output_tokens": 5}},
    )
