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
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ..merging.latent import AmplitudePrior, Measured, true_intensities
from ..miller import find, pack_hkl, resolution
from ..reference import Reference, wilson_mean
from ..symmetry import absent, asu_keys, epsilon_centric

START_B = 20.0  # Å², of the Wilson plot to start with; what it is off by, the images' B take up
FOLDS = 16  # at most: with more images, an image is left out together with every sixteenth


class Known(NamedTuple):
    """Posterior mean and sd of I, (1 + K, m), by key (m,), ascending.

    Row 0 of all images; row 1 + k without those of fold k, image modulo K.
    """

    key: np.ndarray
    mean: np.ndarray
    sd: np.ndarray


@dataclass(frozen=True)
class Running:
    """Intensities as the images say, and what they would say without each image.

    Attributes:
        reference: every reflection to the resolution limit, posterior means; where nothing was
            observed, Wilson's mean.
        known: what the images say, by unique reflection; Wilson's prior holds of all others.
        n_folds: of images that are left out together.
    """

    reference: Reference
    known: Known
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
        mean, centric = wilson_of(hkl, self.reference)
        sd = mean * np.sqrt(1 + centric)
        if len(self.known.key):
            i, here = find(asu_keys(hkl, self.reference.space_group), self.known.key)
            mean = np.where(here, self.known.mean[row, i], mean)
            sd = np.where(here, self.known.sd[row, i], sd)
        present = ~absent(hkl, self.reference.space_group)
        return mean * present, sd * present


def wilson_of(hkl: np.ndarray, reference: Reference) -> tuple[np.ndarray, np.ndarray]:
    """Mean intensity ε·Σ(d) and whether centric, (n,), of ``hkl`` (n, 3)."""
    epsilon, centric = epsilon_centric(hkl, reference.space_group)
    of_reference = reference.intensity / epsilon_centric(reference.hkl, reference.space_group)[0]
    d = resolution(hkl, reference.cell)
    return epsilon * wilson_mean(reference.d, of_reference, d), centric


def start(
    cell: gemmi.UnitCell, space_group: gemmi.SpaceGroup, d_min: float, n_images: int
) -> Running:
    """Before anything is measured: Wilson's mean intensity, ε·exp(−B/2d²) with B = 20 Å²."""
    hkl = np.asarray(gemmi.make_miller_array(cell, space_group, d_min), np.int32)
    hkl = hkl[~absent(hkl, space_group)]
    d = cell.calculate_d_array(hkl)
    mean = epsilon_centric(hkl, space_group)[0] * np.exp(-START_B / (2 * d**2))
    n_folds = min(n_images, FOLDS)
    none = Known(np.zeros(0, np.int64), *np.zeros((2, 1 + n_folds, 0)))
    reference = Reference(
        hkl, mean, cell, space_group, "Wilson statistics and the images themselves"
    )
    return Running(reference, none, n_folds)


def renewed(old: Running, measured: Measured) -> Running:
    """The estimate from a run's observations, and from those of all folds but each.

    Posteriors by quadrature, each fold's without it from the start: weights of residuals that had
    seen an image would have its neighbours agree with it, and errors come out too small.  No
    search: errors grow with the intensity that is expected, so that one weak observation says of
    a strong reflection that all the others are outliers, and a search from below believes it.
    """
    if not len(measured.code):
        return old
    now, key = old, pack_hkl(np.asarray(measured.hkl))
    padded = _padded(measured)
    # Σ(d) first, from what all images say
    for folds in ((-1,), range(-1, old.n_folds)):
        prior = _prior(padded.hkl, now.reference)
        found = [_without(padded, prior, fold, old.n_folds) for fold in folds]
        mean, sd = (np.stack(x)[:, : len(key)] for x in zip(*found, strict=True))
        now = replace(now, known=Known(key, mean, sd))
        intensity = now.together(now.reference.hkl)[0]
        now = replace(now, reference=replace(now.reference, intensity=intensity))
    return now


def _without(measured: Measured, prior: AmplitudePrior, fold: int, n_folds: int):
    """Posterior mean and sd (m,) of I without a fold; −1 leaves out none."""
    weight = measured.weight * (measured.image % n_folds != fold)
    found = true_intensities(replace(measured, weight=weight), prior).posterior
    return found.intensity, found.intensity_sd


def _prior(hkl: Array, reference: Reference) -> AmplitudePrior:
    mean, centric = wilson_of(np.asarray(hkl), reference)
    zero = jnp.zeros(len(mean))
    return AmplitudePrior(jnp.log(mean), jnp.asarray(centric), zero, zero)


def _padded(measured: Measured) -> Measured:
    """To powers of two, by what weighs nothing: shapes decide what has to be compiled again."""

    def to_power(x):
        if np.ndim(x) == 0:
            return x
        spare = (1 << (len(x) - 1).bit_length()) - len(x)
        return jnp.pad(x, [(0, spare)] + [(0, 0)] * (x.ndim - 1), mode="edge")

    padded = jax.tree.map(to_power, measured)
    here = jnp.arange(len(padded.weight)) < len(measured.weight)
    return replace(padded, weight=padded.weight * here)
