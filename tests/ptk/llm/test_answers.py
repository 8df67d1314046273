from __future__ import annotations

import errno
import hashlib
import os
import resource
import threading
from pathlib import Path

import polars as pl
import pytest

from ptk.errors import StoreError
from ptk.llm.answers import AnswerStore
from ptk.llm.request import Answer

MODEL = {"weights": "abc"}


def key(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def answer(number: int, text: str = "") -> Answer:
    return Answer(key(number), text or f"Answer {number}.", "stop", 10, 3, 2)


def asked(*numbers: int) -> pl.DataFrame:
    keys = [bytes.fromhex(key(number)) for number in numbers]
    return pl.DataFrame({"row": [f"row-{number}" for number in numbers], "key": keys})


def texts(store: AnswerStore, *numbers: int) -> list[str | None]:
    return store.find(asked(*numbers))["text"].to_list()


def test_what_was_appended_is_found_whole_and_in_the_order_of_the_question(tmp_path: Path) -> None:
    store = AnswerStore(tmp_path, MODEL)
    store.append([answer(1), answer(2)])
    store.append([answer(3)])
    found = AnswerStore(tmp_path, MODEL).find(asked(3, 9, 1, 3))
    assert found["row"].to_list() == ["row-3", "row-9", "row-1", "row-3"]
    assert found.drop("row", "key").rows() == [
        ("Answer 3.", "stop", 10, 3, 2),
        (None, None, None, None, None),
        ("Answer 1.", "stop", 10, 3, 2),
        ("Answer 3.", "stop", 10, 3, 2),
    ]


def test_an_empty_store_has_no_answers(tmp_path: Path) -> None:
    store = AnswerStore(tmp_path, MODEL)
    assert texts(store, 1) == [None]
    assert store.missing(asked(1, 1)).to_list() == [bytes.fromhex(key(1))]


def test_a_key_is_missing_once_and_only_where_no_answer_is_stored(tmp_path: Path) -> None:
    store = AnswerStore(tmp_path, MODEL)
    store.append([answer(1)])
    assert sorted(store.missing(asked(1, 2, 2, 3))) == sorted(bytes.fromhex(key(number)) for number in (2, 3))


def test_an_empty_text_is_an_answer(tmp_path: Path) -> None:
    store = AnswerStore(tmp_path, MODEL)
    store.append([Answer(key(1), "", "stop")])
    assert texts(store, 1) == [""]
    assert store.missing(asked(1)).is_empty()


def test_models_do_not_see_each_other_s_answers(tmp_path: Path) -> None:
    AnswerStore(tmp_path, MODEL).append([answer(1)])
    assert texts(AnswerStore(tmp_path, {"weights": "abd"}), 1) == [None]


def test_of_two_answers_to_one_question_the_newest_counts(tmp_path: Path) -> None:
    store = AnswerStore(tmp_path, MODEL)
    for text in ("first", "second", "third"):
        store.append([answer(1, text), answer(2)])
    assert texts(store, 1, 2) == ["third", "Answer 2."]


def test_appending_nothing_writes_nothing(tmp_path: Path) -> None:
    AnswerStore(tmp_path, MODEL).append([])
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing_half_written_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = AnswerStore(tmp_path, MODEL)
    store.append([answer(1)])

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(StoreError, match=r"can't store answers in .*: No space left on device; make room and run again"):
            store.append([answer(2)])
    assert [path.suffix for path in store.folder.iterdir()] == [".parquet"]
    assert texts(store, 1, 2) == ["Answer 1.", None]


def test_a_segment_that_the_disk_takes_in_part_is_removed(tmp_path: Path) -> None:
    store = AnswerStore(tmp_path, MODEL)
    store.append([answer(1)])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, before[1]))
    try:
        with pytest.raises(StoreError, match=r"can't store answers in .*: File too large"):
            store.append([answer(2)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.suffix for path in store.folder.iterdir()] == [".parquet"]
    assert texts(store, 1, 2) == ["Answer 1.", None]


def test_a_folder_that_can_not_be_made_is_reported(tmp_path: Path) -> None:
    (tmp_path / "answers").write_text("in the way")
    with pytest.raises(StoreError, match="can't store answers in"):
        AnswerStore(tmp_path / "answers", MODEL).append([answer(1)])


def test_a_segment_being_written_is_not_read(tmp_path: Path) -> None:
    store = AnswerStore(tmp_path, MODEL)
    store.append([answer(1)])
    (store.folder / "half.aside").write_bytes(b"PAR1 and then")
    assert texts(store, 1) == ["Answer 1."]


def test_several_runs_append_at_once(tmp_path: Path) -> None:
    def append(start: int) -> None:
        for number in range(start, start + 10):
            AnswerStore(tmp_path, MODEL).append([answer(number)])

    writers = [threading.Thread(target=append, args=(start,)) for start in (0, 10, 20, 30)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert AnswerStore(tmp_path, MODEL).missing(asked(*range(40))).is_empty()
