"""The per-pixel model and its solver: the density is NumPyro's, the mode scipy's, the truth found;
and what is known of weights that look at the counts."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import least_squares

from bayes_refine import infer
from bayes_refine.fitting.measure_batch import Plan
from bayes_refine.fitting.measure_run import MeasuredRun
from bayes_refine.fitting.problem import Run
from bayes_refine.infer import density as densities
from bayes_refine.loading import load_model
from bayes_refine.measuring.shoebox import Shoebox
from bayes_refine.per_pixel import curvature, pixel_noise, profile
from bayes_refine.per_pixel.curvature import spot_curvature, spot_sums, with_noise
from bayes_refine.per_pixel.pixels import Pixels, frozen, pixels_of
from bayes_refine.physics.spot import Spot

from ..automatic_curvature import fisher_curvature

GOOD = slice(0, 4)  # images of ``small_run`` that nobody spoiled
NOISES = (
    pixel_noise.moving_variance,
    pixel_noise.poisson,
    partial(pixel_noise.student_t, nu=4.0, model_error=0.1),
)


@pytest.fixture(scope="module")
def model():
    return load_model("per_pixel")


@pytest.fixture(scope="module")
def seen(small_run, model):
    """Pixels of the small run's last boxes, with σ frozen at the factored mode, and that mode."""
    given = small_run.given
    run, priors, settings = given["run"], given["priors"], given["settings"]
    still = given["model"]
    whole = Run(run.indexed, given["ref"], given["reader"], still, settings, ())
    state = run.fit.values()
    counts = np.bincount(run.reflections.image, minlength=len(run.stills))
    last = MeasuredRun(run.batches, run.observed, counts, state["log_G"], Plan())
    pixels = pixels_of(whole, last, state, priors)
    return frozen(pixels, infer.evaluate(model, state, pixels, priors)["spots"]), state, priors


def test_the_pixels_are_those_of_the_statistics(small_run, seen):
    """Profile fitting on them at the current state gives the frozen J again."""
    pixels, _, _ = seen
    r = pixels.reflections
    moment = [jnp.asarray(r.template_moment[:, k]) for k in range(3)]
    zero = jnp.zeros_like(moment[0])
    spots = pixels.spots(Spot(zero, zero, zero, zero, *moment), zero)
    template = np.asarray(
        profile.photons(pixels.offsets, spots.at[:, 0].set(1.0), zero[:, None], pixels.nodes)
    )
    # weights as of the statistics: expected variance at the current state's J, nearly the mode's
    weight = template * pixels.usable / pixels.variance
    known, signal = np.asarray(r.fit), np.maximum(np.asarray(r.statistics[:, 0]), 0)
    sd = np.sqrt(np.asarray(r.variance_background[:, 0] + signal * r.variance_signal[:, 0]))
    total, norm = (
        (weight * x).sum(1)[known] for x in (pixels.photons - pixels.background, template)
    )
    off = (total / norm - np.asarray(r.statistics[:, 0])[known]) / sd[known]
    assert known.sum() > 300
    assert np.sqrt(np.mean(off**2)) < 0.2  # of the sd of J, from the weights' differences


@pytest.mark.parametrize("noise", NOISES, ids=lambda f: getattr(f, "__name__", "student_t"))
def test_curvature_by_spots_is_fishers_of_the_model(seen, model, noise):
    """Six numbers a spot, chained, against forward derivatives of every pixel's likelihood."""
    pixels, state, priors = seen
    n = len(pixels.reflections.fit)
    one = jax.tree.map(lambda x: x[:1] if np.ndim(x) > 1 and len(x) == n else x, pixels)
    start = {k: v[:1] if np.ndim(v) > 1 else v for k, v in state.items()}
    noisy = with_noise(model, noise)
    sites, values = densities.find_sites(noisy, (one, priors), start)
    theta, phi = densities.flatten(sites, values)
    rest = np.ones(1), 1.0
    by_spots = spot_curvature(noise)(noisy, sites, False)(theta, phi, *rest, None, (one, priors))
    by_pixels = jax.jit(lambda t, p: fisher_curvature(noisy, sites, t, p, *rest, (one, priors)))(
        theta, phi
    )
    sd = 1 / np.sqrt(np.diagonal(by_pixels.blocks[0])), 1 / np.sqrt(np.diag(by_pixels.shared))
    for part, left, right in (("blocks", 0, 0), ("coupling", 0, 1), ("shared", 1, 1)):
        unit = np.outer(sd[left], sd[right])
        found, exact = (np.asarray(getattr(x, part)) * unit for x in (by_spots, by_pixels))
        np.testing.assert_allclose(found, exact, atol=1e-6)


@pytest.fixture(scope="module")
def fitted(seen, model):
    """Poisson, from where nothing is known of the images."""
    pixels, state, priors = seen
    start = {k: v for k, v in state.items() if k in ("log_G", "log_R1")}
    return curvature.pixel_fit(model, pixel_noise.poisson, pixels, priors, start)


