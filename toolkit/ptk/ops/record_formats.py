"""Forms of preference data: a record -> pairs of a prompt and two responses, or why it holds none."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import polars as pl
from pydantic import Field

from ptk.params import Params

__all__ = [
    "FORMATS",
    "TURNS",
    "Fields",
    "Format",
    "FormatName",
    "FormatOptions",
    "Made",
    "MalformedError",
    "Voted",
    "field_of",
    "kind_of",
    "make_format",
    "turns_of",
]

TURNS: pl.DataType = pl.List(pl.Struct({"role": pl.String, "content": pl.String}))
ROLES = ("system", "user", "assistant")

FormatName = Literal["columns", "hh_transcripts", "ratings", "scores", "votes", "terms"]
Case = Literal["flag", "reject", "keep"]
Turns = list[tuple[str, str]]
"""(role, text) of every turn."""
Made = tuple[Any, ...]
"""One row: turns of prompt, chosen and rejected (of the prompt alone for terms), then the format's own values."""


class MalformedError(Exception):
    """A record that holds no pair: a short reason, and that reason in words."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


class Fields(Params):
    """Which field of a record holds what; `data.question` is the field `question` of the object in `data`."""

    prompt: str | None = Field("prompt", description="The prompt; null: both responses are whole conversations that share it.")
    chosen: str = Field("chosen", description="The preferred response, or a transcript that ends with it.")
    rejected: str = Field("rejected", description="The other response, or a transcript that ends with it.")
    responses: str = Field("responses", description="The list of responses to a prompt.")
    text: str = Field("text", description="In an item of `responses`, its text.")
    score: str = Field("score", description="In an item of `responses`, its score.")
    scores: str | None = Field(None, description="A list of scores beside `responses`, whose items are then texts.")
    response_1: str = Field("response_1", description="The first response.")
    response_2: str = Field("response_2", description="The second response.")
    score_1: str = Field("score_1", description="Score of the first response.")
    score_2: str = Field("score_2", description="Score of the second response.")
    votes: str | tuple[str, ...] = Field(
        "votes", description="A field with a vote, a list or an object of votes; or several fields."
    )


class Voted(Params):
    """Which values of a vote mean what."""

    response_1: tuple[str | int | bool, ...] = Field((1,), description="Votes for the first response.")
    response_2: tuple[str | int | bool, ...] = Field((2,), description="Votes for the second response.")
    tie: tuple[str | int | bool, ...] = Field((0,), description="Votes for neither.")


FORMATS: Mapping[FormatName, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "columns": (("prompt", "chosen", "rejected"), ()),
    "hh_transcripts": (
        ("chosen", "rejected"),
        ("on_marker_inside", "on_empty_turn", "on_early_split", "on_role_order"),
    ),
    "ratings": (("prompt", "responses", "text", "score", "scores"), ("pairs", "minimum_margin")),
    "scores": (("prompt", "response_1", "response_2", "score_1", "score_2"), ("minimum_margin",)),
    "votes": (("prompt", "response_1", "response_2", "votes"), ("values",)),
    "terms": (("prompt",), ()),
}
"""Format -> its fields and its options."""


class FormatOptions(Params):
    """Settings that say how a record becomes pairs."""

    format: FormatName = Field("columns", description="How a record holds its pair: one of six forms.")
    fields: Fields = Field(Fields(), description="Names of the fields that hold prompt, responses and what tells them apart.")
    values: Voted = Field(Voted(), description="`votes`: which values of a vote mean response 1, response 2 and a tie.")
    pairs: Literal["best_vs_worst", "best_vs_rest", "all"] = Field(
        "best_vs_worst", description="`ratings`: which of the responses to a prompt are paired."
    )
    minimum_margin: float = Field(
        0.0, ge=0.0, allow_inf_nan=False, description="`ratings`, `scores`: least difference of two scores that makes a pair."
    )
    on_marker_inside: Case = Field(
        "flag", description="`hh_transcripts`: what to do where a turn's text holds a speaker's mark."
    )
    on_empty_turn: Case = Field("reject", description="`hh_transcripts`: what to do where a turn has no text.")
    on_early_split: Case = Field("flag", description="`hh_transcripts`: what to do where two transcripts part early.")
    on_role_order: Case = Field("flag", description="`hh_transcripts`: what to do where a speaker has two turns in a row.")


@dataclass(frozen=True, slots=True)
class Format:
    """How a record becomes rows."""

    own: Mapping[str, pl.DataType]
    """Columns beside the turns."""
    whole: tuple[str, ...]
    """Fields that need not be kept, for the rows hold what is in them."""
    needed: tuple[str, ...]
    """Fields that some record must have."""
    rows: Callable[[dict[str, Any]], Sequence[Made]]
    """Raises MalformedError."""
    turns: tuple[str, ...] = ("prompt", "chosen", "rejected")
    key: str = "pair_id"
    flags: str | None = None


def make_format(options: FormatOptions, *, implicit: bool = False) -> Format:
    """Return how a record becomes rows under these settings; `implicit`: `columns` without a prompt."""
    fields = options.fields
    if options.format == "hh_transcripts":
        return Format(
            {"flags": pl.List(pl.String())}, *_same(fields.chosen, fields.rejected), _transcripts(options), flags="flags"
        )
    if options.format == "ratings":
        names = _present(fields.prompt, fields.responses, fields.scores)
        return Format(dict.fromkeys(_SCORED, pl.Float64()), *_same(*names), _ratings(options))
    if options.format == "scores":
        names = _present(fields.prompt, fields.response_1, fields.response_2, fields.score_1, fields.score_2)
        own = dict.fromkeys((*_SCORED, "score_ratio"), pl.Float64())
        return Format(own, *_same(*names), _scores(options))
    if options.format == "votes":
        votes = (fields.votes,) if isinstance(fields.votes, str) else fields.votes
        names = _present(fields.prompt, fields.response_1, fields.response_2, *votes)
        own = dict.fromkeys(("margin", "agreement"), pl.Float64())
        return Format(own, *_same(*names), _votes(options, votes))
    if options.format == "terms":
        prompt = _prompt(fields)
        read = field_of(prompt)
        return Format(
            {},
            *_same(prompt),
            lambda record: [(asked(turns_of(read(record), prompt, "user"), prompt),)],
            turns=("prompt",),
            key="prompt_id",
        )
    if implicit or fields.prompt is None:
        return Format({}, *_same(fields.chosen, fields.rejected), _conversations(fields))
    return Format({}, *_same(fields.prompt, fields.chosen, fields.rejected), _columns(fields))


_SCORED = ("margin", "chosen_score", "rejected_score")


def _same(*names: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return names, names


def _present(*names: str | None) -> list[str]:
    return [name for name in names if name is not None]


def _prompt(fields: Fields) -> str:
    assert fields.prompt is not None  # the settings are checked
    return fields.prompt


# ---- values ----


def kind_of(value: Any) -> str:
    """Return what kind of thing a value is, in words."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


