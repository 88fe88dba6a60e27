"""Which way each image is indexed: the marginal likelihood of its observations.

J_i = g_i·I_h + noise, with h the reflection that one of K operations says it is.  An operation's
likelihood is that of the image's J given what is known of each I_h *without this image*, mean m
and variance v by all other images and Wilson's prior, or by a reference:

    J ~ t_ν(γ·g·m, s²),    s² = V_bg + V_sig·g·m + (a·g·m)² + (γ·g)²·v,

with γ, a correction of the image's scale, integrated out for each operation: a scale that was
fitted to the wrong intensities does not speak for them.  Without a reference the images start
from random probabilities and weigh in with them, round by round, from a high temperature to one
(deterministic annealing, Rose 1998); of several starts the one with the largest marginal
likelihood stands.  The problem is that of Brehm & Diederichs (2014).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from typing import NamedTuple

import gemmi
import jax
import numpy as np
from scipy.special import gammaln, logsumexp, softmax

from . import intensities
from .ambiguity import Ambiguity, transformed
from .reference import Reference, asu_map, epsilon_centric, free_set, pack_hkl, wilson_mean

MIN_LOG_ODDS = math.log(19)  # 95 % for the best operation against the second
MIN_ALIKE = 0.75  # of the starts, for a solution to be believed
SCALE_SD = 0.5  # of γ about 1
MODEL_ERROR, NU = 0.3, 5.0  # a and ν while searching: the medians of the scaling's priors
ERRORS = tuple(product((0.03, 0.1, 0.2, 0.3, 0.45, 0.7), (5.0, 30.0)))  # a, ν in the end
CORRELATIONS = (0.3, 0.5, 0.7, 0.85, 0.95, 0.99)  # r with a reference
MAX_ROUNDS = 60
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


@dataclass(frozen=True)
class Reindexing:
    """What was chosen for each of n images.

    Attributes:
        ambiguity: the K operations.
        operation: (n,) int, index of the most probable.
        log_odds: (n,) of it against the second best, ≥ 0, given the other images; inf where
            nothing is ambiguous.
        status: (n,) "decided"; "undecided" where the odds are below 19:1; "starts disagree" where
            fewer than three in four starts found this solution, within which alone the odds hold:
            so little overlaps that there are many, or the operations are true symmetry.
        log_likelihood: (n, K) of each image's observations under each operation.
        n_starts, n_alike: random starts, and how many of them agree on nine in ten of the images
            that have odds of 19:1; none with a reference.
        model_error, nu: a and ν, as found. correlation: r with the reference, as found, or NaN.
    """

    ambiguity: Ambiguity
    operation: np.ndarray
    log_odds: np.ndarray
    status: np.ndarray
    log_likelihood: np.ndarray
    n_starts: int = 0
    n_alike: int = 0
    model_error: float = math.nan
    nu: float = math.nan
    correlation: float = math.nan

    @property
    def changed(self) -> np.ndarray:
        """(n,) bool: images that are to be reindexed."""
        return self.operation != 0

    def __str__(self) -> str:
        if len(self.ambiguity) == 1:
            return "indexing is not ambiguous: the lattice has the symmetry of the crystal"
        undecided = (self.status != "decided").sum()
        alike = f"; {self.n_alike} of {self.n_starts} starts agree" if self.n_starts else ""
        ways = " | ".join(self.ambiguity.names)
        return (
            f"indexing is ambiguous ({ways}): {self.changed.sum()} of {len(self.operation)} "
            f"images reindexed, {undecided} undecided{alike}"
        )

    def columns(self) -> dict[str, np.ndarray]:
        """Columns of ``images.csv``: ``reindex`` (as hkl) and ``reindex_log_odds``, (n,) each."""
        names = np.array(self.ambiguity.names, object)
        return {"reindex": names[self.operation], "reindex_log_odds": self.log_odds}


def choose(
    obs: Integrated,
    ambiguity: Ambiguity,
    cell: gemmi.UnitCell,
    n_starts: int = 8,
    seed: int = 0,
) -> Reindexing:
    """Choose each image's operation by all other images, without any reference.

    Of the solutions that nothing tells apart (``Ambiguity.relabellings``) the one that leaves
    most images as they are is reported.

    Args:
        cell: of the run. n_starts, seed: random starts.

    Raises:
        InputError: the mean intensity is positive nowhere.
    """
    if len(ambiguity) == 1 or not len(obs.J):
        return nothing_to_choose(ambiguity, obs.n_images)
    seen = _sort(obs, ambiguity, cell)
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(n_starts):
        share = rng.dirichlet(np.ones(len(ambiguity)), obs.n_images)
        turn = _settle(obs, seen, _start(obs, seen, share), MODEL_ERROR, NU, _normal, anneal=True)
        found.append((_evidence(obs, seen, turn), turn))
    best = max(found, key=lambda pair: pair[0])[1]
    n_alike = sum(_alike(best, turn, ambiguity) >= 0.9 for _, turn in found)
    a, nu = max(
        ERRORS,
        key=lambda e: _support(_turn(obs, seen, best, e[0], e[1], _normal).log_likelihood),
    )
    last = _settle(obs, seen, best, a, nu, _wilson, anneal=False)
    kept = [(r[last.share.argmax(1)] == 0).sum() for r in ambiguity.relabellings]
    column = np.argsort(ambiguity.relabellings[int(np.argmax(kept))])
    result = _judged(ambiguity, last.log_likelihood[:, column])
    if n_alike < MIN_ALIKE * n_starts:
        result.status[result.status == "decided"] = "starts disagree"
    return replace(result, n_starts=n_starts, n_alike=n_alike, model_error=a, nu=nu)


def choose_by_reference(
    obs: Integrated,
    ambiguity: Ambiguity,
    reference: Reference,
    free_fraction: float = 0.05,
    seed: int = 0,
) -> Reindexing:
    """Choose each image's operation by reference intensities alone, in one pass.

    I_h has the moments of the double-Wilson distribution given F_ref and a correlation r; r, a
    and ν are those of a grid under which the run is most probable.  The free set has r = 0.

    Args:
        free_fraction, seed: of the free set (:func:`~bayes_refine.reference.free_set`).

    Raises:
        InputError: the mean intensity is positive nowhere.
    """
    if len(ambiguity) == 1 or not len(obs.J):
        return nothing_to_choose(ambiguity, obs.n_images)
    seen = _sort(obs, ambiguity, reference.cell)
    of_reference = epsilon_centric(reference.hkl, reference.space_group)[0]
    sigma = wilson_mean(reference.d, reference.intensity / of_reference, seen.d)
    E2 = np.maximum(reference.lookup(seen.hkl), 0) / (seen.epsilon * sigma)  # NaN: unknown
    free = free_set(seen.hkl, free_fraction, seed, ambiguity.space_group)
    known = np.isfinite(E2) & ~free

    def tried(r: float, a: float, nu: float) -> np.ndarray:
        m, v = _double_wilson(seen.mean, seen.centric, np.where(known, E2, 0), known * r)
        return _likelihood(obs, seen.code, m, v, a, nu).log_likelihood

    grid = [(r, *errors, tried(r, *errors)) for r in CORRELATIONS for errors in ERRORS]
    r, a, nu, log_likelihood = max(grid, key=lambda row: _support(row[-1]))
    return replace(_judged(ambiguity, log_likelihood), model_error=a, nu=nu, correlation=r)


def nothing_to_choose(ambiguity: Ambiguity, n_images: int) -> Reindexing:
    """All images as they are: nothing is ambiguous, or nothing is known that could decide."""
    return _judged(ambiguity, np.zeros((n_images, len(ambiguity))))


def _judged(ambiguity: Ambiguity, log_likelihood: np.ndarray) -> Reindexing:
    n, K = log_likelihood.shape
    operation = log_likelihood.argmax(1)  # the first, as indexed, where all are the same
    ranked = np.sort(log_likelihood, 1)
    log_odds = ranked[:, -1] - ranked[:, -2] if K > 1 else np.full(n, np.inf)
    status = np.where(log_odds >= MIN_LOG_ODDS, "decided", "undecided").astype(object)
    return Reindexing(ambiguity, operation, log_odds, status, log_likelihood)


# --- observations by reflection -----------------------------------------------------------


class _Seen(NamedTuple):
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


def _sort(obs: Integrated, ambiguity: Ambiguity, cell: gemmi.UnitCell) -> _Seen:
    turned = [transformed(obs.hkl, R) for R in ambiguity.operations]
    asu = np.stack([asu_map(hkl, ambiguity.space_group)[0] for hkl in turned], 1)
    _, first, code = np.unique(pack_hkl(asu).ravel(), return_index=True, return_inverse=True)
    hkl = asu.reshape(-1, 3)[first]
    code = code.reshape(asu.shape[:2])
    m = len(hkl)
    pair, group = np.unique(obs.image[:, None] * m + code, return_inverse=True)
    epsilon, centric = epsilon_centric(hkl, ambiguity.space_group)
    d = cell.calculate_d_array(hkl)
    at = d[code[:, 0]]
    mean = wilson_mean(at, obs.J / epsilon[code[:, 0]], d) / wilson_mean(at, obs.scale, d)
    return _Seen(
        code, group.reshape(code.shape), pair % m, hkl, d, epsilon, centric, epsilon * mean
    )


# --- one turn: what is known without an image, and what the image says ---------------------

# (Σ g²/s², Σ gJ/s², mean S, centric) → posterior mean and variance of I, arrays (N,)
Moments = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


class _Turn(NamedTuple):
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


class _Said(NamedTuple):
    log_likelihood: np.ndarray  # (n_images, K)
    gamma: np.ndarray  # (n_images, K)
    weight: np.ndarray  # (n, K)


def _start(obs: Integrated, seen: _Seen, share: np.ndarray) -> _Turn:
    expected = obs.scale * seen.mean[seen.code[:, 0]]
    return _Turn(share, np.ones(len(share)), 0 * share, expected, np.ones(len(obs.J)))


def _turn(obs, seen: _Seen, old: _Turn, a: float, nu: float, moments: Moments) -> _Turn:
    """One turn at temperature one."""
    expected = np.maximum(old.expected, 0)
    s2 = obs.variance + obs.variance_signal * expected + (a * expected) ** 2
    g, w = obs.scale * old.gamma[obs.image], (old.weight / s2)[:, None] * old.share[obs.image]
    own = [
        np.bincount(seen.group.ravel(), (x[:, None] * w).ravel(), len(seen.reflection))
        for x in (g**2, g * obs.J)
    ]
    others = [np.bincount(seen.reflection, x, len(seen.hkl))[seen.reflection] - x for x in own]
    S, centric = seen.mean[seen.reflection], seen.centric[seen.reflection]
    m, v = moments(np.maximum(others[0], 1e-6 / S**2), others[1], S, centric)
    said = _likelihood(obs, seen.group, m, v, a, nu)
    share = softmax(said.log_likelihood, axis=1)
    here = share[obs.image]
    gamma = (share * said.gamma).sum(1)
    return _Turn(
        share=share,
        gamma=gamma / np.median(gamma),
        log_likelihood=said.log_likelihood,
        expected=obs.scale * gamma[obs.image] * (here * m[seen.group]).sum(1),
        weight=(here * said.weight).sum(1),
    )


def _settle(obs, seen, turn: _Turn, a, nu, moments: Moments, anneal: bool) -> _Turn:
    """Turns until the shares stand still, half a step at a time: in step, images would swap."""
    temperature = 0.0
    for _ in range(MAX_ROUNDS):
        new = _turn(obs, seen, turn, a, nu, moments)
        if anneal:  # from where a typical image's odds are even, halved every other turn
            spread = float(np.median(np.ptp(new.log_likelihood, axis=1)))
            temperature = temperature / math.sqrt(2) if temperature else spread
        hot = max(temperature, 1.0)
        share = 0.5 * (turn.share + softmax(new.log_likelihood / hot, axis=1))
        moved = np.abs(share - turn.share).max()
        turn = new._replace(share=share)
        if hot == 1.0 and moved < 0.01:
            break
    return turn


def _likelihood(obs, at: np.ndarray, m, v, a: float, nu: float) -> _Said:
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
    return _Said(log_likelihood, gammas, weights)


def _log_t(z2, s2, nu: float):
    if math.isinf(nu):
        return -0.5 * z2 - 0.5 * np.log(2 * math.pi * s2)
    norm = gammaln((nu + 1) / 2) - gammaln(nu / 2) - 0.5 * math.log(nu * math.pi)
    return norm - 0.5 * (nu + 1) * np.log1p(z2 / nu) - 0.5 * np.log(s2)


# --- moments of I -------------------------------------------------------------------------


def _normal(precision, total, S, centric):
    """Under a normal prior with the mean and variance of Wilson's: to search by."""
    prior = 1 / (S**2 * (1 + centric))
    variance = 1 / (precision + prior)
    return (total + S * prior) * variance, variance


