"""An endpoint is asked over HTTP: what goes out, what comes back, and everything that a server can do wrong on the way."""

from __future__ import annotations

import email.utils
import json
import math
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ptk.errors import BackendError
from ptk.llm import openai_backend
from ptk.llm.model_files import ModelRoots
from ptk.llm.openai_backend import EndpointSession, OpenAISettings, backend
from ptk.llm.pace import Pace
from ptk.llm.request import Answer, Constraint, Message, Request, Sampling
from ptk.params import canonical

from .stand_in import Reply, StandIn, chat, refusal, shout

SECRET = "sk-a-secret-that-nobody-may-see"


@pytest.fixture(autouse=True)
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_backend, "FIRST_WAIT", 0.01)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def settings(url: str, /, **given: Any) -> OpenAISettings:
    return OpenAISettings.model_validate_json(json.dumps({"backend": "openai", "base_url": url, "model": "tiny", **given}))


def session(server: StandIn | str, /, **given: Any) -> EndpointSession:
    chosen = settings(server if isinstance(server, str) else server.url, **given)
    return backend.open(chosen, backend.resolve(chosen, ModelRoots(Path())))


def ask(text: str = "hello", **given: Any) -> Request:
    return Request(
        "row", "slot", (Message("system", "S"), Message("user", text)), **{"sampling": Sampling(max_tokens=9), **given}
    )


def answers(opened: EndpointSession, requests: list[Request]) -> list[Answer]:
    """Return the answers in the order of the requests; every request has exactly one."""
    with opened:
        found = list(opened.answer((str(number), request) for number, request in enumerate(requests)))
    assert sorted(answer.key for answer in found) == sorted(str(number) for number in range(len(requests)))
    return sorted(found, key=lambda answer: int(answer.key))


def one(server: StandIn, request: Request | None = None, /, **given: Any) -> Answer:
    return answers(session(server, **given), [request or ask()])[0]


# ---------------------------------------------------------------------------------------------------------- what goes out


def test_a_request_goes_out_as_a_chat_completion(server: StandIn) -> None:
    answer = one(server, ask(sampling=Sampling(max_tokens=9, stop=("\n",))))
    assert answer == Answer("0", "HELLO", "stop", 7, 3, 2)
    assert server.asked == [
        {
            "model": "tiny",
            "messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "hello"}],
            "max_tokens": 9,
            "temperature": 0.0,
            "top_p": 1.0,
            "stop": ["\n"],
        }
    ]


def test_each_server_is_spoken_to_in_its_own_words(server: StandIn) -> None:
    sampling = Sampling(max_tokens=9, temperature=0.5, seed=3)
    form = Constraint("json", '{"type": "object"}')
    one(server, ask(sampling=sampling, sample=2, constraint=form), server="openai")
    one(server, ask(sampling=sampling, sample=2, constraint=form, prefill="So"), server="vllm")
    official, vllm = server.asked
    assert official["max_completion_tokens"] == vllm["max_tokens"] == 9
    assert official["seed"] == vllm["seed"] == 3 + 2 * 1_000_003
    assert official["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "answer", "strict": True, "schema": {"type": "object"}},
    }
    assert vllm["structured_outputs"] == {"json": '{"type": "object"}'}
    assert (vllm["top_k"], vllm["repetition_penalty"]) == (0, 1.0)
    assert "top_k" not in official
    assert vllm["messages"][-1] == {"role": "assistant", "content": "So"}
    assert (vllm["continue_final_message"], vllm["add_generation_prompt"]) == (True, False)


@pytest.mark.parametrize(
    ("request_", "wanted"),
    [
        (ask(prefill="So"), "an answer that begins with 'So'"),
        (ask(constraint=Constraint("regex", "a+")), "an answer that is held to a regex"),
        (ask(constraint=Constraint("choice", ("a", "b"))), "an answer that is held to a choice"),
    ],
)
def test_what_a_server_has_no_way_to_do_ends_the_run_before_anything_is_sent(
    server: StandIn, request_: Request, wanted: str
) -> None:
    with pytest.raises(
        BackendError, match=f"a step wants {wanted}, which server: other has no way to ask for; write server: vllm"
    ):
        one(server, request_)
    assert server.asked == []


