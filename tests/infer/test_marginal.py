"""The marginal mode of what images share, against exact integrals over the images' unknowns."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy.optimize import minimize, minimize_scalar
from scipy.special import digamma, logsumexp
from scipy.stats import gamma

from bayes_refine.infer import (
    Batches,
    differences,
    laplace_draws,
    map_fit,
    marginal,
    marginal_covariance,
    marginal_fit,
    mode_of_many,
    near_mode_of_many,
)
from bayes_refine.infer.executor import InProcess
from bayes_refine.infer.marginal_density import Frame, marginal_density, points
from bayes_refine.infer.search import Search
from bayes_refine.infer.summary import Summary
from bayes_refine.util.progress import Listener

N, M = 14, 7
X = np.stack([np.ones(M), np.linspace(-1, 1, M), np.linspace(-1, 1, M) ** 2], 1)  # (M, 3)


class Data(NamedTuple):
    """Images first."""

    y: np.ndarray


def curves(data):
    """A parabola through each image's data; their common level, spread and noise are unknown."""
    level = numpyro.sample("level", dist.Normal(1.0, 2.0))
    log_tau = numpyro.sample("log_tau", dist.Normal(0.0, 0.5))
    log_noise = numpyro.sample("log_noise", dist.Normal(0.0, 2.0))
    with numpyro.plate("image", len(data.y), dim=-2):
        coefficients = dist.Normal(level, jnp.exp(log_tau)).expand([3]).to_event(1)
        c = numpyro.sample("c", coefficients)
        with numpyro.plate("reflection", M, dim=-1):
            numpyro.sample("y", dist.Normal(c[:, 0] @ X.T, jnp.exp(log_noise)), obs=data.y)


@pytest.fixture(scope="module")
def parabolas() -> Data:
    rng = np.random.default_rng(0)
    return Data((1.5 + rng.standard_normal((N, 3))) @ X.T + 0.5 * rng.standard_normal((N, M)))


@jax.jit
def minus_log_marginal(phi, y):
    """Of (level, ln τ, ln σ): y_i ~ N(X·level, τ²XXᵀ + σ²)."""
    level, log_tau, log_noise = phi
    covariance = jnp.exp(2 * log_tau) * X @ X.T + jnp.exp(2 * log_noise) * jnp.eye(M)
    prior = (level - 1) ** 2 / 8 + log_tau**2 / 0.5 + log_noise**2 / 8
    off = y - level * X.sum(1)
    square = jnp.sum(off * jnp.linalg.solve(covariance, off.T).T)
    return prior + 0.5 * square + 0.5 * len(y) * jnp.linalg.slogdet(covariance)[1]


def test_mode_and_covariance_are_those_of_the_exact_marginal(parabolas):
    """Laplace's integral over normal unknowns is exact; the joint mode is far from it."""
    joint = map_fit(curves, parabolas)
    found = marginal_fit(curves, parabolas, fit=joint)
    exact = minimize(
        minus_log_marginal,
        joint.shared,
        args=parabolas.y,
        jac=jax.jit(jax.grad(minus_log_marginal)),
    )
    covariance = np.linalg.inv(jax.jit(jax.hessian(minus_log_marginal))(exact.x, parabolas.y))
    sd = np.sqrt(np.diag(covariance))
    assert [site.name for site in found.sites if not site.per_image] == [
        "level",
        "log_tau",
        "log_noise",
    ]
    np.testing.assert_allclose((found.shared - exact.x) / sd, 0, atol=0.03)
    np.testing.assert_allclose(
        found.shared_covariance / np.outer(sd, sd), covariance / np.outer(sd, sd), atol=0.04
    )
    assert np.abs(joint.shared - exact.x)[2] > 2 * sd[2]
    # images at their modes given what is shared: ridge regression
    level, tau, noise = found.shared[0], *np.exp(found.shared[1:])
    precision = X.T @ X / noise**2 + np.eye(3) / tau**2
    mode = np.linalg.solve(precision, (X.T @ parabolas.y.T / noise**2) + level / tau**2).T
    off = found.values()["c"][:, 0] - mode
    np.testing.assert_allclose(off * np.sqrt(np.diag(precision)), 0, atol=0.02)
    assert list(found.status) == ["converged"] * N


