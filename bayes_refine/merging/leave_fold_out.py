"""Posteriors of true intensities from all observations but those of one fold of the images.

With ln L_h = Σ_i ln p(J_i | F) of all observations of reflection h, and S_hk the part of those of
fold k, ln L_h − S_hk is the likelihood without the fold.  Both are evaluated at nodes that all the
posteriors of a reflection share, so that the work does not grow with the number of folds.  Where
the shared nodes are too far apart for a posterior that is much narrower than another one of its
reflection, that posterior has nodes of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ..physics import true_intensities
from ..physics.true_intensities import Nodes, Posterior
from ..util.kept_programs import kept
from .latent import NEARLY_NORMAL, NODES, AmplitudePrior, Measured, intensity_posteriors
from .pieces import in_pieces, padded

SHARED_NODES = 2 * NODES
PriorOf = Callable[[np.ndarray], AmplitudePrior]


def moments(measured: Measured, prior_of: PriorOf) -> np.ndarray:
    """Mean and sd (2, m) of I from all observations.

    Args:
        prior_of: the prior of reflections (k, 3).
    """
    found = [np.zeros((2, 0))]
    for rows, _, part in in_pieces(measured):
        post = intensity_posteriors(part, prior_of(np.asarray(part.hkl))).posterior
        both = np.stack([post.intensity, post.intensity_sd])
        found.append(both[:, : rows.stop - rows.start])
    return np.concatenate(found, axis=1)


def leave_fold_out(
    measured: Measured, fold: np.ndarray, prior_of: PriorOf
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Moments of I without one fold, for the reflections that the fold has observed.

    Args:
        fold: (n,) of each observation. prior_of: as of :func:`moments`.

    Returns:
        Reflection (p,) and fold (p,) of each pair with observations, mean and sd (2, p) of I.
    """
    code = np.asarray(measured.code)
    order = np.lexsort((fold, code))
    measured, fold, code = taken(measured, order), fold[order], code[order]
    new = (np.diff(code, prepend=-1) != 0) | (np.diff(fold, prepend=-1) != 0)
    pair = np.cumsum(new) - 1
    of, which = code[new], fold[new]
    found, narrow = np.zeros((2, len(of))), np.zeros(len(of), bool)
    for rows, inside, part in in_pieces(measured):
        size = len(part.J)
        first, last = pair[inside.start], pair[inside.stop - 1] + 1
        here = padded(of[first:last] - rows.start, size)
        local = padded(pair[inside] - first, size)
        nu = jnp.asarray(min(float(part.nu), NEARLY_NORMAL))
        post, enough = _shared(part, prior_of(np.asarray(part.hkl)), nu, local, here)
        both = np.stack([post.intensity, post.intensity_sd])
        found[:, first:last] = both[:, : last - first]
        narrow[first:last] = ~np.asarray(enough)[: last - first]
    if narrow.any():
        alone = _each_alone(measured, pair, of, np.flatnonzero(narrow))
        found[:, narrow] = moments(alone, prior_of)
    return of, which, found


def _each_alone(
    measured: Measured, pair: np.ndarray, of: np.ndarray, chosen: np.ndarray
) -> Measured:
    """The chosen pairs as reflections of their own, with all observations of other folds."""
    code = np.asarray(measured.code)
    start = np.searchsorted(code, of[chosen])
    count = np.searchsorted(code, of[chosen], side="right") - start
    new = np.repeat(np.arange(len(chosen)), count)
    rows = np.arange(len(new)) + np.repeat(start - np.cumsum(count) + count, count)
    others = pair[rows] != chosen[new]
    apart = taken(measured, rows[others])
    return replace(apart, code=new[others], hkl=np.asarray(measured.hkl)[of[chosen]])


def taken(measured: Measured, rows: np.ndarray) -> Measured:
    """Some observations, of the same reflections."""
    names = ("J", "scale", "variance", "per_photon", "fraction", "weight", "code", "image")
    return replace(measured, **{name: np.asarray(getattr(measured, name))[rows] for name in names})


@kept
def _shared(
    d: Measured, prior: AmplitudePrior, nu: Array, pair: Array, of: Array
) -> tuple[Posterior, Array]:
    """Posteriors (p,) without a fold each, and whether the shared nodes are enough.

    Args:
        pair: (n,) of each observation, ascending. of: (p,) reflection of each pair, ascending.
    """
    m, p = len(d.hkl), len(of)

    def by_pair(x):
        return jax.ops.segment_sum(x, pair, p, indices_are_sorted=True)

    def by_reflection(x):
        return jax.ops.segment_sum(x, of, m, indices_are_sorted=True)

    def values(F):
        """ln π + ln L of all (m, K), and without each fold (p, K)."""
        variance = true_intensities.VarianceOfJ(d.variance, d.fraction, d.per_photon)
        own = true_intensities.log_observations(F[of], d.J, d.scale, variance, nu, pair, d.weight)
        total = prior.log_density(F) + by_reflection(own)
        return total, total[of] - own

    def upper(information, weighted, log_mean):
        information = jnp.maximum(information, 1e-30)
        estimate = weighted / information
        return true_intensities.upper_amplitude(log_mean, estimate, information**-0.5)

    own = (
        by_pair(d.weight * d.scale**2 / d.variance),
        by_pair(d.weight * d.scale * d.J / d.variance),
    )
    whole = tuple(map(by_reflection, own))
    information, weighted = (x[of] - y for x, y in zip(whole, own, strict=True))
    highest = upper(information, weighted, prior.log_mean[of])
    highest = jax.ops.segment_max(highest, of, m, indices_are_sorted=True)
    highest = jnp.maximum(
        jnp.maximum(highest, upper(whole[0], whole[1], prior.log_mean)), prior.reach
    )

    def inside(F):
        return [x > x.max(1, keepdims=True) - true_intensities.DROP for x in values(F)]

    def narrow(_, bracket):
        low, high = bracket
        step = (high - low) / NODES
        F = low[:, None] + (high - low)[:, None] * (np.arange(NODES) + 0.5) / NODES
        all_, each = inside(F)
        kept = all_ | (jax.ops.segment_max(each.astype(int), of, m, indices_are_sorted=True) > 0)
        first, last = jnp.argmax(kept, 1), NODES - 1 - jnp.argmax(kept[:, ::-1], 1)
        return (
            low + jnp.maximum(first - 0.5, 0) * step,
            low + jnp.minimum(last + 1.5, NODES) * step,
        )

    low, high = jax.lax.fori_loop(0, 5, narrow, (jnp.zeros_like(highest), highest))
    x, weight = np.polynomial.legendre.leggauss(SHARED_NODES)
    F = low[:, None] + (high - low)[:, None] * (x + 1) / 2
    nodes = Nodes(F[of], jnp.log(high - low)[of, None] + np.log(weight / 2))
    each = values(F)[1]
    used = (each > each.max(1, keepdims=True) - true_intensities.DROP).sum(1)
    return true_intensities.posterior(each, nodes), used >= NODES
