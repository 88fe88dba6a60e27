"""Indexed stills of any program, told by content; several files as one run."""

from __future__ import annotations

import shutil

import gemmi
import numpy as np
import pytest

import bayes_refine as br
from bayes_refine.io.open_experiments import open_experiments
from bayes_refine.simulation.layouts import Layout, write_layout
from bayes_refine.util.errors import InputError

GROUP = gemmi.SpaceGroup("P 43 21 2")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    experiments = br.read_experiments(br.simulate_run(br.Simulation(n_images=2, seed=3), out))
    for layout in Layout:
        write_layout(layout, experiments, out)
    return out


@pytest.mark.parametrize(
    "name", ["indexed.expt", "integrated.expt", "run.stream", "run_process.h5"]
)
def test_four_doors_to_the_same_crystals(run, name):
    one = br.read_experiments(run / "indexed.expt")
    found = open_experiments(run / name, GROUP)
    for a, b in zip(one.stills, found.stills, strict=True):
        np.testing.assert_allclose(b.crystal.A, a.crystal.A, atol=1e-10)
        assert b.image_path.exists() and b.frame == a.frame


def test_several_files_are_one_run(run, tmp_path):
    second = tmp_path / "second"
    shutil.copytree(run, second)
    for files in (
        [run / "indexed.expt", second / "indexed.expt"],  # the same names in both
        [run / "indexed.expt", second / "run.stream"],
    ):
        found = open_experiments(files, GROUP)
        assert len(found) == 4 and len({s.identifier for s in found.stills}) == 4
        assert {s.image_path.parent for s in found.stills} == {run.resolve(), second.resolve()}
        br.write_experiments(tmp_path / "refined.expt", found)
        again = br.read_experiments(tmp_path / "refined.expt")
        assert [s.identifier for s in again.stills] == [s.identifier for s in found.stills]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("master.h5", "images without orientations"),
        ("reference.mtz", "merge takes it"),
        ("run.geom", "as --geometry"),
        ("nothing.expt", "no such file"),
    ],
)
def test_files_that_hold_no_indexed_stills(run, name, said):
    with pytest.raises(InputError, match=said):
        open_experiments(run / name, GROUP)


def test_a_stream_needs_a_space_group(run):
    with pytest.raises(InputError, match="--space-group"):
        open_experiments(run / "run.stream")


def test_options_that_do_not_apply_are_refused(run):
    with pytest.raises(InputError, match="only a stream takes a geometry"):
        open_experiments(run / "indexed.expt", geometry=run / "run.geom")
    with pytest.raises(InputError, match="indexed in P 43 21 2, not in P 4; reindex it"):
        open_experiments(run / "indexed.expt", gemmi.SpaceGroup("P 4"))
