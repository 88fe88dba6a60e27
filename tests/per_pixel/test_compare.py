"""The comparison: its scores against numbers found another way, its files, bad input."""

from __future__ import annotations

import csv
import json

import h5py
import numpy as np
import pytest

from bayes_refine import cli
from bayes_refine.demo import errors
from bayes_refine.geometry.crystal import rotation_matrix
from bayes_refine.per_pixel import compare
from bayes_refine.simulation.files import simulate_run
from bayes_refine.simulation.truth import Simulation
from bayes_refine.util.errors import InputError


@pytest.fixture(scope="module")
def scored(small_run):
    """The factored fit's scores on the run of which four images are bad."""
    given = small_run.given
    truth = compare.read_truth(small_run.data / "truth.h5", slice(0, 8))
    truth = truth.select(range(len(given["run"].stills)))  # the good ones are the first four
    contestant = compare.Contestant("factored", given["run"], 4, 1e3)
    return compare.scores(contestant, given["ref"], given["settings"], truth)


def test_scores_are_those_of_the_results(scored, small_run):
    """``summary.json`` and the demonstration's errors come by other code."""
    summary = json.loads((small_run.out / "summary.json").read_text())
    assert scored["images used"] == summary["counts"]["images_used"] == 4
    assert scored["CC(J, J_model), median"] == pytest.approx(summary["cc_model_median"])
    found = {e.name: e for e in errors(small_run.given["run"], small_run.data / "truth.h5")}
    turned = np.radians(found["orientation (deg)"].after) * 1e3
    assert scored["orientation error, median, mrad"] == pytest.approx(turned, rel=0.6)
    assert 0.2 < scored["pull of rotation, median |error|/sd/0.6745"] < 3
    assert scored["ln G error, robust sd"] < 2 * found["ln G"].after
    assert scored["data held, kB an image"] == 1.0


def test_scores_without_a_truth(small_run):
    given = small_run.given
    contestant = compare.Contestant("factored", given["run"], 4, 1e3)
    scored = compare.scores(contestant, given["ref"], given["settings"])
    assert np.isnan(scored["orientation error, median, mrad"])
    assert np.isfinite(scored["R1(I) to the reference"])


def test_the_rotation_of_a_small_change():
    angle = np.array([0.3, -1.2, 0.8])
    change = rotation_matrix(angle) @ (np.eye(3) + 1e-3 * np.diag([1, -1, 2]))
    np.testing.assert_allclose(compare.rotation_vector_mrad(change), angle, atol=2e-3)


def test_the_files(tmp_path, scored):
    other = {**scored, "CC1/2": np.nan}
    compare.write_comparison(tmp_path, {"factored": scored, "other": other}, {"command": ["x"]})
    assert sorted(f.name for f in tmp_path.iterdir()) == ["comparison.csv", "summary.json"]
    with (tmp_path / "comparison.csv").open(encoding="utf-8") as file:
        rows = {row["quantity"]: row for row in csv.DictReader(file)}
    assert float(rows["images used"]["factored"]) == 4 and rows["CC1/2"]["other"] == ""
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["comparison"]["other"]["CC1/2"] is None and summary["command"] == ["x"]


def test_truth_that_is_none(tmp_path):
    text, other, short = (tmp_path / name for name in ("text.h5", "other.h5", "short.h5"))
    text.write_text("no HDF5")
    with h5py.File(other, "w") as file:
        file["U"] = np.zeros((8, 3, 3))
    with h5py.File(short, "w") as file:
        file["A"] = np.zeros((5, 3, 3))
    for path, words in (
        (text, "not a readable HDF5 file"),
        (tmp_path / "nowhere.h5", "does not exist"),
        (other, "no data set 'A'"),
        (short, "knows A of 3 of these 6"),
    ):
        with pytest.raises(InputError, match=words):
            compare.read_truth(path, slice(2, 8))


# -- the command ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    simulate_run(Simulation(n_images=2, n_pixels=128), folder)
    return folder


def status(data, out, *more) -> int:
    line = ["compare", data / "indexed.expt", "--reference", data / "reference.mtz", "--out", out]
    with pytest.raises(SystemExit) as end:
        cli.main([str(x) for x in (*line, *more)])
    return end.value.code or 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--truth", "nowhere.h5"), "nowhere.h5"),
        (("--d-min", "0"), "must be positive"),
        (("--images", "5:9"), "has 2, 0 to 1"),
        (("--priors", "nowhere.toml"), "nowhere.toml"),
        (("--gain", "-3"), "gain"),
        (("--free-fraction", "2"), "--free-fraction"),
    ],
)
def test_options_that_cannot_be(data, tmp_path, capsys, options, words):
    assert status(data, tmp_path, *options) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "summary.json").exists()


@pytest.mark.slow
def test_the_command_on_a_simulated_run(tmp_path, capsys):
    """Every method finds the truth of a run with its own physics; nobody sees the free set."""
    data = tmp_path / "data"
    simulate_run(Simulation(n_images=4, seed=5, mosaic_rad=3e-4), data)
    assert status(data, tmp_path / "out", "--truth", data / "truth.h5") == 0
    table = json.loads((tmp_path / "out" / "summary.json").read_text())["comparison"]
    assert list(table) == ["factored"] + [
        f"per pixel, {x}"
        for x in ("observed variance", "expected variance", "Poisson", "Student-t")
    ]
    printed = capsys.readouterr().out
    for name, row in table.items():
        assert row["images used"] == 4, name
        assert row["ln G error, robust sd"] < 0.1, name
        assert row["ε_r error, rms near the sphere, median, 1e-5 Å⁻¹"] < 2, name
        assert row["fitting, ms an image"] > 0
    assert "numbers a reflection" in printed
