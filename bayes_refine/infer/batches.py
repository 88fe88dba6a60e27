"""The images of a run, some at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@dataclass(frozen=True)
class Batches:
    """What a model is conditioned on, some images at a time: for runs that memory cannot hold.

    Attributes:
        parts: the model's first argument for each batch, all of one shape, read when asked for.
        size: images that a part has room for.
        n_images: of the run; the last part's room beyond them does not count.
    """

    parts: Sequence[Any]
    size: int
    n_images: int

    def slices(self) -> Iterator[slice]:
        """Where each part lies among the images of all parts, room included."""
        return (slice(b * self.size, (b + 1) * self.size) for b in range(len(self.parts)))

    def padded(self, values: np.ndarray) -> np.ndarray:
        """(n_images, ...) with the last image repeated to fill the room of the last part."""
        room = len(self.parts) * self.size - self.n_images
        return np.concatenate([values, np.repeat(np.asarray(values)[-1:], room, axis=0)])

    def whole(self) -> Any:
        """All parts as one: each array with axes leads with that of the images."""

        def joined(*leaves):
            if np.ndim(leaves[0]) == 0:
                return leaves[0]
            return jnp.concatenate([jnp.asarray(x) for x in leaves])[: self.n_images]

        return jax.tree.map(joined, *self.parts)
