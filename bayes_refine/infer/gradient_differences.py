"""The block Hessian of a run from differences of gradients, and steps of the images alone by it.

Gradients are of all unknowns x = (n k + s,): the images' (n, k), and then the s shared ones.  All
images move at once, each up or down at random, so that contributions of the coupling between images
to a block average out instead of adding up (Hutchinson's trick), and a common shift of all images,
which may be fixed, is not tried.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .curvature import BlockHessian

DIFFERENCE = 1e-4  # step of unconstrained unknowns
Gradient = Callable[[np.ndarray], tuple[float, np.ndarray]]


def finite_differences(
    gradient_at: Gradient, x: np.ndarray, n: int, k: int, s: int, seed: int = 0
) -> BlockHessian:
    """The block Hessian at x from k + s + 1 gradients."""
    at = gradient_at(x)[1]
    blocks = _image_blocks(gradient_at, x, at, (n, k), seed)
    coupling, shared = np.zeros((n, k, s)), np.zeros((s, s))
    for c in range(s):
        change = gradient_at(x + DIFFERENCE * (np.arange(len(x)) == n * k + c))[1] - at
        coupling[:, :, c] = change[: n * k].reshape(n, k) / DIFFERENCE
        shared[:, c] = change[n * k :] / DIFFERENCE
    return BlockHessian(blocks, coupling, (shared + shared.T) / 2)


def _image_blocks(
    gradient_at: Gradient, x: np.ndarray, at: np.ndarray, shape: tuple[int, int], seed: int
) -> np.ndarray:
    """The blocks (n, k, k) at x from k gradients more than that at x."""
    (n, k), blocks = shape, np.zeros((*shape, shape[1]))
    sign = np.random.default_rng(seed).choice([-1.0, 1.0], n)
    for c in range(k):
        step = np.zeros((n, k))
        step[:, c] = DIFFERENCE * sign
        there = x.copy()
        there[: n * k] += step.ravel()
        blocks[:, :, c] = (gradient_at(there)[1] - at)[: n * k].reshape(n, k) / step[:, c, None]
    return (blocks + blocks.swapaxes(1, 2)) / 2


def images_alone(
    gradient_at: Gradient,
    x: np.ndarray,
    reach: np.ndarray,
    inverse_of: Callable[[np.ndarray], np.ndarray],
    steps: int,
) -> np.ndarray:
    """x after Newton's steps of every image by itself, the shared unknowns held.

    For images that are far from their modes, where others determine what they share: a search of
    all unknowns at once would shorten the steps of all images to what one of them allows.

    Args:
        reach: (n, k) longest step of each unknown; an image's longer step is shortened.
        inverse_of: blocks (n, k, k) → their inverses, positive definite.
        steps: of 1 + k gradients each.
    """
    for seed in range(steps):
        slope = gradient_at(x)[1]
        inverse = inverse_of(_image_blocks(gradient_at, x, slope, reach.shape, seed))
        step = -np.einsum("nij,nj->ni", inverse, slope[: reach.size].reshape(reach.shape))
        step /= np.maximum(1.0, np.max(np.abs(step) / reach, axis=1, keepdims=True))
        x = x.copy()
        x[: reach.size] += step.ravel()
    return x
