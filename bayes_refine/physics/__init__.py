"""The physics a model is written in, by name: ``from bayes_refine import physics``."""

from .expected import counting_variance, given_total, profile_statistics
from .observations import STATISTICS, Observations
from .partiality import (
    block_variance,
    conserving_partiality,
    debye_waller,
    effective_width,
    log_gaussian_curve,
    log_lorentzian_curve,
    peak_partiality,
)
from .spot import (
    Spot,
    bandwidth_width,
    crystal_setting,
    excitation_and_shift,
    mosaic_covariance,
    rotation_matrix_mrad,
    smeared_spot,
)

__all__ = [
    "STATISTICS",
    "Observations",
    "Spot",
    "bandwidth_width",
    "block_variance",
    "conserving_partiality",
    "counting_variance",
    "crystal_setting",
    "debye_waller",
    "effective_width",
    "excitation_and_shift",
    "given_total",
    "log_gaussian_curve",
    "log_lorentzian_curve",
    "mosaic_covariance",
    "peak_partiality",
    "profile_statistics",
    "rotation_matrix_mrad",
    "smeared_spot",
]
