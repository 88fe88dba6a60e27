"""Posteriors at known scales against brute force, and that they mean what they say."""

from __future__ import annotations

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, special, stats

from bayes_refine.geometry.miller import pack_hkl
from bayes_refine.geometry.symmetry import asu_map, epsilon_centric
from bayes_refine.merging import friedel
from bayes_refine.merging.amplitude_prior import fit_prior
from bayes_refine.merging.latent import (
    AmplitudePrior,
    Measured,
    intensity_posteriors,
    likelihood_only,
)
from bayes_refine.merging.mates import anomalous_table, apart
from bayes_refine.merging.merged_intensities import near_reference, together
from bayes_refine.merging.reference_scale import amplitudes_of as reference_amplitudes
from bayes_refine.simulation.unmerged import UnmergedSimulation, simulate_unmerged

NU, FRACTION = 5.0, 0.15


def known_scales(**changes):
    """A simulated run with its true scales, as a fit would hand it over; and the truth."""
    settings = {"n_images": 60, "n_unique": 900, "nu": NU, "model_error": FRACTION, **changes}
    s = UnmergedSimulation(**settings)
    run = simulate_unmerged(s)
    data = run.data
    anomalous = s.difference > 0
    hkl = asu_map(data.hkl, data.space_group, anomalous)[0]
    order = np.argsort(pack_hkl(hkl), kind="stable")
    _, first, code = np.unique(pack_hkl(hkl[order]), return_index=True, return_inverse=True)
    q = 1 / data.cell.calculate_d_array(np.ascontiguousarray(hkl[order]))
    width = np.hypot(s.R0_inv_angstrom, s.dispersion_angstrom * q**2)
    x = data.excitation_error[order] / width
    image = data.image[order]
    g = s.R0_inv_angstrom / width / (1 + x**2) * np.exp(run.log_G[image] - run.B[image] * q**2 / 4)
    n = len(g)
    measured = Measured(
        J=jnp.asarray(data.J[order]),
        scale=jnp.asarray(g),
        variance=jnp.full(n, s.sigma**2),
        per_photon=jnp.zeros(n),
        fraction=jnp.full(n, s.model_error),
        nu=s.nu,
        code=jnp.asarray(code),
        image=jnp.asarray(image),
        weight=jnp.ones(n),
        hkl=jnp.asarray(hkl[order][first]),
    )
    return measured, run


def wilson_of(measured, run, **changes):
    hkl = np.asarray(measured.hkl)
    d = run.data.cell.calculate_d_array(np.ascontiguousarray(hkl))
    epsilon, centric = epsilon_centric(hkl, run.data.space_group)
    return fit_prior(measured, d, epsilon, centric), d


def amplitudes_of(hkl, run):
    """(k, 2) true F of h and −h, by asymmetric-unit index."""
    place = {tuple(h): k for k, h in enumerate(run.hkl.tolist())}
    return run.amplitude[[place[tuple(h)] for h in hkl.tolist()]]


def moments_by_brute_force(measured, prior, h, per_photon):
    """⟨I⟩ and its sd of reflection h by Simpson's rule, everything from scipy."""
    mine = np.asarray(measured.code) == h
    J, g, v = (np.asarray(x)[mine, None] for x in
               (measured.J, measured.scale, measured.variance))  # fmt: skip
    S = float(np.exp(prior.log_mean[h]))
    F = np.linspace(1e-6, 9 * np.sqrt(S), 8_001)
    mean = g * F**2
    s = np.sqrt(v + per_photon * mean + (FRACTION * mean) ** 2)
    log_p = (stats.t(NU).logpdf((J - mean) / s) - np.log(s)).sum(axis=0)
    if prior.centric[h]:
        log_p += stats.halfnorm(scale=np.sqrt(S)).logpdf(F)
    else:
        log_p += stats.rayleigh(scale=np.sqrt(S / 2)).logpdf(F)
    p = np.exp(log_p - log_p.max())
    z = integrate.simpson(p, x=F)
    first = integrate.simpson(p * F**2, x=F) / z
    return first, np.sqrt(integrate.simpson(p * (F**2 - first) ** 2, x=F) / z)


