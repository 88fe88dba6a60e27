"""The test of one pixel within a spot: power, false alarms, bias.

Spots are integrated over pixels with the error function, not with the library's template.
"""

from __future__ import annotations

from math import erf

import numpy as np
import pytest

from bayes_refine.measuring.shoebox import cut_shoeboxes, shoebox_for_width
from bayes_refine.measuring.statistics import Statistics, measure

PIXEL, SIZE, R1 = 1.1e-3, 21, 1.0
BOX = shoebox_for_width(R1)
MIDDLE = np.array([10.3, 9.8])


def share(centre, width=R1) -> np.ndarray:
    edges = np.arange(SIZE + 1)
    x, y = (np.diff([0.5 * erf((e - c) / width) for e in edges]) for c in centre)
    return np.outer(y, x)


def measured(images: np.ndarray, expected: float, read_noise: float = 0.0) -> Statistics:
    """Of one spot an image, predicted at MIDDLE with width R1."""
    n = len(images)
    panel, mask = np.arange(n), np.ones(images.shape, bool)
    boxes = cut_shoeboxes(images, mask, panel, np.tile(MIDDLE, (n, 1)), np.ones(n, bool), BOX)
    moment = np.tile([(R1 * PIXEL) ** 2 / 2] * 2 + [0.0], (n, 1))
    frame = np.tile(np.eye(2) * PIXEL, (n, 1, 1))
    return measure(boxes, frame, moment, np.full(n, float(expected)), BOX, read_noise)


def poisson(n: int, J: float, background: float, centre=MIDDLE, width=R1, seed: int = 0):
    mean = background + J * share(centre, width)
    return np.random.default_rng(seed).poisson(mean, (n, SIZE, SIZE)).astype(float)


@pytest.mark.parametrize("J", [0.0, 30.0, 1000.0, 100_000.0])
def test_a_pixel_of_its_own_is_left_out_and_the_spot_measured_without_it(J):
    images = poisson(200, J, 5.0)
    clean = measured(images, J)
    images[:, 10, 11] += 300 + 10 * J  # beside the centre
    hit = measured(images, J)
    assert (hit.stray == 1).all()
    sd = np.sqrt(hit.variance_background[:, 0] + J * hit.variance_signal[:, 0])
    assert np.abs(np.mean((hit.value[:, 0] - J) / sd)) < 4 / np.sqrt(200)
    assert np.mean(hit.covered) == pytest.approx(
        np.mean(clean.covered) - share(MIDDLE)[10, 11], abs=0.01
    )


@pytest.mark.parametrize("background", [0.2, 5.0, 100.0])
@pytest.mark.parametrize("J", [0.0, 10.0, 1000.0, 1e6])
def test_spots_lose_no_pixel_whatever_was_expected(J, background):
    """20,000 spots in all, the expectation right, a tenth and ten times: 1e-5 a spot is allowed."""
    for expected in (J, J / 10, 10 * J):
        assert measured(poisson(600, J, background), expected).stray.sum() == 0


@pytest.mark.parametrize("J", [100.0, 3000.0, 1e5])
@pytest.mark.parametrize(
    "shift, width", [((1.5, 0), 1.0), ((0.7, 0.7), 0.8), ((0, 0), 0.75), ((0, 0.4), 1.4)]
)
def test_misplaced_and_narrow_spots_are_not_stray(J, shift, width):
    images = poisson(500, J, 5.0, MIDDLE + shift, width)
    assert measured(images, J).stray.sum() == 0


def test_the_choice_does_not_bias_intensities():
    """J of spots that were not hit, the same to 1e-3 σ; 4 standard errors of the mean otherwise."""
    for J, background in ((0.0, 0.3), (20.0, 2.0), (500.0, 10.0)):
        found = measured(poisson(4000, J, background, seed=7), J)
        sd = np.sqrt(found.variance_background[:, 0] + J * found.variance_signal[:, 0])
        pull = (found.value[:, 0] - J) / sd
        assert abs(pull.mean()) < 4 / np.sqrt(4000)
