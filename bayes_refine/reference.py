"""Reference intensities, and the reciprocal-space symmetry that goes with them.

A :class:`Reference` is a merged set of intensities on the asymmetric unit; it comes from an
MTZ, a structure-factor mmCIF or coordinates.  The free functions map Miller indices to the
asymmetric unit (CCP4 convention, as in gemmi), and pick the free set.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import gemmi
import numpy as np

from .crystal import Crystal
from .errors import InputError

K_SOL, B_SOL = 0.35, 46.0  # flat bulk solvent, e/Å³ and Å²: the usual means over the PDB
MAX_CELL_LENGTH_DEVIATION = 0.03  # fraction
MAX_CELL_ANGLE_DEVIATION = 3.0  # degrees
MTZ_INTENSITIES = ("IREF", "IMEAN", "I", "I-obs", "IOBS")
MTZ_AMPLITUDES = ("F", "FMODEL", "F-model", "FC", "FCALC", "F-obs", "FOBS", "FP")
CIF_INTENSITIES = ("intensity_meas", "F_squared_meas", "pdbx_I", "F_squared_calc")
CIF_AMPLITUDES = ("F_meas_au", "F_meas", "pdbx_F", "F_calc_au", "F_calc")
MATE = re.compile(r"(\([+-]\)|_(plus|minus)|[+-])$", re.IGNORECASE)  # ends of F(+), F_MINUS...


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
        return self.cell.calculate_d_array(np.ascontiguousarray(self.hkl, np.int32))

    @cached_property
    def _sorted(self) -> tuple[np.ndarray, np.ndarray]:
        key = pack_hkl(self.hkl)
        order = np.argsort(key)
        return key[order], self.intensity[order]

    def lookup(self, hkl: np.ndarray) -> np.ndarray:
        """Intensities (n,) of observed ``hkl`` (n, 3): NaN where unknown, 0 where absent."""
        keys, intensity = self._sorted
        wanted = pack_hkl(asu_map(hkl, self.space_group)[0])
        at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        found = np.where(keys[at] == wanted, intensity[at], np.nan)
        return np.where(absent(hkl, self.space_group), 0.0, found)


# --- symmetry -----------------------------------------------------------------------------


def _miller(hkl: np.ndarray) -> np.ndarray:
    return np.array(hkl, dtype=np.int32, order="C").reshape(-1, 3)


def reciprocal_rotations(space_group: gemmi.SpaceGroup) -> np.ndarray:
    """(m, 3, 3) int rotations R of the operations in gemmi's order: h' = h·R."""
    return np.array([op.rot for op in space_group.operations().sym_ops]) // gemmi.Op.DEN


def asu_map(
    hkl: np.ndarray, space_group: gemmi.SpaceGroup, anomalous: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Map Miller indices to the reciprocal asymmetric unit.

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
    hkl = _miller(hkl)
    asu = hkl.copy()
    space_group.switch_to_asu(asu)
    isym = np.zeros(len(hkl), np.int32)
    rotations = reciprocal_rotations(space_group)
    for i in reversed(range(len(rotations))):  # so that the first match stands
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
    return sign[:, None] * np.einsum("ni,nij->nj", _miller(hkl_asu), inverse[(isym - 1) // 2])


def absent(hkl: np.ndarray, space_group: gemmi.SpaceGroup) -> np.ndarray:
    """(n,) bool: systematically absent, from centring, screw axes and glide planes."""
    return np.asarray(space_group.operations().systematic_absences(_miller(hkl)), bool)


def epsilon_centric(
    hkl: np.ndarray, space_group: gemmi.SpaceGroup
) -> tuple[np.ndarray, np.ndarray]:
    """Multiplicity ε (n,) int, how often symmetry maps h on itself, and whether h is centric.

    The centring factor, common to all reflections present, is left out of ε.
    """
    ops, hkl = space_group.operations(), _miller(hkl)
    epsilon = np.asarray(ops.epsilon_factor_without_centering_array(hkl))
    return epsilon, np.asarray(ops.centric_flag_array(hkl), bool)


def pack_hkl(hkl: np.ndarray) -> np.ndarray:
    """(n,) int64 keys of ``hkl`` (n, 3), unique and ordered as H, K, L for |index| < 2²⁰."""
    h, k, l = np.moveaxis(np.asarray(hkl, np.int64) + (1 << 20), -1, 0)  # noqa: E741
    return (h << 42) | (k << 21) | l


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
    key = pack_hkl(asu_map(hkl, space_group)[0]).astype(np.uint64)
    mixed = _splitmix64(key ^ _splitmix64(np.array([seed]).astype(np.uint64)))
    return (mixed >> np.uint64(11)) * 2.0**-53 < fraction


def _splitmix64(x: np.ndarray) -> np.ndarray:
    """Steele, Lea & Flood (2014): uint64 → well mixed uint64; wraps modulo 2⁶⁴."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


