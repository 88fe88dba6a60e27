"""Scales of images from mean J alone, before it is known which reflection is which.

Every observation is expected at the mean of all observations with its |q| and |ε_r|,

    ⟨J⟩ = G·exp(−B/4d²)·T(|q|, |ε_r|),    T = Σ(d)·p,

so that no image is scaled to intensities of wrong reflections.
"""

from __future__ import annotations

import gemmi
import numpy as np

from ..geometry.symmetry import epsilon_centric

N_Q, N_EXCITATION = 6, 8  # bins of equally many observations
LOG_G_SD, B_SD = 2.0, 15.0  # prior sd of an image's ln G and B (Å²) about the run's mean
MAX_STEP = (1.0, 20.0)  # longest Newton step of ln G and of B (Å²)
ROUNDS = 12


def first_scales(
    hkl: np.ndarray,
    image: np.ndarray,
    J: np.ndarray,
    excitation_error: np.ndarray | None,
    cell: gemmi.UnitCell,
    space_group: gemmi.SpaceGroup,
) -> np.ndarray:
    """Estimate g = G·B_term·p (n,) of each observation, on an arbitrary scale.

    Two steps alternate: ln G and B of each image by quasi-likelihood (log link, variance
    proportional to the mean; McCullagh & Nelder 1989) with normal priors, and T in bins.  p is T
    divided by the T of the smallest |ε_r| at the same |q|.

    Args:
        hkl: (n, 3). image: (n,) int, from 0. J: (n,) photons, or the file's unit.
        excitation_error: (n,) Å⁻¹; where it is None, p is one.
    """
    n = int(image.max()) + 1
    q2 = cell.calculate_1_d2_array(np.ascontiguousarray(hkl, np.int32))
    J = J / epsilon_centric(hkl, space_group)[0]
    offset = np.zeros(len(J)) if excitation_error is None else np.abs(excitation_error)
    row, column = _bin(q2, N_Q), np.zeros(len(J), int)
    if offset.any():
        for k in range(N_Q):
            column[row == k] = _bin(offset[row == k], N_EXCITATION)
    bins, n_bins = row * N_EXCITATION + column, N_Q * N_EXCITATION
    x = np.stack([np.ones(len(J)), -0.25 * (q2 - q2.mean())])  # of (ln G, B)
    xx = x[:, None] * x
    prior = np.diag([LOG_G_SD**-2, B_SD**-2])
    images = np.zeros((n, 2))

    def by_image(values):
        flat = values.reshape(-1, len(J))
        sums = [np.bincount(image, v, n) for v in flat]
        return np.stack(sums, -1).reshape(n, *values.shape[:-1])

    def image_scale():
        return np.exp(np.einsum("in,ni->n", x, images[image]))

    for _ in range(ROUNDS):
        scale = image_scale()
        T = np.bincount(bins, J, n_bins) / np.maximum(np.bincount(bins, scale, n_bins), 1e-30)
        T = np.maximum(T, 1e-3 * np.abs(T).max())
        mu = scale * T[bins]
        dispersion = np.mean((J - mu) ** 2 / mu)
        score = by_image(x * (J - mu)) / dispersion - images @ prior
        information = by_image(xx * mu) / dispersion + prior
        step = np.linalg.solve(information, score[..., None])[..., 0]
        images = images + np.clip(step, -np.array(MAX_STEP), MAX_STEP)
        images = images - images.mean(0)
    T = T.reshape(N_Q, N_EXCITATION)
    return image_scale() * np.minimum(T / T[:, :1], 1.0).ravel()[bins]


def _bin(values: np.ndarray, n_bins: int) -> np.ndarray:
    """(n,) the bin of each value, of ``n_bins`` equally full ones in ascending order."""
    rank = np.empty(len(values), int)
    rank[np.argsort(values, kind="stable")] = np.arange(len(values))
    return rank * n_bins // len(values)
