"""Pixel ↔ lab ↔ q against ray geometry worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from bayes_refine.geometry.crystal import rotation_matrix
from bayes_refine.geometry.detector import (
    Beam,
    Detector,
    beam_frame,
    parallax_mm,
    pixel_to_lab,
    pixel_to_q,
    ray_to_pixel,
)

BEAM = Beam(1.3, np.array([0.0, 0.0, 1.0]), np.array([0.0, 1.0, 0.0]))


def detector(origin, fast, slow, thickness_mm=0.0, mu_per_mm=0.0, size=(0.1, 0.15)) -> Detector:
    """Panels of 120 × 90 pixels (slow × fast)."""
    n = len(origin)
    return Detector(
        origin_mm=np.array(origin, float),
        fast=np.array(fast, float),
        slow=np.array(slow, float),
        pixel_size_mm=np.tile(size, (n, 1)),
        shape=np.tile([120, 90], (n, 1)),
        trusted_range=np.tile([-1.0, 1e6], (n, 1)),
        gain=np.ones(n),
        pedestal=np.zeros(n),
        thickness_mm=np.full(n, thickness_mm),
        mu_per_mm=np.full(n, mu_per_mm),
    )


def flat(**kwargs) -> Detector:
    """One panel normal to the beam at 100 mm, which meets it at pixel (30, 40)."""
    return detector([[-3.0, -6.0, 100.0]], [[1, 0, 0]], [[0, 1, 0]], **kwargs)


def tilted(**kwargs) -> Detector:
    """Three panels, each tilted its own way by up to 0.4 rad, side by side."""
    rng = np.random.default_rng(3)
    R = rotation_matrix(1e3 * rng.uniform(-0.25, 0.25, (3, 3)))
    origin = [[-25.0, -9.0, 60.0], [-4.0, -8.0, 70.0], [14.0, -10.0, 55.0]]
    return detector(origin, R[:, :, 0], R[:, :, 1], **kwargs)


def everywhere(det: Detector) -> tuple[np.ndarray, np.ndarray]:
    """Points well over all panels, in the corners too."""
    rng = np.random.default_rng(4)
    panel = np.repeat(np.arange(det.n_panels), 200)
    xy = rng.uniform([1.0, 1.0], [89.0, 119.0], (len(panel), 2))
    xy[:4] = [[1, 1], [89, 1], [1, 119], [89, 119]]
    return panel, xy


def test_a_pixel_s_place_by_hand():
    """Origin + x·0.1 mm·fast + y·0.15 mm·slow; (0, 0) is the outer corner of the first pixel."""
    lab = pixel_to_lab(flat(), np.zeros(3, int), np.array([[0, 0], [0.5, 0.5], [30, 40.0]]))
    np.testing.assert_allclose(lab, [[-3, -6, 100], [-2.95, -5.925, 100], [0, 0, 100]], atol=1e-13)


def test_a_ray_s_pixel_by_hand():
    """Along (x, y, z) the plane z = 100 mm is met at 100·(x/z, y/z)."""
    rays = np.array([[0, 0, 1], [0.02, -0.03, 1.0], [0, 0, -1], [1, 0, 0], [0.5, 0, 1]])
    panel, xy = ray_to_pixel(flat(), rays / np.linalg.norm(rays, axis=1, keepdims=True))
    np.testing.assert_array_equal(panel, [0, 0, -1, -1, -1])  # backwards, sideways, beside it
    np.testing.assert_allclose(xy[:2], [[30, 40], [30 + 20, 40 - 20]], atol=1e-10)
    assert np.isnan(xy[2:]).all()


def test_shape_is_slow_by_fast():
    """A panel 90 wide and 120 high: 89.9 is the end of x and 119.9 that of y."""
    ends = np.array([[89.9, 50], [90.1, 50], [50, 119.9], [50, 120.1], [0.1, 50], [-0.1, 50]])
    lab = pixel_to_lab(flat(), np.zeros(6, int), ends)
    panel, _ = ray_to_pixel(flat(), lab / np.linalg.norm(lab, axis=1, keepdims=True))
    np.testing.assert_array_equal(panel, [0, -1, 0, -1, 0, -1])


@pytest.mark.parametrize("thickness", [0.0, 0.32, 1.0])
def test_pixel_to_lab_and_back(thickness):
    """Identity on tilted panels, with parallax.

    The docstring promises 1e-3 of the correction, which is 0.1–0.6 px here.
    """
    det = tilted(thickness_mm=thickness, mu_per_mm=3.96)  # silicon at 12 keV, by the order
    panel, xy = everywhere(det)
    lab = pixel_to_lab(det, panel, xy)
    found, back = ray_to_pixel(det, lab / np.linalg.norm(lab, axis=1, keepdims=True))
    np.testing.assert_array_equal(found, panel)
    np.testing.assert_allclose(back, xy, atol=1e-3 if thickness else 1e-10)


def test_parallax_is_the_mean_path_of_the_absorbed_photons():
    """∫ s μe^{−μs} ds from 0 to t = thickness/cos, by quadrature, and along the ray outwards."""
    det = flat(thickness_mm=0.45, mu_per_mm=2.0)
    for angle in (0.0, 0.3, 0.8):
        ray = np.array([[np.sin(angle), 0.0, np.cos(angle)]])
        t = 0.45 / np.cos(angle)
        edges = np.linspace(0, t, 20001)
        s = (edges[1:] + edges[:-1]) / 2
        mean_path = np.sum(s * 2.0 * np.exp(-2.0 * s)) * (edges[1] - edges[0])
        found = parallax_mm(det, np.array([0]), ray)
        np.testing.assert_allclose(found, mean_path, rtol=1e-6)
    ray = np.array([[0.03, 0.05, 1.0]]) / np.linalg.norm([0.03, 0.05, 1.0])
    path = parallax_mm(det, np.array([0]), ray)[0]
    _, plain = ray_to_pixel(flat(), ray)
    _, shifted = ray_to_pixel(det, ray)
    np.testing.assert_allclose(shifted - plain, path * ray[:, :2] / [0.1, 0.15], rtol=1e-9)


def test_pixel_to_q_is_elastic_and_along_the_ray():
    det = tilted(thickness_mm=0.3, mu_per_mm=4.0)
    panel, xy = everywhere(det)
    s = pixel_to_q(det, BEAM, panel, xy) + BEAM.s0
    np.testing.assert_allclose(np.linalg.norm(s, axis=1), 1 / 1.3, rtol=1e-12)
    np.testing.assert_allclose(np.cross(s, pixel_to_lab(det, panel, xy)), 0, atol=1e-12)


def test_bragg_s_law_on_a_pixel():
    """2θ = atan(10/100): |q| = 2 sin θ/λ."""
    q = pixel_to_q(flat(), BEAM, np.zeros(1, int), np.array([[30.0, 40 - 10 / 0.15]]))
    assert np.linalg.norm(q) == pytest.approx(2 * np.sin(0.5 * np.arctan(0.1)) / 1.3, rel=1e-12)
    assert q[0, 1] < 0  # it lies towards −slow of the beam, and so does the scattering vector


def test_a_shifted_detector():
    det = tilted()
    panel, xy = everywhere(det)
    shift = np.array([0.3, -0.2, 1.5])
    moved = pixel_to_lab(det.shifted(shift), panel, xy) - pixel_to_lab(det, panel, xy)
    np.testing.assert_allclose(moved, np.tile(shift, (len(xy), 1)), atol=1e-12)


def test_beam_frame_of_a_tilted_beam_and_panel():
    """Orthonormal; row 2 the beam; rows 0, 1 nearest to fast and slow, right-handed like them."""
    R = rotation_matrix(np.array([80.0, -60.0, 200.0]))
    det = detector([[-3, -6, 100]], [R[:, 0]], [R[:, 1]])
    direction = np.array([0.05, -0.02, 1.0]) / np.linalg.norm([0.05, -0.02, 1.0])
    frame = beam_frame(Beam(1.0, direction, np.array([0.0, 1.0, 0.0])), det)
    np.testing.assert_allclose(frame @ frame.T, np.eye(3), atol=1e-14)
    np.testing.assert_allclose(frame[2], direction)
    assert np.linalg.det(frame) == pytest.approx(1)
    assert frame[0] @ det.fast[0] > 0.98 and frame[1] @ det.slow[0] > 0.98
    assert np.linalg.det(np.stack([frame[0], det.fast[0], direction])) == pytest.approx(
        0, abs=1e-14
    )


def test_beam_centre_is_minus_the_shift():
    """Moving the detector by −1 px along x makes the beam meet it 1 px further along x."""
    det = flat()
    x, y, along = beam_frame(BEAM, det)
    ray = BEAM.s0_direction[None]
    _, before = ray_to_pixel(det, ray)
    _, after = ray_to_pixel(det.shifted(-0.1 * x - 0.3 * y + 2.0 * along), ray)
    np.testing.assert_allclose(after - before, [[1.0, 2.0]], atol=1e-10)
