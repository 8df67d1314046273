"""Known licences, and whether rows made from sources under some of them may go out under another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["HUB_LICENCES", "Concern", "Source", "concerns", "normalised"]


@dataclass(frozen=True, slots=True)
class _Terms:
    """What a licence lets others do with data: pass it on, pass on changed data, use it commercially; and under which licence."""

    redistribute: bool = True
    derive: bool = True
    commercial: bool = True
    share_alike: bool = False


_FREE = _Terms()
_SHARE = _Terms(share_alike=True)
_NON_COMMERCIAL = _Terms(commercial=False)
_CLOSED = _Terms(redistribute=False)

_KNOWN: dict[str, _Terms] = {
    **dict.fromkeys(
        ("apache-2.0", "mit", "bsd", "bsd-2-clause", "bsd-3-clause", "isc", "unlicense", "wtfpl", "zlib", "ms-pl", "bsl-1.0"),
        _FREE,
    ),
    **dict.fromkeys(
        ("cc0-1.0", "pddl", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "odc-by", "cdla-permissive-1.0"), _FREE
    ),
    **dict.fromkeys(("cdla-permissive-2.0", "etalab-2.0", "artistic-2.0"), _FREE),
    **dict.fromkeys(("cc-by-sa-3.0", "cc-by-sa-4.0", "odbl", "cdla-sharing-1.0", "gfdl"), _SHARE),
    **dict.fromkeys(("gpl-2.0", "gpl-3.0", "agpl-3.0", "lgpl-3.0", "mpl-2.0"), _SHARE),
    **dict.fromkeys(("cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "c-uda"), _NON_COMMERCIAL),
    **dict.fromkeys(("cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0"), _Terms(commercial=False, share_alike=True)),
    **dict.fromkeys(("cc-by-nd-4.0",), _Terms(derive=False)),
    **dict.fromkeys(("cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0"), _Terms(derive=False, commercial=False)),
    **dict.fromkeys(("proprietary", "all-rights-reserved", "no-redistribution", "internal", "confidential"), _CLOSED),
}

HUB_LICENCES = frozenset(name for name, terms in _KNOWN.items() if terms.redistribute)
"""The licences of the table that the Hub has an id for; any other goes by `other` and its name."""


@dataclass(frozen=True, slots=True)
class Source:
    """Something that a version was made from, and its licence where one is known."""

    name: str
    licence: str | None
    terms: str | None = None
    """Terms of use, in words or as an address."""
    revision: str | None = None
    """What it was then: a commit, or the digest of files or rows."""
    hub: str | None = None
    """Its id on the Hub, where it comes from there."""


@dataclass(frozen=True, slots=True)
class Concern:
    """A reason to think before publishing: a licence that forbids it or does not fit, or that nobody knows."""

    source: str
    licence: str | None
    what: str

    def __str__(self) -> str:
        return f"{self.source}: {self.what}"


def normalised(licence: str) -> str:
    """Return a licence as the Hub writes it."""
    return licence.strip().lower().replace(" ", "-")


def concerns(licence: str | None, sources: Sequence[Source]) -> list[Concern]:
    """Return what speaks against publishing rows under `licence` that were made from `sources`. This is no legal advice."""
    found = []
    own = _KNOWN.get(normalised(licence)) if licence else None
    if licence is None:
        found.append(Concern("the version", None, "has no licence; give its output one (`licence: cc-by-4.0`)"))
    elif own is None:
        found.append(Concern("the version", licence, f"its licence '{licence}' is not known to ptk"))
    elif not own.redistribute:
        found.append(Concern("the version", licence, f"its licence '{licence}' forbids passing it on"))
    for source in sources:
        if source.licence is None:
            found.append(
                Concern(source.name, None, "its licence is not known; say it in the step that reads it (`licence: mit`)")
            )
            continue
        terms = _KNOWN.get(normalised(source.licence))
        said = f"its licence '{source.licence}'"
        if terms is None:
            found.append(Concern(source.name, source.licence, f"{said} is not known to ptk"))
        elif not terms.redistribute:
            found.append(Concern(source.name, source.licence, f"{said} forbids passing it on"))
        elif not terms.derive:
            found.append(Concern(source.name, source.licence, f"{said} forbids passing on what was made from it"))
        elif terms.share_alike and (licence is None or normalised(licence) != normalised(source.licence)):
            found.append(Concern(source.name, source.licence, f"{said} asks for the same licence, not '{licence}'"))
        elif not terms.commercial and (own is None or own.commercial):
            found.append(Concern(source.name, source.licence, f"{said} forbids commercial use, which '{licence}' would allow"))
    return found
