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
from .images_alone import FEW, with_few
from .laplace import Fit
from .search import Curvature, Look, Search, State, fit_at

SERVES = 0.9  # of the distance left after a step: with more, a new curvature (ten steps' time) pays
COST = 10  # steps that the exact Hessian costs: near the mode it pays where more steps are left
PATIENCE = 2  # times that these few are taken to their modes when all others are there


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
    no longer pay (Shamanskii 1967); until then each step corrects that of the shared unknowns
    (BFGS).  Directions of negative curvature are followed uphill (|eigenvalue|); no step is longer
    than one prior sd.  Each image has its own damping, and stays where it is when a step does not
    raise its ln p, so that ln p never falls.  When all others are at their modes, one image in a
    hundred goes on alone (:mod:`images_alone`), and is left behind where it does not get there.

    Args:
        model: NumPyro program; ``args``: what it is called with, the first of them whole or as
            :class:`Batches` of images.
        init: start by site (constrained, all images); the prior mean where absent.
        tolerance: stop when every image and the shared unknowns are nearer to the mode than
            this many posterior sd.
        stragglers: share of the images that need not be so near, nor the shared unknowns then: for
            a fit that will be repeated.
        curvature: the curvature far from the mode, never negative along an observation.
        exact: end with Newton steps and the exact Hessian at the mode; else with ``curvature``.
            ``"near"`` is enough for a search for the marginal mode, which is from the joint mode by
            a distance that grows as √n: the shared unknowns end within ``tolerance``·√n posterior
            sd of the joint mode, where an image sees no change, and with the curvature at hand.
        progress: updated at each step.

    Raises:
        InputError: the model has no latent site, or one in a plate other than ``image``.
    """
    search = Search(model, args, init or {})
    final = differences.exact if exact else curvature

    def of_one(here: Look) -> float:
        """Distance of the shared unknowns to the mode, in posterior sd by one image alone."""
        return here.steps.shared_distance / float(np.sqrt(search.n_images))

    def of_shared(here: Look) -> float:
        """Distance of the shared unknowns to the mode, in the sd that ``tolerance`` is of."""
        return of_one(here) if exact == "near" else here.steps.shared_distance

    def distance(here: Look) -> float:
        """Posterior sd to the mode, of the furthest image that counts or the shared unknowns."""
        of_images = here.steps.distance[: search.n_images]
        if stragglers:
            return float(np.quantile(of_images, 1 - stragglers))
        return max(float(of_images.max()), of_shared(here))

    def of_most(here: Look) -> float:
        """Posterior sd to the mode, of the furthest image that is not one of the ``FEW``."""
        of_images = here.steps.distance[: search.n_images]
        return float(np.quantile(of_images, 1 - FEW, method="higher"))

    def is_near(here: Look) -> bool:
        """Whether the exact Hessian leads straight to the mode: in posterior sd of one image."""
        return bool(exact) and max(of_most(here), of_one(here)) < 1.0

    def is_slow(here: Look, before: float) -> bool:
        """Whether a new curvature would save time, the last step having begun at ``before``."""
        far = distance(here)
        saves = is_near(here) and np.log(far / tolerance) > COST * np.log(before / far)
        return far > SERVES * before or saves

    def is_last(here: Look, iteration: int) -> bool:
        is_there = distance(here) < tolerance or (most_are_there(here) and taken == PATIENCE)
        return is_there or iteration == max_iterations

    def most_are_there(here: Look) -> bool:
        return max(of_most(here), of_shared(here)) < tolerance

    state = fresh = search.start  # ``fresh``: where the last step with a new curvature led
    here, taken = search.look(state, curvature), 0
    before, phi, learned = here, state.phi, here.block_hessian  # of the last step, where it began
    for iteration in range(max_iterations + 1):
        if most_are_there(here) and not is_last(here, iteration):
            taken += 1
            far = (here.steps.distance >= tolerance) & (search.weight > 0)
            state, known = with_few(search, state, here, far, tolerance)
            here, learned = search.look(state, known), known._replace(shared=learned.shared)
        if here.curvature is None and not is_last(here, iteration):
            has_failed = len(phi) and np.all(state.phi == phi)  # the step of the shared unknowns
            is_same = has_failed and of_most(before) < 1.0  # a new curvature would be the same
            if is_slow(here, distance(before)) and not is_same:
                state = _eased(state, fresh)
                better = differences.exact if is_near(here) else curvature
                here = search.look(state, better, here.slope)
            else:
                here = search.look(state, learned, here.slope)
        if exact != "near" and here.curvature is not final and is_last(here, iteration):
            # by the final curvature the mode may be further: then the search goes on
            state = _eased(state, fresh)
            here = search.look(state, final, here.slope)
        progress.update(
            None,
            f"Newton step {iteration}: ln p {here.slope.log_density:.2f}, "
            f"{distance(here):.2g} sd to go",
        )
        if is_last(here, iteration):
            break
        before, phi = here, state.phi
        state, slope, learned = search.step(state, here)
        if here.curvature is not None:
            fresh = state
        here = search.look(state, here.block_hessian, slope)
    return fit_at(search, state, here, iteration, tolerance)


def _eased(state: State, fresh: State) -> State:
    """A state with no more damping than ``fresh``: steps that failed by the old curvature may
    succeed by the new one.
    """
    return state._replace(
        damping=np.minimum(state.damping, fresh.damping),
        shared_damping=min(state.shared_damping, fresh.shared_damping),
    )
