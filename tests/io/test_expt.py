"""DIALS experiment lists: the format's conventions, DIALS's own predictions, every refusal."""

from __future__ import annotations

import json
import os
import re
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
    content["crystal"][1]["real_space_a"] = [50.0, 1.0, 0.1]
    names = [s.identifier for s in read_experiments(write(tmp_path, content)).stills]
    assert sorted(names) == ["named", "run#0.crystal1", "run#0.crystal2"]
    for entry in content["experiment"]:
        entry["identifier"] = "same"
    content["imageset"][0] = {"images": ["other/a.h5"], "single_file_indices": [5]}
    content["experiment"][1]["imageset"] = 1  # then a.h5#5 of two folders, and two crystals
    names = [s.identifier for s in read_experiments(write(tmp_path, content)).stills]
    assert names == ["a#5@other", "a#5.crystal2@sub", "a#5.crystal1@sub"]
    content["experiment"][0]["identifier"] = "a#5.crystal1@sub"  # somebody else's
    names = [s.identifier for s in read_experiments(write(tmp_path, content)).stills]
    assert names == ["a#5.crystal1@sub", "a#5.crystal2@sub", "a#5.crystal1@sub'"]


def test_names_do_not_depend_on_the_order_of_experiments(tmp_path):
    content = document()
    for n, crystal in enumerate(content["crystal"]):
        crystal["real_space_a"][2] = 0.1 * n

    def named(content):
        stills = read_experiments(write(tmp_path, content)).stills
        return {s.identifier: tuple(s.crystal.A.ravel()) for s in stills}

    forwards = named(content)
    content["experiment"].reverse()
    assert named(content) == forwards
    del content["experiment"][0]  # "named"
    assert named(content) == {k: v for k, v in forwards.items() if k != "named"}


def test_names_are_data(tmp_path):
    """Identifiers come out as one line of text, and are written so; others still differ."""
    content = document()
    content["imageset"][1]["images"] = ["sub/\udce4\x00.h5"]
    for entry, name in zip(
        content["experiment"], ["a\x00b\nc", "\ud800", "=cmd|$\\frac$"], strict=True
    ):
        entry["identifier"] = name
    experiments = read_experiments(write(tmp_path, content))
    names = [s.identifier for s in experiments.stills]
    assert names == ["a\\x00b c", "\\ud800", "=cmd|$\\frac$"]
    assert not experiments.stills[2].image_path.is_file()
    write_experiments(tmp_path / "out.expt", experiments)
    assert [s.identifier for s in read_experiments(tmp_path / "out.expt").stills] == names


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
            # q as it stands differs by the excitation error alone
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


def test_only_own_stills_can_be_written(tmp_path):
    source = read_experiments(write(tmp_path, document()))
    still = source.stills[0]
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


NAN, INF = float("nan"), float("inf")
PANEL = ("detector", 0, "panels", 0)
HIERARCHY = ("detector", 0, "hierarchy")


