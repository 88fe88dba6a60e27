"""The shared unknowns at the mode of their own marginal density.

At the joint mode the unknowns of every image are fitted to the same residuals that determine the
shared errors, so that variances come out too small by a factor (n − k)/n.  With the images
integrated out,

    ln p(φ) = ln p_shared(φ) + Σ_i ln ∫ p(y_i, θ_i | φ) dθ_i,

variances do not: the mode is that of restricted maximum likelihood (Patterson & Thompson 1971).  An
image's integral is that of Laplace's normal N(θ̂_i, L_iL_iᵀ), corrected by weights,

    ∫ p dθ ≈ (2π)^{k/2} |L_i| mean_m p(θ̂_i + L_i z_m) exp(½|z_m|²),

with the same few points z_m for all images, whose first three moments are the unit normal's.
Laplace's integral alone (Tierney & Kadane 1986) would be enough for normal data; tails that are not
normal shift the shared unknowns by a fraction of a posterior sd that grows with the number of
images.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np

from ..util.progress import SILENT, Listener
from ..util.status import Kind
from . import differences
from .curvature import WIDEST, BlockHessian, upward_inverse
from .density import Model
from .laplace import Fit
from .lbfgs import bfgs
from .mean_less_mode import mean_less_mode
from .search import Curvature, Look, Search, State, fit_at
from .steps import Slope
from .summary import Summary

CLOSE = 0.1  # posterior sd, step of forward differences of slopes, for the curvature at the mode
FAR = 1.0  # posterior sd; the points miss the mode of an image that is further from it
RENEWALS = 6  # of the density with all points, at most
FEWEST = 16  # pairs of points, for a noise of less than a hundredth of a posterior sd
PAIRS = 2  # of the few points that show the way
NEAR = 0.3  # posterior sd; few points alone lead no nearer
AROUND = 0.05  # posterior sd; points that were made further from the mode are made anew
SETTLING = 5  # Newton steps of the images at the end


def marginal_fit(
    model: Model,
    *args: Any,
    fit: Fit,
    max_iterations: int = 25,
    tolerance: float = 0.02,
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
        model, args: as they were given to ``map_fit``. fit: what it returned.
        tolerance: the last step is shorter than this many posterior sd; each step is several times
            shorter than the one before.
        progress: updated at each step.

    Returns:
        The fit there, or ``fit`` where its curvature has no inverse; images that had not converged
        stay where they were, and are not integrated.
    """
    if not np.any(fit.status == Kind.CONVERGED):
        return fit
    try:
        return _marginal_fit(model, args, fit, max_iterations, tolerance, progress)
    except np.linalg.LinAlgError as error:
        progress.say(f"the shared unknowns stay at the joint mode: {error}")
        return fit


def _marginal_fit(model, args, fit: Fit, max_iterations, tolerance, progress) -> Fit:
    search = Search(model, args, fit.values())
    usable = search.weight * search.data.padded(1.0 * (fit.status == Kind.CONVERGED))
    state = search.start._replace(damping=np.zeros(len(usable)), shared_damping=0.0)
    here = search.look(state, _known_curvature(search, fit))
    inverse = upward_inverse(here.steps.schur[None], np.zeros(1), np)[0]
    frame, near = _Frame.of(search, here, usable), tolerance / 2
    climb = partial(_climb, search, max_steps=max_iterations, progress=progress)
    few, z = random_signs(*state.theta.shape), points(state.theta.shape[1])
    state = _settled(search, state, frame) or state
    start = _marginal(search, state, frame, few)
    state, inverse, iteration = climb(state, frame, few, start, inverse, NEAR)
    far = np.inf
    for _ in range(RENEWALS):
        if far > AROUND:  # else the images' curvature has hardly changed
            state, here = _looked(search, state, frame, near)
            frame = _Frame.of(search, here, usable)
        best, before = _marginal(search, state, frame, z), far
        far = _distance(best, inverse)
        if far < tolerance:
            break
        start = _marginal(search, state, frame, few)
        if of_all := far > before / 2 or not np.isfinite(start.log_density):
            start = best  # few points have led nowhere, or lead nowhere
        tilt = best.slope - start.slope  # what few points miss, which hardly changes
        show, enough = z if of_all else few, max(near, far / 20)
        state, inverse, taken = climb(state, frame, show, start, inverse, enough, tilt)
        iteration += taken
    here = search.look(state, here.block_hessian)
    found = fit_at(search, state, here, fit.iterations + iteration, tolerance)
    frame = _Frame.of(search, here, usable)
    covariance = _covariance(search, state, frame, found.shared_covariance)
    image_shift, shared_shift = mean_less_mode(search, state, here, covariance, usable)
    n = search.n_images
    return replace(
        found,
        by_batch=_by_batch(search, state, here, best, np.linalg.inv(covariance)),
        shared_covariance=covariance,
        shared_distance=far,
        status=np.where(usable[:n] > 0, found.status, fit.status),
        image_shift=image_shift[:n],
        shared_shift=shared_shift,
    )


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


