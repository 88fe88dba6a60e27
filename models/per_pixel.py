"""The per-pixel model, a baseline for ``still``: every pixel of every shoebox is a datum.

The unknowns, their priors and the physics of a reflection are those of :mod:`still`.  In place of a
few statistics of each reflection this model compares

    r_p = (I_p − Bg − J_model P_p)/σ_p

of each pixel p, with the template P at the unknowns' own values.  ``noise`` says what σ_p is, or
that counts are Poisson (``bayes_refine.per_pixel.pixel_noise``).
"""

import jax.numpy as jnp
import numpyro

from bayes_refine import load_file, physics
from bayes_refine.per_pixel.pixel_noise import PixelLikelihood, poisson
from bayes_refine.per_pixel.pixels import Pixels
from bayes_refine.physics.priors import Priors

still = load_file("still")


def model(
    pixels: Pixels,
    priors: Priors,
    noise: PixelLikelihood = poisson,
    partiality: physics.Partiality = physics.gaussian,
) -> None:
    """Joint density of the unknowns and the photons of ``bayes_refine.per_pixel.pixels``."""
    obs = pixels.reflections
    run = still.what_the_run_shares(obs, priors)
    with numpyro.plate("image", len(obs.fit), dim=-2):
        image = still.what_an_image_has(obs, priors, run)
        R1_moment = still.round_spot(obs, image.R1, priors)

    # where, how wide, how bright
    place = still.placed(obs, image, run)
    smear = run.R0, run.bandwidth, image.mosaic_mrad2
    spot = physics.smeared_spot(obs, place, *smear, R1_moment, partiality)
    p = partiality.of(spot, run.R0)
    scale = jnp.exp(image.log_G) * physics.debye_waller(image.B, obs.norm_q) * p
    numpyro.deterministic("scale", scale)
    numpyro.deterministic("partiality", p)
    numpyro.deterministic("excitation_error", spot.excitation_error)
    numpyro.deterministic("spot_moment", jnp.stack([spot.m11, spot.m22, spot.m12], 1))
    spots = numpyro.deterministic("spots", pixels.spots(spot, scale * obs.intensity_reference))

    # the likelihood of the shoeboxes' pixels
    distribution, value = noise(pixels.expected(spots), pixels)
    with (
        numpyro.plate("image", obs.fit.shape[0], dim=-3),
        numpyro.plate("pixel", len(pixels.offsets), dim=-2),
        numpyro.plate("reflection", obs.fit.shape[1], dim=-1),
        numpyro.handlers.mask(mask=pixels.usable),
    ):
        numpyro.sample("photons", distribution, obs=value)
