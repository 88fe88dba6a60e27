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

from . import differences
from .curvature import upward_inverse
from .images_alone import Settled
from .search import Look, Search, State

FEWEST = 16  # pairs of points, for a noise of less than a hundredth of a posterior sd
PAIRS = 2  # of the few points that show the way


class Frame(NamedTuple):
    """The points of n images, and how the images' unknowns follow the shared unknowns.

    Attributes:
        factor: (n, k, k) lower triangular L of LLᵀ, the inverse of an image's curvature.
        pull: (n, k, s). usable: (n,) 1, or 0 of an image that is not integrated.
    """

    factor: np.ndarray
    pull: np.ndarray
    usable: np.ndarray

    @classmethod
    def of(cls, search: Search, here: Look, usable: np.ndarray) -> Frame:
        inverse = upward_inverse(here.block_hessian.blocks, np.zeros(len(usable)), np)
        # Cholesky's factors change little where curvature does
        return cls(np.linalg.cholesky(inverse), here.steps.pull * usable[:, None, None], usable)

    @property
    def roots(self) -> np.ndarray:
        """(n, k, k) from points to an image's unknowns; 0 of an image that is not integrated."""
        return self.factor * self.usable[:, None, None]

    @property
    def inverse(self) -> np.ndarray:
        """(n, k, k) inverse curvature of the images; 0 of an image that is not integrated."""
        return self.roots @ np.swapaxes(self.roots, 1, 2)

    def with_few(self, found: Settled) -> Frame:
        """The frame with new points of some images, which went to their modes alone."""
        inverse = upward_inverse(found.blocks, np.zeros(len(found.rows)), np)
        factor, pull = self.factor.copy(), self.pull.copy()
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
    roots = frame.roots  # of all images: a part of it keeps all of it in memory

    def rows(w: slice) -> tuple:
        of_frame = roots[w], frame.pull[w]
        of_images = z[:, w] if z.ndim == 3 else z
        return state.theta[w], state.phi, *of_frame, weight[w], share, of_images

    parts = search.each(differences.integral, (search.model, search.sites, search.apart), rows)
    ln_p, slope, scatter = zip(*parts, strict=True)
    volume = np.log(np.diagonal(frame.factor, axis1=1, axis2=2)).sum(1) @ frame.usable
    value, total = float(sum(ln_p) + volume), sum(slope[1:], slope[0])
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
