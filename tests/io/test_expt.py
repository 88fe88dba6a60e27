"""DIALS experiment lists: the format's conventions, DIALS's own predictions, every refusal."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from bayes_refine.geometry.crystal import Crystal, rotation_matrix
from bayes_refine.geometry.detector import ray_to_pixel
from bayes_refine.geometry.experiments import Experiments
from bayes_refine.io.expt import read_experiments, write_experiments
from bayes_refine.util.errors import InputError


def panel(origin, **changes):
    entry = {
        "fast_axis": [1, 0, 0],
        "slow_axis": [0, -1, 0],
        "origin": origin,
        "image_size": [30, 20],
        "pixel_size": [0.1, 0.2],
        "trusted_range": [-1, 1000],
        "thickness": 0.45,
        "mu": 3.8,
        "mask": [[1, 2, 3, 4]],
        "gain": 2.0,
        "pedestal": 7.0,
        "px_mm_strategy": {"type": "ParallaxCorrectedPxMmStrategy"},
    }
    return {**entry, **changes}


def document():
    """Two crystals on one image, one on a second; no identifiers; a list unknown to us."""
    experiment = [
        {"identifier": "", "beam": 0, "detector": 0, "crystal": 0, "imageset": 0},
        {"identifier": "", "beam": 0, "detector": 0, "crystal": 1, "imageset": 0},
        {"identifier": "named", "beam": 0, "detector": 1, "crystal": 2, "imageset": 1},
    ]
    crystal = {
        "real_space_a": [50.0, 1.0, 0.0],
        "real_space_b": [0.0, 60.0, 2.0],
        "real_space_c": [3.0, 0.0, 70.0],
        "space_group_hall_symbol": " P 1",
        "recalculated_unit_cell": [1, 2, 3, 4, 5, 6],
        "ML_domain_size_ang": 500.0,
    }
    images = {"images": ["run.cbf.bz2"], "mask": None, "gain": None}
    return {
        "__id__": "ExperimentList",
        "experiment": experiment,
        "imageset": [images, {"images": ["sub/a.h5"], "single_file_indices": [5]}],
        "beam": [{"direction": [0, 0, 1], "wavelength": 1.3, "polarization_fraction": 0.9}],
        "detector": [{"panels": [panel([-1, 2, -100])]}, {"panels": [panel([-1, 2, -90])]}],
        "goniometer": [],
        "scan": [],
        "crystal": [deepcopy(crystal) for _ in range(3)],
        "someone_elses": [{"keep": "me"}],
    }


def write(tmp_path: Path, content) -> Path:
    path = tmp_path / "in.expt"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_fields_follow_the_format(tmp_path):
    experiments = read_experiments(write(tmp_path, document()))
    still, last = experiments.stills[0], experiments.stills[2]
    # the beam travels against dxtbx's direction, which points to the source
    np.testing.assert_allclose(still.beam.s0, [0, 0, -1 / 1.3])
    assert still.beam.polarization_fraction == 0.9 and still.beam.bandwidth == 0
    axes = np.array([[50, 1, 0], [0, 60, 2], [3, 0, 70.0]])
    np.testing.assert_allclose(axes @ still.crystal.A, np.eye(3), atol=1e-14)  # a·a* = 1, a·b* = 0
    assert still.crystal.space_group.hm == "P 1"
    detector = still.detector
    assert detector.shape.tolist() == [[20, 30]]  # slow, fast; the file has fast, slow
    assert detector.gain.tolist() == [2.0] and detector.pedestal.tolist() == [7.0]
    assert detector.untrusted == (((1, 2, 3, 4),),)
    assert detector.mu_per_mm.tolist() == [3.8] and detector.thickness_mm.tolist() == [0.45]
    assert (still.image_path, still.frame) == (tmp_path / "run.cbf.bz2", 0)
    assert (last.image_path, last.frame) == (tmp_path / "sub" / "a.h5", 5)
    assert still.detector is experiments.stills[1].detector


def test_no_parallax_with_the_simple_strategy(tmp_path):
    content = document()
    content["detector"][0]["panels"][0]["px_mm_strategy"] = {"type": "SimplePxMmStrategy"}
    detector = read_experiments(write(tmp_path, content)).stills[0].detector
    assert detector.mu_per_mm.tolist() == [0] and detector.thickness_mm.tolist() == [0]


def test_identifiers_are_made_unique(tmp_path):
    content = document()
    names = [s.identifier for s in read_experiments(write(tmp_path, content)).stills]
    assert names == ["run#0.crystal1", "run#0.crystal2", "named"]
    for entry in content["experiment"]:
        entry["identifier"] = "same"
    content["imageset"][0]["images"] = ["other/a.h5"]
    content["imageset"][0]["single_file_indices"] = [5]
    content["experiment"][1]["imageset"] = 1  # then a.h5#5 of two folders, and two crystals
    names = [s.identifier for s in read_experiments(write(tmp_path, content)).stills]
    assert len(set(names)) == 3 and all(name.startswith("a#5") for name in names)


def test_hierarchy_composes_local_frames(tmp_path):
    """By hand: the root's fast is lab y, its slow lab −x, its normal lab z."""
    content = document()
    group = {"fast_axis": [0, 1, 0], "slow_axis": [-1, 0, 0], "origin": [10, 20, -100]}
    child = {"fast_axis": [1, 0, 0], "slow_axis": [0, -1, 0], "origin": [1, 2, 3]}
    content["detector"][0] = {
        "panels": [panel([5, 0, 0]), panel([0, 5, 1])],
        "hierarchy": {
            **group,
            "children": [{"panel": 1}, {**child, "children": [{"panel": 0}]}],
        },
    }
    detector = read_experiments(write(tmp_path, content)).stills[0].detector
    # panel 1: root + 5·slow + 1·normal.  panel 0: child at root + 1 fast + 2 slow + 3 normal,
    # whose normal is −root's; then 5 along its fast.
    np.testing.assert_allclose(detector.origin_mm, [[8, 26, -97], [5, 20, -99]])
    np.testing.assert_allclose(detector.fast, [[0, 1, 0], [0, 1, 0]], atol=1e-15)
    # the panel's slow is −y of its parent: −(−root's slow) = −x, and −root's slow = +x
    np.testing.assert_allclose(detector.slow, [[-1, 0, 0], [1, 0, 0]], atol=1e-15)


