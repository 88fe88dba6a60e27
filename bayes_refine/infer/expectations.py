"""Expected location and scale of a model's observations, and their Fisher information."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from ..util.student_t import log_gamma_half_step
from .density import in_image_plate, traced, unflatten


class Expected(NamedTuple):
    """Expectations at an observed site: arrays of its observations' shape, except log_df.

    Attributes:
        mean, log_scale: of each observation; a Poisson count has log_scale 0.
        log_df: ln ν of a Student-t, a scalar; 0 for other distributions.
        of_mean, of_scale, of_both, of_df: Fisher information of the mean, of ln scale, of ln scale
            with ln ν, and of ln ν; zero where masked.
        score: ∂ln p/∂mean and ∂ln p/∂ln scale of what was observed; zero where masked.
    """

    mean: jax.Array
    log_scale: jax.Array
    log_df: jax.Array
    of_mean: jax.Array
    of_scale: jax.Array | float
    of_both: jax.Array | float
    of_df: jax.Array | float
    score: tuple[jax.Array, jax.Array] | None = None


def expectations(model, sites, theta, phi, args) -> list[Expected] | None:
    """Of each observed site, masked; None where one is of no known kind, or in no plate over
    images.
    """
    found = []
    for site in traced(model, unflatten(sites, theta, phi), args).values():
        if site["type"] != "sample" or not site["is_observed"]:
            continue
        if not in_image_plate(site):
            return None
        fn, mask = site["fn"], jnp.array(True)
        while isinstance(fn, dist.MaskedDistribution | dist.ExpandedDistribution):
            mask = mask & fn._mask if isinstance(fn, dist.MaskedDistribution) else mask
            fn = fn.base_dist
        row = expected(fn)
        if row is None:
            return None
        shape = jnp.broadcast_shapes(site["fn"].batch_shape, jnp.shape(site["value"]))
        mask = jnp.broadcast_to(mask, shape)
        mean, log_scale = (jnp.broadcast_to(x, shape) for x in row[:2])
        of_mean, of_scale, of_both, of_df = (x * mask for x in row[3:7])
        along, scaling = (jnp.where(mask, x, 0.0) for x in _score(fn, site["value"]))
        information = of_mean, of_scale, of_both, of_df
        found.append(Expected(mean, log_scale, row.log_df, *information, (along, scaling)))
    return found


def expected(fn: dist.Distribution) -> Expected | None:
    """Of a normal, Student-t or Poisson distribution, nothing masked; None for others.

    Information of the mean 1/σ², (ν + 1)/(ν + 3)/σ², 1/μ; of ln σ 2, 2ν/(ν + 3); of a Student-t's
    ln σ with ln ν −2ν/((ν + 1)(ν + 3)), and of its ln ν
    ν²·(ψ′(ν/2) − ψ′((ν + 1)/2))/4 − ν(ν + 5)/(2(ν + 1)(ν + 3)) (Lange, Little & Taylor 1989).
    """
    zero = jnp.zeros(())
    if isinstance(fn, dist.Normal):
        return Expected(fn.loc, jnp.log(fn.scale), zero, 1 / fn.scale**2, 2.0, 0.0, 0.0)
    if isinstance(fn, dist.StudentT) and jnp.size(fn.df) == 1:
        nu = jnp.reshape(fn.df, ())
        of_mean, of_scale = (nu + 1) / (nu + 3) / fn.scale**2, 2 * nu / (nu + 3)
        of_both = -2 * nu / ((nu + 1) * (nu + 3))
        of_df = -(nu**2) * jax.grad(jax.grad(partial(log_gamma_half_step, np_=jnp)))(nu)
        of_df -= nu * (nu + 5) / (2 * (nu + 1) * (nu + 3))
        return Expected(fn.loc, jnp.log(fn.scale), jnp.log(nu), of_mean, of_scale, of_both, of_df)
    if isinstance(fn, dist.Poisson):
        return Expected(fn.rate, jnp.zeros_like(fn.rate), zero, 1 / fn.rate, 0.0, 0.0, 0.0)
    return None


def _score(fn: dist.Distribution, value) -> tuple[jax.Array, jax.Array]:
    """∂ln p/∂mean and ∂ln p/∂ln scale of a normal, Student-t or Poisson distribution."""
    if isinstance(fn, dist.Poisson):
        return (value - fn.rate) / fn.rate, jnp.zeros_like(fn.rate)
    z = (value - fn.loc) / fn.scale
    weight = (fn.df + 1) / (fn.df + z**2) if isinstance(fn, dist.StudentT) else 1.0
    return weight * z / fn.scale, weight * z**2 - 1
