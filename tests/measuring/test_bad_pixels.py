"""Hot and dead pixels of simulated runs, and what must not be taken for them."""

from __future__ import annotations

from math import erf

import numpy as np
import pytest

from bayes_refine.measuring.bad_pixels import MIN_IMAGES, bad_pixels

SHAPE = (2, 60, 80)


def a_run(n: int, background: float = 4.0, seed: int = 0) -> np.ndarray:
    """Poisson background that falls to the right, and a step across panel 1: a shadow's edge."""
    mean = np.broadcast_to(background * np.linspace(1.5, 0.5, SHAPE[2]), SHAPE).copy()
    mean[1, :, :30] *= 0.1
    return np.random.default_rng(seed).poisson(mean, (n, *SHAPE)).astype(np.float32)


def spot(sigma: float, at: tuple[float, float]) -> np.ndarray:
    """(ny, nx) share of a Gaussian spot in each pixel."""
    along = [
        np.diff([0.5 * erf((edge - c) / (sigma * 2**0.5)) for edge in range(n + 1)])
        for c, n in zip(at, SHAPE[1:], strict=True)
    ]
    return np.outer(*along)


@pytest.mark.parametrize("background", [0.3, 4.0, 200.0])
def test_what_is_hot_and_dead_is_found_and_nothing_else(background):
    images = a_run(32, background)
    hot = [(0, 5, 7), (0, 30, 40), (1, 50, 29), (1, 20, 60), (1, 20, 61)]  # two side by side
    for k, at in enumerate(hot):
        images[(slice(None), *at)] += background + 100 * (k + 1)
    images[:4, 0, 5, 7] = 0.0  # not on every image
    images[:3, 0, 30, 40] = np.nan  # now and then saturated
    dead = [(0, 40, 10)] if background > 1 else []
    for at in dead:
        images[(slice(None), *at)] = 0.0
    found = bad_pixels(images)
    assert sorted(map(tuple, np.argwhere(found.hot).tolist())) == sorted(hot)
    assert [tuple(at) for at in np.argwhere(found.dead).tolist()] == dead
    assert found.summary()["hot"] == len(hot)


def test_sensitivities_that_differ_are_not_hot():
    gain = np.random.default_rng(1).normal(1, 0.1, SHAPE)
    images = np.random.default_rng(2).poisson(2000 * gain, (32, *SHAPE)).astype(np.float32)
    assert not bad_pixels(images).mask.any()


@pytest.mark.parametrize("sigma", [0.3, 0.45, 0.8])
def test_spots_of_one_crystal_at_the_same_places_are_not_hot(sigma):
    """As on a grid scan, where each image shows the same reflections, brighter or fainter."""
    rng = np.random.default_rng(3)
    at = rng.uniform(5, 55, (12, 2))
    mean = a_run(16).astype(float)
    for c in at:
        brightness = rng.uniform(300, 3000, 16)
        mean[:, 0] += brightness[:, None, None] * spot(sigma, c)
    assert not bad_pixels(rng.poisson(mean).astype(np.float32)).mask.any()


def test_spots_that_stay_for_a_few_frames_are_not_hot():
    """Rotation frames: a spot of one pixel that stays for four of them."""
    rng = np.random.default_rng(4)
    images = a_run(32)
    for y, x in rng.integers(5, 55, (100, 2)):
        first = rng.integers(0, 28)
        images[first : first + 4, 0, y, x] += 500
    assert not bad_pixels(images).mask.any()


def test_few_images_claim_nothing():
    images = a_run(MIN_IMAGES)
    images[:, 0, 5, 7] += 1000
    assert bad_pixels(images).hot.sum() == 1
    assert not bad_pixels(images[1:]).mask.any()
