"""Curvatures and integrals of a batch of images, from the few programs of :mod:`programs`.

The exact Hessian and the integrals are made of slopes of ln p at many points: a program for the
Hessian would take longer to compile than many runs take to fit, and would be no faster, since a
column of it costs as much as two slopes.  Unknowns of different images have no mixed second
derivatives, so that one difference serves all images of a batch.

A function here makes, for a model, a function of one batch:

    curvature(theta (n, k), phi (s,), weight (n,), share, scale, args) → BlockHessian

``weight`` is 1, or 0 for an unused place; ``share`` the fraction of the shared unknowns' priors
that this batch contributes; ``scale`` (n, k) and (s,) are lengths over which ln p of an image is
about a parabola: a posterior sd where one is known, else a prior sd.
"""

from __future__ import annotations

from functools import lru_cache

import jax
import numpy as np

from ..util.kept_programs import kept
from .batches import finite_rows, one_by_one
from .curvature import BlockHessian
from .density import Model, Site
from .programs import (
    Expectations,
    compiled_expectations,
    compiled_prior,
    compiled_slope,
    compiled_slope_of_each,
    with_share,
)
from .steps import Slope

SHORT = 1e-6  # step of forward differences over the scale; errors are 1e-6 of a curvature
TOO_LONG = 1e3  # differences are repeated if a step was this factor too long


@lru_cache(maxsize=16)
def exact(model: Model, sites: tuple[Site, ...], apart: bool):
    """The Hessian of −ln p, by forward differences of the slope."""
    slope = compiled_slope(model, sites, apart)

    def curvature(theta, phi, weight, share, scale, args) -> BlockHessian:
        args = jax.device_put(args)
        differences = _Differences(slope, theta, phi, weight, args)
        coupling, shared = differences.of_shared(scale[1], share)
        return BlockHessian(differences.blocks(scale[0]), coupling, shared)

    return curvature


@lru_cache(maxsize=16)
def exact_blocks(model: Model, sites: tuple[Site, ...], apart: bool):
    """As :func:`exact`, of the images' unknowns alone: the shared ones have a unit matrix."""
    slope = compiled_slope(model, sites, apart)

    def curvature(theta, phi, weight, share, scale, args) -> BlockHessian:
        args = jax.device_put(args)
        (n, k), s = theta.shape, len(phi)
        blocks = _Differences(slope, theta, phi, weight, args).blocks(scale[0])
        return BlockHessian(blocks, np.zeros((n, k, s)), np.eye(s))

    return curvature


