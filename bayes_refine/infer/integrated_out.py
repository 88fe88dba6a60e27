"""Small unknowns of each image that a fit left at zero, integrated out afterwards.

Some unknowns cost more to search for than they are worth: a few numbers c of each image, all small
and with the same prior N(0, s²), which displace the image's other unknowns θ a little.  Near the
mode of the model without c, −ln p of an image is taken as a parabola in θ, c and the shared
unknowns φ.  With its slope g and its expected curvature H at that mode, K = H_θθ⁻¹H_θc and

    F = H_cc − H_cθ K,   C = H_cφ − Kᵀ H_θφ,   M = (F + 1/s²)⁻¹,   ĉ = −M g_c,

integrating c out moves θ by −K ĉ, adds K M Kᵀ to the covariance of θ given φ, and takes CᵀMC from
the precision of φ.  s maximises the density of the slopes g_c of all images, which are normal with
covariance F + s²F² (empirical Bayes).  H is the curvature that is expected of the observations
(Fisher's), which is never negative; the observed curvature along c may be, since the fit did not
search along c for a maximum.
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

RANGE = 5.0  # s is sought within this many prior sd of ln s on either side
LEAST = 1e-9  # directions of c with less than this fraction of the largest curvature are left out
LEFT = 0.01  # fraction of the shared unknowns' precision that is left at least


class Held(NamedTuple):
    """Slope and curvature of −ln p of n images along c numbers that a fit held at zero.

    Each image's other unknowns follow c: they are at their mode given c.

    Attributes:
        slope: (n, c) g_c; own: (n, c, c) F. shift: (n, k, c) K. shared: (n, c, s) C.
        used: (n,) bool, images that count; the arrays are zero for all others.
        weight: (n,) 1/k of each of k images that share their c (:meth:`shared_by`), else 1.
    """

    slope: np.ndarray
    own: np.ndarray
    shift: np.ndarray
    shared: np.ndarray
    used: np.ndarray
    weight: np.ndarray | float = 1.0

    def shared_by(self, group: np.ndarray) -> Held:
        """The same where images of one ``group`` (n,) have the same c: g_c, F and C are sums."""

        def total(values: np.ndarray) -> np.ndarray:
            sums = np.zeros((int(group.max()) + 1, *values.shape[1:]))
            np.add.at(sums, group, values)
            return sums[group]

        return self._replace(
            slope=total(self.slope),
            own=total(self.own),
            shared=total(self.shared),
            weight=1 / np.bincount(group)[group],
        )


def held_numbers(
    model: Model, args: tuple, fit: Fit, name: str, sd: float, used: np.ndarray
) -> Held:
    """Differentiate −ln p along ``name``, a site that the fitted model lacks, at the fit's mode.

    Args:
        model: the fitted model with the site ``name`` added in the plate of images; each number of
            the site is normal about 0 with ``sd``.
        used: (n,) bool, images whose mode the fit found.
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
    """s that maximises the density of the slopes times its prior, ln s ~ N(ln sd, log_sd²)."""
    values, vectors = np.linalg.eigh(held.own)
    along = np.einsum("nic,ni->nc", vectors, held.slope)
    told = values > LEAST * max(float(values.max(initial=0.0)), 1e-300)
    weight = np.broadcast_to(np.reshape(held.weight, (-1, 1)), values.shape)[told]
    values, squares = values[told], along[told] ** 2

    def lost(log_s: float) -> float:
        variance = np.exp(2 * log_s)
        grown = 1 + variance * values
        evidence = 0.5 * np.sum(weight * (variance * squares / grown - np.log(grown)))
        return float(0.5 * ((log_s - np.log(sd)) / log_sd) ** 2 - evidence)

    limits = (np.log(sd) - RANGE * log_sd, np.log(sd) + RANGE * log_sd)
    options = {"xatol": 1e-4}
    return float(np.exp(minimize_scalar(lost, bounds=limits, method="bounded", options=options).x))


def held_integrated(fit: Fit, held: Held, s: float) -> Fit:
    """Integrate numbers c ~ N(0, s²) out of a fit (equations: module docstring).

    Each image moves to its mode given the shared unknowns; the shared unknowns do not move.  Of
    images that share c, each has the variance that c causes; their covariances are not kept.
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
            fit.shared_covariance,
            np.einsum("ncs,nct->st", held.shared, followed * np.reshape(held.weight, (-1, 1, 1))),
        ),
    )


def _upward(matrices: np.ndarray) -> np.ndarray:
    """Curvatures (n, c, c) with negative eigenvalues set to zero."""
    values, vectors = np.linalg.eigh(matrices)
    return (vectors * np.maximum(values, 0.0)[:, None]) @ np.swapaxes(vectors, 1, 2)


def _with_less(covariance: np.ndarray, lost: np.ndarray) -> np.ndarray:
    """Covariance (s, s) after its precision has lost a positive matrix, down to ``LEFT`` of it."""
    if not len(covariance):
        return covariance
    root = np.linalg.cholesky(covariance)
    values, vectors = np.linalg.eigh(root.T @ lost @ root)
    root = root @ vectors / np.sqrt(np.maximum(1 - values, LEFT))
    return root @ root.T
