"""Scans and goniometers of ``.expt`` files: A' = S·R(axis, φ)·F·A, φ the middle of the exposure."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from bayes_refine.geometry.crystal import refined_crystal
from bayes_refine.io.expt import read_experiments, write_experiments
from bayes_refine.util.errors import InputError

from .test_expt import document, write

F = Rotation.from_rotvec([0, 0, 20], degrees=True).as_matrix()
S = Rotation.from_rotvec([0, 90, 0], degrees=True).as_matrix()
ONE_AXIS = {
    "rotation_axis": [2.0, 0.0, 0.0],
    "fixed_rotation": F.ravel().tolist(),
    "setting_rotation": S.ravel().tolist(),
}
AXES = {"axes": [[0, 0, 1], [1, 0, 0], [0, 1, 0]], "angles": [20.0, 5.0, 90.0], "scan_axis": 1}
SCANS = {
    "since 3.17": {"properties": {"oscillation": [30.0], "oscillation_width": [0.2]}},
    "before": {"oscillation": [30.0, 0.2]},
    "of angles": {"properties": {"oscillation": [30.0, 30.2]}},
}


def turning(goniometer, scan):
    content = document()
    content["goniometer"] = [goniometer]
    content["scan"] = [{"image_range": [1, 1], **scan}]
    content["experiment"][0] |= {"goniometer": 0, "scan": 0}
    return content


@pytest.mark.parametrize("scan", SCANS.values(), ids=SCANS)
@pytest.mark.parametrize("goniometer", [ONE_AXIS, AXES], ids=["one axis", "axes"])
def test_the_crystal_is_where_it_is_in_the_middle_of_the_exposure(tmp_path, goniometer, scan):
    still, other, _ = read_experiments(write(tmp_path, turning(goniometer, scan))).stills
    datum = read_experiments(write(tmp_path, document())).stills[0].crystal.A
    middle = Rotation.from_rotvec([30.1, 0, 0], degrees=True).as_matrix()
    np.testing.assert_allclose(still.crystal.A, S @ middle @ F @ datum, atol=1e-12)
    # S turns the axis x to −z
    np.testing.assert_allclose(still.turn_mrad, [0, 0, -1e3 * np.radians(0.2)], atol=1e-9)
    assert other.turn_mrad is None


def test_what_is_written_is_at_the_datum_again(tmp_path):
    experiments = read_experiments(write(tmp_path, turning(ONE_AXIS, SCANS["before"])))
    refined = tuple(
        replace(s, crystal=refined_crystal(s.crystal, np.array([1.0, 2.0, -3.0]), np.zeros(6)))
        for s in experiments.stills
    )
    write_experiments(tmp_path / "out.expt", replace(experiments, stills=refined))
    again = read_experiments(tmp_path / "out.expt")
    for wrote, read in zip(refined, again.stills, strict=True):
        np.testing.assert_allclose(read.crystal.A, wrote.crystal.A, atol=1e-12)
    content = json.loads((tmp_path / "out.expt").read_text())
    assert content["scan"] == turning(ONE_AXIS, SCANS["before"])["scan"]


@pytest.mark.parametrize(
    ("goniometer", "says"),
    [
        ({"rotation_axis": [0, 0, 0]}, "not a direction"),
        ({"rotation_axis": [1, 0]}, r"goniometer\[0\]\.rotation_axis"),
        ({"rotation_axis": [1, 0, 0], "fixed_rotation": [1.0]}, "fixed_rotation"),
        ({}, "no rotation_axis"),
        ({**AXES, "scan_axis": 3}, "no rotation_axis"),
        (None, r"goniometer\[0\]"),
    ],
)
def test_a_goniometer_that_says_no_axis_is_refused_in_one_sentence(tmp_path, goniometer, says):
    path = write(tmp_path, turning(goniometer, SCANS["before"]))
    with pytest.raises(InputError, match=says) as error:
        read_experiments(path)
    assert str(error.value).startswith(f"{path}, experiment[0], ")


def sequence(scan, images=3):
    """One experiment of several frames of a file, as DIALS writes rotation data."""
    content = turning(ONE_AXIS, {})
    content["scan"] = [{"image_range": [4, 3 + images], "exposure_time": [0.1] * images, **scan}]
    content["imageset"][0] = {"template": "run.h5", "mask": None}
    del content["experiment"][1:]
    return content


SEQUENCES = {
    "since 3.17": {"properties": {"oscillation": [30.0, 30.2, 30.4], "epochs": [1.0, 2.0, 3.0]}},
    "before": {"oscillation": [30.0, 0.2]},
}


@pytest.mark.parametrize("scan", SEQUENCES.values(), ids=SEQUENCES)
def test_each_image_of_a_scan_is_a_frame_and_is_written_as_one(tmp_path, scan):
    experiments = read_experiments(write(tmp_path, sequence(scan)))
    stills = experiments.stills
    assert [still.frame for still in stills] == [3, 4, 5]
    assert [still.identifier for still in stills] == ["run#3", "run#4", "run#5"]
    step = Rotation.from_matrix(stills[1].crystal.A @ np.linalg.inv(stills[0].crystal.A))
    np.testing.assert_allclose(step.as_rotvec() * 1e3, stills[0].turn_mrad, atol=1e-9)
    some = tuple(
        replace(s, crystal=refined_crystal(s.crystal, np.array([k, 2.0, -3.0]), np.zeros(6)))
        for k, s in enumerate(stills[1:])
    )
    write_experiments(tmp_path / "out.expt", replace(experiments, stills=some))
    again = read_experiments(tmp_path / "out.expt").stills
    for wrote, read in zip(some, again, strict=True):
        assert (read.identifier, read.frame) == (wrote.identifier, wrote.frame)
        np.testing.assert_allclose(read.crystal.A, wrote.crystal.A, atol=1e-12)
        np.testing.assert_allclose(read.turn_mrad, wrote.turn_mrad, atol=1e-12)
