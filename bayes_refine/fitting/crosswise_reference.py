"""The current estimate of true intensities, where no reference says what they are.

Each image sees as its reference what Wilson's statistics and the *other* images say of a true
intensity, with its sd (docs/theory.md, Without a reference).  Of many images a sixteenth is left
out at a time.  The likelihood of a run is then the product of the images' predictive densities
p(J_i | J of the others), so that no image agrees with itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import gemmi
import numpy as np

from ..geometry.miller import find, pack_hkl, resolution
from ..geometry.symmetry import absent, asu_keys, epsilon_centric
from ..merging.latent import AmplitudePrior, Measured
from ..merging.leave_fold_out import leave_fold_out, moments
from ..physics.reference import Reference, wilson_mean

START_B = 20.0  # Å², of the first Wilson plot; the images' B take up its error
FOLDS = 16  # at most; of more images, every sixteenth is left out together


class Known(NamedTuple):
    """Posterior mean and sd of I, (1 + K, m), by key (m,), ascending.

    Row 0 is from all images, row 1 + k from all images but those of fold k.
    """

    key: np.ndarray
    mean: np.ndarray
    sd: np.ndarray


@dataclass(frozen=True)
class CrosswiseReference:
    """The current estimate of intensities, from all images and from all but each fold.

    Attributes:
        reference: posterior means of all reflections to the resolution limit; Wilson's mean where
            nothing was observed.
        known: posteriors of reflections that were observed; all others have Wilson's prior.
        fold: (n_images,) int; images of one fold are left out together.  Images with observations
            are dealt out in turn, so that an image without any changes no other image's fold.
    """

    reference: Reference
    known: Known
    fold: np.ndarray

    def without(self, hkl: np.ndarray, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Posterior mean and sd (n,) of I of ``hkl`` (n, 3), from the folds that do not have
        ``image`` (n,).
        """
        return self._of(hkl, 1 + self.fold[np.asarray(image)])

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
    """Mean intensity ε·Σ(d) and whether it is centric, (n,) each, of ``hkl`` (n, 3)."""
    epsilon, centric = epsilon_centric(hkl, reference.space_group)
    of_reference = reference.intensity / epsilon_centric(reference.hkl, reference.space_group)[0]
    d = resolution(hkl, reference.cell)
    return epsilon * wilson_mean(reference.d, of_reference, d), centric


def start(
    cell: gemmi.UnitCell, space_group: gemmi.SpaceGroup, d_min: float, n_images: int
) -> CrosswiseReference:
    """The estimate before anything is measured: Wilson's mean ε·exp(−B/2d²), B = 20 Å²."""
    hkl = np.asarray(gemmi.make_miller_array(cell, space_group, d_min), np.int32)
    hkl = hkl[~absent(hkl, space_group)]
    d = cell.calculate_d_array(hkl)
    mean = epsilon_centric(hkl, space_group)[0] * np.exp(-START_B / (2 * d**2))
    none = Known(np.zeros(0, np.int64), *np.zeros((2, 1 + min(n_images, FOLDS), 0)))
    reference = Reference(
        hkl, mean, cell, space_group, "Wilson statistics and the images themselves"
    )
    return CrosswiseReference(reference, none, np.arange(n_images) % FOLDS)


def renewed(old: CrosswiseReference, measured: Measured) -> CrosswiseReference:
    """The estimate from a run's observations, and from those of all folds but each.

    Each posterior is computed by quadrature without any observation of its fold.  Weights of
    residuals that had seen an image would make other images agree with this image, and errors
    would come out too small.  Iterative reweighting would fail: errors grow with the expected
    intensity, so that, coming from below, one weak observation makes all strong ones outliers.
    """
    if not len(measured.code):
        return old
    # Σ(d) first, from all images
    now = _knowing(old, measured, _moments(measured, old.reference)[:, None])
    whole = _moments(measured, now.reference)
    image = np.asarray(measured.image)
    used = np.unique(image)
    n_folds = min(len(used), FOLDS)
    fold = np.zeros_like(old.fold)
    fold[used] = np.arange(len(used)) % n_folds
    found = np.repeat(whole[:, None], 1 + n_folds, axis=1)
    of, without, some = leave_fold_out(measured, fold[image], lambda x: prior_of(x, now.reference))
    hkl = np.asarray(measured.hkl)[of]
    found[:, 1 + without, of] = _or_wilson(some, hkl, now.reference)
    return replace(_knowing(now, measured, found), fold=fold)


def _knowing(old: CrosswiseReference, measured: Measured, found: np.ndarray) -> CrosswiseReference:
    """The estimate with mean and sd ``found`` (2, rows, m)."""
    now = replace(old, known=Known(pack_hkl(np.asarray(measured.hkl)), *found))
    intensity = now.together(now.reference.hkl)[0]
    return replace(now, reference=replace(now.reference, intensity=intensity))


def prior_of(hkl: np.ndarray, reference: Reference) -> AmplitudePrior:
    """Wilson's prior of the amplitudes of ``hkl`` (m, 3), by the mean of a reference."""
    mean, centric = wilson_of(hkl, reference)
    return AmplitudePrior(np.log(mean), centric)


def _moments(measured: Measured, reference: Reference) -> np.ndarray:
    """Mean and sd (2, m) of I."""
    found = moments(measured, lambda hkl: prior_of(hkl, reference))
    return _or_wilson(found, np.asarray(measured.hkl), reference)


def _or_wilson(found: np.ndarray, hkl: np.ndarray, reference: Reference) -> np.ndarray:
    """The moments (2, m), or Wilson's own where they are not finite."""
    mean, centric = wilson_of(hkl, reference)
    unknown = np.stack([mean, mean * np.sqrt(1 + centric)])
    return np.where(np.all(np.isfinite(found), axis=0) & (found[1] > 0), found, unknown)
