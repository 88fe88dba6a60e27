"""Displacements on the detector: of a fit, and drawn."""

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.quiver import Quiver

from bayes_refine.fitting.centroids import centroids_of
from bayes_refine.report.arrows import Arrows, arrows_of, displacements

matplotlib.use("svg")


def arrows(moved: int) -> Arrows:
    outline = np.array([[[0, 0], [10, 0], [10, 10], [0, 10], [0, 0.0]]])
    at, off = np.array([[2.0, 3.0], [7.0, 6.0]]), np.array([[0.02, 0.0], [0.0, -0.05]])
    return Arrows(outline, at, off, np.full(2, 0.01), at[:moved], 10 * off[:moved], 0.1)


@pytest.mark.parametrize("moved", [0, 2])
def test_arrows_point_where_spots_are(moved):
    """All by one factor, which the key states: 0.05 mm of 0.1 mm pixels are the 0.5 px of it."""
    figure = Figure()
    displacements(figure, arrows(moved))
    assert len(figure.axes) == (2 if moved else 1)
    drawn = [q for q in figure.axes[0].collections if isinstance(q, Quiver)]
    spots, key = drawn
    factor = key.U[0] / 0.05
    np.testing.assert_allclose(np.stack([spots.U, spots.V], 1), factor * arrows(moved).off)
    assert figure.axes[0].texts[0].get_text() == "0.5 px"


def test_the_displacements_of_a_fit_are_small(small_run):
    """Simulated without errors of position: means are a few of their sd, 0.1 px at most."""
    run = small_run.given["run"]
    centroids = centroids_of(run)
    assert centroids is not None
    found = arrows_of(run, centroids)
    assert len(found.at) > 3
    far = np.hypot(*found.off.T) / np.maximum(found.sd, 1e-9)
    assert np.median(far) < 3 and np.median(np.hypot(*found.off.T)) < 0.1 * found.pixel_mm
