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
from functools import lru_cache
from typing import Any

import numpy as np

from ..util.progress import SILENT, Listener
from ..util.status import Kind
from . import differences
from .curvature import WIDEST, upward_inverse, upward_root
from .density import Model
from .laplace import Fit
from .search import Look, Search, State, fit_at

DIFFERENCE = 0.7  # posterior sd, step of second differences of slopes, for means less modes
CLOSE = 0.1  # posterior sd, step of forward differences of slopes, for the curvature at the mode
FAR = 1.0  # posterior sd; the points miss the mode of an image that is further from it
FEWEST = 16  # pairs of points, for a noise of less than a hundredth of a posterior sd
SETTLING = 5  # Newton steps of the images at the end


def marginal_fit(
    model: Model,
    *args: Any,
    fit: Fit,
    max_iterations: int = 10,
    tolerance: float = 0.2,
    progress: Listener = SILENT,
) -> Fit:
    """Move the shared unknowns of a joint MAP to their marginal mode.

    Newton steps with the joint density's curvature and the marginal's slope, halved where the
    marginal density falls; each image follows at its own mode.  The covariance of the shared
    unknowns is of the marginal density's curvature; its difference from the joint density's
    curvature is measured on the first batch of images and scaled to all.  The result also has the
    posterior means less the modes.

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
        progress.say(f"what the images share stays at the joint mode: {error}")
        return fit


def _marginal_fit(model, args, fit: Fit, max_iterations, tolerance, progress) -> Fit:
    search = Search(model, args, fit.values())
    usable = search.weight * search.data.padded(1.0 * (fit.status == Kind.CONVERGED))
    state = search.start._replace(damping=np.zeros(len(usable)), shared_damping=0.0)
    here = search.look(state, differences.exact)
    best, slope = _marginal(search, state, here, usable)
    step, far = _step(here, slope)
    iteration = 0
    while far >= tolerance and iteration < max_iterations:
        iteration += 1
        there = _moved(search, state, here.steps.alone - here.steps.pull @ step, step, usable)
        look = search.look(there, differences.exact)
        value, its_slope = _marginal(search, there, look, usable)
        progress.update(
            None, f"marginal mode, step {iteration}: ln p {value:.2f}, it was {best:.2f}"
        )
        if not value >= best or np.max(usable * look.steps.distance) > FAR:
            step = step / 2
            continue
        state, here, best, slope = there, look, value, its_slope
        step, far = _step(here, slope)
    for _ in range(SETTLING):  # for images that lag behind the shared unknowns
        state = _moved(search, state, here.steps.alone - here.steps.pull @ step, step, usable)
        here, step = search.look(state, differences.exact), np.zeros_like(step)
        if np.max(usable * here.steps.distance) < tolerance / 2:
            break
    found = fit_at(search, state, here, fit.iterations + iteration, tolerance)
    covariance = _covariance(search, state, here, found.shared_covariance, usable)
    image_shift, shared_shift = _shift(search, state, here, covariance, usable)
    n = search.n_images
    return replace(
        found,
        shared_covariance=covariance,
        shared_distance=far,
        status=np.where(usable[:n] > 0, found.status, fit.status),
        image_shift=image_shift[:n],
        shared_shift=shared_shift,
    )


def _moved(search: Search, state: State, image, shared, usable) -> State:
    """A state after a step, none longer than a prior sd; unusable images stay."""
    r_image, r_shared = search.reach
    image = np.clip(image, -r_image, r_image) * usable[:, None]
    return state._replace(
        theta=state.theta + image, phi=state.phi + np.clip(shared, -r_shared, r_shared)
    )


def _step(here: Look, slope: np.ndarray) -> tuple[np.ndarray, float]:
    """Newton's step uphill from the marginal's slope (s,), and its length in posterior sd."""
    step = -upward_inverse(here.steps.schur[None], np.zeros(1), np)[0] @ slope
    return step, float(np.sqrt(max(-slope @ step, 0.0)))


def _marginal(search: Search, state: State, here: Look, usable) -> tuple[float, np.ndarray]:
    """Marginal ln p but for a constant, and the slope of −ln p (s,)."""
    mode = state.theta + here.steps.alone * usable[:, None]
    pull = here.steps.pull * usable[:, None, None]
    # Cholesky's factors change little where curvature does
    roots = np.linalg.cholesky(upward_inverse(here.block_hessian.blocks, np.zeros(len(usable)), np))
    volume = float(usable @ np.linalg.slogdet(roots)[1])
    roots *= usable[:, None, None]
    z, share, weight = points(mode.shape[1]), 1 / len(search.data.parts), search.weight
    parts = search.each(
        differences.integral,
        (search.model, search.sites, search.apart),
        lambda w: (mode[w], state.phi, roots[w], pull[w], weight[w], share, z),
    )
    ln_p, slope = zip(*parts, strict=True)
    return float(sum(ln_p)) + volume, sum(slope[1:], slope[0])


@lru_cache
def points(k: int) -> np.ndarray:
    """(m, k) points with the mean, covariance and odd moments of the unit normal."""
    z = np.random.default_rng(0).standard_normal((max(FEWEST, k + 2), k))
    z = np.concatenate([z, -z])
    return z @ np.linalg.inv(np.linalg.cholesky(z.T @ z / len(z))).T


def _shift(search: Search, state: State, here: Look, covariance, usable):
    """Posterior mean less mode, (n, k) and (s,), to second order: half the third derivatives of
    ln p, contracted with the covariance once and once more (Tierney & Kadane 1986).

    Second differences of the slope are taken along the shared unknowns, the images following, and
    along the unknowns of all images at once, which are independent given the shared ones.  The
    effect of the images' differences on the shared unknowns is in the marginal mode already.
    """
    pull, blocks = here.steps.pull, here.block_hessian.blocks

    def bent(image, shared):
        """Slope of −ln p on both sides of the state less twice the slope at it, (n, k) and (s,)."""
        sides = [
            search.slope(state._replace(theta=state.theta + x, phi=state.phi + y))
            for x, y in ((image, shared), (-image, -shared))
        ]
        at = here.slope
        return (
            sum(side.g_image - at.g_image for side in sides) / DIFFERENCE**2,
            sum(side.g_shared - at.g_shared for side in sides) / DIFFERENCE**2,
        )

    followed = [bent(-pull @ d, d) for d in DIFFERENCE * np.linalg.cholesky(covariance).T]
    roots = DIFFERENCE * upward_root(blocks) * usable[:, None, None]
    alone = [bent(x, np.zeros_like(state.phi))[0] for x in np.moveaxis(roots, 2, 0)]
    of_image, of_shared = (sum(x) for x in zip(*followed, strict=True))
    of_image = of_image * usable[:, None]
    shared = -0.5 * covariance @ (of_shared - np.einsum("nis,ni->s", pull, of_image))
    image = -0.5 * np.linalg.solve(blocks, (of_image + sum(alone))[..., None])[..., 0]
    return image * usable[:, None] - pull @ shared, shared


def _covariance(search: Search, state: State, here: Look, joint: np.ndarray, usable) -> np.ndarray:
    """Covariance of the shared unknowns: of ``joint``'s curvature and that of the integrals."""
    few, n = search.first_batch(), search.data.size
    share = usable.sum() / max(usable[:n].sum(), 1.0)
    state = state._replace(theta=state.theta[:n], damping=state.damping[:n])
    pull, factor = usable[:n, None, None] * here.steps.pull[:n], np.linalg.cholesky(joint)

    def added(d):
        """Slope of the marginal density less that of the joint, the images following."""
        there = state._replace(theta=state.theta - pull @ d, phi=state.phi + d)
        look = few.look(there, differences.exact)
        return _marginal(few, there, look, usable[:n])[1] - look.steps.g_schur

    here_added = added(np.zeros(len(joint)))
    rows = np.array([added(d) - here_added for d in CLOSE * factor.T]) @ factor
    rows *= share / CLOSE
    values, vectors = np.linalg.eigh(np.eye(len(joint)) + (rows + rows.T) / 2)
    factor = factor @ vectors / np.sqrt(np.maximum(values, WIDEST**-2))
    return factor @ factor.T
