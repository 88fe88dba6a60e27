"""The physics a model is written in, by name: ``from bayes_refine import physics``."""

from .expected import (
    ExpectedStatistics,
    counting_variance,
    expected_statistics,
    given_total,
    profile_statistics,
)
from .learned_errors import PERFECT, Errors, at_resolution, blurred
from .observations import STATISTICS, Array, Metadata, SpotStatistics
from .partiality import (
    Partiality,
    debye_waller,
    effective_width,
    gaussian,
    gaussian_peak,
    lorentzian,
    uncorrected,
)
from .spot import (
    Place,
    Spot,
    bandwidth_width,
    crystal_setting,
    mosaic_covariance,
    place_on_detector,
    rotation_matrix_mrad,
    smeared_spot,
)
from .sweeps import About, OfSweeps, about_sweeps, smooth_prior, turned_with_crystal
from .turning import gaussian_over_turn
from .uneven_blocks import N_COEFFICIENTS, even_blocks

__all__ = [
    "N_COEFFICIENTS",
    "PERFECT",
    "STATISTICS",
    "About",
    "Array",
    "Errors",
    "ExpectedStatistics",
    "Metadata",
    "OfSweeps",
    "Partiality",
    "Place",
    "Spot",
    "SpotStatistics",
    "about_sweeps",
    "at_resolution",
    "bandwidth_width",
    "blurred",
    "counting_variance",
    "crystal_setting",
    "debye_waller",
    "effective_width",
    "even_blocks",
    "expected_statistics",
    "gaussian",
    "gaussian_over_turn",
    "gaussian_peak",
    "given_total",
    "lorentzian",
    "mosaic_covariance",
    "place_on_detector",
    "profile_statistics",
    "rotation_matrix_mrad",
    "smeared_spot",
    "smooth_prior",
    "turned_with_crystal",
    "uncorrected",
]
