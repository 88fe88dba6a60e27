"""The background of a spot: a plane through its clipped ring (JAX)."""

from __future__ import annotations

import jax.numpy as jnp


def ring_background(ring, start, read_variance):
    """Clipped mean of the ring, the pixels that the mean is of, and their expected variance.

    Pixels further than 3.5 expected sd from the current mean are left out, five times over.  The
    expected sd follows from the mean, √(Bg + σ_read²), never from the pixel.

    Args:
        ring: (n, L) photons, NaN where not usable; start: (n,) median of the ring, which is right
            while fewer than half of the pixels are wrong; read_variance: photons².

    Returns:
        background (n,), kept (n, L) bool, and variance of one background pixel (n,).
    """
    usable = jnp.isfinite(ring)
    pixels = jnp.where(usable, ring, 0.0)

    def pixel_variance(background, count):
        return jnp.maximum(background, 1.0 / count) + read_variance

    background, count, keep = start, jnp.maximum(jnp.sum(usable, axis=1), 1), usable
    for _ in range(5):
        reach = 3.5 * jnp.sqrt(pixel_variance(background, count)) + 1.0
        keep = usable & (jnp.abs(pixels - background[:, None]) < reach[:, None])
        count = jnp.maximum(jnp.sum(keep, axis=1), 1)
        background = jnp.sum(jnp.where(keep, pixels, 0.0), axis=1) / count
    return background, keep, pixel_variance(background, count)


def ring_slope(ring, background, keep, offsets):
    """Slope of the background across the ring, by least squares about the mean.

    The ring-shaped halo of the solvent has a slope across a shoebox, which shifts the centroid of a
    spot by an amount proportional to slope/J: weak spots most, and all spots towards the beam.

    Args:
        ring: (n, L) photons; background: (n,) mean of the pixels kept (n, L); offsets: (L, 2) px.

    Returns:
        slope (n, 2), photons/px; middle (n, 2) of the pixels kept, px; and the inverse (n, 2, 2) of
        their scatter, px⁻², which is the slope's covariance over the variance of a pixel.
    """
    count = jnp.maximum(jnp.sum(keep, axis=1), 1)[:, None]
    middle = keep @ offsets / count
    away = jnp.where(keep[:, :, None], offsets - middle[:, None], 0.0)
    scatter = jnp.einsum("nla,nlb->nab", away, away) + jnp.eye(2, dtype=away.dtype)
    inverse = jnp.linalg.inv(scatter)
    excess = jnp.where(keep, ring - background[:, None], 0.0)
    return jnp.einsum("nab,nlb,nl->na", inverse, away, excess), middle, inverse
