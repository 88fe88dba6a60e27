"""Reference intensities: a merged set on the asymmetric unit, and the free set it never informs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import gemmi
import numpy as np

from ..geometry.crystal import Crystal
from ..geometry.miller import find, pack_hkl, resolution
from ..geometry.symmetry import absent, asu_keys, laue_rotations
from ..util.errors import InputError

MAX_CELL_LENGTH_DEVIATION = 0.03  # fraction
MAX_CELL_ANGLE_DEVIATION = 3.0  # degrees


@dataclass(frozen=True)
class Reference:
    """Merged intensities on the asymmetric unit, each reflection once.

    Attributes:
        hkl: (n, 3) int32, in gemmi's reciprocal asymmetric unit of ``space_group``.
        intensity: (n,) float64, on an arbitrary scale.
        cell: Å and degrees.
        space_group: its systematic absences are not in ``hkl``.
        source: file and column it came from, for messages.
    """

    hkl: np.ndarray
    intensity: np.ndarray
    cell: gemmi.UnitCell
    space_group: gemmi.SpaceGroup
    source: str

    @cached_property
    def d(self) -> np.ndarray:
        """(n,) resolution, Å."""
        return resolution(self.hkl, self.cell)

    @cached_property
    def _sorted(self) -> tuple[np.ndarray, np.ndarray]:
        key = pack_hkl(self.hkl)
        order = np.argsort(key)
        return key[order], self.intensity[order]

    def lookup(self, hkl: np.ndarray) -> np.ndarray:
        """Intensities (n,) of observed ``hkl`` (n, 3): NaN where unknown, 0 where absent."""
        keys, intensity = self._sorted
        at, known = find(asu_keys(hkl, self.space_group), keys)
        found = np.where(known, intensity[at], np.nan)
        return np.where(absent(hkl, self.space_group), 0.0, found)


def free_set(
    hkl: np.ndarray, fraction: float, seed: int, space_group: gemmi.SpaceGroup
) -> np.ndarray:
    """(n,) bool: the reflections that never see their reference intensity (SPEC section 6).

    A hash of (asymmetric-unit index, seed), splitmix64, falls below ``fraction``.  So
    symmetry mates and Friedel mates go together, and the choice depends neither on which
    other reflections are present nor on their order.
    """
    if not 0 <= fraction < 1:
        raise InputError(f"the free fraction must lie in [0, 1), not {fraction}")
    key = asu_keys(hkl, space_group).astype(np.uint64)
    mixed = _splitmix64(key ^ _splitmix64(np.array([seed]).astype(np.uint64)))
    return (mixed >> np.uint64(11)) * 2.0**-53 < fraction


def _splitmix64(x: np.ndarray) -> np.ndarray:
    """Steele, Lea & Flood (2014): uint64 → well mixed uint64; wraps modulo 2⁶⁴."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def wilson_mean(
    d: np.ndarray, intensity: np.ndarray, at_d: np.ndarray, per_bin: int = 200
) -> np.ndarray:
    """Smooth mean intensity by resolution, Σ(d).

    Bins of equally many reflections, at most 40; ln⟨I⟩ is interpolated, and at both ends
    extrapolated to the last reflection, linearly in 1/d²; constant beyond.

    Args:
        d, intensity: (n,) Å and intensities, divided by ε; non-finite pairs are ignored.
        at_d: resolutions where Σ is wanted, Å.
        per_bin: reflections a bin.

    Raises:
        InputError: no finite intensity, or no bin of positive mean.
    """
    good = np.isfinite(d) & np.isfinite(intensity)
    if not good.any():
        raise InputError("no finite intensity to take the mean by resolution from")
    s2 = 1 / np.asarray(d, float)[good] ** 2
    order = np.argsort(s2)
    s2, values = s2[order], np.asarray(intensity, float)[good][order]
    n_bins = int(np.clip(len(s2) // per_bin, 1, 40))
    x = np.array([part.mean() for part in np.array_split(s2, n_bins)])
    y = np.array([part.mean() for part in np.array_split(values, n_bins)])
    x, y = x[y > 0], y[y > 0]
    if not len(x):
        raise InputError("the mean intensity is positive in no resolution bin")
    y = np.log(y)
    if len(x) > 1:
        first = y[0] + (s2[0] - x[0]) * (y[1] - y[0]) / (x[1] - x[0])
        last = y[-1] + (s2[-1] - x[-1]) * (y[-1] - y[-2]) / (x[-1] - x[-2])
        x, y = np.r_[s2[0], x, s2[-1]], np.r_[first, y, last]
    return np.exp(np.interp(1 / np.asarray(at_d, float) ** 2, x, y))


def check_fits(reference: Reference, crystals: Sequence[Crystal], source_name: str) -> None:
    """Refuse a reference whose symmetry or cell is not that of the crystals.

    Args:
        crystals: all crystals of a run; their median cell counts.
        source_name: name of the experiments, for the message.

    Raises:
        InputError: as :func:`check_symmetry`.
    """
    if not crystals:
        return
    cell = np.median([crystal.cell.parameters for crystal in crystals], axis=0)
    for hall in dict.fromkeys(crystal.hall for crystal in crystals):
        group = next(crystal.space_group for crystal in crystals if crystal.hall == hall)
        check_symmetry(reference, gemmi.UnitCell(*cell), group, source_name)


def check_symmetry(
    reference: Reference, cell: gemmi.UnitCell, space_group: gemmi.SpaceGroup, source_name: str
) -> None:
    """Refuse a reference whose symmetry or cell is another.

    Raises:
        InputError: Laue classes differ (the set of rotations: settings count too), or the
            cell is off by more than 3 % in a length or 3° in an angle.
    """
    if laue_rotations(reference.space_group) != laue_rotations(space_group):
        raise InputError(
            f"{reference.source}: its space group {reference.space_group.xhm()} (Laue class "
            f"{reference.space_group.laue_str()}) does not fit {space_group.xhm()} (Laue class "
            f"{space_group.laue_str()}) of {source_name}"
        )
    expected, found = np.array(reference.cell.parameters), np.array(cell.parameters)
    length = np.abs(found[:3] / expected[:3] - 1).max()
    angle = np.abs(found[3:] - expected[3:]).max()
    if length > MAX_CELL_LENGTH_DEVIATION or angle > MAX_CELL_ANGLE_DEVIATION:
        show = [" ".join(f"{x:.2f}" for x in c) for c in (expected, found)]
        raise InputError(
            f"{reference.source}: its cell ({show[0]}) is too far from the median cell "
            f"({show[1]}) of {source_name}: more than 3 % in a length or 3° in an angle"
        )