_MISSING = object()


def field_of(name: str) -> Callable[[Any], Any]:
    """Return a function that gives a record's field; it raises MalformedError where there is none, or it is null.

    A name with dots is a field of that very name, else it leads into objects, and by number into lists.
    """
    parts = name.split(".")

    def read(record: Any) -> Any:
        value = record.get(name, _MISSING)
        if value is _MISSING and len(parts) > 1:
            value = walk(record, parts)
        if value is None or value is _MISSING:
            raise MalformedError("missing_field", f"field '{name}' is {'null' if value is None else 'missing'}")
        return value

    return read


def walk(value: Any, parts: Sequence[str]) -> Any:
    for part in parts:
        if isinstance(value, dict):
            value = value.get(part, _MISSING)
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            return _MISSING
    return value


def has_field(record: Any, name: str) -> bool:
    """Return whether a record has a field, be it null."""
    return name in record or ("." in name and walk(record, name.split(".")) is not _MISSING)


def turns_of(value: Any, field: str, role: str) -> Turns:
    """Return text, or a list of turns, as turns. Raises MalformedError."""
    if isinstance(value, str):
        turns = [(role, value)]
    elif isinstance(value, list):
        turns = []
        for turn in value:
            if not isinstance(turn, dict) or not isinstance(turn.get("content"), str) or turn.get("role") not in ROLES:
                raise MalformedError("wrong_type", f"field '{field}': a turn is {{role: {' | '.join(ROLES)}, content: text}}")
            turns.append((turn["role"], turn["content"]))
    else:
        raise MalformedError("wrong_type", f"field '{field}' is {kind_of(value)}, not text or a list of turns")
    if not turns or any(not content or content.isspace() for _, content in turns):
        raise MalformedError("empty_text", f"field '{field}' is empty")
    return turns


