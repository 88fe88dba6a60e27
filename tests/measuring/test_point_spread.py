"""Spots spread over pixels beside them: against sums and differences of Gaussian ones."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from bayes_refine.measuring.point_spread import Shares, spread_template
from bayes_refine.measuring.shoebox import Boxes, Shoebox, shoebox_for_width
from bayes_refine.measuring.statistics import measure
from bayes_refine.measuring.template import template_gradient_bend

NODES = ((0, 0), (2, 0), (-1, 1))
SHARES = np.array([[0.7, 0.2, 0.1], [0.5, 0.1, 0.4]])
OFFSETS = shoebox_for_width(2.0).signal_offsets
FRAME = np.array([[[1.0, 0.2], [-0.1, 0.9]]] * 2)
CENTRE = np.array([[0.2, -0.3], [-0.4, 0.1]])
MOMENT = np.array([[1.1, 0.8, 0.2], [0.6, 1.5, -0.3]])


def spread(centre=CENTRE, moment=MOMENT, shares=SHARES):
    width = jnp.sqrt(MOMENT[:, 0] + MOMENT[:, 1])
    return spread_template(
        *map(jnp.asarray, (centre, FRAME, moment)), width, OFFSETS, NODES, jnp.asarray(shares)
    )


def test_the_template_is_the_sum_of_displaced_gaussians():
    found = spread()[0]
    width = jnp.sqrt(MOMENT[:, 0] + MOMENT[:, 1])
    mean = SHARES @ np.array(NODES)
    expected = sum(
        SHARES[:, j, None]
        * template_gradient_bend(
            jnp.asarray(CENTRE - mean + node), FRAME, MOMENT, width, jnp.asarray(OFFSETS, float)
        )[0]
        for j, node in enumerate(np.array(NODES))
    )
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_the_mean_of_the_photons_is_the_centre_of_the_spot():
    template = np.asarray(spread()[0])
    assert np.all(template.sum(1) > 0.995)
    mean = template @ OFFSETS / template.sum(1)[:, None]
    np.testing.assert_allclose(mean, CENTRE, atol=0.02)  # the shoebox cuts a little off


def test_one_node_is_the_gaussian_template():
    alone = np.array([[1.0, 0.0, 0.0]] * 2)
    width = jnp.sqrt(MOMENT[:, 0] + MOMENT[:, 1])
    at = map(jnp.asarray, (CENTRE, FRAME, MOMENT, width, OFFSETS.astype(float)))
    for ours, plain in zip(spread(shares=alone), template_gradient_bend(*at), strict=True):
        np.testing.assert_allclose(ours, plain, atol=1e-12)


def test_derivatives_are_those_of_the_template():
    """Along the centre in ρ, along the second moment in ρ², by central differences."""
    rho = np.sqrt(MOMENT[:, 0] + MOMENT[:, 1])
    gradient, bend = np.asarray(spread()[1]), np.asarray(spread()[3])
    h = 1e-4
    for k in (0, 1):
        # ε = F·x: a centre δ along ε_k is F⁻¹δ in pixels
        step = h * rho[:, None] * np.linalg.inv(FRAME)[:, :, k]
        slope = (spread(CENTRE + step)[0] - spread(CENTRE - step)[0]) / (2 * h)
        np.testing.assert_allclose(gradient[:, k], slope, atol=2e-7)
    for k, along in enumerate(([1, 1, 0], [1, -1, 0], [0, 0, 1]), start=2):
        step = h * rho[:, None] ** 2 * np.array(along)
        up, down = spread(moment=MOMENT + step)[0], spread(moment=MOMENT - step)[0]
        np.testing.assert_allclose(gradient[:, k], (up - down) / (2 * h), atol=2e-6)
        if k == 2:
            again = (up + down - 2 * spread()[0]) / h**2
            np.testing.assert_allclose(bend, again, atol=2e-4)


@pytest.mark.parametrize("known", [True, False])
def test_the_total_of_a_spot_with_a_tail_is_right_if_the_tail_is_known(known):
    """Photons without noise: J is recovered with the tail, and misses part of it without."""
    shoebox = Shoebox(6.0, 7.0, 10.0, 6.0)
    n, J = 2, np.array([400.0, 2e3])
    frame, width = np.broadcast_to(np.eye(2), (n, 2, 2)), np.sqrt(MOMENT[:, 0] + MOMENT[:, 1])
    template = spread_template(
        *map(jnp.asarray, (CENTRE, frame, MOMENT)),
        width,
        shoebox.signal_offsets,
        NODES,
        jnp.asarray(SHARES),
    )[0]
    signal = 3.0 + J[:, None] * np.asarray(template)
    usable = np.ones(signal.shape, bool)
    ring = np.full((n, len(shoebox.ring_offsets)), 3.0)
    boxes = Boxes(CENTRE, signal, usable, ~usable, ring)
    shares = Shares(SHARES, NODES) if known else None
    found = measure(boxes, frame * 1e-3, MOMENT * 1e-6, J, shoebox, spread=shares)
    off = np.abs(found.value[:, 0] / found.response[:, 0, 0] / J - 1)
    if known:
        assert off.max() < 1e-4
        np.testing.assert_allclose(found.value[:, 1:] / J[:, None], 0, atol=1e-3)
        np.testing.assert_allclose(found.response[:, 0, 0], 1, atol=1e-4)
    else:
        assert off.min() > 0.03
