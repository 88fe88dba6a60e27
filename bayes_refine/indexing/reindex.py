"""Choose which way each image is indexed, by the marginal likelihood of its observations.

The likelihood of an operation is that of the image's J, given what is known of true intensities
without this image (:mod:`leave_image_out`).  With a reference this decides in one pass.  Without a
reference the images start with random probabilities of their operations.  Round by round, each
image counts for the others with these probabilities, and the temperature falls to one
(deterministic annealing, Rose 1998).  Of several starts, the one with the largest marginal
likelihood is taken.  Brehm & Diederichs (2014) posed the problem.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import product

import gemmi
import numpy as np
from scipy.special import logsumexp, softmax

from ..geometry.symmetry import epsilon_centric
from ..physics.reference import Reference, free_set, wilson_mean
from ..physics.variance_of_J import variance_of_J
from .ambiguity import Ambiguity
from .leave_image_out import (
    Beliefs,
    ByReflection,
    Integrated,
    by_reflection,
    double_wilson_moments,
    likelihood,
    normal_moments,
    part,
    unscaled,
    updated,
    wilson_moments,
)

MIN_LOG_ODDS = math.log(19)  # 95 % for the best operation against the second
MIN_ALIKE = 0.75  # share of the starts that must agree for a solution to be believed
MODEL_ERROR, NU = 0.3, 5.0  # a and ν of the search: the medians of the priors of scaling
ERRORS = tuple(product((0.03, 0.1, 0.2, 0.3, 0.45, 0.7), (5.0, 30.0)))  # a, ν tried at the end
CORRELATIONS = (0.3, 0.5, 0.7, 0.85, 0.95, 0.99)  # r tried with a reference
MAX_ROUNDS, FOLDS = 60, 5
SEARCHED = 300  # images that start at random; the other images start from what these found


@dataclass(frozen=True)
class Reindexing:
    """The operation that was chosen for each of n images.

    Attributes:
        ambiguity: the K operations.
        operation: (n,) int, index of the most probable operation.
        log_odds: (n,) ln odds of this operation against the second best, ≥ 0, given the other
            images; inf where nothing is ambiguous.
        status: (n,) "decided"; "undecided" where the odds are below 19:1; "starts disagree" where
            fewer than three in four starts found this solution.  The odds hold within the solution
            only.  There are many solutions if images overlap little, or if the operations are true
            symmetry.
        log_likelihood: (n, K) of each image's observations under each operation.
        n_starts, n_alike: number of random starts, and how many of them agree on nine in ten of
            the images that have odds of 19:1; both 0 with a reference.
        model_error, nu: a and ν as estimated. correlation: r with the reference, or NaN.
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
        """(n,) bool: whether an image is to be reindexed."""
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
    """Choose the operation of each image by comparing all images, without a reference.

    Some solutions cannot be told apart (``Ambiguity.relabellings``); of these the one is reported
    that leaves most images as they are.

    Args:
        cell: of the run. n_starts: number of random starts. seed: of the random starts.

    Raises:
        InputError: mean J is positive at no resolution.
    """
    if len(ambiguity) == 1 or not len(obs.J):
        return nothing_to_choose(ambiguity, obs.n_images)
    grouped = by_reflection(obs, ambiguity, cell)
    images = np.unique(np.linspace(0, obs.n_images - 1, SEARCHED).astype(int))
    few = part(obs, images)
    rng = np.random.default_rng(seed)
    found, n_alike = _search(few, by_reflection(few, ambiguity, cell), ambiguity, n_starts, rng=rng)
    if len(images) < obs.n_images and n_alike < MIN_ALIKE * n_starts:
        images = np.arange(obs.n_images)
        found, n_alike = _search(obs, grouped, ambiguity, n_starts, rng=rng)
    share = np.full((obs.n_images, len(ambiguity)), 1 / len(ambiguity))
    share[images] = found
    best = _settle(obs, grouped, unscaled(obs, grouped, share), MODEL_ERROR, NU, anneal=False)
    a, nu = max(
        ERRORS,
        key=lambda e: _support(
            updated(obs, grouped, best, e[0], e[1], normal_moments).log_likelihood
        ),
    )
    log_likelihood = _held_out(obs, grouped, best, a, nu)
    kept = [(r[log_likelihood.argmax(1)] == 0).sum() for r in ambiguity.relabellings]
    column = np.argsort(ambiguity.relabellings[int(np.argmax(kept))])
    result = _judged(ambiguity, log_likelihood[:, column])
    if n_alike < MIN_ALIKE * n_starts:
        result.status[result.status == "decided"] = "starts disagree"
    return replace(result, n_starts=n_starts, n_alike=n_alike, model_error=a, nu=nu)


