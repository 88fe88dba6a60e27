"""Crystal geometry against gemmi, and rotations against the exponential series."""

from __future__ import annotations

import gemmi
import numpy as np
import pytest

from bayes_refine.geometry.crystal import (
    Crystal,
    cell_from_real_axes,
    cross_matrix,
    refined_crystal,
    rotation_matrix,
    space_group_from_hall,
    strain_basis,
)
from bayes_refine.util.errors import InputError

# space group, cell that the group allows, number of strains it allows
SYSTEMS = {
    "cubic": ("P 4 3 2", (61, 61, 61, 90, 90, 90), 1),
    "tetragonal": ("P 43 21 2", (79.3, 79.3, 37.8, 90, 90, 90), 2),
    "hexagonal": ("P 61 2 2", (92.9, 92.9, 129.0, 90, 90, 120), 2),
    "trigonal, hexagonal axes": ("R 3 :H", (90, 90, 110, 90, 90, 120), 2),
    "trigonal, rhombohedral axes": ("R 3 :R", (62, 62, 62, 83, 83, 83), 2),
    "orthorhombic": ("P 21 21 21", (40, 55, 71, 90, 90, 90), 3),
    "orthorhombic, centred": ("C 2 2 21", (40, 55, 71, 90, 90, 90), 3),
    "monoclinic, b unique": ("P 1 21 1", (40, 55, 71, 90, 107, 90), 4),
    "monoclinic, c unique": ("P 1 1 21", (40, 55, 71, 90, 90, 107), 4),
    "triclinic": ("P 1", (40, 55, 71, 81, 107, 98), 6),
}
SEVERAL = pytest.mark.parametrize("name", SYSTEMS)


def series(X: np.ndarray) -> np.ndarray:
    """exp(X) by its power series."""
    total, term = np.eye(3), np.eye(3)
    for k in range(1, 30):
        term = term @ X / k
        total = total + term
    return total


def crystal_of(name: str) -> Crystal:
    """In a general orientation: a relation that only holds along lab axes would show."""
    symbol, cell, _ = SYSTEMS[name]
    B = np.array(gemmi.UnitCell(*cell).frac.mat.tolist()).T
    return Crystal(series(cross_matrix([0.4, -1.1, 0.7])) @ B, gemmi.SpaceGroup(symbol).hall)


def test_rotation_matrix_is_the_exponential_of_the_cross_product():
    rng = np.random.default_rng(0)
    sizes = np.array([0.0, 1e-9, 1e-3, 1.0, 50.0, 1000.0, 3000.0])  # mrad: to nearly half a turn
    vectors = sizes[:, None] * rng.standard_normal((len(sizes), 3)) / np.sqrt(3)
    R = rotation_matrix(vectors)
    for vector, matrix in zip(vectors, R, strict=True):
        np.testing.assert_allclose(matrix, series(cross_matrix(vector * 1e-3)), atol=1e-13)
    np.testing.assert_allclose(R @ np.swapaxes(R, 1, 2), np.tile(np.eye(3), (7, 1, 1)), atol=1e-14)
    np.testing.assert_allclose(np.linalg.det(R), 1, rtol=1e-14)


def test_rotations_are_right_handed():
    """A quarter turn about z takes x to y."""
    turned = rotation_matrix(np.array([0, 0, 500 * np.pi])) @ [1.0, 0, 0]
    np.testing.assert_allclose(turned, [0, 1, 0], atol=1e-15)
    u, v = np.random.default_rng(1).standard_normal((2, 3))
    np.testing.assert_allclose(cross_matrix(u) @ v, np.cross(u, v), atol=1e-15)


@SEVERAL
def test_cell_and_orientation_come_back(name):
    crystal = crystal_of(name)
    np.testing.assert_allclose(crystal.cell.parameters, SYSTEMS[name][1], rtol=1e-12)
    B = np.array(crystal.cell.frac.mat.tolist()).T
    np.testing.assert_allclose(crystal.U @ B, crystal.A, atol=1e-15)
    np.testing.assert_allclose(crystal.U, series(cross_matrix([0.4, -1.1, 0.7])), atol=1e-12)


@SEVERAL
def test_number_of_strains(name):
    basis = strain_basis(crystal_of(name))
    assert basis.shape == (SYSTEMS[name][2], 3, 3)
    products = np.einsum("aij,bij->ab", basis, basis)
    np.testing.assert_allclose(products, np.eye(len(basis)), atol=1e-12)
    np.testing.assert_allclose(basis, np.swapaxes(basis, 1, 2), atol=1e-14)


