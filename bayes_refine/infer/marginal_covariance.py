"""The covariance of the shared unknowns, with the images integrated out."""

from __future__ import annotations

import numpy as np

from . import differences
from .curvature import WIDEST, no_wider, upward_inverse
from .marginal_density import Frame, Marginal, marginal_density, points
from .search import Look, Search, State

CLOSE = 0.1  # posterior sd, step of forward differences of slopes
MANY = 16  # batches, of which one says what the integrals add to the curvature
ENOUGH = 2048  # images that say it


def by_scatter(search: Search, state: State, density: Marginal) -> np.ndarray:
    """Of the scatter of images' slopes, and of the curvature of the priors.

    Near the mode of many images the scatter is the curvature of −ln p if the model is right
    (Berndt, Hall, Hall & Hausman 1974, Ann. Econ. Soc. Meas. 3, 653), and about right if not.  It
    is known wherever the density is.
    """
    known = search.own_curvature(state)
    if (earlier := search.data.earlier) is not None:
        known = known + earlier.curvature
    return upward_inverse((density.scatter + known)[None], np.zeros(1), np)[0]


def by_differences(search: Search, state: State, here: Look, frame: Frame) -> np.ndarray:
    """Of the joint density's curvature, and of what the integrals of some batches have besides,
    scaled to all.

    Points are made anew where slopes are compared: by those of one place the density falls too
    steeply away from it.

    Args:
        here: at the state, with the curvature there.
    """
    n, batches = search.data.size, len(search.data.parts)
    which = range(0, batches, max(MANY, batches * n // ENOUGH))
    few, rows = search.some_batches(which), np.arange(len(search.weight)).reshape(-1, n)[which]
    rows = rows.ravel()
    state = state._replace(theta=state.theta[rows], damping=state.damping[rows])
    of_all, frame = frame.usable.sum(), frame.of_images(rows)
    share = of_all / max(frame.usable.sum(), 1.0)
    z = points(state.theta.shape[1])
    joint = upward_inverse(here.steps.schur[None], np.zeros(1), np)[0]
    factor = np.linalg.cholesky(no_wider(joint, search.prior_sd(state)))

    def added(d):
        """Slope of the marginal density less that of the joint, the images following."""
        there = state._replace(theta=state.theta + frame.followed(d), phi=state.phi + d)
        there = there._replace(theta=there.theta + frame.newton(few.slope(there).g_image))
        here = few.look(there, differences.exact_blocks)
        following = np.einsum("nks,nk->s", frame.pull, here.slope.g_image)
        anew = Frame.of(few, here, frame.usable)._replace(pull=frame.pull)
        found = marginal_density(few, there, anew, z)
        return found.slope - (here.slope.g_shared - following)

    unmoved = added(np.zeros(len(factor)))
    more = np.array([added(d) - unmoved for d in CLOSE * factor.T]) @ factor * (share / CLOSE)
    values, vectors = np.linalg.eigh(np.eye(len(factor)) + (more + more.T) / 2)
    factor = factor @ vectors / np.sqrt(np.maximum(values, WIDEST**-2))
    return factor @ factor.T
