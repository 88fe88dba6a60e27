"""Forecasts of agreement against what then came, on simulated observations with known truth."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from scipy.stats import truncnorm

from bayes_refine.merging.forecast import NUMBERS, SoFar, forecast

M, SHELLS, PER_IMAGE = 240, 2, 24


def simulated(rng, n_images):
    """Wilson intensities, and observations (image, reflection, information, I observed)."""
    shell = np.arange(M) * SHELLS // M
    true = rng.exponential(100.0 / (1 + shell) ** 2)
    image = np.repeat(np.arange(n_images), PER_IMAGE)
    reflection = np.concatenate([rng.choice(M, PER_IMAGE, replace=False) for _ in range(n_images)])
    quality = rng.lognormal(0, 0.6, n_images)
    information = quality[image] * rng.exponential(1.0, len(image)) / 40**2
    observed = true[reflection] + rng.standard_normal(len(image)) / np.sqrt(information)
    return shell, true, image, reflection, information, observed


def so_far(data, n_images, n_draws=40) -> SoFar:
    """The first images.  Exact posterior of I: an exponential prior times a normal likelihood is a
    normal of mean x − σ²/S and sd σ above 0.
    """
    shell, _, image, reflection, information, observed = data
    first = image < n_images
    image, reflection, information, observed = (
        x[first] for x in (image, reflection, information, observed)
    )
    at = 2 * reflection + image % 2
    half = np.bincount(at, information, 2 * M).reshape(M, 2)
    total = np.bincount(at, information * observed, 2 * M).reshape(M, 2)
    prior, rng = 100.0 / (1 + shell) ** 2, np.random.default_rng(n_images)
    draws = rng.exponential(prior, (n_draws, M))
    known = np.flatnonzero(half.sum(axis=1))
    sigma = half.sum(axis=1)[known] ** -0.5
    x = total.sum(axis=1)[known] * sigma**2 - sigma**2 / prior[known]
    draws[:, known] = x + sigma * truncnorm(-x / sigma, np.inf).rvs((n_draws, len(x)), rng)
    with np.errstate(invalid="ignore"):
        mean = total / half
    columns = 1 + 0 * information, 1 / information, 0 * information, 0 * information
    return SoFar(shell, np.ones(M), draws, mean, half, image, reflection, *columns)


def came(data, n_images) -> dict:
    """The numbers at ``n_images``, by shell: a forecast of no more images."""
    rows = forecast(so_far(data, n_images, 1), [n_images], rng=np.random.default_rng(0))
    return {row["shell"]: row for row in rows}


def test_without_more_images_the_forecast_is_what_there_is():
    data = simulated(np.random.default_rng(1), 60)
    for row in forecast(so_far(data, 60), [60], rng=np.random.default_rng(2)):
        for name in NUMBERS:
            assert row[name][0] == pytest.approx(row[name][2])
    seen = so_far(data, 60)
    everything = seen.half_information.sum(axis=1) > 0
    assert came(data, 60)[0]["completeness"][1] == everything[:120].mean()


def test_completeness_is_poisson():
    """1 − exp(−n·24/240) of 240 equally likely reflections."""
    rows = forecast(
        so_far(simulated(np.random.default_rng(3), 10), 10), [40], rng=np.random.default_rng(4)
    )
    expected = 1 - np.exp(-40 * PER_IMAGE / M)
    for row in rows:
        low, middle, high = row["completeness"]
        assert low < expected + 0.03 and high > expected - 0.03 and abs(middle - expected) < 0.04


def test_nine_of_ten_intervals_hold_what_came():
    """From 40 images the state at 200 is foretold, in 30 simulated experiments of 2 shells."""
    held = {name: [] for name in NUMBERS}
    for seed in range(30):
        data = simulated(np.random.default_rng(100 + seed), 200)
        then = came(data, 200)
        for row in forecast(so_far(data, 40), [200], rng=np.random.default_rng(seed)):
            for name in NUMBERS:
                low, _, high = row[name]
                held[name].append(low - 1e-9 <= then[row["shell"]][name][1] <= high + 1e-9)
    share = {name: np.mean(x) for name, x in held.items()}
    assert all(0.75 <= x for x in share.values()), share


def test_more_images_are_better():
    rows = forecast(
        so_far(simulated(np.random.default_rng(5), 30), 30),
        [30, 100, 1000],
        rng=np.random.default_rng(6),
    )
    for shell in range(SHELLS):
        of = [r for r in rows if r["shell"] == shell]
        for name in NUMBERS:
            middle = [r[name][1] for r in of]
            assert middle[-1] >= middle[1] > middle[0] - 0.05, (name, middle)


def test_sigma_of_an_anomalous_difference_falls_as_the_root_of_the_images():
    """Mates in place of halves: both are seen ever more often, with 1/√n of the σ."""
    seen = so_far(simulated(np.random.default_rng(7), 200), 200)
    rows = forecast(seen, [200, 800, 3200], rng=np.random.default_rng(8), mates=True)
    for shell in range(SHELLS):
        sigma = [r["anomalous_sigma"][1] for r in rows if r["shell"] == shell]
        there = [r["anomalous_completeness"][1] for r in rows if r["shell"] == shell]
        assert sigma[0] / sigma[1] == pytest.approx(2, rel=0.15)
        assert sigma[1] / sigma[2] == pytest.approx(2, rel=0.1)
        assert there[0] <= there[1] <= there[2] == 1


def test_memory_does_not_grow_with_the_observations(monkeypatch):
    """48,000 observations at 64 numbers each would take 25 MB."""
    seen = so_far(simulated(np.random.default_rng(9), 2000), 2000, 4)
    whole = forecast(seen, [4000], rng=np.random.default_rng(1))
    monkeypatch.setattr("bayes_refine.merging.forecast.AT_A_TIME", 500)
    tracemalloc.start()
    rows = forecast(seen, [4000], rng=np.random.default_rng(1))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3e6
    for row, same in zip(rows, whole, strict=True):
        for name in NUMBERS:
            assert row[name] == pytest.approx(same[name], rel=1e-12)
