"""Scrambled polar runs are put right, with and without a reference, and doubt is owned up to."""

import math
from dataclasses import replace
from functools import lru_cache

import gemmi
import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import multivariate_normal

from bayes_refine.geometry.symmetry import asu_map
from bayes_refine.indexing import leave_image_out, reindex
from bayes_refine.indexing.ambiguity import Ambiguity, ambiguity, reindexed_unmerged
from bayes_refine.indexing.first_scales import first_scales
from bayes_refine.indexing.unmerged_alike import unmerged_alike
from bayes_refine.io.unmerged import Unmerged
from bayes_refine.physics.reference import Reference, free_set
from bayes_refine.simulation.spots import predict_spots
from bayes_refine.simulation.truth import Simulation, draw_truth

P63, P3 = (" P 6c", "P 63"), (" P 3", "P 3")
CELL = (70, 70, 50, 90, 90, 120)
BACKGROUND = 30.0  # variance of an intensity at I = 0, photons²


@lru_cache(maxsize=8)
def simulated(group=P63, n_images=40, photons=30.0, seed=1):
    """Stills with partiality, B and Poisson noise, indexed alike: data, their true g, reference."""
    hall, name = group
    simulation = Simulation(
        n_images=n_images, seed=seed, cell=CELL, hall=hall, d_min=3.0, mean_photons=photons
    )
    rng = np.random.default_rng(seed)
    truth = draw_truth(simulation, rng=rng)
    columns = []
    for i in range(n_images):
        spots = predict_spots(simulation, truth, i)
        near = np.abs(spots.epsilon_r) < 8e-4
        J = spots.J[near] + rng.normal(0, np.sqrt(BACKGROUND + spots.J[near]))
        q2 = np.sum(spots.q[near] ** 2, axis=1)
        g = truth.G[i] * np.exp(-truth.B[i] * q2 / 4) * spots.partiality[near]
        columns.append((spots.hkl[near], np.full(len(J), i), J, g, spots.epsilon_r[near]))
    hkl, image, J, g, excitation = (np.concatenate(c) for c in zip(*columns, strict=True))
    space_group, cell = gemmi.SpaceGroup(name), gemmi.UnitCell(*CELL)
    asu, isym = asu_map(hkl, space_group)
    sigma = np.sqrt(BACKGROUND + np.maximum(J, 0))
    data = Unmerged(
        hkl, asu, isym, J, sigma, image + 1, image, excitation, None, cell, space_group, "test"
    )
    true = truth.reference
    reference = Reference(asu_map(true.hkl, space_group)[0], true.intensity, cell, space_group, "")
    return data, g, reference


def scrambled(data: Unmerged, seed=0) -> tuple[Unmerged, Ambiguity, np.ndarray]:
    """Each image the wrong way at random; which operation puts it right."""
    ways = ambiguity(data.cell, data.space_group)
    right = np.random.default_rng(seed).integers(0, len(ways), data.image.max() + 1)
    inverse = replace(ways, operations=np.linalg.inv(ways.operations))
    return reindexed_unmerged(data, inverse, right), ways, right


def integrated(data: Unmerged, g: np.ndarray) -> leave_image_out.Integrated:
    ones = np.ones(len(data))
    return leave_image_out.Integrated(
        data.hkl, data.image, data.J, g, BACKGROUND * ones, ones, data.image.max() + 1
    )


def agreement(choice: reindex.Reindexing, right: np.ndarray) -> np.ndarray:
    """(n,) bool: put right, up to what relabels the whole run."""
    tries = [row[choice.operation] == right for row in choice.ambiguity.relabellings]
    return max(tries, key=np.sum)


@pytest.mark.parametrize(("group", "n_images"), [(P63, 20), (P63, 100), (P3, 100)])
def test_a_scrambled_run_is_put_right_without_a_reference(group, n_images):
    data, _, reference = simulated(group, n_images)
    mixed, ways, right = scrambled(data)
    got, choice = unmerged_alike(mixed)
    assert agreement(choice, right).mean() >= 0.99
    assert choice.n_alike == choice.n_starts
    assert (choice.status == "decided").mean() > 0.9
    # what comes back is one crystal, or that crystal relabelled
    true = [np.corrcoef(reference.lookup(got.hkl @ R.astype(int)), got.J)[0, 1]
            for R in ways.operations]  # fmt: skip
    assert max(true) > 0.6 > 0.5 > sorted(true)[-2]


def test_most_images_join_what_some_have_found(monkeypatch):
    data, _, _ = simulated(P63, 100)
    mixed, _, right = scrambled(data)
    monkeypatch.setattr(reindex, "SEARCHED", 25)
    choice = unmerged_alike(mixed)[1]
    assert agreement(choice, right).mean() >= 0.99


@pytest.mark.parametrize("group", [P63, P3])
def test_a_scrambled_run_is_put_right_by_a_reference(group):
    data, _, reference = simulated(group, 100)
    mixed, ways, right = scrambled(data)
    got, choice = unmerged_alike(mixed, reference)
    assert (choice.operation == right).mean() >= 0.99
    assert choice.correlation > 0.9
    done = choice.operation == right
    assert (got.hkl_asu == data.hkl_asu)[done[data.image]].all()
    assert set(choice.columns()["reindex"]) == set(ways.names)
    assert "undecided" in str(choice) and f"of {len(right)} images" in str(choice)


