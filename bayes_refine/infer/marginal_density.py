"""The density of the shared unknowns with each image integrated out, by points.

An image's integral is that of Laplace's normal N(θ̂_i, L_iL_iᵀ), corrected by weights,

    ∫ p dθ ≈ (2π)^{k/2} |L_i| mean_m p(θ̂_i + L_i z_m) exp(½|z_m|²),

with the same few points z_m for all images, whose first three moments are the unit normal's, or
with very few points of each image its own.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from ..util.large_arrays import copied, in_slices
from . import differences
from .curvature import IMAGES, upward_inverse
from .images_alone import Settled
from .search import Look, Search, State

FEWEST = 16  # pairs of points, for a noise of less than a hundredth of a posterior sd
PAIRS = 2  # of the few points that show the way


class Frame(NamedTuple):
    """The points of n images, and how the images' unknowns follow the shared unknowns.

    Attributes:
        factor: (n, k, k) lower triangular L of LLᵀ, the inverse of an image's curvature, from
            points to its unknowns. pull: (n, k, s). usable: (n,) 1, or 0 of an image that is not
            integrated, whose factor and pull are 0.
    """

    factor: np.ndarray
    pull: np.ndarray
    usable: np.ndarray

    @classmethod
    def of(cls, search: Search, here: Look, usable: np.ndarray) -> Frame:
        def of_images(blocks, pull, usable):
            # Cholesky's factors change little where curvature does
            factor = np.linalg.cholesky(upward_inverse(blocks, np.zeros(len(blocks)), np))
            return factor * usable[:, None, None], pull * usable[:, None, None]

        columns = here.block_hessian.blocks, here.steps.pull, usable
        factor, pull = in_slices(of_images, *columns, size=IMAGES)
        return cls(factor, pull, usable)

    def newton(self, slope: np.ndarray) -> np.ndarray:
        """(n, k) steps of the images to their modes, by the slope (n, k) of −ln p."""

        def of_images(factor, slope):
            return [-(factor @ (np.swapaxes(factor, 1, 2) @ slope[:, :, None]))[..., 0]]

        return in_slices(of_images, self.factor, slope, size=IMAGES)[0]

    def followed(self, shared: np.ndarray) -> np.ndarray:
        """(n, k) moves of the images when the shared unknowns move by ``shared`` (s,)."""
        return in_slices(lambda pull: [-pull @ shared], self.pull, size=IMAGES)[0]

    def log_volume(self) -> float:
        """Σ ln |L_i| of the images that are integrated."""

        def of_images(factor, usable):
            sizes = np.diagonal(factor, axis1=1, axis2=2)
            return [np.log(np.where(usable[:, None] > 0, sizes, 1.0)).sum(1)]

        return float(in_slices(of_images, self.factor, self.usable, size=IMAGES)[0].sum())

    def with_few(self, found: Settled) -> Frame:
        """The frame with new points of some images, which went to their modes alone."""
        inverse = upward_inverse(found.blocks, np.zeros(len(found.rows)), np)
        factor, pull = copied(self.factor), copied(self.pull)
        factor[found.rows] = np.linalg.cholesky(inverse)
        pull[found.rows] = inverse @ found.coupling
        return self._replace(factor=factor, pull=pull)

    def of_images(self, rows: np.ndarray) -> Frame:
        """Of some of the images."""
        return Frame(*(x[rows] for x in self))


class Marginal(NamedTuple):
    """The marginal density at a place.

    Attributes:
        log_density: ln p but for a constant. slope: (s,) of minus this.
        slopes: (batches, s), each with its share of the shared unknowns' priors.
        scatter: (s, s) Σ g_i g_iᵀ of the images' slopes g_i about the mean of their batch, of n
            images, times n/(n − 1).
    """

    log_density: float
    slope: np.ndarray
    slopes: np.ndarray
    scatter: np.ndarray


def marginal_density(search: Search, state: State, frame: Frame, z: np.ndarray) -> Marginal:
    """The marginal density with the points z (m, k), or (m, n, k) of each image, in a frame."""
    share, weight = 1 / len(search.data.parts), search.weight

    def rows(w: slice) -> tuple:
        of_frame = frame.factor[w], frame.pull[w]
        of_images = z[:, w] if z.ndim == 3 else z
        return state.theta[w], state.phi, *of_frame, weight[w], share, of_images

    parts = search.each(differences.integral, (search.model, search.sites, search.apart), rows)
    ln_p, slope, scatter = zip(*parts, strict=True)
    value, total = float(sum(ln_p)) + frame.log_volume(), sum(slope[1:], slope[0])
    if (earlier := search.data.earlier) is not None:
        value, total = value - earlier.value_at(state.phi), total + earlier.slope_at(state.phi)
    return Marginal(value, total, np.array(slope), sum(scatter[1:], scatter[0]))


@lru_cache
def points(k: int) -> np.ndarray:
    """(m, k) points with the mean, covariance and odd moments of the unit normal."""
    z = np.random.default_rng(0).standard_normal((max(FEWEST, k + 2), k))
    z = np.concatenate([z, -z])
    return z @ np.linalg.inv(np.linalg.cholesky(z.T @ z / len(z))).T


def random_signs(n: int, k: int) -> np.ndarray:
    """(m, n, k) a few points of each of n images: random signs, and their negatives.

    Products of two of them are on average those of the unit normal, and errors of the images, whose
    signs differ, cancel in the sum over images (Hutchinson 1990).
    """
    z = 2 * np.random.default_rng(0).integers(2, size=(n, PAIRS, k), dtype=np.int8) - 1
    return np.moveaxis(np.concatenate([z, -z], axis=1), 1, 0)
