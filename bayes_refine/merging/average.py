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
    image = np.asarray(image)
    if half_of_image is None:
        half_of_image = split_images(int(image.max(initial=-1)) + 1, seed)
    first, code = unique_hkl(hkl_asu)
    sums = Sums(len(first))
    weight = sums.add(code, intensity, variance, scale, emphasis, half_of_image[image])
    return sums.merged(np.asarray(hkl_asu)[first], half_of_image, weight)


class Sums:
    """The sums of :func:`merge` over observations of m reflections, which are added part by part.

    sums = Sums(m)
    weight = sums.add(code, J, variance, g, 1.0, half_of_image[image])
    merged = sums.merged(hkl, half_of_image, weight)
    """

    def __init__(self, m: int) -> None:
        # information, weight, Σ w g J/σ², n; halves of reflection k are reflections 2k and 2k + 1
        self._whole, self._halves = np.zeros((4, m)), np.zeros((4, 2 * m))

    def add(
        self,
        code: np.ndarray,
        intensity: np.ndarray,
        variance: np.ndarray,
        scale: np.ndarray,
        emphasis: np.ndarray | float,
        half: np.ndarray,
    ) -> np.ndarray:
        """Add observations (k,); return the weight w·g²/σ² (k,) of each.

        Args:
            code: which reflection. half: 0 or 1. The others: as of :func:`merge`.

        Raises:
            ValueError: a variance that is not positive, or a value that is not finite.
        """
        J, var, g = (np.asarray(a, float) for a in (intensity, variance, scale))
        w = np.broadcast_to(np.asarray(emphasis, float), J.shape)
        if not all(np.isfinite(a).all() for a in (J, var, g, w)) or (var <= 0).any():
            raise ValueError("merging takes finite intensities and scales, and positive variances")
        information = g**2 / var
        weight = w * information
        terms = information, weight, w * g * J / var, information > 0
        for sums, of in ((self._whole, code), (self._halves, code * 2 + half)):
            for total, term in zip(sums, terms, strict=True):
                total += np.bincount(of, term, len(total))
        return weight

    def merged(self, hkl: np.ndarray, half_of_image: np.ndarray, weight: np.ndarray) -> Merged:
        """The reflections ``hkl`` (m, 3), sorted by H K L, that have an observation with a weight.

        Args:
            half_of_image, weight: of the result.
        """
        m = len(hkl)
        whole, halves = map(_weighted_mean, (self._whole, self._halves))
        keep = whole[2] > 0
        return Merged(
            hkl=np.asarray(hkl, np.int32)[keep],
            intensity=whole[0][keep],
            sigma=whole[1][keep],
            n=whole[2][keep],
            half_intensity=halves[0].reshape(m, 2)[keep],
            half_sigma=halves[1].reshape(m, 2)[keep],
            half_of_image=half_of_image,
            weight=weight,
        )


def split_images(n_images: int, seed: int) -> np.ndarray:
    """(n_images,) int, 0 or 1: random halves, equal in number to within one."""
    return np.random.default_rng(seed).permutation(n_images) % 2


def _weighted_mean(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    information, weight, total, n = sums
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.where(weight > 0, total / weight, np.nan)
        return mean, np.where(information > 0, information**-0.5, np.nan), n.astype(int)
