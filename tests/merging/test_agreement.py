"""Statistics against their definitions, theory and brute force."""

import json

import gemmi
import numpy as np
import pytest

from bayes_refine.merging.agreement import (
    cc_star,
    completeness,
    mean_intensity,
    pearson,
    r1_intensity,
    r_split,
    shell_edges,
    shell_index,
    shell_table,
    signal_share,
)
from bayes_refine.merging.average import merge

GROUP = gemmi.SpaceGroup("P 43 21 2")
CELL = gemmi.UnitCell(79.344, 79.344, 37.81, 90, 90, 90)


def test_pearson_is_numpys_and_ignores_missing():
    x, y = np.random.default_rng(0).normal(size=(2, 50))
    y = y + x
    expected = np.corrcoef(x, y)[0, 1]
    assert pearson(x, y) == pytest.approx(expected)
    assert pearson(np.r_[x, np.nan, 1], np.r_[y, 3, np.inf]) == pytest.approx(expected)
    assert np.isnan(pearson(x[:2], y[:2])) and np.isnan(pearson(x, np.ones(50)))


def test_cc_star_estimates_the_correlation_with_truth():
    """Karplus & Diederichs 2012: CC* of the halves is the CC of their mean with the truth."""
    rng = np.random.default_rng(1)
    truth = rng.exponential(1, 40_000)
    a, b = truth + rng.normal(0, 1.5, (2, len(truth)))
    assert cc_star(pearson(a, b)) == pytest.approx(pearson((a + b) / 2, truth), abs=0.01)
    assert cc_star(0.0) == 0 and cc_star(1.0) == 1 and np.isnan(cc_star(-0.1))


def test_r_split_of_gaussian_halves():
    """E|I1 − I2| = 2σ/√π, so R_split = √2·σ/(√π·I)."""
    rng = np.random.default_rng(2)
    a, b = 100 + rng.normal(0, 5, (2, 40_000))
    assert r_split(a, b) == pytest.approx(np.sqrt(2 / np.pi) * 5 / 100, rel=0.02)
    assert r_split(np.array([3.0, 1.0]), np.array([1.0, 1.0])) == pytest.approx(2 / 3 / np.sqrt(2))


def test_r1_fits_the_scale():
    truth = np.array([1.0, 2.0, 4.0])
    assert r1_intensity(7 * truth, truth) == pytest.approx(0, abs=1e-12)
    # k = (1 + 4 + 20)/21 by hand
    k = 25 / 21
    expected = (abs(1 - k) + abs(2 - 2 * k) + abs(5 - 4 * k)) / (7 * k)
    assert r1_intensity(np.array([1.0, 2.0, 5.0]), truth) == pytest.approx(expected)
    assert np.isnan(r1_intensity(np.ones(0), np.ones(0)))


def test_shells_have_equal_volume():
    edges = shell_edges(40.0, 1.9, 8)
    assert edges[0] == pytest.approx(40) and edges[-1] == pytest.approx(1.9)
    np.testing.assert_allclose(np.diff(edges**-3.0), (1.9**-3 - 40.0**-3) / 8)
    hkl = gemmi.make_miller_array(CELL, gemmi.SpaceGroup("P 1"), 1.9, 40.0)
    counts = np.bincount(shell_index(CELL.calculate_d_array(hkl), edges))
    assert len(counts) == 8 and counts.max() / counts.min() < 1.02
    assert shell_index(np.array([50, 40, 1.9, 1.8]), edges).tolist() == [-1, 0, 7, -1]
    assert np.array_equal(shell_index(edges[1:-1], edges), np.arange(1, 8))


def test_completeness_counts_what_is_possible():
    edges = shell_edges(100.0, 3.0, 4)
    hkl = gemmi.make_miller_array(CELL, GROUP, 3.0)
    np.testing.assert_array_equal(completeness(hkl, CELL, GROUP, edges), 1.0)
    mates = -hkl @ np.array(GROUP.operations().sym_ops[2].rot) // gemmi.Op.DEN
    np.testing.assert_array_equal(completeness(mates, CELL, GROUP, edges), 1.0)
    kept = hkl[CELL.calculate_d_array(hkl) > edges[2]][::2]
    got = completeness(np.r_[kept, kept], CELL, GROUP, edges)
    np.testing.assert_allclose(got[:2], 0.5, atol=0.02)
    np.testing.assert_array_equal(got[2:], 0)


