"""Symmetry in reciprocal space: the asymmetric unit (CCP4 convention, as in gemmi), absences, ε."""

from __future__ import annotations

import gemmi
import numpy as np

from .miller import pack_hkl


def miller_array(hkl: np.ndarray) -> np.ndarray:
    """A copy of ``hkl`` as gemmi takes it: (n, 3) int32, contiguous."""
    return np.array(hkl, dtype=np.int32, order="C").reshape(-1, 3)


def reciprocal_rotations(space_group: gemmi.SpaceGroup) -> np.ndarray:
    """(m, 3, 3) int: rotations R of the operations in gemmi's order, h' = h·R."""
    return np.array([op.rot for op in space_group.operations().sym_ops]) // gemmi.Op.DEN


def asu_map(
    hkl: np.ndarray, space_group: gemmi.SpaceGroup, anomalous: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Map Miller indices to the reciprocal asymmetric unit.

    >>> asu_map(np.array([[-1, -2, 3]]), gemmi.SpaceGroup("P 43 21 2"))[0].tolist()
    [[2, 1, 3]]

    Args:
        hkl: (n, 3) integers.
        space_group: its Laue class decides; translations do not matter here.
        anomalous: keep Friedel mates apart, I− as the inverted index −hkl_asu; centric
            reflections, which are their own mates, always count as I+.

    Returns:
        hkl_asu: (n, 3) int32.
        isym: (n,) int32, MTZ M/ISYM: 2i + 1 where operation i brings hkl to the asymmetric
            unit (I+), 2i + 2 where it brings −hkl there (I−); the first i that does.
    """
    hkl = miller_array(hkl)
    asu = hkl.copy()
    space_group.switch_to_asu(asu)
    isym = np.zeros(len(hkl), np.int32)
    rotations = reciprocal_rotations(space_group)
    for i in reversed(range(len(rotations))):  # the first match is written last and stands
        image = hkl @ rotations[i].astype(np.int32)
        isym[(image == -asu).all(axis=1)] = 2 * i + 2
        isym[(image == asu).all(axis=1)] = 2 * i + 1
    if anomalous:
        minus = (isym % 2 == 0) & ~epsilon_centric(asu, space_group)[1]
        asu[minus] *= -1
    return asu, isym


def original_index(
    hkl_asu: np.ndarray, isym: np.ndarray, space_group: gemmi.SpaceGroup
) -> np.ndarray:
    """Inverse of :func:`asu_map`: observed indices (n, 3) int32 from M/ISYM (n,)."""
    inverse = np.rint(np.linalg.inv(reciprocal_rotations(space_group))).astype(np.int32)
    sign = np.where(isym % 2 == 1, 1, -1).astype(np.int32)
    return sign[:, None] * np.einsum("ni,nij->nj", miller_array(hkl_asu), inverse[(isym - 1) // 2])


def asu_keys(hkl: np.ndarray, space_group: gemmi.SpaceGroup) -> np.ndarray:
    """(n,) keys (``miller.pack_hkl``) of ``hkl`` (n, 3) in the asymmetric unit."""
    asu = miller_array(hkl)
    space_group.switch_to_asu(asu)
    return pack_hkl(asu)


def absent(hkl: np.ndarray, space_group: gemmi.SpaceGroup) -> np.ndarray:
    """(n,) bool: whether centring, a screw axis or a glide plane makes a reflection absent."""
    return np.asarray(space_group.operations().systematic_absences(miller_array(hkl)), bool)


def epsilon_centric(
    hkl: np.ndarray, space_group: gemmi.SpaceGroup
) -> tuple[np.ndarray, np.ndarray]:
    """Multiplicity ε (n,) int (how often symmetry maps h to itself) and whether h is centric (n,).

    The centring factor, common to all reflections present, is left out of ε.
    """
    ops, hkl = space_group.operations(), miller_array(hkl)
    epsilon = np.asarray(ops.epsilon_factor_without_centering_array(hkl))
    return epsilon, np.asarray(ops.centric_flag_array(hkl), bool)


def laue_rotations(space_group: gemmi.SpaceGroup) -> set[bytes]:
    """The rotations of the Laue class as a set, which can be compared."""
    rotations = reciprocal_rotations(space_group)
    return {r.tobytes() for r in np.concatenate([rotations, -rotations])}
