"""The factored model of still images: scale, profile width and geometry, three likelihoods.

Shared by the run: R0, bandwidth, mosaic spread, beam centre and distance, and the errors of the
model itself.  One per image: G, B, orientation, cell strain, mosaic spread, R1.  The equations are
in docs/theory.md.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist

from bayes_refine import load_file, physics
from bayes_refine.infer import StudentT, log_normal, normal
from bayes_refine.physics import Errors, Partiality, SpotStatistics
from bayes_refine.physics.priors import Priors

_errors = load_file("_learned_errors")
learned, perfect = _errors.learned, _errors.perfect


class Run(NamedTuple):
    """What the run shares: R0 (Å⁻¹), rms bandwidth, mosaic spread (mrad), shift (3,) of the beam
    centre along x and y and of the distance (mm); moves (g, 3) of groups of panels (px, px, mrad),
    None where they stay in place; ln g of the scale at the median pulse energy, None where pulse
    energies are unknown; what frames of each sweep share, None where there are no sweeps."""

    R0: jax.Array
    bandwidth: jax.Array
    mosaic_mrad: jax.Array
    shift_mm: jax.Array
    panels: jax.Array | None
    log_g: jax.Array | None
    sweeps: physics.OfSweeps | None


class Image(NamedTuple):
    """What each of n images has: ln G, B (Å²) and R1 (Å⁻¹), each (n, 1); rotation (n, 3) mrad;
    strain (n, K); twice the covariance of the mosaic blocks' rotations (n, 3, 3) mrad²; ln λ
    (n, 1), None where the wavelength is known; coefficients of unevenly spread blocks
    (n, ·), None where they are even."""

    log_G: jax.Array
    B: jax.Array
    rotation_mrad: jax.Array
    strain: jax.Array
    mosaic_mrad2: physics.Array
    R1: jax.Array
    log_wavelength: jax.Array | None
    uneven_blocks: physics.Array | None


def what_the_run_shares(obs: SpotStatistics, priors: Priors) -> Run:
    """Sample the width of the partiality curve and the place of the detector."""
    R0 = log_normal("R0", priors.R0_inv_angstrom, priors.log_R0_sd)
    bandwidth = log_normal("bandwidth", obs.bandwidth, priors.log_bandwidth_sd)
    mosaic = log_normal("mosaic_mrad", priors.mosaic_spread_mrad, priors.log_mosaic_spread_sd)
    shift_sd = jnp.array([priors.beam_center_sd_mm] * 2 + [priors.distance_sd_mm])
    shift = normal("detector_shift_mm", 0.0, shift_sd, 3)
    log_g = None
    if obs.log_pulse_energy is not None:
        log_g = numpyro.sample("log_g", dist.Normal(obs.log_G0, priors.log_G_sd))
    moves, sweeps = panel_moves(obs, priors), what_frames_share(obs, priors)
    return Run(R0, bandwidth, mosaic, shift, moves, log_g, sweeps)


def what_frames_share(obs: SpotStatistics, priors: Priors) -> physics.OfSweeps | None:
    """Sample smooth scale and B, cell and mosaic blocks of each crystal with several frames."""
    if obs.sweeps is None:
        return None
    r, s, K = obs.sweeps.smooth.shape[1], obs.sweeps.member.shape[1], obs.strain_basis.shape[1]
    log_G = (obs.log_G0, priors.log_G_sd), priors.log_G_change_sd
    B = (priors.B_mean, priors.B_sd), priors.B_change_sd
    return physics.OfSweeps(
        log_G=normal("log_G_sweep", *physics.smooth_prior(obs, *log_G), r),
        B=normal("B_sweep", *physics.smooth_prior(obs, *B), r),
        strain=normal("strain_sweep", 0.0, priors.strain_sd, s * K),
        log_mosaic=normal("log_mosaic_sweep", 0.0, priors.log_mosaic_image_sd, s),
        mosaic_shape=normal("mosaic_shape_sweep", 0.0, priors.mosaic_shape_sd, 5 * s),
    )


def panel_moves(obs: SpotStatistics, priors: Priors) -> jax.Array | None:
    """Sample shift and turn of each group of panels where a detector has several."""
    if obs.current_panels is None:
        return None
    size = obs.current_panels.shape[1]
    sd = priors.panel_shift_sd_px, priors.panel_shift_sd_px, priors.panel_turn_sd_mrad
    names = "panel_x_px", "panel_y_px", "panel_turn_mrad"
    return jnp.stack([normal(name, 0.0, s, size) for name, s in zip(names, sd, strict=True)], 1)


def what_an_image_has(
    obs: SpotStatistics,
    priors: Priors,
    run: Run,
    blocks: Callable[..., physics.Array | None] = physics.even_blocks,
) -> Image:
    """Sample scale, B, orientation, cell, mosaic spread and spot width, in the plate of images."""
    about = physics.About(
        log_G=scale_of_a_shot(obs, priors, run.log_g),
        B=(priors.B_mean, priors.B_sd),
        strain=(0.0, priors.strain_sd),
        mosaic_mrad=(run.mosaic_mrad, priors.log_mosaic_image_sd),
        mosaic_shape=(0.0, priors.mosaic_shape_sd),
    )
    about = physics.about_sweeps(obs, priors, about, run.sweeps)
    log_G = numpyro.sample("log_G", dist.Normal(*about.log_G))
    B = numpyro.sample("B", dist.Normal(*about.B))
    rotation = normal("rotation_mrad", 0.0, priors.rotation_sd_mrad, 3)
    strain = normal("strain", *about.strain, obs.strain_basis.shape[1])
    mosaic = log_normal("mosaic_image_mrad", *about.mosaic_mrad)
    shape = normal("mosaic_shape", *about.mosaic_shape, 5)
    R1 = log_normal("R1", priors.R1_px * obs.pixel_inv_angstrom, priors.log_R1_sd)
    mosaic_mrad2 = physics.mosaic_covariance(mosaic[:, 0], shape[:, 0])
    mosaic_mrad2 = physics.turned_with_crystal(obs, mosaic_mrad2)
    log_wavelength = None
    if obs.wavelength is not None:
        of_shot = dist.Normal(jnp.log(obs.wavelength), priors.wavelength_jitter)
        log_wavelength = numpyro.sample("log_wavelength", of_shot)
    return Image(
        log_G, B, rotation[:, 0], strain[:, 0], mosaic_mrad2, R1, log_wavelength, blocks(priors)
    )


def scale_of_a_shot(obs: SpotStatistics, priors: Priors, log_g: jax.Array | None) -> tuple:
    """Mean and sd of the prior of ln G: about ln g + ln E where the pulse energy E is known."""
    if obs.log_pulse_energy is None or log_g is None:
        return obs.log_G0, priors.log_G_sd
    known = jnp.isfinite(obs.log_pulse_energy)
    mean = log_g + jnp.where(known, obs.log_pulse_energy, 0.0)
    return mean, jnp.where(known, priors.log_G_monitor_sd, priors.log_G_sd)


def placed(obs: SpotStatistics, image: Image, run: Run) -> physics.Place:
    """Where orientation, cell, wavelength, detector and panels put the spots."""
    of_image = image.rotation_mrad, image.strain
    of_run = run.shift_mm, run.panels
    return physics.place_on_detector(obs, *of_image, *of_run, image.log_wavelength)


def round_spot(obs: SpotStatistics, R1: jax.Array, priors: Priors):
    """(M11, M22, M12), Å⁻², of a round spot exp(−|ε_t|²/R1²)."""
    return R1**2 / 2, R1**2 / 2, 0.0


def residual(mean, variance, nu) -> dist.Distribution:
    """A Student-t law with ``nu`` degrees of freedom; a normal law for ``math.inf``."""
    if isinstance(nu, float):
        return dist.Normal(mean, jnp.sqrt(variance))
    return StudentT(nu, mean, jnp.sqrt(variance))


def likelihood(obs: SpotStatistics, mean, variance, errors: Errors) -> None:
    """Observe the statistics of every shoebox that informs the fit: the total, then the moments."""
    with (
        numpyro.plate("image", mean.shape[0], dim=-2),
        numpyro.plate("reflection", mean.shape[2], dim=-1),
        numpyro.handlers.mask(mask=obs.fit),
    ):
        for k, name in enumerate(physics.STATISTICS[: mean.shape[1]]):
            law = residual(mean[:, k], variance[:, k], errors.nu_moments if k else errors.nu)
            numpyro.sample(name, law, obs=obs.statistics[:, k])


def model(
    obs: SpotStatistics,
    priors: Priors,
    partiality: Partiality = physics.gaussian,
    spot_shape: Callable[..., Any] = round_spot,
    errors: Callable[..., Errors] = learned,
    terms: int = 4,
    correction: Callable[..., jax.Array] = physics.uncorrected,
    blocks: Callable[..., physics.Array | None] = physics.even_blocks,
) -> None:
    """Joint density of the unknowns and the frozen statistics of ``obs`` (SpotStatistics).

    ``partiality``, ``spot_shape``, ``errors``, ``correction`` and ``blocks`` are the pieces that
    can be replaced; ``terms`` is how many of the six statistics are used: 1 total, 3 with the
    centroid, 4 with the spread, 6 with the quadrupoles.
    """
    run = what_the_run_shares(obs, priors)
    wrong = errors(obs, priors, terms)  # what photons and geometry do not explain
    with numpyro.plate("image", len(obs.fit), dim=-2):
        image = what_an_image_has(obs, priors, run, blocks)
        R1_moment = spot_shape(obs, image.R1, priors)
        curve = partiality.of_images(normal)

    # 1. where: orientation, cell and detector move the spot
    place = placed(obs, image, run)

    # 2. how wide: mosaic spread and bandwidth smear it
    smear = run.R0, run.bandwidth, image.mosaic_mrad2
    spot = physics.smeared_spot(obs, place, *smear, R1_moment, curve, image.uneven_blocks)
    spot = physics.blurred(spot, wrong)

    # 3. how bright: J_model = G · B_term · p · I_ref
    p = curve.of(spot, run.R0)
    scale = jnp.exp(image.log_G) * physics.debye_waller(image.B, obs.norm_q) * p
    scale = correction(obs, scale)
    J_model = scale * obs.intensity_reference

    # what the spot's shoebox then shows
    of_blocks = curve.block_variance(spot)
    expected = physics.expected_statistics(obs, spot, J_model, wrong, of_blocks, terms)
    likelihood(obs, expected.mean, expected.variance, wrong)

    numpyro.deterministic("scale", scale)
    numpyro.deterministic("partiality", p)
    numpyro.deterministic("excitation_error", spot.excitation_error)
    numpyro.deterministic("spot_moment", jnp.stack([spot.m11, spot.m22, spot.m12], 1))
    numpyro.deterministic("relative_variance", expected.relative_variance)
