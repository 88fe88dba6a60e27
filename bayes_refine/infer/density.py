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

from ..util.errors import InputError

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
    full = dict(compiled_prior_means(model)(args))
    for name, mean in full.items():
        if name in values:  # in one shape, so that one program serves all
            full[name] = np.broadcast_to(np.asarray(values[name], mean.dtype), mean.shape)
    sites = _compiled_deterministic(model)(full, args)
    return {name: np.asarray(value) for name, value in sites.items()}


@lru_cache(maxsize=8)
def _compiled_deterministic(model: Model):
    @jax.jit
    def deterministic(values, args):
        trace = traced(model, values, args)
        return {k: site["value"] for k, site in trace.items() if site["type"] == "deterministic"}

    return deterministic


def locations(model: Model, values: dict[str, np.ndarray], *args: Any) -> dict[str, Any]:
    """Location and scale, arrays of the observations' shape, of each observed site at ``values``.

    Sites that are neither normal, Student-t nor Poisson are left out.

        mean, sd = locations(model, run.fit.values(), run.observations, run.priors)["intensity"]
    """
    found = _compiled_locations(model)(values, args)
    return {name: tuple(map(np.asarray, pair)) for name, pair in found.items()}


@lru_cache(maxsize=8)
def _compiled_locations(model: Model):
    @jax.jit
    def of_observed(values, args):
        trace = traced(model, {**prior_means(model, args), **values}, args)
        observed = {k: s for k, s in trace.items() if s["type"] == "sample" and s["is_observed"]}
        rows = {k: expected(_unwrapped(s["fn"])) for k, s in observed.items()}
        return {k: (x.mean, jnp.exp(x.log_scale)) for k, x in rows.items() if x is not None}

    return of_observed