def test_residual_variance_is_over_n_minus_k():
    """With wide priors on three unknowns an image, σ² = S/(N(M − 3)) (REML), not S/(NM) (ML),
    and ln σ has sd 1/√(2N(M − 3))."""

    def wide(data):
        log_noise = numpyro.sample("log_noise", dist.Normal(0.0, 100.0))
        with numpyro.plate("image", N, dim=-2):
            c = numpyro.sample("c", dist.Normal(0.0, 1e4).expand([3]).to_event(1))
            with numpyro.plate("reflection", M, dim=-1):
                numpyro.sample("y", dist.Normal(c[:, 0] @ X.T, jnp.exp(log_noise)), obs=data.y)

    y = np.random.default_rng(1).standard_normal((N, M))
    S = np.sum((y - y @ np.linalg.pinv(X).T @ X.T) ** 2)
    joint = map_fit(wide, Data(y))
    found = marginal_fit(wide, Data(y), fit=joint)
    sd = 1 / np.sqrt(2 * N * (M - 3))
    assert joint.shared[0] == pytest.approx(0.5 * np.log(S / (N * M)), abs=0.02 * sd)
    assert found.shared[0] == pytest.approx(0.5 * np.log(S / (N * (M - 3))), abs=0.02 * sd)
    assert found.sd("log_noise") == pytest.approx(sd, rel=0.02)


def test_random_signs_are_those_of_an_image_and_have_its_moments():
    few, more = marginal.random_signs(500, 4), marginal.random_signs(900, 4)
    np.testing.assert_array_equal(few, more[:, :500])  # however many images there are
    assert set(np.unique(few)) == {-1, 1} and not few.sum(0).any()
    moments = np.einsum("mni,mnj->ij", 1.0 * few, few) / few[..., 0].size
    np.testing.assert_allclose(moments, np.eye(4), atol=4 / np.sqrt(few[..., 0].size / 2))


def test_few_points_lead_near_the_mode(parabolas, monkeypatch):
    """Without them the same mode takes more slopes."""

    def slopes_and_mode() -> tuple[int, np.ndarray]:
        calls = []
        real = differences.integral

        def counted(*model):
            integrated = real(*model)

            def integral(*rows):
                calls.append(len(rows[-2]))
                return integrated(*rows)

            return integral

        with monkeypatch.context() as patch:
            patch.setattr(differences, "integral", counted)
            found = marginal_fit(curves, parabolas, fit=joint)
        return sum(calls), found.shared / np.sqrt(np.diag(found.shared_covariance))

    joint = map_fit(curves, parabolas)
    fast, mode = slopes_and_mode()
    monkeypatch.setattr(marginal, "NEAR", np.inf)  # no step with few points alone
    slow, same = slopes_and_mode()
    np.testing.assert_allclose(mode, same, atol=0.04)
    assert fast < slow


def test_after_a_step_that_is_too_long_the_next_is_much_shorter(parabolas):
    """By a curvature of a hundredth the first step is a hundred times too long."""
    joint = map_fit(curves, parabolas)
    here = joint.shared_precision
    schur = here - np.einsum(
        "nks,nkl,nlt->st", joint.coupling, np.linalg.inv(joint.image_precision), joint.coupling
    )
    lines: list[str] = []
    told = Listener(update=lambda _, line: lines.append(line))
    flat = replace(joint, shared_precision=here - 0.99 * schur)
    found = marginal_fit(curves, parabolas, fit=flat, progress=told)
    sd = np.sqrt(np.diag(found.shared_covariance))
    expected = marginal_fit(curves, parabolas, fit=joint)
    np.testing.assert_allclose((found.shared - expected.shared) / sd, 0, atol=0.04)
    assert sum("marginal ln p" in line for line in lines) < 20


