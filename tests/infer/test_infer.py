"""Inference on toy models against closed forms and NumPyro's own density."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer.util import log_density, potential_energy, unconstrain_fn

from bayes_refine.infer import (
    Batches,
    evaluate,
    laplace_draws,
    map_fit,
    marginal_fit,
    predictive_draws,
)
from bayes_refine.util.errors import InputError

N, M = 5, 6  # images and observations an image of the toys
NOISE, TAU = 1.0, 0.3


def linear_toy(y, x, z, monitor=None):
    """Lines through each image's data, levels around a common one, two common slopes."""
    level = numpyro.sample("level", dist.Normal(1.0, 2.0))
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    with numpyro.plate("image", N, dim=-2):
        a = numpyro.sample("a", dist.Normal(level, TAU))
        b = numpyro.sample("b", dist.Normal(0.5, 0.5).expand([2]).to_event(1))
    if monitor is not None:  # an observation of what the images share
        numpyro.sample("monitor", dist.Normal(level, 0.2), obs=monitor)
    mean = a + b[..., 0] * x + b[..., 1] * x**2 + z @ slope
    numpyro.deterministic("mean", mean)
    with numpyro.plate("image", N, dim=-2), numpyro.plate("reflection", M, dim=-1):
        numpyro.sample("y", dist.Normal(mean, NOISE), obs=y)


@pytest.fixture(scope="module", params=[None, 2.6], ids=["", "with a monitor"])
def linear(request):
    """Data, and mean and covariance of the posterior by linear algebra.

    Order of the unknowns: a and b of each image in turn, then level, then slope.
    """
    rng = np.random.default_rng(0)
    x, z = np.linspace(-1, 1, M), rng.standard_normal((N, M, 2))
    y = 2 + rng.standard_normal((N, 1)) + x + z @ [0.7, -0.4] + NOISE * rng.standard_normal((N, M))
    rows, targets = [], []

    def row(target, sd, entries):
        r = np.zeros(3 * N + 3)
        for where, value in entries.items():
            r[where] += value
        rows.append(r / sd)
        targets.append(target / sd)

    level, first, second = 3 * N, 3 * N + 1, 3 * N + 2
    row(1.0, 2.0, {level: 1})
    row(0.0, 1.0, {first: 1})
    row(0.0, 1.0, {second: 1})
    for i in range(N):
        a, b0, b1 = 3 * i, 3 * i + 1, 3 * i + 2
        row(0.0, TAU, {a: 1, level: -1})
        row(0.5, 0.5, {b0: 1})
        row(0.5, 0.5, {b1: 1})
        for j in range(M):
            line = {a: 1, b0: x[j], b1: x[j] ** 2, first: z[i, j, 0], second: z[i, j, 1]}
            row(y[i, j], NOISE, line)
    args = jnp.asarray(y), jnp.asarray(x), jnp.asarray(z)
    if request.param is not None:
        row(request.param, 0.2, {level: 1})
        args = *args, jnp.asarray(request.param)
    X = np.array(rows)
    covariance = np.linalg.inv(X.T @ X)
    return args, covariance @ X.T @ np.array(targets), covariance, map_fit(linear_toy, *args)


def in_order(values) -> np.ndarray:
    """Values by site, with any number of leading draws, as one vector each."""
    a, b = np.asarray(values["a"])[..., 0], np.asarray(values["b"])[..., 0, :]
    image = np.concatenate([a[..., None], b], axis=-1)
    flat = image.reshape(*image.shape[:-2], 3 * N)
    level = np.asarray(values["level"])[..., None]
    return np.concatenate([flat, level, np.asarray(values["slope"])], axis=-1)


def test_map_is_the_closed_form(linear):
    """Within the tolerance asked for, 1e-2 posterior sd; a quadratic needs one exact step."""
    _, mean, covariance, fit = linear
    np.testing.assert_allclose(
        (in_order(fit.values()) - mean) / np.sqrt(np.diag(covariance)), 0, atol=1e-2
    )
    assert list(fit.status) == ["converged"] * N
    assert fit.values()["a"].shape == (N, 1) and fit.values()["b"].shape == (N, 1, 2)


