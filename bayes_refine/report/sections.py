"""The sections of a report about reflections, merged intensities and the posterior.

Each is made of plain arrays, and None where there is nothing to show.
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
    """What could not be drawn, and why; the files beside the page are complete without it."""
    if not failures:
        return None
    lines = "".join(f"<li>{escape(line)}.</li>\n" for line in failures)
    return Section(
        "failures",
        "What could not be drawn",
        f'<ul class="attention">\n{lines}</ul>',
        "The other files of the run are complete: pictures are made after them.",
    )


def intensities(r: ObservedAndExpected | None) -> Section | None:
    """J against J_model, and the partiality curve."""
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
        "Measured and expected intensities",
        figures(
            chart(
                "observed-expected",
                partial(charts.observed_expected, r=r),
                "Measured against expected intensity of each reflection. In a good run the cloud "
                "follows the diagonal over all decades, red free reflections as the others.",
            ),
            curve,
        ),
    )


def residuals(r: ObservedAndExpected | None, n_images: int) -> Section | None:
    """(J − J_model)/σ by resolution, detector position and image order."""
    if r is None or not r.fitted.any():
        return None
    place = shifts = None
    if r.arrows is not None and len(r.arrows.at):
        several = bool(len(r.arrows.moved))
        shifts = chart(
            "displacements",
            partial(arrows.displacements, arrows=r.arrows),
            "Mean displacement of spots from where the fit expects them, by place on the detector"
            + (", and the fitted shift of each panel or group. " if several else ". ")
            + "In a good run arrows are short, a few hundredths of a pixel, and have no common "
            "direction in a region: a panel with parallel arrows is displaced, arrows that grow "
            "outwards are of a wrong distance or a distorted detector.",
            (10.6, 4.8) if several else (5.2, 4.6),
        )
    if r.xy_mm is not None:
        place = chart(
            "by-detector",
            partial(charts.residuals_on_detector, r=r),
            "Residuals by place on the detector, mean and rms in cells (blank: too few). A good "
            "run shows no pattern; rings, stripes or a panel apart point at geometry, polarisation "
            "or a bad panel.",
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
                "Residuals against resolution, those beyond ±8 drawn at the edge. A good run has "
                "a median on zero and a 68 % band at ±1 throughout.",
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
    """Pictures of pixels, made by :func:`page.chart`."""
    if not gallery and not overview:
        return None
    return Section("shoeboxes", "Pixels", figures(overview, gallery))


def agreement(rows: Sequence[Mapping[str, Any]] | None) -> Section | None:
    """The table by resolution shell (rows of ``agreement.shell_table``), and its picture."""
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
            "Agreement by resolution. A good run falls smoothly with resolution, CC_free beside "
            "CC_ref, complete to the limit; a limit where CC½ is about 0.3 is usual. Correlations "
            f"of fewer than {run_charts.MIN_PAIRS} pairs are not drawn.",
            (12.6, 2.7),
        )
    return Section(
        "agreement",
        "Agreement by resolution shell",
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>\n'
        + "\n".join(lines)
        + "</tbody></table></div>\n"
        + figures(picture),
        "Merged intensities, without any prior: random halves of the images against each other "
        "(CC½, R_split), and against the reference; free reflections never saw it. Each reflection "
        "counts by the share of its expected variance that is signal. A dash: nothing to say.",
    )


def calibration(r: ObservedAndExpected | None, nu: float) -> Section | None:
    """Whether σ is right: pulls against what the likelihood says they are.

    Args:
        nu: degrees of freedom of the Student-t residuals, infinite for normal ones.
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
                "Distribution of (J − J_model)/σ. In a good run it follows the likelihood's own "
                f"curve ({law}), free reflections too.",
                size,
            ),
            chart(
                "probability",
                partial(charts.probability, r=r, nu=nu),
                "Observed minus expected cumulative probability. A good run stays near zero; "
                "shaded: 95 % if all were exact. Above on the left and below on the right: σ is "
                "too small; the other way round: too large.",
                size,
            ),
            chart(
                "pull-width",
                partial(charts.pull_width, r=r, nu=nu),
                "Width of the central 68 % of the pulls over the expected one, by expected "
                "strength and resolution. A good run lies at 1 everywhere; above 1, σ is too "
                "small there.",
                size,
            ),
            columns=3,
        ),
        "Whether σ means what it says. Fitted reflections set the model error, so free ones "
        "are the test.",
    )


def posterior(
    draws: Mapping[str, np.ndarray] | None,
    correlation: tuple[Sequence[str], np.ndarray] | None = None,
) -> Section | None:
    """Pairs of shared unknowns, and how the unknowns of an image hang together.

    Args:
        draws: name (with its unit, as in ``summary.json``) to (n,) draws.
        correlation: k names and their (k, k) posterior correlations.
    """
    kept = {k: np.asarray(v, float) for k, v in (draws or {}).items()}
    kept = {k: v for k, v in kept.items() if len(v) > 3 and np.isfinite(v).all() and np.ptp(v) > 0}
    side = min(2.0 + 1.15 * len(kept), 11.2)
    parts = [
        chart(
            "pairs",
            partial(run_charts.pairs, draws=kept),
            "Draws of what the images share: pairs below the diagonal, correlations above it. In "
            "a good run the clouds are round or slightly tilted; a thin diagonal one is a pair "
            "that only its prior tells apart.",
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
                "ones (run), median over images. A good run has small ones between scale, width "
                "and geometry; scale and R0 or mosaic spread remain coupled.",
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
