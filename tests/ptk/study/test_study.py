"""Blind studies: what people are given, what is kept from them, and what their answers are measured to say."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from browser import axe_violations, browser, opened_page
from ptk.errors import PtkError, StoreError, UnreadableFile
from ptk.study.answers import alpha_of, read_answers, read_key, read_result, result_of, written
from ptk.study.form import Key
from ptk.study.kit import Wanted, make_kit

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

__all__ = ["browser"]

NASTY = '</script><script>window.hacked = 1</script><img src=x onerror="window.hacked = 1"> & "quoted"'
CHOICES = Wanted("choices", ("tailored", "usual"), "who", 12, 2, 0)
PERSONAS = Wanted("personas", ("chosen_persona", "rejected_persona"), None, 6, 3, 0)


def rows(count: int = 20) -> pl.LazyFrame:
    numbers = range(count)
    return pl.DataFrame(
        {
            "pair_id": [f"p{n}" for n in numbers],
            "prompt": [[{"role": "user", "content": f"Question {n}? {NASTY}"}] for n in numbers],
            "chosen": [[{"role": "assistant", "content": f"Good {n}."}] for n in numbers],
            "rejected": [[{"role": "assistant", "content": f"Bad {n}."}] for n in numbers],
            "chosen_persona": [f"The user is in a hurry, number {n}." for n in numbers],
            "rejected_persona": [f"The user has time, number {n}." for n in numbers],
            "tailored": [f"Fitted answer {n}." for n in numbers],
            "usual": ["" if n == 3 else f"=Usual answer {n}." for n in numbers],
            "verdict": ["first" if n % 3 else "second" for n in numbers],
            "who": [f"I am number {n}." for n in numbers],
        }
    ).lazy()


def made(folder: Path, wanted: Wanted, count: int = 20) -> Key:
    make_kit(rows(count), "pair_id", "demo/judged@v1", wanted, folder)
    return read_key(folder / "key.json")


def sheet(folder: Path, number: int) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((folder / f"give/sheets/rater-{number}.csv").read_text("utf-8-sig"), newline="")))


def fill(path: Path, lines: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)
    return path


def test_what_is_given_away_does_not_tell_what_is_what(tmp_path: Path) -> None:
    key = made(tmp_path / "kit", CHOICES)
    give = tmp_path / "kit" / "give"
    told = "".join(path.read_text("utf-8-sig") for path in give.rglob("*") if path.is_file())
    for secret in ("tailored", "usual", "demo/judged", "pair_id", "seed"):
        assert secret not in told
    assert {item.of for item in key.items} == {"tailored", "usual"}  # A is now the one, now the other
    assert len(key.items) == len(key.prompts) == 12
    assert "p3" not in key.prompts  # one response is empty


def test_items_come_in_another_order_to_each_and_in_the_same_with_the_same_seed(tmp_path: Path) -> None:
    made(tmp_path / "one", PERSONAS)
    orders = [[line["item"] for line in sheet(tmp_path / "one", number)] for number in (1, 2, 3)]
    assert len({tuple(order) for order in orders}) == 3 and len({frozenset(order) for order in orders}) == 1
    made(tmp_path / "again", PERSONAS)
    for path in sorted((tmp_path / "one").rglob("*.*")):
        assert path.read_bytes() == (tmp_path / "again" / path.relative_to(tmp_path / "one")).read_bytes()


def test_a_sheet_program_takes_no_text_for_a_formula(tmp_path: Path) -> None:
    made(tmp_path, CHOICES)
    assert not any(line[name].startswith("=") for line in sheet(tmp_path, 1) for name in ("A", "B"))


def test_sheets_are_read_and_what_does_not_fit_is_set_aside_with_its_reason(tmp_path: Path) -> None:
    key = made(tmp_path / "kit", PERSONAS)
    lines: list[dict[str, Any]] = sheet(tmp_path / "kit", 1)
    for line in lines:
        line |= {"plausibility": "4", "applicability": " 5 ", "harmfulness": "", "overfitting": "1"}
    lines[0]["plausibility"] = "6"
    lines[1]["plausibility"] = "good"
    lines[2]["item"] = "nothing"
    lines[3]["study"] = "another"
    lines[4]["rater"] = ""
    read = read_answers(key, [fill(tmp_path / "a.csv", lines)])
    assert len(read.given) == 9 * 3 - 2
    reasons = [reason for _, reason in read.rejected]
    assert sorted(set(reasons)) == ["another_study", "no_rater", "no_such_answer", "unknown_item"]
    assert ("a.csv, row 1", "no_such_answer") in read.rejected
    changed = [{**line, "plausibility": "2"} for line in lines[5:]]
    twice = read_answers(key, [tmp_path / "a.csv", fill(tmp_path / "b.csv", changed)])
    assert twice.given == read.given
    assert [reason for where, reason in twice.rejected if where.startswith("b.csv")] == ["answered_twice"] * 7


def test_files_that_are_no_answers_are_refused(tmp_path: Path) -> None:
    key = made(tmp_path / "kit", PERSONAS)
    for name, content in {"a.csv": "x,y\n1,2\n", "b.json": "[]", "c.json": "{", "d.csv": ""}.items():
        (tmp_path / name).write_text(content)
        with pytest.raises(UnreadableFile):
            read_answers(key, [tmp_path / name])
    with pytest.raises(UnreadableFile, match=r"key\.json"):
        read_key(tmp_path / "a.csv")


def test_choices_are_told_apart_by_the_key(tmp_path: Path) -> None:
    key = made(tmp_path / "kit", CHOICES)
    item = {one.item: one for one in key.items}
    lines: list[dict[str, Any]] = sheet(tmp_path / "kit", 1)
    for number, line in enumerate(lines):
        ours = "A" if item[line["item"]].of == "tailored" else "B"
        theirs = "B" if ours == "A" else "A"
        line |= {"answerability": ours if number < 9 else theirs, "personalization": "tie" if number % 2 else ours.lower()}
    result = result_of(key, read_answers(key, [fill(tmp_path / "a.csv", lines)]), rounds=200)
    value = {(row["measure"], row["about"]): row["value"] for row in result.rows}
    assert value["win_rate", "tailored against usual/answerability"] == 0.75
    assert value["ties", "tailored against usual/personalization"] == 0.5
    assert value["win_rate", "tailored against usual/personalization"] == 1.0
    assert value["delta_pq", "tailored against usual"] == pytest.approx(0.75)
    assert value["alpha", "answerability"] is None  # one person agrees with nobody


def test_people_agree_on_columns_wherever_they_stood(tmp_path: Path) -> None:
    key = made(tmp_path / "kit", CHOICES)
    item = {one.item: one for one in key.items}
    files = []
    for number in (1, 2):
        lines: list[dict[str, Any]] = sheet(tmp_path / "kit", number)
        rows_of = sorted(line["item"] for line in lines)
        for line in lines:
            wanted = "tailored" if rows_of.index(line["item"]) % 4 else "usual"
            line["answerability"] = "A" if item[line["item"]].of == wanted else "B"
        files.append(fill(tmp_path / f"{number}.csv", lines))
    lines = [{**line, "rater": "other", "answerability": "A"} for line in lines]  # whoever says A each time agrees with nobody
    files.append(fill(tmp_path / "3.csv", lines))
    two, three = (result_of(key, read_answers(key, files[:count]), rounds=0) for count in (2, 3))
    alpha = [next(row["value"] for row in made.rows if row["name"] == "alpha/answerability") for made in (two, three)]
    assert alpha[0] == 1.0 and alpha[1] < 0.7


def test_a_judge_is_compared_with_what_most_people_chose(tmp_path: Path) -> None:
    wanted = replace(CHOICES, judge={"answerability": "verdict"})
    key = made(tmp_path / "kit", wanted)
    assert "verdict" not in "".join(path.read_text("utf-8-sig") for path in (tmp_path / "kit/give").rglob("*.csv"))
    item = {one.item: one for one in key.items}
    files = []
    for number, wrong in ((1, 0), (2, 0), (3, 12)):  # one of three always says the opposite
        lines: list[dict[str, Any]] = sheet(tmp_path / "kit", 1)
        for at, line in enumerate(lines):
            said = key.judged[item[line["item"]].row]["answerability"]
            said = {"first": "second", "second": "first"}[said] if at < wrong else said
            ours = "tailored" if said == "first" else "usual"
            line |= {"rater": str(number), "answerability": "A" if item[line["item"]].of == ours else "B"}
        files.append(fill(tmp_path / f"{number}.csv", lines))
    value = {row["name"]: row["value"] for row in result_of(key, read_answers(key, files), rounds=0).rows}
    assert (value["agreement"], value["kappa"]) == (1.0, 1.0)
    opposite = {row["name"]: row["value"] for row in result_of(key, read_answers(key, files[2:]), rounds=0).rows}
    assert opposite["agreement"] == 0.0 and opposite["kappa"] < 0
    with pytest.raises(PtkError, match="no judge can be compared"):
        make_kit(rows(), "pair_id", "x", replace(PERSONAS, judge={"answerability": "verdict"}), tmp_path / "other")


def test_ratings_are_means_by_side_with_paired_differences(tmp_path: Path) -> None:
    key = made(tmp_path / "kit", PERSONAS)
    of = {item.item: item.of for item in key.items}
    files = []
    for number in (1, 2):
        lines: list[dict[str, Any]] = sheet(tmp_path / "kit", number)
        for line in lines:
            line |= {"plausibility": 4 if of[line["item"]] == "chosen_persona" else 2, "overfitting": 1 + number}
        files.append(fill(tmp_path / f"{number}.csv", lines))
    result = result_of(key, read_answers(key, files), rounds=200)
    value = {(row["measure"], row["about"], row.get("of")): row for row in result.rows}
    assert value["mean_rating", "plausibility", "chosen_persona"]["value"] == 4
    assert value["mean_rating", "plausibility", None]["value"] == 3
    difference = value["difference", "plausibility: chosen_persona - rejected_persona", None]
    assert (difference["value"], difference["n"]) == (2, 12)
    tested = [row for row in result.rows if row["measure"] == "better" and row["p_value"] is not None]
    assert len(tested) == 1 and difference["p_adjusted"] >= difference["p_value"]
    several = [row for row in result.rows if row["measure"] == "difference" and row["p_value"] is not None]
    least = min(row["p_value"] for row in several)
    assert min(row["p_adjusted"] for row in several) == pytest.approx(min(1.0, least * len(several)))
    assert value["alpha", "plausibility", None]["value"] == 1.0
    assert value["alpha", "overfitting", None]["value"] < 0
    assert value["mean_rating", "harmfulness", None]["value"] is None
    written(result, tmp_path / "s.json", None)
    assert read_result(tmp_path / "s.json") == result
    assert (result.raters, result.items, result.answers) == (2, 12, 48)


def slow_alpha(table: np.ndarray[Any, Any]) -> float | None:
    """Krippendorff's alpha for ordinal values by its definition: 1 - observed disagreement / expected disagreement, over pairs."""
    units = [[value for value in column if not math.isnan(value)] for column in table.T]
    units = [unit for unit in units if len(unit) > 1]
    values = sorted(value for unit in units for value in unit)
    if len(set(values)) < 2:
        return None
    count = {value: values.count(value) for value in set(values)}

    def distance(one: float, other: float) -> float:
        low, high = min(one, other), max(one, other)
        between = sum(count[value] for value in count if low <= value <= high)
        return float((between - (count[one] + count[other]) / 2) ** 2)

    observed = sum(sum(distance(a, b) for a, b in itertools.permutations(unit, 2)) / (len(unit) - 1) for unit in units)
    expected = sum(distance(a, b) for a, b in itertools.permutations(values, 2)) / (len(values) - 1)
    return 1 - observed / expected


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.sampled_from([1.0, 2.0, 3.0, 4.0, 5.0, math.nan]), min_size=4, max_size=4), min_size=2, max_size=5))
def test_alpha_is_that_of_its_definition(ratings: list[list[float]]) -> None:
    table = np.array(ratings)
    found, _, _ = alpha_of(table, "ordinal", ["one"] * 4, 0)
    expected = slow_alpha(table)
    assert (found is None) == (expected is None)
    if found is not None:
        assert found == pytest.approx(expected, abs=1e-9)