@pytest.mark.parametrize("per_photon", [0.0, 1.3])
def test_posterior_matches_brute_force(per_photon):
    measured, run = known_scales(n_images=20, n_unique=60)
    prior, _ = wilson_of(measured, run)
    measured = replace(measured, per_photon=jnp.full(len(measured.scale), per_photon))
    post = intensity_posteriors(measured, prior).posterior
    for h in range(0, 60, 3):
        mean, sd = moments_by_brute_force(measured, prior, h, per_photon)
        assert post.intensity[h] == pytest.approx(mean, rel=2e-3)
        assert post.intensity_sd[h] == pytest.approx(sd, rel=5e-3)


def test_the_prior_is_found():
    measured, run = known_scales(n_unique=None, n_images=200)
    prior, d = wilson_of(measured, run)
    epsilon = epsilon_centric(np.asarray(measured.hkl), run.data.space_group)[0]
    expected = np.log(400 * epsilon) - 15 / d**2  # of UnmergedSimulation
    assert np.abs(np.asarray(prior.log_mean) - expected).mean() < 0.1


def test_a_good_reference_is_believed_and_a_wrong_one_is_not():
    measured, run = known_scales()
    hkl = np.asarray(measured.hkl)
    d = run.data.cell.calculate_d_array(np.ascontiguousarray(hkl))
    kinds = epsilon_centric(hkl, run.data.space_group)
    rng, truth = np.random.default_rng(1), run.truth
    wrong = replace(truth, intensity=rng.permutation(truth.intensity))
    true = truth.lookup(hkl)
    found = {}
    for name, reference in (("good", truth), ("wrong", wrong)):
        amplitudes = reference_amplitudes(reference, hkl, d, run.data.cell, 0.05, 0)
        prior = fit_prior(measured, d, *kinds, amplitudes)
        informed = np.asarray(amplitudes.informed)
        assert not prior.informed[~informed].any() and (~informed).sum() > 20
        post = intensity_posteriors(measured, prior).posterior
        found[name] = (
            np.median(np.exp(prior.log_variance - prior.log_mean)[informed]),
            np.abs(post.intensity - true)[informed].mean(),
        )
    wilson = intensity_posteriors(measured, wilson_of(measured, run)[0]).posterior
    error = np.abs(wilson.intensity - true)[informed].mean()
    assert found["good"][0] < 0.06 and found["wrong"][0] > 0.88  # 1 − r²
    assert found["good"][1] < 0.7 * error and found["wrong"][1] < 1.05 * error


# -- calibration ----------------------------------------------------------------------------


def check_calibrated(value, sd, truth, width=0.1, coverage=0.03):
    """Pulls of sd 1 ± width; the central 90 % holds 90 % ± coverage (of a normal: weak ones
    are not, so this is a check of sd as it is used)."""
    good = np.isfinite(value)
    pull = (value - truth)[good] / sd[good]
    assert abs(pull.std() - 1) < width
    assert abs((np.abs(pull) < 1.645).mean() - 0.9) < coverage


def test_posteriors_at_known_scales_are_calibrated():
    measured, run = known_scales(n_images=150, n_unique=None)
    prior, _ = wilson_of(measured, run)
    latent = intensity_posteriors(measured, prior)
    F = amplitudes_of(np.asarray(measured.hkl), run)[:, 0]
    post = latent.posterior
    check_calibrated(post.intensity, post.intensity_sd, F**2)
    check_calibrated(post.amplitude, post.amplitude_sd, F)
    centric = np.asarray(prior.centric)
    assert centric.sum() > 300
    check_calibrated(post.amplitude[centric], post.amplitude_sd[centric], F[centric], 0.15, 0.05)
    # ranks of the truth among draws are uniform (Talts et al. 2018)
    draws = latent.draws(99, seed=0)
    rank = (draws < F).sum(axis=0) / 99
    assert stats.kstest(rank, "uniform").pvalue > 1e-3
    assert abs(((rank > 0.05) & (rank < 0.95)).mean() - 0.9) < 0.02


