"""A posterior mode with its curvature, draws from it, and predictions of the draws."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from ..util.kept_programs import kept
from ..util.large_arrays import in_slices, joined, slices
from ..util.student_t import student_t_of
from .curvature import IMAGES
from .density import Model, Site, observed_shapes, place_of, traced, unflatten
from .summary import Summary

BLOCK = 1 << 19  # numbers of images that are drawn at a time
AT_A_TIME = 10  # draws that one call predicts: it takes half the time of ten calls


@dataclass(frozen=True)
class Fit:
    """A posterior mode and its curvature, for n images with k unknowns each and s shared ones.

    Attributes:
        sites: the unknowns, in the order of the columns below.
        image: (n, k) and shared: (s,), the mode, unconstrained.
        image_precision: (n, k, k), curvature of each image with the shared unknowns held.
        coupling: (n, k, s), mixed curvature of an image's and the shared unknowns (``curvature``).
        shared_covariance: (s, s), Laplace, the images' unknowns integrated out.
        distance: (n,) of each image's unknowns to the mode, in posterior sd (0 at the mode).
        shared_distance: distance of the shared unknowns to the mode, in posterior sd.
        status: (n,) ``util.status.Status``: converged, or what is wrong with the image.
        iterations: Newton steps taken.
        log_density: ln p at the mode.
        shared_precision: (s, s), curvature of the shared unknowns with the images held; None where
            not known.
        image_prior_sd: (k,) of an image's unknowns before its data; None where not known.
        image_shift: (n, k) and shared_shift: (s,), posterior mean less mode; 0 where not known.
        by_batch: what each batch of images says of the shared unknowns; None where not known.
    """

    sites: tuple[Site, ...]
    image: np.ndarray
    shared: np.ndarray
    image_precision: np.ndarray
    coupling: np.ndarray
    shared_covariance: np.ndarray
    distance: np.ndarray
    shared_distance: float
    status: np.ndarray
    iterations: int
    log_density: float
    shared_precision: np.ndarray | None = None
    image_prior_sd: np.ndarray | None = None
    image_shift: np.ndarray | float = 0.0
    shared_shift: np.ndarray | float = 0.0
    by_batch: Summary | None = None

    def values(self) -> dict[str, np.ndarray]:
        """The mode by site, in the sites' own (constrained) space."""
        return {k: np.asarray(v) for k, v in unflatten(self.sites, self.image, self.shared).items()}

    def image_covariance(self, images: slice | np.ndarray = slice(None)) -> np.ndarray:
        """(n, k, k) Laplace covariance of the unknowns of some images, the shared ones integrated
        out."""
        slope = np.linalg.solve(self.image_precision[images], self.coupling[images])
        inverse = np.linalg.inv(self.image_precision[images])
        return inverse + slope @ self.shared_covariance @ np.swapaxes(slope, 1, 2)

    def image_variance(self) -> np.ndarray:
        """(n, k) diagonals of :meth:`image_covariance`."""
        found = np.empty(self.image.shape)
        for part in slices(len(found), size=IMAGES):
            found[part] = np.diagonal(self.image_covariance(part), axis1=1, axis2=2)
        return found

    def sd(self, name: str) -> np.ndarray:
        """Laplace sd of one (unconstrained) site: (n, ...) or the event's shape."""
        site, columns = place_of(self.sites, name)
        if site.per_image:
            return np.sqrt(self.image_variance()[:, columns]).reshape(-1, *site.shape)
        return np.sqrt(np.diag(self.shared_covariance)[columns]).reshape(site.shape)


