"""Scales of integrated stills, with the true intensities integrated out.

J_i = G·exp(−B/4d²)·p·I_h + noise.  Shared by the run: the width of the partiality curve, the
error model, and the mean intensity Σ(d).  One per image: G, B, and the width of its curve.  One
per reflection: I_h = F_h², with Wilson's prior.  I_h is no site of this program: the quadrature of
:mod:`bayes_refine.physics.true_intensities` sums over it.
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist

from bayes_refine import physics
from bayes_refine.infer import log_normal
from bayes_refine.merging.latent import AmplitudePrior
from bayes_refine.merging.observations import IntegratedObservations, ScalingPriors
from bayes_refine.physics import true_intensities


def wilson(obs: IntegratedObservations, priors: ScalingPriors) -> AmplitudePrior:
    """Wilson's prior: ln Σ(d) at knots."""
    n_knots = obs.knot_weight.shape[1]
    log_Sigma = numpyro.sample(
        "log_Sigma", dist.Normal(obs.log_Sigma0, priors.log_Sigma_sd).expand([n_knots]).to_event(1)
    )
    return AmplitudePrior(obs.log_epsilon + obs.knot_weight @ log_Sigma, obs.centric)


def model(
    obs: IntegratedObservations,
    priors: ScalingPriors,
    partiality: physics.Partiality = physics.lorentzian,
    amplitude_prior: Callable[..., AmplitudePrior] = wilson,
) -> None:
    """Joint density of the unknowns and of integrated observations.

    ``partiality`` and ``amplitude_prior`` are the two pieces that can be replaced.
    """
    # what the run shares: the curve, the errors, the mean intensity by resolution
    R0 = log_normal("R0", priors.R0_inv_angstrom, priors.log_R0_sd)
    mosaic = log_normal("mosaic_mrad", priors.mosaic_spread_mrad, priors.log_mosaic_spread_sd)
    dispersion = log_normal("dispersion", priors.dispersion_angstrom, priors.log_dispersion_sd)
    model_error = log_normal("model_error", priors.model_error, priors.log_model_error_sd)
    sigma_factor = log_normal("sigma_factor", priors.sigma_factor, priors.log_sigma_factor_sd)
    nu = log_normal("nu", priors.student_t_nu, priors.log_student_t_nu_sd)
    prior = amplitude_prior(obs, priors)
    numpyro.deterministic("log_mean", prior.log_mean)

    # each image; a factor and a B that all images have in common belong to Σ(d)
    with numpyro.plate("image", obs.n_images):
        log_G = numpyro.sample("log_G", dist.Normal(obs.log_G0, priors.log_G_sd))
        B = numpyro.sample("B", dist.Normal(0.0, priors.B_sd))
        log_width = numpyro.sample("log_width", dist.Normal(0.0, priors.log_width_image_sd))
    log_G = numpyro.deterministic("log_G_pinned", log_G - log_G.mean())
    B = numpyro.deterministic("B_pinned", B - B.mean())

    # each observation: the share of its reflection that diffracts
    width = physics.effective_width(R0, mosaic, dispersion, obs.norm_q)
    excitation_error = obs.excitation_error / jnp.exp(log_width)[obs.image]
    p = numpyro.deterministic("partiality", partiality(excitation_error, R0, width))
    g = jnp.exp(log_G)[obs.image] * physics.debye_waller(B[obs.image], obs.norm_q) * p
    variance = (sigma_factor * obs.sigma) ** 2
    numpyro.deterministic("scale", g)

    # each reflection: prior × likelihood at the nodes of F, summed; where the data do not determine
    # F, its nodes are scaled with Σ(d)
    nodes = true_intensities.stretch(obs.nodes, obs.follows * prior.log_mean)
    F = nodes.amplitude
    observed = true_intensities.log_observations(
        F,
        obs.J,
        g,
        true_intensities.VarianceOfJ(variance, model_error),
        nu,
        obs.code,
        obs.weight,
    )
    integrand = prior.log_density(F) + observed
    numpyro.deterministic("log_integrand", integrand)
    evidence = true_intensities.log_evidence(integrand, nodes)
    numpyro.factor("intensities", evidence.sum())
