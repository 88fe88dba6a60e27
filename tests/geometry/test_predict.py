"""Predictions against gemmi, finite differences and an independent simulator's images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gemmi
import h5py
import numpy as np
import pytest

from bayes_refine.geometry.crystal import Crystal, rotation_matrix
from bayes_refine.geometry.detector import Beam, Detector, pixel_to_q
from bayes_refine.geometry.experiments import Still
from bayes_refine.geometry.predict import (
    candidate_indices,
    concatenate,
    near_sphere,
    polarisation,
    predict,
)
from bayes_refine.io.expt import read_experiments
from bayes_refine.io.images import ImageReader
from bayes_refine.util.errors import InputError

CELL = gemmi.UnitCell(52, 67, 81, 90, 102, 90)
WAVELENGTH = 1.1
IMAGES = 12  # of lysosim


def everything_below(limit):
    return lambda d: np.full_like(d, limit)


@pytest.fixture(scope="module")
def still() -> Still:
    """A monoclinic crystal, a beam off the z axis, two tilted panels with parallax."""
    direction = np.array([0.02, -0.03, 1.0]) / np.linalg.norm([0.02, -0.03, 1.0])
    R = rotation_matrix(np.array([[150.0, -80.0, 30.0], [-60.0, 120.0, -20.0]]))
    n = 2
    detector = Detector(
        origin_mm=np.array([[-55.0, -30.0, 90.0], [3.0, -28.0, 95.0]]),
        fast=R[:, :, 0],
        slow=R[:, :, 1],
        pixel_size_mm=np.full((n, 2), 0.1),
        shape=np.full((n, 2), 550),
        trusted_range=np.tile([-1.0, 1e6], (n, 1)),
        gain=np.ones(n),
        pedestal=np.zeros(n),
        thickness_mm=np.full(n, 0.3),
        mu_per_mm=np.full(n, 3.0),
    )
    A = rotation_matrix(np.array([400.0, 900.0, -700.0])) @ np.array(CELL.frac.mat.tolist()).T
    beam = Beam(WAVELENGTH, direction, np.array([0.0, 1.0, 0.0]), 0.98)
    return Still("one", Path("none"), 0, beam, detector, Crystal(A, "C 2y"))


@pytest.fixture(scope="module")
def candidates() -> np.ndarray:
    return candidate_indices(CELL, gemmi.SpaceGroup("C 1 2 1"), 2.5)


@pytest.fixture(scope="module")
def predictions(still, candidates):
    return predict(still, candidates, 2.5, everything_below(2e-3), image=7)


def test_spacings_and_lengths_are_gemmi_s(predictions):
    np.testing.assert_allclose(predictions.d, CELL.calculate_d_array(predictions.hkl), rtol=1e-10)
    assert len(predictions) > 150 and set(predictions.image) == {7}
    assert predictions.d.min() >= 2.5


ALL_EVEN = lambda h, k, l: h % 2 == k % 2 == l % 2  # noqa: E731, E741
CENTRINGS = {  # space group, cell and the condition of International Tables A, 2.2.13.2
    "P 1": ((40, 40, 55, 90, 90, 90), lambda h, k, l: True),  # noqa: E741
    "P 43 21 2": ((40, 40, 55, 90, 90, 90), lambda h, k, l: True),  # noqa: E741
    "C 1 2 1": ((40, 40, 55, 90, 100, 90), lambda h, k, l: (h + k) % 2 == 0),  # noqa: E741
    "I 2 2 2": ((40, 45, 55, 90, 90, 90), lambda h, k, l: (h + k + l) % 2 == 0),  # noqa: E741
    "F 2 3": ((50, 50, 50, 90, 90, 90), ALL_EVEN),
    "R 3 :H": ((50, 50, 61, 90, 90, 120), lambda h, k, l: (-h + k + l) % 3 == 0),  # noqa: E741
}


@pytest.mark.parametrize("symbol", CENTRINGS)
def test_candidates_are_the_lattice_s(symbol):
    """All hkl to d_min but those the centring forbids: screws and glides do not count.

    gemmi gives the spacings, International Tables the conditions.
    """
    parameters, allowed = CENTRINGS[symbol]
    cell = gemmi.UnitCell(*parameters)
    hkl = candidate_indices(cell, gemmi.SpaceGroup(symbol), 4.0)
    kept = set(map(tuple, hkl.tolist()))
    assert len(kept) == len(hkl)
    every = np.stack(np.meshgrid(*[np.arange(-16, 17)] * 3, indexing="ij"), -1).reshape(-1, 3)
    every = every[np.any(every != 0, axis=1)]
    every = every[cell.calculate_d_array(every) >= 4.0]
    for index in map(tuple, every.tolist()):
        assert (index in kept) == allowed(*index), index
    assert cell.calculate_d_array(hkl).min() >= 0.97 * 4.0


def test_excitation_error_is_the_distance_to_the_ewald_sphere(still, predictions):
    """Along ŝ from the relp: s0 + q − ε_r·ŝ lies on the sphere of radius 1/λ."""
    q = np.einsum("ij,nj->ni", still.crystal.A, predictions.hkl)
    np.testing.assert_allclose(predictions.q, q, atol=1e-15)
    foot = still.beam.s0 + q - predictions.excitation_error[:, None] * predictions.s_hat
    np.testing.assert_allclose(np.linalg.norm(foot, axis=1), 1 / WAVELENGTH, rtol=1e-13)
    assert np.abs(predictions.excitation_error).max() < 2e-3
    assert (predictions.excitation_error > 1e-3).any() and (
        predictions.excitation_error < -1e-3
    ).any()
    # outside the sphere is positive: an increase of |s0 + q|
    outside = np.linalg.norm(still.beam.s0 + q, axis=1) > 1 / WAVELENGTH
    np.testing.assert_array_equal(outside, predictions.excitation_error > 0)


def test_limits(still, candidates):
    near = near_sphere(still, candidates, 3.0, lambda d: 1e-3 / d, d_max=12.0)
    q = candidates @ still.crystal.A.T
    d = 1 / np.linalg.norm(q, axis=1)
    off = np.abs(np.linalg.norm(still.beam.s0 + q, axis=1) - 1 / WAVELENGTH)
    np.testing.assert_array_equal(near, candidates[(off < 1e-3 / d) & (d >= 3.0) & (d <= 12.0)])


def test_rays_land_where_they_point(still, predictions):
    """The pixel at the predicted centre looks along ŝ."""
    q = pixel_to_q(still.detector, still.beam, predictions.panel, predictions.xy_px)
    # parallax is taken out to 1e-3 of its own < 0.5 px; a pixel is 1e-3 Å⁻¹
    np.testing.assert_allclose(q + still.beam.s0, predictions.s_hat / WAVELENGTH, atol=5e-7)
    assert set(predictions.panel) == {0, 1}


def test_axes_of_the_spot(still, predictions):
    """ŝ, e1, e2 right-handed and orthonormal; e1 in the plane of s0 and ŝ, to larger 2θ."""
    p, along = predictions, still.beam.s0_direction
    axes = np.stack([p.s_hat, p.e1, p.e2], axis=1)
    np.testing.assert_allclose(
        axes @ np.swapaxes(axes, 1, 2), np.tile(np.eye(3), (len(p), 1, 1)), atol=1e-12
    )
    np.testing.assert_allclose(np.linalg.det(axes), 1, rtol=1e-12)
    np.testing.assert_allclose(p.e2 @ along, 0, atol=1e-13)
    assert np.all((p.s_hat + 1e-3 * p.e1) @ along < p.s_hat @ along)  # 2θ grows along e1
    two_theta = np.arccos(p.s_hat @ along)
    np.testing.assert_allclose(p.sin_theta, np.sin(two_theta / 2), rtol=1e-9)
    np.testing.assert_allclose(p.cos_theta, np.cos(two_theta / 2), rtol=1e-9)


def test_frame_is_the_derivative_of_the_pixel_s_q(still, predictions):
    """d(ε_1, ε_2)/d(x, y) by differences of a fiftieth of a pixel."""
    p, h = predictions, 0.02
    for column, step in enumerate(([h, 0], [0, h])):
        plus, minus = (
            pixel_to_q(still.detector, still.beam, p.panel, p.xy_px + sign * np.array(step))
            for sign in (1, -1)
        )
        slope = (plus - minus) / (2 * h)
        for row, axis in enumerate((p.e1, p.e2)):
            expected = np.einsum("ni,ni->n", slope, axis)
            # the code differences over a pixel: curvature enters at (pixel/distance)² ~ 1e-6
            np.testing.assert_allclose(p.frame[:, row, column], expected, atol=1e-5 * 1e-3)
    # a detector shift of 1 mm moves ε_t by 1/(λ|x|)
    moved = pixel_to_q(still.detector.shifted([0, 0, 1e-3]), still.beam, p.panel, p.xy_px)
    change = (moved - pixel_to_q(still.detector, still.beam, p.panel, p.xy_px)) * 1e3
    expected = p.inv_range[:, None] * np.stack([p.e1[:, 2], p.e2[:, 2]], axis=1)
    found = np.stack([np.einsum("ni,ni->n", change, e) for e in (p.e1, p.e2)], axis=1)
    np.testing.assert_allclose(found, expected, atol=1e-3 * np.abs(expected).max())


def rays(two_theta, azimuth):
    return np.stack(
        [
            np.sin(two_theta) * np.cos(azimuth),
            np.sin(two_theta) * np.sin(azimuth),
            np.cos(two_theta) * np.ones_like(azimuth),
        ],
        axis=1,
    )


@pytest.mark.parametrize("fraction", [0.0, 0.5, 0.99, 1.0])
def test_polarisation(fraction):
    """Two dipoles: 1 − (ŝ·E)² along each, f in the plane normal to n (Kahn et al. 1982).

    So f = ½ is (1 + cos²2θ)/2 at any azimuth; forwards it is 1; at 90° along E of a fully
    polarised beam it is 0.
    """
    azimuth = np.linspace(0, 2 * np.pi, 13)
    beam = Beam(1.0, np.array([0, 0, 1.0]), np.array([0, 1.0, 0]), fraction)
    s = rays(0.7, azimuth)
    expected = fraction * (1 - s[:, 0] ** 2) + (1 - fraction) * (1 - s[:, 1] ** 2)
    np.testing.assert_allclose(polarisation(beam, s), expected, rtol=1e-12)
    np.testing.assert_allclose(polarisation(beam, rays(0.0, azimuth)), 1, rtol=1e-12)
    if fraction == 0.5:
        np.testing.assert_allclose(polarisation(beam, s), (1 + np.cos(0.7) ** 2) / 2, rtol=1e-12)
    if fraction == 1.0:
        assert polarisation(beam, np.array([[1.0, 0, 0]]))[0] == pytest.approx(0, abs=1e-15)


def test_select_and_concatenate(predictions):
    some = concatenate([predictions.select(np.arange(3)), predictions.select(np.arange(5, 7))])
    np.testing.assert_array_equal(some.hkl, predictions.hkl[[0, 1, 2, 5, 6]])
    np.testing.assert_array_equal(some.frame, predictions.frame[[0, 1, 2, 5, 6]])


# -- conventions, against nanoBragg ---------------------------------------------------------


@pytest.fixture(scope="module")
def centroids(shared_data):
    """Strong, isolated spots of twelve lysosim images: centroid less prediction with the truth, px.

    The true crystal, beam centre and distance are put in, so nothing is fitted.  Centroids are
    of (counts − median of the box's rim) over 9 × 9 pixels, found around the *prediction*
    rounded to a pixel, and centred again on themselves once.
    """
    folder = shared_data / "lysosim"
    stills = read_experiments(folder / "lysosim_indexed.expt").stills
    with h5py.File(folder / "lysosim_truth.h5") as file:
        A, distance = file["A"][:IMAGES], float(file["distance_mm"][()])
        beam_px = file["beam_center_px"][()]
    nominal = -stills[0].detector.origin_mm[0, :2] / 0.172
    shift = np.array(
        [*((nominal - beam_px) * 0.172), distance - stills[0].detector.origin_mm[0, 2]]
    )
    offsets, places = [], []
    with ImageReader() as reader:
        for i, still in enumerate(stills[:IMAGES]):
            true = replace(
                still,
                crystal=Crystal(A[i], still.crystal.hall),
                detector=still.detector.shifted(shift),
            )
            cell = true.crystal.cell
            hkl = candidate_indices(cell, true.crystal.space_group, 2.3)
            p = predict(true, hkl, 2.3, everything_below(1e-3))
            (image,), _ = reader.read(still)
            inside = np.all((p.xy_px > 12) & (p.xy_px < 468), axis=1)
            distances = np.linalg.norm(p.xy_px[:, None] - p.xy_px[None], axis=2)
            np.fill_diagonal(distances, np.inf)
            for k in np.flatnonzero(inside & (distances.min(axis=1) > 9)):
                x, y = np.floor(p.xy_px[k]).astype(int)
                for _ in range(2):
                    box = image[y - 5 : y + 6, x - 5 : x + 6].astype(float)
                    rim = np.concatenate([box[0], box[-1], box[1:-1, 0], box[1:-1, -1]])
                    net = box[1:-1, 1:-1] - np.median(rim)
                    total = net.sum()
                    if total < 400:
                        break
                    grid = np.arange(-4, 5)
                    dx, dy = net.sum(0) @ grid / total, net.sum(1) @ grid / total
                    found = np.array([x, y]) + 0.5 + [dx, dy]
                    x, y = np.floor(found).astype(int)
                if total >= 400 and np.linalg.norm(found - p.xy_px[k]) < 3:
                    offsets.append(found - p.xy_px[k])
                    places.append(p.xy_px[k])
    return np.array(offsets), np.array(places), beam_px


def test_half_a_pixel(centroids):
    """Pixel (0, 0) is centred on (0.5, 0.5): the mean offset is 0, and would be 0.5 otherwise.

    Single spots scatter by ~0.2 px (mosaic blocks off the sphere); the mean of hundreds has
    an error below 0.02 px.  The limit of 0.05 px is a tenth of what a mistake would cause.
    """
    offsets, _, _ = centroids
    assert len(offsets) > 150
    error = offsets.std(axis=0) / np.sqrt(len(offsets))
    mean = offsets.mean(axis=0)
    assert np.all(error < 0.02)
    assert np.all(np.abs(mean) < 0.05), (mean, error)
    for wrong in ([0.5, 0.5], [-0.5, -0.5]):  # centres on whole numbers, either way
        assert np.all(np.abs(mean + wrong) > 0.4)


def test_handedness(centroids):
    """The same spots are far from the predictions mirrored in x, in y, or with x and y swapped.

    Observed places are within a pixel of predicted ones; mirrored predictions hit one of them
    by chance only: hundreds of spots on 480² pixels leave within 1 px of a place ~1 %.
    """
    offsets, places, beam_px = centroids
    found = places + offsets
    assert np.mean(np.linalg.norm(offsets, axis=1) < 1.0) > 0.9
    relative = places - beam_px
    for wrong in (relative * [-1, 1], relative * [1, -1], -relative, relative[:, ::-1]):
        away = np.linalg.norm(wrong + beam_px - found, axis=1)
        assert np.mean(away < 1.0) < 0.02
        assert np.median(away) > 50


def test_candidates_plane_by_plane_are_gemmis_sphere():
    """All indices and their Friedel mates that gemmi finds to the same limit."""
    cell, group = gemmi.UnitCell(40, 50, 60, 80, 95, 110), gemmi.SpaceGroup("P 1")
    found = candidate_indices(cell, group, 5.0)
    half = gemmi.make_miller_array(cell, group, 0.97 * 5.0)
    assert {*map(tuple, found.tolist())} == {*map(tuple, half.tolist())} | {
        *map(tuple, (-half).tolist())
    }
    with pytest.raises(InputError, match="give a larger --d-min"):
        candidate_indices(cell, group, 0.1)
    with pytest.raises(InputError, match="give a larger --d-min"):
        candidate_indices(cell, group, 1e-300)
