from __future__ import annotations

import errno
import fcntl
import hashlib
import itertools
import os
import re
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import ptk.llm.answers as answers_module
from ptk.errors import StoreError
from ptk.llm.answers import AnswerStore, clear_answers, stored_models
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
        ("Answer 3.", "stop", 10, 3, 2, None, 0),
        (None, None, None, None, None, None, None),
        ("Answer 1.", "stop", 10, 3, 2, None, 0),
        ("Answer 3.", "stop", 10, 3, 2, None, 0),
    ]


def test_scores_are_stored_beside_answers_without_any(tmp_path: Path) -> None:
    store = AnswerStore(tmp_path, MODEL)
    store.append([Answer(key(1), "1", "stop", 10, 1, 0, (-0.5, -1.25)), answer(2)])
    assert store.find(asked(2, 1))["scores"].to_list() == [None, [-0.5, -1.25]]


def test_segments_written_before_there_were_scores_and_cuts_are_read(tmp_path: Path) -> None:
    store = AnswerStore(tmp_path, MODEL)
    store.append([answer(1)])
    segment = next(store.folder.glob("*.parquet"))
    pl.read_parquet(segment).drop("scores", "cut_tokens").write_parquet(segment)
    store.append([Answer(key(2), "1", "stop", 10, 1, 0, (-0.5, -1.25), cut_tokens=7)])
    assert store.find(asked(1, 2))["scores"].to_list() == [None, [-0.5, -1.25]]
    assert store.find(asked(1, 2))["cut_tokens"].to_list() == [None, 7]


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
    assert sorted(path.suffix for path in store.folder.iterdir()) == [".json", ".parquet"]
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
    assert sorted(path.suffix for path in store.folder.iterdir()) == [".json", ".parquet"]
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


def parts(store: AnswerStore) -> list[Path]:
    return sorted(store.folder.glob("*.parquet"))


def appended_one_by_one(root: Path, count: int) -> AnswerStore:
    store = AnswerStore(root, MODEL)
    for number in range(count):
        store.append([answer(number)])
    return store


def test_merged_segments_give_the_same_answers_and_are_one(tmp_path: Path) -> None:
    store = appended_one_by_one(tmp_path, 9)
    store.append([Answer(key(9), "1", "stop", 10, 1, 0, (-0.5, -1.25))])
    before = store.find(asked(*range(12)))
    assert [item.merged for item in clear_answers(tmp_path)] == [10]
    assert len(parts(store)) == 1
    assert store.find(asked(*range(12))).equals(before)
    assert sorted(store.missing(asked(*range(12)))) == sorted(bytes.fromhex(key(number)) for number in (10, 11))
    assert [item.merged for item in clear_answers(tmp_path)] == [0]


def test_the_newest_answer_counts_whether_it_is_merged_or_not(tmp_path: Path) -> None:
    store = AnswerStore(tmp_path, MODEL)
    for text in ("first", "second"):
        store.append([answer(1, text), answer(2)])
    clear_answers(tmp_path)
    assert texts(store, 1) == ["second"]
    store.append([answer(1, "third")])
    assert texts(store, 1) == ["third"]
    clear_answers(tmp_path)
    assert texts(store, 1, 2) == ["third", "Answer 2."]
    assert pl.read_parquet(parts(store)).height == 2


def test_a_merged_segment_does_not_hide_a_newer_answer_in_a_segment_with_an_earlier_name(tmp_path: Path) -> None:
    store = AnswerStore(tmp_path, MODEL)
    store.append([answer(1, "old")])
    store.append([answer(1, "new")])
    new = parts(store)[1]
    store.append([answer(2)])
    old, _, other = parts(store)
    aside = new.rename(tmp_path / "away")
    clear_answers(tmp_path)  # the merged one is named after the newest of its parts
    assert not old.exists() and not other.exists()
    aside.rename(new)
    assert texts(store, 1) == ["new"]


