"""Split observations into pieces of one shape, for one compilation and little memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import jax
import numpy as np

if TYPE_CHECKING:
    from .latent import Measured

OBSERVATIONS, REFLECTIONS = 8192, 4096  # numbers that a piece has room for
FEW = 256  # reflections that a piece has room for if no piece has more, as in a large run
T = TypeVar("T")
COLUMNS = ("J", "scale", "variance", "per_photon", "fraction", "image", "weight")


class Piece(NamedTuple):
    """All observations of some neighbouring reflections.

    Attributes:
        reflections, observations: which ones of the whole.
        measured: the observations, padded by ones of no weight, and by the last reflection again.
    """

    reflections: slice
    observations: slice
    measured: Measured


def in_pieces(measured: Measured) -> Iterator[Piece]:
    """The pieces of ``measured``.

    A piece has room for 8192 observations, or for the next power of two of the largest number of a
    single reflection.  Of a run with many observations of each reflection, pieces have room for few
    reflections, so that what is computed for them takes memory in proportion to reflections.
    """
    code, m = np.asarray(measured.code), len(measured.hkl)
    ends = np.searchsorted(code, np.arange(m), side="right")
    most = int(np.max(np.diff(ends, prepend=0), initial=1))
    room = max(OBSERVATIONS, 1 << (most - 1).bit_length())
    first = begin = 0
    slices = []
    while first < m:
        last = min(int(np.searchsorted(ends, begin + room, side="right")), first + REFLECTIONS)
        slices.append((slice(first, last), slice(begin, int(ends[last - 1]))))
        first, begin = last, int(ends[last - 1])
    largest = max((rows.stop - rows.start for rows, _ in slices), default=0)
    places = min(FEW, REFLECTIONS) if len(slices) > 1 and largest <= FEW else REFLECTIONS
    for rows, inside in slices:
        yield Piece(rows, inside, _padded(measured, rows, inside, (room, places)))


def rows_of(tree: T, rows: slice, places: int) -> T:
    """Some rows of all arrays (m, ...) of a pytree, padded as a piece's reflections are.

    Args:
        places: that the piece has for reflections, as many as its ``hkl``.
    """
    return jax.tree.map(lambda x: padded(np.asarray(x)[rows], places), tree)


def joined(parts: Iterable[tuple[slice, T]]) -> T:
    """One pytree of those of the pieces, one after the other: the rows that are not padding, each
    piece's as it comes."""

    def real(rows: slice, tree: T) -> T:
        return jax.tree.map(lambda x: np.array(np.asarray(x)[: rows.stop - rows.start]), tree)

    found = [real(rows, tree) for rows, tree in parts]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *found)


def padded(values: np.ndarray, size: int, fill: float | None = None) -> np.ndarray:
    """(n, ...) to (size, ...), by ``fill``, or by the last row again."""
    values = np.asarray(values)
    more = np.repeat(values[-1:], size - len(values), axis=0)
    return np.concatenate([values, more if fill is None else np.full_like(more, fill)])


def _padded(measured: Measured, rows: slice, inside: slice, rooms: tuple[int, int]) -> Measured:
    room, places = rooms
    columns: dict[str, Any] = {
        name: padded(np.asarray(getattr(measured, name))[inside], room, float(name != "weight"))
        for name in COLUMNS
        if name != "image"
    }
    return replace(
        measured,
        **columns,
        image=padded(np.asarray(measured.image)[inside], room),
        code=padded(np.asarray(measured.code)[inside] - rows.start, room),
        hkl=padded(np.asarray(measured.hkl)[rows], places),
    )
