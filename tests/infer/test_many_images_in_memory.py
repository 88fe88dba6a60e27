"""What a search knows of each image is worked on slice by slice, and is in files."""

from __future__ import annotations

import mmap
import tracemalloc

import numpy as np
import pytest

from bayes_refine.infer import steps
from bayes_refine.infer.curvature import BlockHessian
from bayes_refine.infer.steps import Slope, steps_of

N, K, S = 100_000, 6, 8


def _case(n: int) -> tuple[Slope, BlockHessian]:
    rng = np.random.default_rng(0)
    root = rng.standard_normal((n, K, K + 3))
    coupling = rng.standard_normal((n, K, S))
    g_image, g_each = rng.standard_normal((n, K)), rng.standard_normal((n, S))
    slope = Slope(np.zeros(n), 0.0, g_image, g_each, np.zeros(S))
    return slope, BlockHessian(root @ root.swapaxes(1, 2), coupling, 30.0 * n * np.eye(S))


def test_steps_of_slices_are_those_of_all(monkeypatch):
    slope, curvature = _case(50)
    inverse = np.linalg.inv(curvature.blocks)
    pull = inverse @ curvature.coupling
    schur = curvature.shared - np.einsum("nks,nkt->st", curvature.coupling, pull)
    g_schur = slope.g_shared - np.einsum("nks,nk->s", pull, slope.g_image)
    monkeypatch.setattr(steps, "IMAGES", 7)
    found = steps_of(slope, curvature)
    np.testing.assert_allclose(found.pull, pull, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found.schur, schur, rtol=1e-9, atol=1e-6)
    np.testing.assert_allclose(found.shared, -np.linalg.solve(schur, g_schur), rtol=1e-9)
    alone = np.einsum("nij,nj->ni", inverse, slope.g_image)
    np.testing.assert_allclose(found.alone, -alone, rtol=1e-9, atol=1e-9)
    length = np.sqrt(np.einsum("ni,ni->n", alone, slope.g_image))
    np.testing.assert_allclose(found.distance, length, rtol=1e-9)


def test_steps_of_many_images_take_little_memory():
    slope, curvature = _case(N)
    matrices = np.asarray(curvature.blocks).nbytes + np.asarray(curvature.coupling).nbytes
    tracemalloc.start()
    found = steps_of(slope, curvature)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert isinstance(found.pull.base, mmap.mmap)
    assert matrices > 65e6 and peak < 12e6


@pytest.mark.parametrize("n", [1, 3])
def test_an_image_of_no_maximum_steps_upwards(n):
    slope, curvature = _case(n)
    down = curvature._replace(blocks=-np.asarray(curvature.blocks))
    found = steps_of(slope, down)
    assert np.all(np.einsum("ni,ni->n", found.alone, slope.g_image) < 0)
