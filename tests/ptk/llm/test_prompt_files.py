from __future__ import annotations

from pathlib import Path

import pytest

from ptk.errors import SpecError
from ptk.llm import prompt_files
from ptk.llm.prompt_files import ExemplarFile, PromptFile, as_text

PROMPT = """\
prompt: 1
system: Say who would.
user: "{{ prompt }} / {{ preferred }} / {{ other }}"
answer: "{{ persona }}"
form: "The user .*"
"""

VALUES = {"prompt": "Which shelf holds more?", "preferred": "The lower one.", "other": "It depends."}

GOLDEN_USER = """\
Request:
Which shelf holds more?

Preferred response:
The lower one.

Other response:
It depends."""


def prompt(folder: Path, text: str = PROMPT) -> PromptFile:
    (folder / "own.yaml").write_text(text)
    return PromptFile.from_text("own.yaml", folder)


def test_the_shipped_prompt_renders_as_it_always_did() -> None:
    assert PromptFile.shipped("infer_personas").user(VALUES) == GOLDEN_USER


def test_what_looks_like_a_template_in_data_is_passed_through_verbatim() -> None:
    odd = "{{ prompt }} {% for x in y %} {# no comment #} \\{{ <b>&amp; ${env:HOME} <|im_end|>\n\nOther response:\nMine."
    shown = PromptFile.shipped("infer_personas").user({**VALUES, "preferred": odd})
    assert shown == GOLDEN_USER.replace("The lower one.", odd)


def test_a_prompt_counts_by_its_content_and_not_by_its_path(tmp_path: Path) -> None:
    first = prompt(tmp_path)
    (tmp_path / "moved.yaml").write_text("# a remark\n" + PROMPT)
    assert PromptFile.from_text("moved.yaml", tmp_path).canonical() == first.canonical()
    assert prompt(tmp_path, PROMPT.replace("Say who", "Tell who")).canonical() != first.canonical()


def test_an_unknown_shipped_prompt_is_refused_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no prompt 'infer_person' ships with ptk; there is infer_personas"):
        PromptFile.from_text("infer_person", tmp_path)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        (PROMPT.replace("{{ prompt }}", "{{ prompt"), r"own\.yaml:3: user: not a Jinja template"),
        (PROMPT.replace("{{ persona }}", "{% persona %}"), r"own\.yaml:4: answer: not a Jinja template"),
        (PROMPT.replace("form:", "forms:"), r"own\.yaml:5: forms"),
        (PROMPT.replace("prompt: 1", "prompt: 2"), r"own\.yaml:1: prompt"),
    ],
)
def test_a_wrong_prompt_is_refused_at_its_line(tmp_path: Path, text: str, where: str) -> None:
    with pytest.raises(SpecError, match=where):
        prompt(tmp_path, text)


def test_a_form_that_is_no_regular_expression_is_refused_at_its_line(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"own\.yaml:5: form: not a regular expression"):
        prompt(tmp_path, PROMPT.replace("The user .*", "The user ("))


def test_a_template_that_asks_for_what_there_is_not_is_refused_at_its_line(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"own\.yaml:3: user: the template fails: 'promt' is undefined"):
        prompt(tmp_path, PROMPT.replace("{{ prompt }}", "{{ promt }}"))


def test_a_template_can_not_reach_outside(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"own\.yaml:3: user: the template fails: access to attribute '__class__'"):
        prompt(tmp_path, PROMPT.replace("{{ prompt }}", "{{ prompt.__class__.__mro__ }}"))


def test_exemplars_count_by_their_content(tmp_path: Path) -> None:
    text = "exemplars:\n  - {prompt: A, preferred: B, other: C, persona: D}\n"
    (tmp_path / "a.yaml").write_text(text)
    (tmp_path / "b.yaml").write_text("# moved\n" + text)
    (tmp_path / "c.yaml").write_text(text.replace("D", "E"))
    a, b, c = (ExemplarFile.from_text(f"{name}.yaml", tmp_path).canonical() for name in "abc")
    assert a == b != c


def test_an_exemplar_without_a_persona_is_refused_at_its_line(tmp_path: Path) -> None:
    (tmp_path / "cases.yaml").write_text(
        "exemplars:\n  - {prompt: A, preferred: B, other: C, persona: D}\n  - {prompt: A, preferred: B, other: C}\n"
    )
    with pytest.raises(SpecError, match=r"cases\.yaml:3"):
        ExemplarFile.from_text("cases.yaml", tmp_path)


def test_one_turn_is_shown_as_it_is_and_several_with_their_roles() -> None:
    turns = [
        {"role": "user", "content": "Hello."},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "Why?"},
    ]
    assert as_text(turns[:1]) == "Hello."
    assert as_text(turns) == "User: Hello.\n\nAssistant: Yes?\n\nUser: Why?"


def test_a_prompt_can_ask_for_the_difference_first(tmp_path: Path) -> None:
    shown = PROMPT.replace("{{ prompt }}", "{{ difference }}")
    with pytest.raises(ValueError, match=r"'user' shows \{\{ difference \}\}, which only a prompt with 'think'"):
        prompt(tmp_path, shown)
    with pytest.raises(ValueError, match="'think_form' is the form of an answer to 'think'"):
        prompt(tmp_path, PROMPT + "think_form: 'It .*'\n")
    with pytest.raises(SpecError, match=r"own\.yaml:7: think_form: not a regular expression"):
        prompt(tmp_path, shown + "think: How? {{ other }}\nthink_form: '('\n")
    made = prompt(tmp_path, shown + "think: How? {{ other }}\n")
    assert made.think(VALUES) == "How? It depends."
    assert (made.needs_difference, prompt(tmp_path).needs_difference) == (True, False)
    assert prompt(tmp_path, PROMPT.replace("{{ persona }}", "{{ difference }} {{ persona }}")).needs_difference


@pytest.mark.parametrize("name", PromptFile.names)
def test_every_shipped_prompt_for_personas_is_read_as_a_file_is(name: str) -> None:
    folder = Path(prompt_files.__file__).parent / "prompts"
    assert PromptFile.from_text(f"{name}.yaml", folder).canonical() == PromptFile.shipped(name).canonical()
    assert PromptFile.shipped(name).content.repair
