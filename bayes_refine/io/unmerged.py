"""Integrated observations of a run, from a file of any format, and which rows are usable."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

import gemmi
import numpy as np

from ..geometry.miller import numbered, resolution
from ..geometry.symmetry import asu_map
from ..util.errors import InputError
from ..util.large_arrays import slices, stored
from .gemmi_files import whole_indices

SPAN = 2.0**24  # of float32: in 2²⁴ units, a change by one unit is lost
ENOUGH = 1 << 20  # rows whose median is the level of all
SHORT = "with d below half the wavelength"
FAR = "with an Ewald offset longer than 1/d"
SQUARES = 1e18  # float32 can hold the square of this number and of its reciprocal


@dataclass(frozen=True)
class Unmerged:
    """Integrated observations of a run, flat over images (n in all).

    Attributes:
        hkl: (n, 3) int32 indices as observed, not reduced.
        hkl_asu, isym: (n, 3), (n,) int32, as ``symmetry.asu_map`` returns them.
        J, sigma: (n,) float64, on the scale of the file.
        batch: (n,) int32, batch numbers of the file.
        image: (n,) int32, index of the image, 0..n_images − 1, in the order of batch numbers.
        excitation_error: (n,) Å⁻¹; None if the file has no such column.
        xy_px: (n, 2) detector position as in the file, or None.
        cell: Å and degrees. space_group: of the file. source: the file.
        wavelength: Å, mean over the batches or data sets that have one; 0 if none has.
        left_out: number of rows that were left out, by reason.
        empty: (k,) int, batch numbers of images without a usable observation; ``image`` does not
            count these images.
        names: of images by batch number, if the file has names.
        unread: a sentence for each image that cannot be read.
    """

    hkl: np.ndarray
    hkl_asu: np.ndarray
    isym: np.ndarray
    J: np.ndarray
    sigma: np.ndarray
    batch: np.ndarray
    image: np.ndarray
    excitation_error: np.ndarray | None
    xy_px: np.ndarray | None
    cell: gemmi.UnitCell
    space_group: gemmi.SpaceGroup
    source: str
    wavelength: float = 0.0
    left_out: Mapping[str, int] = field(default_factory=dict)
    empty: np.ndarray = field(default_factory=lambda: np.zeros(0, int))
    names: Mapping[int, str] = field(default_factory=dict)
    unread: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.hkl)

    @property
    def intensity(self) -> np.ndarray:
        """``J`` by its name before, which scripts of others have."""
        return self.J

    @classmethod
    def observed(
        cls, hkl: np.ndarray, batch: np.ndarray, space_group: gemmi.SpaceGroup, **rest: Any
    ) -> Unmerged:
        """Observations of ``hkl`` (n, 3) on images ``batch`` (n,).

        Indices in the asymmetric unit and image numbers without gaps are computed here.
        """
        asu, isym = asu_map(hkl, space_group)
        image = numbered(batch)[1]
        columns: dict[str, Any] = {"hkl": hkl, "hkl_asu": stored(asu), "isym": stored(isym)}
        columns |= {"batch": batch, "image": stored(image)}
        return cls(**columns, space_group=space_group, **rest)

    def name(self, batch: int) -> str:
        """Name of an image: its file and frame, or its number."""
        return self.names.get(int(batch), str(batch))

    def select(self, keep: np.ndarray, reason: str) -> Unmerged:
        """The observations of a boolean mask (n,); the others are counted under ``reason``."""
        if keep.all():
            return self
        rows: dict[str, Any] = {
            f.name: stored(value[keep])
            for f in fields(self)
            if f.name != "empty" and isinstance(value := getattr(self, f.name), np.ndarray)
        }
        left, image = numbered(rows["batch"])
        return replace(
            self,
            **(rows | {"image": image}),
            left_out={**self.left_out, reason: int((~keep).sum())},
            empty=np.union1d(self.empty, np.setdiff1d(numbered(self.batch)[0], left)),
        )

    def describe(self) -> str:
        """One line: how many rows of the file are used, and why the others are not."""
        n_images = int(self.image.max(initial=-1)) + 1
        line = f"{self.source}: {len(self)} observations on {n_images} images"
        if self.left_out:
            why = ", ".join(f"{n} {reason}" for reason, n in self.left_out.items())
            n = sum(self.left_out.values())
            line += f"; {n} {'row' if n == 1 else 'rows'} left out: {why}"
        if n := len(self.empty):
            line += f"; {n} {'image has' if n == 1 else 'images have'} no usable row"
        if n := len(self.unread):
            which = "one image" if n == 1 else f"{n} images"
            line += f"; {which} cannot be read, the first: {self.unread[0]}"
        return line


def usable(data: Unmerged) -> Unmerged:
    """The observations that :func:`usable_observations` accepts."""
    columns = {
        name: getattr(data, name)
        for name in ("hkl", "J", "sigma", "batch", "excitation_error", "xy_px")
    }
    good = _good_rows(columns, data.cell, data.source, data.wavelength)
    if good.keep.all() and (good.offset is None) == (data.excitation_error is None):
        return data
    every = np.union1d(data.empty, numbered(data.batch)[0])
    found = _selected(
        columns, good, data.cell, data.space_group, data.source, data.wavelength, every
    )
    left_out = {**data.left_out, **found.left_out}
    return replace(found, left_out=left_out, names=data.names, unread=data.unread)


def usable_observations(
    columns: Mapping[str, np.ndarray | None],
    cell: gemmi.UnitCell,
    space_group: gemmi.SpaceGroup,
    source: str,
    wavelength: float = 0.0,
    batches: np.ndarray | tuple[int, ...] = (),
) -> Unmerged:
    """Select the rows of a file that are observations; count the others by their fault.

    A row is left out if a number is missing, if σ ≤ 0, if the offset is longer than the
    reciprocal-lattice vector (|ε_r| ≤ |q| by the triangle inequality), if d < λ/2, or if |J| or σ
    exceeds the median by a factor of 2²⁴, or σ is smaller than it by this factor: float32 keeps no
    digit of other numbers in a sum with such a number.  No row is left out because it is weak.

    Args:
        columns: hkl (n, 3) as observed; J, sigma, batch (n,); excitation_error (n,) Å⁻¹
            and xy_px (n, 2), or None.
        cell: Å and degrees. wavelength: Å, 0 if unknown.
        batches: numbers of all images of the file, with or without observations.

    Raises:
        InputError: no row is usable, or most rows show that a column holds something else.
    """
    good = _good_rows(columns, cell, source, wavelength)
    return _selected(columns, good, cell, space_group, source, wavelength, batches)


class _Good(NamedTuple):
    """Which rows (n,) are observations, those with a batch number, how many are not, and why."""

    keep: np.ndarray
    whole: np.ndarray
    left_out: dict[str, int]
    offset: np.ndarray | None


def _good_rows(
    columns: Mapping[str, np.ndarray | None], cell: gemmi.UnitCell, source: str, wavelength: float
) -> _Good:
    """As :func:`usable_observations` says; few rows are in memory at a time."""
    offset = columns.get("excitation_error")
    if offset is not None and not np.isfinite(offset).any():
        offset = None  # the column has no value
    n = len(np.asarray(columns["hkl"]))
    keep, whole = np.ones(n, bool), np.ones(n, bool)
    left_out, among = Counter[str](), Counter[str]()

    def numbers(name: str, rows: slice) -> np.ndarray:
        return np.asarray(np.asarray(columns[name])[rows], float)

    def set_aside(faults: Callable[[slice], Iterator[tuple[np.ndarray, str]]]) -> None:
        for rows in slices(n, *columns.values()):
            for bad, reason in faults(rows):
                among[reason] += int(keep[rows].sum())
                left_out[reason] += int((keep[rows] & bad).sum())
                keep[rows] &= ~bad

    def faulty(rows: slice) -> Iterator[tuple[np.ndarray, str]]:
        hkl, good = whole_indices(np.asarray(columns["hkl"])[rows])
        norm_q = 1 / np.where(good, resolution(hkl, cell), np.inf).clip(1e-9)
        J, sigma, batch = (numbers(name, rows) for name in ("J", "sigma", "batch"))
        whole[rows] = (np.abs(batch) < 2.0**31) & (batch == np.rint(batch))
        yield ~good, "without whole indices H K L"
        yield ~whole[rows], "without a batch number"
        yield ~np.isfinite(J), "without an intensity"
        yield ~np.isfinite(sigma), "without a sigma"
        yield ~(sigma > 0), "with a sigma that is not positive"
        if wavelength > 0:  # cells of images differ by a few per cent
            yield norm_q > 2.06 / wavelength, SHORT
        if offset is not None:
            away = numbers("excitation_error", rows)
            yield ~np.isfinite(away), "without an Ewald offset"
            yield np.abs(away) > norm_q, FAR

    set_aside(faulty)
    most = {
        SHORT: f"have d below half the wavelength, {wavelength:.4f} Å: check the cell",
        FAR: "have an Ewald offset longer than 1/d: the column is not in Å⁻¹",
    }
    for reason, sentence in most.items():
        if 2 * left_out[reason] > among[reason]:
            raise InputError(f"{source}: {left_out[reason]} of {among[reason]} rows {sentence}")
    if keep.any():
        some = np.flatnonzero(keep)
        some = some[:: max(1, len(some) // ENOUGH)]
        size, sigma = (np.abs(np.asarray(columns[x])[some].astype(float)) for x in ("J", "sigma"))
        size = size[size > 0]
        level = max(float(np.median(size)) if len(size) else 0.0, float(np.median(sigma)))
        if not 1 / SQUARES < level < SQUARES:
            raise InputError(
                f"{source}: intensities of {level:.1e} are beyond float32: rescale them"
            )

        def beyond(rows: slice) -> Iterator[tuple[np.ndarray, str]]:
            J, sigma = numbers("J", rows), numbers("sigma", rows)
            most = np.maximum(np.abs(J), sigma)
            yield most > SPAN * level, f"with I or sigma beyond {SPAN * level:.1e}"
            yield sigma < level / SPAN, f"with a sigma below {level / SPAN:.1e}"

        set_aside(beyond)
    found = {reason: count for reason, count in left_out.items() if count}
    if not keep.any():
        why = ", ".join(f"{n} {reason}" for reason, n in found.items())
        raise InputError(f"{source}: no reflection with an intensity and a positive sigma ({why})")
    return _Good(keep, whole, found, offset)


def _selected(
    columns: Mapping[str, np.ndarray | None],
    good: _Good,
    cell: gemmi.UnitCell,
    space_group: gemmi.SpaceGroup,
    source: str,
    wavelength: float,
    batches: np.ndarray | tuple[int, ...],
) -> Unmerged:
    keep, xy = good.keep, columns.get("xy_px")
    hkl = whole_indices(np.asarray(columns["hkl"]))[0][keep]
    J, sigma = (np.asarray(columns[name], float)[keep] for name in ("J", "sigma"))
    numbers = np.asarray(columns["batch"])
    batch = numbers[keep].astype(np.int32)
    asu, isym = asu_map(hkl, space_group)
    used, image = numbered(batch)
    named = np.union1d(np.asarray(batches, int), np.unique(numbers[good.whole].astype(int)))
    return Unmerged(
        hkl=stored(hkl),
        hkl_asu=stored(asu),
        isym=stored(isym),
        J=stored(J),
        sigma=stored(sigma),
        batch=stored(batch),
        image=stored(image),
        excitation_error=None if good.offset is None else stored(good.offset[keep]),
        xy_px=None if xy is None else stored(np.asarray(xy, float)[keep]),
        cell=cell,
        space_group=space_group,
        source=source,
        wavelength=wavelength,
        left_out=good.left_out,
        empty=np.setdiff1d(named, used),
    )
