from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from ptk.errors import BackendError, StoreError
from ptk.llm import ask
from ptk.llm.answers import AnswerStore
from ptk.llm.ask import Asking
from ptk.llm.backend import ResolvedModel
from ptk.llm.request import Answer, Message, Request, Sampling
from ptk.operator import KEY, Answers, LlmOperator
from ptk.params import Params

MODEL = ResolvedModel("test/model", {"model": "test"}, {})


class NoParams(Params):
    pass


@dataclass
class Session:
    """Answers by a rule and notes what it was asked."""

    rule: Callable[[str], str] = str.upper
    fail_after: int | None = None
    refused: frozenset[str] = frozenset()
    backwards: bool = False
    asked: list[str] = field(default_factory=list)
    sampling: list[Sampling] = field(default_factory=list)
    opened: int = 0

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def open(self) -> Session:
        self.opened += 1
        return self

    def answer(self, requests: Iterable[tuple[str, Request]]) -> Iterator[Answer]:
        for key, request in list(requests)[::-1] if self.backwards else requests:
            if self.fail_after is not None and len(self.asked) >= self.fail_after:
                raise BackendError("the engine stopped")
            question = request.messages[-1].content
            self.asked.append(question)
            self.sampling.append(request.sampling)
            if question in self.refused:
                yield Answer(key, "", "error", error="prompt_too_long: too long")
            else:
                yield Answer(key, self.rule(question), "stop", 5, 2, 1)


def request(row: str, slot: str, question: str) -> Request:
    return Request(row, slot, (Message("user", question),))


def plain(frame: pl.DataFrame, answers: Answers, params: NoParams) -> Iterator[Request]:
    for row in frame.iter_rows(named=True):
        yield request(row[KEY], "only", row["text"])


def collect_plain(frame: pl.DataFrame, answers: Answers, params: NoParams) -> pl.DataFrame:
    def given(row: str) -> str | None:
        answer = answers.get((row, "only"))
        return None if answer is None else answer.error or answer.text

    return pl.DataFrame({KEY: frame[KEY], "answer": [given(row) for row in frame[KEY]]}, schema_overrides={"answer": pl.String})


PLAIN = LlmOperator("plain", NoParams, 1, ("frame",), "Ask once.", plain, collect_plain)


def two_rounds(frame: pl.DataFrame, answers: Answers, params: NoParams) -> Iterator[Request]:
    """Ask about the text, then about the answer to it."""
    for row in frame.iter_rows(named=True):
        first = answers.get((row[KEY], "first"))
        yield request(row[KEY], "first", row["text"])
        if first is not None and first.error is None:
            yield request(row[KEY], "second", f"and {first.text}")


def collect_two_rounds(frame: pl.DataFrame, answers: Answers, params: NoParams) -> pl.DataFrame:
    second = [answers.get((row, "second")) for row in frame[KEY]]
    return pl.DataFrame({KEY: frame[KEY], "answer": [None if item is None else item.text for item in second]})


TWO_ROUNDS = LlmOperator("two_rounds", NoParams, 1, ("frame",), "Ask twice.", two_rounds, collect_two_rounds, max_rounds=2)


def asking(folder: Path, texts: list[str], operator: LlmOperator = PLAIN, size: int = 2) -> Asking:
    frame = pl.DataFrame({KEY: [f"row-{number}" for number in range(len(texts))], "text": texts})
    return Asking(
        operator=operator,
        params=NoParams(),
        batches=lambda: frame.iter_slices(size),
        model=MODEL,
        sampling=Sampling(max_tokens=9),
        store=AnswerStore(folder, MODEL.identity),
    )


def answers(work: Asking, session: Session, **settings: Any) -> list[str | None]:
    return pl.concat(list(work.run(session.open, **settings)))["answer"].to_list()


def stored(folder: Path) -> int:
    return sum(pl.read_parquet(path).height for path in folder.rglob("*.parquet"))


def test_every_row_gets_the_answer_to_its_question(tmp_path: Path) -> None:
    session = Session()
    work = asking(tmp_path, ["a", "b", "c", "d", "e"])
    assert answers(work, session) == ["A", "B", "C", "D", "E"]
    assert (work.tally.total, work.tally.asked, work.tally.answered_before) == (5, 5, 0)
    assert (work.tally.prompt_tokens, work.tally.output_tokens, work.tally.cached_tokens) == (25, 10, 5)


def test_answers_may_come_in_any_order(tmp_path: Path) -> None:
    assert answers(asking(tmp_path, ["a", "b", "c"]), Session(backwards=True)) == ["A", "B", "C"]


def test_requests_are_sent_with_the_model_s_sampling(tmp_path: Path) -> None:
    session = Session()
    answers(asking(tmp_path, ["a"]), session)
    assert session.sampling == [Sampling(max_tokens=9)]


