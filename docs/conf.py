"""Settings of Sphinx, which makes the documentation site: `make docs`."""

import re
from pathlib import Path

from sphinx.application import Sphinx

project = "ptk"
author = "the authors of ptk"
copyright = author  # noqa: A001
extensions = ["myst_parser", "sphinx_copybutton"]
source_suffix = {".rst": "restructuredtext", ".md": "markdown"}
exclude_patterns = ["_build"]
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]
nitpicky = True
copybutton_prompt_text = "$ "
copybutton_only_copy_prompt_lines = True
html_theme = "furo"
html_title = "ptk"
html_show_sphinx = False
html_copy_source = False


def quickstart(app: Sphinx, page: str, content: list[str]) -> None:
    """Put the README on the quickstart's page, its links pointing at pages; what is no page, such as a spec, loses its link."""
    if page == "quickstart":
        text = re.sub(r"\]\(docs/", "](", (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8"))
        text = re.sub(r"\[([^\]]+)\]\((?:specs/[^)]*|CHANGELOG\.md|LICENSE)\)", r"\1", text)
        content[0] = text.replace("# ptk", "# Quickstart", 1)


def setup(app: Sphinx) -> None:
    """Connect what is done to pages while they are read."""
    app.connect("source-read", quickstart)
