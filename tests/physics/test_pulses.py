"""Pulses: the wavelength and the energy of each shot in the model."""

from dataclasses import replace
from pathlib import Path

import gemmi
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from scipy import stats

from bayes_refine import load_file, physics
from bayes_refine.fitting.beams import of_one_cell
from bayes_refine.fitting.padding import geometry_observations, layout, slots
from bayes_refine.fitting.state import Geometry, moved
from bayes_refine.geometry.crystal import Crystal, rotation_matrix
from bayes_refine.geometry.detector import Beam
from bayes_refine.geometry.experiments import Still
from bayes_refine.geometry.predict import candidate_indices, predict
from bayes_refine.physics.priors import Priors
from bayes_refine.simulation.truth import Simulation, square_detector


@pytest.fixture(scope="module")
def still() -> Still:
    """A beam off the detector's normal."""
    along = np.array([0.02, -0.03, 1.0]) / np.sqrt(1.0013)
    beam = Beam(1.1, along, np.array([0, 1.0, 0]), bandwidth=1e-3)
    B = np.array(gemmi.UnitCell(52, 67, 81, 90, 90, 90).frac.mat.tolist()).T
    crystal = Crystal(rotation_matrix(np.array([400.0, 900.0, -700.0])) @ B, "P 2 2")
    detector = square_detector(Simulation(), 110.0, np.array([240.0, 238.0]))
    return Still("", Path("none"), 0, beam, detector, crystal)


def test_a_longer_wave_moves_the_spots_as_full_recomputation_says(still):
    """ε_r exactly, the centre to second order: 0.3 % is up to a pixel, its square 10⁻² of one."""
    current = Geometry(np.zeros((1, 3)), np.zeros((1, 3)), np.zeros(3), None, np.array([1.103]))
    hkl = candidate_indices(still.crystal.cell, gemmi.SpaceGroup("P 1"), 2.6)
    p = predict(moved([still], current)[0], hkl, 2.6, lambda d: np.full_like(d, 1.5e-3))
    where = layout(p.image, 1, slots(np.array([len(p)])))
    obs = geometry_observations([still], p, where, current, 1e-3)
    wavelength = 1.103 * 1.003
    place = physics.place_on_detector(
        obs, *map(jnp.asarray, current[:3]), None, jnp.log(jnp.array([[wavelength]]))
    )
    again = replace(still, beam=replace(still.beam, wavelength=wavelength))
    excitation = np.linalg.norm(again.beam.s0 + p.q, axis=1) - 1 / wavelength
    np.testing.assert_allclose(where.flat(place.excitation_error), excitation, atol=1e-12)
    new = predict(again, p.hkl, 2.5, lambda d: np.full_like(d, 1.0))
    old = {tuple(h): k for k, h in enumerate(p.hkl.tolist())}
    rows = [old[tuple(h)] for h in new.hkl.tolist()]
    assert len(rows) > 0.95 * len(p)
    expected = np.einsum("nij,nj->ni", p.frame[rows], new.xy_px - p.xy_px[rows])
    found = np.stack([where.flat(place.shift_1), where.flat(place.shift_2)], axis=1)[rows]
    assert np.abs(new.xy_px - p.xy_px[rows]).max() > 0.8
    np.testing.assert_allclose(found, expected, atol=0.012 * np.abs(expected).max())


def test_a_longer_wave_and_a_larger_cell_are_one_picture(still):
    """λ(1 + w) with A/(1 + w): spots stay, to w², and ε_r is scaled by 1/(1 + w)."""
    nothing = Geometry(np.zeros((1, 3)), np.zeros((1, 3)), np.zeros(3))
    hkl = candidate_indices(still.crystal.cell, gemmi.SpaceGroup("P 1"), 2.6)
    p = predict(still, hkl, 2.6, lambda d: np.full_like(d, 1.5e-3))
    where = layout(p.image, 1, slots(np.array([len(p)])))
    obs = geometry_observations([still], p, where, nothing, 1e-3)
    w = 2e-3
    identity = np.einsum("kij,ij->k", obs.strain_basis[0], np.eye(3))
    strain = jnp.asarray((1 / (1 + w) - 1) * identity[None])
    place = physics.place_on_detector(
        obs, jnp.zeros((1, 3)), strain, jnp.zeros(3), None, jnp.log(jnp.array([[1.1 * (1 + w)]]))
    )
    found = where.flat(place.excitation_error)
    np.testing.assert_allclose(found, p.excitation_error / (1 + w), atol=1e-12)
    stayed = [np.abs(where.flat(x)).max() for x in (place.shift_1, place.shift_2)]
    alone = physics.place_on_detector(
        obs, jnp.zeros((1, 3)), strain, jnp.zeros(3), None, jnp.log(jnp.array([[1.1]]))
    )
    assert max(stayed) < 2 * w * np.abs(where.flat(alone.shift_1)).max()


