"""The middle of every LLM operator: requests -> the answers that are missing, asked -> collect."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import polars as pl

from ptk.llm.answers import AnswerStore
from ptk.llm.backend import ResolvedModel, Session
from ptk.llm.request import Answer, Request, Sampling, request_key
from ptk.operator import KEY, LlmOperator

__all__ = ["Asking", "Tally"]

_CHUNK = 256
"""Answers in a segment, at most: what a kill can lose when a model answers fast."""
_CHUNK_SECONDS = 5.0
"""Age of the oldest answer not yet stored, at most: what a kill can lose when it answers slowly."""


@dataclass(slots=True)
class Tally:
    """What was asked so far, for the progress line and the summary."""

    total: int = 0
    answered_before: int = 0
    asked: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    seconds: float = 0.0
    """From the first request sent to the last answer stored."""
    starting: float = 0.0
    """Until the model was there."""
    unanswered: int = 0
    """Different requests that failed for now: a later run asks them again."""
    truncated: int = 0
    """Requests, answered before or now, of whose prompt something was left out to fit the model's window."""


@dataclass(slots=True)
class Asking:
    """One LLM step at work on one frame; `batches` gives the frame, `_key` included, the same at every call."""

    operator: LlmOperator
    params: Any
    batches: Callable[[], Iterable[pl.DataFrame]]
    model: ResolvedModel
    sampling: Sampling
    store: AnswerStore
    on_progress: Callable[[Tally], None] = lambda tally: None
    tally: Tally = field(default_factory=Tally)
    allow: Callable[[int], None] = lambda requests: None
    """Called with the number of requests of each round before any of them is asked; raises where they are too many."""
    _index: list[pl.DataFrame] = field(default_factory=list)
    """For each batch: row, slot and key of every request so far."""
    _earlier: list[pl.DataFrame] = field(default_factory=list)
    """The same, without the requests of the round at work: what that round's requests are made from."""
    _refused: dict[str, Answer] = field(default_factory=dict)
    """Requests that have no answer, by key: those the model can't take (a prompt too long), which is cheap to find again, and
    those that failed for now."""

    def outstanding(self) -> int:
        """Return how many different requests of the first round have no stored answer. Asks nothing."""
        self._note_requests()
        return self.store.missing(self._keys()).len()

    def request_count(self) -> int:
        """Return how many different requests were noted."""
        return self._keys()["key"].n_unique()

    def first_requests(self) -> Iterator[Request]:
        """Yield the requests of the first round, answered or not. Asks nothing."""
        for batch in self.batches():
            yield from self._requests(batch, {})

    def to_ask(self) -> Iterator[Request]:
        """Yield the requests of the first round that have no stored answer. Asks nothing."""
        missing = set(self.store.missing(self._keys()).to_list())
        for batch in self.batches():
            for request in self._requests(batch, {}):
                if bytes.fromhex(request_key(request, self.model.identity)) in missing:
                    yield request

    def run(self, open_session: Callable[[], Session], *, again: bool = False) -> Iterator[pl.DataFrame]:
        """Ask what is missing, then yield the operator's decision about each batch.

        `again` asks even what is answered already. The session is opened only if something is missing. Raises BackendError
        when the model stays out of reach; answers that came before that are stored.
        """
        asked: set[bytes] = set()
        for _ in range(self.operator.max_rounds):
            if not self._note_requests():
                break
            keys = self._keys()
            # What an earlier round asked is not asked again, whether it is in the store by now or was refused.
            missing = set(keys["key"] if again else self.store.missing(keys)) - asked
            asked |= missing
            self.tally.total = keys["key"].n_unique()
            self.tally.answered_before = self.tally.total - len(asked)
            self.on_progress(self.tally)
            if missing:
                self.allow(len(missing))
                started = time.monotonic()
                session = open_session()
                opened = time.monotonic()
                self.tally.starting += opened - started
                self._ask(session, missing)
                self.tally.seconds += time.monotonic() - opened
        yield from self._collected()

    def _note_requests(self) -> bool:
        """Add this round's new requests to the index; return whether there were any."""
        self._earlier = self._index
        answers = self._answers_by_batch(self._earlier)
        new = False
        index: list[pl.DataFrame] = []
        for number, batch in enumerate(self.batches()):
            noted = self._index[number] if number < len(self._index) else None
            known = set(zip(noted["row"], noted["slot"], strict=True)) if noted is not None else set()
            rows, slots, keys = [], [], []
            for request in self._requests(batch, next(answers)):
                if (request.row, request.slot) not in known:
                    rows.append(request.row)
                    slots.append(request.slot)
                    keys.append(bytes.fromhex(request_key(request, self.model.identity)))
            fresh = pl.DataFrame(
                {"row": rows, "slot": slots, "key": keys}, schema={"row": pl.String, "slot": pl.String, "key": pl.Binary}
            )
            new = new or fresh.height > 0
            index.append(fresh if noted is None else pl.concat([noted, fresh]))
        self._index = index
        return new

    def _requests(self, batch: pl.DataFrame, answers: Mapping[tuple[str, str], Answer]) -> Iterator[Request]:
        shown = () if self.model.cases is None else (self.model.cases.cases,)
        for request in self.operator.requests(batch, answers, self.params, *shown):
            own = dict(request.decided)
            sampling = self.sampling.model_copy(update=own) if own else self.sampling
            yield replace(request, sampling=sampling, adapter=self.model.adapter)

    def _keys(self) -> pl.DataFrame:
        if not self._index:
            return pl.DataFrame(schema={"row": pl.String, "slot": pl.String, "key": pl.Binary})
        return pl.concat(self._index)

    def _missing_requests(self, missing: set[bytes]) -> Iterator[tuple[str, Request]]:
        answers = self._answers_by_batch(self._earlier)
        for batch in self.batches():
            for request in self._requests(batch, next(answers)):
                key = request_key(request, self.model.identity)
                if (raw := bytes.fromhex(key)) in missing:
                    missing.remove(raw)  # the same question of another row is asked once
                    yield key, request

    def _ask(self, session: Session, missing: set[bytes]) -> None:
        chunk: list[Answer] = []
        stored_at = time.monotonic()
        try:
            for answer in session.answer(self._missing_requests(missing)):
                self.tally.asked += 1
                self.tally.prompt_tokens += answer.prompt_tokens
                self.tally.output_tokens += answer.output_tokens
                self.tally.cached_tokens += answer.cached_tokens
                if answer.error is not None:
                    self._refused[answer.key] = answer
                    self.tally.unanswered += answer.unanswered
                else:
                    chunk.append(answer)
                self.on_progress(self.tally)
                if len(chunk) >= _CHUNK or (chunk and time.monotonic() - stored_at >= _CHUNK_SECONDS):
                    full, chunk, stored_at = chunk, [], time.monotonic()
                    self.store.append(full)
        finally:
            self.store.append(chunk)

    def _answers_by_batch(self, indexes: list[pl.DataFrame]) -> Iterator[Mapping[tuple[str, str], Answer]]:
        """Yield for each batch the stored answers to the requests in its index; nothing, for ever, where there is none."""
        if indexes:
            found = self.store.find(pl.concat(indexes))
            start = 0
            for index in indexes:
                yield self._mapping(found.slice(start, index.height))
                start += index.height
        while True:
            yield {}

    def _mapping(self, found: pl.DataFrame) -> dict[tuple[str, str], Answer]:
        answers: dict[tuple[str, str], Answer] = {}
        for row, slot, raw, text, reason, prompt, output, cached, scores, cut in found.iter_rows():
            key = raw.hex()
            if text is not None:
                known = None if scores is None else tuple(scores)
                answers[row, slot] = Answer(key, text, reason, prompt, output, cached, known, cut_tokens=cut or 0)
            elif key in self._refused:
                answers[row, slot] = self._refused[key]
        return answers

    def _collected(self) -> Iterator[pl.DataFrame]:
        answers = self._answers_by_batch(self._index)
        for batch in self.batches():
            given = next(answers)
            self.tally.truncated += sum(1 for answer in given.values() if answer.cut_tokens)
            decision = self.operator.collect(batch, given, self.params)
            joined = batch.select(KEY).join(decision, on=KEY, how="left", coalesce=False, maintain_order="left")
            # The decision's own key: null where it forgot a row, which is then found out.
            yield joined.drop(KEY).rename({f"{KEY}_right": KEY})
