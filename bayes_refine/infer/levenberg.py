"""Levenberg–Marquardt on the pixels of many images at once: the per-pixel fit at its fastest.

One pass over the pixels gives everything that a step needs.  Six numbers make a spot
(``profile``), so an image's normal equations are those of its spots, chained to its unknowns:

    b_h = Σ_p s_p ∂μ_p/∂spot,   A_h = Σ_p w_p ∂μ_p/∂spot ∂μ_p/∂spotᵀ   over the pixels of a spot,
    g = Σ_h J_hᵀ b_h,           F = Σ_h J_hᵀ A_h J_h,                    J_h = ∂spot/∂unknowns,

with s = ∂ln p/∂μ and w the Fisher information of μ: (I − μ)/σ² and 1/σ² of least squares, so that
F is Gauss and Newton's, (I − μ)/μ and 1/μ of Poisson counts, so that it is Fisher's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..profile import N_SPOT, template_and_slopes
from .counting import Noise
from .curvature import Arrow, columns_of, hessian
from .density import (
    Model,
    Site,
    expected,
    find_sites,
    flatten,
    prior_density,
    traced,
    unflatten,
)
from .laplace import Fit
from .newton import compiled_reach, fit_of_mode
from .steps import Slope, steps_of

# of diagonals: less is Gauss and Newton's step, and a long way back where that is too far
DAMPING = 1e-4, 1e2
SHARED_DAMPING = 1e-6, 1e6


def pixel_fit(
    model: Model,
    noise: Noise,
    pixels: Any,
    priors: Any,
    init: dict[str, np.ndarray] | None = None,
    max_iterations: int = 60,
    tolerance: float = 1e-2,
    progress: Callable[[str], None] | None = None,
) -> Fit:
    """The joint MAP of a per-pixel model of all images with its Fisher curvature.

    Each image has its own damping, what they share another; a step is taken if ln p of all
    together does not fall.  No step goes beyond one prior sd.

    Args:
        model: NumPyro program of (pixels, priors) with a deterministic site ``spots``; what it
            says of the photons is not asked, since that is ``noise`` (``counting``).
        pixels: ``bayes_refine.per_pixel.pixels.Pixels``.
        init: start by site (constrained, all images); the prior mean where absent.
        tolerance: stop when every image and the shared unknowns are nearer to the mode than
            this many posterior sd.
    """
    args = (pixels, priors)
    sites, values = find_sites(model, args, init or {})
    theta, phi = (np.asarray(x) for x in flatten(sites, values))
    look = compiled_look(model, noise, sites)
    reach = [np.asarray(x) for x in compiled_reach(model, sites)(theta, phi, args)]
    damping, shared_damping = np.full(len(theta), 1e-2), 1e-3
    here = _looked(look(theta, phi, args))
    for iteration in range(max_iterations + 1):
        step = steps_of(*here, damping, shared_damping)
        far = max(float(step.distance.max()), step.shared_distance)
        if progress is not None:
            progress(f"step {iteration}: ln p {here[0].log_density:.2f}, {far:.2g} sd to go")
        if far < tolerance or iteration == max_iterations:
            break
        d_phi = np.clip(step.shared, -reach[1], reach[1])
        d_theta = np.clip(step.alone - step.pull @ d_phi, -reach[0], reach[0])
        there = _looked(look(theta + d_theta, phi + d_phi, args))
        fell = here[0].image - there[0].image
        taken = there[0].log_density > here[0].log_density - 1e-9 * abs(here[0].log_density)
        if taken:  # where all together gain, an image may lose a little to what they share
            damping = damping * np.where(fell > 0.1, 4.0, np.where(fell < 0, 0.3, 1.0))
            shared_damping *= 0.1
        else:  # those that fell are to blame; held hard, they cannot follow what is shared
            damping = damping * np.where(fell > 0, 10.0, 1.0)
            shared_damping *= 4.0
        damping = np.clip(damping, *DAMPING)
        shared_damping = float(np.clip(shared_damping, *SHARED_DAMPING))
        if taken:
            theta, phi, here = theta + d_theta, phi + d_phi, there
    return fit_of_mode(sites, theta, phi, *here, iteration, tolerance)


def _looked(found: tuple[Slope, Arrow]) -> tuple[Slope, Arrow]:
    """As NumPy arrays; an ln p that is no number is a very low one."""
    slope, arrow = jax.tree.map(lambda x: np.asarray(x, float), found)
    return slope._replace(image=np.where(np.isfinite(slope.image), slope.image, -1e200)), arrow


@lru_cache(maxsize=8)
def compiled_look(model: Model, noise: Noise, sites: tuple[Site, ...]):
    """:func:`_look`, compiled once for a model, a noise and the shape of the pixels."""
    return jax.jit(partial(_look, model, noise, sites))


def _look(model, noise, sites, theta, phi, args):
    pixels = args[0]

    def spots_of(t, p):
        return traced(model, unflatten(sites, t, p), args)["spots"]["value"]

    def negative_prior(t, p):
        image, shared = prior_density(model, sites, t, p, args)
        return -image.sum() - shared, (image, shared)

    spots, product = jax.linearize(spots_of, theta, phi)
    chain = jnp.moveaxis(columns_of(product, theta, phi), 0, 2)  # (n, 6, k + s, m)
    log_p, by_spot, curved = spot_sums(noise, pixels, spots)
    weighted = jnp.einsum("nabm,nbcm->nacm", curved, chain)
    fisher = jnp.einsum("nacm,nadm->ncd", chain, weighted)
    g = -jnp.einsum("nacm,nam->nc", chain, by_spot)

    k = theta.shape[1]
    (_, (image, shared)), (g_image, g_shared) = jax.value_and_grad(
        negative_prior, argnums=(0, 1), has_aux=True
    )(theta, phi)
    prior = hessian(lambda t, p: negative_prior(t, p)[0], theta, phi)
    slope = Slope(image + log_p, shared, g_image + g[:, :k], g_shared + g[:, k:].sum(0))
    arrow = Arrow(
        blocks=fisher[:, :k, :k] + prior.blocks,
        border=fisher[:, :k, k:] + prior.border,
        shared=fisher[:, k:, k:].sum(0) + prior.shared,
    )
    return slope, arrow


def spot_sums(noise: Noise, pixels: Any, spots: jax.Array):
    """Sums over the pixels of each spot, one pixel of all shoeboxes after another.

    Returns:
        ln p (n,), b (n, 6, m) and A (n, 6, 6, m) of the module's docstring.
    """

    background = pixels.background[:, 0]

    def add(total, one):
        offset, photons, usable, variance = one
        template, *slopes = template_and_slopes(offset, spots, pixels.nodes)
        mean = background + spots[:, 0] * template
        here = _OnePixel(photons, variance, background, pixels.read_variance)

        def parts(mean):
            fn, value = noise(mean, here)
            row = expected(fn)
            information = row.of_mean, row.of_scale
            return (fn.log_prob(value), row.mean, row.log_scale), information

        (log_p, _, _), (score, by_mean, by_scale), (of_mean, of_scale) = jax.jvp(
            parts, (mean,), (jnp.ones_like(mean),), has_aux=True
        )
        weight = jnp.where(usable, of_mean * by_mean**2 + of_scale * by_scale**2, 0.0)
        score = jnp.where(usable, score, 0.0)
        d = [template, *(spots[:, 0] * slope for slope in slopes)]
        terms = [jnp.where(usable, log_p, 0.0), *(x * score for x in d)]
        for i in range(N_SPOT):
            weighted = d[i] * weight
            terms += [weighted * d[j] for j in range(i, N_SPOT)]
        return total + jnp.stack(terms), None

    def by_pixel(x):
        return jnp.moveaxis(jnp.broadcast_to(x, pixels.photons.shape), 1, 0)

    size = 1 + N_SPOT + N_SPOT * (N_SPOT + 1) // 2
    start = jnp.zeros((size, *background.shape), spots.dtype)
    data = pixels.offsets, *(by_pixel(x) for x in (pixels.photons, pixels.usable, pixels.variance))
    total, _ = jax.lax.scan(add, start, data)
    upper = np.zeros((N_SPOT, N_SPOT), int)
    upper[np.triu_indices(N_SPOT)] = np.arange(1 + N_SPOT, size)
    upper = np.maximum(upper, upper.T)
    curved = jnp.moveaxis(total[upper], 2, 0)  # (n, 6, 6, m)
    return total[0].sum(-1), jnp.moveaxis(total[1 : 1 + N_SPOT], 1, 0), curved


class _OnePixel(NamedTuple):
    """What a noise asks of the data, of one pixel of each shoebox."""

    photons: jax.Array
    variance: jax.Array
    background: jax.Array
    read_variance: jax.Array