# --- statistics and checks ----------------------------------------------------------------


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
    if _laue_rotations(reference.space_group) != _laue_rotations(space_group):
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


def _laue_rotations(space_group: gemmi.SpaceGroup) -> set[bytes]:
    rotations = reciprocal_rotations(space_group)
    return {r.tobytes() for r in np.concatenate([rotations, -rotations])}


# --- reading ------------------------------------------------------------------------------


def read_reference(
    path: str | Path, column: str | None = None, d_min: float | None = None
) -> Reference:
    """Reference intensities from an MTZ, a structure-factor mmCIF or coordinates.

    Intensities are preferred to amplitudes, which are squared; Friedel mates and duplicates
    are averaged; non-finite values, F000 and systematic absences are dropped.  Coordinates
    give |F_calc|² with a flat bulk solvent (k_sol 0.35 e/Å³, B_sol 46 Å²).

    Args:
        path: .mtz, .cif, .mmcif, .pdb, .ent, also .gz.
        column: label of the column, or the stem of a pair of mates (``F`` of F(+), F(-)).
        d_min: Å; by default all there is, and 1.8 Å from coordinates.

    Raises:
        InputError: missing or unreadable, no such column, no cell, no usable reflection.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        reference = _reader(path)(path, column, d_min)
    except InputError:
        raise
    except (RuntimeError, ValueError, OSError) as error:
        raise InputError(f"{path}: cannot be read as a reference: {error}") from None
    keep = reference.d >= (d_min or 0.0) * (1 - 1e-6)
    if not keep.any():
        raise InputError(f"{reference.source}: no usable reflection")
    return replace(reference, hkl=reference.hkl[keep], intensity=reference.intensity[keep])


def _reader(path: Path) -> Callable[[Path, str | None, float | None], Reference]:
    name = path.name.lower().removesuffix(".gz")
    if name.endswith(".mtz"):
        return _from_mtz
    if name.endswith((".pdb", ".ent")):
        return _from_coordinates
    if name.endswith((".cif", ".mmcif")):
        blocks = gemmi.cif.read(str(path))
        atoms = any(block.find_values("_atom_site.Cartn_x") for block in blocks)
        return _from_coordinates if atoms else _from_cif
    raise InputError(f"{path}: a reference is an MTZ, mmCIF or PDB file")


def _merged(
    hkl: np.ndarray,
    intensity: np.ndarray,
    cell: gemmi.UnitCell,
    space_group: gemmi.SpaceGroup | None,
    source: str,
) -> Reference:
    """Asymmetric unit, duplicates averaged, absences and non-finite values dropped."""
    if space_group is None or not cell.is_crystal():
        raise InputError(f"{source}: the file has no unit cell or no space group")
    hkl, intensity = _miller(hkl), np.asarray(intensity, float)
    keep = np.isfinite(intensity) & hkl.any(axis=1) & ~absent(hkl, space_group)
    asu = asu_map(hkl[keep], space_group)[0]
    _, first, code = np.unique(pack_hkl(asu), return_index=True, return_inverse=True)
    mean = np.bincount(code, intensity[keep]) / np.maximum(np.bincount(code), 1)
    return Reference(asu[first], mean, cell, space_group, source)


def _find_column(
    amplitude_of: dict[str, bool], column: str | None, source: str
) -> tuple[list[str], bool]:
    """Labels to average (one, or two mates) and whether they are amplitudes.

    Args:
        amplitude_of: for each usable label, whether it is an amplitude.
        column: a label or the stem of a pair; by default an intensity before an amplitude,
            a customary name before the file's first.
    """
    if column in amplitude_of:
        return [column], amplitude_of[column]
    pairs: dict[tuple[str, bool], list[str]] = {}
    for label, amplitude in amplitude_of.items():
        pairs.setdefault((MATE.sub("", label) or label, amplitude), []).append(label)
    customary = (*MTZ_INTENSITIES, *CIF_INTENSITIES, *MTZ_AMPLITUDES, *CIF_AMPLITUDES)
    ranked = sorted(
        (key for key in pairs if column is None or key[0] == column),
        key=lambda key: (key[1], customary.index(key[0]) if key[0] in customary else 99),
    )
    if not ranked:
        wanted = "column of intensities or amplitudes" + (f" {column!r}" if column else "")
        raise InputError(f"{source}: no {wanted}; usable are {', '.join(amplitude_of) or 'none'}")
    return pairs[ranked[0]], ranked[0][1]


def _mean_intensity(columns: Iterable[np.ndarray], amplitude: bool) -> np.ndarray:
    """Mean over Friedel mates, either of which may be NaN; amplitudes are squared first."""
    values = np.array(list(columns), float)
    values = values**2 if amplitude else values
    finite = np.isfinite(values)
    count = finite.sum(axis=0)
    total = np.where(finite, values, 0).sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _from_mtz(path: Path, column: str | None, d_min: float | None) -> Reference:
    mtz = gemmi.read_mtz_file(str(path))
    labels, amplitude = _find_column(
        {c.label: c.type in "FG" for c in mtz.columns if c.type in "JKFG"}, column, str(path)
    )
    intensity = _mean_intensity((mtz.column_with_label(x).array for x in labels), amplitude)
    source = f"{path}:{'+'.join(labels)}"
    return _merged(mtz.make_miller_array(), intensity, mtz.cell, mtz.spacegroup, source)


def _from_cif(path: Path, column: str | None, d_min: float | None) -> Reference:
    blocks = [b for b in gemmi.as_refln_blocks(gemmi.cif.read(str(path))) if b.default_loop]
    if not blocks:
        raise InputError(f"{path}: neither coordinates nor reflections in this file")
    block = blocks[0]
    stems = {x: MATE.sub("", x) for x in block.column_labels()}
    usable = {
        x: stem in CIF_AMPLITUDES
        for x, stem in stems.items()
        if stem in CIF_INTENSITIES + CIF_AMPLITUDES
    }
    labels, amplitude = _find_column(usable, column, str(path))
    intensity = _mean_intensity((block.make_float_array(x) for x in labels), amplitude)
    source = f"{path}:{'+'.join(labels)}"
    return _merged(block.make_miller_array(), intensity, block.cell, block.spacegroup, source)


def _from_coordinates(path: Path, column: str | None, d_min: float | None) -> Reference:
    """|F_calc + solvent|² of the first model, by FFT of its electron density."""
    structure = gemmi.read_structure(str(path))
    cell, group = structure.cell, structure.find_spacegroup()
    if not len(structure) or not cell.is_crystal() or group is None:
        raise InputError(f"{path}: coordinates need atoms, a unit cell and a space group")
    d_min = d_min or 1.8
    density = gemmi.DensityCalculatorX()
    density.d_min = d_min
    density.grid.setup_from(structure)
    density.set_refmac_compatible_blur(structure[0])
    density.put_model_density_on_grid(structure[0])
    f_atoms = gemmi.transform_map_to_f_phi(density.grid, half_l=True).prepare_asu_data(
        dmin=d_min, unblur=density.blur
    )
    mask = gemmi.FloatGrid()
    mask.setup_from(structure, spacing=min(0.6, d_min / 3))
    gemmi.SolventMasker(gemmi.AtomicRadiiSet.Cctbx).put_mask_on_float_grid(mask, structure[0])
    f_mask = gemmi.transform_map_to_f_phi(mask, half_l=True).prepare_asu_data(dmin=d_min)
    scaling = gemmi.Scaling(cell, group)
    scaling.use_solvent, scaling.k_sol, scaling.b_sol = True, K_SOL, B_SOL
    scaling.scale_data(f_atoms, f_mask)
    intensity = np.abs(np.asarray(f_atoms.value_array)) ** 2
    return _merged(f_atoms.miller_array, intensity, cell, group, f"{path}:F_calc")
