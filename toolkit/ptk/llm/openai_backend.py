"""The backend that asks any OpenAI-compatible endpoint: a vLLM server, a provider, anything that speaks chat completions.

Requests run on an event loop in a thread of the session's own, and `answer` hands out what it finishes. What fails falls in three:
a refusal that would repeat is an answer with an error; what may be answered another time (a busy, slow or broken server)
is tried again and then given up as `unanswered`, so that the next run asks it again; what no request can succeed with (a wrong token,
a model that is not served, a server that is gone) ends the run with a BackendError.
"""

from __future__ import annotations

import asyncio
import email.utils
import os
import queue
import random
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self
from urllib.parse import urlsplit

import orjson
from pydantic import Field, field_validator, model_validator

from ptk.errors import BackendError
from ptk.files import sha256_of_file
from ptk.llm.backend import ModelSettings, ResolvedModel
from ptk.llm.chat_template import read_chat_template, token_counter
from ptk.llm.model_files import ModelRoots, find_tokenizer_files
from ptk.llm.openai_chat import OWN_FIELDS, BrokenReply, Server, Unsupported, answer_of, body_of, error_message, is_too_long
from ptk.llm.pace import Pace
from ptk.llm.request import UNANSWERED, Answer, Message, Request
from ptk.llm.vllm_options import chat_fields
from ptk.llm.window import OnLong, fitted, too_long
from ptk.params import UNKEYED, suggestion

if TYPE_CHECKING:
    import httpx2

__all__ = ["EndpointSession", "OpenAIBackend", "OpenAISettings", "backend"]

FIRST_WAIT = 0.5
LONGEST_WAIT = 60.0
"""Seconds before the second try, doubled before each further one, up to the longest; half to all of it, drawn at random."""
UNREACHABLE = 5
FAILING = 50
"""Requests in a row that failed for now, after which the server counts as gone: without a connection, and in any way."""
CONNECT_S = 10.0
CHARACTERS_A_TOKEN = 3
"""Fewer than in any language with spaces, so that tokens are rather overestimated where no tokenizer is at hand."""
LONG_TOKEN = 16
"""From that length on a token is no word that an answer could hold by chance."""
UNKEYED_FIELDS = frozenset(
    {"metadata", "prediction", "priority", "prompt_cache_key", "request_id", "service_tier", "store", "user"}
)
"""Fields of `extra` that decide no answer."""
_AGAIN = (408, 409, 425, 429)
_HEADER_VALUE = re.compile(r"[\x21-\x7e]+")


