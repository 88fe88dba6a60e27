"""Likelihood of an image under each operation, given what is known of intensities without it.

J_i = g_i·I_h + noise, where the operation says which reflection h is.  I_h has the mean m and the
variance v that all other images and Wilson's prior give, or a reference.  Then

    J ~ t_ν(γ·g·m, s²),    s² = V_bg + V_sig·g·m + (a·g·m)² + (γ·g)²·v.

γ corrects the image's scale and is integrated out for each operation, so that a scale fitted under
one operation does not favour this operation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import gemmi
import numpy as np
from scipy.special import softmax

from ..geometry.miller import unique_hkl
from ..geometry.symmetry import asu_map, epsilon_centric
from ..physics import true_intensities
from ..physics.reference import wilson_mean
from ..physics.variance_of_J import variance_of_J
from ..util.kept_programs import kept
from ..util.student_t import log_student_t, normal_weight
from .ambiguity import Ambiguity, transformed

SCALE_SD = 0.5  # prior sd of γ about 1
CHUNK = 1 << 14  # reflections in one quadrature, so that one shape is compiled


@dataclass(frozen=True)
class Integrated:
    """Observations of a run, flat over images (n in all), with first estimates of their scales.

    Attributes:
        hkl: (n, 3) as indexed, not reduced. image: (n,) int, 0..n_images − 1.
        J: (n,) photons, or the file's unit. scale: (n,) g > 0, J per unit of I.
        variance: (n,) of J at I = 0. variance_signal: (n,) added variance per unit of g·I: about 1
            for photons, 0 where the sigmas of a file are all that is known.
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

    Attributes:
        code: (n, K) index of the unique reflection, of m.
        group: (n, K) index of the pair (image, reflection), of N.
        reflection: (N,) the reflection of each pair.
        hkl, d, epsilon, centric: (m, 3) and (m,), of the unique reflections.
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
    """The observations of some images (ascending numbers), which are renumbered from 0."""
    rows = np.isin(obs.image, images)
    names = ("hkl", "image", "J", "scale", "variance", "variance_signal")
    some = {name: getattr(obs, name)[rows] for name in names}
    some["image"] = np.searchsorted(images, some["image"])
    return Integrated(**some, n_images=len(images))


def by_reflection(obs: Integrated, ambiguity: Ambiguity, cell: gemmi.UnitCell) -> ByReflection:
    """Find which reflection of the asymmetric unit each observation is under each operation.

    Raises:
        InputError: mean J is positive at no resolution.
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


# --- intensities without an image, and the likelihood of the image --------------------------

# (Σ g²/s², Σ gJ/s², mean S, centric) → posterior mean and variance of I, arrays (N,)
Moments = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


class Beliefs(NamedTuple):
    """State of the iteration.

    Attributes:
        share: (n_images, K) probability of each operation.
        gamma: (n_images,) γ. log_likelihood: (n_images, K).
        expected: (n,) g·I, I estimated without the observation's image.
        weight: (n,) weight of a Student-t residual, (ν + 1)/(ν + z²).
    """

    share: np.ndarray
    gamma: np.ndarray
    log_likelihood: np.ndarray
    expected: np.ndarray
    weight: np.ndarray


class Said(NamedTuple):
    """For each image and operation ln p and γ; for each observation its Student-t weight."""

    log_likelihood: np.ndarray  # (n_images, K)
    gamma: np.ndarray  # (n_images, K)
    weight: np.ndarray  # (n, K)


def unscaled(obs: Integrated, grouped: ByReflection, share: np.ndarray) -> Beliefs:
    """The start of an iteration: γ = 1, and Wilson's mean is expected of every reflection."""
    expected = obs.scale * grouped.mean[grouped.code[:, 0]]
    return Beliefs(share, np.ones(len(share)), 0 * share, expected, np.ones(len(obs.J)))


def updated(
    obs, grouped: ByReflection, old: Beliefs, a: float, nu: float, moments: Moments
) -> Beliefs:
    """One iteration: new probabilities of each image's operations.

    The other images, weighted with the probabilities of their operations, give mean and variance of
    each intensity; under these, each image has a likelihood for each of its operations.

    Args:
        a, nu: model error and degrees of freedom of the residuals.
        moments: :func:`normal_moments` or :func:`wilson_moments`.
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
        at: (n, K) index into ``m`` and ``v`` of an observation's reflection.
        m, v: mean and variance of I.
    """
    n, (_, K) = obs.n_images, at.shape
    log_likelihood, gammas, weights = np.empty((n, K)), np.empty((n, K)), np.empty(at.shape)
    prior = SCALE_SD**-2

    def by_image(x):
        return np.bincount(obs.image, x, n)

    for k in range(K):
        e, spread = obs.scale * m[at[:, k]], obs.scale**2 * v[at[:, k]]
        fixed = variance_of_J(np.maximum(e, 0), obs.variance, obs.variance_signal, a**2)
        gamma = np.ones(n)
        for _ in range(3):  # iteratively reweighted least squares
            scale = gamma[obs.image]
            s2 = fixed + scale**2 * spread
            z2 = (obs.J - scale * e) ** 2 / s2
            weight = normal_weight(z2, nu)
            information = by_image(weight * e**2 / s2) + prior
            gamma = np.maximum((by_image(weight * e * obs.J / s2) + prior) / information, 0.05)
        scale = gamma[obs.image]
        s2 = fixed + scale**2 * spread
        log_p = by_image(log_student_t(obs.J, nu, scale * e, np.sqrt(s2)))
        about = 0.5 * prior * (gamma - 1) ** 2 + 0.5 * np.log(information / prior)
        log_likelihood[:, k], gammas[:, k], weights[:, k] = log_p - about, gamma, weight
    return Said(log_likelihood, gammas, weights)


# --- moments of I -------------------------------------------------------------------------


def normal_moments(precision, total, S, centric):
    """Under a normal prior with the mean and variance of Wilson's: to search by."""
    prior = 1 / (S**2 * (1 + centric))
    variance = 1 / (precision + prior)
    return (total + S * prior) * variance, variance


_quadrature = kept(true_intensities.wilson_posterior)


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
