"""The shared unknowns at the mode of their own marginal density.

At the joint mode the unknowns of every image are fitted to the same residuals that determine the
shared errors, so that variances come out too small by a factor (n − k)/n.  With the images
integrated out,

    ln p(φ) = ln p_shared(φ) + Σ_i ln ∫ p(y_i, θ_i | φ) dθ_i,

variances do not: the mode is that of restricted maximum likelihood (Patterson & Thompson 1971).
Integrals are made of points (:mod:`marginal_density`): Laplace's alone (Tierney & Kadane 1986)
would be enough for normal data, but tails that are not normal shift the shared unknowns by a
fraction of a posterior sd that grows with the number of images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ..util.large_arrays import stored
from ..util.progress import SILENT, Listener
from ..util.status import Kind
from . import differences, marginal_covariance
from .curvature import BlockHessian, upward_inverse
from .density import Model
from .images_alone import are_few, few_at_their_modes, with_few
from .laplace import Fit
from .lbfgs import bfgs
from .marginal_density import Frame, Marginal, marginal_density, points, random_signs
from .mean_less_mode import mean_less_mode
from .search import Curvature, Look, Search, State, fit_at
from .summary import Summary

FAR = 1.0  # posterior sd; the points miss the mode of an image that is further from it
NEAR = 0.3  # posterior sd; few points lead no nearer
TRIFLE = 1.0  # nats that a step may lose, and as many again for each hundredth image
AROUND = 0.05  # posterior sd; points that were made further from the mode are made anew
OF_ONE = 0.005  # the same of many images, in posterior sd by one of them
STILL = 5  # steps that together have not halved what is left, near the mode, end a search
CHECKS = 3  # of a mode, at most
LEADS = 3  # by few points, of many images, at most
SETTLING = 5  # Newton steps of the images at the end


def marginal_fit(
    model: Model,
    *args: Any,
    fit: Fit,
    near: bool = False,
    max_iterations: int = 25,
    tolerance: float = 0.02,
    means: bool = True,
    progress: Listener = SILENT,
) -> Fit:
    """Move the shared unknowns of a joint MAP to their marginal mode.

    Quasi-Newton steps from the joint density's curvature, or of many images from the scatter of
    their slopes; each image follows at its own mode.  Few points show the way, and all points the
    end of it, which are made anew at each step.  The covariance of the shared unknowns is of the
    marginal density's curvature, by points made anew as well; its difference from the joint
    density's curvature is measured on one batch of 16, or on some 2,000 images, and scaled to all.
    If the mode is further than .05 sd by this covariance, the search goes on.  The result also has
    the posterior means less the modes.

    Args:
        model: as it was given to ``map_fit``.
        args: as they were given to ``map_fit``.
        fit: what ``map_fit`` returned, or ``images_fit``.
        near: the shared unknowns are near the marginal mode of some of the images, and these are
            many: few points lead with the slope that all have, and the scatter tells the curvature.
        tolerance: posterior sd that are left at the end, unless several steps led no nearer.
        means: find posterior means too, and what each batch says; else the covariance is about what
            the search learned of it.
        progress: updated at each step.

    Returns:
        The fit there, or ``fit`` where its curvature has no inverse; images that had not converged
        stay where they were, and are not integrated.
    """
    if not np.any(fit.status == Kind.CONVERGED):
        return fit
    search, n = Search(model, args, fit.values()), len(fit.status)
    usable = search.weight * search.data.padded(1.0 * (fit.status == Kind.CONVERGED))
    try:
        start = _start(search, fit, near, usable, max_iterations, tolerance / 2, progress)
        mode = _marginal_mode(search, start, max_iterations, tolerance, means, progress)
        (state, here, _, density), covariance = mode.place, mode.inverse
        joint = fit_at(search, state, here, fit.iterations + mode.steps, tolerance)
        found = replace(
            joint,
            shared_covariance=covariance,
            shared_distance=mode.far,
            status=np.where(usable[:n] > 0, joint.status, fit.status),
        )
        if not means:
            return found
        image_shift, shared_shift = mean_less_mode(search, state, here, covariance, usable)
        return replace(
            found,
            by_batch=_by_batch(search, state, here, density, np.linalg.inv(covariance)),
            image_shift=image_shift[:n],
            shared_shift=shared_shift,
        )
    except np.linalg.LinAlgError as error:
        progress.say(f"the shared unknowns stay at the joint mode: {error}")
        return fit


class _Place(NamedTuple):
    """A state with the images at their modes, a look, the points, and the marginal density."""

    state: State
    here: Look
    frame: Frame
    density: Marginal


class _Mode(NamedTuple):
    """The marginal mode, or the way to it.

    Attributes:
        inverse: (s, s) of the curvature, as the search learned it. far: posterior sd left.
        steps: number of steps.
    """

    place: _Place
    inverse: np.ndarray
    far: float
    steps: int


def _start(
    search: Search,
    fit: Fit,
    near: bool,
    usable: np.ndarray,
    max_steps: int,
    tolerance: float,
    progress: Listener,
) -> _Mode:
    """Where all points take over: at the state of the search, or where few points led from there.

    Args:
        near: few points are to lead with the slope that all have.
        usable: (n,) images that are integrated.
        tolerance: of the images, posterior sd.
    """
    state = search.start._replace(damping=np.zeros(len(usable)), shared_damping=0.0)
    here = search.look(state, _known_curvature(search, fit))
    frame = Frame.of(search, here, usable)
    if near:
        place = _placed(search, state, frame, tolerance)
        inverse = marginal_covariance.by_scatter(search, place.state, place.density)
        mode = _Mode(place, inverse, _distance(place.density, inverse), 0)
        for _ in range(LEADS):
            if mode.far < NEAR:
                break
            mode = _led(search, mode, max_steps, progress)
        return mode
    inverse = upward_inverse(here.steps.schur[None], np.zeros(1), np)[0]
    state, frame, _ = _settled(search, state, frame, FAR)
    few = random_signs(*state.theta.shape)
    place = _Place(state, here, frame, marginal_density(search, state, frame, few))
    follow = partial(_by_few, search, few)
    mode = _climb(search, _Mode(place, inverse, np.inf, 0), follow, NEAR, max_steps, progress)
    (state, _, frame, _), inverse, _, steps = mode
    return _Mode(_placed(search, state, frame, tolerance), inverse, np.inf, steps)


def _led(search: Search, mode: _Mode, max_steps: int, progress: Listener) -> _Mode:
    """Where few points lead, their density tilted so that it slopes here as that of all points
    does: the two differ by a slope that hardly changes on the way."""
    first, far = mode.place, mode.far
    few = random_signs(*first.state.theta.shape)
    alone = marginal_density(search, first.state, first.frame, few)
    tilt = first.density.slope - alone.slope

    def tilted(there: _Place) -> _Place:
        value = there.density.log_density - tilt @ (there.state.phi - first.state.phi)
        density = there.density._replace(log_density=value, slope=there.density.slope + tilt)
        return there._replace(density=density)

    def follow(state: State, place: _Place, far: float) -> _Place | None:
        there = _by_few(search, few, state, place, far)
        return None if there is None else tilted(there)

    start = mode._replace(place=tilted(first._replace(density=alone)))
    mode = _climb(search, start, follow, min(AROUND, far / 10), max_steps, progress)
    place = _by_all(search, AROUND, mode.place.state, mode.place, far)
    return mode._replace(place=place, far=_distance(place.density, mode.inverse))


def _marginal_mode(
    search: Search,
    mode: _Mode,
    max_steps: int,
    tolerance: float,
    checked: bool,
    progress: Listener,
) -> _Mode:
    """The search of :func:`marginal_fit` by all points, from a start.

    Args:
        checked: by the density's own curvature, which the mode then has, and not only by what the
            search learned of it.
    """
    follow = partial(_by_all, search, tolerance / 2)
    for _ in range(CHECKS):
        mode = _climb(search, mode, follow, tolerance, max_steps, progress)
        if not checked:
            break
        covariance = marginal_covariance.by_differences(search, *mode.place[:3])
        far = _distance(mode.place.density, covariance)
        mode = mode._replace(inverse=covariance, far=far)
        if far < AROUND:
            break
    look = search.look(mode.place.state, mode.place.here.block_hessian)
    return mode._replace(place=mode.place._replace(here=look))


def _climb(
    search: Search,
    mode: _Mode,
    follow: Callable[[State, _Place, float], _Place | None],
    tolerance: float,
    max_steps: int,
    progress: Listener,
) -> _Mode:
    """Quasi-Newton steps (BFGS) uphill in a marginal density, to within ``tolerance`` posterior sd
    of its mode.

    Values with different points differ by more than a step gains, so that slopes say whether a step
    was too long: the density falls at its end, and more steeply than it rose where it began.  It is
    then made anew, to where by these slopes the density is highest along it; half as long where
    there was much less density.

    Args:
        follow: (a state after a step, where it began, posterior sd that were left there) → the
            place where the images followed, None where they could not.
    """
    (place, inverse, _, steps), longest = mode, np.inf
    trifle, far = TRIFLE * (1 + place.frame.usable.sum() / 100), _distance(place.density, inverse)
    left = [np.inf] * STILL
    for _ in range(max_steps):
        progress.update(None, f"step {steps}: {far:.2g} posterior sd to the marginal mode")
        left.append(far)
        if far < tolerance or left[-1 - STILL] / 2 < far < NEAR:
            break
        length, steps = min(far, longest), steps + 1
        step = -inverse @ place.density.slope * (length / far)
        step = np.clip(step, -search.reach[1], search.reach[1])
        there = follow(_moved(search, place.state, place.frame.followed(step), step), place, far)
        before = place.density
        if there is None or not there.density.log_density > before.log_density - trifle:
            longest = length / 2
            continue
        after = there.density
        rise, fall = -before.slope @ step, after.slope @ step
        if fall > rise:
            longest = length * max(rise / (rise + fall), 0.1)  # limits may have turned the step
            continue
        place, longest = there, 2 * longest
        inverse = bfgs(inverse, step, after.slope - before.slope)
        far = _distance(place.density, inverse)
    return _Mode(place, inverse, far, steps)


def _by_few(
    search: Search, few: np.ndarray, state: State, place: _Place, far: float
) -> _Place | None:
    """Where the images followed, by few points (m, n, k), which are those of the place."""
    state, frame, off = _settled(search, state, place.frame, FAR)
    if off >= FAR:
        return None
    return _Place(state, place.here, frame, marginal_density(search, state, frame, few))


def _by_all(search: Search, near: float, state: State, place: _Place, far: float) -> _Place:
    """Where the images followed, by all points, which are made anew unless the shared unknowns move
    so little that the images' curvature hardly changes."""
    frame = place.frame
    if far > max(AROUND, OF_ONE * np.sqrt(frame.usable.sum())):
        return _placed(search, state, frame, near)
    if far > AROUND:
        state, frame, _ = _settled(search, state, frame, near)
    density = marginal_density(search, state, frame, points(state.theta.shape[1]))
    return place._replace(state=state, frame=frame, density=density)


