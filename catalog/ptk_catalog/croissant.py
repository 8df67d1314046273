"""The Croissant description of a version's files (MLCommons Croissant 1.0, JSON-LD)."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

    from ptk_catalog.version import Version

__all__ = ["DescribedFile", "Records", "Repository", "croissant"]

_TERMS = (
    "citeAs column dataBiases dataCollection extract field fileObject fileProperty fileSet format includes isLiveDataset "
    "jsonPath key md5 parentField path personalSensitiveInformation recordSet references regex repeated replace separator "
    "source subField transform"
)
_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "rai": "http://mlcommons.org/croissant/RAI/",
    "sc": "https://schema.org/",
    **{term: f"cr:{term}" for term in _TERMS.split()},
}


@dataclass(frozen=True, slots=True)
class DescribedFile:
    """A Parquet file: its path relative to the description, its size, and its SHA-256."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Records:
    """Records that lie in the Parquet files that a pattern names."""

    name: str
    schema: pa.Schema
    files: str
    """The pattern, such as `data/*.parquet`."""
    description: str | None = None
    key: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Repository:
    """Where published files are: the address of the page, and that of the commit's or tag's files."""

    address: str
    content: str


def croissant(version: Version, records: Sequence[Records], where: Sequence[DescribedFile] | Repository) -> dict[str, Any]:
    """Return the description of a version's records, which lie in files beside the description or in a repository, as JSON-LD."""
    if isinstance(where, Repository):
        holders = [_repository(where)]
        within: Any = {"@id": "repo"}
    else:
        holders = [_file(file) for file in where]
        within = [{"@id": file.path} for file in where]
    sets = [
        {
            "@type": "cr:FileSet",
            "@id": f"{item.name}-files",
            "name": f"{item.name}-files",
            "containedIn": within,
            "encodingFormat": "application/x-parquet",
            "includes": item.files,
        }
        for item in records
    ]
    return {
        "@context": deepcopy(_CONTEXT),
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": version.entry.replace("/", "-"),
        "description": f"{version.reference}: {version.rows:,} rows with the digest {version.digest}.",
        "identifier": version.digest,
        **({"url": where.address} if isinstance(where, Repository) else {}),
        "version": f"{version.number}.0.0",
        "datePublished": version.created_at[:10],
        **({"license": version.licence} if version.licence else {}),
        "distribution": [*holders, *sets],
        "recordSet": [
            {
                "@type": "cr:RecordSet",
                "@id": item.name,
                "name": item.name,
                **({"description": item.description} if item.description else {}),
                **({"key": [{"@id": f"{item.name}/{name}"} for name in item.key]} if item.key else {}),
                "field": [_field(item.name, field.name, field.type) for field in item.schema],
            }
            for item in records
        ],
    }


def _repository(where: Repository) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": "repo",
        "name": "repo",
        "description": "The repository on the Hub.",
        "contentUrl": where.content,
        "encodingFormat": "git+https",
        # A repository has no digest; by convention the issue that says so stands for it.
        "sha256": "https://github.com/mlcommons/croissant/issues/80",
    }


def _file(file: DescribedFile) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": file.path,
        "name": file.path,
        "contentUrl": file.path,
        "contentSize": f"{file.bytes} B",
        "encodingFormat": "application/x-parquet",
        "sha256": file.sha256,
    }


def _field(records: str, name: str, kind: pa.DataType) -> dict[str, Any]:
    source = {"fileSet": {"@id": f"{records}-files"}, "extract": {"column": name}}
    place = f"{records}/{name}"
    return {"@type": "cr:Field", "@id": place, "name": place, "source": source} | _typed(place, kind, source)


def _typed(place: str, kind: pa.DataType, source: dict[str, Any]) -> dict[str, Any]:
    import pyarrow.types as kinds

    if kinds.is_list(kind) or kinds.is_fixed_size_list(kind):
        return {"repeated": True} | _typed(place, kind.value_type, source)
    if kinds.is_struct(kind):
        return {
            "subField": [
                {
                    "@type": "cr:Field",
                    "@id": f"{place}/{inner.name}",
                    "name": f"{place}/{inner.name}",
                    "source": {**source, "transform": {"jsonPath": inner.name}},
                }
                | _typed(f"{place}/{inner.name}", inner.type, source)
                for inner in kind
            ]
        }
    names = {
        kinds.is_boolean: "sc:Boolean",
        kinds.is_integer: "sc:Integer",
        kinds.is_floating: "sc:Float",
        kinds.is_decimal: "sc:Float",
        kinds.is_date: "sc:Date",
        kinds.is_timestamp: "sc:DateTime",
    }
    return {"dataType": next((name for is_a, name in names.items() if is_a(kind)), "sc:Text")}
