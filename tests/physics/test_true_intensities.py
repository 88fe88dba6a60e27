"""Posteriors of intensities against dense quadrature, closed forms and limits of theory."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from bayes_refine.physics import true_intensities

# compiled as a whole: operation by operation takes several times as long
wilson_posterior = jax.jit(true_intensities.wilson_posterior)

RATIOS = [-4.0, -1.0, 0.0, 1.0, 4.0, 30.0, 1e3, 1e4]


def wilson_by_brute_force(intensity, sigma, mean, centric):
    """Moments by dense Simpson quadrature over F around the maximum of the integrand."""

    def log_f(F):
        prior = (
            stats.halfnorm(scale=math.sqrt(mean)).logpdf(F)
            if centric
            else np.log(2 * F / mean) - F**2 / mean
        )
        return prior + stats.norm(intensity, sigma).logpdf(F**2)

    low, high = 1e-12, math.sqrt(max(60 * mean, intensity + 10 * sigma))
    for _ in range(6):
        F = np.linspace(low, high, 20001)
        values = log_f(F)
        inside = np.flatnonzero(values > values.max() - 40)
        low, high = F[max(inside[0] - 1, 0)], F[min(inside[-1] + 1, len(F) - 1)]
    F = np.linspace(low, high, 20001)
    top = log_f(F).max()
    f = np.exp(log_f(F) - top)
    z = integrate.simpson(f, x=F)
    first, second = (integrate.simpson(f * F**k, x=F) / z for k in (2, 1))
    return (
        first,
        math.sqrt(integrate.simpson(f * (F**2 - first) ** 2, x=F) / z),
        second,
        math.sqrt(integrate.simpson(f * (F - second) ** 2, x=F) / z),
        top + math.log(z),
    )


@pytest.mark.parametrize("centric", [False, True])
@pytest.mark.parametrize("mean", [0.3, 5.0, 400.0])
def test_wilson_matches_brute_force(centric, mean):
    ratio = np.array(RATIOS)
    sigma = np.where(ratio > 10, mean / np.abs(ratio).clip(1), 1.0)
    intensity = ratio * sigma
    n = len(ratio)
    post = wilson_posterior(
        jnp.array(intensity), jnp.array(sigma), jnp.full(n, math.log(mean)), jnp.full(n, centric)
    )
    got = np.stack([post.intensity, post.intensity_sd, post.amplitude, post.amplitude_sd], 1)
    for k in range(n):
        want = wilson_by_brute_force(intensity[k], sigma[k], mean, centric)
        np.testing.assert_allclose(got[k], want[:4], rtol=2e-4, err_msg=f"I/sigma {ratio[k]}")
        assert post.log_evidence[k] == pytest.approx(want[4], abs=1e-5)


def test_acentric_is_a_truncated_normal():
    # French & Wilson (1978): I | Î is N(Î − σ²/Σ, σ²) cut at zero
    intensity, sigma, mean = np.array([-3.0, 0.0, 2.0, 9.0]), np.ones(4), 2.5
    post = wilson_posterior(
        jnp.array(intensity), jnp.array(sigma), jnp.full(4, math.log(mean)), jnp.zeros(4, bool)
    )
    shifted = intensity - 1 / mean
    exact = stats.truncnorm(-shifted, np.inf, loc=shifted)
    np.testing.assert_allclose(post.intensity, exact.mean(), rtol=1e-5)
    np.testing.assert_allclose(post.intensity_sd, exact.std(), rtol=1e-4)


def test_limits_of_strong_and_absent_data():
    mean = 3.0
    for centric, variance in ((False, mean**2), (True, 2 * mean**2)):  # exponential, χ²₁
        post = wilson_posterior(
            jnp.array([0.0, 5.0]),
            jnp.array([1e6, 1e-3]),
            jnp.full(2, math.log(mean)),
            jnp.full(2, centric),
        )
        assert post.intensity[0] == pytest.approx(mean, rel=1e-4)
        assert post.intensity_sd[0] == pytest.approx(math.sqrt(variance), rel=1e-4)
        assert post.intensity[1] == pytest.approx(5.0, rel=1e-5)
        assert post.intensity_sd[1] == pytest.approx(1e-3, rel=1e-4)


def test_double_wilson_is_rice_and_folded_normal():
    F = jnp.linspace(0.01, 6, 50)[None]
    S, E, r = 2.0, 1.4, 0.8
    V, f = S * (1 - r**2), r * E * math.sqrt(S)
    args = [jnp.array([math.log(S)]), jnp.array([E]), jnp.array([r])]
    acentric = true_intensities.log_double_wilson(F, args[0], jnp.array([False]), *args[1:])[0]
    centric = true_intensities.log_double_wilson(F, args[0], jnp.array([True]), *args[1:])[0]
    scale = math.sqrt(V / 2)
    np.testing.assert_allclose(acentric, stats.rice(f / scale, scale=scale).logpdf(F[0]), atol=1e-8)
    folded = stats.foldnorm(f / math.sqrt(V), scale=math.sqrt(V))
    np.testing.assert_allclose(centric, folded.logpdf(F[0]), atol=1e-8)


def test_double_wilson_without_correlation_is_wilson():
    F = jnp.linspace(0.01, 6, 50)[None].repeat(2, 0)
    log_mean, centric = jnp.array([0.4, 0.4]), jnp.array([False, True])
    np.testing.assert_allclose(
        true_intensities.log_double_wilson(F, log_mean, centric, jnp.ones(2), jnp.zeros(2)),
        true_intensities.log_wilson(F, log_mean, centric),
        atol=1e-12,
    )


def test_slopes_of_the_rice_density_are_its_derivatives():
    F = jnp.array([[0.01, 0.5, 3.0, 40.0]]).repeat(6, 0)
    u = jnp.log(jnp.array([[1e-3, 2.0, 38.0] * 2, [1.0, 0.1, 4.0] * 2]))
    centric = jnp.arange(6) < 3

    def density(u):
        return true_intensities.log_rice(F, jnp.exp(u[0]), u[1], centric)

    first, second = jax.jit(true_intensities.rice_slopes)(F, jnp.exp(u[0]), u[1], centric)
    at = jnp.arange(6)
    slopes = jax.jit(jax.jacobian(density))(u)[at, :, :, at]  # each row depends on its own u alone
    bends = jax.jit(jax.hessian(density))(u)[at, :, :, at, :, at]
    np.testing.assert_allclose(first, jnp.moveaxis(slopes, 2, 0), rtol=1e-9, atol=1e-9)
    for got, (a, b) in zip(second, [(0, 0), (0, 1), (1, 1)], strict=True):
        np.testing.assert_allclose(got, bends[:, :, a, b], rtol=1e-6, atol=1e-6)


def test_gaussian_reference_in_closed_form():
    mean, sd, log_z = true_intensities.gaussian_reference(
        *(np.array([x]) for x in (2.0, 1.0, 5.0, 2.0))
    )
    x = np.linspace(-20, 30, 200001)
    f = stats.norm(2, 1).pdf(x) * stats.norm(5, 2).pdf(x)
    z = integrate.simpson(f, x=x)
    assert mean[0] == pytest.approx(integrate.simpson(f * x, x=x) / z, rel=1e-9)
    assert sd[0] == pytest.approx(math.sqrt(integrate.simpson(f * (x - mean) ** 2, x=x) / z))
    assert log_z[0] == pytest.approx(math.log(z))


def observations(rng, nu):
    code = np.sort(rng.integers(0, 40, 200))
    g, variance = rng.uniform(0.2, 2, 200), rng.uniform(0.01, 0.5, 200)
    J = g * rng.exponential(2.0, 40)[code] + np.sqrt(variance) * rng.standard_t(min(nu, 30), 200)
    return J, g, variance, code


@pytest.mark.parametrize("nu", [3.0, math.inf])
def test_many_observations_match_brute_force(nu):
    J, g, variance, code = observations(np.random.default_rng(1), nu)
    log_mean, centric = jnp.full(40, math.log(2.0)), jnp.arange(40) % 3 == 0

    def integrand(F):
        return true_intensities.log_wilson(
            F, log_mean, centric
        ) + true_intensities.log_observations(
            F, J, g, true_intensities.VarianceOfJ(variance, 0.2), nu, code, jnp.ones(200)
        )

    @jax.jit
    def found():
        nodes = true_intensities.place_nodes(integrand, jnp.full(40, 12.0), n_nodes=64)
        return true_intensities.posterior(integrand(nodes.amplitude), nodes)

    post = found()
    F = np.linspace(1e-9, 12, 20001)
    for h in range(40):
        mine = code == h
        mean = g[mine, None] * F**2
        scale = np.sqrt(variance[mine, None] + (0.2 * mean) ** 2)
        residual = stats.norm if math.isinf(nu) else stats.t(nu)
        log_f = (residual.logpdf((J[mine, None] - mean) / scale) - np.log(scale)).sum(0)
        log_f += (
            stats.halfnorm(scale=math.sqrt(2)).logpdf(F) if h % 3 == 0 else np.log(F) - F**2 / 2
        )
        f = np.exp(log_f)
        z = integrate.simpson(f, x=F)
        # a sharp peak on a heavy tail is the hardest: with ν = 3, 32 nodes leave 1e-2
        assert post.log_evidence[h] == pytest.approx(math.log(z), abs=5e-3)
        assert post.intensity[h] == pytest.approx(integrate.simpson(f * F**2, x=F) / z, rel=5e-3)


def test_gradient_of_the_evidence_matches_finite_differences():
    J, g, variance, code = observations(np.random.default_rng(2), 4.0)
    centric = jnp.arange(40) % 3 == 0

    @jax.jit
    def evidence(parameters):
        log_g, log_s, log_S = parameters

        def integrand(F):
            return true_intensities.log_wilson(F, jnp.full(40, log_S), centric) + (
                true_intensities.log_observations(
                    F,
                    J,
                    g * jnp.exp(log_g),
                    true_intensities.VarianceOfJ(variance * jnp.exp(2 * log_s), 0.1),
                    4.0,
                    code,
                    jnp.ones(200),
                )
            )

        nodes = true_intensities.place_nodes(integrand, jnp.full(40, 12.0))
        return true_intensities.log_evidence(integrand(nodes.amplitude), nodes).sum()

    at = jnp.array([0.1, -0.2, 0.6])
    gradient = jax.jit(jax.grad(evidence))(at)
    for k in range(3):
        step = jnp.zeros(3).at[k].set(1e-4)
        slope = (evidence(at + step) - evidence(at - step)) / 2e-4
        assert gradient[k] == pytest.approx(float(slope), rel=1e-3, abs=1e-2)


def test_draws_have_the_posterior_moments():
    intensity, sigma = jnp.array([-1.0, 3.0, 100.0]), jnp.array([1.0, 1.0, 5.0])
    log_mean, centric = jnp.log(jnp.array([2.0, 2.0, 50.0])), jnp.array([False, True, False])

    def integrand(F):
        return true_intensities.log_wilson(F, log_mean, centric) + true_intensities.log_gaussian(
            F, intensity, sigma
        )

    nodes = true_intensities.place_nodes(integrand, jnp.full(3, 60.0))
    values = integrand(nodes.amplitude)
    post = true_intensities.posterior(values, nodes)
    draws = true_intensities.draw_amplitudes(jax.random.key(0), values, nodes, 4000)
    assert draws.min() >= 0
    np.testing.assert_allclose(draws.mean(0), post.amplitude, rtol=0.03)
    np.testing.assert_allclose(draws.std(0), post.amplitude_sd, rtol=0.06)