def test_laplace_covariance_is_the_closed_form(linear):
    _, _, covariance, fit = linear
    np.testing.assert_allclose(fit.shared_covariance, covariance[3 * N :, 3 * N :], rtol=1e-6)
    for i, block in enumerate(fit.image_covariance()):
        here = slice(3 * i, 3 * i + 3)
        np.testing.assert_allclose(block, covariance[here, here], rtol=1e-6, atol=1e-10)
    sd = np.sqrt(np.diag(covariance))
    np.testing.assert_allclose(fit.sd("a")[:, 0], sd[: 3 * N : 3], rtol=1e-6)
    np.testing.assert_allclose(fit.sd("b")[:, 0], sd[: 3 * N].reshape(N, 3)[:, 1:], rtol=1e-6)
    np.testing.assert_allclose(fit.sd("slope"), sd[-2:], rtol=1e-6)
    with pytest.raises(KeyError, match="no latent site"):
        fit.sd("c")


def test_laplace_draws_have_the_joint_covariance(linear):
    """All 171 entries, between images and between images and shared unknowns too, to 5 of
    their standard errors √((C_ii C_jj + C_ij²)/n)."""
    _, mean, covariance, fit = linear
    n = 40_000
    draws = in_order(laplace_draws(fit, n, rng=np.random.default_rng(1)))
    d = np.diag(covariance)
    error = np.sqrt((np.outer(d, d) + covariance**2) / n)
    assert np.abs((np.cov(draws.T) - covariance) / error).max() < 5
    assert np.abs((draws.mean(axis=0) - mean) / np.sqrt(d / n)).max() < 5
    # and it is not block diagonal: the test can see what it is to see
    assert np.abs(covariance / error)[:3, 3 : 3 * N].max() > 10
    assert np.abs(covariance / error)[: 3 * N, 3 * N :].max() > 20


def test_log_density_and_likelihood(linear):
    args, _, _, fit = linear
    y, values = args[0], fit.values()
    expected, _ = log_density(linear_toy, args, {}, values)
    assert fit.log_density == pytest.approx(float(expected), rel=1e-12)
    draws = {k: v[None] for k, v in values.items()}
    mean = evaluate(linear_toy, values, *args)["mean"]
    by_hand = -0.5 * ((np.asarray(y) - mean) / NOISE) ** 2 - np.log(NOISE * np.sqrt(2 * np.pi))
    many = {k: np.repeat(v, 300, axis=0) for k, v in draws.items()}
    pairs = list(predictive_draws(linear_toy, many, *args, rng=np.random.default_rng(0)))
    np.testing.assert_allclose(pairs[0]["y"][0], by_hand, rtol=1e-9)
    replicas = np.array([pair["y"][1] for pair in pairs])  # 300 × 30 draws of N(mean, NOISE)
    pulls = (replicas - mean) / NOISE
    assert abs(pulls.mean()) < 5 / np.sqrt(pulls.size)
    assert pulls.std() == pytest.approx(1, abs=5 / np.sqrt(2 * pulls.size))


# -- other models -----------------------------------------------------------------------------


def positive_toy(y):
    """Sites with positive support, shared and per image, and an unknown noise."""
    noise = numpyro.sample("noise", dist.HalfNormal(1.0))
    with numpyro.plate("image", N, dim=-2):
        rate = numpyro.sample("rate", dist.LogNormal(0.0, 1.0))
    with numpyro.plate("image", N, dim=-2), numpyro.plate("reflection", M, dim=-1):
        numpyro.sample("y", dist.Normal(rate, noise), obs=y)


def test_positive_sites_have_their_mode_in_unconstrained_space():
    """The gradient of NumPyro's own potential energy, Jacobians and all, vanishes there."""
    rng = np.random.default_rng(2)
    y = jnp.asarray(np.exp(rng.standard_normal((N, 1))) + 0.4 * rng.standard_normal((N, M)))
    fit = map_fit(positive_toy, y)
    values = fit.values()
    assert set(values) == {"noise", "rate"} and np.all(values["rate"] > 0) and values["noise"] > 0
    free = unconstrain_fn(positive_toy, (y,), {}, values)

    def energy(p):
        return potential_energy(positive_toy, (y,), {}, p)

    slope, curvature = jax.jit(lambda p: (jax.grad(energy)(p), jax.hessian(energy)(p)))(free)
    np.testing.assert_allclose(np.asarray(slope["rate"]) * fit.sd("rate"), 0, atol=0.02)
    np.testing.assert_allclose(float(slope["noise"]) * fit.sd("noise"), 0, atol=0.02)
    H = np.zeros((N + 1, N + 1))
    H[:N, :N] = np.asarray(curvature["rate"]["rate"])[:, 0, :, 0]
    H[N, :N] = H[:N, N] = np.asarray(curvature["rate"]["noise"])[:, 0]
    H[N, N] = curvature["noise"]["noise"]
    sd = np.sqrt(np.diag(np.linalg.inv(H)))
    np.testing.assert_allclose([*fit.sd("rate")[:, 0], fit.sd("noise")], sd, rtol=1e-6)
    draws = laplace_draws(fit, 2000, rng=np.random.default_rng(3))
    assert np.all(draws["rate"] > 0) and np.all(draws["noise"] > 0)
    log_noise = np.log(draws["noise"])
    assert log_noise.std() == pytest.approx(sd[N], rel=5 / np.sqrt(2 * 2000))


