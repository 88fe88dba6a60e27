"""The gallery of shoeboxes: measured pixels, the model's expectation, and the difference."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import jax.numpy as jnp
import numpy as np

from ..fitting.loop import RunFit
from ..fitting.tables import lab_positions, usable_images
from ..io.protocols import Images
from ..measuring.point_spread import spread_template
from ..measuring.template import template_and_gradient
from ..util.kept_programs import kept
from .drawing import shown
from .spots import shoebox_of
from .style import STYLE


def shoebox_gallery(run: RunFit, reader: Images, n: int = 3, figure: Any = None) -> Any:
    """Draw data, model and (data − model)/σ for n reflections of each of four kinds.

    The kinds are: strong, with most photons expected; weak, with about 1σ expected; below the
    model, with the most negative residuals where 3σ or more was expected; and above the model, with
    the largest residuals.  All are reflections that the fit used.

    All boxes are in one Axes, since an Axes for each would be slow.

    Raises:
        InputError: an image cannot be read.
    """
    from matplotlib import colormaps, rc_context
    from matplotlib.collections import LineCollection
    from matplotlib.figure import Figure

    maps = [colormaps[name] for name in ("Greys", "Greys", "RdBu_r")]
    with rc_context(STYLE):
        figure = figure or Figure(figsize=(3.4 * n + 0.4, 6.4))
        ax = figure.add_axes((0.03, 0.03, 0.965, 0.95))
        half = int(np.ceil(shoebox_of(run).signal_radius)) + 3
        side = 2 * half + 1
        wide, high = 3 * (side + 2) + 4, side + 6  # size of the cell for one reflection
        canvas = np.ones((4 * high, n * wide, 4))
        frame = np.array([(0, 0), (0, side), (side, side), (side, 0), (0, 0)])
        frames = []
        for row, (kind, chosen) in enumerate(_kinds(run, n)):
            y = row * high + 5
            ax.text(-2, y + half, kind, rotation=90, ha="center", va="center", weight="bold")
            for k, (boxes, title) in enumerate(_boxes_of(run, reader, chosen, half)):
                ax.text(k * wide, y - 1, title, size=7.5)
                for j, (values, colors) in enumerate(zip(boxes, maps, strict=True)):
                    x = k * wide + j * (side + 2)
                    canvas[y : y + side, x : x + side] = colors(values)
                    frames.append(frame + np.array([x, y]))
        for k in range(3 * n):
            middle = k // 3 * wide + k % 3 * (side + 2) + half + 0.5
            name = ("data", "model", "difference, ±5σ")[k % 3]
            ax.text(middle, 4 * high, name, size=7, color="0.4", ha="center", va="top")
        extent = (0, n * wide, 4 * high, 0)
        ax.imshow(canvas, extent=extent, interpolation="nearest", aspect="auto")
        ax.add_collection(LineCollection(frames, colors="k", linewidths=0.7))
        ax.set_axis_off()
    return figure


def _kinds(run: RunFit, n: int) -> Iterator[tuple[str, np.ndarray]]:
    rows, z = _residuals(run)
    some = run.reflections.taken(rows)
    expected_J = some.J_model
    strength = expected_J / np.sqrt(some.variance)
    yield "strong", rows[np.argsort(-expected_J)[:n]]
    yield "weak", rows[np.argsort(np.abs(strength - 1))[:n]]
    expected = np.flatnonzero(strength > 3)
    yield "below the model", rows[expected[np.argsort(z[expected])[:n]]]
    yield "above the model", rows[np.argsort(-z)[:n]]


def _boxes_of(
    run: RunFit, reader: Images, rows: np.ndarray, half: int
) -> Iterator[tuple[tuple[np.ndarray, ...], str]]:
    """For each reflection data, model and difference, (2·half + 1)² from 0 to 1, and a title."""
    p = run.reflections.taken(rows)
    dy, dx = np.mgrid[-half : half + 1, -half : half + 1]
    middle = np.floor(p.xy_px).astype(int)
    moment = p.spot_moment.astype(float) * 1e6
    width = np.sqrt(moment[:, 0] + moment[:, 1])
    spot = p.xy_px - middle - 0.5, p.frame.astype(float) * 1e3, moment, width
    offsets = np.stack([dx.ravel(), dy.ravel()], axis=1)
    if (spread := run.problem.settings.point_spread) is None:
        model = _compiled_template()(*spot, offsets.astype(float))
    else:
        shares = spread.shares(*lab_positions(run)[rows].T)
        place, frame, second, size = map(jnp.asarray, spot)
        shared = offsets, spread.nodes, shares
        model = spread_template(place, frame, second, size, *shared)[0]
    for k, ((x0, y0), template) in enumerate(zip(middle, np.asarray(model), strict=True)):
        image, background = int(p.image[k]), float(p.background[k])
        pixels, valid = reader.read(run.stills[image])
        x, y = x0 + dx, y0 + dy
        on = (x >= 0) & (y >= 0) & (x < pixels.shape[2]) & (y < pixels.shape[1])
        at = (p.panel[k], np.clip(y, 0, pixels.shape[1] - 1), np.clip(x, 0, pixels.shape[2] - 1))
        data = np.where(on & valid[at], pixels[at], np.nan)
        expected = background + p.J_model[k] * template.reshape(data.shape)
        z = (data - expected) / np.sqrt(np.maximum(expected, 0.05))
        low, top = min(background, 0.0), max(np.nan_to_num(data).max(), expected.max(), 1.0)
        (h, kk, l), sd = p.hkl[k], np.sqrt(p.variance[k])  # noqa: E741
        said = f"J {p.J[k]:.0f} ± {sd:.0f}, model {p.J_model[k]:.0f}"
        shades = tuple((values - low) / (top - low) for values in (data, expected))
        yield (*shades, z / 10 + 0.5), f"({h} {kk} {l}), image {image}: {said}"


@lru_cache(maxsize=1)
def _compiled_template():

    return kept(lambda *where: template_and_gradient(*where)[0])


def _residuals(run: RunFit) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the reflections that inform the fit, of very many some; their (J − J_model)/σ."""
    usable = usable_images(run)
    rows = shown(run.reflections.where(lambda r: r.informs & usable[r.image]))
    r = run.reflections.taken(rows)
    return rows, ((r.J - r.J_model) / np.sqrt(r.variance)).astype(float)
