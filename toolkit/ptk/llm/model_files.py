"""From a model's name in a spec to a folder with its files, without loading it."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from ptk.errors import ModelNotFound
from ptk.files import sha256_of_file
from ptk.llm.bundled import BUNDLED, bundled_model, bundled_model_folder
from ptk.params import suggestion

__all__ = [
    "CATALOG",
    "STEP",
    "ModelFiles",
    "ModelRoots",
    "ModelVersion",
    "find_model_files",
    "find_model_folder",
    "find_tokenizer_files",
    "model_digest",
    "read_json_file",
]

CATALOG = "catalog:"
STEP = "step:"

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
OTHERS = (".json", ".jinja", ".model", ".tiktoken", ".py")
TEXTS = ("merges.txt", "vocab.txt")
# Left by training beside a model; they decide no answer.
LEFTOVERS = re.compile(
    r"training_args|optimizer|scheduler|rng_state|trainer_state|scaler|(all|train|eval)_results|consolidated\."
)
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True, slots=True)
class ModelRoots:
    """Where a model's name leads that is no name of the Hub's."""

    folder: Path
    """Of the spec: relative paths are against it."""
    catalog: str | None = None
    """Where the catalog is, as a path or URL; None is the usual place below the current folder."""
    steps: Mapping[str, Path] = field(default_factory=dict)
    """Folders that finished steps made, by what stands behind `step:`."""


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """A version of the catalog that is a model."""

    reference: str
    """As `entry@v3`, however it was referred to."""
    digest: str
    catalog: str
    """Root of the catalog it is in."""
    base_model: str | None
    """What it was made from, as the catalog has it."""


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A model found on this machine."""

    folder: Path
    revision: str | None = None
    """Commit on the Hub."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    version: ModelVersion | None = None
    """The version in the catalog, where it comes from there."""


def find_model_files(reference: str, revision: str | None, roots: ModelRoots) -> ModelFiles:
    """Return the folder of a model and what is known of it.

    `reference` is `bundled/NAME`, `catalog:ENTRY@REF`, `step:NAME`, a path, or a Hub id `org/name` at `revision`. A bundled model is
    converted and a Hub model downloaded at first use. Raises ModelNotFound: what was looked for, and what to write instead.
    """
    if revision is not None and reference.startswith((CATALOG, STEP, "bundled/")):
        what = f"write {reference.partition('@')[0]}@{revision}" if reference.startswith(CATALOG) else "leave it out"
        raise ModelNotFound(f"`revision` is for models of the Hugging Face Hub, which '{reference}' is not; {what}")
    if reference.startswith((CATALOG, STEP)):
        found = find_model_folder(reference, roots)
        if (found.folder / "adapter_config.json").is_file() and not (found.folder / "config.json").is_file():
            base = read_json_file(found.folder / "adapter_config.json").get("base_model_name_or_path")
            raise ModelNotFound(
                f"'{reference}' is an adapter, not a whole model; write `adapter: {reference}` and `model: {base}`"
            )
        _check_whole(found.folder, reference)
        return found
    if reference.startswith("bundled/"):
        name = reference.removeprefix("bundled/")
        model = bundled_model(name)
        notes = {"licence": model.licence, "parameters": model.parameters, "package": model.requirement}
        return ModelFiles(bundled_model_folder(name), notes=notes)
    path = roots.folder / Path(reference).expanduser()
    if path.is_dir():
        _check_whole(path, reference)
        return ModelFiles(path.resolve())
    if path.exists():
        raise ModelNotFound(f"'{reference}' is a file; name the folder that holds config.json, weights and tokenizer")
    if reference.startswith((".", "/", "~")) or not HUB_NAME.fullmatch(reference):
        known = [f"bundled/{name}" for name in BUNDLED]
        raise ModelNotFound(
            f"no model '{reference}': no folder {path}, and no id of the Hugging Face Hub has that form (org/name)"
            f"{suggestion(reference, known)}"
        )
    return _hub_model(reference, revision, path)


def find_model_folder(reference: str, roots: ModelRoots, what: str = "adapter") -> ModelFiles:
    """Return what `catalog:ENTRY@REF`, `step:NAME` or a path leads to: files of a model of any kind. Raises ModelNotFound.

    `what` is what a missing path is called.
    """
    if reference.startswith(CATALOG):
        return _catalog_model(reference, roots)
    if reference.startswith(STEP):
        name = reference.removeprefix(STEP)
        if name not in roots.steps:
            raise ModelNotFound(f"'{reference}' can't be used here: it stands under `models` of a spec, for what a step makes")
        return ModelFiles(roots.steps[name])
    folder = (roots.folder / Path(reference).expanduser()).resolve()
    if not folder.is_dir():
        raise ModelNotFound(f"no {what} '{reference}': no folder {folder}")
    return ModelFiles(folder)


def find_tokenizer_files(reference: str, roots: ModelRoots) -> Path:
    """Return a folder with a model's tokenizer and chat template, named as a model is; weights need not be there.

    Of a model of the Hub only those files are downloaded. Raises ModelNotFound.
    """
    path = roots.folder / Path(reference).expanduser()
    elsewhere = reference.startswith(("bundled/", CATALOG, STEP))
    if elsewhere or (not path.is_dir() and not HUB_NAME.fullmatch(reference)):
        return find_model_files(reference, None, roots).folder
    folder = path.resolve() if path.is_dir() else _cached_snapshot(reference, "main")
    if folder is None or (not path.is_dir() and not (folder / "tokenizer.json").is_file()):
        folder = _hub_download(reference, None, path, weights=False)
    if not (folder / "tokenizer.json").is_file():
        raise ModelNotFound(f"the folder of tokenizer '{reference}' ({folder}) lacks tokenizer.json")
    return folder


def model_digest(folder: Path) -> str:
    """Return the SHA-256 over the (name, SHA-256) of the files that decide answers: weights, tokenizer, configuration, template."""
    content = [[name, sha256_of_file(folder / name)] for name in _deciding_files(folder)]
    return hashlib.sha256(orjson.dumps(content)).hexdigest()


def read_json_file(file: Path) -> dict[str, Any]:
    """Return the JSON object in a file, empty where the file is missing. Raises ModelNotFound where it is broken."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ModelNotFound(f"{file} can't be read: {error}") from error
    if not isinstance(content, dict):
        raise ModelNotFound(f"{file} holds no JSON object")
    return content


