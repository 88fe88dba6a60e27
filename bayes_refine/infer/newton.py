"""The joint MAP of a run through its arrow-shaped Hessian.

A block for each image, a narrow border for what the images share, exactly from
Hessian–vector products of the NumPyro density itself.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .density import Model, Site, density, find_sites, flatten, location_scale, prior_density
from .laplace import Fit


def map_fit(
    model: Model,
    *args: Any,
    init: dict[str, np.ndarray] | None = None,
    max_iterations: int = 60,
    tolerance: float = 1e-2,
    stragglers: float = 0.0,
    exact: bool = True,
    progress: Callable[[str], None] | None = None,
) -> Fit:
    """The joint MAP of a model with its Laplace curvature.

    Damped Fisher scoring, then Newton, through the arrow Hessian (per-image blocks, Schur
    complement on the shared unknowns).  Directions of negative curvature are followed upwards
    (|eigenvalue|); no step goes beyond one prior sd; each image has its own damping and keeps
    its old place when a step does not help it, so ln p never falls and one bad image does not
    hold up the rest.

    Args:
        model: NumPyro program; ``args``: what it is called with.
        init: start by site (constrained); the prior mean where absent.
        tolerance: stop when every image and the shared unknowns are nearer to the mode than
            this many posterior sd.
        stragglers: share of the images that need not be, nor the shared unknowns then: for a
            fit that will be repeated.
        exact: end with Newton steps and the exact Hessian; else with Fisher's.
        progress: called with one line a step.

    Raises:
        InputError: the model has no latent site, or one in a plate other than ``image``.
    """
    sites, start = find_sites(model, args, init or {})
    theta, phi = flatten(sites, start)
    step = _compiled_step(model, sites, _fisher_curvature)
    newton = _compiled_step(model, sites, _exact_curvature)
    damping = jnp.full(len(theta), 1e-3), jnp.asarray(1e-3)
    state = _State(theta, phi, *damping, _compiled_reach(model, sites)(theta, phi, args))
    for iteration in range(max_iterations + 1):
        moved, local = step(state, args)
        images_far = float(jnp.quantile(local.distance, 1 - stragglers))
        far = images_far if stragglers else max(images_far, float(local.shared_distance))
        if progress is not None:
            progress(f"step {iteration}: ln p {float(local.log_density):.2f}, {far:.2g} sd to go")
        if far < tolerance or iteration == max_iterations:
            break
        if exact and images_far < 1.0:  # near the mode the exact Hessian converges quadratically
            step = newton
        state = moved
    if exact and step is not newton:
        _, local = newton(state, args)
    return _fit(sites, state, local, iteration, tolerance)


class Arrow(NamedTuple):
    """Negative Hessian of ln p: blocks (n, k, k), border (n, k, s), shared (s, s)."""

    blocks: jax.Array
    border: jax.Array
    shared: jax.Array


class _State(NamedTuple):
    """Where the search is: unknowns (n, k) and (s,), a damping for each, and how far one step
    may go (k,) and (s,): one prior sd.
    """

    theta: jax.Array
    phi: jax.Array
    damping: jax.Array
    shared_damping: jax.Array
    reach: tuple[jax.Array, jax.Array]


class _Local(NamedTuple):
    """The density at one point: ln p, its slope and curvature, distances to the mode in sd."""

    log_density: jax.Array
    gradient: tuple[jax.Array, jax.Array]
    arrow: Arrow
    distance: jax.Array
    shared_distance: jax.Array


def _columns_of(product, theta, phi):
    """A linear map along each of the images' unknowns, all images at once, then the shared ones."""
    k, s = theta.shape[1], phi.shape[0]
    eye = jnp.eye(k + s, dtype=theta.dtype)
    return jax.lax.map(
        lambda e: product(jnp.broadcast_to(e[0], theta.shape), e[1]), (eye[:, :k], eye[:, k:])
    )


def _hessian(negative, theta, phi) -> Arrow:
    """Exact arrow Hessian of a scalar function, one Hessian–vector product a column."""
    k = theta.shape[1]
    _, product = jax.linearize(jax.grad(negative, argnums=(0, 1)), theta, phi)
    image, shared = _columns_of(product, theta, phi)
    return Arrow(jnp.moveaxis(image[:k], 0, 2), jnp.moveaxis(image[k:], 0, 2), shared[k:])


