"""Arrows on the detector: displacements of spots from where they are expected, and of panels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..fitting.centroids import Centroids, by_place
from ..fitting.loop import RunFit
from ..fitting.state import geometry_of
from ..geometry.detector import Detector, pixel_to_lab
from ..geometry.panel_groups import centres, shifts_mm
from .drawing import legend
from .style import BLUE, ORANGE

_LONGEST = 0.06  # length of the longest arrow over the width of the detector
_STEPS = (1, 2, 5)


@dataclass(frozen=True)
class Arrows:
    """Displacements on a detector, lab x and y, mm.

    Attributes:
        outlines: (P, 5, 2) closed outlines of the panels.
        at, off: (n, 2) positions, and mean displacements of the spots there. sd: (n,) of ``off``.
        centre, moved: (g, 2) centres of groups of panels, and their fitted shifts.
        pixel_mm: edge of a pixel.
    """

    outlines: np.ndarray
    at: np.ndarray
    off: np.ndarray
    sd: np.ndarray
    centre: np.ndarray
    moved: np.ndarray
    pixel_mm: float


def arrows_of(run: RunFit, found: Centroids) -> Arrows:
    """The displacements of a fit, on the detector of its first image."""
    detector = run.stills[0].detector
    cells = by_place(found, detector)
    panel = np.array([cell.panel for cell in cells], int)
    place = np.array([cell.xy_px for cell in cells]).reshape(-1, 2)
    off = np.array([cell.off_px for cell in cells]).reshape(-1, 2)
    size = float(detector.pixel_size_mm[0, 0])
    moves = geometry_of(run.indexed, run.fit.values()).panels
    shifts = np.zeros((0, 3)) if moves is None else shifts_mm(detector, moves)
    return Arrows(
        outlines=_outlines(detector),
        at=pixel_to_lab(detector, panel, place)[:, :2],
        off=(pixel_to_lab(detector, panel, place + off) - pixel_to_lab(detector, panel, place))[
            :, :2
        ],
        sd=np.array([cell.sd_px for cell in cells]) * size,
        centre=centres(detector)[: len(shifts), :2],
        moved=shifts[:, :2],
        pixel_mm=size,
    )


def _outlines(detector: Detector) -> np.ndarray:
    size = (detector.shape[:, ::-1] * detector.pixel_size_mm)[:, None]
    corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]]) * size  # (P, 5, 2)
    axes = np.stack([detector.fast, detector.slow], axis=1)
    return (detector.origin_mm[:, None] + corners @ axes)[:, :, :2]


def displacements(figure: Any, arrows: Arrows) -> None:
    """Draw residual displacements of spots, and beside them fitted shifts of panels."""
    panels: list[tuple[str, np.ndarray, np.ndarray, str]] = []
    panels.append(("spots, measured − expected", arrows.at, arrows.off, BLUE))
    if len(arrows.moved):
        panels.append(("panels, fitted − input", arrows.centre, arrows.moved, ORANGE))
    for k, (title, at, off, color) in enumerate(panels):
        ax = figure.add_subplot(1, len(panels), k + 1)
        for outline in arrows.outlines:
            ax.plot(*outline.T, color="0.75", lw=0.6)
        width = np.ptp(arrows.outlines.reshape(-1, 2), axis=0).max()
        longest = float(np.max(np.hypot(*off.T), initial=0.0)) or arrows.pixel_mm
        factor = _LONGEST * width / longest
        style = {"angles": "xy", "scale_units": "xy", "scale": 1.0, "width": 0.004}
        ax.quiver(*at.T, *(factor * off).T, color=color, **style)
        key = _round(longest / arrows.pixel_mm)
        low = arrows.outlines.reshape(-1, 2).min(axis=0) - [0, 0.07 * width]
        ax.quiver(*low, factor * key * arrows.pixel_mm, 0, color="k", **style)
        ax.text(low[0] + 1.3 * _LONGEST * width, low[1], f"{key:g} px", va="center")
        ax.set(aspect="equal", title=title, xlabel="detector x (mm)")
        ax.set_ylabel("y (mm)" if k == 0 else "")
        legend(ax)


def _round(value: float) -> float:
    """The largest number 1, 2 or 5 times a power of ten that is not above ``value``."""
    power = 10.0 ** np.floor(np.log10(value))
    return float(max(step for step in _STEPS if step <= value / power * (1 + 1e-9)) * power)
