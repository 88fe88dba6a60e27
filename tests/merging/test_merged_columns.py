"""Columns of merged files: one data array in each, blank where the images say nothing."""

from types import SimpleNamespace

import gemmi
import numpy as np
import pytest

from bayes_refine.io.mtz import write_merged
from bayes_refine.merging.merged_columns import blank, blank_sentence, merged_files


@pytest.fixture
def found():
    """Five reflections of ε·Σ(d) = 10; of the third the images say nothing, of the last one half
    does not."""
    sigma = np.array([1.0, 39.9, 1e7, 40.0, 2.0])
    intensity = np.array([9.0, -20.0, -3e6, 5.0, 1.0])
    half = np.array([[2.0, 41], [30, 30], [1e7, 2e7], [np.nan, 40.0], [3.0, np.nan]])
    merged = SimpleNamespace(
        hkl=np.array([[k + 1, 2, 3] for k in range(5)]),
        intensity=intensity,
        sigma=sigma,
        n=np.array([3, 1, 1, 1, 1]),
        half_intensity=half / 2,
        half_sigma=half,
    )
    post = SimpleNamespace(
        intensity=np.abs(intensity), intensity_sd=sigma, amplitude=sigma, amplitude_sd=sigma
    )
    return SimpleNamespace(merged=merged, posterior=post, prior_mean=np.full(5, 10.0), mates=None)


def test_blank_where_the_images_say_nothing(found, tmp_path):
    assert blank(found).tolist() == [False, False, True, False, False]
    assert blank_sentence(1, 5).startswith("1 of 5 reflections have no IMEAN")
    files = merged_files(found, np.zeros(5))
    hkl, columns = files["merged.mtz"]
    for label in ("IMEAN", "SIGIMEAN"):
        assert np.isfinite(columns[label][1]).tolist() == [True, True, False, True, True]
    assert columns["N"][1].tolist() == [3, 1, 1, 1, 1]
    for label, (_, values) in files["posterior.mtz"][1].items():
        assert np.isfinite(values).all(), label
    for name, kept in (("half1.mtz", [1, 2, 5]), ("half2.mtz", [2, 4])):
        assert files[name][0][:, 0].tolist() == kept
        assert np.isfinite(files[name][1]["IMEAN"][1]).all()
    for name, (hkl, columns) in files.items():
        path = tmp_path / name
        write_merged(path, hkl, columns, gemmi.UnitCell(50, 50, 50, 90, 90, 90),
                     gemmi.SpaceGroup("P 21 21 21"), 1.0)  # fmt: skip
        kinds = [c.type for c in gemmi.read_mtz_file(str(path)).columns]
        assert kinds.count("J") == 1  # what label pickers choose by


def test_a_half_that_says_nothing_has_no_file(found):
    found.merged.half_sigma[:, 1] = np.nan
    assert set(merged_files(found, np.zeros(5))) == {"merged.mtz", "posterior.mtz", "half1.mtz"}
