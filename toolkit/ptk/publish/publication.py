"""A publication: a version laid out as files, compared with the repository it goes to, shown, and pushed."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import orjson

from ptk.errors import PublishError
from ptk.publish.card import card, is_ours, merged, model_card
from ptk.publish.changes import changes_between
from ptk.publish.checks import Check, checks
from ptk.publish.hub import Remote, Repository
from ptk.publish.layout import SHARD, Config, configurations, write_config
from ptk.publish.licences import Concern, Source, concerns
from ptk.publish.lineage import recorded
from ptk.publish.models import model_checks, model_files
from ptk.publish.rejects import rejected_rows
from ptk.publish.settings import Publish
from ptk.publish.sources import sources_of
from ptk_catalog.croissant import Repository as Described
from ptk_catalog.croissant import croissant
from ptk_catalog.errors import CatalogError
from ptk_catalog.publications import Publication as Published

if TYPE_CHECKING:
    from ptk.work import WorkStore
    from ptk_catalog import Catalog, Version

__all__ = ["FileChange", "Publication", "is_published", "prepared", "publish_all", "pushed"]

_FOREIGN = frozenset({".gitattributes", "README.md"})


@dataclass(frozen=True, slots=True)
class FileChange:
    """What a push does to one file of the repository."""

    path: str
    bytes: int
    state: Literal["new", "changed", "same", "removed"]


@dataclass(frozen=True, slots=True)
class Publication:
    """A version ready to be pushed. Its files lie in a folder that is gone when `prepared` ends."""

    version: Version
    settings: Publish
    tag: str
    repository: Repository
    remote: Remote
    files: Mapping[str, Path]
    configs: Sequence[Config]
    changes: Sequence[FileChange]
    differences: Sequence[str]
    """What is different from the version that was published before, in words."""
    previous: str | None
    checks: Sequence[Check]
    concerns: Sequence[Concern]

    @property
    def to_upload(self) -> dict[str, Path]:
        return {change.path: self.files[change.path] for change in self.changes if change.state in ("new", "changed")}

    @property
    def to_remove(self) -> list[str]:
        return [change.path for change in self.changes if change.state == "removed"]

    @property
    def new_bytes(self) -> int:
        return sum(change.bytes for change in self.changes if change.state in ("new", "changed"))

    @property
    def shared_bytes(self) -> int:
        return sum(change.bytes for change in self.changes if change.state == "same")

    @property
    def is_there(self) -> bool:
        """Whether the repository holds these files already."""
        return self.remote.head is not None and not self.to_upload and not self.to_remove

    def refusals(self) -> list[str]:
        """Return why it can't be pushed as it is; empty where it can."""
        found = [check.what for check in self.checks if check.failed]
        if self.concerns and not self.settings.licence_ok:
            found.append(
                "the licences above have to be seen to: name or change them, or say that you did (--licence-ok, or `licence_ok: true`)"
            )
        remote = self.remote
        if remote.head is None:
            return found
        if self.settings.private and not remote.private:
            found.append(f"{self.settings.repo} is public; make it private on its page first, or leave --private out")
        if not set(remote.files) <= _FOREIGN and not is_ours(remote.readme or ""):
            found.append(f"{self.settings.repo} holds files that ptk did not publish; choose another name, or empty it first")
        if self.tag in remote.tags and not (self.is_there and remote.tags[self.tag] == remote.head):
            found.append(
                f"the tag {self.tag} of {self.settings.repo} stands on another commit ({remote.tags[self.tag][:8]}); "
                "tags are never moved: choose another (--tag)"
            )
        return found

    def as_json(self) -> dict[str, Any]:
        """Return the preview as plain data."""
        return {
            "version": self.version.reference,
            "digest": self.version.digest,
            "repo": self.settings.repo,
            "endpoint": self.repository.endpoint,
            "tag": self.tag,
            "private": self.settings.private or self.remote.private,
            "exists": self.remote.head is not None,
            "published_before": self.previous,
            "changes": list(self.differences),
            "kind": self.version.kind,
            "configs": {config.name: {split.name: split.rows for split in config.splits} for config in self.configs},
            "files": [{"path": item.path, "bytes": item.bytes, "state": item.state} for item in self.changes],
            "bytes_new": self.new_bytes,
            "bytes_shared": self.shared_bytes,
            "licences": [{"source": item.source, "licence": item.licence, "what": item.what} for item in self.concerns],
            "checks": [{"state": item.state, "what": item.what} for item in self.checks],
            "refused": self.refusals(),
        }