def lifetimes(data):
    """Gamma variates of a mean an image has and a common shape: neither normal nor Student-t."""
    log_shape = numpyro.sample("log_shape", dist.Normal(0.0, 2.0))
    with numpyro.plate("image", len(data.y), dim=-2):
        log_mean = numpyro.sample("log_mean", dist.Normal(0.0, 2.0))
        with numpyro.plate("reflection", data.y.shape[1], dim=-1):
            shape = jnp.exp(log_shape)
            numpyro.sample("y", dist.Gamma(shape, shape / jnp.exp(log_mean)), obs=data.y)


def test_gamma_variates_against_quadrature():
    """30 images, exact integrals over a grid of ln mean: within 0.05 sd, and 3 % in sd."""
    rng = np.random.default_rng(2)
    y = np.exp(rng.standard_normal((30, 1))) * rng.gamma(3.0, 1 / 3.0, (30, 4))
    grid = np.linspace(-8, 8, 3001)

    def exact(log_shape):
        shape = np.exp(log_shape)
        ln_p = gamma.logpdf(y[:, :, None], shape, scale=np.exp(grid) / shape).sum(1) - grid**2 / 8
        return log_shape**2 / 8 - logsumexp(ln_p, axis=1).sum()

    mode = minimize_scalar(exact, (0.5, 1.5)).x
    sd = 0.01 / np.sqrt(exact(mode + 0.01) + exact(mode - 0.01) - 2 * exact(mode))
    joint = map_fit(lifetimes, Data(y))
    found = marginal_fit(lifetimes, Data(y), fit=joint)
    assert found.shared[0] == pytest.approx(mode, abs=0.05 * sd)
    assert found.sd("log_shape") == pytest.approx(sd, rel=0.03)
    assert joint.shared[0] > mode + 1.5 * sd


def heavy_tails(data):
    """Student-t data about a level an image has: their scale and ν are unknown."""
    log_scale = numpyro.sample("log_scale", dist.Normal(0.0, 1.0))
    log_nu = numpyro.sample("log_nu", dist.Normal(jnp.log(4.0), 1.0))
    with numpyro.plate("image", len(data.y), dim=-2):
        level = numpyro.sample("level", dist.Normal(0.0, 3.0))
        with numpyro.plate("reflection", data.y.shape[1], dim=-1):
            numpyro.sample(
                "y", dist.StudentT(jnp.exp(log_nu), level, jnp.exp(log_scale)), obs=data.y
            )


def test_tails_that_are_not_normal_against_quadrature():
    """60 images: mode and covariance of (ln σ, ln ν), exact integrals over a grid of levels.

    Laplace's integral with the expected curvature puts ln σ 1.1 posterior sd too high.
    """
    rng = np.random.default_rng(5)
    y = rng.standard_normal((60, 1)) + rng.standard_t(2.5, (60, 6))
    grid = jnp.linspace(-9, 9, 721)

    def exact(phi):
        log_scale, log_nu = phi
        ln_p = jax.scipy.stats.t.logpdf(
            y[:, :, None], jnp.exp(log_nu), grid, jnp.exp(log_scale)
        ).sum(1)
        of_images = jax.scipy.special.logsumexp(ln_p - grid**2 / 18, axis=1).sum()
        return log_scale**2 / 2 + (log_nu - jnp.log(4.0)) ** 2 / 2 - of_images

    mode = minimize(jax.jit(exact), np.zeros(2), jac=jax.jit(jax.grad(exact))).x
    covariance = np.linalg.inv(jax.jit(jax.hessian(exact))(mode))
    sd = np.sqrt(np.diag(covariance))
    joint = map_fit(heavy_tails, Data(y))
    found = marginal_fit(heavy_tails, Data(y), fit=joint)
    np.testing.assert_allclose((found.shared - mode) / sd, 0, atol=0.05)
    np.testing.assert_allclose(
        found.shared_covariance / np.outer(sd, sd), covariance / np.outer(sd, sd), atol=0.05
    )


