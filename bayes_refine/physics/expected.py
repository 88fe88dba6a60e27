"""Expected mean and variance of the frozen statistics of a spot (JAX)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from .learned_errors import Errors, tail_factor, variance_of_J_model, variance_of_response
from .observations import Array, SpotStatistics
from .spot import Spot


class ExpectedStatistics(NamedTuple):
    """Expected mean and variance of the first ``count`` statistics of each spot.

    Attributes:
        mean, variance: (n, count, m) of T_k, photons and photons².
        relative_variance: (n, m) variance of the total beyond counting, over J_model².
    """

    mean: Array
    variance: Array
    relative_variance: Array


def expected_statistics(
    obs: SpotStatistics,
    spot: Spot,
    J_model: Array,
    errors: Errors,
    block_variance: Array,
    count: int = 4,
) -> ExpectedStatistics:
    """Mean and variance of the frozen statistics of spots with J_model photons.

    E[T_0] = J_model·r_0 with r_0 the total of one photon (:func:`profile_statistics`), and
    Var[T_0] = counting + (relative variance of J_model)·J_model².  The moments are those of the
    photons that are there: where J_model is uncertain, and more so where the total is an outlier,
    the expected photons move from J_model towards the measured total (:func:`given_total`).

    Args:
        spot: as ``learned_errors.blurred`` returns it. J_model: (n, m) photons.
        block_variance: (n, m) relative variance of p by one block (``Partiality.block_variance``).
        count: 1 for the total, 3 with the centroid, 4 with the spread, 6 with the quadrupoles.
    """
    profile = profile_statistics(obs, spot, count, errors.shape)
    response = variance_of_response(obs, errors, count)
    off = variance_of_J_model(errors, block_variance)
    unsure = off + response[:, 0] + obs.reference_error**2
    counting = counting_variance(obs, J_model, count)
    mean, variance = J_model * profile[:, 0], counting[:, 0] + unsure * J_model**2

    seen = jnp.where(profile[:, 0] > 0, profile[:, 0], 1.0)  # 0 where a spot has no pixels
    total = obs.statistics[:, 0]
    J, J_variance = given_total(
        J_model,
        (unsure - response[:, 0]) * tail_factor((total - mean) ** 2 / variance, errors.nu),
        total / seen,
        (counting[:, 0] + response[:, 0] * J_model**2) / seen**2,
    )
    J, J_variance, moments = J[:, None], J_variance[:, None], slice(1, count)
    beyond = response[:, moments] * J**2
    beyond += (response[:, moments] + profile[:, moments] ** 2) * J_variance
    of_moments = counting_variance(obs, J[:, 0], count)[:, moments] + beyond
    return ExpectedStatistics(
        jnp.concatenate([mean[:, None], J * profile[:, moments]], 1),
        jnp.concatenate([variance[:, None], of_moments], 1),
        off + response[:, 0],
    )


def profile_statistics(
    obs: SpotStatistics, spot: Spot, count: int = 4, shape_variance: Array | float = 0.0
) -> Array:
    """E[T_k]/J = r_k0 + Σ_j r_kj η_j (``measuring.statistics``) of the first statistics,
    (n, count, m).

    Displacing a template by δ adds δδᵀ to its second moment, to second order.  The response to
    the spread has the form η/(1 + cη), which stays positive however wrong the template's width is.
    The total has c = 1, the overlap of two Gaussians, exact on a flat background; the spread's own
    c is measured.  This response bends, so that spots that scatter in width look narrower, on
    average, than a spot of their mean width:

        E[η/(1 + cη)] ≈ η/(1 + cη) − c Var[η]/(1 + cη)³.

    Args:
        count: 1 for the total, 3 with the centroid, 4 with the spread, 6 with the quadrupoles.
        shape_variance: Var[η] of the spread, from spot to spot.
    """
    d1, d2 = spot.shift_1 / obs.width, spot.shift_2 / obs.width
    scale = 1 / obs.width**2
    g11 = (spot.m11 - obs.template_moment[:, 0]) * scale + d1**2
    g22 = (spot.m22 - obs.template_moment[:, 1]) * scale + d2**2
    g12 = (spot.m12 - obs.template_moment[:, 2]) * scale + d1 * d2
    wider = (g11 + g22) / 2
    damp = 1 / (1 + wider)
    coefficients = [jnp.ones_like(d1), d1, d2, wider * damp, (g11 - g22) / 2 * damp, g12 * damp]
    mean = jnp.sum(obs.response[:, :count] * jnp.stack(coefficients, 1)[:, None], 2)
    if count > 3:
        own = 1 / (1 + obs.saturation * wider)
        seen = wider * own - obs.saturation * shape_variance * own**3
        own = obs.response[:, 3, 3] * (seen - wider * damp)
        mean += own[:, None] * (jnp.arange(count) == 3)[:, None]
    return mean


def counting_variance(obs: SpotStatistics, J: Array, count: int = 4) -> Array:
    """Var[T_k] = V_bg,k + J V_sig,k of the first ``count`` statistics, (n, count, m), J (n, m)."""
    background, signal = obs.variance_background, obs.variance_signal
    return background[:, :count] + J[:, None] * signal[:, :count]


def given_total(J_model: Array, unsure: Array, J: Array, variance: Array) -> tuple[Array, Array]:
    """Mean and variance of a spot's photons, given J_model and the measured J.

    N(J_model, unsure·J_model²) × N(J, variance) on photons ≥ 0.  Where J_model is certain the mean
    is J_model, however bright the spot.

    Args:
        unsure: (n, m) relative variance of J_model; J: (n, m) photons; variance: (n, m) of J by
            counting, photons².
    """
    prior = unsure * J_model**2 + 1e-30
    weight = prior / (prior + variance)
    mean, sd = J_model + weight * (J - J_model), jnp.sqrt(weight * variance)
    z = jnp.maximum(mean / sd, -10.0)  # below, the last line's difference is rounding
    hazard = jnp.exp(-0.5 * z**2 - 0.5 * jnp.log(2 * jnp.pi) - jax.scipy.special.log_ndtr(z))
    return sd * (z + hazard), sd**2 * jnp.maximum(1 - hazard * (hazard + z), 0.0)
