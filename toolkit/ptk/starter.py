"""Lays out a starter project: specs, the small corpus, exemplars."""

from __future__ import annotations

import shutil
from pathlib import Path

from ptk.errors import PtkError

__all__ = ["lay_out"]


def _shipped() -> Path:
    """Return the folder with the shipped specs: in an installed package beside the code, in a checkout at its top."""
    here = Path(__file__).resolve().parent
    installed = here / "starter" / "specs"
    return installed if installed.is_dir() else here.parents[1] / "specs"


def lay_out(folder: Path) -> list[Path]:
    """Copy the starter project to `folder` and return the files written. Raises PtkError where one would be overwritten or can't be written."""
    shipped = _shipped()
    files = sorted(path for path in shipped.rglob("*") if path.is_file() and not _is_left_over(path.relative_to(shipped)))
    targets = {path: folder / "specs" / path.relative_to(shipped) for path in files}
    targets_ignore = folder / ".gitignore"
    for target in [*targets.values(), targets_ignore]:
        if target.exists():
            raise PtkError(f"{target} is there already; give a new or an empty folder")
    try:
        for path, target in targets.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        targets_ignore.write_text(".ptk/\ncatalog/store/\nspecs/out/\n")
    except OSError as error:
        raise PtkError(f"can't write to {folder}: {error.strerror}") from error
    return [*targets.values(), targets_ignore]


def _is_left_over(path: Path) -> bool:
    """Return whether a file below the specs came of running them there: exported rows, finished steps."""
    return path.parts[0] in ("out", ".ptk", "catalog") or "__pycache__" in path.parts
