"""The per-pixel model that the factored one replaces: every pixel of every shoebox is a datum.

The unknowns, their priors and the physics of a reflection are those of :mod:`still`; what is
compared is not three statistics a reflection but

    r_p = (I_p − Bg − J_model P_p)/σ_p,

with the template P at the state itself.  ``noise`` says what σ_p is, or that counts are Poisson
(``bayes_refine.infer``: observed_variance, expected_variance, moving_variance, poisson).
"""

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist

from bayes_refine import physics
from bayes_refine.per_pixel.pixel_noise import poisson


def log_normal(name, median, log_sd):
    """A positive unknown, sampled as its logarithm."""
    return jnp.exp(numpyro.sample(f"log_{name}", dist.Normal(jnp.log(median), log_sd)))


def model(pixels, priors, noise=poisson, partiality=physics.conserving_partiality):
    """Joint density of the unknowns and the photons of ``bayes_refine.per_pixel.pixels``."""
    obs = pixels.reflections

    # the run
    R0 = log_normal("R0", priors.R0_inv_angstrom, priors.log_R0_sd)
    bandwidth = log_normal("bandwidth", obs.bandwidth, priors.log_bandwidth_sd)
    mosaic_run = log_normal("mosaic_mrad", priors.mosaic_spread_mrad, priors.log_mosaic_spread_sd)
    shift_sd = jnp.array([priors.beam_center_sd_mm] * 2 + [priors.distance_sd_mm])
    shift = numpyro.sample("detector_shift_mm", dist.Normal(0.0, shift_sd).to_event(1))

    # each image
    n_image, n_reflection = obs.fit.shape
    n_strain = obs.strain_basis.shape[1]
    with numpyro.plate("image", n_image, dim=-2):
        log_G = numpyro.sample("log_G", dist.Normal(obs.log_G0, priors.log_G_sd))
        B = numpyro.sample("B", dist.Normal(priors.B_mean, priors.B_sd))
        rotation = numpyro.sample(
            "rotation_mrad", dist.Normal(0.0, priors.rotation_sd_mrad).expand([3]).to_event(1)
        )
        strain = numpyro.sample(
            "strain", dist.Normal(0.0, priors.strain_sd).expand([n_strain]).to_event(1)
        )
        mosaic = log_normal("mosaic_image_mrad", mosaic_run, priors.log_mosaic_image_sd)
        shape = numpyro.sample(
            "mosaic_shape", dist.Normal(0.0, priors.mosaic_shape_sd).expand([5]).to_event(1)
        )
        R1 = log_normal("R1", priors.R1_px * obs.pixel_inv_angstrom, priors.log_R1_sd)

    # each reflection: where, how wide, how bright
    moment = R1**2 / 2, R1**2 / 2, 0.0
    spread = physics.mosaic_covariance(mosaic[:, 0], shape[:, 0])
    where = rotation[:, 0], strain[:, 0], shift
    spot, _ = physics.smeared_spot(obs, *where, R0, bandwidth, spread, moment)
    p = partiality(spot.excitation_error, R0, spot.R0_eff)
    scale = jnp.exp(log_G) * physics.debye_waller(B, obs.norm_q) * p
    numpyro.deterministic("scale", scale)
    numpyro.deterministic("partiality", p)
    numpyro.deterministic("excitation_error", spot.excitation_error)
    numpyro.deterministic("spot_moment", jnp.stack([spot.m11, spot.m22, spot.m12], 1))
    spots = numpyro.deterministic("spots", pixels.spots(spot, scale * obs.intensity_reference))

    # the likelihood of its pixels
    distribution, value = noise(pixels.expected(spots), pixels)
    with (
        numpyro.plate("image", n_image, dim=-3),
        numpyro.plate("pixel", len(pixels.offsets), dim=-2),
        numpyro.plate("reflection", n_reflection, dim=-1),
        numpyro.handlers.mask(mask=pixels.usable),
    ):
        numpyro.sample("photons", distribution, obs=value)
