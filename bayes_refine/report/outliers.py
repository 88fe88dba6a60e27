"""Sentences about signals that are no diffraction of the crystal, and about displaced panels.

Such signals are hot pixels, zingers and ice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from .charts import ObservedAndExpected
from .page import number

_MANY_STRAY = 1e-3  # share of reflections with a stray pixel; by chance it is 1 in 100,000
_FAR = 5.0  # residuals beyond this many σ are counted
_EXCESS = 3.0  # ratio of such residuals above to those below that is reported
_UNLIKELY = 2.0  # prior sd from which a large position error is reported
_MOVED = 3.0  # prior sd from which the shift of a panel is reported


def outlier_sentences(
    summary: Mapping[str, Any], r: ObservedAndExpected | None = None
) -> list[str]:
    """Sentences for the report; empty if nothing is unusual.

    Args:
        summary: the content of ``summary.json``; any of its parts may be missing.
    """
    found = _bad_pixels(summary.get("bad_pixels") or {})
    outliers, counts = summary.get("outliers") or {}, summary.get("counts") or {}
    hit, measured = (
        outliers.get("reflections_with_stray_pixels", 0),
        counts.get("reflections_measured", 0),
    )
    if hit > max(_MANY_STRAY * measured, 1):
        found.append(
            f"In {hit} of {measured} reflections a pixel held more than a spot could (a zinger, or "
            "a hot pixel); those pixels were left out."
        )
    if ice := outliers.get("images_with_ice"):
        rings = ", ".join(f"{ring['d']:.2f}" for ring in outliers.get("ice_rings", [])[:6])
        found.append(
            f"{ice} of {counts.get('images_used', ice)} used images have powder rings, as of ice, "
            f"at {rings} Å: the pixels on the rings were left out."
        )
    found += _one_sided(r)
    found += _misplaced(summary, outliers)
    found += _moved_panels(summary)
    return found


def _bad_pixels(bad: Mapping[str, Any]) -> list[str]:
    kinds = [f"{bad[kind]} {kind}" for kind in ("hot", "dead") if bad.get(kind)]
    if not kinds:
        return []
    return [
        f"{' and '.join(kinds)} pixels that no mask contains were found in {bad['images']} images "
        "and left out (summary.json lists them): the mask of the detector is out of date."
    ]


def _one_sided(r: ObservedAndExpected | None) -> list[str]:
    """Far more large positive than large negative residuals mean that something adds photons."""
    if r is None or not r.fitted.any():
        return []
    pull = r.pull[r.fitted]
    above, below = int(np.sum(pull > _FAR)), int(np.sum(pull < -_FAR))
    if above < 10 or above < _EXCESS * max(below, 1) or above < 2e-3 * len(pull):
        return []
    return [
        f"{above} reflections are more than {_FAR:g} σ brighter than expected, {below} that much "
        "fainter: something adds photons (ice, hot pixels, other crystals), and merged intensities "
        "may be too high."
    ]


def _misplaced(summary: Mapping[str, Any], outliers: Mapping[str, Any]) -> list[str]:
    """Position errors far beyond their prior mean that the geometry is wrong, not the spots."""
    priors, values = summary.get("priors") or {}, summary.get("globals") or {}
    pixel, expected = outliers.get("pixel_inv_angstrom"), priors.get("position_error_px")
    errors = [
        values[name]["value"]
        for way in ("radial", "tangential")
        if (name := f"position_error_{way}_inv_angstrom") in values
    ]
    if not (pixel and expected and errors):
        return []
    largest = max(errors) / pixel
    if largest < expected * math.exp(_UNLIKELY * priors.get("log_position_error_sd", 1.0)):
        return []
    return [
        f"Spots lie {number(largest)} px (rms) from where the fit expects them, typical is "
        f"{expected:g} px: panels may be displaced, and errors of distance and beam centre may "
        "exceed their sd."
    ]


def _moved_panels(summary: Mapping[str, Any]) -> list[str]:
    """Panels that shifted by more than their prior expects."""
    groups = summary.get("panels") or []
    sd = (summary.get("priors") or {}).get("panel_shift_sd_px")
    far = [math.hypot(group["x_px"], group["y_px"]) for group in groups]
    if not sd or not far or max(far) < _MOVED * sd:
        return []
    n, worst = sum(x > _MOVED * sd for x in far), groups[far.index(max(far))]["panels"]
    which = ("panel " if len(worst) == 1 else "panels ") + ", ".join(map(str, worst))
    return [
        f"{n} of {len(far)} panels or groups lie more than {number(_MOVED * sd)} px from their "
        f"place in the input, {which} by {number(max(far))} px: the geometry of the input is out "
        "of date; refined.expt has the new one."
    ]
