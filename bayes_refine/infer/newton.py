"""The joint MAP of a run through its arrow-shaped Hessian.

A block for each image, a narrow border for what the images share, exactly from
Hessian–vector products of the NumPyro density itself.  The images come in batches, each of
which adds to the shared unknowns' slope and Schur complement: memory does not grow with the
run but for the few numbers an image has.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .batches import Batches
from .curvature import Arrow, exact_curvature, fisher_curvature, hessian, scaled, upward_inverse
from .density import (
    Model,
    Site,
    compiled_prior_means,
    density,
    find_sites,
    flatten,
    prior_density,
)
from .laplace import Fit

Array = jax.Array | np.ndarray


def map_fit(
    model: Model,
    *args: Any,
    init: dict[str, np.ndarray] | None = None,
    max_iterations: int = 60,
    tolerance: float = 1e-2,
    stragglers: float = 0.0,
    exact: bool = True,
    progress: Callable[[str], None] | None = None,
) -> Fit:
    """The joint MAP of a model with its Laplace curvature.

    Damped Fisher scoring, then Newton, through the arrow Hessian (per-image blocks, Schur
    complement on the shared unknowns).  Directions of negative curvature are followed upwards
    (|eigenvalue|); no step goes beyond one prior sd; each image has its own damping and keeps
    its old place when a step does not help it, so ln p never falls and one bad image does not
    hold up the rest.

    Args:
        model: NumPyro program; ``args``: what it is called with, the first of them whole or as
            :class:`Batches` of images.
        init: start by site (constrained, all images); the prior mean where absent.
        tolerance: stop when every image and the shared unknowns are nearer to the mode than
            this many posterior sd.
        stragglers: share of the images that need not be, nor the shared unknowns then: for a
            fit that will be repeated.
        exact: end with Newton steps and the exact Hessian; else with Fisher's.
        progress: called with one line a step.

    Raises:
        InputError: the model has no latent site, or one in a plate other than ``image``.
    """
    search = Search(model, args, init or {})
    state, curvature = search.start, fisher_curvature
    for iteration in range(max_iterations + 1):
        here = search.look(state, curvature)
        images_far = float(np.quantile(here.distance[: search.n_images], 1 - stragglers))
        far = images_far if stragglers else max(images_far, here.shared_distance)
        if progress is not None:
            progress(f"step {iteration}: ln p {here.log_density:.2f}, {far:.2g} sd to go")
        if far < tolerance or iteration == max_iterations:
            break
        if exact and images_far < 1.0:  # near the mode the exact Hessian converges quadratically
            curvature = exact_curvature
        state = search.step(state, here)
    if exact and curvature is not exact_curvature:
        here = search.look(state, exact_curvature)
    return fit_at(search, state, here, iteration, tolerance)


class State(NamedTuple):
    """Where the search is: unknowns (n, k) and (s,), and a damping for each (n,), scalar."""

    theta: np.ndarray
    phi: np.ndarray
    damping: np.ndarray
    shared_damping: float


class Look(NamedTuple):
    """The density at one point: ln p of n images and of what they share, slope, curvature.

    With the step of an image alone, ``alone`` (n, k), and the change of its best place with the
    shared unknowns, ``pull`` (n, k, s); distances to the mode in sd; the shared step, and slope
    and curvature of −ln p along what is shared with the images following.
    """

    image: np.ndarray
    shared: float
    gradient: tuple[np.ndarray, np.ndarray]
    arrow: Arrow
    alone: np.ndarray
    pull: np.ndarray
    distance: np.ndarray
    shared_step: np.ndarray
    shared_distance: float
    g_schur: np.ndarray
    schur: np.ndarray

    @property
    def log_density(self) -> float:
        """ln p."""
        return float(self.image.sum() + self.shared)


class Search:
    """A model, its data in batches, and the two moves of the search."""

    def __init__(self, model: Model, args: tuple, init: dict[str, np.ndarray]) -> None:
        self.model, self.rest = model, args[1:]
        data = args[0] if args else None
        first = (data.parts[0], *self.rest) if isinstance(data, Batches) else args
        self.sites, one = find_sites(model, first, {})
        count = next(len(one[site.name]) for site in self.sites if site.per_image)
        self.data = (
            data if isinstance(data, Batches) else Batches(args[:1] or (None,), count, count)
        )
        self.n_images = self.data.n_images
        self.weight = self.data.padded(np.ones(self.n_images))
        self.weight[self.n_images :] = 0.0
        values = self._start(one, init)
        theta, phi = flatten(self.sites, values)
        damping = np.full(len(theta), 1e-3)
        self.start = State(np.asarray(theta), np.asarray(phi), damping, 1e-3)
        reach = compiled_reach(model, self.sites)(theta[: self.data.size], phi, first)
        self.reach = tuple(np.asarray(x) for x in reach)  # one prior sd: (k,) and (s,)

    def _start(self, first, init):
        """Each site's start, (images of all parts, ...): ``init``, else the prior mean."""
        means = [first]
        if any(site.per_image and site.name not in init for site in self.sites):
            mean = compiled_prior_means(self.model)
            means += [mean(args) for args, _ in self.batches(skip=1)]
        values = {}
        for site in self.sites:
            if not site.per_image:
                value = np.asarray(init.get(site.name, first[site.name]))
                values[site.name] = np.broadcast_to(value, site.shape)
            elif site.name in init:
                full = np.broadcast_to(init[site.name], (self.n_images, *site.shape))
                values[site.name] = self.data.padded(full)
            else:
                values[site.name] = np.concatenate([np.asarray(m[site.name]) for m in means])
        return values

    def first_batch(self) -> Search:
        """The same search on the first batch of images alone."""
        few, size = copy(self), self.data.size
        few.n_images = min(size, self.n_images)
        few.data = Batches([self.data.parts[0]], size, few.n_images)
        few.weight = self.weight[:size]
        few.start = self.start._replace(
            theta=self.start.theta[:size], damping=self.start.damping[:size]
        )
        return few

    def batches(self, skip: int = 0):
        """The model's arguments for each batch, and where it lies."""
        for b, where in list(enumerate(self.data.slices()))[skip:]:
            part = self.data.parts[b]
            yield (() if part is None else (part, *self.rest)), where

    def look(self, state: State, curvature) -> Look:
        """Slope and curvature at a state, and where they point."""
        local = _compiled_local(self.model, self.sites, curvature)
        share = 1 / len(self.data.parts)  # what is shared counts once
        parts = [
            jax.tree.map(
                np.asarray,
                local(state.theta[w], state.phi, self.weight[w], share, state.damping[w], args),
            )
            for args, w in self.batches()
        ]
        image, g_image, blocks, border, alone, pull, distance = (
            np.concatenate([getattr(p, name) for p in parts])
            for name in ("image", "g_image", "blocks", "border", "alone", "pull", "distance")
        )
        shared, g_shared, curved, schur, g_schur = (
            sum(getattr(p, name) for p in parts)
            for name in ("shared", "g_shared", "curved", "schur", "g_schur")
        )
        inverse = upward_inverse(schur[None], np.array([state.shared_damping]), np)[0]
        step = -inverse @ g_schur
        return Look(
            image=image,
            shared=float(shared),
            gradient=(g_image, g_shared),
            arrow=Arrow(blocks, border, curved),
            alone=alone,
            pull=pull,
            distance=distance,
            shared_step=step,
            shared_distance=float(np.sqrt(max(-g_schur @ step, 0))),
            g_schur=g_schur,
            schur=schur,
        )

    def step(self, state: State, here: Look) -> State:
        """One step uphill: an image moves only where that helps it, what is shared only where
        it helps in all.
        """
        r_image, r_shared = self.reach
        d_shared = np.clip(here.shared_step, -r_shared, r_shared)
        d_image = np.clip(here.alone - here.pull @ d_shared, -r_image, r_image)
        d_alone = np.clip(here.alone, -r_image, r_image)

        # all move; only what is shared moves; only the images move
        thetas = state.theta + np.stack([d_image, 0 * d_image, d_alone])
        phis = state.phi + np.stack([d_shared, d_shared, 0 * d_shared])
        try_out = _compiled_densities(self.model, self.sites)
        parts = [try_out(thetas[:, w], phis, args) for args, w in self.batches()]
        image = np.concatenate([np.asarray(p[0]) for p in parts], axis=1)
        image = np.where(np.isfinite(image), image, -np.inf)
        image = np.where(self.weight > 0, image, 0.0)
        shared = np.asarray(parts[0][1])
        shared = np.where(np.isfinite(shared), shared, -np.inf)

        joint = np.maximum(image[0], image[1]).sum() + shared[0]
        is_joint = joint >= np.maximum(here.image, image[2]).sum() + here.shared
        helped = image[0] > image[1] if is_joint else image[2] > here.image
        move = d_image if is_joint else d_alone
        eased = np.clip(state.damping * np.where(helped, 0.1, 10.0), 1e-9, 1e9)
        return State(
            state.theta + np.where(helped[:, None], move, 0.0),
            state.phi + d_shared if is_joint else state.phi,
            eased,
            float(np.clip(state.shared_damping * (0.1 if is_joint else 10.0), 1e-9, 1e9)),
        )


