"""Leave-one-out and nested importance sampling against closed forms of a normal model."""

from __future__ import annotations

import warnings

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy.stats import multivariate_normal

from bayes_refine.infer import map_fit
from bayes_refine.infer.importance import nested_draws
from bayes_refine.infer.loo import Loo, compare, leave_out, leave_out_images, log_likelihoods

NOISE, TAU, WIDE = 0.5, 0.4, 2.0
N, M = 8, 5


def line(y, x):
    """Levels and slopes of images that scatter about common ones."""
    level = numpyro.sample("level", dist.Normal(0.0, WIDE))
    with numpyro.plate("image", len(y), dim=-2):
        a = numpyro.sample("a", dist.Normal(level, TAU))
        b = numpyro.sample("b", dist.Normal(0.0, 1.0))
    with numpyro.plate("image", len(y), dim=-2), numpyro.plate("reflection", M, dim=-1):
        numpyro.sample("y", dist.Normal(a + b * x, NOISE), obs=y)


@pytest.fixture(scope="module")
def found():
    """Data, and the nested draws of it."""
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (N, M))
    y = 1 + TAU * rng.standard_normal((N, 1)) - x + NOISE * rng.standard_normal((N, M))
    args = jnp.asarray(y), jnp.asarray(x)
    fit = map_fit(line, *args)
    nested = nested_draws(fit, line, *args, rng=rng, n_draws=1000, n_image=100)
    return x, y, fit, nested, args


def covariance(x):
    """(N·M, N·M) of all y, everything integrated out."""
    block = np.kron(np.eye(N), np.ones((M, M)))
    slopes = np.outer(x.ravel(), x.ravel()) * block
    return WIDE**2 + TAU**2 * block + slopes + NOISE**2 * np.eye(N * M)


def predicted(y, C, left_out):
    """ln p of some of a normal y given the rest."""
    rest = ~left_out
    gain = C[np.ix_(left_out, rest)] @ np.linalg.inv(C[np.ix_(rest, rest)])
    mean = gain @ y[rest]
    V = C[np.ix_(left_out, left_out)] - gain @ C[np.ix_(rest, left_out)]
    return multivariate_normal.logpdf(y[left_out], mean, V)


def test_the_evidence_of_an_image_is_that_of_a_normal(found):
    """ln Z_i(φ) = ln N(y_i; φ, τ² + x xᵀ + σ²): to the sd of 100 weights."""
    x, y, _, nested, _ = found
    for s in range(0, 1000, 250):
        for i in range(N):
            C = TAU**2 + np.outer(x[i], x[i]) + NOISE**2 * np.eye(M)
            exact = multivariate_normal.logpdf(y[i], np.full(M, nested.shared[s, 0]), C)
            assert nested.log_evidence[s, i] == pytest.approx(exact, abs=0.25)
    assert nested.khat < 0.5 and (nested.image_khat < 0.5).all()


def test_resampled_draws_have_the_moments_of_the_posterior(found):
    _, _, fit, nested, _ = found
    draws = nested.draws(4000, rng=np.random.default_rng(1))
    sd = float(fit.sd("level"))  # exact: the posterior is normal
    assert draws["level"].mean() == pytest.approx(float(fit.values()["level"]), abs=0.15 * sd)
    assert draws["level"].std() == pytest.approx(sd, rel=0.1)
    a, exact = draws["a"][:, :, 0], fit.sd("a").ravel()
    np.testing.assert_allclose((a.mean(0) - fit.values()["a"].ravel()) / exact, 0, atol=0.2)
    np.testing.assert_allclose(a.std(0) / exact, 1, atol=0.15)


