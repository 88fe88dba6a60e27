"""Read integrated stills from an unmerged MTZ file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import gemmi
import numpy as np

from ..geometry.miller import unique_hkl
from ..geometry.symmetry import asu_map, original_index
from ..util.errors import InputError
from .gemmi_files import is_cell, mtz_column, mtz_indices, read_mtz, whole_indices
from .unmerged import Unmerged, usable_observations

SIGMA_LABELS = ("SIGI", "SigI", "sigI", "SIGMA_I")
EXCITATION_LABELS = ("EPSILON_R", "ewald_offset", "EWALD_OFFSET")
X_LABELS = ("XDET", "xobs", "XOBS")
Y_LABELS = ("YDET", "yobs", "YOBS")


@dataclass(frozen=True)
class Columns:
    """Labels of columns in a file that does not have the usual ones."""

    intensity: str | None = None
    sigma: str | None = None
    batch: str | None = None


def read_unmerged(
    path: str | Path,
    space_group: gemmi.SpaceGroup | None = None,
    cell: gemmi.UnitCell | None = None,
    labels: Columns | None = None,
) -> Unmerged:
    """Read integrated stills: columns I, SIGI, BATCH, and if present M/ISYM, an Ewald offset
    (Å⁻¹) and detector positions.

    With M/ISYM the original indices are restored; without it the indices are taken unchanged.
    :func:`~bayes_refine.io.unmerged.usable_observations` says which rows are usable.

        data = read_unmerged("fitted/unmerged.mtz")
        len(data), data.left_out

    Args:
        space_group: replaces that of the file.
        cell: replaces that of the file.
        labels: of the columns for I, SIGI and BATCH, if they are not called so.

    Raises:
        InputError: the file is missing, no MTZ or merged; it lacks a cell, a space group or a
            column; or it has no usable row.
    """
    said = labels or Columns()
    mtz = read_mtz(path)
    group, cell = space_group or mtz.spacegroup, cell or mtz.cell
    if group is None:
        raise InputError(f"{path}: the file has no space group; give it with --space-group")
    if not is_cell(cell):
        raise InputError(f"{path}: the file has no unit cell; give it with --cell")
    _refuse_merged(mtz, path, group, said)
    there = mtz.column_labels()

    def column(chosen: str | None, names: Sequence[str], option: str = "") -> np.ndarray | None:
        name = chosen or next((name for name in names if name in there), None)
        if name is None and not option:
            return None
        if name not in there:
            raise InputError(
                f"{path}: no column {name or names[0]}; it has {', '.join(there)}: "
                f"name one with {option}"
            )
        return mtz_column(mtz, name)

    sigma_labels = (f"SIG{said.intensity}",) if said.intensity else ()
    columns = {
        "J": column(said.intensity, ("I",), "--intensity-column"),
        "sigma": column(said.sigma, (*sigma_labels, *SIGMA_LABELS), "--sigma-column"),
        "batch": column(said.batch, ("BATCH",), "--batch-column"),
        "excitation_error": column(None, EXCITATION_LABELS),
    }
    x, y = column(None, X_LABELS), column(None, Y_LABELS)
    isym = column(None, ("M/ISYM", "M_ISYM"))
    hkl = mtz_indices(mtz)
    if isym is not None and mtz.spacegroup is not None:
        hkl = _as_observed(hkl, isym, mtz.spacegroup, path)
    columns |= {"hkl": hkl, "xy_px": None if x is None or y is None else np.stack([x, y], axis=1)}
    numbers = np.array([b.number for b in mtz.batches], int)
    return usable_observations(columns, cell, group, str(path), _wavelength(mtz), numbers)


def _refuse_merged(
    mtz: gemmi.Mtz, path: str | Path, group: gemmi.SpaceGroup, said: Columns
) -> None:
    """Refuse a merged file: one without batches that has each reflection once."""
    labels = mtz.column_labels()
    if said.batch or "BATCH" in labels or mtz.batches:
        return
    hkl, good = whole_indices(mtz_indices(mtz))
    n, unique = int(good.sum()), len(unique_hkl(asu_map(hkl[good], group, True)[0])[0])
    if n == unique:
        raise InputError(
            f"{path}: this is a merged MTZ (each of {n} reflections once, no BATCH; its columns "
            f"are {', '.join(labels[3:])}); merge takes integrated observations, a row each; a "
            "merged file can be its --reference"
        )


def _as_observed(
    hkl: np.ndarray, isym: np.ndarray, group: gemmi.SpaceGroup, path: str | Path
) -> np.ndarray:
    """(n, 3) float indices as observed, from the reduced ones; NaN if M/ISYM is no operation."""
    whole, good = whole_indices(hkl)
    known = np.isfinite(isym) & (np.abs(isym) < 2.0**24)
    code = np.where(known, isym, 0).astype(np.int64) & 0xFF  # M/ISYM = 256·M + ISYM
    known &= (code >= 1) & (code <= 2 * len(group.operations().sym_ops))
    if 2 * known.sum() < len(known):
        raise InputError(f"{path}: M/ISYM names a symmetry operation that there is not")
    restored = original_index(whole, np.where(known, code, 1), group).astype(float)
    restored[~(known & good)] = np.nan
    return restored


def _wavelength(mtz: gemmi.Mtz) -> float:
    for found in ([b.wavelength for b in mtz.batches], [s.wavelength for s in mtz.datasets]):
        usable = [x for x in found if 0.05 < x < 20]  # Å; NaN and nonsense are no wavelength
        if usable:
            return float(np.mean(usable))
    return 0.0
