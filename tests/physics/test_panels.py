"""Panels that shift and turn: the model's linear moves against full recomputation."""

from dataclasses import replace
from pathlib import Path

import gemmi
import jax.numpy as jnp
import numpy as np
import pytest

from bayes_refine import physics
from bayes_refine.fitting.padding import geometry_observations, layout, slots
from bayes_refine.fitting.state import Geometry, moved
from bayes_refine.geometry.crystal import Crystal, rotation_matrix
from bayes_refine.geometry.detector import Beam
from bayes_refine.geometry.experiments import Still
from bayes_refine.geometry.panel_groups import centres, moved_groups
from bayes_refine.geometry.predict import candidate_indices, predict
from bayes_refine.simulation.truth import Simulation, square_detector

MOVES = np.array([[0.8, -0.5, 1.0], [-0.3, 0.4, -0.7], [0.1, 0.9, 0.2]])  # px, px, mrad
CURRENT = Geometry(np.zeros((1, 3)), np.zeros((1, 2)), np.array([0.02, -0.03, 0.05]), MOVES)


@pytest.fixture(scope="module")
def still() -> Still:
    """Four tiles of which the last two move together, seen at an angle."""
    simulation = Simulation(n_panels=4)
    beam = Beam(1.1, np.array([0.02, -0.03, 1.0]) / np.sqrt(1.0013), np.array([0, 1.0, 0]))
    detector = square_detector(simulation, 110.0, np.array([240.0, 238.0]))
    turn = rotation_matrix(np.array([150.0, -80.0, 30.0]))
    detector = replace(
        detector, fast=detector.fast @ turn.T, slow=detector.slow @ turn.T, groups=(0, 1, 2, 2)
    )
    B = np.array(gemmi.UnitCell(52, 67, 81, 90, 90, 90).frac.mat.tolist()).T
    crystal = Crystal(rotation_matrix(np.array([400.0, 900.0, -700.0])) @ B, "P 2 2")
    return Still("", Path("none"), 0, beam, detector, replace(crystal, hall="P 4"))


@pytest.mark.parametrize("unit", range(3))
def test_moves_of_panels_are_the_full_recomputation(still, unit):
    here = moved([still], CURRENT)[0]
    hkl = candidate_indices(still.crystal.cell, gemmi.SpaceGroup("P 1"), 2.6)
    p = predict(here, hkl, 2.6, lambda d: np.full_like(d, 1.5e-3))
    where = layout(p.image, 1, slots(np.array([len(p)])))
    obs = geometry_observations([still], p, where, CURRENT, 1e-3)
    step = MOVES + 0.02 * np.array([[1.0], [-2.0], [1.5]]) * np.eye(3)[unit]
    place = physics.place_on_detector(obs, *map(jnp.asarray, CURRENT[:3]), jnp.asarray(step))
    found = np.stack([where.flat(place.shift_1), where.flat(place.shift_2)], axis=1)
    again = predict(
        moved([still], CURRENT._replace(panels=step))[0], p.hkl, 2.6, lambda d: np.full_like(d, 1.0)
    )
    old = {tuple(h): k for k, h in enumerate(p.hkl.tolist())}
    both = [k for k, h in enumerate(again.hkl.tolist()) if tuple(h) in old]
    rows = [old[tuple(h)] for h in again.hkl[both].tolist()]
    same = again.panel[both] == p.panel[rows]
    rows, both = np.array(rows)[same], np.array(both)[same]
    assert len(rows) > 0.9 * len(p) and set(p.panel) == {0, 1, 2, 3}
    dxy = again.xy_px[both] - p.xy_px[rows]
    expected = np.einsum("nij,nj->ni", p.frame[rows], dxy)
    np.testing.assert_allclose(found[rows], expected, atol=2e-3 * np.abs(expected).max())
    assert np.abs(dxy).max() > 1e-3


def test_a_group_moves_as_one_and_turns_about_its_centre(still):
    """A turn of 1 mrad leaves the group's centre; shifts are along the first panel's axes."""
    turned = moved_groups(still.detector, np.array([[0, 0, 1.0]] * 3))
    np.testing.assert_allclose(centres(turned), centres(still.detector), atol=1e-12)
    np.testing.assert_allclose(
        turned.fast - still.detector.fast, 1e-3 * still.detector.slow, atol=1e-6
    )
    shifted = moved_groups(still.detector, np.array([[0, 0, 0], [0, 0, 0], [1.0, -2.0, 0]]))
    change = shifted.origin_mm - still.detector.origin_mm
    axis = still.detector.fast[2] - 2 * still.detector.slow[2]
    np.testing.assert_allclose(change, [0 * axis, 0 * axis, 0.172 * axis, 0.172 * axis], atol=1e-12)


def test_one_panel_has_no_panel_unknowns(still):
    """Without moves the observations are those of before: no field that a program could see."""
    p = predict(still, np.array([[5, 3, 2], [4, 4, 1]]), 2.6, lambda d: np.full_like(d, 1.0))
    where = layout(p.image, 1, 32)
    obs = geometry_observations([still], p, where, CURRENT._replace(panels=None), 1e-3)
    assert obs.panel_group is obs.panel_axes is obs.current_panels is None
