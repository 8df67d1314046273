"""A report's page in a real browser: looking, searching, narrowing, by keyboard, on a phone, in print and without scripts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import report_grid as grid
from browser import axe_violations, browser, opened_page
from ptk.report.html import MOST_ROWS
from ptk.report.make import report_of
from ptk.report.parts import Report
from ptk.report.write import write_report

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

__all__ = ["browser"]


@pytest.fixture(scope="module")
def report() -> Report:
    return report_of(grid.evidence(50, extra=grid.NASTY), examples=45)


@pytest.fixture(scope="module")
def path(report: Report, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("report") / "report.html"
    write_report(report, [place])
    return place


@pytest.fixture
def page(browser: Browser, path: Path) -> Iterator[Page]:
    yield from opened_page(browser, path)


def shown_number(report: Report) -> int:
    """Return the number of a question among the examples; one of two digits is part of no other."""
    assert report.examples is not None
    return max(int(item["id"].removeprefix("p")) for item in report.examples.items)


def test_examples_are_searched_narrowed_and_leafed_through(page: Page, report: Report) -> None:
    number = shown_number(report)
    status = page.get_by_role("status")
    assert status.inner_text() == "45 examples"
    assert page.locator("details.row").count() == 20
    page.get_by_role("button", name="Next").click()
    assert page.locator("#examples-pages span").inner_text() == "21 to 40 of 45"
    page.get_by_label("Search the examples").fill(f"question {number}?")
    assert status.inner_text() == "1 of 45 examples fit"
    shown = page.locator("details.row")
    assert shown.locator(".chosen .persona").inner_text().endswith(f"thorough and prefers reasons, number {number}.")
    assert shown.locator(".cell h4").all_inner_texts() == ["method dpo", "method few-shot", "method sft"]
    assert shown.locator(".cell").first.locator("h5").all_inner_texts() == [
        "untold, given no persona",
        "told, given chosen_persona",
    ]
    page.get_by_label("method", exact=True).select_option("sft")
    assert page.locator("details.row .cell h4").all_inner_texts() == ["method sft"]
    page.get_by_label("Search the examples").fill("")
    page.get_by_label("better", exact=True).select_option("told")
    narrowed = page.locator("details.row .cell .verdicts").all_inner_texts()
    assert narrowed and all("told better" in text for text in narrowed)
    page.get_by_label("domain", exact=True).select_option("cooking")
    assert page.locator("details.row dl.rest dd").first.inner_text() == "cooking"


def test_a_finding_leads_to_its_figure_and_a_figure_to_its_table(page: Page, report: Report) -> None:
    page.locator(".findings a").first.click()
    figure = page.locator("figure:target")
    assert figure.count() == 1
    page.locator("figure.shown details.data").nth(1).evaluate("one => one.open = true")
    assert page.locator("figure.shown").count() == len(report.figures())
    for shown in report.figures():
        assert page.locator(f"#{shown.name} table tbody tr").count() == min(len(shown.table.rows), MOST_ROWS)
        if shown.chart is not None:
            assert page.locator(f"#{shown.name} .plot").get_attribute("aria-label") == f"{shown.title}. {shown.says}"


def test_the_way_to_a_part_ends_at_it_however_many_figures_are_between(page: Page) -> None:
    for name in ("Examples", "Personas", "Steps"):
        page.locator("nav.sections").get_by_text(name, exact=True).click()
        page.wait_for_timeout(300)
        top = page.evaluate("document.querySelector(':target').getBoundingClientRect().top")
        assert -10 < top < 120, name


def test_it_can_be_used_by_keyboard(page: Page, report: Report) -> None:
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("/")
    page.keyboard.type(f"question {shown_number(report)}?")
    assert page.get_by_role("status").inner_text() == "1 of 45 examples fit"
    page.keyboard.press("Escape")
    assert page.get_by_role("status").inner_text() == "45 examples"
    second = page.locator("details.row summary").nth(1)
    second.focus()
    page.keyboard.press("Enter")
    assert page.locator("details.row").nth(1).evaluate("row => row.open && row.querySelectorAll('.cell').length") == 3


def test_text_from_data_does_nothing(page: Page) -> None:
    page.locator("details.row summary").nth(2).click()
    assert page.evaluate("window.hacked") is None
    assert grid.NASTY in page.locator("details.row").nth(2).locator(".prompt").inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_readable_on_a_phone_and_by_a_screen_reader_in_light_and_dark(scheme: Any, browser: Browser, path: Path) -> None:
    # axe is put into the page from outside, which the page's own policy would refuse.
    for page in opened_page(browser, path, viewport={"width": 375, "height": 800}, color_scheme=scheme, bypass_csp=True):
        assert page.evaluate("document.documentElement.scrollWidth") == 375
        sizes = "[...document.querySelectorAll('main p, main td, main li')].map(e => parseFloat(getComputedStyle(e).fontSize))"
        assert page.evaluate(f"Math.min(...{sizes})") >= 12
        assert axe_violations(page) == ""


def test_print_has_every_table_and_no_tools(browser: Browser, path: Path) -> None:
    for page in opened_page(browser, path):
        page.emulate_media(media="print")
        assert not page.locator("#examples-tools").is_visible()
        assert not page.locator("nav.sections").is_visible()
        assert len(page.pdf()) > 50_000
        heights = page.evaluate(
            "[...document.querySelectorAll('details.data table')].map(e => e.getBoundingClientRect().height)"
        )
        assert min(heights) > 20


def test_without_scripts_figures_tables_and_some_examples_are_there(browser: Browser, path: Path, report: Report) -> None:
    for page in opened_page(browser, path, java_script_enabled=False):
        assert page.locator("figure.shown svg").count() == sum(figure.chart is not None for figure in report.figures())
        assert page.locator("details.row").count() == 3
        assert page.locator("details.row").first.locator(".cell").count() == 3
        assert not page.locator("#examples-tools").is_visible()


@pytest.mark.slow
def test_a_grid_of_36_cells_is_small_and_opens_at_once(browser: Browser, tmp_path: Path) -> None:
    report = report_of(grid.evidence(278, grid.AXES, rounds=200), examples=200)  # 10,008 rows
    written = write_report(report, [tmp_path / "report.html"])[0]
    assert report.examples is not None and report.examples.total == 278
    assert written.bytes < 15_000_000
    took = []
    for _ in range(3):  # other work on the machine may delay one of them
        for page in opened_page(browser, written.path):
            took.append(page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd"))
            assert page.locator("details.row .cell").count() == 36
            assert "200 of 278 pairs" in page.locator("#examples > p").first.inner_text()
    assert min(took) < 2_000, f"{min(took):.0f} ms"
