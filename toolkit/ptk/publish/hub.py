"""A repository on the Hugging Face Hub: what is there, and how it is made to hold other files; `huggingface_hub` does the talking."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptk.errors import PublishError
from ptk.files import sha256_of_file

if TYPE_CHECKING:
    from huggingface_hub import HfApi

__all__ = ["Remote", "Repository"]

_LARGE = (".parquet", ".safetensors", ".gguf", ".bin", ".pt")


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file on the Hub: its size, and the digest that the Hub has of it."""

    size: int
    digest: str
    is_large: bool

    def is_(self, file: Path) -> bool:
        """Return whether a file here has the same content."""
        if file.stat().st_size != self.size:
            return False
        if self.is_large:
            return sha256_of_file(file) == self.digest
        content = file.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest() == self.digest


@dataclass(frozen=True, slots=True)
class Remote:
    """What a repository holds now; `head` is its newest commit, None where there is no repository."""

    head: str | None
    private: bool
    files: Mapping[str, RemoteFile]
    tags: Mapping[str, str]
    readme: str | None


class Repository:
    """One repository. The token comes from the environment or from `hf auth login`, and is never shown or stored."""

    def __init__(self, name: str, kind: str = "dataset") -> None:
        try:
            from huggingface_hub import HfApi
        except ImportError as error:
            raise PublishError("publishing needs the packages of preference-toolkit[hub]; install them") from error
        self.name = name
        self.kind = kind
        self._api: HfApi = HfApi(library_name="preference-toolkit")

    @property
    def endpoint(self) -> str:
        return str(self._api.endpoint).rstrip("/")

    @property
    def address(self) -> str:
        """The repository's page."""
        return f"{self.endpoint}/{'datasets/' if self.kind == 'dataset' else ''}{self.name}"

    def remote(self) -> Remote:
        """Return what is there. Raises PublishError."""
        from huggingface_hub.errors import RepositoryNotFoundError

        with self._told("look at it"):
            try:
                info = self._api.repo_info(self.name, repo_type=self.kind)
            except RepositoryNotFoundError:
                return Remote(None, False, {}, {}, None)
            listed = self._api.list_repo_tree(self.name, repo_type=self.kind, revision=info.sha, recursive=True)
            files = {
                item.path: RemoteFile(item.size, item.lfs.sha256 if item.lfs else item.blob_id, item.lfs is not None)
                for item in listed
                if hasattr(item, "blob_id")
            }
            tags = {tag.name: tag.target_commit for tag in self._api.list_repo_refs(self.name, repo_type=self.kind).tags}
            readme = None
            if "README.md" in files:
                path = self._api.hf_hub_download(self.name, "README.md", repo_type=self.kind, revision=info.sha)
                readme = Path(path).read_text(encoding="utf-8")
        return Remote(info.sha, bool(info.private), files, tags, readme)

    def licence_of(self, kind: str, name: str, revision: str | None) -> str | None:
        """Return the licence on the card of a dataset or model, or None where there is none to be had."""
        try:
            data = self._api.repo_info(name, repo_type=kind, revision=revision, timeout=10.0).card_data
        except Exception:  # a source that is gone, private or out of reach has no licence that is known
            return None
        licence = None if data is None else data.to_dict().get("license")
        return licence if isinstance(licence, str) and licence not in ("unknown", "other") else None

    def create(self, *, private: bool) -> None:
        """Make the repository where there is none."""
        with self._told("make it"):
            self._api.create_repo(self.name, repo_type=self.kind, private=private, exist_ok=True)

    def commit(
        self, add: Mapping[str, Path], remove: list[str], message: str, parent: str | None, progress: Callable[[str], None]
    ) -> str:
        """Upload files and make one commit of them; return it. Raises PublishError; then the repository is what it was.

        Files that were uploaded before, by a push that was cut off, are not uploaded again.
        """
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        adding = [CommitOperationAdd(path, str(file)) for path, file in sorted(add.items())]
        for operation in adding:
            if not operation.path_in_repo.endswith(_LARGE):
                continue  # goes with the commit
            progress(f"uploading {operation.path_in_repo}")
            with self._told(f"upload {operation.path_in_repo}"):
                self._api.preupload_lfs_files(self.name, [operation], repo_type=self.kind, free_memory=False)
        with self._told("commit"):
            made = self._api.create_commit(
                self.name,
                [*adding, *(CommitOperationDelete(path) for path in remove)],
                commit_message=message,
                repo_type=self.kind,
                parent_commit=parent,
            )
        return str(made.oid)

    def tag(self, tag: str, revision: str) -> None:
        """Set a tag that is not there yet."""
        with self._told(f"set the tag {tag}"):
            self._api.create_tag(self.name, tag=tag, revision=revision, repo_type=self.kind)

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """Tell whatever the network or the Hub raises as a sentence; the Hub's own words may quote an address, never a token."""
        from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

        failed = f"{self.endpoint}: {self.name}: could not {what}"
        try:
            yield
        except PublishError:
            raise
        except LocalTokenNotFoundError:
            raise PublishError(f"{failed}: set HF_TOKEN, or log in (hf auth login)") from None
        except OfflineModeIsEnabled:
            raise PublishError(f"{failed}: HF_HUB_OFFLINE is set") from None
        except HfHubHTTPError as error:
            raise PublishError(f"{failed}: {_why(error)}") from None
        except (OSError, RuntimeError, HTTPError) as error:
            cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ is not None else error
            why = _why(cause) if isinstance(cause, HfHubHTTPError) else type(cause).__name__
            raise PublishError(f"{failed}: {why}; publish again, it goes on from there") from None


def _why(error: Any) -> str:
    status = error.response.status_code if error.response is not None else None
    if status in (401, 403):
        return "the Hub refused it; set HF_TOKEN to a token that may write there, or log in (hf auth login)"
    if status == 412:
        return "somebody else committed to it just now; look at what changed and publish again"
    said = " ".join((error.server_message or "").split())[:300]
    return f"the Hub answered {status}{f' ({said})' if said else ''}; publish again, it goes on from there"
