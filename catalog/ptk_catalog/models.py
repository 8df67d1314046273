"""Models in the catalog: a folder of files, each stored by its digest, and what the model was made of."""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

from ptk_catalog.errors import BadData, CatalogError, Damaged
from ptk_catalog.manifest import ModelFile, ModelManifest
from ptk_catalog.storage import Storage
from ptk_catalog.version import Version

__all__ = ["Model", "files_of", "folder_of", "model_manifest", "verify_model"]

_CACHE = "PTK_CACHE"


@dataclass(frozen=True, slots=True)
class Model:
    """What is said of a model."""

    base_model: str | None
    base_revision: str | None
    trained_on: tuple[str, ...]
    metrics: dict[str, Any]
    facts: dict[str, Any]


def files_of(folder: Path) -> tuple[ModelFile, ...]:
    """Return the files below a folder by name and digest, sorted; links are followed. Raises BadData where there are none."""
    if not folder.is_dir():
        raise BadData(f"{folder} is no folder; a model is a folder of files")
    files = sorted(_described(folder, path) for path in _below(folder))
    if not files:
        raise BadData(f"{folder} holds no files; a model has some")
    try:
        return tuple(ModelFile(name=name, sha256=digest, bytes=size) for name, digest, size in files)
    except ValueError as error:
        raise BadData(f"{folder}: {str(error).splitlines()[-2].strip()}") from error


def _below(folder: Path) -> Iterator[Path]:
    for where, _, names in os.walk(folder, followlinks=False):
        yield from (Path(where, name) for name in names)


def _described(folder: Path, path: Path) -> tuple[str, str, int]:
    with path.open("rb") as file:
        return path.relative_to(folder).as_posix(), hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size


def model_manifest(
    entry: str,
    files: tuple[ModelFile, ...],
    model: Model,
    *,
    parents: tuple[str, ...],
    licence: str | None,
    lineage: dict[str, Any],
    created_at: str,
    created_by: str,
) -> ModelManifest:
    """Return the manifest of a model, with its digest."""
    draft = ModelManifest(
        entry=entry,
        digest="",
        files=files,
        base_model=model.base_model,
        base_revision=model.base_revision,
        trained_on=model.trained_on,
        metrics=model.metrics,
        facts=model.facts,
        parents=parents,
        licence=licence,
        lineage=lineage,
        created_at=created_at,
        created_by=created_by,
    )
    try:
        return draft.model_copy(update={"digest": draft.content_digest()})
    except TypeError as error:
        raise BadData(f"{entry}: metrics, facts and lineage are plain data that JSON can hold: {error}") from error


def folder_of(version: Version, storage: Storage, target: Path | None, *, verify: bool) -> Path:
    """Return a local folder with a model's files: a copy in `target`, or one in the cache. Raises Damaged, CatalogError."""
    manifest = version.model
    _check_there(version, storage, manifest)
    if verify and storage.is_local:
        verify_model(version, storage)
    if target is not None:
        if target.exists() and any(target.iterdir()):
            raise CatalogError(f"{target} is not empty; name a new folder for {version.reference}")
        return _laid_out(version, storage, manifest, target, link=False)
    # Links lead into one catalog: another copy of it has links of its own.
    place = hashlib.sha256(f"{storage.root} {manifest.digest}".encode()).hexdigest()[:32]
    cached = _cache() / "models" / place
    if all((cached / file.name).is_file() for file in manifest.files):
        return cached
    if cached.exists():  # its links lead nowhere any more, or someone cleaned up
        cached.rename(cached.with_name(f"{place}.{uuid.uuid4().hex}"))
    return _laid_out(version, storage, manifest, cached, link=storage.is_local)


def _laid_out(version: Version, storage: Storage, manifest: ModelManifest, target: Path, *, link: bool) -> Path:
    """Lay a model's files out aside, and give the folder its name when it is whole."""
    aside = target.with_name(f"{target.name}.{uuid.uuid4().hex}")
    try:
        aside.mkdir(parents=True)
        for file in manifest.files:
            place = aside / file.name
            place.parent.mkdir(parents=True, exist_ok=True)
            if link:
                place.symlink_to(storage.path(file.path))
            elif storage.fetch(file.path, place) != file.sha256:
                raise _changed(version, storage, file)
        if target.is_dir() and not any(target.iterdir()):
            target.rmdir()
        try:
            aside.rename(target)
        except OSError:
            if not target.is_dir():
                raise
            # Another process was faster, with the same files.
    except OSError as error:
        raise CatalogError(f"can't lay out {version.reference} in {target}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return target


def verify_model(version: Version, storage: Storage) -> None:
    """Read a model's files and compare them with their digests. Raises Damaged, naming the file that differs."""
    manifest = version.model
    for file in manifest.files:
        if storage.sha256(file.path) != file.sha256:
            raise _changed(version, storage, file)
    if manifest.content_digest() != version.digest:
        raise Damaged(f"{version.reference}: its manifest is not that of {version.digest}")


def _check_there(version: Version, storage: Storage, manifest: ModelManifest) -> None:
    if missing := storage.missing(file.path for file in manifest.files):
        raise Damaged(f"{version.reference}: {storage.path(missing[0])} is missing; restore it from a copy of the catalog")


def _changed(version: Version, storage: Storage, file: ModelFile) -> Damaged:
    return Damaged(
        f"{version.reference}: {storage.path(file.path)} ({file.name}) was changed; restore it from a copy of the catalog"
    )


def _cache() -> Path:
    return Path(os.environ.get(_CACHE) or user_cache_path("ptk"))
