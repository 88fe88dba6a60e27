"""Pictures of a fit.  Every function draws on ``ax`` if given and returns it; Matplotlib is
imported when one is called.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .fitting.loop import RunFit
from .fitting.measure_batch import shoebox_for
from .fitting.tables import image_table, usable_images
from .io.protocols import Images
from .measuring.shoebox import Shoebox
from .util.errors import InputError
from .util.text import printable

BLUE, RED, ORANGE, GREY = "#1f5fa8", "#c8382c", "#e07a1f", "0.55"
SHELLS = ("#1b4f8f", "#2a9d8f", ORANGE)  # low to high resolution
STYLE: Any = {
    "font.size": 8.5,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.markersize": 3.5,
}


def overview(run: RunFit, reader: Images) -> Any:
    """One page: an image with its predictions, the fit of the intensities, every image's values."""
    from matplotlib.figure import Figure

    with _styled():
        figure = Figure(figsize=(15, 10.4))
        edges = {"left": 0.035, "right": 0.993, "bottom": 0.045, "top": 0.97}
        apart = {"wspace": 0.2, "hspace": 0.24}
        grid = figure.add_gridspec(3, 4, height_ratios=[1, 1, 0.8], **edges, **apart)
        try:
            predicted_spots(run, reader, ax=figure.add_subplot(grid[:2, :2]))
        except InputError as error:  # gone since it was fitted
            figure.axes[0].set_title(str(error)[:80], parse_math=False)
        calculated_against_observed(run, ax=figure.add_subplot(grid[0, 2]))
        partiality_curve(run, ax=figure.add_subplot(grid[0, 3]))
        residuals_by_resolution(run, ax=figure.add_subplot(grid[1, 2]))
        residual_histogram(run, ax=figure.add_subplot(grid[1, 3]))
        quantities = (
            (("G",), "scale G"),
            (("B",), "Debye–Waller B (Å²)"),
            (("rot_x_mrad", "rot_y_mrad", "rot_z_mrad"), "rotation (mrad)"),
            (("R1",), "spot width R1 (10⁻³ Å⁻¹)"),
        )
        table = image_table(run)
        for k, (names, label) in enumerate(quantities):
            if names[0] in table:
                across_images(table, names, label, ax=figure.add_subplot(grid[2, k]))
    return figure


def save(figure: Any, path: str | Path, dpi: int = 110) -> None:
    """Write a figure as PNG."""
    figure.savefig(path, dpi=dpi, format="png", metadata={"Software": "bayes_refine"})


def predicted_spots(
    run: RunFit, reader: Images, image: int | None = None, size_px: int = 180, ax: Any = None
) -> Any:
    """Part of an image with the predicted centres and the edge of their signal region.

    Args:
        image: index of the still; by default the one where most photons were expected.
        size_px: of the part shown, chosen where the expected spots are densest.

    Raises:
        InputError: the image cannot be read.
    """
    ax = _axes(ax)
    p, seen = run.reflections, run.reflections.measured
    J_model = np.nan_to_num(p.J_model)
    if image is None:
        weight = np.where(seen & usable_images(run)[p.image], J_model, 0.0)
        image = int(np.argmax(np.bincount(p.image, weight, len(run.stills))))
    still = run.stills[image]
    pixels, valid = reader.read(still)
    of_image = np.flatnonzero((p.image == image) & seen)
    bright = of_image[J_model[of_image] > 3 * np.sqrt(p.variance[of_image])]
    panel, x0, y0 = _densest(p.panel[bright], p.xy_px[bright], pixels.shape, size_px)
    shown = np.where(valid, pixels, np.nan)[panel, y0 : y0 + size_px, x0 : x0 + size_px]
    low, high = np.nanpercentile(shown, [50, 99.8]) if np.isfinite(shown).any() else (0, 1)
    extent = (x0, x0 + shown.shape[1], y0 + shown.shape[0], y0)
    style = {"cmap": "Greys", "vmin": low, "vmax": max(high, low + 1e-9)}
    ax.imshow(shown, extent=extent, interpolation="nearest", **style)
    radius = shoebox_of(run).signal_radius
    here = of_image[p.panel[of_image] == panel]
    inside = np.all((p.xy_px[here] > [x0, y0]) & (p.xy_px[here] < [extent[1], extent[2]]), axis=1)
    for k in here[inside]:
        expected = k in bright
        circle = {"color": BLUE if expected else ORANGE, "lw": 1.0 if expected else 0.7}
        ax.add_patch(_circle(p.xy_px[k], radius, **circle))
    centres = p.xy_px[here[inside]]
    ax.plot(*centres.T, "+", ms=5, mew=0.8, color=RED)
    for color, text in (
        (BLUE, "signal region, more than 3σ expected"),
        (ORANGE, "signal region, less expected"),
    ):
        ax.plot([], [], "o", mfc="none", color=color, ms=7, label=text)
    ax.plot([], [], "+", color=RED, label="predicted centre")
    ax.legend(loc="upper right", framealpha=0.9, frameon=True, edgecolor="none")
    ax.set(xlabel="fast (px)", ylabel="slow (px)", xlim=extent[:2], ylim=extent[2:])
    where = f", panel {panel}" if len(pixels) > 1 else ""
    shades = f"white {low:.3g}, black {high:.3g} photons a pixel"
    name = printable(still.identifier)[:60]
    ax.set_title(f"{name}{where}: {shades}", parse_math=False)  # names are no TeX
    return ax


