"""What a person says about a publication, in a spec or on the command line."""

from __future__ import annotations

import re

from pydantic import Field, field_validator

from ptk.params import Params

__all__ = ["Publish"]

_REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9][A-Za-z0-9_.-]*")
_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_LONGEST = 96


class Publish(Params):
    """Where a version is published on the Hugging Face Hub, and how."""

    repo: str = Field(description="Repository on the Hub, as `org/name`; it is made where there is none.")
    private: bool = Field(False, description="Make the repository private; refuse one that is public.")
    tag: str | None = Field(None, description="Tag of the published commit; the version's number, such as `v3`, by default.")
    rejects: bool = Field(False, description="Publish the rejected rows too, as a configuration of their own.")
    licence_ok: bool = Field(False, description="You have seen to the licences that the preview complains about.")

    @field_validator("repo")
    @classmethod
    def _named(cls, repo: str) -> str:
        if (
            not _REPO.fullmatch(repo)
            or ".." in repo
            or "--" in repo
            or len(repo) > _LONGEST
            or repo.endswith((".git", ".", "-"))
        ):
            raise ValueError(f"'{repo}' can't name a repository on the Hub; it has the form org/name")
        return repo

    @field_validator("tag")
    @classmethod
    def _a_tag(cls, tag: str | None) -> str | None:
        if tag is not None and (not _TAG.fullmatch(tag) or ".." in tag or tag.endswith((".", ".lock")) or tag == "main"):
            raise ValueError(f"'{tag}' can't be a tag on the Hub: letters, digits, '.', '_' and '-'")
        return tag
