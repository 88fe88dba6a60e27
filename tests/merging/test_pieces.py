"""Observations in pieces: the same numbers, in memory that does not grow with multiplicity."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bayes_refine.merging import amplitude_prior, pieces
from bayes_refine.merging.amplitude_prior import fit_prior
from bayes_refine.merging.latent import Measured, intensity_posteriors, likelihood_only
from bayes_refine.merging.observations import prepare
from bayes_refine.simulation.unmerged import UnmergedSimulation, simulate_unmerged
from bayes_refine.util import large_arrays


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
    assert len(one.measured.hkl) == pieces.LEAST and len(one.measured.J) == 512
    monkeypatch.setattr(pieces, "OBSERVATIONS", 64)
    monkeypatch.setattr(pieces, "LEAST", 8)
    parts = list(pieces.in_pieces(measured))
    # five reflections of twelve observations fit into 64 places
    assert len(parts) == 8 and all(len(p.measured.hkl) == 8 for p in parts)
    np.testing.assert_allclose(merged(measured), whole, rtol=1e-9)


def test_some_reflections_are_as_in_the_whole(measured):
    which = np.array([3, 4, 20, 39])
    some = pieces.some_reflections(measured, which)
    np.testing.assert_array_equal(some.hkl, measured.hkl[which])
    rows = np.isin(measured.code, which)
    np.testing.assert_array_equal(some.J, measured.J[rows])
    np.testing.assert_array_equal(which[some.code], measured.code[rows])


def test_a_search_that_begins_with_few_reflections_ends_where_it_would(measured, monkeypatch):
    whole = merged(measured)
    monkeypatch.setattr(amplitude_prior, "FEW", 15)
    begun_with = []
    some = pieces.some_reflections
    monkeypatch.setattr(
        amplitude_prior,
        "some_reflections",
        lambda measured, which: begun_with.append(len(which)) or some(measured, which),
    )
    np.testing.assert_allclose(merged(measured), whole, rtol=1e-3)
    assert set(begun_with) == {15}


def test_intensities_without_a_prior_are_the_same_part_by_part(measured, monkeypatch):
    """In files, too; with mates of which the second half of the reflections are."""
    d = np.linspace(8.0, 2.0, len(measured.hkl))
    prior = fit_prior(measured, d, np.ones(len(d)), np.zeros(len(d), bool))
    expected = np.asarray(intensity_posteriors(measured, prior).posterior.intensity)
    mates = np.concatenate([measured.hkl[:20], measured.hkl[:20]])
    whole = [likelihood_only(measured, prior, expected, hkl) for hkl in (None, mates)]
    assert len(list(pieces.whole_reflections(measured.code))) == 1
    monkeypatch.setattr(pieces, "PART", 50)
    monkeypatch.setattr(large_arrays, "LARGE", 100)
    slices = list(pieces.whole_reflections(measured.code))
    assert [s.stop - s.start for s in slices] == [48] * 10
    columns = {name: large_arrays.stored(getattr(measured, name)) for name in pieces.COLUMNS}
    assert columns["J"].base is not None
    parts = [
        likelihood_only(replace(measured, **columns), prior, expected, hkl) for hkl in (None, mates)
    ]
    for one, other in zip(whole, parts, strict=True):
        for name in ("hkl", "intensity", "sigma", "n", "half_intensity", "half_sigma", "weight"):
            np.testing.assert_allclose(getattr(other, name), getattr(one, name), rtol=1e-12)


def test_a_reflection_is_never_divided(monkeypatch):
    monkeypatch.setattr(pieces, "PART", 4)
    code = np.array([0, 0, 1, 1, 1, 1, 1, 1, 2, 3])
    slices = list(pieces.whole_reflections(code))
    assert [(s.start, s.stop) for s in slices] == [(0, 2), (2, 8), (8, 10)]


def test_observations_of_some_images_are_those_with_a_weight(measured, monkeypatch):
    chosen = np.arange(12) % 3 == 1
    d = np.linspace(8.0, 2.0, len(measured.hkl))
    prior = fit_prior(measured, d, np.ones(len(d)), np.zeros(len(d), bool))
    with_weight = replace(measured, weight=chosen[measured.image] * 1.0)
    monkeypatch.setattr(large_arrays, "SLICE", 50)
    some = pieces.of_images(measured, chosen)
    assert len(some.J) == 4 * len(some.hkl)
    one, other = (intensity_posteriors(x, prior).posterior for x in (with_weight, some))
    np.testing.assert_allclose(other.intensity, one.intensity, rtol=1e-12)
    np.testing.assert_allclose(other.log_evidence, one.log_evidence, rtol=1e-12)


def test_parts_of_very_many_images_have_more_observations(monkeypatch):
    """Each part makes a slope along the unknowns of all images: time would grow as their square."""
    monkeypatch.setattr(pieces, "PART", 1000)
    monkeypatch.setattr(pieces, "SMALL_PART", 100)

    def count(n_images):
        settings = UnmergedSimulation(n_images=n_images, each=6000 // n_images, n_unique=300)
        return len(pieces.Parts(prepare(simulate_unmerged(settings).data, n_knots=4)))

    assert (count(20), count(3000)) == (60, 16)  # of 3000 / 8 observations
