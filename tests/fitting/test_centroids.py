"""Residual centroids averaged by place."""

import numpy as np
import pytest

from bayes_refine.fitting.centroids import Centroids, by_place
from bayes_refine.simulation.truth import Simulation, square_detector


@pytest.mark.parametrize("n", [200, 6000])
def test_a_displaced_panel_shows_in_its_cells_and_in_no_other(n):
    """Means of r reflections of 0.1 px scatter by 0.1/√r; panel 2 is off by (0.4, −0.3) px."""
    simulation = Simulation(n_panels=4)
    detector = square_detector(simulation, 110.0, simulation.beam_center_px)
    rng = np.random.default_rng(1)
    panel = rng.integers(0, 4, n)
    off = 0.1 * rng.standard_normal((n, 2)) + np.where(panel[:, None] == 2, [0.4, -0.3], 0.0)
    place = rng.uniform(0, detector.shape[0], (n, 2))
    found = Centroids(
        np.zeros(n, int), panel, place, off, np.ones((n, 2)), off * 1e-3, np.full(n, 0.3)
    )
    cells = by_place(found, detector)
    assert sum(cell.n for cell in cells) > 0.97 * n and len(cells) >= 4 * (n // 800 + 1)
    pulls = []
    for cell in cells:
        truth = np.array([0.4, -0.3]) if cell.panel == 2 else np.zeros(2)
        pulls += ((cell.off_px - truth) / (0.1 / np.sqrt(cell.n))).tolist()
        assert 0.5 < cell.sd_px * np.sqrt(cell.n) / 0.1 < 1.5 or cell.n < 20
    assert 0.7 < np.std(pulls) < 1.3
