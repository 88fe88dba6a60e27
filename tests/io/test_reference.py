"""Readers of reference intensities against each other and against what was written."""

import gzip

import gemmi
import numpy as np
import pytest

from bayes_refine.io.gemmi_files import cell_of, space_group_of
from bayes_refine.io.reference import Given, read_reference
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


# -- what else people have in such files -----------------------------------------------------


def coordinates(path, copies=1, operators=0, cell=(60.0, 60.0, 60.0), atoms=30, **one):
    """Atoms at random places, ``copies`` turned about an axis written out, ``operators`` not."""
    rng = np.random.default_rng(0)
    xyz = np.array([20.0, 20.0, 14.0]) + rng.normal(0, 3.0, (atoms, 3))
    turns = [2 * np.pi * k / 5 for k in range(5)]
    turns = [np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
             for a in turns]  # fmt: skip
    centre = np.array([30.0, 30.0, 0.0])
    atom = {"name": "CA", "element": "C", "occ": 1.0, "b": 20.0} | one
    lines = []
    if cell is not None:
        edges = "".join(f"{x:9.3f}" for x in cell)
        lines.append(f"CRYST1{edges}  90.00  90.00  90.00 P 1           1")
    for n in range(1, operators + 1):
        R, t = turns[n], centre - turns[n] @ centre
        lines += [
            f"MTRIX{i + 1} {n + 1:3d}" + "".join(f"{x:10.6f}" for x in R[i]) + f"     {t[i]:10.5f}"
            for i in range(3)
        ]
    for n in range(copies):
        for j, (x, y, z) in enumerate(xyz @ turns[n].T + centre - turns[n] @ centre):
            lines.append(
                f"ATOM  {n * atoms + j + 1:5d} {atom['name']:>3s}  ALA {'ABCDE'[n]}{j + 1:4d}    "
                f"{x:8.3f}{y:8.3f}{z:8.3f}{atom['occ']:6.2f}{atom['b']:6.2f}"
                f"          {atom['element']:>2s}"
            )
    path.write_text("\n".join([*lines, "END", ""]))
    return path


def test_ncs_copies_that_are_not_written_out(tmp_path):
    """Five copies by operators are the five copies written out."""
    expected = read_reference(coordinates(tmp_path / "e.pdb", copies=5), d_min=4.0)
    got = read_reference(coordinates(tmp_path / "n.pdb", operators=4), d_min=4.0)
    assert np.array_equal(got.hkl, expected.hkl) and "4 NCS copies made" in got.remarks
    assert np.corrcoef(got.intensity, expected.intensity)[0, 1] > 0.9999


def test_two_atoms_by_the_structure_factor_formula(tmp_path):
    """|Σ f exp(−B/4d²) exp(2πi h·x)|² by hand, where there is no solvent between the atoms."""
    path = coordinates(tmp_path / "a.pdb", cell=(12.0, 13.0, 14.0), atoms=2, b=15.0)
    got = read_reference(path, d_min=2.5)
    structure = gemmi.read_structure(str(path))
    sites = [structure.cell.fractionalize(a.atom.pos).tolist() for a in structure[0].all()]
    f = np.array([gemmi.Element("C").it92.calculate_sf(x) for x in 0.25 / got.d**2])
    phase = np.exp(2j * np.pi * got.hkl @ np.array(sites).T).sum(axis=1)
    expected = np.abs(f * np.exp(-15.0 / (4 * got.d**2)) * phase) ** 2
    beyond = got.d < 3.5  # B_sol 46 leaves a few per cent of the mask's own terms there
    assert np.corrcoef(got.intensity[beyond], expected[beyond])[0, 1] > 0.95


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"occ": 0.0}, "no atom scatters: all occupancies are zero"),
        ({"b": -1.0}, "no atom scatters: 30 with B outside"),
        ({"cell": None}, "give --cell"),
        ({"cell": (1.0, 1.0, 1.0)}, "give --cell"),
        ({"cell": (4.0, 4.0, 4.0)}, "do not fit into the cell"),
        ({"cell": (9000.0, 9000.0, 9000.0)}, "points: give a larger --d-min"),
        ({"atoms": 0}, "no atoms in this file"),
    ],
)
def test_coordinates_that_cannot_be_a_reference(tmp_path, change, words):
    with pytest.raises(InputError, match=words):
        read_reference(coordinates(tmp_path / "a.pdb", **change), d_min=3.0)


def test_status_of_rows(tmp_path):
    """mmCIF's _refln.status: o and f are observed, < is weak but measured, x - h l are not."""
    rows = "".join(
        f"{h} 1 3 {flag} {value}\n"
        for h, (flag, value) in enumerate(
            [
                ("o", 3),
                ("f", 4),
                ("<", 5),
                ("<", "0.0"),
                ("x", 6),
                ("-", 7),
                ("h", 8),
                ("l", 9),
                ("x", "0.00"),
                (".", 2),
            ],
            start=2,
        )
    )
    head = CIF.split("2 1 3")[0].format("status", "F_meas_au")
    (tmp_path / "r-sf.cif").write_text(head + rows)
    got = read_reference(tmp_path / "r-sf.cif")
    assert sorted(got.intensity.tolist()) == [4, 9, 16, 25]
    assert "5 rows not observed by their status left out (2 x, 1 -, 1 h, 1 l)" in got.describe()
    (tmp_path / "none.cif").write_text(head + "2 1 3 x 4\n3 1 3 x 5\n")
    with pytest.raises(InputError, match="status of an observed reflection"):
        read_reference(tmp_path / "none.cif")