def test_predictions_agree_with_dials_on_64_panels(shared_data):
    """Against DIALS's xyzcal: 0.003 px once the sensor DIALS used is put back.

    DIALS integrated with 0.5 mm of silicon, as formats/thermolysin_3crystals.expt has it;
    thermolysin_xfel.expt has lost thickness and mu.  DIALS predicts a still by rotating the
    reciprocal-lattice point onto the sphere about q × s0; done here in closed form.
    """
    folder = shared_data / "thermolysin_xfel"
    sensor = read_experiments(shared_data / "formats" / "thermolysin_3crystals.expt").stills[0]
    with h5py.File(folder / "dials_stills_integration.h5") as dials:
        for still in read_experiments(folder / "thermolysin_xfel.expt").stills:
            table = dials[still.identifier]
            xy, panels = table["xyzcal_px"][:, :2], table["panel"][:]
            q = table["hkl"][:] @ still.crystal.A.T
            detector = replace(
                still.detector,
                thickness_mm=sensor.detector.thickness_mm,
                mu_per_mm=sensor.detector.mu_per_mm,
            )
            along = still.beam.s0_direction
            across = q - (q @ along)[:, None] * along
            across /= np.linalg.norm(across, axis=1, keepdims=True)
            q2 = np.sum(q**2, axis=1)
            depth = 0.5 * q2 * still.beam.wavelength
            on_sphere = -depth[:, None] * along + np.sqrt(q2 - depth**2)[:, None] * across
            found, found_xy = ray_to_pixel(detector, _unit(still.beam.s0 + on_sphere))
            assert np.array_equal(found, panels)
            assert np.max(np.abs(found_xy - xy)) < 0.003
            # q as it stands (SPEC section 1) differs by the excitation error alone
            found, found_xy = ray_to_pixel(detector, _unit(still.beam.s0 + q))
            assert np.mean(found == panels) > 0.99
            same = found == panels
            assert np.median(np.linalg.norm(found_xy - xy, axis=1)[same]) < 0.2


def _unit(v):
    return v / np.linalg.norm(v, axis=1, keepdims=True)