def test_what_an_operator_decides_of_the_sampling_goes_before_the_model_s(tmp_path: Path) -> None:
    def drawn(frame: pl.DataFrame, answers: Answers, params: NoParams) -> Iterator[Request]:
        return (replace(one, decided=(("temperature", 0.7), ("stop", ("\n",)))) for one in plain(frame, answers, params))

    session = Session()
    answers(asking(tmp_path, ["a"], replace(PLAIN, requests=drawn)), session)
    assert session.sampling == [Sampling(max_tokens=9, temperature=0.7, stop=("\n",))]
    answers(asking(tmp_path, ["a"]), session)
    assert session.sampling[1:] == [Sampling(max_tokens=9)]


def test_what_was_answered_is_not_asked_again_and_the_model_is_not_opened(tmp_path: Path) -> None:
    answers(asking(tmp_path, ["a", "b"]), Session())
    session = Session()
    work = asking(tmp_path, ["a", "b"])
    assert answers(work, session) == ["A", "B"]
    assert (session.opened, work.tally.asked, work.tally.answered_before) == (0, 0, 2)


def test_only_a_changed_row_is_asked(tmp_path: Path) -> None:
    answers(asking(tmp_path, ["a", "b", "c"]), Session())
    session = Session()
    work = asking(tmp_path, ["a", "new", "c"])
    assert answers(work, session) == ["A", "NEW", "C"]
    assert (session.asked, work.tally.answered_before) == (["new"], 2)


def test_the_same_question_of_several_rows_is_asked_once(tmp_path: Path) -> None:
    session = Session()
    work = asking(tmp_path, ["a", "b", "a", "a", "b"])
    assert answers(work, session) == ["A", "B", "A", "A", "B"]
    assert session.asked == ["a", "b"]
    assert (work.tally.total, work.request_count()) == (2, 2)


def test_asking_again_takes_the_new_answers(tmp_path: Path) -> None:
    answers(asking(tmp_path, ["a", "b"]), Session())
    work = asking(tmp_path, ["a", "b"])
    assert answers(work, Session(rule=lambda question: f"{question}!"), again=True) == ["a!", "b!"]
    assert (work.tally.asked, work.tally.answered_before) == (2, 0)
    session = Session()
    assert answers(asking(tmp_path, ["a", "b"]), session) == ["a!", "b!"]
    assert session.asked == []


def test_answers_that_came_before_a_failure_are_not_asked_again(tmp_path: Path) -> None:
    with pytest.raises(BackendError):
        answers(asking(tmp_path, ["a", "b", "c", "d", "e"]), Session(fail_after=3))
    session = Session()
    work = asking(tmp_path, ["a", "b", "c", "d", "e"])
    assert answers(work, session) == ["A", "B", "C", "D", "E"]
    assert (session.asked, work.tally.answered_before) == (["d", "e"], 3)


def test_answers_are_stored_in_chunks_while_the_model_is_at_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ask, "_CHUNK", 2)
    seen: list[int] = []

    def rule(question: str) -> str:
        seen.append(stored(tmp_path))
        return question

    answers(asking(tmp_path, ["a", "b", "c", "d", "e"]), Session(rule=rule))
    assert seen == [0, 0, 2, 2, 4]
    assert stored(tmp_path) == 5


def test_answers_that_come_slowly_are_stored_when_they_are_some_seconds_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ask, "_CHUNK_SECONDS", 0.0)
    seen: list[int] = []

    def rule(question: str) -> str:
        seen.append(stored(tmp_path))
        return question

    answers(asking(tmp_path, ["a", "b", "c"]), Session(rule=rule))
    assert seen == [0, 1, 2]


def test_a_full_disk_stops_the_asking_and_what_was_stored_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ask, "_CHUNK", 2)
    append = AnswerStore.append

    def full(self: AnswerStore, items: list[Answer]) -> None:
        if any(item.text == "C" for item in items):
            raise StoreError("can't store answers: No space left on device")
        append(self, items)

    with monkeypatch.context() as patched:
        patched.setattr(AnswerStore, "append", full)
        with pytest.raises(StoreError, match="No space left"):
            answers(asking(tmp_path, ["a", "b", "c", "d", "e"]), Session())
    session = Session()
    assert answers(asking(tmp_path, ["a", "b", "c", "d", "e"]), session) == ["A", "B", "C", "D", "E"]
    assert session.asked == ["c", "d", "e"]


def test_a_refused_request_tells_its_row_why_and_is_tried_again_in_the_next_run(tmp_path: Path) -> None:
    session = Session(refused=frozenset({"b"}))
    work = asking(tmp_path, ["a", "b"])
    assert answers(work, session) == ["A", "prompt_too_long: too long"]
    assert (work.tally.asked, stored(tmp_path)) == (2, 1)
    assert answers(asking(tmp_path, ["a", "b"]), session) == ["A", "prompt_too_long: too long"]
    assert session.asked == ["a", "b", "b"]


