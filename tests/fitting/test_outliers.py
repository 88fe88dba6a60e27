"""Counts of what is no diffraction, over usable images alone."""

from __future__ import annotations

from dataclasses import fields
from types import SimpleNamespace

import numpy as np

from bayes_refine.fitting.outliers import outliers_of
from bayes_refine.fitting.reflections import Reflections
from bayes_refine.measuring.ice_rings import Ring
from bayes_refine.util.status import Kind, Status


def ring(d: float) -> Ring:
    return Ring(1 / d - 0.001, 1 / d + 0.001)


def test_counts_of_usable_images():
    columns = {f.name: np.ones(4) for f in fields(Reflections)} | {
        "stray": np.array([0, 1, 2, 1]),
        "covered": np.array([1.0, 1.0, 1.0, 0.0]),  # the last one is not measured
        "image": np.array([0, 0, 1, 1]),
        "frame": np.tile(np.diag([1e-3, 4e-3]), (4, 1, 1)),
    }
    converged, blank = Status(Kind.CONVERGED), Status(Kind.NO_SIGNAL)
    run = SimpleNamespace(
        reflections=Reflections(**columns),
        status=np.array([converged, converged, blank], object),
        ice=((ring(3.90), ring(3.67)), (ring(3.66),), (ring(3.44),)),
    )
    found = outliers_of(run)
    assert (found["stray_pixels"], found["reflections_with_stray_pixels"]) == (3, 2)
    assert found["images_with_ice"] == 2
    assert [r["images"] for r in found["ice_rings"]] == [2, 1]
    np.testing.assert_allclose([r["d"] for r in found["ice_rings"]], [3.66, 3.90], atol=0.011)
    np.testing.assert_allclose(found["pixel_inv_angstrom"], 2e-3)
