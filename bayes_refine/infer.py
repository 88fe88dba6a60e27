"""From a model and its observations to a fit: the joint MAP, its curvature, Laplace draws.

The Hessian of a run is an arrow: a block for each image, a narrow border for what the images
share.  Both come exactly from Hessian–vector products of the NumPyro density itself, so any
model whose latent sites are either in the plate ``image`` or in no plate can be fitted.
Everything here works in NumPyro's unconstrained space.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro.distributions import biject_to

from .errors import InputError

Model = Callable[..., None]
IMAGE = "image"  # name of the plate over images


@dataclass(frozen=True)
class Site:
    """One unknown: name, event shape, whether every image has its own, and its support."""

    name: str
    shape: tuple[int, ...]
    per_image: bool
    support: Any = field(compare=False)

    @property
    def size(self) -> int:
        """Numbers in one event."""
        return int(np.prod(self.shape, dtype=int))


class Arrow(NamedTuple):
    """Negative Hessian of ln p: blocks (n, k, k), border (n, k, s), shared (s, s)."""

    blocks: jax.Array
    border: jax.Array
    shared: jax.Array


@dataclass(frozen=True)
class Fit:
    """A posterior mode and its curvature, for n images with k unknowns each and s shared ones.

    Attributes:
        sites: the unknowns, in the order of the columns below.
        image: (n, k) and shared: (s,), the mode, unconstrained.
        image_precision: (n, k, k), curvature of each image with the shared unknowns held.
        border: (n, k, s), curvature between an image's and the shared unknowns.
        shared_covariance: (s, s), Laplace, the images' unknowns integrated out.
        distance: (n,) of each image's unknowns to the mode, in posterior sd (0 at the mode).
        shared_distance: the same of the shared unknowns.
        status: (n,) "converged", or what is wrong with the image.
        iterations: Newton steps taken.
        log_density: ln p at the mode.
    """

    sites: tuple[Site, ...]
    image: np.ndarray
    shared: np.ndarray
    image_precision: np.ndarray
    border: np.ndarray
    shared_covariance: np.ndarray
    distance: np.ndarray
    shared_distance: float
    status: np.ndarray
    iterations: int
    log_density: float

    def values(self) -> dict[str, np.ndarray]:
        """The mode by site, in the sites' own (constrained) space."""
        return {k: np.asarray(v) for k, v in _unflatten(self.sites, self.image, self.shared).items()}

    def image_covariance(self) -> np.ndarray:
        """(n, k, k) Laplace covariance of each image's unknowns, the shared ones integrated out."""
        slope = np.linalg.solve(self.image_precision, self.border)
        inverse = np.linalg.inv(self.image_precision)
        return inverse + slope @ self.shared_covariance @ np.swapaxes(slope, 1, 2)

    def sd(self, name: str) -> np.ndarray:
        """Laplace sd of one (unconstrained) site: (n, ...) or the event's shape."""
        site, columns = _columns(self.sites, name)
        if site.per_image:
            variance = np.diagonal(self.image_covariance(), axis1=1, axis2=2)[:, columns]
            return np.sqrt(variance).reshape(-1, *site.shape)
        return np.sqrt(np.diag(self.shared_covariance)[columns]).reshape(site.shape)


