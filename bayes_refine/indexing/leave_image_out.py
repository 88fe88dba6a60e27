"""What an image's observations say under each operation, given what is known without the image.

J_i = g_i·I_h + noise, h the reflection that an operation says it is.  With mean m and variance v
of I_h by all other images and Wilson's prior, or by a reference,

    J ~ t_ν(γ·g·m, s²),    s² = V_bg + V_sig·g·m + (a·g·m)² + (γ·g)²·v,

and γ, a correction of the image's scale, is integrated out for each operation: a scale that was
fitted to the wrong intensities does not speak for them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import gemmi
import jax
import numpy as np
from scipy.special import gammaln, softmax

from ..geometry.miller import unique_hkl
from ..geometry.symmetry import asu_map, epsilon_centric
from ..physics import true_intensities
from ..physics.reference import wilson_mean
from ..physics.variance_of_J import variance_of_J
from .ambiguity import Ambiguity, transformed

SCALE_SD = 0.5  # of γ about 1
CHUNK = 1 << 14  # reflections in one quadrature: one shape is compiled


@dataclass(frozen=True)
class Integrated:
    """Observations of a run, flat over images (n in all), with scales good enough to choose by.

    Attributes:
        hkl: (n, 3) as indexed, not reduced. image: (n,) int, 0..n_images − 1.
        J: (n,) intensities. scale: (n,) g > 0, photons (or the file's unit) per unit of I.
        variance: (n,) of J at I = 0. variance_signal: (n,) what each unit of g·I adds to it: about
            1 for photons, 0 where a file's sigmas hold all there is.
    """

    hkl: np.ndarray
    image: np.ndarray
    J: np.ndarray
    scale: np.ndarray
    variance: np.ndarray
    variance_signal: np.ndarray
    n_images: int


class ByReflection(NamedTuple):
    """Which reflection each observation is under each operation.

    code (n, K): of m unique reflections. group (n, K): of N pairs (image, reflection), the
    reflection of each pair in ``reflection`` (N,). hkl (m, 3), d, epsilon, centric (m,).
    mean: (m,) Wilson's ε·Σ(d), on the scale of J/g.
    """

    code: np.ndarray
    group: np.ndarray
    reflection: np.ndarray
    hkl: np.ndarray
    d: np.ndarray
    epsilon: np.ndarray
    centric: np.ndarray
    mean: np.ndarray


def part(obs: Integrated, images: np.ndarray) -> Integrated:
    """The observations of some images (ascending), numbered anew."""
    rows = np.isin(obs.image, images)
    names = ("hkl", "image", "J", "scale", "variance", "variance_signal")
    some = {name: getattr(obs, name)[rows] for name in names}
    some["image"] = np.searchsorted(images, some["image"])
    return Integrated(**some, n_images=len(images))


def by_reflection(obs: Integrated, ambiguity: Ambiguity, cell: gemmi.UnitCell) -> ByReflection:
    """Which reflection of the asymmetric unit each observation is under each operation.

    Raises:
        InputError: the mean intensity is positive nowhere.
    """
    turned = [transformed(obs.hkl, R) for R in ambiguity.operations]
    asu = np.stack([asu_map(hkl, ambiguity.space_group)[0] for hkl in turned], 1)
    first, code = unique_hkl(asu.reshape(-1, 3))
    hkl = asu.reshape(-1, 3)[first]
    code = code.reshape(asu.shape[:2])
    m = len(hkl)
    pair, group = np.unique(obs.image[:, None] * m + code, return_inverse=True)
    epsilon, centric = epsilon_centric(hkl, ambiguity.space_group)
    d = cell.calculate_d_array(hkl)
    at = d[code[:, 0]]
    mean = wilson_mean(at, obs.J / epsilon[code[:, 0]], d) / wilson_mean(at, obs.scale, d)
    return ByReflection(
        code, group.reshape(code.shape), pair % m, hkl, d, epsilon, centric, epsilon * mean
    )


# --- what is known without an image, and what the image says -------------------------------

# (Σ g²/s², Σ gJ/s², mean S, centric) → posterior mean and variance of I, arrays (N,)
Moments = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


class Beliefs(NamedTuple):
    """State of the iteration.

    share (n_images, K): probability of each operation. gamma (n_images,). log_likelihood
    (n_images, K). expected (n,): g·I without the observation's image. weight (n,): of a
    Student-t residual as a normal one, (ν + 1)/(ν + z²).
    """

    share: np.ndarray
    gamma: np.ndarray
    log_likelihood: np.ndarray
    expected: np.ndarray
    weight: np.ndarray


class Said(NamedTuple):
    """What images say under each operation: ln p, γ, and Student-t weights."""

    log_likelihood: np.ndarray  # (n_images, K)
    gamma: np.ndarray  # (n_images, K)
    weight: np.ndarray  # (n, K)


def unscaled(obs: Integrated, grouped: ByReflection, share: np.ndarray) -> Beliefs:
    """Where to start: the scales as they are, Wilson's mean expected of every reflection."""
    expected = obs.scale * grouped.mean[grouped.code[:, 0]]
    return Beliefs(share, np.ones(len(share)), 0 * share, expected, np.ones(len(obs.J)))


def updated(
    obs, grouped: ByReflection, old: Beliefs, a: float, nu: float, moments: Moments
) -> Beliefs:
    """One turn: what others know with their shares, what each image says to that, its new shares.

    Args:
        a, nu: of the residuals. moments: :func:`normal_moments` or :func:`wilson_moments`.
    """
    expected = np.maximum(old.expected, 0)
    s2 = variance_of_J(expected, obs.variance, obs.variance_signal, a**2)
    g, w = obs.scale * old.gamma[obs.image], (old.weight / s2)[:, None] * old.share[obs.image]
    own = [
        np.bincount(grouped.group.ravel(), (x[:, None] * w).ravel(), len(grouped.reflection))
        for x in (g**2, g * obs.J)
    ]
    others = [
        np.bincount(grouped.reflection, x, len(grouped.hkl))[grouped.reflection] - x for x in own
    ]
    S, centric = grouped.mean[grouped.reflection], grouped.centric[grouped.reflection]
    m, v = moments(np.maximum(others[0], 1e-6 / S**2), others[1], S, centric)
    said = likelihood(obs, grouped.group, m, v, a, nu)
    share = softmax(said.log_likelihood, axis=1)
    here = share[obs.image]
    gamma = (share * said.gamma).sum(1)
    return Beliefs(
        share=share,
        gamma=gamma / np.median(gamma),
        log_likelihood=said.log_likelihood,
        expected=obs.scale * gamma[obs.image] * (here * m[grouped.group]).sum(1),
        weight=(here * said.weight).sum(1),
    )


def likelihood(obs, at: np.ndarray, m, v, a: float, nu: float) -> Said:
    """ln p(J of an image | operation), γ integrated out by Laplace's method about its mode.

    Args:
        at: (n, K) where in ``m`` and ``v`` an observation's reflection is.
        m, v: mean and variance of I.
    """
    n, (_, K) = obs.n_images, at.shape
    log_likelihood, gammas, weights = np.empty((n, K)), np.empty((n, K)), np.empty(at.shape)
    prior = SCALE_SD**-2

    def by_image(x):
        return np.bincount(obs.image, x, n)

    for k in range(K):
        e, spread = obs.scale * m[at[:, k]], obs.scale**2 * v[at[:, k]]
        fixed = obs.variance + obs.variance_signal * np.maximum(e, 0) + (a * e) ** 2
        gamma = np.ones(n)
        for _ in range(3):  # iteratively reweighted least squares
            scale = gamma[obs.image]
            s2 = fixed + scale**2 * spread
            z2 = (obs.J - scale * e) ** 2 / s2
            weight = 1.0 if math.isinf(nu) else (nu + 1) / (nu + z2)
            information = by_image(weight * e**2 / s2) + prior
            gamma = np.maximum((by_image(weight * e * obs.J / s2) + prior) / information, 0.05)
        scale = gamma[obs.image]
        s2 = fixed + scale**2 * spread
        log_p = by_image(_log_t((obs.J - scale * e) ** 2 / s2, s2, nu))
        about = 0.5 * prior * (gamma - 1) ** 2 + 0.5 * np.log(information / prior)
        log_likelihood[:, k], gammas[:, k], weights[:, k] = log_p - about, gamma, weight
    return Said(log_likelihood, gammas, weights)


def _log_t(z2, s2, nu: float):
    if math.isinf(nu):
        return -0.5 * z2 - 0.5 * np.log(2 * math.pi * s2)
    norm = gammaln((nu + 1) / 2) - gammaln(nu / 2) - 0.5 * math.log(nu * math.pi)
    return norm - 0.5 * (nu + 1) * np.log1p(z2 / nu) - 0.5 * np.log(s2)


# --- moments of I -------------------------------------------------------------------------


def normal_moments(precision, total, S, centric):
    """Under a normal prior with the mean and variance of Wilson's: to search by."""
    prior = 1 / (S**2 * (1 + centric))
    variance = 1 / (precision + prior)
    return (total + S * prior) * variance, variance


_quadrature = jax.jit(true_intensities.wilson_posterior)


def wilson_moments(precision, total, S, centric):
    """Under Wilson's prior: to decide by."""
    out = np.empty((2, len(S)))
    for low in range(0, len(S), CHUNK):
        rows = np.minimum(np.arange(low, low + CHUNK), len(S) - 1)
        found = _quadrature(
            total[rows] / precision[rows], precision[rows] ** -0.5, np.log(S[rows]), centric[rows]
        )
        some = out[:, low : low + CHUNK]
        some[0] = np.asarray(found.intensity)[: some.shape[1]]
        some[1] = np.asarray(found.intensity_sd)[: some.shape[1]] ** 2
    return out[0], out[1]


def double_wilson_moments(S, centric, E2, r):
    """Given a reference amplitude, E² = I_ref/(ε·Σ_ref), and its correlation r, arrays (m,).

    ⟨I⟩ = S(1 − r² + r²E²), Var I = S²[(1 − r²)² + 2(1 − r²)·r²E²], twice that if centric: I is
    noncentral χ² with two degrees of freedom, or one.
    """
    lost = 1 - r**2
    known = r**2 * E2
    return S * (lost + known), S**2 * (1 + centric) * (lost**2 + 2 * lost * known)
