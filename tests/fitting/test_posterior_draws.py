"""The methods of ``fit --method``: what each returns, what is said of it, what is written."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import arviz
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from bayes_refine import infer
from bayes_refine.cli.methods import GuideName, MethodName, method_of
from bayes_refine.fitting import posterior_draws
from bayes_refine.report.glance import attention
from bayes_refine.results.posterior import write_draws
from bayes_refine.util.output import jsonable
from bayes_refine.util.progress import SILENT


def levels(y, priors):
    """Levels of images about a common one; ``priors`` is the sd of an observation."""
    level = numpyro.sample("level", dist.Normal(0.0, 2.0))
    with numpyro.plate("image", len(y), dim=-2):
        a = numpyro.sample("a", dist.Normal(level, 0.5))
    with numpyro.plate("image", len(y), dim=-2), numpyro.plate("reflection", 3, dim=-1):
        numpyro.sample("y", dist.Normal(a, priors), obs=y)


NOISE = 0.4


@pytest.fixture(scope="module")
def run():
    """What a method needs of a run: four images of three numbers each."""
    y = jnp.asarray(np.random.default_rng(0).normal(1, 0.6, (4, 3)))
    fit = infer.map_fit(levels, y, NOISE)
    batches = infer.Batches([y[:2], y[2:]], 2, 4)
    return SimpleNamespace(fit=fit, observations=y, observed=batches, stills=(None,) * 4)


def drawn(method, run):
    return method(run, levels, NOISE, SILENT, rng=np.random.default_rng(1))


@pytest.fixture(scope="module")
def chains(run):
    """By NUTS, once: most of its time is compilation."""
    return drawn(method_of(MethodName.nuts, GuideName.structured, 300, 3, 100), run)


@pytest.mark.parametrize("name", list(MethodName))
def test_every_method_has_the_moments_of_a_normal_posterior(run, name, request):
    """Which Laplace has exactly."""
    if name == "nuts":
        found = request.getfixturevalue("chains")
    else:
        found = drawn(method_of(name, GuideName.structured, 1000, 3, 100), run)
    assert found.method == name and found.shape == ((3, 300) if name == "nuts" else (1, 1000))
    level, sd = found.flat()["level"], float(run.fit.sd("level"))
    assert found.flat()["a"].shape == (len(level), 4, 1)
    assert level.mean() == pytest.approx(float(run.fit.values()["level"]), abs=0.2 * sd)
    assert level.std() == pytest.approx(sd, rel=0.15)
    assert found.scales_vary == (name != "map")
    assert (found.message == "") == (found.converged is None) == (name in ("map", "laplace"))


def test_tables_have_the_spread_of_the_method(run, chains):
    """Laplace's own to the digit; of chains, the draws' about the same mode."""
    laplace = drawn(method_of(MethodName.laplace, GuideName.structured, 20, 3, 100), run)
    assert posterior_draws.with_spread(run.fit, laplace) is run.fit
    told = posterior_draws.with_spread(run.fit, chains)
    np.testing.assert_array_equal(told.values()["a"], run.fit.values()["a"])
    for name, shape in {"a": (4, 1), "level": ()}.items():
        sd = chains.values[name].std((0, 1)).reshape(shape)
        np.testing.assert_array_equal(told.sd(name), sd)
        assert told.sd(name).shape == run.fit.sd(name).shape
        np.testing.assert_allclose(told.sd(name), run.fit.sd(name), rtol=0.2)
        assert np.any(told.sd(name) != run.fit.sd(name))


def test_a_large_run_is_read_part_by_part(run, monkeypatch):
    monkeypatch.setattr(posterior_draws, "IN_MEMORY", 3)
    monkeypatch.delattr(run, "observations")
    found = drawn(partial(posterior_draws.svi, n_draws=2000), run)
    assert found.converged and found.numbers["guide"] == "structured"
    assert found.flat()["level"].std() == pytest.approx(float(run.fit.sd("level")), rel=0.15)


def test_what_summary_says(run, chains):
    said = jsonable(posterior_draws.describe(chains, run.fit.sites))
    assert (said["chains"], said["draws"]) == (3, 300)
    assert set(said["shared"]) == {"level"}
    assert {"mean", "sd", "rhat", "ess_bulk", "ess_tail"} == set(said["shared"]["level"])
    assert said["shared"]["level"]["sd"] == pytest.approx(float(run.fit.sd("level")), rel=0.15)
    assert {"divergences", "rhat_max", "ess_bulk_min", "ess_tail_min", "bfmi_min"} <= set(said)
    assert said["divergences"] == 0 and said["message"].endswith(".")
    # the report stops at what is not to be believed
    assert attention({"posterior": {**said, "converged": False}}) == [said["message"]]
    assert attention({"posterior": {**said, "converged": True}}) == []


def test_draws_evenly_from_all_chains():
    found = posterior_draws.Draws("nuts", {"x": np.arange(12.0).reshape(3, 4)})
    np.testing.assert_array_equal(found.flat()["x"], np.arange(12))
    np.testing.assert_array_equal(found.flat(at_most=3)["x"], [0, 5, 11])
    assert len(found.flat(at_most=100)["x"]) == 12


def test_chains_in_posterior_nc(small_run, tmp_path, monkeypatch):
    """Three chains of twelve, every second of them with pointwise values."""
    monkeypatch.setattr("bayes_refine.results.posterior.N_POINTWISE", 18)
    run, model, priors = (small_run.given[name] for name in ("run", "model", "priors"))
    rng = np.random.default_rng(0)
    flat = infer.laplace_draws(run.fit, 36, rng=rng)
    values = {k: v.reshape(3, 12, *v.shape[1:]) for k, v in flat.items()}
    stats = {"diverging": np.zeros((3, 12), bool), "lp": rng.normal(size=(3, 12))}
    found = posterior_draws.Draws("nuts", values, stats=stats)
    write_draws(tmp_path / "posterior.nc", run, model, priors, found, rng=rng)
    data = arviz.from_netcdf(str(tmp_path / "posterior.nc"))
    assert data["posterior"]["rotation_mrad"].dims == ("chain", "draw", "image", "axis")
    np.testing.assert_array_equal(data["posterior"]["log_R0"], values["log_R0"])
    assert not data["sample_stats"]["diverging"].values.any()
    pointwise = data["log_likelihood"]["intensity"]
    assert pointwise.shape[:2] == (3, 6)
    np.testing.assert_array_equal(pointwise["draw"], np.arange(0, 12, 2))
    some = {k: v[1, [4]] for k, v in values.items()}
    mask = np.asarray(run.observations.fit)
    expected = infer.log_likelihoods(model, some, mask, run.observations, priors)["intensity"]
    np.testing.assert_allclose(pointwise.values[1, 2], expected[0], rtol=1e-5, atol=1e-5)
