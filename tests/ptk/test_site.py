"""The catalog as a static site: what is in it, and how it behaves in a real browser."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest
from click.testing import CliRunner

import ptk_catalog
from browser import browser, opened_page
from ptk.cli import cli
from ptk.errors import StoreError
from ptk.site.figures import bars, histogram
from ptk.site.graph import Node, drawn
from ptk.site.pages import write_site
from ptk.site.statistics import column_statistics

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

__all__ = ["browser"]

NASTY = '<script>window.hacked = 1</script><img src=x onerror="window.hacked = 1"> &amp; "quoted"'


def pairs(count: int, text: str = "") -> pl.DataFrame:
    rows = range(count)
    return pl.DataFrame(
        {
            "pair_id": [f"p{n:03d}" for n in rows],
            "prompt": [[{"role": "user", "content": f"Question {n}? {text}"}] for n in rows],
            "chosen": [[{"role": "assistant", "content": f"Short {n}."}] for n in rows],
            "rejected": [[{"role": "assistant", "content": f"Rather a long answer, number {n}. " * 3}] for n in rows],
            "split": ["test" if n % 5 == 0 else "train" for n in rows],
        }
    )


def fill(store: Path) -> ptk_catalog.Catalog:
    """Make a catalog of pairs, personas that build on them, a model trained on those, a table, and rows that mean harm."""
    catalog = ptk_catalog.open(store)
    lineage = {
        "spec": {"name": "demo", "text": "ptk: 1\nname: demo\n", "digest": "sha256:0"},
        "step": "decent",
        "steps": [
            {
                "name": "pairs",
                "operator": "read_pairs",
                "inputs": {},
                "rows_in": 31,
                "rows_out": 31,
                "rejected": {},
                "params": {},
            },
            {
                "name": "decent",
                "operator": "keep_lengths",
                "inputs": {"rows": "pairs"},
                "rows_in": 31,
                "rows_out": 30,
                "rejected": {"uneven": 1},
                "params": {},
            },
        ],
        "sources": [{"step": "pairs", "files": ["corpus.jsonl"], "sha256": ["0" * 64]}],
        "licences": [{"step": "pairs", "source": "corpus.jsonl", "licence": "mit", "terms": None}],
        "models": [{"step": "decent", "model": "some/model", "revision": "main", "identity": {}}],
        "prompts": [
            {"step": "decent", "option": "prompt", "name": "ask.yaml", "sha256": "0", "content": {"system": "Be brief."}}
        ],
    }
    catalog.commit("demo/pairs", pairs(20), licence="cc0-1.0")
    catalog.commit("demo/pairs", pairs(30), licence="cc0-1.0", tags=["gold"], lineage=lineage)
    catalog.commit("demo/pairs", pairs(25), licence="cc0-1.0")
    personas = pl.DataFrame(
        {
            "pair_id": [f"p{n:03d}" for n in range(30)],
            "chosen_persona": [f"The user is in a hurry, number {n}." for n in range(30)],
            "rejected_persona": ["The user wants it all."] * 30,
        }
    )
    catalog.commit("demo/personas", personas, base="demo/pairs@gold", licence="cc0-1.0", tags=["latest"])
    folder = store.parent / "model"
    folder.mkdir()
    (folder / "adapter.safetensors").write_bytes(b"weights")
    catalog.commit_model(
        "demo/model",
        folder,
        base_model="some/model",
        trained_on=["demo/personas@latest"],
        metrics={"loss": 0.123456},
        licence="mit",
    )
    catalog.commit("demo/table", pl.DataFrame({"group": ["a", "b"], "mean": [0.123456789, None]}), key="group")
    nasty = pairs(2, NASTY).with_columns(pl.lit(NASTY).alias(NASTY), chosen_persona=pl.lit(NASTY))
    catalog.commit("other/nasty", nasty, licence=NASTY[:60], lineage={"steps": "none", "spec": 3, "models": [NASTY]})
    catalog.commit("other/v1.html", pl.DataFrame({"empty": []}, schema={"empty": pl.String}))
    return catalog


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    catalog = fill(folder / "store")
    from ptk_catalog.publications import Publication

    catalog.publications.add(Publication("demo/personas", 1, "sha256:0", "http://hub", "org/set", "0123456789ab", "v1"))
    write_site(catalog, folder / "out")
    return folder / "out"


class _Links(HTMLParser):
    """Collects what a page links to or loads."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [
            value or "" for name, value in attrs if name in ("href", "src", "action", "data", "srcset", "xlink:href")
        ]


