"""Variational guides on models whose posterior is known in closed form."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from bayes_refine.infer import Batches, guides, map_fit
from bayes_refine.infer.density import density
from bayes_refine.infer.svi import Ascent, subset, svi_fit
from bayes_refine.infer.whitening import coloured, log_volume, whitening
from bayes_refine.util.progress import Listener

NOISE, TAU = 0.5, 0.4


def line(data):
    """A line through each image's data; the levels scatter about a common one."""
    x, y = data["x"], data["y"]
    level = numpyro.sample("level", dist.Normal(0.0, 2.0))
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    with numpyro.plate("image", len(y), dim=-2):
        a = numpyro.sample("a", dist.Normal(level, TAU))
        b = numpyro.sample("b", dist.Normal(slope, TAU))
    with numpyro.plate("image", len(y), dim=-2), numpyro.plate("reflection", y.shape[1], dim=-1):
        numpyro.sample("y", dist.Normal(a + b * x, NOISE), obs=y)


def simulate(n, m=4, seed=0):
    """Data, and mean (2n + 2,) and covariance of a_i, b_i in turn, level, slope."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(0, 2, (n, m))  # not centred: a and b are strongly correlated
    a, b = 1 + TAU * rng.standard_normal((n, 1)), -1 + TAU * rng.standard_normal((n, 1))
    y = a + b * x + NOISE * rng.standard_normal((n, m))
    precision = np.zeros((2 * n + 2, 2 * n + 2))
    pull = np.zeros(2 * n + 2)
    for i in range(n):
        X = np.stack([np.ones(m), x[i]], 1)
        own, shared = slice(2 * i, 2 * i + 2), slice(2 * n, None)
        precision[own, own] = X.T @ X / NOISE**2 + np.eye(2) / TAU**2
        precision[own, shared] = precision[shared, own] = -np.eye(2) / TAU**2
        precision[shared, shared] += np.eye(2) / TAU**2
        pull[own] = X.T @ y[i] / NOISE**2
    precision[shared, shared] += np.diag([1 / 2.0**2, 1.0])
    data = {"x": jnp.asarray(x), "y": jnp.asarray(y)}
    return data, np.linalg.solve(precision, pull), precision


def in_order(draws):
    """(S, 2n + 2) from draws by site."""
    own = np.stack([draws["a"][..., 0], draws["b"][..., 0]], axis=-1)
    own = own.reshape(len(own), -1)
    return np.concatenate([own, draws["level"][:, None], draws["slope"][:, None]], axis=1)


@pytest.fixture(scope="module")
def lines():
    data, mean, precision = simulate(6)
    return data, mean, precision, map_fit(line, data)


FAMILIES = [guides.structured, guides.mean_field, guides.low_rank(), guides.low_rank(1)]


@pytest.mark.parametrize("guide", FAMILIES, ids=lambda g: g.name)
def test_the_density_of_a_guide_is_that_of_its_draws(lines, guide):
    """Away from its start: E[exp(ln f − ln q)] = 1 for a normalised f, here the normal with the
    draws' own mean and covariance; and the two are equal draw by draw, for q is normal."""
    fit = lines[3]
    frame, parameters = guide.start(fit)
    keys = iter(jax.random.split(jax.random.key(1), len(parameters)))
    parameters = {
        k: v + 0.3 * jax.random.normal(next(keys), v.shape) for k, v in parameters.items()
    }
    keys = jax.random.split(jax.random.key(2), 20_000)
    theta, phi = jax.jit(jax.vmap(lambda key: guide.draw(parameters, frame, key)))(keys)
    log_density = jax.vmap(lambda t, p: guide.log_density(parameters, frame, t, p))
    image, shared = jax.jit(log_density)(theta, phi)
    log_q = np.asarray(image.sum(1) + shared)
    x = np.concatenate([np.asarray(theta).reshape(len(theta), -1), np.asarray(phi)], axis=1)
    covariance = np.cov(x.T)
    away = x - x.mean(0)
    normal = -0.5 * np.einsum("di,di->d", away @ np.linalg.inv(covariance), away)
    normal -= 0.5 * np.linalg.slogdet(2 * np.pi * covariance)[1]
    # of 14 dimensions estimated from 20 000 draws the quadratic form is good to a few percent
    assert abs((normal - log_q).mean()) < 0.05
    assert (normal - log_q).std() < 0.2


