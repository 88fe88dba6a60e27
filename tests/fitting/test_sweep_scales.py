"""What a change of the smooth scale does to a state, a fit, and the errors of sums."""

from __future__ import annotations

from dataclasses import fields
from types import SimpleNamespace

import gemmi
import numpy as np
import pytest

from bayes_refine import infer
from bayes_refine.fitting.merge_fit import measured_of
from bayes_refine.fitting.reflections import Reflections
from bayes_refine.fitting.sweep_scales import SweepScales, smooth_scale_sd
from bayes_refine.geometry.experiments import InSweep
from tests.fitting.test_partial_sums import frame

N, R = 6, 2
SMOOTH = np.stack([np.ones(N), np.linspace(0, 1, N)], axis=1)
CHANGE = np.array([[0.1, -0.3], [1.0, 2.0]])
COVARIANCE = np.diag([4e-4, 1e-4, 0.25, 0.09])


def site(name, size, per_image):
    return infer.Site(name, (1,) if per_image else (size,), per_image, None)


@pytest.fixture(scope="module")
def fit():
    """ln G, B and an unknown x of six frames; R0, and two numbers each of smooth ln G and B."""
    rng = np.random.default_rng(0)
    sites = [site(name, 1, True) for name in ("log_G", "B", "x")]
    sites += [site("log_R0", 1, False), site("log_G_sweep", 2, False), site("B_sweep", 2, False)]
    half, coupling = rng.standard_normal((5, 5)), rng.standard_normal((N, 3, 5))
    coupling[:, :, 0] = 0.0  # of R0
    return infer.Fit(
        sites=tuple(sites),
        image=rng.standard_normal((N, 3)),
        shared=rng.standard_normal(5),
        image_precision=np.tile(np.diag([1e4, 4.0, 1.0]) + 0.1, (N, 1, 1)),
        coupling=coupling,
        shared_covariance=half @ half.T * 1e-4 + 1e-5 * np.eye(5),
        distance=np.zeros(N),
        shared_distance=0.0,
        status=np.array(["converged"] * N, object),
        iterations=1,
        log_density=0.0,
    )


def test_images_follow_the_smooth_scale_wholly(fit):
    found = SweepScales(SMOOTH, CHANGE, COVARIANCE).of_fit(fit)
    np.testing.assert_allclose(found.image[:, 0] - fit.image[:, 0], SMOOTH @ CHANGE[0])
    np.testing.assert_allclose(found.image[:, 1] - fit.image[:, 1], SMOOTH @ CHANGE[1])
    np.testing.assert_array_equal(found.image[:, 2], fit.image[:, 2])
    np.testing.assert_allclose(found.shared - fit.shared, [0, 0.1, -0.3, 1.0, 2.0])
    np.testing.assert_allclose(found.shared_covariance[1:, 1:], COVARIANCE, atol=1e-12)
    # given the smooth numbers, R0 is as well known as before
    rest = np.linalg.inv(found.shared_covariance)[0, 0]
    assert rest == pytest.approx(np.linalg.inv(fit.shared_covariance)[0, 0], rel=1e-6)
    slope = np.linalg.solve(found.image_precision, found.coupling)
    np.testing.assert_allclose(slope[:, 0, 1:3], -SMOOTH, rtol=1e-9)
    np.testing.assert_allclose(slope[:, 2, 1:], 0.0, atol=1e-12)
    own = np.linalg.inv(fit.image_precision)[:, 0, 0]
    of_smooth = np.einsum("nr,rt,nt->n", SMOOTH, COVARIANCE[:2, :2], SMOOTH)
    np.testing.assert_allclose(found.image_covariance()[:, 0, 0], own + of_smooth, rtol=1e-6)


def test_a_state_moves_as_the_fit_does(fit):
    rng = np.random.default_rng(1)
    state = {name: rng.standard_normal((N, 1)) for name in ("log_G", "B", "x")}
    state |= {"log_G_sweep": np.zeros(2), "B_sweep": np.ones(2)}
    moved = SweepScales(SMOOTH, CHANGE, COVARIANCE).moved(state)
    np.testing.assert_allclose((moved["log_G"] - state["log_G"])[:, 0], SMOOTH @ CHANGE[0])
    np.testing.assert_allclose(moved["B_sweep"], [2.0, 3.0])
    assert moved["x"] is state["x"]


def test_frames_of_a_crossing_share_the_error_of_the_smooth_scale(fit):
    """Of six frames alike: own errors of 6 % average to 6/√6 %, a common one of 3 % stays."""
    columns = {f.name: np.zeros(N) for f in fields(Reflections)}
    columns |= {"image": np.arange(N), "hkl": np.tile([1, 2, 3], (N, 1)), "J": np.full(N, 100.0)}
    columns |= {"scale": np.ones(N), "expected": np.full(N, 100.0), "d": np.full(N, 2.0)}
    columns |= {"variance_background": np.ones(N), "variance_signal": np.ones(N)}
    r = Reflections(**columns)
    stills, group = [frame(k) for k in range(N)], gemmi.SpaceGroup("P 1")
    sd = np.full(N, np.hypot(0.06, 0.03))

    def fraction(common):
        found = measured_of(r, np.arange(N), group, sd, np.inf, False, stills, common)
        assert len(found.J) == 1
        return found.fraction[0]

    assert fraction(0.03) == pytest.approx(np.hypot(0.06 / np.sqrt(N), 0.03))
    assert fraction(0.0) == pytest.approx(np.hypot(0.06, 0.03) / np.sqrt(N))
    # σ² of ln g = ln G − B/4d² by the covariance of the numbers
    places = [SimpleNamespace(sweep=InSweep(np.ones(1), row, row, np.eye(3))) for row in SMOOTH]
    known = SweepScales(SMOOTH, CHANGE, COVARIANCE).of_fit(fit)
    weights = np.concatenate([SMOOTH, -SMOOTH / 16], axis=1)
    expected = np.sqrt(np.diag(weights @ COVARIANCE @ weights.T))
    np.testing.assert_allclose(smooth_scale_sd(r, known, places), expected, rtol=1e-6)
    assert smooth_scale_sd(r, known, stills) == 0.0
