"""Read reference intensities from an MTZ, a structure-factor mmCIF or coordinates."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import gemmi
import numpy as np

from ..geometry.miller import resolution, unique_hkl
from ..geometry.symmetry import absent, asu_map
from ..physics.reference import Reference
from ..util.errors import InputError
from .boundary import refusing
from .gemmi_files import beginning, is_cell, whole_indices
from .reference_columns import Read, from_cif, from_mtz
from .reference_coordinates import structure_factors
from .unmerged import SPAN

MIN_D = 0.2  # Å; no reference goes beyond, so an index beyond is damaged


@dataclass(frozen=True)
class Given:
    """Cell and space group that a user gave, for a file without them.

    Attributes:
        cell: Å and degrees, or None. space_group: or None.
    """

    cell: gemmi.UnitCell | None = None
    space_group: gemmi.SpaceGroup | None = None


def read_reference(
    path: str | Path,
    column: str | None = None,
    d_min: float | None = None,
    given: Given | None = None,
) -> Reference:
    """Read reference intensities from an MTZ, a structure-factor mmCIF or coordinates.

        reference = read_reference("model.pdb", d_min=2.0)
        print(reference.describe())

    The content of the file tells its format.  Intensities are preferred to amplitudes, which are
    squared; Friedel mates and duplicates are averaged.  Non-finite values, F000, systematic
    absences, amplitudes that are not positive and rows whose CIF status is not observed are dropped
    and counted in ``Reference.remarks``.  From coordinates the intensity is |F_calc|² with a flat
    bulk solvent (k_sol 0.35 e/Å³, B_sol 46 Å²); NCS copies that the file does not contain are
    generated first.

    Args:
        path: MTZ, mmCIF or PDB file, also gzipped.
        column: label of the column, or the stem of a pair of mates (``F`` of F(+), F(-)).
        d_min: Å; by default all reflections of the file, and 1.8 Å for coordinates.
        given: cell and space group for a file without them.

    Raises:
        InputError: the file is missing, unreadable or unmerged; it has no such column, no cell, or
            no usable reflection.
    """
    path, given = Path(path), given or Given()
    read = _read(path, column, d_min, given)
    reference = _merged(read, given)
    keep = reference.d >= max(d_min or 0.0, MIN_D) * (1 - 1e-6)
    if not keep.any():
        raise InputError(f"{reference.source}: no usable reflection")
    return replace(reference, hkl=reference.hkl[keep], intensity=reference.intensity[keep])


def _read(path: Path, column: str | None, d_min: float | None, given: Given) -> Read:
    start = beginning(path)
    if start.startswith(b"MTZ "):
        return from_mtz(path, column)
    text = start.decode("utf-8-sig", errors="replace")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    with refusing(path, "a reference"):
        structure = None
        if lines and lines[0].lstrip().lower().startswith("data_"):
            document = gemmi.cif.read(str(path))
            if not any(block.find_values("_atom_site.Cartn_x") for block in document):
                return from_cif(path, document, column)
            structure = _model(document)
        elif "\0" not in text:
            structure = gemmi.read_structure(str(path), format=gemmi.CoorFormat.Pdb)
            header = any(line.startswith(("CRYST1", "HEADER", "ATOM  ")) for line in lines)
            if not header and not (len(structure) and structure[0].count_atom_sites()):
                structure = None
        if structure is not None:
            return structure_factors(path, structure, d_min, given.cell, given.space_group)
    raise InputError(f"{path}: a reference is an MTZ, mmCIF or PDB file, and this is none of them")


def _model(document: gemmi.cif.Document) -> gemmi.Structure:
    """The structure in the first block that has atoms."""
    block = next(b for b in document if b.find_values("_atom_site.Cartn_x"))
    return gemmi.make_structure_from_block(block)


def _merged(read: Read, given: Given) -> Reference:
    """The reference in the asymmetric unit; duplicates are averaged, invalid rows are dropped."""
    remarks = list(read.remarks)
    cell, group = read.cell, read.space_group
    if not is_cell(cell) and given.cell is not None:
        cell = given.cell
        remarks.append("cell as given")
    if group is None and given.space_group is not None:
        group = given.space_group
        remarks.append(f"space group {group.hm} as given")
    if not is_cell(cell):
        raise InputError(f"{read.source}: the file has no unit cell; give it with --cell")
    if group is None:
        raise InputError(
            f"{read.source}: the file has no space group that is known; give --space-group"
        )
    hkl, good = whole_indices(read.hkl)
    intensity = np.asarray(read.intensity, float)
    finite = np.isfinite(intensity)
    good &= finite & ~absent(hkl, group)
    good[good] &= resolution(hkl[good], cell) >= MIN_D
    if good.any():
        size = np.abs(intensity[good & (intensity != 0)])
        level = float(np.median(size)) if len(size) else 0.0
        beyond = good & (np.abs(intensity) > SPAN * level)
        if beyond.any():
            remarks.append(f"{beyond.sum()} left out that exceed the median {SPAN:.1e} times")
            good &= ~beyond
    asu = asu_map(hkl[good], group)[0]
    first, code = unique_hkl(asu)
    mean = np.bincount(code, intensity[good]) / np.maximum(np.bincount(code), 1)
    return Reference(asu[first], mean, cell, group, read.source, tuple(remarks))
