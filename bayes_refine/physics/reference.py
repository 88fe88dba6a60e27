"""Reference intensities: a merged set on the asymmetric unit, and the free set it never informs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import gemmi
import numpy as np

from ..geometry.crystal import Crystal
from ..geometry.miller import find, pack_hkl, resolution
from ..geometry.symmetry import absent, asu_keys, epsilon_centric, laue_rotations
from ..util.errors import InputError
from ..util.large_arrays import release, stored

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
        remarks: what was done to the file's rows or atoms.
    """

    hkl: np.ndarray
    intensity: np.ndarray
    cell: gemmi.UnitCell
    space_group: gemmi.SpaceGroup
    source: str
    remarks: tuple[str, ...] = ()

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

    @cached_property
    def wilson(self) -> tuple[float, float] | None:
        """Scale k and B (Å²) of ⟨I⟩/ε = k·Σ_j f_j²(d)·exp(−B/2d²), by a Wilson plot.

        The sum is over atoms of an average protein that fills half the cell, so that k is near 1
        for intensities on the absolute scale (e²).  Only reflections of d < 4 Å count where 200 or
        more have it.  None where fewer than 40 reflections are left, or no fall can be fitted.
        """
        use = self.d < 4.0 if (self.d < 4.0).sum() >= 200 else np.ones(len(self.d), bool)
        if use.sum() < 40:
            return None
        d, hkl = self.d[use], self.hkl[use]
        I = self.intensity[use] / epsilon_centric(hkl, self.space_group)[0]  # noqa: E741
        order = np.array_split(np.argsort(d), min(20, len(d) // 20))
        x = np.array([np.mean(0.5 / d[k] ** 2) for k in order])
        in_cell = self.cell.volume * len(self.space_group.operations().cen_ops)
        expected = in_cell * protein_scattering((2 * x) ** -0.5)
        ratio = np.array([I[k].mean() for k in order]) / expected
        if (ratio > 0).sum() < 2:
            return None
        slope, level = np.polyfit(x[ratio > 0], np.log(ratio[ratio > 0]), 1)
        return float(np.exp(level)), float(-slope)

    def describe(self) -> str:
        """One line: file, column, number of reflections, range of d, scale and B, remarks."""
        line = (
            f"{self.source}: {len(self.hkl)} reflections, {self.d.max():.1f}–{self.d.min():.2f} Å, "
            f"{self.space_group.xhm()}"
        )
        if self.wilson is not None:
            line += f", {self.wilson[0]:.2g} × absolute scale, B {self.wilson[1]:.0f} Å² (Wilson)"
        return "; ".join([line, *self.remarks])


# Heavy atoms per Å³ of a cell that is half protein (1.35 g/cm³, 14.1 Da a heavy atom with its
# hydrogens), and the shares of the elements.
HEAVY_ATOMS = 0.0288
PROTEIN = {"C": 0.63, "N": 0.17, "O": 0.195, "S": 0.005}


def protein_scattering(d: np.ndarray) -> np.ndarray:
    """(n,) Σ_j f_j²(d) per Å³ of a cell half filled with an average protein, e²/Å³."""
    found = np.zeros(len(d))
    for name, share in PROTEIN.items():
        table = gemmi.Element(name).it92
        f = np.array([table.calculate_sf(x) for x in 0.25 / np.asarray(d, float) ** 2])
        found += share * f**2
    return HEAVY_ATOMS * found


MIN_REFLECTIONS = 10  # the fewest for a scale, a B and an agreement


def check_usable(reference: Reference) -> None:
    """Refuse intensities that cannot be a reference.

    Raises:
        InputError: fewer than 10 reflections; all zero; all the same; a mean that is not positive.
    """
    I = reference.intensity  # noqa: E741
    if len(I) < MIN_REFLECTIONS:
        raise InputError(
            f"{reference.source}: only {len(I)} usable reflections, too few for a reference"
        )
    if not I.any():
        raise InputError(f"{reference.source}: all intensities are zero")
    if np.ptp(I) <= 1e-5 * np.abs(I).max():
        raise InputError(
            f"{reference.source}: all intensities are {I[0]:.6g}, so these are no measured or "
            "calculated intensities"
        )
    if not I.mean() > 0:
        raise InputError(f"{reference.source}: the mean intensity is {I.mean():.3g}, not positive")


def free_set(
    hkl: np.ndarray, fraction: float, seed: int, space_group: gemmi.SpaceGroup
) -> np.ndarray:
    """(n,) bool: the reflections that never see their reference intensity.

    A reflection is free where a hash of its asymmetric-unit index and ``seed``, splitmix64, falls
    below ``fraction``.  So symmetry mates and Friedel mates go together, and the choice depends
    neither on which other reflections are present nor on their order.

        free = free_set(reference.hkl, 0.05, 0, reference.space_group)
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
    d, intensity = np.asarray(d, float), np.asarray(intensity, float)
    good = np.isfinite(d) & np.isfinite(intensity)
    if not good.any():
        raise InputError("no finite intensity to take the mean by resolution from")
    if not good.all():
        d, intensity = d[good], intensity[good]
    s2 = stored(1 / d**2)
    order = np.argsort(s2)
    bins = np.array_split(order, int(np.clip(len(s2) // per_bin, 1, 40)))
    x = np.array([s2[rows].mean() for rows in bins])
    y = np.array([intensity[rows].mean() for rows in bins])
    lowest, highest = s2[order[[0, -1]]]
    release(s2, d, intensity)
    x, y = x[y > 0], y[y > 0]
    if not len(x):
        raise InputError("the mean intensity is positive in no resolution bin")
    y = np.log(y)
    if len(x) > 1:
        first = y[0] + (lowest - x[0]) * (y[1] - y[0]) / (x[1] - x[0])
        last = y[-1] + (highest - x[-1]) * (y[-1] - y[-2]) / (x[-1] - x[-2])
        x, y = np.r_[lowest, x, highest], np.r_[first, y, last]
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
