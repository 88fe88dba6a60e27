"""Sentences about a beam, a distance or cells that are certainly wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..fitting.centroids import Centroids
from .page import number

_CELL_OFF = 1e-3  # smallest |ln(cell/reference's cell)|, alike on all axes, that is reported
_ALIKE = 1 / 3  # largest difference between axes, over the mean change, that counts as alike
_SURE = 5.0  # standard deviations that a deviation needs to be reported
_OUTWARDS_PX = 0.1
_BANDWIDTH_OFF = 1.5  # smallest factor from the stated bandwidth that is reported
_SHELLS = 5


class Shell(NamedTuple):
    """Mean displacement of spots along the radius in a shell of resolution, outwards positive.

    Attributes:
        d_max, d_min: Å. off_px, sd_px: weighted mean and its standard deviation.
    """

    d_max: float
    d_min: float
    off_px: float
    sd_px: float


def outwards(found: Centroids, pixel_inv_angstrom: float) -> tuple[Shell, ...]:
    """Mean displacement by resolution, in shells with equal numbers of reflections."""
    shells = []
    for rows in np.array_split(np.argsort(found.norm_q), _SHELLS):
        if len(rows) < 30:
            return ()
        weight, off = found.weight[rows, 0], found.off[rows, 0] / pixel_inv_angstrom
        mean = float(weight @ off / weight.sum())
        sd = float(np.sqrt(weight**2 @ (off - mean) ** 2) / weight.sum())
        low, high = found.norm_q[rows[[0, -1]]]
        shells.append(Shell(float(1 / low), float(1 / high), mean, sd))
    return tuple(shells)


def beam_sentences(
    summary: Mapping[str, Any],
    table: Mapping[str, np.ndarray] | None = None,
    shells: Sequence[Shell] = (),
) -> list[str]:
    """Sentences for the report; empty if nothing is wrong.

    Args:
        summary: the content of ``summary.json``; any of its parts may be missing.
        table: columns of ``images.csv``. shells: of a fit, from :func:`outwards`.
    """
    return [*_cells(summary, table), *_bandwidth(summary), *_outwards(shells)]


def _cells(summary: Mapping[str, Any], table: Mapping[str, np.ndarray] | None) -> list[str]:
    """A change alike on all axes means a wrong wavelength or distance, or another crystal form."""
    ours, given = summary.get("cell"), summary.get("reference_cell")
    if not ours or not given:
        return []
    log_ratio = np.log(np.array(ours[:3]) / np.array(given[:3]))
    off = float(log_ratio.mean())
    if abs(off) < _CELL_OFF or np.max(np.abs(log_ratio - off)) > _ALIKE * abs(off):
        return []
    if table is not None and "strain_1" in table:
        strain = np.asarray(table["strain_1"], float)
        strain = strain[np.isfinite(strain)]
        if len(strain) > 1 and abs(off) < _SURE * strain.std() / math.sqrt(len(strain)):
            return []
    way = "larger" if off > 0 else "smaller"
    return [
        f"Cells are {way} than the reference's by {100 * abs(off):.2f} %, all axes alike: the "
        "wavelength or the distance is wrong (a spectrum with a tail does that), unless the "
        "crystals of the reference were in another state."
    ]


def _bandwidth(summary: Mapping[str, Any]) -> list[str]:
    stated = (summary.get("beam") or {}).get("bandwidth_stated")
    found = (summary.get("globals") or {}).get("bandwidth")
    if not stated or not found:
        return []
    off = abs(math.log(found["value"] / stated))
    if off < max(math.log(_BANDWIDTH_OFF), _SURE * found["sd"] / found["value"]):
        return []
    return [
        f"The fitted bandwidth is {number(100 * found['value'])} % rms, the files state "
        f"{number(100 * stated)} %: the spectrum is not the stated one, or is not a single line."
    ]


def _outwards(shells: Sequence[Shell]) -> list[str]:
    far = [s for s in shells if abs(s.off_px) > max(_OUTWARDS_PX, _SURE * s.sd_px)]
    if not far:
        return []
    worst = max(far, key=lambda s: abs(s.off_px))
    way = "further out" if worst.off_px > 0 else "further in"
    return [
        f"Spots of {worst.d_max:.1f} to {worst.d_min:.1f} Å lie {number(abs(worst.off_px))} px "
        f"{way} than expected, spots of other resolutions do not: the spectrum has a tail, or the "
        "detector is distorted."
    ]
