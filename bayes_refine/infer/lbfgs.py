"""L-BFGS with a preconditioner, for densities with cheap gradients and a Hessian without blocks."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ..util.large_arrays import release, stored

SUFFICIENT = 1e-4  # Armijo's fraction of the promised decrease
MEMORY = 30  # pairs (step, change of gradient) kept
SHORTEST_STEP = 1e-6


class Minimum(NamedTuple):
    """Where the search ended: x (n,), f, its gradient (n,), and the number of evaluations.

    ``promise`` is ½gᵀHg, the decrease that the quadratic model still promises.
    """

    x: np.ndarray
    value: float
    gradient: np.ndarray
    evaluations: int
    promise: float


def minimise(
    value_and_gradient: Callable[[np.ndarray], tuple[float, np.ndarray]],
    x: np.ndarray,
    precondition: Callable[[np.ndarray], np.ndarray],
    reach: np.ndarray,
    max_evaluations: int,
    tolerance: float,
) -> Minimum:
    """Minimise f (Nocedal & Wright 2006, algorithm 7.4) from x (n,).

    Args:
        precondition: g → H₀g, H₀ a positive definite guess at the inverse Hessian of the right
            scale, so that a step of one is tried first.
        reach: (n,) longest step of each unknown; a longer one is shortened as a whole.
        tolerance: stop when ½gᵀHg, the promised decrease, falls below ``tolerance`` (nats).
    """
    value, gradient = value_and_gradient(x)
    evaluations = 1
    pairs: deque[tuple[np.ndarray, np.ndarray, float]] = deque(maxlen=MEMORY)
    while True:
        direction = -_two_loops(gradient, pairs, precondition)
        if gradient @ direction >= 0:  # the pairs have become useless
            pairs.clear()
            direction = -precondition(gradient)
        promise = -0.5 * float(gradient @ direction)
        direction = direction / max(1.0, np.max(np.abs(direction) / reach))
        slope = float(gradient @ direction)
        if promise < tolerance or evaluations >= max_evaluations:
            break
        step, moved = 1.0, False
        while step > SHORTEST_STEP and evaluations < max_evaluations:
            trial = x + step * direction
            f, g = value_and_gradient(trial)
            evaluations += 1
            moved = bool(np.isfinite(f)) and f <= value + SUFFICIENT * step * slope
            if moved:
                break
            # minimum of the parabola through f, its slope, and the failed trial
            fit = -slope * step**2 / (2 * (f - value - slope * step)) if np.isfinite(f) else 0.0
            step = float(np.clip(fit, 0.1 * step, 0.5 * step))
        if not moved:
            break
        s, y = trial - x, g - gradient
        if s @ y > 1e-10 * (s @ s) ** 0.5 * (y @ y) ** 0.5:
            pairs.append((*stored(np.stack([s, y])), float(1 / (s @ y))))
        x, value, gradient = trial, f, g
    return Minimum(x, value, gradient, evaluations, promise)


def _two_loops(gradient, pairs, precondition):
    q, used = gradient.copy(), []
    for s, y, rho in reversed(pairs):
        a = rho * (s @ q)
        used.append(a)
        q = q - a * y
        release(y)
    q = precondition(q)
    if pairs:  # scaled by the latest step: the guess may be wrong by a common factor
        _, y, rho = pairs[-1]
        q = q / (rho * (y @ precondition(y)))
    for (s, y, rho), a in zip(pairs, reversed(used), strict=True):
        q = q + (a - rho * (y @ q)) * s
        release(s)
    return q


def bfgs(inverse: np.ndarray, step: np.ndarray, change: np.ndarray) -> np.ndarray:
    """The inverse curvature after an update with the change of the slope along a step."""
    curved = float(step @ change)
    if not curved > 0:
        return inverse
    turned = np.eye(len(step)) - np.outer(step, change) / curved
    return turned @ inverse @ turned.T + np.outer(step, step) / curved