def asked(turns: Turns, field: str) -> Turns:
    """Return a prompt's turns. Raises MalformedError where the last is not the user's."""
    if turns[-1][0] != "user":
        raise MalformedError("wrong_roles", f"the last turn of '{field}' is the {turns[-1][0]}'s, not the user's")
    return turns


def _number(value: Any, field: str) -> float:
    number: float | None = None
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        number = float(value)
    elif isinstance(value, str):
        try:
            number = float(value) if "_" not in value else None
        except ValueError:
            number = None
    if number is None:
        what = f"'{value[:40]}'" if isinstance(value, str) else kind_of(value)
        raise MalformedError("wrong_type", f"field '{field}' is {what}, not a number")
    if not math.isfinite(number):
        raise MalformedError("not_finite", f"field '{field}' is {number}, not a finite number")
    return number


# ---- columns ----


def _columns(fields: Fields) -> Callable[[dict[str, Any]], Sequence[Made]]:
    names = (_prompt(fields), fields.chosen, fields.rejected)
    prompt, chosen, rejected = (field_of(name) for name in names)

    def rows(record: dict[str, Any]) -> Sequence[Made]:
        turns = (
            turns_of(prompt(record), names[0], "user"),
            turns_of(chosen(record), names[1], "assistant"),
            turns_of(rejected(record), names[2], "assistant"),
        )
        asked(turns[0], names[0])
        return [turns]

    return rows


def _conversations(fields: Fields) -> Callable[[dict[str, Any]], Sequence[Made]]:
    chosen, rejected = field_of(fields.chosen), field_of(fields.rejected)

    def side(value: Any, name: str) -> Turns:
        if not isinstance(value, list):
            raise MalformedError("wrong_type", f"field '{name}' is {kind_of(value)}, not a conversation: a list of turns")
        turns = turns_of(value, name, "assistant")
        if turns[-1][0] != "assistant":
            raise MalformedError("wrong_roles", f"the last turn of '{name}' is the {turns[-1][0]}'s, not the assistant's")
        return turns

    def rows(record: dict[str, Any]) -> Sequence[Made]:
        left = side(chosen(record), fields.chosen)
        right = side(rejected(record), fields.rejected)
        at = _parting(left, right)
        return [(left[:at], left[at:], right[at:])]

    return rows


def _parting(left: Turns, right: Turns) -> int:
    """Return how many first turns two conversations share as a prompt: up to a user's turn, and not all of either."""
    most = min(len(left), len(right)) - 1
    shared = next((index for index in range(most) if left[index] != right[index]), most)
    while shared and left[shared - 1][0] != "user":
        shared -= 1
    if not shared:
        raise MalformedError("no_shared_prompt", "the two conversations share no first turns that end with the user's")
    return shared


# ---- transcripts ----

_MARK = re.compile(r"\r?\n\r?\n(Human|Assistant):")
_MARK_INSIDE = re.compile(r"(?<!\w)(?:Human|Assistant):")
_SPEAKERS = {"Human": "user", "Assistant": "assistant"}


def _transcripts(options: FormatOptions) -> Callable[[dict[str, Any]], Sequence[Made]]:
    names = (options.fields.chosen, options.fields.rejected)
    read = [field_of(name) for name in names]
    cases: Mapping[str, Case] = {
        "empty_turn": options.on_empty_turn,
        "early_split": options.on_early_split,
        "role_order": options.on_role_order,
        "marker_inside": options.on_marker_inside,
    }

    def rows(record: dict[str, Any]) -> Sequence[Made]:
        left, right = (_transcript(get(record), name) for get, name in zip(read, names, strict=True))
        at = _parting(left, right)
        found = dict(_irregular(left, right, at, names))
        for word, detail in found.items():
            if cases[word] == "reject":
                raise MalformedError(word, detail)
        return [(left[:at], left[at:], right[at:], [word for word in found if cases[word] == "flag"])]

    return rows


