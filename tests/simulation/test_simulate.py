"""The simulator against theory: photons, positions, widths, noise, and a Monte Carlo."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import gemmi
import h5py
import hdf5plugin  # noqa: F401  (bitshuffle)
import numpy as np
import pytest

from bayes_refine.geometry.crystal import cell_from_real_axes, rotation_matrix
from bayes_refine.geometry.detector import pixel_to_q
from bayes_refine.simulation.errors import block_variance, with_errors
from bayes_refine.simulation.files import simulate_run
from bayes_refine.simulation.pixels import simulate_image, spot_photons
from bayes_refine.simulation.spots import Spots, diffraction_frame, predict_spots, relp_covariance
from bayes_refine.simulation.truth import (
    Simulation,
    draw_truth,
    random_rotations,
    reference_intensities,
    whole_sphere,
)
from bayes_refine.util.errors import InputError
from bayes_refine.util.progress import Listener


def one(spots: Spots, i: int) -> Spots:
    return Spots(**{f.name: getattr(spots, f.name)[i : i + 1] for f in fields(Spots)})


def landing_px(simulation: Simulation, q: np.ndarray) -> np.ndarray:
    """Where s0 + q meets a plane normal to the beam, by similar triangles."""
    s = q + np.array([0, 0, 1 / simulation.wavelength])
    mm = simulation.distance_mm * s[:, :2] / s[:, 2:]
    return simulation.beam_center_px + mm / simulation.pixel_size_mm


def inner_spots(simulation: Simulation, n: int = 5):
    """Truth of a run, its first image's spots, and the n strongest that fit on the detector."""
    truth = draw_truth(simulation, rng=np.random.default_rng(simulation.seed))
    spots = predict_spots(simulation, truth, 0)
    xy = landing_px(simulation, spots.q)
    inside = np.all((xy > 15) & (xy < simulation.n_pixels - 15), axis=1)
    return truth, spots, np.argsort(np.where(inside, -spots.J, 0))[:n]


def test_photons_of_an_isolated_spot_add_up_to_J():
    truth, spots, chosen = inner_spots(Simulation(n_images=1, mosaic_rad=1e-3, aspect_ratio=1.5))
    for i in chosen:
        total = spot_photons(truth.detector, truth.beam, one(spots, i)).sum()
        assert total == pytest.approx(spots.J[i], rel=1e-4)


def test_a_spot_centred_on_the_edge_loses_half():
    simulation = Simulation(n_images=1, bandwidth=0.0)
    truth, spots, (i, *_) = inner_spots(simulation)
    x = landing_px(simulation, spots.q[[i]])[0, 0]
    edge = truth.detector.shifted([x * simulation.pixel_size_mm, 0, 0])  # starts where it lands
    total = spot_photons(edge, truth.beam, one(spots, i)).sum()
    assert total == pytest.approx(spots.J[i] / 2, rel=2e-3)


def test_center_and_width_of_a_spot():
    # wide spots: the centroid of pixel centres is off by up to exp(−2π²·variance/px²)/π px
    simulation = Simulation(n_images=1, bandwidth=0.0, aspect_ratio=2.0, R1=2.4e-3)
    truth, spots, chosen = inner_spots(simulation)
    y, x = np.indices(truth.bad.shape[1:]) + 0.5
    pixels = np.column_stack([x.ravel(), y.ravel()])
    q_pixels = pixel_to_q(truth.detector, truth.beam, np.zeros(len(pixels), int), pixels)
    for i in chosen:
        P = spot_photons(truth.detector, truth.beam, one(spots, i)).ravel() / spots.J[i]
        np.testing.assert_allclose(P @ pixels, landing_px(simulation, spots.q[[i]])[0], atol=2e-3)
        epsilon = (q_pixels - spots.q[i]) @ spots.frame[i, 1:].T
        # variance R²/2; binning adds a twelfth of the pixel's area (Sheppard)
        s = spots.q[i] + truth.beam.s0
        cosine = s[2] / np.linalg.norm(s)
        pixel = simulation.pixel_size_mm / simulation.distance_mm * cosine
        measured = np.sum(P @ epsilon**2)
        expected = simulation.R1**2 * (2.0 + 0.5) / 2 + pixel**2 * (1 + cosine**2) / 12
        assert measured == pytest.approx(expected, rel=5e-3)


