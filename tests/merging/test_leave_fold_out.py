"""Posteriors without a fold, from nodes that they share, against quadrature of each with many."""

from __future__ import annotations

import numpy as np
import pytest

from bayes_refine.merging import pieces
from bayes_refine.merging.latent import AmplitudePrior, Measured, intensity_posteriors
from bayes_refine.merging.leave_fold_out import leave_fold_out, moments, taken

N_REFLECTIONS, N_FOLDS = 40, 6


def prior_of(hkl: np.ndarray) -> AmplitudePrior:
    return AmplitudePrior(np.zeros(len(hkl)), hkl[:, 0] % 3 == 0)


def run(nu: float) -> Measured:
    """1 to 12 observations of each reflection, of I from 0 to 4 times its mean, errors of 10 %."""
    rng = np.random.default_rng(3)
    code = np.repeat(np.arange(N_REFLECTIONS), rng.integers(1, 13, N_REFLECTIONS))
    I, g = rng.uniform(0, 4, N_REFLECTIONS)[code], np.exp(rng.standard_normal(len(code)))  # noqa: E741
    error = np.sqrt(0.05 + (0.1 * g * I) ** 2) * rng.standard_normal(len(code))
    hkl = np.stack([np.arange(N_REFLECTIONS)] * 3, axis=1)
    ones = np.ones(len(code))
    columns = (g * I + error, g, 0.05 * ones, 0 * ones, 0.1 * ones)
    return Measured(*columns, nu, code, np.arange(len(code)) % 50, ones, hkl)


@pytest.mark.parametrize("nu", [np.inf, 30.0])
def test_without_a_fold(nu):
    d = run(nu)
    fold = np.asarray(d.image) % N_FOLDS
    of, which, found = leave_fold_out(d, fold, prior_of)
    assert len(of) == len({*zip(d.code, fold, strict=True)})
    prior = prior_of(d.hkl)
    for k in range(N_FOLDS):
        others = taken(d, np.flatnonzero(fold != k))
        post = intensity_posteriors(others, prior, n_nodes=400).posterior
        here = which == k
        np.testing.assert_allclose(found[0, here], post.intensity[of[here]], rtol=2e-6)
        np.testing.assert_allclose(found[1, here], post.intensity_sd[of[here]], rtol=2e-6)


def test_pieces_change_nothing(monkeypatch):
    d = run(30.0)
    whole = moments(d, prior_of)
    monkeypatch.setattr(pieces, "OBSERVATIONS", 16)
    monkeypatch.setattr(pieces, "LEAST", 8)
    monkeypatch.setattr(pieces, "REFLECTIONS", 8)
    parts = list(pieces.in_pieces(d))
    assert len(parts) > 10 and all(len(p.measured.code) == 16 for p in parts)
    covered = [range(p.observations.start, p.observations.stop) for p in parts]
    assert [k for part in covered for k in part] == list(range(len(d.code)))
    np.testing.assert_allclose(moments(d, prior_of), whole, rtol=1e-12)