@pytest.mark.parametrize(
    "name",
    [
        "thermolysin_xfel/thermolysin_xfel.expt",
        "thaumatin_grid/thaumatin_grid.expt",
        "formats/thermolysin_3crystals.expt",
    ],
)
def test_unchanged_round_trip_loses_nothing(shared_data, tmp_path, name):
    source = shared_data / name
    experiments = read_experiments(source)
    write_experiments(tmp_path / "out.expt", experiments)
    again = read_experiments(tmp_path / "out.expt")
    before, after = experiments.document, again.document
    for key in before.keys() - {"imageset", "experiment"}:
        assert after[key] == before[key], key
    for a, b in zip(experiments.stills, again.stills, strict=True):
        assert (a.identifier, a.image_path, a.frame) == (b.identifier, b.image_path, b.frame)
    for image in after["imageset"]:
        assert Path(image["images"][0]).is_absolute()


def test_refined_round_trip_and_pruning(tmp_path):
    source = read_experiments(write(tmp_path, document()))
    shift = np.array([0.1, -0.2, 0.3])
    turn = rotation_matrix(np.array([1.0, -2.0, 3.0]))
    stills = tuple(
        replace(
            still,
            crystal=Crystal(A=turn @ still.crystal.A, hall=still.crystal.hall),
            detector=still.detector.shifted(shift),
        )
        for still in source.stills[1:]
    )
    (tmp_path / "elsewhere").mkdir()
    out = tmp_path / "elsewhere" / "out.expt"
    write_experiments(out, replace(source, stills=stills))
    again = read_experiments(out)
    assert [s.identifier for s in again.stills] == ["run#0.crystal2", "named"]
    for expected, still in zip(stills, again.stills, strict=True):
        np.testing.assert_allclose(still.crystal.A, expected.crystal.A, rtol=0, atol=1e-9)
        np.testing.assert_allclose(still.detector.origin_mm, expected.detector.origin_mm, atol=1e-9)
        assert (still.image_path, still.frame) == (expected.image_path, expected.frame)
    written = json.loads(out.read_text())
    counts = {key: len(written[key]) for key in ("experiment", "crystal", "imageset", "detector")}
    assert counts == {"experiment": 2, "crystal": 2, "imageset": 2, "detector": 2}
    assert written["someone_elses"] == [{"keep": "me"}]
    assert written["crystal"][0]["ML_domain_size_ang"] == 500.0
    assert "recalculated_unit_cell" not in written["crystal"][0]  # of the crystal it was
    assert source.document == document()  # the input is left as it was


def test_shift_moves_the_root_of_a_hierarchy(shared_data, tmp_path):
    source = read_experiments(shared_data / "thermolysin_xfel" / "thermolysin_xfel.expt")
    shift = np.array([0.05, -0.03, 0.2])
    stills = (replace(source.stills[1], detector=source.stills[1].detector.shifted(shift)),)
    write_experiments(tmp_path / "out.expt", replace(source, stills=stills))
    (still,) = read_experiments(tmp_path / "out.expt").stills
    moved = still.detector.origin_mm - source.stills[1].detector.origin_mm
    np.testing.assert_allclose(moved, np.tile(shift, (64, 1)), atol=1e-9)
    written = json.loads((tmp_path / "out.expt").read_text())["detector"]
    assert len(written) == 1
    assert written[0]["panels"] == source.document["detector"][1]["panels"]


def test_shared_models_part_when_refined_apart(tmp_path):
    content = document()
    content["experiment"][1]["crystal"] = 0
    source = read_experiments(write(tmp_path, content))
    first = replace(source.stills[0], detector=source.stills[0].detector.shifted(np.ones(3)))
    write_experiments(tmp_path / "out.expt", replace(source, stills=(first, *source.stills[1:])))
    a, b, _ = read_experiments(tmp_path / "out.expt").stills
    np.testing.assert_allclose(a.detector.origin_mm - b.detector.origin_mm, 1.0)
    assert len(json.loads((tmp_path / "out.expt").read_text())["crystal"]) == 2


def test_only_translations_and_own_stills_can_be_written(tmp_path):
    source = read_experiments(write(tmp_path, document()))
    still = source.stills[0]
    turned = replace(still, detector=replace(still.detector, fast=-still.detector.fast))
    with pytest.raises(ValueError, match="translation"):
        write_experiments(tmp_path / "out.expt", replace(source, stills=(turned,)))
    stranger = replace(still, identifier="stranger")
    with pytest.raises(InputError, match="stranger"):
        write_experiments(tmp_path / "out.expt", replace(source, stills=(stranger,)))
    with pytest.raises(InputError, match="cannot be written"):
        write_experiments(tmp_path / "no" / "folder" / "out.expt", source)
    assert isinstance(source, Experiments)


