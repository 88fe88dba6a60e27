"""What is compiled of a model: ln p with its slope, what is expected of observations, the priors.

These are few and small, since compiling them takes most of the time of a small fit.  All else, the
Hessian, integrals over an image's unknowns, is made of their values at several places
(:mod:`differences`).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..util.kept_programs import kept
from .batches import one_by_one, side_by_side
from .curvature import BlockHessian, hessian
from .density import Model, Site, density, observed_shapes, observes_shared, prior_density
from .expectations import expectations
from .steps import Slope


@lru_cache(maxsize=16)
def compiled_slope(model: Model, sites: tuple[Site, ...], apart: bool):
    """(theta (n, k), phi (s,), weight (n,), args) → ``steps.Slope`` of a batch.

    Args:
        apart: the first argument is a part of ``Batches``, whose images can be told apart.  Else
            ``g_prior`` is the slope of everything along the shared unknowns, and ``g_each`` zero.
    """

    def one_image(part, theta, phi, rest):
        def each(t, p):
            image, shared = density(model, sites, t, p, (part, *rest))
            return -image.sum(), (image[0], shared)

        (g_image, g_each), (image, shared) = jax.grad(each, (0, 1), has_aux=True)(theta, phi)
        return image, shared, g_image[0], g_each

    def image_by_image(theta, phi, weight, args):
        image, shared, g_image, g_each = side_by_side(
            lambda part, t: one_image(part, t, phi, args[1:]), args[0], theta
        )
        first = jax.tree.map(lambda x: x[:1] if jnp.ndim(x) else x, args[0])

        of_shared = density if observes_shared(model, args) else prior_density

        def prior(p):
            return -of_shared(model, sites, theta[:1], p, (first, *args[1:]))[1]

        return Slope(image, shared[0], g_image, g_each, jax.grad(prior)(phi))

    def together(theta, phi, weight, args):
        def whole(t, p):
            image, shared = density(model, sites, t, p, args)
            return -jnp.where(weight > 0, image, 0.0).sum() - shared, (image, shared)

        (g_image, g_shared), (image, shared) = jax.grad(whole, (0, 1), has_aux=True)(theta, phi)
        return Slope(image, shared, g_image, jnp.zeros((len(theta), len(phi))), g_shared)

    return kept(image_by_image if apart else together)


@lru_cache(maxsize=16)
def compiled_slope_of_each(model: Model, sites: tuple[Site, ...], apart: bool):
    """As :func:`compiled_slope`, with the slope of each image where they cannot be told apart."""
    if apart:
        return compiled_slope(model, sites, apart)

    def slope(theta, phi, weight, args):
        def images(t):
            image, shared = density(model, sites, t, phi, args)
            return -image.sum(), (image, shared)

        g_image, (image, shared) = jax.grad(images, has_aux=True)(theta)
        of_each, of_prior = jax.jacfwd(lambda p: density(model, sites, theta, p, args))(phi)
        return Slope(image, shared, g_image, -of_each, -of_prior)

    return kept(slope)


class Expectations(NamedTuple):
    """Expectations at the observed sites of n images.

    Rows of an image: (location, ln scale) of each site in turn, each for all its reflections.

    Attributes:
        rows: (n, rows).
        slope: (n, k) of −ln p of what was observed, along the images' unknowns.
        root: (n, k + s, rows + sites) S of which S Sᵀ is the information of each image's
            observations: of each row with the part of ln ν that goes with it, then of ln ν alone.
    """

    rows: Any
    slope: Any
    root: Any


class _OtherLaw(Exception):
    """An observed site is neither normal, Student-t nor Poisson."""


@lru_cache(maxsize=16)
def compiled_expectations(model: Model, sites: tuple[Site, ...], apart: bool):
    """(theta, phi, args) → :class:`Expectations` of a batch; None where a site is neither normal,
    Student-t nor Poisson.

    All derivatives are forward ones, of all unknowns at once: a third of the time of differences,
    for a program that takes two to three times as long to compile as the expectations alone.

    Args:
        apart: the first argument is a part of ``Batches``, whose images can be told apart.
    """

    def together(theta, phi, args):
        def moved(t, p):
            found = expectations(model, sites, t, p, args)
            if found is None:
                raise _OtherLaw
            return _in_rows(found, len(theta))

        k, n_unknowns = theta.shape[1], theta.shape[1] + len(phi)

        def along(e):
            step = jnp.broadcast_to(e[:k], theta.shape), e[k:]
            return jax.jvp(moved, (theta, phi), step, has_aux=True)[1:]

        unit = jnp.eye(n_unknowns, dtype=theta.dtype)
        try:
            slopes, fixed = jax.vmap(along, out_axes=(0, None))(unit)
        except _OtherLaw:
            return None
        rows, information, of_df, with_df, score = fixed
        slopes, of_log_df = (jnp.moveaxis(x, 0, 1) for x in slopes)
        slopes = jnp.where(information[:, None] > 0, slopes, 0.0)  # a masked row may have none
        slope = -jnp.einsum("nkr,nr->nk", slopes[:, :k], score)
        slopes += of_log_df @ with_df.T
        weight = jnp.sqrt(jnp.concatenate([information, jnp.maximum(of_df, 0.0)], axis=1))
        slopes = jnp.concatenate([slopes, of_log_df], axis=2)
        return Expectations(rows, slope, slopes * weight[:, None])

    def one_after_another(theta, phi, args):
        def one(part, t):
            return together(t, phi, (part, *args[1:]))

        found = one_by_one(one, args[0], theta)
        return None if found is None else jax.tree.map(lambda x: x[:, 0], found)

    return kept(one_after_another if apart else together)


def _in_rows(found, n: int):
    """Rows (n, rows) and ln ν of each (n, sites) of n images; and the rows again, with the Fisher
    information of each row alone, of each ln ν given the rows (n, sites), the change of a row's
    effective value with ln ν (rows, sites), which is the information of ln scale with ln ν over
    that of ln scale, and ∂ln p/∂row of what was observed.
    """

    def by_image(x):
        return jnp.reshape(x, (n, -1))

    rows, information, score, of_df, with_df = [], [], [], [], []
    for i, site in enumerate(found):
        # the same for all reflections, below zero; 0 where masked
        share = jnp.min(site.of_both / jnp.maximum(site.of_scale, 1e-30))
        rows += [by_image(site.mean), by_image(site.log_scale)]
        information += [by_image(site.of_mean), by_image(site.of_scale)]
        score += [by_image(x) for x in site.score]
        of_df.append(by_image(site.of_df - site.of_both * share).sum(1))
        own, width = jnp.arange(len(found)) == i, rows[-1].shape[1]
        with_df += [jnp.zeros((width, len(own))), jnp.full((width, 1), share) * own]
    log_df = jnp.broadcast_to(jnp.stack([site.log_df for site in found]), (n, len(found)))
    every, *numbers = (jnp.concatenate(x, 1) for x in (rows, information, score))
    fixed = every, numbers[0], jnp.stack(of_df, axis=1), jnp.concatenate(with_df), numbers[1]
    return (every, log_df), fixed


def locations(
    model: Model,
    sites: tuple[Site, ...],
    theta: np.ndarray,
    phi: np.ndarray,
    *args: Any,
    apart: bool = False,
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Location and scale, arrays of the observations' shape, of each observed site.

    None are known of a model with a site that is neither normal, Student-t nor Poisson.

        fit = run.fit
        found = locations(model, fit.sites, fit.image, fit.shared, run.observations, run.priors)
        mean, sd = found["intensity"]

    Args:
        theta: (n, k) unknowns of the images of ``args``; phi: (s,), unconstrained.
        apart: as of :func:`compiled_slope`.
    """
    found = compiled_expectations(model, sites, apart)(theta, phi, args)
    if found is None:
        return {}
    rows, first, by_name = np.asarray(found.rows), 0, {}
    for name, shape in observed_shapes(model, args):
        end = first + int(np.prod(shape[1:]))
        width = end - first
        mean, log_scale = rows[:, first:end], rows[:, end : end + width]
        by_name[name] = mean.reshape(shape), np.exp(log_scale).reshape(shape)
        first = end + width
    return by_name


class PriorCurvature(NamedTuple):
    """Negative Hessian of ln of the priors of n images: of each image, blocks (n, k, k), coupling
    (n, k, s) and, of all that have weight, shared (s, s); own: (s, s) of the shared unknowns'."""

    blocks: Any
    coupling: Any
    shared: Any
    own: Any


@lru_cache(maxsize=16)
def compiled_prior(model: Model, sites: tuple[Site, ...]):
    """(theta, phi, weight (n,), args) → :class:`PriorCurvature`."""

    def curvature(theta, phi, weight, args):
        def of_images(t, p):
            image = prior_density(model, sites, t, p, args)[0]
            return -jnp.where(weight > 0, image, 0.0).sum()

        def of_shared(p):
            return -prior_density(model, sites, theta, p, args)[1]

        return PriorCurvature(*hessian(of_images, theta, phi), jax.hessian(of_shared)(phi))

    return kept(curvature)


def with_share(prior: PriorCurvature, share: float) -> BlockHessian:
    """The Hessian of a batch that contributes a fraction of the shared unknowns' priors."""
    return BlockHessian(prior.blocks, prior.coupling, prior.shared + share * prior.own)