def test_alpha_has_an_interval_over_prompts() -> None:
    chance = random.Random(0)
    truth = [chance.randint(1, 5) for _ in range(30)]
    table = np.array(
        [[min(5, max(1, value + chance.choice([0, 0, 0, 1, -1]))) for value in truth] for _ in range(3)], dtype=float
    )
    value, low, high = alpha_of(table, "ordinal", [str(n) for n in range(30)], 0)
    assert value is not None and low is not None and high is not None
    assert 0.5 < low < value < high <= 1
    assert alpha_of(table, "ordinal", [str(n) for n in range(30)], 0) == (value, low, high)


def test_people_write_personas_of_their_own(tmp_path: Path) -> None:
    key = made(tmp_path / "kit", Wanted("write", (), None, 4, 1, 0))
    lines: list[dict[str, Any]] = sheet(tmp_path / "kit", 1)
    lines[0]["persona"] = "I am busy,\n and I prefer lists."
    result = result_of(key, read_answers(key, [fill(tmp_path / "a.csv", lines)]))
    written(result, None, tmp_path / "own.jsonl")
    line = json.loads((tmp_path / "own.jsonl").read_text())
    assert line["user_persona"] == "I am busy, and I prefer lists." and line["prompt"].startswith("Question ")


def test_what_can_not_be_asked_is_refused(tmp_path: Path) -> None:
    for wanted, what in (
        (Wanted("choices", ("tailored",), None, 3, 1, 0), "name both"),
        (Wanted("choices", ("usual", "usual"), None, 3, 1, 0), "name both"),
        (Wanted("ratings", ("tailord",), None, 3, 1, 0), "did you mean 'tailored'"),
        (Wanted("write", ("usual",), None, 3, 1, 0), "leave out"),
    ):
        with pytest.raises(PtkError, match=what):
            make_kit(rows(), "pair_id", "x", wanted, tmp_path / "kit")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(StoreError, match="name another folder"):
        make_kit(rows(), "pair_id", "x", PERSONAS, tmp_path / "mine")


