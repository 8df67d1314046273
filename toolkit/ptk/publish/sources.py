"""What a version was made from, and under which licences: files, datasets of the Hub, versions of the catalog, and theirs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ptk.publish.licences import Source
from ptk.publish.lineage import recorded

if TYPE_CHECKING:
    from ptk_catalog import Catalog, Version

__all__ = ["sources_of"]

LicenceOf = Callable[[str, str, str | None], str | None]
"""Gives the licence on the card of a dataset or model (the first argument) of the Hub at a revision, or None."""


def sources_of(version: Version, catalog: Catalog, licence_of: LicenceOf) -> list[Source]:
    """Return everything that a version was made from, through all versions of the catalog that lie between, each once."""
    return list(dict.fromkeys(_walk(version, catalog, licence_of, set())))


def _walk(version: Version, catalog: Catalog, licence_of: LicenceOf, seen: set[str]) -> Iterator[Source]:
    lineage = recorded(version)
    said: dict[str, dict[str, Any]] = {}
    for item in lineage["licences"]:
        said.setdefault(
            item["step"], item
        )  # a reader's own comes first, then those of what the version that it reads was made from
    for item in lineage["sources"]:
        terms = said.get(item["step"], {})
        names = ", ".join(item["files"])
        yield Source(f"{names} (step {item['step']})", terms.get("licence"), terms.get("terms"), _short(item["sha256"]))
    references = list(version.parents)
    if version.kind == "model":
        model = version.model
        references += model.trained_on
        if model.base_model is not None and "@" in model.base_model:
            references.append(model.base_model)
        elif model.base_model is not None:
            licence = licence_of("model", model.base_model, model.base_revision)
            yield Source(f"base model {model.base_model}", licence, None, model.base_revision)
    for item in lineage["origins"]:
        terms = said.get(item["step"], {})
        if "hub" in item:
            licence = terms.get("licence") or licence_of("dataset", item["hub"], item.get("commit"))
            yield Source(f"Hub dataset {item['hub']}", licence, terms.get("terms"), item.get("commit"), hub=item["hub"])
        elif "entry" in item:
            above = _version(catalog, item["entry"], item.get("digest"))
            if above is None:  # it lies in another catalog
                yield Source(f"catalog version {item['entry']}", terms.get("licence"), terms.get("terms"), item.get("digest"))
            else:
                references.append(above.reference)
    for reference in dict.fromkeys(references):
        above = _version(catalog, reference, None) if "@" in reference else None
        if above is not None and above.reference not in seen:
            seen.add(above.reference)
            yield Source(f"catalog version {above.reference}", above.licence, None, above.digest)
            yield from _walk(above, catalog, licence_of, seen)


def _version(catalog: Catalog, reference: str, digest: str | None) -> Version | None:
    from ptk_catalog import BadReference, NotFound

    try:
        found = catalog.version(reference)
    except (BadReference, NotFound):
        return None
    return found if digest is None or found.digest == digest else None


def _short(digests: Any) -> str:
    """Return the digest of a source's first file, and how many more there are."""
    several = [digests] if isinstance(digests, str) else list(digests)
    return f"sha256:{several[0]}{f' and {len(several) - 1:,} more' if len(several) > 1 else ''}" if several else ""