def test_leaving_out_reflections_and_images(found):
    """Against the conditional normals: each y given all others, each image given all others."""
    x, y, _, nested, args = found
    C, flat = covariance(x), y.ravel()
    by_site = log_likelihoods(line, nested.values(), np.ones((N, M), bool), *args)
    one = leave_out(by_site["y"], log_weights=nested.log_weights)
    places = np.arange(N * M)
    exact = np.array([predicted(flat, C, places == k) for k in places])
    # of 1000 draws, whose weights for the worst vary by a few times their mean
    np.testing.assert_allclose(one.pointwise, exact, atol=0.3)
    assert np.sqrt(np.mean((one.pointwise - exact) ** 2)) < 0.1
    assert one.elpd == pytest.approx(exact.sum(), abs=0.8)
    image = np.repeat(np.arange(N), M)
    exact = np.array([predicted(flat, C, image == i) for i in range(N)])
    np.testing.assert_allclose(leave_out_images(nested).pointwise, exact, atol=0.25)
    assert (leave_out_images(nested).khat < 0.7).all()
    assert (one.khat < 0.7).mean() > 0.8  # five numbers hold three unknowns: some hold alone
    # the wrong way, with an image's unknowns as they were fitted to it: unreliable
    fitted = by_site["y"].reshape(-1, N, M).sum(2)
    assert (leave_out(fitted, log_weights=nested.log_weights).khat > 0.5).all()


def test_the_same_as_arviz(found):
    """ArviZ's own loo, 0.x or 1.x, of the same pointwise values."""
    import arviz

    nested, args = found[3:]
    draws = nested.values()
    values = log_likelihoods(line, draws, np.ones((N, M), bool), *args)["y"]
    groups = {
        "posterior": {"level": draws["level"][None]},
        "log_likelihood": {"y": values[None]},
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            data = arviz.from_dict(**groups)
        except TypeError:  # 1.x takes the groups as one argument
            data = arviz.from_dict(groups)
        theirs = arviz.loo(data, pointwise=True, reff=1.0)
    ours = leave_out(values)
    elpd, se, p = (
        (theirs.elpd_loo, theirs.se, theirs.p_loo)
        if hasattr(theirs, "elpd_loo")
        else (theirs.elpd, theirs.se, theirs.p)
    )
    assert ours.elpd == pytest.approx(float(elpd), abs=1e-6)
    assert ours.effective == pytest.approx(float(p), abs=1e-6)
    assert ours.se == pytest.approx(float(se), rel=0.02)  # which divides by N, not N − 1
    np.testing.assert_allclose(ours.khat, np.ravel(theirs.pareto_k), atol=1e-6)


def test_what_is_scored_may_be_less_than_what_is_left_out():
    """Two independent data a part, one of them scored: as if the other did not exist."""
    rng = np.random.default_rng(4)
    theta, y = rng.normal(size=(2000, 3)), rng.normal(size=3)
    seen = -0.5 * (y - theta) ** 2
    blind = np.tile(rng.normal(size=3), (2000, 1))
    together, alone = leave_out(seen + blind, scored=seen), leave_out(seen)
    np.testing.assert_allclose(together.pointwise, alone.pointwise, atol=1e-9)


def test_comparison():
    """Differences are paired; of groups, their sums scatter."""
    rng = np.random.default_rng(5)
    common, image = 10 * rng.normal(size=60), np.repeat(np.arange(6), 10)
    shift = np.repeat(rng.normal(size=6), 10)
    good = Loo(common, np.zeros(60), 1.0)
    bad = Loo(common - 1 + shift, np.where(np.arange(60) < 2, 0.9, 0.1), 2.0)
    first, second = compare({"bad": bad, "good": good})
    assert (first.name, first.difference, first.difference_se) == ("good", 0.0, 0.0)
    assert second.difference == pytest.approx((shift - 1).sum()) and second.unreliable == 2
    assert second.difference_se == pytest.approx(np.sqrt(60) * shift.std(ddof=1))
    grouped = compare({"bad": bad, "good": good}, image)[1]
    sums = 10 * (shift.reshape(6, 10)[:, 0] - 1)
    assert grouped.difference_se == pytest.approx(np.sqrt(6) * sums.std(ddof=1))
    with pytest.raises(ValueError, match="one number of parts"):
        compare({"good": good, "short": Loo(common[:5], np.zeros(5), 0.0)})
