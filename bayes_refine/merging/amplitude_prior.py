"""Estimate the numbers of the priors of amplitudes: Σ(d), and scale and error of a reference.

Given the scales g, :func:`fit_prior` finds these numbers by maximum marginal likelihood Π_h Z_h.
Z_h depends only on the centre and the variance of the prior of reflection h, so that two
derivatives of each reflection give the whole Hessian.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ..physics import true_intensities
from ..physics.reference import wilson_mean
from ..util.kept_programs import kept
from ..util.large_arrays import room, slices, taken
from .latent import AmplitudePrior, Measured, likelihood_at_nodes
from .pieces import in_pieces, joined, rows_of, some_reflections
from .reference_scale import N_SCALE, ReferenceAmplitudes

N_KNOTS = 8
LOG_SIGMA_SD = 5.0  # prior sd of ln Σ at a knot about its first estimate
LOG_BETA_MEAN, LOG_BETA_SD = -1.5, 3.0  # prior of ln β/Σ(d) at a knot
PASSES, STILL = 20, 0.02  # most Newton steps; converged if each unknown moves less, in prior sd
FEW = 1500  # reflections, evenly spread, that the numbers are first found from
NEAR = 0.5  # nodes serve until a prior has moved by this many sd, or its ln V by as much
REACH = 2.0  # longest step in ln Σ or ln β up to which the nodes of the quadrature are good


def knot_weights(d: np.ndarray, n_knots: int = N_KNOTS) -> tuple[np.ndarray, np.ndarray]:
    """(m, K) weights that interpolate values at K knots linearly in 1/d², and the knots' d (Å)."""
    q2 = 1 / np.asarray(d, float) ** 2
    knots = np.linspace(q2.min(), q2.max() * (1 + 1e-9), n_knots)
    rows = [np.interp(q2, knots, row) for row in np.eye(n_knots)]
    return np.stack(rows, axis=1), knots**-0.5


def fit_prior(
    measured: Measured,
    d: np.ndarray,
    epsilon: np.ndarray,
    centric: np.ndarray,
    reference: ReferenceAmplitudes | None = None,
) -> AmplitudePrior:
    """The prior of the greatest marginal likelihood Π_h Z_h, given the scales.

    Wilson's prior has ln Σ at knots in 1/d².  Where a reference informs, α(h) scales the reference
    amplitudes (:mod:`reference_scale`), and β(d), the variance of F about them, has ln β at the
    same knots.  In the end the variance by the uncertainty of α is added to β.

    Args:
        d: (m,) Å. epsilon, centric: (m,).
    """
    code, g = np.asarray(measured.code), np.asarray(measured.scale)
    weights, knots = knot_weights(d)
    d_each, J = taken(d, code), room(len(code))
    for part in slices(len(code), J, code, measured.J):
        J[part] = np.asarray(measured.J[part]) / epsilon[code[part]]
    level = wilson_mean(d_each, J, knots) / wilson_mean(d_each, g, knots)
    del d_each, J
    level = np.log(np.maximum(level, 1e-30))
    kinds = np.log(np.asarray(epsilon, float)), np.asarray(centric)
    few = None
    if len(d) >= 2 * FEW:
        few = np.unique(np.linspace(0, len(d) - 1, FEW).astype(int))
    if reference is None or not np.asarray(reference.informed).any():
        parts = partial(_in_pieces, measured, (weights, level, *kinds))
        x = _climb(_wilson, np.zeros(len(level)), parts, REACH / LOG_SIGMA_SD, few)[0]
        return joined((p.rows, _prior_at(_wilson, x, *p.fixed)) for p in parts())
    reference = reference.starting_from(level, knots)
    parts = partial(
        _in_pieces,
        measured,
        (weights, level, *kinds, reference, reference.departure_sd(weights)),
    )
    start = np.zeros(N_SCALE + 2 * len(level))
    x, hessian = _climb(_double_wilson, start, parts, REACH / LOG_BETA_SD, few)
    covariance = np.linalg.inv(hessian)
    return joined((p.rows, _blurred(x, covariance, p.fixed)) for p in parts())


