"""Likelihood-only and posterior intensities of unique reflections.

:func:`together` has Wilson's or the double-Wilson prior, :func:`near_reference` the conjugate
Gaussian one, ``mates.apart`` keeps Friedel mates apart.  ``fit`` and ``merge`` use the same ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import gemmi
import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import minimize

from ..geometry.miller import rows_of
from ..physics import true_intensities
from ..physics.true_intensities import Posterior
from .amplitude_prior import knot_weights
from .average import Merged
from .latent import AmplitudePrior, Latent, Measured, intensity_posteriors, likelihood_only

TAU_KNOTS, LOG_TAU_SD = 4, 2.0


@dataclass(frozen=True)
class Mates:
    """Friedel mates of m reflections, (m, 2) of + and −, NaN where there is no such mate.

    Attributes:
        intensity, sigma: likelihood only; n: observations.
        half_intensity, half_sigma: (m, 2, 2) of mate and half of the images.
        posterior: five arrays (m, 2).
        difference, difference_sd: (m,) posterior of F₊ − F₋, NaN where one is missing.
        correlation: (m,) ρ(d) of the mates' structure factors, NaN where one is missing.
    """

    intensity: np.ndarray
    sigma: np.ndarray
    n: np.ndarray
    half_intensity: np.ndarray
    half_sigma: np.ndarray
    posterior: Posterior
    difference: np.ndarray
    difference_sd: np.ndarray
    correlation: np.ndarray


@dataclass(frozen=True)
class Intensities:
    """Intensities of m unique reflections of the asymmetric unit.

    Attributes:
        merged: likelihood only, mates together; its halves at common scales.
        prior_mean: (m,) ε·Σ(d), in the same order: the expected I from resolution alone.
        posterior: five arrays (m,) in the same order; of the mean of mates where mates are apart.
        latent: for draws, in the order of ``latent_hkl`` (k, 3).  If mates are apart, each mate is
            a reflection, and draws of the mates of a pair are independent.
        numbers: fitted numbers of the prior, by name.
        mates: None where they are together.
    """

    merged: Merged
    prior_mean: np.ndarray
    posterior: Posterior
    latent: Latent
    latent_hkl: np.ndarray
    numbers: Mapping[str, list[float]]
    mates: Mates | None = None


Estimate = Callable[[Measured, AmplitudePrior, gemmi.UnitCell, gemmi.SpaceGroup, int], Intensities]


def together(
    measured: Measured,
    prior: AmplitudePrior,
    cell: gemmi.UnitCell,
    space_group: gemmi.SpaceGroup,
    seed: int,
) -> Intensities:
    """Each reflection under ``prior``, Wilson's or double-Wilson; ``seed``: of the halves."""
    latent = intensity_posteriors(measured, prior)
    merged = likelihood_only(measured, prior, latent.posterior.intensity, seed=seed)
    hkl = np.asarray(measured.hkl)
    at = rows_of(merged.hkl, hkl)
    mean = np.exp(np.asarray(prior.log_mean))[at]
    return Intensities(merged, mean, taken(latent.posterior, at), latent, hkl, {})


def near_reference(
    measured: Measured,
    prior: AmplitudePrior,
    cell: gemmi.UnitCell,
    space_group: gemmi.SpaceGroup,
    seed: int,
) -> Intensities:
    """The Gaussian prior N(I_ref, τ²), conjugate, in closed form.

    The Student-t likelihood enters as the normal summary of :func:`latent.likelihood_only`, with
    weights at the posterior under ``prior``.  I_ref is the mean of I under ``prior``, and τ(d) =
    t(d)·ε·Σ(d), ln t at knots in 1/d² having the greatest marginal likelihood.  Free reflections,
    and those without a reference, have Wilson's mean and variance for I_ref and τ².  I may be
    negative; F = √I is of the part I ≥ 0.
    """
    start = intensity_posteriors(measured, prior)
    merged = likelihood_only(measured, prior, start.posterior.intensity, seed=seed)
    hkl = np.asarray(measured.hkl)
    at = rows_of(merged.hkl, hkl)
    mean, centric = np.exp(prior.log_mean)[at], np.asarray(prior.centric)[at]
    informed, reference = prior.informed[at], prior.intensity[at]
    I, sigma = merged.intensity, merged.sigma  # noqa: E741
    weights = knot_weights(cell.calculate_d_array(hkl[at]), TAU_KNOTS)[0]

    def tau(x):
        return jnp.where(informed, jnp.exp(weights @ x), jnp.where(centric, 2**0.5, 1.0)) * mean

    def cost(x):
        log_z = true_intensities.gaussian_reference(I, sigma, reference, tau(x))[2]
        return 0.5 * (x @ x) / LOG_TAU_SD**2 - jnp.where(informed, log_z, 0).sum()

    slope = jax.jit(jax.value_and_grad(cost))
    found = minimize(
        lambda x: tuple(map(np.asarray, slope(x))), np.zeros(TAU_KNOTS), jac=True, method="L-BFGS-B"
    )
    post_I, post_sd, log_z = true_intensities.gaussian_reference(I, sigma, reference, tau(found.x))
    of_F = _square_root(post_I, post_sd)
    post = Posterior(post_I, post_sd, of_F.posterior.amplitude, of_F.posterior.amplitude_sd, log_z)
    numbers = {"tau_over_Sigma": np.exp(found.x).tolist()}
    return Intensities(merged, mean, _arrays(post), of_F, hkl[at], numbers)


def _square_root(mean, sd) -> Latent:
    """F = √I where I ~ N(mean, sd²) cut at zero, (m,)."""

    def log_density(F):
        return jnp.log(2 * F) + true_intensities.log_gaussian(F, mean, sd)

    nodes = true_intensities.place_nodes(log_density, jnp.sqrt(jnp.maximum(mean, 0) + 9 * sd))
    values = log_density(nodes.amplitude)
    return Latent(_arrays(true_intensities.posterior(values, nodes)), nodes, values)


def taken(post: Posterior, rows: np.ndarray) -> Posterior:
    """The posterior of some reflections."""
    return jax.tree.map(lambda x: np.array(x)[rows], post)


def _arrays(post: Posterior) -> Posterior:
    return jax.tree.map(np.asarray, post)
