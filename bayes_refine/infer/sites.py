"""Kinds of unknowns that models sample in more than one place."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist

STEPS = 8  # of the recurrence of Γ, after which Stirling's series is exact to rounding
# B_2k/(2k(2k − 1)) of k = 1, 2, …
STIRLING = 1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156


def log_normal(name: str, median, log_sd, size: tuple[int, ...] = ()) -> jax.Array:
    """A positive unknown, or a vector of some, sampled as its logarithm: the site ``log_name``.

    Args:
        median: in the unknown's unit. log_sd: sd of its natural logarithm.
        size: shape of one event.
    """
    prior = dist.Normal(jnp.log(median), log_sd).expand(size).to_event(len(size))
    return jnp.exp(numpyro.sample(f"log_{name}", prior))


def normal(name: str, mean, sd, size: int) -> jax.Array:
    """A vector of ``size`` independent normal unknowns."""
    return numpyro.sample(name, dist.Normal(mean, sd).expand([size]).to_event(1))


class StudentT(dist.StudentT):
    """NumPyro's Student-t distribution, whose normalising constant is quicker to compile."""

    def log_prob(self, value):
        """ln of the density at ``value``."""
        return log_student_t(value, self.df, self.loc, self.scale)


def log_student_t(value, nu, mean, scale) -> jax.Array:
    """ln of Student's t-density of ``value`` with ν degrees of freedom."""
    z2 = ((value - mean) / scale) ** 2
    constant = log_gamma_half_step(nu) - 0.5 * jnp.log(math.pi * nu)
    return constant - jnp.log(scale) - 0.5 * (nu + 1) * jnp.log1p(z2 / nu)


def log_gamma_half_step(nu: jax.Array) -> jax.Array:
    """ln Γ((ν + 1)/2) − ln Γ(ν/2), ν > 0, to rounding.

    Γ(x) = Γ(y)/(x(x + 1)…(x + 7)) with y = x + 8, and Stirling's series

        ln Γ(y) = (y − ½) ln y − y + ½ ln 2π + 1/12y − 1/360y³ + 1/1260y⁵ − …
    """
    x = 0.5 * (jnp.asarray(nu)[..., None] + jnp.arange(2.0))
    y = x + STEPS
    inverse = 1 / y
    series, squared = jnp.zeros_like(y), inverse * inverse
    for term in reversed(STIRLING):
        series = series * squared + term
    below = jnp.log(x[..., None] + jnp.arange(float(STEPS))).sum(-1)
    log_gamma = (y - 0.5) * jnp.log(y) - y + series * inverse - below
    return log_gamma[..., 1] - log_gamma[..., 0]
