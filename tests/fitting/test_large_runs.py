"""Memory of a run's reflections, and of what is made of them, does not grow with their number."""

from __future__ import annotations

import mmap
import tracemalloc
from collections.abc import Callable
from dataclasses import fields

import gemmi
import numpy as np
import pytest

from bayes_refine.fitting.merge_fit import measured_of
from bayes_refine.fitting.reflections import Reflections, together
from bayes_refine.geometry.miller import pack_hkl
from bayes_refine.geometry.symmetry import asu_map
from bayes_refine.util import large_arrays

GROUP = gemmi.SpaceGroup("P 43 21 2")
PER_BATCH, BATCHES = 2000, 60
WIDTH = {"hkl": (3,), "xy_px": (2,), "frame": (2, 2), "spot_moment": (3,)}


def batch(k: int) -> Reflections:
    rng = np.random.default_rng(k)
    columns = {
        f.name: rng.uniform(1, 2, (PER_BATCH, *WIDTH.get(f.name, ()))).astype(np.float32)
        for f in fields(Reflections)
    }
    columns |= {
        "image": np.repeat(np.arange(16 * k, 16 * (k + 1), dtype=np.int32), PER_BATCH // 16),
        "hkl": rng.integers(-9, 10, (PER_BATCH, 3)).astype(np.int32),
        "informs": rng.uniform(size=PER_BATCH) < 0.5,
        "free": rng.uniform(size=PER_BATCH) < 0.05,
    }
    return Reflections(**columns)


def peak_of(call: Callable) -> float:
    """MB that Python allocates at most during a call."""
    tracemalloc.start()
    call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 1e6


@pytest.fixture
def few_in_memory(monkeypatch):
    monkeypatch.setattr(large_arrays, "LARGE", 1 << 15)
    monkeypatch.setattr(large_arrays, "SLICE", 1 << 12)


@pytest.fixture
def run(few_in_memory) -> Reflections:
    return together(batch(k) for k in range(BATCHES))


def test_reflections_of_a_large_run_are_in_files(run, few_in_memory):
    columns = vars(run).values()
    size = sum(column.nbytes for column in columns) / 1e6
    assert size > 14 and all(isinstance(column.base, mmap.mmap) for column in columns)
    assert peak_of(lambda: together(batch(k) for k in range(BATCHES))) < 2
    np.testing.assert_array_equal(run.J[PER_BATCH:][:PER_BATCH], batch(1).J)


def test_what_is_made_of_reflections_is_made_in_slices(run):
    plain = Reflections(*(np.array(column) for column in vars(run).values()))
    assert peak_of(lambda: (run.measured, run.variance, run.J_model)) < 0.6
    np.testing.assert_array_equal(run.variance, plain.variance_at(plain.expected))
    np.testing.assert_array_equal(run.J_model, plain.scale * plain.intensity_reference)
    rows = run.where(lambda r: r.informs)
    np.testing.assert_array_equal(rows, np.flatnonzero(plain.informs))
    number = run.by_image(lambda r: r.informs, 16 * BATCHES)
    np.testing.assert_array_equal(number, np.bincount(plain.image[rows], minlength=16 * BATCHES))


def test_observations_are_sorted_in_slices(run):
    """Of 7 MB of columns of the observations a tenth is in memory."""
    rows = run.where(lambda r: r.informs)
    assert peak_of(lambda: measured_of(run, rows, GROUP, 0.1, np.inf)) < 1.5
    found = measured_of(run, rows, GROUP, 0.1, np.inf)
    key = pack_hkl(asu_map(run.hkl[rows], GROUP)[0])
    order = rows[np.argsort(key, kind="stable")]
    np.testing.assert_array_equal(found.J, run.J[order])
    np.testing.assert_array_equal(found.image, run.image[order])
    np.testing.assert_array_equal(pack_hkl(np.asarray(found.hkl))[found.code], np.sort(key))
    fraction2 = run.relative_variance[order].astype(float)
    np.testing.assert_array_equal(found.fraction, np.sqrt(fraction2 + 0.1**2))