def test_sigmas_without_a_prior_are_calibrated_and_not_from_the_data():
    measured, run = known_scales(n_images=400, n_unique=800)
    prior, _ = wilson_of(measured, run)
    expected = intensity_posteriors(measured, prior).posterior.intensity
    merged = likelihood_only(measured, prior, expected)
    F2 = amplitudes_of(merged.hkl, run)[:, 0] ** 2
    known = merged.sigma < 0.5 * F2.mean()
    pull = ((merged.intensity - F2) / merged.sigma)[known]
    assert abs(pull.std() - 1) < 0.1 and abs(pull.mean()) < 0.1
    noisy = replace(measured, J=measured.J + 50.0)
    of_noisy = likelihood_only(replace(noisy, nu=np.inf), prior, expected).sigma
    of_normal = likelihood_only(replace(measured, nu=np.inf), prior, expected).sigma
    np.testing.assert_allclose(of_noisy, of_normal, rtol=1e-3)


@pytest.mark.parametrize("nu", [3.0, 50.0])
def test_sigma_of_an_outlier_knows_of_its_weight(nu):
    """J = 2,723 where 26 was expected, alone and beside a good one; by hand, g = 1, s² = 100."""
    hkl = np.array([[1, 2, 3], [2, 3, 4], [3, 4, 5]], np.int32)
    J, code = np.array([2723.0, 2723.0, 30.0, 30.0]), np.array([0, 1, 1, 2])
    ones, none = jnp.ones(4), jnp.zeros(4)
    measured = Measured(
        jnp.asarray(J), ones, 100 * ones, none, none, nu, jnp.asarray(code),
        jnp.asarray([0, 1, 2, 3]), ones, jnp.asarray(hkl),
    )  # fmt: skip
    wilson = AmplitudePrior(jnp.log(26.0 * jnp.ones(3)), jnp.zeros(3, bool))
    merged = likelihood_only(measured, wilson, np.full(3, 26.0))
    w = (nu + 1) / (nu + ((J - 26) / 10) ** 2)
    known = np.minimum(w, (nu + 1) / (nu + 3)) / 100
    assert merged.intensity[0] == pytest.approx(2723)
    assert merged.intensity[1] == pytest.approx((w[1] * J[1] + w[2] * J[2]) / (w[1] + w[2]))
    total = np.bincount(code, known)
    np.testing.assert_allclose(merged.sigma, total**-0.5)
    pull = (merged.intensity - 26) / merged.sigma
    assert pull[0] < np.sqrt(nu + 1) and abs(pull[1]) < 2 and pull[2] < 1


# -- the Gaussian prior ---------------------------------------------------------------------


def test_near_reference_is_the_product_of_two_normals():
    measured, run = known_scales()
    hkl = np.asarray(measured.hkl)
    d = run.data.cell.calculate_d_array(np.ascontiguousarray(hkl))
    amplitudes = reference_amplitudes(run.truth, hkl, d, run.data.cell, 0.1, 0)
    prior = fit_prior(measured, d, *epsilon_centric(hkl, run.data.space_group), amplitudes)
    informed = np.asarray(amplitudes.informed)
    found = near_reference(measured, prior, run.data.cell, run.data.space_group, 0)
    merged, post = found.merged, found.posterior
    assert np.array_equal(merged.hkl, hkl)
    t = np.asarray(found.numbers["tau_over_Sigma"])
    assert (t < 0.3).all()  # this reference is the truth
    # for a free reflection: N(S, S²), by hand
    S, centric = np.exp(np.asarray(prior.log_mean)), np.asarray(prior.centric)
    free = ~informed & ~centric
    w = merged.sigma**-2.0
    by_hand = (w * merged.intensity + S / S**2) / (w + S**-2.0)
    np.testing.assert_allclose(post.intensity[free], by_hand[free], rtol=1e-9)
    np.testing.assert_allclose(post.intensity_sd[free], (w + S**-2.0)[free] ** -0.5, rtol=1e-9)
    # F = √I of the part I ≥ 0, against scipy's truncated normal
    for k in np.flatnonzero(free)[:5]:
        mean, sd = post.intensity[k], post.intensity_sd[k]
        cut = stats.truncnorm(-mean / sd, np.inf, mean, sd)
        assert post.amplitude[k] == pytest.approx(cut.expect(np.sqrt), rel=1e-5)