def _placed(search: Search, state: State, frame: Frame, near: float) -> _Place:
    """Each image within ``near`` posterior sd of its mode, with new points there."""
    state, here = _looked(search, state, frame, near)
    frame = Frame.of(search, here, frame.usable)
    density = marginal_density(search, state, frame, points(state.theta.shape[1]))
    return _Place(state, here, frame, density)


def _known_curvature(search: Search, fit: Fit) -> BlockHessian | Curvature:
    """The block Hessian of a fit; it is computed if the fit does not contain it."""
    if fit.shared_precision is None:
        return differences.exact
    blocks, coupling = (search.data.padded(x) for x in (fit.image_precision, fit.coupling))
    unused = search.weight == 0
    blocks[unused], coupling[unused] = np.eye(blocks.shape[1]), 0.0
    found = BlockHessian(stored(blocks), stored(coupling), fit.shared_precision)
    search.set_scale(found)
    return found


def _looked(search: Search, state: State, frame: Frame, near: float) -> tuple[State, Look]:
    """The state with each image within ``near`` sd of its mode, and the exact curvature there."""
    state, frame, _ = _settled(search, state, frame, near)
    here = search.look(state, differences.exact)
    for _ in range(SETTLING):  # for images that lag behind the shared unknowns
        distance = frame.usable * here.steps.distance
        if np.max(distance) < near:
            break
        if are_few(distance >= near, frame.usable):
            moved, known = with_few(search, state, here, distance >= near, near)
            state = state._replace(theta=moved.theta)
            here = search.look(state, known)
            break
        state = _moved(search, state, here.steps.alone * frame.usable[:, None], 0 * state.phi)
        here = search.look(state, differences.exact)
    return state, here


