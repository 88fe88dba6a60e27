"""Curvatures by automatic second derivatives: independent answers for the library's differences."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from bayes_refine.infer.curvature import BlockHessian, columns_of, hessian
from bayes_refine.infer.density import density, prior_density
from bayes_refine.infer.expectations import expectations


def exact_curvature(model, sites, theta, phi, weight, share, args) -> BlockHessian:
    """The Hessian of −ln p itself, (n, k) and (s,) unconstrained unknowns.

    ``weight``: (n,) 1, or 0 for an unused place; ``share``: the fraction of the shared prior that
    this batch contributes.
    """

    def negative(t, p):
        image, shared = density(model, sites, t, p, args)
        return -jnp.where(weight > 0, image, 0.0).sum() - share * shared

    return hessian(negative, theta, phi)


def fisher_curvature(model, sites, theta, phi, weight, share, args) -> BlockHessian:
    """Expected curvature of normal and Student-t observations, exact curvature of the priors.

    This curvature is never negative along an observation, and several times cheaper than the exact
    one, since it needs forward derivatives only.  Where an observed site is of another kind, the
    exact Hessian is returned.
    """
    slopes = fisher_slopes(model, sites, theta, phi, weight, args)
    if slopes is None:
        return exact_curvature(model, sites, theta, phi, weight, share, args)
    fisher = slopes @ jnp.swapaxes(slopes, 1, 2)
    k = theta.shape[1]

    def negative(t, p):
        image, shared = prior_density(model, sites, t, p, args)
        return -jnp.where(weight > 0, image, 0.0).sum() - share * shared

    prior = hessian(negative, theta, phi)
    return BlockHessian(
        fisher[:, :k, :k] + prior.blocks,
        fisher[:, :k, k:] + prior.coupling,
        fisher[:, k:, k:].sum(0) + prior.shared,
    )


def fisher_slopes(model, sites, theta, phi, weight, args) -> jax.Array | None:
    """(n, k + s, rows) S of which S Sᵀ is the information of each image's observations.

    Rows of an image: (location, ln scale) of each observed site in turn, each for all its
    reflections, then ln ν of each.  None where a site is neither normal, Student-t nor Poisson.
    """
    found = expectations(model, sites, theta, phi, args)
    if found is None:
        return None

    def by_image(x):
        return x.reshape(len(theta), -1)

    # Information of ln scale and ln ν is correlated: one row of both, one row of ln ν alone.
    together = [row.of_both / jnp.maximum(row.of_scale, 1e-30) for row in found]
    alone = [
        by_image(row.of_df - row.of_both * x).sum(1) for row, x in zip(found, together, strict=True)
    ]
    root = [by_image(jnp.sqrt(x)) for row in found for x in (row.of_mean, row.of_scale)]
    root += [jnp.sqrt(jnp.maximum(x, 0.0))[:, None] for x in alone]
    root = jnp.concatenate(root, axis=1) * weight[:, None]

    def expected(t, p):
        rows = expectations(model, sites, t, p, args)
        flat = [
            by_image(x)
            for row, share in zip(rows, together, strict=True)
            for x in (row.mean, row.log_scale + share * row.log_df)
        ]
        flat += [jnp.broadcast_to(row.log_df, (len(theta), 1)) for row in rows]
        return jnp.concatenate(flat, axis=1)

    _, product = jax.linearize(expected, theta, phi)
    return jnp.moveaxis(columns_of(lambda t, p: product(t, p) * root, theta, phi), 0, 1)
