"""Indexing ambiguity, end to end through the command line: every file is there and says so."""

from __future__ import annotations

import csv

import gemmi
import h5py
import numpy as np
import pytest

from bayes_refine import cli
from bayes_refine.io.mtz import write_merged
from bayes_refine.simulation.files import simulate_run
from bayes_refine.simulation.truth import Simulation
from bayes_refine.simulation.unmerged import UnmergedSimulation, simulate_unmerged

pytestmark = pytest.mark.usefixtures("empty_pictures")

MTZ = {"merged.mtz", "posterior.mtz", "half1.mtz", "half2.mtz"}
MERGE = MTZ | {
    "unmerged_scaled.mtz",
    "log.txt",
    "settings.toml",
    "images.csv",
    "posterior.nc",
    "report.html",
    "summary.json",
}
FIT = MERGE | {"overview.png", "refined.expt", "unmerged.mtz"}


def status(*arguments) -> int:
    with pytest.raises(SystemExit) as end:
        cli.main([str(a) for a in arguments])
    return end.value.code or 0


def rows(out):
    with (out / "images.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("group", "c", "by"),
    [("P 63", 41.0, "reference"), ("P 63", 41.0, "images"), ("R 3:H", 50.0, "images")],
)
def test_merge(tmp_path, group, c, by):
    cell = (66.9, 66.9, c, 90, 90, 120)
    simulated = simulate_unmerged(
        UnmergedSimulation(n_images=8, each=60, n_unique=60, space_group=group, cell=cell, seed=3)
    )
    s, truth = simulated.data, simulated.truth
    mtz = gemmi.Mtz(with_base=True)
    mtz.spacegroup = s.space_group
    mtz.set_cell_for_all(s.cell)
    mtz.add_dataset("d")
    for label, kind in (("M/ISYM", "Y"), ("BATCH", "B"), ("I", "J"), ("SIGI", "Q")):
        mtz.add_column(label, kind, dataset_id=1)
    mtz.set_data(np.column_stack([s.hkl_asu, s.isym, s.image + 1, s.J, s.sigma]).astype(np.float32))
    mtz.write_to_file(str(tmp_path / "unmerged.mtz"))
    line = ["merge", tmp_path / "unmerged.mtz", "--out", tmp_path / "out", "--draws", 4]
    if by == "reference":
        amplitude = {"F": ("F", np.sqrt(truth.intensity))}
        write_merged(
            tmp_path / "reference.mtz", truth.hkl, amplitude, truth.cell, truth.space_group, 1.0
        )
        line += ["--reference", tmp_path / "reference.mtz"]
    assert status(*line) == 0
    assert {f.name for f in (tmp_path / "out").iterdir()} == MERGE
    found = rows(tmp_path / "out")
    assert [row["identifier"] for row in found] == [str(k) for k in range(1, 9)]
    assert all(row["reindex"].count(",") == 2 for row in found)
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert f">{found[0]['reindex']}</td>" in page and "could not be" not in page


def test_fit(tmp_path):
    data, out = tmp_path / "run", tmp_path / "out"
    few = {"n_pixels": 256, "distance_mm": 60.0}  # reflections, to 2.5 Å
    simulate_run(Simulation(n_images=4, seed=5, hall="P 4w", **few), data)
    line = ["fit", data / "indexed.expt", "--reference", data / "reference.mtz", "--out", out]
    line += ["--d-min", 2.5, "--gain", 1, "--read-noise", 0]
    assert status(*line, "--rounds", 1, "--draws", 4) == 0
    assert {f.name for f in out.iterdir()} == FIT
    found = rows(out)
    assert [row["status"] for row in found] == ["converged"] * 4
    assert {row["reindex"] for row in found} == {"h,k,l"}  # as simulated
    with h5py.File(out / "posterior.nc") as file:
        assert set(file) == {"posterior", "log_likelihood", "posterior_predictive", "observed_data"}
    assert ">h,k,l</td>" in (out / "report.html").read_text("utf-8")