class _Part(NamedTuple):
    """A piece of the observations; ``counts`` (m,) is 0 for reflections that fill it up."""

    rows: slice
    measured: Measured
    counts: np.ndarray
    fixed: tuple


def _in_pieces(
    measured: Measured, fixed: tuple, which: np.ndarray | None = None
) -> Iterator[_Part]:
    """Pieces of all reflections, or of some, ascending."""
    weights, level, log_epsilon, centric, *informed = fixed
    if which is not None:
        measured, n = some_reflections(measured, which), len(which)
        weights, log_epsilon, centric = rows_of((weights, log_epsilon, centric), which, n)
        informed = [informed[0].some(which, n), informed[1]] if informed else []
    for rows, _, part in in_pieces(measured):
        places = len(part.hkl)
        of_reflections = rows_of((log_epsilon, centric), rows, places)
        here: tuple = (rows_of(weights, rows, places), level, *of_reflections)
        if informed:
            reference, departure_sd = informed
            here += (reference.some(rows, places), departure_sd)
        counts = (np.arange(len(here[0])) < rows.stop - rows.start).astype(float)
        yield _Part(rows, part, counts, here)


def _wilson(x, weights, level, log_epsilon, centric):
    """Wilson's prior at x = (ln Σ − level)/sd at K knots; with ln f (zeros) and ln V (m,)."""
    log_mean = log_epsilon + weights @ (level + LOG_SIGMA_SD * x)
    return AmplitudePrior(log_mean, centric), (jnp.zeros_like(log_mean), log_mean)


def _double_wilson(x, weights, level, log_epsilon, centric, reference, departure_sd):
    """The prior at x (α, ln β, departures of ln Σ, each N(0, 1)); with ln α and ln V (m,)."""
    k = weights.shape[1]
    numbers = reference.scale_numbers(x[:N_SCALE])
    log_beta = weights @ (level + LOG_BETA_MEAN + LOG_BETA_SD * x[N_SCALE : N_SCALE + k])
    departure = weights @ (departure_sd * x[N_SCALE + k :])
    return reference.double_wilson(numbers, log_beta, departure, log_epsilon, centric)


@kept
def _blurred(x, covariance, fixed) -> AmplitudePrior:
    """The prior at x, with the variance added that ``covariance`` of x gives to the scale."""
    prior, _ = _double_wilson(x, *fixed)
    slope = jax.jacfwd(lambda x: _double_wilson(x, *fixed)[1][0])(x)
    variance = jnp.einsum("mi,ij,mj->m", slope, covariance, slope)
    of_scale = jnp.maximum((2 - prior.centric) * prior.centre**2 * variance, 1e-300)

    def wider(log_size):
        return jnp.where(prior.centre > 0, jnp.logaddexp(log_size, jnp.log(of_scale)), log_size)

    return replace(prior, log_mean=wider(prior.log_mean), log_variance=wider(prior.log_variance))


# -- Newton's method ------------------------------------------------------------------------


