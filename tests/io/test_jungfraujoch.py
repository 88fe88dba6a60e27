"""Files in Jungfraujoch's layout, as a simulated run is written in it."""

from __future__ import annotations

import gemmi
import h5py
import numpy as np
import pytest

import bayes_refine as br
from bayes_refine.io import jungfraujoch
from bayes_refine.io.open_unmerged import open_unmerged
from bayes_refine.simulation.layouts import write_jungfraujoch_layout
from bayes_refine.util.errors import InputError


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    experiments = br.read_experiments(br.simulate_run(br.Simulation(n_images=3, seed=3), out))
    return experiments, write_jungfraujoch_layout(experiments, out)


def test_the_same_stills_and_images(run):
    experiments, path = run
    assert jungfraujoch.is_jungfraujoch(path)
    assert not jungfraujoch.is_jungfraujoch(experiments.stills[0].image_path)
    found = jungfraujoch.experiments_of_jungfraujoch(path)
    with br.ImageReader() as reader:
        for one, other in zip(experiments.stills, found.stills, strict=True):
            np.testing.assert_allclose(other.crystal.A, one.crystal.A, rtol=1e-12)
            np.testing.assert_allclose(other.detector.origin_mm, one.detector.origin_mm)
            assert other.frame == one.frame and other.crystal.hall == one.crystal.hall
            for a, b in zip(reader.read(one), reader.read(other), strict=True):
                np.testing.assert_array_equal(a, b)


def test_four_panels_are_refused(tmp_path):
    small = br.Simulation(n_images=1, n_pixels=64, d_min=8.0, n_panels=4)
    experiments = br.read_experiments(br.simulate_run(small, tmp_path))
    with pytest.raises(InputError, match="one panel, not 4"):
        write_jungfraujoch_layout(experiments, tmp_path)


def test_images_without_a_lattice_are_no_stills(run, tmp_path):
    _, path = run
    (tmp_path / "master.h5").write_bytes((path.parent / "master.h5").read_bytes())
    (tmp_path / "a.h5").write_bytes(path.read_bytes())
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file["entry/MX/imageIndexed"][1] = 0
        file["entry/data/data"]
    found = jungfraujoch.experiments_of_jungfraujoch(tmp_path / "a.h5")
    assert [s.frame for s in found.stills] == [0, 2]


def test_integrated_reflections(run, tmp_path):
    experiments, path = run
    (tmp_path / "a.h5").write_bytes(path.read_bytes())
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        table = file.create_group("entry/reflections/image_000002")
        for name, values in {
            "h": [1, 2],
            "k": [0, -1],
            "l": [3, 3],
            "int_sum": [10.0, -1.0],
            "int_err": [1.0, 2.0],
            "predicted_px_x": [100.0, 50.0],
            "predicted_px_y": [20.0, 30.0],
        }.items():
            table[name] = np.array(values)
    u = jungfraujoch.unmerged_of_jungfraujoch(tmp_path / "a.h5")
    still = experiments.stills[2]
    s = still.beam.s0 + np.array([1, 0, 3]) @ still.crystal.A.T
    expected = np.linalg.norm(s) - 1 / still.beam.wavelength
    assert u.excitation_error[0] == pytest.approx(expected, abs=1e-12)
    np.testing.assert_array_equal(u.xy_px[0], [100.5, 20.5])  # ours have 0.5 in the middle
    assert list(u.image) == [0, 0] and u.space_group.hm == "P 43 21 2"


def test_names_of_another_version(run, tmp_path):
    _, path = run
    (tmp_path / "b.h5").write_bytes(path.read_bytes())
    with h5py.File(tmp_path / "b.h5", "r+") as file:
        file.move("entry/MX/latticeIndexed", "entry/MX/lattices")
    (tmp_path / "master.h5").write_bytes((path.parent / "master.h5").read_bytes())
    with pytest.raises(InputError, match=r"no crystal\.lattice .*--names"):
        jungfraujoch.experiments_of_jungfraujoch(tmp_path / "b.h5")
    (tmp_path / "names.toml").write_text('[crystal]\nlattice = "/entry/MX/lattices"\n')
    names = jungfraujoch.read_names(tmp_path / "names.toml")
    assert len(jungfraujoch.experiments_of_jungfraujoch(tmp_path / "b.h5", names=names)) == 3
    group = gemmi.SpaceGroup("P 41 21 2")
    found = jungfraujoch.experiments_of_jungfraujoch(tmp_path / "b.h5", group, names)
    assert found.stills[0].crystal.space_group.hm == "P 41 21 2"


def test_integrated_reflections_under_other_names(run, tmp_path):
    """As ``merge --names`` reads them."""
    (tmp_path / "a.h5").write_bytes(run[1].read_bytes())
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        table = file.create_group("entry/spots/image_000000")
        for name, value in {"h": 1, "k": 0, "l": 3, "int_sum": 9.0, "int_err": 2.0}.items():
            table[name] = np.array([value])
        table["predicted_px_x"] = table["predicted_px_y"] = np.array([7.0])
        file.move("entry/MX/latticeIndexed", "entry/MX/lattices")
    with pytest.raises(InputError, match=r"no integrated stills.*--names"):
        open_unmerged([tmp_path / "a.h5"])
    (tmp_path / "names.toml").write_text(
        '[crystal]\nlattice = "/entry/MX/lattices"\n[reflections]\ngroup = "/entry/spots"\n'
    )
    names = jungfraujoch.read_names(tmp_path / "names.toml")
    u = open_unmerged([tmp_path / "a.h5"], names=names)
    assert len(u) == 1 and u.hkl[0].tolist() == [1, 0, 3] and u.J[0] == 9.0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[crystals]\n", "unknown section"),
        ('[crystal]\nlatice = "/a"\n', "unknown name"),
        ("[crystal]\nlattice = 3\n", "must not be 3"),
        ("[crystal\n", "not a TOML file"),
    ],
)
def test_a_table_of_names_that_is_none(tmp_path, text, said):
    (tmp_path / "names.toml").write_text(text)
    with pytest.raises(InputError, match=said):
        jungfraujoch.read_names(tmp_path / "names.toml")