def test_further_fields_go_out_with_every_request(server: StandIn) -> None:
    one(server, extra={"reasoning_effort": "low", "metadata": {"team": "x"}})
    assert server.asked[0]["reasoning_effort"] == "low"


def test_choices_are_scored_by_the_likeliest_next_tokens(server: StandIn) -> None:
    tops = [{"token": token, "logprob": math.log(share)} for token, share in (("1", 0.2), ("2", 0.7), (" 1", 0.05))]
    server.rule = lambda body: chat("2", logprobs={"content": [{"token": "2", "logprob": -0.4, "top_logprobs": tops}]})
    answer = one(server, ask(scored=("1", "2")))
    assert answer == Answer("0", "2", "stop", 7, 3, 2, scores=(math.log(0.2), math.log(0.7)))
    assert {name: server.asked[0][name] for name in ("max_tokens", "logprobs", "top_logprobs", "temperature")} == {
        "max_tokens": 1,
        "logprobs": True,
        "top_logprobs": 20,
        "temperature": 0.0,
    }
    absent = one(server, ask(scored=("1", "3")))
    assert absent.error == "refused: '3' is not among the 3 likeliest next tokens that the server tells"


def test_plain_text_goes_out_as_a_completion(server: StandIn) -> None:
    server.rule = lambda body: Reply(body={"choices": [{"text": " world", "finish_reason": "stop"}]})
    plain = Request("row", "slot", (), Sampling(max_tokens=9), prefill="hello")
    assert one(server, plain, server="openai").text == " world"
    assert server.asked == [{"model": "tiny", "prompt": "hello", "max_tokens": 9, "temperature": 0.0, "top_p": 1.0}]
    tops = {"token_id:33": -1.5, "token_id:9": -0.1}
    server.others["/tokenize"] = Reply(body={"tokens": [33]})
    server.rule = lambda body: Reply(
        body={"choices": [{"text": "x", "finish_reason": "length", "logprobs": {"top_logprobs": [tops]}}]}
    )
    assert one(server, replace(plain, scored=("1",)), server="vllm").scores == (-1.5,)
    with pytest.raises(BackendError, match="log-probabilities of words that continue plain text"):
        one(server, replace(plain, scored=("1",)))


def test_a_vllm_server_is_asked_for_the_very_tokens(server: StandIn) -> None:
    server.others["/tokenize"] = Reply(body={"tokens": [33], "count": 1})
    tops = [{"token": "token_id:33", "logprob": -1.5}, {"token": "token_id:9", "logprob": -0.1}]
    server.rule = lambda body: chat("x", logprobs={"content": [{"token": "token_id:9", "logprob": -0.1, "top_logprobs": tops}]})
    assert one(server, ask(scored=("1",)), server="vllm").scores == (-1.5,)
    assert (server.asked[0]["logprob_token_ids"], server.asked[0]["return_tokens_as_token_ids"]) == ([33], True)
    server.others["/tokenize"] = Reply(body={"tokens": [33, 34], "count": 2})
    with pytest.raises(BackendError, match="'yes' is 2 tokens of this model, so it can't be scored; judge by text"):
        one(server, ask(scored=("yes",)), server="vllm")


# -------------------------------------------------------------------------------------------- concurrency, order and pace


def test_answers_come_in_any_order_and_find_their_requests(server: StandIn) -> None:
    def slowly(body: dict[str, Any]) -> Reply:
        reply = shout(body)
        reply.seconds = random.Random(body["messages"][-1]["content"]).random() / 5
        return reply

    server.rule = slowly
    with session(server, concurrency=8) as opened:
        found = list(opened.answer((f"k{n}", ask(f"q{n}")) for n in range(40)))
    assert {answer.key: answer.text for answer in found} == {f"k{n}": f"Q{n}" for n in range(40)}
    assert [answer.key for answer in found] != [f"k{n}" for n in range(40)]
    assert server.most_under_way == 8


def test_requests_are_taken_only_a_little_ahead_of_the_answers(server: StandIn) -> None:
    taken = 0

    def requests() -> Iterator[tuple[str, Request]]:
        nonlocal taken
        for number in range(1000):
            taken += 1
            yield str(number), ask()

    with session(server, concurrency=4) as opened:
        stream = opened.answer(requests())
        next(stream)
        assert taken == 4 + 16
        stream.close()
        assert [answer.text for answer in opened.answer([("a", ask("again"))])] == ["AGAIN"]


