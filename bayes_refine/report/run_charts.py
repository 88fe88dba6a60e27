"""Pictures of a run as a whole: its images, merged intensities, posterior.

Each function draws plain arrays on an empty Matplotlib figure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .drawing import MAX_HOVER, image_axis, legend, on_lines, resolution_ticks, sample
from .page import margins
from .quantities import quantity
from .style import BLUE, GREY, ORANGE, RED, SHELLS

MIN_PAIRS = 10  # pairs that a shell needs for its correlation to be drawn
_PAIRS = {"cc_half": "n_both_halves", "cc_star": "n_both_halves", "r_split": "n_both_halves"}
_PAIRS |= {"cc_free": "n_free", "cc_anom": "n_anom"}


def across_images(
    figure: Any, table: Mapping[str, np.ndarray], names: Sequence[str], bad: np.ndarray
) -> None:
    """Draw a number (or three on one axis) of each image with its sd; crosses: failed images."""
    ax = figure.add_subplot()
    n = len(bad)
    unit = quantity(names[0])
    everything = []
    for k, name in enumerate(names):
        factor = quantity(name).factor
        value = factor * np.asarray(table[name], float)
        sd = factor * np.asarray(table.get(f"{name}_sd", np.zeros(n)), float)
        rows = np.flatnonzero(np.isfinite(value) & ~bad)
        x = rows + (0.16 * (k - 1) if len(names) > 1 and n <= 40 else 0.0)
        color = BLUE if len(names) == 1 else SHELLS[k]
        if n <= 400:
            ax.vlines(x, (value - sd)[rows], (value + sd)[rows], color=color, lw=0.9, alpha=0.8)
        label = name.split("_")[1] if len(names) > 1 else None
        gid = f"images-{name}" if len(rows) <= MAX_HOVER else None
        size = 12 if n <= 60 else 6 if n <= 400 else 2.5
        ax.scatter(
            x, value[rows], s=size, color=color, label=label, gid=gid, rasterized=gid is None
        )
        everything.append(value[rows])
    values = np.concatenate(everything)
    if names[0] == "G" and (values > 0).all() and values.max() > 3 * values.min():
        from matplotlib.ticker import LogLocator

        ax.set_yscale("log")
        ax.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
        ax.yaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_minor_formatter("{x:g}")
    if bad.any():
        where = np.flatnonzero(bad)
        ax.plot(
            where, np.full(len(where), 0.02), "x", color=RED, transform=ax.get_xaxis_transform()
        )
    if len(names) > 1:
        ax.axhline(0, color="k", lw=0.5)
        legend(ax, loc="lower right", bbox_to_anchor=(1, 1), ncols=3)
    label = unit.label.removesuffix(" x") if len(names) > 1 else unit.label
    ax.set(ylabel=f"{label} ({unit.unit})" if unit.unit else label)
    image_axis(ax, n)


# -- agreement and posterior ----------------------------------------------------------------


def agreement(figure: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draw correlations, R_split, ⟨I/σ⟩, completeness and multiplicity by resolution shell."""
    shells = [row for row in rows if row["shell"] != "all"]
    middle = np.array([(row["d_max"] ** -3 + row["d_min"] ** -3) / 2 for row in shells]) ** (2 / 3)

    def of(name: str) -> np.ndarray:
        values = [np.nan if row.get(name) is None else row[name] for row in shells]
        pairs_of = [row.get(_PAIRS.get(name, "n_unique")) or 0 for row in shells]
        return np.where(np.array(pairs_of) >= MIN_PAIRS, np.array(values, float), np.nan)

    panels = (
        (
            "correlation",
            (
                ("cc_half", "CC½", BLUE, "-"),
                ("cc_star", "CC*", BLUE, "--"),
                ("cc_ref", "CC_ref", ORANGE, "-"),
                ("cc_free", "CC_free", RED, "-"),
                ("cc_anom", "CC_anom", GREY, "-"),
            ),
        ),
        ("R_split (%)", (("r_split", "R_split", BLUE, "-"),)),
        ("⟨I/σ⟩", (("mean_i_over_sigma", "⟨I/σ⟩", BLUE, "-"),)),
        ("completeness (%)", (("completeness", "completeness", BLUE, "-"),)),
        ("multiplicity", (("multiplicity", "multiplicity", BLUE, "-"),)),
    )
    figure.subplots_adjust(wspace=0.33)
    for k, (label, lines) in enumerate(panels):
        ax = figure.add_subplot(1, len(panels), k + 1)
        factor = 100 if "%" in label else 1
        for name, text, color, dashes in lines:
            if np.isfinite(of(name)).any():
                y = factor * of(name)
                ax.plot(middle, y, marker="o", color=color, ls=dashes, lw=1.2, label=text)
        ax.set(xlabel="resolution d (Å)", ylabel=label)
        if label == "correlation":
            lowest = np.nanmin([0, *of("cc_half"), *of("cc_free"), *of("cc_anom")])
            ax.set_ylim(lowest - 0.03, 1.03)
            legend(ax, loc="lower left")
        else:
            top = {"R_split (%)": min(ax.get_ylim()[1], 150), "completeness (%)": 103}
            ax.set_ylim(0, top.get(label))
        ax.set_xlim(0, 1.06 * max(row["d_min"] ** -2 for row in shells))
        resolution_ticks(ax, np.array([row["d_min"] ** -2 for row in shells]), apart=0.2)


