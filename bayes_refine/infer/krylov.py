"""The covariance of shared unknowns from products with the true Hessian.

The block Hessian (:mod:`curvature`) has no elements between images.  A change of all images
together may undo the change of a shared unknown; the block Hessian, in which an image moves alone,
is then far too steep.  The true Hessian H is too large to be formed, but H·v is the change of the
gradient along v.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..util.large_arrays import release, room, slices
from .curvature import upward_root

MISSING = 1e-3  # of a variance, what a combination of columns must promise to be added
SLICE = 1 << 15  # unknowns whose columns are in memory at a time


def inverse_columns(
    product: Callable[[np.ndarray], np.ndarray],
    precondition: Callable[[np.ndarray], np.ndarray],
    size: int,
    s: int,
    most: int,
) -> np.ndarray:
    """X (size, s) ≈ H⁻¹E, where E selects the last s unknowns; their covariance is EᵀX.

    By block conjugate gradients: in the span of columns V, the best X is V(VᵀHV)⁻¹VᵀE.  V begins
    as PE, with P a guess at H⁻¹.  The residual is R = E − HX; to V are added those combinations of
    PR that promise more than ``MISSING`` of a variance, and so on.  EᵀX grows towards its limit,
    and its error is the square of that of X, so that few products suffice.

    Args:
        product: v (size,) → Hv.
        precondition: R (size, m) → PR, with P positive definite.
        most: products, at least s.
    """
    V, HV = room((max(most, s), size)), room((max(most, s), size))  # a column is a row here
    R = np.zeros((size, s))
    R[-s:] = np.eye(s)
    more = precondition(R)
    del R
    more, count = more @ _whitening(more[-s:]), 0  # so that VᵀP⁻¹V = 1, here and below
    while more.shape[1]:
        for v in more.T:
            V[count], HV[count] = v, product(v)
            count += 1
        release(V, HV)
        parts = slices(size, V, HV, size=SLICE)
        projected = sum(V[:count, part] @ HV[:count, part].T for part in parts)
        root = upward_root((projected + projected.T)[None] / 2)[0]
        best = root @ (root.T @ V[:count, -s:])
        R = _combined(HV[:count], -best)
        R[-s:] += np.eye(s)
        more, white = precondition(R), _whitening(V[:count, -s:].T @ best)
        promised, axes = np.linalg.eigh(white.T @ (R.T @ more) @ white)
        del R
        left = max(most - count, 0)
        enough = (promised > MISSING) & (np.arange(s)[::-1] < left)  # promised ascends
        more = more @ (white @ axes[:, enough] / np.sqrt(promised[enough]))
    return _combined(V[:count], best)


def _combined(columns: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(size, s) combinations of columns (count, size) with weights (count, s)."""
    parts = slices(columns.shape[1], columns, size=SLICE)
    return np.concatenate([columns[:, part].T @ weights for part in parts])


def block_solver(
    inverse: np.ndarray, coupling: np.ndarray, covariance: np.ndarray
) -> Callable[[np.ndarray], np.ndarray]:
    """R (n k + s, m) → the product with the inverse of a block Hessian.

    Args:
        inverse: (n, k, k) of the blocks. coupling: (n, k, s).
        covariance: (s, s) of the shared unknowns, the inverse of the Schur complement.
    """
    n, k, s = coupling.shape
    follow = (inverse @ coupling).reshape(n * k, s)

    def solve(right: np.ndarray) -> np.ndarray:
        image, shared = right[: n * k], right[n * k :]
        moved = covariance @ (shared - follow.T @ image)
        alone = inverse @ image.reshape(n, k, -1)
        return np.concatenate([alone.reshape(n * k, -1) - follow @ moved, moved])

    return solve


def _whitening(covariance: np.ndarray) -> np.ndarray:
    """W (s, s) with WᵀCW = 1."""
    return upward_root((covariance + covariance.T)[None] / 2)[0]
