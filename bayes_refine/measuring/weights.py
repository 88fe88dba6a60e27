"""Weights of the pixels in the frozen statistics (JAX)."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

Weights = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]


def score_weights(template, gradient, moments, variance):
    """Efficient weights: scores of a Gaussian likelihood with expected variance, decorrelated.

    With g_k = ∂_k P/v and Fisher matrix F = Σ ∂_k P ∂_l P/v = L·Lᵀ, the rows of L⁻¹g are
    exactly uncorrelated at the current state, the total first: row 0 is the profile-fitted
    J = Σ(P/v)(I − Bg)/Σ(P²/v), and no later statistic shares noise with J.

    Args:
        template: (n, K); gradient: (n, 5, K) of the template along η; moments: (n, 5, K),
        unused; variance: (n, K) expected variance, infinite on pixels not to be used.

    Returns:
        (n, 6, K) weights a_kp.
    """
    derivative = jnp.concatenate([template[:, None], gradient], axis=1)
    score = derivative / variance[:, None]
    fisher = jnp.einsum("nak,nbk->nab", derivative, score)
    scale = jnp.sqrt(jnp.maximum(jnp.diagonal(fisher, axis1=1, axis2=2), 1e-30))
    correlation = fisher / (scale[:, :, None] * scale[:, None])
    lower = jnp.linalg.cholesky(correlation + 1e-5 * jnp.eye(6, dtype=correlation.dtype))
    whitened = jax.lax.linalg.triangular_solve(
        lower, score / scale[:, :, None], left_side=True, lower=True
    )
    diagonal = jnp.diagonal(lower, axis1=1, axis2=2) * scale
    return whitened / diagonal[:, :, None]


def moment_weights(template, gradient, moments, variance):
    """Textbook weights: profile-fitted total, plain first and second moments over the signal.

    The second moments are taken about their expectation M2_model, so that with w = 1/v in the
    total the moments do not share noise with the total.  Same arguments and
    result as :func:`score_weights`.
    """
    used = jnp.isfinite(variance)
    weight = template / variance
    total = weight / jnp.maximum(jnp.sum(weight * template, axis=1, keepdims=True), 1e-30)
    plain = jnp.where(used[:, None], moments, 0.0)
    on_spot = jnp.sum(template * used, axis=1)[:, None]
    expected = jnp.sum(plain * template[:, None], axis=2) / jnp.maximum(on_spot, 1e-30)
    centred = jnp.where(used[:, None], plain - expected[:, :, None], 0.0)
    return jnp.concatenate([total[:, None], centred], axis=1)