def test_the_truth_is_within_four_posterior_sd(fitted, small_run):
    """The simulator's physics is the model's: ln G, B, ln R1 and R0; rms pull about one."""
    with h5py.File(small_run.data / "truth.h5") as file:
        truth = {name: file[name][()] for name in ("G", "B", "R0", "R1")}
    assert np.all(fitted.status[GOOD] == "converged")
    found, pulls = fitted.values(), []
    for name, true in {
        "log_G": np.log(truth["G"])[GOOD, None],
        "B": truth["B"][GOOD, None],
        "log_R1": np.log(truth["R1"]),
    }.items():
        pulls.append(((found[name][GOOD] - true) / fitted.sd(name)[GOOD]).ravel())
    pulls.append(np.atleast_1d((found["log_R0"] - np.log(truth["R0"])) / fitted.sd("log_R0")))
    every = np.concatenate(pulls)
    assert np.all(np.abs(every) < 4), every
    assert 0.5 < np.sqrt(np.mean(every**2)) < 1.6


def test_the_mode_is_numpyro_s(fitted, seen, model):
    """The slope of the program's own density there, in posterior sd; half an sd away it shows."""
    pixels, _, priors = seen
    sites = fitted.sites

    @jax.jit
    def slope(theta, phi):
        def total(t, p):
            image, shared = densities.density(model, sites, t, p, (pixels, priors))
            return image.sum() + shared

        return jax.grad(total, (0, 1))(theta, phi)

    sd = np.sqrt(np.diagonal(fitted.image_covariance(), axis1=1, axis2=2))
    g_image, _ = slope(fitted.image, fitted.shared)
    assert np.abs(g_image * sd)[GOOD].max() < 0.1
    away, _ = slope(fitted.image + 0.5 * sd, fitted.shared)
    assert np.abs(away * sd)[GOOD].max() > 0.2


def test_least_squares_agree_with_scipy(seen, model):
    """One image, σ frozen, the shared unknowns too: residuals of pixels and of the priors."""
    pixels, state, priors = seen
    n = len(pixels.reflections.fit)
    one = jax.tree.map(lambda x: x[:1] if np.ndim(x) > 1 and len(x) == n else x, pixels)
    start = {k: v[:1] if np.ndim(v) > 1 else v for k, v in state.items()}
    fit = curvature.pixel_fit(
        model, pixel_noise.expected_variance, one, priors, start, tolerance=1e-3
    )
    sites, k = fit.sites, fit.image.shape[1]
    mean, sd = prior_numbers(sites, priors, one)

    @jax.jit
    def expected(x):
        values = densities.unflatten(sites, x[None, :k], x[k:])
        spots = densities.traced(model, values, (one, priors))["spots"]["value"]
        return one.expected(spots)

    use, sigma = np.asarray(one.usable), np.sqrt(np.asarray(one.variance, float))
    place = [s.name for s in sites if not s.per_image for _ in range(s.size)]

    def residuals(x):
        pixel = ((one.photons - np.asarray(expected(jnp.asarray(x)))) / sigma)[use]
        about = mean.copy()
        about[names(sites).index("log_mosaic_image_mrad")] = x[k + place.index("log_mosaic_mrad")]
        return np.concatenate([pixel, (x - about) / sd])

    x0 = np.concatenate([fit.image[0], fit.shared])
    posterior = np.concatenate(
        [np.sqrt(np.diag(fit.image_covariance()[0])), np.sqrt(np.diag(fit.shared_covariance))]
    )
    away = x0 + 0.3 * posterior * np.where(np.arange(len(x0)) % 2, 1, -1)
    found = least_squares(residuals, away, x_scale=posterior, xtol=1e-10, ftol=1e-12)
    assert np.abs((found.x - x0) / posterior).max() < 0.02
    np.testing.assert_allclose(
        np.sqrt(np.diag(np.linalg.inv(found.jac.T @ found.jac))), posterior, rtol=0.02
    )


def names(sites):
    """A name for each of an image's unknowns."""
    return [s.name for s in sites if s.per_image for _ in range(s.size)]


def prior_numbers(sites, priors, pixels):
    """Mean and sd of every unknown, images' first."""
    p, pixel = priors, float(pixels.reflections.pixel_inv_angstrom)
    table = {
        "log_R0": (np.log(p.R0_inv_angstrom), p.log_R0_sd),
        "log_bandwidth": (np.log(float(pixels.reflections.bandwidth)), p.log_bandwidth_sd),
        "log_mosaic_mrad": (np.log(p.mosaic_spread_mrad), p.log_mosaic_spread_sd),
        "log_G": (float(pixels.reflections.log_G0), p.log_G_sd),
        "B": (p.B_mean, p.B_sd),
        "rotation_mrad": (0.0, p.rotation_sd_mrad),
        "strain": (0.0, p.strain_sd),
        "log_mosaic_image_mrad": (0.0, p.log_mosaic_image_sd),
        "mosaic_shape": (0.0, p.mosaic_shape_sd),
        "log_R1": (np.log(p.R1_px * pixel), p.log_R1_sd),
    }
    mean, sd = [], []
    for per_image in (True, False):
        for site in sites:
            if site.per_image == per_image:
                if site.name == "detector_shift_mm":
                    mean += [0.0] * 3
                    sd += [p.beam_center_sd_mm] * 2 + [p.distance_sd_mm]
                else:
                    mean += [table[site.name][0]] * site.size
                    sd += [table[site.name][1]] * site.size
    return np.array(mean, float), np.array(sd, float)