def calculated_against_observed(run: RunFit, ax: Any = None) -> Any:
    """J against J_model, reflections the fit saw and the free ones."""
    ax = _axes(ax)
    r = run.reflections
    known = r.measured & np.isfinite(r.intensity_reference) & usable_images(run)[r.image]
    J, J_model = r.J, r.J_model
    linear = 3 * float(np.sqrt(np.quantile(r.variance[known], 0.1)))
    top = float(np.nanmax(np.maximum(J, J_model)[known])) * 1.3
    ax.plot([-linear, top], [-linear, top], color="k", lw=0.7)
    for free, color, name in ((False, BLUE, "fitted"), (True, RED, "free")):
        rows = known & (r.free == free)
        size = 1.6 if rows.sum() > 5000 else 3
        ax.plot(
            J_model[rows],
            J[rows],
            ".",
            ms=size,
            color=color,
            alpha=0.5,
            label=f"{name}, {rows.sum()}",
        )
    ax.set_xscale("symlog", linthresh=linear)
    ax.set_yscale("symlog", linthresh=linear)
    low = min(float(np.nanpercentile(J[known], 0.5)) * 1.5, -linear / 2)
    ax.set(
        xlim=(-linear / 4, top), ylim=(low, top), xlabel="J_model (photons)", ylabel="J (photons)"
    )
    ax.set_title("observed and expected intensity")
    legend = ax.legend(loc="upper left", handletextpad=0.1)
    for handle in legend.legend_handles:
        handle.set_markersize(6)
        handle.set_alpha(1)
    return ax


def partiality_curve(run: RunFit, ax: Any = None, n_bins: int = 21) -> Any:
    """Mean of J/(G·B_term·pol·I_ref) against ε_r in three resolution shells, and the fitted p.

    Weighted means in bins of ε_r, Σ(hJ/σ²)/Σ(h²/σ²) with h = G·B_term·pol·I_ref: what the
    partiality must have been; the line is the same mean of p.
    """
    ax = _axes(ax)
    r = run.reflections
    rows = np.flatnonzero(r.informs & usable_images(run)[r.image])
    p = r.partiality[rows].astype(float)
    epsilon = r.excitation_error[rows] * 1e3
    h = r.J_model[rows] / np.maximum(p, 1e-12)
    weight = h**2 / r.variance[rows]
    ratio = r.J[rows] / np.where(h > 0, h, np.inf)
    edges = np.linspace(-1, 1, n_bins + 1) * np.percentile(np.abs(epsilon), 99)
    middle = (edges[:-1] + edges[1:]) / 2
    d = r.d[rows]
    limits = np.quantile(d, [1, 2 / 3, 1 / 3, 0])
    for k, color in enumerate(SHELLS):
        inside = (d <= limits[k]) & (d >= limits[k + 1])
        bins = np.digitize(epsilon[inside], edges) - 1
        good = (bins >= 0) & (bins < n_bins)

        def mean(values, bins=bins[good], w=weight[inside][good]):
            total = np.bincount(bins, w, n_bins)
            with np.errstate(invalid="ignore", divide="ignore"):
                return np.bincount(bins, w * values, n_bins) / total, total**-0.5

        observed, sd = mean(ratio[inside][good])
        fitted = mean(p[inside][good])[0]
        sure = sd < 0.15
        name = f"{limits[k]:.1f}–{limits[k + 1]:.1f} Å"
        ax.errorbar(
            middle[sure], observed[sure], sd[sure], fmt="o", color=color, lw=0.8, label=name
        )
        ax.plot(middle[sure], fitted[sure], color=color, lw=1.2)
    ax.axhline(0, color="k", lw=0.5)
    ax.set(xlabel="excitation error ε_r (10⁻³ Å⁻¹)", ylabel="partiality", ylim=(-0.1, None))
    ax.set_title("partiality: observed (points), fitted (lines)")
    ax.legend(loc="upper left", handletextpad=0.2)
    return ax


