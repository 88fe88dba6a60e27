"""What neither photons nor the mean spot explain, as in real crystals.

A spot of a real crystal is off by more than counting: crystals differ, few mosaic blocks diffract
into a spot, and detector and lattice displace it.  A fit learns how far (``physics.Errors``), and
here it is put in: intensities are multiplied by numbers of a gamma distribution with mean one and
variance

    model_error² + V/mosaic_blocks,
    V = R_eff²/(R_k √(R_k² + 2m²)) exp(2ε²(1/R_eff² − 1/(R_k² + 2m²))) − 1,

V of a crystal of one block, whose curve exp(−ε²/R_k²), R_k² = R0² + R_bw², lies about a place of
spread m, R_eff² = R_k² + m²; centroids are displaced along e1 and e2 by N(0, position_error²), and
the square of each width is multiplied by exp(N(0, shape_error²)).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .spots import Spots, relp_covariance
from .truth import Simulation

LEAST = 1e-12  # relative variance of J that is drawn


def with_errors(simulation: Simulation, spots: Spots, *, rng: np.random.Generator) -> Spots:
    """The n spots of an image with the errors of a simulation; no number is drawn without any.

    Example:
        spots = with_errors(Simulation(model_error=0.1), spots, rng=np.random.default_rng(0))
    """
    n = len(spots.J)
    if simulation.model_error or np.isfinite(simulation.mosaic_blocks):
        of_blocks = block_variance(simulation, spots) / simulation.mosaic_blocks
        # blocks that are not turned vary nothing, within rounding, where a gamma must vary
        variance = np.maximum(simulation.model_error**2 + of_blocks, LEAST)
        spots = replace(spots, J=spots.J * rng.gamma(1 / variance, variance))
    if simulation.position_error_px:
        pixel = simulation.pixel_size_mm / (simulation.distance_mm * simulation.wavelength)
        away = simulation.position_error_px * pixel * rng.standard_normal((n, 2))
        spots = replace(spots, center=spots.center + away)
    if simulation.shape_error:
        wider = np.exp(simulation.shape_error * rng.standard_normal((n, 2)) / 2)
        spots = replace(spots, width=spots.width * wider)
    return spots


def block_variance(simulation: Simulation, spots: Spots) -> np.ndarray:
    """V (n,) of the module: the relative variance of p in crystals of one mosaic block."""
    R_eff_2 = relp_covariance(simulation, spots.q, spots.frame)[:, 0, 0]
    of_wavelengths = simulation.bandwidth * simulation.wavelength * np.sum(spots.q**2, axis=1)
    R_k_2 = simulation.R0**2 + of_wavelengths**2 / 2
    wide_2 = 2 * R_eff_2 - R_k_2  # R_k² + 2m²
    power = 2 * spots.epsilon_r**2 * (1 / R_eff_2 - 1 / wide_2)
    return R_eff_2 / np.sqrt(R_k_2 * wide_2) * np.exp(power) - 1
