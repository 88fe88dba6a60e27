"""Partiality curves of stills whose only geometry is an excitation error in a file (JAX).

A curve is a function of x = ε_r/R0_eff with width one; its width grows with resolution,

    R0_eff² = R0² + (η|q|)² + (β|q|²)²,   β = bλ/√2,

by mosaic spread η and bandwidth b (SPEC section 2).  p = (R0/R0_eff)·curve(ε_r/R0_eff) conserves
the volume under it: a reflection smeared over a wider shell is weaker on the sphere.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array


def effective_width(R0, mosaic_mrad, dispersion_angstrom, norm_q) -> Array:
    """R0_eff, Å⁻¹ (n,), of R0 (Å⁻¹), η (mrad), β (Å) and |q| = 1/d (n,)."""
    mosaic = mosaic_mrad * 1e-3 * norm_q
    return jnp.sqrt(R0**2 + mosaic**2 + (dispersion_angstrom * norm_q**2) ** 2)


def log_gaussian_curve(x) -> Array:
    """−x²: blocks and spectrum with Gaussian profiles."""
    return -(x**2)


def log_lorentzian_curve(x) -> Array:
    """−ln(1 + x²): tails fall as a power, as those of a spread of block sizes or of a spectrum."""
    return -jnp.log1p(x**2)