def nested(depth):
    frame = {key: panel([0, 0, 0])[key] for key in ("fast_axis", "slow_axis", "origin")}
    child = {"panel": 0}
    for _ in range(depth):
        child = {**frame, "children": [child]}
    return child


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (put("__id__", "Something"), "not a DIALS experiment list"),
        (put("experiment", []), "no experiments"),
        (drop("crystal"), "crystal: is missing"),
        (put("experiment", 0, "crystal", 9), r"experiment\[0\]\.crystal: there is no crystal\[9\]"),
        (put("experiment", 0, "imageset", 9), r"there is no imageset\[9\], the file has 2"),
        (put("experiment", 0, "beam", -1), r"experiment\[0\]\.beam: should be greater .* it is -1"),
        (put("experiment", 0, "beam", None), r"experiment\[0\]\.beam: should be a valid integer"),
        (put("experiment", 1, None), r"experiment\[1\]: should be a valid dictionary"),
        (drop("experiment", 0, "beam"), r"experiment\[0\]\.beam: is missing"),
        (drop("beam", 0, "wavelength"), r"beam\[0\]\.wavelength: is missing"),
        (put("beam", 0, "wavelength", 0.0), r"beam\[0\]\.wavelength: should be .*, it is 0\.0"),
        (put("beam", 0, "wavelength", INF), r"beam\[0\]\.wavelength: should be .*, it is inf"),
        (put("beam", 0, "wavelength", 10**400), r"beam\[0\]\.wavelength: .*, it is a huge number"),
        (put("beam", 0, "wavelength", "1.0"), r"beam\[0\]\.wavelength: .*, it is '1\.0'"),
        (put("beam", 0, "polarization_fraction", NAN), r"polarization_fraction: .*, it is nan"),
        (
            put("beam", 0, "polarization_normal", [0, 0, 1]),
            "polarization_normal lies along the beam",
        ),
        (put("beam", 0, "direction", [0, 0, 0]), r"beam\[0\]: direction: .* not a direction"),
        (put("beam", 0, "direction", [0, 0, -1]), "lies behind the sample"),
        (drop(*PANEL, "origin"), r"detector\[0\]\.panels\[0\]\.origin: is missing"),
        (put(*PANEL, "origin", [0, 0, NAN]), r"detector\[0\]\.panels\[0\]\.origin\[2\]: .*finite"),
        (put(*PANEL, "origin", [-1, 2, 0.0]), r"panels\[0\]: its plane passes through the sample"),
        (put(*PANEL, "slow_axis", [1, 0, 0]), r"panels\[0\]: .* are not perpendicular"),
        (put(*PANEL, "pixel_size", [0, 0.1]), r"panels\[0\]\.pixel_size\[0\]: .* greater than 0"),
        (put(*PANEL, "image_size", [10**9, 20]), r"image_size\[0\]: .* less than"),
        (put(*PANEL, "image_size", [-30, 20]), r"image_size\[0\]: .* greater than"),
        (put(*PANEL, "trusted_range", [0.0]), r"trusted_range\[1\]: is missing"),
        (put(*PANEL, "trusted_range", [NAN, 1.0]), r"trusted_range\[0\]: not a number"),
        (put(*PANEL, "mask", [[1, 2, 3]]), r"mask\[0\]\[3\]: is missing"),
        (put(*PANEL, "gain", 0.0), r"panels\[0\]\.gain: .* greater than 0"),
        (put(*PANEL, "px_mm_strategy", {"type": "OffsetPxMmStrategy"}), "maps dx and dy"),
        (put(*PANEL, "px_mm_strategy", {"type": "Nobody's"}), "px_mm_strategy.type: should be"),
        (put("detector", 0, "panels", []), r"detector\[0\]\.panels: "),
        (
            put("detector", 0, "panels", [panel([0, 0, -9]), panel([0, 0, -9], image_size=[2, 2])]),
            "sizes differ .* no raw_image_offset",
        ),
        (put(*HIERARCHY, {**panel([0, 0, 0]), "children": []}), "does not hold each panel once"),
        (
            put(*HIERARCHY, {**panel([0, 0, 0]), "children": [{"panel": 0}] * 2}),
            "does not hold each panel once",
        ),
        (
            put(*HIERARCHY, {**panel([0, 0, 0]), "children": [{"panel": 7}]}),
            "does not hold each panel once",
        ),
        (
            put(*HIERARCHY, {"children": [{"panel": 0}]}),
            "hierarchy: fast_axis, slow_axis or origin",
        ),
        (put(*HIERARCHY, nested(80)), "nested too deep"),
        (
            put("crystal", 0, "real_space_a", [NAN, 0, 0]),
            r"crystal\[0\]\.real_space_a\[0\]: .*finite",
        ),
        (put("imageset", 0, "images", ["a.cbf", "b.cbf"]), r"imageset\[0\]: it has 2 images"),
        (put("imageset", 0, "images", []), "neither images nor a template"),
        (put("imageset", 0, "pedestal", "dark.pickle"), "pedestal map"),
        (put("imageset", 0, "dx", "dx.pickle"), r"imageset\[0\]\.dx: a map of displaced pixels"),
        (put("imageset", 1, "single_file_indices", [1, 2]), "2 single_file_indices of 1 images"),
        (put("imageset", 1, "single_file_indices", [-1]), r"single_file_indices\[0\]: "),
        (scan(oscillation=[0.0, 0.1], image_range=[1, 1]), "goniometer: it is missing"),
        (
            scan(oscillation=[0.0, 0.6], image_range=[1, 1]),
            r"scan\[0\]: 0.6° an image: .*dials.integrate",
        ),
        (scan(properties={"oscillation": [0.0], "oscillation_width": [1.0]}), "1° an image"),
        (scan(properties={"oscillation": [0.0, -0.7]}), "-0.7° an image"),
    ],
)
def test_refusals_name_the_file_and_the_place_in_one_sentence(tmp_path, change, says):
    path = write(tmp_path, broken(change))
    with pytest.raises(InputError, match=says) as error:
        read_experiments(path)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (put("experiment", 0, "crystal", None), r"experiment\[0\]: it has no crystal"),
        (drop("experiment", 0, "crystal"), r"experiment\[0\]: it has no crystal"),
        (put("crystal", 0, "real_space_a", [0.0, 60.0, 2.0]), r"crystal\[0\]: .* coplanar"),
        (put("crystal", 0, "real_space_a", [-50.0, 1.0, 0.0]), "left-handed"),
        (put("crystal", 0, "real_space_a", [50e7, 1.0, 0.0]), "volume"),
        (put("crystal", 0, "space_group_hall_symbol", "nonsense"), "Hall"),
        (put("crystal", 0, "space_group_hall_symbol", "\ud800"), "Hall"),
        (put("crystal", 0, "space_group_hall_symbol", "P 4"), "does not have the symmetry of P 4"),
    ],
)
def test_a_crystal_that_cannot_be_costs_its_own_experiment(tmp_path, change, says):
    content = broken(change)
    experiments = read_experiments(write(tmp_path, content))
    assert len(experiments) == 2
    (reason,) = experiments.left_out
    assert re.search(says, reason)
    content["experiment"] = content["experiment"][:1]
    with pytest.raises(InputError, match=says):  # nothing remains
        read_experiments(write(tmp_path, content))


