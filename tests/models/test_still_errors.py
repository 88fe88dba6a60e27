"""What counting does not explain, in the model "still": against Poisson pictures of spots.

Spots are integrated over pixels with the error function, not with the library's template.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from scipy.stats import norm

from bayes_refine.loading import load_file, load_model
from bayes_refine.measuring.shoebox import cut_shoeboxes, shoebox_for_width
from bayes_refine.measuring.statistics import Statistics, measure
from bayes_refine.physics.observations import STATISTICS, SpotStatistics
from bayes_refine.physics.priors import Priors

N, SIZE = 4000, 23
PIXEL = 1e-3  # Å⁻¹
R0 = 4e-4
ONE = 1.0  # px, R1
NORM_Q = np.linspace(0.15, 0.35, N)  # Å⁻¹


def displacements(off_px, fall) -> np.ndarray:
    """(N, 2) sd in px along e1 and e2: ``off_px`` at 1/d = 0.25 Å⁻¹, ln of it falls with 1/d."""
    return off_px * np.exp(-np.outer(NORM_Q - 0.25, fall))


def pictures(J, background, off, wider, rng) -> Statistics:
    """Statistics of N spots of R1 = 1 px, of J photons (N, or all the same), displaced by N(0,
    off²), off (N, 2), and their R1²/2 changed by N(0, wider²) of their mean width, measured with
    the template of their average."""
    J = np.broadcast_to(J, N)
    at = SIZE / 2 + off * rng.standard_normal((N, 2))
    average = ONE**2 / 2 + off**2
    sd = np.sqrt(ONE**2 / 2 + average.sum(1) * wider * rng.standard_normal(N))
    edges = np.arange(SIZE + 1) - at[:, :, None]
    x, y = np.moveaxis(np.diff(norm.cdf(edges / sd[:, None, None]), axis=2), 1, 0)
    spots = J[:, None, None] * y[:, :, None] * x[:, None]
    images = rng.poisson(background + spots).astype(np.float32)
    box = shoebox_for_width(ONE)
    boxes = cut_shoeboxes(
        images,
        np.ones(images.shape, bool),
        np.arange(N),
        np.full((N, 2), SIZE / 2),
        np.ones(N, bool),
        box,
    )
    moment = np.column_stack([average * PIXEL**2, np.zeros(N)])
    return measure(
        boxes, np.tile(np.eye(2) * PIXEL, (N, 1, 1)), moment, np.full(N, np.median(J)), box
    )


def on_the_sphere(s: Statistics, J, average) -> SpotStatistics:
    """One image with N such reflections, of which geometry says nothing."""
    flat, unit = np.ones((1, N)), np.tile(np.eye(3)[:, None, :, None], (1, 1, 1, N))
    return SpotStatistics(
        fit=np.ones((1, N), bool),
        statistics=s.value.T[None],
        response=np.moveaxis(s.response, 0, -1)[None],
        variance_background=s.variance_background.T[None],
        variance_signal=s.variance_signal.T[None],
        width=s.width[None],
        saturation=s.saturation[None],
        template_moment=np.vstack([average.T, np.zeros(N)])[None] * PIXEL**2,
        intensity_reference=J * flat,
        reference_error=0 * flat,
        norm_q=NORM_Q[None],
        sin_theta=0.1 * flat,
        cos_theta=flat,
        e1=unit[0],
        e2=unit[1],
        s_hat=unit[2],
        q=np.zeros((1, 3, N)),
        excitation_error=0 * flat,
        detector_axes=np.zeros((1, 2, 3, N)),
        azimuth=np.ones((1, 2, N)),
        wavevector=np.ones((1, 1)),
        bandwidth=np.array(1e-6),
        strain_basis=np.zeros((1, 2, 3, 3)),
        current_setting=np.eye(3)[None],
        current_shift=np.zeros((1, 3)),
        log_G0=np.array(0.0),
        pixel_inv_angstrom=np.array(PIXEL),
    )


def true_values(off_px, fall, wider) -> dict:
    """The unknowns of ``pictures``, their J as the reference says."""
    return {
        "log_R0": np.log(R0),
        "log_bandwidth": np.log(1e-6),
        "log_mosaic_mrad": np.log(1e-3),
        "log_mosaic_image_mrad": np.log(np.full((1, 1), 1e-3)),
        "detector_shift_mm": np.zeros(3),
        "log_model_error": np.log(1e-4),
        "model_error_fall": 0.0,
        "speckle_variance": 1e-6,
        "log_position_error": np.log(np.multiply(off_px, PIXEL)),
        "position_error_fall": np.array(fall),
        "log_shape_error": np.log(wider),
        "log_G": np.zeros((1, 1)),
        "B": np.zeros((1, 1)),
        "rotation_mrad": np.zeros((1, 1, 3)),
        "strain": np.zeros((1, 1, 2)),
        "mosaic_shape": np.zeros((1, 1, 5)),
        "log_R1": np.log(np.full((1, 1), ONE * PIXEL)),
    }


def traced(truth, obs: SpotStatistics, priors: Priors) -> dict:
    """Sites of the model at the truth."""
    given = numpyro.handlers.substitute(load_model("still"), data=truth)
    return numpyro.handlers.trace(numpyro.handlers.seed(given, jax.random.key(0))).get_trace(
        obs, priors
    )


def standard_residuals(obs: SpotStatistics, off_px, fall, wider) -> np.ndarray:
    """(4, N) of the four statistics at the truth."""

    @jax.jit
    def expected(truth, obs):
        trace = traced(truth, obs, replace(Priors(), student_t_nu=np.inf))
        sites = [trace[name]["fn"].base_dist for name in STATISTICS[:4]]
        return jnp.array([[x.mean[0], jnp.sqrt(x.variance[0])] for x in sites])

    truth = true_values(off_px, fall, wider)
    mean, sd = np.moveaxis(np.asarray(expected(truth, obs)), 1, 0)
    return (np.asarray(obs.statistics)[0, :4] - mean) / sd


@pytest.mark.parametrize(
    ("J", "background", "off_px", "fall", "wider"),
    [
        (300.0, 3.0, (1e-3, 1e-3), (0.0, 0.0), 1e-3),
        (300.0, 3.0, (0.1, 0.1), (0.0, 0.0), 1e-3),
        (300.0, 3.0, (0.05, 0.15), (4.0, -3.0), 1e-3),
        (3000.0, 30.0, (1e-3, 1e-3), (0.0, 0.0), 0.06),
    ],
    ids=["counting alone", "displaced", "displaced one way, by resolution", "widened"],
)
def test_spots_displaced_and_widened_by_chance(J, background, off_px, fall, wider):
    """Mean 0 within 0.11 and sd 1 within 0.08, five standard errors, of each half by resolution.

    Without what displacements add to the mean spot the second's spread is off by 0.2; without
    what widening does to the total, J(r_03 ξ), the last's has sd 1.3.
    """
    off = displacements(off_px, fall)
    found = pictures(J, background, off, wider, np.random.default_rng(2))
    obs = on_the_sphere(found, J, ONE**2 / 2 + off**2)
    r = standard_residuals(obs, off_px, fall, wider).reshape(4, 2, N // 2)
    np.testing.assert_allclose(r.mean(2), 0, atol=0.11)
    np.testing.assert_allclose(r.std(2), 1, atol=0.08)


def test_moments_have_no_say_in_how_far_intensities_are_off():
    """Intensities off by 0.2 of a Student-t: the slope of ln p of the moments with ln of that.

    Moments are of the photons that are there.  Given an outlying total, they are not those of
    J_model: were they taken for them, a larger model error would mend it (5 standard errors here).
    That holds for spots brighter than counting hides: at 30 photons they still ask for more.
    """
    rng, J, nu, error = np.random.default_rng(3), 300.0, 3.0, 0.2
    photons = J * np.maximum(1 + error * rng.standard_t(nu, N), 0)
    off = displacements((0.1, 0.1), (0.0, 0.0))
    found = pictures(photons, 3.0, off, 1e-3, rng)
    obs = on_the_sphere(found, J, ONE**2 / 2 + off**2)
    truth = true_values((0.1, 0.1), (0.0, 0.0), 1e-3)
    truth |= {"log_nu": np.log(nu), "log_nu_moments": np.log(1e3)}

    @jax.jit
    def of_moments(log_error):
        sites = traced(truth | {"log_model_error": log_error}, obs, Priors())
        terms = [sites[name]["fn"].log_prob(sites[name]["value"]) for name in STATISTICS[1:4]]
        return jnp.sum(jnp.stack(terms), axis=(0, 1))

    slopes = np.asarray(jax.jit(jax.jacfwd(of_moments))(np.log(error)))
    assert abs(slopes.sum()) < 4 * np.sqrt(np.sum(slopes**2))


def test_perfect_is_the_plain_model():
    """No site of an error; residuals are normal with the variances of counting alone."""
    seen = pictures(300.0, 3.0, displacements((1e-3, 1e-3), (0, 0)), 1e-3, np.random.default_rng(4))
    obs = on_the_sphere(seen, 300.0, ONE**2 / 2 + np.zeros((N, 2)))
    plain = partial(load_model("still"), errors=load_file("still").perfect)
    truth = true_values((1e-3, 1e-3), (0.0, 0.0), 1e-3)
    given = numpyro.handlers.substitute(plain, data=truth)
    sites = {}

    @jax.jit
    def variances():
        seeded = numpyro.handlers.seed(given, jax.random.key(0))
        sites.update(numpyro.handlers.trace(seeded).get_trace(obs, Priors()))
        return [sites[name]["fn"].base_dist.variance for name in STATISTICS[:4]]

    found = variances()
    latent = {k for k, s in sites.items() if s["type"] == "sample" and not s["is_observed"]}
    errors = {"log_model_error", "model_error_fall", "speckle_variance", "log_position_error"}
    errors |= {"position_error_fall", "log_shape_error"}
    assert latent == set(truth) - errors
    counting = obs.variance_background + 300.0 * obs.variance_signal
    for k, variance in enumerate(found):
        assert variance.shape == (1, N)
        np.testing.assert_allclose(variance, counting[:, k], rtol=1e-6)
