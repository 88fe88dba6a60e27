"""Scaling integrated stills: the most probable scales, with true intensities integrated out.

Unmerged → ``observations.prepare`` → :func:`fit_scales` → :class:`Scaled`.  No reference is needed
(Wilson's prior); a reference never informs the free set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from .. import infer
from ..geometry.miller import rows_of
from ..infer.coupled import STAGES, Climb, at_marginal_mode, coupled_fit
from ..infer.laplace import draws_in_blocks
from ..physics import true_intensities
from ..physics.true_intensities import Nodes, Posterior
from ..util.kept_programs import kept
from ..util.large_arrays import release, room, slices
from ..util.progress import SILENT, Listener
from .amplitude_prior import fit_prior
from .average import Merged, split_images
from .latent import AmplitudePrior, Measured, intensity_posteriors, likelihood_only
from .observations import (
    FIT_DROP,
    FIT_NODES,
    IntegratedObservations,
    ScalingPriors,
    of_images,
)
from .pieces import Part, Parts, joined

N_DRAWS, N_SCALE_DRAWS = 200, 25  # draws for sd of images' unknowns; of ln g, to 1/7 of the sd
IMAGES = 4096  # whose draws are in memory at a time
FIRST_IMAGES = 1000  # whose mode a run of more than twice as many starts from
CONTINUED = (Climb(50, 1.0, alone=4),)
# Starting with large errors keeps every residual near the convex middle of its Student-t.
BROAD = {"log_model_error": np.log(0.8), "log_sigma_factor": np.log(3.0)}


@dataclass(frozen=True)
class Scaled:
    """Scales and intensities of a run.

    Attributes:
        fit: mode and curvature of every site; ``fit.status`` says which images settled.
        log_G, B, log_width: (n_images,) with their Laplace sd; ln G and B about their means.
        shared: value and Laplace sd of each shared unknown by name, on the natural scale.
        partiality: (n,) p of each observation, in the order of ``observations``.
        measured: the observations with g; the fractional error contains the sd of ln g.
        prior: of the amplitudes, as fitted; with a reference, fitted again at these scales.
        observations: the observations that were fitted.
    """

    fit: infer.Fit
    log_G: np.ndarray
    log_G_sd: np.ndarray
    B: np.ndarray
    B_sd: np.ndarray
    log_width: np.ndarray
    log_width_sd: np.ndarray
    shared: dict[str, tuple[np.ndarray, np.ndarray]]
    partiality: np.ndarray
    measured: Measured
    prior: AmplitudePrior
    observations: IntegratedObservations

    @cached_property
    def posterior(self) -> Posterior:
        """Of I and F under ``prior``, (m,) arrays."""
        return intensity_posteriors(self.measured, self.prior).posterior

    @cached_property
    def merged(self) -> Merged:
        """From the likelihood only."""
        return likelihood_only(self.measured, self.prior, self.posterior.intensity)


def fit_scales(
    obs: IntegratedObservations,
    model: infer.Model,
    priors: ScalingPriors | None = None,
    init: dict[str, np.ndarray] | None = None,
    seed: int = 0,
    progress: Listener = SILENT,
) -> Scaled:
    """Scales, widths, errors and Σ(d) at their mode, and the intensities there.

    What the run shares is at the mode of its marginal density, the images integrated out; each
    image is at its own mode given that.

    Args:
        model: NumPyro program of ``(observations, priors)``: ``latent`` or ``latent_reference``.
        init: by site; by default images start from their mean intensity.
        seed: of the draws that the sd of each ln g is taken over.
        progress: updated at every evaluation of the gradient.

    Raises:
        ValueError: JAX is in single precision.
    """
    priors = priors or ScalingPriors()
    start = _start(obs, model, priors, init, seed, progress)
    fit, there = _fitted(obs, model, priors, start.values, start.stages, progress)
    parts = _several(obs)
    fit = at_marginal_mode(fit, model, there, priors, parts, seed, progress, start.shift)
    values = fit.values()
    sites = sites_at(model, obs, priors, values)
    draws = pinned_draws(fit, seed, N_DRAWS)
    measured = _measured(obs, model, priors, values, draws, sites["scale"])
    if np.asarray(obs.reference.informed).any() and "centre" in sites:
        d, epsilon = 1 / np.asarray(obs.norm_q_unique), np.exp(obs.log_epsilon)
        prior = fit_prior(measured, d, epsilon, np.asarray(obs.centric), obs.reference)
    else:
        prior = AmplitudePrior(jnp.asarray(sites["log_mean"]), obs.centric)
    return Scaled(
        fit=fit,
        log_G=sites["log_G_pinned"],
        log_G_sd=_sd(draws["log_G"]),
        B=sites["B_pinned"],
        B_sd=_sd(draws["B"]),
        log_width=values["log_width"],
        log_width_sd=fit.sd("log_width"),
        shared={s.name: (values[s.name], fit.sd(s.name)) for s in fit.sites if not s.per_image},
        partiality=sites["partiality"],
        measured=measured,
        prior=prior,
        observations=obs,
    )


def joint_mode(
    obs: IntegratedObservations,
    model: infer.Model,
    priors: ScalingPriors,
    init: dict[str, np.ndarray] | None = None,
    seed: int = 0,
    progress: Listener = SILENT,
) -> tuple[infer.Fit, IntegratedObservations]:
    """The joint mode of all unknowns, and the observations with their nodes there.

    A large run starts from some of its images.  Arguments as :func:`fit_scales`.
    """
    start = _start(obs, model, priors, init, seed, progress)
    return _fitted(obs, model, priors, start.values, start.stages, progress)


class _Start(NamedTuple):
    """Where a fit starts, by site; its stages; and how far it may be from the joint mode of the
    shared unknowns to their marginal mode, (s,), 0 if not known."""

    values: dict[str, Any]
    stages: Sequence[Climb]
    shift: np.ndarray | float


def _start(obs, model, priors, init, seed, progress) -> _Start:
    values: dict[str, Any] = (
        {"log_G": obs.log_G0, "log_Sigma": obs.log_Sigma0} | BROAD | (init or {})
    )
    if obs.n_images <= 2 * FIRST_IMAGES:
        return _Start(values, STAGES, 0.0)
    progress.say(f"scales of {FIRST_IMAGES} images first")
    return _from_some(obs, model, priors, values, seed, progress)


def _fitted(obs, model, priors, start, stages, progress):
    return coupled_fit(
        model,
        obs,
        priors,
        start,
        lambda obs, at: renewed(model, obs, priors, at),
        stages,
        progress,
        _several(obs),
    )


def _several(obs: IntegratedObservations):
    """A function of observations that makes several parts of them; None where they are few."""
    return (lambda obs: (part.obs for part in Parts(obs))) if len(Parts(obs)) > 1 else None


def _from_some(obs, model, priors, start, seed, progress) -> _Start:
    """A start for all images from the modes of ``FIRST_IMAGES`` random ones.

    What the run shares is then nearly known, and so are the intensities, so that the number of
    evaluations of the whole run does not grow with the run.  The way from the joint to the marginal
    mode, which the freedom of each image makes, is nearly the same for any number of images; in
    posterior sd of the whole run it is long.
    """
    some = np.sort(np.random.default_rng(seed).permutation(obs.n_images)[:FIRST_IMAGES])
    few = of_images(obs, some)
    found, there = _fitted(few, model, priors, start | {"log_G": few.log_G0}, STAGES, progress)
    marginal = at_marginal_mode(found, model, there, priors, _several(few), seed, progress)
    values, all_values = found.values(), dict(start)
    for site in found.sites:
        mine = np.asarray(values[site.name])
        if not site.per_image:
            all_values[site.name] = mine
            continue
        before, whole = (few.log_G0, obs.log_G0) if site.name == "log_G" else (0.0, 0.0)
        mean = (mine - np.asarray(before)).mean(axis=0)
        whole = np.zeros((obs.n_images, *site.shape)) + np.asarray(whole) + mean
        whole[some] = mine
        all_values[site.name] = whole
    return _Start(all_values, CONTINUED, marginal.shared - found.shared)


def renewed(
    model: infer.Model, obs: IntegratedObservations, priors: ScalingPriors, values
) -> IntegratedObservations:
    """The observations with the nodes of the quadrature placed anew, for ``values`` by site."""
    renew = compiled_renewal(model, FIT_NODES, FIT_DROP)
    nodes, follows = joined(
        (part.reflections, renew(part.obs, priors, values)) for part in Parts(obs)
    )
    return replace(obs, nodes=nodes, follows=follows)


@lru_cache(maxsize=8)
def compiled_renewal(model: infer.Model, n_nodes: int, drop: float):
    """(obs, priors, values by site) → fresh nodes and ``follows``, compiled once for a model."""

    def renew(obs, priors, values):
        def log_integrand(E):
            here = replace(obs, nodes=Nodes(E, jnp.zeros_like(E)), follows=follows)
            return _deterministic(model, here, priors, values)["log_integrand"]

        S = _deterministic(model, obs, priors, values)
        log_mean, g = S["log_mean"], S["scale"]
        information = jax.ops.segment_sum(
            obs.weight * (g / obs.sigma) ** 2, obs.code, len(obs.hkl), indices_are_sorted=True
        )
        total = jax.ops.segment_sum(obs.weight * g * obs.J / obs.sigma**2, obs.code, len(obs.hkl))
        safe = jnp.maximum(information, 1e-30)
        upper = true_intensities.upper_amplitude(log_mean, total / safe, safe**-0.5)
        prior = AmplitudePrior(log_mean, obs.centric, S.get("centre"), S.get("log_variance"))
        if "centre" in S:
            upper = jnp.maximum(upper, prior.reach)
        centre, log_V = prior.centre_and_variance
        of_prior = jnp.exp(log_V) * (jnp.exp(log_V) + 2 * centre**2)  # variance of I
        follows = 1 / (1 + of_prior * information)
        upper = upper * jnp.exp(-0.5 * follows * log_mean)
        nodes = true_intensities.place_nodes(log_integrand, upper, n_nodes, drop)
        return nodes, follows

    return kept(renew)


def _deterministic(
    model: infer.Model, obs: IntegratedObservations, priors, values
) -> dict[str, Array]:
    trace = infer.density.traced(model, values, (obs, priors))
    return {k: site["value"] for k, site in trace.items() if site["type"] == "deterministic"}


@lru_cache(maxsize=8)
def compiled_sites(model: infer.Model):
    """(obs, priors, values) → deterministic sites but the integrand, which is then not computed."""

    def sites(obs, priors, values):
        found = _deterministic(model, obs, priors, values)
        return {name: value for name, value in found.items() if name != "log_integrand"}

    return kept(sites)


OF_OBSERVATIONS = ("scale", "partiality")
OF_REFLECTIONS = ("log_mean", "centre", "log_variance")


def sites_at(
    model: infer.Model, obs: IntegratedObservations, priors: ScalingPriors, values
) -> dict[str, np.ndarray]:
    """The deterministic sites of :func:`compiled_sites` for all observations, part by part."""
    sizes = dict.fromkeys(OF_OBSERVATIONS, len(obs.J)) | dict.fromkeys(OF_REFLECTIONS, len(obs.hkl))
    found: dict[str, np.ndarray] = {}
    for rows, inside, part in Parts(obs):
        for name, value in compiled_sites(model)(part, priors, values).items():
            value = np.asarray(value)
            if name not in sizes:
                found[name] = value
                continue
            whole = found.setdefault(name, room(sizes[name], value.dtype))
            place = inside if name in OF_OBSERVATIONS else rows
            whole[place] = value[: place.stop - place.start]
            release(whole)
    return found


def pinned_draws(fit: infer.Fit, seed: int, n_draws: int) -> dict[str, np.ndarray]:
    """Laplace draws by site; ln G and B about their means over images, which no data determine."""
    draws: dict[str, np.ndarray] = {}
    start = 0
    for block in draws_in_blocks(fit, n_draws, rng=np.random.default_rng(seed)):
        for name, value in block.items():
            if name in ("log_G", "B"):
                value = value - value.mean(axis=1, keepdims=True)
            whole = draws.setdefault(name, room((n_draws, *value.shape[1:])))
            whole[start : start + len(value)] = value
            release(whole)
        start += len(value)
    return draws


def _sd(draws: np.ndarray) -> np.ndarray:
    """(n,) of draws (d, n), few images at a time."""
    parts = slices(draws.shape[1], draws, size=IMAGES)
    return np.concatenate([draws[:, part].std(axis=0) for part in parts])


def _measured(obs: IntegratedObservations, model, priors, values, draws, scale) -> Measured:
    """The observations with their scales; ``fraction`` has the errors of the model and of g."""
    each = [{name: value[i] for name, value in draws.items()} for i in range(N_SCALE_DRAWS)]

    def log_g(part: Part, one) -> np.ndarray:
        size = part.observations.stop - part.observations.start
        g = np.asarray(compiled_sites(model)(part.obs, priors, one)["scale"])[:size]
        return np.log(np.maximum(g, 1e-300))

    weight = np.asarray(obs.weight)
    total = np.zeros(len(each))
    for part in Parts(obs):
        mine = weight[part.observations]
        total += [float((log_g(part, one) * mine).sum()) for one in each]
    common = total / weight.sum()  # a common factor cannot be told from Σ
    fraction, variance = room(len(weight)), room(len(weight))
    for part in Parts(obs):
        mean = square = 0.0
        for i, one in enumerate(each):
            away = log_g(part, one) - common[i]
            step = away - mean
            mean = mean + step / (i + 1)
            square = square + step * (away - mean)
        error = np.exp(2 * values["log_model_error"]) + square / (N_SCALE_DRAWS - 1)
        fraction[part.observations] = np.sqrt(error)
        sigma = np.asarray(obs.sigma[part.observations])
        variance[part.observations] = (np.exp(values["log_sigma_factor"]) * sigma) ** 2
        release(fraction, variance)
    return Measured(
        J=obs.J,
        scale=scale,
        variance=variance,
        per_photon=room(len(weight)),
        fraction=fraction,
        nu=float(np.exp(values["log_nu"])),
        code=obs.code,
        image=obs.image,
        weight=obs.weight,
        hkl=obs.hkl,
    )


@dataclass(frozen=True)
class Halves:
    """Posterior I (m, 2) of each half of the images, refitted alone; NaN where none observed.

    ``merged`` is the same from the likelihood alone; half_of_image (n_images,) 0 or 1.
    """

    posterior: np.ndarray
    merged: np.ndarray
    half_of_image: np.ndarray
    fits: tuple[Scaled, Scaled]


def refit_halves(
    obs: IntegratedObservations,
    model: infer.Model,
    priors: ScalingPriors | None = None,
    seed: int = 0,
) -> Halves:
    """Fit each random half of the images from scratch, so that the halves share nothing."""
    half_of_image, m = split_images(obs.n_images, seed), len(obs.hkl)
    post, merged, fits = np.full((m, 2), np.nan), np.full((m, 2), np.nan), []
    for half in (0, 1):
        mine = of_images(obs, np.flatnonzero(half_of_image == half))
        fit = fit_scales(mine, model, priors, seed=seed)
        seen = np.bincount(np.asarray(mine.code), minlength=m) > 0
        post[seen, half] = np.asarray(fit.posterior.intensity)[seen]
        merged[rows_of(fit.merged.hkl, np.asarray(obs.hkl)), half] = fit.merged.intensity
        fits.append(fit)
    return Halves(post, merged, half_of_image, (fits[0], fits[1]))