def pairs(figure: Any, draws: Mapping[str, np.ndarray]) -> None:
    """Draw every pair of shared unknowns in a matrix of cells.

    Draws are below the diagonal, histograms on it, correlations above it.  One Axes has all cells,
    cell (row i, column j) at x = j, y = n − 1 − i, since n² Axes would be slow.
    """
    from matplotlib.collections import LineCollection

    names, n = list(draws), len(draws)
    _margins(figure, left=1.95, bottom=0.95, right=0.05, top=0.05)
    ax = figure.add_subplot()
    values = np.array([quantity(k).factor * np.asarray(draws[k], float) for k in names])
    low, high = values.min(axis=1), values.max(axis=1)
    unit = 0.05 + 0.86 * (values - low[:, None]) / (high - low)[:, None]  # position in a cell
    rows = sample(np.arange(values.shape[1]), 1000)
    correlation = np.corrcoef(values)
    low_cells = [(i, j) for i in range(n) for j in range(i)]
    x = [j + unit[j][rows] for _, j in low_cells]
    y_of = [n - 1 - i + unit[i][rows] for i, _ in low_cells]
    style = {"ms": 2.4, "mew": 0, "color": BLUE, "alpha": 0.5, "rasterized": True}
    ax.plot(np.concatenate(x), np.concatenate(y_of), "o", **style)
    lines = []
    for i in range(n):
        y = n - 1 - i
        height, edges = np.histogram(unit[i], 20)
        ax.stairs(y + 0.86 * height / height.max(), i + edges, baseline=y, fill=True, color=BLUE)
        lines += [[(j, y + 0.96), (j, y), (j + 0.96, y)] for j in range(i + 1)]
        for j in range(i + 1, n):
            c = correlation[i, j]
            color = RED if abs(c) > 0.5 else "k" if abs(c) > 0.2 else GREY
            text = f"{c:+.2f}".replace("-", "−")
            size = 8 + 4 * abs(c)
            ax.text(j + 0.48, y + 0.48, text, ha="center", va="center", size=size, color=color)
    ax.add_collection(LineCollection(lines, colors="0.4", linewidths=0.6))
    _cell_ticks(ax, names, low, high)
    ax.spines[:].set_visible(False)
    ax.set(xlim=(-0.02, n), ylim=(-0.02, n))


def _cell_ticks(ax: Any, names: Sequence[str], low: np.ndarray, high: np.ndarray) -> None:
    """Write two or three values and the name of each unknown beside its row and column."""
    from matplotlib.ticker import MaxNLocator

    n = len(names)
    at: list[float] = []
    labels: list[str] = []
    for k in range(n):
        ticks = MaxNLocator(2, steps=[1, 2, 5, 10]).tick_values(low[k], high[k])
        inside = ticks[(ticks >= low[k]) & (ticks <= high[k])]
        at += list(k + 0.05 + 0.86 * (inside - low[k]) / (high[k] - low[k]))
        labels += [f"{t:.6g}".replace("-", "−") for t in inside]
        middle = k + 0.48
        words = "\n".join(on_lines(names[k]))
        ax.annotate(
            words, (middle, 0), (0, -26), xycoords=ax.transData, textcoords="offset points",
            ha="center", va="top", size=7.5,
        )  # fmt: skip
        if k:
            ax.annotate(
                words, (0, n - 1 - k + 0.48), (-40, 0), xycoords=ax.transData,
                textcoords="offset points", ha="right", va="center", size=7.5,
            )  # fmt: skip
    rows = [(n - 1 - int(x) + x % 1, label) for x, label in zip(at, labels, strict=True) if x >= 1]
    ax.set_xticks(at, labels, size=6.5)
    ax.set_yticks([y for y, _ in rows], [label for _, label in rows], size=6.5)
    ax.tick_params(length=2, color="0.4")


def couplings(figure: Any, names: Sequence[str], correlation: np.ndarray) -> None:
    """Draw a matrix of posterior correlations with numbers in the cells."""
    n = len(names)
    longest = 0.3 + 0.075 * max(map(len, names))
    _margins(figure, left=longest, bottom=0.75 * longest, right=0.35, top=0.05)
    ax = figure.add_subplot()
    below = np.where(np.tri(n, k=-1, dtype=bool), correlation, np.nan)[1:, :-1]
    shown = ax.imshow(below, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="none", aspect="auto")
    for (i, j), c in np.ndenumerate(below):
        if np.isfinite(c) and n <= 22 and abs(c) >= 0.005:
            color = "w" if abs(c) > 0.6 else "k" if abs(c) > 0.05 else "0.6"
            text = f"{c:.2f}".replace("-", "−")
            ax.text(j, i, text, ha="center", va="center", size=6.5, color=color)
    ax.set_xticks(range(n - 1), names[:-1], rotation=45, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(n - 1), names[1:])
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    figure.colorbar(shown, ax=ax, label="posterior correlation", fraction=0.03, pad=0.01)


def _margins(figure: Any, **inches: float) -> None:
    """Set the margins of a figure (``page.margins``)."""
    found = margins(tuple(figure.get_size_inches()), **inches)
    figure.subplots_adjust(**{name.rsplit(".", 1)[1]: value for name, value in found.items()})
