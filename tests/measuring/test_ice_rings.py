"""Rings of ice on simulated images, and what must not be taken for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bayes_refine.geometry.crystal import Crystal
from bayes_refine.geometry.detector import Beam, Detector, pixel_to_q
from bayes_refine.geometry.experiments import Still
from bayes_refine.measuring.ice_rings import IceRings, inverse_resolution, rings_of

ICE = (3.90, 3.67, 3.44)  # Å, hexagonal ice
SIZE = 400


def a_still(tilt: float = 0.0) -> Still:
    """Two panels of 200 × 400 pixels one above the other, tilted about the fast axis."""
    fast, slow = np.array([1.0, 0, 0]), np.array([0, -np.cos(tilt), -np.sin(tilt)])
    corner = np.array([-0.5 * SIZE * 0.172, 0.5 * SIZE * 0.172, -100.0])
    detector = Detector(
        origin_mm=np.stack([corner, corner + 0.5 * SIZE * 0.172 * slow]),
        fast=np.stack([fast] * 2),
        slow=np.stack([slow] * 2),
        pixel_size_mm=np.full((2, 2), 0.172),
        shape=np.array([[SIZE // 2, SIZE]] * 2),
        trusted_range=np.array([[-1.0, 1e6]] * 2),
        gain=np.ones(2),
        pedestal=np.zeros(2),
        thickness_mm=np.zeros(2),
        mu_per_mm=np.zeros(2),
    )
    beam = Beam(1.3, np.array([0, 0, -1.0]), np.array([0, 1.0, 0]))
    return Still("one", Path("one.h5"), 0, beam, detector, Crystal(np.eye(3) / 50, "P 1"))


def image_of(still: Still, rings: float = 0.0, seed: int = 0, solvent: float = 5.0) -> np.ndarray:
    """Solvent with its broad maximum, 100 spots, and rings of ice of so many photons a pixel."""
    rng = np.random.default_rng(seed)
    q = inverse_resolution(still).astype(float)
    mean = solvent * (np.exp(-q / 0.2) + np.exp(-(((q - 0.3) / 0.08) ** 2)))
    width = 1.2 * 0.172 / 100 / 1.3  # of 1.2 pixels
    for d in ICE:
        mean += rings * np.exp(-(((q - 1 / d) / width) ** 2))
    image = rng.poisson(mean).astype(np.float32)
    at = rng.integers(0, [2, SIZE // 2 - 1, SIZE - 1], (100, 3))
    for p, y, x in at:
        image[p, y : y + 2, x : x + 2] += rng.poisson(rng.exponential(300))
    return image


def found_in(still: Still, image: np.ndarray, valid: np.ndarray | None = None):
    valid = np.ones(image.shape, bool) if valid is None else valid
    return rings_of(image, valid, inverse_resolution(still))


def test_inverse_resolution_is_that_of_the_scattering_vector():
    still = a_still(tilt=0.2)
    rng = np.random.default_rng(0)
    panel, y, x = (rng.integers(0, n, 200) for n in (2, SIZE // 2, SIZE))
    q = pixel_to_q(still.detector, still.beam, panel, np.stack([x + 0.5, y + 0.5], axis=1))
    found = inverse_resolution(still)[panel, y, x]
    np.testing.assert_allclose(found, np.linalg.norm(q, axis=1), rtol=1e-5)


@pytest.mark.parametrize("height, solvent", [(3.0, 5.0), (20.0, 5.0), (40.0, 500.0)])
def test_rings_are_found_where_they_are_and_their_pixels_left_out(height, solvent):
    still = a_still()
    image = image_of(still, height, solvent=solvent)
    rings = found_in(still, image)
    assert len(rings) == 3
    np.testing.assert_allclose(sorted((r.d for r in rings), reverse=True), ICE, rtol=4e-3)
    finder = IceRings()
    out = finder(image, np.ones(image.shape, bool), still)
    q = inverse_resolution(still)
    peak = np.min([np.abs(q - 1 / d) for d in ICE], axis=0)
    pixel = 0.172 / 100 / 1.3
    assert out[peak < 1.2 * pixel].all() and not out[peak > 6 * pixel].any()
    assert finder.of(still) == rings


def test_without_rings_nothing_is_left_out():
    """Twenty images of 250 radii: solvent, spots, the edges of a shadow and of a beam stop."""
    still = a_still()
    finder = IceRings()
    q = inverse_resolution(still)
    valid = q > 0.02
    for seed in range(20):
        image = image_of(still, seed=seed, solvent=(0.3, 5.0, 300.0)[seed % 3])
        if seed % 2:
            image[:, :, :150] //= 3  # a shadow
            image[q < 0.05] = 0  # a beam stop that no mask names
        assert found_in(still, image, valid) == ()
    assert finder(image, valid, still) is None and finder(image, valid, still) is None


def test_an_image_without_a_valid_pixel_has_none():
    still = a_still()
    image = image_of(still, rings=20.0)
    assert found_in(still, image, np.zeros(image.shape, bool)) == ()
    few = np.zeros(image.shape, bool)
    few[0, 5, :10] = True
    assert found_in(still, image, few) == ()
