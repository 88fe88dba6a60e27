"""Compute |F_calc|² from coordinates: atoms, their NCS copies, and a flat bulk solvent."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import gemmi
import numpy as np

from ..util.errors import InputError
from .boundary import refusing
from .gemmi_files import is_cell
from .reference_columns import Read

K_SOL, B_SOL = 0.35, 46.0  # flat bulk solvent, e/Å³ and Å²: the usual means over the PDB
D_MIN = 1.8  # Å, by default
MAX_B = 1000.0  # Å²; beyond, an atom scatters less than a tenth of itself at 10 Å
MAX_COORDINATE = 1e5  # Å, ten times the largest in a PDB file
MIN_VOLUME = 4.0  # Å³ of the cell for each non-hydrogen atom; diamond has 5.7
MAX_POINTS, MAX_ATOMS = 3e8, 5e6  # points of a grid, 4 bytes each; atoms with all NCS copies


def structure_factors(
    path: Path,
    structure: gemmi.Structure,
    d_min: float | None,
    cell: gemmi.UnitCell | None = None,
    space_group: gemmi.SpaceGroup | None = None,
) -> Read:
    """|F_atoms + F_solvent|² of the first model, by FFT of its electron density.

    F_solvent = k_sol·exp(−B_sol/4d²)·FT(mask), where the mask has cctbx's radii.  Atoms without a
    position, with B below 0 or above 1000 Å², or with a negative occupancy are left out and
    counted; occupancies above 1 count as 1.  NCS copies that the file does not contain are
    generated.

    Args:
        d_min: Å, 1.8 by default.
        cell, space_group: for a file without them.

    Raises:
        InputError: there are no atoms, no cell or no space group; the atoms do not fit into the
            cell; or the grid would have more than 3·10⁸ points.
    """
    remarks: list[str] = []
    group = structure.find_spacegroup()
    if not is_cell(structure.cell):
        if cell is None:
            raise InputError(
                f"{path}: coordinates without a unit cell, as of electron microscopy, are no "
                "reference of a crystal; give --cell if they lie in one"
            )
        structure.cell, remarks = cell, [*remarks, "cell as given"]
    if group is None:
        group = space_group
        if group is None:
            raise InputError(f"{path}: coordinates need a space group; give --space-group")
        remarks.append(f"space group {group.hm} as given")
    structure.spacegroup_hm = group.xhm()
    d_min = d_min or D_MIN
    points = structure.cell.volume * (3 / d_min) ** 3
    if points > MAX_POINTS:
        raise InputError(
            f"{path}: F_calc to {d_min:g} Å would take a grid of {points:.0e} points: give a "
            "larger --d-min"
        )
    if len(structure) > 1:
        remarks.append(f"the first of {len(structure)} models")
        for _ in range(len(structure) - 1):
            del structure[-1]
    remarks += _only_atoms(structure, path)
    remarks += _with_ncs_copies(structure, path)
    with refusing(path, "the coordinates of a crystal"):
        hkl, intensity, solvent = _f_calc(structure, group, d_min)
    remarks.append(f"{solvent:.0%} of the cell bulk solvent")
    return Read(hkl, intensity, structure.cell, group, f"{path}:F_calc", tuple(remarks))


def _only_atoms(structure: gemmi.Structure, path: Path) -> list[str]:
    """Delete atoms that cannot scatter; return remarks on what was deleted or is unusual."""
    if not len(structure) or not structure[0].count_atom_sites():
        raise InputError(f"{path}: no atoms in this file")
    left_out: Counter[str] = Counter()
    names: Counter[str] = Counter()
    heavy = scattering = 0.0
    flat = True
    for chain in structure[0]:
        for residue in chain:
            for i in reversed(range(len(residue))):
                atom = residue[i]
                if bad := _fault(atom):
                    left_out[bad] += 1
                    del residue[i]
                    continue
                if atom.occ > 1:
                    left_out["with an occupancy above 1, taken as 1"] += 1
                    atom.occ = 1.0
                if atom.aniso.nonzero() and not _is_displacement(atom.aniso):
                    atom.aniso = gemmi.SMat33f(0, 0, 0, 0, 0, 0)
                scattering += atom.occ
                heavy += atom.occ * (not atom.is_hydrogen())
                names[atom.name] += 1
                flat &= atom.b_iso == 0
    if not scattering > 0:
        why = ", ".join(f"{n} {reason}" for reason, n in left_out.items())
        raise InputError(f"{path}: no atom scatters: {why or 'all occupancies are zero'}")
    copies = max(sum(not op.given for op in structure.ncs) + 1, 1)
    n_operations = len(list(gemmi.SpaceGroup(structure.spacegroup_hm).operations()))
    volume = structure.cell.volume / max(heavy * n_operations * copies, 1e-9)
    if volume < MIN_VOLUME:
        raise InputError(
            f"{path}: the atoms do not fit into the cell, {volume:.2g} Å³ each: cell or space "
            "group are of something else"
        )
    said = [f"{n} atoms {reason}" for reason, n in left_out.items()]
    if set(names) <= {"CA", "P"}:
        said.append("a trace of Cα or P atoms only")
    if flat:
        said.append("all B are zero")
    return said


def _fault(atom: gemmi.Atom) -> str | None:
    position = np.array(atom.pos.tolist())
    if not (np.abs(position) < MAX_COORDINATE).all():
        return "without a position left out"
    if not 0 <= atom.b_iso <= MAX_B:
        return f"with B outside 0 to {MAX_B:g} Å² left out"
    if not atom.occ >= 0:
        return "with a negative occupancy left out"
    return None


def _is_displacement(u: gemmi.SMat33f) -> bool:
    """Whether an anisotropic U is positive definite and below B = 1000 Å²."""
    matrix = np.array(u.as_mat33().tolist())
    if not np.isfinite(matrix).all():
        return False
    eigenvalues = np.linalg.eigvalsh(matrix)
    return bool(eigenvalues[0] > 0 and 8 * np.pi**2 * eigenvalues[-1] < MAX_B)


def _with_ncs_copies(structure: gemmi.Structure, path: Path) -> list[str]:
    """Generate copies by NCS operators (MTRIX, _struct_ncs_oper) not yet applied in the file."""
    operators = [op for op in structure.ncs if not op.given]
    if not operators:
        return []
    if (1 + len(operators)) * structure[0].count_atom_sites() > MAX_ATOMS:
        raise InputError(f"{path}: {len(operators)} NCS copies are more than {MAX_ATOMS:.0e} atoms")
    for op in operators:
        rotation = np.array(op.tr.mat.tolist())
        shift = np.array(op.tr.vec.tolist())
        if (
            not np.allclose(rotation @ rotation.T, np.eye(3), atol=0.02)
            or not (np.abs(shift) < MAX_COORDINATE).all()
        ):
            raise InputError(f"{path}: NCS operator {op.id} is no rotation: mend or delete it")
    structure.expand_ncs(gemmi.HowToNameCopiedChain.Dup)
    return [f"{len(operators)} NCS copies made"]


def _f_calc(
    structure: gemmi.Structure, group: gemmi.SpaceGroup, d_min: float
) -> tuple[np.ndarray, np.ndarray, float]:
    """Indices, |F|², and the share of the cell that is solvent."""
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
    fraction = float(np.mean(mask.array))
    f_mask = gemmi.transform_map_to_f_phi(mask, half_l=True).prepare_asu_data(dmin=d_min)
    scaling = gemmi.Scaling(structure.cell, group)
    scaling.use_solvent, scaling.k_sol, scaling.b_sol = True, K_SOL, B_SOL
    scaling.scale_data(f_atoms, f_mask)
    return f_atoms.miller_array, np.abs(np.asarray(f_atoms.value_array)) ** 2, fraction
