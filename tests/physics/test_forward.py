"""The physics of the models against full recomputation, Monte-Carlo and the simulator."""

from __future__ import annotations

from dataclasses import replace
from math import erf, sqrt
from pathlib import Path

import gemmi
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayes_refine import physics
from bayes_refine.fitting.padding import geometry_observations, layout, slots
from bayes_refine.fitting.state import Geometry
from bayes_refine.geometry.crystal import Crystal, refined_crystal, rotation_matrix
from bayes_refine.geometry.detector import Beam, beam_frame
from bayes_refine.geometry.experiments import Still
from bayes_refine.geometry.predict import candidate_indices, concatenate, predict
from bayes_refine.measuring.shoebox import Boxes, shoebox_for_width
from bayes_refine.measuring.statistics import measure
from bayes_refine.measuring.weights import score_weights
from bayes_refine.simulation.spots import relp_covariance
from bayes_refine.simulation.truth import Simulation, square_detector

SHAPE = (0.2, -0.1, 0.3, -0.25, 0.15)  # of the mosaic spread
SIMULATION = Simulation(
    R0=4e-4, R1=8e-4, mosaic_rad=1.2e-3, mosaic_shape=SHAPE, bandwidth=2e-3, wavelength=1.1
)
SPREAD = np.asarray(
    physics.mosaic_covariance(
        jnp.full(2, SIMULATION.mosaic_rad * 1e3), jnp.tile(jnp.array(SHAPE), (2, 1))
    )
)
CELL = gemmi.UnitCell(52, 67, 81, 90, 102, 90)
CURRENT = (  # a state that is not the crystal as indexed: rotation (mrad), strain, shift (mm)
    np.array([[0.8, -0.5, 1.1], [-1.0, 0.3, 0.2]]),
    np.array([[2e-4, -1e-4, 3e-4, 1e-4], [0, 1e-4, -2e-4, 0]]),
    np.array([0.03, -0.02, 0.06]),
)
FURTHER = (  # from there by 3 mrad, strains of 1e-3, 0.2 mm
    CURRENT[0] + 3 * np.array([[0.6, 0.0, -0.8], [-0.7, 0.7, 0.14]]),
    CURRENT[1] + 1e-3 * np.array([[1, -1, 1, 0.5], [-1, 0.5, 1, 1]]),
    CURRENT[2] + 0.2,
)


def stills() -> list[Still]:
    """Two monoclinic crystals; the second has a beam off the detector's normal."""
    R = rotation_matrix(np.array([[400.0, 900.0, -700.0], [-900.0, 100.0, 300.0]]))
    out = []
    for k, direction in enumerate(([0, 0, 1.0], [0.02, -0.03, 1.0])):
        B = np.array(CELL.frac.mat.tolist()).T
        beam = Beam(
            wavelength=SIMULATION.wavelength,
            s0_direction=np.array(direction) / np.linalg.norm(direction),
            polarization_normal=np.array([0, 1.0, 0]),
            bandwidth=SIMULATION.bandwidth,
        )
        detector = square_detector(SIMULATION, 110.0, np.array([240.0, 238.0]))
        out.append(Still(str(k), Path("none"), 0, beam, detector, Crystal(R[k] @ B, "P 2y")))
    return out


def moved(still: Still, rotation, strain, shift) -> Still:
    """By the definitions: a beam centre that moves by +x is a detector that moves by −x."""
    x, y, along = beam_frame(still.beam, still.detector)
    return replace(
        still,
        crystal=refined_crystal(still.crystal, rotation, strain),
        detector=still.detector.shifted(-shift[0] * x - shift[1] * y + shift[2] * along),
    )


@pytest.fixture(scope="module")
def current():
    """Stills as indexed, predictions at the current state, their layout, observations."""
    indexed, parts = stills(), []
    for i, still in enumerate(indexed):
        here = moved(still, CURRENT[0][i], CURRENT[1][i], CURRENT[2])
        hkl = candidate_indices(still.crystal.cell, still.crystal.space_group, 2.4)
        parts.append(predict(here, hkl, 2.4, lambda d: np.full_like(d, 1.5e-3), i))
    predictions = concatenate(parts)
    where = layout(predictions.image, 2, slots(np.bincount(predictions.image)))
    assert len(predictions) > 300
    obs = geometry_observations(indexed, predictions, where, Geometry(*CURRENT), 1e-3)
    return indexed, predictions, where, obs


# -- geometry -------------------------------------------------------------------------------


