"""Importance sampling about the Laplace approximation in two levels: shared unknowns, then images.

Given the shared unknowns φ the images are independent, so that each can be weighted by itself,

    Z_i(φ) = ∫ p(y_i, θ_i | φ) dθ_i ≈ (1/M) Σ_m p(y_i, θ_im | φ)/q(θ_im | φ),

and the draws of φ, some ten unknowns whatever the number of images, by p(φ) Π_i Z_i(φ)/q(φ).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaln

from ..util.kept_programs import kept
from .density import Model, Site, density, unflatten
from .diagnostics import psis
from .laplace import Fit
from .whitening import Whitening, coloured, log_volume, whitening

NU = 7.0  # of the Student-t that proposes an image's unknowns, with tails heavier than normal


@dataclass(frozen=True)
class Nested:
    """Weighted draws of the shared unknowns of n images, and of each image given these.

    Attributes:
        sites: the unknowns.
        shared: (S, s) unconstrained, from the Laplace approximation.
        log_weights: (S,) ln of their normalised weights, Pareto-smoothed.
        log_evidence: (S, n) ln Z_i(φ), nats.
        image: (S, n, k) unconstrained, one draw of each image given each φ.
        khat: of the weights of φ. image_khat: (n,) of each image's own.
    """

    sites: tuple[Site, ...]
    shared: np.ndarray
    log_weights: np.ndarray
    log_evidence: np.ndarray
    image: np.ndarray
    khat: float
    image_khat: np.ndarray

    def values(self) -> dict[str, np.ndarray]:
        """The draws (S, ...) by site, constrained, with weights ``log_weights``."""
        draw = jax.vmap(partial(unflatten, self.sites))(
            jnp.asarray(self.image), jnp.asarray(self.shared)
        )
        return {name: np.asarray(value) for name, value in draw.items()}

    def draws(self, n_draws: int, *, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Draws (n_draws, ...) by site without weights; draws of large weight appear repeatedly."""
        weights = np.exp(self.log_weights)
        rows = rng.choice(len(weights), n_draws, p=weights / weights.sum())
        return {name: value[rows] for name, value in self.values().items()}


def nested_draws(
    fit: Fit,
    model: Model,
    *args: Any,
    rng: np.random.Generator,
    n_draws: int = 400,
    n_image: int = 100,
) -> Nested:
    """Weigh draws from the Laplace approximation of a model's posterior.

    Args:
        fit: of ``map_fit`` for the same model and ``args``.
        n_draws: S, of the shared unknowns.  Half as many draws are made first to find their mean,
            which is not the joint mode: shared errors are larger with the images integrated out.
        n_image: M, number of draws of each image for each of the S draws.  The noise of Z_i makes
            the weights less even, but not biased.
    """
    weigh = partial(_weighted, fit, model, args, n_image, rng=rng)
    frame = whitening(fit)
    before = weigh(frame, max(n_draws // 2, 1))
    step = np.exp(before.log_weights) @ before.shared - frame.shared
    return weigh(
        frame._replace(image=frame.image - frame.slope @ step, shared=frame.shared + step), n_draws
    )


def _weighted(
    fit: Fit, model, args, n_image: int, frame: Whitening, n_draws: int, *, rng
) -> Nested:
    """Draws about a frame's centre and their weights."""
    white = jnp.asarray(rng.standard_normal((n_draws, len(fit.shared))))
    keys = jax.random.split(jax.random.key(int(rng.integers(2**31))), n_draws)
    volume, volume_shared = log_volume(frame)

    one = _compiled_one(model, fit.sites, n_image)
    found = [
        jax.tree.map(np.asarray, one(*x, frame, volume, args))
        for x in zip(white, keys, strict=True)
    ]
    of_images, of_shared, image, shared = (np.stack(x) for x in zip(*found, strict=True))
    total = np.logaddexp.reduce(of_images, axis=1)  # of (S, M, n)
    log_evidence = total - np.log(n_image)
    log_q = -0.5 * np.sum(np.asarray(white) ** 2, 1) - float(volume_shared)
    log_weights, khat = psis(of_shared - log_q + log_evidence.sum(1))
    _, image_khat = psis((of_images - total[:, None]).reshape(-1, total.shape[1]).T)
    return Nested(
        sites=fit.sites,
        shared=shared,
        log_weights=log_weights,
        log_evidence=log_evidence,
        image=image,
        khat=float(khat),
        image_khat=image_khat,
    )


@lru_cache(maxsize=8)
def _compiled_one(model: Model, sites: tuple[Site, ...], n_image: int):
    """For one φ: ln weights (M, n) of proposals, ln p of the shared priors, and a weighted draw."""

    @kept
    def one(white, key, frame: Whitening, volume, args):
        shape = (n_image, *frame.image.shape)
        of_place, of_length, of_choice = jax.random.split(key, 3)
        length = NU / jax.random.chisquare(of_length, NU, (*shape[:2], 1))
        z = jax.random.normal(of_place, shape) * jnp.sqrt(length)

        def at(z):
            image, shared = density(model, sites, *coloured(frame, z, white), args)
            return jnp.where(jnp.isfinite(image), image, -jnp.inf), shared

        image, shared = jax.lax.map(at, z, batch_size=16)
        log_weights = image - (_log_t(z, shape[2]) - volume)
        chosen = jax.random.categorical(of_choice, log_weights, axis=0)  # (n,)
        taken = jnp.take_along_axis(z, chosen[None, :, None], axis=0)[0]
        return log_weights, shared[0], *coloured(frame, taken, white)

    return one


def _log_t(x, k: int):
    """ln of the k-dimensional standard Student-t density, summed over the last axis."""
    constant = gammaln((NU + k) / 2) - gammaln(NU / 2) - 0.5 * k * jnp.log(NU * jnp.pi)
    return constant - 0.5 * (NU + k) * jnp.log1p(jnp.sum(x**2, -1) / NU)
