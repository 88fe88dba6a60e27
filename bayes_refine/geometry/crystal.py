"""Crystal geometry: cell, orientation, small rotations and strain, hkl to q.

Reference geometry is float64 NumPy; models work with small changes of it, a rotation and strains
(:func:`refined_crystal`, :func:`strain_basis`).  Reciprocal lengths carry no 2π.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import gemmi
import numpy as np

from ..util.errors import InputError

_VOLUME_RANGE = (20.0, 1e9)  # Å³, of unit cells that can exist
_LENGTH_RANGE = (1.0, 1e4)  # Å
_MAX_STRAIN = 0.1  # of a cell against its own symmetry: cells indexed without symmetry have 0.01


@dataclass(frozen=True)
class Crystal:
    """One crystal in one orientation (docs/theory.md, Geometry).

    Attributes:
        A: (3, 3) reciprocal-space setting matrix in the lab frame; its columns are
            a*, b*, c* in Å⁻¹, so that q = A·h.
        hall: Hall symbol of the space group.
    """

    A: np.ndarray
    hall: str

    @cached_property
    def space_group(self) -> gemmi.SpaceGroup:
        """The space group; where the Hall symbol shifts the origin, with the tabulated origin."""
        return space_group_from_hall(self.hall)

    @cached_property
    def cell(self) -> gemmi.UnitCell:
        """Unit cell, Å and degrees."""
        return cell_from_real_axes(np.linalg.inv(self.A))

    @property
    def U(self) -> np.ndarray:
        """(3, 3) rotation of the crystal's Cartesian frame (PDB convention) into the lab."""
        B = np.array(self.cell.frac.mat.tolist()).T
        return rotation_part(self.A @ np.linalg.inv(B))

    @cached_property
    def strains(self) -> np.ndarray:
        """(K, 3, 3) orthonormal strains: :func:`strain_basis`."""
        return strain_basis(self)


def cell_from_real_axes(axes: np.ndarray) -> gemmi.UnitCell:
    """Unit cell (Å, degrees) with axes a, b, c, the rows of ``axes``, shape (3, 3), Å."""
    lengths = np.linalg.norm(axes, axis=1)
    if not np.all(np.isfinite(axes)) or np.any(lengths <= 0):
        raise InputError("a crystal's real-space axes must be three finite, non-zero vectors")
    unit = axes / lengths[:, None]
    cosines = [unit[1] @ unit[2], unit[0] @ unit[2], unit[0] @ unit[1]]
    return gemmi.UnitCell(*lengths, *np.degrees(np.arccos(np.clip(cosines, -1, 1))))


@lru_cache(maxsize=1024)
def space_group_from_hall(hall: str) -> gemmi.SpaceGroup:
    """Space group of a Hall symbol; a shift of origin, ``(x,y,z+5/12)``, is ignored.

    Raises:
        InputError: gemmi knows no space group of this symbol, or the symbol refers to a cell that
            is not tabulated (see :func:`tabulated_setting`).
    """
    tabulated, change = tabulated_setting(hall)
    if not np.array_equal(change, np.eye(3)):
        raise InputError(f"Hall symbol {hall!r} refers to a cell that is not tabulated")
    found = gemmi.find_spacegroup_by_ops(gemmi.symops_from_hall(tabulated))
    assert found is not None
    return found