def _search(obs, grouped: ByReflection, ambiguity: Ambiguity, n_starts: int, *, rng):
    """Probabilities (n_images, K) from the best of some random starts; how many starts agree."""
    found = []
    for _ in range(n_starts):
        share = rng.dirichlet(np.ones(len(ambiguity)), obs.n_images)
        state = _settle(obs, grouped, unscaled(obs, grouped, share), MODEL_ERROR, NU, anneal=True)
        found.append((_evidence(obs, grouped, state), state.share))
    best = max(found, key=lambda pair: pair[0])[1]
    return best, sum(_alike(best, share, ambiguity) >= 0.9 for _, share in found)


def choose_by_reference(
    obs: Integrated,
    ambiguity: Ambiguity,
    reference: Reference,
    free_fraction: float = 0.05,
    seed: int = 0,
) -> Reindexing:
    """Choose the operation of each image by reference intensities alone, in one pass.

    I_h has the moments of the double-Wilson distribution given F_ref and a correlation r.  Of a
    grid of r, a and ν, those are taken under which the run is most probable.  For the free set,
    r = 0.

    Args:
        free_fraction, seed: of the free set (:func:`~bayes_refine.physics.reference.free_set`).

    Raises:
        InputError: mean J is positive at no resolution.
    """
    if len(ambiguity) == 1 or not len(obs.J):
        return nothing_to_choose(ambiguity, obs.n_images)
    grouped = by_reflection(obs, ambiguity, reference.cell)
    of_reference = epsilon_centric(reference.hkl, reference.space_group)[0]
    sigma = wilson_mean(reference.d, reference.intensity / of_reference, grouped.d)
    E2 = np.maximum(reference.lookup(grouped.hkl), 0) / (grouped.epsilon * sigma)  # NaN: unknown
    free = free_set(grouped.hkl, free_fraction, seed, ambiguity.space_group)
    known = np.isfinite(E2) & ~free

    def tried(r: float, a: float, nu: float) -> np.ndarray:
        m, v = double_wilson_moments(
            grouped.mean, grouped.centric, np.where(known, E2, 0), known * r
        )
        return likelihood(obs, grouped.code, m, v, a, nu).log_likelihood

    grid = [(r, *errors, tried(r, *errors)) for r in CORRELATIONS for errors in ERRORS]
    r, a, nu, log_likelihood = max(grid, key=lambda row: _support(row[-1]))
    return replace(_judged(ambiguity, log_likelihood), model_error=a, nu=nu, correlation=r)


def nothing_to_choose(ambiguity: Ambiguity, n_images: int) -> Reindexing:
    """All images stay as they are: nothing is ambiguous, or nothing is measured."""
    return _judged(ambiguity, np.zeros((n_images, len(ambiguity))))


def _judged(ambiguity: Ambiguity, log_likelihood: np.ndarray) -> Reindexing:
    n, K = log_likelihood.shape
    operation = log_likelihood.argmax(1)  # the first, as indexed, where all are the same
    ranked = np.sort(log_likelihood, 1)
    log_odds = ranked[:, -1] - ranked[:, -2] if K > 1 else np.full(n, np.inf)
    status = np.where(log_odds >= MIN_LOG_ODDS, "decided", "undecided").astype(object)
    return Reindexing(ambiguity, operation, log_odds, status, log_likelihood)