def test_an_experiment_that_is_there_twice_counts_once(tmp_path):
    content = document()
    content["experiment"] += [deepcopy(content["experiment"][2])]
    experiments = read_experiments(write(tmp_path, content))
    assert len(experiments) == 3 and "experiment[2] once more" in experiments.left_out[0]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"{not json", "not JSON"),
        (b"[]", "not a DIALS"),
        (b"", "is empty"),
        (b" \n ", "is empty"),
        (b"\x89HDF\xff\xfe", "not JSON"),
        (b'{"__id__": "\xff\xfe"}', "not JSON"),
        (b'{"a":' * 100_000, "not JSON"),
        (b'{"__id__": "ExperimentList", "x": ' + b"[" * 500 + b"]" * 500 + b"}", "nested too deep"),
        (b'{"__id__": "ExperimentList", "x": 1' + b"0" * 5000 + b"}", "not JSON"),
    ],
)
def test_refuses_other_files(tmp_path, content, says):
    path = tmp_path / "in.expt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=says):
        read_experiments(path)


def test_refuses_what_is_no_file(tmp_path):
    with pytest.raises(InputError, match=r"missing\.expt cannot be read"):
        read_experiments(tmp_path / "missing.expt")
    with pytest.raises(InputError, match="is not a file"):
        read_experiments(tmp_path)
    os.mkfifo(tmp_path / "pipe")  # nobody writes: opening it would wait for ever
    with pytest.raises(InputError, match="is not a file"):
        read_experiments(tmp_path / "pipe")


def test_a_byte_order_mark_is_no_matter(tmp_path):
    path = tmp_path / "in.expt"
    path.write_text(json.dumps(document()), encoding="utf-8-sig")
    assert len(read_experiments(path)) == 3


