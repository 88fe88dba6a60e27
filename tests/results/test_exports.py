"""Results for other programs, read back by their readers."""

from __future__ import annotations

import shutil

import gemmi
import numpy as np
import pytest

import bayes_refine as br
from bayes_refine import cli
from bayes_refine.cli import export as cli_export
from bayes_refine.io.crystfel_unmerged import unmerged_of_stream
from bayes_refine.io.dials_reflections import read_refl, unmerged_of_dials
from bayes_refine.io.unmerged_mtz import read_unmerged
from bayes_refine.results.exports import Export, export
from bayes_refine.util.errors import InputError


@pytest.fixture(scope="module")
def folder(small_run, tmp_path_factory):
    out = tmp_path_factory.mktemp("exported") / "fit"
    shutil.copytree(small_run.out, out)
    export(out, list(Export))
    return out


def test_reflections_of_dials(folder):
    table, raw = read_refl(folder / "refined.refl"), read_unmerged(folder / "unmerged.mtz")
    stills = br.read_experiments(folder / "refined.expt").stills
    assert list(table.identifiers.values()) == [s.identifier for s in stills]
    back = unmerged_of_dials([(folder / "refined.expt", folder / "refined.refl")])
    assert len(back) == len(raw)
    order = [np.lexsort((*u.hkl.T, u.batch)) for u in (raw, back)]
    np.testing.assert_allclose(back.J[order[1]], raw.J[order[0]])
    # ε_r of the refined geometry, in single precision in the MTZ
    both = back.excitation_error[order[1]], raw.excitation_error[order[0]]
    np.testing.assert_allclose(*both, atol=2e-8)


def test_the_stream_holds_the_same_observations(folder):
    raw = read_unmerged(folder / "unmerged.mtz")
    back = unmerged_of_stream(folder / "refined.stream", raw.space_group)
    assert len(back) == len(raw)
    order = [np.lexsort((*u.hkl.T, u.image)) for u in (raw, back)]
    np.testing.assert_allclose(back.J[order[1]], raw.J[order[0]], atol=0.006)
    both = back.excitation_error[order[1]], raw.excitation_error[order[0]]
    np.testing.assert_allclose(*both, atol=2e-8)
    # places, to the table's 0.1 px of 0.172 mm, and the last round's movement
    apart = np.abs(back.xy_px[order[1]] - raw.xy_px[order[0]])
    assert np.median(apart) < 0.01 and apart.max() < 0.05


def test_merged_intensities_in_five_formats(folder):
    mtz = gemmi.read_mtz_file(str(folder / "merged.mtz"))
    I = np.array(mtz.column_with_label("IMEAN"))  # noqa: E741
    hkl = mtz.make_miller_array()[np.isfinite(I)]
    I = I[np.isfinite(I)]  # noqa: E741
    lines = (folder / "merged.hkl").read_text().splitlines()
    rows = np.array(
        [[float(x) for x in line.replace("-  ", "0  ").split()[:4]] for line in lines[3:-1]]
    )
    np.testing.assert_array_equal(rows[:, :3], hkl)
    np.testing.assert_allclose(rows[:, 3], I, atol=0.006)
    lines = (folder / "merged_shelx.hkl").read_text().splitlines()[:-1]
    shelx = np.array([float(line[12:20]) for line in lines])
    factor = np.median(shelx[I > 1] / I[I > 1])
    np.testing.assert_allclose(shelx, factor * I, atol=0.006 + 0.006 * factor)
    lines = (folder / "merged.sca").read_text().splitlines()
    assert lines[2].split()[-1] == "p43212" and len(lines) == 3 + len(I)
    found = gemmi.as_refln_blocks(gemmi.cif.read(str(folder / "merged.cif")))[0]
    assert len(found.make_miller_array()) == len(mtz.make_miller_array())
    xds = gemmi.read_xds_ascii(str(folder / "merged_XDS_ASCII.HKL"))
    np.testing.assert_allclose(np.array(xds.iobs_array), I, rtol=1e-3)


def test_a_folder_without_results(tmp_path):
    for kind in Export:
        with pytest.raises(InputError, match="give the folder of a fit"):
            export(tmp_path, [kind])


def test_the_command(folder, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["export", str(folder), "--write", "hkl", "--write", "sca"])
    assert not end.value.code
    printed = "".join(capsys.readouterr().out.split())
    assert all(f"{name}.hkl" in printed for name in ("merged", "half1", "half2"))
    assert "merged.sca" in printed


def test_formats_of_fit_and_merge(folder, capsys):
    cli_export.exported(folder, None)
    assert not capsys.readouterr().out
    cli_export.exported(folder, [Export.shelx])
    assert "merged_shelx.hkl" in capsys.readouterr().out
