"""A slow drift of scale along frames is found with the intensities that the frames share."""

from __future__ import annotations

import numpy as np
import pytest

from bayes_refine.merging.joint_scales import joint_scales
from bayes_refine.merging.latent import AmplitudePrior, Measured, intensity_posteriors

FRAMES, SEEN, ERROR = 40, 5, 0.05  # a reflection is seen on five frames in turn, to 5 % each


def run_of(drift, seed):
    """Frames whose scales drift by exp(drift·t), t from −1 to 1, as they are measured with scales
    1; the design of t, and ln g of each observation."""
    rng = np.random.default_rng(seed)
    m = 900
    true = rng.exponential(100.0, m)
    image = (rng.integers(0, FRAMES - SEEN + 1, m)[:, None] + np.arange(SEEN)).ravel()
    code, t = np.repeat(np.arange(m), SEEN), np.linspace(-1, 1, FRAMES)
    mean = np.exp(drift * t[image]) * true[code]
    J = mean + np.hypot(3.0, ERROR * mean) * rng.standard_normal(len(mean))
    ones = np.ones(len(J))
    hkl = np.stack(np.unravel_index(np.arange(1, m + 1), (10, 10, 10)), 1)
    measured = Measured(
        J, ones, 9 * ones, 0 * ones, ERROR * ones, np.inf, code, image, ones, hkl.astype(np.int32)
    )
    prior = AmplitudePrior(np.full(m, np.log(100.0)), np.zeros(m, bool))
    return measured, prior, t[image][:, None]


@pytest.fixture(scope="module")
def found():
    at = np.zeros(1), np.array([0.3])
    return [joint_scales(*run_of(0.2, seed), *at) for seed in range(12)]


def test_the_drift_is_found_with_its_sd(found):
    """Twelve runs: pulls with an sd of 1 ± 0.2, and no bias by more than a third of the drift.

    Neighbouring frames' ratio, known to 5 %·√2/√110 each, says the slope per frame; Wilson's
    statistics of 900 intensities say ±t to 6 %: the sd must be below that of either.
    """
    pulls = np.array([(f.x[0] - 0.2) / np.sqrt(f.covariance[0, 0]) for f in found])
    sd = np.sqrt(found[0].covariance[0, 0])
    assert 0.002 < sd < 0.03
    assert np.abs(pulls).max() < 3.5 and 0.4 < pulls.std() < 1.6 and abs(pulls.mean()) < 0.9


def test_fits_and_merges_in_turn_would_hardly_move():
    """Why: one merge at equal scales, then the drift that fits best to the merged intensities."""
    measured, prior, design = run_of(0.2, 0)
    merged = np.asarray(intensity_posteriors(measured, prior).posterior.intensity)[measured.code]
    ratio, t = measured.J / merged, design[:, 0]
    weight = 1 / (9 / merged**2 + ERROR**2)
    step = np.sum(weight * t * (ratio - 1)) / np.sum(weight * t**2)
    assert abs(step) < 0.02  # of the 0.2 that are there


def test_known_scales_stay():
    """With a prior that holds x, the mode is that prior's mean, and the sd the prior's."""
    measured, prior, design = run_of(0.2, 0)
    held = joint_scales(measured, prior, design, np.array([0.1]), np.array([1e-5]))
    assert held.x[0] == pytest.approx(0.1, abs=1e-5)
    assert held.covariance[0, 0] ** 0.5 == pytest.approx(1e-5, rel=1e-3)