def test_tiles_see_what_one_panel_sees_less_the_gap():
    whole = Simulation(n_images=1)
    tiled = Simulation(n_images=1, n_panels=4, panel_gap_px=10)
    truth, tiles = (draw_truth(s, rng=np.random.default_rng(1)) for s in (whole, tiled))
    spots = predict_spots(whole, truth, 0)
    (image,) = spot_photons(truth.detector, truth.beam, spots)
    parts = spot_photons(tiles.detector, tiles.beam, spots)
    near, far = slice(0, 235), slice(245, 480)
    corners = [(near, near), (near, far), (far, near), (far, far)]
    for part, corner in zip(parts, corners, strict=True):
        np.testing.assert_allclose(part, image[corner], atol=1e-4 * image.max())
    with pytest.raises(InputError, match="n_panels must be 1 or 4"):
        draw_truth(Simulation(n_panels=2), rng=np.random.default_rng(1))


SHAPE = (0.3, -0.2, 0.25, -0.3, 0.2)


@pytest.mark.parametrize(
    ("mosaic_rad", "shape", "bandwidth"),
    [(1.5e-3, (0,) * 5, 0.0), (0.0, SHAPE, 3e-3), (1.5e-3, SHAPE, 3e-3)],
)
@pytest.mark.parametrize("offset", [-1.0, 0.7])
def test_monte_carlo_of_mosaic_blocks_and_wavelengths(mosaic_rad, shape, bandwidth, offset):
    """Partiality, centroid, widths and correlation of ε_1, ε_2: rays of blocks and wavelengths.

    Each block, rotated exactly, at each wavelength diffracts along its own s0 + q with weight
    exp(−ε_r²/R0²).  Nothing of the covariance algebra of the module enters.
    """
    simulation = Simulation(mosaic_rad=mosaic_rad, mosaic_shape=shape, bandwidth=bandwidth)
    wavelength, R0, d, n = simulation.wavelength, simulation.R0, 2.5, 300_000
    epsilon_r = offset * np.hypot(R0, mosaic_rad / d)

    # a relp of that length, epsilon_r outside the sphere: |s0 + q| = 1/λ + ε_r
    s0 = np.array([0.0, 0.0, 1 / wavelength])
    along = ((1 / wavelength + epsilon_r) ** 2 - 1 / wavelength**2 - 1 / d**2) * wavelength / 2
    across = np.sqrt(1 / d**2 - along**2)
    q = np.array([across * np.cos(0.6), across * np.sin(0.6), along])
    frames = diffraction_frame(s0, (s0 + q)[None])
    (sigma,) = relp_covariance(simulation, q[None], frames)
    R0_eff_2, frame = sigma[0, 0], frames[0]

    rng = np.random.default_rng(5)
    d1, d2, *below = shape
    lower = np.diag(np.exp([d1, d2, -d1 - d2]))
    lower[np.tril_indices(3, -1)] = np.sqrt(2) * np.array(below)
    omega = 1e3 * mosaic_rad / np.sqrt(2) * rng.standard_normal((n, 3)) @ lower.T
    blocks = rotation_matrix(omega) @ q
    lam = wavelength * (1 + bandwidth * rng.standard_normal(n))
    s = blocks + s0 * (wavelength / lam)[:, None]
    s_norm = np.linalg.norm(s, axis=1)
    weight = np.exp(-((s_norm - 1 / lam) ** 2) / R0**2)
    epsilon_t = (s / s_norm[:, None]) @ frame[1:].T / wavelength
    mean = weight @ epsilon_t / weight.sum()
    away = epsilon_t - mean
    spread = np.einsum("n,ni,nj->ij", weight, away, away) / weight.sum()

    p = R0 / np.sqrt(R0_eff_2) * np.exp(-(epsilon_r**2) / R0_eff_2)
    k = -sigma[0, 1:] / R0_eff_2
    within = sigma[1:, 1:] - np.outer(sigma[0, 1:], sigma[0, 1:]) / R0_eff_2
    within = (within - simulation.R1**2 * np.eye(2)) / 2
    assert weight.mean() == pytest.approx(p, rel=0.03)
    np.testing.assert_allclose(mean, k * epsilon_r, rtol=0.03, atol=5e-6)
    np.testing.assert_allclose(spread, within, rtol=0.04, atol=0.01 * np.trace(within) + 1e-12)


