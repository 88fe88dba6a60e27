"""Scaling integrated stills: the most probable scales, with true intensities integrated out.

Unmerged → :func:`prepare` → :func:`fit_scales` → :class:`Scaled`.  No reference is needed
(Wilson's prior); with one, the free set never sees it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from . import infer, intensities
from .amplitude_prior import N_KNOTS, knot_weights, normalised_reference
from .errors import InputError
from .infer.coupled import coupled_fit
from .intensities import Nodes, Posterior
from .io.mtz import Unmerged
from .latent import AmplitudePrior, Measured, likelihood_only, true_intensities
from .merge import Merged, split_images
from .miller import pack_hkl, rows_of, unique_hkl
from .reference import Reference, wilson_mean
from .symmetry import asu_map, epsilon_centric

# Of 40 reflections with 200 Student-t observations (ν = 3), the worst ln Z is off by 2e-3 while
# scales move; with normal residuals by far less.
FIT_NODES, FIT_DROP = 16, 8.0
MEAN_PARTIALITY = 0.3  # guess that turns a mean observation into Σ, to start with
N_DRAWS, N_SCALE_DRAWS = 200, 25  # for sd of images' unknowns; of every ln g, to a seventh
# Starting with large errors keeps every residual near the convex middle of its Student-t.
BROAD = {"log_model_error": np.log(0.8), "log_sigma_factor": np.log(3.0)}


@dataclass(frozen=True)
class ScalingPriors:
    """Priors of scales where only intensities are known.  ``log`` priors: normal in ln.

    Attributes:
        R0_inv_angstrom, log_R0_sd: width of the partiality curve at low resolution, Å⁻¹.
        mosaic_spread_mrad, log_mosaic_spread_sd: η, its growth with |q|.
        dispersion_angstrom, log_dispersion_sd: bλ/√2 for the rms bandwidth b, growth with |q|².
        log_width_image_sd: of ln of the width from image to image.
        log_G_sd: ln G of an image about its mean intensity. B_sd: of B about the mean B, Å².
        model_error, log_model_error_sd: fractional error of g·I.
        sigma_factor, log_sigma_factor_sd: what the file's sigmas are multiplied with.
        student_t_nu, log_student_t_nu_sd: degrees of freedom of the residuals.
        log_Sigma_sd: ln Σ(d) about the mean observed intensity, each knot.
        correlation_a, correlation_b: Beta prior of r0 (model latent_reference).
        correlation_B_sd: of D in r = r0·exp(−D/4d²), Å².
    """

    R0_inv_angstrom: float = 1e-4
    log_R0_sd: float = 1.5
    mosaic_spread_mrad: float = 0.5
    log_mosaic_spread_sd: float = 1.5
    dispersion_angstrom: float = 1.5e-3
    log_dispersion_sd: float = 1.5
    log_width_image_sd: float = 0.3
    log_G_sd: float = 2.0
    B_sd: float = 20.0
    model_error: float = 0.3
    log_model_error_sd: float = 1.0
    sigma_factor: float = 1.5
    log_sigma_factor_sd: float = 1.0
    student_t_nu: float = 5.0
    log_student_t_nu_sd: float = 0.5
    log_Sigma_sd: float = 5.0
    correlation_a: float = 4.0
    correlation_b: float = 1.5
    correlation_B_sd: float = 10.0


@dataclass(frozen=True)
class Observations:
    """What a scaling model is conditioned on: n observations of m reflections, by reflection.

    Attributes:
        intensity, sigma, weight: (n,) on the file's scale; weight 0 takes no part.
        image, code: (n,) int, the image and the unique reflection (ascending).
        norm_q, excitation_error: (n,) Å⁻¹.
        hkl: (m, 3) int32. norm_q_unique: (m,) Å⁻¹. log_epsilon: (m,). centric: (m,) bool.
        E_reference: (m,) normalised reference amplitude, 0 where there is none.
        informed: (m,) bool, reflections whose reference may be used.
        knot_weight: (m, K) ln Σ(d) = knot_weight @ ln Σ at K knots, linear in 1/d² between.
        log_G0: (n_images,) and log_Sigma0 (K,), first estimates.
        nodes: of the quadrature, over normalised amplitudes E = F/√(ε·Σ(d)), so that they go
            along when Σ(d) moves; renewed as scales move.
        n_images: static.
    """

    intensity: Array
    sigma: Array
    weight: Array
    image: Array
    code: Array
    norm_q: Array
    excitation_error: Array
    hkl: Array
    norm_q_unique: Array
    log_epsilon: Array
    centric: Array
    E_reference: Array
    informed: Array
    knot_weight: Array
    log_G0: Array
    log_Sigma0: Array
    nodes: Nodes
    n_images: int


for _cls, _meta in ((ScalingPriors, ()), (Observations, ("n_images",))):
    jax.tree_util.register_dataclass(
        _cls, [f.name for f in fields(_cls) if f.name not in _meta], list(_meta)
    )


@dataclass(frozen=True)
class Scaled:
    """Scales and intensities of a run.

    Attributes:
        fit: mode and curvature of every site; ``fit.status`` says which images settled.
        log_G, B, log_width: (n_images,) with their Laplace sd; ln G and B about their means.
        shared: what images share, value and Laplace sd by name, on the natural scale.
        partiality: (n,) p of each observation, in the order of ``observations``.
        measured: the observations with g; its fractional error has that of ln g in it.
        prior: of the amplitudes, as fitted.
        observations: as they went into the fit.
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
    observations: Observations

    @cached_property
    def posterior(self) -> Posterior:
        """Of I and F under ``prior``, (m,) arrays."""
        return true_intensities(self.measured, self.prior).posterior

    @cached_property
    def merged(self) -> Merged:
        """From the likelihood only."""
        return likelihood_only(self.measured, self.prior, self.posterior.intensity)