def test_an_unscrambled_run_stays_as_it_is():
    data, _, _ = simulated()
    got, choice = unmerged_alike(data)
    assert not choice.changed.any()
    assert (got.hkl == data.hkl).all()


def test_nothing_ambiguous_returns_at_once():
    data, _, _ = simulated()
    more = gemmi.SpaceGroup("P 63 2 2")
    got, choice = unmerged_alike(replace(data, space_group=more))
    assert got.hkl is data.hkl
    assert not choice.changed.any() and np.isinf(choice.log_odds).all()
    assert (choice.status == "decided").all() and "not ambiguous" in str(choice)


@pytest.mark.parametrize("n_images", [20, 60])
def test_true_symmetry_taken_for_ambiguity_decides_nothing(n_images):
    """Data of a group that has the twofold axes too: both ways are right.

    With few images what overlaps by chance seems to speak for one way, with many nothing does.
    """
    data, _, _ = simulated((" P 6c 2c", "P 63 2 2"), n_images)
    low = gemmi.SpaceGroup("P 63")
    asu, isym = asu_map(data.hkl, low)
    _, choice = unmerged_alike(replace(data, space_group=low, hkl_asu=asu, isym=isym))
    assert (choice.status != "decided").mean() > 0.9


@pytest.mark.parametrize("by_reference", [False, True])
def test_weak_images_say_that_they_cannot_be_told(by_reference):
    """At three photons a reflection: the odds claimed are those kept, to three binomial sd."""
    data, g, reference = simulated(P63, 100, 3.0)
    mixed, ways, right = scrambled(data)
    obs = integrated(mixed, g)
    choice = (
        reindex.choose_by_reference(obs, ways, reference)
        if by_reference
        else reindex.choose(obs, ways, data.cell, n_starts=3)
    )
    good = choice.operation == right if by_reference else agreement(choice, right)
    claimed = 1 / (1 + np.exp(-choice.log_odds))
    assert (choice.status == "undecided").mean() > 0.2
    assert abs(good.mean() - claimed.mean()) < 3 * math.sqrt((claimed * (1 - claimed)).mean() / 100)
    assert good[choice.status == "decided"].mean() > 0.9


def test_noise_decides_nothing():
    data, g, reference = simulated(P63, 40, 30.0)
    rng = np.random.default_rng(5)
    noise = replace(data, J=rng.normal(0, np.sqrt(BACKGROUND), len(data)) + 0.1)
    obs, ways = integrated(noise, g), ambiguity(data.cell, data.space_group)
    for choice in (
        reindex.choose(obs, ways, data.cell, n_starts=3),
        reindex.choose_by_reference(obs, ways, reference),
    ):
        assert (choice.status == "undecided").mean() > 0.9


def test_a_reference_of_another_crystal_decides_nothing():
    data, g, reference = simulated(P63, 40, 30.0)
    shuffled = np.random.default_rng(1).permutation(reference.intensity)
    ways = ambiguity(data.cell, data.space_group)
    choice = reindex.choose_by_reference(
        integrated(data, g), ways, replace(reference, intensity=shuffled)
    )
    assert choice.correlation <= 0.5
    assert (choice.status == "undecided").mean() > 0.8


@pytest.mark.parametrize("by_reference", [False, True])
def test_wrong_scales_and_outliers_do_not_mislead(by_reference):
    """Scales off by up to a factor of two, one observation in fifty thirty times too strong."""
    data, g, reference = simulated(P63, 60)
    rng = np.random.default_rng(2)
    outlier = rng.random(len(data)) < 0.02
    J = np.where(outlier, 30 * np.abs(data.J), data.J)
    mixed, ways, right = scrambled(replace(data, J=J))
    obs = integrated(mixed, g * np.exp(rng.uniform(-0.7, 0.7, 60))[data.image])
    if by_reference:
        good = reindex.choose_by_reference(obs, ways, reference).operation == right
    else:
        good = agreement(reindex.choose(obs, ways, data.cell, n_starts=3), right)
    assert good.mean() >= 0.95


def test_the_free_set_is_not_looked_at():
    """Other intensities for all of the free set move nothing; for as many others, much."""
    data, g, reference = simulated(P63, 40)
    ways = ambiguity(data.cell, data.space_group)
    obs = integrated(data, g)
    before = reindex.choose_by_reference(obs, ways, reference, free_fraction=0.3, seed=4)
    free = free_set(reference.hkl, 0.3, 4, reference.space_group)
    change = {}
    for name, rows in (("free", np.flatnonzero(free)), ("others", np.flatnonzero(~free)[::2])):
        # neighbours in resolution swap, which leaves the mean by resolution
        order = rows[np.argsort(reference.d[rows])]
        values = reference.intensity.copy()
        values[order] = np.roll(values[order], 1)
        after = reindex.choose_by_reference(
            obs, ways, replace(reference, intensity=values), free_fraction=0.3, seed=4
        )
        change[name] = np.abs(after.log_odds - before.log_odds).mean()
    assert change["free"] < 0.02 * change["others"]


