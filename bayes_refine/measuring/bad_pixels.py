"""Find hot and dead pixels that no mask contains, in the images of a run.

A pixel that is bright on most images of a run while its neighbours are not does not count photons.
Spots of stills move from image to image, and even where one crystal gives many images a spot is
wider than a pixel (docs/theory.md, Pixels that hold no diffraction).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import bdtrc, ndtri

from ..geometry.experiments import Still
from ..io.protocols import Images
from ..util.errors import InputError

SAID = 200  # largest number of pixels that the summary lists
MIN_IMAGES = 8  # with fewer images no pixel is called bad
_MAX_IMAGES = 32
_MAX_BYTES = 512 * 2**20  # of the images in memory at a time
_BRIGHT = 3.0  # a pixel is bright on an image if it is this many sd above its neighbours
_CHANCE_BRIGHT = 0.1  # upper limit of a good pixel's chance to be bright: spots cover a few %
_FALSE = 0.01  # expected number of good pixels of a whole detector that are called bad
_SHARE = 0.05  # least share of a spot's brightest pixel in an edge neighbour, for σ ≥ 0.28 px
_DEAD = 0.25  # a dead pixel counts less than this share of its neighbours' photons
_SURE = 2.0  # sd by which the neighbours must be below _SHARE
_OF_MEDIAN = np.pi / 2  # n times the variance of a median of n, over the variance of one
_BLOCK = 1 << 18  # pixels whose medians are taken at a time


@dataclass(frozen=True)
class BadPixels:
    """Pixels that a run shows to be bad.

    Attributes:
        hot, dead: (P, ny, nx) bool. n_images: number of images that were used; with fewer than
            ``MIN_IMAGES`` no pixel is called bad.
    """

    hot: np.ndarray
    dead: np.ndarray
    n_images: int

    @property
    def mask(self) -> np.ndarray:
        """(P, ny, nx) bool, hot or dead."""
        return self.hot | self.dead

    def summary(self) -> dict[str, int | list[list[int]]]:
        """Numbers of hot, dead and images, and (panel, y, x) of up to ``SAID`` of each."""
        found: dict[str, int | list[list[int]]] = {"images": self.n_images}
        for name, which in (("hot", self.hot), ("dead", self.dead)):
            found[name] = int(which.sum())
            found[f"{name}_at"] = np.argwhere(which)[:SAID].tolist()
        return found

    def __str__(self) -> str:
        return (
            f"{self.hot.sum()} hot and {self.dead.sum()} dead pixels found in "
            f"{self.n_images} images"
        )


def bad_pixels(images: np.ndarray, read_noise: float = 0.0) -> BadPixels:
    """Find the hot and dead pixels in a stack of images.

    Let b be the median of the 24 pixels around a pixel in the median image.  A pixel is *hot* if
    two conditions hold.  It is above b + 3 √(b + r²) + zφb on K images, at least half of all, where
    n_pixel·P(Bin(N, 0.1) ≥ K) < 0.01: with a chance of 0.1 on each image, less than 0.01 good pixel
    of the detector would be.  And in the median image the second brightest of its four edge
    neighbours is, by 2 sd, less than 5 % as far above b, since a spot, ice and the edge of a shadow
    have width.  φ is the relative scatter of the pixels' sensitivities, z the normal quantile of
    0.01/n_pixel.

    A pixel is *dead* if it counts in all images together, spots left out, less than a quarter of
    what the second faintest of its edge neighbours counts, where chance would make 0.01 pixel of
    the detector do so.

    Args:
        images: (N, P, ny, nx) photons; NaN where not valid.
        read_noise: photons rms a pixel.
    """
    n, shape = len(images), images.shape[1:]
    hot, dead = np.zeros(shape, bool), np.zeros(shape, bool)
    few = _images_that_may_be_dim(n, int(np.prod(shape)))
    if n < MIN_IMAGES or few is None:
        return BadPixels(hot, dead, n)
    r2 = read_noise**2
    middle, most, total, known = _over_images(images, few, r2)
    surely = -ndtri(_FALSE / middle.size)
    beside = _second_of_neighbours(middle, brightest=True)
    with np.errstate(invalid="ignore"):
        floor = 2 * np.sqrt(np.maximum(beside, 0) + r2)  # of what can be bright and alone
        found = np.nonzero((most - beside > floor) & np.isfinite(beside))
        near = _second_of_neighbours(np.where(known == n, total, np.nan), brightest=False)
        lost = near - total > surely * np.sqrt(np.maximum(near, 0) + n * r2)
        dead = (known == n) & np.isfinite(near) & (total < _DEAD * near) & lost
    background = _around(middle, found)
    of_one = np.maximum(background, 0.0) + np.log(2) + r2  # most that a mean exceeds its median
    uneven = surely * _sensitivity_scatter(middle, r2, n) * background
    excess = most[found] - background
    share = beside[found] - background + _SURE * np.sqrt(_OF_MEDIAN * of_one / n)
    bright = excess > _BRIGHT * np.sqrt(of_one) + 1.0 + uneven
    hot[found] = bright & (share < _SHARE * excess)
    return BadPixels(hot, dead & ~hot, n)


def bad_pixels_of(reader: Images, stills: Sequence[Still], read_noise: float = 0.0) -> BadPixels:
    """Hot and dead pixels, from up to 32 images spread over the run.

    For a large detector fewer images are used, so that the images in memory need at most 512 MB.
    In a run of fewer than ``MIN_IMAGES`` images, or of several detectors, no pixel is called bad.

    Args:
        reader: reads images as photons.
        read_noise: photons rms a pixel.
    """
    detector = stills[0].detector
    shape = detector.image_shape
    alike = all(np.array_equal(still.detector.shape, detector.shape) for still in stills)
    most = int(np.clip(_MAX_BYTES // (4 * np.prod(shape)), MIN_IMAGES, _MAX_IMAGES))
    spread = np.unique(np.linspace(0, len(stills) - 1, most).astype(int))
    enough = alike and len(spread) >= MIN_IMAGES
    images, n = np.empty((len(spread) if enough else 0, *shape), np.float32), 0
    for i in spread[: len(images)]:
        try:
            image, valid = reader.read(stills[i])
        except InputError:  # the status of the image says so later
            continue
        images[n] = np.where(valid, image, np.nan)
        n += 1
    return bad_pixels(images[:n], read_noise)


def _images_that_may_be_dim(n: int, n_pixels: int) -> int | None:
    """Number of images, of n, on which a hot pixel may be dim; None where even n prove nothing."""
    for dim in range((n - 1) // 2, -1, -1):
        if n_pixels * bdtrc(n - dim - 1, n, _CHANCE_BRIGHT) <= _FALSE:
            return dim
    return None


def _over_images(images: np.ndarray, few: int, r2: float) -> tuple[np.ndarray, ...]:
    """(P, ny, nx) each: the median of N images, the value that all images but ``few`` exceed, the
    sum without spots, and the number of images with a value.  A pixel that is not valid on an image
    counts as of unknown brightness."""
    flat = images.reshape(len(images), -1)
    middle, most, total = (np.empty(flat.shape[1], np.float32) for _ in range(3))
    known = np.sum(np.isfinite(flat), axis=0)
    half = (len(flat) - 1) // 2
    for first in range(0, flat.shape[1], _BLOCK):
        part = slice(first, first + _BLOCK)
        ordered = np.partition(flat[:, part], sorted({few, half}), axis=0)  # NaN last
        middle[part], most[part] = ordered[half], ordered[few]
        most_of_one = middle[part] + _BRIGHT * np.sqrt(np.maximum(middle[part], 0) + 1 + r2)
        total[part] = np.nansum(np.minimum(flat[:, part], most_of_one), axis=0)
    shape = images.shape[1:]
    return tuple(a.reshape(shape) for a in (middle, most, total, known))


def _second_of_neighbours(values: np.ndarray, brightest: bool) -> np.ndarray:
    """(P, ny, nx) second brightest, or second faintest, of the four edge neighbours.  A missing
    neighbour might be of any brightness, and counts as infinitely bright, or faint."""
    first, second = (np.fmax, np.fmin) if brightest else (np.fmin, np.fmax)
    missing = np.inf if brightest else -np.inf
    padded = np.pad(values, ((0, 0), (1, 1), (1, 1)), constant_values=np.nan)
    padded = np.where(np.isnan(padded), np.float32(missing), padded)
    up, down = padded[:, :-2, 1:-1], padded[:, 2:, 1:-1]
    left, right = padded[:, 1:-1, :-2], padded[:, 1:-1, 2:]
    both = second(first(up, down), first(left, right))
    return first(both, first(second(up, down), second(left, right)))


def _around(image: np.ndarray, at: tuple[np.ndarray, ...]) -> np.ndarray:
    """(m,) median of the 24 pixels of ``image`` (P, ny, nx) around each pixel."""
    y, x = (a.ravel() for a in np.mgrid[-2:3, -2:3])
    y, x = (np.delete(a, 12) for a in (y, x))
    padded = np.pad(image, ((0, 0), (2, 2), (2, 2)), constant_values=np.nan)
    panel, row, column = (a[:, None] for a in at)
    return _median(padded[panel, row + y + 2, column + x + 2])


def _median(values: np.ndarray) -> np.ndarray:
    """(m,) median of the finite values of (m, k), NaN where there is none."""
    ordered = np.sort(values, axis=1)  # NaN last
    last = np.sum(np.isfinite(values), axis=1) - 1
    rows = np.arange(len(values))
    found = ordered[rows, np.maximum(last, 0) // 2] + ordered[rows, np.maximum(last + 1, 0) // 2]
    return np.where(last >= 0, found / 2, np.nan)


def _sensitivity_scatter(middle: np.ndarray, r2: float, n: int) -> float:
    """φ: relative scatter of the pixels' medians about their neighbours', beyond counting."""
    step = max(1, middle.size // 20_000)
    at = np.unravel_index(np.arange(0, middle.size, step), middle.shape)
    value, background = middle[at], _around(middle, at)
    use = np.isfinite(value) & (background > 1)
    if use.sum() < 100:
        return 0.0
    value, background = value[use], background[use]
    seen = (1.4826 * np.median(np.abs(value / background - 1))) ** 2
    counting = (_OF_MEDIAN * (background + r2) / n + 1 / 12) / background**2  # whole photons
    return float(np.sqrt(max(seen - np.median(counting), 0.0)))