def test_cells_of_one_volume_with_the_spots_where_they_were(still):
    """Shots 0.2 % longer and shorter, indexed with one wavelength: cells off by as much."""
    off = np.array([1.002, 1.0, 0.998])
    indexed = [replace(still, crystal=replace(still.crystal, A=still.crystal.A * f)) for f in off]
    found = of_one_cell(indexed)
    np.testing.assert_allclose([s.beam.wavelength for s in found], 1.1 * off)
    volumes = [s.crystal.cell.volume for s in found]
    np.testing.assert_allclose(volumes, still.crystal.cell.volume)


def scale_prior(energies, log_g, **priors):
    """(mean, sd) of ln G of images with these ln pulse energies."""
    obs = type("Obs", (), {"log_pulse_energy": energies, "log_G0": 1.5})
    return np.broadcast_arrays(*load_file("still").scale_of_a_shot(obs, Priors(**priors), log_g))


def test_known_pulse_energies_tie_the_scales():
    """N(ln g + ln E, σ) where E is known, N(ln g, 2) elsewhere."""
    mean, sd = scale_prior(jnp.array([[0.3], [np.nan], [-0.2]]), 1.0, log_G_monitor_sd=0.1)
    np.testing.assert_allclose(mean[:, 0], [1.3, 1.0, 0.8])
    np.testing.assert_allclose(sd[:, 0], [0.1, 2.0, 0.1])
    mean, sd = scale_prior(None, None)
    assert (float(mean), float(sd)) == (1.5, 2.0)


@pytest.mark.parametrize("known", [False, True])
def test_the_model_has_the_unknowns_of_pulses_where_the_data_have_them(still, known):
    """With jitter ln λ of each image, about the stated one; with a monitor ln g of the run."""
    p = predict(still, np.array([[5, 3, 2], [4, 4, 1]]), 2.6, lambda d: np.full_like(d, 1.0))
    where = layout(p.image, 1, 32)
    current = Geometry(np.zeros((1, 3)), np.zeros((1, 3)), np.zeros(3))
    obs = geometry_observations([still], p, where, current, 1e-3)
    if known:
        obs = replace(obs, wavelength=np.array([[1.1]]), log_pulse_energy=np.array([[0.4]]))
    still_model, priors = load_file("still"), Priors(wavelength_jitter=2e-3)

    made = {}

    def unknowns():
        run = made["run"] = still_model.what_the_run_shares(obs, priors)
        with numpyro.plate("image", 1, dim=-2):
            made["image"] = still_model.what_an_image_has(obs, priors, run)

    sites = numpyro.handlers.trace(numpyro.handlers.seed(unknowns, 0)).get_trace()
    assert ("log_wavelength" in sites) == ("log_g" in sites) == known
    if known:
        law = sites["log_wavelength"]["fn"]
        expected = stats.norm(np.log(1.1), 2e-3).logpdf(np.log(1.1) + 1e-3)
        np.testing.assert_allclose(law.log_prob(jnp.log(1.1) + 1e-3), expected, rtol=1e-9)
        # a wave longer by 0.1 % moves the relp off the sphere by (1 − cos 2θ)/λ of that
        image = made["image"]
        longer = image._replace(log_wavelength=image.log_wavelength + 1e-3)
        before, after = (still_model.placed(obs, x, made["run"]) for x in (image, longer))
        moved_by = (after.excitation_error - before.excitation_error)[0, :2]
        along = still.beam.s0 * still.beam.wavelength
        s = still.beam.s0 + np.asarray(obs.q)[0, :, :2].T
        cos_2theta = s @ along / np.linalg.norm(s, axis=1)
        np.testing.assert_allclose(moved_by, 1e-3 * (1 - cos_2theta) / 1.1, rtol=0.03)
