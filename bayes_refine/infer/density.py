"""A NumPyro model's density with unknowns laid out as (images, unknowns), and its observed sites.

Everything here works in NumPyro's unconstrained space.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import biject_to
from numpyro.distributions.transforms import IdentityTransform

from ..util.errors import InputError
from ..util.kept_programs import kept
from ..util.student_t import log_student_t
from .sites import StudentT

Model = Callable[..., None]
IMAGE = "image"  # name of the plate over images


@dataclass(frozen=True)
class Site:
    """One unknown: name, event shape, whether it is an image's or shared, and its support."""

    name: str
    shape: tuple[int, ...]
    per_image: bool
    support: Any = field(compare=False)

    @property
    def size(self) -> int:
        """Numbers in one event."""
        return int(np.prod(self.shape, dtype=int))


def evaluate(model: Model, values: dict[str, np.ndarray], *args: Any) -> dict[str, np.ndarray]:
    """The model's deterministic sites at ``values`` (constrained; the prior mean where absent).

    sites = evaluate(run.problem.model, run.fit.values(), run.observations, run.priors)
    sites["partiality"]  # (n, m)
    """
    full = {}
    for name, mean in compiled_prior_means(model)(args).items():
        # of one shape and type, so that one program serves all
        value = np.asarray(values.get(name, mean), mean.dtype)
        full[name] = np.broadcast_to(value, mean.shape)
    sites = _compiled_deterministic(model)(full, args)
    return {name: np.asarray(value) for name, value in sites.items()}


@lru_cache(maxsize=8)
def _compiled_deterministic(model: Model):
    @kept
    def deterministic(values, args):
        trace = traced(model, values, args)
        return {k: site["value"] for k, site in trace.items() if site["type"] == "deterministic"}

    return deterministic


def traced(model, values, args):
    """The trace of a model run with its sites at ``values`` (constrained).

    Raises:
        InputError: the model was written for other arguments than these, or has parameters that
            nothing trains.
    """
    seeded = numpyro.handlers.seed(model, jax.random.key(0))
    run = numpyro.handlers.trace(numpyro.handlers.substitute(seeded, data=values))
    try:
        found = run.get_trace(*args)
    except AttributeError as error:
        if not any(error.obj is arg for arg in args):
            raise
        raise InputError(_not_for_these(error)) from error
    for name, site in found.items():
        if site["type"] == "param":
            raise InputError(
                f"the model has numpyro.param {name!r}, which nothing here trains; make it an "
                "unknown with numpyro.sample and a prior, or a constant"
            )
    return found


class _Known(Exception):
    """The last unknown has been sampled."""


class _LatentSites(numpyro.primitives.Messenger):
    """Sites of the given names as they are sampled; after the last the model is left."""

    def __init__(self, fn, names: frozenset[str]) -> None:
        super().__init__(fn)
        self.missing = set(names)
        self.found: dict[str, Any] = {}

    def postprocess_message(self, msg) -> None:
        if msg["type"] == "sample" and msg["name"] in self.missing:
            self.found[msg["name"]] = dict(msg)
            self.missing.discard(msg["name"])
            if not self.missing:
                raise _Known


def traced_priors(model, sites, values, args):
    """The latent sites of a model at ``values``, by name.

    The model runs only up to its last unknown.  The physics of every reflection, which follows, is
    not part of the priors and takes most of the time of a trace.
    """
    seeded = numpyro.handlers.seed(model, jax.random.key(0))
    substituted = numpyro.handlers.substitute(seeded, data=values)
    run = _LatentSites(substituted, frozenset(site.name for site in sites))
    with suppress(_Known):
        run(*args)
    return run.found


def _not_for_these(error: AttributeError) -> str:
    """The sentence for a model that uses an attribute which its arguments do not have."""
    where, given = traceback.extract_tb(error.__traceback__)[-1], type(error.obj)
    return (
        f"{where.filename}, line {where.lineno}: the model asks for {error.name!r}, which "
        f"{given.__module__}.{given.__qualname__} does not have; it was written for other data: "
        "`bayes-refine fit` has statistics of spots, `merge` integrated intensities and "
        "`compare` pixels"
    )


def in_image_plate(site) -> bool:
    """Whether every image has its own value of a site."""
    return any(frame.name == IMAGE for frame in site["cond_indep_stack"])


def latent_sites(trace):
    """The sites of a trace that are unknown."""
    return {k: s for k, s in trace.items() if s["type"] == "sample" and not s["is_observed"]}