def test_whitening_makes_the_laplace_approximation_the_unit_normal(lines):
    """ln p falls by half the squared length, from any white point, and the volume is that of
    the covariance."""
    data, _, precision, fit = lines
    frame, rng = whitening(fit), np.random.default_rng(3)
    for _ in range(5):
        z = jnp.asarray(rng.standard_normal((6, 2))), jnp.asarray(rng.standard_normal(2))
        image, shared = density(line, fit.sites, *coloured(frame, *z), (data,))
        length = sum(float((part**2).sum()) for part in z)
        fall = fit.log_density - float(image.sum() + shared)
        assert fall == pytest.approx(length / 2, rel=1e-3, abs=1e-3)
    image, shared = log_volume(frame)
    volume = -0.5 * np.linalg.slogdet(precision)[1]
    assert float(image.sum() + shared) == pytest.approx(volume, rel=1e-8)


@pytest.mark.parametrize("guide", [guides.structured, guides.low_rank()], ids=lambda g: g.name)
def test_a_normal_posterior_is_found_from_a_wrong_start(lines, guide):
    """Started from an approximation half as wide as it should be, and half a posterior sd off."""
    data, mean, precision, fit = lines
    covariance = np.linalg.inv(precision)
    sd = np.sqrt(np.diag(covariance))
    wrong = {
        "image": fit.image + 0.5 * sd[:12].reshape(6, 2),
        "shared": fit.shared - 0.5 * sd[12:],
        "image_precision": 4 * fit.image_precision,
        "coupling": 4 * fit.coupling,
        "shared_covariance": fit.shared_covariance / 4,
    }
    start = fit.__class__(**{**fit.__dict__, **wrong})
    found = svi_fit(
        start,
        line,
        data,
        rng=np.random.default_rng(4),
        guide=guide,
        ascent=Ascent(learning_rate=0.02),
    )
    assert found.converged, found.message
    x = in_order(found.draws(40_000, rng=np.random.default_rng(5)))
    np.testing.assert_allclose((x.mean(0) - mean) / sd, 0, atol=0.1)
    np.testing.assert_allclose(x.std(0) / sd, 1, atol=0.1)
    assert found.khat < 0.5
    # the evidence of a normal model in closed form: the guide attains it
    evidence = fit.log_density + 0.5 * np.linalg.slogdet(2 * np.pi * covariance)[1]
    assert found.evidence == pytest.approx(evidence, abs=0.1) and found.evidence < evidence + 0.05


def test_mean_field_is_too_narrow_by_what_theory_says(lines):
    """Its optimum for a normal posterior has variances 1/precision_ii (Bishop 2006, 10.1.2)."""
    data, mean, precision, fit = lines
    found = svi_fit(fit, line, data, rng=np.random.default_rng(6), guide=guides.mean_field)
    assert found.converged, found.message
    sd, alone = np.sqrt(np.diag(np.linalg.inv(precision))), np.diag(precision) ** -0.5
    x = in_order(found.draws(40_000, rng=np.random.default_rng(7)))
    np.testing.assert_allclose((x.mean(0) - mean) / sd, 0, atol=0.12)
    np.testing.assert_allclose(x.std(0) / alone, 1, atol=0.1)
    assert (alone / sd).min() < 0.6  # there is a deficit to see
    lost = 0.5 * (np.linalg.slogdet(precision)[1] - np.log(np.diag(precision)).sum())
    evidence = fit.log_density - 0.5 * np.linalg.slogdet(precision / 2 / np.pi)[1]
    assert found.evidence - evidence == pytest.approx(lost, abs=0.3)


def test_minibatches_of_images_find_the_same(lines):
    """Two thirds of the images never seen in one step, and a start that is off."""
    data, mean, precision = simulate(24, seed=1)
    fit = map_fit(line, data)
    sd = np.sqrt(np.diag(np.linalg.inv(precision)))
    shifted = {"image": fit.image + 0.4 * sd[:48].reshape(24, 2), "shared": fit.shared + sd[48:]}
    start = fit.__class__(**{**fit.__dict__, **shifted})
    rng = np.random.default_rng(8)
    found = svi_fit(
        start, line, data, rng=rng, batch=8, ascent=Ascent(learning_rate=0.02, stretch=400)
    )
    assert found.converged, found.message
    x = in_order(found.draws(40_000, rng=np.random.default_rng(9)))
    np.testing.assert_allclose((x.mean(0) - mean) / sd, 0, atol=0.15)
    np.testing.assert_allclose(x.std(0) / sd, 1, atol=0.12)