@lru_cache(maxsize=1024)
def tabulated_setting(hall: str) -> tuple[str, np.ndarray]:
    """The tabulated setting of a space group whose Hall symbol may contain a change of basis.

    ``C 2y (x-y,x+y,z)`` says that positions x' = V·x belong to C 2y; DIALS writes the primitive
    cell of a centred lattice so.  Since h·x does not change, h = Vᵀh', and A = A'·V⁻ᵀ.

    Returns:
        hall: symbol of the tabulated setting.
        change: (3, 3) V, from tabulated positions to those of the given symbol; the identity if the
            two settings differ in origin at most.

    Raises:
        InputError: gemmi knows no space group of this symbol.
    """
    symbol = " ".join(hall.split())
    base, _, suffix = symbol.partition("(")
    try:
        operations, plain = gemmi.symops_from_hall(symbol), gemmi.symops_from_hall(base)
    except (ValueError, RuntimeError, TypeError) as error:  # TypeError: no valid text
        raise InputError(f"{hall!r} is not a Hall symbol: {str(error)[:80]}") from None
    if gemmi.find_spacegroup_by_ops(operations) is not None:
        return symbol, np.eye(3)
    if gemmi.find_spacegroup_by_ops(plain) is not None:
        if _lattice_and_rotations(operations) == _lattice_and_rotations(plain):
            return base, np.eye(3)
        try:
            op = gemmi.Op(suffix.removesuffix(")"))
        except (ValueError, RuntimeError):
            op = gemmi.Op()
        change = np.array(op.rot) / op.DEN
        if np.linalg.det(change) > 0:
            plain.change_basis_forward(op)
            if _lattice_and_rotations(operations) == _lattice_and_rotations(plain):
                return base, change
    raise InputError(f"Hall symbol {hall!r} is no tabulated space group")


def _lattice_and_rotations(operations: gemmi.GroupOps) -> tuple[set, set]:
    """Centring vectors and rotations of a space group, which do not depend on its origin."""
    centring = {tuple(x % gemmi.Op.DEN for x in c) for c in operations.cen_ops}
    return centring, {tuple(map(tuple, op.rot)) for op in operations.sym_ops}


def crystal_of_axes(axes: np.ndarray, hall: str) -> Crystal:
    """The crystal with real-space axes a, b, c, rows of ``axes`` (3, 3), Å, in the lab frame.

    Where the Hall symbol refers to a cell that is not tabulated, the crystal is reindexed to the
    tabulated cell: A = A'·V⁻ᵀ of :func:`tabulated_setting`.

    Raises:
        InputError: the axes are coplanar, left-handed or not finite, their volume is impossible,
            they lack the symmetry of the space group, or no space group has this symbol.
    """
    axes = np.asarray(axes, float)
    if axes.shape != (3, 3) or not np.all(np.isfinite(axes)):
        raise InputError("the crystal's axes are not three finite vectors; index the image again")
    volume = float(np.linalg.det(axes))
    flatness = volume / max(float(np.prod(np.linalg.norm(axes, axis=1))), 1e-300)
    if flatness < 1e-3:
        raise InputError("the crystal's axes are coplanar or left-handed; index the image again")
    if not _VOLUME_RANGE[0] < volume < _VOLUME_RANGE[1]:
        raise InputError(f"a cell volume of {volume:.3g} Å³ is impossible; index the image again")
    tabulated, change = tabulated_setting(hall)
    A = np.linalg.inv(axes)
    if not np.array_equal(change, np.eye(3)):
        A, hall = A @ np.linalg.inv(change).T, tabulated
    crystal = Crystal(A=A, hall=hall)
    lengths = crystal.cell.parameters[:3]
    if not _LENGTH_RANGE[0] < min(lengths) <= max(lengths) < _LENGTH_RANGE[1]:
        shown = ", ".join(f"{x:.4g}" for x in lengths)
        raise InputError(f"a cell of {shown} Å is impossible; index the image again")
    if (strain := symmetry_strain(crystal)) > _MAX_STRAIN:
        cell = " ".join(f"{x:.4g}" for x in crystal.cell.parameters)
        raise InputError(
            f"the cell {cell} does not have the symmetry of {crystal.space_group.xhm()}: "
            f"it is {100 * strain:.0f} % off; index the image again"
        )
    return crystal


def symmetry_strain(crystal: Crystal) -> float:
    """Largest strain of the cell under an operation of its space group, max|RᵀR − 1|/2."""
    orth = np.array(crystal.cell.orth.mat.tolist())
    ops = crystal.space_group.operations().sym_ops
    R = orth @ (np.array([op.rot for op in ops]) / gemmi.Op.DEN) @ np.linalg.inv(orth)
    return float(np.max(np.abs(np.swapaxes(R, 1, 2) @ R - np.eye(3))) / 2)


