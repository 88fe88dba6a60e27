"""What the report says of hot pixels, zingers, ice and displaced panels."""

from __future__ import annotations

import numpy as np

from bayes_refine.report import glance
from bayes_refine.report.charts import ObservedAndExpected

CLEAN = {
    "counts": {"images": 60, "images_used": 60, "reflections_measured": 12_000},
    "bad_pixels": {"hot": 0, "dead": 0, "images": 32},
    "outliers": {
        "stray_pixels": 3,
        "reflections_with_stray_pixels": 3,
        "images_with_ice": 0,
        "ice_rings": [],
        "pixel_inv_angstrom": 1.5e-3,
    },
    "priors": {"position_error_px": 0.05, "log_position_error_sd": 1.0, "student_t_nu": None},
    "globals": {"position_error_radial_inv_angstrom": {"value": 1.8e-4, "sd": 1e-5}},
}


def with_outliers(**changes) -> dict:
    return {**CLEAN, "outliers": {**CLEAN["outliers"], **changes}}


def observed_and_expected(above: int = 0, below: int = 0) -> ObservedAndExpected:
    """5000 reflections of which some are far off."""
    pull = np.random.default_rng(0).normal(size=5000)
    pull[:above], pull[above : above + below] = 8.0, -8.0
    fitted, J = np.ones(5000, bool), np.full(5000, 100.0)
    return ObservedAndExpected(np.zeros(5000, int), J + pull, J, np.ones(5000), J, fitted, ~fitted)


def test_a_clean_run_has_nothing_to_say():
    assert glance.attention(CLEAN, None, observed_and_expected(above=12, below=10)) == []


def test_each_is_named():
    (line,) = glance.attention({**CLEAN, "bad_pixels": {"hot": 39, "dead": 2, "images": 32}})
    assert line.startswith("39 hot and 2 dead pixels") and "32 images" in line
    (line,) = glance.attention(with_outliers(reflections_with_stray_pixels=40))
    assert line.startswith("In 40 of 12000 reflections")
    rings = [{"d": 3.67, "images": 25}, {"d": 2.25, "images": 20}]
    (line,) = glance.attention(with_outliers(images_with_ice=25, ice_rings=rings))
    assert line.startswith("25 of 60 used images have powder rings") and "3.67, 2.25 Å" in line


def test_more_photons_than_expected_are_a_bias():
    (line,) = glance.attention(CLEAN, None, observed_and_expected(above=60, below=6))
    assert line.startswith("60 reflections are more than 5 σ brighter than expected, 6")


def test_panels_far_from_the_input_are_named():
    """More than three prior sd: 0.6 px."""
    groups = [
        {"panels": [0, 1], "x_px": 0.3, "y_px": 0.4, "turn_mrad": 0.0},
        {"panels": [2, 3], "x_px": -0.8, "y_px": 0.6, "turn_mrad": 0.1},
    ]
    said = {**CLEAN, "priors": {**CLEAN["priors"], "panel_shift_sd_px": 0.2}, "panels": groups}
    (line,) = glance.attention(said)
    assert (
        line.startswith("1 of 2 panels or groups lie more than 0.6 px") and "2, 3 by 1 px" in line
    )
    assert glance.attention({**said, "panels": groups[:1]}) == []


def test_position_errors_of_a_pixel_are_geometry():
    """0.05 px times or divided by e is expected: 0.12 px is, 0.7 px is not."""
    far = {"position_error_radial_inv_angstrom": {"value": 1.05e-3, "sd": 1e-5}}
    (line,) = glance.attention({**CLEAN, "globals": far})
    assert line.startswith("Spots lie 0.7 px (rms)") and "panels" in line


def test_pulls_are_held_against_the_fitted_tails():
    summary = {"globals": {"nu": {"value": 3.0, "sd": 0.1}}, "priors": {"student_t_nu": 10.0}}
    assert glance.likelihood_nu(summary) == 3.0