def poisson_toy(y):
    """Gamma–Poisson, nothing shared."""
    with numpyro.plate("image", N, dim=-2):
        rate = numpyro.sample("rate", dist.Gamma(2.0, 0.5))
    with numpyro.plate("image", N, dim=-2), numpyro.plate("reflection", M, dim=-1):
        numpyro.sample("y", dist.Poisson(rate), obs=y)


def test_poisson_observations():
    """Neither normal nor Student-t: the exact Hessian.  The posterior of a rate is
    Gamma(2 + Σy, ½ + M); of its logarithm the mode is ln(shape/rate), the curvature shape."""
    y = jnp.asarray(np.random.default_rng(4).poisson([[0.3], [2], [5], [20], [100]], (N, M)))
    fit = map_fit(poisson_toy, y)
    shape = 2 + np.asarray(y).sum(axis=1)
    np.testing.assert_allclose(fit.sd("rate")[:, 0], shape**-0.5, rtol=0.01)
    away = (np.log(fit.values()["rate"][:, 0]) - np.log(shape / (0.5 + M))) * np.sqrt(shape)
    np.testing.assert_allclose(away, 0, atol=0.02)
    draws = np.log(laplace_draws(fit, 4000, rng=np.random.default_rng(5))["rate"][:, :, 0])
    np.testing.assert_allclose(draws.std(axis=0) * np.sqrt(shape), 1, atol=5 / np.sqrt(8000))


def test_a_model_without_images_is_an_input_error():
    def nothing_per_image(y):
        level = numpyro.sample("level", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(level, 1.0).expand(y.shape).to_event(1), obs=y)

    with pytest.raises(InputError, match="plate 'image'"):
        map_fit(nothing_per_image, jnp.ones(3))

    def in_another_plate(y):
        with numpyro.plate("image", 3, dim=-2):
            level = numpyro.sample("level", dist.Normal(0.0, 1.0))
        with numpyro.plate("reflection", 4, dim=-1):
            extra = numpyro.sample("extra", dist.Normal(0.0, 1.0))
            with numpyro.plate("image", 3, dim=-2):
                numpyro.sample("y", dist.Normal(level + extra, 1.0), obs=y)

    with pytest.raises(InputError, match="'extra' is in plate 'reflection'"):
        map_fit(in_another_plate, jnp.ones((3, 4)))


def robust_toy(y):
    level = numpyro.sample("level", dist.Normal(0.0, 2.0))
    with numpyro.plate("image", N, dim=-2):
        a = numpyro.sample("a", dist.StudentT(3.0, level, 0.5))
        log_rate = numpyro.sample("log_rate", dist.Normal(0.0, 1.0))
    with numpyro.plate("image", N, dim=-2), numpyro.plate("reflection", M, dim=-1):
        numpyro.sample("y", dist.StudentT(4.0, a + jnp.exp(log_rate), 0.3), obs=y)


@pytest.mark.parametrize("absurd", [1e6, -1e9])
def test_one_absurd_image_does_not_spoil_the_others(absurd):
    """Compared with the same run where that image is like the others: a few tenths of an sd,
    by way of the shared level, which one of five images informs."""
    y = np.random.default_rng(6).normal(2.0, 0.3, (N, M))
    bad = y.copy()
    bad[3] = absurd
    plain, spoiled = (map_fit(robust_toy, jnp.asarray(v)) for v in (y, bad))
    others = np.arange(N) != 3
    assert np.all(plain.status == "converged") and np.all(spoiled.status[others] == "converged")
    for name in ("a", "log_rate"):
        moved = (spoiled.values()[name] - plain.values()[name]) / plain.sd(name)
        assert np.abs(moved[others]).max() < 0.7, name
    assert np.isfinite(spoiled.image).all() and np.isfinite(spoiled.sd("a")).all()


class Lines(NamedTuple):
    """One array with the axis of the images first, and one without."""

    y: np.ndarray
    noise: float