def _looked(search: Search, state: State, frame: _Frame, near: float) -> tuple[State, Look]:
    """The state with each image within ``near`` sd of its mode, and the exact curvature there."""
    state = _settled(search, state, frame, near=near) or state
    here = search.look(state, differences.exact)
    for _ in range(SETTLING):  # for images that lag behind the shared unknowns
        if np.max(frame.usable * here.steps.distance) < near:
            break
        alone = here.steps.alone * frame.usable[:, None]
        state = _moved(search, state, alone, 0 * state.phi)
        here = search.look(state, differences.exact)
    return state, here


class _Frame(NamedTuple):
    """The points of n images, and how the images' unknowns follow the shared unknowns.

    Attributes:
        factor: (n, k, k) lower triangular L of LLᵀ, the inverse of an image's curvature.
        pull: (n, k, s). usable: (n,) 1, or 0 of an image that is not integrated.
    """

    factor: np.ndarray
    pull: np.ndarray
    usable: np.ndarray

    @classmethod
    def of(cls, search: Search, here: Look, usable: np.ndarray) -> _Frame:
        inverse = upward_inverse(here.block_hessian.blocks, np.zeros(len(usable)), np)
        # Cholesky's factors change little where curvature does
        return cls(np.linalg.cholesky(inverse), here.steps.pull * usable[:, None, None], usable)

    @property
    def roots(self) -> np.ndarray:
        """(n, k, k) from points to an image's unknowns; 0 of an image that is not integrated."""
        return self.factor * self.usable[:, None, None]

    @property
    def inverse(self) -> np.ndarray:
        """(n, k, k) inverse curvature of the images; 0 of an image that is not integrated."""
        return self.roots @ np.swapaxes(self.roots, 1, 2)

    def first(self, n: int) -> _Frame:
        """Of the first n images."""
        return _Frame(*(x[:n] for x in self))


def _climb(
    search,
    state: State,
    frame: _Frame,
    z,
    start,
    inverse,
    tolerance,
    tilt=0,
    *,
    max_steps,
    progress,
):
    """Steps uphill in the marginal density, to within ``tolerance`` posterior sd of its mode.

    These are quasi-Newton steps (BFGS), shorter where the density falls.

    Args:
        z: points, all or few (:func:`random_signs`). start: the density with these.
        inverse: (s, s) of the curvature. tilt: (s,) to be added to the slope everywhere.

    Returns:
        The state, the curvature's inverse, and the number of steps.
    """
    phi, taken = state.phi, 0

    def tilted(found: _Marginal, at: State) -> _Marginal:
        value = found.log_density - np.sum(tilt * (at.phi - phi))
        return found._replace(log_density=value, slope=found.slope + tilt)

    best = tilted(start, state)
    far, step = _distance(best, inverse), -inverse @ best.slope
    while far >= tolerance and taken < max_steps and np.isfinite(best.log_density):
        taken += 1
        there = _settled(search, _moved(search, state, -frame.pull @ step, step), frame)
        found = None if there is None else tilted(_marginal(search, there, frame, z), there)
        value = -np.inf if found is None else found.log_density
        progress.update(
            None, f"step {taken}: marginal ln p {value:.2f}, it was {best.log_density:.2f}"
        )
        if there is None or found is None:
            step = step / 2
            continue
        moved = there.phi - state.phi
        before, behind = best.slope @ moved, found.slope @ moved
        rises = _rises(best, found, moved, far)
        if not (rises or behind > 0):
            step = step / 2
            continue
        inverse = bfgs(inverse, moved, found.slope - best.slope)
        if rises:
            state, best, far = there, found, _distance(found, inverse)
        step = -inverse @ best.slope
        if not rises:  # too far, to beyond the highest place
            step *= min(1.0, 0.5 * (before - behind) / before)
    return state, inverse, taken