def _transcript(value: Any, field: str) -> Turns:
    if not isinstance(value, str):
        raise MalformedError("wrong_type", f"field '{field}' is {kind_of(value)}, not a transcript")
    before, *parts = _MARK.split("\n\n" + value.lstrip())
    if not parts:
        raise MalformedError("no_turns", f"field '{field}' has no line that begins with Human: or Assistant:")
    if before.strip():
        raise MalformedError("no_turns", f"field '{field}' begins with text that nobody says: '{before.strip()[:40]}'")
    turns = [(_SPEAKERS[speaker], text.strip()) for speaker, text in zip(parts[::2], parts[1::2], strict=True)]
    if turns[-1][0] != "assistant":
        raise MalformedError("wrong_roles", f"the last turn of '{field}' is the user's, not the assistant's")
    return turns


def _irregular(left: Turns, right: Turns, at: int, names: tuple[str, str]) -> Iterator[tuple[str, str]]:
    """Yield (word, detail) for every way in which two transcripts are not as they should be."""
    sides = ((names[0], left), (names[1], right))
    for name, turns in sides:
        empty = [number for number, (_, text) in enumerate(turns, start=1) if not text]
        if empty:
            yield "empty_turn", f"turn {empty[0]} of {len(turns)} of '{name}' has no text"
            break
    if len(left) - at > 1 or len(right) - at > 1:
        yield "early_split", f"the transcripts, of {len(left)} and {len(right)} turns, share the first {at} as a prompt"
    for name, turns in sides:
        roles = [role for role, _ in turns]
        again = [number for number, (one, other) in enumerate(pairwise(roles), start=2) if one == other]
        if again:
            yield "role_order", f"turns {again[0] - 1} and {again[0]} of '{name}' are both the {roles[again[0] - 1]}'s"
            break
        if roles[0] != "user":
            yield "role_order", f"the first turn of '{name}' is the assistant's"
            break
    for name, turns in sides:
        inside = [number for number, (_, text) in enumerate(turns, start=1) if ":" in text and _MARK_INSIDE.search(text)]
        if inside:
            yield "marker_inside", f"the text of turn {inside[0]} of '{name}' holds a speaker's mark"
            break


# ---- ratings, scores, votes ----


def _ratings(options: FormatOptions) -> Callable[[dict[str, Any]], Sequence[Made]]:
    fields, minimum = options.fields, options.minimum_margin
    name = _prompt(fields)
    prompt, responses = field_of(name), field_of(fields.responses)
    scores = field_of(fields.scores) if fields.scores is not None else None
    text, score = field_of(fields.text), field_of(fields.score)

    def listed(record: dict[str, Any]) -> list[tuple[Any, Any]]:
        items = responses(record)
        if not isinstance(items, list):
            raise MalformedError("wrong_type", f"field '{fields.responses}' is {kind_of(items)}, not a list")
        if scores is not None:
            beside = scores(record)
            if not isinstance(beside, list) or len(beside) != len(items):
                what = f"{len(beside)} scores" if isinstance(beside, list) else kind_of(beside)
                raise MalformedError("wrong_type", f"field '{fields.scores}' is {what} beside {len(items)} responses")
            return list(zip(items, beside, strict=True))
        for item in items:
            if not isinstance(item, dict):
                raise MalformedError(
                    "wrong_type", f"an item of '{fields.responses}' is {kind_of(item)}, not an object with text and score"
                )
        return [(text(item), score(item)) for item in items]

    def rows(record: dict[str, Any]) -> Sequence[Made]:
        question = asked(turns_of(prompt(record), name, "user"), name)
        rated = []
        for value, given in listed(record):
            if given is None:
                raise MalformedError("missing_field", f"a score in '{fields.scores or fields.score}' is null")
            rated.append((_number(given, fields.scores or fields.score), turns_of(value, fields.responses, "assistant")))
        if len(rated) < 2:
            raise MalformedError("few_responses", f"field '{fields.responses}' holds {len(rated)} responses; a pair needs 2")
        # By score, then by text, so that the order in the list decides nothing.
        rated.sort(key=lambda item: (-item[0], item[1]))
        if rated[0][0] == rated[-1][0]:
            raise MalformedError("tie", f"all {len(rated)} responses have the score {rated[0][0]:g}")
        made = [
            (question, better[1], worse[1], better[0] - worse[0], better[0], worse[0])
            for better, worse in _paired(rated, options.pairs)
            if better[0] > worse[0] and better[0] - worse[0] >= minimum
        ]
        if not made:
            widest = rated[0][0] - rated[-1][0]
            raise MalformedError("small_margin", f"the scores differ by {widest:g} at most, less than {minimum:g}")
        return made

    return rows


