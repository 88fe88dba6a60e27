"""Pictures of reflections; each function draws plain arrays on an empty Matplotlib figure."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from scipy import special

from .arrows import Arrows
from .beam import Shell
from .drawing import (
    MAX_HOVER,
    MAX_POINTS,
    bands,
    cloud,
    image_axis,
    legend,
    levels,
    points,
    resolution_ticks,
    sample,
)
from .style import BLUE, GREY, ORANGE, RED, SHELLS

CLIP = 8.0  # larger residuals are drawn at this value


@dataclass(frozen=True)
class ObservedAndExpected:
    """n measured reflections with an expected J; finite, flat over images.

    Attributes:
        image: (n,) index of the image.
        J, J_model, sigma: (n,) measured, expected, and expected sd, photons.
        d: (n,) Å.
        fitted: (n,) bool, whether the fit used it; free: (n,) bool, in the free set.
        excitation_error, partiality: (n,) ε_r, Å⁻¹, and p; or None.
        xy_mm: (n, 2) position on the detector, lab frame; or None.
        arrows: displacements of spots and panels, or None. outwards: displacements along the
            radius, by resolution.
    """

    image: np.ndarray
    J: np.ndarray
    J_model: np.ndarray
    sigma: np.ndarray
    d: np.ndarray
    fitted: np.ndarray
    free: np.ndarray
    excitation_error: np.ndarray | None = None
    partiality: np.ndarray | None = None
    xy_mm: np.ndarray | None = None
    arrows: Arrows | None = None
    outwards: tuple[Shell, ...] = ()

    def __len__(self) -> int:
        return len(self.image)

    @property
    def pull(self) -> np.ndarray:
        """(n,) (J − J_model)/σ."""
        return (self.J - self.J_model) / self.sigma


# -- J of spots ------------------------------------------------------------------------------


def observed_expected(figure: Any, r: ObservedAndExpected) -> None:
    """Draw J against J_model; axes are linear up to 3σ of the background, logarithmic beyond."""
    ax = figure.add_subplot()
    linear = 3 * float(np.quantile(r.sigma, 0.1))
    top = 1.3 * float(max(r.J.max(), r.J_model.max(), linear))
    low = min(1.5 * float(np.quantile(r.J, 0.005)), -linear / 2)
    ax.set_xscale("symlog", linthresh=linear)
    ax.set_yscale("symlog", linthresh=linear)
    ax.set(xlim=(-linear / 4, top), ylim=(low, top))
    ax.plot([-linear, top], [-linear, top], color="k", lw=0.8, zorder=3)
    cloud(ax, r.J_model[r.fitted], r.J[r.fitted], f"fitted, {r.fitted.sum()}")
    if r.free.any():
        rows = sample(np.flatnonzero(r.free), MAX_POINTS // 4)
        points(ax, r.J_model[rows], r.J[rows], RED, f"free, {r.free.sum()}")
    ax.set(xlabel="expected J_model (photons)", ylabel="measured J (photons)")
    legend(ax, loc="upper left")


def partiality_curve(figure: Any, r: ObservedAndExpected, n_bins: int = 21) -> None:
    """Draw J/(G·B_term·pol·I_ref) in bins of ε_r in three resolution shells, and the fitted p.

    Points are weighted means Σ(hJ/σ²)/Σ(h²/σ²) with h = G·B_term·pol·I_ref, which estimate the
    partiality; lines are the same means of the fitted p.
    """
    ax = figure.add_subplot()
    assert r.excitation_error is not None and r.partiality is not None
    p, rows = r.partiality, r.fitted & (r.partiality > 1e-9)
    h = r.J_model[rows] / p[rows]
    weight = h**2 / r.sigma[rows] ** 2
    ratio = r.J[rows] / np.where(h > 0, h, np.inf)
    epsilon, d, p = r.excitation_error[rows] * 1e3, r.d[rows], p[rows]
    edges = np.linspace(-1, 1, n_bins + 1) * np.percentile(np.abs(epsilon), 99)
    middle = (edges[:-1] + edges[1:]) / 2
    limits = np.quantile(d, [1, 2 / 3, 1 / 3, 0])
    for k, color in enumerate(SHELLS):
        inside = (d <= limits[k]) & (d >= limits[k + 1])
        bins = np.digitize(epsilon, edges) - 1
        good = inside & (bins >= 0) & (bins < n_bins)
        with np.errstate(divide="ignore", invalid="ignore"):
            total = np.bincount(bins[good], weight[good], n_bins)
            observed, fitted = (
                np.bincount(bins[good], (weight * value)[good], n_bins) / total
                for value in (ratio, p)
            )
            sd = total**-0.5
        sure = sd < 0.15
        label = f"{limits[k]:.1f}–{limits[k + 1]:.1f} Å"
        ax.errorbar(
            middle[sure], observed[sure], sd[sure], fmt="o", color=color, lw=0.8, label=label
        )
        ax.plot(middle[sure], fitted[sure], color=color, lw=1.3)
    ax.axhline(0, color="k", lw=0.5)
    ax.set(xlabel="excitation error ε_r (10⁻³ Å⁻¹)", ylabel="partiality p", ylim=(-0.1, None))
    legend(ax, loc="upper left", title="points: measured\nlines: fitted", alignment="left")


# -- residuals ------------------------------------------------------------------------------


def residuals_by_resolution(figure: Any, r: ObservedAndExpected, n_bins: int = 12) -> None:
    """Draw (J − J_model)/σ of fitted reflections against 1/d², with median and central 68 %."""
    ax = figure.add_subplot()
    s, z = 1 / r.d[r.fitted] ** 2, r.pull[r.fitted]
    ax.set_ylim(-CLIP - 0.3, CLIP + 0.3)
    ax.set_xlim(0, 1.02 * s.max())
    cloud(ax, s, np.clip(z, -CLIP, CLIP), None)
    edges = np.quantile(s, np.linspace(0, 1, max(min(n_bins, len(s) // 20), 1) + 1))
    bands(ax, s, z, edges)
    resolution_ticks(ax, s)
    ax.set(xlabel="resolution d (Å)", ylabel="(J − J_model)/σ")
    legend(ax, loc="upper left", ncols=2)


def residuals_on_detector(figure: Any, r: ObservedAndExpected, per_bin: int = 20) -> None:
    """Draw mean and rms of (J − J_model)/σ in cells of the detector."""
    assert r.xy_mm is not None
    (x, y), z = r.xy_mm[r.fitted].T, np.clip(r.pull[r.fitted], -CLIP, CLIP)
    bins = int(np.clip(np.sqrt(len(z) / per_bin), 3, 60))
    edges = [np.linspace(v.min(), np.nextafter(v.max(), np.inf), bins + 1) for v in (x, y)]
    count, total, square = (
        np.histogram2d(x, y, edges, weights=w)[0].T for w in (np.ones_like(z), z, z**2)
    )
    enough = count >= min(5, count.max())
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.where(enough, total / count, np.nan)
        rms = np.where(enough, np.sqrt(square / count), np.nan)
    figure.subplots_adjust(wspace=0.1)
    for k, (values, name, style) in enumerate(
        (
            (mean, "mean (J − J_model)/σ", {"cmap": "RdBu_r", "vmin": -1.5, "vmax": 1.5}),
            (rms, "rms (J − J_model)/σ", {"cmap": "viridis", "vmin": 0, "vmax": 3}),
        )
    ):
        ax = figure.add_subplot(1, 2, k + 1)
        shown = ax.pcolormesh(*edges, values, rasterized=True, **style)
        ax.set(aspect="equal", xlabel="detector x (mm)", ylabel="y (mm)" if k == 0 else "")
        figure.colorbar(shown, ax=ax, label=name, shrink=0.9)


def residuals_by_image(figure: Any, r: ObservedAndExpected, n_images: int) -> None:
    """Draw median and central 68 % of (J − J_model)/σ of each image, in the order of the run."""
    ax = figure.add_subplot()
    images, quantiles = image_quantiles(r)
    low, middle, high = quantiles.T
    gid = "images-pull_rms" if len(images) <= MAX_HOVER else None
    drawn = {"color": BLUE, "label": "central 68 %", "rasterized": gid is None}
    if len(images) <= 200:
        ax.vlines(images, low, high, lw=1.2, alpha=0.6, **drawn)
    else:
        ax.fill_between(images, low, high, alpha=0.25, lw=0, **drawn)
    drawn |= {"color": RED, "label": "median"}
    ax.scatter(images, middle, s=9, gid=gid, zorder=3, **drawn)
    levels(ax)
    image_axis(ax, n_images)
    ax.set(ylabel="(J − J_model)/σ")
    legend(ax, loc="upper left", ncols=2)
    bottom, top = ax.get_ylim()
    ax.set_ylim(min(bottom, -2), max(top, 2) + 0.15 * (max(top, 2) - min(bottom, -2)))


def image_quantiles(r: ObservedAndExpected) -> tuple[np.ndarray, np.ndarray]:
    """The m images with fitted reflections, and the 15.9, 50 and 84.1 % quantiles of their pulls.

    Returns:
        images: (m,). quantiles: (m, 3).
    """
    rows = np.flatnonzero(r.fitted)
    rows = rows[np.argsort(r.image[rows], kind="stable")]
    images, start = np.unique(r.image[rows], return_index=True)
    parts = np.split(r.pull[rows], start[1:])
    return images, np.array([np.quantile(part, [0.159, 0.5, 0.841]) for part in parts])


# -- calibration ----------------------------------------------------------------------------


def expected_cdf(z: np.ndarray, nu: float) -> np.ndarray:
    """P(Z < z) for a Student-t law with ν degrees of freedom; the normal law for infinite ν."""
    return special.ndtr(z) if np.isinf(nu) else special.stdtr(nu, z)


def expected_half_width(nu: float) -> float:
    """Half the width of the central 68.27 % of the expected pulls."""
    return 1.0 if np.isinf(nu) else float(special.stdtrit(nu, special.ndtr(1.0)))


def pull_histogram(figure: Any, r: ObservedAndExpected, nu: float) -> None:
    """Draw the distribution of pulls, fitted and free, with the likelihood's law and N(0, 1)."""
    ax = figure.add_subplot()
    edges = np.linspace(-6, 6, 49 if len(r) > 3000 else 25)
    width = edges[1] - edges[0]
    for rows, color, name in ((r.fitted, BLUE, "fitted"), (r.free, RED, "free")):
        if rows.any():
            z = np.clip(r.pull[rows], -5.99, 5.99)
            rms = np.sqrt(np.mean(r.pull[rows] ** 2))
            density = np.histogram(z, edges)[0] / len(z) / width
            ax.stairs(density, edges, color=color, lw=1.4, label=f"{name}, rms {rms:.2f}")
    x = np.linspace(-6, 6, 241)
    ax.plot(x, np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi), color="k", lw=0.8, label="N(0, 1)")
    if np.isfinite(nu):
        steps = (expected_cdf(x + 1e-4, nu) - expected_cdf(x - 1e-4, nu)) / 2e-4
        ax.plot(x, steps, color="k", lw=0.8, ls="--", label=f"Student-t, ν = {nu:.3g}")
    ax.set(xlabel="(J − J_model)/σ", ylabel="density", xlim=(-6, 6))
    ax.set_ylim(0, 1.25 * ax.get_ylim()[1])
    legend(ax, loc="upper left")