def map_fit(
    model: Model,
    *args: Any,
    init: dict[str, np.ndarray] | None = None,
    max_iterations: int = 60,
    tolerance: float = 1e-2,
    progress: Callable[[str], None] | None = None,
) -> Fit:
    """The joint MAP of a model with its Laplace curvature.

    Damped Newton through the arrow Hessian (per-image blocks, Schur complement on the shared
    unknowns).  Directions of negative curvature are followed upwards (|eigenvalue|); each image
    has its own damping and keeps its old place when a step does not help it, so ln p never
    falls and one bad image does not hold up the rest.

    Args:
        model: NumPyro program; ``args``: what it is called with.
        init: start by site (constrained); the prior mean where absent.
        tolerance: stop when every image and the shared unknowns are nearer to the mode than
            this many posterior sd.
        progress: called with one line a step.

    Raises:
        InputError: the model has no latent site, or one in a plate other than ``image``.
    """
    sites, start = _find_sites(model, args, init or {})
    theta, phi = _flatten(sites, start)
    problem = _problem(model, sites)
    n = len(theta)
    damping, shared_damping = jnp.full(n, 1e-3), jnp.asarray(1e-3)
    iteration = 0
    for iteration in range(1, max_iterations + 1):  # noqa: B007
        theta, phi, damping, shared_damping, report = problem.step(
            theta, phi, damping, shared_damping, args
        )
        if progress is not None:
            progress(
                f"step {iteration}: ln p {float(report.log_density):.2f}, "
                f"{float(jnp.max(report.distance)):.2g} sd from the mode"
            )
        if float(jnp.max(report.distance)) < tolerance and float(report.shared_distance) < tolerance:
            break
    arrow, gradient, log_density = problem.curvature(theta, phi, args)
    return _fit(sites, theta, phi, arrow, gradient, float(log_density), iteration, tolerance)


def laplace_draws(fit: Fit, rng: np.random.Generator, n_draws: int) -> dict[str, np.ndarray]:
    """Draws (n_draws, ...) by site from the Laplace approximation, constrained.

    Shared unknowns from their marginal, each image's from its conditional given those: exact
    for the arrow-shaped Gaussian, linear in the number of images.
    """
    shared = fit.shared + _gaussian(rng, np.linalg.inv(fit.shared_covariance), (n_draws,))
    slope = np.linalg.solve(fit.image_precision, fit.border)
    image = fit.image - np.einsum("nks,ds->dnk", slope, shared - fit.shared)
    image += _gaussian(rng, fit.image_precision, (n_draws,))
    draw = jax.vmap(partial(_unflatten, fit.sites))(jnp.asarray(image), jnp.asarray(shared))
    return {name: np.asarray(value) for name, value in draw.items()}


def evaluate(model: Model, values: dict[str, np.ndarray], *args: Any) -> dict[str, np.ndarray]:
    """The model's deterministic sites at ``values`` (constrained, by site)."""
    trace = _trace(model, {k: jnp.asarray(v) for k, v in values.items()}, args)
    return {k: np.asarray(s["value"]) for k, s in trace.items() if s["type"] == "deterministic"}


def log_likelihood(model: Model, draws: dict[str, np.ndarray], *args: Any) -> dict[str, np.ndarray]:
    """ln p of every observed site (draws, ...) at ``draws``, one draw at a time in memory."""

    @jax.jit
    def one(values, args):
        trace = _trace(model, values, args)
        return {
            name: site["fn"].log_prob(site["value"])
            for name, site in trace.items()
            if site["type"] == "sample" and site["is_observed"]
        }

    count = len(next(iter(draws.values())))
    rows = [one({k: v[i] for k, v in draws.items()}, args) for i in range(count)]
    return {name: np.stack([np.asarray(row[name]) for row in rows]) for name in rows[0]}


# -- the density, split by image ------------------------------------------------------------


def _trace(model, values, args):
    seeded = numpyro.handlers.seed(model, jax.random.key(0))
    return numpyro.handlers.trace(numpyro.handlers.substitute(seeded, data=values)).get_trace(*args)


def _in_image_plate(site) -> bool:
    return any(frame.name == IMAGE for frame in site["cond_indep_stack"])


def _find_sites(model, args, init):
    sites, start = [], {}
    for name, site in _trace(model, {}, args).items():
        if site["type"] != "sample" or site["is_observed"]:
            continue
        others = [f.name for f in site["cond_indep_stack"] if f.name != IMAGE]
        if others:
            raise InputError(f"latent site {name!r} is in plate {others[0]!r}; only {IMAGE!r} is known")
        per_image = _in_image_plate(site)
        shape = site["value"].shape
        sites.append(Site(name, shape[1:] if per_image else shape, per_image, site["fn"].support))
        start[name] = jnp.broadcast_to(jnp.asarray(init.get(name, site["fn"].mean)), shape)
    if not any(site.per_image for site in sites):
        raise InputError(f"the model has no latent site in the plate {IMAGE!r}")
    return tuple(sites), start