@pytest.mark.parametrize(
    "entry",
    [
        {"oscillation": [90.0, 0.0]},
        {"oscillation": [90.0, -6.9e-06]},
        {"properties": {"oscillation": [-6.9e-06], "oscillation_width": [1e-06]}},
        {"properties": {"oscillation": [3.0], "oscillation_width": 0.0}},
        {"properties": {"oscillation": [3.0]}},
    ],
)
def test_a_scan_that_does_not_turn_is_a_still(tmp_path, entry):
    path = write(tmp_path, broken(scan(**entry, image_range=[1, 1])))
    assert len(read_experiments(path)) == 3


def sequence(ranges, **imageset):
    """A list as DIALS writes since 3.17: one sequence, a scan of no width for each still."""
    content = document()
    content["imageset"] = [{"__id__": "ImageSequence", "mask": None, **imageset}]
    content["scan"] = [
        {"image_range": [n, n], "properties": {"oscillation": [0.0], "oscillation_width": [0.0]}}
        for n in ranges
    ]
    for n, entry in enumerate(content["experiment"]):
        entry |= {"imageset": 0, "scan": n, "goniometer": 0, "identifier": f"still {n}"}
    return content


@pytest.mark.parametrize(
    ("ranges", "imageset", "expected"),
    [
        # of a file of many images, dxtbx takes array ranges, image_range − 1, as frames
        ((3, 1, 3), {"template": "a_master.h5"}, [("a_master.h5", f) for f in (2, 0, 2)]),
        (
            (13, 11, 12),
            {"template": "a.h5", "single_file_indices": [10, 11, 12]},
            [("a.h5", f) for f in (12, 10, 11)],
        ),
        # a list that was numbered anew
        (
            (3, 1, 2),
            {"template": "a.h5", "single_file_indices": [10, 11, 12]},
            [("a.h5", f) for f in (12, 10, 11)],
        ),
        # several # are padded, one is not
        ((3, 1, 12), {"template": "s_####.cbf"}, [(f"s_{n:04d}.cbf", 0) for n in (3, 1, 12)]),
        ((0, 1, 12), {"template": "s_#.cbf"}, [(f"s_{n}.cbf", 0) for n in (0, 1, 12)]),
        (
            (2, 1, 2),
            {"images": ["a.h5", "b.h5"], "single_file_indices": [7, 8]},
            [("b.h5", 8), ("a.h5", 7), ("b.h5", 8)],
        ),
    ],
)
def test_frames_of_sequences(tmp_path, ranges, imageset, expected):
    path = write(tmp_path, sequence(ranges, **imageset))
    experiments = read_experiments(path)
    assert [(s.image_path.name, s.frame) for s in experiments.stills] == expected
    (tmp_path / "out").mkdir()
    out = tmp_path / "out" / "refined.expt"
    write_experiments(out, replace(experiments, stills=experiments.stills[1:]))
    again = read_experiments(out)
    assert [(s.image_path, s.frame) for s in again.stills] == [
        (s.image_path, s.frame) for s in experiments.stills[1:]
    ]
    written = json.loads(out.read_text())
    assert written["scan"] == experiments.document["scan"]
    assert written["imageset"][0]["__id__"] == "ImageSequence"


@pytest.mark.parametrize(
    ("ranges", "imageset", "says"),
    [
        ((0, 1, 2), {"template": "a.h5"}, r"scan\[0\]\.image_range: .* count from 1"),
        ((-1, 1, 2), {"template": "s_##.cbf"}, "no image -1"),
        ((1, 2, 3), {"images": ["a.h5", "b.h5"]}, "image 3 of the 2"),
    ],
)
def test_frames_that_cannot_be(tmp_path, ranges, imageset, says):
    with pytest.raises(InputError, match=says):
        read_experiments(write(tmp_path, sequence(ranges, **imageset)))


