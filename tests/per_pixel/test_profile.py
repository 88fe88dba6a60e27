"""A Gaussian spot on pixels: against the error function, another code path, and autodiff."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import ndtr

from bayes_refine.measuring.shoebox import Shoebox
from bayes_refine.measuring.template import template_and_gradient
from bayes_refine.per_pixel import profile

RNG = np.random.default_rng(0)
OFFSETS = Shoebox(4.0, 5.0, 8.0, 4.0).signal_offsets.astype(float)


def spots(m=7, sd_px=(0.5, 0.9)):
    """(1, 6, m) of unit intensity, correlated axes."""
    sd = RNG.uniform(*sd_px, (2, m))
    cross = RNG.uniform(-0.4, 0.4, m) * sd[0] * sd[1]
    rows = [np.ones(m), *RNG.uniform(-0.5, 0.5, (2, m)), sd[0] ** 2, sd[1] ** 2, cross]
    return jnp.asarray(np.stack(rows))[None]


@pytest.mark.parametrize(("R1_px", "nodes"), [(0.46, 4), (0.66, 3), (1.2, 3)])
def test_the_integral_is_the_error_function_s(R1_px, nodes):
    """Within 4e-3 of the peak in two dimensions (2e-3 each), where ``nodes_for_width`` is used."""
    assert profile.nodes_for_width(R1_px) == nodes
    sd, x, y = R1_px / np.sqrt(2), 0.31, -0.17
    spot = jnp.array([1.0, x, y, sd**2, sd**2, 0.0])[None, :, None]
    found = profile.photons(OFFSETS, spot, jnp.zeros((1, 1)), nodes)[0, :, 0]
    at = OFFSETS - np.array([x, y])
    exact = np.prod(ndtr((at + 0.5) / sd) - ndtr((at - 0.5) / sd), axis=1)
    assert np.abs(found - exact).max() < 4e-3 * exact.max()
    assert np.abs(found - exact).max() > 0 and found.sum() == pytest.approx(1, abs=2e-3)


def test_it_is_the_template_of_the_statistics():
    """``measure`` sums nodes one by one, in Å⁻¹ and single precision."""
    some = spots()
    frame = np.array([[3e-4, 1e-4], [-1e-4, 2.8e-4]]) * 1e3
    C = np.array([[some[0, 3], some[0, 5]], [some[0, 5], some[0, 4]]])
    M = np.einsum("ai,ijn,bj->nab", frame, C, frame)
    moment = np.stack([M[:, 0, 0], M[:, 1, 1], M[:, 0, 1]], 1)
    template, *_ = template_and_gradient(
        jnp.asarray(some[0, 1:3].T),
        jnp.broadcast_to(frame, (len(M), 2, 2)),
        jnp.asarray(moment),
        jnp.sqrt(moment[:, 0] + moment[:, 1]),
        jnp.asarray(OFFSETS),
    )
    found = profile.photons(OFFSETS, some, jnp.zeros((1, len(M))), 4)
    np.testing.assert_allclose(found[0].T, template, atol=1e-9)


def test_slopes_are_those_of_automatic_differentiation():
    some = spots()

    def one(vector, offset):
        return profile.photons(offset[None], vector[None, :, None], jnp.zeros((1, 1)), 3)[0, 0, 0]

    slopes = jax.jit(lambda o: jnp.stack(profile.template_and_slopes(o, some, 3))[:, 0])
    gradient = jax.jit(lambda o: jax.vmap(jax.grad(one), (1, None))(some[0], o))
    for offset in OFFSETS[::9]:
        found, exact = slopes(offset), gradient(offset)
        np.testing.assert_allclose(found.T, exact, atol=1e-12, rtol=1e-9)


def test_a_very_narrow_spot_is_no_worse_than_nothing():
    """Finite, in its own pixel, nothing ten pixels away: a search may pass by such a width."""
    spot = jnp.array([1.0, 0.0, 0.0, 1e-4, 1e-4, 0.0])[None, :, None]
    far = np.array([[10.0, -9.0], [0.0, 0.0]])
    found = profile.photons(far, spot, jnp.zeros((1, 1)), 3)[0, :, 0]
    assert found[0] == 0 and found[1] > 0.1
    slopes = [profile.template_and_slopes(jnp.asarray(x), spot, 3) for x in far]
    assert np.isfinite(np.array(slopes)).all()