def _deciding_files(folder: Path) -> list[str]:
    names = (path.name for path in folder.iterdir() if path.is_file())
    return sorted(name for name in names if name.endswith((*WEIGHTS, *OTHERS, *TEXTS)) and not LEFTOVERS.match(name))


def _missing_files(folder: Path) -> list[str]:
    """Return what a folder lacks to be a model: nothing where it is whole."""
    missing = [] if (folder / "config.json").is_file() else ["config.json"]
    indexes = list(folder.glob("*.index.json"))
    parts = {part for index in indexes for part in read_json_file(index).get("weight_map", {}).values()}
    missing += sorted(part for part in parts if not (folder / part).is_file())
    if not parts and not any(name.endswith(WEIGHTS) for name in _deciding_files(folder)):
        missing.append("weights (*.safetensors)")
    return missing


def _check_whole(folder: Path, reference: str) -> None:
    missing = _missing_files(folder)
    if missing:
        raise ModelNotFound(f"the folder of model '{reference}' ({folder}) lacks {', '.join(missing)}")


def _catalog_model(reference: str, roots: ModelRoots) -> ModelFiles:
    import ptk_catalog

    try:
        catalog = ptk_catalog.open(roots.catalog or "catalog/store", create=False)
        version = catalog.version(reference.removeprefix(CATALOG))
        # The version, not the reference: a tag may move meanwhile.
        folder = catalog.load_model(version.reference)
        manifest = version.model
    except ptk_catalog.CatalogError as error:
        raise ModelNotFound(f"no model '{reference}': {error}") from error
    notes = {"licence": version.licence} if version.licence is not None else {}
    return ModelFiles(
        folder,
        notes=notes,
        version=ModelVersion(version.reference, version.digest, catalog.root, manifest.base_model),
    )


def _hub_model(reference: str, revision: str | None, path: Path) -> ModelFiles:
    cached = _cached_snapshot(reference, revision or "main")
    if cached is not None and not _missing_files(cached):
        return ModelFiles(cached, revision=cached.name)
    folder = _hub_download(reference, revision, path, weights=True)
    _check_whole(folder, reference)
    return ModelFiles(folder, revision=folder.name)


def _hub_download(reference: str, revision: str | None, path: Path, *, weights: bool) -> Path:
    sought = f"no folder {path}, not whole in the Hugging Face cache ({_hub_cache()})"
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import (
            HfHubHTTPError,
            LocalEntryNotFoundError,
            OfflineModeIsEnabled,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )
    except ImportError as error:
        raise ModelNotFound(
            f"no model '{reference}': {sought}, and the package huggingface-hub that could fetch it is not installed"
        ) from error
    patterns = [*(["*.safetensors"] if weights else []), *(f"*{ending}" for ending in OTHERS), *TEXTS]
    beside = ["*/*", "consolidated*"]  # the same weights in other formats
    known = suggestion(reference, [f"bundled/{name}" for name in BUNDLED])
    at = f" at revision {revision}" if revision else ""
    try:
        # Weights as safetensors wherever there are any; the older formats hold the same numbers once more.
        folder = Path(snapshot_download(reference, revision=revision, allow_patterns=patterns, ignore_patterns=beside))
        if weights and not any(folder.glob("*.safetensors")):
            folder = Path(
                snapshot_download(reference, revision=revision, allow_patterns=[*patterns, "*.bin"], ignore_patterns=beside)
            )
    except RevisionNotFoundError as error:
        raise ModelNotFound(f"the Hub's model '{reference}' has no revision '{revision}'") from error
    except RepositoryNotFoundError as error:
        raise ModelNotFound(
            f"no model '{reference}': {sought}, and not on the Hugging Face Hub (a private one needs: hf auth login){known}"
        ) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, OSError) as error:
        raise ModelNotFound(
            f"no model '{reference}'{at}: {sought}, and the Hugging Face Hub can't be reached ({_first_line(error)}); fetch it where"
            f" there is a network (hf download {reference}) and point HF_HOME to it, or name a folder{known}"
        ) from error
    return folder


def _cached_snapshot(reference: str, revision: str) -> Path | None:
    """Return the folder of a Hub model in the local cache; laid out as huggingface_hub does, which takes 0.4 s to import."""
    repository = _hub_cache() / f"models--{reference.replace('/', '--')}"
    branch = repository / "refs" / revision
    commit = branch.read_text().strip() if branch.is_file() else revision
    folder = repository / "snapshots" / commit
    return folder if folder.is_dir() else None


def _hub_cache() -> Path:
    home = Path(os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
    return Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
