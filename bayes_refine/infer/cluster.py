"""An executor on the processes of a Dask cluster: on this machine, or of many machines.

Items go out in groups of neighbours, each group to the worker that had it before, since it has the
group's data in memory; any other worker reads them from disk.  A worker that is lost costs the
groups that it was working on: other workers do these again.  Dask gives a group up that has lost
``ATTEMPTS`` workers; its items are then tried one by one, to find the one that does it.
"""

from __future__ import annotations

import os
import pickle
import shutil
import tempfile
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import jax
from distributed import Client, Future, KilledWorker, get_worker, wait
from distributed.diagnostics.plugin import WorkerPlugin

from .. import loading
from ..util.errors import InputError
from ..util.kept_programs import folder_of_programs, keep_programs
from ..util.large_arrays import keep_freed_memory
from ..util.progress import peak_memory
from ..util.store import hold_in_memory
from .dask_clients import AGAIN_S, ATTEMPTS, GONE_S, again
from .executor import InTwoSteps, tree_sum

T = TypeVar("T")
RESTART_S = 60.0  # s that a worker which was lost has to come back
GROUPS = 4  # for each worker: to share work evenly, and to do little again when one is lost
MOST = 8  # items of a group, whose results a worker has in memory at a time
LOOK = 1.0  # s between questions to the scheduler, for the progress
STRANDED_S = 5.0  # s without a result; then groups that wait for lost workers are given out anew
HELD = 0.3  # of a worker's memory: for data that it has read or made


class _Task(NamedTuple):
    """Items from the ``first`` on, ``size`` of them, the workers where they failed, and those that
    are to have them, if any is preferred."""

    first: int
    size: int
    failed: tuple[str, ...] = ()
    where: tuple[str, ...] = ()


@dataclass
class Record:
    """What the work took.

    Attributes:
        steps: of each kind of work how often it was asked for, its groups of items, and bytes sent
            and received. failures: what failed on a worker and was done on another.
        seconds: by kind of work and by worker. memory: the most that each worker had, GiB.
    """

    steps: dict[str, dict[str, int]] = field(
        default_factory=lambda: defaultdict(
            lambda: dict.fromkeys(("calls", "groups", "bytes_sent", "bytes_received"), 0)
        )
    )
    failures: list[str] = field(default_factory=list)
    memory: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, dict[str, float]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(float))
    )

    def summary(self) -> dict[str, Any]:
        """As ``summary.json`` has it."""
        whole = {
            name: sum(step[name] for step in self.steps.values())
            for name in ("bytes_sent", "bytes_received", "groups")
        }
        return {
            **whole,
            "steps": {name: dict(step) for name, step in self.steps.items()},
            "failures": self.failures,
            "memory_gib": {"here": peak_memory(), **self.memory},
            "seconds": {name: dict(by_worker) for name, by_worker in self.seconds.items()},
        }