def _settle(
    obs,
    grouped: ByReflection,
    state: Beliefs,
    a: float,
    nu: float,
    anneal: bool,
    silent: np.ndarray | None = None,
) -> Beliefs:
    """Iterate the images' probabilities to a fixed point with damping ½.

    Undamped, two images can exchange operations for ever.

    Args:
        anneal: start at a high temperature, which falls to one.
        silent: (n_images,) bool, images that do not count for the others.
    """
    temperature = 0.0
    for _ in range(MAX_ROUNDS):
        new = updated(obs, grouped, state, a, nu, normal_moments)
        if anneal:  # from where the odds of a typical image are even, halved every other round
            spread = float(np.median(np.ptp(new.log_likelihood, axis=1)))
            temperature = temperature / math.sqrt(2) if temperature else spread
        hot = max(temperature, 1.0)
        share = 0.5 * (state.share + softmax(new.log_likelihood / hot, axis=1))
        if silent is not None:
            share[silent] = 0
        moved = np.abs(share - state.share).max()
        state = new._replace(share=share)
        if hot == 1.0 and moved < 0.01:
            break
    return state


def _held_out(obs, grouped: ByReflection, state: Beliefs, a: float, nu: float) -> np.ndarray:
    """(n_images, K) ln likelihoods of each image, given images that settled without its fold.

    It would not do to leave one image out of a settled solution: weak images follow the noise of
    one another, and this noise then seems to confirm them.
    """
    out = np.empty_like(state.log_likelihood)
    for fold in range(FOLDS):
        silent = np.arange(obs.n_images) % FOLDS == fold
        share = np.where(silent[:, None], 0.0, state.share)
        others = _settle(obs, grouped, state._replace(share=share), a, nu, False, silent)
        out[silent] = updated(obs, grouped, others, a, nu, wilson_moments).log_likelihood[silent]
    return out


# --- whole solutions ----------------------------------------------------------------------


def _support(log_likelihood: np.ndarray) -> float:
    """Σ over images of ln Σ_k p(J | k)."""
    return float(logsumexp(log_likelihood, axis=1).sum())


def _evidence(obs: Integrated, grouped: ByReflection, state: Beliefs) -> float:
    """ln p(all J | the most probable operation of each image), up to a constant.

    Σ_h of ln ∫ N(I; S, τ²) Π_i N(J_i; g_i·I, s_i²) dI, with τ² Wilson's variance and s_i² at S.
    """
    code = np.take_along_axis(grouped.code, state.share.argmax(1)[obs.image, None], 1)[:, 0]
    expected = obs.scale * grouped.mean[code]
    s2 = variance_of_J(expected, obs.variance, obs.variance_signal, MODEL_ERROR**2)
    m = len(grouped.mean)
    precision = np.bincount(code, obs.scale**2 / s2, m)
    total = np.bincount(code, obs.scale * obs.J / s2, m)
    prior = 1 / (grouped.mean**2 * (1 + grouped.centric))
    mean = (total + grouped.mean * prior) / (precision + prior)
    gained = mean**2 * (precision + prior) - grouped.mean**2 * prior
    return float(0.5 * (gained - np.log1p(precision / prior)).sum())


def _alike(best: np.ndarray, other: np.ndarray, ambiguity: Ambiguity) -> float:
    """Share of the images with a decided operation in ``best`` (n, K) on which ``other`` agrees.

    Two solutions that differ by a relabelling of all images count as the same.
    """
    sure = best.max(1) >= 0.95
    if not sure.any():
        return 1.0
    x, y = best.argmax(1)[sure], other.argmax(1)[sure]
    return max(float((r[x] == y).mean()) for r in ambiguity.relabellings)
