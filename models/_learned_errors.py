"""Errors of the models of spots as unknowns that the run shares: ``physics.Errors``, sampled."""

import math

import jax
import numpyro
import numpyro.distributions as dist

from bayes_refine import physics
from bayes_refine.infer import log_normal, normal
from bayes_refine.physics import Errors, SpotStatistics
from bayes_refine.physics.priors import Priors


def perfect(obs: SpotStatistics, priors: Priors, terms: int) -> Errors:
    """No errors: the plain model.  Residuals are normal, and only counting makes them vary."""
    return physics.PERFECT


def learned(obs: SpotStatistics, priors: Priors, terms: int) -> Errors:
    """How far the model is off, learned from all images of the run."""
    error = log_normal("model_error", priors.model_error, priors.log_model_error_sd)
    # The error may change with resolution: weak, wide spots err otherwise than strong, sharp ones.
    fall = numpyro.sample("model_error_fall", dist.Normal(0.0, priors.model_error_fall_sd_angstrom))
    # The variance, on a linear scale and below zero too: ln p is about a parabola in it, while its
    # root turns at 0 and its logarithm has a flat tail.
    blocks = dist.Normal(priors.speckle_variance, priors.speckle_variance_sd)
    speckle_variance = numpyro.sample("speckle_variance", blocks)
    # Two directions: wavelengths smear a spot along the radius, turned blocks mostly across it.
    off = priors.position_error_px * obs.pixel_inv_angstrom
    position = log_normal("position_error", off, priors.log_position_error_sd, (2,))
    position_fall = normal("position_error_fall", 0.0, priors.position_error_fall_sd_angstrom, 2)
    place_1, place_2 = (
        physics.at_resolution(position[k], position_fall[k], obs.norm_q) ** 2 for k in (0, 1)
    )
    shape_error = log_normal("shape_error", priors.shape_error, priors.log_shape_error_sd)
    # Moments have tails of their own: a spot that is too bright may still be in its place.
    nu: jax.Array | float = math.inf
    nu_moments: jax.Array | float = math.inf
    if math.isfinite(priors.student_t_nu):
        nu = log_normal("nu", priors.student_t_nu, priors.log_student_t_nu_sd)
        if terms > 1:
            nu_moments = log_normal("nu_moments", priors.student_t_nu, priors.log_student_t_nu_sd)
    fraction = physics.at_resolution(error, fall, obs.norm_q)
    return Errors(fraction, speckle_variance, place_1, place_2, shape_error**2, nu, nu_moments)