def is_published(catalog: Catalog, version: Version, settings: Publish) -> Published | None:
    """Return the repository's last publication, if the catalog's log says that it was this version with these settings."""
    endpoint = Repository(settings.repo, version.kind).endpoint
    log = [item for item in catalog.publications.of(repo=settings.repo) if item.endpoint == endpoint]
    wanted = (version.entry, version.number, _settings(settings))
    return log[-1] if log and (log[-1].entry, log[-1].number, log[-1].settings) == wanted else None


@contextmanager
def prepared(catalog: Catalog, reference: str, settings: Publish, work: WorkStore | None = None) -> Iterator[Publication]:
    """Lay a version out as files, and compare it with what its repository holds now. Changes nothing on the Hub.

    `work` is where rejected rows are found. Raises PublishError, CatalogError.
    """
    version = catalog.version(reference)
    repository = Repository(settings.repo, version.kind)
    remote = repository.remote()
    tag = settings.tag or f"v{version.number}"
    before = _before(catalog, version, repository)
    with tempfile.TemporaryDirectory(prefix="ptk-publish-") as name:
        draft = _Draft(
            catalog=catalog,
            version=version,
            settings=settings,
            repository=repository,
            tag=tag,
            folder=Path(name),
            sources=sources_of(version, catalog, repository.licence_of),
            before=before,
            differences=changes_between(catalog, before.reference, version) if before is not None else [],
        )
        made = draft.dataset(work) if version.kind == "dataset" else draft.model()
        documents = {"README.md": merged(made.readme, remote.readme), **made.documents}
        if text := recorded(version)["spec"]["text"]:
            documents["spec.yaml"] = text
        for path, text in documents.items():
            (draft.folder / path).write_text(text, encoding="utf-8", newline="")
        files = {**made.files, **{path: draft.folder / path for path in documents}}
        yield Publication(
            version=version,
            settings=settings,
            tag=tag,
            repository=repository,
            remote=remote,
            files=files,
            configs=made.configs,
            changes=_compared(files, remote, made.replaces),
            differences=draft.differences,
            previous=before.reference if before is not None else None,
            checks=made.checks,
            concerns=concerns(version.licence, draft.sources),
        )


@dataclass(frozen=True, slots=True)
class _Made:
    """The files of a version, and what else decides a publication."""

    files: Mapping[str, Path]
    readme: str
    documents: Mapping[str, str]
    checks: Sequence[Check]
    configs: Sequence[Config] = ()
    replaces: Callable[[str], bool] = lambda path: False
    """Whether a file of the repository was put there for an earlier version, and goes where it is no more needed."""


@dataclass(frozen=True, slots=True)
class _Draft:
    """A version on its way to be files."""

    catalog: Catalog
    version: Version
    settings: Publish
    repository: Repository
    tag: str
    folder: Path
    sources: Sequence[Source]
    before: Published | None
    differences: Sequence[str]

    @property
    def _previous(self) -> str | None:
        return None if self.before is None else f"`{self.before.reference}`, published as `{self.before.tag}`"

    def dataset(self, work: WorkStore | None) -> _Made:
        frame = self.catalog.load(self.version.reference).scan()
        schema = frame.collect_schema()
        wanted = configurations(schema.names(), self.version.manifest.key)
        configs = [write_config(frame, config, columns, self.folder) for config, columns in wanted.items()]
        if self.settings.rejects:
            if work is None:
                raise PublishError("rejected rows lie in a work store, and none was named")
            rejects = rejected_rows(self.version, schema, work)
            if rejects is not None:
                configs.append(write_config(rejects, "rejects", rejects.collect_schema().names(), self.folder))
        address = self.repository.address
        described = croissant(
            self.version, [config.records for config in configs], Described(address, f"{address}/tree/{self.tag}")
        )
        return _Made(
            files={shard.path: shard.file for config in configs for shard in config.shards},
            readme=card(self.version, self.repository.name, self.tag, configs, self.sources, self._previous, self.differences),
            documents={
                "croissant.json": orjson.dumps(described, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE).decode()
            },
            checks=checks(frame, configs),
            configs=configs,
            replaces=lambda path: path == "spec.yaml" or SHARD.fullmatch(path) is not None,
        )

    def model(self) -> _Made:
        if self.settings.rejects:
            raise PublishError(f"{self.version.reference} is a model, which has no rejected rows; leave `rejects` out")
        files = model_files(self.catalog, self.version)
        trained_on = [(reference, self._places(reference)) for reference in self.version.model.trained_on]
        earlier = self._earlier_files()
        return _Made(
            files=files,
            readme=model_card(
                self.version,
                self.repository.name,
                self.tag,
                files.keys(),
                trained_on,
                self.sources,
                self._previous,
                self.differences,
            ),
            documents={},
            checks=model_checks(files),
            replaces=lambda path: path == "spec.yaml" or path in earlier,
        )

    def _places(self, reference: str) -> list[str]:
        """Return the repositories that a version was published in, on the same Hub."""
        entry = reference.partition("@")[0]
        published = [item for item in self.catalog.publications.of(entry=entry) if item.reference == reference]
        return sorted({item.repo for item in published if item.endpoint == self.repository.endpoint})

    def _earlier_files(self) -> set[str]:
        if self.before is None:
            return set()
        try:
            version = self.catalog.version(self.before.reference)
            return {file.name for file in version.model.files} if version.kind == "model" else set()
        except CatalogError:
            return set()