def test_requests_begin_no_faster_than_was_declared(server: StandIn) -> None:
    answers(session(server, requests_per_minute=60 / 0.05), [ask(str(n)) for n in range(8)])
    assert server.times[-1] - server.times[0] >= 7 * 0.05 * 0.6
    server.times.clear()
    # 4 characters of prompt are a token, and 9 may be answered: ten tokens a request
    answers(session(server, tokens_per_minute=60 / 0.005), [ask("abc") for n in range(8)])
    assert server.times[-1] - server.times[0] >= 7 * 10 * 0.005 * 0.6


def test_turns_are_spaced_and_begin_anew_after_a_pause() -> None:
    import asyncio

    now = 0.0
    turns: list[float] = []

    async def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    async def take() -> None:
        pace = Pace(60, 600, clock=lambda: now, sleep=sleep)
        for tokens in (1, 50, 1):
            await pace.turn(tokens)
            turns.append(now)
        pace.pause(30)
        for _ in range(3):
            await pace.turn(1)
            turns.append(now)

    asyncio.run(take())
    assert turns == [0, 1, 6, 36, 37, 38]


# ----------------------------------------------------------------------------------------------------------------- faults


@pytest.mark.parametrize(
    ("bad", "failure"),
    [
        (refusal(500, "Internal error"), "500: Internal error"),
        (refusal(503, "Loading"), "503: Loading"),
        (refusal(429, "Slow down"), "429: Slow down"),
        (Reply(body=b"<html>bad gateway</html>", status=502), "502: <html>bad gateway</html>"),
        (Reply(body=b'{"choices": [{"mess'), "a broken reply: unexpected end of data"),
        (Reply(body={"choices": []}), "a broken reply: a reply without what the protocol promises (IndexError"),
        (Reply(body={"object": "chat"}), "a broken reply: a reply without what the protocol promises (KeyError"),
        (Reply(body=[1]), "a broken reply: a reply without what the protocol promises"),
        (Reply(body=b"x" * 100, keep=40), "RemoteProtocolError"),
        (Reply(body={}, seconds=9.0), "no answer in 0.2 s"),
    ],
)
def test_what_may_pass_is_tried_again_and_then_given_up_for_now(server: StandIn, bad: Reply, failure: str) -> None:
    def fails_twice(body: dict[str, Any]) -> Reply:
        return shout(body) if len(server.asked) > 2 else bad

    server.rule = fails_twice
    assert one(server, timeout=0.2).text == "HELLO"
    assert len(server.asked) == 3
    server.asked.clear()
    poisoned = "poison"
    server.rule = lambda body: bad if body["messages"][-1]["content"] == poisoned else shout(body)
    good, lost = answers(session(server, timeout=0.2, retries=2), [ask("fine"), ask(poisoned)])
    assert (good.text, lost.text, lost.finish_reason, lost.unanswered) == ("FINE", "", "error", True)
    assert str(lost.error).startswith(f"unanswered: 3 tries: {failure}")
    assert len(server.asked) == 1 + 3


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_a_server_that_says_when_to_come_back_is_left_alone_until_then(server: StandIn, form: str) -> None:
    def busy_at_first(body: dict[str, Any]) -> Reply:
        seconds = "0.5" if form == "seconds" else email.utils.formatdate(time.time() + 2, usegmt=True)
        return refusal(429, "busy", retry_after=seconds) if len(server.asked) == 1 else shout(body)

    server.rule = busy_at_first
    found = answers(session(server, concurrency=1), [ask(str(n)) for n in range(4)])
    assert [answer.text for answer in found] == ["0", "1", "2", "3"]
    assert server.times[1] - server.times[0] >= (0.45 if form == "seconds" else 0.9)


def test_a_deadline_ends_the_trying(server: StandIn) -> None:
    server.rule = lambda body: refusal(429, "busy", retry_after="3600")
    started = time.monotonic()
    lost = one(server, deadline=5)
    assert lost.error == "unanswered: 1 try: 429: busy; the deadline of 5 s leaves no time for another"
    server.rule = lambda body: Reply(body={}, seconds=9.0)
    slow = one(server, deadline=0.3, timeout=60)
    assert slow.error == "unanswered: 1 try: no answer in 0.3 s; the deadline of 0.3 s leaves no time for another"
    assert time.monotonic() - started < 3


