"""A NumPyro model's density, its unknowns laid out as (images, unknowns), and its observed part.

Everything here works in NumPyro's unconstrained space.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import biject_to

from ..errors import InputError

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


def evaluate(model: Model, values: dict[str, np.ndarray], *args: Any) -> dict[str, np.ndarray]:
    """The model's deterministic sites at ``values`` (constrained; the prior mean where absent)."""
    sites = _compiled_deterministic(model)(values, args)
    return {name: np.asarray(value) for name, value in sites.items()}


@lru_cache(maxsize=8)
def _compiled_deterministic(model: Model):
    @jax.jit
    def deterministic(values, args):
        trace = traced(model, {**prior_means(model, args), **values}, args)
        return {k: site["value"] for k, site in trace.items() if site["type"] == "deterministic"}

    return deterministic


def traced(model, values, args):
    """The trace of a model run with its sites at ``values`` (constrained)."""
    seeded = numpyro.handlers.seed(model, jax.random.key(0))
    return numpyro.handlers.trace(numpyro.handlers.substitute(seeded, data=values)).get_trace(*args)


def in_image_plate(site) -> bool:
    """Whether every image has its own value of a site."""
    return any(frame.name == IMAGE for frame in site["cond_indep_stack"])


def latent_sites(trace):
    """The sites of a trace that are unknown."""
    return {k: s for k, s in trace.items() if s["type"] == "sample" and not s["is_observed"]}


def prior_means(model, args):
    """The prior mean of every unknown, in the shape it is sampled in."""
    latent = latent_sites(traced(model, {}, args))
    return {k: jnp.broadcast_to(s["fn"].mean, s["value"].shape) for k, s in latent.items()}


@lru_cache(maxsize=8)
def compiled_prior_means(model: Model):
    """:func:`prior_means`, compiled: op by op it would take seconds."""
    return jax.jit(partial(prior_means, model))


def find_sites(model, args, init):
    """The latent sites, and where to start: ``init``, the prior mean where it says nothing."""
    latent: dict[str, Any] = {}
    jax.eval_shape(lambda args: latent.update(latent_sites(traced(model, {}, args))), args)
    values = dict(compiled_prior_means(model)(args))
    sites = []
    for name, site in latent.items():
        others = [f.name for f in site["cond_indep_stack"] if f.name != IMAGE]
        if others:
            raise InputError(
                f"latent site {name!r} is in plate {others[0]!r}; only {IMAGE!r} is known"
            )
        per_image, shape = in_image_plate(site), values[name].shape
        sites.append(Site(name, shape[1:] if per_image else shape, per_image, site["fn"].support))
        values[name] = jnp.broadcast_to(jnp.asarray(init.get(name, values[name])), shape)
    if not any(site.per_image for site in sites):
        raise InputError(f"the model has no latent site in the plate {IMAGE!r}")
    return tuple(sites), values


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
    """The part of :func:`density` with no observation in it: cheap, no array over reflections."""
    values = unflatten(sites, theta, phi)
    image, shared = jnp.zeros(len(theta)), jnp.zeros(())
    latent = latent_sites(traced(model, values, args))
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


def location_scale(model, sites, theta, phi, args):
    """What the observed sites expect: for each (mean, ln scale), and the Fisher information of
    the two, masked (:func:`fisher_weights`); None where a site is of no known kind, or in no
    plate over images.
    """
    expected, information = [], []
    for site in traced(model, unflatten(sites, theta, phi), args).values():
        if site["type"] != "sample" or not site["is_observed"]:
            continue
        if not in_image_plate(site):
            return None
        fn, mask = site["fn"], True
        while isinstance(fn, dist.MaskedDistribution | dist.ExpandedDistribution):
            mask = mask & fn._mask if isinstance(fn, dist.MaskedDistribution) else mask
            fn = fn.base_dist
        found = fisher_weights(fn)
        if found is None:
            return None
        shape = jnp.broadcast_shapes(site["fn"].batch_shape, jnp.shape(site["value"]))
        expected.append(tuple(jnp.broadcast_to(x, shape) for x in found[:2]))
        information.append(tuple(x * mask for x in found[2:]))
    return expected, information


def fisher_weights(fn: dist.Distribution):
    """(mean, ln scale, information of the mean, of ln scale) of a normal, Student-t or Poisson
    distribution; None for others.

    1/σ² and 2; (ν+1)/(ν+3)/σ² and 2ν/(ν+3); 1/μ, and no scale.
    """
    if isinstance(fn, dist.Normal):
        return fn.loc, jnp.log(fn.scale), 1 / fn.scale**2, 2.0
    if isinstance(fn, dist.StudentT):
        of_mean, of_scale = (fn.df + 1) / (fn.df + 3), 2 * fn.df / (fn.df + 3)
        return fn.loc, jnp.log(fn.scale), of_mean / fn.scale**2, of_scale
    if isinstance(fn, dist.Poisson):
        return fn.rate, jnp.zeros_like(fn.rate), 1 / fn.rate, 0.0
    return None
