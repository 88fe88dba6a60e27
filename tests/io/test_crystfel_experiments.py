"""The same crystals through two doors: DIALS's and CrystFEL's."""

from __future__ import annotations

import gemmi
import h5py
import numpy as np
import pytest

import bayes_refine as br
from bayes_refine.io.crystfel_experiments import (
    experiments_of_stream,
    geometry_of_stream,
    usable_pixels,
)
from bayes_refine.io.crystfel_geometry_text import parse_geometry
from bayes_refine.simulation.layouts import write_crystfel_layout
from bayes_refine.util.errors import InputError

GROUP = gemmi.SpaceGroup("P 43 21 2")


@pytest.fixture(scope="module", params=[1, 4], ids=["one panel", "four panels"])
def run(request, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    simulation = br.Simulation(n_images=3, seed=3, n_panels=request.param)
    expt = br.simulate_run(simulation, out)
    experiments = br.read_experiments(expt)
    return out, experiments, *write_crystfel_layout(experiments, out)


def test_stills_and_images_are_the_same(run):
    _, experiments, geom, stream = run
    for found in (
        experiments_of_stream(stream, GROUP),
        experiments_of_stream(stream, GROUP, geom),
    ):
        with br.ImageReader() as reader:
            for one, other in zip(experiments.stills, found.stills, strict=True):
                np.testing.assert_allclose(other.crystal.A, one.crystal.A, atol=1e-10)
                for name in ("origin_mm", "fast", "slow", "pixel_size_mm"):
                    expected = getattr(one.detector, name)
                    np.testing.assert_allclose(
                        getattr(other.detector, name), expected, atol=2e-6, err_msg=name
                    )
                assert other.beam.wavelength == pytest.approx(one.beam.wavelength, rel=1e-9)
                assert (other.image_path, other.frame) == (one.image_path.resolve(), one.frame)
                for a, b in zip(reader.read(one), reader.read(other), strict=True):
                    np.testing.assert_array_equal(a, b)


def test_what_is_refined_is_written_back(run):
    out, _, _, stream = run
    found = experiments_of_stream(stream, GROUP)
    br.write_experiments(out / "refined.expt", found)
    again = br.read_experiments(out / "refined.expt")
    assert [s.identifier for s in again.stills] == [s.identifier for s in found.stills]
    for one, other in zip(found.stills, again.stills, strict=True):
        np.testing.assert_allclose(other.crystal.A, one.crystal.A, rtol=1e-12)
        np.testing.assert_allclose(other.detector.origin_mm, one.detector.origin_mm)


def test_cells_without_the_symmetry_of_the_space_group_are_refused(run):
    with pytest.raises(InputError, match=r"does not have the symmetry of P 4 3 2"):
        experiments_of_stream(run[3], gemmi.SpaceGroup("P 4 3 2"))


def test_a_crystal_that_cannot_be_is_left_out(run, tmp_path):
    text = run[3].read_text()
    start = text.index("astar = ")
    flat = "astar = +0.1 +0.0 +0.0"  # its other axes have parts along x, y and z
    stream = tmp_path / "run.stream"
    line = text[start : text.index(" nm^-1", start)]
    stream.write_text(text.replace(line, flat, 1))
    found = experiments_of_stream(stream, GROUP)
    assert len(found) == 2 and len(found.left_out) == 1
    br.write_experiments(tmp_path / "refined.expt", found)
    names = [s.identifier for s in br.read_experiments(tmp_path / "refined.expt").stills]
    assert names == [s.identifier for s in found.stills]


def test_images_are_read_where_the_geometry_says(run, tmp_path):
    """``data = /raw/%/counts`` and an event ``run7//1``, beside another stack of the same shape."""
    _, experiments, _, stream = run
    still = experiments.stills[1]
    with h5py.File(still.image_path) as file, h5py.File(tmp_path / "a.h5", "w") as other:
        images = file["entry/data/data"][()]
        other["entry/data/data"] = np.zeros_like(images)
        other["raw/run7/counts"] = images
    text = stream.read_text()
    text = text.replace("/entry/data/data", "/raw/%/counts").replace("master.h5", "a.h5")
    (tmp_path / "a.stream").write_text(text.replace("Event: //", "Event: run7//"))
    found = experiments_of_stream(tmp_path / "a.stream", GROUP).stills[1]
    assert found.dataset == "/raw/run7/counts" and found.frame == 1
    with br.ImageReader() as reader:
        got, expected = reader.read(found)[0], reader.read(still)[0]
    np.testing.assert_array_equal(got, expected)
    (tmp_path / "b.stream").write_text(text.replace("Event: //", "Event: run8//"))
    found = experiments_of_stream(tmp_path / "b.stream", GROUP).stills[1]
    with br.ImageReader() as reader, pytest.raises(InputError, match="no images at /raw/run8"):
        reader.read(found)


def test_each_image_has_its_own_wavelength_and_detector_its_own_shift(run, tmp_path):
    text = run[3].read_text()
    energy = text.split("photon_energy_eV = ")[1].split("\n")[0]
    first, second, third = text.partition("----- End chunk -----")
    third = third.replace(f"photon_energy_eV = {energy}", "photon_energy_eV = 9000.0", 1)
    third = third.replace("det_shift x = 0.000 y = 0.000", "det_shift x = 0.125 y = -0.250", 1)
    (tmp_path / "a.stream").write_text(first + second + third)
    one, two, _ = experiments_of_stream(tmp_path / "a.stream", GROUP).stills
    assert two.beam.wavelength == pytest.approx(12398.419843 / 9000.0, rel=1e-9)
    assert one.beam.wavelength == pytest.approx(12398.419843 / float(energy), rel=1e-9)
    moved = two.detector.origin_mm - one.detector.origin_mm
    np.testing.assert_allclose(moved, np.tile([0.125, -0.25, 0.0], (len(moved), 1)), atol=1e-9)


def test_masks_of_a_geometry(tmp_path):
    text = """
clen = 0.1
photon_energy = 9000
res = 10000
dim0 = %
dim1 = ss
dim2 = fs
mask_file = bad.h5
mask = /m
mask_good = 0x1
mask_bad = 0x4
p0/min_fs = 2
p0/max_fs = 5
p0/min_ss = 0
p0/max_ss = 2
p0/corner_x = 0
p0/corner_y = 0
bad_corner/min_x = -1
bad_corner/max_x = 1
bad_corner/min_y = -1
bad_corner/max_y = 1
"""
    mask = np.ones((3, 8), np.uint16)
    mask[1, 3], mask[2, 5] = 0, 5  # not good; good and bad
    with h5py.File(tmp_path / "bad.h5", "w") as file:
        file["m"] = mask
    good = usable_pixels(parse_geometry(text), tmp_path)
    expected = np.ones((1, 3, 4), bool)
    expected[0, 1, 1] = expected[0, 2, 3] = expected[0, 0, 0] = False
    np.testing.assert_array_equal(good, expected)
    with pytest.raises(InputError, match=r"no mask /m"):
        usable_pixels(parse_geometry(text), tmp_path / "elsewhere")


def test_a_stream_without_geometry(run, tmp_path):
    _, _, geom, stream = run
    text = stream.read_text().split("----- Begin geometry file -----")
    bare = tmp_path / "bare.stream"
    bare.write_text(text[0] + text[1].partition("----- End geometry file -----\n")[2])
    with pytest.raises(InputError, match="--geometry"):
        experiments_of_stream(bare, GROUP)
    assert len(experiments_of_stream(bare, GROUP, geom)) == 3
    with pytest.raises(InputError, match="cannot be read"):
        geometry_of_stream(bare, "", tmp_path / "no.geom")


def test_32_crystals_on_64_tiles(shared_data):
    path = shared_data / "formats" / "crystfel_5ht2b_32crystals.stream"
    found = experiments_of_stream(path, gemmi.SpaceGroup("C 2 2 21"))
    assert len(found) == 32 and found.stills[0].detector.image_shape == (64, 185, 194)
    assert found.stills[0].detector.raw_image_offset[1] == (194, 0)
    # 0.00105 ADU/eV at the image's own photon energy
    energy = 12398.419843 / found.stills[0].beam.wavelength
    np.testing.assert_allclose(found.stills[0].detector.gain, 0.00105 * energy, rtol=1e-6)
    assert found.stills[0].crystal.cell.a == pytest.approx(61.5, abs=1.5)
