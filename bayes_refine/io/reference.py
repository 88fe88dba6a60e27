"""Reference intensities from an MTZ, a structure-factor mmCIF or coordinates."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import gemmi
import numpy as np

from ..geometry.miller import unique_hkl
from ..geometry.symmetry import absent, asu_map, miller_array
from ..physics.reference import Reference
from ..util.errors import InputError

K_SOL, B_SOL = 0.35, 46.0  # flat bulk solvent, e/Å³ and Å²: the usual means over the PDB
MTZ_INTENSITIES = ("IREF", "IMEAN", "I", "I-obs", "IOBS")
MTZ_AMPLITUDES = ("F", "FMODEL", "F-model", "FC", "FCALC", "F-obs", "FOBS", "FP")
CIF_INTENSITIES = ("intensity_meas", "F_squared_meas", "pdbx_I", "F_squared_calc")
CIF_AMPLITUDES = ("F_meas_au", "F_meas", "pdbx_F", "F_calc_au", "F_calc")
MATE = re.compile(r"(\([+-]\)|_(plus|minus)|[+-])$", re.IGNORECASE)  # ends of F(+), F_MINUS...


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
    hkl, intensity = miller_array(hkl), np.asarray(intensity, float)
    keep = np.isfinite(intensity) & hkl.any(axis=1) & ~absent(hkl, space_group)
    asu = asu_map(hkl[keep], space_group)[0]
    first, code = unique_hkl(asu)
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