# -- what weights do at low counts ----------------------------------------------------------------


def replicates(J, background, m=8000):
    """Pixels of m spots of the same truth, and those spots (1, 6, m)."""
    offsets = Shoebox(4.0, 5.0, 8.0, 4.0).signal_offsets.astype(float)
    row = np.array([J, 0.2, -0.1, 0.6, 0.5, 0.05])
    spots = jnp.asarray(np.repeat(row[:, None], m, 1)[None])
    mean = profile.photons(offsets, spots[:, :, :1], jnp.full((1, 1), background), 3)
    photons = np.random.default_rng(1).poisson(np.repeat(np.asarray(mean), m, axis=2))
    return (
        Pixels(
            reflections=None,
            photons=jnp.asarray(photons, float),
            usable=jnp.ones(photons.shape, bool),
            variance=jnp.broadcast_to(mean, photons.shape),
            background=jnp.full((1, 1, m), background),
            centre=jnp.zeros((1, 2, m)),
            to_pixel=jnp.zeros((1, 2, 2, m)),
            offsets=jnp.asarray(offsets),
            read_variance=jnp.array(0.0),
            nodes=3,
        ),
        spots,
        np.asarray(mean[0, :, 0]),
    )


@cache
def newton_step(noise):
    """One step of J alone, compiled once."""

    @jax.jit
    def step(pixels, spots):
        def log_p(spots):
            fn, value = noise(pixels.expected(spots), pixels)
            return jnp.where(pixels.usable, fn.log_prob(value), 0.0).sum()

        slope, curved = jax.grad(log_p)(spots), spot_sums(noise, pixels, spots)
        return spots.at[:, 0].add(slope[:, 0] / curved[:, 0, 0])

    return step


def intensities(noise, pixels, spots, steps):
    """(m,) J at the optimum of the pixels' likelihood, all else at the truth."""
    for _ in range(steps):
        spots = newton_step(noise)(pixels, spots)
    return np.asarray(spots[0, 0])


def test_observed_variance_is_biased_low_by_a_photon_a_pixel():
    """⟨J⟩ − J = −Σ(P/μ)/Σ(P²/μ), Neyman's −1 a pixel seen through the profile; the others are
    unbiased (E[1/n] = 1/m + 1/m² + …: at m = 20 the next term is 8 %)."""
    pixels, spots, mean = replicates(J=400.0, background=20.0)
    template = (mean - 20.0) / 400.0
    bias = -np.sum(template / mean) / np.sum(template**2 / mean)
    assert bias < -3  # photons: it matters
    for noise, steps, expected, slack in (
        (pixel_noise.observed_variance, 1, bias, 0.15 * abs(bias)),
        (pixel_noise.expected_variance, 1, 0.0, 0.0),
        (pixel_noise.poisson, 5, 0.0, 0.0),
    ):
        J = intensities(noise, pixels, spots, steps)
        error = J.std() / np.sqrt(len(J))
        assert abs(J.mean() - 400.0 - expected) < 4 * error + slack, noise.__name__
        assert error < 0.1 * abs(bias)


def test_poisson_and_expected_variance_agree_and_observed_variance_at_high_counts_alone():
    """Frozen at the truth, weights by expectation are Poisson's to first order at any count."""
    for J, background, high in ((1e5, 300.0, True), (20.0, 0.3, False)):
        pixels, spots, _ = replicates(J, background)
        poisson = intensities(pixel_noise.poisson, pixels, spots, 8)
        expected = intensities(pixel_noise.expected_variance, pixels, spots, 1)
        observed = intensities(pixel_noise.observed_variance, pixels, spots, 1)
        apart = [np.sqrt(np.mean((x - poisson) ** 2)) / poisson.std() for x in (expected, observed)]
        assert apart[0] < 0.05, apart
        assert (apart[1] < 0.1) == high, apart


def test_poisson_takes_charge_of_a_detector_with_read_noise():
    """Charge over gain is not whole and may be negative: ln p is finite, J unbiased."""
    pixels, spots, mean = replicates(J=400.0, background=2.0)
    noise = 0.8 * np.random.default_rng(3).standard_normal(pixels.photons.shape)
    read = replace(pixels, photons=pixels.photons + noise, read_variance=jnp.array(0.64))
    distribution, value = pixel_noise.poisson(jnp.asarray(mean)[None, :, None], read)
    assert float(read.photons.min()) < 0
    assert np.all(np.isfinite(distribution.log_prob(value)))
    J = intensities(pixel_noise.poisson, read, spots, 5)
    assert abs(J.mean() - 400.0) < 4 * J.std() / np.sqrt(len(J))