def _paired(rated: Sequence[Any], which: str) -> Iterator[tuple[Any, Any]]:
    if which == "best_vs_worst":
        yield rated[0], rated[-1]
    else:
        for index, better in enumerate(rated if which == "all" else rated[:1]):
            for worse in rated[index + 1 :]:
                yield better, worse


def _two(fields: Fields) -> Callable[[dict[str, Any]], tuple[Turns, Turns, Turns]]:
    name = _prompt(fields)
    prompt, first, second = field_of(name), field_of(fields.response_1), field_of(fields.response_2)

    def read(record: dict[str, Any]) -> tuple[Turns, Turns, Turns]:
        return (
            asked(turns_of(prompt(record), name, "user"), name),
            turns_of(first(record), fields.response_1, "assistant"),
            turns_of(second(record), fields.response_2, "assistant"),
        )

    return read


def _scores(options: FormatOptions) -> Callable[[dict[str, Any]], Sequence[Made]]:
    fields, minimum = options.fields, options.minimum_margin
    two = _two(fields)
    score_1, score_2 = field_of(fields.score_1), field_of(fields.score_2)

    def rows(record: dict[str, Any]) -> Sequence[Made]:
        question, first, second = two(record)
        left, right = _number(score_1(record), fields.score_1), _number(score_2(record), fields.score_2)
        if left == right:
            raise MalformedError("tie", f"both responses have the score {left:g}")
        high, low = max(left, right), min(left, right)
        if high - low < minimum:
            raise MalformedError("small_margin", f"the scores differ by {high - low:g}, less than {minimum:g}")
        better, worse = (first, second) if left > right else (second, first)
        return [(question, better, worse, high - low, high, low, high / low if low > 0 else None)]

    return rows


def _votes(options: FormatOptions, names: Sequence[str]) -> Callable[[dict[str, Any]], Sequence[Made]]:
    two = _two(options.fields)
    meaning = {
        vote_text(value): meant
        for meant, values in enumerate((options.values.tie, options.values.response_1, options.values.response_2))
        for value in values
    }
    read = [field_of(name) for name in names]

    def rows(record: dict[str, Any]) -> Sequence[Made]:
        question, first, second = two(record)
        counts = [0, 0, 0]
        for name, get in zip(names, read, strict=True):
            try:
                value = get(record)
            except MalformedError:
                if len(names) == 1:
                    raise
                continue  # this one did not vote
            for vote in _cast(value):
                meant = meaning.get(vote_text(vote))
                if meant is None:
                    raise MalformedError(
                        "unknown_vote", f"field '{name}': the vote {_quoted(vote)} means nothing; see `values`"
                    )
                counts[meant] += 1
        cast = sum(counts)
        if not cast:
            raise MalformedError("no_votes", f"there is no vote in {', '.join(names)}")
        most = max(counts[1:])
        if counts[1] == counts[2] or counts[0] >= most:
            raise MalformedError(
                "tie", f"{counts[1]} votes for response 1, {counts[2]} for response 2, {counts[0]} for neither"
            )
        better, worse = (first, second) if counts[1] > counts[2] else (second, first)
        return [(question, better, worse, float(abs(counts[1] - counts[2])), most / cast)]

    return rows


def _cast(value: Any) -> list[Any]:
    votes = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else [value]
    return [vote for vote in votes if vote is not None]


def vote_text(value: Any) -> str:
    """Return a vote as text, so that 1, 1.0 and "1" are one."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def _quoted(value: Any) -> str:
    return f"'{value[:40]}'" if isinstance(value, str) else str(value)[:40]