def test_segments_of_earlier_versions_are_merged_by_the_time_in_their_names(tmp_path: Path) -> None:
    store = AnswerStore(tmp_path, MODEL)
    for text in ("first", "second"):
        store.append([answer(1, text)])
    for segment in parts(store):
        pl.read_parquet(segment).drop("scores", "cut_tokens", "at").write_parquet(segment)
    times = [int(path.name[:20]) for path in parts(store)]
    clear_answers(tmp_path)
    assert texts(store, 1) == ["second"]
    assert pl.read_parquet(parts(store))["at"].to_list() == times[1:]


def test_appending_merges_small_segments_now_and_then_and_rewrites_an_answer_only_a_few_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers_module, "_MANY", 4)
    written: list[int] = []
    write = answers_module._Segments.write

    def counted(segments: Any, frame: pl.DataFrame, newest: int) -> Path:
        written.append(frame.height)
        return write(segments, frame, newest)

    monkeypatch.setattr(answers_module._Segments, "write", counted)
    store = AnswerStore(tmp_path, MODEL)
    for number in range(300):
        store.append([answer(number, os.urandom(10_000).hex())])
    assert len(parts(store)) <= 16
    assert sum(written) <= 300 * 8
    assert store.missing(asked(*range(300))).is_empty()


def test_large_segments_are_left_alone_and_merges_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = appended_one_by_one(tmp_path, 12)
    size = max(path.stat().st_size for path in parts(store))
    monkeypatch.setattr(answers_module, "_MERGED", size * 4)
    clear_answers(tmp_path)
    assert len(parts(store)) == 3
    monkeypatch.setattr(answers_module, "_SMALL", 1)
    assert [item.merged for item in clear_answers(tmp_path)] == [0]
    assert store.missing(asked(*range(12))).is_empty()


class Killed(BaseException):
    """Stands for a SIGKILL: nothing of the code at work runs after it."""


def test_a_kill_at_any_step_of_a_merge_loses_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = 0
    left: set[tuple[int, int]] = set()
    for last in itertools.count():
        root = tmp_path / str(last)
        store = appended_one_by_one(root, 5)
        store.append([answer(0, "newer")])
        steps = 0
        with monkeypatch.context() as patched:

            def killed_at_last(function: Callable[..., Any], last: int = last) -> Callable[..., Any]:
                def call(*arguments: Any, **options: Any) -> Any:
                    nonlocal steps
                    if steps == last:
                        raise Killed
                    steps += 1
                    return function(*arguments, **options)

                return call

            patched.setattr(os, "fsync", killed_at_last(os.fsync))
            patched.setattr(Path, "replace", killed_at_last(Path.replace))
            patched.setattr(Path, "unlink", killed_at_last(Path.unlink))
            try:
                clear_answers(root)
                break
            except Killed:
                pass
        left.add((len(parts(store)), len(list(store.folder.glob("*.aside")))))
        for aside in store.folder.glob("*.aside"):
            aside.write_bytes(aside.read_bytes()[:100])
            os.utime(aside, (0, 0))
        expected = ["newer", *(f"Answer {number}." for number in range(1, 5))]
        assert texts(store, *range(5)) == expected, last
        assert store.missing(asked(*range(5))).is_empty(), last
        clear_answers(root)
        assert texts(store, *range(5)) == expected, last
        assert sorted(path.suffix for path in store.folder.iterdir()) == ["", ".json", ".parquet"], last
    assert steps == 9  # flush, rename, flush the folder, remove six parts
    assert left == {(6, 1), (7, 0), (6, 0), (5, 0), (4, 0), (3, 0), (2, 0)}


def test_a_reader_whose_list_is_out_of_date_lists_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = appended_one_by_one(tmp_path, 5)
    listed = answers_module._Segments.listed
    seen = []

    def overtaken(segments: Any) -> list[Path]:
        files = listed(segments)
        if not seen:
            seen.append(len(files))
            clear_answers(tmp_path)
        seen.append(len(files))
        return files

    monkeypatch.setattr(answers_module._Segments, "listed", overtaken)
    assert texts(store, 4, 0) == ["Answer 4.", "Answer 0."]
    seen.clear()
    store.append([answer(5)])
    assert sorted(store.missing(asked(0, 5, 6))) == [bytes.fromhex(key(6))]
    assert seen[-1] == 1


