"""A client of a Dask cluster: of processes on this machine, or of a cluster that runs already."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

import dask
from distributed import Client, LocalCluster

from ..util.errors import InputError

T = TypeVar("T")
ATTEMPTS = 3  # workers that an item may end before it is set aside
AGAIN_S = 0.3  # s to wait, for each time that an item has failed, if the same worker gets it again
GONE_S = 180.0  # s after which a lost process of this program's own is no longer expected back
ANSWER = 10  # seconds that a scheduler has for its first answer


@contextmanager
def client_of(workers: int | None, scheduler: str | None, folder: Path) -> Iterator[Client]:
    """A client of ``workers`` processes on this machine, or of a cluster that runs already.

    Args:
        scheduler: address, or file that ``dask scheduler --scheduler-file`` wrote.
        folder: for what the processes on this machine write beside.

    Raises:
        InputError: no scheduler answers.
    """
    if scheduler is None:
        with (
            tempfile.TemporaryDirectory(
                prefix="dask-", dir=folder, ignore_cleanup_errors=True
            ) as own,
            local(workers or 1, Path(own)) as cluster,
            Client(cluster) as client,
        ):
            yield client
        return
    is_file = "://" not in scheduler and (scheduler.endswith(".json") or Path(scheduler).exists())
    if is_file and not Path(scheduler).is_file():
        raise InputError(
            f"--scheduler {scheduler}: there is no such file; start the scheduler first"
        )
    where = {"scheduler_file": scheduler} if is_file else {"address": scheduler}
    try:
        client = Client(**where, timeout=ANSWER)
    except Exception as error:  # of a file that is no scheduler's, Dask raises whatever it meets
        why = " ".join(str(error).split())[:150] or type(error).__name__
        raise InputError(
            f"--scheduler {scheduler}: no scheduler answers ({why}); is it running, and can it be "
            "reached from here?"
        ) from None
    with client:
        yield client


def local(n: int, folder: Path) -> LocalCluster:
    """A cluster of ``n`` processes on this machine."""
    dask.config.set(
        {
            "distributed.scheduler.allowed-failures": ATTEMPTS - 1,
            # Dask gives up a process after 15 s; on a busy machine its imports take longer
            "distributed.deploy.lost-worker-timeout": f"{GONE_S} s",
        }
    )
    start = partial(
        LocalCluster,
        n_workers=n,
        threads_per_worker=1,
        processes=True,
        local_directory=str(folder),
        dashboard_address="127.0.0.1:0",
        silence_logs=logging.CRITICAL,
    )
    # a process may be lost before it is ready
    return again(start, RuntimeError)


def again(call: Callable[[], T], error: type[Exception]) -> T:
    """What ``call`` returns; where it fails with ``error``, it is called ``ATTEMPTS`` times."""
    for attempt in range(1, ATTEMPTS):
        with suppress(error):
            return call()
        time.sleep(attempt * AGAIN_S)
    return call()


def described(client: Client) -> str:
    """Who works, and where it can be watched."""
    n = len(client.nthreads())
    return f"{n} worker{'s' * (n != 1)}; dashboard: {client.dashboard_link}"
