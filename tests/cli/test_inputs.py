"""What the commands say of the experiments they take."""

from __future__ import annotations

import json

from bayes_refine.cli.inputs import usable_experiments
from bayes_refine.simulation.files import simulate_run
from bayes_refine.simulation.truth import Simulation


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
