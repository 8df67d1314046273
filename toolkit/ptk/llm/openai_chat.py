"""A request as the body of an OpenAI-compatible completion, and a reply as an answer: pure, nothing here knows a network."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Literal

import orjson

from ptk.llm.request import Answer, Request, drawn

__all__ = ["OWN_FIELDS", "BrokenReply", "Server", "Unsupported", "answer_of", "body_of", "error_message", "is_too_long"]

Server = Literal["vllm", "openai", "other"]

TOP = 20
"""Likeliest tokens whose log-probabilities a server tells, at most."""

OWN_FIELDS: Mapping[str, str] = {
    **dict.fromkeys(("messages", "prompt"), "the step's prompt makes it"),
    "model": "write it under `model`",
    **dict.fromkeys(("max_tokens", "max_completion_tokens"), "write max_tokens under `sampling`"),
    **{
        name: f"write it under `sampling`{', as repetition_penalty' if name == 'repeat_penalty' else ''}"
        for name in ("temperature", "top_p", "top_k", "seed", "stop", "repetition_penalty", "repeat_penalty")
    },
    **dict.fromkeys(("n", "stream", "stream_options", "echo"), "ptk asks for one whole answer at a time"),
    **dict.fromkeys(("logprobs", "top_logprobs", "logprob_token_ids", "return_tokens_as_token_ids"), "judges ask for it"),
    **dict.fromkeys(("response_format", "structured_outputs"), "the step says which form an answer is held to"),
    **dict.fromkeys(("add_generation_prompt", "continue_final_message"), "the step says how an answer begins"),
    **dict.fromkeys(("truncate_prompt_tokens", "truncation_side"), "write on_long; what is left out is then told"),
}
"""Fields of a request's body that ptk sets itself, and where what they hold is said."""

_TOO_LONG = re.compile(
    r"context_length_exceeded|maximum (context|model|sequence|input) length|context (length|window|size)|max_model_len"
    r"|prompt is too long|too many (input )?tokens|(prompt|input|request) .{0,40}(is longer than|exceeds) ",
    re.IGNORECASE,
)


class Unsupported(Exception):
    """The server's protocol has no way to ask this; the message says what was wanted, and what to write instead."""


class BrokenReply(ValueError):
    """A reply that is not what the protocol promises; asking again may give a whole one."""


def body_of(
    request: Request, *, model: str, server: Server, extra: Mapping[str, Any], token_ids: Mapping[str, int]
) -> dict[str, Any]:
    """Return the JSON body that asks a request: of a chat, or of plain text where the request has no messages.

    `token_ids` gives, on a vLLM server, the token of each text in `request.scored`. Raises Unsupported.
    """
    sampling = drawn(request)
    messages = [{"role": message.role, "content": message.content} for message in request.messages]
    body: dict[str, Any] = {"model": model, **({"messages": messages} if messages else {"prompt": request.prefill}), **extra}
    limit = "max_completion_tokens" if server == "openai" and messages else "max_tokens"
    if request.scored:
        body |= {limit: 1, "temperature": 0.0, "logprobs": True if messages else 1}
        if not messages and server != "vllm":
            raise Unsupported("the log-probabilities of words that continue plain text")
        if server == "vllm":
            body |= {
                "logprob_token_ids": [token_ids[text] for text in request.scored],
                "return_tokens_as_token_ids": True,
            }
        else:
            body["top_logprobs"] = TOP
    else:
        body |= {limit: sampling["max_tokens"], "temperature": sampling["temperature"], "top_p": sampling["top_p"]}
        if sampling["stop"]:
            body["stop"] = list(sampling["stop"])
        if sampling["temperature"]:
            body["seed"] = sampling["seed"]
        if server == "vllm":  # said even where they do nothing: else the server's own defaults would hold
            body |= {"top_k": sampling["top_k"], "repetition_penalty": sampling["repetition_penalty"]}
    if messages and request.prefill:
        if server != "vllm":
            raise Unsupported(f"an answer that begins with {request.prefill!r}")
        messages.append({"role": "assistant", "content": request.prefill})
        body |= {"continue_final_message": True, "add_generation_prompt": False}
    if request.constraint is not None:
        kind, value = request.constraint.kind, request.constraint.value
        if server == "vllm":
            body["structured_outputs"] = {kind: list(value) if isinstance(value, tuple) else value}
        elif kind == "json" and messages:
            schema = {"name": "answer", "strict": True, "schema": orjson.loads(str(value))}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        else:
            raise Unsupported(f"an answer that is held to a {'JSON schema' if kind == 'json' else kind}")
    return body


