"""Open files through gemmi, after checks that the sizes they state are true."""

from __future__ import annotations

import gzip
import re
import zlib
from pathlib import Path

import gemmi
import numpy as np

from ..util.errors import InputError
from .boundary import refusing

MAX_BYTES = 2 << 30  # of one unpacked file: ten times the largest in the PDB


def beginning(path: str | Path, n_bytes: int = 1 << 16) -> bytes:
    """The first ``n_bytes`` of a file, unpacked if the file is gzipped.

    Raises:
        InputError: the file is absent, empty or damaged, or it unpacks to more than 2 GiB.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file")
    if not path.is_file():
        raise InputError(f"{path}: not a file")
    with refusing(path, "a file of reflections or coordinates"):
        with path.open("rb") as file:
            start = file.read(n_bytes)
        size = path.stat().st_size
        if start[:2] == b"\x1f\x8b":
            start, size = b"", 0
            try:
                with gzip.open(path) as unpacked:
                    while part := unpacked.read(1 << 20):
                        start, size = start or part[:n_bytes], size + len(part)
                        if size > MAX_BYTES:
                            break
            except (EOFError, zlib.error, OSError) as error:
                raise InputError(f"{path}: damaged gzip file: {error}") from None
    if size > MAX_BYTES:
        raise InputError(f"{path}: unpacks to more than {MAX_BYTES >> 30} GiB, and was not read")
    if not start:
        raise InputError(f"{path}: the file is empty")
    return start


def read_mtz(path: str | Path) -> gemmi.Mtz:
    """Read an MTZ file with at least one reflection.

    Raises:
        InputError: the file is no MTZ file, is truncated, or has no reflections.
    """
    if beginning(path)[:4] != b"MTZ ":
        raise InputError(f"{path}: not an MTZ file")
    with refusing(Path(path), "an MTZ file"):
        header = gemmi.read_mtz_file(str(path), with_data=False)
        n, width = header.nreflections, len(header.columns)
        if n <= 0:
            raise InputError(f"{path}: no reflections in this file")
        if 4 * n * width > MAX_BYTES or (
            Path(path).suffix != ".gz" and 4 * n * width > Path(path).stat().st_size
        ):
            raise InputError(
                f"{path}: damaged MTZ file: its header promises {n} rows of {width} columns, "
                "which the file does not hold"
            )
        mtz = gemmi.read_mtz_file(str(path))
        for column in mtz.columns:
            f"{column.label}{column.type}".encode()  # fails for a name that is not valid text
        return mtz


def mtz_column(mtz: gemmi.Mtz, label: str) -> np.ndarray:
    """(n,) float64 of a column; NumPy's warnings of casting damaged NaN are silenced."""
    with np.errstate(invalid="ignore"):
        return np.array(mtz.column_with_label(label).array, float)


def mtz_indices(mtz: gemmi.Mtz) -> np.ndarray:
    """(n, 3) float64 H, K, L as in the file; in a damaged file they may not be whole numbers."""
    with np.errstate(invalid="ignore"):
        return np.array(mtz.array[:, :3], float)


def whole_indices(hkl: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n, 3) int32 indices, and whether each row is the index of a reflection, (n,) bool.

    A valid index has whole numbers below 10⁵ and is not 0 0 0; an invalid one becomes 0 0 0.
    """
    hkl = np.asarray(hkl).reshape(-1, 3)
    if np.issubdtype(hkl.dtype, np.integer):  # no copy as floats of what may be long
        good = np.all((hkl < 1e5) & (hkl > -1e5), axis=1) & np.any(hkl, axis=1)
        return np.where(good[:, None], hkl, 0).astype(np.int32), good
    hkl = hkl.astype(float)
    good = (np.abs(hkl) < 1e5).all(axis=1) & hkl.any(axis=1)
    good &= (hkl == np.rint(np.where(good[:, None], hkl, 0.0))).all(axis=1)
    return np.where(good[:, None], hkl, 0).astype(np.int32), good


def space_group_of(name: str) -> gemmi.SpaceGroup:
    """The space group with a name ("P 43 21 2", "P43212") or a number ("96").

    Raises:
        InputError: there is no such space group.
    """
    name = name.strip()
    found = None
    if name.isascii():
        number = int(name) if name.isdigit() and len(name) < 4 else 0
        found = (
            gemmi.find_spacegroup_by_number(number)
            if 1 <= number <= 230
            else gemmi.find_spacegroup_by_name(name)
            or gemmi.find_spacegroup_by_name(f"P{name}")  # a point group
            if name and not name.isdigit()
            else None
        )
    if found is None:
        raise InputError(f"--space-group {name}: no such space group; write P43212 or 96")
    return found


def cell_of(text: str) -> gemmi.UnitCell:
    """The unit cell of six numbers, Å and degrees, separated by commas or blanks.

    Raises:
        InputError: the text is not six numbers, or they are not edges and angles of a cell.
    """
    parts = [part for part in re.split(r"[,\s]+", text.strip()) if part]
    try:
        numbers = [float(part) for part in parts]
    except ValueError:
        numbers = []
    if len(numbers) != 6:
        raise InputError(f"--cell {text}: write six numbers, such as 79,79,38,90,90,90")
    possible = all(1 <= x <= 1e5 for x in numbers) and max(numbers[3:]) < 179
    if not possible or not is_cell(cell := gemmi.UnitCell(*numbers)):
        raise InputError(f"--cell {text}: these are not the edges (Å) and angles (°) of a cell")
    return cell


def is_cell(cell: gemmi.UnitCell) -> bool:
    """Whether a cell is possible: edges of 1 to 10⁵ Å and angles of 1 to 179° that span a volume.

    1 1 1 90 90 90 is gemmi's value for an unknown cell, and so is not possible.
    """
    numbers = np.array(cell.parameters)
    good = np.isfinite(numbers).all() and ((numbers >= 1) & (numbers <= 1e5)).all()
    return bool(
        good
        and (numbers[3:] < 179).all()
        and (numbers[:3] > 1).any()
        and cell.is_crystal()
        and np.isfinite(cell.volume)
        and cell.volume > 1
    )
