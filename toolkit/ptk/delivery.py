"""Lays the files that a step made where the spec wants them, without touching anything else that is there."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path

import orjson
from pydantic import ValidationError

from ptk.errors import StoreError
from ptk.files import sha256_of_file
from ptk.params import Params

__all__ = ["deliver"]

_LIST = ".ptk-files.json"


class _Delivered(Params):
    """What was delivered into a folder, by which step of which spec: what a later delivery of that step may replace or remove."""

    step: str
    files: dict[str, tuple[str, ...]]
    """Name -> SHA-256 of what may stand there: of the delivery, and of the one before it while it is under way."""


def deliver(files: Path, target: Path, step: str) -> bool:
    """Make `target` hold the files of the folder `files`; return whether anything had to be done.

    Each file is written aside and renamed. Files that an earlier delivery of the same step left and this one lacks are removed.
    Raises StoreError, and touches nothing, where another step's delivery lies there, or a file stands in the way that
    nobody delivered or that was changed since.
    """
    wanted = {str(path.relative_to(files)): sha256_of_file(path) for path in sorted(files.rglob("*")) if path.is_file()}
    before = _delivered(target)
    if before is not None and before.step != step:
        raise StoreError(f"{target} holds the files of {before.step}; choose another folder for {step}, or remove that one")
    known = before.files if before is not None else {}
    standing = {name: sha256_of_file(target / name) for name in {*wanted, *known} if (target / name).is_file()}
    if known.keys() == wanted.keys() and standing == wanted:
        return False
    for name, digest in sorted(standing.items()):
        if digest not in (*known.get(name, ()), wanted.get(name)):
            how = "was changed since it was written" if name in known else "was not written by a run"
            raise StoreError(f"{target / name} {how}, and would be lost; move it, or choose another folder")
    target.mkdir(parents=True, exist_ok=True)
    # Listed before they are written: a killed delivery is taken up by the next, which may replace what is listed.
    under_way = {name: tuple(filter(None, {wanted.get(name), *known.get(name, ())})) for name in {*wanted, *known}}
    _write(target / _LIST, _Delivered(step=step, files=under_way))
    for name, digest in wanted.items():
        if standing.get(name) != digest:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            aside = target / f"{name}.{uuid.uuid4().hex[:8]}"
            shutil.copyfile(files / name, aside)
            aside.replace(target / name)
    for name in known.keys() - wanted.keys():
        (target / name).unlink(missing_ok=True)
    _write(target / _LIST, _Delivered(step=step, files={name: (digest,) for name, digest in wanted.items()}))
    return True


def _delivered(target: Path) -> _Delivered | None:
    try:
        listed = _Delivered.model_validate_json((target / _LIST).read_bytes())
    except FileNotFoundError:
        return None
    except NotADirectoryError as error:
        raise StoreError(f"{target} is a file; choose another folder") from error
    except ValidationError as error:
        raise StoreError(
            f"{target / _LIST} is damaged, so it can't be told what a run wrote there; remove the folder"
        ) from error
    if any(Path(name).is_absolute() or ".." in Path(name).parts for name in listed.files):
        raise StoreError(f"{target / _LIST} names files outside of its folder; remove it")
    return listed


def _write(path: Path, content: _Delivered) -> None:
    aside = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}")
    aside.write_bytes(orjson.dumps(content.model_dump(), option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS))
    aside.replace(path)