def test_partiality_width_is_the_spec_s():
    """R_bw² = (bλ)²/(2d⁴) (docs/theory.md, One reflection)."""
    simulation = Simulation(bandwidth=2e-3, wavelength=1.3)
    q_norm = np.array([0.1, 0.4])
    sine = simulation.wavelength * q_norm / 2  # on the sphere
    q = np.column_stack([q_norm * np.sqrt(1 - sine**2), 0 * sine, -q_norm * sine])
    s0 = np.array([0, 0, 1 / simulation.wavelength])
    sigma = relp_covariance(simulation, q, diffraction_frame(s0, s0 + q))
    bandwidth_part = sigma[:, 0, 0] - simulation.R0**2
    np.testing.assert_allclose(bandwidth_part, (2e-3 * 1.3) ** 2 / 2 * q_norm**4)


def test_wilson_statistics():
    """<I²>/<I>² is 2 for acentric, 3 for centric reflections (Wilson 1949)."""
    simulation = Simulation(d_min=1.6, wilson_B=0.0)
    reference = reference_intensities(simulation, rng=np.random.default_rng(3))
    operations = gemmi.symops_from_hall(simulation.hall)
    centric = operations.centric_flag_array(reference.hkl)
    epsilon = operations.epsilon_factor_without_centering_array(reference.hkl)
    unit = reference.intensity / epsilon
    assert np.mean(unit[~centric] ** 2) / np.mean(unit[~centric]) ** 2 == pytest.approx(2, abs=0.1)
    assert np.mean(unit[centric] ** 2) / np.mean(unit[centric]) ** 2 == pytest.approx(3, abs=0.4)
    assert reference.intensity.mean() == pytest.approx(simulation.mean_photons, rel=0.03)
    assert not operations.systematic_absences(reference.hkl).any()


def test_whole_sphere_has_every_reflection_with_its_intensity():
    simulation = Simulation(d_min=5.0)
    reference = reference_intensities(simulation, rng=np.random.default_rng(3))
    sphere = whole_sphere(simulation.hall, reference)
    group = gemmi.SpaceGroup("P 43 21 2")
    cell = gemmi.UnitCell(*simulation.cell)
    everything = gemmi.make_miller_array(cell, group, simulation.d_min, unique=False)
    assert len(everything) == len(sphere.hkl)
    asu, operations = gemmi.ReciprocalAsu(group), group.operations()
    known = dict(zip(map(tuple, reference.hkl.tolist()), reference.intensity, strict=True))
    for hkl, intensity in zip(sphere.hkl[::7].tolist(), sphere.intensity[::7], strict=True):
        assert known[tuple(asu.to_asu(hkl, operations)[0])] == intensity


def test_random_rotations_are_rotations():
    R = random_rotations(50, rng=np.random.default_rng(0))
    np.testing.assert_allclose(R @ np.swapaxes(R, 1, 2), np.tile(np.eye(3), (50, 1, 1)), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(R), 1)


