"""Rows as the tokens that a trainer learns from: made as when the model answers, cut to a length, and every cut counted."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from ptk.errors import PtkError
from ptk.llm.chat_template import ChatTemplate, ChatTemplateError, read_chat_template
from ptk.llm.model_files import read_json_file
from ptk.llm.request import Message
from ptk.operator import DETAIL, KEY, REJECT
from ptk.text import text_of
from ptk.train.turns import UnfitTurns, prompt_turns, response_text

__all__ = ["RowTokens", "cuts", "responses_of", "rows_digest", "training_rows"]

_AT_ONCE = 4_096
_IDS = pl.List(pl.Int32)
_SHOWN = 3
"""Rows that are named where many are cut."""


@dataclass(frozen=True, slots=True)
class RowTokens:
    """A base model's tokenizer and chat template, as far as training rows need them."""

    encode: Callable[[Sequence[str], bool], list[list[int]]]
    """`encode(texts, special)` returns the tokens of texts, with the tokenizer's own first and last ones or without."""
    template: ChatTemplate | None
    end: int
    """The token that ends an answer of plain text."""
    pad: int

    @classmethod
    def read(cls, folder: Path, reference: str) -> RowTokens:
        """Read a model's tokenizer. Raises PtkError where it has none, or no token that ends a text."""
        if not (folder / "tokenizer.json").is_file():
            raise PtkError(f"model '{reference}' ({folder}) has no tokenizer.json; save its tokenizer as a fast one beside it")
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        config = {**read_json_file(folder / "special_tokens_map.json"), **read_json_file(folder / "tokenizer_config.json")}
        named = {name: _token(config.get(name)) for name in ("eos_token", "pad_token")}
        ids = {name: tokenizer.token_to_id(token) for name, token in named.items() if token is not None}
        if (end := ids.get("eos_token")) is None:
            raise PtkError(
                f"model '{reference}' ({folder}) names no eos_token that its tokenizer knows, so no answer would end; set it in "
                "tokenizer_config.json"
            )
        # Padding is masked everywhere, so that the end token serves where there is none of its own.
        pad = ids.get("pad_token")
        try:
            template = read_chat_template(folder)
        except ChatTemplateError as error:
            raise PtkError(str(error)) from error

        def encode(texts: Sequence[str], special: bool) -> list[list[int]]:
            return [item.ids for item in tokenizer.encode_batch(list(texts), add_special_tokens=special)]

        return cls(encode, template, end, end if pad is None else pad)

    def texts(self, turns: tuple[Message, ...], plain: str | None) -> tuple[str, str]:
        """Return the text of a prompt and what ends its answer. Raises UnfitTurns."""
        if plain is not None:
            return (plain if self.template is None else self.template.defused(plain)), ""
        if self.template is None:
            raise UnfitTurns("no_chat_template", "the model has no chat template, and the prompt has turns")
        try:
            return self.template.render(turns), self.template.closing(turns)
        except ChatTemplateError as error:
            raise UnfitTurns("refused", str(error)) from error

    def answer(self, text: str) -> str:
        """Return an answer in which no text is taken for a special token."""
        return text if self.template is None else self.template.defused(text)


def _token(value: Any) -> str | None:
    token = value.get("content") if isinstance(value, dict) else value
    return token if isinstance(token, str) else None


