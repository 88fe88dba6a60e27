"""How far posterior means are from the modes: half the third derivatives of ln p, contracted with
the covariance once and once more (Tierney & Kadane 1986).
"""

from __future__ import annotations

import numpy as np

from ..util.large_arrays import in_slices, release
from .curvature import IMAGES, upward_root
from .search import Look, Search, State

DIFFERENCE = 0.7  # posterior sd, step of second differences of slopes


def mean_less_mode(
    search: Search, state: State, here: Look, covariance: np.ndarray, usable: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Posterior mean less mode, (n, k) and (s,), to second order.

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
    (root,) = in_slices(
        lambda b, u: [upward_root(b) * u[:, None, None]], blocks, usable, size=IMAGES
    )
    columns = range(root.shape[2])
    alone = [bent(DIFFERENCE * root[:, :, c], np.zeros_like(state.phi))[0] for c in columns]
    release(root, pull)
    of_image, of_shared = (sum(x) for x in zip(*followed, strict=True))
    of_image = of_image * usable[:, None]
    of_shared = of_shared - np.einsum("nis,ni->s", pull, of_image)
    shared = _bounded(np.linalg.cholesky(covariance)[None], of_shared[None])[0]
    return _bounded(root, of_image + sum(alone)) - pull @ shared, shared


def _bounded(root, bent):
    """−½ W Wᵀ v (n, k) of W (n, k, k) and v (n, k), at most one sd along each column of W.

    Where a direction is nearly flat the expansion does not hold, and its shift means nothing.
    """
    along = np.clip(-0.5 * np.einsum("nij,ni->nj", root, bent), -1.0, 1.0)
    return np.einsum("nij,nj->ni", root, along)