def test_every_version_has_a_page_and_every_link_leads_to_a_file_of_the_site(site: Path) -> None:
    pages = sorted(path.relative_to(site).as_posix() for path in site.rglob("*.html"))
    assert pages == [
        "e/demo/model@v1.html",
        "e/demo/pairs@v1.html",
        "e/demo/pairs@v2.html",
        "e/demo/pairs@v3.html",
        "e/demo/personas@v1.html",
        "e/demo/table@v1.html",
        "e/other/nasty@v1.html",
        "e/other/v1.html@v1.html",
        "index.html",
    ]
    for page in pages:
        parser = _Links()
        parser.feed((site / page).read_text())
        for link in parser.found:
            if link.startswith(("#", "data:,")):
                continue
            assert ((site / page).parent / link).is_file(), f"{page}: {link}"


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    for path in [*site.rglob("*.css"), *site.rglob("*.js")]:
        assert not re.search(r"https?://|@import|url\(", path.read_text())
    assert "default-src 'none'" in (site / "index.html").read_text()


def test_text_from_data_is_escaped(site: Path) -> None:
    page = (site / "e/other/nasty@v1.html").read_text()
    assert "<script>window" not in page
    assert "<img" not in page
    assert "&lt;script&gt;window.hacked" in page


def test_a_page_tells_what_the_catalog_knows(site: Path) -> None:
    page = (site / "e/demo/pairs@v2.html").read_text()
    for told in ("gold", "cc0-1.0", "corpus.jsonl", "mit", "keep_lengths", "1 uneven", "some/model", "Be brief.", "name: demo"):
        assert told in page
    assert "10 rows were added" in page
    assert "There is a newer version: v3" in page
    old = (site / "e/demo/pairs@v1.html").read_text()
    assert "Statistics and rows are shown of the newest version and of tagged ones." in old
    personas = (site / "e/demo/personas@v1.html").read_text()
    assert "inferred by a model" in personas
    assert "org/set" in personas
    model = (site / "e/demo/model@v1.html").read_text()
    assert "0.1235" in model and "adapter.safetensors" in model
    assert "0.123457" in (site / "e/demo/table@v1.html").read_text()