def test_noise_has_the_expected_mean_and_variance():
    """v = gain²·photons + σ_read² in counts², and a twelfth from rounding."""
    simulation = Simulation(
        n_images=1, mean_photons=0.0, background_photons=50.0, gain=3.0, read_noise=5.0
    )
    rng = np.random.default_rng(2)
    counts, _ = simulate_image(simulation, draw_truth(simulation, rng=rng), 0, rng=rng)
    assert counts.dtype == np.int32
    assert counts.mean() == pytest.approx(150, rel=1e-3)
    assert counts.var() == pytest.approx(9 * 50 + 25 + 1 / 12, rel=0.02)


def test_run_reads_back(tmp_path):
    calls = []
    simulation = Simulation(n_images=2, seed=4, bad_fraction=0.01)
    listener = Listener(update=lambda fraction, line: calls.append((fraction, line)))
    expt = simulate_run(simulation, tmp_path, listener)
    assert calls == [(0.5, "simulated image 1 of 2"), (1.0, "simulated image 2 of 2")]
    assert sorted(f.name for f in tmp_path.iterdir()) == [
        "indexed.expt",
        "master.h5",
        "reference.mtz",
        "simulation.json",
        "truth.h5",
    ]
    with h5py.File(tmp_path / "master.h5") as master, h5py.File(tmp_path / "truth.h5") as truth:
        images = master["entry/data/data"][()]
        assert images.shape == (2, 480, 480) and images.dtype == np.uint16
        instrument = master["entry/instrument"]
        assert instrument["beam/incident_wavelength_spread"][()] == simulation.bandwidth
        saturation = instrument["detector/saturation_value"][()]
        mask = instrument["detector/pixel_mask"][()] != 0
        assert mask.mean() == pytest.approx(0.01, rel=0.1)
        assert np.all((images > saturation) == mask)
        A = truth["A"][()]
        rotation, strain = truth["rotation_mrad"][()], truth["strain"][()]
        assert truth["G"].shape == truth["B"].shape == (2,)
        assert truth["R0"][()] == simulation.R0
        assert truth["background"].shape == (1, 480, 480)

    document = json.loads(expt.read_text())
    (panel,) = document["detector"][0]["panels"]
    np.testing.assert_allclose(panel["origin"], [-240.3 * 0.172, -239.8 * 0.172, 110.1])
    assert document["imageset"][1]["single_file_indices"] == [1]
    assert strain.shape == (2, 2)  # tetragonal: a and c
    for i, crystal in enumerate(document["crystal"]):
        axes = np.array([crystal[f"real_space_{v}"] for v in "abc"])
        cell = cell_from_real_axes(axes)
        assert cell.a == pytest.approx(cell.b) and cell.a == pytest.approx(79.3, rel=4e-3)
        undone = rotation_matrix(rotation[i]).T @ np.linalg.inv(axes) @ np.linalg.inv(A[i])
        np.testing.assert_allclose(undone, undone.T, atol=1e-12)  # a strain, no rotation left
        assert np.linalg.norm(undone - np.eye(3)) == pytest.approx(np.linalg.norm(strain[i]))

    mtz = gemmi.read_mtz_file(str(tmp_path / "reference.mtz"))
    assert mtz.column_labels() == ["H", "K", "L", "F", "IREF"]
    np.testing.assert_allclose(mtz.array[:, 3] ** 2, mtz.array[:, 4], rtol=1e-5)


def test_run_of_tiles_with_gain(tmp_path):
    simulation = Simulation(n_images=1, n_pixels=208, n_panels=4, gain=2.5, read_noise=1.0)
    expt = simulate_run(simulation, tmp_path)
    panels = json.loads(expt.read_text())["detector"][0]["panels"]
    assert [p["gain"] for p in panels] == [2.5] * 4
    assert [p["raw_image_offset"] for p in panels] == [[0, 0], [0, 100], [0, 200], [0, 300]]
    with h5py.File(tmp_path / "master.h5") as master:
        assert master["entry/data/data"].shape == (1, 400, 100)
        assert master["entry/data/data"].dtype == np.int32
        assert master["entry/instrument/detector/pixel_mask"].shape == (400, 100)
        modules = [master[f"entry/instrument/detector/module{p}"] for p in range(4)]
        assert [m["data_origin"][0] for m in modules] == [0, 100, 200, 300]


