"""The block Hessian of a run, and how its blocks are inverted.

Unknowns of different images have no mixed second derivatives.  The Hessian of −ln p therefore has
the shape of a *block Hessian*: a block (k, k) for each image's unknowns, a *coupling* (k, s) for
each image of the mixed derivatives with the s shared unknowns, and one block (s, s) of the shared
unknowns.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .density import density, prior_density
from .expectations import expectations

Array = jax.Array | np.ndarray
WIDEST = 2.0  # sd of a direction over the prior's, at most: a wider one is not believed


class BlockHessian(NamedTuple):
    """Negative Hessian of ln p: blocks (n, k, k), coupling (n, k, s), shared (s, s)."""

    blocks: Array
    coupling: Array
    shared: Array


def columns_of(product, theta, phi):
    """A linear map along each unknown of an image, all images at once, then each shared unknown."""
    k, s = theta.shape[1], phi.shape[0]
    eye = jnp.eye(k + s, dtype=theta.dtype)
    return jax.vmap(lambda e: product(jnp.broadcast_to(e[:k], theta.shape), e[k:]))(eye)


def hessian(negative, theta, phi) -> BlockHessian:
    """Exact block Hessian of a scalar function, one Hessian–vector product a column."""
    k = theta.shape[1]
    _, product = jax.linearize(jax.grad(negative, argnums=(0, 1)), theta, phi)
    image, shared = columns_of(product, theta, phi)
    return BlockHessian(jnp.moveaxis(image[:k], 0, 2), jnp.moveaxis(image[k:], 0, 2), shared[k:])


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


def fisher_slopes(model, sites, theta, phi, weight, args) -> Array | None:
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


def upward_inverse(matrices, damping, np_=jnp):
    """Inverse of (|H| + damping·|diag H|), |H| with eigenvalues made positive; (n, k, k)."""
    root = upward_root(matrices, damping, np_)
    return root @ np_.swapaxes(root, 1, 2)


def upward_root(matrices, damping=None, np_=np):
    """W with W Wᵀ the :func:`upward_inverse`, (n, k, k)."""
    values, vectors = eigen(matrices, np_)
    if damping is not None:
        values = values + damping[:, None]
    return vectors / np_.sqrt(values)[:, None]


def no_wider(covariance, sd):
    """A covariance (s, s) with no direction wider than ``WIDEST`` times sd (s,).

    Data that are not normal can curve ln p upwards by as much as the prior curves it downwards.
    The remaining curvature then means nothing, and the prior's width stands.
    """
    values, vectors = np.linalg.eigh(covariance / np.outer(sd, sd))
    root = sd[:, None] * vectors * np.sqrt(np.minimum(values, WIDEST**2))
    return root @ root.T


def eigen(matrices, np_=np):
    """λ (n, k) > 0 and V (n, k, k) of |H| = V⁻ᵀ λ V⁻¹, where V⁻ᵀ V⁻¹ = |diag H|."""
    scale = np_.sqrt(np_.abs(np_.diagonal(matrices, axis1=1, axis2=2)) + 1e-12)
    values, vectors = np_.linalg.eigh(matrices / (scale[:, :, None] * scale[:, None]))
    return np_.maximum(np_.abs(values), 1e-6), vectors / scale[:, :, None]


def scaled(matrices):
    """(..., k, k) in units that make the diagonal ±1, so that eigenvalues have no units."""
    scale = np.sqrt(np.abs(np.diagonal(matrices, axis1=-2, axis2=-1)) + 1e-30)
    return matrices / (scale[..., :, None] * scale[..., None, :])
