"""What a person says about a report, in a spec or on the command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from ptk.params import UNKEYED, OutputFolder, Params, PathSetting, existing_file

__all__ = ["FORMS", "ReportSettings"]

FORMS = {".html": "one page", ".md": "Markdown"}
"""What is written, by the end of a path; a path without an end is a folder of figures and tables."""


@dataclass(frozen=True, slots=True)
class ReportPlace(OutputFolder):
    """Where a report is written: a file, or a folder, inside the folder of the spec."""

    @classmethod
    def from_text(cls, text: str, root: Path) -> ReportPlace:
        place = OutputFolder.from_text(text, root)
        if place.path.suffix not in (*FORMS, ""):
            raise ValueError(
                f"'{text}' ends in {place.path.suffix}; a report is .html or .md, or figures and tables in a folder, without an end"
            )
        return cls(place.written, place.path)


@dataclass(frozen=True, slots=True)
class StudyFile(PathSetting):
    """What `ptk study read` wrote of people's answers."""

    path: Path

    @classmethod
    def from_text(cls, text: str, root: Path) -> StudyFile:
        return cls(existing_file(text, root))


class ReportSettings(Params):
    """What a run's report shows, and where it is written."""

    to: Annotated[tuple[ReportPlace, ...], UNKEYED] = Field(
        min_length=1,
        description="Where it is written, inside the folder of this file: `.html`, `.md`, or a folder for figures and tables; a list.",
    )
    title: str | None = Field(None, min_length=1, description="Title; the name of the spec by default.")
    examples: int = Field(200, ge=0, le=5_000, description="How many examples it shows at most.")
    seed: int = Field(0, ge=0, lt=1 << 63, description="Another seed, other examples.")
    study: tuple[StudyFile, ...] = Field((), description="Files that `ptk study read` wrote: what people answered.")