def cross_matrix(v: np.ndarray) -> np.ndarray:
    """[v]×, shape (..., 3, 3), of vectors (..., 3): ``cross_matrix(v) @ u = v × u``."""
    v = np.asarray(v, dtype=float)
    out = np.zeros((*v.shape, 3))
    out[..., 0, 1], out[..., 0, 2] = -v[..., 2], v[..., 1]
    out[..., 1, 0], out[..., 1, 2] = v[..., 2], -v[..., 0]
    out[..., 2, 0], out[..., 2, 1] = -v[..., 1], v[..., 0]
    return out


def rotation_matrix(rotation_mrad: np.ndarray) -> np.ndarray:
    """exp([ω]×), shape (..., 3, 3), of rotation vectors ω (..., 3) in mrad (Rodrigues)."""
    w = np.asarray(rotation_mrad, dtype=float) * 1e-3
    angle = np.linalg.norm(w, axis=-1)[..., None, None]
    K = cross_matrix(w)
    return np.eye(3) + np.sinc(angle / np.pi) * K + 0.5 * np.sinc(angle / (2 * np.pi)) ** 2 * K @ K


def rotation_part(change: np.ndarray) -> np.ndarray:
    """The rotation (3, 3) nearest to a matrix (3, 3), from its polar decomposition."""
    u, _, vt = np.linalg.svd(change)
    return u @ vt


def rotation_vector_mrad(change: np.ndarray) -> np.ndarray:
    """(3,) mrad, lab axes: the rotation in a small change (3, 3) of a setting matrix."""
    r = rotation_part(change)
    return 500 * np.array([r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1]])


def strain_basis(crystal: Crystal) -> np.ndarray:
    """Orthonormal strains that keep the crystal system, in the lab frame.

    They are the symmetric 3×3 tensors invariant under the point group: one for cubic, two for
    tetragonal and hexagonal (across and along the axis), ..., six for triclinic crystals.  Each is
    the one that adds the next of xx, yy, zz, yz, xz, xy, with this component positive, so that
    components of similar crystals can be compared.

    Returns:
        (K, 3, 3), dimensionless: q → (1 + Σ_k e_k E_k) q.
    """
    orth = np.array(crystal.cell.orth.mat.tolist())
    frac = np.linalg.inv(orth)
    rotations = orth @ _point_group(crystal.hall) @ frac
    upper = [(0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)]
    basis = np.zeros((6, 3, 3))
    for k, (i, j) in enumerate(upper):
        basis[k, i, j] = basis[k, j, i] = 1.0 if i == j else np.sqrt(0.5)
    averaged = np.mean(rotations[:, None] @ basis @ np.swapaxes(rotations, 1, 2)[:, None], axis=0)
    projector = np.einsum("aij,bij->ab", basis, averaged)
    values, vectors = np.linalg.eigh((projector + projector.T) / 2)
    kept = vectors[:, values > 0.5]
    orthonormal: list[np.ndarray] = []  # Gram-Schmidt: eigenvectors of equal values have no order
    for column in (kept @ kept.T).T:
        rest = column - sum(((e @ column) * e for e in orthonormal), np.zeros(6))
        if (length := np.linalg.norm(rest)) > 0.1:
            orthonormal.append(rest / length)
    invariant = np.einsum("ka,aij->kij", orthonormal, basis)
    U = crystal.U
    return U @ invariant @ U.T


@lru_cache(maxsize=1024)
def _point_group(hall: str) -> np.ndarray:
    """(m, 3, 3) rotations of a space group, in fractional coordinates."""
    operations = space_group_from_hall(hall).operations().derive_symmorphic()
    return np.array([op.rot for op in operations]) / gemmi.Op.DEN


def refined_crystal(crystal: Crystal, rotation_mrad: np.ndarray, strain: np.ndarray) -> Crystal:
    """The crystal after A → exp([ω]×)(1 + Σ e_k E_k) A, with E_k of :func:`strain_basis`.

    Args:
        rotation_mrad: (3,) mrad.
        strain: (K,) dimensionless.
    """
    stretch = np.eye(3) + np.einsum("k,kij->ij", np.asarray(strain, float), crystal.strains)
    return Crystal(A=rotation_matrix(rotation_mrad) @ stretch @ crystal.A, hall=crystal.hall)
