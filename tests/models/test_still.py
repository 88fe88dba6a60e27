"""The model "still" on simulated images: a true mode, the truth recovered, sabotage noticed."""

from __future__ import annotations

from dataclasses import replace

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer.util import log_density, potential_energy

from bayes_refine import physics
from bayes_refine.geometry.crystal import strain_basis
from bayes_refine.infer import predictive_draws
from bayes_refine.loading import load_model
from bayes_refine.physics import expected as expected_statistics
from bayes_refine.physics.observations import STATISTICS

GOOD = slice(0, 4)  # images of ``small_run`` that nobody spoiled


@pytest.fixture(scope="module")
def fitted(small_run):
    """The run and its priors; truth by name; R0 5e-4, R1 8e-4 Å⁻¹, no mosaic spread."""
    with h5py.File(small_run.data / "truth.h5") as file:
        truth = {name: file[name][()] for name in file}
        for name in ("pixel_size_mm", "distance_error_mm", "bandwidth"):
            truth[name] = file.attrs[name]
        truth["beam_center_error_px"] = np.array(file.attrs["beam_center_error_px"])
    return small_run.given["run"], small_run.given["priors"], truth


def test_the_gradient_of_numpyro_s_density_vanishes_at_the_mode(fitted):
    """In units of the posterior sd, of the very program: nothing of ``infer`` enters.

    The fit was asked for a distance of 1e-2 sd; a single unknown's own slope times its
    marginal sd can be larger by its correlation with the others.  Of the images' unknowns: what
    they share is where its own marginal density is largest (``test_marginal``).
    """
    run, priors, _ = fitted
    model, values = load_model("still"), run.fit.values()
    energy = jax.jit(jax.grad(lambda p, o: potential_energy(model, (o, priors), {}, p)))
    slope = energy({k: jnp.asarray(v) for k, v in values.items()}, run.observations)
    assert set(slope) == {site.name for site in run.fit.sites}
    of_images = {site.name for site in run.fit.sites if site.per_image}
    for name, g in slope.items():
        assert np.all(np.isfinite(g)), name
        if name not in of_images:
            continue
        sd = run.fit.sd(name).reshape(g.shape)
        assert np.abs(np.asarray(g) * sd).max() < 0.05, name
    # away from the mode it does not: half an sd in one unknown
    sd = run.fit.sd("log_R1")[0, 0]
    away = {**values, "log_R1": values["log_R1"] + 0.5 * sd}
    assert np.abs(energy(away, run.observations)["log_R1"][GOOD] * sd).max() > 0.2


def test_prediction_of_a_reflection_does_not_ask_whether_it_was_fitted(fitted):
    """Replicates of free reflections at the mode are those of fitted ones, number by number."""
    run, priors, _ = fitted
    obs = run.observations
    known = np.asarray(obs.intensity_reference) > 0
    assert (known & ~np.asarray(obs.fit))[GOOD].sum() > 20  # the free set
    once = {k: np.asarray(v)[None] for k, v in run.fit.values().items()}

    def replicates(obs):
        rng = np.random.default_rng(0)
        (sites,) = predictive_draws(load_model("still"), once, obs, priors, rng=rng)
        return np.stack([np.where(known, replica, 0.0) for _, replica in sites.values()])

    everything = replicates(replace(obs, fit=jnp.asarray(known)))
    np.testing.assert_allclose(replicates(obs), everything, rtol=1e-12)


def rotation_vector(R: np.ndarray) -> np.ndarray:
    """mrad, of a small rotation: the antisymmetric part is sin(angle)·axis."""
    return 1e3 * np.array([R[2, 1] - R[1, 2], R[0, 2] - R[2, 0], R[1, 0] - R[0, 1]]) / 2


def test_the_truth_is_within_four_posterior_sd(fitted):
    """Orientation, strain, ln G, B, R1 of each image; R0, bandwidth, the detector of the run."""
    run, _, truth = fitted
    assert np.all(run.status[GOOD] == "converged")
    found = run.fit.values()
    pulls = {}
    for name, expected in {
        "log_G": np.log(truth["G"])[:, None],
        "B": truth["B"][:, None],
        "log_R1": np.full((len(truth["G"]), 1), np.log(truth["R1"])),
    }.items():
        pulls[name] = (found[name][GOOD] - expected[GOOD]) / run.fit.sd(name)[GOOD]
    for i in range(GOOD.stop):  # A_true = exp[ω]× (1 + E) A_indexed, by polar decomposition
        u, s, vt = np.linalg.svd(truth["A"][i] @ np.linalg.inv(run.indexed[i].crystal.A))
        basis = strain_basis(run.indexed[i].crystal)
        strain = np.einsum("kij,ij->k", basis, vt.T @ np.diag(s) @ vt - np.eye(3))
        for name, expected in {"rotation_mrad": rotation_vector(u @ vt), "strain": strain}.items():
            pulls[name, i] = (found[name][i, 0] - expected) / run.fit.sd(name)[i, 0]
            assert np.all(run.fit.sd(name)[i] < {"rotation_mrad": 0.5, "strain": 1e-3}[name])
    shift = np.array([*(-truth["beam_center_error_px"] * truth["pixel_size_mm"]), 0.0])
    shift[2] = -truth["distance_error_mm"]
    pulls["shift"] = (found["detector_shift_mm"] - shift) / run.fit.sd("detector_shift_mm")
    for name in ("R0", "bandwidth"):
        off = found[f"log_{name}"] - np.log(truth[name])
        pulls[name] = off / run.fit.sd(f"log_{name}")
    for name, pull in pulls.items():
        assert np.all(np.abs(pull) < 4), (name, pull)
    every = np.concatenate([np.ravel(p) for p in pulls.values()])
    assert 0.5 < np.sqrt(np.mean(every**2)) < 1.6  # neither over- nor underconfident: ~40 numbers