@pytest.fixture
def merged_run():
    """Forty images of one in three reflections, from noise that grows with resolution."""
    rng = np.random.default_rng(4)
    hkl = gemmi.make_miller_array(CELL, GROUP, 3.0)
    truth = rng.exponential(50, len(hkl))
    which = np.concatenate([rng.permutation(len(hkl))[: len(hkl) // 3] for _ in range(40)])
    image = np.repeat(np.arange(40), len(hkl) // 3)
    sd = 400 / CELL.calculate_d_array(hkl)[which] ** 2
    J = truth[which] + rng.normal(0, sd)
    merged = merge(hkl[which], J, sd**2, np.ones(len(J)), image)
    order = {tuple(h): t for h, t in zip(hkl.tolist(), truth, strict=True)}
    return merged, np.array([order[tuple(h)] for h in merged.hkl.tolist()])


def test_shell_table(merged_run):
    merged, truth = merged_run
    free = np.arange(len(merged)) % 10 == 0
    edges = shell_edges(100.0, 3.0, 5)
    rows = json.loads(json.dumps(shell_table(merged, CELL, GROUP, edges, truth, free)))
    assert [row["shell"] for row in rows] == [0, 1, 2, 3, 4, "all"]
    total = rows[-1]
    for key in ("n_unique", "n_observations", "n_free"):
        assert sum(row[key] for row in rows[:-1]) == total[key]
    assert total["n_unique"] == len(merged) and total["n_free"] == free.sum()
    assert total["n_observations"] == merged.n.sum()
    assert total["multiplicity"] == pytest.approx(40 / 3, rel=0.01)
    assert total["completeness"] == pytest.approx(1, abs=0.001)
    assert total["mean_i_over_sigma"] == pytest.approx(np.mean(merged.intensity / merged.sigma))
    falling = [row["cc_half"] for row in rows[:-1]]
    assert falling[0] > falling[-1] + 0.01
    for row in rows:  # CC* predicts the CC with truth, which the merge never saw
        assert row["cc_star"] == pytest.approx(row["cc_ref"], abs=0.02)
        assert row["cc_free"] == pytest.approx(row["cc_ref"], abs=0.04)
    inside = shell_index(CELL.calculate_d_array(merged.hkl), edges) == 2
    seen = inside & ~free
    share = signal_share(
        merged.sigma, mean_intensity(merged.intensity[inside], merged.sigma[inside])
    )
    pair = merged.intensity[seen], truth[seen], share[seen]
    assert rows[2]["cc_ref"] == pytest.approx(pearson(*pair))
    assert rows[2]["r1_ref"] == pytest.approx(r1_intensity(*pair))
    posterior = 2 * merged.intensity
    row = shell_table(merged, CELL, GROUP, edges, truth, free, posterior)[2]
    assert row["cc_ref_posterior"] == pytest.approx(pearson(merged.intensity[seen], truth[seen]))


def test_weights_are_repeats():
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(2, 30)) + rng.normal(size=30)
    times = rng.integers(0, 4, 30)
    X, Y = np.repeat(x, times), np.repeat(y, times)
    assert pearson(x, y, times) == pytest.approx(pearson(X, Y))
    assert r_split(5 + x, 5 + y, times) == pytest.approx(r_split(5 + X, 5 + Y))
    assert r1_intensity(5 + x, 5 + y, times) == pytest.approx(r1_intensity(5 + X, 5 + Y))


def test_reflections_seen_at_no_scale_do_not_spoil_the_halves():
    """A tenth with σ of a hundred mean intensities: CC½ stays that of the others."""
    rng = np.random.default_rng(6)
    truth = rng.exponential(1, 20_000)
    sigma = np.where(np.arange(20_000) % 10 == 0, 100, 0.5)
    a, b = truth + sigma * rng.normal(size=(2, 20_000))
    S = mean_intensity((a + b) / 2, sigma / np.sqrt(2))
    assert S == pytest.approx(1, abs=0.02)
    # theory: Σw·Var(I)/Σw·(Var(I) + σ²), all of it from the good nine tenths
    w = 1 / (1 + sigma**2)
    expected = w.sum() / (w * (1 + sigma**2)).sum()
    assert pearson(a, b) < 0.05
    assert pearson(a, b, signal_share(sigma, S)) == pytest.approx(expected, abs=0.02)


def test_shell_table_says_none_where_there_is_nothing(merged_run):
    merged, _ = merged_run
    rows = shell_table(merged, CELL, GROUP, shell_edges(100.0, 2.0, 12))
    last = rows[-2]
    assert last["n_unique"] == 0 and last["completeness"] == 0
    for key in ("cc_half", "cc_star", "r_split", "cc_ref", "cc_free", "r1_ref", "multiplicity"):
        assert last[key] is None
    json.dumps(rows, allow_nan=False)