def prepare(
    data: Unmerged,
    d_min: float = 0.0,
    reference: Reference | None = None,
    free_fraction: float = 0.05,
    seed: int = 0,
    n_knots: int = N_KNOTS,
    anomalous: bool = False,
) -> Observations:
    """Sort a run's observations by unique reflection, and look up what is known of each.

    Without an excitation error in the file it is zero, so that p is the same everywhere at one
    resolution.  The choice of the free set sees neither data nor reference.

    Args:
        d_min: Å; observations beyond are left out.
        reference: for the model ``latent_reference``; only its normalised amplitudes are used.
        n_knots: of ln Σ(d).
        anomalous: Friedel mates are reflections of their own, I− at −h (``symmetry.asu_map``).

    Raises:
        InputError: nothing to that resolution.
    """
    d = data.cell.calculate_d_array(np.ascontiguousarray(data.hkl_asu, np.int32))
    rows = np.flatnonzero(d >= d_min * (1 - 1e-6))
    if not len(rows):
        raise InputError(f"{data.source}: no reflection to {d_min:g} Å; the best is {d.min():.2f}")
    unique = asu_map(data.hkl, data.space_group, anomalous)[0] if anomalous else data.hkl_asu
    rows = rows[np.argsort(pack_hkl(unique[rows]), kind="stable")]
    first, code = unique_hkl(unique[rows])
    hkl = unique[rows][first]
    q2 = 1 / d[rows] ** 2
    epsilon, centric = epsilon_centric(hkl, data.space_group)
    q2_unique = q2[first]
    knot_weight, knots = knot_weights(q2_unique**-0.5, n_knots)
    excitation = data.excitation_error
    excitation = np.zeros(len(data)) if excitation is None else excitation
    E, informed = normalised_reference(hkl, q2_unique**-0.5, reference, free_fraction, seed)
    n_images, image = int(data.image.max()) + 1, data.image[rows]
    intensity = data.intensity[rows]
    smooth = wilson_mean(d[rows], intensity / epsilon[code], np.r_[d[rows], knots])
    expected, at_knots = smooth[: len(rows)] * epsilon[code], smooth[len(rows) :]
    share = np.bincount(image, intensity, n_images) / np.maximum(
        np.bincount(image, expected, n_images), 1e-30
    )
    empty = np.zeros((len(hkl), FIT_NODES))
    arrays = dict(
        intensity=intensity,
        sigma=data.sigma[rows],
        weight=np.ones(len(rows)),
        image=image,
        code=code,
        norm_q=np.sqrt(q2),
        excitation_error=excitation[rows],
        hkl=hkl,
        norm_q_unique=np.sqrt(q2_unique),
        log_epsilon=np.log(epsilon),
        centric=centric,
        E_reference=E,
        informed=informed,
        knot_weight=knot_weight,
        log_G0=np.log(np.maximum(share, 0.05)),
        log_Sigma0=np.log(at_knots / MEAN_PARTIALITY),
    )
    return Observations(
        **{name: jnp.asarray(a) for name, a in arrays.items()},
        nodes=Nodes(jnp.asarray(empty), jnp.asarray(empty)),
        n_images=n_images,
    )


