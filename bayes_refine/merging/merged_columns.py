"""The MTZ columns of merged intensities: one data array a file, blank where nothing is known."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from .merged_intensities import Intensities

Columns = dict[str, tuple[str, ArrayLike]]
BLANK = 4.0  # σ over ε·Σ(d)


def blank(found: Intensities) -> np.ndarray:
    """(m,) bool: reflections of which the images say nothing, σ_I > 4·ε·Σ(d).

    ε·Σ(d) is the mean of I of this resolution by Wilson's statistics, and of an acentric reflection
    also the sd.  A measurement with a σ of 4 times that has 1/16 of the information that resolution
    alone has, and would move a posterior mean by 1/17 of the distance.  σ grows without bound as
    the partiality goes to 0.  Such an I is harmless where it is weighted by 1/σ², but spoils plain
    averages in shells (Wilson plots, French and Wilson).
    """
    return ~(found.merged.sigma <= BLANK * found.prior_mean)


def blank_sentence(n_blank: int, n: int) -> str:
    """The sentence about blank reflections, in the terminal and in the report."""
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

    IMEAN and SIGIMEAN, of the likelihood alone, NaN where the images say nothing (``blank``); N
    observations; FREE.  Mates: I(±) and SIGI(±) (K, M) by the same rule, and N(±).
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
    """Which reflections (m,) bool one random half of the images tells of, and their columns.

    The half, 0 or 1, is merged at the scales of the whole run; IMEAN and SIGIMEAN as ``blank``
    says.
    """
    merged = found.merged
    of = merged.half_intensity[:, half], merged.half_sigma[:, half]
    value, sigma = _told(*of, found.prior_mean)
    known = np.isfinite(value)
    return known, {"IMEAN": ("J", value[known]), "SIGIMEAN": ("Q", sigma[known])}


def merged_files(found: Intensities, free: np.ndarray) -> Mapping[str, tuple[np.ndarray, Columns]]:
    """By file name: the indices (k, 3) and the columns of every MTZ of merged intensities.

    A half of which no image tells anything has no file.
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
