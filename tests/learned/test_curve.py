"""The learned curve: positive, one maximum, Gaussian where it is plain."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayes_refine import physics
from bayes_refine.physics import Spot

pytest.importorskip("equinox")
from bayes_refine.learned.curve import Curve

X = np.linspace(-6, 6, 241)


def curve(values) -> Curve:
    values = jnp.asarray(values)
    return Curve(values[:2], values[2:4], values[4:7], values[7])


@pytest.mark.parametrize("values", 4 * np.random.default_rng(0).uniform(-1, 1, (20, 8)))
def test_any_weights_give_a_curve_with_its_only_maximum_at_zero(values):
    log_k = np.asarray(curve(values).log_curve(jnp.asarray(X)))
    middle = len(X) // 2
    assert abs(log_k[middle]) < 1e-12
    assert np.all(np.isfinite(log_k))
    assert np.all(np.diff(log_k[: middle + 1]) > 0) and np.all(np.diff(log_k[middle:]) < 0)


def test_the_plain_curve_is_the_gaussian_in_all_that_a_model_asks_of_it():
    plain = Curve.start(jax.random.key(0)).plain().pieces()["partiality"]
    x = jnp.linspace(-4, 4, 41)[None]
    eff, zero = 5e-4 * jnp.ones_like(x), jnp.zeros_like(x)
    spot = Spot(x * eff, eff, zero, zero, zero, zero, zero, 0.5 * eff**2)
    for ask in (
        lambda p: p(spot.excitation_error, 4e-4, eff),
        lambda p: p.displacement(x),
        lambda p: p.narrowing(x),
        lambda p: p.block_variance(spot),
    ):
        np.testing.assert_allclose(ask(plain), ask(physics.gaussian), rtol=1e-5, atol=1e-10)


def test_the_curve_reaches_as_far_as_its_tail():
    """k < exp(−2.4²) beyond 2.4 of a Gaussian; a term four times as wide, 5 % of it, is further."""
    assert curve([-30, -30, 0, 0, 0, 0, 0]).reach() == pytest.approx(2.4, abs=0.06)
    assert curve([-30, 0, 0, 0, 0, 0, 0]).reach() == 4  # no further than what taught it
    assert 2.5 < curve([0, -30, -1, 0, 0, 0, 0]).reach() < 4


def test_images_have_curves_of_their_own_about_the_run_s():
    x = jnp.linspace(-3, 3, 13) * jnp.ones((3, 1))
    shared = Curve.start(jax.random.key(3))
    own = Curve.start(jax.random.key(3), 0.5)
    asked = []

    def normal(*what):
        asked.append(what)
        return jnp.array([[[0.0, 0.0]], [[1.0, 0.0]], [[0.0, -2.0]]])

    assert shared.pieces()["partiality"].of_images(normal).log_curve == shared.log_curve
    assert not asked
    found = own.pieces()["partiality"].of_images(normal)
    assert asked == [("curve_shape", 0.0, 1.0, 2)]
    log_k = np.asarray(found.log_curve(x))
    np.testing.assert_allclose(log_k[0], shared.log_curve(x[0]), atol=1e-12)
    for row, (a, b) in zip(log_k[1:], ((1.0, 0.0), (0.0, -2.0)), strict=True):
        odds = shared.odds + 0.5 * jnp.array([a, b])
        moved = Curve(odds, shared.growth, shared.skew, shared.blunt)
        np.testing.assert_allclose(row, moved.log_curve(x[0]), atol=1e-12)
    # where nothing of the wider terms is left, no image differs
    plain = own.plain().pieces()["partiality"].of_images(normal)
    np.testing.assert_allclose(plain.log_curve(x), -(x**2), atol=1e-9)
    assert np.all(np.isfinite(found.displacement(x)) & np.isfinite(found.narrowing(x)))
