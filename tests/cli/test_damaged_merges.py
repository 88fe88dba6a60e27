"""Damaged observations through a whole ``merge``: results with finite numbers, or one sentence."""

from __future__ import annotations

from functools import partial

import gemmi
import numpy as np
import pytest

from bayes_refine import cli

from ..io import test_array_mutations as arrays
from ..io import test_run_mutations as runs
from ..outputs import check_outputs

KINDS = {
    ".stream": runs.stream,
    ".refl": runs.reflections,
    "XDS_ASCII.HKL": partial(runs.xds, "XDS_ASCII.HKL"),
    "_process.h5": partial(arrays.jungfraujoch, arrays.merged),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_read_is_merged(tmp_path, monkeypatch, capsys, kind):
    """The first two damaged files of a kind that are read, merged by the command line."""
    given, merged = [], 0
    for module in (runs, arrays):
        monkeypatch.setattr(module, "open_unmerged", partial(_noted, module.open_unmerged, given))
    for seed in range(40):
        folder = tmp_path / str(seed)
        folder.mkdir()
        given.clear()
        name = {"through": runs.through_merge} if kind == ".stream" else {}
        said = KINDS[kind](rng=np.random.default_rng(seed), folder=folder, **name)
        if said == "refused" or not given:
            continue
        line = ["merge", given[0], "--space-group", "P43212", "--out", folder / "out"]
        with pytest.raises(SystemExit) as end:
            cli.main([str(word) for word in (*line, "--draws", "4")])
        told = capsys.readouterr().err
        assert end.value.code in (None, 0, 2), told
        assert "Traceback" not in told
        if end.value.code == 2:
            assert given[0].name in told.splitlines()[-1]
            continue
        check_outputs(folder / "out")
        table = gemmi.read_mtz_file(str(folder / "out" / "posterior.mtz"))
        for label in ("IPOST", "SIGIPOST", "FPOST"):  # IMEAN may be blank
            values = np.array(table.column_with_label(label).array)
            assert np.isfinite(values).all() and (values > 0).all(), label
        merged += 1
        if merged == 2:
            return
    raise AssertionError(f"only {merged} of 40 were merged")


def _noted(function, given, paths, *rest, **named):
    given.extend(paths)
    return function(paths, *rest, **named)
