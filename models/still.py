"""The factored model of still images: scale, profile width and geometry, three likelihoods.

Shared by the run: R0, mosaic spread, beam centre and distance, and how far the model itself
is off.  One per image: G, B, orientation, cell strain, R1.
"""

import math

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist

from bayes_refine import forward
from bayes_refine.measure import STATISTICS


def residual(mean, variance, nu):
    """Normal, or Student-t of the same scale with ``nu`` degrees of freedom."""
    if math.isinf(nu):
        return dist.Normal(mean, jnp.sqrt(variance))
    return dist.StudentT(nu, mean, jnp.sqrt(variance))


def log_normal(name, median, log_sd):
    """A positive unknown, sampled as its logarithm."""
    return jnp.exp(numpyro.sample(f"log_{name}", dist.Normal(jnp.log(median), log_sd)))


def round_spot(obs, R1, priors):
    """(M11, M22, M12), Å⁻², of a round spot exp(−|ε_t|²/R1²)."""
    return R1**2 / 2, R1**2 / 2, 0.0


def model(obs, priors, partiality=forward.partiality, spot_shape=round_spot, terms=4):
    """Joint density of the unknowns and the frozen statistics of ``obs`` (Observations).

    ``partiality`` and ``spot_shape`` are the two pieces of physics with rivals; ``terms`` is
    how many of the six statistics are used: 1 total, 3 with the centroid, 4 with the spread, 6
    with the quadrupoles.
    """
    pixel = obs.pixel_inv_angstrom

    # the run
    R0 = log_normal("R0", priors.R0_inv_angstrom, priors.log_R0_sd)
    mosaic_run = log_normal("mosaic_mrad", priors.mosaic_spread_mrad, priors.log_mosaic_spread_sd)
    shift_sd = jnp.array([priors.beam_center_sd_mm] * 2 + [priors.distance_sd_mm])
    shift = numpyro.sample("detector_shift_mm", dist.Normal(0.0, shift_sd).to_event(1))
    model_error = log_normal("model_error", priors.model_error, priors.log_model_error_sd)
    blocks = log_normal("blocks", priors.blocks, priors.log_blocks_sd)
    position_error = log_normal(
        "position_error", priors.position_error_px * pixel, priors.log_position_error_sd
    )
    shape_error = log_normal("shape_error", priors.shape_error, priors.log_shape_error_sd)

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
        R1 = log_normal("R1", priors.R1_px * pixel, priors.log_R1_sd)
        m11, m22, m12 = spot_shape(obs, R1, priors)
        # spots off their places are, on average, wider about them
        moment = m11 + position_error**2, m22 + position_error**2, m12

    # each reflection: where, how wide, how bright
    spot = forward.spot(obs, rotation[:, 0], strain[:, 0], shift, R0, mosaic, moment)
    p = partiality(spot.excitation_error, R0, spot.R0_eff)
    scale = jnp.exp(log_G) * forward.debye_waller(B, obs.norm_q) * p
    J_model = scale * obs.intensity_reference
    numpyro.deterministic("scale", scale)
    numpyro.deterministic("partiality", p)
    numpyro.deterministic("excitation_error", spot.excitation_error)
    numpyro.deterministic("spot_moment", jnp.stack([spot.m11, spot.m22, spot.m12], 1))
    expected = forward.expected_statistics(obs, spot, J_model, terms)

    # what counting does not explain: a fraction of J, of a pixel, of R1²; T_k sees each by r_kj
    position = (position_error / obs.width) ** 2
    speckle = forward.block_variance(obs, spot.excitation_error, R0, mosaic) / blocks
    shape = shape_error**2 + 0 * position
    errors = jnp.stack([model_error**2 + speckle, *[position] * 2, *[shape] * 3], 1)
    seen = jnp.sum(obs.response[:, :terms, :terms] ** 2 * errors[:, None, :terms], 2)
    variance = expected.variance + seen * J_model[:, None] ** 2
    numpyro.deterministic("intensity_variance", variance[:, 0])

    # the likelihoods of one shoebox
    with (
        numpyro.plate("image", n_image, dim=-2),
        numpyro.plate("reflection", n_reflection, dim=-1),
        numpyro.handlers.mask(mask=obs.fit),
    ):
        for k, name in enumerate(STATISTICS[:terms]):
            numpyro.sample(
                name,
                residual(expected.mean[:, k], variance[:, k], priors.student_t_nu),
                obs=obs.statistics[:, k],
            )
