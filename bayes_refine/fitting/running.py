"""The running estimate of true intensities, where no reference says what they are.

Each image sees as its reference what Wilson's statistics and all *other* images say of a true
intensity, with its sd (SPEC section 6).  The likelihood of a run is then the product of the
images' predictive densities p(J_i | J of the others): no image agrees with itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import gemmi
import numpy as np

from ..indexing.leave_image_out import wilson_moments
from ..merging.latent import Measured
from ..miller import find, pack_hkl, resolution
from ..reference import Reference, wilson_mean
from ..symmetry import absent, asu_keys, epsilon_centric

START_B = 20.0  # Å², of the Wilson plot to start with; what it is off by, the images' B take up
PASSES = 10  # of reweighting


class Sums(NamedTuple):
    """Σ w g²/v and Σ w g J/v by key (ascending): a Gaussian summary of observations."""

    key: np.ndarray
    precision: np.ndarray
    weighted: np.ndarray

    def at(self, key: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Both sums (n,) of keys (n,); zero where there is none."""
        if not len(self.key):
            return np.zeros(len(key)), np.zeros(len(key))
        i, here = find(key, self.key)
        return np.where(here, self.precision[i], 0.0), np.where(here, self.weighted[i], 0.0)


@dataclass(frozen=True)
class Running:
    """Intensities as the images say, and what each image would say without itself.

    Attributes:
        reference: every reflection to the resolution limit, posterior means; where nothing was
            observed, Wilson's mean.
        whole: sums by unique reflection; own: by unique reflection and image.
        n_images: of the run.
    """

    reference: Reference
    whole: Sums
    own: Sums
    n_images: int

    def without(self, hkl: np.ndarray, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Posterior mean and sd (n,) of I of ``hkl`` (n, 3): all images but ``image`` (n,)."""
        key = asu_keys(hkl, self.reference.space_group)
        whole, own = (
            self.whole.at(key),
            self.own.at(_with_image(self.whole, key, image, self.n_images)),
        )
        return self._posterior(hkl, np.maximum(whole[0] - own[0], 0.0), whole[1] - own[1])

    def together(self, hkl: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Posterior mean and sd (n,) of I from all images."""
        key = asu_keys(hkl, self.reference.space_group)
        return self._posterior(hkl, *self.whole.at(key))

    def _posterior(self, hkl, precision, weighted):
        r = self.reference
        epsilon, centric = epsilon_centric(hkl, r.space_group)
        d = resolution(hkl, r.cell)
        mean = epsilon * wilson_mean(r.d, r.intensity / epsilon_centric(r.hkl, r.space_group)[0], d)
        # beyond a thousand times the prior's width an observation says nothing
        precision = np.maximum(precision, (1e3 * mean) ** -2.0)
        found, variance = wilson_moments(precision, weighted, mean, centric)
        here = ~absent(hkl, r.space_group)
        return found * here, np.sqrt(variance) * here


def start(
    cell: gemmi.UnitCell, space_group: gemmi.SpaceGroup, d_min: float, n_images: int
) -> Running:
    """Before anything is measured: Wilson's mean intensity, ε·exp(−B/2d²) with B = 20 Å²."""
    hkl = np.asarray(gemmi.make_miller_array(cell, space_group, d_min), np.int32)
    hkl = hkl[~absent(hkl, space_group)]
    d = cell.calculate_d_array(hkl)
    mean = epsilon_centric(hkl, space_group)[0] * np.exp(-START_B / (2 * d**2))
    none = Sums(np.zeros(0, np.int64), np.zeros(0), np.zeros(0))
    reference = Reference(
        hkl, mean, cell, space_group, "Wilson statistics and the images themselves"
    )
    return Running(reference, none, none, n_images)


def renewed(old: Running, measured: Measured) -> Running:
    """The estimate from a run's observations.

    Student-t residuals by reweighting, w = (ν + 1)/(ν + z²), about the posterior mean of each
    reflection; times (ν + 1)/(ν + 3), which makes Σ w g²/s² the information that they hold (Lange,
    Little & Taylor 1989).
    """
    hkl, code, nu = np.asarray(measured.hkl), np.asarray(measured.code), measured.nu
    J, g = np.asarray(measured.intensity), np.asarray(measured.scale)
    key, m = pack_hkl(hkl), len(hkl)
    precision = weighted = np.zeros(0)
    now = old
    for _ in range(PASSES):
        expected = now.together(hkl)[0][code]
        variance = measured.variance_at(expected)
        w = np.ones(len(J))
        if np.isfinite(nu):
            w = (nu + 1) / (nu + (J - g * expected) ** 2 / variance) * (nu + 1) / (nu + 3)
        precision, weighted = w * g**2 / variance, w * g * J / variance
        whole = Sums(key, np.bincount(code, precision, m), np.bincount(code, weighted, m))
        now = replace(now, whole=whole)
    pair, at = np.unique(code * old.n_images + np.asarray(measured.image), return_inverse=True)
    own = Sums(pair, np.bincount(at, precision), np.bincount(at, weighted))
    now = replace(now, own=own)
    intensity = now.together(now.reference.hkl)[0]
    return replace(now, reference=replace(now.reference, intensity=intensity))


def _with_image(whole: Sums, key: np.ndarray, image: np.ndarray, n_images: int) -> np.ndarray:
    """Keys of unique reflection and image; −1 where the reflection was not observed."""
    if not len(whole.key):
        return np.full(len(key), -1)
    i, here = find(key, whole.key)
    return np.where(here, i * n_images + image, -1)
