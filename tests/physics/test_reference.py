"""Look-up, free set, mean by resolution, and references that do not fit."""

from dataclasses import replace

import gemmi
import numpy as np
import pytest

from bayes_refine.geometry.crystal import Crystal
from bayes_refine.geometry.miller import pack_hkl
from bayes_refine.geometry.symmetry import asu_map, epsilon_centric
from bayes_refine.physics.reference import (
    Reference,
    check_fits,
    check_usable,
    free_set,
    protein_scattering,
    wilson_mean,
)
from bayes_refine.util.errors import InputError

HKL = np.random.default_rng(1).integers(-6, 7, (150, 3))
HEXAGONAL = gemmi.UnitCell(93.99, 93.99, 130.87, 90, 90, 120)


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


def test_what_cannot_be_a_reference(small_reference):
    check_usable(small_reference)
    n = len(small_reference.hkl)
    for intensity, words in (
        (np.zeros(n), "all intensities are zero"),
        (np.full(n, 100.0), "all intensities are 100"),
        (np.linspace(-3, 2, n), "mean intensity is -0.5, not positive"),
    ):
        with pytest.raises(InputError, match=words):
            check_usable(replace(small_reference, intensity=intensity))
    few = replace(small_reference, hkl=small_reference.hkl[:9], intensity=np.arange(9.0))
    with pytest.raises(InputError, match="only 9 usable reflections"):
        check_usable(few)


def test_wilson_plot_of_an_average_protein(small_reference):
    """k and B put in come out, to what an exponential intensity in each reflection allows."""
    group, cell = gemmi.SpaceGroup("C 1 2 1"), gemmi.UnitCell(80, 70, 90, 90, 100, 90)
    hkl = gemmi.make_miller_array(cell, group, 2.0)
    d = cell.calculate_d_array(hkl)
    epsilon = epsilon_centric(hkl, group)[0]
    mean = 3.0 * 2 * cell.volume * protein_scattering(d) * epsilon * np.exp(-30 / (2 * d**2))
    I = np.random.default_rng(1).exponential(mean)  # noqa: E741
    k, B = Reference(hkl, I, cell, group, "r").wilson
    assert k == pytest.approx(3, rel=0.1) and B == pytest.approx(30, abs=1)
