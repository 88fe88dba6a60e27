"""Frames of one crystal share unknowns; the exact posterior of a linear model is the reference."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from bayes_refine import infer, physics
from bayes_refine.fitting.padding import geometry_observations, layout
from bayes_refine.fitting.state import Geometry
from bayes_refine.fitting.sweeps import in_sweeps, sweeps_at
from bayes_refine.geometry.crystal import Crystal, rotation_matrix
from bayes_refine.geometry.detector import Beam
from bayes_refine.geometry.experiments import Still
from bayes_refine.geometry.predict import predict
from bayes_refine.infer import normal
from bayes_refine.loading import load_file
from bayes_refine.physics.observations import Sweeps
from bayes_refine.physics.priors import Priors
from bayes_refine.simulation.truth import Simulation, square_detector

SIMULATION = Simulation()
TURN = 1e3 * np.radians([0.5, 0, 0])


def stills(n, single=0):
    """n frames of one crystal and single frames of others."""
    axes = np.array([0.0, 0.0, 1.0]), np.array([0.0, 1.0, 0.0])
    beam = Beam(1.0, *axes, bandwidth=1e-3)
    detector = square_detector(SIMULATION, 110.0, SIMULATION.beam_center_px)
    B = np.diag([1 / 79.3, 1 / 79.3, 1 / 37.8])
    found = []
    for k in range(n + single):
        start = rotation_matrix(np.array([300.0 + 400 * max(k - n + 1, 0), 200.0, -500.0]))
        A = rotation_matrix(k * TURN) @ start @ B
        crystal = Crystal(A, SIMULATION.hall)
        found.append(Still(f"{k}", Path("run.h5"), k, beam, detector, crystal, TURN))
    return in_sweeps(found)


class Seen(NamedTuple):
    """ln G of each frame as measured to 0.1, strain (n, 2) to 3e-4."""

    sweeps: Sweeps
    log_G: np.ndarray
    strain: np.ndarray


def linear(obs, priors):
    """The priors of a sweep, and direct measurements of what frames have."""
    r = obs.sweeps.smooth.shape[1]
    first = physics.smooth_prior(obs, (1.0, priors.log_G_sd), priors.log_G_change_sd)
    nothing = jnp.zeros(1)
    shared = physics.OfSweeps(
        normal("log_G_sweep", *first, r),
        jnp.zeros(r),
        normal("strain_sweep", 0.0, priors.strain_sd, 2),
        nothing,
        jnp.zeros(5),
    )
    zero = 0.0, 1.0
    about = physics.About((1.0, 2.0), zero, (0.0, priors.strain_sd), (1.0, 0.2), zero)
    about = physics.about_sweeps(obs, priors, about, shared)
    with numpyro.plate("image", len(obs.log_G), dim=-2):
        log_G = numpyro.sample("log_G", dist.Normal(*about.log_G))
        strain = normal("strain", *about.strain, 2)
        numpyro.sample("G_seen", dist.Normal(log_G, 0.1), obs=obs.log_G)
        numpyro.sample("strain_seen", dist.Normal(strain, 3e-4).to_event(1), obs=obs.strain)


def posterior_of(noise, prior, y, mean):
    """Mean and sd (n,) of x ~ N(mean, prior) measured as y to ``noise``."""
    gain = prior @ np.linalg.inv(prior + noise**2 * np.eye(len(y)))
    return mean + gain @ (y - mean), np.sqrt(np.diag(prior - gain @ prior))


def test_frames_have_the_posterior_of_what_they_share():
    """Of 30 frames: closed forms of the Gaussian process that the sweep's unknowns amount to."""
    n, rng, priors = 30, np.random.default_rng(0), Priors(frame_log_G_sd=0.03)
    sweeps = sweeps_at(stills(n), n)
    wave = 1 + 0.2 * np.sin(np.arange(n) / 8) + 0.03 * rng.standard_normal(n)
    seen = Seen(
        sweeps,
        (wave + 0.1 * rng.standard_normal(n))[:, None],
        8e-4 + 3e-4 * rng.standard_normal((n, 1, 2)),
    )
    fit = infer.map_fit(linear, seen, priors, tolerance=1e-3)
    first = np.append([2.0**2], [priors.log_G_change_sd**2] * (sweeps.smooth.shape[1] - 1))
    prior = sweeps.smooth * first @ sweeps.smooth.T + priors.frame_log_G_sd**2 * np.eye(n)
    mean, sd = posterior_of(0.1, prior, seen.log_G[:, 0], 1.0)
    np.testing.assert_allclose(fit.values()["log_G"][:, 0], mean, atol=1e-5)
    np.testing.assert_allclose(fit.sd("log_G")[:, 0], sd, rtol=1e-3)
    assert sd.max() < 0.065  # each frame for itself: 0.1
    one = priors.strain_sd**2 * np.ones((n, n)) + priors.frame_strain_sd**2 * np.eye(n)
    mean, sd = posterior_of(3e-4, one, seen.strain[:, 0, 0], 0.0)
    np.testing.assert_allclose(fit.values()["strain"][:, 0, 0], mean, atol=1e-8)
    np.testing.assert_allclose(fit.sd("strain")[:, 0, 0], sd, rtol=1e-3)
    assert sd.max() < 1.2e-4