def test_a_sequence_needs_a_scan_of_one_image(tmp_path):
    content = sequence((1, 2, 3), template="a.h5")
    content["scan"][1]["image_range"] = [1, 5]
    with pytest.raises(InputError, match=r"experiment\[1\], scan\[1\]\.image_range: images 1 to 5"):
        read_experiments(write(tmp_path, content))
    del content["scan"][1]["image_range"]
    with pytest.raises(InputError, match=r"image_range: it is missing"):
        read_experiments(write(tmp_path, content))
    del content["experiment"][1]["scan"]
    with pytest.raises(InputError, match=r"no scan says which image"):
        read_experiments(write(tmp_path, content))


def test_each_shot_has_its_own_wavelength(tmp_path):
    content = document()
    content["beam"].append({**content["beam"][0], "wavelength": 1.31})
    content["experiment"][1]["beam"] = 1
    stills = read_experiments(write(tmp_path, content)).stills
    assert [s.beam.wavelength for s in stills] == [1.3, 1.31, 1.3]


def test_tiles_of_one_array(tmp_path):
    content = document()
    content["detector"][0]["panels"] = [
        panel([0, 0, -90], raw_image_offset=[0, 0]),
        panel([3, 0, -90], raw_image_offset=[30, 0], image_size=[10, 20]),
    ]
    detector = read_experiments(write(tmp_path, content)).stills[0].detector
    assert detector.raw_image_offset == ((0, 0), (30, 0))
    assert detector.image_shape == (2, 20, 30) and detector.shape.tolist() == [[20, 30], [20, 10]]


def test_masked_rectangles_are_clipped_to_the_panel(tmp_path):
    """A negative end would count from the far edge of an array."""
    content = document()
    content["detector"][0]["panels"][0]["mask"] = [[-5, -5, -1, 9], [25, 15, 99, 99], [3, 3, 3, 9]]
    detector = read_experiments(write(tmp_path, content)).stills[0].detector
    assert detector.untrusted == (((25, 15, 30, 20),),)


# axes of the primitive cell (a − b)/2, (a + b)/2, c of a C-centred one, as DIALS names it
PRIMITIVE = " C 2y (x-y,x+y,z)"
CENTRED = np.array([[62.0, 0, 0], [0, 51.0, 0], [-11.6, 0, 43.5]])
HALVES = np.array([[0.5, -0.5, 0], [0.5, 0.5, 0], [0, 0, 1.0]])


def test_a_change_of_basis_is_undone_and_done_again(tmp_path):
    content = document()
    content["crystal"][2] |= dict(
        zip(
            ("real_space_a", "real_space_b", "real_space_c"),
            (HALVES @ CENTRED).tolist(),
            strict=True,
        )
    )
    content["crystal"][2]["space_group_hall_symbol"] = PRIMITIVE
    experiments = read_experiments(write(tmp_path, content))
    still = experiments.stills[2]
    assert still.crystal.space_group.xhm() == "C 1 2 1"
    np.testing.assert_allclose(np.linalg.inv(still.crystal.A), CENTRED, atol=1e-9)
    write_experiments(tmp_path / "same.expt", experiments)
    same = json.loads((tmp_path / "same.expt").read_text())
    assert same["crystal"] == content["crystal"]
    turn = rotation_matrix(np.array([1.0, -2.0, 3.0]))
    turned = replace(still.crystal, A=turn @ still.crystal.A)
    stills = (*experiments.stills[:2], replace(still, crystal=turned))
    write_experiments(tmp_path / "out.expt", replace(experiments, stills=stills))
    entry = json.loads((tmp_path / "out.expt").read_text())["crystal"][2]
    assert entry["space_group_hall_symbol"] == PRIMITIVE
    axes = [entry[f"real_space_{k}"] for k in "abc"]
    np.testing.assert_allclose(axes, HALVES @ CENTRED @ turn.T, atol=1e-9)
    again = read_experiments(tmp_path / "out.expt").stills[2].crystal
    np.testing.assert_allclose(again.A, turned.A, atol=1e-12)


def test_an_unread_mask_file_is_said(tmp_path):
    path = write(tmp_path, broken(put("imageset", 1, "mask", "pixels.mask")))
    with pytest.warns(UserWarning, match=r"pixels\.mask is not read here"):
        read_experiments(path)