def test_seeds_reproduce(tmp_path):
    def images(seed, name):
        simulate_run(Simulation(n_images=1, n_pixels=200, seed=seed), tmp_path / name)
        with h5py.File(tmp_path / name / "master.h5") as file:
            return file["entry/data/data"][()]

    first = images(1, "a")
    assert np.array_equal(first, images(1, "b"))
    assert not np.array_equal(first, images(2, "c"))


def test_errors_of_spots_have_the_stated_sizes():
    plain = Simulation(n_images=1, mosaic_rad=2e-3, n_pixels=480)
    truth = draw_truth(plain, rng=np.random.default_rng(0))
    spots = predict_spots(plain, truth, 0)
    wrong = replace(plain, model_error=0.2, position_error_px=0.1, shape_error=0.3)
    rng, n = np.random.default_rng(1), 400
    found = [with_errors(wrong, spots, rng=rng) for _ in range(n)]
    J = np.array([f.J for f in found]) / spots.J
    assert J.mean() == pytest.approx(1, abs=0.01) and J.std() == pytest.approx(0.2, rel=0.03)
    pixel = plain.pixel_size_mm / plain.distance_mm / plain.wavelength  # Å⁻¹, near the beam
    off = (np.array([f.center for f in found]) - spots.center) / pixel
    assert np.std(off, axis=(0, 1)) == pytest.approx([0.1, 0.1], rel=0.03)
    wider = np.log(np.array([f.width for f in found]) / spots.width)
    assert 2 * np.std(wider, axis=(0, 1)) == pytest.approx([0.3, 0.3], rel=0.03)


def test_few_blocks_vary_p_as_blocks_do():
    """Against crystals of a few blocks, each turned by itself."""
    blocks = 5
    simulation = Simulation(n_images=1, mosaic_rad=2e-3, bandwidth=0.0, mosaic_blocks=blocks)
    truth = draw_truth(simulation, rng=np.random.default_rng(0))
    spots = predict_spots(simulation, truth, 0)
    rng = np.random.default_rng(1)
    turned = rng.normal(size=(4000, blocks, 3)) * simulation.mosaic_rad / np.sqrt(2)
    for i in np.argsort(-spots.partiality)[:200:40]:
        q, s_hat = spots.q[i], spots.frame[i, 0]
        away = spots.epsilon_r[i] + np.cross(turned, q) @ s_hat
        p = np.exp(-((away / simulation.R0) ** 2)).mean(axis=1)
        variance = block_variance(simulation, one(spots, i))[0]
        assert p.mean() == pytest.approx(spots.partiality[i], rel=0.1)
        assert p.var() / p.mean() ** 2 == pytest.approx(variance / blocks, rel=0.15)
        J = [with_errors(simulation, one(spots, i), rng=rng).J[0] for _ in range(4000)]
        assert np.var(J) / np.mean(J) ** 2 == pytest.approx(variance / blocks, rel=0.15)


def test_few_blocks_that_are_not_turned_vary_nothing():
    simulation = Simulation(n_images=1, mosaic_rad=0.0, mosaic_blocks=5)
    truth = draw_truth(simulation, rng=np.random.default_rng(0))
    spots = predict_spots(simulation, truth, 0)
    found = with_errors(simulation, spots, rng=np.random.default_rng(1))
    np.testing.assert_allclose(found.J, spots.J, rtol=1e-5)


def test_a_simulation_without_errors_draws_no_numbers_for_them():
    simulation = Simulation(n_images=1)
    truth = draw_truth(simulation, rng=np.random.default_rng(0))
    spots, rng = predict_spots(simulation, truth, 0), np.random.default_rng(2)
    assert with_errors(simulation, spots, rng=rng) is spots
    assert rng.random() == np.random.default_rng(2).random()
