"""Scales of simulated integrated stills: recovery, calibration, the free set, the gauge."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from bayes_refine import load_model
from bayes_refine.geometry.miller import pack_hkl, resolution
from bayes_refine.geometry.symmetry import asu_map
from bayes_refine.infer.coupled import compiled_objective, in_parts
from bayes_refine.infer.lbfgs import minimise
from bayes_refine.merging import pieces, scaling
from bayes_refine.merging.agreement import pearson
from bayes_refine.merging.latent import intensity_posteriors
from bayes_refine.merging.observations import ScalingPriors, by_reflection, prepare
from bayes_refine.simulation.unmerged import UnmergedSimulation, simulate_unmerged
from bayes_refine.util import large_arrays
from bayes_refine.util.progress import Listener

N_IMAGES = 40


@pytest.fixture(scope="module")
def run():
    simulated = simulate_unmerged(UnmergedSimulation(n_images=N_IMAGES, n_unique=500))
    obs = prepare(simulated.data, n_knots=4)
    fit = scaling.fit_scales(obs, load_model("latent"))
    return simulated.data, simulated.truth, simulated.log_G, simulated.B, obs, fit


def test_scales_are_recovered_within_their_sd(run):
    _, _, log_G, B, _, fit = run
    assert (fit.fit.status == "converged").mean() > 0.9
    pull_G = (fit.log_G - (log_G - log_G.mean())) / fit.log_G_sd
    pull_B = (fit.B - (B - B.mean())) / fit.B_sd
    assert 0.6 < pull_G.std() < 1.6
    assert 0.6 < pull_B.std() < 1.6
    assert abs(fit.log_G.mean()) < 1e-9 and abs(fit.B.mean()) < 1e-9  # the gauge


@pytest.mark.parametrize("anomalous", [False, True])
def test_observations_are_sorted_slice_by_slice_as_at_once(run, monkeypatch, anomalous):
    data = run[0]
    d_min = float(np.median(resolution(data.hkl_asu, data.cell)))
    monkeypatch.setattr(large_arrays, "SLICE", 37)
    rows, code, hkl = by_reflection(data, d_min, anomalous)
    unique = asu_map(data.hkl, data.space_group, anomalous)[0]
    near = np.flatnonzero(resolution(unique, data.cell) >= d_min)
    assert 37 < len(near) < len(data)
    expected = near[np.argsort(pack_hkl(unique[near]), kind="stable")]
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_array_equal(hkl[code], unique[expected])
    assert (np.diff(pack_hkl(hkl)) > 0).all()


def test_the_width_that_grows_with_resolution_is_found(run):
    fit = run[-1]
    assert np.exp(fit.shared["log_dispersion"][0]) == pytest.approx(2e-3, rel=0.3)


def test_the_sd_of_what_the_run_shares_is_that_of_the_whole_hessian(run):
    """The inverse of all (n k + s)² second derivatives, by differences of the exact gradient.

    The block Hessian alone has the sd of the mosaic spread several times too small.  Nodes are
    placed anew at the mode: with nodes that held a common scale back, the fit would not be there.
    """
    obs, model, priors = run[4], load_model("latent"), ScalingPriors()
    found, _ = scaling.joint_mode(obs, model, priors)
    obs = scaling.renewed(model, obs, priors, found.values())
    objective = compiled_objective(model, found.sites)

    def gradient(x):
        theta, phi = x[: found.image.size].reshape(found.image.shape), x[found.image.size :]
        return np.concatenate([np.ravel(g) for g in objective(theta, phi, obs, priors)[1]])

    mode, step = np.concatenate([found.image.ravel(), found.shared]), 1e-5
    each = step * np.eye(len(mode))
    hessian = [(gradient(mode + e) - gradient(mode - e)) / (2 * step) for e in each]
    exact = np.linalg.inv((np.array(hessian) + np.transpose(hessian)) / 2)
    s = len(found.shared)
    sd = np.sqrt(np.diag(exact))[-s:]
    np.testing.assert_allclose(np.sqrt(np.diag(found.shared_covariance)), sd, rtol=0.05)
    assert (np.abs((exact @ gradient(mode))[-s:]) < 0.2 * sd).all()


def test_posteriors_of_intensities_are_calibrated(run):
    _, truth, _, _, obs, fit = run
    true = truth.lookup(np.asarray(obs.hkl))
    post = fit.posterior
    k = (post.intensity @ true) / (true @ true)  # the overall scale is the gauge's
    pull = (post.intensity - k * true) / post.intensity_sd
    assert 0.8 < pull.std() < 1.25
    assert (post.intensity > 0).all() and (post.amplitude > 0).all()
    averaged = np.bincount(obs.code, obs.J) / np.bincount(obs.code)
    assert pearson(post.intensity, true) > max(0.97, pearson(averaged, true))


@pytest.mark.slow
def test_pulls_of_intensities_whose_scales_were_fitted():
    """Over four runs, 4,500 reflections: sd of pulls within 1 ± 0.1, 90 % hold 87 to 93 %."""
    pulls, centric, ranks = [], [], []
    for seed in range(4):
        simulated = simulate_unmerged(UnmergedSimulation(n_images=150, each=100, seed=seed))
        fit = scaling.fit_scales(prepare(simulated.data), load_model("latent"))
        true, post = simulated.truth.lookup(np.asarray(fit.measured.hkl)), fit.posterior
        weight = 1 / (post.intensity_sd**2 + (0.02 * true) ** 2)
        k = (weight * post.intensity) @ true / ((weight * true) @ true)  # the gauge
        pulls.append((post.intensity - k * true) / post.intensity_sd)
        centric.append(np.asarray(fit.prior.centric))
        draws = intensity_posteriors(fit.measured, fit.prior).draws(199, seed=seed)
        ranks.append((draws < np.sqrt(k * true)).mean(axis=0))
    pull, is_centric, rank = map(np.concatenate, (pulls, centric, ranks))
    for chosen in (is_centric, ~is_centric, is_centric | True):
        assert abs(pull[chosen].std() - 1) < 0.1
        assert abs((np.abs(pull[chosen]) < 1.645).mean() - 0.9) < 0.03
        assert abs(((rank > 0.05) & (rank < 0.95))[chosen].mean() - 0.9) < 0.03


def test_likelihood_only_intensities_carry_no_prior(run):
    _, truth, _, _, _, fit = run
    true = truth.lookup(fit.merged.hkl)
    assert fit.merged.intensity.min() < 0
    assert pearson(fit.merged.intensity, true) > 0.95


def test_halves_are_fitted_apart(run):
    _, _, _, _, obs, fit = run
    halves = scaling.refit_halves(obs, load_model("latent"))
    assert pearson(*halves.posterior.T) > 0.85
    assert np.bincount(halves.half_of_image).tolist() == [N_IMAGES // 2] * 2
    assert [len(half.log_G) for half in halves.fits] == [N_IMAGES // 2] * 2
    # images without data, at steps of a prior sd, would drive the errors to e²⁰
    for half in halves.fits:
        assert np.exp(half.shared["log_model_error"][0]) == pytest.approx(0.2, rel=0.5)
    assert fit.merged.half_of_image.tolist() == halves.half_of_image.tolist()


def test_the_free_set_never_sees_its_reference(run):
    data, truth, *_ = run
    rng = np.random.default_rng(3)
    seen = prepare(data, reference=truth, free_fraction=0.2, n_knots=4)
    wrong = truth.intensity * rng.exponential(1, len(truth.intensity))
    informed = np.asarray(seen.reference.informed)
    free_of_reference = np.isin(pack_hkl(truth.hkl), pack_hkl(np.asarray(seen.hkl)[~informed]))
    changed = replace(truth, intensity=np.where(free_of_reference, wrong, truth.intensity))
    other = prepare(data, reference=changed, free_fraction=0.2, n_knots=4)
    assert 0.1 < (~informed).mean() < 0.3
    # what normalises the others does not see the free ones either: nothing at all moves
    assert not np.asarray(seen.reference.amplitude)[~informed].any()
    for name in ("amplitude", "log_mean", "log_k0", "B0"):
        np.testing.assert_array_equal(getattr(seen.reference, name), getattr(other.reference, name))


def test_no_excitation_error_means_full_partiality(run):
    data = run[0]
    obs = prepare(replace(data, excitation_error=None))
    assert not np.asarray(obs.excitation_error).any()


def test_single_precision_is_refused(run):
    import jax

    obs = run[4]
    jax.config.update("jax_enable_x64", False)
    try:
        with pytest.raises(ValueError, match="double precision"):
            scaling.fit_scales(obs, load_model("latent"))
    finally:
        jax.config.update("jax_enable_x64", True)


def test_lbfgs_finds_rosenbrocks_minimum():
    def f(x):
        a, b = x
        value = (1 - a) ** 2 + 100 * (b - a**2) ** 2
        return value, np.array([-2 * (1 - a) - 400 * a * (b - a**2), 200 * (b - a**2)])

    found = minimise(f, np.array([-1.2, 1.0]), lambda g: g / 200, np.full(2, 1.0), 300, 1e-12)
    np.testing.assert_allclose(found.x, 1.0, atol=1e-4)


def test_nodes_placed_anew_do_not_move_the_mode():
    """The Newton step with fresh nodes, over the sd; nodes that stay hold a common scale back."""
    simulated = simulate_unmerged(UnmergedSimulation(n_images=N_IMAGES, n_unique=4000))
    obs, model = prepare(simulated.data, n_knots=4), load_model("latent")
    priors = ScalingPriors()
    found, _ = scaling.joint_mode(obs, model, priors)
    fresh = scaling.renewed(model, obs, priors, found.values())
    objective = compiled_objective(model, found.sites)
    by_image, by_shared = map(np.asarray, objective(found.image, found.shared, fresh, priors)[1])
    follow = -np.linalg.solve(found.image_precision, found.coupling)
    slope = by_shared + np.einsum("nks,nk->s", follow, by_image)
    step = found.shared_covariance @ slope / np.sqrt(np.diag(found.shared_covariance))
    assert np.abs(step).max() < 0.05


def test_wilson_knots_are_linear_between(run):
    obs = run[4]
    np.testing.assert_allclose(jnp.sum(obs.knot_weight, 1), 1.0, rtol=1e-6)


def test_parts_of_the_observations_have_the_density_and_the_sites_of_the_whole(run, monkeypatch):
    obs, found = run[4], run[-1].fit
    model, priors = load_model("latent"), ScalingPriors()

    def evaluated():
        here = scaling.renewed(model, obs, priors, found.values())
        several = len(pieces.Parts(obs)) > 1
        objective = compiled_objective(model, found.sites)
        if several:
            objective = in_parts(model, found.sites, lambda obs: (x.obs for x in pieces.Parts(obs)))
        value, slopes = objective(found.image, found.shared, here, priors)
        return several, value, slopes, scaling.sites_at(model, here, priors, found.values())

    whole = evaluated()
    monkeypatch.setattr(pieces, "GRAIN", 64)
    monkeypatch.setattr(pieces, "PART", 512)
    monkeypatch.setattr(pieces, "SMALL_PART", 512)
    parts = evaluated()
    assert (whole[0], parts[0]) == (False, True)
    assert float(parts[1]) == pytest.approx(float(whole[1]), rel=1e-12)
    for a, b in zip(parts[2], whole[2], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-9 * np.abs(whole[2][0]).max() + 1e-8)
    for name, value in whole[3].items():
        np.testing.assert_allclose(parts[3][name], value, rtol=1e-12, err_msg=name)


def test_a_large_run_starts_from_some_of_its_images(run, monkeypatch):
    """It ends at the same mode, to what a search leaves that promises 0.001 nats, 0.045 sd."""
    obs, whole = run[4], run[-1]
    monkeypatch.setattr(scaling, "FIRST_IMAGES", 15)
    said = []
    heard = Listener(say=said.append)
    found = scaling.fit_scales(obs, load_model("latent"), progress=heard)
    assert said[0] == "scales of 15 images first"
    assert (np.abs(found.log_G - whole.log_G) < 0.06 * whole.log_G_sd).all()
    sd = np.sqrt(np.diag(whole.fit.shared_covariance))
    assert (np.abs(found.fit.shared - whole.fit.shared) < 0.06 * sd).all()
