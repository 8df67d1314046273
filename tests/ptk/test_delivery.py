from __future__ import annotations

from pathlib import Path

import pytest

from ptk import delivery
from ptk.delivery import deliver
from ptk.errors import StoreError

MINE = "step 'export' of spec 'mine'"


@pytest.fixture
def made(tmp_path: Path) -> Path:
    return written(tmp_path / "made", **{"a.jsonl": "one", "deep/b.jsonl": "two"})


def written(folder: Path, **files: str) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return folder


def lying(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".ptk-files.json"
    }


def test_files_are_laid_once(made: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    assert deliver(made, target, MINE)
    assert lying(target) == {"a.jsonl": "one", "deep/b.jsonl": "two"}
    assert not deliver(made, target, MINE)


def test_what_changed_is_replaced_and_what_is_no_longer_made_is_removed(made: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    deliver(made, target, MINE)
    deliver(written(tmp_path / "again", **{"a.jsonl": "three"}), target, MINE)
    assert lying(target) == {"a.jsonl": "three"}


def test_a_removed_file_is_laid_again(made: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    deliver(made, target, MINE)
    (target / "a.jsonl").unlink()
    assert deliver(made, target, MINE)
    assert lying(target) == {"a.jsonl": "one", "deep/b.jsonl": "two"}


def test_what_nobody_delivered_is_not_touched(made: Path, tmp_path: Path) -> None:
    target = written(tmp_path / "out", **{"notes.txt": "mine"})
    deliver(made, target, MINE)
    assert lying(target) == {"a.jsonl": "one", "deep/b.jsonl": "two", "notes.txt": "mine"}


def test_a_file_in_the_way_stops_the_delivery_before_anything_is_written(made: Path, tmp_path: Path) -> None:
    target = written(tmp_path / "out", **{"deep/b.jsonl": "somebody's"})
    with pytest.raises(StoreError, match=r"deep/b.jsonl was not written by a run, and would be lost; move it"):
        deliver(made, target, MINE)
    assert lying(target) == {"deep/b.jsonl": "somebody's"}


def test_a_delivered_file_that_was_edited_is_not_lost(made: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    deliver(made, target, MINE)
    (target / "a.jsonl").write_text("edited")
    with pytest.raises(StoreError, match=r"a.jsonl was changed since it was written, and would be lost"):
        deliver(made, target, MINE)
    assert lying(target)["a.jsonl"] == "edited"


def test_another_step_s_folder_is_not_taken(made: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    deliver(made, target, MINE)
    with pytest.raises(StoreError, match=r"holds the files of step 'export' of spec 'mine'; choose another folder for yours"):
        deliver(made, target, "yours")


def test_a_killed_delivery_is_taken_up(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "out"
    deliver(made, target, MINE)
    again = written(tmp_path / "again", **{"a.jsonl": "three", "c.jsonl": "four"})
    copy = delivery.shutil.copyfile
    with monkeypatch.context() as patch:

        def killed(source: Path, aside: Path) -> None:
            if source.name == "c.jsonl":
                raise KeyboardInterrupt
            copy(source, aside)

        patch.setattr(delivery.shutil, "copyfile", killed)
        with pytest.raises(KeyboardInterrupt):
            deliver(again, target, MINE)
    assert deliver(again, target, MINE)
    assert lying(target) == {"a.jsonl": "three", "c.jsonl": "four"}


def test_a_list_that_leads_outside_is_refused(made: Path, tmp_path: Path) -> None:
    target = written(tmp_path / "out", **{".ptk-files.json": f'{{"step": "{MINE}", "files": {{"../secret": ["0"]}}}}'})
    with pytest.raises(StoreError, match="names files outside of its folder"):
        deliver(made, target, MINE)


def test_a_damaged_list_is_told(made: Path, tmp_path: Path) -> None:
    target = written(tmp_path / "out", **{".ptk-files.json": "{"})
    with pytest.raises(StoreError, match=r"\.ptk-files\.json is damaged"):
        deliver(made, target, MINE)
