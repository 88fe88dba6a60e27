"""The joint MAP of a likelihood of pixels: the per-pixel fit at its fastest.

The search is :func:`~bayes_refine.infer.newton.map_fit`'s own, damped by Levenberg and
Marquardt's rule.  Its curvature takes one pass over the pixels: six numbers make a spot
(``profile``), so an image's normal equations are those of its spots, chained to its unknowns:

    A_h = Σ_p w_p ∂μ_p/∂spot ∂μ_p/∂spotᵀ   over the pixels of a spot,
    F = Σ_h J_hᵀ A_h J_h,                  J_h = ∂spot/∂unknowns,

with w the Fisher information of μ: 1/σ² of least squares, so that F is Gauss and Newton's, 1/μ
of Poisson counts, so that it is Fisher's.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..infer import differences
from ..infer.curvature import BlockHessian, columns_of, hessian
from ..infer.density import Model, prior_density, traced, unflatten
from ..infer.expectations import expected
from ..infer.laplace import Fit
from ..infer.newton import map_fit
from ..infer.search import Curvature
from ..util.progress import SILENT, Listener
from .pixel_noise import PixelLikelihood
from .profile import N_SPOT, template_and_slopes


def pixel_fit(
    model: Model,
    noise: PixelLikelihood,
    pixels: Any,
    priors: Any,
    init: dict[str, np.ndarray] | None = None,
    max_iterations: int = 60,
    tolerance: float = 1e-2,
    progress: Listener = SILENT,
) -> Fit:
    """The joint MAP of a per-pixel model of all images with its Fisher curvature.

    Args:
        model: NumPyro program of (pixels, priors, noise) with a deterministic site ``spots``.
        pixels: ``bayes_refine.per_pixel.pixels.Pixels``.
        init, max_iterations, tolerance, progress: as of ``map_fit``.
    """
    return map_fit(
        with_noise(model, noise),
        pixels,
        priors,
        init=init,
        max_iterations=max_iterations,
        tolerance=tolerance,
        curvature=spot_curvature(noise),
        exact=False,
        progress=progress,
    )


@lru_cache(maxsize=8)
def with_noise(model: Model, noise: PixelLikelihood) -> Model:
    """A per-pixel model whose photons scatter so."""
    return partial(model, noise=noise)


@lru_cache(maxsize=8)
def spot_curvature(noise: PixelLikelihood) -> Curvature:
    """The curvature of the module's docstring, of a per-pixel model whose photons scatter so."""
    return partial(differences.compiled, partial(_spot_curvature, noise))


def _spot_curvature(noise, model, sites, theta, phi, weight, share, args) -> BlockHessian:
    pixels = args[0]

    def spots_of(t, p):
        return traced(model, unflatten(sites, t, p), args)["spots"]["value"]

    def negative_prior(t, p):
        image, shared = prior_density(model, sites, t, p, args)
        return -jnp.where(weight > 0, image, 0.0).sum() - share * shared

    spots, product = jax.linearize(spots_of, theta, phi)
    chain = jnp.moveaxis(columns_of(product, theta, phi), 0, 2)  # (n, 6, k + s, m)
    curved = spot_sums(noise, pixels, spots) * weight[:, None, None, None]
    weighted = jnp.einsum("nabm,nbcm->nacm", curved, chain)
    fisher = jnp.einsum("nacm,nadm->ncd", chain, weighted)
    prior, k = hessian(negative_prior, theta, phi), theta.shape[1]
    return BlockHessian(
        blocks=fisher[:, :k, :k] + prior.blocks,
        coupling=fisher[:, :k, k:] + prior.coupling,
        shared=fisher[:, k:, k:].sum(0) + prior.shared,
    )


def spot_sums(noise: PixelLikelihood, pixels: Any, spots: jax.Array):
    """A (n, 6, 6, m) of the module's docstring, one pixel of all shoeboxes after another."""

    def add(total, one):
        offset, photons, usable, variance, background = one
        template, *slopes = template_and_slopes(offset, spots, pixels.nodes)
        mean = background + spots[:, 0] * template
        here = _OnePixel(photons, variance, background, pixels.read_variance)

        def parts(mean):
            row = expected(noise(mean, here)[0])
            return (row.mean, row.log_scale), (row.of_mean, row.of_scale)

        _, (by_mean, by_scale), (of_mean, of_scale) = jax.jvp(
            parts, (mean,), (jnp.ones_like(mean),), has_aux=True
        )
        weight = jnp.where(usable, of_mean * by_mean**2 + of_scale * by_scale**2, 0.0)
        d = [template, *(spots[:, 0] * slope for slope in slopes)]
        terms = []
        for i in range(N_SPOT):
            weighted = d[i] * weight
            terms += [weighted * d[j] for j in range(i, N_SPOT)]
        return total + jnp.stack(terms), None

    def by_pixel(x):
        return jnp.moveaxis(jnp.broadcast_to(x, pixels.photons.shape), 1, 0)

    size = N_SPOT * (N_SPOT + 1) // 2
    start = jnp.zeros((size, *spots[:, 0].shape), spots.dtype)
    names = "photons", "usable", "variance", "background"
    data = pixels.offsets, *(by_pixel(getattr(pixels, name)) for name in names)
    total, _ = jax.lax.scan(add, start, data)
    upper = np.zeros((N_SPOT, N_SPOT), int)
    upper[np.triu_indices(N_SPOT)] = np.arange(size)
    upper = np.maximum(upper, upper.T)
    return jnp.moveaxis(total[upper], 2, 0)


class _OnePixel(NamedTuple):
    """What a noise asks of the data, of one pixel of each shoebox."""

    photons: jax.Array
    variance: jax.Array
    background: jax.Array
    read_variance: jax.Array
