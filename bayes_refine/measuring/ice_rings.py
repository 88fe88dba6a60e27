"""Find narrow powder rings on an image, as of ice: on a ring, a plane is no good background."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, NamedTuple

import numpy as np
from scipy.ndimage import binary_dilation, grey_opening, label, median_filter

from ..geometry.detector import Beam, Detector
from ..geometry.experiments import Still

WIDEST = 15  # px; within a shoebox a wider ring is nearly a plane
_PER_STEP = 400  # largest number of pixels used at a radius
_FEWEST = 20
_SURE = 4.0  # sd of the mean at a radius by which a ring must stand out in most parts
_MATTERS = 0.25  # of the sd of a pixel: a ring that high changes the total of a spot by half its sd
_PARTS, _FEWEST_PARTS = 9, 3
_LOWEST, _LEVELS, _HIGHEST = 1024, 8, 2**32  # photons below 0, levels a photon, their number
_CLIP = 3.5  # sd of a pixel beyond which it is left out of the mean at a radius, as part of a spot


class Ring(NamedTuple):
    """A ring between two values of 1/d, Å⁻¹."""

    inner: float
    outer: float

    @property
    def d(self) -> float:
        """Å, of its middle."""
        return 2 / (self.inner + self.outer)


class IceRings:
    """The rings of each image of a run, found when the image is first measured, by any thread.

    Attributes:
        found: rings by file and frame of an image, none for images without.
    """

    def __init__(self, read_noise: float = 0.0) -> None:
        self.found: dict[tuple[Hashable, int], tuple[Ring, ...]] = {}
        self._read_noise = read_noise
        self._last: tuple[Detector, Beam, _Radii] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """What another process needs, without the radii of pixels."""
        return {**self.__dict__, "_last": None}

    def of(self, still: Still) -> tuple[Ring, ...]:
        """Rings of an image that was measured; none of one that was not."""
        return self.found.get((still.image_path, still.frame), ())

    def __call__(self, image: np.ndarray, valid: np.ndarray, still: Still) -> np.ndarray | None:
        """(P, ny, nx) bool, pixels of ``image`` on a ring; None where it has none."""
        key = still.image_path, still.frame
        if self.found.get(key) == ():
            return None
        radii = self._radii(still)
        if key not in self.found:
            self.found[key] = _rings_at(image, valid, radii, self._read_noise)
        if not self.found[key]:
            return None
        on_ring = np.zeros(image.shape, bool)
        for ring in self.found[key]:
            on_ring |= (radii.inverse_d >= ring.inner) & (radii.inverse_d < ring.outer)
        return on_ring

    def _radii(self, still: Still) -> _Radii:
        detector, beam = still.detector, still.beam
        if self._last is not None:
            of, last, radii = self._last
            same = last.wavelength == beam.wavelength
            if same and of is detector and np.array_equal(last.s0_direction, beam.s0_direction):
                return radii
        radii = _Radii.of(inverse_resolution(still))
        self._last = detector, beam, radii
        return radii


class _Radii(NamedTuple):
    """The radius of each pixel of a detector.

    Attributes:
        inverse_d: (P, ny, nx) Å⁻¹. step: Å⁻¹ from one radius to the next.
        place: flat, n times the pixel's part of the detector, plus the number of its radius.
        shape: number of parts, and n of radii.
    """

    inverse_d: np.ndarray
    step: float
    place: np.ndarray
    shape: tuple[int, int]

    @classmethod
    def of(cls, inverse_d: np.ndarray) -> _Radii:
        step = _pixel_step(inverse_d)
        n = int(np.max(inverse_d) / step) + 1
        part, n_parts = _parts(inverse_d.shape)
        place = np.minimum((inverse_d / step).astype(int), n - 1) + n * part
        return cls(inverse_d, step, place.ravel(), (n_parts, n))


def inverse_resolution(still: Still) -> np.ndarray:
    """(P, ny, nx) float32, 1/d (Å⁻¹) of the middle of each pixel: √(2 − 2 cos 2θ)/λ."""
    detector, beam = still.detector, still.beam
    panels, ny, nx = detector.image_shape
    found = np.empty((panels, ny, nx), np.float32)
    for panel in range(panels):
        along, down = detector.pixel_size_mm[panel]
        step_x = detector.fast[panel] * along
        step_y = detector.slow[panel] * down
        corner = detector.origin_mm[panel] + 0.5 * (step_x + step_y)
        x, y = np.arange(nx), np.arange(ny)[:, None]
        ahead = corner @ beam.s0_direction + x * (step_x @ beam.s0_direction)
        ahead = ahead + y * (step_y @ beam.s0_direction)
        far2 = corner @ corner + x * (2 * corner @ step_x) + y * (2 * corner @ step_y)
        far2 = far2 + x**2 * along**2 + y**2 * down**2 + x * y * (2 * step_x @ step_y)
        found[panel] = np.sqrt(np.maximum(2 - 2 * ahead / np.sqrt(far2), 0)) / beam.wavelength
    return found


def rings_of(
    image: np.ndarray, valid: np.ndarray, inverse_d: np.ndarray, read_noise: float = 0.0
) -> tuple[Ring, ...]:
    """Rings of one image that are narrower than ``WIDEST`` pixels.

    The detector has about nine parts, since the edge of a shadow is a step in some of them and a
    ring is in all.  In each part, the mean at each radius is taken over pixels within 3.5 sd of the
    radius's median, and the median slope around is subtracted.  The profile's morphological opening
    by 15 pixels (the largest of the smallest of any 15 in a row) loses peaks that narrow and keeps
    steps and wider peaks; the profile minus its opening is what is left of peaks.  A ring is where
    this exceeds four sd of the mean, and a quarter of a pixel's sd, in most of the parts that have
    the radius, which must be three at least; one pixel is added on either side.

    Args:
        image, valid: (P, ny, nx) photons and validity. inverse_d: (P, ny, nx) Å⁻¹.
        read_noise: photons rms a pixel.
    """
    return _rings_at(image, valid, _Radii.of(inverse_d), read_noise)


def _rings_at(
    image: np.ndarray, valid: np.ndarray, radii: _Radii, read_noise: float
) -> tuple[Ring, ...]:
    use = np.flatnonzero(valid)
    if not len(use):
        return ()
    step, (n_parts, n) = radii.step, radii.shape
    use = use[:: max(1, len(use) // (_PER_STEP * n))]
    mean, variance, count = (
        a.reshape(n_parts, n)
        for a in _profile(image.reshape(-1)[use], radii.place[use], n * n_parts, read_noise**2)
    )
    known = count >= _FEWEST
    peaks = _peaks(mean, known)
    sd = np.sqrt(variance)
    high = peaks > np.maximum(_MATTERS * sd, _SURE * sd / np.sqrt(np.maximum(count, 1)))
    n_known = np.sum(known, axis=0)
    bright = (np.sum(high & known, axis=0) > 0.5 * n_known) & (n_known >= _FEWEST_PARTS)
    rings, n_rings = label(binary_dilation(bright))
    edges = (np.flatnonzero(rings == k + 1)[[0, -1]] for k in range(n_rings))
    return tuple(Ring(float(first * step), float((last + 1) * step)) for first, last in edges)


def _parts(shape: tuple[int, ...]) -> tuple[np.ndarray, int]:
    """Part of the detector of each pixel, as wide as (P, ny, nx), and the number of parts: nine or
    a little more."""
    panel, y, x = np.ogrid[: shape[0], : shape[1], : shape[2]]
    if shape[0] > _PARTS:
        return panel * _PARTS // shape[0], _PARTS
    across = int(np.ceil(np.sqrt(_PARTS / shape[0])))
    row, column = y * across // shape[1], x * across // shape[2]
    return (panel * across + row) * across + column, shape[0] * across**2


def _peaks(profiles: np.ndarray, known: np.ndarray) -> np.ndarray:
    """(p, n) profiles less their openings; 0 where a profile is known at too few radii."""
    peaks, radii = np.zeros(profiles.shape), np.arange(profiles.shape[1])
    rows = np.flatnonzero(np.sum(known, axis=1) >= 2 * WIDEST)
    if len(rows):
        level = np.stack([np.interp(radii, radii[known[k]], profiles[k, known[k]]) for k in rows])
        level -= _trend(level)
        peaks[rows] = level - grey_opening(level, (1, WIDEST), mode="nearest")
    return peaks


def _trend(profiles: np.ndarray) -> np.ndarray:
    """(p, n) sum of the median slope around each radius, in which rings and shadows do not show."""
    padded = np.pad(profiles, ((0, 0), (WIDEST // 2, WIDEST - WIDEST // 2)), mode="edge")
    slope = (padded[:, WIDEST:] - padded[:, :-WIDEST]) / WIDEST
    reach = 2 * WIDEST
    in_one_row = np.pad(slope, ((0, 0), (reach, reach)), mode="edge")  # ten times as fast
    median = median_filter(in_one_row.ravel(), 2 * reach + 1).reshape(in_one_row.shape)
    return np.cumsum(median[:, reach:-reach], axis=1)


def _pixel_step(inverse_d: np.ndarray) -> float:
    """Size of a pixel along the radius, Å⁻¹: the larger step of the median pixel."""
    x, y = (np.abs(np.diff(inverse_d[:, ::7, ::7], axis=axis)) / 7 for axis in (2, 1))
    return float(np.median(np.hypot(x[:, :-1], y[:, :, :-1])))


def _profile(
    pixels: np.ndarray, at: np.ndarray, n: int, r2: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(n,) each, by radius: mean without spots, variance of a pixel (the larger of the expected and
    the observed one), and number of pixels."""
    count = np.bincount(at, minlength=n)
    # Sorting radius and brightness as one whole number is three times as fast, five if it is short.
    level = np.clip((pixels + _LOWEST) * _LEVELS, 0, _HIGHEST - 1)
    room = int(level.max()) + 1
    whole = np.dtype("u4" if n * room <= 2**32 else "i8")
    ordered = np.sort(at.astype(whole) * room + level.astype(whole))
    middle = np.minimum(np.cumsum(count) - count + count // 2, len(ordered) - 1)
    median = (ordered[middle] % room) / _LEVELS - _LOWEST
    variance = np.maximum(median, 0.0) + np.log(2) + r2
    near = np.abs(pixels - median.take(at)) < (_CLIP * np.sqrt(variance) + 1).take(at)
    at, pixels = at[near], pixels[near]
    kept = np.bincount(at, minlength=n)
    mean = np.bincount(at, pixels, n) / np.maximum(kept, 1)
    square = np.bincount(at, (pixels - mean.take(at)) ** 2, n)
    return mean, np.maximum(variance, square / np.maximum(kept, 1)), kept
