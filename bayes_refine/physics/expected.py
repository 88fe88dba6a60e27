"""Expected mean and variance of the frozen statistics of a spot (JAX)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from .observations import Array, Observations
from .spot import Spot


def profile_statistics(
    obs: Observations, spot: Spot, count: int = 4, shape_variance: Array | float = 0.0
) -> Array:
    """E[T_k]/J = r_k0 + Σ_j r_kj η_j (``measuring.statistics``) of the first, (n, count, m).

    Displacing a template by δ adds δδᵀ to its second moment, to second order.  The response to
    the spread has the form η/(1 + cη), positive however wrong the pilot's width is: with c = 1,
    the overlap of two Gaussians, exact for the total on a flat background; the spread's own as
    measured, which bends: spots that scatter in width look narrower, on average, than their mean,

        E[η/(1 + cη)] ≈ η/(1 + cη) − c Var[η]/(1 + cη)³.

    Args:
        count: 1 the total, 3 with the centroid, 4 with the spread, 6 with the quadrupoles.
        shape_variance: Var[η] of the spread, from spot to spot.
    """
    d1, d2 = spot.shift_1 / obs.width, spot.shift_2 / obs.width
    scale = 1 / obs.width**2
    g11 = (spot.m11 - obs.pilot_moment[:, 0]) * scale + d1**2
    g22 = (spot.m22 - obs.pilot_moment[:, 1]) * scale + d2**2
    g12 = (spot.m12 - obs.pilot_moment[:, 2]) * scale + d1 * d2
    wider = (g11 + g22) / 2
    damp = 1 / (1 + wider)
    eta = [jnp.ones_like(d1), d1, d2, wider * damp, (g11 - g22) / 2 * damp, g12 * damp]
    mean = jnp.sum(obs.response[:, :count] * jnp.stack(eta, 1)[:, None], 2)
    if count > 3:
        own = 1 / (1 + obs.saturation * wider)
        seen = wider * own - obs.saturation * shape_variance * own**3
        own = obs.response[:, 3, 3] * (seen - wider * damp)
        mean += own[:, None] * (jnp.arange(count) == 3)[:, None]
    return mean


def counting_variance(obs: Observations, J: Array, count: int = 4) -> Array:
    """Var[T_k] = V_bg,k + J V_sig,k of the first ``count`` statistics, (n, count, m), J (n, m)."""
    background, signal = obs.variance_background, obs.variance_signal
    return background[:, :count] + J[:, None] * signal[:, :count]


def given_total(J_model: Array, unsure: Array, J: Array, variance: Array) -> tuple[Array, Array]:
    """Mean and variance of a spot's photons, given J_model and the J that was measured.

    N(J_model, unsure·J_model²) × N(J, variance) on photons ≥ 0: where J_model is sure, it
    stands, however bright the spot.

    Args:
        unsure: (n, m) relative variance of J_model; J: (n, m) photons; variance: (n, m) of J by
            counting, photons².
    """
    prior = unsure * J_model**2 + 1e-30
    weight = prior / (prior + variance)
    mean, sd = J_model + weight * (J - J_model), jnp.sqrt(weight * variance)
    z = jnp.maximum(mean / sd, -10.0)  # further down the difference below is noise
    hazard = jnp.exp(-0.5 * z**2 - 0.5 * jnp.log(2 * jnp.pi) - jax.scipy.special.log_ndtr(z))
    return sd * (z + hazard), sd**2 * jnp.maximum(1 - hazard * (hazard + z), 0.0)
