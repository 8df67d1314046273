"""The pages' commands and examples are run, and their tables are compared with the code.

On a page, a fenced block is one of these, and the blocks of a page run in their order in one folder:

- `title=PATH` after the language: the block is written to that file,
- `console`: lines that begin with `$ ` are run; lines below one are its output, where `...` stands for anything. `exit=2` after the
  language is the exit code of the block's last command; else every command ends with 0,
- `python`: run,
- `text`: shown, not run,
- `no-run: REASON` after the language: not run, for that reason.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydantic import BaseModel

from ptk.llm.request import Sampling
from ptk.operator import find_operator, operator_names
from ptk.ops.drop_near_duplicates import Preference
from ptk.ops.read_pairs import Fields, Hub, Voted
from ptk.ops.split_rows import NearDuplicates
from ptk.publish.settings import Publish
from ptk.report.settings import ReportSettings
from ptk.spec import Output, SpecFile, backend_names, find_backend, load_spec

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LANGUAGE = ROOT / "docs" / "spec-language.md"
OPERATORS = ROOT / "docs" / "operators"


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block of a page."""

    page: str
    line: int
    language: str
    title: str | None
    exit_code: int
    not_run: str | None
    text: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    """Yield the fenced blocks of a page. Fails on one that says neither how it is run nor why it is not."""
    lines = page.read_text(encoding="utf-8").splitlines()
    number = 0
    while number < len(lines):
        opened = re.fullmatch(r"(\s*)```(\w*)\s*(.*)", lines[number])
        number += 1
        if opened is None:
            continue
        first, place = number, f"{page.name}:{number}"
        while lines[number].strip() != "```":
            number += 1
        indent, language, info = opened.groups()
        text = "\n".join(line.removeprefix(indent) for line in lines[first:number]) + "\n"
        number += 1
        info, _, reason = info.partition("no-run")
        assert not _ or reason.removeprefix(":").strip(), f"{place}: no-run needs a reason, as in no-run: needs a GPU"
        settings = dict(item.partition("=")[::2] for item in info.split())
        assert set(settings) <= {"title", "exit"}, f"{place}: what is {info}?"
        block = Block(
            page.name,
            first,
            language,
            settings.get("title"),
            int(settings.get("exit", 0)),
            reason.removeprefix(":").strip() or None,
            text,
        )
        assert language, f"{place}: a fenced block needs a language"
        is_handled = block.title or block.not_run or language in ("console", "python", "text")
        assert is_handled, f"{place}: a {language} block needs title=PATH or no-run: REASON"
        yield block


class Shell:
    """A folder in which a page's blocks run, one after another; `cd` holds for what follows."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "page"
        self.folder.mkdir()
        tools = folder / "bin"
        tools.mkdir()
        (tools / "ptk").write_text(
            f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -c "from ptk.cli import main; main()" "$@"\n'
        )
        (tools / "pip").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m pip "$@"\n')
        (tools / "python").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
        for tool in tools.iterdir():
            tool.chmod(0o755)
        self._where = folder / "where"
        self._environment = {
            **os.environ,
            "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
            "PTK_CACHE": str(folder / "cache"),
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_NO_INDEX": "1",
        }

    def run(self, block: Block) -> None:
        """Do what a block says. Fails where its output or its exit code is another."""
        if block.title:
            path = self.folder / block.title
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, encoding="utf-8")
        elif block.not_run or block.language == "text":
            return
        elif block.language == "python":
            done = self._done([sys.executable, "-c", block.text])
            assert done.returncode == block.exit_code, f"{block.place}:\n{done.stdout}"
        else:
            self._run_console(block)

    def _run_console(self, block: Block) -> None:
        commands = re.split(r"^\$ ", block.text, flags=re.MULTILINE)
        assert not commands[0], f"{block.place}: a console block begins with `$ ` and a command"
        for number, part in enumerate(commands[1:], start=1):
            command, _, expected = part.partition("\n")
            done = self._done(["bash", "-c", f"{command}\nstatus=$?; pwd >{shlex.quote(str(self._where))}; exit $status"])
            wanted = block.exit_code if number == len(commands) - 1 else 0
            shown = f"{block.place}: $ {command}\n{done.stdout}"
            assert done.returncode == wanted, shown
            is_as_shown = not expected.strip() or bool(pattern(expected).fullmatch(trimmed(done.stdout)))
            assert is_as_shown, f"{shown}\n--- the page says:\n{expected}"
            self.folder = Path(self._where.read_text().strip())

    def _done(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=self.folder,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            check=False,
        )


def trimmed(text: str) -> str:
    return "".join(line.rstrip() + "\n" for line in text.strip("\n").splitlines())


def pattern(expected: str) -> re.Pattern[str]:
    """Return what the shown output stands for: `...` alone on a line for any lines, within a line for any text of the line.

    Where `...` stands within a line, blanks may be fewer or more: what it stands for has another width.
    """
    lines = []
    for line in trimmed(expected).splitlines():
        if line.strip() == "...":
            lines.append(r"(?:.*\n)*?")
        elif "..." in line:
            lines.append(re.sub(r"(?:\\ )+", " +", re.escape(line)).replace(r"\.\.\.", ".*?") + r"\n")
        else:
            lines.append(re.escape(line) + r"\n")
    return re.compile("".join(lines))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_of_a_page_runs_and_gives_what_the_page_shows(
    page: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if any("publish" in block.text for block in blocks(page)):
        request.getfixturevalue("hub")  # its commands then talk to a stand-in
    shell = Shell(tmp_path)
    for block in blocks(page):
        shell.run(block)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_spec_that_needs_a_model_is_checked_though_it_is_not_run(page: Path, tmp_path: Path) -> None:
    for block in blocks(page):
        if block.not_run and block.language == "yaml" and re.search(r"^ptk: 1$", block.text, re.MULTILINE):
            specs = Path(shutil.copytree(ROOT / "specs", tmp_path / f"line-{block.line}"))
            (specs / "shown.yaml").write_text(block.text, encoding="utf-8")
            load_spec(specs / "shown.yaml")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_link_inside_the_project_leads_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    missing = []
    for link in links:
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            missing.append(link)
    assert missing == []


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_make_command_on_a_page_is_in_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {name for page in PAGES for name in re.findall(r"(?:`|^\$ )make ([a-z-]+)", page.read_text(), re.MULTILINE)}
    assert {"quickstart", "test"} <= named <= targets


def test_the_readme_shows_a_run_of_the_quickstart() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = re.search(r"<!-- quickstart-output -->\n```text\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert shown
    assert re.search(r"^committed  quickstart/personas@v1 ", shown.group(1), re.MULTILINE)


def section(page: Path, heading: str) -> str:
    """Return the text of a page under a heading, up to the next heading."""
    text = page.read_text(encoding="utf-8")
    found = re.search(rf"^#+ {re.escape(heading)}$", text, re.MULTILINE)
    assert found, f"{page.name} has no heading '{heading}'"
    rest = text[found.end() :]
    return re.split(r"^#+ ", rest, maxsplit=1, flags=re.MULTILINE)[0]


def listed_options(text: str) -> list[str]:
    """Return the names in the first column of a section's tables."""
    return re.findall(r"^\| `([a-z0-9_.]+)`", text, re.MULTILINE)


