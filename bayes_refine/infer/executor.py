"""Executors, which do the work on the batches of a run: in this process, or in others.

The batches of a run are independent of each other.  An *item* is what the work on one batch needs:
the place of its data (``util.store.Place``) and a few numbers.  The work on an item is a function
of this item alone, so that any process can do it, and can do it again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import jax

from ..util.progress import peak_memory
from ..util.threads import ahead

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Shared(Protocol[T_co]):
    """A value that many items need; pickled, it is only the place of the value."""

    def get(self) -> T_co:
        """The value; in one process the same object each time."""
        ...


@dataclass(frozen=True)
class Here(Generic[T]):
    """A value in this process."""

    value: T

    def get(self) -> T:
        """The value."""
        return self.value


@dataclass(frozen=True)
class InTwoSteps(Generic[T]):
    """Work of which a first step runs no JAX, so that a thread can do it ahead of the second.

    Attributes:
        first: a function of an item. second: of the item and what the first step returned.
    """

    first: Callable[[Any], Any]
    second: Callable[[Any, Any], T]

    def __call__(self, item: Any) -> T:
        return self.second(item, self.first(item))


class Executor(Protocol):
    """Does the same work on many items, in any order and in any process.

    :class:`InProcess` is the simplest executor, and a base for others
    (docs/how-to/new-executor.md).
    """

    def share(self, value: T) -> Shared[T]:
        """Keep a value that the work on many items needs."""
        ...

    def map(
        self,
        work: Callable[[Any], T],
        items: Sequence[Any],
        finished: Callable[[int], None] | None = None,
        lost: Callable[[Any, str], T] | None = None,
    ) -> list[T]:
        """``work`` of each item, in the order of the items.

        Args:
            work: a function of a module, or ``functools.partial`` of one, or :class:`InTwoSteps` of
                such; the work changes neither the function nor an item.
            finished: called with the number of items that are done.
            lost: called as ``lost(item, why)`` for an item that ended several processes; it
                returns what replaces the result.

        Raises:
            InputError: an item ended several processes, and there is no ``lost``.
        """
        ...

    def reduce(
        self, work: Callable[[Any], tuple[Any, T]], items: Sequence[Any]
    ) -> tuple[Any, list[T]]:
        """The sum of the first results of all items, and a list of their second results.

        To the last bit the sum is that of :func:`tree_sum`, whichever process makes it.
        """
        ...

    def at_work(self) -> str:
        """Who works, and with how much memory, in words for the progress."""
        ...

    def summary(self) -> dict[str, Any]:
        """What the work took, for ``summary.json``; empty if this process did it."""
        ...


class InProcess:
    """Does the work on one item after the other, in this process.

    Items are not worked on in several threads: programs that two threads run on XLA's CPU client
    can wait for each other for ever (seen with jaxlib 0.10.2 on two processors).  What needs no JAX
    is done in threads (``util.threads``): within an item, or ahead, for the next one
    (:class:`InTwoSteps`).  A cluster uses processors for all.
    """

    def share(self, value: T) -> Shared[T]:
        return Here(value)

    def map(
        self,
        work: Callable[[Any], T],
        items: Sequence[Any],
        finished: Callable[[int], None] | None = None,
        lost: Callable[[Any, str], T] | None = None,
    ) -> list[T]:
        found: list[T] = []
        for value in _done(work, items):
            found.append(value)
            if finished is not None:
                finished(len(found))
        return found

    def reduce(
        self, work: Callable[[Any], tuple[Any, T]], items: Sequence[Any]
    ) -> tuple[Any, list[T]]:
        sums, own = zip(*self.map(work, items), strict=True)
        return tree_sum(sums), list(own)

    def at_work(self) -> str:
        return f"{peak_memory():.2f} GiB"

    def summary(self) -> dict[str, Any]:
        return {}


def _done(work: Callable[[Any], T], items: Sequence[Any]) -> Iterator[T]:
    if not isinstance(work, InTwoSteps):
        yield from map(work, items)
        return
    for item, first in zip(items, ahead(work.first, items), strict=True):
        yield work.second(item, first)


IN_PROCESS = InProcess()


def tree_sum(values: Sequence[Any]) -> Any:
    """The sum of trees of arrays, neighbours first: ((0 + 1) + (2 + 3)) + (4 + 5).

    The sum of 2ᵖ neighbours, of which the first has a number divisible by 2ᵖ, is a part of the
    whole sum.  Sums that are made in such groups therefore agree to the last bit.
    """
    while len(values) > 1:
        pairs = [values[k : k + 2] for k in range(0, len(values), 2)]
        values = [jax.tree.map(lambda *x: sum(x[1:], x[0]), *pair) for pair in pairs]
    return values[0]