def test_rotation_is_the_crystal_s():
    """The series against Rodrigues' formula up to 100 mrad, as promised to 1e-12."""
    w = np.random.default_rng(0).standard_normal((20, 3)) * np.geomspace(1e-6, 55, 20)[:, None]
    np.testing.assert_allclose(
        physics.rotation_matrix_mrad(jnp.asarray(w)), rotation_matrix(w), atol=1e-12
    )


def test_rotation_is_differentiable_at_zero():
    """∂R/∂ω_k = 1e-3·[e_k]×, and the second derivatives ½{K_i, K_j}."""
    slope = np.asarray(jax.jit(jax.jacfwd(physics.rotation_matrix_mrad))(jnp.zeros(3)))
    levi_civita = np.zeros((3, 3, 3))
    for i, j, k in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
        levi_civita[i, j, k], levi_civita[i, k, j] = 1, -1
    K = -np.moveaxis(levi_civita, 0, -1).transpose(2, 0, 1)  # [e_k]×_ij = −ε_kij
    np.testing.assert_allclose(np.moveaxis(slope, -1, 0), 1e-3 * K, atol=1e-15)
    second = np.asarray(
        jax.jit(jax.hessian(lambda w: physics.rotation_matrix_mrad(w)[0, 0]))(jnp.zeros(3))
    )
    np.testing.assert_allclose(second, -1e-6 * np.diag([0, 1, 1]), atol=1e-15)


def test_at_the_current_state_nothing_has_moved(current):
    _, predictions, where, obs = current
    excitation, shift_1, shift_2 = physics.place_on_detector(obs, *map(jnp.asarray, CURRENT))
    np.testing.assert_allclose(where.flat(excitation), predictions.excitation_error, atol=1e-16)
    np.testing.assert_allclose(where.flat(shift_1), 0, atol=1e-16)
    np.testing.assert_allclose(where.flat(shift_2), 0, atol=1e-16)


def test_geometry_is_the_full_recomputation(current):
    """ε_r exactly; the centre to second order in what it moves.

    It moves by up to u = 3 mrad·|q| = 1.3e-3 Å⁻¹; left out are terms of order u²λ = 2e-6 Å⁻¹,
    two thousandths of a pixel.
    """
    indexed, predictions, where, obs = current
    excitation, shift_1, shift_2 = (
        where.flat(x) for x in physics.place_on_detector(obs, *map(jnp.asarray, FURTHER))
    )
    largest = 0.0
    for i, still in enumerate(indexed):
        here = predictions.image == i
        again = moved(still, FURTHER[0][i], FURTHER[1][i], FURTHER[2])
        hkl = predictions.hkl[here]
        length = np.linalg.norm(still.beam.s0 + hkl @ again.crystal.A.T, axis=1)
        np.testing.assert_allclose(excitation[here], length - 1 / still.beam.wavelength, atol=1e-12)
        new = predict(again, hkl, 2.3, lambda d: np.full_like(d, 1.0))
        places = {tuple(h): xy for h, xy in zip(new.hkl.tolist(), new.xy_px, strict=True)}
        kept = [k for k, h in enumerate(hkl.tolist()) if tuple(h) in places]
        assert len(kept) > 0.95 * len(hkl)
        dxy = np.array([places[tuple(h)] for h in hkl[kept].tolist()])
        dxy -= predictions.xy_px[here][kept]
        expected = np.einsum("nij,nj->ni", predictions.frame[here][kept], dxy)
        found = np.stack([shift_1[here][kept], shift_2[here][kept]], axis=1)
        largest = max(largest, np.abs(expected).max())
        np.testing.assert_allclose(found, expected, atol=1e-5)
    assert largest > 1e-3  # it was a move of a pixel or more


@pytest.mark.parametrize("axis", range(3))
def test_beam_centre_and_distance(current, axis):
    """Each shift by itself, 0.01 mm: linear, so that a wrong sign cannot hide."""
    indexed, predictions, where, obs = current
    shift = CURRENT[2] + 0.01 * np.eye(3)[axis]
    _, shift_1, shift_2 = physics.place_on_detector(
        obs, jnp.asarray(CURRENT[0]), jnp.asarray(CURRENT[1]), jnp.asarray(shift)
    )
    found = np.stack([where.flat(shift_1), where.flat(shift_2)], axis=1)
    for i, still in enumerate(indexed):
        here = predictions.image == i
        again = moved(still, CURRENT[0][i], CURRENT[1][i], shift)
        new = predict(again, predictions.hkl[here], 2.4, lambda d: np.full_like(d, 1.6e-3))
        same = np.all(new.hkl[: here.sum()] == predictions.hkl[here][: len(new)], axis=1)
        assert same.all() and len(new) == here.sum()
        dxy = new.xy_px - predictions.xy_px[here]
        expected = np.einsum("nij,nj->ni", predictions.frame[here], dxy)
        np.testing.assert_allclose(found[here], expected, atol=2e-3 * np.abs(expected).max())


