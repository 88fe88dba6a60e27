"""How much of a reflection diffracts, as a function of its excitation error, and B_term (JAX).

A curve is a function of x = ε_r/R0_eff with width one; its width grows with resolution,

    R0_eff² = R0² + (η|q|)² + (β|q|²)²,   β = bλ/√2,

by mosaic spread η and bandwidth b (SPEC section 2).  p = (R0/R0_eff)·curve(ε_r/R0_eff) conserves
the volume under it: a reflection smeared over a wider shell is weaker on the sphere.
"""

from __future__ import annotations

import jax.numpy as jnp

from .observations import Array
from .spot import Spot

MAX_POWER = 40.0  # e to it, a block's chance over all blocks': |ε_r| ≥ 6.3 R0_eff, p < 1e-17


def conserving_partiality(excitation_error, R0, R0_eff) -> Array:
    """p = (R0/R0_eff)·exp(−ε_r²/R0_eff²): smearing R0 to R0_eff conserves the volume."""
    return R0 / R0_eff * jnp.exp(-((excitation_error / R0_eff) ** 2))


def peak_partiality(excitation_error, R0, R0_eff) -> Array:
    """p = exp(−ε_r²/R0_eff²): one on the sphere, whatever the smearing."""
    return jnp.exp(-((excitation_error / R0_eff) ** 2))


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


def block_variance(spot: Spot, m2) -> Array:
    """Relative variance of p, times the number of mosaic blocks, that their finite number causes.

    Each block has a curve k = exp(−(ε_r − x)²/R_k²), R_k² = R0² + R_bw², about its own place x
    with spread m = η|q|cosθ.  One draw of x varies by E[k²]/E[k]² − 1,

        E[k²]/E[k]² = R_eff²/(R_k √(R_k² + 2m²)) · exp(2ε_r²(1/R_eff² − 1/(R_k² + 2m²))),

    zero at low resolution and large in the tails, where few blocks diffract: at most e⁴⁰ of it,
    which p² < e⁻⁸⁰ makes nothing of, since e to any power does not fit in single precision.
    """
    eff2 = spot.R0_eff**2
    k2, twice = eff2 - m2, eff2 + m2
    power = jnp.minimum(2 * spot.excitation_error**2 * (1 / eff2 - 1 / twice), MAX_POWER)
    return eff2 / jnp.sqrt(k2 * twice) * jnp.exp(power) - 1


def debye_waller(B, norm_q) -> Array:
    """B_term = exp(−B/(4d²)) of SPEC section 2, with 1/d = ``norm_q``, B in Å²."""
    return jnp.exp(-0.25 * B * norm_q**2)
