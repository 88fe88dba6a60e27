"""The shared unknowns at the mode of their own marginal density.

At the joint mode the unknowns of every image are fitted to the same residuals that the shared
errors are read from: these come out small by n − k of n.  With the images integrated out by
Laplace's approximation,

    ln p(φ) ≈ ln p(θ̂(φ), φ) − ½ Σ_i ln|A_i(φ)|,

they do not: the mode is that of restricted maximum likelihood (Patterson & Thompson 1971;
Tierney & Kadane 1986; Rue, Martino & Chopin 2009).  A_i is the expected information on image
i's unknowns at its mode, and its prior's curvature, so that no outlier makes it singular
(Cox & Reid 1987).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .batches import one_by_one
from .curvature import exact_curvature, fisher_curvature, upward_inverse, upward_root
from .density import Model, Site, density, expectations, prior_density
from .laplace import Fit
from .newton import Look, Search, State, fit_at

DIFFERENCE = 0.7  # posterior sd, of central differences for the curvature of ½ Σ ln|A_i|
FAR = 1.0  # posterior sd of an image from its mode: further, and ½ distance² does not say how far
SETTLING = 5  # Newton steps of the images at the end
WIDEST = 2.0  # times the joint density's sd: beyond, that curvature is not to be believed


def marginal_fit(
    model: Model,
    *args: Any,
    fit: Fit,
    max_iterations: int = 10,
    tolerance: float = 0.2,
    progress: Callable[[str], None] | None = None,
) -> Fit:
    """Move a joint MAP to where the shared unknowns are at their marginal mode.

    Newton steps with the joint density's curvature and the exact slope of ½ Σ ln|A_i|, halved
    where the marginal density falls; the images follow at their own modes.  The covariance of
    what is shared is of the marginal density's curvature; what ½ Σ ln|A_i| adds to it, up to a
    tenth, is measured on the first batch of images, as for all.  How far means are from modes
    comes with it.

    Args:
        model, args: as they were given to ``map_fit``. fit: what it returned.
        tolerance: the last step is shorter than this many posterior sd; each is several times
            shorter than the one before.
        progress: called with one line a step.

    Returns:
        The fit there; images that had not converged stay where they were, and out of the sum.
    """
    if not np.any(fit.status == "converged"):
        return fit
    search = Search(model, args, fit.values())
    usable = search.weight * search.data.padded(1.0 * (fit.status == "converged"))
    state = search.start._replace(damping=np.zeros(len(usable)), shared_damping=0.0)
    pull = search.data.padded(np.linalg.solve(fit.image_precision, fit.border))
    volume, slope = _volume(search, state, pull, usable)
    best, step = fit.log_density - volume, -fit.shared_covariance @ slope
    alone, here = np.zeros_like(state.theta), None
    for iteration in range(1, max_iterations + 1):
        there = _moved(search, state, alone - pull @ step, step, usable)
        look = search.look(there, exact_curvature)
        volume, slope = _volume(search, there, look.steps.pull, usable)
        gained = 0.5 * float(np.sum(usable * look.steps.distance**2))
        value = look.slope.log_density + gained - volume
        if progress is not None:
            progress(f"step {iteration}: marginal ln p {value:.2f}, it was {best:.2f}")
        if not value >= best or np.max(usable * look.steps.distance) > FAR:
            step = step / 2
            continue
        state, here, best = there, look, value
        pull, alone = here.steps.pull, here.steps.alone
        slope = slope + here.steps.g_schur
        step = -upward_inverse(here.steps.schur[None], np.zeros(1), np)[0] @ slope
        far = float(np.sqrt(max(-slope @ step, 0.0)))
        if far < tolerance:
            break
    if here is None:  # no way up
        return fit
    for _ in range(SETTLING):  # images that lag behind what they share
        if np.max(usable * here.steps.distance) < tolerance:
            break
        state = _moved(search, state, here.steps.alone, np.zeros_like(step), usable)
        here = search.look(state, exact_curvature)
    pull, alone = here.steps.pull, here.steps.alone
    found = fit_at(search, state, here, fit.iterations + iteration, tolerance)
    covariance = _with_volume(search, state, pull, found.shared_covariance, usable)
    image_shift, shared_shift = _shift(search, state, here, covariance, usable)
    state = _moved(search, state, alone - pull @ step, step, usable)
    n = search.n_images
    return replace(
        found,
        image=state.theta[:n],
        shared=state.phi,
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


def _volume(search: Search, state: State, pull, usable) -> tuple[float, np.ndarray]:
    """½ Σ ln|A_i| and its slope (s,), the images following by −``pull`` (n, k, s)."""
    slopes = _compiled_slopes(search.model, search.sites, search.apart)
    blocks = search.arrow(state, fisher_curvature).blocks
    roots = upward_root(blocks) * usable[:, None, None]
    total = np.zeros(len(state.phi))
    for args, w in search.batches():
        of_image, of_shared = slopes(state.theta[w], state.phi, roots[w], args)
        total += of_shared - np.einsum("nis,ni->s", pull[w], of_image)
    return 0.5 * float(np.sum(usable * np.linalg.slogdet(blocks)[1])), total


def _shift(search: Search, state: State, here: Look, covariance, usable):
    """Posterior mean less mode, (n, k) and (s,), to second order: half the third derivatives of
    ln p, contracted with the covariance once and once more (Tierney & Kadane 1986).

    Second differences of the slope: along what is shared, the images following, and along the
    unknowns of all images at once, which do not know of each other.  What the second do to the
    shared unknowns is in their marginal mode already.
    """
    pull, blocks = here.steps.pull, here.arrow.blocks

    def bent(image, shared):
        """Slope of −ln p on both sides of the state less twice that here, (n, k) and (s,)."""
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


def _with_volume(search: Search, state: State, pull, joint: np.ndarray, usable) -> np.ndarray:
    """Covariance of what is shared: of the joint density's curvature, and ½ Σ ln|A_i|'s."""
    few, n = search.first_batch(), search.data.size
    share = usable.sum() / max(usable[:n].sum(), 1.0)
    state = state._replace(theta=state.theta[:n], damping=state.damping[:n])
    pull, usable = pull[:n], usable[:n]
    root = np.linalg.cholesky(joint)
    rows = []
    for step in DIFFERENCE * root.T:
        there = (
            state._replace(theta=state.theta - pull @ d, phi=state.phi + d) for d in (step, -step)
        )
        up, down = (_volume(few, at, pull, usable)[1] for at in there)
        rows.append(root.T @ (up - down) / (2 * DIFFERENCE))
    added = share * np.array(rows)
    values, vectors = np.linalg.eigh(np.eye(len(joint)) + (added + added.T) / 2)
    factor = root @ vectors / np.sqrt(np.maximum(values, WIDEST**-2))
    return factor @ factor.T


@lru_cache(maxsize=16)
def _compiled_slopes(model: Model, sites: tuple[Site, ...], apart: bool):
    """Slopes of ½ Σ ln|A_i| = ½ Σ_i tr(A_i⁻¹ dA_i) along the images' and the shared unknowns."""

    def half_square(theta, phi, w, args):
        """½ Σ_i w_iᵀ A_i w_i, (n, k) directions w."""
        found = expectations(model, sites, theta, phi, args)
        log_p = density if found is None else prior_density

        def negative(t):
            return -log_p(model, sites, t, phi, args)[0].sum()

        def curved(t):
            return jax.jvp(negative, (t,), (w,))[1]

        total = jax.jvp(curved, (theta,), (w,))[1]
        if found is not None:
            along = jax.jvp(
                lambda t: [row[:2] for row in expectations(model, sites, t, phi, args)],
                (theta,),
                (w,),
            )[1]
            for row, (mean, log_scale) in zip(found, along, strict=True):
                total += jnp.sum(row.of_mean * mean**2 + row.of_scale * log_scale**2)
        return 0.5 * total

    def slopes(theta, phi, roots, args):
        """(n, k) and (s,); ``roots`` (n, k, k) with W Wᵀ = A⁻¹, or zero."""
        one = jax.grad(half_square, argnums=(0, 1))
        each = jax.vmap(lambda w: one(theta, phi, w, args), in_axes=2)(roots)
        return jax.tree.map(lambda x: x.sum(0), each)

    def one_after_another(theta, phi, roots, args):
        def one(part, t, root):
            return slopes(t, phi, root, (part, *args[1:]))

        of_image, of_shared = one_by_one(one, args[0], theta, roots)
        return of_image[:, 0], of_shared.sum(0)

    return jax.jit(one_after_another if apart else slopes)
