"""Partiality over a turn against integrals by quadrature and by drawing relps."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erfinv

from bayes_refine import physics
from bayes_refine.physics.turning import averaged

X = np.array([0.0, 0.7, -2.1, 6.0])


@pytest.mark.parametrize("b", [0.0, 1e-9, 5e-3, 0.02, 1.0, 8.0])
def test_the_curve_and_its_moments_are_integrals_over_the_turn(b):
    """Sums over 200,000 places u in the turn, of exp(−(x − bu)²) u^n."""
    u = (np.arange(200_000) + 0.5) / 100_000 - 1
    weight = np.exp(-((X[:, None] - b * u) ** 2))
    total, mean = weight.mean(1), (weight * u).mean(1)
    mean /= total
    variance = (weight * (u - mean[:, None]) ** 2).mean(1) / total
    found = jax.jit(averaged)(X, jnp.full(4, b))
    np.testing.assert_allclose(jnp.exp(found.log_curve), total, rtol=1e-6)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-4, atol=1e-9)
    np.testing.assert_allclose(found.variance, variance, rtol=1e-3)


def test_far_from_the_sphere_and_without_a_turn_all_is_finite():
    """Values and derivatives, to 200 widths; without a turn they are the still's."""
    far = np.array([0.0, -0.0, 3.0, 30.0, -200.0])
    x, b = (a.ravel() for a in np.meshgrid(far, [0.0, 1e-12, 0.01, 2.0, 50.0]))
    first = jax.vmap(jax.jacfwd(averaged, (0, 1)))
    second = jax.vmap(jax.jacfwd(jax.jacfwd(averaged)))
    found = jax.jit(lambda x, b: (averaged(x, b), first(x, b), second(x, b)))(x, b)
    assert all(np.isfinite(part).all() for part in jax.tree.leaves(found))
    np.testing.assert_allclose(found[0].log_curve[b == 0], -(far**2))


def spot(**changes):
    """One still's spot before its turn, at ε_r = 2.5e-4, with slopes that mosaic spread gives."""
    values = {"excitation_error": 2.5e-4, "R0_eff": 4e-4, "shift_1": 0.0, "shift_2": 0.0}
    values |= {"m11": 1e-7, "m22": 1.2e-7, "m12": 0.0, "mosaic2": 3e-8, **changes}
    return physics.Spot(**{k: jnp.array([[v]]) for k, v in values.items()})


@pytest.mark.parametrize("along", [3e-4, -6e-4, 1e-9])
def test_a_spot_over_the_turn_is_that_of_drawn_relps(along):
    """Photons at (ε_1, ε_2), of relps c + u·v that lie on the sphere, u drawn from −1 to 1.

    Given u, the still's spot has the centroid r·(ε_r + u·v_r)/R0_eff + u·v_i and weighs p.
    """
    still, v, r = spot(), np.array([along, 2e-4, -1e-4]), np.array([-1.5e-4, 5e-5])
    R, e = 4e-4, 2.5e-4
    curve = physics.gaussian_over_turn
    at_middle = still._replace(
        shift_1=still.shift_1 + r[0] * e / R, shift_2=still.shift_2 + r[1] * e / R
    )
    slopes = jnp.full((1, 1), r[0]), jnp.full((1, 1), r[1])
    found = curve.exposed(at_middle, slopes, v[None, :, None])
    u = (np.arange(200_000) + 0.5) / 100_000 - 1
    weight = np.exp(-(((e + u * v[0]) / R) ** 2))
    place = r[:, None] * (e + u * v[0]) / R + u * v[1:, None]
    mean = np.average(place, axis=1, weights=weight)
    moment = np.cov(place, aweights=weight)
    assert float(curve.of(found, 3e-4)[0, 0]) == pytest.approx(0.75 * weight.mean(), rel=1e-6)
    np.testing.assert_allclose([found.shift_1[0, 0], found.shift_2[0, 0]], mean, rtol=1e-4)
    grown = [found.m11[0, 0] - 1e-7, found.m12[0, 0], found.m22[0, 0] - 1.2e-7]
    np.testing.assert_allclose(grown, moment[[0, 0, 1], [0, 1, 1]], rtol=1e-3)


@pytest.mark.parametrize("swept", [0.0, 2e-4, 1.2e-3])
@pytest.mark.parametrize("epsilon", [0.0, 3e-4, 9e-4])
def test_few_blocks_over_a_turn(swept, epsilon):
    """Relative variance of one block's averaged curve, over 20,000 places of blocks (quantiles)."""
    R_k, m = 3e-4, 4e-4
    R_eff = np.hypot(R_k, m)
    places = m * erfinv((np.arange(20_000) + 0.5) / 10_000 - 1)
    u = np.linspace(-1, 1, 201) if swept else np.zeros(1)
    curve = [np.exp(-(((epsilon - places + t * swept) / R_k) ** 2)) for t in u]
    curve = np.trapezoid(curve, u, axis=0) / 2 if swept else curve[0]
    expected = curve.var() / curve.mean() ** 2
    at = spot(excitation_error=epsilon, R0_eff=R_eff, mosaic2=m**2)
    at = physics.gaussian_over_turn.exposed(at, (0.0, 0.0), np.array([[[swept], [0.0], [0.0]]]))
    found = float(physics.gaussian_over_turn.block_variance(at)[0, 0])
    assert found == pytest.approx(expected, rel=0.01, abs=1e-3)


def test_a_still_has_no_turn():
    """No path in the observations: the spot is the still's, to the last bit."""
    still = spot()
    slopes = (still.m11, still.m22)
    assert physics.gaussian.exposed(still, slopes, SimpleNamespace()) is still
    assert physics.gaussian_over_turn.exposed(still, slopes, None) is still