def broken(change):
    content = document()
    change(content)
    return content


def put(*keys_and_value):
    *keys, last, value = keys_and_value

    def change(content):
        for key in keys:
            content = content[key]
        content[last] = value

    return change


def drop(*keys):
    def change(content):
        for key in keys[:-1]:
            content = content[key]
        del content[keys[-1]]

    return change


def scan(**entry):
    def change(content):
        content["scan"] = [entry]
        content["experiment"][0]["scan"] = 0

    return change


NAN = float("nan")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (put("__id__", "Something"), "not a DIALS experiment list"),
        (put("experiment", []), "no experiments"),
        (drop("crystal"), "no list 'crystal'"),
        (put("experiment", 0, "crystal", None), "no crystal"),
        (drop("experiment", 0, "crystal"), "no crystal"),
        (put("experiment", 0, "crystal", 9), "not as DIALS writes it"),
        (put("experiment", 0, "imageset", 9), "not as DIALS writes it"),
        (drop("experiment", 0, "beam"), "'beam' is missing"),
        (drop("beam", 0, "wavelength"), "'wavelength' is missing"),
        (put("beam", 0, "wavelength", 0.0), "wavelength of 0.0"),
        (put("beam", 0, "direction", [0, 0, 0]), "not a direction"),
        (drop("detector", 0, "panels", 0, "origin"), "'origin' is missing"),
        (put("detector", 0, "panels", 0, "origin", [0, 0, NAN]), "not finite"),
        (put("detector", 0, "panels", 0, "slow_axis", [1, 0, 0]), "not perpendicular"),
        (put("detector", 0, "panels", 0, "pixel_size", [0, 0.1]), "pixel_size"),
        (put("detector", 0, "panels", [panel([0] * 3), panel([0] * 3, image_size=[2, 2])]), "one"),
        (
            put("detector", 0, "hierarchy", {**panel([0, 0, 0]), "children": []}),
            "hierarchy does not hold",
        ),
        (put("crystal", 0, "real_space_a", [NAN, 0, 0]), "finite"),
        (put("crystal", 0, "real_space_a", [0.0, 60.0, 2.0]), "coplanar"),
        (put("crystal", 0, "real_space_a", [-50.0, 1.0, 0.0]), "left-handed"),
        (put("crystal", 0, "real_space_a", [50e9, 1.0, 0.0]), "volume"),
        (put("crystal", 0, "space_group_hall_symbol", "nonsense"), "Hall"),
        (put("imageset", 0, "images", ["a.cbf", "b.cbf"]), "2 images"),
        (put("imageset", 0, "pedestal", "dark.pickle"), "pedestal map"),
        (scan(oscillation=[0.0, 0.1], image_range=[1, 1]), "only stills"),
        (scan(properties={"oscillation": [0.0], "oscillation_width": [0.1]}), "only stills"),
        (scan(properties={"oscillation": [0.0, 0.5]}), "only stills"),
    ],
)
def test_refusals_name_the_file_in_one_sentence(tmp_path, change, says):
    path = write(tmp_path, broken(change))
    with pytest.raises(InputError, match=says) as error:
        read_experiments(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(("text", "says"), [("{not json", "not JSON"), ("[]", "not a DIALS")])
def test_refuses_other_files(tmp_path, text, says):
    path = write(tmp_path, text)
    with pytest.raises(InputError, match=says):
        read_experiments(path)
    path.write_bytes(b"\x89HDF\xff\xfe")
    with pytest.raises(InputError, match="not JSON"):
        read_experiments(path)
    with pytest.raises(InputError, match=r"missing\.expt cannot be read"):
        read_experiments(tmp_path / "missing.expt")


def test_a_scan_without_width_is_a_still(tmp_path):
    path = write(tmp_path, broken(scan(oscillation=[90.0, 0.0], image_range=[1, 1])))
    assert len(read_experiments(path)) == 3


def test_an_unread_mask_file_is_said(tmp_path):
    path = write(tmp_path, broken(put("imageset", 1, "mask", "pixels.mask")))
    with pytest.warns(UserWarning, match=r"pixels\.mask is not read"):
        read_experiments(path)
