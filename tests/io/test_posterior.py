"""posterior.nc through ArviZ, 0.x or 1.x as installed."""

from __future__ import annotations

import arviz
import numpy as np
import pytest
from numpyro.infer import log_likelihood

from bayes_refine.io.posterior import About, Variable, pointwise_draws, write_posterior
from bayes_refine.util.errors import InputError

TERMS = ["intensity", "centroid_radial", "centroid_tangential", "spread"]


def example(shape=(2, 6), n=9):
    rng = np.random.default_rng(0)
    observed = {"intensity": rng.normal(size=n), "spread": rng.normal(size=n)}
    posterior = {
        "log_R0": Variable(rng.normal(size=shape)),
        "rotation_mrad": Variable(rng.normal(size=(*shape, 3, 3)), ("image", "axis")),
    }
    blocks = [
        {k: (rng.normal(size=(*shape, b)), rng.normal(size=(*shape, b))) for k in observed}
        for b in (n - 4, 4)
    ]
    reflections = {
        "image": np.arange(n) // 3,
        "h": np.arange(n),
        "k": -np.arange(n),
        "l": np.ones(n),
    }
    return posterior, blocks, observed, reflections


def test_what_is_written_is_read(tmp_path):
    posterior, blocks, observed, reflections = example()
    path = tmp_path / "posterior.nc"
    labels = {"identifier": ("image", np.array(["a", "b", "ç"]))}
    axis = {"axis": np.array(["x", "y", "z"])}
    write_posterior(path, posterior, iter(blocks), observed, reflections, About(axis, labels))
    data = arviz.from_netcdf(str(path))
    rotation = data["posterior"]["rotation_mrad"]
    assert rotation.dims == ("chain", "draw", "image", "axis")
    np.testing.assert_array_equal(rotation.values, posterior["rotation_mrad"].draws)
    assert list(rotation["axis"].values) == ["x", "y", "z"]
    assert list(rotation["identifier"].values) == ["a", "b", "ç"]
    for group, place in (("log_likelihood", 0), ("posterior_predictive", 1)):
        found = data[group]["spread"]
        assert found.dims == ("chain", "draw", "reflection") and found.dtype == np.float32
        expected = np.float32(np.concatenate([b["spread"][place] for b in blocks], axis=2))
        np.testing.assert_array_equal(found.values, expected)
        np.testing.assert_array_equal(found["k"].values, reflections["k"])
    np.testing.assert_array_equal(data["observed_data"]["spread"], np.float32(observed["spread"]))


def test_statistics_of_chains_and_some_of_the_draws(tmp_path):
    posterior, blocks, observed, reflections = example()
    path, kept = tmp_path / "posterior.nc", np.array([1, 3, 5])
    some = [{k: (x[:, kept], y[:, kept]) for k, (x, y) in block.items()} for block in blocks]
    stats = {"diverging": np.arange(12).reshape(2, 6) == 3, "lp": np.arange(12.0).reshape(2, 6)}
    write_posterior(path, posterior, some, observed, reflections, stats=stats, kept=kept)
    data = arviz.from_netcdf(str(path))
    assert data["sample_stats"]["diverging"].dtype == bool
    for name, values in stats.items():
        np.testing.assert_array_equal(data["sample_stats"][name], values)
    np.testing.assert_array_equal(data["log_likelihood"]["draw"], kept)
    assert data["log_likelihood"]["spread"].shape == (2, 3, 9)
    assert data["posterior"]["log_R0"].shape == (2, 6)


def test_pointwise_values_of_a_long_run_are_of_fewer_draws():
    def of(shape, n):
        return list(pointwise_draws(shape, n, 400))

    assert of((1, 100), 1000) == list(range(100))
    assert len(of((4, 1000), 1000)) == 100  # 400 of all chains
    assert len(of((1, 100), 5 * 10**6)) == 20  # 10⁸ values
    assert of((1, 100), 10**9) == [0, 50]
    assert of((1, 1), 10**9) == [0]


def test_numbers_of_draws_and_reflections_must_agree(tmp_path):
    posterior, blocks, observed, reflections = example()
    with pytest.raises(ValueError, match="of 5 reflections, 9 were observed"):
        write_posterior(tmp_path / "x.nc", posterior, blocks[:1], observed, reflections)
    fewer = [{k: (x[:, :-1], y[:, :-1]) for k, (x, y) in block.items()} for block in blocks]
    with pytest.raises(ValueError, match="shape"):
        write_posterior(tmp_path / "x.nc", posterior, fewer, observed, reflections)
    with pytest.raises(ValueError, match="one number of chains and draws"):
        uneven = {**posterior, "log_R0": Variable(np.zeros((2, 5)))}
        write_posterior(tmp_path / "x.nc", uneven, blocks, observed, reflections)


def test_a_place_that_cannot_be_written(tmp_path):
    with pytest.raises(InputError, match=r"nowhere.*cannot be written"):
        write_posterior(tmp_path / "nowhere" / "x.nc", *example())


def test_posterior_of_a_fit(small_run):
    data = arviz.from_netcdf(str(small_run.out / "posterior.nc"))
    run = small_run.given["run"]
    hkl = run.reflections.hkl[run.reflections.informs]
    n = len(hkl)
    posterior = data["posterior"]
    assert posterior["rotation_mrad"].dims == ("chain", "draw", "image", "axis")
    assert posterior["detector_shift_mm"].dims == ("chain", "draw", "detector_axis")
    assert posterior["strain"].dims == ("chain", "draw", "image", "strain_component")
    assert posterior["log_G"].shape == (1, 12, len(run.stills))
    assert [v for v in data["log_likelihood"].data_vars] == TERMS
    for group in ("log_likelihood", "posterior_predictive"):
        assert data[group]["intensity"].shape == (1, 12, n)
        assert all(np.isfinite(data[group][term].values).all() for term in TERMS)
    np.testing.assert_array_equal(data["log_likelihood"]["h"], hkl[:, 0])
    # replicates scatter about what was seen as their own spread says
    replicate = data["posterior_predictive"]["intensity"].values[0]
    z = (data["observed_data"]["intensity"].values - replicate.mean(0)) / replicate.std(0, ddof=1)
    assert 0.5 < np.median(np.abs(z)) < 0.95  # 0.67·√(1 + 1/12), more in the tails of t₁₁


def test_log_likelihood_is_that_of_the_draws(small_run):
    data = arviz.from_netcdf(str(small_run.out / "posterior.nc"))
    run, posterior = small_run.given["run"], data["posterior"]
    draws = {
        site.name: posterior[site.name]
        .values[0, :2]
        .reshape(2, *((len(run.stills),) if site.per_image else ()), *site.shape)
        for site in run.fit.sites
    }
    model, priors = small_run.given["model"], small_run.given["priors"]
    expected = log_likelihood(model, draws, run.observations, priors, parallel=False)
    for term in TERMS:
        for k in range(2):
            np.testing.assert_allclose(
                data["log_likelihood"][term].values[0, k],
                expected[term][k][run.observations.fit],
                rtol=1e-5,
                atol=1e-5,
            )