def test_batches_of_images_are_the_whole_run(parabolas):
    """Slopes are sums over batches; what integrals add to curvature is the first batch's."""
    y = parabolas.y[:7]
    joint = map_fit(curves, Data(y))
    whole = marginal_fit(curves, Data(y), fit=joint)
    parts = [Data(y[:3]), Data(y[3:6]), Data(y[[6, 6, 6]])]
    batches = Batches(parts, 3, 7)
    found = marginal_fit(curves, batches, fit=joint)
    # forward differences of slopes know a curvature of some tens to 1e-9 of it
    for name in ("image", "shared", "image_precision", "coupling"):
        np.testing.assert_allclose(getattr(found, name), getattr(whole, name), rtol=1e-6, atol=1e-7)
    # A hardly depends on the image here, so that one batch speaks for all
    sd = np.sqrt(np.diag(whole.shared_covariance))
    off = (found.shared_covariance - whole.shared_covariance) / np.outer(sd, sd)
    np.testing.assert_allclose(off, 0, atol=1e-4)


class Weighed(InProcess):
    """Knows the most bytes that the items of a step kept in memory."""

    most = 0

    def map(self, work, items, finished=None, lost=None):
        owners = {}
        for x in jax.tree.leaves([rows for _, rows in items]):
            while isinstance(x, np.ndarray) and isinstance(x.base, np.ndarray):
                x = x.base
            owners[id(x)] = np.asarray(x).nbytes
        self.most = max(self.most, sum(owners.values()))
        return super().map(work, items, finished, lost)


def test_memory_of_the_items_is_that_of_the_images_however_many_batches(parabolas):
    n, k, s = len(parabolas.y), 3, 3
    executor = Weighed()
    parts = [Data(parabolas.y[b : b + 1]) for b in range(n)]
    batches = Batches(parts, 1, n, executor)
    marginal_fit(curves, batches, fit=map_fit(curves, batches))
    of_images = 8 * n * (k + k * k + k * s + 1)
    assert executor.most < 2 * of_images + marginal.points(k).nbytes


def test_an_image_that_has_not_converged_stays_and_does_not_count(parabolas):
    joint = map_fit(curves, parabolas)
    status = joint.status.copy()
    status[3] = "no maximum"
    found = marginal_fit(curves, parabolas, fit=replace(joint, status=status))
    assert found.status[3] == "no maximum"
    np.testing.assert_array_equal(found.image[3], joint.image[3])


def edge(data):
    """Counts of a rate 4 − c², which has no meaning beyond c = 2."""
    log_tau = numpyro.sample("log_tau", dist.Normal(0.0, 0.5))
    with numpyro.plate("image", len(data.y), dim=-2):
        c = numpyro.sample("c", dist.Normal(0.0, jnp.exp(log_tau)))
        with numpyro.plate("reflection", data.y.shape[1], dim=-1):
            numpyro.sample("y", dist.Normal(jnp.sqrt(4 - c**2), 1.0), obs=data.y)


def test_an_image_with_points_where_there_is_no_density_sinks_nothing():
    rng = np.random.default_rng(6)
    c = np.clip(rng.standard_normal((20, 1)), -1.9, 1.9)
    y = np.sqrt(4 - c**2) + rng.standard_normal((20, 2))
    joint = map_fit(edge, Batches([Data(y)], 20, 20), init={"c": np.full((20, 1), 1.0)})
    found = marginal_fit(edge, Batches([Data(y)], 20, 20), fit=joint)
    assert np.all(np.isfinite(found.shared)) and np.all(np.isfinite(found.shared_covariance))
    assert np.abs(found.shared) < 1.5
    assert np.all(np.isfinite(found.image))