def test_scales_from_mean_intensities_are_near_the_truth():
    data, g, _ = simulated(P63, 100)
    rough = first_scales(
        data.hkl, data.image, data.J, data.excitation_error, data.cell, data.space_group
    )
    ratio = np.log(rough / g)
    by_image = np.bincount(data.image, ratio) / np.bincount(data.image)
    # 75 reflections with exponential intensities know a mean to 12 %, B adds to it
    assert by_image.std() < 0.3
    assert np.corrcoef(rough, g)[0, 1] > 0.9


# --- against theory ------------------------------------------------------------------------


def test_the_scale_is_integrated_out():
    """Normal, I known: J = γe + noise, γ ~ N(1, SD²), so J ~ N(e, diag(s²) + SD²·e·eᵀ)."""
    rng = np.random.default_rng(0)
    m, g = rng.exponential(50, 12), rng.uniform(0.1, 1, 12)
    J = 0.6 * g * m + rng.normal(0, 5, 12)
    obs = leave_image_out.Integrated(
        np.zeros((12, 3)), np.zeros(12, int), J, g, np.full(12, 25.0), np.zeros(12), 1
    )
    at = np.arange(12)[:, None]
    got = leave_image_out.likelihood(obs, at, m, np.zeros(12), 0.1, math.inf)
    e = g * m
    covariance = np.diag(25 + (0.1 * e) ** 2) + leave_image_out.SCALE_SD**2 * np.outer(e, e)
    assert got.log_likelihood[0, 0] == pytest.approx(
        multivariate_normal(e, covariance).logpdf(J), rel=1e-9
    )


@pytest.mark.parametrize("centric", [False, True])
def test_moments_of_a_reference_are_those_of_its_distribution(centric):
    """F = r·E_ref + √(1 − r²)·noise, complex or real (acentric Rice, centric folded)."""
    rng, r, E, S = np.random.default_rng(1), 0.8, 1.3, 50.0
    n = 400_000
    noise = rng.normal(size=n) if centric else rng.normal(size=(n, 2)) @ [1, 1j] / np.sqrt(2)
    intensity = S * np.abs(r * E + math.sqrt(1 - r**2) * noise) ** 2
    mean, variance = leave_image_out.double_wilson_moments(S, centric, E**2, r)
    assert mean == pytest.approx(intensity.mean(), rel=5e-3)
    assert variance == pytest.approx(intensity.var(), rel=2e-2)


def test_moments_under_wilsons_prior_are_french_and_wilsons():
    """∫ I·π·N over I ≥ 0 by adaptive quadrature, acentric (French & Wilson 1978)."""
    precision, total, S = np.array([0.04, 1e-8]), np.array([-0.2, 0.0]), np.array([20.0, 20.0])
    mean, variance = leave_image_out.wilson_moments(precision, total, S, np.zeros(2, bool))

    def density(x):
        return np.exp(-x / 20 - 0.5 * 0.04 * (x + 5) ** 2)

    norm = quad(density, 0, 100)[0]
    first, second = (quad(lambda x, k=k: x**k * density(x), 0, 100)[0] / norm for k in (1, 2))
    assert mean[0] == pytest.approx(first, rel=1e-5)
    assert variance[0] == pytest.approx(second - first**2, rel=1e-4)
    assert mean[1] == pytest.approx(20, rel=1e-4)  # nothing seen: Wilson's exponential
    assert variance[1] == pytest.approx(400, rel=1e-3)


def test_solutions_are_ranked_by_the_marginal_likelihood():
    """The difference of two is that of ln N(J; g·S, diag(s²) + τ²·g·gᵀ) over reflections."""
    data, g, _ = simulated(P63, 20)
    ways = ambiguity(data.cell, data.space_group)
    obs = integrated(data, g)
    grouped = leave_image_out.by_reflection(obs, ways, data.cell)
    got, expected = [], []
    for operation in (np.zeros(20, int), np.arange(20) % 2):
        state = leave_image_out.unscaled(obs, grouped, np.eye(2)[operation])
        got.append(reindex._evidence(obs, grouped, state))
        code = grouped.code[np.arange(len(g)), operation[obs.image]]
        e = g * grouped.mean[code]
        s2 = obs.variance + e + (reindex.MODEL_ERROR * e) ** 2
        parts = []
        for k in np.unique(code):
            rows = np.flatnonzero(code == k)
            tau = grouped.mean[k] ** 2 * (1 + grouped.centric[k])
            cov = np.diag(s2[rows]) + tau * np.outer(g[rows], g[rows])
            parts.append(multivariate_normal(e[rows], cov).logpdf(obs.J[rows]))
        expected.append(sum(parts))
    # s² is taken at the mean of the reflection that an operation says, alike but for ε
    assert got[1] - got[0] == pytest.approx(expected[1] - expected[0], rel=0.02)
    assert got[0] > got[1]