def _flatten(sites, values):
    free = {s.name: biject_to(s.support).inv(values[s.name]) for s in sites}
    image = [free[s.name].reshape(len(free[s.name]), -1) for s in sites if s.per_image]
    shared = [free[s.name].reshape(-1) for s in sites if not s.per_image]
    return jnp.concatenate(image, 1), jnp.concatenate([*shared, jnp.zeros(0)])


def _split(sites, theta, phi):
    offset = {True: 0, False: 0}
    for site in sites:
        start = offset[site.per_image]
        offset[site.per_image] = start + site.size
        part = theta[:, start : start + site.size] if site.per_image else phi[start : start + site.size]
        yield site, jnp.reshape(part, (*((len(theta),) if site.per_image else ()), *site.shape))


def _unflatten(sites, theta, phi):
    return {s.name: biject_to(s.support)(part) for s, part in _split(sites, theta, phi)}


def _columns(sites, name):
    offset = {True: 0, False: 0}
    for site in sites:
        start = offset[site.per_image]
        if site.name == name:
            return site, slice(start, start + site.size)
        offset[site.per_image] += site.size
    raise KeyError(f"the model has no latent site {name!r}")


def _density(model, sites, theta, phi, args):
    """ln p in unconstrained space, split: (n,) of the images and a scalar of what is shared."""
    values, image, shared = {}, jnp.zeros(len(theta)), jnp.zeros(())
    for site, part in _split(sites, theta, phi):
        transform = biject_to(site.support)
        values[site.name] = transform(part)
        jacobian = transform.log_abs_det_jacobian(part, values[site.name])
        if site.per_image:
            image += jacobian.reshape(len(theta), -1).sum(1)
        else:
            shared += jacobian.sum()
    for site in _trace(model, values, args).values():
        if site["type"] != "sample":
            continue
        log_prob = site["fn"].log_prob(site["value"])
        if site["scale"] is not None:
            log_prob = log_prob * site["scale"]
        if _in_image_plate(site):
            image += log_prob.reshape(len(theta), -1).sum(1)
        else:
            shared += log_prob.sum()
    return image, shared


# -- Newton on an arrow -----------------------------------------------------------------------


class _Report(NamedTuple):
    log_density: jax.Array
    distance: jax.Array
    shared_distance: jax.Array