def test_it_replaces_a_site_and_nothing_else(tmp_path: Path) -> None:
    catalog = ptk_catalog.open(tmp_path / "store")
    catalog.commit("a/one", pl.DataFrame({"x": [1]}), key="x")
    out = tmp_path / "out"
    write_site(catalog, out)
    (out / "e/a/gone@v1.html").write_text("old")
    write_site(catalog, out)
    assert not (out / "e/a/gone@v1.html").exists()
    other = tmp_path / "mine"
    other.mkdir()
    (other / "thesis.txt").write_text("precious")
    with pytest.raises(StoreError, match="name another folder"):
        write_site(catalog, other)
    assert [path.name for path in other.iterdir()] == ["thesis.txt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "out", "store"]


def test_the_command_says_what_to_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ptk_catalog.open("catalog/store").commit("a/one", pl.DataFrame({"x": [1]}), key="x")
    run = CliRunner().invoke(cli, ["catalog", "site", "pages"])
    assert run.output == "2 pages of 1 entries: open pages/index.html\n"
    assert (tmp_path / "pages/index.html").is_file()


# ---- figures ----


def test_statistics_say_what_is_in_a_column(tmp_path: Path) -> None:
    rows = pl.DataFrame(
        {
            "id": range(1, 101),
            "side": ["left"] * 60 + ["right"] * 40,
            "text": ["x" * n for n in range(1, 101)],
            "score": [float(n) if n else None for n in range(100)],
            "turns": [[{"role": "user", "content": "four"}] * 2] * 100,
            "flags": [["a"], []] * 50,
        }
    )
    ptk_catalog.open(tmp_path).commit("a/b", rows, key="id")
    found = {item.name: item for item in column_statistics(ptk_catalog.open(tmp_path).load("a/b"))}
    assert {name: item.facts for name, item in found.items()} == {
        "id": "100 different, 1 to 100, median 50.5",
        "side": "2 different",
        "text": "100 different, 1 to 100 characters, median 50.5",
        "score": "1 to 99, median 50",
        "turns": "all 8 characters",
        "flags": "0 to 1 items, median 0.5",
    }
    assert found["score"].nulls == 1
    assert found["side"].counts is not None
    assert [(name, count) for name, _, _, _, count in found["side"].counts.bars] == [("left", 60), ("right", 40)]
    assert found["text"].spread is not None
    assert sum(count for *_, count in found["text"].spread.bars) == 100


def test_bars_stay_inside_the_figure() -> None:
    figure = histogram([0, 5, 10], "0", "3", "three")
    assert [count for *_, count in figure.bars] == [0, 5, 10]
    assert all(0 <= y <= y + height <= 66 and x + width <= 320 for x, y, width, height, _ in figure.bars)
    assert bars([("x" * 100, 3), ("y", 0)], "two").bars[0][1] == "x" * 25 + "…"


def test_a_graph_puts_everything_after_what_it_was_made_from() -> None:
    nodes = {name: Node(name, "", "step") for name in "abcde"}
    edges = [("a", "c"), ("b", "c"), ("c", "d"), ("a", "d"), ("d", "e")]
    places = {box.node.title: box for box in drawn(nodes, edges).boxes}
    assert all(places[source].x < places[target].x for source, target in edges)
    assert len({(box.x, box.y) for box in places.values()}) == 5


# ---- in a browser ----


@pytest.fixture
def page(browser: Browser, site: Path) -> Iterator[Page]:
    """A page on the index, opened from the file; whatever the console complains of fails the test."""
    yield from opened(browser, site)


def opened(browser: Browser, site: Path, **settings: Any) -> Iterator[Page]:
    yield from opened_page(browser, site / "index.html", **settings)


def test_it_searches_shows_a_row_and_follows_lineage(page: Page) -> None:
    assert page.locator(".entry:visible").count() == 6
    page.get_by_label("Search entries").fill("persona gold")
    assert page.locator(".entry:visible").count() == 0
    assert page.get_by_role("status").inner_text() == "0 of 6 fit"
    page.get_by_label("Search entries").fill("chosen_persona latest")
    assert page.locator(".entry:visible h2").all_inner_texts() == ["demo/personas"]
    page.get_by_role("link", name="demo/personas").click()
    assert page.title() == "demo/personas@v1"

    page.get_by_label("Search these rows").fill("question 13?")
    assert page.locator("details.row:visible").count() == 1
    page.locator("details.row:visible summary").click()
    shown = page.locator("details.row:visible")
    assert shown.locator(".chosen .persona").inner_text().endswith("The user is in a hurry, number 13.")
    assert shown.locator(".rejected .persona").inner_text().endswith("The user wants it all.")
    assert "Rather a long answer, number 13." in shown.locator(".rejected").inner_text()

    page.locator("svg.graph a", has_text="demo/pairs@v2").click()
    assert page.title() == "demo/pairs@v2"
    assert page.locator("svg.graph").get_by_text("corpus.jsonl").count() >= 1
    page.get_by_role("link", name="demo/personas@v1").first.click()
    page.get_by_role("link", name="demo/model@v1").first.click()
    assert page.title() == "demo/model@v1"


def test_everything_can_be_done_by_keyboard(page: Page) -> None:
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("/")
    page.keyboard.type("chosen_persona hurry")
    assert page.get_by_role("status").inner_text() == "0 of 6 fit"
    page.keyboard.press("Escape")
    page.keyboard.type("chosen_persona latest")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "demo/personas"
    page.keyboard.press("Enter")
    page.wait_for_url("**/personas@v1.html")
    second = page.locator("details.row").nth(1)
    second.locator("summary").focus()
    page.keyboard.press("Enter")
    assert second.evaluate("row => row.open")
    page.locator("svg.graph a").first.focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/pairs@v2.html")


def test_text_from_data_does_nothing(page: Page, site: Path) -> None:
    page.goto((site / "e/other/nasty@v1.html").as_uri())
    page.locator("details.row").nth(1).locator("summary").click()
    assert page.evaluate("window.hacked") is None
    assert page.locator("details.row").nth(1).locator(".turn").first.inner_text().endswith(NASTY)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_readable_on_a_phone_and_by_a_screen_reader_in_light_and_dark(scheme: Any, browser: Browser, site: Path) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    # axe is put into the page from outside, which the page's own policy would refuse, and asks for files again.
    context = browser.new_context(viewport={"width": 375, "height": 800}, color_scheme=scheme, bypass_csp=True)
    page = context.new_page()
    for path in sorted(site.rglob("*.html")):
        page.goto(path.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") == 375, path.name
        sizes = "[...document.querySelectorAll('main p, main td')].map(e => parseFloat(getComputedStyle(e).fontSize))"
        assert page.evaluate(f"Math.min(...{sizes})") >= 12
        found = axe.run(page)
        assert found.violations_count == 0, f"{path.name}: {found.generate_report()}"
    context.close()


def test_without_scripts_everything_is_still_there(browser: Browser, site: Path) -> None:
    for page in opened(browser, site, java_script_enabled=False):
        assert page.locator(".entry").count() == 6
        assert not page.get_by_label("Search entries").is_visible()
        page.get_by_role("link", name="demo/table").click()
        assert page.locator("table").first.is_visible()