# -- one batch, compiled --------------------------------------------------------------------


class _Local(NamedTuple):
    """What one batch of n images says at a state; sums for what is shared."""

    image: jax.Array
    shared: jax.Array
    g_image: jax.Array
    g_shared: jax.Array
    blocks: jax.Array
    border: jax.Array
    curved: jax.Array
    alone: jax.Array
    pull: jax.Array
    distance: jax.Array
    schur: jax.Array
    g_schur: jax.Array


def _local(model, sites, curvature, theta, phi, weight, share, damping, args) -> _Local:
    """Slope, curvature and the images' own steps.

    ``weight``: (n,) 1, or 0 for an image that is only room; ``share``: of the shared prior that
    this batch answers for.
    """

    def negative(t, p):
        image, shared = density(model, sites, t, p, args)
        image = jnp.where(weight > 0, image, 0.0)
        return -image.sum() - share * shared, (image, share * shared)

    slope = jax.value_and_grad(negative, argnums=(0, 1), has_aux=True)
    (_, (image, shared)), (g_image, g_shared) = slope(theta, phi)
    arrow = curvature(model, sites, theta, phi, weight, share, args)
    blocks = arrow.blocks + (1 - weight)[:, None, None] * jnp.eye(theta.shape[1])
    inverse = upward_inverse(blocks, damping)
    pull = inverse @ arrow.border
    alone = -jnp.einsum("nij,nj->ni", inverse, g_image)
    return _Local(
        image=image,
        shared=shared,
        g_image=g_image,
        g_shared=g_shared,
        blocks=blocks,
        border=arrow.border,
        curved=arrow.shared,
        alone=alone,
        pull=pull,
        distance=jnp.sqrt(jnp.maximum(-jnp.einsum("ni,ni->n", g_image, alone), 0)),
        schur=arrow.shared - jnp.einsum("nis,nit->st", arrow.border, pull),
        g_schur=g_shared - jnp.einsum("nis,ni->s", pull, g_image),
    )