AT_ONCE = """
import hashlib, sys
from pathlib import Path
import polars as pl
import ptk.llm.answers as answers
from ptk.llm.request import Answer

answers._MANY = 4
root, role, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])


def key(name):
    return hashlib.sha256(name.encode()).hexdigest()


store = answers.AnswerStore(root, {"weights": "abc"})
if role == "merge":
    merged = 0
    while not (root / "over").exists():
        merged += sum(item.merged for item in answers.clear_answers(root))
    print(merged)
else:
    for number in range(count):
        store.append([Answer(key(f"{role}-{number}"), f"{role} {number}", "stop"), Answer(key(role), str(number), "stop")])
        names = [role, *(f"{role}-{earlier}" for earlier in range(number + 1))]
        keys = pl.DataFrame({"key": [bytes.fromhex(key(name)) for name in names]})
        assert store.missing(keys).is_empty(), number
        expected = [str(number), *(f"{role} {earlier}" for earlier in range(number + 1))]
        assert store.find(keys)["text"].to_list() == expected, number
"""


def test_processes_append_read_and_merge_at_once(tmp_path: Path) -> None:
    def start(role: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", AT_ONCE, str(tmp_path / "answers"), role, "120"]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    (tmp_path / "answers").mkdir()
    merger = start("merge")
    writers = [start("one"), start("two")]
    try:
        for writer in writers:
            _, errors = writer.communicate(timeout=120)
            assert writer.returncode == 0, errors
    finally:
        (tmp_path / "answers/over").touch()
        output, errors = merger.communicate(timeout=60)
    assert merger.returncode == 0, errors
    assert int(output) > 0
    assert len(list((tmp_path / "answers").glob("*/*.parquet"))) < 20
    assert [item.answers for item in stored_models(tmp_path / "answers")] != []


def test_a_disk_that_fills_up_while_segments_are_merged_keeps_them_all(tmp_path: Path) -> None:
    store = AnswerStore(tmp_path, MODEL)
    for number in range(10):
        store.append([answer(number, os.urandom(1000).hex())])
    listed = parts(store)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, before[1]))
    try:
        with pytest.raises(StoreError, match=r"can't store answers in .*: File too large; make room and run again"):
            clear_answers(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert parts(store) == listed
    assert list(store.folder.glob("*.aside")) == []
    assert store.missing(asked(*range(10))).is_empty()


def test_a_run_goes_on_where_there_is_no_room_to_merge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers_module, "_MANY", 4)
    store = AnswerStore(tmp_path, MODEL)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, before[1]))
    try:
        for number in range(10):
            store.append([answer(number, os.urandom(1000).hex())])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(parts(store)) == 10
    assert list(store.folder.glob("*.aside")) == []
    assert store.missing(asked(*range(10))).is_empty()


@pytest.mark.parametrize("damage", [b"", b"no Parquet", None])
def test_a_damaged_segment_is_named_with_what_to_do(tmp_path: Path, damage: bytes | None) -> None:
    store = appended_one_by_one(tmp_path, 3)
    damaged = parts(store)[1]
    damaged.write_bytes(damaged.read_bytes()[:-100] if damage is None else damage)
    said = rf"{re.escape(str(damaged))} is damaged \(.*\); delete it and run again: the answers in it are then asked again"
    works: list[Callable[[], object]] = [
        lambda: store.find(asked(0, 1)),
        lambda: store.missing(asked(0, 1)),
        lambda: clear_answers(tmp_path),
        lambda: clear_answers(tmp_path, keep_days=1),
        lambda: stored_models(tmp_path),
    ]
    for work in works:
        with pytest.raises(StoreError, match=said):
            work()
    damaged.unlink()
    assert texts(store, 0, 1, 2) == ["Answer 0.", None, "Answer 2."]


def test_a_segment_with_other_columns_is_named(tmp_path: Path) -> None:
    store = appended_one_by_one(tmp_path, 2)
    pl.DataFrame({"key": ["text"], "text": [1]}).write_parquet(parts(store)[0])
    with pytest.raises(StoreError, match=re.escape(f"{parts(store)[0]} is damaged")):
        store.missing(asked(0, 1))


