"""Write MTZ files: unmerged observations, with a batch for each image, and merged intensities."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import gemmi
import numpy as np
from numpy.typing import ArrayLike

from ..geometry.experiments import Still
from ..geometry.symmetry import asu_map
from ..util.errors import InputError
from ..util.text import ascii_title

START = 80  # bytes before the rows
# Columns of unmerged.mtz and their MTZ types.
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
    "SCALEUSED": "R",
    "FREE": "I",
}


def write_unmerged(
    path: str | Path,
    hkl: np.ndarray,
    columns: Mapping[str, np.ndarray],
    cell: gemmi.UnitCell,
    space_group: gemmi.SpaceGroup,
    stills: Sequence[Still],
) -> None:
    """Write observations in the asymmetric unit with M/ISYM, sorted by H K L M/ISYM BATCH.

    Every still gets a batch header (number from 1, cell, wavelength, U column by column, and the
    direction to the source in the lab frame of the experiments), even if it has no reflections.
    :func:`write_observations` writes observations without stills.

    Args:
        hkl: (n, 3) integers as observed.
        columns: (n,) arrays by label, of ``UNMERGED_TYPES``; BATCH (still index + 1), I and
            SIGI are required.  EPSILON_R is in Å⁻¹, XDET and YDET in mm in the lab frame; FREE is
            1 in the free set; SCALEUSED is the factor that raw intensities were multiplied by.
        cell: mean cell of the run, Å and degrees.
        stills: of the run, with refined crystals.

    Raises:
        ValueError: a column is unknown, missing or misshaped, or a batch is no still.
        InputError: there is no reflection, or the file cannot be written.
    """
    write_observations(path, [(hkl, columns)], len(hkl), cell, space_group, batches_of(stills))


def write_observations(
    path: str | Path,
    blocks: Iterable[tuple[np.ndarray, Mapping[str, np.ndarray]]],
    n: int,
    cell: gemmi.UnitCell,
    space_group: gemmi.SpaceGroup,
    batches: Iterable[gemmi.Mtz.Batch],
) -> None:
    """As :func:`write_unmerged`, of batch headers, such as :func:`new_batch` makes, and of blocks.

    Only one block is in memory.

    Args:
        blocks: hkl (k, 3) and columns (k,), as of :func:`write_unmerged`; all observations of a
            reflection are in one block, and blocks follow each other in the order of H K L in the
            asymmetric unit.
        n: observations of all blocks.

    Raises:
        ValueError: a column is unknown, missing or misshaped, or a BATCH has no header.
        InputError: there is no reflection, or the file cannot be written.
    """
    mtz = _new_mtz(cell, space_group, 0.0)
    for header in batches:
        mtz.batches.append(header)
    numbers = np.array([header.number for header in mtz.batches])
    wavelengths = [header.wavelength for header in mtz.batches]
    _set_wavelength(mtz, float(np.mean(wavelengths)) if wavelengths else 0.0)
    mtz.sort_order = [1, 2, 3, 4, 5]

    def tables() -> Iterator[np.ndarray]:
        for hkl, columns in blocks:
            missing = {"BATCH", "I", "SIGI"} - set(columns)
            unknown = set(columns) - set(UNMERGED_TYPES)
            if missing or unknown:
                raise ValueError(f"columns missing: {sorted(missing)}; unknown: {sorted(unknown)}")
            batch = np.asarray(columns["BATCH"])
            if not np.isin(batch, numbers).all():
                raise ValueError(f"BATCH names an image that is none of the {len(numbers)} headers")
            asu, isym = asu_map(hkl, space_group)
            typed = {"M/ISYM": ("Y", isym)} | {
                label: (kind, columns[label])
                for label, kind in UNMERGED_TYPES.items()
                if label in columns
            }
            if len(mtz.columns) == 3:
                _add_columns(mtz, typed)
            yield _table(asu, typed, np.lexsort((batch, isym, *asu.T[::-1])))

    _write(mtz, path, tables(), n)


def write_merged(
    path: str | Path,
    hkl_asu: np.ndarray,
    columns: Mapping[str, tuple[str, ArrayLike]],
    cell: gemmi.UnitCell,
    space_group: gemmi.SpaceGroup,
    wavelength: float,
) -> None:
    """Write a row for each reflection, sorted by H K L; NaN marks a missing number.

    Args:
        hkl_asu: (n, 3) integers in the asymmetric unit, each once.
        columns: MTZ type (``J``, ``Q``, ``F``, ``I``, ``K``, ``M``...) and (n,) values, by label.
        cell: Å and degrees. wavelength: Å.

    Raises:
        ValueError: a column is misshaped.
        InputError: there is no reflection, or the file cannot be written.
    """
    mtz = _new_mtz(cell, space_group, wavelength)
    mtz.sort_order = [1, 2, 3, 0, 0]
    hkl_asu = np.asarray(hkl_asu)
    _add_columns(mtz, columns)
    table = _table(hkl_asu, columns, np.lexsort(hkl_asu.T[::-1]))
    _write(mtz, path, [table], len(hkl_asu))


def _new_mtz(cell: gemmi.UnitCell, space_group: gemmi.SpaceGroup, wavelength: float) -> gemmi.Mtz:
    mtz = gemmi.Mtz(with_base=True)
    mtz.title = "bayes_refine"
    mtz.spacegroup = space_group
    mtz.add_dataset("bayes_refine")
    mtz.set_cell_for_all(cell)
    _set_wavelength(mtz, wavelength)
    return mtz


def _set_wavelength(mtz: gemmi.Mtz, wavelength: float) -> None:
    for dataset in mtz.datasets:  # HKL_base too: some programs read the first data set
        dataset.wavelength = wavelength


def new_batch(number: int, title: str, cell: gemmi.UnitCell, wavelength: float) -> gemmi.Mtz.Batch:
    """The batch header of an image without known geometry (wavelength in Å, 0 if unknown)."""
    batch = gemmi.Mtz.Batch()
    batch.number, batch.title, batch.dataset_id = number, ascii_title(title), 1
    batch.cell, batch.wavelength = cell, wavelength
    batch.ints[12] = batch.ints[19] = 1  # one crystal, one detector
    batch.ints[14] = 2  # a two-dimensional detector (LDTYPE)
    batch.floats[43] = 1.0  # batch scale
    return batch


def batches_of(stills: Iterable[Still]) -> Iterator[gemmi.Mtz.Batch]:
    """The batch headers of stills, with numbers from 1."""
    return (_batch_of_still(k, still) for k, still in enumerate(stills, 1))


def _batch_of_still(number: int, still: Still) -> gemmi.Mtz.Batch:
    """The batch header of a still; CCP4's orientation block has U at 6–14, the source at 80–85."""
    batch = new_batch(number, still.identifier, still.crystal.cell, still.beam.wavelength)
    towards_source = -still.beam.s0_direction
    for start, values in (
        (6, still.crystal.U.T.ravel()),
        (80, towards_source),
        (83, towards_source),
    ):
        for j, value in enumerate(values):
            batch.floats[start + j] = float(value)
    return batch


