"""What priors of amplitudes need to know: Σ(d), and how well a reference is to be believed.

Where the scales are known, :func:`fit_prior` finds both by maximum marginal likelihood: the
likelihood is evaluated once at the nodes, and only π(F) moves.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import minimize

from ..geometry.symmetry import epsilon_centric
from ..physics import true_intensities
from ..physics.reference import Reference, free_set, wilson_mean
from .latent import AmplitudePrior, Measured, likelihood_at_nodes

N_KNOTS = 8
PASSES = 3  # of renewing nodes and fitting the prior
LOG_SIGMA_SD = 5.0  # of ln Σ at a knot about its first estimate
CORRELATION_BETA = (4.0, 1.5)  # Beta prior of r0
CORRELATION_B_SD = 10.0  # half-normal prior of D, Å²


def knot_weights(d: np.ndarray, n_knots: int = N_KNOTS) -> tuple[np.ndarray, np.ndarray]:
    """(m, K) weights, linear in 1/d², of values at K knots from end to end, and the knots' d."""
    q2 = 1 / np.asarray(d, float) ** 2
    knots = np.linspace(q2.min(), q2.max() * (1 + 1e-9), n_knots)
    rows = [np.interp(q2, knots, row) for row in np.eye(n_knots)]
    return np.stack(rows, axis=1), knots**-0.5


def normalised_reference(
    hkl: np.ndarray, d: np.ndarray, reference: Reference | None, fraction: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """(m,) E = F_ref/√(ε·Σ_ref(d)), and where it informs; 0 in the free set and where unknown.

    The free set (``reference.free_set`` of ``fraction`` and ``seed``) has no part in Σ_ref.
    """
    if reference is None:
        return np.zeros(len(hkl)), np.zeros(len(hkl), bool)
    group = reference.space_group
    known = ~free_set(reference.hkl, fraction, seed, group)
    per_epsilon = reference.intensity / epsilon_centric(reference.hkl, group)[0]
    mean = wilson_mean(reference.d[known], per_epsilon[known], d) * epsilon_centric(hkl, group)[0]
    intensity = reference.lookup(hkl)
    informed = np.isfinite(intensity) & ~free_set(hkl, fraction, seed, group)
    return np.sqrt(np.where(informed, np.maximum(intensity, 0), 0) / mean), informed


def fit_prior(
    measured: Measured,
    d: np.ndarray,
    epsilon: np.ndarray,
    centric: np.ndarray,
    E_reference: np.ndarray,
    informed: np.ndarray,
) -> AmplitudePrior:
    """The prior of the greatest marginal likelihood Π_h Z_h, given the scales.

    ln Σ at knots in 1/d² and, where a reference informs, r(d) = r0·exp(−D/4d²) with r0 ~ Beta
    and D ~ half-normal, as in the model ``latent_reference``.

    Args:
        d: (m,) Å. epsilon, centric: (m,). E_reference: (m,). informed: (m,) bool, where the
            reference may be used.
    """
    code, g = np.asarray(measured.code), np.asarray(measured.scale)
    weights, knots = knot_weights(d)
    J = np.asarray(measured.intensity) / epsilon[code]
    level = wilson_mean(d[code], J, knots) / wilson_mean(d[code], g, knots)
    start = np.r_[np.log(np.maximum(level, 1e-30)), 1.0, 0.0]
    fixed = (weights, np.log(epsilon), 0.25 / d**2, centric, E_reference, informed * 1.0)
    numbers = start
    for _ in range(PASSES):
        prior = _prior_of(jnp.asarray(numbers), *fixed)
        nodes, log_likelihood = likelihood_at_nodes(measured, prior)

        def cost(x, *at):
            value, slope = _compiled_cost(x, start, *at, *fixed)
            return float(value), np.asarray(slope)

        numbers = minimize(cost, numbers, (log_likelihood, nodes), jac=True, method="L-BFGS-B").x
    return _prior_of(jnp.asarray(numbers), *fixed)


def _prior_of(x, weights, log_epsilon, quarter_q2, centric, E_reference, informed):
    """The prior at x: ln Σ at K knots, logit r0, ln D."""
    n = weights.shape[1]
    r = jax.nn.sigmoid(x[n]) * jnp.exp(-jnp.exp(x[n + 1]) * quarter_q2) * informed
    return AmplitudePrior(
        log_epsilon + weights @ x[:n], jnp.asarray(centric), jnp.asarray(E_reference), r
    )


def _cost(x, start, log_likelihood, nodes, *fixed):
    """−ln p of the prior's numbers, in the coordinates of :func:`_prior_of`."""
    prior = _prior_of(x, *fixed)
    evidence = true_intensities.log_evidence(
        log_likelihood + prior.log_density(nodes.amplitude), nodes
    )
    n, (a, b) = len(x) - 2, CORRELATION_BETA
    ln_p = a * jax.nn.log_sigmoid(x[n]) + b * jax.nn.log_sigmoid(-x[n])
    ln_p += x[n + 1] - 0.5 * (jnp.exp(x[n + 1]) / CORRELATION_B_SD) ** 2
    ln_p -= 0.5 * jnp.sum((x[:n] - start[:n]) ** 2) / LOG_SIGMA_SD**2
    return -(evidence.sum() + ln_p)


_compiled_cost = jax.jit(jax.value_and_grad(_cost))
