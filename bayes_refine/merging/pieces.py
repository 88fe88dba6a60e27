"""Split observations into pieces of few shapes, for few compilations and little memory.

:func:`in_pieces` splits observations with known scales, :class:`Parts` those of a scaling model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import jax
import numpy as np

from ..util import large_arrays
from ..util.large_arrays import release, slices, taken

if TYPE_CHECKING:
    from .latent import Measured
    from .observations import IntegratedObservations

OBSERVATIONS, REFLECTIONS = 8192, 4096  # largest numbers that a piece has room for
LEAST = 256  # observations, or reflections, that any piece has room for
PART = 1 << 17  # observations of a slice, about; a run of as many is one part
SMALL_PART = 1 << 15  # observations of each part of a larger run, about
IMAGES = 8  # of the run, at most, for each observation of a part: they take a tenth of its time
GRAIN = 1 << 12  # the room of a part is a multiple of it
T = TypeVar("T")
OBSERVED = ("J", "sigma", "weight", "image", "code", "norm_q", "excitation_error")
REFLECTED = ("hkl", "norm_q_unique", "log_epsilon", "centric", "knot_weight", "follows", "nodes")
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

    All pieces of a run have room for the same numbers, powers of two, so that few programs serve
    all runs: for 8192 observations, for fewer if the run has fewer, and for more if a single
    reflection has more; for as many reflections as the largest piece has, 4096 at most.
    """
    code, m = np.asarray(measured.code), len(measured.hkl)
    ends = np.searchsorted(code, np.arange(m), side="right")
    most = int(np.max(np.diff(ends, prepend=0), initial=1))
    room = _power_of_two(max(most, min(OBSERVATIONS, len(code))))
    first = begin = 0
    slices = []
    while first < m:
        last = min(int(np.searchsorted(ends, begin + room, side="right")), first + REFLECTIONS)
        slices.append((slice(first, last), slice(begin, int(ends[last - 1]))))
        first, begin = last, int(ends[last - 1])
    largest = max((rows.stop - rows.start for rows, _ in slices), default=0)
    places = _power_of_two(largest)
    for rows, inside in slices:
        yield Piece(rows, inside, _padded(measured, rows, inside, (room, places)))


def _power_of_two(number: int) -> int:
    """The next power of two, ``LEAST`` at least."""
    return max(LEAST, 1 << (number - 1).bit_length())


def whole_reflections(code: np.ndarray) -> Iterator[slice]:
    """Slices of observations, about ``PART`` each, with all observations of their reflections.

    Args:
        code: (n,) reflection of each observation, ascending.
    """
    start, n = 0, len(code)
    while start < n:
        stop = min(start + PART, n)
        if stop < n:
            last = code[stop]
            stop = int(np.searchsorted(code, last))
            if stop <= start:
                stop = int(np.searchsorted(code, last, side="right"))
        yield slice(start, stop)
        start = stop


def of_observations(measured: Measured, rows: slice) -> Measured:
    """Some observations, with the same reflections."""
    columns: dict[str, Any] = {
        name: _some(getattr(measured, name), rows) for name in (*COLUMNS, "code")
    }
    return replace(measured, **columns)


def rows_of_images(image: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """(k,) which observations, of images (n,), are of those chosen (n_images,) bool."""
    parts = slices(len(image), image)
    return large_arrays.joined(
        [part.start + np.flatnonzero(chosen[image[part]])] for part in parts
    )[0]


def of_images(measured: Measured, chosen: np.ndarray) -> Measured:
    """The observations of some images, (n_images,) bool, with the same reflections."""
    rows = rows_of_images(np.asarray(measured.image), chosen)
    columns: dict[str, Any] = {
        name: taken(np.asarray(getattr(measured, name)), rows) for name in (*COLUMNS, "code")
    }
    return replace(measured, **columns)


def some_reflections(measured: Measured, which: np.ndarray) -> Measured:
    """All observations of some reflections (k,), ascending, and these reflections alone."""
    starts, ends = (np.searchsorted(measured.code, which, side) for side in ("left", "right"))
    rows = np.concatenate([np.arange(a, b) for a, b in zip(starts, ends, strict=True)])
    columns: dict[str, Any] = {name: _some(getattr(measured, name), rows) for name in COLUMNS}
    code = np.repeat(np.arange(len(which)), ends - starts)
    return replace(measured, **columns, code=code, hkl=np.asarray(measured.hkl)[which])


def _some(column: Any, rows: slice | np.ndarray) -> np.ndarray:
    """A copy of some observations of a column that may be in a file."""
    found = np.array(column[rows])
    release(column)
    return found


def rows_of(tree: T, rows: slice | np.ndarray, places: int) -> T:
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
        name: padded(_some(getattr(measured, name), inside), room, float(name != "weight"))
        for name in COLUMNS
        if name != "image"
    }
    return replace(
        measured,
        **columns,
        image=padded(_some(measured.image, inside), room),
        code=padded(_some(measured.code, inside) - rows.start, room),
        hkl=padded(np.asarray(measured.hkl)[rows], places),
    )


class Part(NamedTuple):
    """All observations of some neighbouring reflections, for a scaling model.

    Attributes:
        reflections, observations: which ones of the whole.
        obs: these observations, and others of weight 0 that fill the part up; the reflections.
    """

    reflections: slice
    observations: slice
    obs: IntegratedObservations


class Parts:
    """The observations of a scaling model in parts; a small run is one part, as it is.

        sum(value(part.obs) for part in Parts(obs))

    Parts have one number of reflections, or one more, and one number of observations, so that two
    programs serve all of them.  ln p of the observations is the sum over parts, since all
    observations of a reflection are in one part.  A slope of it along the unknowns of all images
    comes from each part, which therefore has more observations if there are very many images.
    """

    def __init__(self, obs: IntegratedObservations) -> None:
        self._obs, code = obs, np.asarray(obs.code)
        n, m = len(code), len(obs.hkl)
        count = 1 if n <= PART else min(-(-n // max(SMALL_PART, obs.n_images // IMAGES)), m)
        bounds = m * np.arange(count + 1) // count
        ends = np.searchsorted(code, bounds)
        self._room = -(-int(np.diff(ends).max()) // GRAIN) * GRAIN
        self._slices = [
            (slice(*bounds[k : k + 2].tolist()), slice(*ends[k : k + 2].tolist()))
            for k in range(count)
        ]

    def __len__(self) -> int:
        return len(self._slices)

    def __iter__(self) -> Iterator[Part]:
        for rows, inside in self._slices:
            yield Part(rows, inside, self._obs if len(self) == 1 else self._part(rows, inside))

    def _part(self, rows: slice, inside: slice) -> IntegratedObservations:
        obs, room = self._obs, self._room
        columns: dict[str, Any] = {
            name: padded(_some(getattr(obs, name), inside), room, 0.0 if name == "weight" else None)
            for name in OBSERVED
        }
        columns["code"] -= rows.start
        own = {name: getattr(obs, name) for name in REFLECTED}
        reflections = rows_of(own, rows, rows.stop - rows.start)
        reference = obs.reference.some(rows, rows.stop - rows.start)
        return replace(obs, **columns, **reflections, reference=reference)
