"""The factored model of still images: scale, profile width and geometry, three likelihoods.

Shared by the run: R0, bandwidth, mosaic spread, beam centre and distance, and how far the model
itself is off.  One per image: G, B, orientation, cell strain, R1.
"""

import math

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist

from bayes_refine import physics
from bayes_refine.physics.observations import STATISTICS

MIDDLE = 0.25  # Å⁻¹, where model_error and position_error are what they say


def residual(mean, variance, nu):
    """Student-t with ``nu`` degrees of freedom; normal for ``math.inf``."""
    if isinstance(nu, float):
        return dist.Normal(mean, jnp.sqrt(variance))
    return dist.StudentT(nu, mean, jnp.sqrt(variance))


def tail_factor(z2, nu):
    """Variance of a Student-t residual of square ``z2``, over what ``residual`` was given; 1 for
    normal ones.

    A Student-t is a normal of unknown precision; given z, (ν + 1)/(ν + z²) is its mean.
    """
    return 1.0 if isinstance(nu, float) else (nu + z2) / (nu + 1)


def log_normal(name, median, log_sd, size=()):
    """A positive unknown, or a vector of some, sampled as its logarithm."""
    prior = dist.Normal(jnp.log(median), log_sd).expand(size).to_event(len(size))
    return jnp.exp(numpyro.sample(f"log_{name}", prior))


def round_spot(obs, R1, priors):
    """(M11, M22, M12), Å⁻², of a round spot exp(−|ε_t|²/R1²)."""
    return R1**2 / 2, R1**2 / 2, 0.0


def model(obs, priors, partiality=physics.conserving_partiality, spot_shape=round_spot, terms=4):
    """Joint density of the unknowns and the frozen statistics of ``obs`` (Observations).

    ``partiality`` and ``spot_shape`` are the two pieces of physics with rivals; ``terms`` is
    how many of the six statistics are used: 1 total, 3 with the centroid, 4 with the spread, 6
    with the quadrupoles.
    """
    pixel = obs.pixel_inv_angstrom

    # the run
    R0 = log_normal("R0", priors.R0_inv_angstrom, priors.log_R0_sd)
    bandwidth = log_normal("bandwidth", obs.bandwidth, priors.log_bandwidth_sd)
    mosaic_run = log_normal("mosaic_mrad", priors.mosaic_spread_mrad, priors.log_mosaic_spread_sd)
    shift_sd = jnp.array([priors.beam_center_sd_mm] * 2 + [priors.distance_sd_mm])
    shift = numpyro.sample("detector_shift_mm", dist.Normal(0.0, shift_sd).to_event(1))
    model_error = log_normal("model_error", priors.model_error, priors.log_model_error_sd)
    fall = numpyro.sample(
        "model_error_fall", dist.Normal(0.0, priors.model_error_fall_sd_angstrom)
    )  # with resolution, Å: errors of strong and of sharp spots are not those of weak and wide ones
    # not its logarithm: data tell no speckle from some, but not none from next to none
    speckle = numpyro.sample("speckle", dist.Normal(priors.speckle, priors.speckle_sd))
    # radial and tangential: wavelengths smear spots radially, turned blocks mostly across
    position_error = log_normal(
        "position_error", priors.position_error_px * pixel, priors.log_position_error_sd, (2,)
    )
    position_fall = numpyro.sample(
        "position_error_fall",
        dist.Normal(0.0, priors.position_error_fall_sd_angstrom).expand([2]).to_event(1),
    )
    position = position_error * jnp.exp(-position_fall * (obs.norm_q[..., None] - MIDDLE))
    place_1, place_2 = jnp.moveaxis(position**2, -1, 0)
    shape_error = log_normal("shape_error", priors.shape_error, priors.log_shape_error_sd)
    # a spot of the wrong intensity may well be where it should be; infinite, no unknown is in it
    nu = nu_moments = math.inf
    if math.isfinite(priors.student_t_nu):
        nu = log_normal("nu", priors.student_t_nu, priors.log_student_t_nu_sd)
        if terms > 1:
            nu_moments = log_normal("nu_moments", priors.student_t_nu, priors.log_student_t_nu_sd)

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
        R1 = log_normal("R1", priors.R1_px * pixel, priors.log_R1_sd)
        m11, m22, m12 = spot_shape(obs, R1, priors)
        # spots off their places are, on average, wider about them
        moment = m11 + place_1, m22 + place_2, m12

    # each reflection: where, how wide, how bright
    spread = physics.mosaic_covariance(mosaic[:, 0], shape[:, 0])
    where = rotation[:, 0], strain[:, 0], shift
    spot, m2 = physics.smeared_spot(obs, *where, R0, bandwidth, spread, moment)
    p = partiality(spot.excitation_error, R0, spot.R0_eff)
    scale = jnp.exp(log_G) * physics.debye_waller(B, obs.norm_q) * p
    J_model = scale * obs.intensity_reference
    numpyro.deterministic("scale", scale)
    numpyro.deterministic("partiality", p)
    numpyro.deterministic("excitation_error", spot.excitation_error)
    numpyro.deterministic("spot_moment", jnp.stack([spot.m11, spot.m22, spot.m12], 1))

    # the total: beyond counting, J_model is off by a fraction, spots by part of a pixel and of
    # R1²; T_k sees each by r_kj
    speckled = physics.block_variance(spot, m2) * jnp.maximum(speckle, 0.0) ** 2
    error = model_error * jnp.exp(-fall * (obs.norm_q - MIDDLE))
    places = [place / obs.width**2 for place in (place_1, place_2)]
    errors = jnp.stack([*places, *[shape_error**2 + 0 * places[0]] * 3], 1)[:, : terms - 1]
    seen = jnp.sum(obs.response[:, :terms, 1:terms] ** 2 * errors[:, None], 2)
    relative = numpyro.deterministic("relative_variance", error**2 + speckled + seen[:, 0])
    profile = physics.profile_statistics(obs, spot, terms, shape_error**2)
    counting = physics.counting_variance(obs, J_model, terms)
    unsure = relative + obs.reference_error**2
    means, variances = [J_model * profile[:, 0]], [counting[:, 0] + unsure * J_model**2]

    # the moments: of the photons that are there, J_model drawn to the total where it is unsure,
    # as it is where the total is an outlier
    gain = jnp.where(profile[:, 0] > 0, profile[:, 0], 1.0)  # none where there are no pixels
    measured, v = obs.statistics[:, 0] / gain, counting[:, 0] + seen[:, 0] * J_model**2
    tail = tail_factor((obs.statistics[:, 0] - means[0]) ** 2 / variances[0], nu)
    J, J_variance = physics.given_total(
        J_model, (unsure - seen[:, 0]) * tail, measured, v / gain**2
    )
    counting = physics.counting_variance(obs, J, terms)
    for k in range(1, terms):
        means.append(J * profile[:, k])
        beyond = seen[:, k] * J**2 + (seen[:, k] + profile[:, k] ** 2) * J_variance
        variances.append(counting[:, k] + beyond)

    # the likelihoods of one shoebox
    with (
        numpyro.plate("image", n_image, dim=-2),
        numpyro.plate("reflection", n_reflection, dim=-1),
        numpyro.handlers.mask(mask=obs.fit),
    ):
        for k, name in enumerate(STATISTICS[:terms]):
            numpyro.sample(
                name,
                residual(means[k], variances[k], nu_moments if k else nu),
                obs=obs.statistics[:, k],
            )