def test_subset_takes_rows_and_leaves_what_is_shared():
    data = {"rows": jnp.arange(12.0).reshape(4, 3), "shared": jnp.asarray(7.0)}
    some, other = subset((data, "prior"), jnp.asarray([2, 0]))
    np.testing.assert_array_equal(some["rows"], [[6, 7, 8], [0, 1, 2]])
    assert float(some["shared"]) == 7 and other == "prior"


def test_a_guide_that_is_cut_short_says_so(lines):
    data, _, _, fit = lines
    off = fit.__class__(**{**fit.__dict__, "shared": fit.shared + 30})
    said = []
    found = svi_fit(
        off,
        line,
        data,
        rng=np.random.default_rng(0),
        ascent=Ascent(stretch=20, max_steps=60, n_khat=0),
        progress=Listener(said.append, lambda fraction, line: said.append(line)),
    )
    assert not found.converged and "still moving after 60 steps" in found.message
    assert len(found.elbo) == 60 and np.isnan(found.khat)
    assert len(said) == 3 and said[-1] == found.message


def test_the_same_seed_gives_the_same_guide(lines):
    data, _, _, fit = lines
    short = {"ascent": Ascent(stretch=20, max_steps=40, n_khat=0)}
    one, two = (svi_fit(fit, line, data, rng=np.random.default_rng(3), **short) for _ in range(2))
    np.testing.assert_array_equal(one.elbo, two.elbo)


def test_nothing_shared():
    """Gamma–Poisson with no shared unknown: the optimum of ln-normal q for a Gamma posterior has
    sd shape^−½ and mean ln(shape/rate) − 1/(2 shape), from ∂ELBO = 0: E e^x = shape/rate."""

    def rates(y):
        with numpyro.plate("image", len(y), dim=-2):
            rate = numpyro.sample("rate", dist.Gamma(2.0, 0.5))
        with numpyro.plate("image", len(y), dim=-2), numpyro.plate("r", y.shape[1], dim=-1):
            numpyro.sample("y", dist.Poisson(rate), obs=y)

    y = jnp.asarray(np.random.default_rng(4).poisson([[0.3], [2], [20]], (3, 5)))
    fit = map_fit(rates, y)
    shape, rate = 2 + np.asarray(y).sum(1), 0.5 + 5
    found = svi_fit(fit, rates, y, rng=np.random.default_rng(1))
    assert found.converged, found.message
    x = np.log(found.draws(40_000, rng=np.random.default_rng(2))["rate"][:, :, 0])
    np.testing.assert_allclose(x.std(0) * np.sqrt(shape), 1, atol=0.06)
    offset = (x.mean(0) - np.log(shape / rate) + 0.5 / shape) * np.sqrt(shape)
    np.testing.assert_allclose(offset, 0, atol=0.06)


def test_images_that_lie_on_disk_find_the_same():
    """Parts of five images, the last with room for one that does not count."""
    data, mean, precision = simulate(14, seed=2)
    fit = map_fit(line, data)
    sd = np.sqrt(np.diag(np.linalg.inv(precision)))
    shifted = {"image": fit.image + 0.4 * sd[:28].reshape(14, 2), "shared": fit.shared + sd[28:]}
    start = fit.__class__(**{**fit.__dict__, **shifted})
    rows = [np.minimum(np.arange(5 * b, 5 * b + 5), 13) for b in range(3)]
    parts = Batches([{k: v[r] for k, v in data.items()} for r in rows], 5, 14)
    rng, settings = np.random.default_rng(8), {"ascent": Ascent(learning_rate=0.02, stretch=400)}
    found = svi_fit(start, line, parts, rng=rng, **settings)
    assert found.converged, found.message
    x = in_order(found.draws(40_000, rng=np.random.default_rng(9)))
    np.testing.assert_allclose((x.mean(0) - mean) / sd, 0, atol=0.15)
    np.testing.assert_allclose(x.std(0) / sd, 1, atol=0.12)
    assert found.khat < 0.7
    evidence = fit.log_density - 0.5 * np.linalg.slogdet(precision / 2 / np.pi)[1]
    assert found.evidence == pytest.approx(evidence, abs=5 * found.evidence_sd + 0.1)
