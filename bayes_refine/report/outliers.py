"""Sentences about what is no diffraction: hot pixels, zingers, ice, displaced panels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from .charts import ObservedAndExpected
from .page import number

_MANY_STRAY = 1e-3  # of the reflections; chance takes a pixel from 1 in 100,000
_FAR = 5.0  # σ
_EXCESS = 3.0  # times as many far above as far below
_UNLIKELY = 2.0  # prior sd of the position error
_MOVED = 3.0  # prior sd of a panel's shift


def outlier_sentences(
    summary: Mapping[str, Any], r: ObservedAndExpected | None = None
) -> list[str]:
    """Empty if there is nothing to say.

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
            f"In {hit} of {measured} reflections a pixel held what no spot could (zingers, or hot "
            "pixels); those pixels were left out."
        )
    if ice := outliers.get("images_with_ice"):
        rings = ", ".join(f"{ring['d']:.2f}" for ring in outliers.get("ice_rings", [])[:6])
        found.append(
            f"{ice} of {counts.get('images_used', ice)} used images have powder rings, as of ice, "
            f"at {rings} Å: what lies on them was left out of spots."
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
        f"{' and '.join(kinds)} pixels that no mask names were found in {bad['images']} images and "
        "left out (places in summary.json): the mask of the detector is out of date."
    ]


def _one_sided(r: ObservedAndExpected | None) -> list[str]:
    """Something adds photons where residuals far above are many more than those far below."""
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
    """Position errors far beyond their prior mean wrong geometry, not wrong spots."""
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
        f"Spots lie {number(largest)} px (rms) from where they are expected, {expected:g} px was "
        "expected: panels may be displaced, and distance and beam centre off by more than their sd."
    ]


def _moved_panels(summary: Mapping[str, Any]) -> list[str]:
    """Panels that shifted by more than their prior expected."""
    groups = summary.get("panels") or []
    sd = (summary.get("priors") or {}).get("panel_shift_sd_px")
    far = [math.hypot(group["x_px"], group["y_px"]) for group in groups]
    if not sd or not far or max(far) < _MOVED * sd:
        return []
    n, worst = sum(x > _MOVED * sd for x in far), groups[far.index(max(far))]["panels"]
    which = ("panel " if len(worst) == 1 else "panels ") + ", ".join(map(str, worst))
    return [
        f"{n} of {len(far)} panels or groups lie more than {number(_MOVED * sd)} px from where the "
        f"input has them, {which} by {number(max(far))} px: the input's geometry is out of date; "
        "refined.expt has the new one."
    ]