def _climb(
    prior_of,
    x,
    parts: Callable[..., Iterator[_Part]],
    reach: float,
    first: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """x of the greatest Π_h Z_h·N(x; 0, 1), and the Hessian of −ln of that product.

    Args:
        first: reflections that the search begins with: most steps cost no more than these.
    """
    if first is not None:
        x = _climb(prior_of, x, partial(parts, which=first), reach)[0]
    placed: list = []  # of each part, the prior that its nodes are good for, and ln L there
    for _ in range(PASSES):
        at = []
        for k, part in enumerate(parts()):
            prior = _prior_at(prior_of, x, *part.fixed)
            if k == len(placed):
                placed.append((prior, *likelihood_at_nodes(part.measured, prior)))
            elif _moved(placed[k][0], prior) > NEAR:
                placed[k] = prior, *likelihood_at_nodes(part.measured, prior)
            _, nodes, log_likelihood = placed[k]
            at.append((log_likelihood, nodes, part.counts, *part.fixed))
        found = [map(np.asarray, _derivatives(prior_of, x, *here)) for here in at]
        log_z, slope, hessian = (np.sum(values, axis=0) for values in zip(*found, strict=True))
        value, slope, hessian = 0.5 * x @ x - log_z, x - slope, np.eye(len(x)) - hessian
        size, axes = np.linalg.eigh(hessian)
        size = np.maximum(np.abs(size), 1.0)
        step = -axes @ (axes.T @ slope / size)
        step *= min(1.0, reach / max(np.abs(step).max(), 1e-30))
        while np.abs(step).max() > STILL / 10 and _cost(prior_of, x + step, at) > value:
            step = step / 2
        x = x + step
        if np.abs(step).max() < STILL:
            break
    return x, (axes * size) @ axes.T


def _moved(before: AmplitudePrior, now: AmplitudePrior) -> float:
    """The most that a reflection's prior has moved: its centre in sd, or its ln V."""
    (f, log_V), (g, log_W) = (map(np.asarray, p.centre_and_variance) for p in (before, now))
    by_centre = np.abs(g - f) * np.exp(-0.5 * log_V)
    return float(max(by_centre.max(), np.abs(log_W - log_V).max()))


def _cost(prior_of, x, at) -> float:
    """−ln p of x, from likelihoods at the nodes."""
    return 0.5 * x @ x - sum(float(_log_evidence(prior_of, x, *here)) for here in at)


@partial(kept, static=("prior_of",))
def _prior_at(prior_of, x, *fixed) -> AmplitudePrior:
    return prior_of(x, *fixed)[0]


@partial(kept, static=("prior_of",))
def _log_evidence(prior_of, x, log_likelihood, nodes, counts, *fixed) -> Array:
    """Σ_h ln Z_h at x."""
    values = log_likelihood + prior_of(x, *fixed)[0].log_density(nodes.amplitude)
    return true_intensities.log_evidence(values, nodes) @ counts


@partial(kept, static=("prior_of",))
def _derivatives(prior_of, x, log_likelihood, nodes, counts, *fixed) -> tuple[Array, Array, Array]:
    """Σ_h ln Z_h at x, its gradient and its Hessian.

    ln Z_h depends on x through u_h = (ln f_h, ln V_h) alone, so that its Hessian is
    Σ_h u'ᵀ(∂²ln Z/∂u²)u' + (∂ln Z/∂u)·u'', where, ⟨⟩ being of the posterior of F,
    ∂ln Z/∂u = ⟨∂ln π/∂u⟩ and ∂²ln Z/∂u² = ⟨∂²ln π/∂u²⟩ + Cov(∂ln π/∂u).
    """
    prior, _ = prior_of(x, *fixed)
    F = nodes.amplitude
    values = log_likelihood + prior.log_density(F)
    weight = jax.nn.softmax(values + nodes.log_weight, axis=1)
    f, log_V = prior.centre_and_variance
    one, two = true_intensities.rice_slopes(F, f, log_V, prior.centric)
    first = (one * weight).sum(2)
    ff, fV, VV = (two * weight).sum(2)
    second = jnp.stack([jnp.stack([ff, fV]), jnp.stack([fV, VV])])
    second += jnp.einsum("amk,bmk,mk->abm", one, one, weight) - first[:, None] * first[None]
    first, second = first * counts, second * counts

    def place(x):
        return jnp.stack(prior_of(x, *fixed)[1])  # (2, m)

    J = jax.jacfwd(place)(x)
    hessian = jnp.einsum("ami,abm,bmj->ij", J, second, J)
    hessian += jax.hessian(lambda x: (first * place(x)).sum())(x)
    gradient = jnp.einsum("am,ami->i", first, J)
    return true_intensities.log_evidence(values, nodes) @ counts, gradient, hessian