def residuals_by_resolution(run: RunFit, ax: Any = None, n_bins: int = 12) -> Any:
    """(J − J_model)/σ against resolution with its median and the band that holds 68 %."""
    ax = _axes(ax)
    rows, z = residuals(run)
    s = 1 / run.reflections.d[rows].astype(float) ** 2
    ax.plot(s, np.clip(z, -8, 8), ".", ms=1.6 if len(z) > 5000 else 2.5, color=BLUE, alpha=0.3)
    edges = np.quantile(s, np.linspace(0, 1, n_bins + 1))
    bins = np.clip(np.digitize(s, edges) - 1, 0, n_bins - 1)
    bands = np.array([np.quantile(z[bins == k], [0.159, 0.5, 0.841]) for k in range(n_bins)])
    middle = (edges[1:] + edges[:-1]) / 2
    ax.plot(middle, bands[:, 1], color=RED, lw=1.6, label="median")
    ax.plot(middle, bands[:, [0, 2]], color=RED, lw=1.0, ls="--", label=["68 %", None])
    for level in (-1, 1):
        ax.axhline(level, color="k", lw=0.5)
    spacing = np.array([8, 5, 4, 3.5, 3, 2.7, 2.5, 2.3, 2.1, 2, 1.9, 1.8, 1.7, 1.6, 1.5])
    step = spacing[(spacing**-2.0 > s.min()) & (spacing**-2.0 < s.max())]
    kept = [step[0]] if len(step) else []
    for value in step:  # no labels on top of each other
        if value**-2 - kept[-1] ** -2 > 0.09 * np.ptp(s):
            kept.append(value)
    ax.set_xticks([v**-2.0 for v in kept], [f"{v:g}" for v in kept])
    ax.set(xlabel="resolution d (Å)", ylabel="(J − J_model)/σ", ylim=(-8.3, 8.3))
    ax.set_title("residuals, σ as the fit took it")
    ax.legend(loc="upper left", ncols=2, handlelength=1.5)
    return ax


def residual_histogram(run: RunFit, ax: Any = None) -> Any:
    """Distribution of (J − J_model)/σ of weak and strong reflections beside N(0, 1)."""
    ax = _axes(ax)
    rows, z = residuals(run)
    strength = run.reflections.J_model[rows] / np.sqrt(run.reflections.variance[rows])
    edges = np.linspace(-6, 6, 41)
    for chosen, color, name in (
        (strength < 3, GREY, "J_model < 3σ"),
        (strength >= 3, BLUE, "J_model ≥ 3σ"),
    ):
        if chosen.any():
            clipped = np.clip(z[chosen], -5.99, 5.99)
            label = f"{name}: rms {np.sqrt(np.mean(z[chosen] ** 2)):.2f}"
            ax.hist(clipped, edges, density=True, histtype="step", color=color, lw=1.3, label=label)
    x = np.linspace(-6, 6, 200)
    ax.plot(x, np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi), color="k", lw=0.8, label="N(0, 1)")
    ax.set(xlabel="(J − J_model)/σ", ylabel="density", xlim=(-6, 6), ylim=(0, None))
    ax.set_ylim(0, 1.35 * ax.get_ylim()[1])
    ax.set_title("distribution of the residuals")
    ax.legend(loc="upper left")
    return ax


def across_images(
    table: dict[str, np.ndarray], names: Sequence[str], label: str, ax: Any = None
) -> Any:
    """Values of each image with their sd, from ``tables.image_table``."""
    ax = _axes(ax)
    unit = 1e3 if names == ("R1",) else 1.0
    n = len(table["identifier"])
    for k, name in enumerate(names):
        value, sd = unit * table[name], unit * table[f"{name}_sd"]
        color = BLUE if len(names) == 1 else SHELLS[k]
        x = np.arange(n) + (0.12 * (k - 1) if len(names) > 1 and n <= 40 else 0.0)
        text = name.split("_")[1] if len(names) > 1 else None
        ax.errorbar(
            x, value, sd, fmt="o", ms=3.5 if n <= 60 else 2, lw=0.8, color=color, label=text
        )
    if names == ("G",):
        ax.set_yscale("log")
        ax.yaxis.set_minor_formatter("{x:g}" if _narrow(table["G"]) else "")
        ax.yaxis.set_major_formatter("{x:g}")
    if len(names) > 1:
        ax.axhline(0, color="k", lw=0.5)
        ax.legend(ncols=3, handletextpad=0.1, columnspacing=0.8)
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set(xlabel="image", xlim=(-0.6, n - 0.4))
    ax.set_title(label)
    return ax


# -- helpers --------------------------------------------------------------------------------


def _styled() -> Any:
    import matplotlib

    return matplotlib.rc_context(STYLE)


def _axes(ax: Any) -> Any:
    if ax is not None:
        return ax
    from matplotlib.figure import Figure

    return Figure(figsize=(5, 4), layout="constrained").add_subplot()


def _circle(xy: np.ndarray, radius: float, **style: Any) -> Any:
    from matplotlib.patches import Circle

    return Circle(tuple(xy), radius, fill=False, **style)


def _narrow(values: np.ndarray) -> bool:
    return bool(np.nanmax(values) < 8 * np.nanmin(values))


def shoebox_of(run: RunFit) -> Shoebox:
    """The shoebox of the last round, to within its steps of a pixel."""
    shoebox = shoebox_for(run.reflections.frame, run.reflections.spot_moment.astype(float))
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


def residuals(run: RunFit) -> tuple[np.ndarray, np.ndarray]:
    """Rows that inform the fit, and (J − J_model)/σ."""
    r = run.reflections
    rows = np.flatnonzero(r.informs & usable_images(run)[r.image])
    return rows, ((r.J - r.J_model) / np.sqrt(r.variance))[rows].astype(float)