def test_a_second_round_builds_on_the_answers_of_the_first(tmp_path: Path) -> None:
    session = Session()
    work = asking(tmp_path, ["a", "b", "c"], TWO_ROUNDS)
    assert answers(work, session) == ["AND A", "AND B", "AND C"]
    assert session.asked == ["a", "b", "c", "and A", "and B", "and C"]
    assert (work.tally.total, work.tally.asked, work.tally.answered_before) == (6, 6, 0)


def test_a_second_round_goes_on_where_a_failure_left_it(tmp_path: Path) -> None:
    with pytest.raises(BackendError):
        answers(asking(tmp_path, ["a", "b", "c"], TWO_ROUNDS), Session(fail_after=4))
    session = Session()
    work = asking(tmp_path, ["a", "b", "c"], TWO_ROUNDS)
    assert answers(work, session) == ["AND A", "AND B", "AND C"]
    assert (session.asked, work.tally.asked, work.tally.answered_before) == (["and B", "and C"], 2, 4)


def test_both_rounds_are_asked_again_once(tmp_path: Path) -> None:
    answers(asking(tmp_path, ["a", "b"], TWO_ROUNDS), Session())
    session = Session(rule=str.title)
    work = asking(tmp_path, ["a", "b"], TWO_ROUNDS)
    assert answers(work, session, again=True) == ["And A", "And B"]
    assert session.asked == ["a", "b", "and A", "and B"]
    assert (work.tally.total, work.tally.asked, work.tally.answered_before) == (4, 4, 0)


def test_what_the_first_round_refused_is_not_asked_in_the_second(tmp_path: Path) -> None:
    session = Session(refused=frozenset({"b"}))
    work = asking(tmp_path, ["a", "b"], TWO_ROUNDS)
    assert answers(work, session) == ["AND A", None]
    assert session.asked == ["a", "b", "and A"]
    assert (work.tally.total, work.tally.asked, work.tally.answered_before) == (3, 3, 0)


def test_no_more_rounds_are_asked_than_the_operator_allows(tmp_path: Path) -> None:
    def endless(frame: pl.DataFrame, given: Answers, params: NoParams) -> Iterator[Request]:
        for row in frame[KEY]:
            yield request(row, f"slot-{len(given)}", f"question {len(given)}")

    operator = LlmOperator("endless", NoParams, 1, ("frame",), "Ask on.", endless, collect_plain, max_rounds=3)
    session = Session()
    answers(asking(tmp_path, ["a"], operator), session)
    assert session.asked == ["question 0", "question 1", "question 2"]


def test_a_decision_that_forgets_rows_leaves_their_keys_out(tmp_path: Path) -> None:
    def forgetful(frame: pl.DataFrame, given: Answers, params: NoParams) -> pl.DataFrame:
        return collect_plain(frame, given, params).filter(pl.col(KEY) != "row-1").reverse()

    operator = LlmOperator("forgetful", NoParams, 1, ("frame",), "Ask once.", plain, forgetful)
    decisions = pl.concat(list(asking(tmp_path, ["a", "b", "c"], operator, size=3).run(Session().open)))
    assert decisions.select(KEY, "answer").rows() == [("row-0", "A"), (None, None), ("row-2", "C")]


def test_what_is_outstanding_is_told_without_asking(tmp_path: Path) -> None:
    answers(asking(tmp_path, ["a", "b"]), Session())
    work = asking(tmp_path, ["a", "c", "c", "d"])
    assert work.outstanding() == 2
    assert work.request_count() == 3
    assert {item.messages[-1].content for item in work.to_ask()} == {"c", "d"}


def test_a_frame_of_no_rows_asks_nothing(tmp_path: Path) -> None:
    session = Session()
    work = asking(tmp_path, [])
    assert list(work.run(session.open)) == []
    assert (session.opened, work.outstanding()) == (0, 0)


def follow_up(frame: pl.DataFrame, answers: Answers, params: NoParams) -> Iterator[Request]:
    """Ask about the text; once that is answered, about the answer alone."""
    for row in frame.iter_rows(named=True):
        first = answers.get((row[KEY], "first"))
        if first is None:
            yield request(row[KEY], "first", row["text"])
        elif (row[KEY], "second") not in answers:
            yield request(row[KEY], "second", f"and {first.text}")


@pytest.mark.parametrize("failed_after", [1, 3, 5])
def test_a_round_s_requests_are_made_from_earlier_rounds_alone(tmp_path: Path, failed_after: int) -> None:
    operator = LlmOperator("follow_up", NoParams, 1, ("frame",), "Ask on.", follow_up, collect_two_rounds, max_rounds=2)
    questions = ["a", "b", "c", "and A", "and B", "and C"]
    with pytest.raises(BackendError):
        answers(asking(tmp_path, ["a", "b", "c"], operator), Session(fail_after=failed_after))
    for again, expected in ((False, questions[failed_after:]), (False, []), (True, questions)):
        session = Session()
        assert answers(asking(tmp_path, ["a", "b", "c"], operator), session, again=again) == ["AND A", "AND B", "AND C"]
        assert session.asked == expected
