"""NUTS in whitened coordinates against closed forms, and what is said of bad chains."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from bayes_refine.infer import batches, map_fit
from bayes_refine.infer.diagnostics import bfmi, chain_summary, judge_chains, judge_guide, psis
from bayes_refine.infer.nuts import nuts_fit
from bayes_refine.util.progress import Listener


def scaled(y):
    """Levels of very different size, a common one known badly, positive noise known in advance."""
    level = numpyro.sample("level", dist.Normal(0.0, 1e3))
    with numpyro.plate("image", len(y), dim=-2):
        a = numpyro.sample("a", dist.Normal(level, 50.0))
        tiny = numpyro.sample("tiny", dist.Normal(0.0, 1e-3).expand([2]).to_event(1))
    x = jnp.linspace(-1, 1, y.shape[1])
    mean = a + 1e3 * (tiny[..., 0] * x + tiny[..., 1] * x**2)
    with numpyro.plate("image", len(y), dim=-2), numpyro.plate("reflection", len(x), dim=-1):
        numpyro.sample("y", dist.Normal(mean, 0.5), obs=y)


@pytest.fixture(scope="module")
def sampled():
    rng = np.random.default_rng(0)
    n, m = 4, 5
    x = np.linspace(-1, 1, m)
    y = 300 + 50 * rng.standard_normal((n, 1)) + x + 0.5 * rng.standard_normal((n, m))
    precision, pull = np.zeros((3 * n + 1, 3 * n + 1)), np.zeros(3 * n + 1)
    precision[-1, -1] = 1e-6
    for i in range(n):
        X = np.stack([np.ones(m), 1e3 * x, 1e3 * x**2], 1)
        own = slice(3 * i, 3 * i + 3)
        precision[own, own] = X.T @ X / 0.25 + np.diag([1 / 2500, 1e6, 1e6])
        precision[3 * i, -1] = precision[-1, 3 * i] = -1 / 2500
        precision[-1, -1] += 1 / 2500
        pull[own] = X.T @ y[i] / 0.25
    data, said = jnp.asarray(y), []
    fit = map_fit(scaled, data)
    settings = {"n_draws": 600, "n_warmup": 200, "progress": Listener(said.append)}
    chains = nuts_fit(fit, scaled, data, rng=np.random.default_rng(1), **settings)
    return chains, np.linalg.solve(precision, pull), np.linalg.inv(precision), said, (fit, data)


def test_nuts_has_the_moments_of_the_closed_form(sampled):
    """Six orders of magnitude between the unknowns; to five standard errors of independent draws,
    of which there are at least as many as the ESS says."""
    chains, mean, covariance, said, _ = sampled
    assert chains.converged and said[-1] == chains.message and "4 chains agree" in chains.message
    draws = chains.flat()
    own = np.concatenate([draws["a"], draws["tiny"][:, :, 0]], axis=2).reshape(2400, -1)
    x = np.concatenate([own, draws["level"][:, None]], axis=1)
    sd = np.sqrt(np.diag(covariance))
    # draws that alternate know a mean better than a product: for those, the ESS of the tails
    ess, tail = (
        min(float(s[name].min()) for s in chains.summary.values())
        for name in ("ess_bulk", "ess_tail")
    )
    assert ess > 1000
    np.testing.assert_allclose((x.mean(0) - mean) / sd, 0, atol=5 / np.sqrt(ess))
    np.testing.assert_allclose(x.std(0) / sd, 1, atol=5 / np.sqrt(2 * tail))
    correlation = covariance / np.outer(sd, sd)
    np.testing.assert_allclose(np.corrcoef(x.T), correlation, atol=5 / np.sqrt(tail))
    assert np.abs(correlation - np.eye(13)).max() > 0.6


def test_the_metric_is_that_of_the_posterior(sampled):
    """A unit normal in 13 dimensions takes a few steps a trajectory, whatever the units."""
    chains = sampled[0]
    assert chains.stats["n_steps"].mean() < 16 and not chains.stats["diverging"].any()
    assert chains.stats["acceptance_rate"].mean() > 0.7
    for name, value in chains.stats.items():
        assert value.shape == (4, 600), name
    assert chains.draws["a"].shape == (4, 600, 4, 1) and chains.draws["level"].shape == (4, 600)
    starts = chains.draws["level"][:, 0]
    assert len(np.unique(starts)) == 4
    assert np.corrcoef(chains.stats["lp"].ravel(), chains.stats["energy"].ravel())[0, 1] < 0


def test_the_same_seed_gives_the_same_draws(sampled):
    fit, data = sampled[-1]
    short = {"n_draws": 20, "n_warmup": 20, "n_chains": 2}
    one, two = (
        nuts_fit(fit, scaled, data, rng=np.random.default_rng(7), **short) for _ in range(2)
    )
    np.testing.assert_array_equal(one.draws["a"], two.draws["a"])
    assert not one.converged  # 40 draws cannot be judged


def test_chains_together_have_the_draws_of_one_after_another(sampled, monkeypatch):
    """As on a GPU; draws differ by rounding, which grows along a chain."""
    fit, data = sampled[-1]

    one_after_another = batches.jax.lax.map
    mapped: list[int] = []  # calls that take one row after another

    def drawn():
        short = {"n_draws": 5, "n_warmup": 5, "n_chains": 2}
        mapped.append(0)
        return nuts_fit(fit, scaled, data, rng=np.random.default_rng(7), **short)

    def counted(*args, **kwargs):
        mapped[-1] += 1
        return one_after_another(*args, **kwargs)

    monkeypatch.setattr(batches.jax.lax, "map", counted)
    apart = drawn()
    monkeypatch.setattr(batches.jax, "default_backend", lambda: "gpu")
    together = drawn()
    assert mapped[1] == mapped[0] - 1  # all but the chains
    for name, draws in apart.draws.items():
        sd = draws.std(axis=(0, 1))
        np.testing.assert_allclose(together.draws[name] / sd, draws / sd, rtol=1e-6, atol=1e-6)


# -- what is said -----------------------------------------------------------------------------


def judged(draws, divergences=0, saturated=0, energy=None):
    rng = np.random.default_rng(0)
    if energy is None:
        energy = rng.standard_normal(draws["a"].shape[:2])
    return judge_chains(chain_summary(draws), divergences, saturated, energy)


def test_each_thing_that_is_wrong_is_named():
    rng = np.random.default_rng(0)
    good = {"a": rng.standard_normal((4, 500, 3)), "b": rng.standard_normal((4, 500))}
    fine, sentence = judged(good)
    assert fine and "no divergences" in sentence and sentence.count(".") >= 1

    fine, sentence = judged(good, divergences=3)
    assert not fine and sentence.startswith("3 of 2000 trajectories diverged")

    apart = {**good, "b": good["b"] + np.arange(4)[:, None]}
    fine, sentence = judged(apart)
    assert not fine and "disagree on b (R-hat" in sentence

    # autoregressive, 0.99: a relaxation of 200 draws, R-hat made good by common noise
    few = {k: v[:, :60] for k, v in good.items()}
    fine, sentence = judged(few)
    assert not fine and ("independent draws" in sentence or "R-hat" in sentence)

    assert "cut at the largest tree" in judged(good, saturated=900)[1]
    slow = np.cumsum(rng.standard_normal((4, 500)), axis=1)
    fine, sentence = judged(good, energy=slow)
    assert not fine and "E-BFMI" in sentence


def test_diagnostics_against_their_definitions():
    """R-hat and ESS of an AR(1) chain: S(1 − ρ)/(1 + ρ); E-BFMI of independent energies: 2."""
    rng, rho = np.random.default_rng(1), 0.8
    x = np.zeros((4, 5000))
    for i in range(1, 5000):
        x[:, i] = rho * x[:, i - 1] + np.sqrt(1 - rho**2) * rng.standard_normal(4)
    found = chain_summary({"x": x, "vector": np.stack([x, rng.standard_normal(x.shape)], 2)})
    assert found["x"]["ess_bulk"] == pytest.approx(20_000 * 0.2 / 1.8, rel=0.15)
    assert found["vector"]["ess_bulk"].shape == (2,)
    assert found["vector"]["ess_bulk"][1] == pytest.approx(20_000, rel=0.15)
    assert found["x"]["rhat"] == pytest.approx(1, abs=0.01)
    np.testing.assert_allclose(bfmi(rng.standard_normal((4, 20_000))), 2, rtol=0.1)


def test_khat_of_known_tails():
    """Weights of a Pareto tail of index 1/k have k-hat k; of equal weights there is no tail."""
    rng = np.random.default_rng(2)
    for k in (0.3, 0.9):
        weights, khat = psis(-k * np.log(rng.uniform(size=(8, 4000))))
        # its sd is (1 + k)/√190 on a tail of 3√4000 weights; three of the mean of eight
        assert khat.shape == (8,) and khat.mean() == pytest.approx(k, abs=0.08 * (1 + k))
        np.testing.assert_allclose(np.exp(weights).sum(1), 1)


def test_what_is_said_of_a_guide():
    assert "settled after 500 steps and is close" in judge_guide(True, 500, 0, 0, 0.1, 0.2)
    assert "compare widths and tails with NUTS" in judge_guide(True, 500, 0, 0, 0.1, 1.2)
    assert "not tested" in judge_guide(True, 500, 0, 0, 0.1, np.nan)
    assert "(12 % of its parameters" in judge_guide(False, 500, 0.12, 3, 0.1, 0.2)