_quadrature = jax.jit(intensities.wilson_posterior)


def _wilson(precision, total, S, centric):
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


def _double_wilson(S, centric, E2, r):
    """Given a reference amplitude, E² = I_ref/(ε·Σ_ref), and its correlation r, arrays (m,).

    ⟨I⟩ = S(1 − r² + r²E²), Var I = S²[(1 − r²)² + 2(1 − r²)·r²E²], twice that if centric: I is
    noncentral χ² with two degrees of freedom, or one.
    """
    lost = 1 - r**2
    known = r**2 * E2
    return S * (lost + known), S**2 * (1 + centric) * (lost**2 + 2 * lost * known)


# --- whole solutions ----------------------------------------------------------------------


def _support(log_likelihood: np.ndarray) -> float:
    """Σ over images of ln Σ_k p(J | k)."""
    return float(logsumexp(log_likelihood, axis=1).sum())


def _evidence(obs: Integrated, seen: _Seen, turn: _Turn) -> float:
    """ln p(all J | everyone's most probable operation), less what all solutions share.

    Σ_h of ln ∫ N(I; S, τ²) Π_i N(J_i; g_i·I, s_i²) dI, with τ² Wilson's variance and s_i² at S.
    """
    code = np.take_along_axis(seen.code, turn.share.argmax(1)[obs.image, None], 1)[:, 0]
    expected = obs.scale * seen.mean[code]
    s2 = obs.variance + obs.variance_signal * expected + (MODEL_ERROR * expected) ** 2
    m = len(seen.mean)
    precision = np.bincount(code, obs.scale**2 / s2, m)
    total = np.bincount(code, obs.scale * obs.J / s2, m)
    prior = 1 / (seen.mean**2 * (1 + seen.centric))
    mean = (total + seen.mean * prior) / (precision + prior)
    gained = mean**2 * (precision + prior) - seen.mean**2 * prior
    return float(0.5 * (gained - np.log1p(precision / prior)).sum())


def _alike(best: _Turn, other: _Turn, ambiguity: Ambiguity) -> float:
    """Of the images that the best solution is sure of, the fraction on which another agrees with
    it, up to a relabelling of all."""
    sure = best.share.max(1) >= 0.95
    if not sure.any():
        return 1.0
    x, y = best.share.argmax(1)[sure], other.share.argmax(1)[sure]
    return max(float((r[x] == y).mean()) for r in ambiguity.relabellings)
