"""A model and its batches of images, and the two moves of a search for the mode of its density.

An image whose density, slope or curvature is not finite is set aside: its data are replaced by
those of another image, with weight zero, so that none of its numbers reaches what the images share.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..util.errors import InputError
from ..util.status import Kind, Status, settled
from ..util.store import Place, places
from .batches import Batches, one_by_one
from .curvature import BlockHessian, hessian, no_wider, scaled, upward_inverse
from .density import Model, Site, compiled_prior_means, density, find_sites, flatten, prior_density
from .laplace import Fit
from .steps import Slope, Steps, steps_of

Curvature = Callable[..., BlockHessian]
SINGULAR = 1e-10  # of the diagonal: the Cholesky factor of a smaller eigenvalue is rounding


class State(NamedTuple):
    """State of a search: unknowns (n, k) and (s,), and their dampings (n,) and a scalar."""

    theta: np.ndarray
    phi: np.ndarray
    damping: np.ndarray
    shared_damping: float


class Look(NamedTuple):
    """The density at one point: slope, curvature, and the steps that follow from these.

    ``curvature`` is the one computed at this point, None where ``block_hessian`` is
    that of another point.
    """

    slope: Slope
    block_hessian: BlockHessian
    curvature: Curvature | None
    steps: Steps


class Search:
    """A model, its data in batches, and the two moves of the search."""

    def __init__(self, model: Model, args: tuple, init: dict[str, np.ndarray]) -> None:
        self.model, self.rest = model, args[1:]
        data = args[0] if args else None
        first = (data.parts[0], *self.rest) if isinstance(data, Batches) else args
        self.sites, one = find_sites(model, first, {})
        self.apart = isinstance(data, Batches)  # images, by the first axis of every array
        count = next(len(one[site.name]) for site in self.sites if site.per_image)
        self.data = (
            data if isinstance(data, Batches) else Batches(args[:1] or (None,), count, count)
        )
        self.n_images = self.data.n_images
        self.weight = self.data.padded(np.ones(self.n_images))
        self.weight[self.n_images :] = 0.0
        self.aside = np.zeros(len(self.weight), bool)
        self.spared: dict[int, Any] = {}  # batches with images that were set aside
        values = self._start(one, init)
        theta, phi = flatten(self.sites, values)
        damping = np.full(len(theta), 1e-3)
        self.start = State(np.asarray(theta), np.asarray(phi), damping, 1e-3)
        reach = compiled_reach(model, self.sites)(theta[: self.data.size], phi, first)
        self.reach = tuple(np.asarray(x) for x in reach)  # one prior sd: (k,) and (s,)
        self.stand_in = self.start.theta[0]

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
        return self.some_batches([0])

    def some_batches(self, which: Sequence[int]) -> Search:
        """The same search on some batches of images, in ascending order."""
        few, size = copy(self), self.data.size
        few.n_images = sum(min(size, self.n_images - b * size) for b in which)
        few.data = Batches([self._part(b) for b in which], size, few.n_images)
        few.spared = {}
        rows = np.concatenate([np.arange(b * size, (b + 1) * size) for b in which])
        few.weight, few.aside = self.weight[rows], self.aside[rows]
        few.start = self.start._replace(
            theta=self.start.theta[rows], damping=self.start.damping[rows]
        )
        return few

    def given(self, *last: Any) -> Search:
        """The same search with other values of the last of the model's arguments."""
        other = copy(self)
        other.rest = (*self.rest[: len(self.rest) - len(last)], *last)
        return other

    def prior_sd(self, state: State) -> np.ndarray:
        """(s,) prior sd of each shared unknown by itself, unconstrained."""
        args, where = next(iter(self.batches()))
        find = compiled_prior_sd(self.model, self.sites)
        return np.asarray(find(state.theta[where], state.phi, args))

    def batches(self, skip: int = 0):
        """The model's arguments for each batch, and the batch's places among the images."""
        for b, where in list(enumerate(self.data.slices()))[skip:]:
            part = self._part(b)
            yield (() if part is None else (part, *self.rest)), where

    def look(self, state: State, curvature: Curvature | BlockHessian) -> Look:
        """Slope and curvature at a state (or the curvature of another state), and the steps.

        Images whose numbers are not finite at the state are set aside.

        Raises:
            InputError: no image has finite numbers, or the shared unknowns have none.
        """
        slope, found = self.slope(state), None
        while self._set_aside(~finite_rows(slope.image, slope.g_image)):
            slope = self.slope(state)
        if not isinstance(curvature, BlockHessian):
            found, curvature = curvature, self.block_hessian(state, curvature)
            while self._set_aside(~finite_rows(curvature.blocks, curvature.coupling)):
                slope, curvature = self.slope(state), self.block_hessian(state, found)
        if not (np.all(np.isfinite(slope.g_shared)) and np.all(np.isfinite(curvature.shared))):
            raise InputError(
                "the slope of the density along what the images share is not finite; "
                "check the priors and the scale of the intensities"
            )
        steps = steps_of(slope, curvature, state.damping, state.shared_damping)
        return Look(slope, curvature, found, steps)

    def _set_aside(self, bad: np.ndarray) -> bool:
        """Give some images the data of another and no weight; return whether there were any."""
        new = np.flatnonzero(bad & (self.weight > 0))
        if not len(new):
            return False
        self.aside = self.aside | bad
        self.weight = np.where(self.aside, 0.0, self.weight)
        if not self.weight.any():
            raise InputError(
                "no image has a finite density; check the units of the images and of the reference"
            )
        size, good = self.data.size, int(np.flatnonzero(self.weight)[0])
        self.stand_in = self.start.theta[good]
        donor = self._part(good // size)

        def spared(part, aside):
            def leaf(own, other):
                if np.ndim(own) == 0 or len(own) != len(aside):
                    return own
                where = np.reshape(aside, (-1, *[1] * (np.ndim(own) - 1)))
                return np.where(where, np.asarray(other)[good % size], np.asarray(own))

            return jax.tree.map(leaf, part, donor)

        for b in {int(i) // size for i in new}:
            self.spared[b] = spared(self._part(b), self.aside[b * size : (b + 1) * size])
        return True

    def _part(self, b: int) -> Any:
        return self.spared[b] if b in self.spared else self.data.parts[b]

    def slope(self, state: State) -> Slope:
        """ln p and its slope."""
        parts = self._sums(_compiled_slope, state)
        image, shared, g_image, g_shared = zip(*parts, strict=True)
        return Slope(
            np.concatenate(image), float(sum(shared)), np.concatenate(g_image), sum(g_shared)
        )

    def block_hessian(self, state: State, curvature: Curvature) -> BlockHessian:
        """The curvature at a state; unused places have a unit matrix."""
        parts = self._sums(_compiled_curvature, state, curvature, self.apart)
        blocks, coupling, shared = zip(*parts, strict=True)
        room = (1 - self.weight)[:, None, None] * np.eye(state.theta.shape[1])
        return BlockHessian(np.concatenate(blocks) + room, np.concatenate(coupling), sum(shared))

    def each(
        self, make: Callable[..., Any], made_of: tuple, rows: Callable[[slice], tuple]
    ) -> list:
        """For each batch the results, as NumPy arrays, of a compiled function of its unknowns.

        Args:
            make: a function of a module; ``make(*made_of)`` is the compiled function, of the
                batch's ``rows`` and the model's arguments.
            rows: the first arguments for the batch at a place among the images.
        """
        where = places(self.data.parts)
        for b, part in self.spared.items():
            where[b] = Place((part,), 0)
        items = [(place, rows(w)) for place, w in zip(where, self.data.slices(), strict=True)]
        return self.data.executor.map(partial(_of_part, make, made_of, self.rest), items)

    def _sums(self, make, state: State, *made_of) -> list[Any]:
        """The results for each batch at a state; the shared prior counts once in all."""
        share, theta = 1 / len(self.data.parts), self._spared(state.theta)
        return self.each(
            make,
            (self.model, self.sites, *made_of),
            lambda w: (theta[w], state.phi, self.weight[w], share),
        )

    def _spared(self, theta: np.ndarray) -> np.ndarray:
        """(..., n, k) unknowns; images that were set aside have the start of their stand-in."""
        return np.where(self.aside[:, None], self.stand_in, theta) if self.aside.any() else theta

    def step(self, state: State, here: Look) -> State:
        """One step uphill: an image moves only if its ln p rises, the shared unknowns only if the
        total ln p rises.
        """
        r_image, r_shared = self.reach
        steps = here.steps
        d_shared = np.clip(steps.shared, -r_shared, r_shared)
        d_image = np.clip(steps.alone - steps.pull @ d_shared, -r_image, r_image)
        d_alone = np.clip(steps.alone, -r_image, r_image)

        # all move; only the shared unknowns move; only the images move
        thetas = self._spared(state.theta + np.stack([d_image, 0 * d_image, d_alone]))
        phis = state.phi + np.stack([d_shared, d_shared, 0 * d_shared])
        parts = self.each(
            _compiled_densities, (self.model, self.sites), lambda w: (thetas[:, w], phis)
        )
        image = np.concatenate([p[0] for p in parts], axis=1)
        image = np.where(np.isfinite(image), image, -np.inf)
        image = np.where(self.weight > 0, image, 0.0)
        shared = parts[0][1]
        shared = np.where(np.isfinite(shared), shared, -np.inf)

        joint = np.maximum(image[0], image[1]).sum() + shared[0]
        is_joint = joint >= np.maximum(here.slope.image, image[2]).sum() + here.slope.shared
        helped = image[0] > image[1] if is_joint else image[2] > here.slope.image
        move = d_image if is_joint else d_alone
        return State(
            state.theta + np.where(helped[:, None], move, 0.0),
            state.phi + d_shared if is_joint else state.phi,
            _eased(state.damping, helped),
            float(_eased(state.shared_damping, is_joint)),
        )


def _of_part(make, made_of: tuple, rest: tuple, item: tuple[Place, tuple]) -> Any:
    place, rows = item
    part = place.get()
    args = () if part is None else (part, *rest)
    return jax.tree.map(np.asarray, make(*made_of)(*rows, args))


def finite_rows(*arrays: Any) -> np.ndarray:
    """(n,) bool: rows of n of which every array is finite."""
    return np.all([np.isfinite(x).reshape(len(x), -1).all(axis=1) for x in arrays], axis=0)


def _eased(damping, helped):
    """Less damping after a step that raised ln p; after another one, enough to shorten the next."""
    return np.clip(np.where(helped, 0.3 * damping, np.maximum(10 * damping, 0.1)), 1e-9, 1e9)


# -- one batch, compiled --------------------------------------------------------------------


@lru_cache(maxsize=16)
def _compiled_slope(model: Model, sites: tuple[Site, ...]):
    """ln p of each image and of the shared prior, and the slope, of one batch.

    Takes (n, k) and (s,); ``weight``: (n,) 1, or 0 for an unused place; ``share``: the fraction of
    the shared prior that this batch contributes.
    """

    def negative(theta, phi, weight, share, args):
        image, shared = density(model, sites, theta, phi, args)
        image = jnp.where(weight > 0, image, 0.0)
        return -image.sum() - share * shared, (image, share * shared)

    @jax.jit
    def slope(theta, phi, weight, share, args):
        (_, parts), slopes = jax.value_and_grad(negative, argnums=(0, 1), has_aux=True)(
            theta, phi, weight, share, args
        )
        return *parts, *slopes

    return slope


@lru_cache(maxsize=16)
def _compiled_curvature(model: Model, sites: tuple[Site, ...], curvature: Curvature, apart: bool):
    """A curvature of one batch, compiled once for a model and the shape of its observations.

    ``apart``: the first argument is a part of :class:`Batches`, whose images can be told apart.
    """

    def together(theta, phi, weight, share, args):
        return curvature(model, sites, theta, phi, weight, share, args)

    def one_after_another(theta, phi, weight, share, args):
        def one(part, t, w):
            return together(t, phi, w, share / len(theta), (part, *args[1:]))

        blocks, coupling, shared = one_by_one(one, args[0], theta, weight)
        return BlockHessian(blocks[:, 0], coupling[:, 0], shared.sum(0))

    return jax.jit(one_after_another if apart else together)


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
        slope = one @ prior.coupling[0]
        schur = prior.shared - len(theta) * prior.coupling[0].T @ slope
        shared = upward_inverse(schur[None], jnp.zeros(1))[0]  # a prior may curve upwards here
        return jnp.sqrt(jnp.diag(one + slope @ shared @ slope.T)), jnp.sqrt(jnp.diag(shared))

    return reach


@lru_cache(maxsize=16)
def compiled_prior_sd(model: Model, sites: tuple[Site, ...]):
    """One prior sd (s,) of each shared unknown, of the shared density alone."""

    @jax.jit
    def prior_sd(theta, phi, args):
        curvature = jax.hessian(lambda p: -prior_density(model, sites, theta, p, args)[1])(phi)
        return jnp.sqrt(jnp.diag(upward_inverse(curvature[None], jnp.zeros(1))[0]))

    return prior_sd


def fit_at(search: Search, state: State, here: Look, iterations: int, tolerance: float) -> Fit:
    """The fit at a state, without the unused places of the last batch; statuses of the images."""
    n = search.n_images
    image, shared, g_image, g_shared = here.slope
    slope = Slope(image[:n], shared, g_image[:n], g_shared)
    block_hessian = BlockHessian(
        here.block_hessian.blocks[:n], here.block_hessian.coupling[:n], here.block_hessian.shared
    )
    blocks, coupling, _ = (np.asarray(x, float) for x in block_hessian)
    is_mode = np.linalg.eigvalsh(scaled(blocks))[:, 0] > SINGULAR
    upward = np.linalg.inv(upward_inverse(blocks, np.zeros(n), np))
    steps = steps_of(slope, block_hessian)
    status = settled(steps.distance < max(tolerance, 0.1))
    status[~is_mode] = Status(Kind.NO_MAXIMUM)
    status[search.aside[:n]] = Status(Kind.NOT_FINITE, "its density")
    return Fit(
        sites=search.sites,
        image=state.theta[:n],
        shared=state.phi,
        image_precision=np.where(is_mode[:, None, None], blocks, upward),
        coupling=coupling,
        shared_covariance=no_wider(
            upward_inverse(steps.schur[None], np.zeros(1), np)[0], search.prior_sd(state)
        ),
        distance=steps.distance,
        shared_distance=steps.shared_distance,
        status=status,
        iterations=iterations,
        log_density=slope.log_density,
        image_prior_sd=search.reach[0],
    )