def options(model: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]


def test_the_overview_lists_every_operator_once() -> None:
    found = re.findall(r"^\| \[`([a-z0-9_]+)`\]\(operators/\1\.md\)", section(LANGUAGE, "Operators"), re.MULTILINE)
    assert sorted(found) == operator_names()


@pytest.mark.parametrize("name", operator_names())
def test_the_page_of_an_operator_lists_every_option(name: str) -> None:
    page = OPERATORS / f"{name}.md"
    assert listed_options(section(page, name)) == options(find_operator(name).params)


@pytest.mark.parametrize("name", operator_names())
def test_the_page_of_an_operator_has_an_example_that_runs(name: str) -> None:
    trains = name in (
        "merge_adapter",
        "tailor",
    )  # which takes longer than the tests of all pages; its own tests run such a spec
    run = [block.text for block in blocks(OPERATORS / f"{name}.md") if trains or not block.not_run]
    assert any(re.search(rf"op: {name}\b", text) for text in run)
    assert any(text.startswith("$ ptk run") for text in run)


@pytest.mark.parametrize("name", backend_names())
def test_the_language_page_lists_every_option_of_a_backend(name: str) -> None:
    assert listed_options(section(LANGUAGE, f"Backend `{name}`")) == options(find_backend(name).settings)


@pytest.mark.parametrize(
    ("page", "heading", "model"),
    [
        (LANGUAGE, "Top level", SpecFile),
        (LANGUAGE, "Sampling", Sampling),
        (LANGUAGE, "Outputs", Output),
        (LANGUAGE, "Publishing", Publish),
        (LANGUAGE, "Report", ReportSettings),
        (OPERATORS / "read_pairs.md", "Fields of a record", Fields),
        (OPERATORS / "read_pairs.md", "Values of a vote", Voted),
        (OPERATORS / "read_pairs.md", "Datasets of the Hub", Hub),
        (OPERATORS / "drop_near_duplicates.md", "Preferences", Preference),
        (OPERATORS / "split_rows.md", "Nearly the same", NearDuplicates),
    ],
)
def test_a_table_of_keys_lists_every_key(page: Path, heading: str, model: type[BaseModel]) -> None:
    assert listed_options(section(page, heading)) == options(model)


def test_a_block_that_is_neither_run_nor_marked_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    for text in ("```yaml\nptk: 1\n```\n", "```\nwhat\n```\n", "```bash\nmake test\n```\n", "```bash no-run\nmake test\n```\n"):
        page.write_text(text)
        with pytest.raises(AssertionError, match=r"page\.md:1"):
            list(blocks(page))


def test_output_that_differs_from_the_page_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```console\n$ printf 'one\\ntwo 2\\nthree\\n'\n...\ntwo ...\nfour\n```\n")
    shell = Shell(tmp_path)
    with pytest.raises(AssertionError, match="the page says"):
        for block in blocks(page):
            shell.run(block)