def observations(frames):
    n = len(frames)
    hkl = np.array([[5, 3, 2], [4, 4, 1]])
    p = predict(frames[0], hkl, 2.6, lambda d: np.full_like(d, 1.0))
    current = Geometry(np.zeros((n, 3)), np.zeros((n, 2)), np.zeros(3))
    obs = geometry_observations(list(frames), p, layout(p.image, n, 32), current, 1e-3)
    return replace(obs, sweeps=sweeps_at(frames, n))


def sites_of(obs, seed=0):
    model, priors = load_file("still"), Priors()

    def unknowns():
        run = model.what_the_run_shares(obs, priors)
        with numpyro.plate("image", len(obs.fit), dim=-2):
            image = model.what_an_image_has(obs, priors, run)
            numpyro.deterministic("covariance", image.mosaic_mrad2)

    return numpyro.handlers.trace(numpyro.handlers.seed(unknowns, seed)).get_trace()


def test_the_still_model_samples_what_frames_share_about_the_run():
    """Eight frames and two single ones: priors about the sweep's numbers, and a still's own."""
    obs, priors = observations(stills(8, single=2)), Priors()
    sites = sites_of(obs)
    value = {
        name: np.asarray(site["value"]) for name, site in sites.items() if site["type"] != "plate"
    }
    law = lambda name: sites[name]["fn"]  # noqa: E731
    smooth = obs.sweeps.smooth
    assert smooth.shape == (10, 2) and value["log_G_sweep"].shape == (2,)
    base = law("log_G")
    np.testing.assert_allclose(base.loc[:8, 0], smooth[:8] @ value["log_G_sweep"])
    np.testing.assert_allclose(base.scale[:, 0], [priors.frame_log_G_sd] * 8 + [2.0] * 2)
    np.testing.assert_allclose(law("B").loc[:8, 0], smooth[:8] @ value["B_sweep"])
    np.testing.assert_allclose(law("B").loc[8:, 0], priors.B_mean)
    strain = law("strain").base_dist
    np.testing.assert_allclose(strain.loc[:8, 0], np.tile(value["strain_sweep"], (8, 1)))
    np.testing.assert_allclose(strain.loc[8:], 0.0)
    np.testing.assert_allclose(strain.scale[[7, 8], 0, 0], [1e-4, 3e-3])
    mosaic = law("log_mosaic_image_mrad")
    expected = value["log_mosaic_mrad"] + np.append([value["log_mosaic_sweep"][0]] * 8, [0, 0])
    np.testing.assert_allclose(mosaic.loc[:, 0], expected)
    # the blocks turn with the crystal
    covariance = value["covariance"]
    own = physics.mosaic_covariance(
        np.exp(value["log_mosaic_image_mrad"][:, 0]), value["mosaic_shape"][:, 0]
    )
    R = rotation_matrix(7 * TURN)
    np.testing.assert_allclose(covariance[7], R @ np.asarray(own)[7] @ R.T, rtol=1e-6)
    np.testing.assert_allclose(covariance[9], np.asarray(own)[9], rtol=1e-12)


def test_without_sweeps_there_are_no_unknowns_of_sweeps():
    frames = stills(4)
    assert frames[0].sweep is None
    sites = sites_of(observations(frames))
    assert not [name for name in sites if "sweep" in name]
    assert sites["log_G"]["fn"].variance[0, 0] == pytest.approx(4.0)
