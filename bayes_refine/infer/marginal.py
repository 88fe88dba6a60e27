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

from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ..util.progress import SILENT, Listener
from ..util.status import Kind
from . import differences
from .curvature import WIDEST, BlockHessian, upward_inverse
from .density import Model
from .images_alone import are_few, few_at_their_modes, with_few
from .laplace import Fit
from .lbfgs import bfgs
from .marginal_density import Frame, Marginal, Tilted, marginal_density, points, random_signs
from .mean_less_mode import mean_less_mode
from .search import Curvature, Look, Search, State, fit_at
from .summary import Summary

CLOSE = 0.1  # posterior sd, step of forward differences of slopes, for the curvature at the mode
FAR = 1.0  # posterior sd; the points miss the mode of an image that is further from it
RENEWALS = 6  # of the way that few points lead, at most
NEAR = 0.3  # posterior sd; few points alone lead no nearer
LEASH = 2.0  # of the way to the mode, that a tilt is good for
AROUND = 0.05  # posterior sd; points that were made further from the mode are made anew
SETTLING = 5  # Newton steps of the images at the end


def marginal_fit(
    model: Model,
    *args: Any,
    fit: Fit,
    covariance: np.ndarray | None = None,
    max_iterations: int = 25,
    tolerance: float = 0.02,
    means: bool = True,
    progress: Listener = SILENT,
) -> Fit:
    """Move the shared unknowns of a joint MAP to their marginal mode.

    Quasi-Newton steps from the joint density's curvature, shorter where the marginal density falls;
    each image follows at its own mode.  All points say how far the mode is, and few points lead
    there, to whose slope is added what all points had more where the way began.  The
    covariance of the shared unknowns is of the marginal density's curvature; its difference from
    the joint density's curvature is measured on the first batch of images and scaled to all.  The
    result also has the posterior means less the modes.

    Args:
        model: as it was given to ``map_fit``.
        args: as they were given to ``map_fit``.
        fit: what ``map_fit`` returned, or ``images_fit``.
        covariance: (s, s) of the shared unknowns, about; by default that of ``fit``'s curvature.
        tolerance: the last step is shorter than this many posterior sd; each step is several times
            shorter than the one before.
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
        mode = _marginal_mode(search, fit, covariance, usable, max_iterations, tolerance, progress)
        state, here, best = mode.state, mode.here, mode.best
        joint = fit_at(search, state, here, fit.iterations + mode.steps, tolerance)
        found = replace(
            joint,
            shared_covariance=mode.inverse,
            shared_distance=mode.far,
            status=np.where(usable[:n] > 0, joint.status, fit.status),
        )
        if not means:
            return found
        frame = Frame.of(search, here, usable)
        covariance = _covariance(search, state, frame, joint.shared_covariance)
        image_shift, shared_shift = mean_less_mode(search, state, here, covariance, usable)
        return replace(
            found,
            by_batch=_by_batch(search, state, here, best, np.linalg.inv(covariance)),
            shared_covariance=covariance,
            image_shift=image_shift[:n],
            shared_shift=shared_shift,
        )
    except np.linalg.LinAlgError as error:
        progress.say(f"the shared unknowns stay at the joint mode: {error}")
        return fit


class _Mode(NamedTuple):
    """The state at the marginal mode, the look and the density there, and how it was reached.

    Attributes:
        inverse: (s, s) of the curvature, as the search learned it. far: posterior sd left.
        steps: number of steps.
    """

    state: State
    here: Look
    best: Marginal
    inverse: np.ndarray
    far: float
    steps: int


def _marginal_mode(
    search: Search,
    fit: Fit,
    inverse: np.ndarray | None,
    usable: np.ndarray,
    max_iterations: int,
    tolerance: float,
    progress: Listener,
) -> _Mode:
    """The search of :func:`marginal_fit`, from the state of the search.

    Args:
        inverse: (s, s) of the curvature, about. usable: (n,) images that are integrated.
    """
    state = search.start._replace(damping=np.zeros(len(usable)), shared_damping=0.0)
    here = search.look(state, _known_curvature(search, fit))
    if inverse is None:
        inverse = upward_inverse(here.steps.schur[None], np.zeros(1), np)[0]
    frame, near = Frame.of(search, here, usable), tolerance / 2
    climb = partial(_climb, max_steps=max_iterations, progress=progress)
    few, z = random_signs(*state.theta.shape), points(state.theta.shape[1])
    state, frame, _ = _settled(search, state, frame, FAR)
    density = Tilted(search, frame, few, 0 * state.phi, state.phi)
    state, frame, inverse, steps = climb(density, state, density.at(state), inverse, NEAR)
    far = np.inf
    for renewal in range(RENEWALS + 1):
        if far > AROUND:  # else the images' curvature has hardly changed
            state, here = _looked(search, state, frame, near)
            frame = Frame.of(search, here, usable)
        best, before = marginal_density(search, state, frame, z), far
        far = _distance(best, inverse)
        if far < tolerance or renewal == RENEWALS:
            break
        by_few = marginal_density(search, state, frame, few)
        if far < before / 2 and np.isfinite(by_few.log_density):
            # what few points miss hardly changes
            density = Tilted(search, frame, few, best.slope - by_few.slope, state.phi)
            start, leash = best._replace(log_density=by_few.log_density), LEASH * max(far, 1.0)
        else:  # they lead nowhere
            density, start, leash = Tilted(search, frame, z, 0 * state.phi, state.phi), best, np.inf
        end = max(near, far / 20)
        state, frame, inverse, taken = climb(density, state, start, inverse, end, leash=leash)
        steps += taken
    return _Mode(state, search.look(state, here.block_hessian), best, inverse, far, steps)


def _known_curvature(search: Search, fit: Fit) -> BlockHessian | Curvature:
    """The block Hessian of a fit; it is computed if the fit does not contain it."""
    if fit.shared_precision is None:
        return differences.exact
    blocks, coupling = (search.data.padded(x) for x in (fit.image_precision, fit.coupling))
    unused = (search.weight == 0)[:, None, None]
    eye = np.eye(blocks.shape[1])
    blocks, coupling = np.where(unused, eye, blocks), np.where(unused, 0.0, coupling)
    found = BlockHessian(blocks, coupling, fit.shared_precision)
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


def _climb(
    density: Tilted,
    state: State,
    best: Marginal,
    inverse: np.ndarray,
    tolerance: float,
    *,
    max_steps: int,
    progress: Listener,
    leash: float = np.inf,
) -> tuple[State, Frame, np.ndarray, int]:
    """Steps uphill in a marginal density, to within ``tolerance`` posterior sd of its mode.

    These are quasi-Newton steps (BFGS).  After a step that led downhill the next one is at most
    half as long, by the curvature that the climb began with.

    Args:
        best: the density at the state. inverse: (s, s) of the curvature.
        leash: posterior sd from where the density is tilted, beyond which the tilt means nothing.

    Returns:
        The state, the frame, the curvature's inverse, and the number of steps.
    """
    search, taken = density.search, 0
    curvature, longest, (_, reach) = np.linalg.inv(inverse), np.inf, search.reach
    far = _distance(best, inverse)
    while far >= tolerance and taken < max_steps and np.isfinite(best.log_density):
        away = state.phi - density.phi
        if away @ curvature @ away > leash**2:
            break
        taken += 1
        step = -inverse @ best.slope
        step *= min(1.0, longest / np.sqrt(step @ curvature @ step))
        step = np.clip(step, -reach, reach)
        length = float(np.sqrt(step @ curvature @ step))
        there = _moved(search, state, -density.frame.pull @ step, step)
        there, frame, off = _settled(search, there, density.frame, FAR)
        if frame is not density.frame:  # else images with other points would be compared
            back = _moved(search, there, frame.pull @ step, -step)
            new = np.any(frame.factor != density.frame.factor, axis=(1, 2))
            state = state._replace(theta=np.where(new[:, None], back.theta, state.theta))
            density = density._replace(frame=frame)
            best = density.at(state)
        found = density.at(there) if off < FAR else None
        value = -np.inf if found is None else found.log_density
        progress.update(
            None, f"step {taken}: marginal ln p {value:.2f}, it was {best.log_density:.2f}"
        )
        if found is None:
            longest = length / 2
            continue
        rises = _rises(best, found, step, far)
        if rises or found.slope @ step > 0:  # else the slopes say nothing of the curvature
            inverse = bfgs(inverse, step, found.slope - best.slope)
        if rises:
            state, best, far = there, found, _distance(found, inverse)
        longest = max(longest, 2 * length) if rises else length / 2
    return state, density.frame, inverse, taken


def _distance(found: Marginal, inverse: np.ndarray) -> float:
    """Posterior sd to the mode."""
    return float(np.sqrt(max(found.slope @ inverse @ found.slope, 0.0)))


def _rises(best: Marginal, found: Marginal, step: np.ndarray, far: float) -> bool:
    """Whether the density rises along a step.

    Values with different points differ by some tenths of a nat, while a step of less than one
    posterior sd gains half a nat at most: such a step may also rise by the slopes at its ends.
    """
    if not np.isfinite(found.log_density):
        return False
    by_slopes = far < 1 and (best.slope + found.slope) @ step <= 0
    return bool(by_slopes or found.log_density >= best.log_density)


def _by_batch(
    search: Search, state: State, here: Look, best: Marginal, precision: np.ndarray
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
    at = np.broadcast_to(state.phi, best.slopes.shape)
    return Summary(at, best.slopes - of_prior / parts, curvature)


def _settled(search: Search, state: State, frame: Frame, near: float) -> tuple[State, Frame, float]:
    """The state after steps of the images to their modes, and how far the furthest still is.

    The last step is shorter than ``near`` posterior sd.  A few images that are further go on alone,
    and have new points in the frame.
    """
    far = np.inf
    for _ in range(SETTLING):
        slope = search.slope(state).g_image
        step = -np.einsum("nij,nj->ni", frame.inverse, slope)
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


def _covariance(search: Search, state: State, frame: Frame, joint: np.ndarray) -> np.ndarray:
    """Covariance of the shared unknowns: of ``joint``'s curvature and that of the integrals."""
    few, n = search.first_batch(), search.data.size
    share = frame.usable.sum() / max(frame.usable[:n].sum(), 1.0)
    state, frame = state._replace(theta=state.theta[:n], damping=state.damping[:n]), frame.first(n)
    z = points(state.theta.shape[1])
    factor = np.linalg.cholesky(joint)

    def added(d):
        """Slope of the marginal density less that of the joint, the images following, and what the
        points say of the images' curvature."""
        there = state._replace(theta=state.theta - frame.pull @ d, phi=state.phi + d)
        slope = few.slope(there)
        step = -np.einsum("nij,nj->ni", frame.inverse, slope.g_image)
        found = marginal_density(few, there._replace(theta=there.theta + step), frame, z)
        following = np.einsum("nks,nk->s", frame.pull, slope.g_image)
        return found.slope - (slope.g_shared - following), found.curvature

    here_added, unit = added(np.zeros(len(joint)))
    moved = [added(d) for d in CLOSE * factor.T]
    rows = np.array([x - here_added for x, _ in moved]) @ factor / CLOSE
    bent = np.array([x - unit for _, x in moved]) / CLOSE  # (s, n, k, k)
    rows = share * (rows + _fourth_moments(bent, z))
    values, vectors = np.linalg.eigh(np.eye(len(joint)) + (rows + rows.T) / 2)
    factor = factor @ vectors / np.sqrt(np.maximum(values, WIDEST**-2))
    return factor @ factor.T


def _fourth_moments(bent: np.ndarray, z: np.ndarray) -> np.ndarray:
    """(s, s) to be added to the curvature of −ln Σ_m exp(−½ z_mᵀ A z_m), A = 1 + Σ_a t_a A_a.

    The points' fourth moments are not the normal's, whose curvature has −½ tr(A_a A_b) where the
    points have −¼ Cov(zᵀ A_a z, zᵀ A_b z).

    Args:
        bent: (s, n, k, k) A_a of each image. z: (m, k).
    """
    squares = np.einsum("mi,anij,mj->anm", z, bent, z)
    squares -= squares.mean(-1, keepdims=True)
    of_points = np.einsum("anm,bnm->ab", squares, squares) / len(z)
    return of_points / 4 - np.einsum("anij,bnji->ab", bent, bent) / 2
