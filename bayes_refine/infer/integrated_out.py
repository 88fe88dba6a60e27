"""Small unknowns that a fit held at zero, integrated out of its curvature.

A model may have more unknowns than it pays to search for: a few numbers c of an image, small and
with the same prior N(0, s²), which displace the others a little.  About the mode of the model
without c, −ln p of an image is a parabola.  With its slope g and its expected curvature H there,
K = H_θθ⁻¹H_θc and

    F = H_cc − H_cθ K,   C = H_cφ − Kᵀ H_θφ,   M = (F + 1/s²)⁻¹,   ĉ = −M g_c,

the image's unknowns move by −K ĉ, their covariance given the shared unknowns φ grows by K M Kᵀ, and
the precision of φ loses CᵀMC.  s is where the density of the slopes g_c of all images, normal with
covariance F + s²F², is largest (empirical Bayes).  The curvature is the one that is expected of the
observations (Fisher's): along what was not searched for ln p may well bend upwards.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize_scalar

from .batches import finite_rows
from .density import Model, place_of
from .laplace import Fit
from .search import Search

RANGE = 5.0  # sd of ln s that are looked at, on either side
LEAST = 1e-9  # of the largest curvature: directions with less say nothing
LEFT = 0.01  # of the shared unknowns' precision, at least


class Held(NamedTuple):
    """What n images say of c numbers that were held at zero, each with its other unknowns at their
    mode given c.

    Attributes:
        slope: (n, c) g_c; own: (n, c, c) F. shift: (n, k, c) K. shared: (n, c, s) C.
        used: (n,) bool, images that are believed; of the others all are zero.
    """

    slope: np.ndarray
    own: np.ndarray
    shift: np.ndarray
    shared: np.ndarray
    used: np.ndarray


def held_numbers(
    model: Model, args: tuple, fit: Fit, name: str, sd: float, used: np.ndarray
) -> Held:
    """Slope and information at the mode of a fit along ``name``, a site that the fit's model lacks.

    Args:
        model: the fit's, with the site in the plate of images, each number normal about 0 with
            ``sd``. used: (n,) bool, images whose mode is known.
    """
    search = Search(model, args, {**fit.values(), name: np.zeros(1)})
    n, k = search.n_images, np.arange(search.start.theta.shape[1])
    held = k[place_of(search.sites, name)[1]]
    names = [site.name for site in fit.sites if site.per_image]
    others = np.concatenate([k[place_of(search.sites, name)[1]] for name in names])
    slope, found = search.scored(search.start)
    slope = slope[:n, held]
    blocks, coupling = np.asarray(found.blocks)[:n], np.asarray(found.coupling)[:n]
    used = used & finite_rows(slope, blocks, coupling)
    some = used[:, None, None]
    blocks, coupling = np.where(some, blocks, np.eye(len(k))), np.where(some, coupling, 0.0)
    mixed = blocks[:, others[:, None], held]
    shift = np.linalg.solve(blocks[:, others[:, None], others], mixed)
    back = np.swapaxes(shift, 1, 2)
    own = blocks[:, held[:, None], held] - np.eye(len(held)) / sd**2 - back @ mixed
    own = np.where(some, _upward((own + np.swapaxes(own, 1, 2)) / 2), 0.0)
    shared = coupling[:, held] - back @ coupling[:, others]
    return Held(np.where(used[:, None], slope, 0.0), own, shift, shared, used)


def width_of_held(held: Held, sd: float, log_sd: float) -> float:
    """s of the greatest density of the slopes, with ln s ~ N(ln sd, log_sd²)."""
    values, vectors = np.linalg.eigh(held.own)
    along = np.einsum("nic,ni->nc", vectors, held.slope)
    told = values > LEAST * max(float(values.max(initial=0.0)), 1e-300)
    values, squares = values[told], along[told] ** 2

    def lost(log_s: float) -> float:
        variance = np.exp(2 * log_s)
        grown = 1 + variance * values
        evidence = 0.5 * np.sum(variance * squares / grown - np.log(grown))
        return float(0.5 * ((log_s - np.log(sd)) / log_sd) ** 2 - evidence)

    limits = (np.log(sd) - RANGE * log_sd, np.log(sd) + RANGE * log_sd)
    options = {"xatol": 1e-4}
    return float(np.exp(minimize_scalar(lost, bounds=limits, method="bounded", options=options).x))


def held_integrated(fit: Fit, held: Held, s: float) -> Fit:
    """The fit with numbers N(0, s²) integrated out.

    Each image moves to its mode given the shared unknowns, which stay where they are.
    """
    inverse = np.linalg.inv(held.own + np.eye(held.own.shape[1]) / s**2)  # M
    mode = -inverse @ held.slope[:, :, None]
    grown = held.shift @ inverse @ np.swapaxes(held.shift, 1, 2)
    precision = np.linalg.inv(np.linalg.inv(fit.image_precision) + grown)
    followed = inverse @ held.shared
    pull = np.linalg.solve(fit.image_precision, fit.coupling) - held.shift @ followed
    touched = held.used[:, None, None]
    return replace(
        fit,
        image=fit.image - (held.shift @ mode)[..., 0],
        image_precision=np.where(touched, precision, fit.image_precision),
        coupling=np.where(touched, precision @ pull, fit.coupling),
        shared_covariance=_with_less(
            fit.shared_covariance, np.einsum("ncs,nct->st", held.shared, followed)
        ),
    )


def _upward(matrices: np.ndarray) -> np.ndarray:
    """Curvatures (n, c, c) without their negative eigenvalues."""
    values, vectors = np.linalg.eigh(matrices)
    return (vectors * np.maximum(values, 0.0)[:, None]) @ np.swapaxes(vectors, 1, 2)


def _with_less(covariance: np.ndarray, lost: np.ndarray) -> np.ndarray:
    """A covariance (s, s) whose precision loses a positive matrix, but no more than it has."""
    if not len(covariance):
        return covariance
    root = np.linalg.cholesky(covariance)
    values, vectors = np.linalg.eigh(root.T @ lost @ root)
    root = root @ vectors / np.sqrt(np.maximum(1 - values, LEFT))
    return root @ root.T
