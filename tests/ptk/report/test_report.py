"""Reports: what is measured, which caveats the numbers call for, and that the same evidence gives the same bytes."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import report_grid as grid
from ptk.errors import StoreError
from ptk.report.caveats import judge_caveats, line_caveats, model_caveats
from ptk.report.charts import png, svg
from ptk.report.evidence import Evidence, MeasureTable, merged
from ptk.report.examples import examples_of
from ptk.report.html import as_html
from ptk.report.make import digest_of, report_of
from ptk.report.markdown import as_markdown
from ptk.report.measures import figures_of, findings_of, group_name, shown
from ptk.report.parts import Boxes, Chart, Flow, Heat, HeatCell, Histograms, Lines, Mark, Points, Stack, Stacks
from ptk.report.rows import answer_lengths, flow, losses, margin_spread, pair_lengths
from ptk.report.write import write_report

CHARTS: dict[str, Chart] = {
    "points": Points(
        (Mark("a <b> & $x$", 0.6, 0.5, 0.7, "one"), Mark("c", 0.4, None, None, "two")), "share", 0.5, "chance", (0, 1)
    ),
    "bars": Points((Mark("a", 0.6, 0.5, 0.7),), "share", 0.5, "chance", (0, 1), bars=True),
    "stacks": Stacks(("wins", "ties", "losses"), (Stack("a", (0.5, 0.3, 0.2)),), "share"),
    "heat": Heat(("r",), ("x", "y"), ((HeatCell(0.3, doubtful=False), None),), "Delta PQ"),
    "histograms": Histograms((0.0, 1.0, 2.0), (("a", (0.5, 0.5)),), "words"),
    "boxes": Boxes((("a", (0.0, 1.0, 2.0, 3.0, 4.0)),), "words"),
    "lines": Lines((("loss", ((0.0, 2.0), (1.0, 1.0))),), "step", "loss"),
    "flow": Flow((("a", "read_pairs", "3 rows", 0), ("b", "drop_empty", "2 rows, 1 set aside", 1)), (("a", "b"),)),
}


def row(value: float | None, low: float | None, high: float | None, n: int = 100, **more: Any) -> dict[str, Any]:
    return {
        "name": "x", "measure": "win_rate", "about": None, "value": value, "low": low, "high": high, "n": n,
        "p_value": None, "p_adjusted": None, "standard_error": None, **more,
    }  # fmt: skip


def rules(caveats: Any) -> list[str]:
    return [caveat.rule for caveat in caveats]


# ---- charts ----


@pytest.mark.parametrize("name", CHARTS)
def test_a_chart_is_drawn_the_same_each_time_and_takes_its_colours_from_the_page(name: str) -> None:
    chart = CHARTS[name]
    drawn = svg(chart, name, themed=True)
    assert drawn == svg(chart, name, themed=True)
    assert "#1a1d24" not in drawn and "var(--" in drawn
    assert "<metadata" not in drawn and "DejaVu" not in drawn
    assert "#1a1d24" in svg(chart, name, themed=False)
    assert png(chart).startswith(b"\x89PNG")
    assert png(chart) == png(chart)


def test_labels_are_text_and_nothing_but_text() -> None:
    drawn = svg(CHARTS["points"], "p", themed=True)
    assert "a &lt;b&gt; &amp; $x$" in drawn


# ---- caveats ----


def test_an_interval_that_holds_the_value_that_means_nothing_is_told() -> None:
    lines = [("a", row(0.6, 0.4, 0.7)), ("b", row(0.9, 0.8, 0.95))]
    found = line_caveats(lines, 0.5, "chance (0.5)")
    assert rules(found) == ["interval_crosses"]
    assert found[0].weight == "doubt" and "1 of 2: a" in found[0].text
    assert line_caveats(lines[:1], 0.5, "chance")[0].weight == "alarm"
    assert line_caveats(lines[1:], 0.5, "chance") == []


def test_small_numbers_missing_intervals_points_and_many_tests_are_told() -> None:
    assert rules(line_caveats([("a", row(0.9, 0.8, 1.0, n=29))])) == ["small_n"]
    assert line_caveats([("a", row(0.9, 0.8, 1.0, n=30))]) == []
    assert rules(line_caveats([("a", row(0.9, None, None))], 0.5, "chance")) == ["no_interval"]
    assert rules(line_caveats([("a", row(1.0, 1.0, 1.0))], 0.5, "chance")) == ["one_point"]
    assert rules(line_caveats([("a", row(0.9, 0.8, 1.0, p_value=0.01, p_adjusted=0.2))], 0.5, "chance")) == ["many_tests"]
    assert rules(line_caveats([("a", row(None, None, None, n=0))])) == ["undefined"]


def judge_table(low: float, high: float, **more: Any) -> MeasureTable:
    made = [
        row((low + high) / 2, low, high, measure="accuracy", about="both", **more),
        row(0.6, 0.55, 0.65, measure="flipped", about="chosen"),
        row(0.8, 0.7, 0.9, measure="said_first", about="chosen"),
    ]
    return MeasureTable("accuracy", "measure_accuracy", (), tuple(made))


def of_steps(*steps: dict[str, Any], models: list[dict[str, Any]] | None = None) -> Evidence:
    known = {**grid.lineage(10, {}), "steps": list(steps), "models": models or []}
    return Evidence("x", "x", known, {}, (), ())


def test_a_judge_that_is_weaker_than_chance_leans_or_flips_is_told_of() -> None:
    judged = of_steps(grid.step("right", "judge_personas", None, 10))
    assert rules(judge_caveats(judged, [judge_table(0.3, 0.45)])) == [
        "weaker_than_chance",
        "order_decides",
        "leans_to_a_place",
        "judge_untested",
    ]
    assert "no_better_than_chance" in rules(judge_caveats(judged, [judge_table(0.45, 0.7)]))
    fine = rules(judge_caveats(judged, [judge_table(0.6, 0.7)]))
    assert "weaker_than_chance" not in fine and "no_better_than_chance" not in fine
    kappa = MeasureTable("agreement", "measure_agreement", (), (row(-0.2, -0.3, -0.1, measure="kappa"),))
    found = judge_caveats(judged, [kappa])
    assert "weaker_than_chance" in rules(found) and "judge_untested" not in rules(found)


def test_a_judge_of_its_own_texts_and_models_that_mean_nothing_are_told_of() -> None:
    models = [{"step": "told", "model": "scripted/persona"}, {"step": "right", "model": "scripted/persona"}]
    both = of_steps(
        grid.step("told", "generate_responses", None, 10), grid.step("right", "judge_personas", "told", 10), models=models
    )
    assert "own_judge" in rules(judge_caveats(both, []))
    assert rules(model_caveats(both)) == ["scripted"]


def test_without_a_judge_nothing_is_said_of_one() -> None:
    assert judge_caveats(of_steps(grid.step("pairs", "read_pairs", None, 10)), [judge_table(0.1, 0.2)]) == []


# ---- figures of measures ----


def test_the_heat_map_has_every_cell_of_the_grid_and_marks_those_that_may_be_nothing() -> None:
    made = grid.evidence(8, grid.AXES, rounds=50)
    wins = next(table for table in made.tables if table.operator == "measure_wins")
    heat = figures_of(wins)[0]
    assert isinstance(heat.chart, Heat)
    cells = [cell for line in heat.chart.cells for cell in line]
    assert len(cells) == 36 and None not in cells
    assert (len(heat.chart.rows), len(heat.chart.columns)) == (9, 4)
    values = {
        (r["method"], r["training"], r["inference"]): r
        for r in wins.rows
        if r["measure"] == "delta_pq" and r["inference"] and r["method"] and r["training"]
    }
    at = heat.chart.rows.index("dpo · all"), heat.chart.columns.index("none")
    told = values["dpo", "all", "none"]
    cell = heat.chart.cells[at[0]][at[1]]
    assert cell is not None
    assert cell.value == pytest.approx(told["value"], abs=1e-6)
    assert cell.doubtful == (told["low"] <= 0 <= told["high"])


def test_words_are_told_by_group_as_a_table() -> None:
    words = [("chosen", "thorough"), ("rejected", "brief")]
    lines = [
        row(0.9, 0.8, 1.0, measure="salience", about=f"{side}/{word}", domain=domain, side=side, word=word, rank=1)
        for domain in (None, "a", "b")
        for side, word in words
    ]
    found = next(
        figure
        for figure in figures_of(MeasureTable("words", "measure_words", ("domain",), tuple(lines)))
        if figure.chart is None
    )
    assert found.table.rows == tuple((name, "thorough 0.90", "brief 0.90") for name in ("a", "all rows", "b"))


def test_an_outcome_that_all_share_is_no_part_of_labels() -> None:
    table = next(table for table in grid.evidence(6).tables if table.operator == "measure_wins")
    stacks = next(figure.chart for figure in figures_of(table) if isinstance(figure.chart, Stacks))
    assert [stack.label for stack in stacks.stacks][:2] == ["personalization", "personalization · dpo"]


def test_what_is_drawn_has_room() -> None:
    table = next(table for table in grid.evidence(4, grid.AXES, rounds=0).tables if table.operator == "measure_wins")
    lines = [line for line in table.rows if line["measure"] == "win_rate"]
    assert 2 <= len(shown(table, lines)) <= 48 < len(lines)


def test_a_value_called_all_is_not_taken_for_the_whole() -> None:
    table = next(table for table in grid.evidence(4, grid.AXES, rounds=0).tables if table.operator == "measure_wins")
    names = [group_name(line, table.by) for line in table.rows if line["measure"] == "delta_pq"]
    assert len(set(names)) == len(names)
    assert {"all rows", "training all", "dpo · all · none"} <= set(names)


def test_a_finding_says_only_what_its_interval_allows() -> None:
    def said(value: float, low: float | None, high: float | None, n: int = 100) -> str:
        table = MeasureTable("wins", "measure_wins", (), (row(value, low, high, about="told/quality", n=n),))
        return findings_of(table, figures_of(table))[0][0]

    assert said(0.7, 0.6, 0.8) == "Win rate, told/quality: 0.70 (0.60 to 0.80) of 100 decided verdicts: better."
    assert said(0.3, 0.2, 0.4).endswith(": worse.")
    assert said(0.6, 0.4, 0.8).endswith(": no difference can be told.")
    assert "chance can't be ruled out" in said(0.9, None, None)
    assert said(0.5, 0.5, 0.5, n=0).endswith("of 0 decided verdicts: every one was a tie, which by definition is this.")


# ---- figures of rows ----


def test_lengths_are_counted_in_words_by_side_persona_and_cell() -> None:
    made = grid.evidence(30)
    found = pair_lengths(made)
    assert found is not None
    frame = made.frames["judged"].unique("pair_id").collect()
    words = frame.select(
        pl.col(side).list.first().struct.field("content").str.split(" ").list.len().alias(side)
        for side in ("chosen", "rejected")
    )
    assert [(*line[:2], line[4]) for line in found.table.rows] == [
        (side, 30, words[side].median()) for side in ("chosen", "rejected")
    ]
    assert "length_tells" in rules(found.caveats)
    by_cell = answer_lengths(made)[0]
    assert [line[:2] for line in by_cell.table.rows][:2] == [
        ("untold · dpo", "given no persona"),
        ("told · dpo", "given chosen_persona"),
    ]


def test_margins_are_told_from_log_probabilities_where_no_step_took_the_difference() -> None:
    frame = pl.DataFrame({"logp_chosen_given_chosen": [-1.0, -2.0], "logp_rejected_given_chosen": [-3.0, -1.0]})
    table = MeasureTable("flips", "measure_flips", (), (), {"rewards": "logp"}, "scored")
    made = replace(of_steps(), frames={"scored": frame.lazy()})
    found = margin_spread(made, table)
    assert found is not None and found.table.rows[0][-1] == 0.5  # of 2 and -1
    assert "50%" in found.says


def test_flips_are_measured_of_scores_where_no_step_derived_rewards() -> None:
    made = grid.evidence(6)
    scored = made.frames["judged"].with_columns(
        **{
            f"logp_{side}_given_{given}": pl.lit(-1.0 if side == given else -3.0)
            for side in ("chosen", "rejected")
            for given in ("chosen", "rejected")
        }
    )
    steps = [*made.lineage["steps"], grid.step("scores", "score_pairs", "judged", 18)]
    report = report_of(replace(made, frames={"scores": scored}, lineage={**made.lineage, "steps": steps}), examples=0)
    figures = {figure.name: figure for figure in report.figures()}
    flips = next(line for line in figures["persona-flips-scores"].table.rows if line[:4] == ("flips", "both", "(all)", "(all)"))
    assert flips[4] == 1.0
    assert "100%" in figures["margin-spread-scores"].says and "0%" in figures["margin-spread-scores"].says
    assert not [caveat for caveat in report.caveats if caveat.rule == "not_measured"]


def test_a_loss_that_rises_again_is_told() -> None:
    history = [{"epoch": epoch, "loss": 2 - epoch / 10, "eval_loss": loss} for epoch, loss in enumerate([2.0, 1.5, 1.6, 1.9])]
    found = losses(of_steps(grid.step("dpo[all]", "tailor", None, 10, facts={"history": history})))
    assert [figure.name for figure in found] == ["loss-dpo-all"]
    assert rules(found[0].caveats) == ["overfitting"]
    assert found[0].table.rows[1] == ("eval loss", 4, 2.0, 1.5, 1.9)
    bare = losses(
        of_steps(grid.step("sft", "tailor", None, 10, facts={"history": [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}]}))
    )
    assert rules(bare[0].caveats) == ["no_held_out_loss"]
    assert losses(of_steps(grid.step("x", "export_rows", None, 10, facts={"files": [{"name": "a"}]}))) == []


def test_the_flow_counts_cells_of_a_matrix_together() -> None:
    made = of_steps(
        grid.step("pairs", "read_pairs", None, 10),
        grid.step("personas[small]", "infer_personas", "pairs", 6, rejected={"no_form": 4}),
        grid.step("personas[large]", "infer_personas", "pairs", 9, rejected={"no_form": 1}, flagged={"leaked": 2}),
        grid.step("personas", "concat_rows", "personas[small]", 15),
    )
    found = flow(made)
    assert found.table.rows[1] == ("personas", "infer_personas", 2, "pairs", 20, 15, "5 no_form", "2 leaked")
    assert isinstance(found.chart, Flow) and found.chart.edges == (("pairs", "personas"),)
    assert rules(found.caveats) == ["many_rejects"]


# ---- examples ----


def test_an_example_has_every_cell_of_its_pair_and_what_is_the_same_once() -> None:
    made = grid.evidence(6)
    found = examples_of(made, 4, 0)
    assert found is not None
    assert (len(found.items), found.total, found.unit) == (4, 6, "pairs")
    item = found.items[0]
    assert [cell["of"]["method"] for cell in item["cells"]] == ["dpo", "few-shot", "sft"]
    assert set(item["personas"]) == {"chosen_persona", "rejected_persona"}
    assert {answer["name"] for answer in item["cells"][0]["answers"]} == {"told", "untold"}
    assert {verdict["name"] for verdict in item["cells"][0]["verdicts"]} <= {
        "better",
        "fitted",
        "chosen_persona_right",
        "rejected_persona_right",
    }
    narrowing = dict(found.filters)
    assert narrowing["method"] == ("dpo", "few-shot", "sft") and narrowing["domain"] == ("cooking", "cycling")


def test_records_to_learn_from_are_no_examples_nor_what_is_trained_on_them() -> None:
    made = grid.evidence(6)
    frame = made.frames["judged"]
    steps = [
        *made.lineage["steps"],
        grid.step("records", "tailoring_records", "judged", 12),
        grid.step("model", "tailor", "records", 12),
        {**grid.step("after", "generate_responses", "judged", 18), "inputs": {"frame": "judged", "tuned.adapter": "model"}},
    ]
    frames = {"judged": frame, "records": frame, "model": frame, "after": frame}
    more = replace(made, lineage={**made.lineage, "steps": steps}, frames=frames)
    assert set(more.last_rows()) == {"after"}


def test_examples_hang_on_ids_and_seed_alone() -> None:
    made = grid.evidence(40)
    turned = replace(made, frames={"judged": made.frames["judged"].reverse()})
    assert examples_of(made, 10, 0) == examples_of(turned, 10, 0)
    assert examples_of(made, 10, 0) != examples_of(made, 10, 1)


def test_examples_that_would_be_too_many_bytes_are_fewer_and_that_is_said() -> None:
    made = grid.evidence(40, extra="x" * 400_000)
    found = examples_of(made, 40, 0)  # a prompt is cut after 4,000 characters
    assert found is not None and len(found.items) == 40
    long = made.frames["judged"].with_columns(told=pl.lit("word " * 800), untold=pl.lit("word " * 800))
    big = replace(
        made, frames={"judged": pl.concat([long] * 12).with_columns(pl.int_range(pl.len()).cast(pl.String).alias("method"))}
    )
    some = examples_of(big, 40, 0)
    assert some is not None and len(some.items) < 40 and "too large" in some.how


# ---- the whole ----


def test_the_digest_leaves_out_times_and_nothing_else() -> None:
    made = grid.evidence(12)
    report = report_of(made, examples=5)
    again = report_of(
        replace(made, took={"judged": {"seconds": 99.0, "requests": 1, "prompt_tokens": 0, "output_tokens": 0}}), examples=5
    )
    assert digest_of(report) == digest_of(again)
    assert digest_of(report) != digest_of(report_of(made, examples=4))
    turned = replace(made, frames={"judged": made.frames["judged"].reverse()})
    assert digest_of(report_of(turned, examples=5)) == digest_of(report)
    assert as_html(report) == as_html(report_of(made, examples=5))


def test_what_no_step_measured_is_measured_and_said_to_be() -> None:
    made = replace(grid.evidence(12), tables=())
    report = report_of(made, examples=0)
    figures = {figure.name: figure for figure in report.figures()}
    assert {
        "persona-accuracy-judged",
        "delta-pq-judged",
        "outcomes-judged",
        "words-log-odds-judged",
        "style-words-judged",
    } <= set(figures)
    assert "measured for this report by measure_wins from the rows of step judged" in figures["delta-pq-judged"].made_of
    assert report.examples is None


def test_what_is_not_finished_and_what_was_not_answered_is_told_first() -> None:
    made = replace(grid.evidence(6), unfinished=("wins[small]",), unanswered={"told": 1_200})
    found = report_of(made, examples=0).caveats[:2]
    assert rules(found) == ["unanswered", "unfinished"]
    assert "1,200 of told" in found[0].text and "wins[small]" in found[1].text


def test_every_figure_has_its_table() -> None:
    for figure in report_of(grid.evidence(12), examples=0).figures():
        assert figure.table.rows, figure.name
        assert all(len(line) == len(figure.table.header) for line in figure.table.rows), figure.name


def test_it_is_written_as_a_page_as_markdown_and_as_figures_and_replaces_only_its_own(tmp_path: Path) -> None:
    report = report_of(grid.evidence(6, extra=grid.NASTY), examples=3)
    for place in write_report(report, [tmp_path / "r.html", tmp_path / "r.md", tmp_path / "figures"]):
        assert place.path.exists() and place.bytes > 1000
    names = {figure.name for figure in report.figures()}
    assert {path.stem for path in (tmp_path / "figures").glob("*.csv")} == names
    assert {path.name for path in (tmp_path / "r-figures").glob("*.svg")} == {
        f"{figure.name}.svg" for figure in report.figures() if figure.chart is not None
    }
    text = (tmp_path / "r.md").read_text()
    assert all((tmp_path / link).is_file() for link in __import__("re").findall(r"\]\((r-figures/[^)]+)\)", text))
    assert "<script" not in text.replace("\\<script", "")
    page = (tmp_path / "r.html").read_text()
    assert "<script>window" not in page and "<img" not in page
    (tmp_path / "figures" / "old.svg").write_text("old")
    write_report(report, [tmp_path / "figures"])
    assert not (tmp_path / "figures" / "old.svg").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(StoreError, match="name another place"):
        write_report(report, [tmp_path / "mine"])
    with pytest.raises(StoreError, match=r"write \.html or \.md"):
        write_report(report, [tmp_path / "r.pdf"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figures", "mine", "r-figures", "r.html", "r.md"]


def test_markdown_shows_a_spec_that_holds_a_fence_whole() -> None:
    made = grid.evidence(2)
    spec = {"name": "x", "text": "note: |\n  ```\n  code\n  ```\n", "digest": ""}
    text = as_markdown(report_of(replace(made, lineage={**made.lineage, "spec": spec}), examples=0), "figures")
    assert "``````yaml\nnote: |" in text


def test_lineages_are_put_together_with_each_step_once() -> None:
    one, other = grid.lineage(10, {}), grid.lineage(10, {})
    other["steps"] = [*other["steps"], grid.step("more", "drop_empty", "judged", 9)]
    both = merged([one, other])
    assert [item["name"] for item in both["steps"]] == [*(item["name"] for item in one["steps"]), "more"]
    assert both["sources"] == one["sources"] and both["spec"] == one["spec"]


def test_random_tables_never_fail() -> None:
    chance = random.Random(0)
    for operator in (
        "measure_accuracy",
        "measure_wins",
        "measure_flips",
        "measure_agreement",
        "control_length",
        "compare_groups",
    ):
        lines = []
        for measure in ("accuracy", "win_rate", "wins", "ties", "losses", "delta_pq", "flips", "margin", "kappa", "difference"):
            for model in (None, "a", "b"):
                value = chance.choice([None, 0.0, 0.5, 1.0, chance.uniform(-5, 5)])
                low = None if value is None or chance.random() < 0.3 else value - chance.random()
                high = None if low is None else (value or 0.0) + chance.random()
                lines.append(
                    row(
                        value,
                        low,
                        high,
                        n=chance.randint(0, 99),
                        measure=measure,
                        about=chance.choice([None, "x"]),
                        model=model,
                    )
                )
        table = MeasureTable("t", operator, ("model",), tuple(lines))
        for figure in figures_of(table):
            if figure.chart is not None:
                svg(figure.chart, figure.name, themed=True)
        findings_of(table, figures_of(table))