def aged(store: AnswerStore, days: float) -> None:
    """Make the segments that are there that much older, as a version without stored times would have written them."""
    for segment in parts(store):
        earlier = int(segment.name[:20]) - int(days * 86_400e9)
        pl.read_parquet(segment).drop("at").write_parquet(segment.with_name(f"{earlier:020}-{segment.name[21:]}"))
        segment.unlink()


def test_only_answers_older_than_asked_for_are_removed_from_merged_segments_too(tmp_path: Path) -> None:
    store = appended_one_by_one(tmp_path, 3)
    aged(store, 40)
    clear_answers(tmp_path)
    store.append([answer(3)])
    clear_answers(tmp_path)
    assert [item.answers for item in clear_answers(tmp_path, keep_days=30, dry_run=True)] == [3]
    assert store.missing(asked(*range(4))).is_empty()
    assert [item.answers for item in clear_answers(tmp_path, keep_days=50)] == [0]
    assert [item.answers for item in clear_answers(tmp_path, keep_days=30)] == [3]
    assert texts(store, 0, 1, 2, 3) == [None, None, None, "Answer 3."]
    assert [item.answers for item in clear_answers(tmp_path, keep_days=0)] == [1]
    assert parts(store) == []


def test_half_written_files_go_when_they_are_old_and_nobody_writes_them(tmp_path: Path) -> None:
    store = appended_one_by_one(tmp_path, 1)
    for name, age in (("young", 60), ("held", 7200), ("dead", 7200)):
        (store.folder / f"{name}.aside").write_bytes(b"PAR1")
        os.utime(store.folder / f"{name}.aside", (time.time() - age, time.time() - age))
    with (store.folder / "held.aside").open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert [item.leftovers for item in clear_answers(tmp_path, dry_run=True)] == [1]
        assert len(list(store.folder.glob("*.aside"))) == 3
        assert [item.leftovers for item in clear_answers(tmp_path)] == [1]
    assert sorted(path.name for path in store.folder.glob("*.aside")) == ["held.aside", "young.aside"]
    assert texts(store, 0) == ["Answer 0."]


def test_the_models_are_listed_by_the_name_that_was_noted_or_their_identity(tmp_path: Path) -> None:
    AnswerStore(tmp_path, MODEL, "tiny/model").append([answer(1), answer(2)])
    AnswerStore(tmp_path, {"digest": "sha256:" + "0" * 64, "dtype": "float32", "quantization": None}).append([answer(1)])
    unknown = AnswerStore(tmp_path, {"weights": "older"})
    unknown.append([answer(1)])
    (unknown.folder / "identity.json").unlink()
    listed = stored_models(tmp_path)
    assert sorted((str(item.name), item.answers, item.segments) for item in listed) == [
        ("None", 1, 1),
        ("digest sha256:0000000000000..., dtype float32", 1, 1),
        ("tiny/model", 2, 1),
    ]
    assert all(item.bytes > 0 and item.newest is not None and abs(item.newest - time.time()) < 3600 for item in listed)
    assert [item.identity for item in listed if item.name == "tiny/model"] == [MODEL]
    assert stored_models(tmp_path / "nowhere") == []


def test_all_answers_of_a_model_are_removed_only_by_its_prefix(tmp_path: Path) -> None:
    one, other = AnswerStore(tmp_path, MODEL, "tiny/model"), AnswerStore(tmp_path, {"weights": "abd"}, "large/model")
    for store in (one, other):
        store.append([answer(1)])
    with pytest.raises(StoreError, match=r"no model in .* begins with 'model'; `ptk answers ls` lists them"):
        clear_answers(tmp_path, model="model")
    with pytest.raises(StoreError):
        clear_answers(tmp_path, model="")
    assert [(item.name, item.answers) for item in clear_answers(tmp_path, model="tiny", dry_run=True)] == [("tiny/model", 1)]
    assert texts(one, 1) == ["Answer 1."]
    clear_answers(tmp_path, model="tiny")
    assert (texts(one, 1), texts(other, 1)) == ([None], ["Answer 1."])
    assert not one.folder.exists()
    clear_answers(tmp_path, model=other.folder.name[:8])
    assert list(tmp_path.iterdir()) == []
    one.append([answer(1)])
    assert texts(one, 1) == ["Answer 1."]
