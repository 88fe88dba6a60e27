"""Find pixels that are brighter than a spot could make them: zingers, unmasked hot pixels (JAX)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr
from scipy.special import ndtri

from .shoebox import Shoebox

FALSE_PER_SPOT = 1e-5  # chance that a spot that is as expected loses a pixel
_WRONG = 0.2  # allowed relative error of the template and of its gradients along place and width
_NARROWEST = 0.7  # smallest allowed width of a spot over the expected width
_ALONE = 3.0  # sd by which neighbours must be fainter than for a spot centred on the pixel


def stray_pixels(excess, usable, template, gradient, moment_px, noise, expected, shoebox: Shoebox):
    """Pixels far above their share of a spot, and too bright for the pixels beside them.

    Let e_p be the photons of pixel p above the background.  Pixel p is left out where both hold:

    - *It has more than its share.*  J₋p = Σ P e/v / Σ P²/v over the other pixels is the spot's J
      without pixel p, however bright the spot is, and e_p is expected to be J₋p P_p.  The variance
      about this is that of counting, of J₋p, and of the template: a fifth of P_p, and of its
      gradients along place and width.  The deviance of counting with this variance must exceed the
      square of the normal quantile of 1e-5 over the number of pixels.
    - *It is alone.*  In a spot of at least 0.7 of the expected width, wherever its centre is, the
      two neighbours of a pixel on a line have together at least ρ = 2 f₁/f₀ of the pixel's photons,
      f_k being the share of a pixel k away from the one that the spot is centred on.  The
      neighbours' photons must be less than that by 3 sd.

    The first condition keeps a bright spot from being its own outlier, the second a displaced one.

    Args:
        excess: (n, K) photons above the background; usable: (n, K) bool.
        template: (n, K); gradient: (n, 5, K) of it along η.
        moment_px: (n, 2) variance of the template along x at a given y, and along y, px².
        noise: (n,) variance of a pixel of background, photons².
        expected: (n,) J_model at the current state, photons ≥ 0.

    Returns:
        (n, K) bool.
    """
    e = jnp.where(usable, excess, 0.0)
    share = jnp.where(usable, template, 0.0)
    variance = noise[:, None] + expected[:, None] * template
    total = jnp.sum(share * e / variance, axis=1, keepdims=True) - share * e / variance
    information = jnp.sum(share**2 / variance, axis=1, keepdims=True) - share**2 / variance
    J = total / jnp.maximum(information, 1e-9)
    J_variance = 1 / jnp.maximum(information, 1e-9)
    J_most = jnp.maximum(J, expected[:, None]) + 2 * jnp.sqrt(J_variance)
    wrong = template**2 + jnp.sum(gradient**2, axis=1)
    mean = jnp.maximum(J, 0.0) * template
    counted = noise[:, None] + mean
    spread = noise[:, None] + J_most * template + J_variance * template**2
    spread += (_WRONG * J_most) ** 2 * wrong
    n_pixels = len(shoebox.signal_offsets)
    enough = ndtri(FALSE_PER_SPOT / n_pixels) ** 2
    ratio = jnp.maximum(e - mean, 0.0) / counted
    deviance = 2 * counted**2 / spread * ((1 + ratio) * jnp.log1p(ratio) - ratio)
    return usable & (deviance > enough) & _alone(e, usable, moment_px, noise, shoebox)


def _alone(e, usable, moment_px, noise, shoebox: Shoebox):
    """(n, K) bool: too bright for the neighbours, on the lines where both neighbours are usable."""
    before, after = _neighbours(shoebox)  # (2, K) each, K where there is no neighbour
    room = ((0, 0), (0, 1))
    e_, known = jnp.pad(e, room), jnp.pad(usable, room)
    width = _NARROWEST * jnp.sqrt(moment_px)
    middle = 2 * ndtr(0.5 / width) - 1
    rho = 2 * (ndtr(1.5 / width) - ndtr(0.5 / width)) / middle  # (n, 2)
    missing, error = jnp.zeros_like(e), jnp.zeros_like(e)
    fraction = jnp.zeros_like(e)
    for axis in (0, 1):
        pair = known[:, before[axis]] & known[:, after[axis]]
        share = jnp.where(pair, rho[:, axis : axis + 1], 0.0)
        beside = jnp.where(pair, e_[:, before[axis]] + e_[:, after[axis]], 0.0)
        missing += share * e - beside
        error += 2 * pair * noise[:, None] + share * jnp.maximum(e, 0.0)
        fraction += share
    error += fraction**2 * (noise[:, None] + jnp.maximum(e, 0.0))
    return missing > _ALONE * jnp.sqrt(error)


def _neighbours(shoebox: Shoebox) -> tuple[np.ndarray, np.ndarray]:
    """Indices (2, K), among the signal's pixels, of the pixels before and after along x and y."""
    offsets = shoebox.signal_offsets
    at = {tuple(offset): k for k, offset in enumerate(offsets)}

    def step(dx: int, dy: int) -> list[int]:
        return [at.get((x + dx, y + dy), len(offsets)) for x, y in offsets]

    return np.array([step(-1, 0), step(0, -1)]), np.array([step(1, 0), step(0, 1)])


def conditional_variance(frame: jax.Array, moment: jax.Array) -> jax.Array:
    """(n, 2) px², 1/(C⁻¹)_xx and 1/(C⁻¹)_yy of the template's covariance C on the detector.

    Args:
        frame: (n, 2, 2) Å⁻¹/px; moment: (n, 3) second moment (M11, M22, M12), Å⁻².
    """
    m11, m22, m12 = moment.T
    inverse = jnp.stack([jnp.stack([m22, -m12], 1), jnp.stack([-m12, m11], 1)], 1)
    inverse /= (m11 * m22 - m12**2)[:, None, None]
    on_detector = jnp.einsum("nia,nij,nja->na", frame, inverse, frame)
    return 1 / on_detector
