"""Training with everything else profiled out, on a linear model whose answer is known."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy.stats import multivariate_normal

from bayes_refine.infer.batches import Batches
from bayes_refine.infer.profiled import (
    CLOSE,
    draws_about,
    log_evidence,
    precision,
    settled,
    train,
)
from bayes_refine.infer.search import Search

pytest.importorskip("optax")
N, M, SD = 9, 20, 0.3


def model(data, prior_sd, weights):
    """y = θ_i + φ + w·x + noise."""
    x, y = data
    phi = numpyro.sample("phi", dist.Normal(0.0, 10.0))
    with numpyro.plate("image", len(y), dim=-2):
        theta = numpyro.sample("theta", dist.Normal(0.0, prior_sd))
    with numpyro.plate("image", len(y), dim=-2), numpyro.plate("reflection", M, dim=-1):
        numpyro.sample("y", dist.Normal(theta + phi + weights["w"] * x, SD), obs=y)


def no_prior(weights):
    return 0.0 * weights["w"]


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(3)
    x = rng.standard_normal((N, M)) + rng.standard_normal((N, 1))
    y = 1.5 + rng.standard_normal((N, 1)) + 0.7 * x + SD * rng.standard_normal((N, M))
    return x, y


@pytest.fixture(scope="module")
def search(data):
    """Batches of four; the last has places that no image fills."""
    rows = np.minimum(np.arange(12), N - 1).reshape(3, 4)
    parts = [tuple(a[r] for a in data) for r in rows]
    weights = {"w": jnp.zeros(())}
    return Search(model, (Batches(parts, 4, N), 1.0, weights), {"theta": np.zeros((N, 1))})


def covariance(prior_sd=1.0):
    return SD**2 * np.eye(M) + prior_sd**2


def test_weights_reach_the_joint_mode(data, search):
    """Least squares of (w, φ, θ) with the priors' rows."""
    found = train(search, None, {"w": jnp.zeros(())}, no_prior, 0.05, 300)
    x, y = data
    rows = np.zeros((N * M + N + 1, N + 2))
    rows[: N * M, 0], rows[: N * M, 1] = x.ravel() / SD, 1 / SD
    rows[np.arange(N * M), 2 + np.arange(N * M) // M] = 1 / SD
    rows[N * M + np.arange(N), 2 + np.arange(N)] = 1.0
    rows[-1, 1] = 0.1
    best = np.linalg.lstsq(rows, np.concatenate([y.ravel() / SD, np.zeros(N + 1)]), rcond=None)[0]
    assert float(found.weights["w"]) == pytest.approx(best[0], abs=2e-4)
    np.testing.assert_allclose(found.state.phi, best[1], atol=1e-3)
    np.testing.assert_allclose(found.state.theta[:N, 0], best[2:], atol=1e-3)


@pytest.mark.parametrize("scatter", [1.0, 0.0])
def test_the_precision_of_weights_is_that_of_the_marginal(data, scatter):
    """Of least squares, φ and θ eliminated; where x says nothing (0), the prior's, one."""
    x, y = scatter * data[0], data[1]
    rows = np.minimum(np.arange(12), N - 1).reshape(3, 4)
    parts = [(x[r], y[r]) for r in rows]
    weights = {"w": jnp.asarray(0.7)}
    init = {"theta": np.zeros((N, 1))}
    search = Search(model, (Batches(parts, 4, N), 1.0, weights), init)
    found = precision(search, settled(search), weights, lambda w: -0.5 * w["w"] ** 2)
    inverse = np.linalg.inv(covariance())
    a, b = np.einsum("ik,kl,il->", x, inverse, x), np.sum(x @ inverse)
    expected = a - b**2 / (N * inverse.sum() + 0.01) + 1
    np.testing.assert_allclose(found, [[expected]], rtol=1e-4)


def test_draws_have_the_covariance_of_their_precision():
    curvature = np.array([[2.0, 0.6], [0.6, 1.0]])
    draws = draws_about({"w": jnp.array([1.0, -1.0])}, curvature, 4000)
    away = np.stack([d["w"] for d in draws]) - [1.0, -1.0]
    np.testing.assert_allclose(np.cov(away.T), np.linalg.inv(curvature), atol=0.06)


def test_evidence_of_an_image_is_that_of_its_marginal_normal(data, search):
    x, y = data
    phi, w = np.array([1.2]), 0.6
    found, _ = log_evidence(search.given({"w": jnp.asarray(w)}), phi)
    law = multivariate_normal(np.zeros(M), covariance())
    np.testing.assert_allclose(found[:N], law.logpdf(y - phi - w * x), atol=CLOSE**2 / 2)
    assert not found[N:].any()  # unused places


def test_an_image_that_is_held_out_is_followed_however_far_its_mode_is(data, search):
    """Steps are no longer than a prior sd: from thirty of these the mode is thirty steps away."""
    phi, here = np.array([1.2]), search.given({"w": jnp.asarray(0.6)})
    near, state = log_evidence(here, phi)
    far, _ = log_evidence(here, phi, state._replace(theta=state.theta + 30.0))
    np.testing.assert_allclose(far, near, atol=CLOSE**2)


def test_some_batches_are_searched_as_if_they_were_all(data, search):
    few = search.some_batches([0, 2]).given({"w": jnp.asarray(0.7)})
    assert few.n_images == 5 and list(few.weight) == [1, 1, 1, 1, 1, 0, 0, 0]
    state = settled(few)
    x, y = data
    used = np.array([0, 1, 2, 3, 8])
    mean, prior = (y - 0.7 * x)[used].mean(1), 1.0
    information = 1 / (prior**2 + SD**2 / M)
    expected = information * mean.sum() / (len(used) * information + 0.01)
    sd = np.sqrt(1 / (len(used) * information + 0.01))
    np.testing.assert_allclose(state.phi, expected, atol=CLOSE * sd)


def test_training_stops_where_images_held_out_are_predicted_worse(data, search):
    """The held-out images say w = −0.5 and the others 0.7: the first look is the best one."""
    x, y = data
    other = (x[:4], (y - 1.2 * x)[:4])
    held = search.some_batches([0])
    held.data = Batches([other], 4, 4)
    own = search.some_batches([1, 2])
    found = train(own, held, {"w": jnp.zeros(())}, no_prior, 0.05, 200)
    assert found.epochs == 0 and float(found.weights["w"]) == 0.0
    assert len(found.held) == 6  # then patience ends
    assert np.all(found.held[1:, 1] < found.held[0, 1])


def test_the_prior_of_weights_draws_them(data, search):
    """A prior of tiny sd holds w at 0."""

    def narrow(weights):
        return -0.5 * (weights["w"] / 1e-4) ** 2

    found = train(search, None, {"w": jnp.zeros(())}, narrow, 0.001, 100)
    assert abs(float(found.weights["w"])) < 1e-3
    assert jax.tree.structure(found.weights) == jax.tree.structure({"w": 0})
