"""How long a report of a large grid takes to make and to open, and how large it is."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from browser import browser, opened_page
from ptk.report.evidence import Evidence
from ptk.report.make import report_of
from ptk.report.write import write_report
from report_grid import AXES, evidence

if TYPE_CHECKING:
    from playwright.sync_api import Browser

__all__ = ["browser"]


@pytest.mark.bench
@pytest.mark.parametrize("pairs", [278, 10_000])
def test_a_report_of_36_cells(pairs: int, browser: Browser, tmp_path: Path) -> None:
    made: Evidence = evidence(pairs, AXES, rounds=2_000)
    started, cpu = time.monotonic(), time.process_time()
    report = report_of(made, examples=200)
    measured = time.process_time() - cpu
    written = write_report(report, [tmp_path / "report.html"])[0]
    took, cpu = time.monotonic() - started, time.process_time() - cpu
    assert report.examples is not None
    opened = []
    for _ in range(3):
        for page in opened_page(browser, written.path):
            opened.append(page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd"))
    print(
        f"\n{pairs:,} pairs in 36 cells, {36 * pairs:,} rows: {len(report.figures())} figures, {len(report.examples.items):,} of "
        f"{report.examples.total:,} examples, {written.bytes / 1e6:.1f} MB; made in {took:.1f} s ({cpu:.1f} s of a processor, {measured:.1f} "
        f"of it before drawing); opened in {min(opened):.0f} to {max(opened):.0f} ms; "
        f"{psutil.Process().memory_info().rss / 2**30:.2f} GiB of memory"
    )
    assert written.bytes < 15_000_000 and min(opened) < 2_000