# -- spots ----------------------------------------------------------------------------------


def test_mosaic_covariance_keeps_its_size():
    """Five numbers for six of a symmetric matrix: the determinant is η's, zeros are a sphere."""
    np.testing.assert_allclose(np.linalg.det(SPREAD), (1e3 * SIMULATION.mosaic_rad) ** 6)
    round_ = physics.mosaic_covariance(jnp.array([0.7]), jnp.zeros((1, 5)))
    np.testing.assert_allclose(round_[0], 0.49 * np.eye(3))


def spot_of(obs, geometry=CURRENT, curve=physics.gaussian) -> physics.Spot:
    R1_moment = (SIMULATION.R1**2 / 2, SIMULATION.R1**2 / 2, 0.0)
    place = physics.place_on_detector(obs, *map(jnp.asarray, geometry))
    smear = SIMULATION.R0, SIMULATION.bandwidth, jnp.asarray(SPREAD)
    return physics.smeared_spot(obs, place, *smear, R1_moment, curve)


def test_spot_is_the_simulator_s_gaussian(current):
    """Widths, slope k of the centroid and partiality from the 3×3 covariance.

    The simulator takes θ of the bandwidth from |q|, the model from the ray: they differ by ε_r ≤
    1.5e-3 Å⁻¹ over |q| ≥ 0.02 Å⁻¹ at worst, so angles of low orders do, by a few per cent.
    """
    _, predictions, where, obs = current
    spot = spot_of(obs)
    p = predictions
    sigma = relp_covariance(SIMULATION, p.q, np.stack([p.s_hat, p.e1, p.e2], 1))
    k = -sigma[:, 0, 1:] / sigma[:, :1, 0]
    fine = p.d < 10  # where that difference is below 2 %
    expected = {
        "R0_eff": np.sqrt(sigma[:, 0, 0]),
        "shift_1": k[:, 0] * p.excitation_error,
        "shift_2": k[:, 1] * p.excitation_error,
        "m11": (sigma[:, 1, 1] - sigma[:, 0, 1] ** 2 / sigma[:, 0, 0]) / 2,
        "m22": (sigma[:, 2, 2] - sigma[:, 0, 2] ** 2 / sigma[:, 0, 0]) / 2,
        "m12": (sigma[:, 1, 2] - sigma[:, 0, 1] * sigma[:, 0, 2] / sigma[:, 0, 0]) / 2,
    }
    assert fine.sum() > 200 and np.abs(k[fine]).max() > 0.5
    for name, value in expected.items():
        found = where.flat(getattr(spot, name))[fine]
        np.testing.assert_allclose(
            found, value[fine], rtol=2e-2, atol=1e-3 * np.abs(value).max(), err_msg=name
        )
    p = physics.gaussian(spot.excitation_error, SIMULATION.R0, spot.R0_eff)
    theory = (
        SIMULATION.R0
        / expected["R0_eff"]
        * np.exp(-((predictions.excitation_error / expected["R0_eff"]) ** 2))
    )
    np.testing.assert_allclose(where.flat(p)[fine], theory[fine], rtol=0.02, atol=2e-3)
    peak = physics.gaussian_peak(spot.excitation_error, SIMULATION.R0, spot.R0_eff)
    np.testing.assert_allclose(
        where.flat(peak), where.flat(p * spot.R0_eff) / SIMULATION.R0, rtol=1e-12
    )


def some_relps(predictions):
    """Two inside and two outside the sphere by about R0_eff, at low and high resolution."""
    e, d = predictions.excitation_error, predictions.d
    chosen = []
    for sign in (-1, 1):
        for low, high in ((2.4, 2.7), (4.0, 6.0)):
            off = np.where((d > low) & (d < high), np.abs(e - sign * 5e-4), np.inf)
            chosen.append(int(np.argmin(off)))
    return chosen


