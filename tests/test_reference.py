"""Symmetry against gemmi's scalar routines and brute force; readers against each other."""

import gzip

import gemmi
import numpy as np
import pytest

from bayes_refine.crystal import Crystal
from bayes_refine.errors import InputError
from bayes_refine.io.reference import read_reference
from bayes_refine.miller import pack_hkl
from bayes_refine.reference import Reference, check_fits, free_set, wilson_mean
from bayes_refine.symmetry import absent, asu_map, epsilon_centric, original_index

# Every Laue class, with centrings, screw axes, non-standard settings and both settings of R.
GROUPS = [
    *("P 1", "P -1", "P 1 2 1", "P 1 21 1", "P 1 1 21", "C 1 2 1", "I 1 2 1", "C 1 2/c 1"),
    *("P 21 21 21", "P 21 21 2", "P 2 21 21", "C 2 2 21", "I 2 2 2", "F 2 2 2", "P n m a"),
    *("P 41", "I 4", "P 41 21 2", "P 43 21 2", "I 4 2 2", "P 31", "P 3 1 2", "P 31 2 1"),
    *("R 3:H", "R 3:R", "R 3 2:H", "R 3 2:R", "P 61", "P 6/m", "P 61 2 2", "P 6/m m m"),
    *("P 2 3", "I 21 3", "F 2 3", "P 4 3 2", "F 4 3 2", "P 41 3 2", "I a -3 d"),
]
HKL = np.random.default_rng(1).integers(-6, 7, (150, 3))
HEXAGONAL = gemmi.UnitCell(93.99, 93.99, 130.87, 90, 90, 120)


@pytest.fixture(params=GROUPS)
def group(request):
    found = gemmi.find_spacegroup_by_name(request.param)
    assert found is not None
    return found


def test_the_groups_cover_all_laue_classes():
    classes = {gemmi.find_spacegroup_by_name(name).laue_str() for name in GROUPS}
    assert len(classes) == 11


def test_asu_map_is_gemmi_to_asu(group):
    asu, isym = asu_map(HKL, group)
    oracle, ops = gemmi.ReciprocalAsu(group), group.operations()
    for h, a, m in zip(HKL, asu, isym, strict=True):
        expected, expected_isym = oracle.to_asu(h.tolist(), ops)
        assert (a.tolist(), m) == (list(expected), expected_isym)


def test_original_index_undoes_asu_map(group):
    assert np.array_equal(original_index(*asu_map(HKL, group), group), HKL)


def test_anomalous_keeps_mates_apart_unless_centric(group):
    general = HKL[HKL.any(axis=1)]
    plus, _ = asu_map(general, group, anomalous=True)
    minus, _ = asu_map(-general, group, anomalous=True)
    centric = epsilon_centric(general, group)[1]
    assert np.array_equal((plus == minus).all(axis=1), centric)
    assert np.array_equal(asu_map(plus, group)[0], asu_map(general, group)[0])


def test_epsilon_centric_absent_from_their_definitions(group):
    """ε counts R with h·R = h; centric: some h·R = −h; absent: h·R = h but h·t ∉ Z."""
    operations = group.operations()
    epsilon, centric = epsilon_centric(HKL, group)
    gone = absent(HKL, group)
    fixed = np.zeros(len(HKL), int)
    inverted, shifted = np.zeros(len(HKL), bool), np.zeros(len(HKL), bool)
    for op in operations.sym_ops:
        image = HKL @ np.array(op.rot) // op.DEN
        same = (image == HKL).all(axis=1)
        fixed += same
        inverted |= (image == -HKL).all(axis=1)
        for centring in operations.cen_ops:
            t = np.array(op.tran) + np.array(centring)
            shifted |= same & ((HKL @ t) % op.DEN != 0)
    assert np.array_equal(epsilon, fixed)
    assert np.array_equal(centric, inverted)
    assert np.array_equal(gone, shifted)


def test_pack_is_ordered_and_unique():
    h = np.array([[-1, 5, 5], [0, -300, 7], [0, 0, -1], [0, 0, 0], [0, 1, -9], [2, -7, 0]])
    assert (np.diff(pack_hkl(h)) > 0).all()


@pytest.fixture
def small_reference():
    group = gemmi.SpaceGroup("P 61 2 2")
    hkl = gemmi.make_miller_array(HEXAGONAL, group, 6.0)
    return Reference(hkl, np.arange(1.0, len(hkl) + 1), HEXAGONAL, group, "made up")


def test_lookup_of_any_mate(small_reference):
    ref = small_reference
    for op in ref.space_group.operations().sym_ops:
        mates = ref.hkl @ np.array(op.rot) // op.DEN
        assert np.array_equal(ref.lookup(mates), ref.intensity)
        assert np.array_equal(ref.lookup(-mates), ref.intensity)


def test_lookup_absent_is_zero_and_unknown_is_nan(small_reference):
    got = small_reference.lookup(np.array([[0, 0, 5], [0, 0, 6], [90, 3, 1], [0, 0, 600]]))
    assert got[0] == 0 and got[1] > 0 and np.isnan(got[2:]).all()