# -- sabotage -----------------------------------------------------------------------------------

REPLICAS = 127  # and one data set of which nothing is seen
AT_A_TIME = 16  # data sets, so that memory does not grow with their number


@pytest.fixture(scope="module")
def replicas(fitted):
    """The truth (the mode, with errors of the size of their priors) and data sets drawn from it.

    Only images that were used; each data set replaces the frozen statistics of all reflections.
    """
    run, priors, _ = fitted
    model = load_model("still")
    values = {k: jnp.asarray(v) for k, v in run.fit.values().items()}
    pixel = float(run.observations.pixel_inv_angstrom)
    for name, value in {
        "model_error": 0.1,
        "position_error": 0.05 * pixel,
        "shape_error": 0.1,
    }.items():
        values[f"log_{name}"] = jnp.full(np.shape(values[f"log_{name}"]), np.log(value))
    values["speckle_variance"] = jnp.array(0.01)
    rotation = values["rotation_mrad"]
    assert np.abs(rotation[GOOD]).max() > 0.3  # so that its sign matters

    def draw(key):
        """Totals, then moments of the photons that those say are there."""
        statistics = run.observations.statistics
        seeded = numpyro.handlers.seed(numpyro.handlers.substitute(model, data=values), key)
        keys = jax.random.split(key, 4)
        for which in (slice(0, 1), slice(1, 4)):
            obs = replace(run.observations, statistics=statistics)
            trace = numpyro.handlers.trace(seeded).get_trace(obs, priors)
            names = zip(STATISTICS[which], keys[which], strict=True)
            drawn = [trace[name]["fn"].sample(k) for name, k in names]
            statistics = statistics.at[:, which].set(jnp.stack(drawn, 1))
        return statistics

    keys = jax.random.split(jax.random.key(0), REPLICAS + 1)
    data = jax.jit(lambda keys: jax.lax.map(draw, keys, batch_size=AT_A_TIME))(keys)
    return values, data, run.observations, priors


def worst_score(model, replicas) -> tuple[str, float]:
    """The unknown whose score is furthest from 0 at the truth, in standard errors of the mean.

    The score ∂ ln p(data | θ)/∂θ at the true θ averages to zero over data sets drawn at θ, if
    and only if the density is that of the data (to first order); the prior's part is taken out.
    Each image's unknowns are summed over images.
    """
    values, data, obs, priors = replicas

    def density(p, statistics, seen):
        seen = replace(obs, statistics=statistics, fit=obs.fit & seen)
        return log_density(model, (seen, priors), {}, p)[0]

    # in the last row nothing is seen: the prior's part
    rows = data, jnp.arange(len(data)) < REPLICAS

    @jax.jit
    def slopes_of(values, rows):
        slope = jax.grad(density)
        return jax.lax.map(lambda row: slope(values, *row), rows, batch_size=AT_A_TIME)

    slopes = slopes_of(values, rows)
    worst = "", 0.0
    for name, slope in slopes.items():
        score = np.asarray(slope[:-1] - slope[-1:])
        per_image = score.ndim > 2 or score.shape[1:] == (len(obs.fit), 1)
        rows = (score.sum(1) if per_image else score).reshape(REPLICAS, -1)
        sd = rows.std(0, ddof=1)
        if name == "log_mosaic_mrad":  # reaches the data through each image's own alone
            np.testing.assert_allclose(rows, 0, atol=1e-9)
            continue
        t = np.abs(rows.mean(0)) / (sd / np.sqrt(REPLICAS))
        if t.max() > worst[1]:
            worst = name, float(t.max())
    return worst


LIMIT = 4.5  # of ~25 numbers, Student's t: far beyond chance


def test_the_true_model_passes(replicas):
    assert worst_score(load_model("still"), replicas)[1] < LIMIT


def test_sigma_without_its_logarithm_is_noticed(replicas, with_residual):
    """Σ r² alone is not a likelihood: it rewards large σ."""

    class WithoutLogSigma(dist.StudentT):
        def log_prob(self, value):
            return super().log_prob(value) + jnp.log(self.scale)

    model = with_residual(
        load_model("still"), lambda mean, v, nu: WithoutLogSigma(nu, mean, jnp.sqrt(v))
    )
    name, score = worst_score(model, replicas)
    assert score > 3 * LIMIT and name.endswith("error"), (name, score)


def test_a_wrong_sign_of_the_rotation_is_noticed(replicas, monkeypatch):
    true = physics.place_on_detector
    monkeypatch.setattr(
        physics, "place_on_detector", lambda obs, omega, *rest: true(obs, -omega, *rest)
    )
    assert worst_score(load_model("still"), replicas)[1] > 3 * LIMIT


@pytest.mark.parametrize("factor", [4.0, 0.25])
def test_a_wrong_variance_of_J_is_noticed(replicas, monkeypatch, factor):
    true = expected_statistics.counting_variance
    monkeypatch.setattr(
        expected_statistics,
        "counting_variance",
        lambda *args: true(*args).at[:, 0].multiply(factor),
    )
    name, score = worst_score(load_model("still"), replicas)
    assert score > 3 * LIMIT, (name, score)