@SEVERAL
def test_components_of_strain_mean_the_same_in_every_crystal_of_a_run(name):
    """Whatever the setting and a cell that differs a little: E in the crystal's own frame."""
    alike = [crystal_of(name)]
    rng = np.random.default_rng(7)
    for _ in range(20):
        strain = 1e-3 * rng.standard_normal(SYSTEMS[name][2])
        alike.append(refined_crystal(alike[0], rng.normal(0, 500, 3), strain))
    first, *others = ([c.U.T @ E @ c.U for E in strain_basis(c)] for c in alike)
    for other in others:
        np.testing.assert_allclose(other, first, atol=0.01)


@SEVERAL
def test_strains_are_invariant_under_the_point_group(name):
    """R E Rᵀ = E, the rotations taken in the lab by way of A: R = A⁻ᵀ·rot·Aᵀ."""
    crystal = crystal_of(name)
    axes = np.linalg.inv(crystal.A).T  # columns a, b, c
    for op in gemmi.SpaceGroup(SYSTEMS[name][0]).operations():
        R = axes @ (np.array(op.rot) / gemmi.Op.DEN) @ np.linalg.inv(axes)
        np.testing.assert_allclose(R @ R.T, np.eye(3), atol=1e-12)
        for E in strain_basis(crystal):
            np.testing.assert_allclose(R @ E @ R.T, E, atol=1e-12)


@SEVERAL
def test_a_strained_cell_stays_in_its_system(name):
    """The allowed strains change a cell only as its lattice allows; gemmi judges that."""
    crystal, (symbol, _, count) = crystal_of(name), SYSTEMS[name]
    strain = 2e-3 * np.random.default_rng(2).standard_normal(count)
    changed = refined_crystal(crystal, np.array([1.0, -2.0, 0.5]), strain).cell
    assert changed.is_compatible_with_spacegroup(gemmi.SpaceGroup(symbol), eps=1e-9)
    moved = np.array(changed.parameters) - crystal.cell.parameters
    assert np.abs(moved[:3]).max() > 1e-3 * np.abs(strain).max() * crystal.cell.a


def test_a_strain_of_q_shortens_the_cell():
    """q → (1 + e)q all round: a → a/(1 + e)."""
    crystal = crystal_of("cubic")
    e = 1e-3 * np.sign(strain_basis(crystal)[0, 0, 0])
    strained = refined_crystal(crystal, np.zeros(3), np.array([e * np.sqrt(3)]))
    assert strained.cell.a == pytest.approx(61 / 1.001, rel=1e-12)
    np.testing.assert_allclose(strained.A, 1.001 * crystal.A, rtol=1e-12)


def test_refined_crystal_rotates_after_it_strains():
    crystal = crystal_of("triclinic")
    omega, strain = np.array([30.0, -20.0, 10.0]), 1e-2 * np.arange(1, 7)
    E = np.einsum("k,kij->ij", strain, strain_basis(crystal))
    expected = series(cross_matrix(omega * 1e-3)) @ (np.eye(3) + E) @ crystal.A
    np.testing.assert_allclose(refined_crystal(crystal, omega, strain).A, expected, atol=1e-14)


@pytest.mark.parametrize(
    ("hall", "number"),
    [
        ("P 4nw 2abw", 96),
        (" P  61  2  (x,y,z+5/12) ", 178),  # as dxtbx writes thermolysin's
        ("P 61 2 (0 0 5)", 178),
        ("-P 6 2", 191),
        ("P 1", 1),
        ("C 2y", 5),
    ],
)
def test_hall_symbols(hall, number):
    assert space_group_from_hall(hall).number == number


@pytest.mark.parametrize("hall", ["P 7 2", "", "nonsense", "P 4nw 2abw (x,y"])
def test_a_bad_hall_symbol_is_an_input_error(hall):
    with pytest.raises(InputError, match="Hall symbol"):
        space_group_from_hall(hall)


@pytest.mark.parametrize("axes", [np.zeros((3, 3)), np.diag([1, np.nan, 1]), np.diag([1, 1, 0])])
def test_axes_that_make_no_cell_are_an_input_error(axes):
    with pytest.raises(InputError, match="real-space axes"):
        cell_from_real_axes(axes)
