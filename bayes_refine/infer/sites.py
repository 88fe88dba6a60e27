"""Kinds of unknowns that models sample in more than one place."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist

from ..util.student_t import log_student_t


def log_normal(name: str, median, log_sd, size: tuple[int, ...] = ()) -> jax.Array:
    """A positive unknown, or a vector of some, sampled as its logarithm: the site ``log_name``.

    Args:
        median: in the unknown's unit. log_sd: sd of its natural logarithm.
        size: shape of one event.
    """
    prior = _expanded(dist.Normal(jnp.log(median), log_sd), size)
    return jnp.exp(numpyro.sample(f"log_{name}", prior))


def normal(name: str, mean, sd, size: int) -> jax.Array:
    """A vector of ``size`` independent normal unknowns; mean and sd may be arrays (..., size)."""
    return numpyro.sample(name, _expanded(dist.Normal(mean, sd), (size,)))


def _expanded(prior: dist.Distribution, size: tuple[int, ...]) -> dist.Distribution:
    """A prior with one event of the shape ``size``."""
    shape = jnp.broadcast_shapes(prior.batch_shape, size)
    return prior.expand(shape).to_event(len(size))


class StudentT(dist.StudentT):
    """NumPyro's Student-t distribution, whose normalising constant is quicker to compile."""

    def log_prob(self, value):
        """ln of the density at ``value``."""
        return log_student_t(value, self.df, self.loc, self.scale, jnp)