def test_frozen_weights_are_near_the_student_t_they_stand_for():
    """With a score of observations, mean and sd of N(I_ref, τ²)·Π t_ν by Simpson's rule."""
    measured, run = known_scales(n_images=200, n_unique=300)
    prior, _ = wilson_of(measured, run)
    found = near_reference(measured, prior, run.data.cell, run.data.space_group, 0)
    S, code = np.exp(np.asarray(prior.log_mean)), np.asarray(measured.code)
    centric = np.asarray(prior.centric)
    off, ratio = [], []
    for h in range(0, 300, 15):
        mine = code == h
        J, g, v = (np.asarray(x)[mine, None] for x in
                   (measured.J, measured.scale, measured.variance))  # fmt: skip
        sd = found.posterior.intensity_sd[h]
        I = found.posterior.intensity[h] + np.linspace(-30, 30, 6_001) * sd  # noqa: E741
        s = np.sqrt(v + (FRACTION * g * I) ** 2)
        tau = S[h] * (2**0.5 if centric[h] else 1)
        log_p = (stats.t(NU).logpdf((J - g * I) / s) - np.log(s)).sum(axis=0)
        log_p += stats.norm(S[h], tau).logpdf(I)
        p = np.exp(log_p - log_p.max())
        p /= p.sum()
        mean = p @ I
        off.append((found.posterior.intensity[h] - mean) / sd)
        ratio.append(sd / np.sqrt(p @ (I - mean) ** 2))
    assert np.sqrt(np.mean(np.square(off))) < 0.4  # of one sd
    assert np.median(ratio) == pytest.approx(1, abs=0.1)


# -- Friedel mates --------------------------------------------------------------------------


def brute_force_pair(I, sigma, S, rho, n=1201):  # noqa: E741
    """Moments of F₊, F₋ on a dense grid: Rayleigh × Rice × two normals, from scipy."""
    F = [np.linspace(np.sqrt(max(i - 7 * s, 0)) + 1e-9, np.sqrt(i + 7 * s), n)
         for i, s in zip(I, sigma, strict=True)]  # fmt: skip
    a, b = F[0][:, None], F[1][None]
    V = S * (1 - rho**2)
    log_p = stats.rayleigh(scale=np.sqrt(S / 2)).logpdf(a) + np.log(2 * b / V)
    log_p = log_p - (b - rho * a) ** 2 / V + np.log(special.i0e(2 * rho * a * b / V))
    log_p = (
        log_p + stats.norm(I[0], sigma[0]).logpdf(a**2) + stats.norm(I[1], sigma[1]).logpdf(b**2)
    )
    p = np.exp(log_p - log_p.max())
    z = p.sum()
    mean = [(p * x).sum() / z for x in (a**2, b**2, a - b)]
    sd = [np.sqrt((p * (x - m) ** 2).sum() / z)
          for x, m in zip((a**2, b**2, a - b), mean, strict=True)]  # fmt: skip
    area = (F[0][1] - F[0][0]) * (F[1][1] - F[1][0])
    return mean, sd, np.log(z * area) + log_p.max()