def _exact_curvature(model, sites, theta, phi, args) -> Arrow:
    def negative(t, p):
        image, shared = density(model, sites, t, p, args)
        return -image.sum() - shared

    return _hessian(negative, theta, phi)


def _fisher_curvature(model, sites, theta, phi, args) -> Arrow:
    """Expected curvature of normal and Student-t observations, exact curvature of the priors.

    Never negative along an observation, and several times cheaper: forward derivatives only.
    The exact Hessian where some observed site is of another kind.
    """
    found = location_scale(model, sites, theta, phi, args)
    if found is None:
        return _exact_curvature(model, sites, theta, phi, args)
    information = found[1]

    def expected(t, p):
        rows = location_scale(model, sites, t, p, args)[0]
        flat = [x.reshape(len(theta), -1) for row in rows for x in row]
        return jnp.concatenate(flat, axis=1)

    weight = jnp.concatenate(
        [
            jnp.sqrt(jnp.broadcast_to(x, row[0].shape)).reshape(len(theta), -1)
            for row, pair in zip(found[0], information, strict=True)
            for x in pair
        ],
        axis=1,
    )
    _, product = jax.linearize(expected, theta, phi)
    slopes = _columns_of(lambda t, p: product(t, p) * weight, theta, phi)
    slopes = jnp.moveaxis(slopes, 0, 1)
    fisher = slopes @ jnp.swapaxes(slopes, 1, 2)
    k = theta.shape[1]
    prior = _hessian(lambda t, p: -prior_density(model, sites, t, p, args), theta, phi)
    return Arrow(
        fisher[:, :k, :k] + prior.blocks,
        fisher[:, :k, k:] + prior.border,
        fisher[:, k:, k:].sum(0) + prior.shared,
    )


def _newton_step(model, sites, curvature, state: _State, args) -> tuple[_State, _Local]:
    """One step uphill, and what the density looked like before it."""
    theta, phi = state.theta, state.phi
    split = partial(density, model, sites)

    def negative(t, p):
        image, shared = split(t, p, args)
        return -image.sum() - shared, (image, shared)

    slope = jax.value_and_grad(negative, argnums=(0, 1), has_aux=True)
    (_, (image_here, shared_here)), (g_image, g_shared) = slope(theta, phi)
    arrow = curvature(model, sites, theta, phi, args)
    inverse = _upward_inverse(arrow.blocks, state.damping)
    pull = inverse @ arrow.border
    schur = arrow.shared - jnp.einsum("nis,nit->st", arrow.border, pull)
    g_schur = g_shared - jnp.einsum("nis,ni->s", pull, g_image)
    r_image, r_shared = state.reach
    d_shared = -_upward_inverse(schur[None], state.shared_damping[None])[0] @ g_schur
    left = jnp.sqrt(jnp.maximum(-g_schur @ d_shared, 0))
    d_shared = jnp.clip(d_shared, -r_shared, r_shared)
    d_alone = -jnp.einsum("nij,nj->ni", inverse, g_image)
    left_image = jnp.sqrt(jnp.maximum(-jnp.einsum("ni,ni->n", g_image, d_alone), 0))
    d_image = jnp.clip(d_alone - pull @ d_shared, -r_image, r_image)
    d_alone = jnp.clip(d_alone, -r_image, r_image)

    # all move; only what is shared moves; only the images move
    thetas = theta + jnp.stack([d_image, 0 * d_image, d_alone])
    phis = phi + jnp.stack([d_shared, d_shared, 0 * phi])
    image, shared = jax.lax.map(lambda x: split(x[0], x[1], args), (thetas, phis))
    image = jnp.where(jnp.isfinite(image), image, -jnp.inf)
    shared = jnp.where(jnp.isfinite(shared), shared, -jnp.inf)

    # an image moves only where that helps it; the shared unknowns only where it helps in all
    joint = jnp.maximum(image[0], image[1]).sum() + shared[0]
    alone = jnp.maximum(image_here, image[2]).sum() + shared_here
    is_joint = joint >= alone
    helped = jnp.where(is_joint, image[0] > image[1], image[2] > image_here)
    move = jnp.where(is_joint, d_image, d_alone)
    local = _Local(
        image_here.sum() + shared_here,
        (g_image, g_shared),
        arrow,
        left_image,
        left,
    )
    moved = _State(
        theta + jnp.where(helped[:, None], move, 0.0),
        jnp.where(is_joint, phi + d_shared, phi),
        jnp.clip(state.damping * jnp.where(helped, 0.1, 10.0), 1e-9, 1e9),
        jnp.clip(state.shared_damping * jnp.where(is_joint, 0.1, 10.0), 1e-9, 1e9),
        state.reach,
    )
    return moved, local


