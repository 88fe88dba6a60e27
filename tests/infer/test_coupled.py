"""Covariances of a run whose images are coupled, against exact ones."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from bayes_refine.infer import krylov
from bayes_refine.infer.coupled import at_marginal_mode, coupled_fit
from bayes_refine.infer.gradient_differences import images_alone
from bayes_refine.infer.krylov import inverse_columns
from bayes_refine.util.progress import Listener

N_IMAGES, N_REFLECTIONS, NOISE = 10, 40, 0.3
SPREAD = 2.0  # prior sd of an image's scale


class Data(NamedTuple):
    """(reflection, image) of observations, and the same indices of reflections."""

    y: np.ndarray
    x: np.ndarray


def levels(data, priors):
    """y_hi = c_i + I_h + noise, I_h ~ N(level + slope·x_h, 1) integrated out."""
    level = numpyro.sample("level", dist.Normal(0.0, 10.0))
    slope = numpyro.sample("slope", dist.Normal(0.0, 10.0))
    with numpyro.plate("image", N_IMAGES):
        c = numpyro.sample("c", dist.Normal(0.0, SPREAD))
    off = data.y - c - (level + slope * data.x)[:, None]
    covariance = NOISE**2 * jnp.eye(N_IMAGES) + jnp.ones((N_IMAGES, N_IMAGES))
    numpyro.factor("y", -0.5 * jnp.einsum("hi,ij,hj->", off, jnp.linalg.inv(covariance), off))


def exact_covariance(x: np.ndarray) -> np.ndarray:
    """Of (c, level, slope), which is normal: y = A·(c, level, slope) + I + noise."""
    A = np.concatenate([np.ones((N_REFLECTIONS, 1)), x[:, None]], axis=1)
    A = np.concatenate(
        [
            np.tile(np.eye(N_IMAGES), (N_REFLECTIONS, 1, 1)),
            np.tile(A[:, None], (1, N_IMAGES, 1)),
        ],
        axis=2,
    )
    W = np.linalg.inv(NOISE**2 * np.eye(N_IMAGES) + 1.0)
    prior = np.diag(np.r_[np.full(N_IMAGES, SPREAD**-2), [0.01, 0.01]])
    return np.linalg.inv(prior + np.einsum("hia,ij,hjb->ab", A, W, A))


@pytest.fixture(scope="module")
def fit():
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 1, N_REFLECTIONS)
    c, truth = rng.normal(0, SPREAD, N_IMAGES), 3 + 2 * x + rng.normal(size=N_REFLECTIONS)
    data = Data(c + truth[:, None] + NOISE * rng.normal(size=(N_REFLECTIONS, N_IMAGES)), x)
    found, _ = coupled_fit(levels, data, jnp.zeros(()), {}, lambda obs, at: obs)
    return found, exact_covariance(x)


def test_the_sd_of_shared_unknowns_knows_that_images_move_together(fit):
    """The block Hessian, with no elements between images, would be wrong by a fifth."""
    found, exact = fit
    np.testing.assert_allclose(found.shared_covariance, exact[-2:, -2:], rtol=0.01)
    blocks = np.linalg.inv(exact)
    blocks[:-2, :-2] = np.diag(np.diag(blocks[:-2, :-2]))
    neglected = np.diag(np.linalg.inv(blocks))[-2:]
    assert np.abs(np.log(neglected / np.diag(exact)[-2:])).max() > 0.2


def test_an_image_moves_with_the_shared_unknowns_as_all_images_do(fit):
    found, exact = fit
    slope = -np.linalg.solve(found.image_precision, found.coupling)[:, 0]
    np.testing.assert_allclose(slope @ found.shared_covariance, exact[:-2, -2:], rtol=0.01)
    assert np.abs(exact[:-2, -2]).min() > 0.1


def noisy_levels(y, priors):
    """y_im = c_i + σ·noise, with c_i all but free."""
    log_sigma = numpyro.sample("log_sigma", dist.Normal(0.0, 10.0))
    with numpyro.plate("image", len(y)):
        c = numpyro.sample("c", dist.Normal(0.0, 100.0))
    numpyro.factor("y", dist.Normal(c[:, None], jnp.exp(log_sigma)).log_prob(y).sum())


def test_errors_at_the_marginal_mode_allow_for_what_the_images_fit():
    """σ² is Σ r²/n at the joint mode, Σ r²/(n − k) at the marginal one; to second order in k/n."""
    rng = np.random.default_rng(2)
    n, each = 30, 40
    y = rng.normal(0, 3.0, (n, 1)) + 0.5 * rng.normal(size=(n, each))
    joint, obs = coupled_fit(noisy_levels, y, jnp.zeros(()), {}, lambda obs, at: obs)
    found = at_marginal_mode(joint, noisy_levels, obs, jnp.zeros(()))
    squares = np.sum((y - y.mean(1, keepdims=True)) ** 2)
    assert np.exp(2 * joint.shared[0]) == pytest.approx(squares / (n * each), rel=1e-3)
    assert np.exp(2 * found.shared[0]) == pytest.approx(squares / (n * (each - 1)), rel=2e-3)
    np.testing.assert_allclose(found.image, joint.image, atol=1e-3)
    said = []
    heard = Listener(update=lambda fraction, line: said.append(line))
    shift = found.shared - joint.shared
    again = at_marginal_mode(joint, noisy_levels, obs, jnp.zeros(()), progress=heard, shift=shift)
    assert len(said) == 1 and said[0].startswith("0.0")  # where it would end, a search ends at once
    np.testing.assert_array_equal(again.shared, found.shared)


def test_images_alone_reach_their_modes_however_far_one_of_them_is():
    """Of Poisson counts of mean exp(x_i + y_i), whose mode is known; the shared unknown stays."""
    counts = np.array([[3.0, 20.0], [40.0, 5.0], [1e4, 2.0]])

    def gradient_at(x):
        rate = np.exp(x[:-1].reshape(3, 2))
        return float(np.sum(rate - counts * np.log(rate))), np.append((rate - counts).ravel(), 1.0)

    def after(steps):
        start, reach = np.append(np.zeros(6), 7.0), np.full((3, 2), 2.0)
        return images_alone(gradient_at, start, reach, np.linalg.inv, steps)

    found = after(12)
    np.testing.assert_allclose(found[:-1].reshape(3, 2), np.log(counts), atol=1e-6)
    assert found[-1] == 7.0
    # a step is at most 2 long, the others of that image are shortened with it
    np.testing.assert_allclose(after(1)[4:6], [2.0, 2.0 / 9999], rtol=1e-3)
    np.testing.assert_array_equal(after(0)[:-1], 0.0)


def test_columns_of_an_inverse_and_their_number_of_products(monkeypatch):
    """A matrix with a few flat directions across all unknowns, and its diagonal as the guess."""
    rng = np.random.default_rng(1)
    size, s = 200, 4
    H = np.diag(rng.uniform(1, 100, size))
    low = np.linalg.qr(rng.normal(size=(size, 3)))[0]
    root = np.sqrt(np.diag(H))
    H -= 0.99 * root[:, None] * (low @ low.T) * root
    taken = []

    def product(v):
        taken.append(1)
        return H @ v

    guess = 1 / np.diag(H)[:, None]
    X = inverse_columns(product, lambda R: guess * R, size, s, 100)
    exact = np.linalg.inv(H)[:, -s:]
    np.testing.assert_allclose(np.diag(X[-s:]), np.diag(exact[-s:]), rtol=2e-3)
    assert len(taken) < 40
    monkeypatch.setattr(krylov, "SLICE", 7)
    sliced = inverse_columns(product, lambda R: guess * R, size, s, 100)
    np.testing.assert_allclose(sliced, X, rtol=1e-9, atol=1e-12)
    # from few products the variances are too small, never too large
    few = inverse_columns(product, lambda R: guess * R, size, s, s)
    assert (np.diag(few[-s:]) < np.diag(X[-s:]) * (1 + 1e-9)).all()
