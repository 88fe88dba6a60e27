"""Unknowns that a fit held at zero, against linear normal models with all unknowns in them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from bayes_refine.infer import Batches, map_fit
from bayes_refine.infer.integrated_out import held_integrated, held_numbers, width_of_held

N, M, NOISE, LEVEL_SD = 40, 12, 0.5, 2.0
t = np.linspace(-1, 1, M)
X = np.stack([np.ones(M), t], 1)  # (M, 2) found by the fit
Z = np.stack([t**2, t**3], 1)  # (M, 2) held


class Data(NamedTuple):
    y: np.ndarray


def line(data, held=False):
    """A line through each image's data, about a level that they share; or a cubic."""
    level = numpyro.sample("level", dist.Normal(0.0, LEVEL_SD))
    with numpyro.plate("image", len(data.y), dim=-2):
        c = 0.0
        if held:
            size = dist.Normal(0.0, 0.7).expand([2]).to_event(1)
            c = numpyro.sample("held", size)[:, 0] @ Z.T
        a = numpyro.sample("a", dist.Normal(level, 1.0).expand([2]).to_event(1))
        with numpyro.plate("reflection", M, dim=-1):
            numpyro.sample("y", dist.Normal(a[:, 0] @ X.T + c, NOISE), obs=data.y)


def cubic(data):
    line(data, held=True)


def drawn(s: float, n: int = N, seed: int = 0) -> Data:
    rng = np.random.default_rng(seed)
    a, c = 1 + rng.standard_normal((n, 2)), s * rng.standard_normal((n, 2))
    return Data(a @ X.T + c @ Z.T + NOISE * rng.standard_normal((n, M)))


def exact(y: np.ndarray, s: float) -> tuple[np.ndarray, np.ndarray, float]:
    """(4, 4) covariance of an image's unknowns given the level, (4, n) what the data pull them by,
    and the level's variance."""
    H = np.concatenate([X, Z], 1)
    prior = np.diag([1.0, 1.0, s**-2, s**-2])
    inverse = np.linalg.inv(H.T @ H / NOISE**2 + prior)
    ones = np.array([1.0, 1.0, 0.0, 0.0])
    information = len(y) * (ones @ (prior - prior @ inverse @ prior) @ ones) + LEVEL_SD**-2
    pull = H.T @ y.T / NOISE**2  # (4, n)
    return inverse, pull, 1 / information


@pytest.mark.parametrize("batched", [False, True])
def test_the_fit_is_that_of_the_whole_model(batched):
    data, s = drawn(0.4), 0.4
    parts = [Data(data.y[:16]), Data(data.y[16:32]), Data(np.r_[data.y[32:], data.y[:8]])]
    args = (Batches(parts, 16, N),) if batched else (data,)
    fit, each = map_fit(line, *args), np.arange(N)
    held = held_numbers(cubic, args, fit, "held", 0.7, each != 3)
    found = held_integrated(fit, held, s)
    inverse, pull, variance = exact(data.y, s)
    level = np.array([1.0, 1.0, 0.0, 0.0]) * fit.shared[0]
    mode = (inverse @ (pull + level[:, None])).T[:, :2]
    used = held.used
    np.testing.assert_allclose(found.image[used], mode[used], atol=1e-3)  # the fit's tolerance
    np.testing.assert_array_equal(found.image[3], fit.image[3])
    covariance = np.linalg.inv(found.image_precision)[used]
    np.testing.assert_allclose(
        covariance, np.broadcast_to(inverse[:2, :2], covariance.shape), atol=1e-8
    )
    everyone = held_integrated(fit, held_numbers(cubic, args, fit, "held", 0.7, each >= 0), s)
    assert everyone.shared_covariance[0, 0] == pytest.approx(variance, rel=1e-5)
    # how an image follows what is shared: from the precision of all its unknowns
    slope = np.linalg.solve(everyone.image_precision, everyone.coupling)[0]
    np.testing.assert_allclose(slope[:, 0], -inverse[:2, :2] @ np.ones(2), atol=1e-8)
    assert found.sd("a").mean() > 1.2 * fit.sd("a").mean()


@pytest.mark.parametrize("s", [0.4, 1.5])
def test_the_width_is_that_of_the_draws(s):
    """With 400 images of two numbers each, ln s is known to 0.07 where s²F is about one."""
    n = 400
    data = drawn(s, n, seed=1)
    fit = map_fit(line, data)
    held = held_numbers(cubic, (data,), fit, "held", 0.7, np.ones(n, bool))
    assert np.log(width_of_held(held, 0.1, 3.0) / s) == pytest.approx(0, abs=0.15)


def test_images_that_say_nothing_leave_the_prior():
    data = drawn(0.0, 4)
    fit = map_fit(line, data)
    held = held_numbers(cubic, (data,), fit, "held", 0.7, np.ones(4, bool))
    nothing = held._replace(
        **{k: 0 * getattr(held, k) for k in ("slope", "own", "shift", "shared")}
    )
    assert width_of_held(nothing, 0.1, 1.0) == pytest.approx(0.1, rel=1e-2)
    same = held_integrated(fit, nothing, 0.1)
    np.testing.assert_allclose(same.image, fit.image)
    np.testing.assert_allclose(same.image_precision, fit.image_precision)
    np.testing.assert_allclose(same.shared_covariance, fit.shared_covariance)


def test_images_of_one_group_share_their_numbers():
    """Five groups of eight images: modes and variances of the whole model, all unknowns in it."""
    s, group = 0.4, np.arange(N) % 5
    rng = np.random.default_rng(2)
    a, c = 1 + rng.standard_normal((N, 2)), s * rng.standard_normal((5, 2))
    data = Data(a @ X.T + c[group] @ Z.T + NOISE * rng.standard_normal((N, M)))
    fit = map_fit(line, data, tolerance=1e-4)
    held = held_numbers(cubic, (data,), fit, "held", 0.7, np.ones(N, bool)).shared_by(group)
    found = held_integrated(fit, held, s)
    # unknowns: the level, a of each image, c of each group
    H = np.zeros((N * M, 1 + 2 * N + 10))
    for i in range(N):
        rows, g = slice(i * M, (i + 1) * M), 1 + 2 * N + 2 * group[i]
        H[rows, 1 + 2 * i : 3 + 2 * i], H[rows, g : g + 2] = X, Z
    about_level = np.concatenate([-np.ones((2 * N, 1)), np.eye(2 * N), np.zeros((2 * N, 10))], 1)
    precision = H.T @ H / NOISE**2 + about_level.T @ about_level
    precision[0, 0] += LEVEL_SD**-2
    precision[-10:, -10:] += np.eye(10) / s**2
    whole = np.linalg.inv(precision)
    assert found.shared_covariance[0, 0] == pytest.approx(whole[0, 0], rel=1e-5)
    np.testing.assert_allclose(found.sd("a").ravel() ** 2, np.diag(whole)[1 : 1 + 2 * N], rtol=1e-5)
    given = np.linalg.inv(precision[1:, 1:])  # the level stays at its mode
    pull = H[:, 1:].T @ data.y.ravel() / NOISE**2 - precision[1:, 0] * fit.shared[0]
    np.testing.assert_allclose(found.image.ravel(), (given @ pull)[: 2 * N], atol=1e-3)
    # the sd of c from the sums: 10 numbers, ln s to 1/√20
    assert np.log(width_of_held(held, 0.1, 3.0) / s) == pytest.approx(0, abs=0.6)
