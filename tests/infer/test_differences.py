"""Curvatures made of slopes and expectations against automatic second derivatives."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer.util import log_density
from scipy.special import gammaln

from bayes_refine.infer import StudentT, differences
from bayes_refine.infer.density import density, find_sites, flatten, prior_density, unflatten
from bayes_refine.infer.programs import compiled_slope, compiled_slope_of_each
from bayes_refine.util.student_t import log_gamma_half_step

from ..automatic_curvature import exact_curvature, fisher_curvature

N, M = 3, 40


class Data(NamedTuple):
    """Images first."""

    x: np.ndarray
    y: np.ndarray
    used: np.ndarray


def decays(data: Data) -> None:
    """Heights and lengths of each image, two curves of unknown scatter and tails, some masked."""
    log_sd = numpyro.sample("log_sd", dist.Normal(-1.0, 1.0))
    log_nu = numpyro.sample("log_nu", dist.Normal(1.5, 0.5).expand([2]).to_event(1))
    floor = numpyro.sample("floor", dist.HalfNormal(0.2))
    with numpyro.plate("image", len(data.x), dim=-2):
        log_height = numpyro.sample("log_height", dist.Normal(0.3 * log_sd, 1.0))
        length = numpyro.sample("length", dist.LogNormal(0.0, 0.4).expand([2]).to_event(1))[:, 0]
    curves = jnp.exp(log_height)[..., None] * jnp.exp(-data.x[:, None] * length[..., None])
    with (
        numpyro.plate("image", len(data.x), dim=-2),
        numpyro.plate("point", M, dim=-1),
        numpyro.handlers.mask(mask=data.used),
    ):
        for k in range(2):
            sd = jnp.exp(log_sd) * (0.2 + curves[:, k]) + floor
            law = StudentT(jnp.exp(log_nu[k]), curves[:, k], sd)
            numpyro.sample(f"y_{k}", law, obs=data.y[:, k])


class Case(NamedTuple):
    """The model at a place that is no mode."""

    data: Data
    sites: tuple
    theta: np.ndarray
    phi: np.ndarray


@pytest.fixture(scope="module")
def case() -> Case:
    rng = np.random.default_rng(0)
    x = np.linspace(0, 3, M) * np.ones((N, 1))
    y = np.exp(-x)[:, None] + 0.2 * rng.standard_normal((N, 2, M))
    data = Data(x, y, rng.random((N, M)) < 0.8)
    sites, values = find_sites(decays, (data,), {})
    theta, phi = (np.asarray(a) for a in flatten(sites, values))
    shift = rng.standard_normal
    return Case(data, sites, theta + 0.1 * shift(theta.shape), phi + 0.1 * shift(phi.shape))


def test_blocks_alone_are_those_of_the_whole_curvature(case):
    weight = np.array([1.0, 1.0, 0.0])
    scale = np.full(case.theta.shape, 0.3), np.full(case.phi.shape, 0.3)
    rows = case.theta, case.phi, weight, 0.5, scale, (case.data,)
    whole = differences.exact(decays, case.sites, True)(*rows)
    alone = differences.exact_blocks(decays, case.sites, True)(*rows)
    np.testing.assert_array_equal(alone.blocks, whole.blocks)
    assert not alone.coupling.any() and whole.coupling.any()


@pytest.mark.parametrize("kind", ["exact", "fisher"])
def test_curvature_is_that_of_automatic_derivatives(case, kind):
    """To a millionth of what a posterior sd is worth."""
    weight, args = np.array([1.0, 1.0, 0.0]), (case.data,)
    scale = np.full(case.theta.shape, 0.3), np.full(case.phi.shape, 0.3)
    rows = case.theta, case.phi, weight, 0.5
    found = getattr(differences, kind)(decays, case.sites, True)(*rows, scale, args)
    automatic = {"exact": exact_curvature, "fisher": fisher_curvature}[kind]
    expected = jax.jit(lambda *x: automatic(decays, case.sites, *x))(*rows, args)
    unit = np.sqrt(np.abs(np.diagonal(expected.blocks, axis1=1, axis2=2))) + (weight == 0)[:, None]
    of_shared = np.sqrt(np.abs(np.diagonal(expected.shared)))
    for name, left, right in (
        ("blocks", unit[:, :, None], unit[:, None]),
        ("coupling", unit[:, :, None], of_shared),
        ("shared", of_shared[:, None], of_shared),
    ):
        off = (getattr(found, name) - np.asarray(getattr(expected, name))) / (left * right)
        np.testing.assert_allclose(off[:2] if off.ndim == 3 else off, 0, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("program", [compiled_slope, compiled_slope_of_each])
@pytest.mark.parametrize("apart", [True, False])
def test_slopes_of_all_programs_are_the_same(case, program, apart):
    @jax.jit
    def whole(t, p):
        return -sum(x.sum() for x in density(decays, case.sites, t, p, (case.data,)))

    found = program(decays, case.sites, apart)(case.theta, case.phi, np.ones(N), (case.data,))
    g_image, g_shared = jax.jit(jax.grad(whole, (0, 1)))(
        jnp.asarray(case.theta), jnp.asarray(case.phi)
    )
    np.testing.assert_allclose(found.g_image, g_image, rtol=1e-10)
    np.testing.assert_allclose(found.g_shared, g_shared, rtol=1e-10)
    assert found.log_density == pytest.approx(-float(whole(case.theta, case.phi)), rel=1e-12)


def test_density_is_numpyros(case):
    """Priors and Student-t laws are evaluated together; NumPyro does so site by site."""

    @jax.jit
    def both(theta, phi):
        values = unflatten(case.sites, theta, phi)
        jacobian = jnp.log(values["floor"]) + jnp.log(values["length"]).sum()
        expected = log_density(decays, (case.data,), {}, values)[0] + jacobian
        return expected, sum(x.sum() for x in density(decays, case.sites, theta, phi, (case.data,)))

    expected, found = both(case.theta, case.phi)
    assert found == pytest.approx(float(expected), rel=1e-13)


def test_gamma_functions_of_a_student_t():
    nu = np.geomspace(0.3, 1e3, 200)
    expected = gammaln((nu + 1) / 2) - gammaln(nu / 2)
    np.testing.assert_allclose(log_gamma_half_step(nu), expected, rtol=1e-11, atol=1e-13)


def test_slope_from_expectations_is_that_of_ln_p(case):
    scale = np.full(case.theta.shape, 0.3), np.full(case.phi.shape, 0.3)
    rows = case.theta, case.phi, np.ones(N), 1.0, scale, (case.data,)
    slope, curvature = differences.scored(decays, case.sites, True)(*rows)

    def of_priors(t):
        return -prior_density(decays, case.sites, t, case.phi, (case.data,))[0].sum()

    whole = compiled_slope(decays, case.sites, True)(*rows[:3], (case.data,))
    expected = whole.g_image - jax.jit(jax.grad(of_priors))(case.theta)
    np.testing.assert_allclose(slope, expected, rtol=2e-6, atol=2e-6)
    fisher = differences.fisher(decays, case.sites, True)(*rows)
    np.testing.assert_array_equal(curvature.blocks, fisher.blocks)


def test_an_image_without_density_at_any_point_counts_as_at_its_mode():
    """ln p has no meaning beyond c = 2, where the wide points of the second image lie."""

    def edge(y):
        level = numpyro.sample("level", dist.Normal(0.0, 1.0))
        with numpyro.plate("image", len(y), dim=-2):
            c = numpyro.sample("c", dist.Normal(level, 1.0))
            with numpyro.plate("reflection", 1, dim=-1):
                numpyro.sample("y", dist.Normal(jnp.sqrt(4 - c**2), 1.0), obs=y)

    args, weight, z = (np.array([[1.9], [2.1]]),), np.ones(2), np.array([[1.0], [-1.0]])
    sites, _ = find_sites(edge, args, {})
    theta, phi = np.array([[0.3], [0.4]]), np.array([0.1])
    roots, pull = np.array([[[0.5]], [[9.0]]]), np.full((2, 1, 1), -0.2)
    integral = differences.integral(edge, sites, True)
    both, slope, _ = integral(theta, phi, roots, pull, weight, 1.0, z, args)
    first, of_first, _ = integral(theta, phi, roots, pull, weight * [1, 0], 1.0, z, args)
    mode = compiled_slope(edge, sites, True)(theta, phi, weight, args)
    assert both == pytest.approx(first + float(mode.image[1]), rel=1e-12)
    along = mode.g_each[1] + 0.2 * mode.g_image[1]
    np.testing.assert_allclose(slope, of_first + np.asarray(along), rtol=1e-12)


def test_the_scatter_is_that_of_the_slopes_of_single_images(case):
    """n times the covariance of the images' slopes; an unused place has none, one image neither."""
    (n, k), s = case.theta.shape, len(case.phi)
    rng = np.random.default_rng(5)
    roots, pull = 0.1 * rng.standard_normal((n, k, k)), rng.standard_normal((n, k, s))
    integral = differences.integral(decays, case.sites, True)
    z = np.concatenate([np.eye(k), -np.eye(k)]) * k**0.5

    def of(*images):
        weight = np.isin(np.arange(n), images) * 1.0
        return integral(case.theta, case.phi, roots, pull, weight, 0.0, z, (case.data,))

    first, second = of(0)[1], of(1)[1]
    off = np.outer(first - second, first - second)  # twice the covariance of two
    np.testing.assert_allclose(of(0, 1)[2], off, rtol=1e-9, atol=1e-9 * off.max())
    np.testing.assert_array_equal(of(0)[2], np.zeros_like(off))
