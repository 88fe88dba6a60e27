"""The first section of a report: the most important numbers, and what needs a look."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np

from ..merging.merged_columns import blank_sentence
from ..util.status import Kind
from .beam import beam_sentences
from .charts import ObservedAndExpected, expected_half_width
from .images import failed
from .outliers import outlier_sentences
from .page import Section, number, with_sd
from .quantities import quantity

Summary = Mapping[str, Any]  # the content of summary.json, any part of which may be missing


def headline(
    summary: Summary,
    table: Mapping[str, np.ndarray] | None = None,
    r: ObservedAndExpected | None = None,
) -> Section | None:
    """The section with the most important numbers, and what needs a look."""
    counts, overall = summary.get("counts", {}), _overall(summary)
    cards = []

    def card(label: str, value: str, unit: str = "", also: str = "") -> None:
        unit = f' <span class="unit">{escape(unit)}</span>' if unit else ""
        also = f'<dd class="also">{escape(also)}</dd>' if also else ""
        cards.append(
            f'<div class="card"><dt>{escape(label)}</dt>'
            f'<dd class="value">{escape(value)}{unit}</dd>{also}</div>'
        )

    if "images" in counts:
        used = counts.get("images_used", counts["images"])
        card("images used", number(used), f"of {counts['images']}", "good: nearly all")
    if counts.get("reflections_measured"):
        measured, merged = counts["reflections_measured"], counts.get("reflections_merged")
        card("reflections measured", number(measured), "", f"{number(merged)} unique")
    if overall:
        card("resolution", number(overall["d_min"]), "Å", f"from {overall['d_max']:.0f} Å")
        card(
            "completeness",
            number(100 * (overall["completeness"] or 0)),
            "%",
            f"each measured {number(overall['multiplicity'])} times",
        )
        for name, label, good in (
            ("cc_half", "CC½", "halves of the images; good: > 0.9"),
            ("r_split", "R_split", "halves of the images; good: < 20 %"),
            ("cc_free", "CC_free", "free reflections; good: near CC_ref"),
            ("cc_ref", "CC_ref", _saw(summary)),
        ):
            if overall.get(name) is not None:
                percent = name == "r_split"
                value = number((100 if percent else 1) * overall[name])
                card(label, value, "%" if percent else "", good)
    if summary.get("cc_model_median") is not None:
        card(
            "CC(J, J_model)",
            number(summary["cc_model_median"]),
            "",
            "median over images; good: > 0.9",
        )
    for name in ("distance_mm", "R0_inv_angstrom", "mosaic_mrad", "model_error"):
        if name in summary.get("globals", {}):
            unit, found = quantity(name), summary["globals"][name]
            value, sd = with_sd(unit.factor * found["value"], unit.factor * found["sd"])
            card(unit.label, value, unit.unit, f"± {sd} {unit.unit}")
    if summary.get("seconds"):
        total = sum(v for v in summary["seconds"].values() if v)
        each = total / max(counts.get("images", 1), 1)
        card("time", number(total), "s", f"{number(each, 2)} s an image")
    body = f'<dl class="cards">\n{"".join(cards)}</dl>\n' if cards else ""
    found = attention(summary, table, r)
    if found:
        body += '<h3>What needs a look</h3>\n<ul class="attention">\n'
        body += "".join(f"<li>{escape(line)}</li>\n" for line in found) + "</ul>"
    else:
        body += '<p class="fine">Nothing stands out.</p>'
    return Section("headline", "At a glance", body)


def attention(
    summary: Summary,
    table: Mapping[str, np.ndarray] | None = None,
    r: ObservedAndExpected | None = None,
) -> list[str]:
    """Sentences about what needs a look; empty if nothing does."""
    found, counts, overall = [], summary.get("counts", {}), _overall(summary)
    if counts.get("images_failed"):
        kinds = {k: v for k, v in counts.get("status", {}).items() if not Kind(k).usable}
        why = ", ".join(f"{v} {k}" for k, v in sorted(kinds.items(), key=lambda x: -x[1]))
        found.append(
            f"{counts['images_failed']} of {counts['images']} images failed and were left out"
            + (f" ({why})." if why else ".")
        )
    if empty := counts.get("reflections_blank"):
        found.append(blank_sentence(empty, counts["reflections_merged"]))
    if late := counts.get("status", {}).get(Kind.NOT_CONVERGED):
        found.append(f"{late} images are used although their fit did not converge.")
    rounds = summary.get("convergence", {}).get("rounds") or []
    if rounds and _larger(rounds[-1].get("rotation_mrad"), 0.1):
        found.append(
            f"Orientations still moved by {number(rounds[-1]['rotation_mrad'])} mrad in the last "
            "round: use more --rounds."
        )
    posterior = summary.get("posterior") or {}
    if posterior.get("converged") is False and posterior.get("message"):
        found.append(posterior["message"])
    if table is not None and "cc_model" in table:
        cc, bad = np.asarray(table["cc_model"], float), failed(table)
        low = np.flatnonzero((cc < 0.5) & ~bad)
        if len(low):
            names = ", ".join(str(i) for i in low[:8]) + (", …" if len(low) > 8 else "")
            plural = "images have" if len(low) > 1 else "image has"
            found.append(f"{len(low)} used {plural} CC(J, J_model) below 0.5: {names}.")
    if overall and overall.get("cc_free") is not None and overall.get("cc_ref") is not None:
        lost = overall["cc_ref"] - overall["cc_free"]
        if lost > 0.1 and (overall.get("n_free") or 0) >= 50:
            found.append(
                f"Free reflections agree less with the reference (CC_free {overall['cc_free']:.2f})"
                f" than the others (CC_ref {overall['cc_ref']:.2f}): the fit follows the reference."
            )
    if overall and overall.get("multiplicity") and overall["multiplicity"] < 2:
        found.append(
            f"Each reflection was measured {number(overall['multiplicity'])} times on average: "
            "CC½, R_split and merged intensities rest on few observations."
        )
    found += outlier_sentences(summary, r)
    found += beam_sentences(summary, table, () if r is None else r.outwards)
    if r is not None and r.free.sum() >= 30:
        low, high = np.quantile(r.pull[r.free], [0.159, 0.841])
        width = (high - low) / 2 / expected_half_width(likelihood_nu(summary))
        if not 0.7 < width < 1.4:
            found.append(
                f"Residuals of free reflections are {width:.2f} times as wide as their σ says: "
                f"σ is too {'small' if width > 1 else 'large'}."
            )
    return found


def _overall(summary: Summary) -> Mapping[str, Any] | None:
    rows = summary.get("agreement") or []
    return next((row for row in rows if row["shell"] == "all"), None)


def _saw(summary: Summary) -> str:
    blind = summary.get("prior") == "wilson"
    return "the others; none saw I_ref" if blind else "reflections that saw I_ref"


def likelihood_nu(summary: Summary) -> float:
    """Degrees of freedom of the residuals; infinite for normal residuals."""
    values = summary.get("globals", {})
    fitted = values.get("nu") or values.get("student_t_nu")
    if fitted:
        return float(fitted["value"])
    value = (summary.get("priors") or {}).get("student_t_nu", math.inf)
    return math.inf if value is None else float(value)


def _larger(value: float | None, limit: float) -> bool:
    return value is not None and value > limit