def _unwrapped(fn: dist.Distribution) -> dist.Distribution:
    """The distribution below masks and expansions."""
    while isinstance(fn, dist.MaskedDistribution | dist.ExpandedDistribution):
        fn = fn.base_dist
    return fn


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

    The model runs as far as its last unknown only: what follows, the physics of every reflection,
    says nothing of the priors and takes most of the time of a trace.
    """
    seeded = numpyro.handlers.seed(model, jax.random.key(0))
    substituted = numpyro.handlers.substitute(seeded, data=values)
    run = _LatentSites(substituted, frozenset(site.name for site in sites))
    with suppress(_Known):
        run(*args)
    return run.found


def _not_for_these(error: AttributeError) -> str:
    """The sentence about a model that asks its arguments for what they do not have."""
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
    names: list[str] = []

    def note(args):
        sites = traced(model, {}, args).items()
        names.extend(k for k, s in sites if s["type"] == "sample" and s["is_observed"])

    jax.eval_shape(note, args)
    return tuple(names)


def prior_means(model, args):
    """The prior mean of every unknown, in the shape it is sampled in."""
    latent = traced_priors(model, sites_of(model, args), {}, args)
    return {k: jnp.broadcast_to(s["fn"].mean, s["value"].shape) for k, s in latent.items()}


@lru_cache(maxsize=8)
def compiled_prior_means(model: Model):
    """:func:`prior_means`, compiled: op by op it would take seconds."""
    return jax.jit(partial(prior_means, model))


def sites_of(model: Model, args: Any) -> tuple[Site, ...]:
    """The latent sites of a model of ``args``; traced once for arguments of the same shapes.

    Raises:
        InputError: a latent site is in another plate than that of images.
    """
    leaves, tree = jax.tree.flatten(args)
    shapes = tuple(jax.ShapeDtypeStruct(np.shape(x), jnp.result_type(x)) for x in leaves)
    return _sites_of_shapes(model, tree, shapes)


@lru_cache(maxsize=64)
def _sites_of_shapes(model: Model, tree, shapes) -> tuple[Site, ...]:
    latent: dict[str, Any] = {}
    args = jax.tree.unflatten(tree, shapes)
    jax.eval_shape(lambda args: latent.update(latent_sites(traced(model, {}, args))), args)
    sites = []
    for name, site in latent.items():
        others = [f.name for f in site["cond_indep_stack"] if f.name != IMAGE]
        if others:
            raise InputError(
                f"latent site {name!r} is in plate {others[0]!r}; only {IMAGE!r} is known"
            )
        per_image, shape = in_image_plate(site), np.shape(site["value"])
        sites.append(Site(name, shape[1:] if per_image else shape, per_image, site["fn"].support))
    return tuple(sites)


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
    """ln p in unconstrained space, split: (n,) of the images and a scalar of what is shared."""
    values, image, shared = {}, jnp.zeros(len(theta)), jnp.zeros(())
    for site, part in split(sites, theta, phi):
        transform = biject_to(site.support)
        values[site.name] = transform(part)
        jacobian = transform.log_abs_det_jacobian(part, values[site.name])
        if site.per_image:
            image += jacobian.reshape(len(theta), -1).sum(1)
        else:
            shared += jacobian.sum()
    for site in traced(model, values, args).values():
        if site["type"] != "sample":
            continue
        log_prob = site["fn"].log_prob(site["value"])
        if site["scale"] is not None:
            log_prob = log_prob * site["scale"]
        if in_image_plate(site):
            image += log_prob.reshape(len(theta), -1).sum(1)
        else:
            shared += log_prob.sum()
    return image, shared


def prior_density(model, sites, theta, phi, args):
    """The part of :func:`density` without observations: cheap, without arrays over reflections."""
    values = unflatten(sites, theta, phi)
    image, shared = jnp.zeros(len(theta)), jnp.zeros(())
    latent = traced_priors(model, sites, values, args)
    for site, part in split(sites, theta, phi):
        jacobian = biject_to(site.support).log_abs_det_jacobian(part, values[site.name])
        log_prob = latent[site.name]["fn"].log_prob(values[site.name])
        if site.per_image:
            image += (jacobian.reshape(len(theta), -1).sum(1)) + log_prob.reshape(
                len(theta), -1
            ).sum(1)
        else:
            shared += jacobian.sum() + log_prob.sum()
    return image, shared


class Expected(NamedTuple):
    """Expectations at an observed site: arrays of its observations' shape, except log_df.

    Attributes:
        mean, log_scale: of each observation; a Poisson count has log_scale 0.
        log_df: ln ν of a Student-t, a scalar; 0 for other distributions.
        of_mean, of_scale, of_both, of_df: Fisher information of the mean, of ln scale, of ln scale
            with ln ν, and of ln ν; zero where masked.
    """

    mean: jax.Array
    log_scale: jax.Array
    log_df: jax.Array
    of_mean: jax.Array
    of_scale: jax.Array | float
    of_both: jax.Array | float
    of_df: jax.Array | float


def expectations(model, sites, theta, phi, args) -> list[Expected] | None:
    """Of each observed site, masked; None where one is of no known kind, or in no plate over
    images.
    """
    found = []
    for site in traced(model, unflatten(sites, theta, phi), args).values():
        if site["type"] != "sample" or not site["is_observed"]:
            continue
        if not in_image_plate(site):
            return None
        fn, mask = site["fn"], jnp.array(True)
        while isinstance(fn, dist.MaskedDistribution | dist.ExpandedDistribution):
            mask = mask & fn._mask if isinstance(fn, dist.MaskedDistribution) else mask
            fn = fn.base_dist
        row = expected(fn)
        if row is None:
            return None
        shape = jnp.broadcast_shapes(site["fn"].batch_shape, jnp.shape(site["value"]))
        mask = jnp.broadcast_to(mask, shape)
        mean, log_scale = (jnp.broadcast_to(x, shape) for x in row[:2])
        found.append(Expected(mean, log_scale, row.log_df, *(x * mask for x in row[3:])))
    return found


def expected(fn: dist.Distribution) -> Expected | None:
    """Of a normal, Student-t or Poisson distribution, nothing masked; None for others.

    Information of the mean 1/σ², (ν + 1)/(ν + 3)/σ², 1/μ; of ln σ 2, 2ν/(ν + 3); of a Student-t's
    ln σ with ln ν −2ν/((ν + 1)(ν + 3)), and of its ln ν
    ν²·(ψ′(ν/2) − ψ′((ν + 1)/2))/4 − ν(ν + 5)/(2(ν + 1)(ν + 3)) (Lange, Little & Taylor 1989).
    """
    zero = jnp.zeros(())
    if isinstance(fn, dist.Normal):
        return Expected(fn.loc, jnp.log(fn.scale), zero, 1 / fn.scale**2, 2.0, 0.0, 0.0)
    if isinstance(fn, dist.StudentT) and jnp.size(fn.df) == 1:
        nu = jnp.reshape(fn.df, ())
        of_mean, of_scale = (nu + 1) / (nu + 3) / fn.scale**2, 2 * nu / (nu + 3)
        of_both = -2 * nu / ((nu + 1) * (nu + 3))
        trigamma = partial(jax.scipy.special.polygamma, 1)
        of_df = nu**2 * (trigamma(nu / 2) - trigamma((nu + 1) / 2)) / 4
        of_df -= nu * (nu + 5) / (2 * (nu + 1) * (nu + 3))
        return Expected(fn.loc, jnp.log(fn.scale), jnp.log(nu), of_mean, of_scale, of_both, of_df)
    if isinstance(fn, dist.Poisson):
        return Expected(fn.rate, jnp.zeros_like(fn.rate), zero, 1 / fn.rate, 0.0, 0.0, 0.0)
    return None
