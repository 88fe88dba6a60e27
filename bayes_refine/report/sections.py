"""The sections of a report about reflections, merged intensities and the posterior.

Each function makes a section of plain arrays, and returns None if there is nothing to show.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from html import escape
from typing import Any

import numpy as np

from . import arrows, charts, run_charts
from .charts import ObservedAndExpected
from .drawing import MAX_HOVER
from .page import Section, chart, figures, heading
from .quantities import quantity


def not_drawn(failures: Sequence[str]) -> Section | None:
    """The section on pictures that could not be drawn, with the reasons."""
    if not failures:
        return None
    lines = "".join(f"<li>{escape(line)}.</li>\n" for line in failures)
    return Section(
        "failures",
        "What could not be drawn",
        f'<ul class="attention">\n{lines}</ul>',
        "The other files of the run are complete: they were written before the pictures.",
    )


def intensities(r: ObservedAndExpected | None) -> Section | None:
    """The section on J against J_model, and on the partiality curve."""
    if r is None or not r.fitted.any():
        return None
    curve = None
    if r.excitation_error is not None and r.partiality is not None:
        curve = chart(
            "partiality",
            partial(charts.partiality_curve, r=r),
            "Partiality against excitation error: J/(G·B_term·pol·I_ref), weighted means with 1 "
            "sd, and the fitted p. In a good run the points follow the lines at every resolution "
            "and the curve is centred on zero.",
        )
    return Section(
        "intensities",
        "Measured and expected J",
        figures(
            chart(
                "observed-expected",
                partial(charts.observed_expected, r=r),
                "J against J_model of each spot, in photons or the unit of the file. In a good run "
                "the cloud follows the diagonal over all decades, red free reflections as the "
                "others.",
            ),
            curve,
        ),
    )


def residuals(r: ObservedAndExpected | None, n_images: int) -> Section | None:
    """The section on (J − J_model)/σ by resolution, detector position and order of images."""
    if r is None or not r.fitted.any():
        return None
    place = shifts = None
    if r.arrows is not None and len(r.arrows.at):
        several = bool(len(r.arrows.moved))
        shifts = chart(
            "displacements",
            partial(arrows.displacements, arrows=r.arrows),
            "Mean displacement of spots from where the fit expects them, by detector position"
            + (", and the fitted shift of each panel or group. " if several else ". ")
            + "In a good run arrows are short, a few hundredths of a pixel, and have no common "
            "direction in a region. Parallel arrows on a panel mean that the panel is displaced; "
            "arrows that grow outwards mean a wrong distance or a distorted detector.",
            (10.6, 4.8) if several else (5.2, 4.6),
        )
    if r.xy_mm is not None:
        place = chart(
            "by-detector",
            partial(charts.residuals_on_detector, r=r),
            "Residuals by detector position, mean and rms in cells (blank: too few). A good run "
            "shows no pattern; rings, stripes or one deviating panel mean an error of geometry or "
            "polarisation, or a bad panel.",
            (10.6, 4.2),
        )
    seen, _ = charts.image_quantiles(r)
    return Section(
        "residuals",
        "Residuals",
        figures(
            chart(
                "by-resolution",
                partial(charts.residuals_by_resolution, r=r),
                "Residuals against resolution; those beyond ±8 are drawn at the edge. In a good "
                "run the median is zero and the 68 % band is at ±1 throughout.",
            ),
            chart(
                "by-image",
                partial(charts.residuals_by_image, r=r, n_images=n_images),
                "Residuals in the order of the run. A good run has no drift and no step.",
                images=seen if len(seen) <= MAX_HOVER else None,
            ),
            place,
            shifts,
        ),
        "(J − J_model)/σ of fitted reflections, in units of the expected σ, model error included.",
    )


def shoeboxes(gallery: str | None, overview: str | None = None) -> Section | None:
    """The section with pictures of pixels, made by :func:`page.chart`."""
    if not gallery and not overview:
        return None
    return Section("shoeboxes", "Pixels", figures(overview, gallery))


def agreement(rows: Sequence[Mapping[str, Any]] | None) -> Section | None:
    """The section with the table by resolution shell (rows of ``agreement.shell_table``)."""
    if not rows:
        return None
    columns = [
        ("n_unique", "unique", 1, "{:.0f}"),
        ("n_observations", "measured", 1, "{:.0f}"),
        ("completeness", "completeness", 100, "{:.1f}"),
        ("multiplicity", "multiplicity", 1, "{:.2f}"),
        ("mean_i_over_sigma", "⟨I/σ⟩", 1, "{:.1f}"),
        ("cc_half", "CC½", 1, "{:.3f}"),
        ("cc_star", "CC*", 1, "{:.3f}"),
        ("r_split", "R_split", 100, "{:.1f}"),
        ("n_both_halves", "in both halves", 1, "{:.0f}"),
        ("cc_ref", "CC_ref", 1, "{:.3f}"),
        ("r1_ref", "R1_ref", 100, "{:.1f}"),
        ("cc_free", "CC_free", 1, "{:.3f}"),
        ("cc_free_posterior", "CC_free, posterior", 1, "{:.3f}"),
        ("n_free", "free", 1, "{:.0f}"),
        ("cc_half_refitted", "CC½, halves refitted", 1, "{:.3f}"),
        ("cc_anom", "CC_anom", 1, "{:.3f}"),
        ("n_anom", "pairs in both halves", 1, "{:.0f}"),
    ]
    columns = [c for c in columns if any(row.get(c[0]) is not None for row in rows)]
    head = heading("shell", "Å") + "".join(
        heading(label, "%" if factor == 100 else "") for _, label, factor, _ in columns
    )
    lines = []
    for row in rows:
        total = ' class="total"' if row["shell"] == "all" else ""
        cells = "".join(
            f"<td>{'–' if row.get(k) is None else form.format(factor * row[k])}</td>"
            for k, _, factor, form in columns
        )
        span = f"{row['d_max']:.2f}–{row['d_min']:.2f}"
        lines.append(f"<tr{total}><td>{span}</td>{cells}</tr>".replace("-", "−"))
    picture = ""
    if any(row["shell"] != "all" for row in rows):
        picture = chart(
            "agreement-chart",
            partial(run_charts.agreement, rows=rows),
            "Agreement by resolution. In a good run correlations fall smoothly with resolution, "
            "CC_free is near CC_ref, and the data are complete to the limit; a limit where CC½ is "
            "about 0.3 is usual. Correlations of fewer than "
            f"{run_charts.MIN_PAIRS} pairs are not drawn.",
            (12.6, 2.7),
        )
    return Section(
        "agreement",
        "Agreement by resolution shell",
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>\n'
        + "\n".join(lines)
        + "</tbody></table></div>\n"
        + figures(picture),
        "Merged intensities without any prior: random halves of the images against each other "
        "(CC½, R_split), and against the reference, which the fit never saw for free reflections. "
        "A reflection's weight is the share of its expected variance that is signal. A dash: no "
        "value.",
    )


def calibration(r: ObservedAndExpected | None, nu: float) -> Section | None:
    """The section on whether σ is right: pulls against the law of the likelihood.

    Args:
        nu: degrees of freedom of the Student-t residuals, infinite for normal residuals.
    """
    if r is None or not (r.fitted | r.free).any():
        return None
    size = (4.2, 3.5)
    law = "N(0, 1)" if np.isinf(nu) else f"Student-t with ν = {nu:.3g}"
    return Section(
        "calibration",
        "Calibration",
        figures(
            chart(
                "pulls",
                partial(charts.pull_histogram, r=r, nu=nu),
                "Distribution of (J − J_model)/σ. In a good run it follows the law of the "
                f"likelihood ({law}), for free reflections too.",
                size,
            ),
            chart(
                "probability",
                partial(charts.probability, r=r, nu=nu),
                "Observed minus expected cumulative probability. In a good run it is near zero; "
                "shaded: 95 % if the law were exact. Above zero on the left and below on the right "
                "means that σ is too small; the opposite, that it is too large.",
                size,
            ),
            chart(
                "pull-width",
                partial(charts.pull_width, r=r, nu=nu),
                "Width of the central 68 % of the pulls over the expected width, by expected "
                "strength and resolution. In a good run it is 1 everywhere; where it is above 1, "
                "σ is too small.",
                size,
            ),
            columns=3,
        ),
        "Whether σ is right. The model error was fitted to the fitted reflections, so the free "
        "reflections are the test.",
    )


def posterior(
    draws: Mapping[str, np.ndarray] | None,
    correlation: tuple[Sequence[str], np.ndarray] | None = None,
) -> Section | None:
    """The section on the posterior: pairs of shared unknowns, correlations of an image's unknowns.

    Args:
        draws: (n,) draws by name, with the unit as in ``summary.json``.
        correlation: k names and their (k, k) posterior correlations.
    """
    kept = {k: np.asarray(v, float) for k, v in (draws or {}).items()}
    kept = {k: v for k, v in kept.items() if len(v) > 3 and np.isfinite(v).all() and np.ptp(v) > 0}
    side = min(2.0 + 1.15 * len(kept), 11.2)
    parts = [
        chart(
            "pairs",
            partial(run_charts.pairs, draws=kept),
            "Draws of the unknowns that the images share: pairs below the diagonal, correlations "
            "above it. In a good run the clouds are round or slightly tilted; a thin diagonal "
            "cloud means two unknowns that only the prior tells apart.",
            (max(side, 7.2), 0.8 * max(side, 5)),
        )
        if len(kept) > 1
        else None
    ]
    if correlation is not None and len(correlation[0]) > 1:
        names = [_short(name) for name in correlation[0]]
        size = max(0.42 * len(names) + 2, 7.2)
        parts.append(
            chart(
                "couplings",
                partial(run_charts.couplings, names=names, correlation=correlation[1]),
                "Posterior correlations of an image's unknowns with each other and with the shared "
                "unknowns (run), median over images. In a good run those between scale, width and "
                "geometry are small; scale and R0 or mosaic spread stay correlated.",
                (size, 0.62 * size),
            )
        )
    body = figures(*parts)
    return Section("posterior", "Posterior", body) if body else None


def _short(name: str) -> str:
    where = " (run)" if name.startswith("run:") else ""
    label = quantity(name.removeprefix("run:")).label
    for long in ("Debye–Waller ", "partiality width ", "spot width "):
        label = label.replace(long, "")
    return label.replace(" in the beam", "") + where
