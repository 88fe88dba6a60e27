"""Families of Gaussian approximations, each starting at the Laplace approximation.

A guide is three functions of its parameters.  All parameters are of order one: places in posterior
sd, and logarithms of widths over those of the Laplace approximation.  ln q is split as the density
is: (n,) of the images given the shared unknowns, and a scalar of the shared unknowns.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import cho_solve, solve_triangular

from .laplace import Fit
from .whitening import Whitening, coloured, log_volume, whitening

Parameters = dict[str, jax.Array]


class Guide(NamedTuple):
    """A family of approximations.

    Attributes:
        name: in words.
        start: fit → (frame, parameters); the frame is constant.
        draw: (parameters, frame, key) → θ (n, k), φ (s,), unconstrained.
        log_density: (parameters, frame, θ, φ) → ln q, (n,) and a scalar.
    """

    name: str
    start: Callable[[Fit], tuple[Any, Parameters]]
    draw: Callable[[Parameters, Any, jax.Array], tuple[jax.Array, jax.Array]]
    log_density: Callable[..., tuple[jax.Array, jax.Array]]


def _normals(key, frame: Whitening):
    """White draws (n, k) and (s,)."""
    of_image, of_shared = jax.random.split(key)
    dtype = frame.image.dtype
    return (
        jax.random.normal(of_image, frame.image.shape, dtype),
        jax.random.normal(of_shared, frame.shared.shape, dtype),
    )


def _unit(x):
    """ln of the unit normal density, summed over the last axis."""
    return -0.5 * jnp.sum(x**2 + jnp.log(2 * jnp.pi), -1)


# -- mean field --------------------------------------------------------------------------------


class _Axes(NamedTuple):
    """The Laplace approximation, and the sd of each unknown given all the others."""

    frame: Whitening
    image_sd: jax.Array
    shared_sd: jax.Array


def _mean_field_start(fit: Fit):
    frame = whitening(fit)
    inner = np.einsum("nks,nkt->st", fit.coupling, np.asarray(frame.slope))
    shared_precision = np.linalg.inv(fit.shared_covariance) + inner
    precision = np.diagonal(fit.image_precision, axis1=1, axis2=2), np.diag(shared_precision)
    axes = _Axes(frame, *(jnp.asarray(p**-0.5) for p in precision))
    zero = jnp.zeros_like(frame.image), jnp.zeros_like(frame.shared)
    names = ("image_place", "shared_place"), ("image_log_width", "shared_log_width")
    return axes, {name: x for pair in names for name, x in zip(pair, zero, strict=True)}


def _mean_field_parts(parameters, axes: _Axes):
    # Means move along the axes of the posterior, not of the family; the family is the same.
    places = coloured(axes.frame, parameters["image_place"], parameters["shared_place"])
    widths = (
        axes.image_sd * jnp.exp(parameters["image_log_width"]),
        axes.shared_sd * jnp.exp(parameters["shared_log_width"]),
    )
    return places, widths


def _mean_field_draw(parameters, axes: _Axes, key):
    places, widths = _mean_field_parts(parameters, axes)
    white = _normals(key, axes.frame)
    theta, phi = (m + w * e for m, w, e in zip(places, widths, white, strict=True))
    return theta, phi


def _mean_field_log_density(parameters, axes: _Axes, theta, phi):
    places, widths = _mean_field_parts(parameters, axes)
    image, shared = (
        _unit((x - m) / w) - jnp.log(w).sum(-1)
        for x, m, w in zip((theta, phi), places, widths, strict=True)
    )
    return image, shared


mean_field = Guide("mean field", _mean_field_start, _mean_field_draw, _mean_field_log_density)


# -- structured --------------------------------------------------------------------------------


def _structured_start(fit: Fit):
    frame = whitening(fit)
    (n, k), s = fit.image.shape, len(fit.shared)
    dtype = frame.image.dtype
    return frame, {
        "image_place": jnp.zeros((n, k), dtype),
        "image_slope": jnp.zeros((n, k, s), dtype),
        "image_factor": jnp.zeros((n, k, k), dtype),
        "shared_place": jnp.zeros(s, dtype),
        "shared_factor": jnp.zeros((s, s), dtype),
    }


def _triangle(factor):
    """Lower triangular, with the exponential of the diagonal."""
    diagonal = jnp.diagonal(factor, axis1=-2, axis2=-1)
    eye = jnp.eye(factor.shape[-1], dtype=factor.dtype)
    return jnp.tril(factor, -1) + jnp.exp(diagonal)[..., None] * eye


def _structured_draw(parameters, frame: Whitening, key):
    image, shared = _normals(key, frame)
    shared = parameters["shared_place"] + _triangle(parameters["shared_factor"]) @ shared
    image = (
        parameters["image_place"]
        + parameters["image_slope"] @ shared
        + jnp.einsum("nij,nj->ni", _triangle(parameters["image_factor"]), image)
    )
    return coloured(frame, image, shared)


def _structured_log_density(parameters, frame: Whitening, theta, phi):
    step = phi - frame.shared
    shared = solve_triangular(frame.shared_factor, step, lower=True)
    away = theta - frame.image + frame.slope @ step
    image = solve_triangular(frame.image_factor, away[..., None], lower=False)[..., 0]
    image = image - parameters["image_place"] - parameters["image_slope"] @ shared
    factor, shared_factor = (_triangle(parameters[f"{x}_factor"]) for x in ("image", "shared"))
    image = solve_triangular(factor, image[..., None], lower=True)[..., 0]
    shared = solve_triangular(shared_factor, shared - parameters["shared_place"], lower=True)
    volume = log_volume(frame)
    return (
        _unit(image) - volume[0] - jnp.trace(parameters["image_factor"], axis1=1, axis2=2),
        _unit(shared) - volume[1] - jnp.trace(parameters["shared_factor"]),
    )


# q(φ) Π q(θ_i | φ), full covariance of φ and of each θ_i, θ_i's mean linear in φ
structured = Guide("structured", _structured_start, _structured_draw, _structured_log_density)


# -- low rank ----------------------------------------------------------------------------------

ALONE = 0.1  # sd of shared coordinates that the common directions leave to each at the start


class _Directions(NamedTuple):
    """The Laplace approximation, and in coordinates white in each image alone U (n·k + s, r) and
    diagonal sd (n·k + s,) of the covariance U Uᵀ + diag².
    """

    frame: Whitening
    common: jax.Array
    alone: jax.Array


def _low_rank_start(rank, fit: Fit):
    frame = whitening(fit)
    (n, k), s = fit.image.shape, len(fit.shared)
    slope = np.asarray(frame.slope) @ np.asarray(frame.shared_factor)
    image = -np.linalg.solve(np.asarray(frame.image_factor), slope)
    common = np.concatenate([image.reshape(n * k, s), np.sqrt(1 - ALONE**2) * np.eye(s)])
    variance = np.concatenate([np.ones(n * k), np.full(s, ALONE**2)])
    r = s if rank is None else min(rank, s)
    left, values, _ = np.linalg.svd(common, full_matrices=False)
    kept = left[:, :r] * values[:r]
    variance += np.maximum((common**2).sum(1) - (kept**2).sum(1), 0)
    directions = _Directions(frame, jnp.asarray(kept), jnp.asarray(np.sqrt(variance)))
    zero = jnp.zeros_like(directions.alone)
    start = {"place": zero, "log_width": zero, "common": jnp.zeros_like(directions.common)}
    return directions, start


def _low_rank_draw(parameters, directions: _Directions, key):
    frame = directions.frame
    of_alone, of_common = jax.random.split(key)
    width = directions.alone * jnp.exp(parameters["log_width"])
    common = directions.common + parameters["common"]
    dtype = width.dtype
    x = (
        parameters["place"]
        + width * jax.random.normal(of_alone, width.shape, dtype)
        + common @ jax.random.normal(of_common, common.shape[1:], dtype)
    )
    image, shared = x[: frame.image.size], x[frame.image.size :]
    image = jnp.einsum("nij,nj->ni", frame.image_factor, image.reshape(frame.image.shape))
    return frame.image + image, frame.shared + frame.shared_factor @ shared


def _low_rank_log_density(parameters, directions: _Directions, theta, phi):
    frame = directions.frame
    away = solve_triangular(frame.image_factor, (theta - frame.image)[..., None], lower=False)
    shared = solve_triangular(frame.shared_factor, phi - frame.shared, lower=True)
    width = directions.alone * jnp.exp(parameters["log_width"])
    x = (jnp.concatenate([away.reshape(-1), shared]) - parameters["place"]) / width
    common = (directions.common + parameters["common"]) / width[:, None]
    # (1 + VVᵀ)⁻¹ and its determinant through 1 + VᵀV
    inner = jnp.eye(common.shape[1], dtype=x.dtype) + common.T @ common
    lower = jnp.linalg.cholesky(inner)
    along = common.T @ x
    log_det = jnp.log(width).sum() + jnp.log(jnp.diagonal(lower)).sum()
    total = _unit(x) + 0.5 * along @ cho_solve((lower, True), along) - log_det
    volume = log_volume(frame)
    return jnp.zeros(len(theta)), total - volume[0].sum() - volume[1]


def low_rank(rank: int | None = None) -> Guide:
    """Independent widths and ``rank`` common directions, in coordinates white in each image.

    By default there are as many directions as shared unknowns.  The Laplace approximation, whose
    images depend on each other through the shared unknowns, is then nearly in the family.
    """
    name = "low rank" if rank is None else f"low rank ({rank})"
    return Guide(name, partial(_low_rank_start, rank), _low_rank_draw, _low_rank_log_density)
