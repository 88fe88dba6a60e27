"""The MAP of a run whose images are coupled, for example by true intensities integrated out.

The Hessian then has elements between images, and :mod:`newton` does not apply.  But each pair of
images shares few reflections, so that the block Hessian (:mod:`curvature`) approximates the
Hessian; L-BFGS learns the rest from gradients.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..util.kept_programs import kept
from ..util.progress import SILENT, Listener
from ..util.status import settled
from .curvature import BlockHessian, no_wider
from .density import (
    Model,
    Site,
    density,
    find_sites,
    flatten,
    observed_density,
    prior_density,
    unflatten,
)
from .gradient_differences import DIFFERENCE, finite_differences, images_alone
from .krylov import block_solver, inverse_columns
from .laplace import Fit
from .lbfgs import Minimum, bfgs, minimise

REACH = 0.5  # longest step of each unknown, in prior sd
WITHIN = 0.5  # posterior sd of an image's unknowns, step of second differences of the gradient
ALONG = 1e-6  # step along a vector in prior sd; flat directions ask for less than ``DIFFERENCE``


class Climb(NamedTuple):
    """One stage of a fit: renew the frozen nodes and the curvature, then climb.

    A climb takes at most ``evaluations`` of the gradient, and ends where the quadratic model
    promises less than ``tolerance`` nats, of up to ``TOGETHER`` images; of more, in proportion.
    The coupling of images and shared unknowns is left out of the curvature where it would mislead,
    far from the mode.  Before the climb each image takes ``alone`` Newton's steps by itself.
    """

    evaluations: int
    tolerance: float
    coupled: bool = True
    alone: int = 0


STAGES = (Climb(25, 100.0, coupled=False), Climb(35, 10.0), Climb(50, 1.0))
# Then the nodes are renewed alone.  They hold back a scale that all images have in common: each
# time it moves on by a part of its way to the mode, until a climb ends where it began.
LAST = Climb(400, 1e-3)
RENEWALS, STILL = 20, 0.02  # of the nodes at most; sd by which no shared unknown moves any more
TOGETHER = 1000  # images whose search ends at these promises
DAMPING = 0.1  # of the curvature that is the preconditioner


def coupled_fit(
    model: Model,
    obs: Any,
    priors: Any,
    init: dict[str, np.ndarray],
    refresh: Callable[[Any, dict[str, np.ndarray]], Any],
    stages: Sequence[Climb] = STAGES,
    progress: Listener = SILENT,
    parts: Callable[[Any], Iterable[Any]] | None = None,
) -> tuple[Fit, Any]:
    """Climb to the joint MAP of a model of ``(obs, priors)``, and take its curvature there.

    Args:
        init: start by site; sites that are absent start at the prior mean.
        refresh: (obs, values by site) → obs with its frozen part (quadrature nodes) renewed.
        progress: updated at every evaluation of the gradient.
        parts: obs → several obs whose ln p of observations are summed, one in memory at a time; by
            default ``obs`` is evaluated whole.

    Returns:
        The fit, and the last ``obs``.  Covariances of the shared unknowns, and those of an image
        with the shared unknowns, are of the true Hessian; ``fit.coupling`` is −A_i·Cov(θ_i, φ)·
        Cov(φ)⁻¹ with A_i the ``fit.image_precision``.  The covariance of an image given the shared
        unknowns, A_i⁻¹, is with all other images held.

    Raises:
        ValueError: JAX is in single precision.
    """
    if jnp.result_type(float) != jnp.float64:
        raise ValueError("a coupled fit needs double precision: set jax_enable_x64")
    sites, values = find_sites(model, (obs, priors), init)
    flat, unravel = ravelled(sites, values)
    objective = _objective(model, sites, parts)
    x, evaluations = np.array(flat), 0
    many = max(1.0, len(unravel(x)[0]) / TOGETHER)
    count = itertools.count(1)

    def gradient_at(x):
        theta, phi = unravel(x)
        value, (by_image, by_shared) = objective(theta, phi, obs, priors)
        progress.update(None, f"gradient {next(count)}: ln p = {-float(value):.0f}")
        return float(value), np.concatenate([np.ravel(by_image), by_shared])

    prior_sd = _prior_sd(model, sites, unravel, x, (obs, priors))
    sizes = _sizes(unravel, x)

    def climbed(x, precondition, climb: Climb) -> Minimum:
        limits = climb.evaluations, climb.tolerance * many
        return minimise(gradient_at, x, precondition, REACH * prior_sd, *limits)

    values_at = kept(partial(unflatten, sites))

    def renewed():
        return refresh(obs, values_at(*unravel(x)))

    reach = REACH * prior_sd[: x.size - sizes[2]].reshape(sizes[:2])
    upright = partial(_positive_inverse, damping=0.0)
    for stage in stages:
        obs = renewed()
        x = images_alone(gradient_at, x, reach, upright, stage.alone)
        block_hessian = finite_differences(gradient_at, x, *sizes)
        precondition, sd = _preconditioner(block_hessian, stage.coupled)
        last = climbed(x, precondition, stage)
        x, evaluations = last.x, evaluations + last.evaluations
    for _ in range(RENEWALS):
        obs = renewed()
        last = climbed(x, precondition, LAST)
        far = np.max(np.abs(last.x - x)[-len(sd) :] / sd)
        x, evaluations = last.x, evaluations + last.evaluations
        if far < STILL:
            break
    block_hessian = finite_differences(gradient_at, x, *sizes)
    precondition, _ = _preconditioner(block_hessian)
    last = climbed(x, precondition, LAST)
    x, evaluations = last.x, evaluations + last.evaluations
    theta, phi = unravel(x)

    def product(v):
        step = ALONG / np.max(np.abs(v) / prior_sd)
        return (gradient_at(x + step * v)[1] - last.gradient) / step

    curved = _covariances(product, block_hessian, prior_sd, next(count) // 3)
    # where the true Hessian is flatter than the block Hessian, the search has ended too early
    step = np.clip(curved.newton_step(last.gradient), -REACH * prior_sd, REACH * prior_sd)
    there = climbed(x + step, precondition, LAST)
    if there.value < last.value:
        last, (theta, phi) = there, unravel(there.x)
    return _fit(sites, (theta, phi), curved, last, evaluations, LAST.tolerance * many), obs


def at_marginal_mode(
    fit: Fit,
    model: Model,
    obs: Any,
    priors: Any,
    parts: Callable[[Any], Iterable[Any]] | None = None,
    seed: int = 0,
    progress: Listener = SILENT,
    shift: np.ndarray | float = 0.0,
) -> Fit:
    """The fit with its shared unknowns at the mode of their marginal density.

    At the joint mode each image's unknowns are fitted to the residuals that determine the errors,
    which come out too small (``marginal``).  With the images integrated out by Laplace,

        ln p(φ) = ln p(θ̂(φ), φ) − ½ Σ_i ln |A_i|,

    to whose mode quasi-Newton steps lead (BFGS), halved where the density falls by the slopes at
    their ends; images follow.  The slope of the last term, ½ Σ_i tr(A_i⁻¹ ∂A_i), is taken from
    second differences of the gradient along the columns of A_i^{−½} at the joint mode, up or down
    at random in each image as in :mod:`gradient_differences`.

    Args:
        fit: of :func:`coupled_fit`. model, priors, parts: as it took them. obs: that it returned.
        seed: of the signs.
        progress: updated at each step.
        shift: (s,) where the search begins, from the joint mode.
    """
    objective = _objective(model, fit.sites, parts)
    n, k = fit.image.shape
    inverse_blocks = np.linalg.inv(fit.image_precision)
    sign = np.random.default_rng(seed).choice([-1.0, 1.0], (k, n, 1))
    along = WITHIN * sign * np.moveaxis(np.linalg.cholesky(inverse_blocks), 2, 0)
    follow = -inverse_blocks @ fit.coupling

    def slopes(image, shared) -> list[np.ndarray]:
        return [np.asarray(x) for x in objective(image, shared, obs, priors)[1]]

    def marginal(image, shared) -> np.ndarray:
        """(s,) slope of −ln p along the shared unknowns, the images integrated out."""
        at = slopes(image, shared)
        total = [np.array(x) for x in at]
        for step in along:
            sides = slopes(image + step, shared), slopes(image - step, shared)
            for x, up, down, here in zip(total, *sides, at, strict=True):
                x += 0.5 * (up + down - 2 * here) / WITHIN**2
        return total[1] + np.einsum("nks,nk->s", follow, total[0])

    shift = shift + np.zeros(fit.shared.shape)
    image, shared, inverse = fit.image + follow @ shift, fit.shared + shift, fit.shared_covariance
    slope = marginal(image, shared)
    step = -inverse @ slope
    for _ in range(RENEWALS):
        far = np.sqrt(max(-slope @ step, 0.0))
        progress.update(None, f"{far:.2f} sd to the marginal mode of what the images share")
        if far < STILL:
            break
        there = marginal(image + follow @ step, shared + step)
        if not (slope + there) @ step <= 0:
            step = step / 2
            continue
        inverse = bfgs(inverse, step, there - slope)
        image, shared, slope = image + follow @ step, shared + step, there
        step = -inverse @ slope
    return replace(fit, image=image, shared=shared)


def _objective(model: Model, sites: tuple[Site, ...], parts):
    return compiled_objective(model, sites) if parts is None else in_parts(model, sites, parts)


def _prior_sd(model, sites, unravel, x, args) -> np.ndarray:
    """(n,) sd of the priors, which are independent: their Hessian is diagonal."""

    def log_prior(theta, phi):
        return sum(x.sum() for x in jax.tree.leaves(prior_density(model, sites, theta, phi, args)))

    slope = jax.jit(jax.grad(log_prior, (0, 1)))
    change = [
        np.concatenate([np.ravel(part) for part in slope(*unravel(at))])
        for at in (x - DIFFERENCE, x + DIFFERENCE)
    ]
    return np.sqrt(2 * DIFFERENCE / np.maximum(change[0] - change[1], 1e-12))


def ravelled(sites: tuple[Site, ...], values):
    """All unknowns as one vector (n k + s,), and the function that splits it: (n, k) and (s,)."""
    theta, phi = (np.asarray(a) for a in flatten(sites, values))
    n, k = theta.shape

    def unravel(x):
        return x[: n * k].reshape(n, k), x[n * k :]

    return np.concatenate([theta.ravel(), phi]), unravel


def _sizes(unravel, x) -> tuple[int, int, int]:
    theta, phi = unravel(x)
    return (*theta.shape, len(phi))


@lru_cache(maxsize=8)
def compiled_objective(model: Model, sites: tuple[Site, ...]):
    """(theta, phi, obs, priors) → −ln p and its slope along both, compiled once for a model."""

    def objective(theta, phi, obs, priors):
        return -sum(part.sum() for part in density(model, sites, theta, phi, (obs, priors)))

    return kept(jax.value_and_grad(objective, argnums=(0, 1)))


def in_parts(model: Model, sites: tuple[Site, ...], parts: Callable[[Any], Iterable[Any]]):
    """As :func:`compiled_objective`, summed over parts of the observations."""
    likelihood, prior = _compiled_terms(model, sites)

    def objective(theta, phi, obs, priors):
        total = None
        for part in parts(obs):
            found = likelihood(theta, phi, part, priors)
            if total is None:
                total = jax.tree.map(np.array, found)
            else:
                jax.tree.map(lambda sum, x: np.add(sum, x, out=sum), total, found)
        return jax.tree.map(np.add, total, prior(theta, phi, part, priors))

    return objective


@lru_cache(maxsize=8)
def _compiled_terms(model: Model, sites: tuple[Site, ...]):
    """−ln p of the observations and −ln p of the priors, each with its slopes."""

    def of_priors(theta, phi, obs, priors):
        parts = prior_density(model, sites, theta, phi, (obs, priors))
        return -sum(x.sum() for x in parts)

    def of_observations(theta, phi, obs, priors):
        return -sum(x.sum() for x in observed_density(model, sites, theta, phi, (obs, priors)))

    return tuple(kept(jax.value_and_grad(f, argnums=(0, 1))) for f in (of_observations, of_priors))


def _positive_inverse(matrices: np.ndarray, damping: float) -> np.ndarray:
    """Inverse of |H| + damping·diag|H|, |H| with its eigenvalues made positive, (n, k, k).

    A diagonal element far smaller than the same element of other blocks means that ln p is near an
    inflection; a step would be far too long.  The damping therefore takes at least the median.
    """
    diagonal = np.abs(np.diagonal(matrices, axis1=1, axis2=2))
    scale = np.sqrt(np.maximum(diagonal, np.median(diagonal, axis=0)) + 1e-12)
    scale = scale[:, :, None] * scale[:, None]
    values, vectors = np.linalg.eigh(matrices / scale)
    inverse = 1 / (np.maximum(np.abs(values), 1e-6) + damping)
    return np.einsum("nij,nj,nkj->nik", vectors, inverse, vectors) / scale


def _preconditioner(
    block_hessian: BlockHessian, coupled: bool = True
) -> tuple[Callable[[np.ndarray], np.ndarray], np.ndarray]:
    """The product with the inverse of a damped block Hessian, and the sd of the shared unknowns.

    Args:
        coupled: else of its blocks and of the diagonal of the shared unknowns alone.
    """
    blocks, coupling, shared = map(np.asarray, block_hessian)
    inverse = _positive_inverse(blocks, DAMPING)
    if coupled:
        shared = shared - np.einsum("nks,nkt->st", coupling, inverse @ coupling)
    else:
        coupling, shared = np.zeros_like(coupling), np.diag(np.diag(shared))
    covariance = _positive_inverse(shared[None], DAMPING)[0]
    solve = block_solver(inverse, coupling, covariance)
    return lambda gradient: solve(gradient[:, None])[:, 0], np.sqrt(np.diag(covariance))


class _Covariances(NamedTuple):
    """Inverse blocks (n, k, k); coupling (n, k, s) and covariance (s, s) as ``laplace.Fit`` has."""

    inverse: np.ndarray
    coupling: np.ndarray
    shared: np.ndarray

    def newton_step(self, gradient: np.ndarray) -> np.ndarray:
        """(n k + s,) to the minimum of the parabola that has this gradient."""
        n, k, _ = self.coupling.shape
        g = gradient[: n * k].reshape(n, k)
        follow = -self.inverse @ self.coupling
        shared = -self.shared @ (gradient[n * k :] + np.einsum("nks,nk->s", follow, g))
        image = follow @ shared - np.einsum("nij,nj->ni", self.inverse, g)
        return np.concatenate([image.ravel(), shared])


def _covariances(product, block_hessian: BlockHessian, prior_sd, most: int) -> _Covariances:
    """Of the true Hessian, by at most so many products of it with a vector."""
    coupling = np.asarray(block_hessian.coupling)
    n, k, s = coupling.shape
    inverse = _positive_inverse(np.asarray(block_hessian.blocks), 0.0)
    schur = block_hessian.shared - np.einsum("nks,nkt->st", coupling, inverse @ coupling)
    precondition = block_solver(inverse, coupling, _positive_inverse(schur[None], 0.0)[0])
    columns = inverse_columns(product, precondition, n * k + s, s, most)
    shared = (columns[n * k :] + columns[n * k :].T) / 2
    follow = np.linalg.solve(shared, columns[: n * k].T).T.reshape(n, k, s)  # ∂θ/∂φ
    return _Covariances(
        inverse, -np.linalg.solve(inverse, follow), no_wider(shared, prior_sd[n * k :])
    )


def _fit(sites, at, curved: _Covariances, last: Minimum, evaluations, tolerance) -> Fit:
    theta, phi = at
    n, k = theta.shape
    by_image = last.gradient[: n * k].reshape(n, k)
    distance = np.einsum("ni,nij,nj->n", by_image, curved.inverse, by_image)
    distance = np.sqrt(np.maximum(distance, 0))
    by_shared = last.gradient[n * k :]
    at_mode = (distance < 0.3) & (last.promise < 10 * tolerance)
    return Fit(
        sites=sites,
        image=theta,
        shared=phi,
        image_precision=np.linalg.inv(curved.inverse),
        coupling=curved.coupling,
        shared_covariance=curved.shared,
        distance=distance,
        shared_distance=float(np.sqrt(max(by_shared @ curved.shared @ by_shared, 0.0))),
        status=settled(at_mode),
        iterations=evaluations,
        log_density=-last.value,
    )
