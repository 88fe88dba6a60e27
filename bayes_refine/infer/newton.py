"""The joint MAP of a run through its block Hessian.

The block Hessian is made of slopes of the NumPyro density at several places (:mod:`differences`).
Images come in batches; each batch adds to the slope and the Schur complement of the shared
unknowns, so that memory grows with the run only by the few unknowns of each image.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from ..util.progress import SILENT, Listener
from . import differences
from .density import Model
from .laplace import Fit
from .search import Curvature, Search, fit_at

SERVES = 0.9  # of the distance is left after a step: then a new curvature, which costs ten steps
COST = 10  # steps that the exact Hessian costs: taken near the mode where more steps are left


def map_fit(
    model: Model,
    *args: Any,
    init: dict[str, np.ndarray] | None = None,
    max_iterations: int = 60,
    tolerance: float = 1e-2,
    stragglers: float = 0.0,
    curvature: Curvature = differences.fisher,
    exact: bool | Literal["near"] = True,
    progress: Listener = SILENT,
) -> Fit:
    """The joint MAP of a model with its Laplace curvature.

    Damped Fisher scoring, then Newton's method, through the block Hessian (a block for each
    image, a Schur complement for the shared unknowns), which is renewed when steps with the old one
    no longer pay (Shamanskii 1967).  Directions of negative curvature are followed uphill
    (|eigenvalue|); no step is longer than one prior sd.  Each image has its own damping, and stays
    where it is when a step does not raise its ln p, so that ln p never falls and one bad image does
    not hold up the others.

    Args:
        model: NumPyro program; ``args``: what it is called with, the first of them whole or as
            :class:`Batches` of images.
        init: start by site (constrained, all images); the prior mean where absent.
        tolerance: stop when every image and the shared unknowns are nearer to the mode than
            this many posterior sd.
        stragglers: share of the images that need not be so near, nor the shared unknowns then: for
            a fit that will be repeated.
        curvature: the curvature far from the mode, never negative along an observation.
        exact: end with Newton steps and the exact Hessian at the mode, or ``"near"`` it, which is
            enough for a start; else with ``curvature``.
        progress: updated at each step.

    Raises:
        InputError: the model has no latent site, or one in a plate other than ``image``.
    """
    search = Search(model, args, init or {})
    state = trusted = search.start
    here, before, iteration = search.look(state, curvature), np.inf, 0
    while True:
        images_far = float(np.quantile(here.steps.distance[: search.n_images], 1 - stragglers))
        far = images_far if stragglers else max(images_far, here.steps.shared_distance)
        is_last = far < tolerance or iteration == max_iterations
        renew, best = None, differences.exact if exact else curvature
        near = bool(exact) and far < 1.0  # there the exact Hessian leads straight to the mode
        if is_last and exact != "near" and here.curvature is not best:
            renew = best  # by the new curvature the mode may be further
        elif not is_last and here.curvature is None:
            slow = far > SERVES * before or (
                near and np.log(far / tolerance) > COST * np.log(before / far)
            )
            renew = (differences.exact if near else curvature) if slow else None
        if renew is not None:  # a step that failed with the old curvature may succeed now
            state = state._replace(
                damping=np.minimum(state.damping, trusted.damping),
                shared_damping=min(state.shared_damping, trusted.shared_damping),
            )
            here = search.look(state, renew, here.slope)
            continue
        progress.update(
            None, f"Newton step {iteration}: ln p {here.slope.log_density:.2f}, {far:.2g} sd to go"
        )
        if is_last:
            return fit_at(search, state, here, iteration, tolerance)
        (state, slope), before, iteration = search.step(state, here), far, iteration + 1
        if here.curvature is not None:
            trusted = state
        here = search.look(state, here.block_hessian, slope)
