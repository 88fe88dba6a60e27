"""From a model and its observations to a fit: the joint MAP, its curvature, Laplace draws.

The Hessian of a run is an arrow: a block for each image, a narrow border for what the images
share.  Both come exactly from Hessian–vector products of the NumPyro density itself, so any
model whose latent sites are either in the plate ``image`` or in no plate can be fitted.
Everything here works in NumPyro's unconstrained space.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
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
        return {
            k: np.asarray(v) for k, v in _unflatten(self.sites, self.image, self.shared).items()
        }

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
    sites, start = _find_sites(model, args, init or {})
    theta, phi = _flatten(sites, start)
    step = _compiled_step(model, sites, _fisher_curvature)
    damping = jnp.full(len(theta), 1e-3), jnp.asarray(1e-3)
    state = _State(theta, phi, *damping, _compiled_reach(model, sites)(theta, phi, args))
    for iteration in range(max_iterations + 1):
        moved, local = step(state, args)
        far = float(jnp.quantile(local.distance, 1 - stragglers))
        if not stragglers:
            far = max(far, float(local.shared_distance))
        if progress is not None:
            progress(f"step {iteration}: ln p {float(local.log_density):.2f}, {far:.2g} sd to go")
        if far < tolerance or iteration == max_iterations:
            break
        if exact and far < 1.0:  # near the mode the exact Hessian converges quadratically
            step = _compiled_step(model, sites, _exact_curvature)
        state = moved
    if exact:
        _, local = _compiled_step(model, sites, _exact_curvature)(state, args)
    return _fit(sites, state, local, iteration, tolerance)


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
    """The model's deterministic sites at ``values`` (constrained, by site; prior mean if absent)."""
    sites = _compiled_deterministic(model)(values, args)
    return {name: np.asarray(value) for name, value in sites.items()}


@lru_cache(maxsize=8)
def _compiled_deterministic(model: Model):
    @jax.jit
    def deterministic(values, args):
        trace = _trace(model, {**_prior_means(model, args), **values}, args)
        return {k: site["value"] for k, site in trace.items() if site["type"] == "deterministic"}

    return deterministic


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


def predictive_draws(
    rng: np.random.Generator, model: Model, draws: dict[str, np.ndarray], *args: Any
) -> Iterator[dict[str, tuple[np.ndarray, np.ndarray]]]:
    """For each draw, ln p of every observed site and a replicate of it: posterior predictive.

    One draw at a time in memory; each array has the shape of the site's observation, and is of
    no meaning where the model masks it.
    """
    one = _compiled_predictive(model)
    for i in range(len(next(iter(draws.values())))):
        key = jax.random.key(int(rng.integers(2**31)))
        sites = one(key, {name: value[i] for name, value in draws.items()}, args)
        yield {k: (np.asarray(ln_p), np.asarray(replica)) for k, (ln_p, replica) in sites.items()}


@lru_cache(maxsize=8)
def _compiled_predictive(model: Model):
    @jax.jit
    def one(key, values, args):
        observed = {k: s for k, s in _trace(model, values, args).items() if s["type"] == "sample"}
        observed = {k: s for k, s in observed.items() if s["is_observed"]}
        keys = jax.random.split(key, max(len(observed), 1))
        return {
            name: (site["fn"].log_prob(site["value"]), site["fn"].sample(k))
            for k, (name, site) in zip(keys, observed.items(), strict=False)
        }

    return one


# -- the density, split by image ------------------------------------------------------------


def _trace(model, values, args):
    seeded = numpyro.handlers.seed(model, jax.random.key(0))
    return numpyro.handlers.trace(numpyro.handlers.substitute(seeded, data=values)).get_trace(*args)


def _in_image_plate(site) -> bool:
    return any(frame.name == IMAGE for frame in site["cond_indep_stack"])


def _latent(trace):
    return {k: s for k, s in trace.items() if s["type"] == "sample" and not s["is_observed"]}


def _prior_means(model, args):
    latent = _latent(_trace(model, {}, args))  # op by op this would take seconds: see callers
    return {k: jnp.broadcast_to(s["fn"].mean, s["value"].shape) for k, s in latent.items()}


@lru_cache(maxsize=8)
def _compiled_prior_means(model: Model):
    return jax.jit(partial(_prior_means, model))


def _find_sites(model, args, init):
    """The latent sites, and where to start: ``init``, the prior mean where it says nothing."""
    latent: dict[str, Any] = {}
    jax.eval_shape(lambda args: latent.update(_latent(_trace(model, {}, args))), args)
    values = dict(_compiled_prior_means(model)(args))
    sites = []
    for name, site in latent.items():
        others = [f.name for f in site["cond_indep_stack"] if f.name != IMAGE]
        if others:
            raise InputError(
                f"latent site {name!r} is in plate {others[0]!r}; only {IMAGE!r} is known"
            )
        per_image, shape = _in_image_plate(site), values[name].shape
        sites.append(Site(name, shape[1:] if per_image else shape, per_image, site["fn"].support))
        values[name] = jnp.broadcast_to(jnp.asarray(init.get(name, values[name])), shape)
    if not any(site.per_image for site in sites):
        raise InputError(f"the model has no latent site in the plate {IMAGE!r}")
    return tuple(sites), values


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
        part = (
            theta[:, start : start + site.size]
            if site.per_image
            else phi[start : start + site.size]
        )
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


