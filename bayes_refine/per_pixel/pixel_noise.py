"""Likelihoods of a pixel: laws by which its photons scatter about the expected number.

Each is a function of (mean, pixels) that returns a NumPyro distribution and its observed value;
``pixels`` is ``bayes_refine.per_pixel.pixels.Pixels``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

PixelLikelihood = Callable[[Any, Any], tuple[dist.Distribution, jax.Array]]


def observed_variance(mean, pixels):
    """Least squares with σ² = max(I, 1) + σ_read², as a pixel's own count says.

    Neyman's χ²: a pixel that came out low weighs more, so the mean of a Poisson count m ≫ 1 is
    estimated as 1/⟨1/n⟩ ≈ m − 1, one photon a pixel too low.
    """
    variance = jnp.maximum(pixels.photons, 1.0) + pixels.read_variance
    return dist.Normal(mean, jnp.sqrt(variance)), pixels.photons


def expected_variance(mean, pixels):
    """Least squares with σ² as expected when it was frozen (``pixels.frozen``)."""
    return dist.Normal(mean, jnp.sqrt(pixels.variance)), pixels.photons


def moving_variance(mean, pixels):
    """Normal with σ² = μ + σ_read² of the same state, and with its −ln σ."""
    return dist.Normal(mean, jnp.sqrt(mean + pixels.read_variance)), pixels.photons


def poisson(mean, pixels):
    """Poisson; of a detector with read-out noise I + σ_read² ~ Poisson(μ + σ_read²), which has
    the right mean and variance.
    """
    value = jnp.maximum(pixels.photons + pixels.read_variance, 0.0)
    # not validated: charge over gain is no whole number
    return dist.Poisson(mean + pixels.read_variance, validate_args=False), value


def student_t(mean, pixels, nu, model_error):
    """Student-t about μ of scale² μ + σ_read² + (a·(μ − Bg))²: a fractional error a of what is
    expected, of each pixel by itself, and outliers.

    To be given its two numbers with ``functools.partial``: unlike the spots of the factored
    model, pixels of one spot err together, which no likelihood of single pixels can say.
    """
    excess = model_error * (mean - pixels.background)
    scale = jnp.sqrt(mean + pixels.read_variance + excess**2)
    return dist.StudentT(nu, mean, scale), pixels.photons
