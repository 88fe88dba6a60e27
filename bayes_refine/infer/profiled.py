"""Weights of a model, trained through its likelihood with all other unknowns profiled out.

A model ``model(data, priors, weights)`` has weights w, any pytree of arrays, without a prior of its
own.  With θ̂ the images' unknowns and φ̂ the shared ones at their mode given w, by the envelope
theorem

    d ln p(y, θ̂, φ̂ | w)/dw = ∂ ln p(y, θ, φ | w)/∂w   at θ̂, φ̂,

so that no derivative of the search for the mode is needed.  An epoch is a step of Newton's method
for θ and φ, then one of Adam's (optax) for w on each batch of images in turn.  Images that are held
out say when to stop: their evidence given φ and w, their own unknowns integrated by Laplace.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from ..util.kept_programs import kept
from . import differences
from .curvature import BlockHessian, upward_root
from .density import Model, Site, density
from .images_alone import at_their_modes
from .search import Curvature, Search, State

RENEWED = 10  # epochs with one curvature
CHECKED = 10  # epochs between looks at the images that are held out
PATIENCE = 4  # looks without a new best one
SETTLING = 60  # Newton steps, at most, of images that are held out
CLOSE = 0.05  # posterior sd from their mode
STEP = 0.2  # of differences, prior sd of a weight
FOLLOWING = 3  # Newton steps of all unknowns after each of these


class Trained(NamedTuple):
    """What training found.

    Attributes:
        weights: the best. state: unknowns at these weights, of the images that trained them.
        epochs: until then. held: (looks, 2) epoch and evidence of the images held out, nats.
    """

    weights: Any
    state: State
    epochs: int
    held: np.ndarray


def train(
    search: Search,
    held: Search | None,
    weights: Any,
    log_prior: Callable[[Any], jax.Array],
    rate: float,
    epochs: int,
) -> Trained:
    """Train weights on some images until others are predicted no better.

    Args:
        search: of ``model, (data, priors, weights)``; begins at its start. held: of other images;
            None to take all epochs.
        rate: of Adam, falling to a tenth by a cosine.
        log_prior: ln p of the weights, but for a constant.
    """
    import optax

    n_parts = len(search.data.parts)
    schedule = optax.cosine_decay_schedule(rate, max(epochs * n_parts, 1), 0.1)
    adam = optax.adam(schedule)
    memory, slope_of = adam.init(weights), _compiled_slope(search.model, search.sites, log_prior)
    state = search.start
    curvature: Curvature | BlockHessian = differences.fisher
    resting = None if held is None else held.start
    looks: list[tuple[int, float]] = []
    best = weights, state, 0
    for epoch in range(epochs + 1):
        search = search.given(weights)
        here = search.look(state, curvature)
        curvature = differences.fisher if (epoch + 1) % RENEWED == 0 else here.block_hessian
        state = search.step(state, here).state
        if held is not None and resting is not None and epoch % CHECKED == 0:
            found, resting = log_evidence(held.given(weights), state.phi, resting)
            looks.append((epoch, float(found.sum())))
            if looks[-1][1] >= max(value for _, value in looks):
                best = weights, state, epoch
            elif epoch - best[2] > PATIENCE * CHECKED:
                break
        if epoch == epochs:
            break
        for args, where in search.batches():
            inside = state.theta[where], state.phi, search.weight[where]
            g = slope_of(*inside, n_parts, (*args[:-1], weights))
            if all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves(g)):
                change, memory = adam.update(g, memory, weights)
                weights = jax.tree.map(jnp.add, weights, change)
    if held is None:
        best = weights, state, epochs
    return Trained(*best, np.array(looks, float).reshape(-1, 2))


def precision(
    search: Search, state: State, weights: Any, log_prior: Callable[[Any], jax.Array]
) -> np.ndarray:
    """Curvature (k, k) of −ln p along the weights, all unknowns at their mode given the weights.

    By central differences of the envelope's slope.  Data only add to the prior's curvature: no
    direction has less.

    Args:
        state: near the mode at these weights.
        log_prior: of k independent numbers of unit sd, the weights in their order.
    """
    numbers, back = ravel_pytree(weights)
    flat = np.asarray(numbers)
    slope_of = _compiled_slope(search.model, search.sites, log_prior)
    n_parts = len(search.data.parts)

    def slope(numbers: np.ndarray) -> np.ndarray:
        here, there = search.given(back(jnp.asarray(numbers))), state
        for _ in range(FOLLOWING):
            there = here.step(there, here.look(there, differences.fisher)).state
        total = np.zeros(len(numbers))
        for args, where in here.batches():
            at = there.theta[where], there.phi, here.weight[where]
            total += np.asarray(ravel_pytree(slope_of(*at, n_parts, args))[0]) / n_parts
        return total

    rows = [
        (slope(flat + STEP * one) - slope(flat - STEP * one)) / (2 * STEP)
        for one in np.eye(len(flat))
    ]
    found = np.nan_to_num(np.array(rows), posinf=0.0, neginf=0.0)
    values, vectors = np.linalg.eigh((found + found.T) / 2)
    return (vectors * np.maximum(values, 1.0)) @ vectors.T


def draws_about(weights: Any, curvature: np.ndarray, count: int) -> list[Any]:
    """Draws of the weights from the normal law of a curvature (k, k), the same ones every time."""
    flat, back = ravel_pytree(weights)
    normal = np.random.default_rng(0).standard_normal((count, len(flat)))
    away = np.linalg.solve(np.linalg.cholesky(curvature).T, normal.T).T
    return [back(jnp.asarray(flat + one)) for one in away]


def settled(search: Search, steps: int = 40) -> State:
    """All unknowns at their mode, weights as they are."""
    state, here = search.start, search.look(search.start, differences.fisher)
    for k in range(steps):
        if max(here.steps.distance.max(), here.steps.shared_distance) < CLOSE:
            break
        state, slope, _ = search.step(state, here)
        here = search.look(state, here.block_hessian if k % 3 else differences.fisher, slope)
    return state


def log_evidence(
    search: Search, phi: np.ndarray, start: State | None = None
) -> tuple[np.ndarray, State]:
    """ln p(y_i | φ, w) of each image (n,), and the state with its unknowns at their mode.

    Laplace's integral over an image's unknowns, with the expected curvature at the mode.

    Args:
        phi: (s,) shared unknowns, held. start: of the images' unknowns.
    """
    start = (start or search.start)._replace(phi=phi)
    state, here = at_their_modes(search, start, differences.fisher, CLOSE, SETTLING)
    blocks = search.block_hessian(state, differences.fisher).blocks
    _, log_root = np.linalg.slogdet(upward_root(np.asarray(blocks)))
    k = state.theta.shape[1]
    evidence = here.slope.image + log_root + 0.5 * k * np.log(2 * np.pi)
    return np.where(search.weight > 0, evidence, 0.0), state


@lru_cache(maxsize=8)
def _compiled_slope(model: Model, sites: tuple[Site, ...], log_prior: Callable):
    """Slope of −ln p along the weights, from one of ``n_parts`` batches of images."""

    @kept
    def slope(theta, phi, weight, n_parts, args):
        def negative(weights):
            image, _ = density(model, sites, theta, phi, (*args[:-1], weights))
            return -n_parts * jnp.where(weight > 0, image, 0.0).sum() - log_prior(weights)

        return jax.grad(negative)(args[-1])

    return slope
