"""Agreement of intensities with each other, with a reference or with truth, by resolution shell.

All functions take plain arrays, ignore pairs that are not both finite, and return NaN if no number
can be computed.

Some reflections of stills are measured only at g ≈ 0, with a σ many times larger than any
intensity; a few of them make an unweighted CC½ meaningless.  ``shell_table`` weights a reflection
by :func:`signal_share`, which depends on the expected σ alone, never on the observed intensity.
"""

from __future__ import annotations

import math
from typing import Any

import gemmi
import numpy as np

from ..geometry.miller import pack_hkl, resolution
from ..geometry.symmetry import asu_keys
from ..util.output import jsonable
from .average import Merged


def pearson(x: np.ndarray, y: np.ndarray, weight: np.ndarray | None = None) -> float:
    """Pearson correlation of (n,) arrays; NaN for fewer than three pairs or no spread.

    Means, variances and the covariance are weighted by ``weight`` (n,), by default one.

    >>> pearson(np.arange(4.0), 2 * np.arange(4.0))
    1.0
    """
    x, y, w = _pairs(x, y, weight)
    if len(x) < 3 or not w.sum() > 0:
        return math.nan
    dx, dy = x - np.average(x, weights=w), y - np.average(y, weights=w)
    norm = math.sqrt(((w * dx) @ dx) * ((w * dy) @ dy))
    return float((w * dx) @ dy / norm) if norm > 0 else math.nan


def signal_share(sigma: np.ndarray, mean: np.ndarray | float) -> np.ndarray:
    """(n,) weights S²/(S² + σ²): the share of a reflection's expected variance that is signal.

    S is the mean intensity of its shell, which is also the sd of intensities there (Wilson).
    """
    S2 = np.asarray(mean, float) ** 2
    return np.asarray(S2 / (S2 + np.asarray(sigma, float) ** 2))


def mean_intensity(intensity: np.ndarray, sigma: np.ndarray) -> float:
    """Mean S of n intensities of one shell, weighted by 1/(S² + σ²); NaN of none."""
    good = np.isfinite(intensity) & np.isfinite(sigma)
    if not good.any():
        return math.nan
    I, variance = np.asarray(intensity)[good], np.asarray(sigma)[good] ** 2  # noqa: E741
    least = 1e-3 * float(np.sqrt(np.median(variance)))  # without signal, weights depend on σ only
    S = least
    for _ in range(20):
        weight = 1 / (S**2 + variance)
        before, S = S, max(float(weight @ I / weight.sum()), least)
        if abs(S - before) < 1e-12 * S:
            break
    return S


def cc_star(cc_half: float) -> float:
    """CC* = √(2·CC½/(1 + CC½)); NaN for CC½ < 0 (Karplus & Diederichs 2012)."""
    return math.sqrt(2 * cc_half / (1 + cc_half)) if cc_half >= 0 else math.nan


def r_split(half1: np.ndarray, half2: np.ndarray, weight: np.ndarray | None = None) -> float:
    """R_split = 2^(−1/2)·Σ w|I₁ − I₂| / Σ ½w(I₁ + I₂), a fraction (White et al. 2012: w = 1)."""
    x, y, w = _pairs(half1, half2, weight)
    mean = w @ (x + y) / 2
    return float(w @ np.abs(x - y) / mean / math.sqrt(2)) if mean > 0 else math.nan


def r1_intensity(
    intensity: np.ndarray, truth: np.ndarray, weight: np.ndarray | None = None
) -> float:
    """R1(I) = Σ w|I − k·I_true| / Σ w·k·I_true, a fraction, k by least squares."""
    x, y, w = _pairs(intensity, truth, weight)
    k = (w * x) @ y / ((w * y) @ y) if (w * y).any() else math.nan
    total = k * (w @ y)
    return float(w @ np.abs(x - k * y) / total) if total > 0 else math.nan


def completeness(
    hkl: np.ndarray, cell: gemmi.UnitCell, space_group: gemmi.SpaceGroup, edges: np.ndarray
) -> np.ndarray:
    """(k,) fraction of the possible unique reflections present in each shell.

    Args:
        hkl: (n, 3) observed, any asymmetric unit; Friedel mates count once.
        edges: (k + 1,) shell edges in Å, from low to high resolution.
    """
    possible = gemmi.make_miller_array(cell, space_group, float(edges[-1]) * (1 - 1e-9))
    seen = np.isin(pack_hkl(possible), asu_keys(hkl, space_group))
    shell = shell_index(cell.calculate_d_array(possible), edges)
    return _by_shell(shell, seen.astype(float), len(edges) - 1)


def shell_edges(d_max: float, d_min: float, n: int) -> np.ndarray:
    """(n + 1,) edges in Å, from d_max down to d_min, of shells of equal volume in 1/d³.

    >>> shell_edges(10.0, 2.0, 2).round(2).tolist()
    [10.0, 2.51, 2.0]
    """
    return np.linspace(d_max**-3.0, d_min**-3.0, n + 1) ** (-1 / 3)


