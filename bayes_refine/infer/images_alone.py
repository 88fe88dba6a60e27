"""Newton's steps of images to their modes, what they share being held.

In a large run a few images are still far from their modes when all others are there.  These few
take their steps alone, so that the others need not be looked at again for each of them.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ..util.large_arrays import copied
from ..util.progress import SILENT, Listener
from . import differences
from .curvature import BlockHessian
from .density import Model
from .laplace import Fit
from .search import Curvature, Look, Search, State, eased, fit_at

FEW = 0.01  # of the images, that do not hold up the others
SERVES = 0.9  # of the way left after a step: with more, ten steps or more are left, and a new
# curvature pays, which takes the time of 15 (expected) to 30 (exact) of them
STEPS = 15  # of the few, at most
MAX_STEPS = 40  # of all images


def images_fit(
    model: Model,
    *args: Any,
    init: dict[str, np.ndarray],
    tolerance: float,
    progress: Listener = SILENT,
) -> Fit:
    """Each image at its mode given the shared unknowns.

    Args:
        model, args: as of ``map_fit``.
        init: start by site (constrained, all images); the shared unknowns stay there.
        tolerance: posterior sd of an image given the shared unknowns.
        progress: updated at each step.
    """
    search = Search(model, args, init)
    state, here = at_their_modes(
        search, search.start, differences.fisher, tolerance, MAX_STEPS, but=FEW, progress=progress
    )
    far = (here.steps.distance >= tolerance) & (search.weight > 0)
    if are_few(far, search.weight):
        state, known = with_few(search, state, here, far, tolerance)
        here = search.look(state, known)
    return fit_at(search, state, here, 0, tolerance)


def at_their_modes(
    search: Search,
    state: State,
    curvature: Curvature,
    tolerance: float,
    max_steps: int,
    *,
    but: float = 0.0,
    progress: Listener = SILENT,
) -> tuple[State, Look]:
    """The images within ``tolerance`` posterior sd of their modes given the shared unknowns, or as
    near as ``max_steps`` lead, and the last look.

    An image moves only if its ln p rises, by one prior sd at most.  A curvature serves as long as
    steps with it shorten the way, which is Σ ln(distance/tolerance).

    Args:
        but: share of the images that may be further.
    """
    here, reach, way = search.look(state, curvature), search.reach[0], np.inf
    for k in range(max_steps):
        used = search.weight > 0
        left = int(np.sum(here.steps.distance[used] >= tolerance))
        way, before = np.log(np.maximum(here.steps.distance[used] / tolerance, 1.0)).sum(), way
        progress.update(None, f"step {k}: {left} of {used.sum()} images on their way")
        if left <= but * used.sum():
            break
        move = np.clip(here.steps.alone, -reach, reach)
        there = search.slope(state._replace(theta=state.theta + move))
        helped = there.image > here.slope.image
        theta = state.theta + np.where(helped[:, None], move, 0.0)
        state = state._replace(theta=theta, damping=eased(state.damping, helped))
        known = here.block_hessian if way < SERVES * before else curvature
        here = search.look(state, known, there.rows(helped, here.slope))
    return state, here


class Settled(NamedTuple):
    """m images that went to their modes alone.

    Attributes:
        rows: (m,) their places. theta, damping: (m, k) and (m,). distance: (m,) posterior sd that
            are left. blocks, coupling: (m, k, k) and (m, k, s), of the exact block Hessian.
    """

    rows: np.ndarray
    theta: np.ndarray
    damping: np.ndarray
    distance: np.ndarray
    blocks: np.ndarray
    coupling: np.ndarray

    def of(self, state: State) -> State:
        """The state, with these images where they went."""
        theta = state.theta.copy()
        theta[self.rows] = self.theta
        return state._replace(theta=theta)


def are_few(far: np.ndarray, weight: np.ndarray) -> bool:
    """Whether so few of the images that have weight are ``far`` that these may go on alone."""
    return bool(far.sum() <= np.ceil(FEW * np.sum(weight > 0)))


def few_at_their_modes(search: Search, state: State, far: np.ndarray, tolerance: float) -> Settled:
    """The images that are ``far`` (n,) bool from their modes, at these, the others held.

    Each batch that has one is worked on by itself.
    """
    size, items = search.data.size, []
    for b in np.unique(np.flatnonzero(far) // size):
        few, rows = search.some_batches([b]), slice(b * size, (b + 1) * size)
        few.weight = few.weight * far[rows]
        at = state._replace(theta=state.theta[rows], damping=state.damping[rows])
        items.append((few, at, far[rows]))
    found = search.data.executor.map(partial(_of_batch, tolerance), items)
    return Settled(np.flatnonzero(far), *map(np.concatenate, zip(*found, strict=True)))


def _of_batch(tolerance: float, item: tuple[Search, State, np.ndarray]) -> tuple[np.ndarray, ...]:
    search, state, far = item
    state, here = at_their_modes(search, state, differences.exact, tolerance, STEPS)
    blocks, coupling, _ = here.block_hessian
    rows = state.theta, state.damping, here.steps.distance, blocks, coupling
    return tuple(np.asarray(x)[far] for x in rows)


def with_few(
    search: Search, state: State, here: Look, far: np.ndarray, tolerance: float
) -> tuple[State, BlockHessian]:
    """The state when the images that are ``far`` went to their modes alone, and the curvature with
    theirs there."""
    if not far.any():
        return state, here.block_hessian
    found = few_at_their_modes(search, state, far, tolerance)
    blocks, coupling, shared = here.block_hessian
    blocks, coupling, damping = copied(blocks), copied(coupling), state.damping.copy()
    blocks[found.rows], coupling[found.rows] = found.blocks, found.coupling
    damping[found.rows] = found.damping
    return found.of(state)._replace(damping=damping), BlockHessian(blocks, coupling, shared)
