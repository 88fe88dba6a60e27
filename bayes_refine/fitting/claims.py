"""Whether an image is what its indexing claims (docs/theory.md, Is an image what it claims to be).

An indexing claims that each reflection has about J_model = G·B_term·p·pol·I_ref photons.  Two
rivals claim less: that there is nothing (G = 0), and that the expectations are right but belong to
other reflections.  For the second rival the expectations are exchanged at random among reflections
of the image that have about the same resolution, each time at the best scale.  With ln p of the
totals given their expectations, at the image's own mode, the evidence against the rivals is

    of nothing:  ln p(J | J_model) − k − ln p(J | 0),
    of chance:   ln p(J | J_model) − k − mean_π max_s ln p(J | s·J_model,π),

with k = Σ (1 − sd²/prior sd²), the number of the image's unknowns that its photons determine: the
gain of a mode by having been fitted (Akaike 1974).  Photons of an image that was turned at random,
is of another crystal, or is blank depend neither on I_ref nor on p; but for the gain of the fit the
claim is then one of its own permutations.  A claim has to be above chance by three sd of the
permutations, or, where the claim is too weak for that (few reflections, intensities unknown),
halfway between what a wrong image and a right one would reach.  A mode gains about k/2 by the fit
(Wilks 1938), right or wrong, so that these are −k/2 and E − k/2, E the evidence of photons drawn
from the claim.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .. import infer
from ..physics.variance_of_J import variance_of_J
from ..util.status import Kind, Status
from ..util.student_t import log_student_t_less_constant
from .reflections import Reflections

PERMUTATIONS = 32
REPLICATES, FEW = 2, 8  # draws of photons from a claim; permutations of each draw
SHELL = 15  # number of reflections that exchange their expectations
ODDS = float(np.log(20.0))  # least ln odds that a usable image has signal
Z_CHANCE = 3.0  # sd of the permutations by which a claim must be above them


class Claims(NamedTuple):
    """Evidence for the claim of each image, (n,) each; NaN for an image without reflections.

    Attributes:
        n_reflections: number that informed the fit.
        over_nothing: ln p less that of J_model = 0.
        over_chance: ln p less its mean over permuted expectations; chance_sd: sd over these.
        expected: ``over_chance`` of photons drawn from the claim.
    """

    n_reflections: np.ndarray
    over_nothing: np.ndarray
    over_chance: np.ndarray
    chance_sd: np.ndarray
    expected: np.ndarray


def claims_of(r: Reflections, nu: float, identifiers: Sequence[str], seed: int) -> Claims:
    """Evidence of each image's totals for its indexing.

    Args:
        nu: degrees of freedom of the totals' residuals; infinite for normal ones.
        identifiers: of the images; random numbers of an image depend on its name and ``seed``.
    """
    n = len(identifiers)
    found = np.full((5, n), np.nan)
    rows = np.flatnonzero(r.informs & np.isfinite(r.J_model) & r.measured)
    by_image = np.split(rows, np.searchsorted(r.image[rows], np.arange(1, n)))
    for i, here in enumerate(by_image):
        if len(here):
            rng = np.random.default_rng([seed, zlib.crc32(identifiers[i].encode())])
            found[:, i] = len(here), *_of_image(r, here[np.argsort(r.d[here])], nu, rng=rng)
    return Claims(*found)


class _Totals(NamedTuple):
    """J (..., m) and v₀, v₁ of its variance, photons."""

    J: np.ndarray
    background: np.ndarray
    signal: np.ndarray

    def log_p(self, J_model: np.ndarray, relative: np.ndarray, nu: float) -> np.ndarray:
        """ln p (...), less a constant, were J_model expected, with relative variance v₂."""
        variance = variance_of_J(J_model, self.background, self.signal, relative)
        return log_student_t_less_constant(self.J - J_model, nu, variance).sum(axis=-1)


def _of_image(r: Reflections, rows, nu: float, *, rng) -> tuple[float, ...]:
    columns = (r.J, r.variance_background, r.variance_signal)
    totals = _Totals(*(x[rows].astype(float) for x in columns))
    J_model = np.maximum(r.J_model[rows].astype(float), 0.0)
    relative = r.relative_variance[rows].astype(float) + r.reference_error[rows].astype(float) ** 2
    claim = float(totals.log_p(J_model, relative, nu))
    nothing = float(totals.log_p(0 * J_model, relative, nu))
    m = len(rows)
    shell = np.arange(m) * max(1, m // SHELL) // m
    order = np.array([np.lexsort((rng.random(m), shell)) for _ in range(PERMUTATIONS)])

    def chance(J: np.ndarray, order: np.ndarray) -> np.ndarray:
        permuted = _Totals(*(x[order] for x in totals._replace(J=J)))
        return _best(permuted, J_model, relative, nu)

    by_chance = chance(totals.J, order)
    over, sd = claim - float(by_chance.mean()), float(by_chance.std())
    variance = variance_of_J(J_model, totals.background, totals.signal, relative)
    expected = []
    for _ in range(REPLICATES):
        drawn = J_model + np.sqrt(variance) * rng.standard_normal(m)
        ln_p = totals._replace(J=drawn).log_p(J_model, relative, nu)
        expected.append(float(ln_p - chance(drawn, order[:FEW]).mean()))
    return claim - nothing, over, sd, float(np.mean(expected))


def _best(totals: _Totals, J_model, relative, nu: float) -> np.ndarray:
    """ln p (k,) at the best scale s of J_model, one for each row of totals (k, m); e⁻⁴ to e⁴."""
    log_s, width = np.zeros((len(totals.J), 1)), 4.0
    for _ in range(4):
        steps = width * np.linspace(-1, 1, 7)
        tried = np.stack([totals.log_p(np.exp(log_s + x) * J_model, relative, nu) for x in steps])
        log_s = log_s + steps[np.argmax(tried, axis=0)][:, None]
        width /= 3
    return np.max(tried, axis=0)


def informed_unknowns(fit: infer.Fit) -> np.ndarray:
    """(n,) number of an image's unknowns that its data determine: Σ (1 − sd²/prior sd²)."""
    if fit.image_prior_sd is None:
        return np.zeros(len(fit.image))
    return np.clip(1 - fit.image_variance() / fit.image_prior_sd**2, 0.0, 1.0).sum(axis=1)


def judged(fit: infer.Fit, claims: Claims) -> np.ndarray:
    """(n,) statuses: the fit's, or ``no signal``, or ``doubtful``."""
    status, k = fit.status.copy(), informed_unknowns(fit)
    signal = claims.over_nothing - k
    above = claims.over_chance - k
    enough = np.minimum(Z_CHANCE * claims.chance_sd, (claims.expected - k) / 2)
    for i in np.flatnonzero([s.kind.usable for s in status]):
        if signal[i] < ODDS:
            status[i] = Status(Kind.NO_SIGNAL, f"ln odds {signal[i]:.1f} that there is any")
        elif above[i] < enough[i]:
            right = claims.expected[i] - k[i] / 2
            odds = f"ln odds {above[i]:.1f} against permuted intensities, {right:.1f}"
            status[i] = Status(Kind.DOUBTFUL, f"{odds} expected")
    return status
