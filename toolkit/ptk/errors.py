"""What can go wrong, as one tree of exceptions; only the command line turns them into exit codes.

PtkError                 anything ptk reports without a traceback; exit code 1
├── SpecError            the spec is wrong: every violation found, each at its file and line; exit code 2
├── ModelNotFound        a model reference leads nowhere; the planner turns it into a SpecError at its line
├── UnreadableFile       a data file that is damaged as a whole; exit code 3
├── TooManyMalformed     a source is mostly unreadable; exit code 3
├── BackendError         a model's engine or endpoint failed and stayed failed; exit code 1
├── PublishError         a version can't be published, or the Hub did not take it; exit code 1
└── StoreError           the work store can't be read or written; exit code 1
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "BackendError",
    "ModelNotFound",
    "PtkError",
    "PublishError",
    "SpecError",
    "StoreError",
    "TooManyMalformed",
    "UnreadableFile",
    "Violation",
]


class PtkError(Exception):
    """Anything ptk reports to the user as a sentence."""

    exit_code = 1


@dataclass(frozen=True, slots=True, order=True)
class Violation:
    """One thing wrong with a spec: `line` counts from 1 and is 0 where no line applies."""

    file: str
    line: int
    where: str
    what: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {self.where}: {self.what}" if self.where else f"{place}: {self.what}"


class SpecError(PtkError):
    """The spec is wrong; carries every violation found, in the order of the file."""

    exit_code = 2

    def __init__(self, violations: list[Violation]) -> None:
        self.violations = sorted(set(violations))
        super().__init__("\n".join(str(violation) for violation in self.violations))


class ModelNotFound(PtkError):
    """A model reference leads nowhere: says what was looked for, where, and what to write instead."""

    exit_code = 2

    def __init__(self, what: str, option: str = "model") -> None:
        """`option` is that of the model's settings which is wrong."""
        super().__init__(what)
        self.option = option


class UnreadableFile(PtkError):
    """A data file is damaged as a whole: not a gzip, not a Parquet file."""

    exit_code = 3


class TooManyMalformed(PtkError):
    """A reader rejected a larger share of its rows as malformed than the spec allows."""

    exit_code = 3


class BackendError(PtkError):
    """A model's engine or endpoint failed, was tried again, and stayed failed."""


class PublishError(PtkError):
    """A version can't be published, or the Hub did not take it; what was committed to the catalog stays."""


class StoreError(PtkError):
    """The work store can't be read or written."""
