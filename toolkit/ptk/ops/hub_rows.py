"""Datasets of the Hugging Face Hub, pinned to a commit: found with huggingface_hub, read with datasets."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import polars as pl
from pydantic import Field, field_validator

from ptk.errors import UnreadableFile
from ptk.ops.records import Look, Piece, Table
from ptk.params import Params

__all__ = ["Hub", "HubRecords"]

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_PIECE = 100_000
_ROWS = 10_000
_SECONDS = 10.0


class Hub(Params):
    """A dataset of the Hugging Face Hub."""

    name: str = Field(description="Its id, such as `org/set`.")
    revision: str | None = Field(None, description="Branch, tag or commit; the newest commit of the main branch by default.")
    config: str | None = Field(None, description="Its configuration (subset), where it has several.")
    split: str = Field("train", description="Its split.")

    @field_validator("name")
    @classmethod
    def _named(cls, name: str) -> str:
        if not _NAME.fullmatch(name):
            raise ValueError(f"'{name}' is no id of a dataset on the Hugging Face Hub; it has the form org/set")
        return name

    @cached_property
    def commit(self) -> str:
        """The commit that `revision` means now; a whole commit id is taken as it is, without the network.

        Raises ValueError with a sentence for the user.
        """
        if self.revision is not None and _COMMIT.fullmatch(self.revision):
            return self.revision
        return _resolved(self.name, self.revision)

    def canonical(self) -> dict[str, Any]:
        return {"hub": self.name, "commit": self.commit, "config": self.config, "split": self.split}


class _UnreachableError(ValueError):
    pass


def _resolved(name: str, revision: str | None) -> str:
    """Return the commit that a revision means. Raises ValueError with a sentence for the user."""
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
    except ImportError as error:
        raise ValueError(_not_installed(name)) from error
    try:
        info = HfApi().dataset_info(name, revision=revision, timeout=_SECONDS)
    except GatedRepoError:
        raise ValueError(_gated(name)) from None
    except RepositoryNotFoundError:
        raise ValueError(
            f"the Hugging Face Hub has no dataset '{name}', or it is private: then set HF_TOKEN, or log in (hf auth login)"
        ) from None
    except RevisionNotFoundError:
        raise ValueError(f"the Hub dataset '{name}' has no revision '{revision}'") from None
    except Exception as error:  # what the network raises has no common base
        raise _UnreachableError(_unreachable(name, error)) from None
    if not info.sha:
        raise ValueError(f"the Hugging Face Hub does not say which commit of '{name}' is meant; give it as `revision`")
    return str(info.sha)


def _not_installed(name: str) -> str:
    return f"reading '{name}' from the Hugging Face Hub needs the packages of preference-toolkit[hub]; install them"


def _gated(name: str) -> str:
    return f"the Hub dataset '{name}' asks you to accept its terms first, on its page there; then set HF_TOKEN, or log in (hf auth login)"


def _unreachable(name: str, error: Exception) -> str:
    # Its own words may quote an address with a token in it.
    why = "HF_HUB_OFFLINE is set" if _offline() else type(error).__name__
    return (
        f"the Hugging Face Hub could not be asked about '{name}' ({why}); check the network, or download the dataset's files and "
        "read them with `path`, or give a whole commit id as `revision` where it was downloaded before"
    )


def _offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


@dataclass(frozen=True, slots=True)
class HubRecords:
    """The rows of a dataset of the Hub; it is downloaded at first use."""

    hub: Hub

    @property
    def _name(self) -> str:
        return f"{self.hub.name}@{self.hub.commit[:8]}"

    def looks(self) -> Iterator[Look]:
        rows = self._rows()
        schema = _frame(rows[:0]).schema
        yield Look(self._name, types=dict(schema))

    def pieces(self) -> Sequence[Piece]:
        height = len(self._at_work())
        return [Piece(0, start, min(start + _PIECE, height), start + 1) for start in range(0, max(height, 1), _PIECE)]

    def blocks(self, piece: Piece) -> Iterator[Table]:
        rows = self._at_work()
        stop = len(rows) if piece.stop is None else piece.stop
        for start in range(piece.start, stop, _ROWS):
            yield Table(self._name, start + 1, _frame(rows[start : min(start + _ROWS, stop)]))

    def _at_work(self) -> Any:
        """Return the rows while a plan runs, where what is wrong is no mistake in the spec."""
        try:
            return self._rows()
        except ValueError as error:
            raise UnreadableFile(str(error)) from error

    def _rows(self) -> Any:
        return _loaded(self.hub.name, self.hub.commit, self.hub.config, self.hub.split)


def _frame(table: Any) -> pl.DataFrame:
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame


@lru_cache(maxsize=8)
def _loaded(name: str, commit: str, config: str | None, split: str) -> Any:
    """Return a dataset that gives Arrow tables. Raises ValueError with a sentence for the user."""
    try:
        import datasets
    except ImportError as error:
        raise ValueError(_not_installed(name)) from error
    try:
        _resolved(name, commit)
        unreachable = None
    except _UnreachableError as error:
        unreachable = error  # what was downloaded before can still be read
    try:
        with _quietly(offline=unreachable is not None):
            rows = datasets.load_dataset(name, config, split=split, revision=commit)
    except Exception as error:
        raise ValueError(unreachable or _failed(name, commit, error)) from None
    if unreachable is not None and not all(commit in file["filename"] for file in rows.cache_files):
        raise unreachable  # offline, another commit may be what was found
    return rows.with_format("arrow")


def _failed(name: str, commit: str, error: Exception) -> str:
    from datasets import exceptions

    if isinstance(error, exceptions.DatasetNotFoundError):
        return _gated(name) if "gated" in str(error) else f"the Hub dataset '{name}' can't be found at {commit[:8]}"
    if isinstance(error, FileNotFoundError):
        return f"the Hub dataset '{name}' holds no data files at {commit[:8]}"
    if isinstance(error, exceptions.DatasetGenerationError):
        return f"the files of the Hub dataset '{name}' can't be read as one table ({type(error.__cause__).__name__})"
    if isinstance(error, ValueError):  # an unknown config or split; it lists those there are
        return f"the Hub dataset '{name}': {' '.join(str(error).split())[:300]}"
    return _unreachable(name, error)


@contextmanager
def _quietly(*, offline: bool) -> Iterator[None]:
    """Keep datasets from drawing bars, and from asking a Hub that does not answer again and again."""
    import datasets
    from huggingface_hub import constants

    logs = datasets.utils.logging
    bars, level = datasets.utils.are_progress_bars_disabled(), logs.get_verbosity()
    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    datasets.utils.disable_progress_bars()
    logs.set_verbosity_error()
    if offline:
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before
        logs.set_verbosity(level)
        if not bars:
            datasets.utils.enable_progress_bars()
