"""Coordinates in which the Laplace approximation is the unit normal, linear in the images.

    φ = φ̂ + L_s z_s,    θ_i = θ̂_i − S_i (φ − φ̂) + L_i z_i

with L_s L_sᵀ the covariance of the shared unknowns, S_i = H_i⁻¹B_i how far image i's mode moves
with them (B_i the coupling, :mod:`curvature`), and L_i L_iᵀ = H_i⁻¹ the image's covariance given
them.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .laplace import Fit


class Whitening(NamedTuple):
    """Mode and factors: image (n, k), shared (s,), slope S (n, k, s), image_factor L (n, k, k),
    shared_factor (s, s).
    """

    image: jax.Array
    shared: jax.Array
    slope: jax.Array
    image_factor: jax.Array
    shared_factor: jax.Array


def whitening(fit: Fit) -> Whitening:
    """The factors of a fit."""
    lower = np.linalg.cholesky(fit.image_precision)
    eye = np.broadcast_to(np.eye(lower.shape[-1]), lower.shape)
    factors = (
        fit.image,
        fit.shared,
        np.linalg.solve(fit.image_precision, fit.coupling),
        np.swapaxes(np.linalg.solve(lower, eye), 1, 2),
        np.linalg.cholesky(fit.shared_covariance),
    )
    return Whitening(*(jnp.asarray(x) for x in factors))


def coloured(w: Whitening, image: jax.Array, shared: jax.Array) -> tuple[jax.Array, jax.Array]:
    """White (n, k) and (s,) to unconstrained unknowns."""
    step = w.shared_factor @ shared
    return w.image - w.slope @ step + jnp.einsum("nij,nj->ni", w.image_factor, image), (
        w.shared + step
    )


def log_volume(w: Whitening) -> tuple[jax.Array, jax.Array]:
    """ln |det| of the map from white coordinates: (n,) of each image, and of what is shared."""

    def log_det(factor):
        return jnp.log(jnp.abs(jnp.diagonal(factor, axis1=-2, axis2=-1))).sum(-1)

    return log_det(w.image_factor), log_det(w.shared_factor)
