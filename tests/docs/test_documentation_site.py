"""The documentation site is made of the pages without a warning, and reaches all of them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_site_is_made_without_a_warning_and_lists_every_page(tmp_path: Path) -> None:
    made = subprocess.run(
        [sys.executable, "-m", "sphinx", "-b", "html", "-W", "--keep-going", "-q", DOCS, tmp_path / "site", "-d", tmp_path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    for page in DOCS.glob("**/*.md"):
        assert (tmp_path / "site" / page.relative_to(DOCS)).with_suffix(".html").is_file(), page
    links = set(re.findall(r'href="([a-z/_-]+)\.html', (tmp_path / "site" / "index.html").read_text()))
    assert {str(page.relative_to(DOCS).with_suffix("")) for page in DOCS.glob("*.md")} <= links
    started = (tmp_path / "site" / "quickstart.html").read_text()
    assert "<h1>Quickstart" in started and 'href="spec-language.html#operators"' in started
