"""Friedel mates kept apart, with a prior on their similarity.

The structure factors of an acentric pair are jointly complex normal with Wilson's variance S and a
correlation ρ(d) close to one: mates differ by the part of the anomalous scatterers.  Then

    p(F₊, F₋) = Wilson(F₊; S) · Rice(F₋; ρ·F₊, S(1 − ρ²)),

symmetric in the two: given one mate, the other has the double-Wilson prior whose reference is the
first.  Two nested one-dimensional quadratures are enough, the outer one over the better known mate.
Centric reflections, which are their own mates, and pairs with one measured mate keep Wilson's
prior.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy.optimize import minimize

from ..physics import true_intensities
from ..util.kept_programs import kept

OUTER, INNER = 24, 20  # nodes over the better known mate, and over the other one given it
BLOCK = 256  # pairs in memory at a time, each with OUTER·INNER nodes
FIT_PAIRS = 4000  # largest number of pairs that ρ(d) is fitted to
DIFFERENCE_SD = 2.0  # of ln(1 − ρ²) about that of a typical protein, at low and high resolution
TYPICAL_DIFFERENCE = np.log(2e-3)  # ⟨|F₊ − F₋*|²⟩/⟨F²⟩ = 2(1 − ρ): some 4 % rms in amplitude


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Pairs:
    """p acentric pairs, each mate with a Gaussian summary of its observations.

    Attributes:
        intensity, sigma: (p, 2) likelihood-only Î, σ̂ of + and −.
        log_mean: (p,) ln ε·Σ(d). d: (p,) Å.
    """

    intensity: Array
    sigma: Array
    log_mean: Array
    d: Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PairPosterior:
    """Moments of both mates.

    Attributes:
        intensity, intensity_sd, amplitude, amplitude_sd: (p, 2) of + and −.
        mean_intensity, mean_intensity_sd, mean_amplitude, mean_amplitude_sd: (p,) of the mean of
            the two mates, with their posterior correlation.
        difference, difference_sd: (p,) of F₊ − F₋.
        log_evidence: (p,) ln Z.
    """

    intensity: Array
    intensity_sd: Array
    amplitude: Array
    amplitude_sd: Array
    mean_intensity: Array
    mean_intensity_sd: Array
    mean_amplitude: Array
    mean_amplitude_sd: Array
    difference: Array
    difference_sd: Array
    log_evidence: Array


def pair_posterior(pairs: Pairs, correlation: np.ndarray) -> PairPosterior:
    """Posterior of both mates of p pairs with mates' correlation ρ (p,) < 1."""
    p = len(pairs.d)
    spare = -p % BLOCK

    def in_blocks(x):
        x = np.asarray(x)
        return np.pad(x, [(0, spare), *[(0, 0)] * (x.ndim - 1)], mode="edge").reshape(
            -1, BLOCK, *x.shape[1:]
        )

    blocks = jax.tree.map(in_blocks, (pairs, np.broadcast_to(correlation, p)))
    found = _compiled_blocks(*blocks)
    return jax.tree.map(lambda x: np.asarray(x).reshape(-1, *x.shape[2:])[:p], found)


