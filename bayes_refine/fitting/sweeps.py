"""Frames of one turning crystal, a sweep, share what the crystal has (docs/theory.md, Sweeps)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import gemmi
import numpy as np
from scipy.interpolate import CubicSpline

from ..geometry.crystal import Crystal, rotation_matrix, rotation_part
from ..geometry.experiments import InSweep, Still
from ..physics.observations import Sweeps

_ALIKE = 0.05  # largest change of an index, beyond the turn, between frames of one crystal
SHORTEST = 5  # frames; of fewer, scale and B along the sweep have no two knots
MOST_SWEEPS = 10  # each adds some twenty unknowns that the whole run shares
FRAMES, MOST_KNOTS = 10, 12  # frames from knot to knot, in sweeps that have fewer knots than these


def crystals_of(stills: Sequence[Still]) -> tuple[np.ndarray, np.ndarray]:
    """Which crystal each still is of, (n,), and (n, 3, 3) from its indices to the crystal's first.

    A still is of the crystal of the still before it if both turn, lie in one file or series, and
    their orientations differ by the turn between them but for a change of indices M, as two
    equivalent ways of indexing do: A_k M⁻¹ ≈ R A_{k−1}.
    """
    n = len(stills)
    crystal, change = np.arange(n), np.tile(np.eye(3, dtype=int), (n, 1, 1))
    for k in range(1, n):
        one, two = stills[k - 1], stills[k]
        if one.turn_mrad is None or two.turn_mrad is None or not np.any(two.turn_mrad):
            continue
        frames = two.frame - one.frame if two.image_path == one.image_path else 1
        for turn in (two.turn_mrad, -two.turn_mrad):  # the sign of a spindle may be unknown
            turned = rotation_matrix(frames * turn) @ one.crystal.A
            M = np.linalg.solve(turned, two.crystal.A)
            if np.abs(M - np.round(M)).max() < _ALIKE and abs(np.linalg.det(M) - 1) < _ALIKE:
                crystal[k], change[k] = crystal[k - 1], change[k - 1] @ np.round(M).astype(int)
                break
    return crystal, change


def in_sweeps(stills: Sequence[Still]) -> tuple[Still, ...]:
    """The stills with their places in sweeps, and with one cell, the mean, of each sweep.

    Nothing changes where no sweep has as many as five frames, or where there are more than ten.
    """
    sweeps, change = _sweeps_of(stills)
    if not 0 < len(sweeps) <= MOST_SWEEPS:
        return tuple(replace(still, sweep=None) for still in stills)
    smooth = [along(_numbers(stills, rows)) for rows in sweeps]
    sizes = [weights.shape[1] for weights in smooth]
    before = np.concatenate([[0], np.cumsum(sizes)])
    starts = np.zeros(before[-1])
    starts[before[:-1]] = 1.0
    nowhere = InSweep(np.zeros(len(sweeps)), 0 * starts, starts, np.eye(3))
    found = [replace(still, sweep=nowhere) for still in stills]
    for s, rows in enumerate(sweeps):
        cell = gemmi.UnitCell(*np.mean([stills[i].crystal.cell.parameters for i in rows], axis=0))
        first = _as_first(stills[rows[0]], change[rows[0]])
        for weights, i in zip(smooth[s], rows, strict=True):
            row = 0 * starts
            row[before[s] : before[s + 1]] = weights
            turned = rotation_part(_as_first(stills[i], change[i]) @ np.linalg.inv(first))
            place = InSweep(np.eye(len(sweeps))[s], row, starts, turned)
            found[i] = replace(stills[i], crystal=_of_cell(stills[i].crystal, cell), sweep=place)
    return tuple(found)


def said(stills: Sequence[Still]) -> str:
    """A sentence about the sweeps that frames share unknowns in; "" where no image is a frame."""
    count = len(_sweeps_of(stills)[0])
    if count > MOST_SWEEPS:
        return f"{count} sweeps are more than {MOST_SWEEPS}: each frame has numbers of its own"
    if count == 0:
        return ""
    frames = sum(bool(s.sweep is not None and s.sweep.member.any()) for s in stills)
    sweeps = "one sweep" if count == 1 else f"{count} sweeps"
    return f"{frames} frames of {sweeps} share cell, mosaic blocks, and smooth G and B"


def crystals_in_sweeps(stills: Sequence[Still]) -> np.ndarray | None:
    """(n,) number of each image's crystal: frames of a sweep have the same; None without sweeps."""
    places = [still.sweep for still in stills if still.sweep is not None]
    if not places:
        return None
    member = np.stack([place.member for place in places])
    own = member.shape[1] + np.arange(len(places))
    return np.unique(np.where(member.any(1), member.argmax(1), own), return_inverse=True)[1]


def sweeps_at(stills: Sequence[Still], size: int) -> Sweeps | None:
    """``Sweeps`` of some images, the last one repeated up to ``size``; None without sweeps."""
    places = [still.sweep for still in stills if still.sweep is not None]
    if not places:
        return None
    places += places[-1:] * (size - len(places))
    names = ("member", "smooth", "starts", "turned")
    return Sweeps(**{name: np.stack([getattr(p, name) for p in places]) for name in names})


def along(numbers: np.ndarray) -> np.ndarray:
    """(n, r) weights of a smooth quantity's value at the first knot and of its changes from knot to
    knot, at frames with these ``numbers`` (n,): a natural cubic spline through r knots.
    """
    r = int(np.clip(np.ceil(len(numbers) / FRAMES) + 1, 2, MOST_KNOTS))
    knots = np.linspace(numbers.min(), numbers.max(), r)
    spline = CubicSpline(knots, np.eye(r), bc_type="natural")
    return spline(numbers) @ np.tril(np.ones((r, r)))


def _sweeps_of(stills: Sequence[Still]) -> tuple[list[np.ndarray], np.ndarray]:
    """The images of each sweep, and the change of indices of each image (``crystals_of``)."""
    crystal, change = crystals_of(stills)
    rows = [np.flatnonzero(crystal == c) for c in np.unique(crystal)]
    return [r for r in rows if len(r) >= SHORTEST], change


def _numbers(stills: Sequence[Still], rows: np.ndarray) -> np.ndarray:
    """Numbers of frames in their file; of files with one image each, their places in the sweep."""
    numbers = np.array([float(stills[i].frame) for i in rows])
    one_file = len({stills[i].image_path for i in rows}) == 1
    return numbers if one_file and np.ptp(numbers) > 0 else np.arange(len(rows), dtype=float)


def _as_first(still: Still, change: np.ndarray) -> np.ndarray:
    """The setting matrix for the indices of the crystal's first frame."""
    return still.crystal.A @ np.linalg.inv(change)


def _of_cell(crystal: Crystal, cell: gemmi.UnitCell) -> Crystal:
    """The crystal in its orientation with another cell."""
    return replace(crystal, A=crystal.U @ np.array(cell.frac.mat.tolist()).T)