def observed_sites(model: Model, *args: Any) -> tuple[str, ...]:
    """Names of a model's observed sites."""
    return tuple(name for name, _ in observed_shapes(model, args))


def prior_means(model, args):
    """The prior mean of every unknown, in the shape it is sampled in."""
    latent = traced_priors(model, sites_of(model, args), {}, args)
    return {k: jnp.broadcast_to(s["fn"].mean, s["value"].shape) for k, s in latent.items()}


@lru_cache(maxsize=8)
def compiled_prior_means(model: Model):
    """:func:`prior_means`, compiled: op by op it would take seconds."""
    return kept(partial(prior_means, model))


def sites_of(model: Model, args: Any) -> tuple[Site, ...]:
    """The latent sites of a model of ``args``; traced once for arguments of the same shapes.

    Raises:
        InputError: a latent site is in another plate than that of images.
    """
    return _traced_once(model, *_shapes(args)).sites


def observes_shared(model: Model, args: Any) -> bool:
    """Whether a model of ``args`` has an observation that does not belong to an image."""
    return _traced_once(model, *_shapes(args)).observes_shared


def observed_shapes(model: Model, args: Any) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Name and shape of each observed site, in the model's order."""
    return _traced_once(model, *_shapes(args)).observed


def _shapes(args: Any):
    leaves, tree = jax.tree.flatten(args)
    return tree, tuple(jax.ShapeDtypeStruct(np.shape(x), jnp.result_type(x)) for x in leaves)


class _Traced(NamedTuple):
    """Latent sites, whether an observation does not belong to an image, and observed sites."""

    sites: tuple[Site, ...]
    observes_shared: bool
    observed: tuple[tuple[str, tuple[int, ...]], ...]


@lru_cache(maxsize=64)
def _traced_once(model: Model, tree, shapes) -> _Traced:
    found: dict[str, Any] = {}
    args = jax.tree.unflatten(tree, shapes)
    jax.eval_shape(lambda args: found.update(traced(model, {}, args)), args)
    latent = latent_sites(found)
    sites = []
    for name, site in latent.items():
        others = [f.name for f in site["cond_indep_stack"] if f.name != IMAGE]
        if others:
            raise InputError(
                f"latent site {name!r} is in plate {others[0]!r}; only {IMAGE!r} is known"
            )
        per_image, shape = in_image_plate(site), np.shape(site["value"])
        sites.append(Site(name, shape[1:] if per_image else shape, per_image, site["fn"].support))
    observed = [x for x in found.values() if x["type"] == "sample" and x["is_observed"]]
    return _Traced(
        tuple(sites),
        not all(in_image_plate(site) for site in observed),
        tuple((site["name"], np.shape(site["value"])) for site in observed),
    )


def find_sites(model, args, init):
    """The latent sites, and a start: ``init``, or the prior mean of sites not in it."""
    sites, values = sites_of(model, args), dict(compiled_prior_means(model)(args))
    for site in sites:
        value = init.get(site.name, values[site.name])
        values[site.name] = jnp.broadcast_to(jnp.asarray(value), values[site.name].shape)
    if not any(site.per_image for site in sites):
        raise InputError(f"the model has no latent site in the plate {IMAGE!r}")
    return sites, values


def flatten(sites, values):
    """Constrained values by site to unconstrained (n, k) and (s,)."""
    free = {s.name: biject_to(s.support).inv(values[s.name]) for s in sites}
    image = [free[s.name].reshape(len(free[s.name]), -1) for s in sites if s.per_image]
    shared = [free[s.name].reshape(-1) for s in sites if not s.per_image]
    return jnp.concatenate(image, 1), jnp.concatenate([*shared, jnp.zeros(0)])


def split(sites, theta, phi):
    """Each site with its part of (n, k) and (s,), unconstrained."""
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


def unflatten(sites, theta, phi):
    """Unconstrained (n, k) and (s,) to constrained values by site."""
    return {s.name: biject_to(s.support)(part) for s, part in split(sites, theta, phi)}


def place_of(sites, name):
    """A site by name and its columns; KeyError where the model has none."""
    offset = {True: 0, False: 0}
    for site in sites:
        start = offset[site.per_image]
        if site.name == name:
            return site, slice(start, start + site.size)
        offset[site.per_image] += site.size
    raise KeyError(f"the model has no latent site {name!r}")


def density(model, sites, theta, phi, args):
    """ln p in unconstrained space in two parts: (n,) of the images, and a scalar of the priors of
    shared unknowns.
    """
    trace = traced(model, unflatten(sites, theta, phi), args)
    priors = _log_priors(sites, latent_sites(trace), theta, phi)
    return tuple(a + b for a, b in zip(priors, _log_observed(trace, len(theta)), strict=True))


