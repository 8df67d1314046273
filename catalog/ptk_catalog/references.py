"""Names of entries and tags, and references to versions: `entry@v3`, `entry@tag`, `entry@sha256:...`, `entry@2026-11-01`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from ptk_catalog.errors import BadReference

__all__ = ["Reference", "check_entry", "check_tag", "parse_reference"]

_ENTRY = re.compile(r"[a-z0-9][a-z0-9._-]*(/[a-z0-9][a-z0-9._-]*)*")
_TAG = re.compile(r"[a-z][a-z0-9._-]*")
_NUMBER = re.compile(r"v([1-9][0-9]*)")
_DIGEST = re.compile(r"sha256:[0-9a-f]{8,64}")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}(T.+)?")


@dataclass(frozen=True, slots=True)
class Reference:
    """An entry and which of its versions: by number, tag, (the beginning of) a digest, the newest of a time, or the newest."""

    entry: str
    number: int | None = None
    tag: str | None = None
    digest: str | None = None
    as_of: datetime | None = None
    """The last moment that counts, in UTC."""


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
    if _DATE.fullmatch(which):
        return Reference(entry, as_of=_moment(text, which))
    if which.startswith("sha256:"):
        raise BadReference(f"'{text}': a digest is sha256: and 8 to 64 hexadecimal digits")
    return Reference(entry, tag=check_tag(which))


def _moment(text: str, which: str) -> datetime:
    """Return the moment that a date (its last in UTC) or a date and time (UTC where it names no zone) means."""
    try:
        moment = datetime.fromisoformat(which)
        if "T" not in which:
            return moment.replace(tzinfo=UTC) + timedelta(days=1, milliseconds=-1)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise BadReference(
            f"'{text}': a time is written 2026-11-01 or 2026-11-01T12:00:00, in UTC unless it names a zone"
        ) from None
