"""A model and its batches of images, and the two moves of a search for the mode of its density.

An image whose density, slope or curvature is not finite is set aside: its data are replaced by
those of another image, with weight zero, so that none of its numbers reaches what the images share.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from ..util.errors import InputError
from ..util.large_arrays import in_slices, joined, release
from ..util.status import Kind, Status, settled
from ..util.store import Joined, Place, places
from . import differences
from .batches import Batches, finite_rows, with_stand_in
from .curvature import IMAGES, BlockHessian, made_positive, no_wider, upward_inverse
from .density import Model, compiled_prior_means, find_sites, flatten
from .laplace import Fit
from .programs import PriorCurvature, compiled_prior, compiled_slope
from .steps import Slope, Steps, steps_of, with_secant

# of (model, sites, apart): a function of one batch (``differences``)
Curvature = Callable[..., Callable[..., BlockHessian]]
TRIFLE = 0.1  # nats


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


class Step(NamedTuple):
    """Where a step led, the slope there if it is known, and the curvature it began with, corrected
    by what it showed.
    """

    state: State
    slope: Slope | None
    learned: BlockHessian


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
        self.shared_of_parts = np.zeros((0, 0, 0))  # (parts, s, s) of the last curvature
        values = self._start(one, init)
        theta, phi = flatten(self.sites, values)
        damping = np.full(len(theta), 1e-3)
        self.start = State(np.asarray(theta), np.asarray(phi), damping, 1e-3)
        self.reach = self._reach()  # one prior sd: (k,) and (s,)
        k = len(self.reach[0])
        # of differences: (n, k) and (s,), a prior sd until a curvature is known
        self.scale = np.broadcast_to(self.reach[0], (len(theta), k)), self.reach[1]
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

    def some_batches(self, which: Sequence[int]) -> Search:
        """The same search on some batches of images, in ascending order."""
        few, size, where = copy(self), self.data.size, self._places()
        few.n_images = sum(min(size, self.n_images - b * size) for b in which)
        few.data, few.spared = Batches(Joined([where[b] for b in which]), size, few.n_images), {}
        rows = np.concatenate([np.arange(b * size, (b + 1) * size) for b in which])
        few.weight, few.aside = self.weight[rows], self.aside[rows]
        few.scale = self.scale[0][rows], self.scale[1]
        few.start = self.start._replace(
            theta=self.start.theta[rows], damping=self.start.damping[rows]
        )
        return few

    def given(self, *last: Any) -> Search:
        """The same search with other values of the last of the model's arguments."""
        other = copy(self)
        other.rest = (*self.rest[: len(self.rest) - len(last)], *last)
        return other

    def _prior(self, state: State) -> PriorCurvature:
        """Curvature of the priors of the first batch."""
        args, where = next(iter(self.batches()))
        find = compiled_prior(self.model, self.sites)
        rows = state.theta[where], state.phi, np.ones(self.data.size)
        return jax.tree.map(np.asarray, find(*rows, args))

    def _reach(self) -> tuple[np.ndarray, np.ndarray]:
        """One marginal prior sd of each unknown, (k,) of the first image's and (s,)."""
        prior = self._prior(self.start)
        one = upward_inverse(prior.blocks[:1], np.zeros(1), np)[0]
        slope = one @ prior.coupling[0]
        every = upward_inverse(prior.blocks, np.zeros(len(prior.blocks)), np)
        followed = np.einsum("nks,nkl,nlt->st", prior.coupling, every, prior.coupling)
        schur = prior.shared + prior.own - followed
        shared = upward_inverse(schur[None], np.zeros(1), np)[0]  # a prior may curve upwards here
        return np.sqrt(np.diag(one + slope @ shared @ slope.T)), np.sqrt(np.diag(shared))

    def own_curvature(self, state: State) -> np.ndarray:
        """(s, s) of the shared unknowns' own priors."""
        return np.asarray(self._prior(state).own)

    def prior_sd(self, state: State) -> np.ndarray:
        """(s,) prior sd of each shared unknown by itself, unconstrained."""
        own = self.own_curvature(state)
        return np.sqrt(np.diag(upward_inverse(own[None], np.zeros(1), np)[0]))

    def batches(self, skip: int = 0):
        """The model's arguments for each batch, and the batch's places among the images."""
        for b, where in list(enumerate(self.data.slices()))[skip:]:
            part = self._part(b)
            yield (() if part is None else (part, *self.rest)), where

    def look(
        self, state: State, curvature: Curvature | BlockHessian, slope: Slope | None = None
    ) -> Look:
        """Slope and curvature at a state (or the curvature of another state), and the steps.

        Images whose numbers are not finite at the state are set aside.

        Args:
            slope: at the state, where it is known.

        Raises:
            InputError: no image has finite numbers, or the shared unknowns have none.
        """
        slope, found = slope or self.slope(state), None
        while self._set_aside(~finite_rows(slope.image, slope.g_image)):
            slope = self.slope(state)
        if not isinstance(curvature, BlockHessian):
            found, curvature = curvature, self.block_hessian(state, curvature)
            while self._set_aside(~curvature.finite()):
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
        for b in {int(i) // size for i in new}:
            aside = self.aside[b * size : (b + 1) * size]
            self.spared[b] = with_stand_in(self._part(b), aside, donor, good % size)
        return True

    def _part(self, b: int) -> Any:
        return self.spared[b] if b in self.spared else self.data.parts[b]

    def _places(self) -> list[Place]:
        where = places(self.data.parts)
        return [Place((self.spared[b],), 0) if b in self.spared else w for b, w in enumerate(where)]

    def slope(self, state: State) -> Slope:
        """ln p and its slope; zeros at unused places."""
        made_of = self.model, self.sites, self.apart
        theta = self._spared(state.theta)
        parts = self.each(compiled_slope, made_of, lambda w: (theta[w], state.phi, self.weight[w]))
        image, shared, g_image, g_each, g_prior = zip(*parts, strict=True)
        used, earlier = self.weight > 0, self.data.earlier
        at = used[:, None]
        found = Slope(
            image=np.where(used, np.concatenate(image), 0.0),
            shared=float(shared[0]),
            g_image=np.where(at, np.concatenate(g_image), 0.0),
            g_each=np.where(at, np.concatenate(g_each), 0.0),
            g_prior=g_prior[0],
        )
        if earlier is None:
            return found
        return found._replace(
            shared=found.shared - earlier.value_at(state.phi),
            g_prior=found.g_prior + earlier.slope_at(state.phi),
        )

    def block_hessian(self, state: State, curvature: Curvature) -> BlockHessian:
        """The curvature at a state; unused places have a unit matrix."""
        return self._whole_hessian(self._of_state(curvature, state))

    def scored(self, state: State) -> tuple[np.ndarray, BlockHessian]:
        """``differences.scored`` at a state: slope (n, k) of the observations, and curvature."""
        slopes, curvatures = zip(*self._of_state(differences.scored, state), strict=True)
        return np.concatenate(slopes), self._whole_hessian(curvatures)

    def _of_state(self, make: Callable[..., Any], state: State) -> list:
        """For each batch what a curvature, or a function with the same arguments, is at a state."""
        share, theta = 1 / len(self.data.parts), self._spared(state.theta)
        made_of, (of_image, of_shared) = (self.model, self.sites, self.apart), self.scale

        def rows(w: slice) -> tuple:
            return theta[w], state.phi, self.weight[w], share, (of_image[w], of_shared)

        return self.each(make, made_of, rows)

    def _whole_hessian(self, parts: Sequence[BlockHessian]) -> BlockHessian:
        blocks, coupling, shared = zip(*parts, strict=True)
        unused, eye = (1 - self.weight)[:, None, None], np.eye(blocks[0].shape[1])
        rows = zip(blocks, coupling, self.data.slices(), strict=True)
        of_images = joined((b + unused[w] * eye, c) for b, c, w in rows)
        self.shared_of_parts = np.array(shared)
        found = BlockHessian(of_images[0], of_images[1], sum(shared[1:], shared[0]))
        if (earlier := self.data.earlier) is not None:
            found = found._replace(shared=found.shared + earlier.curvature)
        self.set_scale(found)
        return found

    def set_scale(self, found: BlockHessian) -> None:
        """The scale of the next differences: a conditional posterior sd of one image."""
        of_image = np.diagonal(found.blocks, axis1=1, axis2=2)
        own = found.shared
        if self.data.earlier is not None:
            own = own - self.data.earlier.curvature
        of_shared = np.diagonal(own) / max(self.weight.sum(), 1.0)
        scale = []
        for curved, reach in zip((of_image, of_shared), self.reach, strict=True):
            own = 1 / np.sqrt(np.maximum(np.abs(curved), 1e-300))
            scale.append(np.where(np.isfinite(own), np.minimum(own, reach), reach))
        self.scale = scale[0], scale[1]
        release(found.blocks)

    def each(
        self, make: Callable[..., Any], made_of: tuple, rows: Callable[[slice], tuple]
    ) -> list:
        """For each batch the results, as NumPy arrays, of a compiled function of its unknowns.

        Args:
            make: a function of a module; ``make(*made_of)`` is the compiled function, of the
                batch's ``rows`` and the model's arguments.
            rows: the first arguments for the batch at a place among the images.
        """
        items = zip(self._places(), map(rows, self.data.slices()), strict=True)
        return self.data.executor.map(partial(_of_part, make, made_of, self.rest), list(items))

    def _spared(self, theta: np.ndarray) -> np.ndarray:
        """(..., n, k) unknowns; images that were set aside have the start of their stand-in."""
        return np.where(self.aside[:, None], self.stand_in, theta) if self.aside.any() else theta

    def step(self, state: State, here: Look) -> Step:
        """One step uphill: an image moves only if its ln p rises, the shared unknowns only if the
        total ln p rises.

        Where the total rises an image may lose a trifle to the shared unknowns: finding out who is
        to blame would take two more slopes.
        """
        r_image, r_shared = self.reach
        steps = here.steps
        d_shared = np.clip(steps.shared, -r_shared, r_shared)
        d_image = np.clip(steps.alone - steps.pull @ d_shared, -r_image, r_image)

        found, there = self._tried(state, d_image, d_shared)  # all move
        learned = with_secant(here.block_hessian, steps, d_shared, found)
        helped, is_joint = found.image >= here.slope.image - TRIFLE, True
        if not (helped.all() and found.log_density >= here.slope.log_density):
            stayed, _ = self._tried(state, 0.0, d_shared)  # only the shared unknowns move
            d_alone = np.clip(steps.alone, -r_image, r_image)
            alone, there_alone = self._tried(state, d_alone, 0.0)  # only the images move
            helped, helped_alone = found.image > stayed.image, alone.image > here.slope.image
            found, alone = found.rows(helped, stayed), alone.rows(helped_alone, here.slope)
            is_joint = found.log_density >= alone.log_density
            if not is_joint:
                found, there, helped = alone, there_alone, helped_alone
        moved = State(
            np.where(helped[:, None], there.theta, state.theta),
            there.phi,
            eased(state.damping, helped),
            float(eased(state.shared_damping, is_joint)),
        )
        known = self.apart or (is_joint and helped.all())
        return Step(moved, found if known else None, learned)

    def _tried(self, state: State, image, shared) -> tuple[Slope, State]:
        """The slope after a step, with ln p = −∞ where it is not finite, and the state there."""
        there = state._replace(theta=state.theta + image, phi=state.phi + shared)
        found = self.slope(there)
        of_images = np.where(np.isfinite(found.image), found.image, -np.inf)
        of_shared = found.shared if np.isfinite(found.shared) else -np.inf
        return found._replace(image=of_images, shared=of_shared), there


def _of_part(make, made_of: tuple, rest: tuple, item: tuple[Place, tuple]) -> Any:
    place, rows = item
    part = place.get()
    args = () if part is None else (part, *rest)
    found = jax.tree.map(np.asarray, make(*made_of)(*rows, args))
    release(*jax.tree.leaves(rows))
    return found


def eased(damping, helped):
    """Less damping after a step that raised ln p; after another one, enough to shorten the next."""
    return np.clip(np.where(helped, 0.3 * damping, np.maximum(10 * damping, 0.1)), 1e-9, 1e9)


def fit_at(search: Search, state: State, here: Look, iterations: int, tolerance: float) -> Fit:
    """The fit at a state, without the unused places of the last batch; statuses of the images."""
    n = search.n_images
    image, shared, g_image, g_each, g_prior = here.slope
    slope = Slope(image[:n], shared, g_image[:n], g_each[:n], g_prior)
    block_hessian = BlockHessian(
        here.block_hessian.blocks[:n], here.block_hessian.coupling[:n], here.block_hessian.shared
    )
    is_mode, precision = in_slices(made_positive, block_hessian.blocks, size=IMAGES)
    steps = steps_of(slope, block_hessian)
    status = settled(steps.distance < max(tolerance, 0.1))
    status[~is_mode] = Status(Kind.NO_MAXIMUM)
    status[search.aside[:n]] = Status(Kind.NOT_FINITE, "its density")
    return Fit(
        sites=search.sites,
        image=state.theta[:n],
        shared=state.phi,
        image_precision=precision,
        coupling=np.asarray(block_hessian.coupling, float),
        shared_precision=np.asarray(block_hessian.shared),
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
