"""Threads for work that lets other threads run: reading, unpacking, sorting and cutting arrays."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

A = TypeVar("A")
T = TypeVar("T")
AT_WORK = 2**30  # bytes that all threads together need for their items, if one needs no more
_number = 1


def use_threads(n: int | None) -> None:
    """Set how many threads :func:`in_threads` has; None for one on each processor.

    A process has one thread until it calls this: a reader of the caller's own may not be made for
    several.
    """
    global _number
    _number = processors() if n is None else n


def processors() -> int:
    """Number of processors that this process may use."""
    allowed = getattr(os, "sched_getaffinity", None)  # Linux only
    return (len(allowed(0)) if allowed else os.cpu_count()) or 1


def in_threads(work: Callable[[A], T], items: Iterable[A], nbytes: int = 1) -> list[T]:
    """``work`` of each item, in the order of the items.

    ``work`` must not run JAX: programs that two threads run on XLA's CPU client can wait for each
    other for ever.

    Args:
        nbytes: memory that the work on an item needs; of large items fewer are worked on at a time.
    """
    n = min(_number, max(AT_WORK // nbytes, 1))
    if n == 1:
        return [work(item) for item in items]
    with ThreadPoolExecutor(n) as pool:
        return list(pool.map(work, items))


def ahead(work: Callable[[A], T], items: Iterable[A]) -> Iterator[T]:
    """``work`` of each item, in order, the next one by a thread while the caller uses one.

    ``work`` must not run JAX, as of :func:`in_threads`.
    """
    if _number == 1:
        yield from map(work, items)
        return
    with ThreadPoolExecutor(1) as pool:
        coming = None
        for item in items:
            found, coming = coming, pool.submit(work, item)
            if found is not None:
                yield found.result()
        if coming is not None:
            yield coming.result()
