"""The wavelength of each shot, read from image files or from the experiment list."""

from dataclasses import replace

import h5py
import numpy as np
import pytest

from bayes_refine.fitting.prepare import described
from bayes_refine.geometry.predict import candidate_indices, predict
from bayes_refine.io import hdf5_beam
from bayes_refine.io.expt import read_experiments, write_experiments
from bayes_refine.io.images import read_bandwidth, read_beam
from bayes_refine.simulation.files import simulate_run
from bayes_refine.simulation.truth import Simulation
from bayes_refine.util.errors import InputError

BEAM = "entry/instrument/beam"


@pytest.fixture
def experiments(tmp_path):
    simulate_run(Simulation(n_images=3, n_pixels=100, d_min=6.0), tmp_path)
    return read_experiments(next(tmp_path.glob("*.expt")))


def say(experiments, **values) -> None:
    with h5py.File(experiments.stills[0].image_path, "a") as file:
        for name, value in values.items():
            if name in file[BEAM]:
                del file[BEAM][name]
            file[BEAM][name] = value


def test_each_frame_has_its_own_wavelength_and_its_spots_stay(experiments, tmp_path):
    say(experiments, incident_wavelength=[1.002, 1.0, 0.997])
    found = described(experiments.stills)
    assert [s.beam.wavelength for s in found] == [1.002, 1.0, 0.997]
    for old, new in zip(experiments.stills, found, strict=True):
        cells = np.array([s.crystal.cell.parameters[:3] for s in (old, new)])
        np.testing.assert_allclose(cells[1] / cells[0], new.beam.wavelength)
        hkl = candidate_indices(old.crystal.cell, old.crystal.space_group, 7.0)
        a, b = (predict(s, hkl, 6.5, lambda d: np.full_like(d, 1.0)) for s in (old, new))
        both = {tuple(h): xy for h, xy in zip(a.hkl.tolist(), a.xy_px, strict=True)}
        here = [k for k, h in enumerate(b.hkl.tolist()) if tuple(h) in both]
        assert len(here) > 10
        expected = [both[tuple(h)] for h in b.hkl[here].tolist()]
        np.testing.assert_allclose(b.xy_px[here], expected, atol=1e-6)
    write_experiments(tmp_path / "out.expt", replace(experiments, stills=found))
    back = read_experiments(tmp_path / "out.expt").stills
    assert [s.beam.wavelength for s in back] == [1.002, 1.0, 0.997]


def test_a_file_of_many_images_is_opened_once(experiments, monkeypatch):
    opened = []
    real = hdf5_beam.open_hdf5
    monkeypatch.setattr(hdf5_beam, "open_hdf5", lambda path: opened.append(path) or real(path))
    described(experiments.stills)
    assert opened == [experiments.stills[0].image_path]


@pytest.mark.parametrize("frames", [1, 3])
def test_of_a_spectrum_its_mean_and_rms_are_taken(experiments, frames):
    """0.99, 1.00, 1.02 Å by 1 : 2 : 1 have the mean 1.0025 and the variance 1.1875·10⁻⁴ Å²."""
    weights = np.array([1.0, 2.0, 1.0]) * np.ones((frames, 1))
    say(
        experiments,
        incident_wavelength=[0.99, 1.0, 1.02],
        incident_wavelength_weights=weights if frames > 1 else weights[0],
    )
    for still in described(experiments.stills):
        assert still.beam.wavelength == pytest.approx(1.0025, rel=1e-12)
        assert still.beam.bandwidth == pytest.approx(np.sqrt(1.1875e-4) / 1.0025, rel=1e-9)


def test_a_list_with_beams_of_its_own_is_believed(experiments):
    say(experiments, incident_wavelength=[1.002, 1.0, 0.997])
    first = experiments.stills[0]
    other = replace(first, beam=replace(first.beam, wavelength=1.001))
    found = described((other, *experiments.stills[1:]))
    assert [s.beam.wavelength for s in found] == [1.001, 1.0, 1.0]


def test_one_wavelength_of_all_images_is_the_list_s_affair(experiments):
    say(experiments, incident_wavelength=1.01)
    assert read_beam(experiments.stills[0]).wavelength is None
    assert described(experiments.stills)[0].beam.wavelength == 1.0


@pytest.mark.parametrize(
    "values",
    [
        {"incident_wavelength": [1.0, 1.0]},
        {"incident_wavelength": [0.0, 1.0, -1.0]},
        {"incident_wavelength": [1.0, 1.1], "incident_wavelength_weights": [0.0, 0.0]},
        {"incident_wavelength": [1.0, 1.1], "incident_wavelength_weights": [1.0, 1.0, 1.0]},
        {"incident_wavelength": ["one", "two", "three"]},
    ],
)
def test_what_is_no_beam_is_refused_by_name(experiments, values):
    say(experiments, **values)
    with pytest.raises(InputError, match="incident_wavelength"):
        read_bandwidth(experiments.stills[2])
    assert described(experiments.stills)[2].beam.wavelength == 1.0


def test_a_beams_own_bandwidth_counts_where_the_image_file_has_none(experiments):
    """That of a CrystFEL geometry was lost, and the prior's taken."""
    own = [replace(s, beam=replace(s.beam, bandwidth=2e-3)) for s in experiments.stills]
    of_file = read_bandwidth(own[0])
    assert of_file is not None and of_file != pytest.approx(2e-3)
    assert {s.beam.bandwidth for s in described(own)} == {of_file}
    with h5py.File(own[0].image_path, "a") as file:
        del file[BEAM]["incident_wavelength_spread"]
    assert {s.beam.bandwidth for s in described(own)} == {2e-3}
    assert {s.beam.bandwidth for s in described(own, bandwidth=1e-3)} == {1e-3}
