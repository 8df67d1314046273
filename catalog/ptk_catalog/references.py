"""Names of entries and tags, and references to versions: `entry`, `entry@v3`, `entry@tag`, `entry@sha256:...`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ptk_catalog.errors import BadReference

__all__ = ["Reference", "check_entry", "check_tag", "parse_reference"]

_ENTRY = re.compile(r"[a-z0-9][a-z0-9._-]*(/[a-z0-9][a-z0-9._-]*)*")
_TAG = re.compile(r"[a-z][a-z0-9._-]*")
_NUMBER = re.compile(r"v([1-9][0-9]*)")
_DIGEST = re.compile(r"sha256:[0-9a-f]{8,64}")


@dataclass(frozen=True, slots=True)
class Reference:
    """An entry and which of its versions: by number, by tag, by (the beginning of) a digest, or the newest."""

    entry: str
    number: int | None = None
    tag: str | None = None
    digest: str | None = None


def check_entry(entry: str) -> str:
    """Return `entry`. Raises BadReference where it can't be an entry's name."""
    if not _ENTRY.fullmatch(entry) or ".." in entry:
        raise BadReference(
            f"'{entry}' can't name an entry: lower-case letters, digits, '.', '_' and '-', in parts joined by '/', as in hh/personas"
        )
    return entry


def check_tag(tag: str) -> str:
    """Return `tag`. Raises BadReference where it can't be a tag."""
    if not _TAG.fullmatch(tag) or re.fullmatch("v[0-9]+", tag):
        raise BadReference(
            f"'{tag}' can't be a tag: lower-case letters, digits, '.', '_' and '-', a letter first, and not like v3"
        )
    return tag


def parse_reference(text: str) -> Reference:
    """Return what `text` refers to. Raises BadReference."""
    entry, at, which = text.partition("@")
    check_entry(entry)
    if not at:
        return Reference(entry)
    if match := _NUMBER.fullmatch(which):
        return Reference(entry, number=int(match.group(1)))
    if _DIGEST.fullmatch(which):
        return Reference(entry, digest=which)
    if which.startswith("sha256:"):
        raise BadReference(f"'{text}': a digest is sha256: and 8 to 64 hexadecimal digits")
    return Reference(entry, tag=check_tag(which))
