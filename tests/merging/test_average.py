"""Merging against simulation: unbiased, with errors that mean what they say."""

import numpy as np
import pytest

from bayes_refine.merging.average import merge, split_images


def simulate(rng, n_hkl=3000, n_images=60, per_image=1000, scale_error=0.0):
    """Stills of known truth, partiality from full to nothing, half the intensities weak."""
    truth = rng.exponential(rng.choice([0.3, 30.0], n_hkl))
    hkl = np.stack([np.arange(n_hkl) // 50, np.arange(n_hkl) % 50, np.full(n_hkl, -2)], axis=1)
    image = np.repeat(np.arange(n_images), per_image)
    which = np.concatenate([rng.permutation(n_hkl)[:per_image] for _ in range(n_images)])
    g = rng.lognormal(0, 0.5, n_images)[image] * np.exp(-(rng.uniform(0, 4, len(image)) ** 2))
    variance = 5.0 + g * truth[which]
    actual = g * (1 + scale_error * rng.normal(size=len(g)))
    J = actual * truth[which] + rng.normal(0, np.sqrt(variance))
    return truth, hkl, which, image, g, variance, J


def test_pulls_are_standard_normal():
    truth, hkl, which, image, g, variance, J = simulate(np.random.default_rng(1))
    got = merge(hkl[which], J, variance, g, image)
    index = got.hkl[:, 0] * 50 + got.hkl[:, 1]
    for intensity, sigma in (
        (got.intensity, got.sigma),
        (got.half_intensity[:, 0], got.half_sigma[:, 0]),
        (got.half_intensity[:, 1], got.half_sigma[:, 1]),
    ):
        pull = (intensity - truth[index]) / sigma
        pull = pull[np.isfinite(pull)]
        assert len(pull) > 2900
        assert abs(pull.mean()) < 4 / np.sqrt(len(pull))
        assert abs(pull.std() - 1) < 4 / np.sqrt(2 * len(pull))


def test_emphasis_acts_on_the_mean_alone():
    """(½·1·10/4 + 2·2·16/1)/(½·1/4 + 2·4/1) = 65.25/8.125; σ stays (1/4 + 4)^(−1/2)."""
    hkl = np.array([[1, 0, 0], [1, 0, 0]])
    got = merge(hkl, [10, 16], [4, 1], [1, 2], np.array([0, 1]), np.array([0.5, 2]))
    np.testing.assert_allclose(got.intensity, [65.25 / 8.125])
    np.testing.assert_allclose(got.sigma, [4.25**-0.5])


def test_formula_on_three_observations():
    """Σ(g J/σ²)/Σ(g²/σ²) by hand: (1·10/4 + 2·16/1)/(1/4 + 4/1) = 34.5/4.25."""
    hkl = np.array([[1, 0, 0], [1, 0, 0], [0, 2, 0]])
    got = merge(hkl, [10, 16, -3], [4, 1, 9], [1, 2, 0.5], np.array([0, 1, 1]))
    assert got.hkl.tolist() == [[0, 2, 0], [1, 0, 0]]
    np.testing.assert_allclose(got.intensity, [-6, 34.5 / 4.25])
    np.testing.assert_allclose(got.sigma, [6, 4.25**-0.5])
    assert got.n.tolist() == [1, 2]


def test_halves_are_of_images_and_combine_to_the_whole():
    _, hkl, which, image, g, variance, J = simulate(np.random.default_rng(3))
    got = merge(hkl[which], J, variance, g, image, seed=5)
    assert np.array_equal(got.half_of_image, split_images(60, 5))
    assert got.half_of_image.sum() == 30
    assert not np.array_equal(got.half_of_image, split_images(60, 6))
    first = got.half_of_image[image] == 0
    alone = merge(hkl[which][first], J[first], variance[first], g[first], image[first])
    has = np.isfinite(got.half_intensity[:, 0])
    assert np.array_equal(alone.hkl, got.hkl[has])
    np.testing.assert_allclose(alone.intensity, got.half_intensity[has, 0])
    both = np.isfinite(got.half_intensity).all(axis=1)
    weight = got.half_sigma[both] ** -2.0
    combined = (weight * got.half_intensity[both]).sum(axis=1) / weight.sum(axis=1)
    np.testing.assert_allclose(combined, got.intensity[both], rtol=1e-9, atol=1e-9)


def test_no_partiality_no_weight():
    hkl = np.array([[1, 0, 0], [1, 0, 0], [2, 0, 0]])
    got = merge(hkl, [10.0, 1e6, 5.0], np.ones(3), [1.0, 0.0, 0.0], np.arange(3))
    assert got.hkl.tolist() == [[1, 0, 0]]
    assert got.intensity.tolist() == [10.0] and got.n.tolist() == [1]


@pytest.mark.parametrize(("J", "variance"), [(np.nan, 1.0), (1.0, 0.0), (1.0, np.inf)])
def test_refuses_what_has_no_likelihood(J, variance):
    with pytest.raises(ValueError, match="merging takes finite"):
        merge(np.array([[1, 0, 0]]), [J], [variance], [1.0], np.array([0]))