@pytest.mark.parametrize("rho", [0.3, 0.99, 0.9999])
def test_pairs_match_brute_force(rho):
    I = np.array([[3.0, 8.0], [90.0, 95.0], [120.0, 90.0], [40.0, 300.0]])  # noqa: E741
    sigma = np.array([[6.0, 9.0], [2.0, 30.0], [4.0, 3.0], [25.0, 80.0]])
    pairs = friedel.Pairs(*map(jnp.asarray, (I, sigma, np.full(4, np.log(100.0)), np.ones(4))))
    post = friedel.pair_posterior(pairs, np.full(4, rho))
    for k in range(4):
        mean, sd, log_z = brute_force_pair(I[k], sigma[k], 100.0, rho)
        assert post.intensity[k] == pytest.approx(mean[:2], rel=3e-3)
        assert post.intensity_sd[k] == pytest.approx(sd[:2], rel=5e-3)
        assert post.difference[k] == pytest.approx(mean[2], abs=5e-3 * sd[2])
        assert post.difference_sd[k] == pytest.approx(sd[2], rel=5e-3)
        assert post.log_evidence[k] == pytest.approx(log_z, abs=5e-3)


def test_mates_apart_on_a_known_anomalous_signal():
    difference = 2e-3  # 1 − ρ: ΔF is 6 % of F rms, less than the noise
    measured, run = known_scales(
        n_images=200, n_unique=None, difference=difference, model_error=0.1, sigma=2.0
    )
    prior, _ = wilson_of(measured, run)
    found = apart(measured, prior, run.data.cell, run.data.space_group, 0)
    mates, merged = found.mates, found.merged
    F = amplitudes_of(merged.hkl, run)
    pair = np.isfinite(mates.difference)
    centric = epsilon_centric(merged.hkl, run.data.space_group)[1]
    assert not (pair & centric).any() and pair.sum() > 700
    low, high = found.numbers["one_minus_mates_correlation"]
    assert 0.5 < low / difference < 2 and 0.5 < high / difference < 2
    true = (F[:, 0] - F[:, 1])[pair]
    check_calibrated(mates.difference[pair], mates.difference_sd[pair], true, 0.12, 0.04)
    for k in (0, 1):
        seen = pair & np.isfinite(mates.posterior.amplitude[:, k])
        check_calibrated(
            mates.posterior.amplitude[seen, k], mates.posterior.amplitude_sd[seen, k], F[seen, k],
            0.12, 0.04,
        )  # fmt: skip
    # the prior that knows the mates' likeness beats two that know nothing of each other
    alone = mates.intensity[pair]
    naive = np.sqrt(np.maximum(alone, 0))
    apart_error = np.abs(mates.difference[pair] - true).mean()
    assert apart_error < 0.8 * np.abs(naive[:, 0] - naive[:, 1] - true).mean()
    assert np.corrcoef(mates.difference[pair], true)[0, 1] > 0.5
    np.testing.assert_array_equal(mates.n.sum(axis=1), merged.n)


@pytest.mark.parametrize("difference", [1e-12, 0.02])
def test_cc_anom_is_there_where_there_is_a_signal(difference):
    measured, run = known_scales(
        n_images=200, n_unique=None, difference=difference, model_error=0.1, sigma=2.0
    )
    prior, _ = wilson_of(measured, run)
    found = apart(measured, prior, run.data.cell, run.data.space_group, 0)
    edges = np.array([50, 4, 3.0])
    rows = anomalous_table(found.mates, found.merged, run.data.cell, edges)
    n = rows[-1]["n_anom"]
    assert n > 500 and rows[0]["n_anom"] + rows[1]["n_anom"] == n
    if difference < 1e-6:
        assert abs(rows[-1]["cc_anom"]) < 4 / np.sqrt(n)
        assert found.numbers["one_minus_mates_correlation"][0] < 1e-3
    else:
        assert rows[-1]["cc_anom"] > 8 / np.sqrt(n)


def test_without_mates_apart_is_together():
    measured, run = known_scales(n_images=20, n_unique=100)
    prior, _ = wilson_of(measured, run)
    place = run.data.cell, run.data.space_group, 0
    a, b = apart(measured, prior, *place), together(measured, prior, *place)
    np.testing.assert_array_equal(a.posterior.intensity, b.posterior.intensity)
    assert np.isnan(a.mates.difference).all() and np.isnan(a.mates.intensity[:, 1]).all()
    row = anomalous_table(a.mates, a.merged, run.data.cell, np.array([50, 3.0]))[-1]
    assert row == {"cc_anom": None, "cc_anom_unweighted": None, "n_anom": 0}
