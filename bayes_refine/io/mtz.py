"""MTZ files: unmerged observations, one batch an image, and merged intensities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import gemmi
import numpy as np
from numpy.typing import ArrayLike

from ..geometry.experiments import Still
from ..geometry.symmetry import asu_map, original_index
from ..util.errors import InputError

# Columns of unmerged.mtz and their MTZ types (SPEC section 7).
UNMERGED_TYPES = {
    "BATCH": "B",
    "I": "J",
    "SIGI": "Q",
    "PARTIALITY": "R",
    "EPSILON_R": "R",
    "SCALE": "R",
    "IMODEL": "J",
    "XDET": "R",
    "YDET": "R",
    "PANEL": "I",
    "FREE": "I",
}
SIGMA_LABELS = ("SIGI", "SigI", "sigI", "SIGMA_I")
EXCITATION_LABELS = ("EPSILON_R", "ewald_offset", "EWALD_OFFSET")
X_LABELS = ("XDET", "xobs", "XOBS")
Y_LABELS = ("YDET", "yobs", "YOBS")


@dataclass(frozen=True)
class Unmerged:
    """Integrated observations of a run, flat over images (n in all).

    Attributes:
        hkl: (n, 3) int32 indices as observed, not reduced.
        hkl_asu, isym: (n, 3), (n,) int32, as ``symmetry.asu_map`` gives them.
        intensity, sigma: (n,) float64, on the file's scale.
        batch: (n,) int batch numbers of the file.
        image: (n,) int index of the image, 0..n_images − 1, in the order of batch numbers.
        excitation_error: (n,) Å⁻¹, or None where the file has no such column.
        xy_px: (n, 2) detector position as the file has it, or None.
        cell: Å and degrees. space_group: of the file. source: the file.
        wavelength: Å, the mean over batches or data sets that have one; 0 if none has.
    """

    hkl: np.ndarray
    hkl_asu: np.ndarray
    isym: np.ndarray
    intensity: np.ndarray
    sigma: np.ndarray
    batch: np.ndarray
    image: np.ndarray
    excitation_error: np.ndarray | None
    xy_px: np.ndarray | None
    cell: gemmi.UnitCell
    space_group: gemmi.SpaceGroup
    source: str
    wavelength: float = 0.0

    def __len__(self) -> int:
        return len(self.hkl)


def read_unmerged(path: str | Path) -> Unmerged:
    """Already integrated stills: columns I, SIGI, BATCH, and where present M/ISYM, an Ewald
    offset (Å⁻¹) and detector positions.

    With M/ISYM the original indices are restored; without it they are taken as they stand.
    Rows without a finite intensity and a positive, finite sigma are no observations and are
    left out; none is left out for being weak.

    Raises:
        InputError: missing, not an MTZ, no cell or space group, columns missing, no reflections.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        if gemmi.read_mtz_file(str(path), with_data=False).nreflections == 0:
            raise InputError(f"{path}: no reflections in this file")
        mtz = gemmi.read_mtz_file(str(path))
    except InputError:
        raise
    except (RuntimeError, ValueError, OSError) as error:
        raise InputError(f"{path}: not an MTZ file: {error}") from None
    if mtz.spacegroup is None or not mtz.cell.is_crystal():
        raise InputError(f"{path}: the file has no unit cell or no space group")
    labels = mtz.column_labels()

    def column(names: Sequence[str], required: bool) -> np.ndarray | None:
        name = next((name for name in names if name in labels), None)
        if name is None and required:
            raise InputError(f"{path}: no column {names[0]}; it has {', '.join(labels)}")
        return None if name is None else np.array(mtz.column_with_label(name), dtype=float)

    intensity, sigma, batch = (
        column(names, required=True) for names in (("I",), SIGMA_LABELS, ("BATCH",))
    )
    excitation, x, y, isym = (
        column(names, required=False)
        for names in (EXCITATION_LABELS, X_LABELS, Y_LABELS, ("M/ISYM",))
    )
    assert intensity is not None and sigma is not None and batch is not None
    keep = np.isfinite(intensity) & np.isfinite(sigma) & (sigma > 0) & np.isfinite(batch)
    if not keep.any():
        raise InputError(f"{path}: no reflection with an intensity and a positive sigma")
    hkl = mtz.make_miller_array()[keep]
    if isym is not None:
        code = isym[keep].astype(np.int32) & 0xFF  # M/ISYM = 256·M + ISYM
        if code.min() < 1 or code.max() > 2 * len(mtz.spacegroup.operations().sym_ops):
            raise InputError(f"{path}: M/ISYM names a symmetry operation that there is not")
        hkl = original_index(hkl, code, mtz.spacegroup)
    hkl_asu, isym_out = asu_map(hkl, mtz.spacegroup)
    batch = batch[keep].astype(int)
    return Unmerged(
        hkl=hkl,
        hkl_asu=hkl_asu,
        isym=isym_out,
        intensity=intensity[keep],
        sigma=sigma[keep],
        batch=batch,
        image=np.unique(batch, return_inverse=True)[1],
        excitation_error=None if excitation is None else excitation[keep],
        xy_px=None if x is None or y is None else np.stack([x, y], axis=1)[keep],
        cell=mtz.cell,
        space_group=mtz.spacegroup,
        source=str(path),
        wavelength=_wavelength(mtz),
    )


def _wavelength(mtz: gemmi.Mtz) -> float:
    for found in ([b.wavelength for b in mtz.batches], [s.wavelength for s in mtz.datasets]):
        if any(x > 0 for x in found):
            return float(np.mean([x for x in found if x > 0]))
    return 0.0


