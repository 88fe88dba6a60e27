"""Choose the columns of a reflection file that are a reference, by names and status flags."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import gemmi
import numpy as np

from ..util.errors import InputError
from .boundary import refusing
from .gemmi_files import mtz_column, mtz_indices, read_mtz

MTZ_INTENSITIES = ("IREF", "IMEAN", "I", "I-obs", "IOBS")
MTZ_AMPLITUDES = ("F", "FMODEL", "F-model", "FC", "FCALC", "F-obs", "FOBS", "FP")
CIF_INTENSITIES = ("intensity_meas", "F_squared_meas", "pdbx_I", "F_squared_calc")
CIF_AMPLITUDES = ("F_meas_au", "F_meas", "pdbx_F", "F_calc_au", "F_calc")
CUSTOMARY = (*MTZ_INTENSITIES, *CIF_INTENSITIES, *MTZ_AMPLITUDES, *CIF_AMPLITUDES)
MATE = re.compile(r"(\([+-]\)|_(plus|minus)|[+-])$", re.IGNORECASE)  # ends of F(+), F_MINUS...
# map coefficients such as 2mFo−DFc, and sigmas, are only taken when a user asks for them by name
NOT_BY_ITSELF = re.compile(
    r"FWT|FOFC|MFO|DELF|FDM|^FEM|^ANOM|^PANOM|^FAN|^SIG|SIGMA|^F?DANO|^FDIFF", re.IGNORECASE
)
# _refln.status of the mmCIF dictionary: o observed, f observed and of the free set, < below the
# threshold of observation but measured; x unreliable, - absent, h and l beyond the limits used
OBSERVED, WEAK = "of10.?", "<"
THIRD = 1 / 3  # largest share of negative amplitudes: of |F| none is, of differences half are


@dataclass(frozen=True)
class Read:
    """The n rows of a file, unchanged.

    Attributes:
        hkl: (n, 3) as in the file; of a damaged file not always whole numbers.
        intensity: (n,), NaN where the file has none.
        cell, space_group: of the file; None if it has none.
        source: file and column. remarks: what was done to the rows.
    """

    hkl: np.ndarray
    intensity: np.ndarray
    cell: gemmi.UnitCell
    space_group: gemmi.SpaceGroup | None
    source: str
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Columns:
    """The columns of a file that can be a reference.

    Attributes:
        amplitude_of: for each label, whether its column has amplitudes.
        values: label → (n,) numbers, NaN where the file has none.
    """

    amplitude_of: Mapping[str, bool]
    values: Callable[[str], np.ndarray]

    def choose(self, column: str | None, source: str) -> tuple[list[str], bool]:
        """Choose the labels to average (one, or two of mates); say whether they are amplitudes.

        Args:
            column: a label or the stem of a pair.  By default an intensity is preferred to an
                amplitude, and a usual name to the first in the file; empty columns do not count.

        Raises:
            InputError: there is no such column.
        """
        if column is not None and column in self.amplitude_of:
            return [column], self.amplitude_of[column]
        pairs: dict[tuple[str, bool], list[str]] = {}
        for label, amplitude in self.amplitude_of.items():
            pairs.setdefault((MATE.sub("", label) or label, amplitude), []).append(label)
        ranked = sorted(
            (
                key
                for key in pairs
                if key[0] == column or (column is None and not NOT_BY_ITSELF.search(key[0]))
            ),
            key=lambda key: (key[1], CUSTOMARY.index(key[0]) if key[0] in CUSTOMARY else 99),
        )
        if not ranked:
            wanted = "column of intensities or amplitudes" + (f" {column!r}" if column else "")
            raise InputError(
                f"{source}: no {wanted}; usable are {', '.join(self.amplitude_of) or 'none'}"
                + ("" if column or not self.amplitude_of else ", which must be asked for by name")
            )
        with_values = (
            key for key in ranked if any(np.isfinite(self.values(x)).any() for x in pairs[key])
        )
        key = next(with_values, ranked[0])
        return pairs[key], key[1]

    def mean(self, labels: list[str], amplitude: bool, source: str) -> tuple[np.ndarray, list[str]]:
        """Mean intensity (n,) over Friedel mates, either of which may be missing; and remarks.

        Amplitudes are squared first.  An amplitude of zero or below marks a missing value.
        """
        values = np.array([self.values(label) for label in labels], float)
        remarks = []
        if amplitude:
            negative, n = int((values < 0).sum()), int(np.isfinite(values).sum())
            if negative > THIRD * n:
                raise InputError(
                    f"{source}: {negative} of {n} values are negative, so these are no amplitudes"
                )
            if n and not (values > 0).any():
                raise InputError(f"{source}: all {n} amplitudes are zero")
            if missing := int((values <= 0).sum()):
                remarks.append(f"{missing} amplitudes of zero or below left out")
            values = np.where(values > 0, values, np.nan)
            values = np.where(values < 1e150, values, np.nan) ** 2
        finite = np.isfinite(values)
        count = finite.sum(axis=0)
        total = np.where(finite, values, 0).sum(axis=0)
        return np.where(count > 0, total / np.maximum(count, 1), np.nan), remarks


def from_mtz(path: Path, column: str | None) -> Read:
    """Read the reference in an MTZ file.

    Raises:
        InputError: the file cannot be read, is unmerged, or has no such column.
    """
    mtz = read_mtz(path)
    if mtz.batches or any(c.type == "B" for c in mtz.columns):
        raise InputError(
            f"{path}: unmerged observations (it has batches) are no reference: merge them first"
        )
    columns = Columns(
        {c.label: c.type in "FG" for c in mtz.columns if c.type in "JKFG"},
        lambda label: mtz_column(mtz, label),
    )
    labels, amplitude = columns.choose(column, str(path))
    source = f"{path}:{'+'.join(labels)}"
    intensity, remarks = columns.mean(labels, amplitude, source)
    cell = mtz.get_cell(mtz.column_with_label(labels[0]).dataset_id)
    return Read(mtz_indices(mtz), intensity, cell, mtz.spacegroup, source, tuple(remarks))


def from_cif(path: Path, document: gemmi.cif.Document, column: str | None) -> Read:
    """Read the reference in a structure-factor mmCIF, from the first block that has one.

    Raises:
        InputError: the file has no reflections, none observed or no such column, or is unmerged.
    """
    with refusing(path, "a structure-factor CIF"):
        blocks = [block for block in gemmi.as_refln_blocks(document) if block.default_loop]
    if not blocks:
        raise InputError(f"{path}: neither coordinates nor reflections in this file")
    merged = [block for block in blocks if block.is_merged()]
    if not merged:
        raise InputError(f"{path}: unmerged observations are no reference: merge them first")
    refused: InputError | None = None
    for block in merged:
        try:
            read = _of_block(path, block, column)
        except InputError as error:
            refused = refused or error
            continue
        if len(blocks) > 1:
            name = f"block {block.block.name} of {len(blocks)}"
            return Read(read.hkl, read.intensity, read.cell, read.space_group, read.source,
                        (name, *read.remarks))  # fmt: skip
        return read
    assert refused is not None
    raise refused


def _of_block(path: Path, block: gemmi.ReflnBlock, column: str | None) -> Read:
    hkl = np.stack([_numbers(block, f"index_{x}") for x in "hkl"], axis=1)
    flag = _status(block, len(hkl))
    measured = np.isin(flag, list(OBSERVED + WEAK))

    def values(label: str) -> np.ndarray:
        found = _numbers(block, label)
        return np.where(measured & ~((flag == WEAK) & (found == 0)), found, np.nan)

    stems = {x: MATE.sub("", x) for x in block.column_labels()}
    known = CIF_INTENSITIES + CIF_AMPLITUDES
    amplitude_of = {x: stem in CIF_AMPLITUDES for x, stem in stems.items() if stem in known}
    columns = Columns(amplitude_of, values)
    labels, amplitude = columns.choose(column, str(path))
    source = f"{path}:{'+'.join(labels)}"
    if not measured.any():
        raise InputError(f"{source}: no row has the status of an observed reflection (o, f, <)")
    intensity, remarks = columns.mean(labels, amplitude, source)
    if not measured.all():
        kinds = ", ".join(f"{n} {s}" for s, n in Counter(flag[~measured].tolist()).items())
        remarks.insert(
            0, f"{(~measured).sum()} rows not observed by their status left out ({kinds})"
        )
    return Read(hkl, intensity, block.cell, block.spacegroup, source, tuple(remarks))


def _status(block: gemmi.ReflnBlock, n: int) -> np.ndarray:
    """(n,) first letter of _refln.status; o if the file has no status."""
    found = list(block.block.find_values("_refln.status"))
    if len(found) != n:
        return np.full(n, "o")
    return np.array([gemmi.cif.as_string(s).strip().lower()[:1] or "o" for s in found])


def _numbers(block: gemmi.ReflnBlock, label: str) -> np.ndarray:
    return np.array(block.make_float_array(label), float)