@pytest.mark.parametrize("turn", [None, (2.0, -3.0, 1.0)], ids=["still", "turning"])
@pytest.mark.parametrize("which", range(4))
def test_spot_is_the_sum_of_its_blocks_and_wavelengths(current, which, turn):
    """Rays of exactly rotated blocks at each wavelength, weight exp(−ε_r²/R0²); R1 aside.  A
    crystal that turns by ``turn`` mrad has blocks at all times of the exposure.

    3·10⁵ draws of which a third count: means to 0.5 % of a width, variances to 1 %; second
    order in ε_r/|q| is another per cent.
    """
    indexed, predictions, where, obs = current
    i = some_relps(predictions)[which]
    rng = np.random.default_rng(which)
    n, beam = 300_000, indexed[predictions.image[i]].beam
    omega = rng.multivariate_normal(np.zeros(3), SPREAD[0] / 2, n)
    q = rotation_matrix(omega) @ predictions.q[i]
    curve = physics.gaussian
    if turn is not None:
        q = np.einsum("nij,nj->ni", rotation_matrix(rng.uniform(-0.5, 0.5, (n, 1)) * turn), q)
        turning = [replace(still, turn_mrad=np.array(turn)) for still in indexed]
        obs = geometry_observations(turning, predictions, where, Geometry(*CURRENT), 1e-3)
        curve = physics.gaussian_over_turn
    lam = beam.wavelength * (1 + beam.bandwidth * rng.standard_normal(n))
    s = q + beam.s0_direction / lam[:, None]
    length = np.linalg.norm(s, axis=1)
    weight = np.exp(-(((length - 1 / lam) / SIMULATION.R0) ** 2))
    axes = np.stack([predictions.e1[i], predictions.e2[i]])
    epsilon = (s / length[:, None]) @ axes.T / beam.wavelength
    mean = weight @ epsilon / weight.sum()
    M = np.einsum("n,ni,nj->ij", weight, epsilon - mean, epsilon - mean) / weight.sum()

    found = spot_of(obs, curve=curve)
    p = where.flat(curve.of(found, SIMULATION.R0))[i]
    spot = {k: where.flat(v)[i] for k, v in found._asdict().items() if np.ndim(v)}
    own = SIMULATION.R1**2 / 2
    width = sqrt(spot["m22"] - own)
    assert weight.mean() == pytest.approx(float(p), rel=0.03)
    np.testing.assert_allclose(mean, [spot["shift_1"], spot["shift_2"]], atol=0.03 * width)
    assert abs(spot["shift_1"]) > 0.1 * width or predictions.d[i] > 4
    np.testing.assert_allclose(
        [M[0, 0], M[1, 1], M[0, 1]],
        [spot["m11"] - own, spot["m22"] - own, spot["m12"]],
        atol=0.04 * (spot["m22"] - own),
    )


@pytest.mark.parametrize("which", range(4))
def test_block_variance_is_that_of_single_blocks(current, which):
    """Relative variance of one exactly rotated block's exp(−ε²/(R0² + R_bw²)), 10⁶ draws."""
    indexed, predictions, where, obs = current
    i = some_relps(predictions)[which]
    rng = np.random.default_rng(10 + which)
    beam = indexed[predictions.image[i]].beam
    omega = rng.multivariate_normal(np.zeros(3), SPREAD[0] / 2, 1_000_000)
    q = rotation_matrix(omega) @ predictions.q[i]
    epsilon = np.linalg.norm(beam.s0 + q, axis=1) - 1 / beam.wavelength
    R_bw = beam.bandwidth * beam.wavelength / (sqrt(2) * predictions.d[i] ** 2)
    p = np.exp(-(epsilon**2) / (SIMULATION.R0**2 + R_bw**2))
    found = physics.gaussian.block_variance(spot_of(obs))
    assert float(where.flat(found)[i]) == pytest.approx(p.var() / p.mean() ** 2, rel=0.03)


def test_block_variance_fits_in_single_precision_however_far_from_the_sphere():
    """Up to 6 R0_eff the formula; further, what p² makes nothing of: at most 1e-17 of J²."""
    x = np.array([0.0, 3.0, 6.0, 8.0, 80.0])
    zero = np.zeros_like(x)
    eff, k2 = 1.0, 1e-4  # all but 1 % of the width is mosaic spread
    spot = physics.Spot(x * eff, zero + eff, *[zero] * 5, eff**2 - k2)
    found = np.asarray(physics.gaussian.block_variance(spot))
    expected = eff**2 / np.sqrt(k2 * (2 * eff**2 - k2))
    expected *= np.exp(2 * x[:3] ** 2 * (1 - 1 / (2 * eff**2 - k2)))
    np.testing.assert_allclose(found[:3], expected - 1, rtol=1e-12)
    assert np.isfinite(found.astype(np.float32)).all()
    assert np.all(found[3:] * np.exp(-2 * x[3:] ** 2) < 1e-17)