def _prior_density(model, sites, theta, phi, args):
    """The part of ln p that has no observation in it: cheap, no array over reflections."""
    values = _unflatten(sites, theta, phi)
    total = jnp.zeros(())
    for site, part in _split(sites, theta, phi):
        jacobian = biject_to(site.support).log_abs_det_jacobian(part, values[site.name])
        total += jacobian.sum()
    for site in _latent(_trace(model, values, args)).values():
        total += site["fn"].log_prob(site["value"]).sum()
    return total


def _location_scale(model, sites, theta, phi, args):
    """What the observed sites expect: for each (mean, ln scale), and the Fisher information of
    the two in units of 1/scale² and 1, masked; None where a site is neither normal nor Student-t.
    """
    expected, information = [], []
    for site in _trace(model, _unflatten(sites, theta, phi), args).values():
        if site["type"] != "sample" or not site["is_observed"]:
            continue
        fn, mask = site["fn"], True
        while isinstance(fn, dist.MaskedDistribution | dist.ExpandedDistribution):
            mask = mask & fn._mask if isinstance(fn, dist.MaskedDistribution) else mask
            fn = fn.base_dist
        if isinstance(fn, dist.Normal):
            of_mean, of_scale = 1.0, 2.0
        elif isinstance(fn, dist.StudentT):
            of_mean, of_scale = (fn.df + 1) / (fn.df + 3), 2 * fn.df / (fn.df + 3)
        else:
            return None
        shape = jnp.broadcast_shapes(site["fn"].batch_shape, jnp.shape(site["value"]))
        expected.append(tuple(jnp.broadcast_to(x, shape) for x in (fn.loc, jnp.log(fn.scale))))
        information.append((of_mean / fn.scale**2 * mask, of_scale * mask))
    return expected, information


# -- Newton on an arrow -----------------------------------------------------------------------


class _Report(NamedTuple):
    log_density: jax.Array
    distance: jax.Array
    shared_distance: jax.Array


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
    """A linear map's values along each image's unknown, all images at once, then each shared one."""
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
        image, shared = _density(model, sites, t, p, args)
        return -image.sum() - shared

    return _hessian(negative, theta, phi)


def _fisher_curvature(model, sites, theta, phi, args) -> Arrow:
    """Expected curvature of normal and Student-t observations, exact curvature of the priors.

    Never negative along an observation, and several times cheaper: forward derivatives only.
    The exact Hessian where some observed site is of another kind.
    """
    found = _location_scale(model, sites, theta, phi, args)
    if found is None:
        return _exact_curvature(model, sites, theta, phi, args)
    information = found[1]

    def expected(t, p):
        rows = _location_scale(model, sites, t, p, args)[0]
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
    prior = _hessian(lambda t, p: -_prior_density(model, sites, t, p, args), theta, phi)
    return Arrow(
        fisher[:, :k, :k] + prior.blocks,
        fisher[:, :k, k:] + prior.border,
        fisher[:, k:, k:].sum(0) + prior.shared,
    )


def _newton_step(model, sites, curvature, state: _State, args) -> tuple[_State, _Local]:
    """One step uphill, and what the density looked like before it."""
    theta, phi = state.theta, state.phi
    split = partial(_density, model, sites)

    def negative(t, p):
        image, shared = split(t, p, args)
        return -image.sum() - shared

    g_image, g_shared = jax.grad(negative, argnums=(0, 1))(theta, phi)
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

    # here; all move; only what is shared moves; only the images move
    thetas = theta + jnp.stack([0 * d_image, d_image, 0 * d_image, d_alone])
    phis = phi + jnp.stack([0 * phi, d_shared, d_shared, 0 * phi])
    image, shared = jax.lax.map(lambda x: split(*x, args), (thetas, phis))
    image = jnp.where(jnp.isfinite(image), image, -jnp.inf)
    shared = jnp.where(jnp.isfinite(shared), shared, -jnp.inf)

    # an image moves only where that helps it; the shared unknowns only where it helps in all
    joint = jnp.maximum(image[1], image[2]).sum() + shared[1]
    alone = jnp.maximum(image[0], image[3]).sum() + shared[0]
    is_joint = joint >= alone
    helped = jnp.where(is_joint, image[1] > image[2], image[3] > image[0])
    move = jnp.where(is_joint, d_image, d_alone)
    local = _Local(
        image[0].sum() + shared[0],
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
    """One prior sd of each unknown, (k,) and (s,)."""

    @jax.jit
    def reach(theta, phi, args):
        prior = _hessian(lambda t, p: -_prior_density(model, sites, t, p, args), theta, phi)
        image = jnp.diagonal(prior.blocks, axis1=1, axis2=2)[0]
        return tuple(jnp.abs(x) ** -0.5 for x in (image, jnp.diagonal(prior.shared)))

    return reach


@lru_cache(maxsize=16)
def _compiled_step(model: Model, sites: tuple[Site, ...], curvature):
    """:func:`_newton_step`, compiled once for a model and the shape of its observations."""
    return jax.jit(partial(_newton_step, model, sites, curvature))


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


def _gaussian(rng, precision, shape):
    """Draws (*shape, ..., k) of N(0, precision⁻¹)."""
    lower = np.linalg.cholesky(precision)
    white = rng.standard_normal((*shape, *precision.shape[:-1]))
    return np.linalg.solve(np.swapaxes(lower, -1, -2), white[..., None])[..., 0]
