"""Student's t-law of residuals, for NumPy and JAX arrays."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

STEPS = 8  # of the recurrence of Γ, after which Stirling's series is exact to rounding
# B_2k/(2k(2k − 1)) of k = 1, 2, …
STIRLING = 1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156


def log_student_t(value, nu, mean, scale, np_=np):
    """ln of Student's t-density of ``value``; the normal density for infinite ν.

        ln Γ((ν + 1)/2) − ln Γ(ν/2) − ½ ln πν − ln s − ½(ν + 1) ln(1 + z²/ν),   z = (x − μ)/s

    Args:
        value, mean, scale: x, μ and s, arrays of one shape or numbers.
        nu: ν, degrees of freedom; only a float may be infinite.
        np_: ``numpy`` or ``jax.numpy``.
    """
    z2 = ((value - mean) / scale) ** 2
    if isinstance(nu, float) and math.isinf(nu):
        return -0.5 * (z2 + math.log(2 * math.pi)) - np_.log(scale)
    constant = log_gamma_half_step(nu, np_) - 0.5 * np_.log(math.pi * nu)
    return constant - np_.log(scale) - 0.5 * (nu + 1) * np_.log1p(z2 / nu)


def log_student_t_less_constant(residual, nu, variance):
    """:func:`log_student_t` less what depends on ν alone, in half the time.

        ½ν ln s² − ½(ν + 1) ln(s² + x²/ν),   −½(ln s² + x²/s²) for infinite ν

    Args:
        residual, variance: x and s², arrays that broadcast. nu: ν, a number.
    """
    square = residual**2
    if math.isinf(nu):
        return -0.5 * (np.log(variance) + square / variance)
    return 0.5 * (nu * np.log(variance) - (nu + 1) * np.log(variance + square / nu))


def log_gamma_half_step(nu, np_=np):
    """ln Γ((ν + 1)/2) − ln Γ(ν/2), ν > 0, to rounding; quicker to compile than two of ln Γ.

    Γ(x) = Γ(y)/(x(x + 1)…(x + 7)) with y = x + 8, and Stirling's series

        ln Γ(y) = (y − ½) ln y − y + ½ ln 2π + 1/12y − 1/360y³ + 1/1260y⁵ − …
    """
    x = 0.5 * (np_.asarray(nu)[..., None] + np_.arange(2.0))
    y = x + STEPS
    inverse = 1 / y
    series, squared = np_.zeros_like(y), inverse * inverse
    for term in reversed(STIRLING):
        series = series * squared + term
    below = np_.log(x[..., None] + np_.arange(float(STEPS))).sum(-1)
    log_gamma = (y - 0.5) * np_.log(y) - y + series * inverse - below
    return log_gamma[..., 1] - log_gamma[..., 0]


def normal_weight(z2, nu):
    """(ν + 1)/(ν + z²): how much a residual counts, over a normal residual; 1 for infinite ν.

    A Student-t is a normal of unknown precision, whose mean given z is this weight over s².
    """
    return 1.0 if isinstance(nu, float) and math.isinf(nu) else (nu + 1) / (nu + z2)


def draw_student_t(key, nu, shape, dtype=float):
    """Draws of the law with ν degrees of freedom (:func:`student_t_of`).

    Args:
        key: of ``jax.random``. nu: ν, of a shape that broadcasts to ``shape``.
    """
    u, v = jax.random.uniform(key, (2, *shape), dtype, minval=jnp.finfo(dtype).tiny)
    return student_t_of(u, v, nu)


def student_t_of(u, v, nu):
    """√(ν(U^(−2/ν) − 1))·cos 2πV, a draw of the law with ν degrees of freedom (Bailey 1994).

    This is exact, and much faster than a normal over the root of a gamma, which needs rejection.

    Args:
        u, v: uniform, above 0 to 1. nu: ν, of a shape that broadcasts to theirs.
    """
    return jnp.sqrt(nu * jnp.expm1(-2 / nu * jnp.log(u))) * jnp.cos(2 * jnp.pi * v)