class OpenAISettings(ModelSettings):
    """Settings of the openai backend: a model behind an OpenAI-compatible endpoint."""

    backend: Literal["openai"]
    base_url: Annotated[str, UNKEYED] = Field(description="Address of the endpoint, mostly ending in /v1.")
    model: str = Field(min_length=1, description="Name under which the endpoint serves the model.")
    revision: str | None = Field(
        None, description="Your name for what the endpoint serves under that name now; another name, and all is asked anew."
    )
    server: Server = Field(
        "other",
        description="vllm: a vLLM server, which takes every kind of request; openai: the provider of that name; other: what all have in common.",
    )
    token_env: Annotated[str, UNKEYED] = Field(
        "OPENAI_API_KEY",
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="Environment variable that holds the token; none is sent where it is not set.",
    )
    tokenizer: str | None = Field(
        None, description="Where the model's tokenizer and chat template are: bundled/NAME, a folder, or an id of the Hub."
    )
    max_model_len: int | None = Field(
        None, ge=1, description="The model's window, checked before a request is sent; needs tokenizer."
    )
    on_long: OnLong = Field(
        "reject",
        description="A request longer than the window: reject it; or leave out the beginning (truncate_left) or the middle "
        "(truncate_middle) of its longest message.",
    )
    extra: dict[str, Any] = Field(
        default_factory=dict, description="Further fields of the request's body, as the server knows them."
    )
    concurrency: Annotated[int, UNKEYED] = Field(32, ge=1, le=4096, description="The most requests under way at once.")
    requests_per_minute: Annotated[float | None, UNKEYED] = Field(
        None, gt=0, description="The most requests begun in a minute."
    )
    tokens_per_minute: Annotated[float | None, UNKEYED] = Field(
        None, gt=0, description="The most tokens asked for in a minute: prompts, and the longest answers."
    )
    retries: Annotated[int, UNKEYED] = Field(
        6, ge=0, le=100, description="How often a request is tried again after a busy, slow or broken server."
    )
    timeout: Annotated[float, UNKEYED] = Field(300.0, gt=0, description="Seconds after which a try has failed.")
    deadline: Annotated[float, UNKEYED] = Field(
        900.0, gt=0, description="Seconds after which a request is given up, from its first try, waiting included."
    )

    @field_validator("base_url")
    @classmethod
    def _is_address(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("base_url is an address such as http://localhost:8000/v1")
        if parts.username is not None or parts.password is not None:
            raise ValueError(
                "base_url holds a user or password; put the token into an environment variable and name it in token_env"
            )
        if parts.query or parts.fragment:
            raise ValueError("base_url takes no '?' or '#'")
        return value.rstrip("/")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.max_model_len is not None and self.tokenizer is None:
            raise ValueError("max_model_len is checked by counting tokens: name the model's tokenizer too")
        if self.on_long != "reject" and self.max_model_len is None:
            raise ValueError(f"on_long: {self.on_long} needs max_model_len and tokenizer")
        if self.server != "vllm" and (self.sampling.top_k or self.sampling.repetition_penalty != 1.0):
            raise ValueError(
                f"top_k and repetition_penalty are no part of the protocol of server: {self.server}; leave them out of `sampling`"
                ", put what the server calls them into `extra`, or write server: vllm where it is one"
            )
        if self.server == "openai" and len(self.sampling.stop) > 4:
            raise ValueError("server: openai takes at most 4 stop strings")
        for name in self.extra:
            if name in OWN_FIELDS:
                raise ValueError(f"extra: '{name}' is set by ptk: {OWN_FIELDS[name]}")
            known = chat_fields(self.server)
            if known and name not in known:
                raise ValueError(f"extra: server: {self.server} knows no field '{name}'{suggestion(name, known)}")
            if re.search(r"api_?key|authorization|password|secret|token$", name, re.IGNORECASE):
                raise ValueError(
                    f"extra: '{name}' looks like a secret; a token comes from the environment variable in token_env alone"
                )
        return self


class OpenAIBackend:
    """Asks models behind OpenAI-compatible endpoints."""

    settings = OpenAISettings
    remote = True
    gives = frozenset({"answers"})

    def resolve(self, settings: OpenAISettings, roots: ModelRoots) -> ResolvedModel:
        """Say which model is meant, from the settings alone; the endpoint is not asked. Raises ModelNotFound for the tokenizer."""
        folder = None
        if settings.tokenizer is not None:
            folder = find_tokenizer_files(settings.tokenizer, roots)
        extra = {name: value for name, value in settings.extra.items() if name not in UNKEYED_FIELDS}
        identity: dict[str, Any] = {
            "served": settings.model,
            "revision": settings.revision,
            "server": settings.server,
            "extra": extra,
        }
        if folder is not None:  # it says what is left out of a long prompt, and which text could end a turn
            identity["tokenizer"] = sha256_of_file(folder / "tokenizer.json")
        if settings.on_long != "reject":
            identity["on_long"] = [settings.on_long, settings.max_model_len]
        return ResolvedModel(settings.model, identity, {"max_model_len": settings.max_model_len}, folder, settings.revision)

    def device(self) -> str | None:
        """Return None: where its models run is not known."""
        return None

    def open(self, settings: OpenAISettings, model: ResolvedModel) -> EndpointSession:
        """Return a session; nothing is sent yet. Raises BackendError where the token can't be one."""
        return EndpointSession(settings, model)

    def prompt_text(self, settings: OpenAISettings, model: ResolvedModel, request: Request) -> str | None:
        """Return the messages as the chat template of the tokenizer's folder writes them, or None where there is none."""
        template = None if model.path is None else read_chat_template(model.path)
        return None if template is None else template.render(request.messages, request.prefill)

    def count_tokens(self, settings: OpenAISettings, model: ResolvedModel, requests: list[Request]) -> list[int] | None:
        """Return the prompt tokens of each request, or None where no tokenizer is named."""
        count = None if model.path is None else token_counter(model.path)
        return None if count is None else count(requests)

    def shared_tokens(self, settings: OpenAISettings, model: ResolvedModel, requests: list[Request]) -> list[int] | None:
        """Return None: what a server keeps of earlier prompts is its own affair."""
        return None


class _GivenUp(Exception):
    """A request has no answer for now; `reached` says whether there was a connection at all."""

    def __init__(self, why: str, reached: bool) -> None:
        super().__init__(why)
        self.reached = reached


class _TryAgain(Exception):
    """A try failed in a way that another may not."""

    def __init__(self, why: str, *, wait: float | None = None, reached: bool = True) -> None:
        super().__init__(why)
        self.wait, self.reached = wait, reached


class EndpointSession:
    """An event loop in a thread, and the connections to one endpoint."""

    def __init__(self, settings: OpenAISettings, model: ResolvedModel) -> None:
        self._settings, self._model = settings, model
        self._token = _token(settings)
        self._count = None if model.path is None else token_counter(model.path)
        self._template = None if model.path is None else read_chat_template(model.path)
        self._token_ids: dict[str, int] = {}
        self._learning = asyncio.Lock()
        self._answered = False
        self._loop = asyncio.new_event_loop()
        self._slots = asyncio.Semaphore(settings.concurrency)
        self._pace = Pace(settings.requests_per_minute, settings.tokens_per_minute)
        self._client = self._new_client()
        self._thread = threading.Thread(target=self._loop.run_forever, name="ptk-endpoint", daemon=True)
        self._thread.start()

    def __enter__(self) -> EndpointSession:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Give up what is under way, close the connections and end the thread. May be called again."""
        if self._loop.is_closed():
            return
        self._on_loop(self._client.aclose()).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def answer(self, requests: Iterable[tuple[str, Request]]) -> Iterator[Answer]:
        """Take (key, request) pairs lazily and yield each answer as soon as it is finished, in any order.

        Raises BackendError where no request can succeed, or the server is gone; answers yielded before that are good.
        """
        if self._loop.is_closed():
            raise BackendError(f"the session of {self._model.reference} is closed")
        source = iter(requests)
        done: queue.SimpleQueue[Future[Answer]] = queue.SimpleQueue()
        waiting: dict[Future[Answer], str] = {}
        exhausted = False
        answered = in_a_row = unreached = 0
        why = ""
        try:
            while True:
                # A few more than are under way, so that the next begins without this thread's help.
                while not exhausted and len(waiting) < self._settings.concurrency + 16:
                    pair = next(source, None)
                    if pair is None:
                        exhausted = True
                        break
                    future = self._on_loop(self._ask(*pair))
                    waiting[future] = pair[0]
                    future.add_done_callback(done.put)
                if not waiting:
                    break
                future = done.get()
                key = waiting.pop(future)
                try:
                    answer = future.result()
                    answered, in_a_row, unreached = answered + 1, 0, 0
                    self._answered = True
                except _GivenUp as error:
                    why = str(error)
                    answer = Answer(key, "", "error", error=f"{UNANSWERED}: {why}")
                    in_a_row, unreached = in_a_row + 1, 0 if error.reached else unreached + 1
                    if unreached >= UNREACHABLE or in_a_row >= FAILING:
                        raise self._failed(f"{in_a_row} requests in a row had no answer; the last: {why}") from None
                yield answer
            if unreached and not answered:
                raise self._failed(f"none of {in_a_row} requests had an answer; the last: {why}")
        finally:
            for future in waiting:
                future.cancel()

    def _on_loop(self, work: Any) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def _new_client(self) -> httpx2.AsyncClient:
        import httpx2

        connections = httpx2.Limits(
            max_connections=self._settings.concurrency, max_keepalive_connections=self._settings.concurrency
        )
        headers = {"Content-Type": "application/json"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        # A try as a whole has a time limit; the client's own would start anew with each piece of a reply.
        return httpx2.AsyncClient(headers=headers, limits=connections, timeout=httpx2.Timeout(None, connect=CONNECT_S))

    def _failed(self, why: str) -> BackendError:
        return BackendError(f"{self._model.reference} at {self._settings.base_url}: {self._redacted(why)}")

    def _redacted(self, text: str) -> str:
        return text.replace(self._token, "[token]") if self._token else text

    async def _ask(self, key: str, request: Request) -> Answer:
        """Return the answer to one request. Raises _GivenUp and BackendError."""
        request = self._defused(request)
        room = 1 if request.scored else request.sampling.max_tokens
        window = self._settings.max_model_len
        cut = 0
        if self._count is not None:
            tokens = self._count([request])[0]
            if window is not None and tokens + room > window:
                messages = fitted(request.messages, window - room, self._settings.on_long, self._counter(request))
                if messages is None:
                    return Answer(key, "", "error", tokens, error=too_long(tokens, room, window))
                request = replace(request, messages=messages)
                cut, tokens = tokens, self._count([request])[0]
                cut -= tokens
        else:
            texts = (*(message.content for message in request.messages), request.prefill)
            tokens = sum(map(len, texts)) // CHARACTERS_A_TOKEN
        try:
            if request.scored and self._settings.server == "vllm":
                await self._learn_tokens(request.scored)
            answer = await self._persist(key, request, tokens + room)
        except _GivenUp as error:
            raise _GivenUp(self._redacted(str(error)), error.reached) from error
        if self._token and len(self._token) >= LONG_TOKEN:
            answer = replace(answer, text=self._redacted(answer.text))
        if answer.error is not None:
            answer = replace(answer, error=self._redacted(answer.error))
        return replace(answer, cut_tokens=cut) if cut else answer

    def _defused(self, request: Request) -> Request:
        """Return the request without text that the named tokenizer would take for the end of a turn."""
        if self._template is None:
            return request
        messages = (replace(message, content=self._template.defused(message.content)) for message in request.messages)
        return replace(request, messages=tuple(messages), prefill=self._template.defused(request.prefill))

    def _counter(self, request: Request) -> Callable[[Sequence[Message]], int]:
        count = self._count
        assert count is not None
        return lambda messages: count([replace(request, messages=tuple(messages))])[0]

    async def _persist(self, key: str, request: Request, tokens: int) -> Answer:
        """Try a request until it is answered, refused, or given up."""
        try:
            body = body_of(
                request,
                model=self._settings.model,
                server=self._settings.server,
                extra=self._settings.extra,
                token_ids=self._token_ids,
            )
        except Unsupported as error:
            raise self._failed(
                f"a step wants {error}, which server: {self._settings.server} has no way to ask for; write server: vllm where it is "
                "a vLLM server, or change the step"
            ) from error
        answer: Answer = await self._tried(
            "/chat/completions" if request.messages else "/completions",
            body,
            tokens,
            lambda reply: answer_of(key, request, reply, self._token_ids),
            lambda why: Answer(key, "", "error", error=f"{'prompt_too_long' if is_too_long(why) else 'refused'}: {why}"),
        )
        return answer

    async def _learn_tokens(self, texts: Sequence[str]) -> None:
        """Ask a vLLM server for the token that each text is. Raises BackendError where one is several."""
        async with self._learning:
            for text in texts:
                if text not in self._token_ids:
                    body = {"model": self._settings.model, "prompt": text, "add_special_tokens": False}
                    url = self._settings.base_url.removesuffix("/v1") + "/tokenize"
                    found = await self._tried(url, body, 0, lambda reply: list(map(int, reply["tokens"])), lambda why: why)
                    if isinstance(found, str):
                        raise self._failed(f"{url} can't tell the token of '{text}': {found}")
                    if len(found) != 1:
                        raise self._failed(
                            f"'{text}' is {len(found)} tokens of this model, so it can't be scored; judge by text"
                        )
                    self._token_ids[text] = found[0]

    async def _tried(
        self, path: str, body: dict[str, Any], tokens: int, read: Callable[[Any], Any], refused: Callable[[str], Any]
    ) -> Any:
        """Return what `read` makes of the reply, or `refused` of a refusal that would repeat. Raises _GivenUp, BackendError."""
        content = orjson.dumps(body)
        url = path if path.startswith("http") else self._settings.base_url + path
        last: float | None = None
        for number in range(1, self._settings.retries + 2):
            async with self._slots:
                await self._pace.turn(tokens)
                last = last or time.monotonic() + self._settings.deadline
                seconds = min(self._settings.timeout, max(0.0, last - time.monotonic()))
                try:
                    async with asyncio.timeout(seconds):
                        return await self._try(url, content, read, refused)
                except TimeoutError:
                    failure = _TryAgain(f"no answer in {seconds:.3g} s")
                except _TryAgain as error:
                    failure = error
            tries = f"{number} {'try' if number == 1 else 'tries'}: {failure}"
            if number > self._settings.retries:
                raise _GivenUp(tries, failure.reached)
            wait = min(LONGEST_WAIT, FIRST_WAIT * 2 ** (number - 1)) * random.uniform(0.5, 1.0)  # noqa: S311
            if failure.wait is not None:
                # Wait as long as the server says, and a little more, not all at the same moment.
                wait = failure.wait + wait / 4
            if time.monotonic() + wait > last:
                late = f"{tries}; the deadline of {self._settings.deadline:g} s leaves no time for another"
                raise _GivenUp(late, failure.reached)
            if failure.wait is not None:
                self._pace.pause(failure.wait)
            await asyncio.sleep(wait)
        raise AssertionError("unreachable")

    async def _try(self, url: str, content: bytes, read: Callable[[Any], Any], refused: Callable[[str], Any]) -> Any:
        import httpx2

        try:
            response = await self._client.post(url, content=content)
        except httpx2.TransportError as error:
            reached = not isinstance(error, (httpx2.ConnectError, httpx2.ConnectTimeout))
            raise _TryAgain(f"{type(error).__name__}: {error}".rstrip(": "), reached=reached) from error
        status = response.status_code
        if status == 200:
            try:
                return read(orjson.loads(response.content))
            except (orjson.JSONDecodeError, BrokenReply, KeyError, TypeError) as error:
                raise _TryAgain(f"a broken reply: {error}") from error
        why = error_message(response.content)
        if status in (401, 402) or (status == 403 and not self._answered):
            raise self._failed(f"{status}: {why}; {self._about_token()}")
        if status in (404, 405) or 300 <= status < 400:
            raise self._failed(f"{status}: {why}{await self._served()}")
        if status == 429 and re.search(r"insufficient_quota|billing", why):
            raise self._failed(f"{status}: {why}")
        if status in _AGAIN or (status >= 500 and status != 501):
            wait = _retry_after(response.headers.get("retry-after"))
            raise _TryAgain(f"{status}: {why}", wait=wait)
        return refused(why)

    def _about_token(self) -> str:
        name = self._settings.token_env
        if self._token:
            return f"the token is that of the environment variable {name}"
        return f"no token was sent: the environment variable {name} is not set"

    async def _served(self) -> str:
        """Return, for an error, what the endpoint says that it serves."""
        try:
            async with asyncio.timeout(CONNECT_S):
                response = await self._client.get(f"{self._settings.base_url}/models")
                names = [str(entry["id"]) for entry in orjson.loads(response.content)["data"]]
        except Exception:  # whatever comes of it, it only helps to explain another error
            return "; it lists no models either: is base_url right?"
        if self._settings.model in names:
            return "; it serves the model, so base_url may lack its end, such as /v1"
        return f"; it serves no '{self._settings.model}'{suggestion(self._settings.model, names)}"


def _token(settings: OpenAISettings) -> str | None:
    token = os.environ.get(settings.token_env, "").strip()
    if token and not _HEADER_VALUE.fullmatch(token):
        raise BackendError(f"the environment variable {settings.token_env} holds characters that no token has")
    return token or None


def _retry_after(value: str | None) -> float | None:
    """Return the seconds that a Retry-After header says, as a number or as a date."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


backend: Any = OpenAIBackend()
