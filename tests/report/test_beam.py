"""What the report says of wavelengths, distances and spectra that are off."""

import numpy as np
import pytest

from bayes_refine.fitting.centroids import Centroids
from bayes_refine.report.beam import Shell, beam_sentences, outwards

CELL = [79.0, 79.0, 38.0, 90.0, 90.0, 90.0]
TABLE = {"strain_1": np.array([1e-4, -1e-4, 2e-4, np.nan])}


def summary(factors=(1.0, 1.0, 1.0), bandwidth: float = 1e-3) -> dict:
    ours = [*(np.array(CELL[:3]) * factors).tolist(), 90.0, 90.0, 90.0]
    return {
        "cell": ours,
        "reference_cell": CELL,
        "beam": {"bandwidth_stated": 1e-3},
        "globals": {"bandwidth": {"value": bandwidth, "sd": 2e-5}},
    }


@pytest.mark.parametrize(
    "factors", [(1.0, 1.0, 1.0), (1.0008,) * 3, (1.004, 1.004, 0.999), (1.01, 1.01, 1.003)]
)
def test_equal_cells_and_other_crystals_are_no_matter_of_the_beam(factors):
    assert beam_sentences(summary(factors), TABLE) == []


def test_all_axes_alike_are():
    """0.22 % is what a tail of 1 % of wavelengths did; one axis may differ by a third of it."""
    (line,) = beam_sentences(summary((1.0022, 1.0022, 1.0016)), TABLE)
    assert line.startswith("Cells are larger than the reference's by 0.20 %")
    (line,) = beam_sentences(summary((0.9978,) * 3))
    assert line.startswith("Cells are smaller than the reference's by 0.22 %")
    scattered = {"strain_1": np.array([3e-3, -3e-3, 2e-3])}
    assert beam_sentences(summary((1.0022,) * 3), scattered) == []


def test_another_bandwidth_than_stated():
    (line,) = beam_sentences(summary(bandwidth=5e-4))
    assert line.startswith("The fitted bandwidth is 0.05 % rms, the files state 0.1 %")
    assert beam_sentences(summary(bandwidth=1.3e-3)) == []


def centroids(out_px) -> Centroids:
    """2000 reflections of 0.3 px each, displaced outwards by a function of 1/d."""
    rng = np.random.default_rng(2)
    n, pixel = 2000, 1e-3
    norm_q = rng.uniform(0.1, 0.4, n)
    off = pixel * (0.3 * rng.standard_normal((n, 2)) + np.outer(out_px(norm_q), [1, 0]))
    zero = np.zeros(n, int)
    return Centroids(zero, zero, np.zeros((n, 2)), off / pixel, np.ones((n, 2)), off, norm_q)


def test_displacements_along_the_radius_are_measured_and_named():
    """0.3 px over √400 reflections: sd 0.015 px."""
    shells = outwards(centroids(lambda q: np.where(q > 0.34, 0.3, 0.0)), 1e-3)
    assert len(shells) == 5
    assert shells[-1].off_px == pytest.approx(0.3, abs=0.06)
    assert shells[0].sd_px == pytest.approx(0.015, rel=0.2)
    (line,) = beam_sentences({}, None, shells)
    assert "2.5 Å lie 0.3" in line and "further out" in line
    assert beam_sentences({}, None, outwards(centroids(lambda q: 0 * q), 1e-3)) == []
    assert beam_sentences({}, None, (Shell(9.0, 5.0, 0.2, 0.1),)) == []