def laplace_draws(fit: Fit, n_draws: int, *, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Draws (n_draws, ...) by site from the Laplace approximation, constrained.

    Draws are about the posterior mean where the fit knows the mean, else about the mode.  Shared
    unknowns are drawn from their marginal, each image's from its conditional given those, which is
    exact for a Gaussian with a block Hessian, in a time linear in the number of images.  Many draws
    are in files (``util.large_arrays``).

        draws = laplace_draws(run.fit, 100, rng=np.random.default_rng(0))
        draws["log_G"].shape  # (100, n, 1)
    """
    names = [site.name for site in fit.sites]
    blocks = draws_in_blocks(fit, n_draws, rng=rng)
    columns = joined([block[name] for name in names] for block in blocks)
    return dict(zip(names, columns, strict=True))


def draws_in_blocks(
    fit: Fit, n_draws: int, *, rng: np.random.Generator
) -> Iterator[dict[str, np.ndarray]]:
    """The draws of :func:`laplace_draws` a few at a time, (d, ...) by site."""
    off = _gaussian(np.linalg.inv(fit.shared_covariance), (n_draws,), rng=rng)
    (slope,) = in_slices(
        lambda a, b: [np.linalg.solve(a, b)], fit.image_precision, fit.coupling, size=IMAGES
    )
    shared = fit.shared + fit.shared_shift + off
    size = max(1, BLOCK // max(fit.image.size, 1))
    for start in range(0, n_draws, size):
        some = slice(start, min(start + size, n_draws))
        image = fit.image + fit.image_shift - np.einsum("nks,ds->dnk", slope, off[some])
        image += _gaussian(fit.image_precision, (len(image),), rng=rng)
        draw = jax.vmap(partial(unflatten, fit.sites))(
            jnp.asarray(image), jnp.asarray(shared[some])
        )
        yield {name: np.asarray(value) for name, value in draw.items()}


def predictive_draws(
    model: Model, draws: dict[str, np.ndarray], *args: Any, rng: np.random.Generator
) -> Iterator[dict[str, tuple[np.ndarray, np.ndarray]]]:
    """For each draw, ln p of every observed site and a replicate of it: posterior predictive.

    Ten draws at a time are in memory.  Each array has the shape of the site's observation; values
    where the model masks the observation have no meaning.
    """
    several, args = _compiled_predictive(model), jax.device_put(args)
    shapes = observed_shapes(model, args)
    n = len(next(iter(draws.values())))
    for start in range(0, n, AT_A_TIME):
        # the last draw fills the last part: all parts have one shape, and so one program
        rows = np.minimum(np.arange(start, start + min(AT_A_TIME, n)), n - 1)
        seeds = rng.integers(2**31, size=len(rows))
        uniform = {name: 1 - rng.random((len(rows), 2, *shape)) for name, shape in shapes}
        some = {name: value[rows] for name, value in draws.items()}
        arrays = jax.tree.map(np.asarray, several(seeds, uniform, some, args))
        for i in range(min(len(rows), n - start)):
            yield {k: (ln_p[i], replica[i]) for k, (ln_p, replica) in arrays.items()}


@lru_cache(maxsize=8)
def _compiled_predictive(model: Model):
    def one(seed, uniform, values, args):
        observed = {k: s for k, s in traced(model, values, args).items() if s["type"] == "sample"}
        observed = {k: s for k, s in observed.items() if s["is_observed"]}
        keys = jax.random.split(jax.random.key(seed), max(len(observed), 1))
        return {
            name: (site["fn"].log_prob(site["value"]), _replicate(site["fn"], uniform[name], k))
            for k, (name, site) in zip(keys, observed.items(), strict=False)
        }

    @kept
    def several(seeds, uniform, values, args):
        return jax.vmap(lambda *each: one(*each, args))(seeds, uniform, values)

    return several


def _replicate(fn: dist.Distribution, uniform: jax.Array, key: jax.Array) -> jax.Array:
    """A draw: of a Student-t from uniform numbers (2, ...), which NumPy draws, since random numbers
    of JAX would double the time to compile."""
    base = fn
    while isinstance(base, dist.MaskedDistribution | dist.ExpandedDistribution):
        base = base.base_dist
    if not isinstance(base, dist.StudentT):
        return fn.sample(key)
    return base.loc + base.scale * student_t_of(uniform[0], uniform[1], base.df)


def _gaussian(precision, shape, *, rng):
    """Draws (*shape, ..., k) of N(0, precision⁻¹)."""
    lower = np.linalg.cholesky(precision)
    white = rng.standard_normal((*shape, *precision.shape[:-1]))
    return np.linalg.solve(np.swapaxes(lower, -1, -2), white[..., None])[..., 0]
