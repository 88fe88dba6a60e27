"""Inverse-variance merging of partial observations with known multiplicative factors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..geometry.miller import unique_hkl


@dataclass(frozen=True)
class Merged:
    """Merged intensities from the likelihood alone: no prior, may be negative.

    Attributes:
        hkl: (m, 3) int32 unique indices, sorted by H K L.
        intensity, sigma: (m,) on the reference's scale.
        n: (m,) int observations with a weight.
        half_intensity, half_sigma: (m, 2) intensity and sigma from each half of the images, NaN
            where a half has no observation.
        half_of_image: (n_images,) int, 0 or 1: the half that each image is in.
        weight: (n,) w·g²/σ² of each observation, in the order of the observations.
    """

    hkl: np.ndarray
    intensity: np.ndarray
    sigma: np.ndarray
    n: np.ndarray
    half_intensity: np.ndarray
    half_sigma: np.ndarray
    half_of_image: np.ndarray
    weight: np.ndarray

    def __len__(self) -> int:
        return len(self.hkl)


def merge(
    hkl_asu: np.ndarray,
    intensity: np.ndarray,
    variance: np.ndarray,
    scale: np.ndarray,
    image: np.ndarray,
    emphasis: np.ndarray | float = 1.0,
    seed: int = 0,
    half_of_image: np.ndarray | None = None,
) -> Merged:
    """Merge J = g·I + noise: I = Σ(w g J/σ²)/Σ(w g²/σ²), σ_I = Σ(g²/σ²)^(−1/2).

    There is no cut on I/σ nor on partiality: an observation with g ≈ 0 has no weight anyway.

    Args:
        hkl_asu: (n, 3) integers; for anomalous data with the mates kept apart.
        intensity: (n,) raw J, photons.
        variance: (n,) expected σ_J² (photons²), from the model, never from the counts.
        scale: (n,) g = G·B_term·p·pol, photons per unit of I.
        image: (n,) index of the image, from 0.
        emphasis: (n,) or a number, w ≥ 0 by which a robust estimator trusts observations more or
            less than σ says; w changes the mean, not σ_I.
        seed: of the random halves.
        half_of_image: (n_images,) 0 or 1, the halves; by default random ones, by ``seed``.

    Returns:
        One row for each reflection that has an observation with a weight.

    Raises:
        ValueError: a variance that is not positive, or a value that is not finite.
    """
    J, var, g = (np.asarray(a, float) for a in (intensity, variance, scale))
    w = np.broadcast_to(np.asarray(emphasis, float), J.shape)
    if not all(np.isfinite(a).all() for a in (J, var, g, w)) or (var <= 0).any():
        raise ValueError("merging takes finite intensities and scales, and positive variances")
    image = np.asarray(image)
    if half_of_image is None:
        half_of_image = split_images(int(image.max(initial=-1)) + 1, seed)
    first, code = unique_hkl(hkl_asu)
    m = len(first)
    # The halves of reflection k are merged as reflections 2k and 2k + 1.
    whole = _weighted_mean(code, m, J, var, g, w)
    halves = _weighted_mean(code * 2 + half_of_image[image], 2 * m, J, var, g, w)
    keep = whole[2] > 0
    return Merged(
        hkl=np.asarray(hkl_asu, np.int32)[first][keep],
        intensity=whole[0][keep],
        sigma=whole[1][keep],
        n=whole[2][keep],
        half_intensity=halves[0].reshape(m, 2)[keep],
        half_sigma=halves[1].reshape(m, 2)[keep],
        half_of_image=half_of_image,
        weight=w * g**2 / var,
    )


def split_images(n_images: int, seed: int) -> np.ndarray:
    """(n_images,) int, 0 or 1: random halves, equal in number to within one."""
    return np.random.default_rng(seed).permutation(n_images) % 2


def _weighted_mean(
    code: np.ndarray, m: int, J: np.ndarray, var: np.ndarray, g: np.ndarray, w: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    information = np.bincount(code, g**2 / var, m)
    weight = np.bincount(code, w * g**2 / var, m)
    n = np.bincount(code, g**2 / var > 0, m).astype(int)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.where(weight > 0, np.bincount(code, w * g * J / var, m) / weight, np.nan)
        return mean, np.where(information > 0, information**-0.5, np.nan), n
