"""Priors of frames that are exposures of one turning crystal, a sweep (JAX).

Frames of a sweep share a cell, a mosaic spread and its shape, and scale and B that vary smoothly
along the sweep.  These are unknowns that the run shares; the numbers of a frame are normal about
them, with small sd (docs/theory.md, Sweeps).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp

from .observations import Array, SpotStatistics
from .priors import Priors


class OfSweeps(NamedTuple):
    """What the frames of each of S sweeps share.

    Attributes:
        log_G, B: (r,) ln G and B (Å²) at the first knot of a sweep, then the changes from knot to
            knot, one sweep after the other. strain: (S·K,). log_mosaic: (S,) ln of the mosaic
            spread over that of the run. mosaic_shape: (S·5,), axes of the sweep's first frame.
    """

    log_G: Array
    B: Array
    strain: Array
    log_mosaic: Array
    mosaic_shape: Array


class About(NamedTuple):
    """Priors of what each of n images has: mean and sd, numbers or (n, 1); of vectors (n, 1, ·).

    Of ``mosaic_mrad`` the median, and the sd of its logarithm.
    """

    log_G: tuple[Any, Any]
    B: tuple[Any, Any]
    strain: tuple[Any, Any]
    mosaic_mrad: tuple[Any, Any]
    mosaic_shape: tuple[Any, Any]


def smooth_prior(obs: SpotStatistics, first: tuple[Any, Any], change_sd) -> tuple[Array, Array]:
    """Mean and sd (r,) of values at the first knots, as in ``first``, and of changes about 0."""
    assert obs.sweeps is not None
    starts = obs.sweeps.starts[0]
    return jnp.where(starts > 0, first[0], 0.0), jnp.where(starts > 0, first[1], change_sd)


def about_sweeps(
    obs: SpotStatistics, priors: Priors, about: About, shared: OfSweeps | None
) -> About:
    """The priors of images where frames share unknowns; ``about`` for images that are in no sweep.

    A frame of sweep s has ln G ~ N(Σ_r w_r x_r, σ²), w its row of ``Sweeps.smooth``, σ
    ``frame_log_G_sd``, and B likewise; strain and mosaic shape ~ N(those of s, σ²).
    """
    sweeps = obs.sweeps
    if sweeps is None or shared is None:
        return about
    member = sweeps.member
    inside = jnp.sum(member, 1, keepdims=True)  # (n, 1): 1, or 0 in no sweep

    def scalar(old, mean, sd):
        return jnp.where(inside > 0, mean[:, None], old[0]), jnp.where(inside > 0, sd, old[1])

    def vector(old, values, sd):
        mean = member @ jnp.reshape(values, (member.shape[1], -1))
        within = inside[:, :, None]
        return old[0] + mean[:, None], jnp.where(within > 0, sd, old[1])

    log_mosaic = (member @ shared.log_mosaic)[:, None]
    return About(
        log_G=scalar(about.log_G, sweeps.smooth @ shared.log_G, priors.frame_log_G_sd),
        B=scalar(about.B, sweeps.smooth @ shared.B, priors.frame_B_sd),
        strain=vector(about.strain, shared.strain, priors.frame_strain_sd),
        mosaic_mrad=(
            about.mosaic_mrad[0] * jnp.exp(log_mosaic),
            jnp.where(inside > 0, priors.frame_log_mosaic_sd, about.mosaic_mrad[1]),
        ),
        mosaic_shape=vector(about.mosaic_shape, shared.mosaic_shape, priors.frame_mosaic_shape_sd),
    )


def root_of_blocks(obs: SpotStatistics, covariance: Array) -> Array:
    """W (n, 3, 3) with W Wᵀ the covariance; of a sweep's frames W turns with the crystal.

    W is R·chol(Rᵀ C R), R the crystal's turn since the first frame, so that numbers along the
    columns of W mean the same in all frames.
    """
    if obs.sweeps is None:
        return jnp.linalg.cholesky(covariance)
    turned = jnp.asarray(obs.sweeps.turned)
    back = jnp.swapaxes(turned, 1, 2)
    return turned @ jnp.linalg.cholesky(back @ covariance @ turned)


def turned_with_crystal(obs: SpotStatistics, covariance: Array) -> Array:
    """R C Rᵀ (n, 3, 3): a covariance in the axes of the sweep's first frame, R its turn since."""
    if obs.sweeps is None:
        return covariance
    turned = jnp.asarray(obs.sweeps.turned)
    return turned @ covariance @ jnp.swapaxes(turned, 1, 2)