def responses_of(method: str, schema: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the columns that a method's responses are taken from. Raises ValueError where rows lack them."""
    if "prompt" not in schema:
        raise ValueError("there is no column 'prompt'; tailoring_records makes records of pairs")
    if method in ("sft", "kto") and "completion" in schema:
        if method == "kto" and schema.get("label") != pl.Boolean:
            raise ValueError("`method: kto` needs a column 'label', true or false, beside 'completion'")
        return ("completion",)
    wanted = ("chosen",) if method == "sft" else ("chosen", "rejected")
    for name in wanted:
        if name not in schema:
            raise ValueError(
                f"there is no column '{name}', which `method: {method}` learns from; tailoring_records makes records"
            )
    return wanted


@dataclass(slots=True)
class _Row:
    key: str
    reject: tuple[str, str] | None = None
    prompt: str = ""
    special: bool = False
    answers: tuple[str, ...] = ()
    ends: bool = False
    """Whether the answers end with the end token."""
    persona: str | None = None


def training_rows(frame: pl.DataFrame, method: str, tokens: RowTokens, max_length: int, *, cut: bool = True) -> pl.DataFrame:
    """Return a row for each row of `frame`, in its order, with the tokens that a method learns from.

    Columns: `_key`; `prompt_ids` and, for each of `responses_of`, `NAME_ids`, all together at most `max_length` tokens; `NAME_whole`,
    how many tokens prompt and response had before; `_reject` and `_detail`. With `cut`, what is too long loses the end of its
    response, else it is rejected; a prompt that leaves no room for a response is rejected always.
    """
    sides = responses_of(method, frame.schema)
    schema: dict[str, Any] = {KEY: frame.schema[KEY], "prompt_ids": _IDS, **{f"{side}_ids": _IDS for side in sides}}
    schema |= {**{f"{side}_whole": pl.Int32 for side in sides}, REJECT: pl.String, DETAIL: pl.String}
    for name in ("prompt", *sides):
        text_of(name, frame.schema[name])  # raises where it is neither text nor turns
    parts = [
        pl.from_dicts(list(_tokenised(part, sides, tokens, max_length, cut=cut)), schema=schema)
        for part in frame.iter_slices(_AT_ONCE)
        if part.height
    ]
    return pl.concat(parts) if parts else pl.DataFrame(schema=schema)


def _tokenised(
    frame: pl.DataFrame, sides: Sequence[str], tokens: RowTokens, max_length: int, *, cut: bool
) -> Iterator[dict[str, Any]]:
    rows = [_texts(row, sides, tokens) for row in frame.select(KEY, "prompt", *sides, *_persona(frame)).iter_rows(named=True)]
    whole = [row for row in rows if row.reject is None]
    prompts: dict[int, list[int]] = {}
    for special in (True, False):
        chosen = [row for row in whole if row.special is special]
        for row, ids in zip(chosen, tokens.encode([row.prompt for row in chosen], special), strict=True):
            prompts[id(row)] = ids
    answers = iter(tokens.encode([answer for row in whole for answer in row.answers], False))
    personas = dict(zip(map(id, whole), map(len, tokens.encode([row.persona or "" for row in whole], False)), strict=True))
    for row in rows:
        if row.reject is not None:
            yield {KEY: row.key, REJECT: row.reject[0], DETAIL: row.reject[1]}
            continue
        prompt = prompts[id(row)]
        found = [[*next(answers), *([tokens.end] if row.ends else [])] for _ in sides]
        reject = _unfit(prompt, found, personas[id(row)], max_length, cut=cut)
        if reject is not None:
            yield {KEY: row.key, REJECT: reject[0], DETAIL: reject[1]}
            continue
        room = max_length - len(prompt)
        yield {
            KEY: row.key,
            "prompt_ids": prompt,
            **{f"{side}_ids": answer[:room] for side, answer in zip(sides, found, strict=True)},
            **{f"{side}_whole": len(prompt) + len(answer) for side, answer in zip(sides, found, strict=True)},
        }


def _persona(frame: pl.DataFrame) -> tuple[str, ...]:
    return ("persona",) if frame.schema.get("persona") == pl.String else ()


def _texts(row: Mapping[str, Any], sides: Sequence[str], tokens: RowTokens) -> _Row:
    try:
        plain = row["prompt"] if isinstance(row["prompt"], str) else None
        if plain is not None and not plain.strip():
            raise UnfitTurns("empty_prompt", "'prompt' is empty")
        prompt, end = tokens.texts(() if plain is not None else prompt_turns(row["prompt"]), plain)
        answers = tuple(tokens.answer(response_text(row[side], side)) + end for side in sides)
    except UnfitTurns as unfit:
        return _Row(row[KEY], (unfit.reason, str(unfit)))
    return _Row(row[KEY], None, prompt, plain is not None, answers, not end, row.get("persona"))


def _unfit(prompt: list[int], answers: list[list[int]], persona: int, max_length: int, *, cut: bool) -> tuple[str, str] | None:
    """Return reason and detail where a row can't be learned from."""
    if persona >= max_length:
        return "persona_too_long", f"the persona alone has {persona} tokens, and max_length is {max_length}"
    if len(prompt) >= max_length:
        return "prompt_too_long", f"the prompt has {len(prompt)} tokens, and max_length is {max_length}"
    longest = len(prompt) + max(map(len, answers))
    if longest > max_length and not cut:
        return "too_long", f"prompt and response have {longest} tokens, and max_length is {max_length}"
    room = max_length - len(prompt)
    if len(answers) == 2 and answers[0][:room] == answers[1][:room]:
        return "same_responses", f"the two responses are equal in the {room} tokens that there is room for"
    return None


def cuts(rows: pl.DataFrame, max_length: int) -> dict[str, Any]:
    """Return how many of the rows that are learned from lose the end of a response to `max_length`, and how much of it."""
    kept = rows.filter(pl.col(REJECT).is_null())
    sides = [name.removesuffix("_whole") for name in rows.columns if name.endswith("_whole")]
    longest = pl.max_horizontal(f"{side}_whole" for side in sides)
    lost = pl.sum_horizontal((pl.col(f"{side}_whole") - max_length).clip(lower_bound=0) for side in sides)
    answers = pl.sum_horizontal(pl.col(f"{side}_whole") - pl.col("prompt_ids").list.len() for side in sides)
    told = kept.select(
        rows=pl.len(),
        cut_rows=(longest > max_length).sum(),
        median_tokens=longest.median(),
        p95_tokens=longest.quantile(0.95, "nearest"),
        longest_tokens=longest.max(),
        cut_response_tokens=lost.sum() / answers.sum(),
    ).row(0, named=True)
    far = kept.select(KEY, tokens=longest).filter(pl.col("tokens") > max_length)
    examples = [list(row) for row in far.sort("tokens", KEY, descending=[True, False]).head(_SHOWN).iter_rows()]
    share = told["cut_rows"] / told["rows"] if told["rows"] else 0.0
    return {"max_length": max_length, **told, "cut_share": share, "longest": examples}


def rows_digest(rows: pl.DataFrame) -> str:
    """Return a SHA-256 of tokens and keys that does not depend on the rows' order."""
    names = [name for name in rows.columns if name.endswith("_ids") or name in (KEY, "part", "label")]
    content = hashlib.sha256()
    for row in rows.select(sorted(names)).sort(KEY).iter_rows():
        content.update(repr(row).encode())
    return f"sha256:{content.hexdigest()}"
