"""Pulse energies of a monitor, by name or in order."""

import math
from pathlib import Path

import h5py
import numpy as np
import pytest

from bayes_refine.geometry.crystal import Crystal
from bayes_refine.geometry.detector import Beam
from bayes_refine.geometry.experiments import Still
from bayes_refine.io.pulse_energies import with_pulse_energies
from bayes_refine.simulation.truth import Simulation, square_detector
from bayes_refine.util.errors import InputError

ENERGY = [1.0, 2.0, 4.0]
RATIO = np.log([0.5, 1.0, 2.0])  # over the median
BY_NAME = {
    "a.csv": "identifier,energy\nthird,4.0\nfirst,1.0\nother,9\nsecond,2.0\n",
    "a.toml": '"second" = 2.0\nfirst = 1\nthird = 4.0\n',
    "b.toml": "[energy]\nsecond = 2.0\nfirst = 1\nthird = 4.0\n",
}
IN_ORDER = {
    "a.csv": "# mJ\n1.0\n2.0\n4.0\n",
    "b.csv": "train,pulse_energy\n7,1.0\n8,2.0\n9,4.0\n",
    "a.toml": "energy = [1.0, 2, 4.0]\n",
}


def stills(*frames, files=("a.h5",) * 3) -> list[Still]:
    beam = Beam(1.0, np.array([0, 0, 1.0]), np.array([0, 1.0, 0]))
    detector = square_detector(Simulation(), 110.0, np.zeros(2))
    names = ("first", "second", "third")
    crystal = Crystal(np.eye(3) / 50, "P 1")
    rows = zip(names, files, frames or (0, 1, 2), strict=True)
    return [Still(name, Path(f), k, beam, detector, crystal) for name, f, k in rows]


def ratios(of, path) -> np.ndarray:
    return np.array([still.log_pulse_energy for still in with_pulse_energies(of, path)])


def written(tmp_path, name: str, text: str) -> Path:
    (tmp_path / name).write_text(text)
    return tmp_path / name


@pytest.mark.parametrize("name", BY_NAME)
def test_by_name(tmp_path, name):
    path = written(tmp_path, name, BY_NAME[name])
    np.testing.assert_allclose(ratios(stills(5, 0, 3), path), RATIO)


@pytest.mark.parametrize("name", IN_ORDER)
def test_in_the_order_of_frames_or_of_stills(tmp_path, name):
    path = written(tmp_path, name, IN_ORDER[name])
    np.testing.assert_allclose(ratios(stills(2, 1, 0), path), RATIO[::-1])
    np.testing.assert_allclose(ratios(stills(0, 0, 0, files=("a", "b", "c")), path), RATIO)


@pytest.mark.parametrize("inside", ["", ":/monitor/energy"])
def test_of_an_hdf5_file(tmp_path, inside):
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file["monitor/energy"] = ENERGY
        file["monitor/more"] = np.zeros((2, 2))
    np.testing.assert_allclose(ratios(stills(), f"{tmp_path}/m.h5{inside}"), RATIO)


def test_shots_that_the_monitor_missed_have_no_energy(tmp_path):
    text = "identifier,energy\nfirst,-1\nsecond,3.0\n"
    found = ratios(stills(), written(tmp_path, "a.csv", text))
    assert math.isnan(found[0]) and found[1] == 0 and math.isnan(found[2])


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("a.csv", "", "is empty"),
        ("a.csv", "identifier,charge\nfirst,1\n", "names no column of energies"),
        ("a.csv", "identifier,energy\nnobody,1\n", "of none of the 3 stills"),
        ("a.csv", "1.0\n2.0\n", "2 pulse energies of 3 stills"),
        ("a.toml", "first = [", "not a TOML file"),
        ("a.h5", "no HDF5", "not a readable HDF5 file"),
    ],
)
def test_what_is_no_list_of_energies_is_refused_in_one_sentence(tmp_path, name, text, why):
    path = written(tmp_path, name, text)
    with pytest.raises(InputError, match=why) as error:
        with_pulse_energies(stills(), path)
    assert str(path) in str(error.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        with_pulse_energies(stills(), tmp_path / "none.csv")


@pytest.mark.parametrize("fault", ["nan", "-4.0", "0", "", "4e3", "1e300"])
def test_what_no_pulse_has_is_no_energy(tmp_path, fault):
    path = written(tmp_path, "a.csv", f"identifier,energy\nfirst,{fault}\nsecond,2\nthird,2\n")
    np.testing.assert_allclose(ratios(stills(), path), [np.nan, 0.0, 0.0])