def fit_scales(
    obs: Observations,
    model: infer.Model,
    priors: ScalingPriors | None = None,
    init: dict[str, np.ndarray] | None = None,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> Scaled:
    """The joint MAP of scales, widths, errors and Σ(d), and the intensities given it.

    Args:
        model: NumPyro program of ``(observations, priors)``: ``latent`` or ``latent_reference``.
        init: by site; by default images start from their mean intensity.
        seed: of the draws that the sd of each ln g is taken over.
        progress: called with a line now and then.

    Raises:
        ValueError: JAX is in single precision.
    """
    priors = priors or ScalingPriors()
    start: dict[str, Any] = (
        {"log_G": obs.log_G0, "log_Sigma": obs.log_Sigma0} | BROAD | (init or {})
    )
    renew = compiled_renewal(model, FIT_NODES, FIT_DROP)
    fit, _ = coupled_fit(
        model, obs, priors, start, lambda obs, at: renew(obs, priors, at), progress=progress
    )
    values = fit.values()
    sites = {k: np.asarray(v) for k, v in compiled_sites(model)(obs, priors, values).items()}
    draws = pinned_draws(fit, seed, N_DRAWS)
    measured = _measured(obs, model, priors, values, draws, sites["scale"])
    prior = AmplitudePrior(
        jnp.asarray(sites["log_mean"]),
        obs.centric,
        obs.E_reference,
        jnp.asarray(sites.get("correlation_unique", np.zeros(len(obs.hkl)))),
    )
    return Scaled(
        fit=fit,
        log_G=sites["log_G_pinned"],
        log_G_sd=draws["log_G"].std(axis=0),
        B=sites["B_pinned"],
        B_sd=draws["B"].std(axis=0),
        log_width=values["log_width"],
        log_width_sd=fit.sd("log_width"),
        shared={s.name: (values[s.name], fit.sd(s.name)) for s in fit.sites if not s.per_image},
        partiality=sites["partiality"],
        measured=measured,
        prior=prior,
        observations=obs,
    )


@lru_cache(maxsize=8)
def compiled_renewal(model: infer.Model, n_nodes: int, drop: float):
    """(obs, priors, values by site) → obs with fresh nodes, compiled once for a model."""

    def renew(obs, priors, values):
        def log_integrand(E):
            here = replace(obs, nodes=Nodes(E, jnp.zeros_like(E)))
            return _deterministic(model, here, priors, values)["log_integrand"]

        S = _deterministic(model, obs, priors, values)
        log_mean, g = S["log_mean"], S["scale"]
        information = jax.ops.segment_sum(
            obs.weight * (g / obs.sigma) ** 2, obs.code, len(obs.hkl), indices_are_sorted=True
        )
        total = jax.ops.segment_sum(
            obs.weight * g * obs.intensity / obs.sigma**2, obs.code, len(obs.hkl)
        )
        safe = jnp.maximum(information, 1e-30)
        upper = intensities.upper_amplitude(log_mean, total / safe, safe**-0.5)
        upper = upper * jnp.exp(-0.5 * log_mean)
        return replace(obs, nodes=intensities.place_nodes(log_integrand, upper, n_nodes, drop))

    return jax.jit(renew)


def _deterministic(model: infer.Model, obs: Observations, priors, values) -> dict[str, Array]:
    trace = infer.density.traced(model, values, (obs, priors))
    return {k: site["value"] for k, site in trace.items() if site["type"] == "deterministic"}


@lru_cache(maxsize=8)
def compiled_sites(model: infer.Model):
    """(obs, priors, values) → deterministic sites but the integrand, which is then not computed."""

    def sites(obs, priors, values):
        found = _deterministic(model, obs, priors, values)
        return {name: value for name, value in found.items() if name != "log_integrand"}

    return jax.jit(sites)


def pinned_draws(fit: infer.Fit, seed: int, n_draws: int) -> dict[str, np.ndarray]:
    """Laplace draws by site, ln G and B about their means over images, which are no one's."""
    draws = infer.laplace_draws(fit, np.random.default_rng(seed), n_draws)
    for name in ("log_G", "B"):
        draws[name] = draws[name] - draws[name].mean(axis=1, keepdims=True)
    return draws


def _measured(obs: Observations, model, priors, values, draws, scale) -> Measured:
    """The observations with their scales; the model's fractional error and that of g together."""
    weight = np.asarray(obs.weight)
    mean = square = np.zeros(len(weight))
    for i in range(N_SCALE_DRAWS):
        one = {name: value[i] for name, value in draws.items()}
        log_g = np.log(np.maximum(compiled_sites(model)(obs, priors, one)["scale"], 1e-300))
        log_g -= np.average(log_g, weights=weight)  # a common factor is Σ's, and the gauge's
        step = log_g - mean
        mean = mean + step / (i + 1)
        square = square + step * (log_g - mean)
    error = np.exp(2 * values["log_model_error"]) + square / (N_SCALE_DRAWS - 1)
    return Measured(
        intensity=obs.intensity,
        scale=jnp.asarray(scale),
        variance=(np.exp(values["log_sigma_factor"]) * obs.sigma) ** 2,
        per_photon=jnp.zeros(len(weight)),
        fraction=jnp.asarray(np.sqrt(error)),
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
    obs: Observations, model: infer.Model, priors: ScalingPriors | None = None, seed: int = 0
) -> Halves:
    """Fit each random half of the images from scratch: nothing is shared between the two.

    The halves go through one compiled program, with the other half's weights at zero.
    """
    half_of_image = split_images(obs.n_images, seed)
    of_observation = half_of_image[np.asarray(obs.image)]
    m = len(obs.hkl)
    post, merged, fits = np.full((m, 2), np.nan), np.full((m, 2), np.nan), []
    for half in (0, 1):
        mine = of_observation == half
        fit = fit_scales(replace(obs, weight=jnp.asarray(mine * 1.0)), model, priors, seed=seed)
        seen = np.bincount(np.asarray(obs.code)[mine], minlength=m) > 0
        post[seen, half] = np.asarray(fit.posterior.intensity)[seen]
        merged[rows_of(fit.merged.hkl, np.asarray(obs.hkl)), half] = fit.merged.intensity
        fits.append(fit)
    return Halves(post, merged, half_of_image, (fits[0], fits[1]))
