"""Symmetry against gemmi's scalar routines and brute force."""

import gemmi
import numpy as np
import pytest

from bayes_refine.geometry.miller import pack_hkl, unpack_hkl
from bayes_refine.geometry.symmetry import absent, asu_map, epsilon_centric, original_index

# Every Laue class, with centrings, screw axes, non-standard settings and both settings of R.
GROUPS = [
    *("P 1", "P -1", "P 1 2 1", "P 1 21 1", "P 1 1 21", "C 1 2 1", "I 1 2 1", "C 1 2/c 1"),
    *("P 21 21 21", "P 21 21 2", "P 2 21 21", "C 2 2 21", "I 2 2 2", "F 2 2 2", "P n m a"),
    *("P 41", "I 4", "P 41 21 2", "P 43 21 2", "I 4 2 2", "P 31", "P 3 1 2", "P 31 2 1"),
    *("R 3:H", "R 3:R", "R 3 2:H", "R 3 2:R", "P 61", "P 6/m", "P 61 2 2", "P 6/m m m"),
    *("P 2 3", "I 21 3", "F 2 3", "P 4 3 2", "F 4 3 2", "P 41 3 2", "I a -3 d"),
]
HKL = np.random.default_rng(1).integers(-6, 7, (150, 3))


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
    np.testing.assert_array_equal(unpack_hkl(pack_hkl(h)), h)
