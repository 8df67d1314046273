"""Many writers at once, writers killed at any moment, and sweeps in the middle of it: history stays one line of whole versions."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl
import pytest

import ptk_catalog
from ptk_catalog import Catalog, Conflict, Swept
from ptk_catalog.manifest import paths_of

ROLES = ("commit", "sweep", "tag")

# Children are forked, so that importing does not take most of the time.
CHILDREN = """
import os, random, sys, time, traceback
import polars, ptk_catalog.catalog

PLACE, REGISTRY = sys.argv[1], sys.argv[2] or None

def frame(*numbers):
    rows = polars.DataFrame({"k": range(5_000)})
    return rows.with_columns(polars.lit(number).alias(f"n{place}") for place, number in enumerate(numbers))

def land(catalog, name, count):
    for number in range(count):
        row = polars.DataFrame({"k": [name], "n": [number]})
        assert catalog.commit("shared", row, key="k", tags=["latest"], move_tags=True).created
        assert catalog.commit("own/" + name, row, key="k").created

def commit(catalog, seed):
    for number in range(1 << 30):
        catalog.commit("a", frame(seed, number), key="k", tags=["latest"], move_tags=True)
        catalog.commit("b", frame(number).tail(4_000), base="a@latest")

def sweep(catalog, seed):
    draw = random.Random(seed)
    while True:
        for number in range(40):  # what writers that were killed an hour ago left
            name = f"{draw.getrandbits(256):064x}"
            left = os.path.join(PLACE, "parts", name[:2], name + ".parquet")
            os.makedirs(os.path.dirname(left), exist_ok=True)
            open(left, "wb").write(b"half a part")
            os.utime(left, (time.time() - 3600, time.time() - 3600))
        catalog.gc(grace=0)

def tag(catalog, seed):
    draw = random.Random(seed)
    while True:
        newest = catalog.version("a").number
        catalog.tag(f"a@v{draw.randint(1, newest)}", draw.choice(["gold", "silver"]), move=True)

def child(job, *arguments):
    try:
        globals()[job](ptk_catalog.open(PLACE, registry=REGISTRY), *arguments)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)

for line in sys.stdin:
    job, first, second = (line.split() + ["", ""])[:3]
    if job == "reap":
        print(os.waitstatus_to_exitcode(os.waitpid(int(first), 0)[1]), flush=True)
        continue
    born = os.fork()
    if born == 0:
        child(job, *([first, int(second)] if job == "land" else [int(first)]))
    print(born, flush=True)