class _Problem:
    """One model's density, its derivatives and the Newton step."""

    def __init__(self, model: Model, sites: tuple[Site, ...]) -> None:
        self.split = partial(_density, model, sites)
        self.step = jax.jit(self._step)
        self.curvature = jax.jit(self._curvature)

    def _total(self, theta, phi, args):
        image, shared = self.split(theta, phi, args)
        return image.sum() + shared

    def _curvature(self, theta, phi, args):
        k, s = theta.shape[1], phi.shape[0]
        gradient_of = jax.grad(lambda t, p: -self._total(t, p, args), argnums=(0, 1))
        gradient, product = jax.linearize(gradient_of, theta, phi)

        def along_image(e):
            return product(jnp.broadcast_to(e, theta.shape), jnp.zeros_like(phi))[0]

        def along_shared(e):
            return product(jnp.zeros_like(theta), e)

        blocks = jax.lax.map(along_image, jnp.eye(k, dtype=theta.dtype))
        border, shared = jax.lax.map(along_shared, jnp.eye(s, dtype=theta.dtype))
        arrow = Arrow(jnp.moveaxis(blocks, 0, 2), jnp.moveaxis(border, 0, 2), shared)
        return arrow, gradient, self._total(theta, phi, args)

    def _step(self, theta, phi, damping, shared_damping, args):
        arrow, (g_image, g_shared), before = self._curvature(theta, phi, args)
        inverse = _upward_inverse(arrow.blocks, damping)
        pull = jnp.einsum("nij,njs->nis", inverse, arrow.border)
        schur = arrow.shared - jnp.einsum("nis,nit->st", arrow.border, pull)
        g_schur = g_shared - jnp.einsum("nis,ni->s", pull, g_image)
        d_shared = -_upward_inverse(schur[None], shared_damping[None])[0] @ g_schur
        d_alone = -jnp.einsum("nij,nj->ni", inverse, g_image)
        d_image = d_alone - pull @ d_shared

        old_image, old_shared = self.split(theta, phi, args)
        moved, moved_shared = self.split(theta + d_image, phi + d_shared, args)
        stayed, _ = self.split(theta, phi + d_shared, args)
        alone, _ = self.split(theta + d_alone, phi, args)
        bad = -jnp.inf
        moved, stayed, alone = (jnp.where(jnp.isfinite(x), x, bad) for x in (moved, stayed, alone))
        moved_shared = jnp.where(jnp.isfinite(moved_shared), moved_shared, bad)

        # all together, each image at the better of its two places; or the images by themselves
        better = moved > stayed
        together = jnp.where(better, moved, stayed).sum() + moved_shared
        alone_better = alone > old_image
        by_itself = jnp.where(alone_better, alone, old_image).sum() + old_shared
        joint = together >= by_itself
        helped = jnp.where(joint, better, alone_better)
        move = jnp.where(joint, d_image, d_alone)
        report = _Report(
            jnp.maximum(jnp.where(joint, together, by_itself), before),
            jnp.sqrt(jnp.maximum(-jnp.einsum("ni,ni->n", g_image, d_alone), 0)),
            jnp.sqrt(jnp.maximum(-g_schur @ d_shared, 0)),
        )
        damping = jnp.clip(jnp.where(helped, damping / 10, damping * 10), 1e-9, 1e9)
        return (
            theta + jnp.where(helped[:, None], move, 0.0),
            jnp.where(joint, phi + d_shared, phi),
            damping,
            jnp.clip(jnp.where(joint, shared_damping / 10, shared_damping * 10), 1e-9, 1e9),
            report,
        )


@lru_cache(maxsize=8)
def _problem(model: Model, sites: tuple[Site, ...]) -> _Problem:
    """Compiled once for a model (the same object) and the shape of its observations."""
    return _Problem(model, sites)


def _upward_inverse(matrices, damping):
    """Inverse of (|H| + damping·|diag H|), |H| with eigenvalues made positive; (n, k, k)."""
    scale = jnp.sqrt(jnp.abs(jnp.diagonal(matrices, axis1=1, axis2=2)) + 1e-12)
    values, vectors = jnp.linalg.eigh(matrices / (scale[:, :, None] * scale[:, None]))
    values = jnp.maximum(jnp.abs(values), 1e-6) + damping[:, None]
    inverse = jnp.einsum("nij,nj,nkj->nik", vectors, 1 / values, vectors)
    return inverse / (scale[:, :, None] * scale[:, None])


def _fit(sites, theta, phi, arrow, gradient, log_density, iterations, tolerance) -> Fit:
    blocks, border, shared = (np.asarray(x, float) for x in arrow)
    g_image, g_shared = (np.asarray(x, float) for x in gradient)
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
        image=np.asarray(theta),
        shared=np.asarray(phi),
        image_precision=blocks,
        border=border,
        shared_covariance=shared_covariance,
        distance=distance,
        shared_distance=float(np.sqrt(max(g_schur @ shared_covariance @ g_schur, 0))),
        status=status,
        iterations=iterations,
        log_density=log_density,
    )


def _scaled(matrices):
    scale = np.sqrt(np.abs(np.diagonal(matrices, axis1=-2, axis2=-1)) + 1e-30)
    return matrices / (scale[..., :, None] * scale[..., None, :])


def _gaussian(rng, precision, shape):
    """Draws (*shape, ..., k) of N(0, precision⁻¹)."""
    lower = np.linalg.cholesky(precision)
    white = rng.standard_normal((*shape, *precision.shape[:-1]))
    return np.linalg.solve(np.swapaxes(lower, -1, -2), white[..., None])[..., 0]
