"""Elements that the pictures of a report share.

More than ``MAX_POINTS`` points are drawn as a two-dimensional histogram; where single points are
drawn on top, a sample of them with a fixed seed.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .quantities import quantity
from .style import BLUE, RED

SHOWN = 500_000  # reflections that a report looks at
MAX_POINTS = 20_000
MAX_HOVER = 3000  # largest number of images whose points can be hovered over
_D_TICKS = (20, 8, 5, 4, 3.5, 3, 2.7, 2.5, 2.3, 2.1, 2, 1.9, 1.8, 1.7, 1.6, 1.5, 1.4, 1.3, 1.2, 1.1)


def shown(rows: np.ndarray) -> np.ndarray:
    """Rows (n,), of very many every so many, some ``SHOWN`` in all."""
    return rows[:: max(1, -(-len(rows) // SHOWN))]


def sample(rows: np.ndarray, most: int) -> np.ndarray:
    """At most ``most`` of the rows (n,), in order; the same sample every time."""
    if len(rows) <= most:
        return rows
    return np.sort(np.random.default_rng(0).choice(rows, most, replace=False))


def points(ax: Any, x: np.ndarray, y: np.ndarray, color: str, label: str | None) -> None:
    """Draw n dots; many dots are small and rasterised."""
    size = 3.5 if len(x) < 3000 else 2
    style = {"color": color, "alpha": 0.5, "mew": 0, "rasterized": len(x) > 300}
    ax.plot(x, y, "o", ms=size, **style)
    if label:
        ax.plot([], [], "o", ms=5, mew=0, color=color, label=label)


def cloud(ax: Any, x: np.ndarray, y: np.ndarray, label: str | None) -> None:
    """Draw points; of many points, the number in each cell of the axes on a logarithmic scale."""
    if len(x) <= MAX_POINTS:
        points(ax, x, y, BLUE, label)
        return
    corners = np.array([[ax.get_xlim()[k], ax.get_ylim()[k]] for k in (0, 1)])
    to_axes = ax.transScale
    (x0, y0), (x1, y1) = to_axes.transform(corners)
    at_x, at_y = to_axes.transform(np.stack([x, y], axis=1)).T
    edges = [np.linspace(x0, x1, 141), np.linspace(y0, y1, 101)]
    count = np.histogram2d(at_x, at_y, edges)[0].T
    back = [
        to_axes.inverted().transform(np.stack([edges[0], np.full(141, y0)], 1))[:, 0],
        to_axes.inverted().transform(np.stack([np.full(101, x0), edges[1]], 1))[:, 1],
    ]
    shade = np.where(count > 0, np.log1p(count), np.nan)
    ax.pcolormesh(*back, shade, cmap="Blues", vmin=-1, rasterized=True)
    if label:
        ax.plot([], [], "s", ms=6, mew=0, color=BLUE, label=f"{label} (darker: more)")


def bands(ax: Any, x: np.ndarray, z: np.ndarray, edges: np.ndarray) -> None:
    """Draw median and central 68 % of z in bins of x."""
    n = len(edges) - 1
    bins = np.clip(np.searchsorted(edges, x, side="right") - 1, 0, n - 1)
    kept = [k for k in range(n) if (bins == k).any()]
    bands = np.array([np.quantile(z[bins == k], [0.159, 0.5, 0.841]) for k in kept])
    middle = ((edges[1:] + edges[:-1]) / 2)[kept]
    ax.plot(middle, bands[:, 1], "o-", color=RED, lw=1.6, label="median")
    ax.plot(middle, bands[:, 0], color=RED, lw=1.1, ls="--", label="central 68 %")
    ax.plot(middle, bands[:, 2], color=RED, lw=1.1, ls="--")
    levels(ax)


def levels(ax: Any) -> None:
    """Draw lines at −1, 0 and 1."""
    for level in (-1, 0, 1):
        ax.axhline(level, color="k", lw=0.5 if level else 0.8, ls=":" if level else "-")


def resolution_ticks(ax: Any, s: np.ndarray, apart: float = 0.09) -> None:
    """Set ticks at values of d on an axis of 1/d², without overlap."""
    kept: list[float] = []
    for d in _D_TICKS:
        if d**-2.0 <= 1.03 * s.max() and (
            not kept or d**-2.0 - kept[-1] ** -2 > apart * float(s.max())
        ):
            kept.append(d)
    ax.set_xticks([d**-2.0 for d in kept], [f"{d:g}" for d in kept])


def image_axis(ax: Any, n: int) -> None:
    """Set the x axis to n images."""
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set(xlabel="image, in the order of the run", xlim=(-0.6, n - 0.4))


def legend(ax: Any, **style: Any) -> None:
    """Draw a legend if anything has a label."""
    if ax.get_legend_handles_labels()[0]:
        ax.legend(handletextpad=0.4, columnspacing=1.0, borderaxespad=0.2, **style)


def on_lines(name: str) -> tuple[str, ...]:
    """Break a label into two or three lines, words first, then the unit."""
    found = quantity(name)
    words = found.label.split(" ")
    cut = (len(words) + 1) // 2
    lines = [" ".join(words[:cut]), " ".join(words[cut:]), f"({found.unit})" if found.unit else ""]
    return tuple(line for line in lines if line)
