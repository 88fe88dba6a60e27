"""Readers of reference intensities against each other and against what was written."""

import gzip

import gemmi
import numpy as np
import pytest

from bayes_refine.io.reference import read_reference
from bayes_refine.util.errors import InputError

HEXAGONAL = gemmi.UnitCell(93.99, 93.99, 130.87, 90, 90, 120)


def write_mtz(path, rows, columns):
    mtz = gemmi.Mtz(with_base=True)
    mtz.spacegroup = gemmi.SpaceGroup("P 61 2 2")
    mtz.set_cell_for_all(HEXAGONAL)
    mtz.add_dataset("d")
    for label, kind in columns:
        mtz.add_column(label, kind)
    mtz.set_data(np.array(rows, np.float32))
    mtz.write_to_file(str(path))
    return path


def test_mtz_duplicates_absences_and_missing_values(tmp_path):
    rows = [[2, 1, 3, 10], [1, 2, -3, 20], [-2, -1, -3, 60], [4, 1, 1, np.nan], [0, 0, 5, 99]]
    ref = read_reference(write_mtz(tmp_path / "a.mtz", rows, [("IMEAN", "J")]))
    assert ref.hkl.tolist() == [[2, 1, 3]] and ref.intensity.tolist() == [30.0]
    assert ref.source.endswith("a.mtz:IMEAN")


@pytest.mark.parametrize(
    ("columns", "column", "expected"),
    [
        ([("F", "F"), ("IMEAN", "J")], None, [4, 8]),  # intensities before amplitudes
        ([("X", "J"), ("IREF", "J")], None, [4, 8]),  # a customary name before the first
        ([("F(+)", "G"), ("F(-)", "G")], None, [(9 + 16) / 2, 64]),
        ([("I(+)", "K"), ("I(-)", "K")], None, [3.5, 8]),
        ([("FMODEL_PLUS", "F"), ("FMODEL_MINUS", "F")], None, [(9 + 16) / 2, 64]),
        ([("FMODEL_PLUS", "F"), ("FMODEL_MINUS", "F")], "FMODEL_PLUS", [9]),
        ([("FMODEL_PLUS", "F"), ("FMODEL_MINUS", "F")], "FMODEL", [(9 + 16) / 2, 64]),
        ([("F", "F"), ("IMEAN", "J")], "F", [9]),
    ],
)
def test_mtz_columns(tmp_path, columns, column, expected):
    path = write_mtz(tmp_path / "a.mtz", [[2, 1, 3, 3, 4], [3, 1, 2, np.nan, 8]], columns)
    assert read_reference(path, column).intensity.tolist() == expected


CIF = """data_r
_cell.length_a 93.99
_cell.length_b 93.99
_cell.length_c 130.87
_cell.angle_alpha 90
_cell.angle_beta 90
_cell.angle_gamma 120
_symmetry.space_group_name_H-M 'P 61 2 2'
loop_
_refln.index_h
_refln.index_k
_refln.index_l
_refln.{0}
_refln.{1}
2 1 3 3.0 4.0
3 1 2 ? 8.0
"""


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (("F_meas_au", "intensity_meas"), [4, 8]),
        (("F_meas_au", "F_meas_sigma_au"), [9]),
        (("pdbx_F_plus", "pdbx_F_minus"), [(9 + 16) / 2, 64]),
        (("pdbx_I_plus", "pdbx_I_minus"), [3.5, 8]),
        (("F_squared_meas", "F_squared_sigma"), [3]),
    ],
)
def test_structure_factor_cif(tmp_path, labels, expected):
    path = tmp_path / "r-sf.cif"
    path.write_text(CIF.format(*labels))
    reference = read_reference(path)
    assert reference.intensity.tolist() == expected
    assert reference.space_group.number == 178


def test_unusable_files_are_named(tmp_path, shared_data):
    with pytest.raises(InputError, match=r"gone\.mtz: no such file"):
        read_reference(tmp_path / "gone.mtz")
    for name in ("text.mtz", "text.pdb", "text.cif", "text.xyz"):
        (tmp_path / name).write_text("nothing of use\n")
        with pytest.raises(InputError, match=name.replace(".", r"\.")):
            read_reference(tmp_path / name)
    good = shared_data / "thermolysin_xfel" / "reference.mtz"
    with pytest.raises(InputError, match=r"reference\.mtz.*FNONE.*usable are F, IREF"):
        read_reference(good, "FNONE")
    with pytest.raises(InputError, match="no usable reflection"):
        read_reference(write_mtz(tmp_path / "n.mtz", [[1, 2, 3, np.nan]], [("I", "J")]))


def test_f_calc_agrees_with_the_reference_of_the_same_model(shared_data):
    """2TLI by gemmi's FFT and a flat solvent against the amplitudes the data set came with.

    The reference was made by other hands, with a solvent of its own: that matters below
    5 Å, so agreement is asked for beyond (measured 0.9996) and overall (0.992 in I).
    """
    folder = shared_data / "thermolysin_xfel"
    theirs = read_reference(folder / "reference.mtz")
    ours = read_reference(folder / "2tli.pdb", d_min=1.9)
    expected = theirs.lookup(ours.hkl)
    assert len(ours.hkl) == len(theirs.hkl) and np.isfinite(expected).all()
    assert np.corrcoef(ours.intensity, expected)[0, 1] > 0.985
    beyond = ours.d < 2.5
    assert np.corrcoef(ours.intensity[beyond], expected[beyond])[0, 1] > 0.999


def test_d_min_cuts(shared_data):
    path = shared_data / "lysosim" / "lysosim_reference.mtz"
    full, cut = read_reference(path), read_reference(path, d_min=3.0)
    assert cut.d.min() >= 3.0 - 1e-4 and len(cut.hkl) == (full.d >= 3.0).sum() < len(full.hkl)


def test_coordinates_in_any_wrapping(tmp_path, shared_data):
    """PDB, mmCIF and gzipped files of one model give one set of intensities."""
    pdb = shared_data / "thermolysin_xfel" / "2tli.pdb"
    expected = read_reference(pdb, d_min=5.0)
    zipped = tmp_path / "m.pdb.gz"
    zipped.write_bytes(gzip.compress(pdb.read_bytes()))
    gemmi.read_structure(str(pdb)).make_mmcif_document().write_file(str(tmp_path / "m.cif"))
    for path in (zipped, tmp_path / "m.cif"):
        got = read_reference(path, d_min=5.0)
        assert np.array_equal(got.hkl, expected.hkl)
        np.testing.assert_allclose(got.intensity, expected.intensity, rtol=1e-3, atol=1.0)
    mtz = shared_data / "lysosim" / "lysosim_reference.mtz"
    (tmp_path / "r.mtz.gz").write_bytes(gzip.compress(mtz.read_bytes()))
    same = read_reference(tmp_path / "r.mtz.gz")
    assert np.array_equal(same.intensity, read_reference(mtz).intensity)