def lines(data, monitor):
    """A level an image around a common one that is measured too."""
    level = numpyro.sample("level", dist.Normal(1.0, 2.0))
    numpyro.sample("monitor", dist.Normal(level, 0.2), obs=monitor)
    n, m = data.y.shape
    with numpyro.plate("image", n, dim=-2):
        a = numpyro.sample("a", dist.Normal(level, TAU))
        with numpyro.plate("reflection", m, dim=-1):
            numpyro.sample("y", dist.StudentT(4.0, a, data.noise), obs=data.y)


@pytest.mark.parametrize("init", [{}, {"a": np.linspace(0, 3, 7)[:, None], "level": 2.0}])
def test_batches_of_images_are_the_whole_run(init):
    """Seven images in batches of three: the last has room for two that do not count."""
    y = np.random.default_rng(5).standard_t(4, (7, M)) + np.arange(7)[:, None] / 2
    whole = map_fit(lines, Lines(y, NOISE), 1.4, init=init)
    parts = [Lines(y[:3], NOISE), Lines(y[3:6], NOISE), Lines(y[[6, 6, 6]], NOISE)]
    batches = Batches(parts, 3, 7)
    np.testing.assert_array_equal(batches.whole().y, y)
    batched = map_fit(lines, batches, 1.4, init=init)
    assert batched.iterations == whole.iterations
    for name in ("image", "shared", "image_precision", "coupling", "shared_covariance", "status"):
        expected, found = getattr(whole, name), getattr(batched, name)
        if name == "status":
            np.testing.assert_array_equal(found, expected)
        else:
            np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-9, err_msg=name)
    assert batched.log_density == pytest.approx(whole.log_density)


@pytest.mark.parametrize("spoiled", [np.nan, np.inf, 1e300])
def test_an_image_whose_density_is_not_finite_is_set_aside_and_the_others_fitted(spoiled):
    """As if it were not there: to the tolerance, on the run without it."""
    y = np.random.default_rng(5).standard_t(4, (7, M)) + np.arange(7)[:, None] / 2
    y[4, 2] = spoiled
    rest = np.arange(7) != 4
    without = map_fit(normal_lines, Lines(y[rest], NOISE), 1.4)
    parts = [Lines(y[:3], NOISE), Lines(y[3:6], NOISE), Lines(y[[6, 6, 6]], NOISE)]
    for data in (Lines(y, NOISE), Batches(parts, 3, 7)):
        fit = map_fit(normal_lines, data, 1.4)
        assert fit.status[4].kind == "not finite" and np.all(fit.status[rest] == "converged")
        np.testing.assert_allclose(fit.image[rest], without.image, atol=1e-2 * TAU)
        np.testing.assert_allclose(fit.shared, without.shared, atol=1e-2 * TAU)
        marginal = marginal_fit(normal_lines, data, 1.4, fit=fit)
        assert marginal.status[4].kind == "not finite"
        assert np.isfinite(marginal.shared).all() and np.isfinite(marginal.image).all()
        assert np.isfinite(marginal.shared_covariance).all()


def test_an_image_that_is_set_aside_has_data_of_a_batch_of_another_width():
    """Batches of lines of M and of M − 2 points: either one lends the other its image."""
    y = np.random.default_rng(5).standard_normal((6, M))
    for spoiled in (1, 4):
        bad = y.copy()
        bad[spoiled, 2] = np.nan
        parts = [Lines(bad[:3], NOISE), Lines(bad[3:, :-2], NOISE)]
        fit = map_fit(normal_lines, Batches(parts, 3, 6), 1.4)
        rest = np.arange(6) != spoiled
        assert fit.status[spoiled].kind == "not finite" and np.all(fit.status[rest] == "converged")
        assert np.isfinite(fit.shared).all() and np.isfinite(fit.image).all()


def normal_lines(data, monitor):
    level = numpyro.sample("level", dist.Normal(1.0, 2.0))
    numpyro.sample("monitor", dist.Normal(level, 0.2), obs=monitor)
    with numpyro.plate("image", len(data.y), dim=-2):
        a = numpyro.sample("a", dist.Normal(level, TAU))
        with numpyro.plate("reflection", data.y.shape[1], dim=-1):
            numpyro.sample("y", dist.Normal(a, data.noise), obs=data.y)


def test_a_run_without_a_finite_image_is_refused_in_a_sentence():
    with pytest.raises(InputError, match="no image has a finite density"):
        map_fit(normal_lines, Lines(np.full((7, M), np.nan), NOISE), 1.4)
