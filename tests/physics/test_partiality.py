"""Partiality curves: volume, conditional moments of a smear and few blocks, against numbers."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from bayes_refine import physics

CURVES = {"gaussian": physics.gaussian, "lorentzian": physics.lorentzian}


@pytest.mark.parametrize(("name", "volume"), [("gaussian", np.sqrt(np.pi)), ("lorentzian", np.pi)])
def test_smearing_conserves_the_volume(name, volume):
    """∫ p dε_r = R0·∫k dx, whatever R0_eff; not of the form that is one on the sphere."""
    R0, epsilon = 3e-4, np.linspace(-3.0, 3.0, 2_000_001)
    for R0_eff in (3e-4, 1e-3):
        p = CURVES[name](epsilon, R0, R0_eff)
        assert np.trapezoid(p, epsilon) == pytest.approx(R0 * volume, rel=1e-3)
    assert float(physics.gaussian_peak(jnp.array(0.0), R0, jnp.array(1e-3))) == 1.0


@pytest.mark.parametrize("x", [-2.5, 0.0, 0.4, 1.7])
def test_conditional_moments_of_a_smear(x):
    """Of ε = c + s, c Lorentzian and s Gaussian: E[s|ε] and Var[s|ε] by sums over s.

    Tweedie's formula for the curve that c and s make together, as a user would give it.
    """
    width, sd = 1.0, 0.4
    s = np.linspace(-8 * sd, 8 * sd, 8001)
    weight = norm.pdf(s, 0, sd)

    def curve(x):
        nodes, weights = np.polynomial.hermite_e.hermegauss(60)
        lorentz = 1 / (1 + ((x[..., None] - sd * nodes) / width) ** 2)
        return jnp.log(jnp.sum(weights * lorentz, -1))

    mixed = physics.Partiality(curve, lambda spot: 0 * spot.R0_eff)
    density = weight / (1 + ((x - s) / width) ** 2)
    mean = np.sum(s * density) / density.sum()
    variance = np.sum((s - mean) ** 2 * density) / density.sum()
    at = jnp.array([x])
    # E = −Var[s]·(ln k)′ and Var = Var[s] + Var[s]²·(ln k)″, with −½ of each slope returned
    np.testing.assert_allclose(2 * sd**2 * mixed.displacement(at), mean, atol=1e-5)
    np.testing.assert_allclose(sd**2 - 2 * sd**4 * mixed.narrowing(at), variance, rtol=1e-4)


def test_a_gaussian_curve_displaces_in_proportion_and_narrows_everywhere():
    x = jnp.linspace(-3, 3, 7)
    np.testing.assert_allclose(physics.gaussian.displacement(x), x, atol=1e-15)
    np.testing.assert_allclose(physics.gaussian.narrowing(x), 1.0, atol=1e-15)
    np.testing.assert_allclose(physics.lorentzian.displacement(x), x / (1 + x**2), atol=1e-15)


def test_few_lorentzian_blocks():
    """Relative variance of one block's curve about places of a Cauchy distribution, 4·10⁶ draws."""
    R_k, R_eff = 4e-4, 7e-4
    places = (R_eff - R_k) * np.random.default_rng(0).standard_cauchy(4_000_000)
    epsilon = np.array([0.0, 3e-4, 1.5e-3])
    found, curves = [], []
    zero = jnp.zeros(3)
    spot = physics.Spot(
        epsilon, jnp.full(3, R_eff), zero, zero, zero, zero, zero, R_eff**2 - R_k**2
    )
    for e in epsilon:
        p = 1 / (1 + ((e - places) / R_k) ** 2)
        found.append(p.var() / p.mean() ** 2)
        curves.append(p.mean())
    np.testing.assert_allclose(physics.lorentzian.block_variance(spot), found, rtol=0.01)
    expected = physics.lorentzian(epsilon, R_k, R_eff)  # and the mean is the Lorentzian itself
    np.testing.assert_allclose(curves, expected, rtol=0.01)