# ---- in a browser ----


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    made(folder / "choices", Wanted("choices", ("tailored", "usual"), "who", 4, 1, 0))
    made(folder / "personas", Wanted("personas", ("chosen_persona", "rejected_persona"), None, 2, 1, 0))
    made(folder / "ratings", Wanted("ratings", ("tailored", "usual"), "who", 2, 1, 0))
    made(folder / "write", Wanted("write", (), None, 2, 1, 0))
    return folder


@pytest.fixture
def page(browser: Browser, kit: Path) -> Iterator[Page]:
    yield from opened_page(browser, kit / "choices/give/study.html", accept_downloads=True)


def begin(page: Page, rater: str) -> None:
    page.get_by_label("Your name or number").fill(rater)
    page.get_by_role("button", name="Begin").click()


def test_a_person_answers_goes_on_later_and_the_saved_files_are_read(page: Page, kit: Path, tmp_path: Path) -> None:
    begin(page, "Ada L.")
    assert page.evaluate("document.activeElement.id") == "asking-h"
    expected = {}
    for number in range(4):
        shown = page.locator(".two .shown p").all_inner_texts()
        ours = "Response A" if shown[0].startswith("Fitted") else "Response B"
        question = page.get_by_role("group", name="Which response answers the request better?")
        question.get_by_label(ours).check()
        page.get_by_role("group", name="Which response suits the person").get_by_label("Neither is better").check()
        expected[number] = ours
        if number == 1:
            assert page.get_by_role("status").inner_text() == "2 of 4 are answered."
            page.reload()  # what was answered is kept
            begin(page, "Ada L.")
            assert page.locator("#asking-h").inner_text() == "3 of 4"
        elif number < 3:
            page.get_by_role("button", name="Next").click()
    assert page.get_by_role("status").inner_text() == "All 4 are answered. Save them as a file."
    assert page.evaluate("window.hacked") is None
    files = []
    for kind in ("JSON", "CSV"):
        with page.expect_download() as saved:
            page.get_by_role("button", name=f"Save as {kind}").click()
        path = tmp_path / saved.value.suggested_filename
        saved.value.save_as(path)
        files.append(path)
    key = read_key(kit / "choices/key.json")
    by_json, by_csv = (read_answers(key, [path]) for path in files)
    assert by_json == by_csv and by_json.rejected == ()
    assert {rater for rater, *_ in by_json.given} == {"Ada L."}
    value = {(row["measure"], row["about"]): row["value"] for row in result_of(key, by_json, rounds=0).rows}
    # Whatever place the responses had: the tailored one was chosen each time.
    assert value["wins", "tailored against usual/answerability"] == 1.0
    assert value["ties", "tailored against usual/personalization"] == 1.0