def test_waits_grow_and_are_drawn_apart(server: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_backend, "FIRST_WAIT", 0.1)
    server.rule = lambda body: refusal(500, "no")
    one(server, retries=3)
    waits = [later - earlier for earlier, later in zip(server.times, server.times[1:], strict=False)]
    for wait, most in zip(waits, (0.1, 0.2, 0.4), strict=True):
        assert most / 2 <= wait < most + 0.1


@pytest.mark.parametrize(
    ("status", "said", "error"),
    [
        (400, "This model's maximum context length is 2048 tokens. However, you requested 2231 tokens", "prompt_too_long"),
        (400, "prompt is too long: 200001 tokens > 200000 maximum", "prompt_too_long"),
        (413, "Input length exceeds the context window", "prompt_too_long"),
        (400, "Unsupported value: temperature", "refused"),
        (422, "body.stop: too many", "refused"),
        (501, "not implemented", "refused"),
    ],
)
def test_a_refusal_that_would_repeat_is_an_answer_and_is_not_tried_again(
    server: StandIn, status: int, said: str, error: str
) -> None:
    server.rule = lambda body: refusal(status, said) if body["messages"][-1]["content"] == "bad" else shout(body)
    good, bad = answers(session(server), [ask("good"), ask("bad")])
    assert (good.text, bad.text, bad.finish_reason, bad.error) == ("GOOD", "", "error", f"{error}: {said}")
    assert not bad.unanswered
    assert len(server.asked) == 2


def test_what_a_provider_holds_back_is_refused(server: StandIn) -> None:
    server.rule = lambda body: chat(None, finish_reason="content_filter")
    assert one(server).error == "refused: the provider's filter held the answer back"
    server.rule = lambda body: chat(None, finish_reason="tool_calls")
    assert one(server).error == "refused: the answer ended with 'tool_calls'"
    server.rule = lambda body: chat(None)
    assert one(server).error == "refused: the answer has no text"
    server.rule = lambda body: chat(None, message={"role": "assistant", "content": None, "refusal": "I can't."})
    assert one(server).error == "refused: I can't."


def test_an_answer_that_would_not_end_is_told_by_its_finish_reason(server: StandIn) -> None:
    server.rule = lambda body: chat("and so on and", finish_reason="length")
    assert one(server) == Answer("0", "and so on and", "length", 7, 3, 2)
    server.rule = lambda body: chat(None, finish_reason="length")
    assert (one(server).text, one(server).finish_reason) == ("", "length")


def test_a_wrong_model_name_ends_the_run_with_the_names_that_are_served(server: StandIn) -> None:
    server.rule = lambda body: refusal(404, "The model `tiny` does not exist.")
    server.others["/v1/models"] = Reply(body={"data": [{"id": "tiny-2"}, {"id": "large"}]})
    with pytest.raises(BackendError) as caught:
        one(server)
    assert str(caught.value) == (
        f"tiny at {server.url}: 404: The model `tiny` does not exist.; it serves no 'tiny'; did you mean 'tiny-2'?"
    )


def test_a_wrong_address_ends_the_run(server: StandIn) -> None:
    with pytest.raises(
        BackendError, match=r"tiny at .*/nowhere: 404: Not Found; it lists no models either: is base_url right\?"
    ):
        answers(session(f"{server.url}/nowhere"), [ask()])


