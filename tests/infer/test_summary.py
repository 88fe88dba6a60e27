"""Images that are not looked at again, as a parabola in what all images share."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from scipy.optimize import minimize

from bayes_refine.infer import Batches, map_fit, marginal_fit

SIZE, M = 8, 7  # images of a batch, and observations of each


class Data(NamedTuple):
    """Images first."""

    y: np.ndarray


def levels(data):
    """Each image has a level of its own about a common one; spread and noise are unknown."""
    level = numpyro.sample("level", dist.Normal(1.0, 2.0))
    log_tau = numpyro.sample("log_tau", dist.Normal(0.0, 0.5))
    log_noise = numpyro.sample("log_noise", dist.Normal(0.0, 2.0))
    with numpyro.plate("image", len(data.y), dim=-2):
        c = numpyro.sample("c", dist.Normal(level, jnp.exp(log_tau)))
        with numpyro.plate("reflection", M, dim=-1):
            numpyro.sample("y", dist.Normal(c, jnp.exp(log_noise)), obs=data.y)


def minus_log_marginal(phi, y):
    """Of (level, ln τ, ln σ), but for their priors: y_i ~ N(level, τ²·11ᵀ + σ²)."""
    level, log_tau, log_noise = phi
    covariance = jnp.exp(2 * log_tau) * jnp.ones((M, M)) + jnp.exp(2 * log_noise) * jnp.eye(M)
    off = y - level
    square = jnp.sum(off * jnp.linalg.solve(covariance, off.T).T)
    return 0.5 * square + 0.5 * len(y) * jnp.linalg.slogdet(covariance)[1]


@jax.jit
def with_priors(phi, y):
    level, log_tau, log_noise = phi
    prior = (level - 1) ** 2 / 8 + log_tau**2 / 0.5 + log_noise**2 / 8
    return prior + minus_log_marginal(phi, y)


def fitted(y, earlier=None):
    parts = [Data(y[k : k + SIZE]) for k in range(0, len(y), SIZE)]
    batches = Batches(parts, SIZE, len(y), earlier=earlier)
    return marginal_fit(levels, batches, fit=map_fit(levels, batches))


def simulated(n):
    rng = np.random.default_rng(0)
    return 1.5 + rng.standard_normal((n, 1)) + 0.5 * rng.standard_normal((n, M))


def test_the_summary_of_a_batch_has_its_slope_and_curvature():
    y = simulated(5 * SIZE)
    found = fitted(y)
    summary = found.by_batch
    for b in range(5):
        of_batch = y[b * SIZE : (b + 1) * SIZE]
        slope = jax.jit(jax.grad(minus_log_marginal))(found.shared, of_batch)
        np.testing.assert_allclose(summary.slope[b], slope, atol=0.02 * np.abs(slope).max())
    total = summary.total(found.shared)
    exact = jax.jit(jax.hessian(minus_log_marginal))(found.shared, y)
    sd = np.sqrt(np.diag(found.shared_covariance))
    np.testing.assert_allclose(
        total.curvature * np.outer(sd, sd), exact * np.outer(sd, sd), atol=0.05
    )


def test_images_fitted_after_others_end_where_all_together_do():
    y = simulated(10 * SIZE)
    first = fitted(y[: 8 * SIZE])
    then = fitted(y[8 * SIZE :], first.by_batch.total(first.shared))
    slope = jax.jit(jax.grad(with_priors))
    exact = minimize(with_priors, first.shared, args=y, jac=slope)
    covariance = np.linalg.inv(jax.jit(jax.hessian(with_priors))(exact.x, y))
    sd = np.sqrt(np.diag(covariance))
    np.testing.assert_allclose((then.shared - exact.x) / sd, 0, atol=0.1)
    np.testing.assert_allclose(np.sqrt(np.diag(then.shared_covariance)), sd, rtol=0.06)
    assert np.abs((fitted(y[8 * SIZE :]).shared - exact.x) / sd).max() > 0.5  # they alone do not
