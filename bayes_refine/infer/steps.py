"""Newton's steps from slope and block Hessian: of each image, and of shared unknowns."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..util.large_arrays import in_slices
from .curvature import IMAGES, BlockHessian, eigen, upward_inverse

LEAST = 0.2  # of the expected curvature along a step, that is found there


class Slope(NamedTuple):
    """ln p of n images and the slope of −ln p.

    Attributes:
        image: (n,) ln p of each image; shared: of the shared unknowns' priors.
        g_image: (n, k); g_each: (n, s) of each image along the shared unknowns; g_prior: (s,) of
            the shared unknowns' priors.
    """

    image: np.ndarray
    shared: float
    g_image: np.ndarray
    g_each: np.ndarray
    g_prior: np.ndarray

    @property
    def log_density(self) -> float:
        """ln p."""
        return float(self.image.sum() + self.shared)

    @property
    def g_shared(self) -> np.ndarray:
        """(s,) slope of −ln p along the shared unknowns."""
        return self.g_each.sum(0) + self.g_prior

    def rows(self, taken: np.ndarray, other: Slope) -> Slope:
        """The images ``taken`` (n,) of this slope, and the others of another one."""
        at = taken[:, None]
        return self._replace(
            image=np.where(taken, self.image, other.image),
            g_image=np.where(at, self.g_image, other.g_image),
            g_each=np.where(at, self.g_each, other.g_each),
        )


class Steps(NamedTuple):
    """Newton's steps uphill, damped, and distances to the mode.

    An image whose steps have failed is damped, and follows the shared unknowns less; so it does in
    their slope, curvature and distance.

    Attributes:
        alone: (n, k) of each image with the shared unknowns held; distance: (n,) its length, in
            posterior sd, were it not damped.
        pull: (n, k, s), −∂θ̂_i/∂φ: how far the optimum of image i moves when a shared unknown
            changes.
        shared: (s,) of the shared unknowns, the images following; shared_distance: its length, in
            posterior sd, were it not damped.
        g_schur, schur: (s,) and (s, s), slope and curvature of −ln p along the shared unknowns,
            the images following.
    """

    alone: np.ndarray
    pull: np.ndarray
    distance: np.ndarray
    shared: np.ndarray
    shared_distance: float
    g_schur: np.ndarray
    schur: np.ndarray


def steps_of(
    slope: Slope,
    block_hessian: BlockHessian,
    damping: np.ndarray | float = 0.0,
    shared_damping: float = 0.0,
) -> Steps:
    """Steps of (|H| + damping·|diag H|)⁻¹; ``damping`` (n,) of the images."""
    blocks, coupling, shared = (np.asarray(x, float) for x in block_hessian)
    schur, g_schur = shared.copy(), slope.g_shared.copy()

    def of_images(blocks, coupling, g_image, damping):
        values, vectors = eigen(blocks, np)
        turned = np.swapaxes(vectors, 1, 2)
        g, across = (turned @ g_image[:, :, None])[..., 0], turned @ coupling
        easier = 1 / (values + damping[:, None])
        weighed = easier[..., None] * across
        schur[...] -= np.einsum("nks,nkt->st", across, weighed)
        g_schur[...] -= np.einsum("nks,nk->s", weighed, g)
        alone = -(vectors @ (easier * g)[..., None])[..., 0]
        return alone, vectors @ weighed, np.sqrt(np.sum(g * g / values, axis=1))

    damping = np.broadcast_to(damping, len(blocks))
    alone, pull, distance = in_slices(
        of_images, blocks, coupling, slope.g_image, damping, size=IMAGES
    )
    inverse = upward_inverse(np.stack([schur, schur]), np.array([0.0, shared_damping]), np)
    return Steps(
        alone=alone,
        pull=pull,
        distance=distance,
        shared=-inverse[1] @ g_schur,
        shared_distance=float(np.sqrt(max(g_schur @ inverse[0] @ g_schur, 0.0))),
        g_schur=g_schur,
        schur=schur,
    )


def with_secant(
    block_hessian: BlockHessian, steps: Steps, shared: np.ndarray, there: Slope
) -> BlockHessian:
    """The curvature, corrected along the shared unknowns by the slope after a step of theirs.

    This is the update of BFGS, damped (Powell 1978): along the step the curvature falls to
    ``LEAST`` of what it was, or more.

    Args:
        steps: what the curvature led to. shared: (s,) step; the images followed by ``steps.pull``.
        there: slope after the step.
    """
    g_schur = there.g_shared - np.einsum("nks,nk->s", steps.pull, there.g_image)
    curved, change = steps.schur @ shared, g_schur - steps.g_schur
    expected, found = float(shared @ curved), float(shared @ change)
    if not expected > 0 or not np.all(np.isfinite(change)):
        return block_hessian
    if found < LEAST * expected:
        share = (1 - LEAST) * expected / (expected - found)
        change, found = share * change + (1 - share) * curved, LEAST * expected
    more = np.outer(change, change) / found - np.outer(curved, curved) / expected
    return block_hessian._replace(shared=block_hessian.shared + more)