def decays(data):
    """A decay with a rate of its own in each image: what images share moves them on a curve."""
    t = jnp.linspace(0, 3, data.y.shape[1])
    level = numpyro.sample("level", dist.Normal(0.0, 2.0))
    log_tau = numpyro.sample("log_tau", dist.Normal(-2.0, 2.0))
    log_noise = numpyro.sample("log_noise", dist.Normal(0.0, 2.0))
    with numpyro.plate("image", len(data.y), dim=-2):
        log_rate = numpyro.sample("log_rate", dist.Normal(level, jnp.exp(log_tau)))
        log_size = numpyro.sample("log_size", dist.Normal(0.0, 3.0))
        with numpyro.plate("reflection", len(t), dim=-1):
            curve = jnp.exp(log_size - jnp.exp(log_rate) * t)
            numpyro.sample("y", dist.Normal(curve, jnp.exp(log_noise)), obs=data.y)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_mode_is_found_wherever_what_the_images_share_has_gone(seed):
    """Against quadrature over both unknowns of each image; of the last run the search begins eight
    sd from the mode, with a curvature of the level that is a million times too large."""
    rng = np.random.default_rng(seed)
    rate, t = np.exp(0.2 + 0.7 * rng.standard_normal((12, 1))), np.linspace(0, 3, 5)
    data = Data(np.exp(1 - rate * t) + 0.4 * rng.standard_normal((12, 5)))
    z, log_size = jnp.linspace(-6, 6, 201)[:, None, None], jnp.linspace(-6, 5, 201)[:, None]

    def exact(phi):
        level, log_tau, log_noise = phi
        curve = jnp.exp(log_size - jnp.exp(level + jnp.exp(log_tau) * z) * t)
        off = (data.y[:, None, None] - curve) / jnp.exp(log_noise)
        ln_p = -0.5 * jnp.sum(off**2, -1) - len(t) * log_noise - (z**2)[..., 0] / 2
        ln_p -= log_size[:, 0] ** 2 / 18
        of_images = jax.scipy.special.logsumexp(ln_p, axis=(1, 2)).sum()
        return (level**2 + (log_tau + 2) ** 2 + (log_noise + 2) ** 2) / 8 - of_images

    found = marginal_fit(decays, data, fit=map_fit(decays, data))
    slope = jax.jit(jax.grad(exact))
    starts = found.shared, np.array([0.0, -0.5, -1.0])
    mode = min((minimize(jax.jit(exact), x, jac=slope) for x in starts), key=lambda x: x.fun).x
    sd = np.sqrt(np.diag(np.linalg.inv(jax.jit(jax.hessian(exact))(mode))))
    np.testing.assert_allclose((found.shared - mode) / sd, 0, atol=0.25)
    assert found.shared_distance < 0.05
    assert np.all(found.status == "converged")
    assert found.distance.max() < 0.1