"""


class Children:
    """Processes that write to one catalog."""

    def __init__(self, place: Path, registry: str | None) -> None:
        command = [sys.executable, "-c", CHILDREN, str(place), registry or ""]
        self.parent = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, *words: object) -> int:
        assert self.parent.stdin is not None
        assert self.parent.stdout is not None
        print(*words, file=self.parent.stdin, flush=True)
        return int(self.parent.stdout.readline())


@contextmanager
def children_of(place: Path, registry: str | None) -> Iterator[Children]:
    children = Children(place, registry)
    try:
        yield children
    finally:
        children.parent.communicate()


def needed_by(catalog: Catalog, versions: list[ptk_catalog.Version]) -> set[str]:
    return {path for version in versions for path in (version.file.row.manifest, *paths_of(version.manifest))}


def files_of(catalog: Catalog) -> set[str]:
    return {file.path for below in ("parts", "manifests", "staging") for file in catalog.storage.files(below)}


@pytest.mark.parametrize(("writers", "commits"), [(4, 5), pytest.param(8, 25, marks=pytest.mark.slow)])
def test_writers_at_once_make_one_line_of_history(
    tmp_path: Path, registry: Callable[[], str | None], writers: int, commits: int
) -> None:
    url = registry()
    catalog = ptk_catalog.open(tmp_path / "store", registry=url)
    names = [f"w{number}" for number in range(writers)]
    with children_of(tmp_path / "store", url) as children:
        born = [children.ask("land", name, commits) for name in names]
        assert [children.ask("reap", one) for one in born] == [0] * writers
    versions = catalog.log("shared")
    total = writers * commits
    assert [version.number for version in versions] == list(range(total, 0, -1))
    landed = {catalog.load(version.reference).collect().row(0) for version in versions}
    assert landed == {(name, number) for name in names for number in range(commits)}
    assert catalog.entries() == [*(f"own/{name}" for name in names), "shared"]
    for name in names:
        assert [version.number for version in catalog.log(f"own/{name}")] == list(range(commits, 0, -1))
    assert catalog.version("shared@latest").number == total
    assert [move[1:3] for move in catalog.tag_log("shared")] == [(number or None, number + 1) for number in range(total)]
    for version in versions:
        catalog.verify(version.reference)


@pytest.mark.parametrize("kills", [9, pytest.param(200, marks=pytest.mark.slow)])
def test_kills_at_any_moment_leave_whole_versions_and_nothing_else(
    tmp_path: Path, registry: Callable[[], str | None], kills: int
) -> None:
    url = registry()
    catalog = ptk_catalog.open(tmp_path / "store", registry=url)
    catalog.commit("a", pl.DataFrame({"k": range(3)}), key="k", tags=["gold", "silver", "latest"])
    moments = random.Random(7)
    checked: set[str] = set()

    def check() -> None:
        opened = ptk_catalog.open(tmp_path / "store", registry=url, create=False)
        for entry in opened.entries():
            versions = opened.log(entry)
            assert [version.number for version in versions] == list(range(len(versions), 0, -1))
            for version in versions:
                if version.reference not in checked:
                    opened.verify(version.reference)
                    checked.add(version.reference)

    with children_of(tmp_path / "store", url) as children:
        running = {role: children.ask(role, number) for number, role in enumerate(ROLES)}
        for kill in range(kills):
            role = ROLES[kill % len(ROLES)]
            time.sleep(moments.uniform(0.0, 0.4))
            os.kill(running[role], signal.SIGKILL)
            # A child that had failed by itself would give another status.
            assert children.ask("reap", running[role]) == -signal.SIGKILL
            check()
            running[role] = children.ask(role, kill + len(ROLES))
        for child in running.values():
            os.kill(child, signal.SIGKILL)
            assert children.ask("reap", child) == -signal.SIGKILL
    assert len(checked) >= kills / 20
    check()
    for tag in ("gold", "silver", "latest"):
        moves = [move for move in catalog.tag_log("a") if move[0] == tag]
        assert [move[1] for move in moves] == [None, *(move[2] for move in moves[:-1])]
        assert catalog.version(f"a@{tag}").number == moves[-1][2]
    assert catalog.version("a@latest").number == catalog.version("a").number
    # What the killed ones left is removed later, and no more than that.
    catalog.gc(grace=0)
    versions = [version for entry in catalog.entries() for version in catalog.log(entry)]
    assert files_of(catalog) == needed_by(catalog, versions)
    assert catalog.gc(grace=0) == Swept(kept=len(files_of(catalog)))
    for version in versions[:: max(1, len(versions) // 50)]:
        catalog.verify(version.reference)


ROWS = pl.DataFrame({"k": range(10), "x": range(10)})


def leave_old_files(catalog: Catalog, rows: pl.DataFrame) -> list[str]:
    """Let a commit of rows be refused, and make the files that it leaves an hour old."""
    before = files_of(catalog)
    catalog.commit("held", ROWS, key="k", tags=["held"])
    with pytest.raises(ptk_catalog.TagExists):
        catalog.commit("held", rows, tags=["held"])
    left = sorted(files_of(catalog) - before - needed_by(catalog, catalog.log("held")))
    for path in left:
        os.utime(catalog.storage.path(path), (time.time() - 3600, time.time() - 3600))
    return left


def test_a_sweep_takes_nothing_that_a_running_commit_has_written(
    tmp_path: Path, registry: Callable[[], str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = registry()
    catalog = ptk_catalog.open(tmp_path / "store", registry=url)
    rows = ROWS.with_columns(x=pl.col("x") * 3)
    assert len(leave_old_files(catalog, rows)) == 2
    other = ptk_catalog.open(tmp_path / "store", registry=url)
    swept: list[Swept] = []
    registering = type(catalog._registry).commit

    def sweep_first(self: object, *arguments: object, **options: object) -> object:
        swept.append(other.gc(grace=0))
        return registering(self, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(type(catalog._registry), "commit", sweep_first)
    catalog.commit("a", rows, key="k")
    # Of the refused commit only the manifest is gone: its part was written anew by the one that runs, whose manifest is young too.
    assert (swept[0].files, swept[0].young) == (1, 2)
    catalog.verify("a")
    monkeypatch.undo()
    assert other.gc(grace=0).young == 0
    catalog.verify("a")


def test_a_commit_whose_old_file_was_swept_in_the_same_moment_writes_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog = ptk_catalog.open(tmp_path / "store")
    checking = type(catalog)._check_there
    times: list[int] = []

    def sweep_once(self: Catalog, paths: list[str]) -> None:
        times.append(len(paths))
        if len(times) <= most:
            Path(self.storage.path(paths[0])).unlink()
        checking(self, paths)

    monkeypatch.setattr(type(catalog), "_check_there", sweep_once)
    most = 1
    assert catalog.commit("a", ROWS, key="k").number == 1
    assert len(times) == 2
    catalog.verify("a")
    most = 100
    with pytest.raises(Conflict, match="a sweep with too short a grace time took it"):
        catalog.commit("a", ROWS.head(3))
    assert catalog.version("a").number == 1
    monkeypatch.undo()
    catalog.gc(grace=0)
    assert files_of(catalog) == needed_by(catalog, catalog.log("a"))
