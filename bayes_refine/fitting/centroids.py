"""Displacements of spots from where a fit expects them, by reflection and averaged by place."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import NamedTuple

import numpy as np

from .. import infer
from ..geometry.detector import Detector
from ..util.large_arrays import joined
from .loop import RunFit
from .reflections import Reflections
from .state import images_of
from .tables import usable_images

BOTH = "centroid_radial", "centroid_tangential"
IN_A_CELL = 15  # mean number of reflections in a cell; a panel with fewer is one cell
MOST_CELLS = 12  # largest number of cells along an edge of a panel


class Centroids(NamedTuple):
    """Measured less expected centroids of the n reflections that inform the fit of usable images.

    Attributes:
        image, panel: (n,). xy_px: (n, 2) predicted centre.
        off_px: (n, 2) along the panel's fast and slow axis, px. weight: (n, 2) 1/σ² of ``off``
            along and across the radius, Å²: counting and the fit's position error.
        off: (n, 2) along and across the radius, Å⁻¹. norm_q: (n,) 1/d, Å⁻¹.
    """

    image: np.ndarray
    panel: np.ndarray
    xy_px: np.ndarray
    off_px: np.ndarray
    weight: np.ndarray
    off: np.ndarray
    norm_q: np.ndarray


class Cell(NamedTuple):
    """Mean displacement of the spots in part of a panel.

    Attributes:
        panel, n: number of the panel, and of reflections.
        xy_px: (2,) their mean place. off_px: (2,) weighted mean; sd_px: its standard deviation.
    """

    panel: int
    n: int
    xy_px: np.ndarray
    off_px: np.ndarray
    sd_px: float


def centroids_of(run: RunFit) -> Centroids | None:
    """The residual centroids of a fit at its mode; None where the model observes no centroids.

    A statistic T = J·(r_0 + r·δ/ρ + …) of a spot displaced by δ gives δ = ρ(T − E[T])/(J r), with
    J the expected photons and ρ the width of the template.
    """
    parts = _of_batches(run)
    if (first := next(parts)) is None:
        return None
    return Centroids(*joined(found for found in chain([first], parts) if found is not None))


def _of_batches(run: RunFit) -> Iterator[Centroids | None]:
    fit, model, usable, end = run.fit, run.problem.model, usable_images(run), 0
    for batch, obs in zip(run.batches, run.observed.parts, strict=True):
        theta = images_of({"theta": fit.image}, batch.images, batch.where.shape[0])["theta"]
        expected = infer.locations(model, fit.sites, theta, fit.shared, obs, run.priors, apart=True)
        if not set(BOTH) <= set(expected):
            yield None
            return
        s, flat = batch.statistics, batch.where.flat
        mean, scale = (np.stack([flat(expected[k][j]) for k in BOTH], 1) for j in (0, 1))
        slope = np.stack([s.response[:, k, k] for k in (1, 2)], 1) / s.width[:, None]
        found = np.concatenate([s.value[:, 1:3] - mean, scale, slope], axis=1)
        residual, scale, slope = np.split(found.astype(float), 3, axis=1)
        start, end = end, end + len(found)
        r = run.reflections.some(slice(start, end))
        J = np.maximum(r.J_model.astype(float), 0.0)[:, None]
        good = r.informs & usable[r.image] & np.isfinite(J[:, 0] * slope[:, 0])
        good &= (J * slope > 0).all(axis=1)
        rows = np.flatnonzero(good)
        per = (J * slope)[rows]
        off = residual[rows] / per
        yield _of(r, rows, off, (per / scale[rows]) ** 2)
        run.reflections.release()


def _of(r: Reflections, rows: np.ndarray, off: np.ndarray, weight: np.ndarray) -> Centroids:
    frame = r.frame[rows].astype(float)
    off_px = np.linalg.solve(frame, off[:, :, None])[:, :, 0]
    place = r.xy_px[rows].astype(float)
    return Centroids(r.image[rows], r.panel[rows], place, off_px, weight, off, 1 / r.d[rows])


def by_place(found: Centroids, detector: Detector) -> list[Cell]:
    """Weighted means over square cells of each panel, about 15 reflections in each or more."""
    cells = []
    weight = found.weight.mean(axis=1)
    for p in range(detector.n_panels):
        on = np.flatnonzero(found.panel == p)
        if len(on) < 3:
            continue
        size = detector.shape[p, ::-1]
        edge = max(float(np.sqrt(np.prod(size) * IN_A_CELL / len(on))), size.max() / MOST_CELLS)
        n = np.maximum(np.round(size / edge), 1).astype(int)
        index = np.minimum((found.xy_px[on] * n / size).astype(int), n - 1)
        cell = index @ [n[1], 1]
        _, first = np.unique(np.sort(cell), return_index=True)
        for rows in np.split(on[np.argsort(cell, kind="stable")], first[1:]):
            if len(rows) < 3:
                continue
            w = weight[rows] / weight[rows].sum()
            mean = w @ found.off_px[rows]
            spread = np.sqrt(w**2 @ ((found.off_px[rows] - mean) ** 2).mean(axis=1))
            place = found.xy_px[rows].mean(axis=0)
            cells.append(Cell(p, len(rows), place, mean, float(spread)))
    return cells
