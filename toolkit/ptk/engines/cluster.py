"""A Dask cluster as ptk uses one: reached or started, checked, and watched so that no run waits for ever."""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import polars as pl

from ptk.errors import PtkError
from ptk.places import Place

if TYPE_CHECKING:
    from distributed import Client, Future

__all__ = ["RESOURCE", "Cluster"]

RESOURCE = "GPU"
"""Dask's name for what a worker needs to load a model: one at a time on each worker that has it."""
CONNECT_SECONDS = 15
LOOK_SECONDS = 5
"""How often a run that waits looks whether the cluster is still there."""
ALONE_SECONDS = 60
"""How long a run waits without any worker before it gives up."""
DEATHS = 6
"""Workers that may die one after another before a run gives up, when nothing is finished between."""


class Cluster:
    """An existing scheduler's cluster, or `workers` processes of one thread each on this machine, which end with it.

    Raises PtkError when the scheduler can't be reached, when it has no workers, or when they run other versions or do not see the
    folder `work`.
    """

    def __init__(self, work: Place, *, scheduler: str | None, workers: int | None, memory_limit: str) -> None:
        _need_dask()
        self._stack = contextlib.ExitStack()
        try:
            self.client: Client = (
                _connected(scheduler, self._stack)
                if scheduler is not None
                else _started(workers or os.cpu_count() or 1, memory_limit, self._stack)
            )
            self._check_workers(work)
        except BaseException:
            self._stack.close()
            raise

    def close(self) -> None:
        self._stack.close()

    def workers(self) -> dict[str, Any]:
        """Return what the scheduler knows of each worker, by address."""
        found: dict[str, Any] = self.client.scheduler_info(n_workers=-1)["workers"]
        return found

    def results(self, pending: set[Future], step: str, needs: str | None = None) -> Iterator[Any]:
        """Yield results as they come; tasks may be added to `pending` meanwhile. Workers that have what it `needs` alone can do them.

        Raises what a task raised, and PtkError, beginning with `step`, when the cluster is gone or its workers keep dying.
        """
        from distributed import KilledWorker, wait
        from distributed.client import FutureCancelledError, FuturesCancelledError

        watch = _Watch(self.client, step, needs)
        try:
            while pending:
                try:
                    done, _ = wait(set(pending), timeout=LOOK_SECONDS, return_when="FIRST_COMPLETED")
                except TimeoutError:
                    watch.look()
                    continue
                watch.progress()
                while done:
                    future = done.pop()
                    pending.remove(future)
                    yield future.result()
        except KilledWorker as error:
            raise PtkError(_died(step, error.allowed_failures + 1)) from error
        except (FutureCancelledError, FuturesCancelledError) as error:
            raise PtkError(_gone(step)) from error
        finally:
            if pending:
                self.client.cancel(list(pending), force=True)

    def _check_workers(self, work: Place) -> None:
        from distributed.utils import TimeoutError as DistributedTimeout

        try:
            self.client.wait_for_workers(1, timeout=CONNECT_SECONDS)
        except (TimeoutError, DistributedTimeout) as error:
            raise PtkError(
                f"the Dask scheduler at {self.client.scheduler.address} has no workers; start some with `dask worker`"
            ) from error
        probe = work.absolute() / f"seen-{uuid.uuid4().hex[:8]}"
        probe.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        try:
            told = self.client.run(_about_worker, probe)
        finally:
            probe.unlink()
        here = versions()
        for worker, (release, polars, sees) in told.items():
            if (release, polars) != here:
                raise PtkError(
                    f"worker {worker} runs ptk {release} on Polars {polars}, and here it is ptk {here[0]} on Polars {here[1]}; install the same"
                )
            if not sees:
                raise PtkError(
                    f"worker {worker} does not see {probe.parent}; put the work store, with --work, in a folder or an object store that all reach"
                )


class _Watch:
    """Looks whether the cluster is still there, and whether its workers do nothing but die, so that no run waits for ever.

    Dask gives up a task that kills its workers, but starts a shuffle again without end.
    """

    def __init__(self, client: Client, step: str, needs: str | None = None) -> None:
        self.client, self.step, self.needs = client, step, needs
        self.seen: set[str] = set()
        self.died = 0
        self.alone_since: float | None = None

    def progress(self) -> None:
        self.died = 0

    def look(self) -> None:
        if self.client.status != "running":
            raise PtkError(_gone(self.step))
        workers = self.client.scheduler_info(n_workers=-1)["workers"]
        self.died += len(self.seen - set(workers))
        self.seen = set(workers)
        if self.died >= DEATHS:
            raise PtkError(_died(self.step, self.died))
        able = [facts for facts in workers.values() if self.needs is None or facts["resources"].get(self.needs, 0) >= 1]
        if any(facts["status"] != "paused" or facts["metrics"].get("executing") for facts in able):
            self.alone_since = None
            return
        now = time.monotonic()
        self.alone_since = self.alone_since or now
        if now - self.alone_since > ALONE_SECONDS:
            kind = "" if self.needs is None else f" with the resource {self.needs}"
            why = f"all {len(able)} workers{kind} are paused for want of memory" if able else f"there is no worker{kind}"
            raise PtkError(
                f"{self.step}nothing has been done for {ALONE_SECONDS} seconds, as {why}; start others and run again"
            )


def _died(step: str, times: int) -> str:
    return (
        f"{step}workers died {times} times and nothing came of it, mostly for want of memory: give them more, or cut the rows into more "
        "parts with --partitions"
    )


def _gone(step: str) -> str:
    return f"{step}the Dask scheduler is gone; what was finished is kept, run again"


def versions() -> tuple[str, str]:
    """Return the versions of ptk and Polars: hashes that say which rows meet must be the same everywhere."""
    return version("preference-toolkit"), pl.__version__


def _about_worker(probe: Place) -> tuple[str, str, bool]:
    return *versions(), probe.exists()


def _need_dask() -> None:
    for name in ("dask.dataframe", "distributed"):
        try:
            import_module(name)
        except ImportError as error:
            raise PtkError(
                f"the Dask engine needs Dask ({error}); install it with: pip install 'preference-toolkit[dask]'"
            ) from error


def _connected(address: str, stack: contextlib.ExitStack) -> Client:
    from distributed import Client

    try:
        client: Client = Client(address, timeout=CONNECT_SECONDS)
    except (OSError, TimeoutError, ValueError) as error:
        raise PtkError(
            f"no Dask scheduler answers at {address} ({str(error) or type(error).__name__}); start one with `dask scheduler`"
        ) from error
    stack.enter_context(client)
    return client


def _started(workers: int, memory_limit: str, stack: contextlib.ExitStack) -> Client:
    import dask
    from distributed import Client, LocalCluster

    environment = {"POLARS_MAX_THREADS": "1", "NUMBA_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    memory = {f"distributed.worker.memory.{what}": False for what in ("target", "spill", "pause")}
    # Rows are on disk already and a part is small: a worker over its limit is started anew rather than left waiting.
    stack.enter_context(dask.config.set({"distributed.nanny.pre-spawn-environ": environment, **memory}))
    cluster = LocalCluster(
        n_workers=workers,
        threads_per_worker=1,
        dashboard_address=None,
        memory_limit=memory_limit,
        resources={RESOURCE: 1},
        silence_logs=50,
    )
    stack.enter_context(cluster)
    client: Client = stack.enter_context(Client(cluster))
    return client
