"""The block Hessian of a run, and inverses of its blocks.

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

from ..util.large_arrays import in_slices
from .batches import finite_rows

Array = jax.Array | np.ndarray
IMAGES = 1024  # whose matrices are in memory at a time
SINGULAR = 1e-10  # of the diagonal: the Cholesky factor of a smaller eigenvalue is rounding
WIDEST = 2.0  # largest sd of a direction over that of the prior that is believed


class BlockHessian(NamedTuple):
    """Negative Hessian of ln p: blocks (n, k, k), coupling (n, k, s), shared (s, s)."""

    blocks: Array
    coupling: Array
    shared: Array

    def finite(self) -> np.ndarray:
        """(n,) bool: images whose curvature is finite."""
        columns = self.blocks, self.coupling
        return in_slices(lambda *rows: [finite_rows(*rows)], *columns, size=IMAGES)[0]


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


def made_positive(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n,) bool, which blocks (n, k, k) are those of a maximum, and the blocks, the eigenvalues of
    the others made positive."""
    is_mode = np.linalg.eigvalsh(scaled(blocks))[:, 0] > SINGULAR
    precision = np.array(blocks, float)
    others = precision[~is_mode]
    precision[~is_mode] = np.linalg.inv(upward_inverse(others, np.zeros(len(others)), np))
    return is_mode, precision


def no_wider(covariance, sd):
    """A covariance (s, s) with no direction wider than ``WIDEST`` times sd (s,).

    Data that are not normal can curve ln p upwards by nearly as much as the prior curves it
    downwards.  The remaining curvature is then meaningless, and the width is limited.
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
