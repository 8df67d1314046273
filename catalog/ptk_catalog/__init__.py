"""ptk_catalog: immutable, versioned datasets in a folder or an object store.

import ptk_catalog
rows = ptk_catalog.open("catalog/store").load("quickstart/personas@v1").collect()
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ptk_catalog.catalog import Catalog, Commit, ModelCommit, open  # noqa: A004
    from ptk_catalog.dataset import Dataset
    from ptk_catalog.errors import (
        BadData,
        BadReference,
        CatalogError,
        Conflict,
        Damaged,
        NewerFormat,
        NotFound,
        OlderFormat,
        TagExists,
    )
    from ptk_catalog.sweep import Swept
    from ptk_catalog.version import Version

__all__ = [
    "BadData",
    "BadReference",
    "Catalog",
    "CatalogError",
    "Commit",
    "Conflict",
    "Damaged",
    "Dataset",
    "ModelCommit",
    "NewerFormat",
    "NotFound",
    "OlderFormat",
    "Swept",
    "TagExists",
    "Version",
    "open",
]

_PLACES = {
    "Catalog": "catalog",
    "Commit": "catalog",
    "Dataset": "dataset",
    "ModelCommit": "catalog",
    "Swept": "sweep",
    "Version": "version",
    "open": "catalog",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: `import ptk_catalog` alone loads neither Polars nor SQLAlchemy."""
    if name not in __all__:
        raise AttributeError(f"module 'ptk_catalog' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(f"ptk_catalog.{_PLACES.get(name, 'errors')}"), name)
