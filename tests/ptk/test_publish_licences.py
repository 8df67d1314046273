"""Which licences speak against a publication."""

from __future__ import annotations

import pytest

from ptk.publish.licences import HUB_LICENCES, Source, concerns, normalised


@pytest.mark.parametrize(
    ("own", "source", "what"),
    [
        ("mit", "apache-2.0", None),
        ("CC0-1.0", "cc0-1.0", None),
        ("cc-by-sa-4.0", "CC-BY-SA-4.0", None),
        ("cc-by-nc-4.0", "cc-by-nc-4.0", None),
        ("mit", "cc-by-sa-4.0", "asks for the same licence, not 'mit'"),
        ("cc-by-4.0", "cc-by-nc-4.0", "forbids commercial use, which 'cc-by-4.0' would allow"),
        ("cc-by-4.0", "cc-by-nd-4.0", "forbids passing on what was made from it"),
        ("cc-by-4.0", "all-rights-reserved", "forbids passing it on"),
        ("cc-by-4.0", "our-own-2", "is not known to ptk"),
        ("cc-by-4.0", None, "its licence is not known"),
    ],
)
def test_a_source_speaks_against_it_where_its_terms_do_not_fit(own: str, source: str | None, what: str | None) -> None:
    found = concerns(own, [Source("set", source)])
    assert [item.source for item in found] == ([] if what is None else ["set"])
    assert what is None or what in str(found[0])


@pytest.mark.parametrize(("own", "what"), [(None, "has no licence"), ("house-rules", "not known"), ("Proprietary", "forbids")])
def test_the_licence_of_the_version_itself_is_looked_at(own: str | None, what: str) -> None:
    assert [what in str(item) for item in concerns(own, [])] == [True]


def test_licences_are_written_as_the_hub_writes_them() -> None:
    assert normalised(" CC BY 4.0 ") in HUB_LICENCES
    assert "proprietary" not in HUB_LICENCES