def test_draws_are_about_the_mean_not_the_mode():
    """Against quadrature over ln shape and each image's ln mean: a few gamma variates are skewed.

    The mean of what is shared is that of the marginal density, an image's is of all of it.
    """
    y = np.random.default_rng(4).gamma(2.0, 1 / 2.0, (6, 5)) * [[0.3], [0.5], [1], [2], [3], [5]]
    found = marginal_fit(lifetimes, Data(y), fit=map_fit(lifetimes, Data(y)))
    t, u = np.linspace(-2, 4, 241), np.linspace(-8, 8, 1201)  # ln shape, ln mean
    shape = np.exp(t)[:, None, None]
    ln_p = [
        gamma.logpdf(row[:, None, None, None], shape, scale=np.exp(u)[:, None] / shape).sum(0)
        for row in y
    ]
    ln_p = np.array(ln_p)[..., 0] - u**2 / 8  # (image, shape, mean)
    ln_z = logsumexp(ln_p, axis=2)
    given = np.sum(np.exp(ln_p - ln_z[..., None]) * u, axis=2)
    weight = np.exp(ln_z.sum(0) - t**2 / 8 - logsumexp(ln_z.sum(0) - t**2 / 8))
    mean = np.append(given @ weight, weight @ t)
    mode = np.append(found.image[:, 0], found.shared)
    shift = np.append(found.image_shift[:, 0], found.shared_shift)
    sd = np.append(np.sqrt(found.image_covariance()[:, 0, 0]), found.sd("log_shape"))
    assert np.all(np.abs(mean - mode) > 0.1 * sd)
    np.testing.assert_allclose((mode + shift - mean) / sd, 0, atol=0.04)
    draws = laplace_draws(found, 40_000, rng=np.random.default_rng(0))
    drawn = np.append(draws["log_mean"].mean(0)[:, 0], draws["log_shape"].mean())
    np.testing.assert_allclose((drawn - mode - shift) / sd, 0, atol=5 / np.sqrt(40_000))


def faint(data):
    """One gamma variate of shape 0.02 says nearly nothing of its mean; ``level`` is of no image."""
    numpyro.sample("level", dist.Normal(0.0, 1.0))
    with numpyro.plate("image", len(data.y), dim=-2):
        log_mean = numpyro.sample("log_mean", dist.Normal(0.0, 1e3))
        with numpyro.plate("reflection", data.y.shape[1], dim=-1):
            numpyro.sample("y", dist.Gamma(0.02, 0.02 / jnp.exp(log_mean)), obs=data.y)


def test_along_a_nearly_flat_direction_the_mean_is_one_sd_from_the_mode_at_most():
    """With a flat prior on u = ln mean, −ln p = a(u + y e⁻ᵘ): mode ln y, curvature a, third
    derivative −a.  The mean is 6.6 sd from the mode, E[u] − ln y = ln a − ψ(a); an expansion about
    the mode would say 3.5 sd, 1/(2√a), and 20 sd with differences in place of derivatives."""
    y, a = np.array([[0.5], [1.0], [2.0]]), 0.02
    found = marginal_fit(faint, Data(y), fit=map_fit(faint, Data(y)))
    assert list(found.status) == ["converged"] * 3
    np.testing.assert_allclose(found.values()["log_mean"], np.log(y), atol=0.01 * a**-0.5)
    sd = found.sd("log_mean")
    np.testing.assert_allclose(sd, a**-0.5, rtol=1e-3)
    assert (np.log(a) - digamma(a)) * a**0.5 > 6
    np.testing.assert_allclose(found.image_shift, sd, rtol=1e-6)
    np.testing.assert_allclose(found.shared_shift, 0, atol=1e-6)


def torn(data):
    """Cauchy data about a level that all images share: two of them, on both sides of its prior."""
    level = numpyro.sample("level", dist.Normal(0.0, 1.0))
    with numpyro.plate("image", len(data.y), dim=-2):
        numpyro.sample("own", dist.Normal(0.0, 1.0))
        with numpyro.plate("reflection", 1, dim=-1):
            numpyro.sample("y", dist.StudentT(1.0, level, 0.1), obs=data.y)


def test_nothing_is_known_worse_than_its_prior():
    """At zero the data curve ln p up as the prior curves it down: the inverse has sd 11."""
    y = np.array([[2.0], [-2.0]])
    curvature = 1 + 4 * (0.1**2 - 4) / (0.1**2 + 4) ** 2
    assert curvature**-0.5 > 11
    assert map_fit(torn, Data(y)).sd("level") == pytest.approx(2.0, rel=1e-6)