def observed_density(model, sites, theta, phi, args):
    """The part of :func:`density` without the priors of the unknowns."""
    return _log_observed(traced(model, unflatten(sites, theta, phi), args), len(theta))


def _log_observed(trace, n):
    """ln of the densities of observations, (n,) of the images and a scalar of all others."""
    image, shared = jnp.zeros(n), jnp.zeros(())
    observed = [s for s in trace.values() if s["type"] == "sample" and s["is_observed"]]
    alike, others = _alike(observed)
    if alike:
        image += _log_student_ts(alike).reshape(n, -1).sum(1)
    for site in others:
        log_prob = site["fn"].log_prob(site["value"])
        if site["scale"] is not None:
            log_prob = log_prob * site["scale"]
        if in_image_plate(site):
            image += log_prob.reshape(n, -1).sum(1)
        else:
            shared += log_prob.sum()
    return image, shared


def _alike(observed):
    """The observed sites that are Student-t over images and of one shape, and the others."""
    alike, others = [], []
    for site in observed:
        fn = site["fn"]
        base = fn.base_dist if isinstance(fn, dist.MaskedDistribution) else fn
        shape = np.shape(site["value"])
        same = not alike or np.shape(alike[0]["value"]) == shape
        plain = site["scale"] is None and in_image_plate(site) and fn.event_dim == 0
        if type(base) is StudentT and np.size(base.df) == 1 and plain and same:
            alike.append(site)
        else:
            others.append(site)
    return (alike, others) if len(alike) > 1 else ([], observed)


def _log_student_ts(sites):
    """ln of the densities of several sites, summed over these: one program for all of them."""
    rows = []
    for site in sites:
        fn, value, mask = site["fn"], site["value"], True
        if isinstance(fn, dist.MaskedDistribution):
            fn, mask = fn.base_dist, fn._mask
        shape = np.shape(value)
        rows.append(
            (
                value,
                jnp.reshape(fn.df, (1,) * len(shape)),
                *(jnp.broadcast_to(x, shape) for x in (fn.loc, fn.scale, mask)),
            )
        )
    value, nu, mean, scale, mask = (jnp.stack(x) for x in zip(*rows, strict=True))
    return jnp.where(mask, log_student_t(value, nu, mean, scale, jnp), 0.0).sum(0)


def prior_density(model, sites, theta, phi, args):
    """The part of :func:`density` without observations: cheap, without arrays over reflections."""
    latent = traced_priors(model, sites, unflatten(sites, theta, phi), args)
    return _log_priors(sites, latent, theta, phi)


def _log_priors(sites, latent, theta, phi):
    """ln of the priors' densities: (n,) of the images' and a scalar of the shared unknowns'.

    Normal priors of all sites are evaluated at once: one by one they would be many small programs.
    """
    n = len(theta)
    image, shared, normal = jnp.zeros(n), jnp.zeros(()), {True: [], False: []}
    for site, part in split(sites, theta, phi):
        transform, own = biject_to(site.support), latent[site.name]
        value = transform(part)
        found = _normal_of(own["fn"], np.shape(value)) if own["scale"] is None else None
        if found is not None and isinstance(transform, IdentityTransform):
            normal[site.per_image].append(
                [x.reshape(n if site.per_image else 1, -1) for x in (value, *found)]
            )
            continue
        log_prob = own["fn"].log_prob(value)
        log_prob = log_prob if own["scale"] is None else log_prob * own["scale"]
        jacobian = transform.log_abs_det_jacobian(part, value)
        if site.per_image:
            image += jacobian.reshape(n, -1).sum(1) + log_prob.reshape(n, -1).sum(1)
        else:
            shared += jacobian.sum() + log_prob.sum()
    for per_image, rows in normal.items():
        if rows:
            value, mean, sd = (jnp.concatenate(x, 1) for x in zip(*rows, strict=True))
            log_prob = dist.Normal(mean, sd).log_prob(value).sum(1)
            image, shared = (
                (image + log_prob, shared) if per_image else (image, shared + log_prob[0])
            )
    return image, shared


def _normal_of(fn, shape):
    """Mean and sd of a normal distribution, independent in each number; None of another one."""
    while isinstance(fn, dist.Independent | dist.ExpandedDistribution):
        fn = fn.base_dist
    if type(fn) is not dist.Normal:
        return None
    return jnp.broadcast_to(fn.loc, shape), jnp.broadcast_to(fn.scale, shape)