@lru_cache(maxsize=16)
def _compiled_reach(model: Model, sites: tuple[Site, ...]):
    """One marginal prior sd of each unknown, (k,) of the first image's and (s,)."""

    @jax.jit
    def reach(theta, phi, args):
        prior = _hessian(lambda t, p: -prior_density(model, sites, t, p, args), theta, phi)
        one = jnp.linalg.inv(prior.blocks[0])
        slope = one @ prior.border[0]
        schur = prior.shared - len(theta) * prior.border[0].T @ slope
        shared = jnp.linalg.inv(schur)
        return jnp.sqrt(jnp.diag(one + slope @ shared @ slope.T)), jnp.sqrt(jnp.diag(shared))

    return reach


@lru_cache(maxsize=16)
def _compiled_step(model: Model, sites: tuple[Site, ...], curvature):
    """:func:`_newton_step`, compiled once for a model and the shape of its observations."""
    return jax.jit(partial(_newton_step, model, sites, curvature), compiler_options=_quick())


@lru_cache(maxsize=1)
def _quick() -> dict[str, bool]:
    """Compiler options that halve the time to compile, where this version of XLA has them."""
    options = {"xla_cpu_use_fusion_emitters": False}
    try:
        jax.jit(lambda x: x + 1, compiler_options=options)(1.0)
    except Exception:  # XLA's own error type is not public
        return {}
    return options


def _upward_inverse(matrices, damping):
    """Inverse of (|H| + damping·|diag H|), |H| with eigenvalues made positive; (n, k, k)."""
    scale = jnp.sqrt(jnp.abs(jnp.diagonal(matrices, axis1=1, axis2=2)) + 1e-12)
    values, vectors = jnp.linalg.eigh(matrices / (scale[:, :, None] * scale[:, None]))
    values = jnp.maximum(jnp.abs(values), 1e-6) + damping[:, None]
    inverse = jnp.einsum("nij,nj,nkj->nik", vectors, 1 / values, vectors)
    return inverse / (scale[:, :, None] * scale[:, None])


def _fit(sites, state: _State, local: _Local, iterations, tolerance) -> Fit:
    blocks, border, shared = (np.asarray(x, float) for x in local.arrow)
    g_image, g_shared = (np.asarray(x, float) for x in local.gradient)
    lowest = np.linalg.eigvalsh(_scaled(blocks))[:, 0]
    is_mode = lowest > 0
    zero = jnp.zeros(len(blocks))
    inverse = np.asarray(_upward_inverse(jnp.asarray(blocks), zero), float)
    blocks = np.where(is_mode[:, None, None], blocks, np.linalg.inv(inverse))
    pull = inverse @ border
    schur = shared - np.einsum("nis,nit->st", border, pull)
    shared_covariance = np.asarray(_upward_inverse(jnp.asarray(schur)[None], zero[:1])[0], float)
    distance = np.sqrt(np.maximum(np.einsum("ni,nij,nj->n", g_image, inverse, g_image), 0))
    g_schur = g_shared - np.einsum("nis,ni->s", pull, g_image)
    status = np.where(distance < max(tolerance, 0.1), "converged", "not converged").astype(object)
    status[~is_mode] = "no maximum"
    return Fit(
        sites=sites,
        image=np.asarray(state.theta),
        shared=np.asarray(state.phi),
        image_precision=blocks,
        border=border,
        shared_covariance=shared_covariance,
        distance=distance,
        shared_distance=float(np.sqrt(max(g_schur @ shared_covariance @ g_schur, 0))),
        status=status,
        iterations=iterations,
        log_density=float(local.log_density),
    )


def _scaled(matrices):
    scale = np.sqrt(np.abs(np.diagonal(matrices, axis1=-2, axis2=-1)) + 1e-30)
    return matrices / (scale[..., :, None] * scale[..., None, :])