def probability(figure: Any, r: ObservedAndExpected, nu: float) -> None:
    """Draw observed minus expected cumulative probability of the pulls (a P–P plot, levelled)."""
    ax = figure.add_subplot()
    for rows, color, name in ((r.fitted, BLUE, "fitted"), (r.free, RED, "free")):
        n = int(rows.sum())
        if not n:
            continue
        kept = np.unique(np.linspace(0, n - 1, min(n, 600)).astype(int))
        u = expected_cdf(np.sort(r.pull[rows])[kept], nu)
        band = 1.36 / np.sqrt(n)
        ax.fill_between([0, 1], -band, band, color=color, alpha=0.12, lw=0)
        ax.plot(u, ((kept + 0.5) / n) - u, color=color, lw=1.4, label=f"{name}, {n}")
    ax.axhline(0, color="k", lw=0.5)
    top = max(0.1, 1.1 * float(np.abs(ax.get_ylim()).max()))
    ax.set(xlabel="expected cumulative probability", ylabel="observed − expected", xlim=(0, 1))
    ax.set_ylim(-top, top)
    legend(ax, loc="upper left")


def pull_width(figure: Any, r: ObservedAndExpected, nu: float) -> None:
    """Draw the width of the central 68 % of pulls over the expected width, by strength and d."""
    ax = figure.add_subplot()
    rows = r.fitted | r.free
    s, z, strength = 1 / r.d[rows] ** 2, r.pull[rows], (r.J_model / r.sigma)[rows]
    n_bins = int(np.clip(len(s) // 150, 1, 8))
    edges = np.quantile(s, np.linspace(0, 1, n_bins + 1))
    limits = np.quantile(strength, [0, 1 / 3, 2 / 3, 1])
    for k, (color, name) in enumerate(((GREY, "weak"), (BLUE, "medium"), (ORANGE, "strong"))):
        inside = (strength >= limits[k]) & (strength <= limits[k + 1])
        at, width, error = [], [], []
        for low, high in pairwise(edges):
            chosen = z[inside & (s >= low) & (s <= high)]
            if len(chosen) >= 10:
                a, b = np.quantile(chosen, [0.1587, 0.8413])
                at.append((low + high) / 2)
                width.append((b - a) / 2 / expected_half_width(nu))
                error.append(width[-1] * 0.93 / np.sqrt(len(chosen)))
        label = f"{name}: J_model/σ {limits[k]:.1f}–{limits[k + 1]:.1f}"
        ax.errorbar(at, width, error, fmt="o-", color=color, lw=1, label=label)
    ax.axhline(1, color="k", lw=0.5)
    ax.set_ylim(0, max(2.0, 1.45 * min(ax.get_ylim()[1], 6)))
    ax.set_xlim(0, 1.02 * s.max())
    resolution_ticks(ax, s)
    ax.set(xlabel="resolution d (Å)", ylabel="width of pulls / expected")
    legend(ax, loc="upper left")