def test_two_people_see_other_orders(page: Page) -> None:
    seen = []
    for rater in ("one", "two", "three", "four"):
        page.reload()
        begin(page, rater)
        order = []
        for number in range(4):
            order.append(tuple(page.locator("#item .shown p").all_inner_texts()))
            if number < 3:
                page.get_by_role("button", name="Next").click()
        seen.append(tuple(order))
    assert len(set(seen)) > 1
    assert len({frozenset(text for item in order for text in item) for order in seen}) == 1


def test_people_rate_and_write_on_the_page_too(browser: Browser, kit: Path, tmp_path: Path) -> None:
    for kind, said in (("ratings", 4), ("write", "I am new here, and I prefer steps.")):
        for page in opened_page(browser, kit / kind / "give/study.html", accept_downloads=True):
            begin(page, "Bo")
            if kind == "ratings":
                for box in page.get_by_role("group").all():
                    box.get_by_label("4", exact=True).check()
            else:
                page.get_by_role("textbox").last.fill(f"  {said} ")
            with page.expect_download() as saved:
                page.get_by_role("button", name="Save as JSON").click()
            saved.value.save_as(tmp_path / f"{kind}.json")
        read = read_answers(read_key(kit / kind / "key.json"), [tmp_path / f"{kind}.json"])
        assert read.rejected == () and {value for *_, value in read.given} == {said}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_readable_on_a_phone_and_by_a_screen_reader(scheme: Any, browser: Browser, kit: Path) -> None:
    for name in ("choices", "personas", "ratings", "write"):
        path = kit / name / "give/study.html"
        for page in opened_page(browser, path, viewport={"width": 375, "height": 800}, color_scheme=scheme, bypass_csp=True):
            assert axe_violations(page) == ""
            begin(page, "x")
            assert page.evaluate("document.documentElement.scrollWidth") == 375
            assert axe_violations(page) == ""