def write_unmerged(
    path: str | Path,
    hkl: np.ndarray,
    columns: Mapping[str, np.ndarray],
    cell: gemmi.UnitCell,
    space_group: gemmi.SpaceGroup,
    stills: Sequence[Still],
) -> None:
    """Observations in the asymmetric unit with M/ISYM, sorted by H K L M/ISYM BATCH.

    Every still gets a batch header (number from 1, cell, wavelength, U column by column and
    the direction to the source in the lab frame of the experiments), with reflections or not.

    Args:
        hkl: (n, 3) integers as observed.
        columns: (n,) arrays by label, of ``UNMERGED_TYPES``; BATCH (still index + 1), I and
            SIGI must be there.  EPSILON_R in Å⁻¹, XDET and YDET in px, FREE 1 in the free set.
        cell: mean cell of the run, Å and degrees.
        stills: of the run, with crystals as refined.

    Raises:
        ValueError: an unknown, missing or misshaped column, or a batch that is no still.
        InputError: no reflection, or the file cannot be written.
    """
    missing = {"BATCH", "I", "SIGI"} - set(columns)
    unknown = set(columns) - set(UNMERGED_TYPES)
    if missing or unknown:
        raise ValueError(f"columns missing: {sorted(missing)}; unknown: {sorted(unknown)}")
    batch = np.asarray(columns["BATCH"])
    if len(batch) and not 1 <= batch.min() <= batch.max() <= len(stills):
        raise ValueError(f"BATCH must be 1..{len(stills)}, one for each still")
    asu, isym = asu_map(hkl, space_group)
    wavelength = float(np.mean([still.beam.wavelength for still in stills])) if stills else 0.0
    mtz = _new_mtz(cell, space_group, wavelength)
    for k, still in enumerate(stills):
        mtz.batches.append(_batch_header(k + 1, still))
    typed = {"M/ISYM": ("Y", isym)} | {
        label: (kind, columns[label]) for label, kind in UNMERGED_TYPES.items() if label in columns
    }
    order = np.lexsort((batch, isym, *asu.T[::-1]))
    mtz.sort_order = [1, 2, 3, 4, 5]
    _write(mtz, path, asu, typed, order)


def write_merged(
    path: str | Path,
    hkl_asu: np.ndarray,
    columns: Mapping[str, tuple[str, ArrayLike]],
    cell: gemmi.UnitCell,
    space_group: gemmi.SpaceGroup,
    wavelength: float,
) -> None:
    """One row a reflection, sorted by H K L; NaN is the MTZ missing number.

    Args:
        hkl_asu: (n, 3) integers in the asymmetric unit, each once.
        columns: MTZ type (``J``, ``Q``, ``F``, ``I``, ``K``, ``M``...) and (n,) values, by label.
        cell: Å and degrees. wavelength: Å.

    Raises:
        ValueError: a misshaped column.
        InputError: no reflection, or the file cannot be written.
    """
    mtz = _new_mtz(cell, space_group, wavelength)
    mtz.sort_order = [1, 2, 3, 0, 0]
    hkl_asu = np.asarray(hkl_asu)
    _write(mtz, path, hkl_asu, columns, np.lexsort(hkl_asu.T[::-1]))


def _new_mtz(cell: gemmi.UnitCell, space_group: gemmi.SpaceGroup, wavelength: float) -> gemmi.Mtz:
    mtz = gemmi.Mtz(with_base=True)
    mtz.title = "bayes_refine"
    mtz.spacegroup = space_group
    mtz.add_dataset("bayes_refine")
    mtz.set_cell_for_all(cell)
    for dataset in mtz.datasets:  # HKL_base too: some programs read the first
        dataset.wavelength = wavelength
    return mtz


def _batch_header(number: int, still: Still) -> gemmi.Mtz.Batch:
    """CCP4's batch orientation block, zero-based: U at 6–14, source at 80–85."""
    batch = gemmi.Mtz.Batch()
    batch.number, batch.title, batch.dataset_id = number, still.identifier[:70], 1
    batch.cell, batch.wavelength = still.crystal.cell, still.beam.wavelength
    batch.ints[12] = batch.ints[19] = 1  # one crystal, one detector
    batch.ints[14] = 2  # a two-dimensional detector (LDTYPE)
    towards_source = -still.beam.s0_direction
    for start, values in (
        (6, still.crystal.U.T.ravel()),
        (80, towards_source),
        (83, towards_source),
        (43, [1.0]),  # batch scale
    ):
        for j, value in enumerate(values):
            batch.floats[start + j] = float(value)
    return batch


def _write(
    mtz: gemmi.Mtz,
    path: str | Path,
    hkl: np.ndarray,
    columns: Mapping[str, tuple[str, ArrayLike]],
    order: np.ndarray,
) -> None:
    if not len(hkl):  # gemmi would not read it back
        raise InputError(f"{path}: no reflection to write")
    for label, (kind, values) in columns.items():
        if np.shape(values) != (len(hkl),):
            raise ValueError(f"column {label} has shape {np.shape(values)}, not ({len(hkl)},)")
        mtz.add_column(label, kind, dataset_id=1)
    table = np.column_stack([hkl, *(values for _, values in columns.values())])
    mtz.set_data(np.ascontiguousarray(table[order], dtype=np.float32))
    try:
        mtz.write_to_file(str(path))
    except (RuntimeError, OSError) as error:
        raise InputError(f"{path}: cannot be written: {error}") from None