def test_bandwidth_width_is_the_spec_s(current):
    """R_bw² = (bλ)²/(2d⁴) with b the rms bandwidth."""
    _, predictions, where, obs = current
    expected = SIMULATION.bandwidth * SIMULATION.wavelength / (sqrt(2) * predictions.d**2)
    found = where.flat(physics.bandwidth_width(obs, SIMULATION.bandwidth))
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_debye_waller_is_the_spec_s():
    """exp(−B/(4d²)): B = 16 Å² at 2 Å is a factor e."""
    np.testing.assert_allclose(physics.debye_waller(16.0, 0.5), np.exp(-1), rtol=1e-12)
    np.testing.assert_allclose(physics.debye_waller(-16.0, 0.25), np.exp(0.25), rtol=1e-12)


@pytest.mark.parametrize("unsure", [1e-6, 0.04, 1.0, 100.0])
def test_photons_given_the_total_by_brute_force(unsure):
    """Moments of N(J_model, unsure·J_model²) × N(J, variance) over photons ≥ 0, on a grid."""
    J_model, J, variance = 20.0, np.array([-30.0, -5.0, 0.0, 12.0, 80.0]), 49.0
    x = np.linspace(0, 200, 400_001)[:, None]
    weight = np.exp(-((x - J_model) ** 2) / (2 * unsure * J_model**2) - (x - J) ** 2 / 98)
    mean = (weight * x).sum(0) / weight.sum(0)
    square = (weight * (x - mean) ** 2).sum(0) / weight.sum(0)
    found = physics.given_total(J_model, unsure, J, variance)
    np.testing.assert_allclose(found[0], mean, rtol=1e-3)
    np.testing.assert_allclose(found[1], square, rtol=2e-3)


# -- expected statistics ----------------------------------------------------------------------

PIXEL, R1_PX = 1e-3, 1.4
BOX = shoebox_for_width(R1_PX)


def pixels(displaced=(0.0, 0.0), wider=(1.0, 1.0)):
    """Share of a Gaussian spot in the pixels of a shoebox, by the error function."""
    at = np.array([0.2, -0.3]) + R1_PX * np.array(displaced)
    out = []
    for dx, dy in BOX.signal_offsets:
        along = [
            0.5 * (erf((o + 0.5 - c) / (R1_PX * w)) - erf((o - 0.5 - c) / (R1_PX * w)))
            for o, c, w in zip((dx, dy), at, wider, strict=True)
        ]
        out.append(along[0] * along[1])
    return np.array(out)


@pytest.fixture(scope="module")
def expectation(current):
    """A function: true displacement and widths → (expected, measured without noise) of T/J·r."""
    obs = current[3]
    frame = np.eye(2)[None] * PIXEL
    half = (R1_PX * PIXEL) ** 2 / 2
    n_pixel, n_ring = len(BOX.signal_offsets), len(BOX.ring_offsets)

    def compare(
        displaced=(0.0, 0.0), wider=(1.0, 1.0), J=30.0, background=20.0, shape_variance=0.0
    ):
        boxes = Boxes(
            centre=np.array([[0.2, -0.3]]),
            signal=background + J * pixels(displaced, wider)[None],
            usable=np.ones((1, n_pixel), bool),
            contested=np.zeros((1, n_pixel), bool),
            ring=np.full((1, n_ring), background),
        )
        moment = np.array([[half, half, 0.0]])
        s = measure(boxes, frame, moment, np.array([J]), BOX, 0.0, score_weights)
        observed = s.value[0] / (J * np.diagonal(s.response[0]))
        one = replace(
            obs,
            width=jnp.asarray(s.width)[:, None],
            saturation=jnp.asarray(s.saturation)[:, None],
            template_moment=jnp.asarray(moment)[..., None],
            response=jnp.asarray(s.response)[..., None],
            variance_background=jnp.asarray(s.variance_background)[..., None],
            variance_signal=jnp.asarray(s.variance_signal)[..., None],
        )
        rho = s.width[0]
        true = physics.Spot(
            excitation_error=jnp.zeros((1, 1)),
            R0_eff=jnp.ones((1, 1)),
            shift_1=jnp.full((1, 1), displaced[0] * rho),
            shift_2=jnp.full((1, 1), displaced[1] * rho),
            m11=jnp.full((1, 1), half * wider[0] ** 2),
            m22=jnp.full((1, 1), half * wider[1] ** 2),
            m12=jnp.zeros((1, 1)),
        )
        mean = np.asarray(physics.profile_statistics(one, true, 6, shape_variance))[0, :, 0]
        mean = mean / np.diagonal(s.response[0])
        found = physics.counting_variance(one, jnp.full((1, 1), J), 6)
        variance = s.variance_background[0] + J * s.variance_signal[0]
        np.testing.assert_allclose(np.asarray(found)[0, :, 0], variance, rtol=1e-12)
        return mean, observed

    return compare


