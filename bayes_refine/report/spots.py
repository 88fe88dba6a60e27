"""Part of an image with its predicted spots."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..fitting.loop import RunFit
from ..fitting.measure_batch import shoebox_for
from ..fitting.reflections import Reflections
from ..fitting.tables import usable_images
from ..io.protocols import Images
from ..measuring.shoebox import Shoebox
from ..util.text import printable
from .drawing import shown
from .style import BLUE, ORANGE, RED


def predicted_spots(
    ax: Any, run: RunFit, reader: Images, image: int | None = None, size_px: int = 180
) -> None:
    """Draw part of an image with the predicted centres and the edge of their signal region.

    Args:
        image: index of the still; by default the one with most expected photons.
        size_px: size of the part view, which is where the expected spots are densest.

    Raises:
        InputError: the image cannot be read.
    """
    from matplotlib.patches import Circle

    if image is None:
        usable = usable_images(run)

        def expected(r: Reflections) -> np.ndarray:
            return np.where(r.measured & usable[r.image], np.nan_to_num(r.J_model), 0.0)

        image = int(np.argmax(run.reflections.by_image(expected, len(run.stills))))
    still = run.stills[image]
    pixels, valid = reader.read(still)
    rows = run.reflections.where(lambda r: (r.image == image) & r.measured)
    p = run.reflections.taken(rows)
    of_image = np.arange(len(p))
    bright = np.flatnonzero(np.nan_to_num(p.J_model) > 3 * np.sqrt(p.variance))
    panel, x0, y0 = _densest(p.panel[bright], p.xy_px[bright], pixels.shape, size_px)
    view = np.where(valid, pixels, np.nan)[panel, y0 : y0 + size_px, x0 : x0 + size_px]
    low, high = np.nanpercentile(view, [50, 99.8]) if np.isfinite(view).any() else (0, 1)
    extent = (x0, x0 + view.shape[1], y0 + view.shape[0], y0)
    style = {"cmap": "Greys", "vmin": low, "vmax": max(high, low + 1e-9)}
    ax.imshow(view, extent=extent, interpolation="nearest", **style)
    radius = shoebox_of(run).signal_radius
    here = of_image[p.panel[of_image] == panel]
    inside = np.all((p.xy_px[here] > [x0, y0]) & (p.xy_px[here] < [extent[1], extent[2]]), axis=1)
    for k in here[inside]:
        strong = k in bright
        circle = {"color": BLUE if strong else ORANGE, "lw": 1.0 if strong else 0.7}
        ax.add_patch(Circle(tuple(p.xy_px[k]), radius, fill=False, **circle))
    centres = p.xy_px[here[inside]]
    ax.plot(*centres.T, "+", ms=5, mew=0.8, color=RED)
    for color, text in (
        (BLUE, "signal region, more than 3σ expected"),
        (ORANGE, "signal region, less expected"),
    ):
        ax.plot([], [], "o", mfc="none", color=color, ms=7, label=text)
    ax.plot([], [], "+", color=RED, label="predicted centre")
    ax.legend(loc="upper left", bbox_to_anchor=(0, -0.08), ncols=3)  # beside the image
    ax.set(xlabel="fast (px)", ylabel="slow (px)", xlim=extent[:2], ylim=extent[2:])
    where = f", panel {panel}" if len(pixels) > 1 else ""
    shades = f"white {low:.3g}, black {high:.3g} photons a pixel"
    name = printable(still.identifier)[:60]
    ax.set_title(f"{name}{where}: {shades}", parse_math=False)  # names are no TeX


def shoebox_of(run: RunFit) -> Shoebox:
    """The shoebox of the last round, up to rounding to whole pixels."""
    some = run.reflections.taken(shown(np.arange(len(run.reflections))))
    moment, spread = some.spot_moment.astype(float), run.problem.settings.point_spread
    shoebox = shoebox_for(some.frame, moment, spread)
    assert shoebox is not None, "a fitted run has reflections"
    return shoebox


def _densest(panel, xy, shape, size) -> tuple[int, int, int]:
    """Panel and corner (x0, y0) of the window with most points, on a grid of half windows."""
    if not len(panel):
        return 0, 0, 0
    cells = np.floor(xy / (size / 2)).astype(int)
    best, top = (0, 0, 0), -1
    for p, cx, cy in {(int(p), int(x), int(y)) for p, (x, y) in zip(panel, cells, strict=True)}:
        x0 = int(np.clip(cx * size / 2, 0, max(shape[2] - size, 0)))
        y0 = int(np.clip(cy * size / 2, 0, max(shape[1] - size, 0)))
        inside = np.all((xy >= [x0, y0]) & (xy < [x0 + size, y0 + size]), axis=1) & (panel == p)
        if (count := int(inside.sum())) > top:
            best, top = (p, x0, y0), count
    return best