def answer_of(key: str, request: Request, reply: Any, token_ids: Mapping[str, int]) -> Answer:
    """Return what a reply says. Raises BrokenReply where it is not of the protocol."""
    try:
        choice, usage = reply["choices"][0], reply.get("usage") or {}
        reason = choice["finish_reason"]
        message = choice["message"] if request.messages else {"content": choice["text"]}
        counts: dict[str, Any] = {
            "prompt_tokens": int(usage.get("prompt_tokens") or 0),
            "output_tokens": int(usage.get("completion_tokens") or 0),
            "cached_tokens": int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0),
        }
        if reason == "content_filter" or message.get("refusal"):
            why = message.get("refusal") or "the provider's filter held the answer back"
            return Answer(key, "", "error", **counts, error=f"refused: {why}")
        if request.scored:
            if request.messages:
                tops = choice["logprobs"]["content"][0]["top_logprobs"]
                found = {str(entry["token"]): float(entry["logprob"]) for entry in tops}
            else:
                found = {str(token): float(value) for token, value in choice["logprobs"]["top_logprobs"][0].items()}
            return _scored(key, request, found, counts, token_ids)
        if reason not in ("stop", "length"):
            return Answer(key, "", "error", **counts, error=f"refused: the answer ended with '{reason}'")
        text = message["content"]
        if text is None and reason == "stop":
            return Answer(key, "", "error", **counts, error="refused: the answer has no text")
        if not isinstance(text, (str, type(None))):
            raise TypeError("content is no text")
        return Answer(key, text or "", reason, **counts)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise BrokenReply(f"a reply without what the protocol promises ({type(error).__name__}: {error})") from error


def _scored(
    key: str, request: Request, found: Mapping[str, float], counts: Mapping[str, Any], token_ids: Mapping[str, int]
) -> Answer:
    names = {text: f"token_id:{token_ids[text]}" if text in token_ids else text for text in request.scored}
    absent = [text for text, name in names.items() if name not in found]
    if absent:
        why = f"refused: '{absent[0]}' is not among the {len(found)} likeliest next tokens that the server tells"
        return Answer(key, "", "error", **counts, error=why)
    scores = tuple(found[names[text]] for text in request.scored)
    if not all(map(math.isfinite, scores)):
        raise ValueError("a log-probability that is no number")
    return Answer(key, request.scored[scores.index(max(scores))], "stop", **counts, scores=scores)


def error_message(content: bytes) -> str:
    """Return what a body says of an error, on one line of at most 300 characters."""
    text = content.decode(errors="replace")
    try:
        said = orjson.loads(content)
        error = said.get("error", said) if isinstance(said, dict) else said
        if isinstance(error, dict):
            message = error.get("message") or error.get("detail")
            code = error.get("code") if isinstance(error.get("code"), str) else None
            text = f"{message or text}{f' ({code})' if code else ''}"
        elif isinstance(error, str):
            text = error
    except orjson.JSONDecodeError:
        pass
    return " ".join(text.split())[:300] or "no reason given"


def is_too_long(message: str) -> bool:
    """Return whether a server's refusal says that the prompt does not fit its model's window."""
    return _TOO_LONG.search(message) is not None