def test_expectation_at_the_current_state(expectation):
    mean, observed = expectation()
    np.testing.assert_allclose(mean, observed, atol=2e-3)  # quadrature of a pixel: 1e-3
    assert mean[0] == pytest.approx(1)


@pytest.mark.parametrize("displaced", [(0.2, 0.0), (0.0, -0.2), (0.3, 0.3)])
def test_expectation_of_a_displaced_spot(expectation, displaced):
    """To third order in δ = displacement/ρ: errors of δ³ and less, the δ² in the spread."""
    mean, observed = expectation(displaced)
    size = np.hypot(*displaced)
    np.testing.assert_allclose(mean[:4], observed[:4], atol=2.0 * size**3)
    np.testing.assert_allclose(mean[1:3], displaced, atol=1e-4)  # unit response, by design


@pytest.mark.parametrize("background", [0.2, 20.0])
def test_spots_that_scatter_in_width_look_narrower_than_their_mean(expectation, background):
    """Half the spots by η = 0.15 wider, half narrower: the spread, to the fourth order."""
    deviation = 0.15
    observed = np.mean(
        [
            expectation(wider=[np.sqrt(1 + 2 * x)] * 2, background=background)[1]
            for x in (deviation, -deviation)
        ],
        axis=0,
    )
    sure, _ = expectation(background=background)
    mean, _ = expectation(background=background, shape_variance=deviation**2)
    assert mean[3] == pytest.approx(observed[3], abs=2e-3 + 3 * deviation**4)
    assert sure[3] - observed[3] > 0.015


@pytest.mark.parametrize("wider", [0.6, 0.8, 1.25, 1.5])
def test_expected_total_of_a_spot_of_another_width(expectation, wider):
    """The overlap of two round Gaussians is 1/(1 + η), η = (w² − 1)/2: exact on a flat background.

    Pixels and the end of the box leave 4 %.  The linear response alone would be off by
    η²/(1 + η): 24 % at 1.5.
    """
    mean, observed = expectation(wider=(wider, wider), J=1.0)
    deviation = (wider**2 - 1) / 2
    assert observed[0] == pytest.approx(1 / (1 + deviation), rel=0.04)
    assert mean[0] == pytest.approx(observed[0], rel=0.04)


@pytest.mark.parametrize("wider", [0.8, 0.9, 1.1, 1.25])
@pytest.mark.parametrize(("J", "background"), [(1.0, 20.0), (300.0, 20.0), (3000.0, 0.1)])
def test_expected_spread_is_good_to_second_order(expectation, wider, J, background):
    """On a flat background Gaussians give η/(1 + η)², without any background η; η/(1 + cη) with
    the measured c has errors of η³ there and between."""
    mean, observed = expectation(wider=(wider, wider), J=J, background=background)
    deviation = (wider**2 - 1) / 2
    assert np.sign(observed[3]) == np.sign(deviation)
    assert abs(mean[3] - observed[3]) < 4 * abs(deviation) ** 3 + 2e-3  # a pixel's quadrature: 1e-3
    limit = {1.0: deviation / (1 + deviation) ** 2, 300.0: None, 3000.0: deviation}[J]
    assert limit is None or observed[3] == pytest.approx(limit, rel=0.1)


def test_expected_quadrupole(expectation):
    """A spot stretched along e1 shows in "plus", and nothing in "cross"."""
    mean, observed = expectation(wider=(1.1, 0.9))
    assert mean[4] > 0.08 and mean[4] == pytest.approx(observed[4], rel=0.1)
    np.testing.assert_allclose([mean[5], observed[5]], 0, atol=1e-3)