def fit_correlation(pairs: Pairs, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """ρ (p,) of the greatest marginal likelihood, and ln(1 − ρ) at low and high resolution.

    ln(1 − ρ) is linear in 1/d², since anomalous scattering falls off less than all other
    scattering.  Of many pairs a random choice is fitted; 1 − ρ has a log-normal prior.
    """
    q2 = np.asarray(pairs.d) ** -2.0
    ends = np.array([q2.min(), max(q2.max(), q2.min() * (1 + 1e-6))])
    along = (q2 - ends[0]) / (ends[1] - ends[0])
    chosen = np.random.default_rng(seed).permutation(len(q2))[:FIT_PAIRS]
    few = jax.tree.map(lambda x: np.asarray(x)[chosen], pairs)
    size = min(BLOCK, len(chosen))
    whole = len(chosen) // size * size  # the last few would need a shape of their own
    blocks = jax.tree.map(lambda x: x[:whole].reshape(-1, size, *x.shape[1:]), (few, along[chosen]))

    def cost(x):
        value, slope = _compiled_cost(x, *blocks)
        return float(value), np.asarray(slope)

    start = np.full(2, TYPICAL_DIFFERENCE)
    # Of 1 − ρ < 1e-6 data show no difference; mates never differ by 1 − ρ > 0.5.
    found = minimize(
        cost, start, jac=True, method="L-BFGS-B", bounds=[(np.log(1e-6), np.log(0.5))] * 2
    )
    return _correlation(found.x, along), found.x


def _correlation(x, along):
    return 1 - np.exp(x[0] + (x[1] - x[0]) * along)


def _cost(x, pairs, along):
    def one(block):
        few, where = block
        rho = 1 - jnp.exp(x[0] + (x[1] - x[0]) * where)
        return _one_block(few, rho).log_evidence.sum()

    ln_p = -0.5 * jnp.sum((x - TYPICAL_DIFFERENCE) ** 2) / DIFFERENCE_SD**2
    return -(jax.lax.map(one, (pairs, along)).sum() + ln_p)


_compiled_cost = kept(jax.value_and_grad(_cost))


def _one_block(pairs: Pairs, correlation: Array) -> PairPosterior:
    """Nested quadrature of a few pairs; b is the better known mate, o the other one."""
    p = len(pairs.log_mean)
    better = jnp.argmin(pairs.sigma, axis=1)[:, None]
    order = jnp.concatenate([better, 1 - better], axis=1)
    back = partial(jnp.take_along_axis, indices=order, axis=1)  # a swap is its own inverse
    (I_b, I_o), (s_b, s_o) = back(pairs.intensity).T, back(pairs.sigma).T

    def log_better(F):
        wilson = true_intensities.log_wilson(F, pairs.log_mean, jnp.zeros(p, bool))
        return wilson + true_intensities.log_gaussian(F, I_b, s_b)

    upper = true_intensities.upper_amplitude(pairs.log_mean, I_b, s_b)
    outer = true_intensities.place_nodes(log_better, upper, OUTER)
    F_b = outer.amplitude

    log_S, I_o, s_o, rho = (jnp.repeat(x, OUTER) for x in (pairs.log_mean, I_o, s_o, correlation))
    E_b = F_b.ravel() * jnp.exp(-0.5 * log_S)

    def log_other(F, rho):
        acentric = jnp.zeros(len(F), bool)
        rice = true_intensities.log_double_wilson(F, log_S, acentric, E_b, rho)
        return rice + true_intensities.log_gaussian(F, I_o, s_o)

    held = jax.lax.stop_gradient(rho)
    reach = F_b.ravel() + 7 * jnp.exp(0.5 * log_S) * jnp.sqrt(1 - held**2)
    reach = jnp.maximum(reach, jnp.sqrt(jnp.maximum(I_o + 9 * s_o, 0)))
    inner = true_intensities.place_nodes(lambda F: log_other(F, held), reach, INNER)
    values = log_other(inner.amplitude, rho)
    log_Z = true_intensities.log_evidence(values, inner).reshape(p, OUTER)
    weight = jax.nn.softmax(values + inner.log_weight, axis=1)
    one, two, four = ((weight * inner.amplitude**k).sum(1).reshape(p, OUTER) for k in (1, 2, 4))
    total = log_better(F_b) + log_Z
    weight = jax.nn.softmax(total + outer.log_weight, axis=1)

    def mean(x):
        return (weight * x).sum(1)

    def sd(square, first):
        return jnp.sqrt(jnp.maximum(square - first**2, 0))

    F = jnp.stack([mean(F_b), mean(one)], 1)
    I = jnp.stack([mean(F_b**2), mean(two)], 1)  # noqa: E741
    I2 = jnp.stack([mean(F_b**4), mean(four)], 1)
    cross_F, cross_I = mean(F_b * one), mean(F_b**2 * two)
    apart = F[:, 0] - F[:, 1]
    return PairPosterior(
        intensity=back(I),
        intensity_sd=back(sd(I2, I)),
        amplitude=back(F),
        amplitude_sd=back(sd(I, F)),
        mean_intensity=I.mean(1),
        mean_intensity_sd=sd((I2.sum(1) + 2 * cross_I) / 4, I.mean(1)),
        mean_amplitude=F.mean(1),
        mean_amplitude_sd=sd((I.sum(1) + 2 * cross_F) / 4, F.mean(1)),
        difference=jnp.where(better[:, 0] == 0, apart, -apart),
        difference_sd=sd(I.sum(1) - 2 * cross_F, apart),
        log_evidence=true_intensities.log_evidence(total, outer),
    )


_compiled_blocks = kept(lambda pairs, rho: jax.lax.map(lambda x: _one_block(*x), (pairs, rho)))
