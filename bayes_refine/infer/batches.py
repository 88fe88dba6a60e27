"""The observations of a model, in batches of images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..util.store import Joined, places
from .executor import IN_PROCESS, Executor
from .summary import Summary


@dataclass(frozen=True)
class Batches:
    """The observations of a model, a batch of images at a time, for runs larger than memory.

    Attributes:
        parts: the model's first argument for each batch, read when needed; the first axis of
            each array is that of images, the last one may differ.
        size: number of images that a part has room for.
        n_images: of the run; unused places of the last part are filled with its last image.
        executor: does the work on the parts.
        earlier: what images that are not among the parts say of the shared unknowns.
    """

    parts: Sequence[Any]
    size: int
    n_images: int
    executor: Executor = IN_PROCESS
    earlier: Summary | None = None

    def slices(self) -> Iterator[slice]:
        """The places of each part among those of all parts, unused places included."""
        return (slice(b * self.size, (b + 1) * self.size) for b in range(len(self.parts)))

    def padded(self, values: np.ndarray) -> np.ndarray:
        """Rows (n_images, ...), the last one repeated for the unused places of the last part."""
        room = len(self.parts) * self.size - self.n_images
        return np.concatenate([values, np.repeat(np.asarray(values)[-1:], room, axis=0)])

    def some(self, which: Sequence[int]) -> Batches:
        """Some of the parts, all of whose places are used."""
        where = places(self.parts)
        return replace(
            self, parts=Joined([where[b] for b in which]), n_images=len(which) * self.size
        )

    def whole(self) -> Any:
        """All parts as one, in memory; the first axis of each array is that of the images."""

        def joined(*leaves):
            if np.ndim(leaves[0]) == 0:
                return leaves[0]
            room = max(x.shape[-1] for x in leaves)  # parts of one fit may differ in it
            widest = [(0, room - x.shape[-1]) for x in leaves]
            padded = [
                jnp.pad(jnp.asarray(x), [*[(0, 0)] * (np.ndim(x) - 1), w])
                for x, w in zip(leaves, widest, strict=True)
            ]
            return jnp.concatenate(padded)[: self.n_images]

        return jax.tree.map(joined, *self.parts)


def with_stand_in(part: Any, aside: np.ndarray, donor: Any, row: int) -> Any:
    """A part whose images ``aside`` (n,) bool have the arrays of the image ``row`` of a donor.

    Parts differ in the length of the last axis: of a donor that is longer the last numbers are cut
    off, of one that is shorter the last one is repeated.
    """

    def leaf(own, other):
        if np.ndim(own) == 0 or len(own) != len(aside):
            return own
        donated = np.asarray(other)[row]
        if donated.ndim:
            last = np.minimum(np.arange(np.shape(own)[-1]), donated.shape[-1] - 1)
            donated = donated[..., last]
        where = np.reshape(aside, (-1, *[1] * (np.ndim(own) - 1)))
        return np.where(where, donated, np.asarray(own))

    return jax.tree.map(leaf, part, donor)


def _own_and_common(data: Any):
    """Arrays of the images of a part, and a function that makes a part of some of these."""
    leaves, tree = jax.tree.flatten(data)
    of_images = [np.ndim(x) > 0 for x in leaves]

    def part_of(own):
        own = iter(own)
        part = [next(own) if has else x for x, has in zip(leaves, of_images, strict=True)]
        return jax.tree.unflatten(tree, part)

    return [x for x, has in zip(leaves, of_images, strict=True) if has], part_of


def side_by_side(function: Callable, data: Any, *rows: jax.Array) -> Any:
    """``function`` of the data and rows of each image, vectorised over images: (n, ...) each.

    Arrays of one image have a first axis of length one.

    Args:
        data: as a part of :class:`Batches`. rows: (n, ...) arrays.
    """
    own, part_of = _own_and_common(data)

    def one(own, *rows):
        own, rows = jax.tree.map(lambda x: x[None], (own, rows))
        return function(part_of(own), *rows)

    return jax.vmap(one)(own, *rows)


def one_by_one(function: Callable, data: Any, *rows: jax.Array) -> Any:
    """``function`` of the data and rows of one image at a time, results stacked: (n, ...) each.

    Arrays of one image have a first axis of length one; on a GPU as :func:`side_by_side`.

    Args:
        data: as a part of :class:`Batches`. rows: (n, ...) arrays.
    """
    own, part_of = _own_and_common(data)

    def one(image):
        own, *rows = jax.tree.map(lambda x: x[None], image)
        return function(part_of(own), *rows)

    return of_each(one, (own, *rows))


def of_each(function: Callable, rows: Any) -> Any:
    """``function`` of each row of the arrays ``rows``, results stacked.

    One after another on a CPU, in whose cache the arrays of one row stay; together on a GPU.
    """
    if jax.default_backend() == "cpu":
        return jax.lax.map(function, rows)
    return jax.vmap(function)(rows)


def finite_rows(*arrays: Any) -> np.ndarray:
    """(n,) bool: rows of n of which every array is finite."""
    return np.all([np.isfinite(x).reshape(len(x), -1).all(axis=1) for x in arrays], axis=0)
