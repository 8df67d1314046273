"""Models on the workers of a Dask cluster: one engine on each worker that has the resource, and the driver hands out requests."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from ptk.engines.cluster import RESOURCE, Cluster
from ptk.errors import BackendError, PtkError
from ptk.llm.backend import ResolvedModel, Session
from ptk.llm.request import Answer, Request
from ptk.spec import Model, find_backend

if TYPE_CHECKING:
    from distributed import Future

__all__ = ["ClusterSession", "check_for_models"]

REQUESTS_PER_CHUNK = 128


class ClusterSession:
    """A session on every worker that has the resource; the driver hands out chunks of requests and takes the answers."""

    def __init__(self, cluster: Cluster, declared: Model, model: ResolvedModel) -> None:
        self.cluster, self.declared, self.model = cluster, declared, model

    def __enter__(self) -> ClusterSession:
        check_for_models(self.cluster)
        return self

    def __exit__(self, *exc: object) -> None:
        with contextlib.suppress(Exception):  # a cluster that is gone holds no model
            self.cluster.client.run(_close_session)

    def answer(self, requests: Iterable[tuple[str, Request]]) -> Iterator[Answer]:
        client = self.cluster.client
        source = iter(requests)
        chunks = iter(lambda: list(itertools.islice(source, REQUESTS_PER_CHUNK)), [])

        def submitted(chunk: list[tuple[str, Request]]) -> Future:
            return client.submit(_answer, self.declared.settings, self.model, chunk, resources={RESOURCE: 1}, pure=False)

        # Two chunks a worker: one at work, one at hand. So the driver holds few requests, however many there are.
        pending = {submitted(chunk) for chunk in itertools.islice(chunks, 2 * max(1, len(_workers(self.cluster))))}
        try:
            for answers in self.cluster.results(pending, f"{self.model.reference}: ", RESOURCE):
                pending.update(submitted(chunk) for chunk in itertools.islice(chunks, 1))
                yield from answers
        except BackendError:
            raise
        except PtkError as error:
            raise BackendError(str(error)) from error


def check_for_models(cluster: Cluster) -> None:
    """Raise BackendError where no worker of a cluster may load a model."""
    if not _workers(cluster):
        raise BackendError(
            f"no Dask worker may load a model: start one with `dask worker {cluster.client.scheduler.address} --resources {RESOURCE}=1`"
        )


def _workers(cluster: Cluster) -> list[str]:
    return [address for address, facts in cluster.workers().items() if facts["resources"].get(RESOURCE, 0) >= 1]


_open: dict[str, tuple[Session, contextlib.ExitStack]] = {}
"""On a worker: the one open session, by the engine that it holds, or by the model and its settings."""


def _answer(settings: Any, model: ResolvedModel, requests: list[tuple[str, Request]]) -> list[Answer]:
    name = f"{model.engine} {model.adapters}" if model.engine else f"{settings!r} {model!r}"
    if name not in _open:
        _close_session()
        stack = contextlib.ExitStack()
        backend = find_backend(settings.backend)
        _open[name] = stack.enter_context(backend.open(settings, model)), stack
    return list(_open[name][0].answer(iter(requests)))


def _close_session() -> None:
    for _, stack in _open.values():
        stack.close()
    _open.clear()