def test_the_first_block_with_a_usable_column(tmp_path):
    phases = CIF.format("phase_meas", "fom").replace("data_r", "data_phases")
    (tmp_path / "two.cif").write_text(phases + CIF.format("F_meas_au", "F_meas_sigma_au"))
    got = read_reference(tmp_path / "two.cif")
    assert got.intensity.tolist() == [9] and "block r of 2" in got.remarks
    (tmp_path / "phases.cif").write_text(phases)
    with pytest.raises(InputError, match="no column of intensities or amplitudes; usable are none"):
        read_reference(tmp_path / "phases.cif")


MAPS = [("FWT", "F"), ("PHWT", "P"), ("DELFWT", "F"), ("SIGF", "F")]


def test_map_coefficients_and_sigmas_are_no_reference_by_themselves(tmp_path):
    rows = [[2, 1, 3, 3, 4, 5, 6], [3, 1, 2, 8, 4, 5, 6]]
    path = write_mtz(tmp_path / "a.mtz", rows, MAPS)
    with pytest.raises(InputError, match="usable are FWT, DELFWT, SIGF, which must be asked for"):
        read_reference(path)
    assert read_reference(path, "FWT").intensity.tolist() == [9, 64]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([-3.0, 4.0, -5.0], "2 of 3 values are negative, so these are no amplitudes"),
        ([0.0, 0.0, 0.0], "all 3 amplitudes are zero"),
        ([np.inf, np.nan, -np.inf], "no usable reflection|values are negative"),
    ],
)
def test_columns_that_are_no_amplitudes(tmp_path, values, words):
    rows = [[h, 1, 3, value] for h, value in enumerate(values, start=2)]
    with pytest.raises(InputError, match=words):
        read_reference(write_mtz(tmp_path / "a.mtz", rows, [("F", "F")]))


def test_placeholders_and_what_is_beyond_float32_are_left_out(tmp_path):
    rows = [[h, 1, 3, F] for h, F in enumerate([3.0, 0.0, 4.0, -1.0, 5.0, 1e30, 2.0], start=2)]
    got = read_reference(write_mtz(tmp_path / "a.mtz", rows, [("F", "F")]))
    assert sorted(got.intensity.tolist()) == [4, 9, 16, 25]
    assert len(got.remarks) == 2 and "2 amplitudes of zero or below" in got.describe()


def test_what_is_said_of_a_reference(shared_data):
    """2TLI is on the absolute scale, k = 1, and its mean B is 24 Å² by its own coordinates."""
    folder = shared_data / "thermolysin_xfel"
    got = read_reference(folder / "2tli.pdb", d_min=1.9)
    k, B = got.wilson
    mean_B = np.mean(
        [a.atom.b_iso for a in gemmi.read_structure(str(folder / "2tli.pdb"))[0].all()]
    )
    assert k == pytest.approx(1, rel=0.2) and B == pytest.approx(mean_B, abs=4)
    assert (
        got.describe().startswith(f"{folder / '2tli.pdb'}:F_calc: ")
        and "P 61 2 2" in got.describe()
    )


def test_cell_and_space_group_where_a_file_has_none(tmp_path):
    bare = "\n".join(
        line for line in CIF.format("F_meas_au", "F_meas_sigma_au").splitlines()
        if not line.startswith(("_cell", "_symm"))
    )  # fmt: skip
    (tmp_path / "bare.cif").write_text(bare + "\n")
    with pytest.raises(InputError, match="no unit cell; give it with --cell"):
        read_reference(tmp_path / "bare.cif")
    given = Given(cell_of("93.99, 93.99 130.87 90 90 120"), None)
    with pytest.raises(InputError, match="--space-group"):
        read_reference(tmp_path / "bare.cif", given=given)
    got = read_reference(tmp_path / "bare.cif", given=Given(given.cell, space_group_of("178")))
    assert got.intensity.tolist() == [9] and "cell as given" in got.remarks
    for text in ("1,2,3", "a,b,c,d,e,f", "0,1,1,90,90,90", "nan,9,9,90,90,90", "9,9,9,90,90,200"):
        with pytest.raises(InputError, match="--cell"):
            cell_of(text)
    for name in ("P 7", "999", "", "P\u200b1"):
        with pytest.raises(InputError, match="--space-group"):
            space_group_of(name)


def test_a_header_that_promises_more_than_the_file_holds(tmp_path):
    path = write_mtz(tmp_path / "a.mtz", [[2, 1, 3, 10]], [("IMEAN", "J")])
    damaged = path.read_bytes().replace(
        b"NCOL        4            1", b"NCOL        4    900000000"
    )
    assert damaged != path.read_bytes()
    path.write_bytes(damaged)
    with pytest.raises(InputError, match=r"a\.mtz.*promises 900000000 rows"):
        read_reference(path)