class Counting(InProcess):
    """Knows the number of items of each ``map``."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def map(self, work, items, finished=None, lost=None):
        self.seen.append(len(items))
        return super().map(work, items, finished, lost)


@pytest.fixture
def of_forty_batches():
    """158 images."""
    rng = np.random.default_rng(3)
    y = (1.5 + rng.standard_normal((158, 3))) @ X.T + 0.5 * rng.standard_normal((158, M))
    padded = np.concatenate([y, y[-2:]])
    return Batches([Data(x) for x in padded.reshape(40, 4, M)], 4, 158, Counting())


def test_of_many_images_some_are_fitted_first_and_the_end_is_the_same(
    of_forty_batches, monkeypatch
):
    """Forty batches, of which the first fit has five: 20 images for the way of 158."""
    data, init = of_forty_batches, {"c": np.zeros((158, 1, 3))}
    seen = data.executor.seen
    at_once = mode_of_many(curves, data, init=init)
    passes = seen.count(40)
    seen.clear()
    monkeypatch.setattr("bayes_refine.infer.many_images.FEWEST", 16)
    found = mode_of_many(curves, data, init=init)
    assert seen.count(5) > 10 and seen.count(40) < passes
    sd = np.sqrt(np.diag(at_once.shared_covariance))
    np.testing.assert_allclose((found.shared - at_once.shared) / sd, 0, atol=0.03)
    np.testing.assert_allclose(
        found.shared_covariance / np.outer(sd, sd),
        at_once.shared_covariance / np.outer(sd, sd),
        atol=0.02,
    )
    precision = at_once.image_precision[:, 0, 0] ** 0.5
    np.testing.assert_allclose((found.image - at_once.image)[:, 0] * precision, 0, atol=0.1)
    assert set(found.status) == {"converged"}


def test_near_the_mode_of_many_images_what_they_share_is_known_from_some(
    of_forty_batches, monkeypatch
):
    """Twenty images know what is shared to √8 sd of all; a fit that stops when most images no
    longer move, and without these, is further away."""
    data, init = of_forty_batches, {"c": np.zeros((158, 1, 3))}
    exact, seen = map_fit(curves, data), data.executor.seen
    sd = np.sqrt(np.diag(exact.shared_covariance))
    far, passes = {}, {}
    for fewest in (16, 1000):
        seen.clear()
        monkeypatch.setattr("bayes_refine.infer.many_images.FEWEST", fewest)
        found = near_mode_of_many(curves, data, init=init)
        far[fewest] = np.abs((found.shared - exact.shared) / sd).max()
        passes[fewest] = seen.count(40)
    assert far[16] < 3 * np.sqrt(8) < far[1000]
    assert passes[16] < passes[1000]


def test_the_scatter_of_many_images_tells_the_curvature():
    """600 images of a model that is right: its inverse is the covariance, to √(2/600) or so."""
    rng = np.random.default_rng(4)
    data = Data((1.5 + rng.standard_normal((600, 3))) @ X.T + 0.5 * rng.standard_normal((600, M)))
    batches = Batches([Data(x) for x in data.y.reshape(20, 30, M)], 30, 600)
    found = marginal_fit(curves, batches, fit=map_fit(curves, batches))
    search = Search(curves, (batches,), found.values())
    frame = Frame.of(search, search.look(search.start, differences.exact), search.weight)
    density = marginal_density(search, search.start, frame, points(3))
    told = marginal_covariance.by_scatter(search, search.start, density)
    sd = np.sqrt(np.diag(found.shared_covariance))
    np.testing.assert_allclose(
        told / np.outer(sd, sd), found.shared_covariance / np.outer(sd, sd), atol=0.15
    )
    # summaries of earlier images count as their curvature
    search.data = replace(batches, earlier=Summary(found.shared, np.zeros(3), np.diag(sd**-2)))
    more = marginal_covariance.by_scatter(search, search.start, density)
    expected = np.linalg.inv(np.linalg.inv(told) + np.diag(sd**-2))
    np.testing.assert_allclose(more, expected, rtol=1e-6, atol=1e-9)