@lru_cache(maxsize=16)
def _compiled_local(model: Model, sites: tuple[Site, ...], curvature):
    """:func:`_local`, compiled once for a model and the shape of its observations."""
    return jax.jit(partial(_local, model, sites, curvature))


@lru_cache(maxsize=16)
def _compiled_densities(model: Model, sites: tuple[Site, ...]):
    """ln p at several places: (c, n, k) and (c, s) to (c, n) and (c,)."""

    def densities(thetas, phis, args):
        return jax.lax.map(lambda x: density(model, sites, x[0], x[1], args), (thetas, phis))

    return jax.jit(densities)


@lru_cache(maxsize=16)
def compiled_reach(model: Model, sites: tuple[Site, ...]):
    """One marginal prior sd of each unknown, (k,) of the first image's and (s,)."""

    @jax.jit
    def reach(theta, phi, args):
        prior = hessian(
            lambda t, p: -sum(x.sum() for x in prior_density(model, sites, t, p, args)), theta, phi
        )
        one = upward_inverse(prior.blocks[:1], jnp.zeros(1))[0]
        slope = one @ prior.border[0]
        schur = prior.shared - len(theta) * prior.border[0].T @ slope
        shared = upward_inverse(schur[None], jnp.zeros(1))[0]  # a prior may be hollow here
        return jnp.sqrt(jnp.diag(one + slope @ shared @ slope.T)), jnp.sqrt(jnp.diag(shared))

    return reach


def fit_at(search: Search, state: State, here: Look, iterations: int, tolerance: float) -> Fit:
    """What a search found, without the room of the last batch."""
    n = search.n_images
    arrow = Arrow(here.arrow.blocks[:n], here.arrow.border[:n], here.arrow.shared)
    gradient = here.gradient[0][:n], here.gradient[1]
    values = search.sites, state.theta[:n], state.phi, gradient, arrow, here.log_density
    return fit_of_mode(*values, iterations, tolerance)


def fit_of_mode(
    sites: tuple[Site, ...],
    theta: np.ndarray,
    phi: np.ndarray,
    gradient: tuple[np.ndarray, np.ndarray],
    arrow: Arrow,
    log_density: float,
    iterations: int,
    tolerance: float,
) -> Fit:
    """The unknowns, slope and curvature of −ln p there, and a verdict."""
    n = len(theta)
    blocks, border, shared = (np.asarray(x, float) for x in arrow)
    g_image, g_shared = (np.asarray(x, float) for x in gradient)
    lowest = np.linalg.eigvalsh(scaled(blocks))[:, 0]
    is_mode = lowest > 0
    inverse = upward_inverse(blocks, np.zeros(n), np)
    blocks = np.where(is_mode[:, None, None], blocks, np.linalg.inv(inverse))
    pull = inverse @ border
    schur = shared - np.einsum("nis,nit->st", border, pull)
    shared_covariance = upward_inverse(schur[None], np.zeros(1), np)[0]
    distance = np.sqrt(np.maximum(np.einsum("ni,nij,nj->n", g_image, inverse, g_image), 0))
    g_schur = g_shared - np.einsum("nis,ni->s", pull, g_image)
    status = np.where(distance < max(tolerance, 0.1), "converged", "not converged").astype(object)
    status[~is_mode] = "no maximum"
    return Fit(
        sites=sites,
        image=theta,
        shared=phi,
        image_precision=blocks,
        border=border,
        shared_covariance=shared_covariance,
        distance=distance,
        shared_distance=float(np.sqrt(max(g_schur @ shared_covariance @ g_schur, 0))),
        status=status,
        iterations=iterations,
        log_density=log_density,
    )