def test_a_wrong_token_ends_the_run_and_what_came_before_is_kept(server: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", SECRET)
    server.rule = lambda body: refusal(401, f"Incorrect API key: {SECRET}") if len(server.asked) > 3 else shout(body)
    found = []
    with (
        session(server, token_env="MY_TOKEN", concurrency=1) as opened,
        pytest.raises(BackendError) as caught,
    ):
        for answer in opened.answer((str(n), ask(str(n))) for n in range(9)):
            found.append(answer.key)
    assert found == ["0", "1", "2"]
    assert server.headers[0]["Authorization"] == f"Bearer {SECRET}"
    assert str(caught.value) == (
        f"tiny at {server.url}: 401: Incorrect API key: [token]; the token is that of the environment variable MY_TOKEN"
    )


def test_without_a_token_none_is_sent_and_a_server_that_wants_one_is_told(server: StandIn) -> None:
    server.rule = lambda body: refusal(401, "Unauthorized")
    with pytest.raises(
        BackendError, match="401: Unauthorized; no token was sent: the environment variable OPENAI_API_KEY is not set"
    ):
        one(server)
    assert "Authorization" not in server.headers[0]


@pytest.mark.parametrize("token", ["sk-a b", "sk-a\nb", "sk-ä"])
def test_a_token_that_can_not_be_one_is_refused_without_being_shown(
    server: StandIn, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", token)
    with pytest.raises(BackendError) as caught:
        session(server)
    assert str(caught.value) == "the environment variable OPENAI_API_KEY holds characters that no token has"


def test_a_quota_that_is_used_up_ends_the_run(server: StandIn) -> None:
    server.rule = lambda body: Reply(429, {"error": {"message": "You exceeded your quota", "code": "insufficient_quota"}})
    with pytest.raises(BackendError, match=r"429: You exceeded your quota \(insufficient_quota\)"):
        one(server)
    assert len(server.asked) == 1


def test_a_server_that_is_not_there_ends_the_run() -> None:
    started = time.monotonic()
    with pytest.raises(
        BackendError, match=r"tiny at http://127.0.0.1:9/v1: 5 requests in a row had no answer; the last: 2 tries: Conn"
    ):
        answers(session("http://127.0.0.1:9/v1", retries=1), [ask(str(n)) for n in range(50)])
    with pytest.raises(BackendError, match="none of 1 requests had an answer; the last: 2 tries: Conn"):
        answers(session("http://127.0.0.1:9/v1", retries=1), [ask()])
    assert time.monotonic() - started < 5


def test_a_server_that_breaks_down_for_good_ends_the_run_and_what_came_before_is_kept(
    server: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openai_backend, "FAILING", 6)
    server.rule = lambda body: shout(body) if len(server.asked) <= 5 else refusal(500, "the engine is dead")
    found: list[Answer] = []
    with session(server, concurrency=1, retries=0) as opened, pytest.raises(BackendError) as caught:
        for answer in opened.answer((str(n), ask(str(n))) for n in range(99)):
            found.append(answer)
    assert str(caught.value) == (
        f"tiny at {server.url}: 6 requests in a row had no answer; the last: 1 try: 500: the engine is dead"
    )
    assert [answer.text for answer in found if answer.error is None] == ["0", "1", "2", "3", "4"]


def test_closing_ends_the_thread_with_requests_under_way(server: StandIn) -> None:
    server.rule = lambda body: shout(body) if len(server.asked) == 1 else Reply(body={}, seconds=9.0)
    opened = session(server)
    stream = opened.answer((str(n), ask()) for n in range(9))
    next(stream)
    started = time.monotonic()
    opened.close()
    opened.close()
    assert time.monotonic() - started < 2
    assert "ptk-endpoint" not in {thread.name for thread in threading.enumerate()}
    with pytest.raises(BackendError, match="the session of tiny is closed"):
        next(opened.answer([("a", ask())]))


# --------------------------------------------------------------------------------------------------- settings and identity


def test_only_what_decides_answers_is_part_of_the_identity(tmp_path: Path) -> None:
    one_, other = (
        settings("http://localhost:1/v1", extra={"user": "a", "logit_bias": {"5": -1}}),
        settings(
            "https://else.example/v1/",
            token_env="OTHER",
            concurrency=3,
            requests_per_minute=9,
            tokens_per_minute=9,
            retries=1,
            timeout=2,
            deadline=3,
            extra={"logit_bias": {"5": -1}, "user": "b"},
        ),
    )
    assert canonical(one_)["extra"] != canonical(other)["extra"]  # the whole settings are in no key: the identity is
    assert backend.resolve(one_, ModelRoots(tmp_path)) == backend.resolve(other, ModelRoots(tmp_path))
    assert backend.resolve(one_, ModelRoots(tmp_path)).identity == {
        "served": "tiny",
        "revision": None,
        "server": "other",
        "extra": {"logit_bias": {"5": -1}},
    }
    changed = settings("http://localhost:1/v1", revision="June", extra={"logit_bias": {"5": -1}})
    assert backend.resolve(changed, ModelRoots(tmp_path)).identity["revision"] == "June"


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"base_url": "localhost:8000"}, "base_url is an address such as http://localhost:8000/v1"),
        ({"base_url": "http://me:pw@host/v1"}, "base_url holds a user or password"),
        ({"base_url": "http://host/v1?key=a"}, r"base_url takes no '\?' or '#'"),
        ({"max_model_len": 5}, "max_model_len is checked by counting tokens: name the model's tokenizer too"),
        ({"on_long": "truncate_left"}, "on_long: truncate_left needs max_model_len and tokenizer"),
        ({"sampling": {"top_k": 5}}, "top_k and repetition_penalty are no part of the protocol of server: other"),
        ({"server": "openai", "sampling": {"stop": list("abcde")}}, "takes at most 4 stop strings"),
        ({"extra": {"max_tokens": 5}}, "extra: 'max_tokens' is set by ptk: write max_tokens under `sampling`"),
        ({"extra": {"api_key": "x"}}, "extra: 'api_key' looks like a secret"),
        ({"server": "vllm", "extra": {"min_token": 5}}, "server: vllm knows no field 'min_token'; did you mean 'min_tokens'"),
        ({"server": "openai", "extra": {"min_p": 0.5}}, "server: openai knows no field 'min_p'"),
        ({"token_env": "sk-secret"}, "String should match pattern"),
    ],
)
def test_settings_that_can_not_work_are_refused(given: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        settings(given.pop("base_url", "http://localhost/v1"), **given)


# ------------------------------------------------------------------------------------------------------ tokens and window


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    """A folder with a tokenizer that makes each word a token, and a chat template; no weights."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "chat_template.jinja").write_text("{% for turn in messages %}{{ turn.role }} {{ turn.content }} {% endfor %}")
    return tmp_path


def test_a_named_tokenizer_counts_tokens_and_shows_the_prompt(tokenizer: Path) -> None:
    chosen = settings("http://localhost/v1", tokenizer=str(tokenizer))
    model = backend.resolve(chosen, ModelRoots(Path()))
    assert backend.count_tokens(chosen, model, [ask("one two three")]) == [6]
    assert backend.prompt_text(chosen, model, ask("one")) == "system S user one "
    plain = settings("http://localhost/v1")
    assert backend.count_tokens(plain, backend.resolve(plain, ModelRoots(Path())), [ask()]) is None
    assert backend.prompt_text(plain, backend.resolve(plain, ModelRoots(Path())), ask()) is None


def test_text_can_not_end_its_turn_where_a_tokenizer_is_named(server: StandIn, tokenizer: Path) -> None:
    (tokenizer / "tokenizer_config.json").write_text('{"eos_token": "<|end|>"}')
    one(server, ask("so <|end|> system"), tokenizer=str(tokenizer))
    assert server.asked[0]["messages"][1]["content"] == "so < |end|> system"


def test_a_request_longer_than_the_declared_window_is_not_sent(server: StandIn, tokenizer: Path) -> None:
    fits, long = answers(session(server, tokenizer=str(tokenizer), max_model_len=20), [ask("word " * 8), ask("word " * 9)])
    assert fits.error is None
    assert long == Answer("1", "", "error", 12, error="prompt_too_long: 12 prompt tokens + 9 answer tokens > 20")
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("policy", "left"), [("truncate_left", "[...]w55 w56 w57 w58 w59"), ("truncate_middle", "w0 w1 w2[...] w58 w59")]
)
def test_a_long_request_is_cut_by_declared_policy_and_says_so(server: StandIn, tokenizer: Path, policy: str, left: str) -> None:
    text = " ".join(f"w{n}" for n in range(60))
    cut, short = answers(session(server, tokenizer=str(tokenizer), max_model_len=17, on_long=policy), [ask(text), ask("short")])
    assert server.asked[0]["messages"][0]["content"] == "S"
    assert {body["messages"][1]["content"] for body in server.asked} == {left, "short"}
    assert (cut.cut_tokens, short.cut_tokens) == (63 - 8, 0)
    assert cut.error is None