def _distance(found: _Marginal, inverse: np.ndarray) -> float:
    """Posterior sd to the mode."""
    return float(np.sqrt(max(found.slope @ inverse @ found.slope, 0.0)))


def _rises(best: _Marginal, found: _Marginal, step: np.ndarray, far: float) -> bool:
    """Whether the density rises along a step.

    Values with different points differ by some tenths of a nat, while a step of less than one
    posterior sd gains half a nat at most: such a step may also rise by the slopes at its ends.
    """
    if not np.isfinite(found.log_density):
        return False
    by_slopes = far < 1 and (best.slope + found.slope) @ step <= 0
    return bool(by_slopes or found.log_density >= best.log_density)


def _by_batch(
    search: Search, state: State, here: Look, best: _Marginal, precision: np.ndarray
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


def _settled(
    search: Search, state: State, frame: _Frame, slope: Slope | None = None, near: float = FAR
):
    """The state after steps of the images to their modes, the last one shorter than ``near``
    posterior sd; None where one is far from it.
    """
    for _ in range(SETTLING):
        slope = slope or search.slope(state)
        step = -np.einsum("nij,nj->ni", frame.inverse, slope.g_image)
        distance = np.sqrt(np.maximum(-np.einsum("ni,ni->n", step, slope.g_image), 0.0))
        state, slope = _moved(search, state, step, 0 * state.phi), None
        if np.max(distance, initial=0.0) < near:
            return state
    return None


def _moved(search: Search, state: State, image, shared) -> State:
    """A state after a step, none longer than a prior sd."""
    r_image, r_shared = search.reach
    return state._replace(
        theta=state.theta + np.clip(image, -r_image, r_image),
        phi=state.phi + np.clip(shared, -r_shared, r_shared),
    )


class _Marginal(NamedTuple):
    """Marginal ln p but for a constant, the slope of minus this (s,), what the points say of
    the curvature of each image, in the frame's coordinates (n, k, k), 1 where they fit it, and the
    slopes of the batches, each with its share of the shared unknowns' priors, (batches, s)."""

    log_density: float
    slope: np.ndarray
    curvature: np.ndarray
    slopes: np.ndarray


def _marginal(search: Search, state: State, frame: _Frame, z: np.ndarray) -> _Marginal:
    """The marginal density with the points z (m, k), or (m, n, k) of each image, in a frame."""
    share, weight = 1 / len(search.data.parts), search.weight

    def rows(w: slice) -> tuple:
        of_frame = frame.roots[w], frame.pull[w]
        of_images = z[:, w] if z.ndim == 3 else z
        return state.theta[w], state.phi, *of_frame, weight[w], share, of_images

    parts = search.each(differences.integral, (search.model, search.sites, search.apart), rows)
    ln_p, slope, each = zip(*parts, strict=True)
    used = frame.usable > 0
    eye = np.eye(state.theta.shape[1])
    curvature = np.where(used[:, None, None], np.concatenate(each), eye)
    volume = np.log(np.diagonal(frame.factor, axis1=1, axis2=2)).sum(1) @ frame.usable
    value, total = float(sum(ln_p) + volume), sum(slope[1:], slope[0])
    if (earlier := search.data.earlier) is not None:
        value, total = value - earlier.value_at(state.phi), total + earlier.slope_at(state.phi)
    return _Marginal(value, total, curvature, np.array(slope))


@lru_cache
def points(k: int) -> np.ndarray:
    """(m, k) points with the mean, covariance and odd moments of the unit normal."""
    z = np.random.default_rng(0).standard_normal((max(FEWEST, k + 2), k))
    z = np.concatenate([z, -z])
    return z @ np.linalg.inv(np.linalg.cholesky(z.T @ z / len(z))).T


def random_signs(n: int, k: int) -> np.ndarray:
    """(m, n, k) a few points of each of n images: random signs, and their negatives.

    Products of two of them are on average those of the unit normal, and errors of the images, whose
    signs differ, cancel in the sum over images (Hutchinson 1990).
    """
    z = 2 * np.random.default_rng(0).integers(2, size=(n, PAIRS, k), dtype=np.int8) - 1
    return np.moveaxis(np.concatenate([z, -z], axis=1), 1, 0)


def _covariance(search: Search, state: State, frame: _Frame, joint: np.ndarray) -> np.ndarray:
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
        found = _marginal(few, there._replace(theta=there.theta + step), frame, z)
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
