"""What photons and geometry do not explain: the errors of a model of spots itself (JAX).

Beyond counting, J_model is wrong by a fraction that changes with resolution and by the speckle of
finitely many mosaic blocks; spots are displaced by part of a pixel, and R1² is wrong by a
fraction.  Without errors, :data:`PERFECT`, the plain model is left.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax.numpy as jnp

from .observations import Array, SpotStatistics
from .spot import Spot

SMALLEST = 1e-30  # fraction²; keeps 0/0 out where there is no error
MIDDLE = 0.25  # Å⁻¹, the 1/d at which an error that changes with resolution has its stated value


class Errors(NamedTuple):
    """Errors of a model of spots, each a number or an array (n, m).

    Attributes:
        fraction: sd of J/J_model.
        speckle_variance: 1/(mosaic blocks); below 0 it lowers what the fraction causes.
        place_1, place_2: variance of a spot's centroid along e1 and e2, Å⁻².
        shape: variance of R1² over its square.
        nu, nu_moments: degrees of freedom of the residuals of totals and of moments; ``math.inf``
            for normal residuals.
    """

    fraction: Array | float
    speckle_variance: Array | float
    place_1: Array | float
    place_2: Array | float
    shape: Array | float
    nu: Array | float
    nu_moments: Array | float


PERFECT = Errors(0.0, 0.0, 0.0, 0.0, 0.0, math.inf, math.inf)


def at_resolution(error: Array, fall: Array, norm_q: Array) -> Array:
    """error·exp(−fall·(1/d − 0.25 Å⁻¹)), ``fall`` in Å and ``norm_q`` = 1/d in Å⁻¹."""
    return error * jnp.exp(-fall * (norm_q - MIDDLE))


def blurred(spot: Spot, errors: Errors) -> Spot:
    """The mean spot of many displaced spots: errors of place add to the second moment."""
    return spot._replace(m11=spot.m11 + errors.place_1, m22=spot.m22 + errors.place_2)


def variance_of_J_model(errors: Errors, block_variance: Array) -> Array:
    """Relative variance of J_model, (n, m).

    With a = fraction² and b = block_variance·speckle_variance it is a + b; for b < 0 it is
    a²/(a − b), which stays positive and continues a + b with the same slope.

    Args:
        block_variance: (n, m), ``Partiality.block_variance``.
    """
    a, b = errors.fraction**2, block_variance * errors.speckle_variance
    return a / (1 - jnp.minimum(b, 0.0) / jnp.maximum(a, SMALLEST)) + jnp.maximum(b, 0.0)


def variance_of_response(obs: SpotStatistics, errors: Errors, count: int) -> Array:
    """Var[T_k]/J² = Σ_j r_kj² Var[η_j] of the first ``count`` statistics by errors of place and
    shape, (n, count, m).

    T_k responds by r_kj to η_j (``expected.profile_statistics``).
    """
    flat = jnp.ones_like(obs.width)
    places = [flat * place / obs.width**2 for place in (errors.place_1, errors.place_2)]
    variances = jnp.stack([*places, *[flat * errors.shape] * 3], 1)[:, : count - 1]
    return jnp.sum(obs.response[:, :count, 1:count] ** 2 * variances[:, None], 2)


def tail_factor(z2: Array, nu: Array | float) -> Array | float:
    """(ν + z²)/(ν + 1), the variance of a Student-t residual z over its scale², given z.

    1 for normal residuals.  One over :func:`~bayes_refine.util.student_t.normal_weight`.
    """
    return 1.0 if isinstance(nu, float) else (nu + z2) / (nu + 1)
