"""Counts of stray pixels and powder rings, which are no diffraction of the crystals."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..util.large_arrays import taken
from .loop import RunFit
from .tables import usable_images

_SAME_RING = 0.02  # relative difference of d


def outliers_of(run: RunFit) -> dict[str, Any]:
    """Counts over the usable images, for ``summary.json``.

    reflections_with_stray_pixels and stray_pixels (``measuring.stray_pixels``); images_with_ice
    and ice_rings, d (Å) and number of images of each ring; pixel_inv_angstrom, the median size of
    a pixel in reciprocal space (Å⁻¹).
    """
    usable = usable_images(run)
    rows = run.reflections.where(lambda r: r.measured & usable[r.image])
    stray = taken(run.reflections.stray, rows)
    rings = [image for image, good in zip(run.ice, usable, strict=True) if good and image]
    return {
        "stray_pixels": int(stray.sum()),
        "reflections_with_stray_pixels": int((stray > 0).sum()),
        "images_with_ice": len(rings),
        "ice_rings": _by_resolution(np.array([ring.d for image in rings for ring in image])),
        "pixel_inv_angstrom": run.reflections.pixel_inv_angstrom,
    }


def _by_resolution(d: np.ndarray) -> list[dict[str, float]]:
    """Rings of several images taken together: mean d and number, the most frequent first."""
    if not len(d):
        return []
    d = np.sort(d)[::-1]
    groups = np.split(d, np.flatnonzero(np.diff(np.log(d)) < -_SAME_RING) + 1)
    rings = [{"d": round(float(g.mean()), 2), "images": len(g)} for g in groups]
    return sorted(rings, key=lambda ring: -ring["images"])
