"""The MTZ columns of merged intensities: one data array in each file, blank where it is unknown."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from .merged_intensities import Intensities

Columns = dict[str, tuple[str, ArrayLike]]
BLANK = 4.0  # σ over ε·Σ(d)


def blank(found: Intensities) -> np.ndarray:
    """(m,) bool: reflections that the images do not determine, σ_I > 4·ε·Σ(d).

    By Wilson's statistics ε·Σ(d) is the mean of I at this resolution, and for an acentric
    reflection also the sd.  A measurement with four times this σ has 1/16 of the information in the
    resolution alone, and would move a posterior mean by 1/17 of the distance.  σ grows without
    bound as the partiality goes to 0.  Such an I does no harm with a weight of 1/σ², but spoils
    plain averages in shells (Wilson plots, French and Wilson).
    """
    return ~(found.merged.sigma <= BLANK * found.prior_mean)


def blank_sentence(n_blank: int, n: int) -> str:
    """The sentence about blank reflections, for the terminal and the report."""
    return (
        f"{n_blank} of {n} reflections have no IMEAN: their sigma exceeds {BLANK:g} times the mean "
        "intensity of their resolution, so the images say nothing of them."
    )


def _told(
    intensity: np.ndarray, sigma: np.ndarray, prior_mean: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Intensity and sigma, both NaN where sigma exceeds ``BLANK`` prior means."""
    known = sigma <= BLANK * prior_mean
    return np.where(known, intensity, np.nan), np.where(known, sigma, np.nan)


def merged_columns(found: Intensities, free: np.ndarray) -> Columns:
    """MTZ type and values of the columns of ``merged.mtz``, (m,) each.

    IMEAN and SIGIMEAN are of the likelihood alone, NaN for ``blank`` reflections; N is the number
    of observations; FREE.  Mates have I(±) and SIGI(±) (K, M) by the same rule, and N(±).
    """
    merged, mates = found.merged, found.mates
    value, sigma = _told(merged.intensity, merged.sigma, found.prior_mean)
    columns: Columns = {"IMEAN": ("J", value), "SIGIMEAN": ("Q", sigma)}
    if mates is not None:
        for k, mate in enumerate("+-"):
            of = mates.intensity[:, k], mates.sigma[:, k]
            value, sigma = _told(*of, found.prior_mean)
            columns[f"I({mate})"], columns[f"SIGI({mate})"] = ("K", value), ("M", sigma)
        for k, mate in enumerate("+-"):
            columns[f"N({mate})"] = ("I", mates.n[:, k])
    return columns | {"N": ("I", merged.n), "FREE": ("I", free)}


def posterior_columns(found: Intensities, free: np.ndarray) -> Columns:
    """MTZ type and values of the columns of ``posterior.mtz``, (m,) each.

    Posterior means and sd of I and F, and FREE.  Mates: IPOST(±) (K, M) and FPOST(±) (G, L).
    """
    post = found.posterior
    columns: Columns = {
        "IPOST": ("J", post.intensity),
        "SIGIPOST": ("Q", post.intensity_sd),
        "FPOST": ("F", post.amplitude),
        "SIGFPOST": ("Q", post.amplitude_sd),
    }
    if found.mates is not None:
        of = found.mates.posterior
        for stem, kinds, value, sd in (
            ("IPOST", "KM", of.intensity, of.intensity_sd),
            ("FPOST", "GL", of.amplitude, of.amplitude_sd),
        ):
            for k, mate in enumerate("+-"):
                columns[f"{stem}({mate})"] = (kinds[0], value[:, k])
                columns[f"SIG{stem}({mate})"] = (kinds[1], sd[:, k])
    return columns | {"FREE": ("I", free)}


def half_columns(found: Intensities, half: int) -> tuple[np.ndarray, Columns]:
    """The reflections (m,) bool that one random half of the images determines, and their columns.

    The half, 0 or 1, is merged at the scales of the whole run; IMEAN and SIGIMEAN are blank by the
    rule of ``blank``.
    """
    merged = found.merged
    of = merged.half_intensity[:, half], merged.half_sigma[:, half]
    value, sigma = _told(*of, found.prior_mean)
    known = np.isfinite(value)
    return known, {"IMEAN": ("J", value[known]), "SIGIMEAN": ("Q", sigma[known])}


def merged_files(found: Intensities, free: np.ndarray) -> Mapping[str, tuple[np.ndarray, Columns]]:
    """By file name: the indices (k, 3) and the columns of every MTZ of merged intensities.

    A half that determines no reflection has no file.
    """
    hkl = found.merged.hkl
    files = {
        "merged.mtz": (hkl, merged_columns(found, free)),
        "posterior.mtz": (hkl, posterior_columns(found, free)),
    }
    for half in (0, 1):
        known, columns = half_columns(found, half)
        if known.any():
            files[f"half{half + 1}.mtz"] = (hkl[known], columns)
    return files
