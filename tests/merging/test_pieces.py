"""Observations in pieces: the same numbers, in memory that does not grow with multiplicity."""

from __future__ import annotations

import numpy as np
import pytest

from bayes_refine.merging import pieces
from bayes_refine.merging.amplitude_prior import fit_prior
from bayes_refine.merging.latent import Measured, intensity_posteriors


@pytest.fixture(scope="module")
def measured() -> Measured:
    """40 reflections, each observed 12 times."""
    rng, m, each = np.random.default_rng(3), 40, 12
    code = np.repeat(np.arange(m), each)
    n, scale = m * each, rng.uniform(0.2, 1.0, m * each)
    expected = scale * rng.exponential(400, m)[code]
    variance = np.full(n, 200.0)
    return Measured(
        J=expected + np.sqrt(variance + expected) * rng.standard_normal(n),
        scale=scale,
        variance=variance,
        per_photon=np.ones(n),
        fraction=np.full(n, 0.1),
        nu=20.0,
        code=code,
        image=np.tile(np.arange(each), m),
        weight=np.ones(n),
        hkl=np.stack([np.arange(1, m + 1), np.zeros(m), np.ones(m)], 1).astype(np.int32),
    )


def merged(measured):
    d = np.linspace(8.0, 2.0, len(measured.hkl))
    centric = np.arange(len(d)) % 7 == 0
    prior = fit_prior(measured, d, np.ones(len(d)), centric)
    post = intensity_posteriors(measured, prior).posterior
    return np.concatenate([prior.log_mean, post.intensity, post.intensity_sd, post.log_evidence])


def test_pieces_of_few_reflections_change_nothing(measured, monkeypatch):
    whole = merged(measured)
    (one,) = pieces.in_pieces(measured)
    assert len(one.measured.hkl) == pieces.REFLECTIONS
    monkeypatch.setattr(pieces, "OBSERVATIONS", 64)
    monkeypatch.setattr(pieces, "FEW", 8)
    parts = list(pieces.in_pieces(measured))
    # five reflections of twelve observations fit into 64 places
    assert len(parts) == 8 and all(len(p.measured.hkl) == 8 for p in parts)
    np.testing.assert_allclose(merged(measured), whole, rtol=1e-9)
