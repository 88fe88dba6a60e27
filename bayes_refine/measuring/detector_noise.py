"""Estimate gain and read-out noise of a detector from the background of images.

A pixel with a mean of m counts has the variance v = g·m + r², with g the counts per photon and r
the read-out noise in counts (photon transfer; docs/theory.md, Gain and read-out noise).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..geometry.experiments import Still
from ..io.protocols import CountedImages
from ..util.errors import InputError

_PATCH = 8  # pixels: 16 groups of four
_ROWS = 32 * _PATCH  # rows of a panel used together, so that large images are not copied whole
_MIN_GROUPS = 12  # of the 16 groups of a patch, this many must not be masked
_SPOT = 36.0  # a group whose squared difference is beyond 6² variances holds (part of) a spot
_MAX_IMAGES = 8


@dataclass(frozen=True)
class DetectorNoise:
    """Gain and read-out noise of a detector; a pixel's variance is photons + read_noise², photons².

    Attributes:
        gain: counts per photon.
        read_noise: rms, photons.
    """

    gain: float
    read_noise: float


def estimate_noise(
    images_and_masks: Iterable[tuple[np.ndarray, np.ndarray]], gain: float | None = None
) -> DetectorNoise:
    """Gain and read-out noise from the background of images.

    The variance of a patch of 8 × 8 pixels is that of (a − b − c + d)/2 over groups of four pixels,
    the corners of a square of side 4: a gradient of the background cancels, and charge that
    neighbours share does not lower the variance.  Patches with spots are left out, the others are
    sorted by mean into bins, and a line v = g·m + r² is fitted robustly to the bins.

    Args:
        images_and_masks: pairs of counts above the pedestal and valid pixels, (P, ny, nx).
        gain: counts per photon where it is known; then r alone is fitted.

    Raises:
        InputError: there is too little background, or it is too even to tell the gain from the
            read-out noise.
    """
    return _noise_of_patches([_patches(counts, valid) for counts, valid in images_and_masks], gain)


def _noise_of_patches(patches: list[np.ndarray], gain: float | None) -> DetectorNoise:
    mean, variance, peak = np.concatenate(patches, axis=1) if patches else np.empty((3, 0))
    if len(mean) < 100:
        raise InputError("the images have too little background to find the gain; give the gain")
    slope, intercept, _ = _line(*_binned(mean, variance, np.median), gain)
    for _ in range(3):
        clean = peak < _SPOT * np.maximum(slope * mean + intercept, 1e-6)
        slope, intercept, relative_sd = _line(
            *_binned(mean[clean], variance[clean], _clipped_mean), gain
        )
    if not slope > 0 or relative_sd > 0.3:
        raise InputError(
            "the background is too even to tell the gain from the read-out noise; give both"
        )
    return DetectorNoise(gain=slope, read_noise=float(np.sqrt(intercept)) / slope)


def _variance_over_mean(patches: list[np.ndarray]) -> float:
    """Mean variance over mean counts of the patches without spots, which is the gain where there
    is no read-out noise; NaN without a patch.
    """
    mean, variance, peak = np.concatenate(patches, axis=1) if patches else np.empty((3, 0))
    clean = peak < _SPOT * np.maximum(mean, 1e-6)
    return _clipped_mean(variance[clean]) / max(mean[clean].mean(), 1e-6) if clean.any() else np.nan


def is_counting(
    images_and_masks: Iterable[tuple[np.ndarray, np.ndarray]], noise: DetectorNoise
) -> bool:
    """Whether pixels are photon counts: whole, never negative, with variance equal to the mean."""
    return all(_whole(*image) for image in images_and_masks) and _near_1(noise.gain)


def _whole(counts: np.ndarray, valid: np.ndarray) -> bool:
    """Whether all valid pixels are whole and not negative; looks at a few rows at a time."""
    for panel, good in zip(counts, valid, strict=True):
        for first in range(0, len(panel), _ROWS):
            seen = panel[first : first + _ROWS][good[first : first + _ROWS]]
            if not (np.all(seen >= 0) and np.all(seen == np.round(seen))):
                return False
    return True


def _near_1(gain: float) -> bool:
    return 0.75 < gain < 1.33


def noise_for(
    reader: CountedImages,
    stills: Sequence[Still],
    gain: float | None = None,
    read_noise: float | None = None,
) -> DetectorNoise:
    """The gain and the read-out noise to use for a run.

    The arguments have priority, then a gain other than 1 in the experiments.  What is still unknown
    is estimated from up to 8 readable images spread over the run; for photon counts it is (1, 0).

    Args:
        reader: of the images.  Its gain is not used here, and may be set to the result, unless the
            experiments have a gain for each panel: the result is then the mean of these gains.
        gain: counts per photon.
        read_noise: rms, photons.

    Raises:
        InputError: an option is out of range, no image can be read, or nothing can be estimated.
    """
    if gain is not None and not 0 < gain < np.inf:
        raise InputError(f"a gain of {gain} is impossible; give the counts per photon")
    if read_noise is not None and not 0 <= read_noise < np.inf:
        raise InputError(f"a read-out noise of {read_noise} is impossible; give photons rms")
    detector_gain = float(np.mean([np.mean(still.detector.gain) for still in stills]))
    if gain is None and detector_gain != 1:
        gain = detector_gain
    if gain is not None and read_noise is not None:
        return DetectorNoise(gain, read_noise)
    patches, whole = [], True
    for counts, valid in _readable(reader, stills):
        patches.append(_patches(counts, valid))
        whole = whole and gain is None and _whole(counts, valid)
    try:
        noise = _noise_of_patches(patches, gain)
    except InputError:  # too few or too even pixels: whole counts that vary as Poisson are photons
        if gain is None and whole and _near_1(_variance_over_mean(patches)):
            return DetectorNoise(1.0, 0.0)
        raise
    if gain is None and whole and _near_1(noise.gain):
        noise = DetectorNoise(1.0, 0.0)
    return noise if read_noise is None else DetectorNoise(noise.gain, read_noise)


def _readable(
    reader: CountedImages, stills: Sequence[Still]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Up to 8 images spread over the run, one in memory at a time; other images take the place of
    those that cannot be read."""
    step = -(-len(stills) // _MAX_IMAGES)
    spread = list(range(0, len(stills), step))
    found, failures = 0, list[InputError]()
    for i in [*spread, *sorted(set(range(len(stills))) - set(spread))]:
        try:
            image = reader.counts(stills[i])
        except InputError as error:
            failures.append(error)
            continue
        yield image
        del image  # before the next is read
        found += 1
        if found == len(spread):
            return
    if not found:
        raise failures[0]


def _patches(counts: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """(3, n): mean, variance and largest squared difference of each patch with enough pixels."""
    parts = [
        _patches_of_rows(panel[None, rows], good[None, rows])
        for panel, good in zip(counts, valid, strict=True)
        for rows in (slice(y, y + _ROWS) for y in range(0, len(panel), _ROWS))
    ]
    return np.concatenate(parts, axis=1)


def _patches_of_rows(counts: np.ndarray, valid: np.ndarray) -> np.ndarray:
    blocks, ok = _blocks(counts).astype(float), _blocks(valid)
    h = _PATCH // 2
    corners = [(slice(None), slice(i, i + h), slice(j, j + h)) for i in (0, h) for j in (0, h)]
    ok = np.logical_and.reduce([ok[corner] for corner in corners]).reshape(len(ok), h * h)
    enough = ok.sum(axis=1) >= _MIN_GROUPS
    a, b, c, d = (blocks[corner].reshape(len(blocks), h * h)[enough] for corner in corners)
    ok = ok[enough]
    mean = np.where(ok, (a + b + c + d) / 4, 0.0)
    square = np.where(ok, (a - b - c + d) ** 2 / 4, 0.0)
    n = ok.sum(axis=1)
    return np.stack([mean.sum(axis=1) / n, square.sum(axis=1) / n, square.max(axis=1)])


def _blocks(panels: np.ndarray) -> np.ndarray:
    """(n, 8, 8) patches of (P, ny, nx), remainders at the far edges left out."""
    p, ny, nx = (len(panels), panels.shape[1] // _PATCH, panels.shape[2] // _PATCH)
    cut = panels[:, : ny * _PATCH, : nx * _PATCH].reshape(p, ny, _PATCH, nx, _PATCH)
    return np.moveaxis(cut, 2, 3).reshape(-1, _PATCH, _PATCH)


def _binned(
    mean: np.ndarray, variance: np.ndarray, average: Callable
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance in bins of equally many patches, sorted by mean."""
    order = np.array_split(np.argsort(mean), np.clip(len(mean) // 50, 2, 40))
    return (
        np.array([np.mean(mean[o]) for o in order]),
        np.array([average(variance[o]) for o in order]),
    )


def _clipped_mean(values: np.ndarray) -> float:
    middle = np.median(values)
    width = 1.4826 * np.median(np.abs(values - middle))
    return float(np.mean(values[np.abs(values - middle) <= max(5 * width, 1e-12)]))


def _line(x: np.ndarray, y: np.ndarray, gain: float | None) -> tuple[float, float, float]:
    """Slope, intercept ≥ 0 and relative sd of the slope of y = slope·x + intercept.

    Errors are taken as proportional to y; outlying bins get Huber's weight.  The sd is that of a
    line with a free intercept, and so says whether x spreads enough.
    """
    weight = np.ones_like(y)
    scale = 1 / np.maximum(y, 1e-3 * np.max(y))
    for _ in range(20):
        w = weight * scale**2
        if gain is not None:
            slope, intercept = gain, float(np.sum(w * (y - gain * x)) / np.sum(w))
            variance = 0.0
        else:
            x0, y0 = np.average(x, weights=w), np.average(y, weights=w)
            spread = np.sum(w * (x - x0) ** 2)
            slope = float(np.sum(w * (x - x0) * (y - y0)) / max(spread, 1e-300))
            intercept = float(y0 - slope * x0)
            variance = 1 / max(spread, 1e-300)
        if intercept < 0:
            intercept = 0.0
            if gain is None:
                slope = float(np.sum(w * x * y) / np.sum(w * x * x))
        residual = (y - slope * x - intercept) * scale
        rms = max(1.4826 * float(np.median(np.abs(residual))), 1e-6)
        weight = np.minimum(1.0, 1.5 * rms / np.maximum(np.abs(residual), 1e-12))
    return slope, intercept, rms * np.sqrt(variance) / max(abs(slope), 1e-12)