class Cluster:
    """Does work by the workers of a Dask client.

    Args:
        client: of ``distributed``; its workers see the same files, and have the same software.
        folder: that all workers see; what they share goes into it until the ``with`` ends.
    """

    def __init__(self, client: Client, folder: Path) -> None:
        self.client, self.folder = client, Path(tempfile.mkdtemp(prefix="shared-", dir=folder))
        self.record = Record()
        self._home: dict[tuple[int, int], str] = {}
        self._ready: tuple[Path, ...] | None = None
        self._most = self._in_flight = 0
        self._looked, self._workers = -LOOK, ""

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def share(self, value: T) -> OnDisk[T]:
        """A value that the work on many items needs: pickled once, read once by each worker."""
        self._prepare()
        handle, name = tempfile.mkstemp(suffix=".pickle", dir=self.folder)
        with os.fdopen(handle, "wb") as file:
            pickle.dump(value, file, protocol=5)
        return OnDisk(Path(name))

    def map(
        self,
        work: Callable[[Any], T],
        items: Sequence[Any],
        finished: Callable[[int], None] | None = None,
        lost: Callable[[Any, str], T] | None = None,
    ) -> list[T]:
        """As ``Executor.map``; an item that ended three workers is lost."""
        found: dict[int, Any] = {}
        for first, results in self._groups(_each, work, items, finished, lost):
            found.update(zip(range(first, first + len(results)), results, strict=True))
        return [found[k] for k in range(len(items))]

    def reduce(
        self, work: Callable[[Any], tuple[Any, T]], items: Sequence[Any]
    ) -> tuple[Any, list[T]]:
        """As ``Executor.reduce``: one sum of each group comes back."""
        found, size = dict(self._groups(_summed, work, items, None, None)), self._size(len(items))
        # a group that was done item by item is summed as a group
        groups = [sorted(k for k in found if k // size == g) for g in range(-(-len(items) // size))]
        sums = [tree_sum([found[k][0] for k in group]) for group in groups]
        return tree_sum(sums), [x for k in sorted(found) for x in found[k][1]]

    def _size(self, n_items: int) -> int:
        """Items of a group: a power of two."""
        size, n_workers = 1, max(1, len(self.client.nthreads()))
        while size < MOST and n_items > GROUPS * n_workers * size:
            size *= 2
        return size

    def at_work(self) -> str:
        """Batches in flight, workers, and the memory of the largest of them."""
        if time.monotonic() - self._looked > LOOK:
            self._looked = time.monotonic()
            workers = self.client.scheduler_info()["workers"].values()
            memory = max((w["metrics"].get("memory", 0) for w in workers), default=0)
            self._workers = (
                f"{len(self.client.nthreads())} workers of up to {memory / 2**30:.2f} GiB"
            )
        return f"{self._in_flight} batches in flight on {self._workers}"

    def summary(self) -> dict[str, Any]:
        """As ``Executor.summary``."""
        return self.record.summary()

    def _groups(self, how, work, items, finished, lost):
        """Of each group the place of its first item, and the result, as they come."""
        self._prepare()
        if not items:
            return
        self.record.steps[_name(work)]["calls"] += 1
        size, done = self._size(len(items)), 0
        submitted: dict[Future, _Task] = {}

        def submit(task: _Task, workers: set[str]) -> None:
            task = task._replace(where=self._preferred(task, workers))
            some = items[task.first : task.first + task.size]
            submitted[self._submit(how, work, some, task)] = task

        workers = self._without(())
        for first in range(0, len(items), size):
            submit(_Task(first, min(size, len(items) - first)), workers)
        while submitted:
            future = self._finished(submitted, submit)
            task = submitted.pop(future)
            try:
                payload = future.result()
            except KilledWorker as error:
                if task.size > 1:
                    for k in range(task.first, task.first + task.size):
                        submit(_Task(k, 1), self._without(()))
                    continue
                why = f"ended {ATTEMPTS} processes, the last at {error.last_worker.address}"
                if lost is None:
                    raise InputError(
                        f"{_name(work)}: a batch of images {why}; fewer --workers have more memory "
                        "each"
                    ) from None
                result = [lost(items[task.first], why)]
            else:
                self.record.steps[_name(work)]["bytes_received"] += len(payload)
                worker, seconds, memory, result, failure = pickle.loads(payload)
                self.record.memory[worker] = memory
                if failure is not None:
                    submit(self._elsewhere(task, worker, failure), self._without(()))
                    continue
                self._home[task.first, task.size] = worker
                self.record.seconds[_name(work)][worker] += seconds
            done += task.size
            self._in_flight = sum(task.size for task in submitted.values())
            if finished is not None:
                finished(done)
            yield task.first, result

    def _finished(self, submitted: dict[Future, _Task], submit: Callable) -> Future:
        """A group that is done.

        Dask never gives out a group of which the preferred workers were lost while no other one was
        there.  Such a group is submitted anew.

        Raises:
            InputError: the processes that this one started are gone, and none is started anew.
        """
        seen = time.monotonic()
        while True:
            with suppress(TimeoutError):
                found = wait(list(submitted), timeout=STRANDED_S, return_when="FIRST_COMPLETED")
                return next(iter(found.done))
            workers = self._without(())
            seen = time.monotonic() if workers else seen
            if self.client.cluster is not None and time.monotonic() - seen > GONE_S:
                raise InputError(
                    "all worker processes are gone, and none could be started in their place; "
                    "--resume goes on from here"
                )
            for future, task in list(submitted.items()):
                if workers and task.where and not workers.intersection(task.where):
                    del submitted[future]
                    future.cancel()
                    submit(task, workers)

    def _elsewhere(self, task: _Task, worker: str, error: Exception) -> _Task:
        """A task that failed, for another worker: a full disk is one worker's only.

        Raises:
            Exception: the error, where it was on as many workers as there are, or on three.
        """
        failed = (*task.failed, worker)
        others, until = self._without(failed), time.monotonic() + RESTART_S
        while not others and len(self.client.nthreads()) < self._most and time.monotonic() < until:
            time.sleep(0.2)  # a worker that was lost is being started again
            others = self._without(failed)
        if worker in task.failed:  # it has it again, while another one is not yet ready for work
            time.sleep(AGAIN_S * len(failed))
        if len(set(failed)) >= ATTEMPTS or len(failed) >= 4 * ATTEMPTS or not others:
            raise error
        self.record.failures.append(f"{worker}: {' '.join(str(error).split())[:200]}")
        return task._replace(failed=failed)

    def _without(self, failed: tuple[str, ...]) -> set[str]:
        """Addresses of the workers but for some; remembers the largest number of workers."""
        workers = set(self.client.nthreads())
        self._most = max(self._most, len(workers))
        return workers - set(failed)

    def _preferred(self, task: _Task, workers: set[str]) -> tuple[str, ...]:
        """Which of the workers are to have a task: those where it did not fail, or its home."""
        if task.failed:
            return tuple(sorted(workers.difference(task.failed)))
        return tuple(workers.intersection([self._home.get((task.first, task.size), "")]))

    def _submit(self, how, work, some, task: _Task) -> Future:
        payload = pickle.dumps((work, some), protocol=5)
        step = self.record.steps[_name(work)]
        step["bytes_sent"] += len(payload)
        step["groups"] += 1
        return self.client.submit(
            _work,
            how,
            payload,
            key=f"{_name(work)}-{uuid.uuid4().hex}",
            pure=False,
            workers=list(task.where) or None,
            allow_other_workers=bool(task.where),
        )

    def _prepare(self) -> None:
        """Workers, those that come later too, know JAX's settings and the files of models."""
        files = loading.executed_files()
        if self._ready == files:
            return
        settings = {
            name: getattr(jax.config, name)
            for name in (
                "jax_enable_x64",
                "jax_compilation_cache_dir",
                "jax_persistent_cache_min_compile_time_secs",
            )
        }
        setup = _Setup(settings, folder_of_programs(), files)
        # a worker may be lost meanwhile; those that come later are told too
        again(partial(self.client.register_plugin, setup, name="bayes-refine"), OSError)
        self._ready = files


@dataclass(frozen=True)
class OnDisk(Generic[T]):
    """A value in a pickle file."""

    path: Path

    def get(self) -> T:
        """The value, read once by a process."""
        return _read(self.path)


@lru_cache(maxsize=4)
def _read(path: Path) -> Any:
    with path.open("rb") as file:
        return pickle.load(file)


class _Setup(WorkerPlugin):
    """Makes a worker ready: the settings of JAX, the folder of programs, models by the files they
    are in, and memory."""

    def __init__(
        self, settings: dict[str, Any], programs: Path | None, files: tuple[Path, ...]
    ) -> None:
        self.settings, self.programs = settings, programs
        self.files = [str(file) for file in files]

    def setup(self, worker: Any) -> None:
        for name, value in self.settings.items():
            jax.config.update(name, value)
        keep_freed_memory()
        keep_programs(self.programs)
        for file in self.files:
            loading.load_file(file)
        limit = getattr(worker.memory_manager, "memory_limit", None)
        hold_in_memory(int(HELD * limit) if limit else 0)


def _work(how: Callable, payload: bytes) -> bytes:
    """The work on a group, on a worker; scheduler and workers see bytes only."""
    started = time.perf_counter()
    work, items = pickle.loads(payload)
    result = error = None
    try:
        result = how(work, items)
    except Exception as caught:
        error = caught
    seconds = time.perf_counter() - started
    told = (get_worker().address, seconds, peak_memory(), result, error)
    return pickle.dumps(told, protocol=5)


def _each(work: Callable, items: Sequence[Any]) -> list[Any]:
    return [work(item) for item in items]


def _summed(work: Callable, items: Sequence[Any]) -> tuple[Any, list[Any]]:
    sums, own = zip(*(work(item) for item in items), strict=True)
    return tree_sum(sums), list(own)


def _name(work: Callable) -> str:
    """The name of a function, whatever is bound; of what it makes, where it makes a function; of
    the second of two steps."""
    if isinstance(work, InTwoSteps):
        return _name(work.second)
    if isinstance(work, partial):
        return _name(work.args[0] if work.args and callable(work.args[0]) else work.func)
    return work.__name__.strip("_")
