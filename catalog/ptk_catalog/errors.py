"""What can go wrong in a catalog, one class a situation; every message says where, what, and what to do.

CatalogError           anything the catalog reports; exit code 1
├── BadReference       a name, tag or reference that can't be one; exit code 2
├── NotFound           no such entry, version, tag or catalog; exit code 2
├── BadData            data that can't become a version: no key, a key that repeats, rows the base does not have
├── TagExists          a tag stands on another version and was not to be moved
├── Conflict           another writer was faster, again and again
├── Damaged            a file is missing or not what its name says
├── NewerFormat        written by a later version of this package
└── OlderFormat        written by an earlier version of this package, and has to be migrated before it is written to
"""

from __future__ import annotations

__all__ = [
    "BadData",
    "BadReference",
    "CatalogError",
    "Conflict",
    "Damaged",
    "NewerFormat",
    "NotFound",
    "OlderFormat",
    "TagExists",
]


class CatalogError(Exception):
    """Anything the catalog reports as a sentence."""

    exit_code = 1


class BadReference(CatalogError):
    """A name, tag or reference that can't be one."""

    exit_code = 2


class NotFound(CatalogError):
    """No such entry, version, tag or catalog."""

    exit_code = 2


class BadData(CatalogError):
    """Data that can't become a version."""


class TagExists(CatalogError):
    """A tag stands on another version and was not to be moved."""


class Conflict(CatalogError):
    """Another writer was faster, again and again."""


class Damaged(CatalogError):
    """A file is missing or not what its name says."""


class NewerFormat(CatalogError):
    """Written by a later version of this package."""


class OlderFormat(CatalogError):
    """Written by an earlier version of this package, and has to be migrated before it is written to."""
