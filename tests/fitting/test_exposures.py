"""Which frames turn, by file and by options, and what a turn changes before a fit."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from bayes_refine import load_model, physics
from bayes_refine.fitting.exposures import exposed, model_of
from bayes_refine.geometry.crystal import Crystal, rotation_matrix
from bayes_refine.geometry.detector import Beam
from bayes_refine.geometry.experiments import Experiments, Still
from bayes_refine.geometry.predict import near_sphere, swept
from bayes_refine.util.errors import InputError

BEAM = Beam(1.0, np.array([0.0, 0.0, 1.0]), np.array([0.0, 1.0, 0.0]))
A = rotation_matrix(np.array([300.0, 200.0, -500.0])) / 50


def run(*turns):
    stills = tuple(
        Still(f"{k}", Path("none"), k, BEAM, None, Crystal(A, "P 1"), turn)
        for k, turn in enumerate(turns)
    )
    return Experiments(stills, Path("some.expt"), {})


def turns(experiments):
    return [still.turn_mrad for still in experiments.stills]


def test_options_stand_in_place_of_the_file():
    own = np.array([0.0, 2.0, 0.0])
    assert turns(exposed(run(None, None))) == [None, None]
    np.testing.assert_allclose(turns(exposed(run(own, None))), [own, [0, 0, 0]])
    wide = exposed(run(own), oscillation_deg=0.25)
    np.testing.assert_allclose(turns(wide)[0], [0, 1e3 * np.radians(0.25), 0])
    np.testing.assert_allclose(turns(exposed(run(own), spindle=(0, 0, -3)))[0], [0, 0, -2])
    both = exposed(run(None), 0.1, (1, 0, 0))
    np.testing.assert_allclose(turns(both)[0], [1e3 * np.radians(0.1), 0, 0])
    assert turns(exposed(run(own), as_stills=True)) == [None]
    assert turns(exposed(run(own), oscillation_deg=1e-6)) == [None]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"oscillation_deg": 0.1}, "--spindle X Y Z"),
        ({"spindle": (1, 0, 0)}, "--oscillation DEG"),
        ({"oscillation_deg": 0.1, "spindle": (0, 0, 0)}, "not a direction"),
        ({"oscillation_deg": 1.0, "spindle": (1, 0, 0)}, "up to 0.5°; integrate"),
        ({"oscillation_deg": 0.1, "as_stills": True}, "--as-stills excludes"),
    ],
)
def test_what_nobody_says_is_asked_for(options, says):
    with pytest.raises(InputError, match=says):
        exposed(run(None), **options)


def test_stills_keep_their_model_and_frames_get_one_that_turns():
    still, frames = load_model("still"), exposed(run(None), 0.1, (1, 0, 0)).stills
    assert model_of(still, run(None).stills) is still
    assert model_of(still, frames) is model_of(still, frames)  # compiled once
    assert model_of(still, frames).keywords == {"partiality": physics.gaussian_over_turn}
    assert model_of(load_model("tensor"), frames).keywords["terms"] == 6
    for other in (lambda obs, priors: None, partial(still, partiality=physics.lorentzian)):
        with pytest.raises(InputError, match="--as-stills"):
            model_of(other, frames)


def test_all_that_comes_near_the_sphere_during_the_turn_is_predicted():
    """Of 41 places in the turn: the hkl that are within 1e-4 Å⁻¹ of the sphere at one of them."""
    frame = exposed(run(None), 0.5, (1, 0, 0)).stills[0]
    axis = np.arange(-12, 13)
    hkl = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    hkl = hkl[hkl.any(1)]
    found = near_sphere(frame, hkl, 5.0, lambda d: 1e-4)
    near = np.zeros(len(hkl), bool)
    for u in np.linspace(-0.5, 0.5, 41):
        q = hkl @ (rotation_matrix(u * frame.turn_mrad) @ A).T
        near |= np.abs(np.linalg.norm(BEAM.s0 + q, axis=1) - 1) < 1e-4
    q = hkl @ A.T
    expected = hkl[near & (np.linalg.norm(q, axis=1) <= 0.2)]
    assert len(expected) > 3 * len(near_sphere(run(None).stills[0], hkl, 5.0, lambda d: 1e-4))
    assert {tuple(h) for h in expected} == {tuple(h) for h in found}
    # ½Δφ·|dε_r/dφ| with the Lorentz factor's dε_r/dφ = λ m·(q × s0), of relps on the sphere
    here = found @ A.T
    rate = np.abs(np.cross(here, BEAM.s0) @ [1, 0, 0])
    np.testing.assert_allclose(swept(frame, here), np.radians(0.25) * rate, rtol=3e-3, atol=1e-9)