def _distance(found: Marginal, inverse: np.ndarray) -> float:
    """Posterior sd to the mode."""
    return float(np.sqrt(max(found.slope @ inverse @ found.slope, 0.0)))


def _by_batch(
    search: Search, state: State, here: Look, density: Marginal, precision: np.ndarray
) -> Summary:
    """What each batch says of the shared unknowns, without their priors.

    A batch's curvature is its Schur complement; what the marginal density's curvature has besides,
    of all images together, is shared out evenly over the images.

    Args:
        precision: (s, s), of the marginal density.
    """
    earlier, own = search.data.earlier, search.own_curvature(state)
    of_prior = here.slope.g_prior
    if earlier is not None:
        of_prior = of_prior - earlier.slope_at(state.phi)
    n, parts = search.data.size, len(search.data.parts)
    followed = np.einsum("nks,nkt->nst", here.block_hessian.coupling, here.steps.pull)
    schur = search.shared_of_parts - own / parts - followed.reshape(parts, n, *own.shape).sum(1)
    count = search.weight.reshape(parts, n).sum(1)
    curvature = schur + (precision - here.steps.schur) * (count / count.sum())[:, None, None]
    at = np.broadcast_to(state.phi, density.slopes.shape)
    return Summary(at, density.slopes - of_prior / parts, curvature)


def _settled(search: Search, state: State, frame: Frame, near: float) -> tuple[State, Frame, float]:
    """The state after steps of the images to their modes, and how far the furthest still is.

    The last step is shorter than ``near`` posterior sd.  A few images that are further go on alone,
    and have new points in the frame.
    """
    far = np.inf
    for _ in range(SETTLING):
        slope = search.slope(state).g_image
        step = frame.newton(slope)
        distance = np.sqrt(np.maximum(-np.einsum("ni,ni->n", step, slope), 0.0))
        state = _moved(search, state, step, 0 * state.phi)
        far = float(np.max(distance, initial=0.0))
        if far < near:
            return state, frame, far
    if not are_few(distance >= near, frame.usable):
        return state, frame, far
    found = few_at_their_modes(search, state, distance >= near, near / 4)
    return found.of(state), frame.with_few(found), float(np.max(found.distance))


def _moved(search: Search, state: State, image, shared) -> State:
    """A state after a step, none longer than a prior sd."""
    r_image, r_shared = search.reach
    return state._replace(
        theta=state.theta + np.clip(image, -r_image, r_image),
        phi=state.phi + np.clip(shared, -r_shared, r_shared),
    )
