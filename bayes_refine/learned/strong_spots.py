"""Pixels of the strong spots of a fitted run, which train a profile."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import numpy as np

from ..fitting.loop import RunFit
from ..fitting.measure_batch import cut
from ..fitting.padding import positions_mm
from ..fitting.state import partiality_width
from ..fitting.tables import usable_images
from ..measuring.shoebox import Shoebox, shoebox_for_width
from ..measuring.statistics import measure
from ..physics import Array
from ..util.errors import InputError

STRONG = 20.0  # least J of a strong spot, over its counting error
LONE = 0.02  # largest fraction of a spot on pixels of its neighbours
WHOLE = 0.9  # least fraction of a spot's pixels that are usable
OF_IMAGE = 100  # so many of the strongest spots of each image, at most
IN_ALL = 2400  # so many spots of the run, at most
FEWEST = 50  # so many spots of the run, at least
WIDER = 1.5  # width of the shoebox over that of a fit's: room for photons beside the core
LEAST_BACKGROUND = 0.01  # photons a pixel


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class StrongSpots:
    """n spots of K pixels each.

    Attributes:
        photons, background: (n, K), both with the variance of the read-out noise added, so that the
            variance of photons is their mean. usable: (n, K) bool.
        centre: (n, 2) of the spot, from the middle of its middle pixel, px.
        moment: (n, 3) xx, yy and xy of the spot, px². J: (n,) photons.
        x_mm, y_mm: (n,) place in the lab frame. image: (n,) number of the image, from 0.
        offsets: (K, 2) pixels of a shoebox, from its middle pixel, px.
    """

    photons: Array
    background: Array
    usable: Array
    centre: Array
    moment: Array
    J: Array
    x_mm: Array
    y_mm: Array
    image: Array
    offsets: Array

    @property
    def core_px(self) -> float:
        """Median sd of a spot along x or y, px."""
        return float(np.sqrt(np.median(self.moment[:, 0] + self.moment[:, 1]) / 2))


def strong_spots(run: RunFit) -> StrongSpots:
    """Cut the strong spots of a run out of its images, with room for photons beside their cores.

    The run's reader must still be open.

    Raises:
        InputError: the run has fewer than fifty strong spots.
    """
    r, noise = run.reflections, run.problem.settings.read_noise
    inverse = np.linalg.inv(r.frame.astype(float))
    m11, m22, m12 = r.spot_moment.astype(float).T
    square = np.moveaxis(np.array([[m11, m12], [m12, m22]]), -1, 0)
    square = inverse @ square @ np.swapaxes(inverse, 1, 2)
    moment = np.stack([square[:, 0, 0], square[:, 1, 1], square[:, 0, 1]], axis=1)
    counted = r.variance_background + r.variance_signal * np.maximum(r.J, 0)
    strength = r.J / np.sqrt(counted)
    good = r.informs & usable_images(run)[r.image] & (r.contested < LONE) & (strength > STRONG)
    rows = _strongest(np.flatnonzero(good), r.image, strength)
    if len(rows) < FEWEST:
        raise InputError(
            f"{len(rows)} spots stand out by {STRONG:g} times their counting error, and a profile "
            f"needs {FEWEST} or more: give more images"
        )
    width_px = np.sqrt(np.median(moment[rows, 0] + moment[rows, 1]))
    shoebox = shoebox_for_width(WIDER * float(width_px))
    parts, first = [], 0
    for batch in run.batches:
        n = len(batch.predictions)
        here = rows[(rows >= first) & (rows < first + n)]
        if len(here):
            parts.append(_of_batch(run, batch, here, here - first, moment[here], shoebox))
        first += n
    found = {k: np.concatenate([part[k] for part in parts]) for k in parts[0]}
    whole = found.pop("whole") & np.all(np.isfinite(found["background"]), axis=1)
    if np.sum(whole) < FEWEST:
        raise InputError(
            f"{np.sum(whole)} strong spots lie on usable pixels, and a profile needs {FEWEST} or "
            "more: give more images"
        )
    arrays = {k: v[whole] for k, v in found.items()}
    arrays["photons"] = np.maximum(arrays["photons"], 0.0) + noise**2
    arrays["background"] = np.maximum(arrays["background"], LEAST_BACKGROUND) + noise**2
    _, arrays["image"] = np.unique(arrays["image"], return_inverse=True)
    return StrongSpots(**arrays, offsets=shoebox.signal_offsets)


def _strongest(rows: np.ndarray, image: np.ndarray, strength: np.ndarray) -> np.ndarray:
    """The strongest spots of each image, and of those the strongest of the run, rows ascending."""
    order = rows[np.lexsort((-strength[rows], image[rows]))]
    starts = np.searchsorted(image[order], image[order])
    order = order[np.arange(len(order)) - starts < OF_IMAGE]
    return np.sort(order[np.argsort(-strength[order])[:IN_ALL]])


def _of_batch(run: RunFit, batch, rows, local, moment, shoebox: Shoebox) -> dict[str, np.ndarray]:
    """Arrays of ``StrongSpots`` for rows of a batch; ``whole`` says whose pixels are usable."""
    p, settings = batch.predictions, run.problem.settings
    width = partiality_width(run.fit.values(), run.priors)
    stills = run.stills[batch.images]
    bounds = np.searchsorted(p.image, np.arange(len(stills) + 1))
    boxes = []
    for i in np.unique(p.image[local]):
        image, mask = run.problem.reader.read(stills[i])
        of_image = slice(*bounds[i : i + 2])
        every = cut(image, mask, stills[i], p, of_image, width, shoebox)
        own = local[p.image[local] == i] - of_image.start
        boxes.append(type(every)(*(x[own] for x in every)))
    box = type(boxes[0])(*(np.concatenate(x) for x in zip(*boxes, strict=True)))
    found = measure(
        box,
        np.broadcast_to(np.eye(2), (len(rows), 2, 2)),
        moment,
        run.reflections.J[rows].astype(float),
        shoebox,
        settings.read_noise,
    )
    away = shoebox.signal_offsets - np.asarray(box.centre)[:, None]
    background = found.background[:, None] + np.einsum("nka,na->nk", away, found.slope)
    inside = np.sum(away**2, axis=2) < shoebox.signal_radius**2
    seen = np.sum(box.usable & inside, axis=1) / np.sum(inside, axis=1)
    x_mm, y_mm = positions_mm(stills, p)[local].T
    return {
        "photons": np.asarray(box.signal, float),
        "background": background,
        "usable": np.asarray(box.usable) & inside,
        "centre": np.asarray(box.centre, float),
        "moment": moment,
        "J": run.reflections.J[rows].astype(float),
        "x_mm": x_mm,
        "y_mm": y_mm,
        "image": run.reflections.image[rows],
        "whole": seen > WHOLE,
    }