class _Differences:
    """Second derivatives at a place, by forward differences of a compiled slope.

    Args:
        theta: (n, k); phi: (s,); weight: (n,), 0 for an unused place.
    """

    def __init__(self, slope, theta, phi, weight, args) -> None:
        self._slope, self._args = slope, args
        self.theta, self.phi, self._weight, self._used = theta, phi, weight, weight > 0
        self._at = self._moved(0.0, 0.0)

    def blocks(self, scale: np.ndarray) -> np.ndarray:
        """Of the unknowns of each image (n, k, k); anew where a step by ``scale`` (n, k) was far
        too long."""
        found = self._blocks(scale)
        own = 1 / np.sqrt(np.abs(np.diagonal(found, axis1=1, axis2=2)) + 1e-300)
        if np.any((scale > TOO_LONG * own) & self._used[:, None]):
            found = self._blocks(np.minimum(scale, own))
        return found

    def of_shared(self, scale: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
        """Of images' and shared unknowns (n, k, s), and of shared ones (s, s); ``scale`` (s,)."""
        (n, k), s = self.theta.shape, len(self.phi)
        coupling, shared = np.zeros((n, k, s)), np.zeros((s, s))
        for c in range(s):
            step = np.full(n, SHORT * scale[c])
            coupling[:, :, c], each, prior = self._change(0.0, step[0] * (np.arange(s) == c), step)
            shared[:, c] = np.where(self._used[:, None], each, 0.0).sum(0) + share * prior
        return np.where(self._used[:, None, None], coupling, 0.0), (shared + shared.T) / 2

    def _blocks(self, scale: np.ndarray) -> np.ndarray:
        n, k = self.theta.shape
        blocks = np.zeros((n, k, k))
        for c in range(k):
            step = SHORT * scale[:, c]
            blocks[:, :, c] = self._change(step[:, None] * (np.arange(k) == c), 0.0, step)[0]
        blocks = np.where(self._used[:, None, None], blocks, 0.0)
        return (blocks + blocks.swapaxes(1, 2)) / 2

    def _moved(self, d_theta, d_phi) -> Slope:
        place = self.theta + d_theta, self.phi + d_phi
        return jax.tree.map(np.asarray, self._slope(*place, self._weight, self._args))

    def _change(self, d_theta, d_phi, step) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Derivatives of g_image (n, k), g_each (n, s) and g_prior (s,); backwards for an image
        that has no slope ahead."""
        at, there = self._at, self._moved(d_theta, d_phi)
        beyond = ~finite_rows(there.image, there.g_image, there.g_each)
        change_of = [there.g_image - at.g_image, there.g_each - at.g_each]
        prior = there.g_prior - at.g_prior
        if beyond[self._used].any():
            back = self._moved(-d_theta, -d_phi)
            behind = [at.g_image - back.g_image, at.g_each - back.g_each]
            change_of = [
                np.where(beyond[:, None], b, a) for a, b in zip(change_of, behind, strict=True)
            ]
        return *(x / step[:, None] for x in change_of), prior / np.max(step)


@lru_cache(maxsize=16)
def fisher(model: Model, sites: tuple[Site, ...], apart: bool):
    """Expected curvature of normal, Student-t and Poisson observations, exact one of the priors.

    This curvature is never negative along an observation.  If an observed site has another law, the
    exact Hessian is returned.
    """
    expectations = compiled_expectations(model, sites, apart)
    prior = compiled_prior(model, sites)

    def curvature(theta, phi, weight, share, scale, args) -> BlockHessian:
        args = jax.device_put(args)
        here = expectations(theta, phi, args)
        if here is None:
            return exact(model, sites, apart)(theta, phi, weight, share, scale, args)
        return _information(here, prior, theta, phi, weight, share, args)

    return curvature


def _information(here: Expectations, prior, theta, phi, weight, share, args) -> BlockHessian:
    """S Sᵀ, and the curvature of the priors."""
    used, k, root = (weight > 0)[:, None, None], theta.shape[1], np.asarray(here.root)
    fisher = np.where(used, root @ np.swapaxes(root, 1, 2), 0.0)
    of_prior = with_share(jax.tree.map(np.asarray, prior(theta, phi, weight, args)), share)
    return BlockHessian(
        fisher[:, :k, :k] + of_prior.blocks,
        fisher[:, :k, k:] + of_prior.coupling,
        fisher[:, k:, k:].sum(0) + of_prior.shared,
    )


@lru_cache(maxsize=16)
def scored(model: Model, sites: tuple[Site, ...], apart: bool):
    """Slope of −ln p of the observations along the unknowns of each image (n, k), and
    :func:`fisher`'s curvature, both from expectations alone: no program for ln p is compiled.

    Raises:
        ValueError: a site is neither normal, Student-t nor Poisson.
    """
    expectations = compiled_expectations(model, sites, apart)
    prior = compiled_prior(model, sites)

    def found(theta, phi, weight, share, scale, args) -> tuple[np.ndarray, BlockHessian]:
        args = jax.device_put(args)
        here = expectations(theta, phi, args)
        if here is None:
            raise ValueError("expectations are known of normal, Student-t and Poisson sites only")
        curvature = _information(here, prior, theta, phi, weight, share, args)
        return np.asarray(here.slope), curvature

    return found


@lru_cache(maxsize=16)
def compiled(function, model: Model, sites: tuple[Site, ...], apart: bool):
    """A curvature that is a JAX function of (model, sites, theta, phi, weight, share, args).

    ``functools.partial(compiled, function)`` is a curvature as this module's others are.
    """

    def together(theta, phi, weight, share, args):
        return function(model, sites, theta, phi, weight, share, args)

    def one_after_another(theta, phi, weight, share, args):
        def one(part, t, w):
            return together(t, phi, w, share / len(theta), (part, *args[1:]))

        blocks, coupling, shared = one_by_one(one, args[0], theta, weight)
        return BlockHessian(blocks[:, 0], coupling[:, 0], shared.sum(0))

    find = kept(one_after_another if apart else together)

    def curvature(theta, phi, weight, share, scale, args) -> BlockHessian:
        return jax.tree.map(np.asarray, find(theta, phi, weight, share, args))

    return curvature


@lru_cache(maxsize=16)
def integral(model: Model, sites: tuple[Site, ...], apart: bool):
    """ln mean_m p(y, θ + L z_m | φ) exp(½|z_m|²) of a batch, and what is shared with it.

    A function of (theta (n, k), phi (s,), roots L (n, k, k), pull (n, k, s), weight, share, points
    z (m, k), or (m, n, k) for each image its own, args), where θ moves by −pull with φ.  It returns
    the sum over images, the slope of minus this (s,), and the scatter of images' slopes (s, s): n
    times their covariance.  An image that has no density at any point counts with that at θ, as by
    Laplace.
    """
    slope = compiled_slope_of_each(model, sites, apart)

    def integrated(theta, phi, roots, pull, weight, share, z, args):
        args, used = jax.device_put(args), weight > 0
        z = np.broadcast_to(z if z.ndim == 3 else z[:, None], (len(z), *theta.shape))
        places = theta + (roots @ z[..., None])[..., 0]
        found = [jax.tree.map(np.asarray, slope(place, phi, weight, args)) for place in places]
        image = np.array([here.image for here in found]) + 0.5 * np.sum(z**2, 2)
        image = np.where(np.isfinite(image), image, -np.inf)
        total = np.logaddexp.reduce(image, axis=0)
        # ln p may not be finite at a point, nor at any of an image
        of_point = np.exp(image - np.where(np.isfinite(total), total, 0.0))
        of_images = total - np.log(len(z))
        g_image, g_each = (
            np.array([getattr(here, name) for here in found]) for name in ("g_image", "g_each")
        )
        g_image, g_each = (np.where(np.isfinite(x), x, 0.0) for x in (g_image, g_each))
        following = np.einsum("nks,mnk->mns", pull, g_image)
        g_shared = np.einsum("mn,mns->ns", of_point, g_each - following)
        if (nowhere := used & ~np.isfinite(of_images)).any():  # Laplace's integral
            mode = jax.tree.map(np.asarray, slope(theta, phi, weight, args))
            of_mode = mode.g_each - np.einsum("nks,nk->ns", pull, mode.g_image)
            of_images = np.where(nowhere, mode.image, of_images)
            g_shared = np.where(nowhere[:, None], of_mode, g_shared)
        each = g_shared[used]
        off = each - each.mean(0) if len(each) > 1 else 0 * each
        return (
            float(of_images[used].sum() + share * found[0].shared),
            each.sum(0) + share * found[0].g_prior,
            off.T @ off * (len(each) / max(len(each) - 1, 1)),
        )

    return integrated
