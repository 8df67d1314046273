"""A model's own chat template: from its folder to the text of a prompt, and to the number of its tokens."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ptk.llm.request import Message, Request

__all__ = ["RENDERING", "ChatTemplate", "ChatTemplateError", "prompt_encoder", "read_chat_template", "token_counter"]

# Bumped when the same template and messages would give another prompt: part of a model's identity.
RENDERING = 2

# Some templates write today's date into the prompt. Here the clock stands still, so that equal requests stay equal tomorrow.
STANDING_CLOCK = datetime(2024, 7, 26, tzinfo=UTC)

# Where an unfinished answer ends; cut off after rendering, with whatever the template writes to close a turn.
END_OF_PREFILL = "[ptk-end-of-prefill]"


class ChatTemplateError(ValueError):
    """The template refuses these messages, such as two turns of one role in a row."""


class _Generation(Extension):
    """`{% generation %}` marks assistant turns for training; in a prompt it changes nothing."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it as a variable of instances)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A chat template that compiled, the special tokens that it can name, and all those that the tokenizer has."""

    render_messages: Callable[..., str]
    special_tokens: Mapping[str, str]
    controls: re.Pattern[str] | None = None
    """Finds the special tokens, such as those that end a turn."""

    def render(self, messages: Sequence[Message], prefill: str = "") -> str:
        """Return the prompt: all messages, then the beginning of the assistant's turn, then `prefill`.

        Without messages the prompt is `prefill` alone: plain text that the model continues. A special token that stands in a
        message is written with a blank inside, so that no text can end its turn and begin another. Raises ChatTemplateError where
        the template refuses the messages or does not write the prefill as it is.
        """
        turns = [{"role": message.role, "content": self.defused(message.content)} for message in messages]
        prefill = self.defused(prefill)
        if not turns:
            return prefill
        if prefill:
            turns.append({"role": "assistant", "content": prefill + END_OF_PREFILL})
        try:
            text = self.render_messages(
                messages=turns, tools=None, documents=None, add_generation_prompt=not prefill, **self.special_tokens
            )
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            raise ChatTemplateError(f"the model's chat template refuses the messages: {error}") from error
        if not prefill:
            return text
        start, mark, _ = text.rpartition(END_OF_PREFILL)
        if not mark or not start.endswith(prefill.lstrip()):
            raise ChatTemplateError(
                "the model's chat template changes the last turn, so its answers can't be given a beginning"
            )
        return start

    def defused(self, text: str) -> str:
        """Return `text` with a blank after the first character of what the tokenizer would take for a special token."""
        return text if self.controls is None else self.controls.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)

    def closing(self, messages: Sequence[Message]) -> str:
        """Return what the template writes after an answer to end its turn, such as `<|im_end|>`, without white space behind it.

        Raises ChatTemplateError where the template refuses the messages.
        """
        turns = [{"role": message.role, "content": self.defused(message.content)} for message in messages]
        turns.append({"role": "assistant", "content": END_OF_PREFILL})
        try:
            text = self.render_messages(
                messages=turns, tools=None, documents=None, add_generation_prompt=False, **self.special_tokens
            )
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            raise ChatTemplateError(f"the model's chat template refuses the messages: {error}") from error
        return text.rpartition(END_OF_PREFILL)[2].rstrip()


def read_chat_template(folder: Path) -> ChatTemplate | None:
    """Return the chat template of a model's folder, or None where it has none. Raises ChatTemplateError for a broken one."""
    config = _json(folder / "tokenizer_config.json")
    source = _template_source(folder, config)
    if source is None:
        return None
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = STANDING_CLOCK.strftime
    try:
        template = environment.from_string(source)
    except TemplateError as error:
        raise ChatTemplateError(f"{folder}: the chat template is broken: {error}") from error
    named = _special_tokens({**_json(folder / "special_tokens_map.json"), **config})
    return ChatTemplate(template.render, named, _controls(folder, config, named.values()))


def prompt_encoder(folder: Path) -> Callable[[Sequence[Request]], list[list[int]]] | None:
    """Return a function from requests to their prompts' tokens, or None where the folder lacks tokenizer or template.

    A request that the template refuses has no tokens: it is answered with an error and costs nothing.
    """
    template = read_chat_template(folder)
    if template is None or not (folder / "tokenizer.json").is_file():
        return None
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def encode(requests: Sequence[Request]) -> list[list[int]]:
        found = []
        for request in requests:
            try:
                text = template.render(request.messages, request.prefill)
            except ChatTemplateError:
                text = ""
            found.append(tokenizer.encode(text, add_special_tokens=not request.messages).ids if text else [])
        return found

    return encode


def token_counter(folder: Path) -> Callable[[Sequence[Request]], list[int]] | None:
    """Return a function from requests to their prompts' token counts, or None where the folder lacks tokenizer or template."""
    encode = prompt_encoder(folder)
    return None if encode is None else lambda requests: [len(tokens) for tokens in encode(requests)]


def _template_source(folder: Path, config: Mapping[str, Any]) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    source = _json(folder / "chat_template.json").get("chat_template") or config.get("chat_template")
    if isinstance(source, list):
        named = {str(entry["name"]): str(entry["template"]) for entry in source}
        return named.get("default")
    return source if isinstance(source, str) else None


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    found = {}
    for name, value in config.items():
        token = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(token, str):
            found[name] = token
    return found


def _controls(folder: Path, config: Mapping[str, Any], named: Iterable[str]) -> re.Pattern[str] | None:
    """Return what finds a special token in a text, the longest first; None where the tokenizer has none."""
    listed = [
        *(config.get("added_tokens_decoder") or {}).values(),
        *(_json(folder / "tokenizer.json").get("added_tokens") or []),
    ]
    found = {*named, *(str(token["content"]) for token in listed if token.get("special"))}
    written = sorted((token for token in found if len(token) > 1), key=lambda token: (-len(token), token))
    return re.compile("|".join(map(re.escape, written))) if written else None


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    content = json.loads(file.read_text(encoding="utf-8"))
    return content if isinstance(content, dict) else {}


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)