def pushed(publication: Publication, catalog: Catalog, progress: Callable[[str], None] = lambda what: None) -> dict[str, Any]:
    """Push it: the files, one commit, then the tag; then note it in the catalog, and return what was done as plain data.

    Nothing that is done already is done again: cut off anywhere, a repetition goes on from there, and until the commit nothing of
    it is to be seen. Raises PublishError, CatalogError.
    """
    if refusals := publication.refusals():
        raise PublishError("; ".join(refusals))
    log = catalog.publications
    log.check_writable()
    repository, remote, version = publication.repository, publication.remote, publication.version
    revision = remote.head
    if revision is None:
        repository.create(private=publication.settings.private)
        revision = repository.remote().head
    if not publication.is_there:
        what = f"{version.rows:,} rows" if version.kind == "dataset" else f"{len(version.model.files):,} files"
        message = f"{version.reference}: {what}, {version.digest[:19]}"
        revision = repository.commit(publication.to_upload, publication.to_remove, message, revision, progress)
    if revision is None:
        raise PublishError(f"{repository.address}: the Hub does not say what its newest commit is; publish again")
    if publication.tag not in remote.tags:
        repository.tag(publication.tag, revision)
    published = Published(
        entry=version.entry,
        number=version.number,
        digest=version.digest,
        endpoint=repository.endpoint,
        repo=repository.name,
        revision=revision,
        tag=publication.tag,
        settings=_settings(publication.settings),
    )
    log.add(published)
    return _done(published, version.kind, "there already" if publication.is_there else "pushed")


def publish_all(
    catalog: Catalog, wanted: Sequence[tuple[Version, Publish]], work: WorkStore, progress: Callable[[str], None]
) -> tuple[list[dict[str, Any]], list[str]]:
    """Publish versions; return what was done and what failed. A version that is published as it is costs no look at the Hub."""
    done, failures = [], []
    for version, settings in wanted:
        try:
            before = is_published(catalog, version, settings)
            if before is not None:
                done.append(_done(before, version.kind, "there already"))
                continue
            with prepared(catalog, version.reference, settings, work) as publication:
                progress(f"publishing {version.reference} as {settings.repo}: {publication.new_bytes:,} new bytes")
                done.append(pushed(publication, catalog, progress))
        except (PublishError, CatalogError) as error:
            failures.append(f"{version.reference} as {settings.repo}: {error}")
    return done, failures


def _done(published: Published, kind: str, what: str) -> dict[str, Any]:
    names = ("endpoint", "repo", "revision", "tag")
    return {"version": published.reference, "kind": kind, "what": what, **{name: getattr(published, name) for name in names}}


def _settings(settings: Publish) -> str:
    return orjson.dumps(settings.model_dump(exclude={"licence_ok"}), option=orjson.OPT_SORT_KEYS).decode()


def _before(catalog: Catalog, version: Version, repository: Repository) -> Published | None:
    """Return the last publication in the repository of another version: a repetition must write the same card."""
    others = [
        item
        for item in catalog.publications.of(repo=repository.name)
        if item.endpoint == repository.endpoint and (item.entry, item.number) != (version.entry, version.number)
    ]
    return others[-1] if others else None


def _compared(files: Mapping[str, Path], remote: Remote, replaces: Callable[[str], bool]) -> list[FileChange]:
    changes = []
    for path, file in sorted(files.items()):
        there = remote.files.get(path)
        state: Literal["new", "changed", "same"] = "new" if there is None else "same" if there.is_(file) else "changed"
        changes.append(FileChange(path, file.stat().st_size, state))
    ours = is_ours(remote.readme or "")
    for path, there in sorted(remote.files.items()):
        if ours and path not in files and replaces(path):
            changes.append(FileChange(path, there.size, "removed"))
    return changes
