"""The running estimate of true intensities, where no reference says what they are.

Each image sees as its reference what Wilson's statistics and the *other* images say of a true
intensity, with its sd (SPEC section 6); of many images a sixteenth is left out at a time.  The
likelihood of a run is then the product of the images' predictive densities p(J_i | J of the
others): no image agrees with itself.
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
FOLDS = 16  # at most: with more images, an image is left out together with every sixteenth


class Sums(NamedTuple):
    """Σ w g²/v and Σ w g J/v, (1 + K, m), by key (m,), ascending: Gaussian summaries.

    Row 0 of all images; row 1 + k without those of fold k, image modulo K.
    """

    key: np.ndarray
    precision: np.ndarray
    weighted: np.ndarray

    def at(self, key: np.ndarray, row: np.ndarray | int) -> tuple[np.ndarray, np.ndarray]:
        """Both sums (n,) of keys (n,), of rows (n,) or one; zero where there is none."""
        if not len(self.key):
            return np.zeros(len(key)), np.zeros(len(key))
        i, here = find(key, self.key)
        sums = self.precision[row, i], self.weighted[row, i]
        return np.where(here, sums[0], 0.0), np.where(here, sums[1], 0.0)


@dataclass(frozen=True)
class Running:
    """Intensities as the images say, and what they would say without each image.

    Attributes:
        reference: every reflection to the resolution limit, posterior means; where nothing was
            observed, Wilson's mean.
        sums: what the images say, by unique reflection.
        n_folds: of images that are left out together.
    """

    reference: Reference
    sums: Sums
    n_folds: int

    def without(self, hkl: np.ndarray, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Posterior mean and sd (n,) of I of ``hkl`` (n, 3), from the folds that do not have
        ``image`` (n,).
        """
        return self._of(hkl, 1 + np.asarray(image) % self.n_folds)

    def together(self, hkl: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Posterior mean and sd (n,) of I from all images."""
        return self._of(hkl, 0)

    def _of(self, hkl, row):
        prior = wilson_of(hkl, self.reference)
        key = asu_keys(hkl, self.reference.space_group)
        mean, sd = posterior(*self.sums.at(key, row), prior)
        here = ~absent(hkl, self.reference.space_group)
        return mean * here, sd * here


def wilson_of(hkl: np.ndarray, reference: Reference) -> tuple[np.ndarray, np.ndarray]:
    """Mean intensity ε·Σ(d) and whether centric, (n,), of ``hkl`` (n, 3)."""
    epsilon, centric = epsilon_centric(hkl, reference.space_group)
    of_reference = reference.intensity / epsilon_centric(reference.hkl, reference.space_group)[0]
    d = resolution(hkl, reference.cell)
    return epsilon * wilson_mean(reference.d, of_reference, d), centric


def posterior(precision, weighted, prior) -> tuple[np.ndarray, np.ndarray]:
    """Mean and sd (n,) of I, from sums (n,) and Wilson's prior."""
    mean, centric = prior
    # beyond a thousand times the prior's width an observation says nothing
    found, variance = wilson_moments(
        np.maximum(precision, (1e3 * mean) ** -2.0), weighted, mean, centric
    )
    return found, np.sqrt(variance)


def start(
    cell: gemmi.UnitCell, space_group: gemmi.SpaceGroup, d_min: float, n_images: int
) -> Running:
    """Before anything is measured: Wilson's mean intensity, ε·exp(−B/2d²) with B = 20 Å²."""
    hkl = np.asarray(gemmi.make_miller_array(cell, space_group, d_min), np.int32)
    hkl = hkl[~absent(hkl, space_group)]
    d = cell.calculate_d_array(hkl)
    mean = epsilon_centric(hkl, space_group)[0] * np.exp(-START_B / (2 * d**2))
    n_folds = min(n_images, FOLDS)
    none = Sums(np.zeros(0, np.int64), *np.zeros((2, 1 + n_folds, 0)))
    reference = Reference(
        hkl, mean, cell, space_group, "Wilson statistics and the images themselves"
    )
    return Running(reference, none, n_folds)


def renewed(old: Running, measured: Measured) -> Running:
    """The estimate from a run's observations, and from those of all folds but each.

    Student-t residuals by reweighting, w = (ν + 1)/(ν + z²), about the posterior mean of each
    reflection; times (ν + 1)/(ν + 3), which makes Σ w g²/s² the information that they hold (Lange,
    Little & Taylor 1989).  Without a fold the weights are found anew: weights that had seen an
    image would have its neighbours agree with it, and errors come out too small.
    """
    hkl = np.asarray(measured.hkl)
    key, prior = pack_hkl(hkl), wilson_of(hkl, old.reference)
    expected = posterior(*old.sums.at(key, 0), prior)[0]
    expected = np.tile(expected, (1 + old.n_folds, 1))
    for _ in range(PASSES):
        sums = [_sums(measured, k, old.n_folds, x) for k, x in enumerate(expected, start=-1)]
        precision, weighted = np.stack(sums, axis=1)
        every = (np.tile(x, len(expected)) for x in prior)
        found = posterior(precision.ravel(), weighted.ravel(), tuple(every))[0]
        expected = found.reshape(expected.shape)
    now = replace(old, sums=Sums(key, precision, weighted))
    intensity = now.together(now.reference.hkl)[0]
    return replace(now, reference=replace(now.reference, intensity=intensity))


def _sums(measured: Measured, fold: int, n_folds: int, expected) -> tuple[np.ndarray, np.ndarray]:
    """Σ w g²/s² and Σ w g J/s² (m,) without a fold, about expected I (m,); fold −1 is nobody."""
    J, g, code = (np.asarray(x) for x in (measured.intensity, measured.scale, measured.code))
    at, nu, m = expected[code], measured.nu, len(expected)
    variance = measured.variance_at(at)
    w = (np.asarray(measured.image) % n_folds != fold).astype(float)
    if np.isfinite(nu):
        w *= (nu + 1) / (nu + (J - g * at) ** 2 / variance) * (nu + 1) / (nu + 3)
    return np.bincount(code, w * g**2 / variance, m), np.bincount(code, w * g * J / variance, m)