def test_free_set_keeps_mates_together_and_ignores_order_and_company():
    group = gemmi.SpaceGroup("P 61 2 2")
    hkl = gemmi.make_miller_array(HEXAGONAL, group, 2.5)
    free = free_set(hkl, 0.05, 7, group)
    # binomial: sd = sqrt(f(1-f)/n)
    assert abs(free.mean() - 0.05) < 4 * np.sqrt(0.05 * 0.95 / len(hkl))
    assert np.array_equal(free_set(-hkl[::-3], 0.05, 7, group), free[::-3])
    rotated = hkl @ np.array(group.operations().sym_ops[5].rot) // gemmi.Op.DEN
    assert np.array_equal(free_set(rotated, 0.05, 7, group), free)
    both = (free & free_set(hkl, 0.05, 8, group)).mean()  # another seed is independent
    assert abs(both - 0.05**2) < 4 * np.sqrt(0.05**2 / len(hkl))
    assert (free <= free_set(hkl, 0.1, 7, group)).all()  # nested
    assert not free_set(hkl, 0.0, 7, group).any()
    for index in hkl.T:  # unrelated to any index, modulo anything small
        for parity in (0, 1):
            part = free[index % 2 == parity]
            assert abs(part.mean() - 0.05) < 4.5 * np.sqrt(0.05 * 0.95 / len(part))


def test_free_set_is_the_same_everywhere():
    """The selection is part of the files' meaning: it must not change between releases.

    Oracle: splitmix64 with Python's integers.
    """

    def mix(x):
        mask = 2**64 - 1
        x = (x + 0x9E3779B97F4A7C15) & mask
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
        return x ^ (x >> 31)

    assert mix(0) == 0xE220A8397B1DCDAF  # first output of the published generator, seed 0
    group = gemmi.SpaceGroup("P 1")
    hkl, _ = asu_map(HKL, group)
    expected = [mix(int(k) ^ mix(3)) / 2**64 < 0.3 for k in pack_hkl(hkl)]
    assert np.array_equal(free_set(hkl, 0.3, 3, group), expected)
    with pytest.raises(InputError, match="free fraction"):
        free_set(hkl, 1.5, 0, group)


def test_wilson_mean_recovers_a_known_fall_off():
    """Exponential intensities about Σ = 100 exp(−B/(2 d²)), B = 25 Å²."""
    rng = np.random.default_rng(3)
    d = rng.uniform(8.0**-3, 1.8**-3, 20_000) ** (-1 / 3)
    sigma = 100 * np.exp(-25 / (2 * d**2))
    at = np.linspace(1.8, 6, 50)
    got = wilson_mean(d, rng.exponential(sigma), at)
    truth = 100 * np.exp(-25 / (2 * at**2))
    # 500 a bin: 4.5 % sd each, some more where the ends are extrapolated
    assert np.sqrt(np.mean((got / truth - 1) ** 2)) < 0.06
    assert np.abs(got / truth - 1).max() < 0.2
    exact = wilson_mean(d, sigma, at)
    assert np.abs(exact / truth - 1).max() < 0.01
    with pytest.raises(InputError, match="no finite"):
        wilson_mean(d, np.full(len(d), np.nan), at)


def crystal(cell, hall):
    return Crystal(A=np.array(cell.frac.mat.tolist()).T, hall=hall)


def test_check_fits(small_reference):
    fits = crystal(HEXAGONAL, "-P 6 2")  # P 6/m m m: same Laue class as P 61 2 2
    check_fits(small_reference, [fits, fits], "run.expt")
    with pytest.raises(InputError, match=r"made up.*6/mmm.*6/m\).*run\.expt"):
        check_fits(small_reference, [fits, crystal(HEXAGONAL, "P 6")], "run.expt")
    off = gemmi.UnitCell(93.99, 93.99, 130.87 * 1.031, 90, 90, 120)
    check_fits(small_reference, [fits, fits, crystal(off, "-P 6 2")], "run.expt")  # the median
    with pytest.raises(InputError, match=r"made up.*cell.*run\.expt"):
        check_fits(small_reference, [crystal(off, "-P 6 2")], "run.expt")
    near = gemmi.UnitCell(93.99, 93.99, 130.87 * 1.029, 90, 90, 120)
    check_fits(small_reference, [crystal(near, "-P 6 2")], "run.expt")


def test_check_fits_tells_p321_from_p312(small_reference):
    """Both are -3m, with different two-fold axes."""
    group = gemmi.SpaceGroup("P 3 2 1")
    reference = Reference(small_reference.hkl, small_reference.intensity, HEXAGONAL, group, "r")
    check_fits(reference, [crystal(HEXAGONAL, gemmi.SpaceGroup("P 31 2 1").hall)], "x")
    with pytest.raises(InputError, match="does not fit"):
        check_fits(reference, [crystal(HEXAGONAL, gemmi.SpaceGroup("P 31 1 2").hall)], "x")


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
