"""Integrated observations of a run, from a file of any format, and which rows are usable."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

import gemmi
import numpy as np

from ..geometry.miller import numbered, resolution
from ..geometry.symmetry import asu_map
from ..util.errors import InputError
from ..util.large_arrays import stored
from .gemmi_files import whole_indices

SPAN = 2.0**24  # of float32: in 2²⁴ units, a change by one unit is lost
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
        rows = {
            f.name: value[keep]
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
    hkl, good = whole_indices(np.asarray(columns["hkl"]))
    J, sigma, batch = (np.asarray(columns[name], float) for name in ("J", "sigma", "batch"))
    offset = columns.get("excitation_error")
    if offset is not None and not np.isfinite(offset).any():
        offset = None  # the column has no value
    norm_q = 1 / np.where(good, resolution(hkl, cell), np.inf).clip(1e-9)
    keep, left_out = np.ones(len(hkl), bool), dict[str, int]()

    def set_aside(bad: np.ndarray, reason: str, most: str = "") -> None:
        nonlocal keep
        bad = keep & bad
        if not bad.any():
            return
        if most and 2 * bad.sum() > keep.sum():
            raise InputError(f"{source}: {bad.sum()} of {keep.sum()} rows {most}")
        left_out[reason] = int(bad.sum())
        keep = keep & ~bad

    set_aside(~good, "without whole indices H K L")
    whole = (np.abs(batch) < 2.0**31) & (batch == np.rint(batch))
    set_aside(~whole, "without a batch number")
    set_aside(~np.isfinite(J), "without an intensity")
    set_aside(~np.isfinite(sigma), "without a sigma")
    set_aside(~(sigma > 0), "with a sigma that is not positive")
    if wavelength > 0:
        limit = 2.06 / wavelength  # cells of images differ by a few per cent
        most = f"have d below half the wavelength, {wavelength:.4f} Å: check the cell"
        set_aside(norm_q > limit, "with d below half the wavelength", most)
    if offset is not None:
        offset = np.asarray(offset, float)
        set_aside(~np.isfinite(offset), "without an Ewald offset")
        most = "have an Ewald offset longer than 1/d: the column is not in Å⁻¹"
        set_aside(np.abs(offset) > norm_q, "with an Ewald offset longer than 1/d", most)
    if keep.any():
        size = np.abs(J[keep & (J != 0)])
        level = max(float(np.median(size)) if len(size) else 0.0, float(np.median(sigma[keep])))
        if not 1 / SQUARES < level < SQUARES:
            raise InputError(
                f"{source}: intensities of {level:.1e} are beyond float32: rescale them"
            )
        beyond = np.maximum(np.abs(J), sigma) > SPAN * level
        set_aside(beyond, f"with I or sigma beyond {SPAN * level:.1e}")
        set_aside(sigma < level / SPAN, f"with a sigma below {level / SPAN:.1e}")
    if not keep.any():
        why = ", ".join(f"{n} {reason}" for reason, n in left_out.items())
        raise InputError(f"{source}: no reflection with an intensity and a positive sigma ({why})")
    return _Good(keep, whole, left_out, offset)


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
        hkl=hkl,
        hkl_asu=asu,
        isym=isym,
        J=J,
        sigma=sigma,
        batch=batch,
        image=image,
        excitation_error=None if good.offset is None else good.offset[keep],
        xy_px=None if xy is None else np.asarray(xy, float)[keep],
        cell=cell,
        space_group=space_group,
        source=source,
        wavelength=wavelength,
        left_out=good.left_out,
        empty=np.setdiff1d(named, used),
    )