def _add_columns(mtz: gemmi.Mtz, columns: Mapping[str, tuple[str, ArrayLike]]) -> None:
    """Give an MTZ columns after H K L."""
    for label, (kind, _) in columns.items():
        mtz.add_column(label, kind, dataset_id=1)


def _table(
    hkl: np.ndarray, columns: Mapping[str, tuple[str, ArrayLike]], order: np.ndarray
) -> np.ndarray:
    """(k, 3 + columns) float32 rows in an order (k,)."""
    table = np.empty((len(hkl), 3 + len(columns)), np.float32)
    table[:, :3] = hkl[order]
    for k, (label, (_, values)) in enumerate(columns.items(), 3):
        if np.shape(values) != (len(hkl),):
            raise ValueError(f"column {label} has shape {np.shape(values)}, not ({len(hkl)},)")
        table[:, k] = np.asarray(values)[order]
    return table


def save_mtz(mtz: gemmi.Mtz, path: str | Path, table: ArrayLike) -> None:
    """Write an MTZ with the rows ``table`` (n, columns).

    Raises:
        InputError: the file cannot be written completely.
    """
    table = np.ascontiguousarray(table, dtype=np.float32)
    _write(mtz, path, [table], len(table))


def _write(mtz: gemmi.Mtz, path: str | Path, tables: Iterable[np.ndarray], n: int) -> None:
    """Write an MTZ with the rows of some tables (k, columns), n in all, a table at a time.

    The text after the rows is what gemmi writes of those few rows that have the extremes of each
    column and of the resolution, but for the number of rows.
    """
    if not n:  # gemmi does not read an MTZ without reflections
        raise InputError(f"{path}: no reflection to write")
    path = Path(path)
    part, rows = path.with_suffix(f".{os.getpid()}.part"), 0
    few: list[np.ndarray] = []
    try:
        with part.open("wb") as file:
            file.write(bytes(START))
            for table in tables:
                file.write(table.data)
                rows += len(table)
                few = [_extremes(np.concatenate([*few, table]), mtz.cell)]
            if rows != n:
                raise ValueError(f"{rows} observations were given, not {n}")
            start, text = _around(mtz, few[0], n)
            file.write(text)
            file.seek(0)
            file.write(start)
        os.replace(part, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from None
    finally:
        part.unlink(missing_ok=True)


def _around(mtz: gemmi.Mtz, few: np.ndarray, n: int) -> tuple[bytes, bytes]:
    """What stands before and after the rows of a file: gemmi's of a few rows, with n for these."""
    mtz.set_data(few)
    content, width = mtz.write_to_bytes(), len(mtz.columns)
    start, text = bytearray(content[:START]), content[START + few.nbytes :]
    place = START // 4 + 1 + width * n  # of the text, in words
    far = place > np.iinfo(np.int32).max
    struct.pack_into("=i", start, 4, -1 if far else place)
    struct.pack_into("=q", start, 12, place if far else 0)
    of_few, of_all = (b"NCOL %8d %12d %8d" % (width, k, len(mtz.batches)) for k in (len(few), n))
    return bytes(start), text.replace(of_few, of_all, 1)


def _extremes(table: np.ndarray, cell: gemmi.UnitCell) -> np.ndarray:
    """The rows of a table that have the least and the greatest of a column or of d."""
    d = cell.calculate_d_array(table[:, :3].astype(np.int32))
    ends = (extreme.reduce(table, axis=0) for extreme in (np.fmin, np.fmax))  # no NaN
    rows = [(table == end).argmax(axis=0) for end in ends]
    return table[np.unique(np.r_[*rows, d.argmin(), d.argmax()])]
