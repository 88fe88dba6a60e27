"""What the commands say of the experiments they take."""

from __future__ import annotations

import json

import gemmi
import pytest

from bayes_refine.cli.inputs import given_from, usable_experiments
from bayes_refine.io.crystfel_write import cell_text
from bayes_refine.simulation.files import simulate_run
from bayes_refine.simulation.truth import Simulation
from bayes_refine.util.errors import InputError


def test_experiments_that_are_left_out_are_counted(tmp_path, capsys):
    expt = simulate_run(Simulation(n_images=3, n_pixels=64, d_min=8.0), tmp_path)
    assert len(usable_experiments(expt)) == 3
    assert capsys.readouterr().err == ""
    document = json.loads(expt.read_text())
    del document["experiment"][1]["crystal"]
    expt.write_text(json.dumps(document))
    assert [s.frame for s in usable_experiments(expt).stills] == [0, 2]
    said = capsys.readouterr().err
    assert "one experiment is left out of 3" in said
    assert "experiment[1]: it has no crystal" in said


def test_a_cell_is_six_numbers_or_a_file_of_crystfel(tmp_path):
    assert given_from(None, "79,79,38,90,90,90").cell.c == 38
    file = tmp_path / "a.cell"
    file.write_text(cell_text(gemmi.UnitCell(61.5, 122, 168, 90, 90, 90), gemmi.SpaceGroup(20)))
    found = given_from("C2221", str(file))
    assert found.cell.parameters == pytest.approx((61.5, 122, 168, 90, 90, 90))
    file.write_text("a = 61.5 A\n")
    with pytest.raises(InputError, match="no CrystFEL unit cell file"):
        given_from(None, str(file))
