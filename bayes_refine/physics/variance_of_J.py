"""The variance of a spot's photons, in one place for all that need it."""

from __future__ import annotations

import numpy as np


def variance_of_J(
    J: np.ndarray,
    background: np.ndarray | float,
    signal: np.ndarray | float,
    relative: np.ndarray | float,
) -> np.ndarray:
    """v₀ + v₁·J + v₂·J²: background, counting and model error of J expected photons.

    Args:
        background: v₀, photons²; signal: v₁, photons a photon; relative: v₂, fraction squared.
    """
    return background + signal * J + relative * J**2
