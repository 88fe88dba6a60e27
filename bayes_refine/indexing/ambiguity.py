"""Indexing ambiguity: ways to index a lattice that its metric allows and the crystal does not.

A lattice is often more symmetric than what it carries: that of P6₃ has twofold axes across the
sixfold one.  Indexing sees where spots are, not how strong, so that each still comes out in one of
K ways, the cosets of the Laue group in the lattice's symmetry.  An operation R turns indices as
h' = h·R and the setting matrix as A' = A·R⁻ᵀ, so that q = A·h stays where it is.
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

MAX_OBLIQUITY_DEG = 1.0  # 1.7 % between two axes: what indexing of one still may get wrong
DEN = gemmi.Op.DEN


@dataclass(frozen=True)
class Ambiguity:
    """The K ways to index, the first of them as it stands.

    Attributes:
        operations: (K, 3, 3) R of h' = h·R, one of each coset; integers, except in centred
            lattices, where halves may occur and h' is whole for the reflections there are.
        names: (K,) the same written as hkl, ``k,h,-l``.
        relabellings: (T, K) int: the coset of R_k·R_t for each R_t that takes the Laue group to
            itself, the identity first.  Without a reference such a change of all images at once
            changes nothing.
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
    """The cosets of the Laue group in the lattice's symmetry; one alone if nothing is ambiguous.

    Args:
        cell: of the run, Å and degrees.
        max_obliquity_deg: how far a twofold axis of the lattice may be from its normal plane
            (Le Page 1982): the metric counts as more symmetric up to here.  Zero or nearly so is
            merohedry; more, where two axes happen to be equal, pseudo-merohedry.

    Raises:
        InputError: the cell is not one that the space group allows.
    """
    lattice = gemmi.find_lattice_symmetry(cell, space_group.centring_type(), max_obliquity_deg)
    # the plainest of a coset stands for it
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
    for t in R:  # R_k·g·R_t for all g is a coset again if R_t normalises the Laue group
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
    """h' = h·R, (n, 3) int32, of ``hkl`` (n, 3) and R (3, 3), or one R a reflection (n, 3, 3)."""
    turned = np.asarray(hkl, float)[:, None] @ operation
    return np.rint(turned[:, 0]).astype(np.int32)


def reindexed_stills(
    stills: Sequence[Still], ambiguity: Ambiguity, operation: np.ndarray
) -> tuple[Still, ...]:
    """The stills with A' = A·R⁻ᵀ, so that q = A·h = A'·h'.

    Args:
        operation: (n,) int, of ``ambiguity.operations``, for each still.
    """
    inverse = np.linalg.inv(ambiguity.operations).swapaxes(1, 2)
    return tuple(
        replace(s, crystal=replace(s.crystal, A=s.crystal.A @ inverse[k])) if k else s
        for s, k in zip(stills, operation, strict=True)
    )


def reindexed_unmerged(data: Unmerged, ambiguity: Ambiguity, operation: np.ndarray) -> Unmerged:
    """The observations with indices h' = h·R of their image's operation.

    Args:
        operation: (n_images,) int, of ``ambiguity.operations``.
    """
    hkl = transformed(data.hkl, ambiguity.operations[np.asarray(operation)[data.image]])
    asu, isym = asu_map(hkl, data.space_group)
    return replace(data, hkl=hkl, hkl_asu=asu, isym=isym)
