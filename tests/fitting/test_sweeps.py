"""Which frames share unknowns, and how: places in sweeps, one cell, smooth weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bayes_refine.fitting.state import partiality_width
from bayes_refine.fitting.sweeps import (
    along,
    crystals_in_sweeps,
    crystals_of,
    in_sweeps,
    said,
    sweeps_at,
)
from bayes_refine.geometry.crystal import Crystal, rotation_matrix
from bayes_refine.geometry.detector import Beam
from bayes_refine.geometry.experiments import Still
from bayes_refine.physics.priors import Priors

BEAM = Beam(1.0, np.array([0.0, 0.0, 1.0]), np.array([0.0, 1.0, 0.0]))
TURN = 1e3 * np.radians([0.1, 0, 0])
CELL = np.diag([1 / 79, 1 / 79, 1 / 38])
TWOFOLD = np.diag([1, -1, -1])


def frame(k, crystal=0, longer=0.0, change=None, turn=TURN):
    """Frame ``k`` of a crystal, of a cell that is ``longer`` along c, by a fraction."""
    start = rotation_matrix(np.array([300.0 + 400 * crystal, 200.0, -500.0]))
    A = rotation_matrix(k * TURN) @ start @ CELL @ np.diag([1, 1, 1 / (1 + longer)])
    A = A if change is None else A @ change
    name = f"{crystal}-{k}"
    return Still(name, Path("run.h5"), k, BEAM, None, Crystal(A, "P 4nw 2abw"), turn)


def test_frames_of_a_crystal_get_one_cell_and_their_turn():
    """Indexed with cells 1 ‰ apart and in two equivalent ways: one cell, orientations as before."""
    rng = np.random.default_rng(0)
    errors = 1e-3 * rng.standard_normal(12)
    changes = [TWOFOLD if k in (3, 7) else None for k in range(12)]
    before = [
        frame(k, longer=e, change=c) for k, (e, c) in enumerate(zip(errors, changes, strict=True))
    ]
    found = in_sweeps(before)
    cells = np.array([still.crystal.cell.parameters for still in found])
    np.testing.assert_allclose(cells, cells[:1].repeat(12, 0), rtol=1e-9)
    assert cells[0, 2] == pytest.approx(38 * (1 + errors.mean()), rel=1e-8)
    for old, new, k in zip(before, found, range(12), strict=True):
        np.testing.assert_allclose(new.crystal.U, old.crystal.U, atol=1e-9)
        np.testing.assert_allclose(new.sweep.turned, rotation_matrix(k * TURN), atol=1e-9)
        assert new.sweep.member.tolist() == [1.0]
    assert "12 frames of one sweep share cell" in said(found)


def test_a_run_of_sweeps_and_single_frames():
    stills = [frame(k) for k in range(20)] + [frame(k, crystal=1) for k in range(6)]
    stills += [frame(3, crystal=2), replace(frame(0, crystal=3), turn_mrad=0 * TURN)]
    found = in_sweeps(stills)
    members = np.array([still.sweep.member for still in found])
    assert members.sum(0).tolist() == [20, 6] and not members[26:].any()
    starts, smooth = found[0].sweep.starts, np.array([still.sweep.smooth for still in found])
    assert starts.tolist() == [1, 0, 0, 1, 0]  # three knots of 20 frames, two of 6
    # a common value of ln G, and what other sweeps do does not reach a frame
    np.testing.assert_allclose(smooth[:26] @ starts, 1.0)
    assert not smooth[:20, 3:].any() and not smooth[20:26, :3].any() and not smooth[26:].any()
    crystal = crystals_in_sweeps(found)
    assert crystal.tolist() == [0] * 20 + [1] * 6 + [2, 3]
    rows = sweeps_at(found[20:], 10)
    assert rows.member.shape == (10, 2) and rows.turned.shape == (10, 3, 3)
    np.testing.assert_allclose(rows.smooth[8:], smooth[[27, 27]])


def test_stills_few_frames_and_many_sweeps_stay_as_they_are():
    stills = [frame(k, turn=None) for k in range(8)]
    assert all(still.sweep is None for still in in_sweeps(stills))
    assert sweeps_at(stills, 8) is None and said(stills) == ""
    assert crystals_in_sweeps(stills) is None
    assert all(still.sweep is None for still in in_sweeps([frame(k) for k in range(4)]))
    many = [frame(k, crystal=c) for c in range(11) for k in range(5)]
    assert len(set(crystals_of(many)[0])) == 11
    assert all(still.sweep is None for still in in_sweeps(many))
    assert said(many) == "11 sweeps are more than 10: each frame has numbers of its own"


def test_smooth_weights_follow_what_changes_slowly():
    """A turn of absorption of ±15 % in 60 frames to a third of a percent, a line exactly."""
    numbers = np.arange(3.0, 43.0)
    weights = along(numbers)
    assert weights.shape == (40, 5)
    knots = np.linspace(3, 42, 5)

    def at_frames(values):
        return weights @ np.concatenate([values[:1], np.diff(values)])

    np.testing.assert_allclose(at_frames(2 * knots - 1), 2 * numbers - 1, rtol=1e-12)
    wave = lambda x: 0.15 * np.sin(2 * np.pi * x / 60)  # noqa: E731
    assert np.abs(at_frames(wave(knots)) - wave(numbers)).max() < 0.01
    assert along(np.arange(6.0)).shape == (6, 2)
    assert along(np.arange(3600.0)).shape == (3600, 12)


def test_reflections_are_sought_as_far_as_the_widest_axis_of_a_sweep_smears_them():
    """Blocks spread by e^0.3 about x, e^0.1 about y: η·1.2·e^0.3, without R0 and bandwidth."""
    state = {"log_R0": np.log(1e-9), "log_bandwidth": np.log(1e-9), "log_mosaic_mrad": np.log(0.5)}
    d = np.array([2.0, 4.0])
    assert partiality_width(state, Priors())(d, BEAM) == pytest.approx(0.5e-3 / d)
    state |= {"log_mosaic_sweep": np.log([1.2, 1.0])}
    state |= {"mosaic_shape_sweep": np.array([0.3, 0.1, 0, 0, 0, 0, 0, 0, 0, 0])}
    assert partiality_width(state, Priors())(d, BEAM) == pytest.approx(0.6e-3 * np.exp(0.3) / d)
