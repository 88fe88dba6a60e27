"""Indexing ambiguity: ways to index a lattice that its metric allows and the crystal does not.

A lattice is often more symmetric than the crystal: the lattice of P6₃ has twofold axes across the
sixfold one.  Indexing uses where spots are and not how strong they are, so that it chooses at
random among K ways, the cosets of the Laue group in the symmetry of the lattice.  An operation R
changes indices to h' = h·R and the setting matrix to A' = A·R⁻ᵀ, so that q = A·h does not change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import gemmi
import numpy as np

from ..geometry.experiments import Still
from ..geometry.symmetry import asu_map, reciprocal_rotations
from ..io.unmerged import Unmerged
from ..util.errors import InputError

MAX_OBLIQUITY_DEG = 1.0  # 1.7 % between two axes: about the error of a cell from one still
DEN = gemmi.Op.DEN


@dataclass(frozen=True)
class Ambiguity:
    """The K ways to index; the first leaves the indices as they are.

    Attributes:
        operations: (K, 3, 3) R of h' = h·R, one of each coset; integers, except in centred
            lattices, where halves occur and h' is still integer for the reflections present.
        names: (K,) the operations written as hkl, ``k,h,-l``.
        relabellings: (T, K) int: the coset of R_k·R_t for each R_t that maps the Laue group to
            itself, the identity first.  Without a reference, a change of all images by one R_t
            cannot be noticed.
        space_group: of the crystal.
    """

    operations: np.ndarray
    names: tuple[str, ...]
    relabellings: np.ndarray
    space_group: gemmi.SpaceGroup

    def __len__(self) -> int:
        return len(self.names)


def ambiguity(
    cell: gemmi.UnitCell,
    space_group: gemmi.SpaceGroup,
    max_obliquity_deg: float = MAX_OBLIQUITY_DEG,
) -> Ambiguity:
    """Find the cosets of the Laue group in the symmetry of the lattice.

    There is one coset if indexing is not ambiguous.

    Args:
        cell: of the run, Å and degrees.
        max_obliquity_deg: largest angle between a twofold axis of the lattice and the normal of its
            plane (Le Page 1982) up to which the axis counts as one.  Near zero the ambiguity is
            merohedry; above, where two axes happen to be equal, pseudo-merohedry.

    Raises:
        InputError: the cell does not have the symmetry of the space group.
    """
    lattice = gemmi.find_lattice_symmetry(cell, space_group.centring_type(), max_obliquity_deg)
    # the simplest operation of a coset represents it
    ops = sorted(lattice.sym_ops, key=lambda op: (op.rot != gemmi.Op().rot, _plainness(op)))
    rotations = reciprocal_rotations(space_group)
    laue = np.rint(np.linalg.det(rotations)).astype(int)[:, None, None] * rotations * DEN
    if not _keys(laue) <= _keys(np.array([op.rot for op in ops])):
        shown = " ".join(f"{x:.2f}" for x in cell.parameters)
        raise InputError(f"a cell of {shown} does not have the symmetry of {space_group.xhm()}")
    found: dict[frozenset[bytes], gemmi.Op] = {}
    for op in ops:
        found.setdefault(_keys(np.array(op.rot) @ laue // DEN), op)
    R = np.array([op.rot for op in found.values()])
    cosets = list(found)
    relabellings = []
    for t in R:  # {R_k·g·R_t} over g is a coset again if R_t normalises the Laue group
        moved = [_keys(k @ laue // DEN @ t // DEN) for k in R]
        if set(moved) == set(cosets):
            relabellings.append([cosets.index(c) for c in moved])
    names = tuple(op.as_hkl().triplet() for op in found.values())
    return Ambiguity(R / DEN, names, np.array(relabellings), space_group)


def _plainness(op: gemmi.Op) -> tuple[int, int]:
    entries = np.array(op.rot)
    return int(np.count_nonzero(entries)), int((entries < 0).sum())


def _keys(rotations: np.ndarray) -> frozenset[bytes]:
    return frozenset(np.ascontiguousarray(r, dtype=np.int64).tobytes() for r in rotations)


def transformed(hkl: np.ndarray, operation: np.ndarray) -> np.ndarray:
    """h' = h·R, (n, 3) int32, for ``hkl`` (n, 3) and R (3, 3), or (n, 3, 3) one each."""
    turned = np.asarray(hkl, float)[:, None] @ operation
    return np.rint(turned[:, 0]).astype(np.int32)


def reindexed_stills(
    stills: Sequence[Still], ambiguity: Ambiguity, operation: np.ndarray
) -> tuple[Still, ...]:
    """The stills with A' = A·R⁻ᵀ, so that q = A·h = A'·h'.

    Args:
        operation: (n,) int, which of ``ambiguity.operations`` each still takes.
    """
    inverse = np.linalg.inv(ambiguity.operations).swapaxes(1, 2)
    return tuple(
        replace(s, crystal=replace(s.crystal, A=s.crystal.A @ inverse[k])) if k else s
        for s, k in zip(stills, operation, strict=True)
    )


def reindexed_unmerged(data: Unmerged, ambiguity: Ambiguity, operation: np.ndarray) -> Unmerged:
    """The observations with indices h' = h·R, R the operation of their image.

    Args:
        operation: (n_images,) int, which of ``ambiguity.operations`` each image takes.
    """
    hkl = transformed(data.hkl, ambiguity.operations[np.asarray(operation)[data.image]])
    asu, isym = asu_map(hkl, data.space_group)
    return replace(data, hkl=hkl, hkl_asu=asu, isym=isym)
