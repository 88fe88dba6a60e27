"""Friedel mates apart: their intensities, and the agreement of anomalous differences."""

from __future__ import annotations

from typing import Any

import gemmi
import jax
import jax.numpy as jnp
import numpy as np

from ..geometry.miller import resolution, rows_of, unique_hkl
from ..geometry.symmetry import asu_map
from ..util.output import jsonable
from . import friedel
from .agreement import mean_intensity, pearson, shell_index, signal_share
from .average import Merged
from .latent import AmplitudePrior, Measured, intensity_posteriors, likelihood_only
from .merged_intensities import Intensities, Mates, taken


def apart(
    measured: Measured,
    prior: AmplitudePrior,
    cell: gemmi.UnitCell,
    space_group: gemmi.SpaceGroup,
    seed: int,
) -> Intensities:
    """Friedel mates apart, under the bivariate Wilson prior of :mod:`friedel`.

    ``measured`` has I− at −h (``symmetry.asu_map``).  Pairs enter as the normal summaries of
    :func:`latent.likelihood_only`, which also gives ``merged`` of the two together.  Single mates
    and centric reflections keep the posterior under ``prior``.
    """
    alone = intensity_posteriors(measured, prior)
    expected = alone.posterior.intensity
    each = likelihood_only(measured, prior, expected, seed=seed)
    at = rows_of(each.hkl, np.asarray(measured.hkl))
    post = taken(alone.posterior, at)
    asu, isym = asu_map(each.hkl, space_group)
    sign = (isym % 2 == 0).astype(int)
    first, code = unique_hkl(asu)
    m, hkl = len(first), asu[first]
    where = np.full((m, 2), -1)
    where[code, sign] = np.arange(len(asu))
    paired = np.flatnonzero((where >= 0).all(axis=1))
    rows = where[paired]
    log_mean = np.asarray(prior.log_mean)[at]
    d = cell.calculate_d_array(hkl[paired])
    of_pairs = (each.intensity[rows], each.sigma[rows], log_mean[rows[:, 0]], d)
    pairs = friedel.Pairs(*map(jnp.asarray, of_pairs))

    def mates_of(x):
        return np.where(
            (where >= 0).reshape(m, 2, *[1] * (x.ndim - 1)), x[np.maximum(where, 0)], np.nan
        )

    of_mates = jax.tree.map(mates_of, post)
    whole = jax.tree.map(lambda x: np.nanmean(x, axis=1), of_mates)
    difference, difference_sd, correlation = (np.full(m, np.nan) for _ in range(3))
    numbers: dict[str, list[float]] = {}
    if len(paired):
        rho, ends = friedel.fit_correlation(pairs, seed)
        found = friedel.pair_posterior(pairs, rho)
        for name in ("intensity", "intensity_sd", "amplitude", "amplitude_sd"):
            getattr(of_mates, name)[paired] = getattr(found, name)
            getattr(whole, name)[paired] = getattr(found, f"mean_{name}")
        whole.log_evidence[paired] = found.log_evidence
        difference[paired], difference_sd[paired] = found.difference, found.difference_sd
        correlation[paired] = rho
        numbers["one_minus_mates_correlation"] = np.exp(ends).tolist()
    # both mates together; variances are those at the mean of the mates
    asu = asu_map(np.asarray(measured.hkl), space_group)[0]
    merged = likelihood_only(measured, prior, expected, asu, seed)
    keep = rows_of(merged.hkl, hkl)
    mates = Mates(
        intensity=mates_of(each.intensity)[keep],
        sigma=mates_of(each.sigma)[keep],
        n=np.nan_to_num(mates_of(each.n.astype(float)))[keep].astype(int),
        half_intensity=mates_of(each.half_intensity)[keep],
        half_sigma=mates_of(each.half_sigma)[keep],
        posterior=taken(of_mates, keep),
        difference=difference[keep],
        difference_sd=difference_sd[keep],
        correlation=correlation[keep],
    )
    mean = np.nanmean(mates_of(np.exp(log_mean)), axis=1)[keep]
    own = np.asarray(measured.hkl)
    return Intensities(merged, mean, taken(whole, keep), alone, own, numbers, mates)


def anomalous_table(
    mates: Mates, merged: Merged, cell: gemmi.UnitCell, edges: np.ndarray
) -> list[dict[str, Any]]:
    """CC of anomalous differences I₊ − I₋ between random halves: a row for each shell and for all.

    Weighted as in ``agreement.shell_table``, the expected signal being the mates' own,
    Var(I₊ − I₋) = 2S²(1 − ρ²) for two exponential intensities of correlation ρ².

    Returns:
        cc_anom, cc_anom_unweighted, n_anom (pairs in both halves).
    """
    d = resolution(merged.hkl, cell)
    shell, k = shell_index(d, edges), len(edges) - 1
    S = np.full(len(merged), np.nan)
    for i in range(k):
        S[shell == i] = mean_intensity(merged.intensity[shell == i], merged.sigma[shell == i])
    difference = mates.half_intensity[:, 0] - mates.half_intensity[:, 1]  # (m, halves)
    sigma = np.sqrt((mates.half_sigma**2).sum(axis=1).mean(axis=1))
    weight = signal_share(sigma, S * np.sqrt(2 * (1 - mates.correlation**2)))
    rows = []
    for chosen in [*(shell == i for i in range(k)), shell >= 0]:
        first, second = difference[chosen].T
        row = {
            "cc_anom": pearson(first, second, weight[chosen]),
            "cc_anom_unweighted": pearson(first, second),
            "n_anom": int((np.isfinite(first) & np.isfinite(second)).sum()),
        }
        rows.append(jsonable(row))
    return rows
