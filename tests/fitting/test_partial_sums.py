"""Partials of one crossing are summed, and errors that they share do not average out."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import gemmi
import numpy as np
import pytest

from bayes_refine.fitting.merge_fit import measured_of
from bayes_refine.fitting.partial_sums import partials_of
from bayes_refine.fitting.reflections import Reflections
from bayes_refine.fitting.sweeps import crystals_of
from bayes_refine.geometry.crystal import Crystal, rotation_matrix
from bayes_refine.geometry.detector import Beam
from bayes_refine.geometry.experiments import Still

BEAM = Beam(1.0, np.array([0.0, 0.0, 1.0]), np.array([0.0, 1.0, 0.0]))
TURN = 1e3 * np.radians([0.1, 0, 0])
A = rotation_matrix(np.array([300.0, 200.0, -500.0])) @ np.diag([1 / 79, 1 / 79, 1 / 38])
SAME = np.eye(3)
TWOFOLD = np.diag([1, -1, -1])


def frame(k, turn=TURN, change=SAME, off=(0.0, 0.0, 0.0), file="run.h5"):
    setting = rotation_matrix(np.asarray(off)) @ rotation_matrix(k * TURN) @ A @ change
    return Still(f"{k}", Path(file), k, BEAM, None, Crystal(setting, "P 4nw 2abw"), turn)


def test_frames_of_a_crystal_are_found_however_each_was_indexed():
    off = np.array([1.0, -2.0, 1.0])  # mrad, of indexing
    another = np.array([400.0, 0.0, 100.0])
    stills = [
        frame(0),
        frame(1, off=off),
        frame(2, change=TWOFOLD),
        frame(5),
        frame(6, off=another),
    ]
    stills += [frame(7, off=another), frame(8, turn=None)]
    crystal, change = crystals_of(stills)
    assert crystal.tolist() == [0, 0, 0, 0, 4, 4, 6]
    assert np.array_equal(change[2], TWOFOLD) and np.array_equal(change[3], np.eye(3))
    back = [frame(0), *(frame(k, turn=-TURN) for k in (1, 2))]  # the sign of the spindle is free
    assert crystals_of(back)[0].tolist() == [0, 0, 0]


def reflections(image, hkl, J, scale, fraction, counting=1.0):
    n = len(image)
    columns = {f.name: np.zeros(n) for f in fields(Reflections)}
    columns |= {"image": image, "hkl": hkl, "J": J, "scale": scale, "expected": np.full(n, 100.0)}
    columns |= {"variance_background": np.full(n, counting), "variance_signal": np.ones(n)}
    return Reflections(**{**columns, "relative_variance": np.full(n, fraction**2)})


def test_each_crossing_is_one_sum_and_shares_its_error():
    """2000 reflections on 5 frames, a common error of 5 %: pulls of Σ J/Σ g have an sd of 1."""
    rng = np.random.default_rng(0)
    n, frames, true, f = 2000, 5, 100.0, 0.05
    g = np.array([1.0, 8.0, 20.0, 8.0, 1.0])
    hkl = np.stack(np.unravel_index(np.arange(1, n + 1), (21, 10, 10)), 1)
    mean = g * true * (1 + f * rng.standard_normal((n, 1)))
    J = mean + np.sqrt(1 + mean) * rng.standard_normal((n, frames))
    image = np.repeat(np.arange(frames), n)
    r = reflections(image, np.tile(hkl, (frames, 1)), J.T.ravel(), np.repeat(g, n), f)
    stills = [frame(k) for k in range(frames)]
    one = measured_of(r, np.arange(len(r)), gemmi.SpaceGroup("P 1"), 0.0, np.inf, stills=stills)
    assert len(one.J) == n == len(np.unique(one.code))
    pulls = (np.asarray(one.J) - one.scale * true) / np.sqrt(one.variance_at(true))
    assert pulls.std() == pytest.approx(1.0, abs=0.05)
    # as observations of their own, their errors would be too small by far
    apart = measured_of(r, np.arange(len(r)), gemmi.SpaceGroup("P 1"), 0.0, np.inf)
    weight = np.asarray(apart.scale**2 / apart.variance_at(true)).reshape(n, frames)
    found = (weight * np.asarray(apart.J / apart.scale).reshape(n, frames)).sum(1)
    assert ((found / weight.sum(1) - true) * np.sqrt(weight.sum(1))).std() > 1.3


def test_crossings_are_told_apart():
    """The two crossings of one h, equivalents, and frames with a gap are sums of their own."""
    image = np.array([0, 1, 2, 30, 31, 1, 2])
    hkl = np.array([[1, 2, 3]] * 5 + [[2, 1, -3]] * 2)
    r = reflections(image, hkl, np.ones(7), np.ones(7), 0.1)
    stills = [frame(k) for k in range(32)]
    found = partials_of(r, np.arange(7), np.zeros(7, int), stills)
    groups = [set(np.flatnonzero(found.group == k)) for k in range(3)]
    assert sorted(map(sorted, groups)) == [[0, 1, 2], [3, 4], [5, 6]]
    np.testing.assert_allclose(found.total(found.share), 1.0)
    assert partials_of(r, np.arange(7), np.zeros(7, int), [frame(0, turn=None)]) is None