def shell_index(d: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """(n,) shell of each d (Å), −1 outside; both outer edges belong to the shells."""
    s, at = 1 / np.asarray(d, float), 1 / np.asarray(edges, float)
    index = np.minimum(np.searchsorted(at, s * (1 + 1e-9), side="right") - 1, len(at) - 2)
    return np.where((s < at[0] * (1 - 1e-6)) | (s > at[-1] * (1 + 1e-6)), -1, np.maximum(index, 0))


def shell_table(
    merged: Merged,
    cell: gemmi.UnitCell,
    space_group: gemmi.SpaceGroup,
    edges: np.ndarray,
    reference: np.ndarray | None = None,
    free: np.ndarray | None = None,
    posterior: np.ndarray | None = None,
) -> list[dict[str, Any]]:
    """Statistics of merged intensities: a row for each shell, and a last row for all shells.

    Args:
        merged: m reflections.
        cell: Å and degrees.
        edges: (k + 1,) shell edges in Å, from low to high resolution.
        reference: (m,) reference intensities, NaN where there is none.
        free: (m,) bool: reflections whose reference intensity informed nothing.
        posterior: (m,) posterior mean intensities, also compared with the reference.

    Returns:
        JSON-ready rows: shell, d_max, d_min (Å), n_unique, n_observations, completeness,
        multiplicity, mean_i_over_sigma, cc_half, cc_half_unweighted, cc_star, r_split,
        n_both_halves, cc_ref, r1_ref, cc_free, n_free, and of the posterior cc_ref_posterior and
        cc_free_posterior; None where a number cannot be computed.  With ``free`` given, cc_ref and
        r1_ref are of the other reflections, which the reference informed.  Correlations and R of
        likelihood-only intensities are weighted by :func:`signal_share`.
    """
    edges = np.asarray(edges, float)
    shell = shell_index(resolution(merged.hkl, cell), edges)
    reference = np.full(len(merged), np.nan) if reference is None else reference
    held_out = np.zeros(len(merged), bool) if free is None else np.asarray(free, bool)
    posterior = np.full(len(merged), np.nan) if posterior is None else posterior
    S = np.full(len(merged), np.nan)
    for k in range(len(edges) - 1):
        S[shell == k] = mean_intensity(merged.intensity[shell == k], merged.sigma[shell == k])
    weight = signal_share(merged.sigma, S)
    weight_half = signal_share(np.sqrt((merged.half_sigma**2).mean(axis=1)), S)
    bounds: list[tuple[int | str, np.ndarray]] = [
        (k, edges[k : k + 2]) for k in range(len(edges) - 1)
    ]
    rows = []
    for name, pair in [*bounds, ("all", edges[[0, -1]])]:
        chosen = shell >= 0 if name == "all" else shell == name
        I, half = merged.intensity[chosen], merged.half_intensity[chosen]  # noqa: E741
        ref, out, w, post = (x[chosen] for x in (reference, held_out, weight, posterior))
        w_half = weight_half[chosen]
        first, second = half.T
        cc_half = pearson(first, second, w_half)
        n, n_obs = int(chosen.sum()), int(merged.n[chosen].sum())
        row = {
            "shell": name,
            "d_max": float(pair[0]),
            "d_min": float(pair[1]),
            "n_unique": n,
            "n_observations": n_obs,
            "multiplicity": n_obs / n if n else math.nan,
            "mean_i_over_sigma": float(np.mean(I / merged.sigma[chosen])) if n else math.nan,
            "cc_half": cc_half,
            "cc_half_unweighted": pearson(first, second),
            "cc_star": cc_star(cc_half),
            "r_split": r_split(first, second, w_half),
            "n_both_halves": int(np.isfinite(half).all(axis=1).sum()),
            "cc_ref": pearson(I[~out], ref[~out], w[~out]),
            "r1_ref": r1_intensity(I[~out], ref[~out], w[~out]),
            "cc_free": pearson(I[out], ref[out], w[out]),
            "cc_ref_posterior": pearson(post[~out], ref[~out]),
            "cc_free_posterior": pearson(post[out], ref[out]),
            "n_free": int((out & np.isfinite(ref)).sum()),
        }
        rows.append(row)
    overall = completeness(merged.hkl, cell, space_group, edges[[0, -1]])
    for row, value in zip(
        rows, [*completeness(merged.hkl, cell, space_group, edges), *overall], strict=True
    ):
        row["completeness"] = float(value)
    return jsonable(rows)


def _pairs(x: np.ndarray, y: np.ndarray, weight: np.ndarray | None) -> tuple[np.ndarray, ...]:
    x, y = np.asarray(x, float), np.asarray(y, float)
    w = np.ones(len(x)) if weight is None else np.asarray(weight, float)
    good = np.isfinite(x) & np.isfinite(y)
    return x[good], y[good], w[good]


def _by_shell(shell: np.ndarray, values: np.ndarray, k: int) -> np.ndarray:
    inside = shell >= 0
    count = np.bincount(shell[inside], minlength=k)
    total = np.bincount(shell[inside], values[inside], minlength=k)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
