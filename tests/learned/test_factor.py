"""The learned correction: 1 where it is plain, and in its gauge."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bayes_refine as br

pytest.importorskip("equinox")
import equinox as eqx

from bayes_refine.learned.factor import Factor, Frame
from bayes_refine.physics import Metadata

FRAME = Frame(5.0, -3.0, 40.0, 0.2)


@pytest.fixture
def obs():
    rng = np.random.default_rng(0)
    x, y = 40 * rng.uniform(-1, 1, (2, 4, 300))
    norm_q = np.hypot(x, y) / 130
    places = Metadata(0 * x, x, y, x, y, np.linspace(0, 1, 4)[:, None])
    fit = rng.random((4, 300)) < 0.8
    return SimpleNamespace(metadata=places, norm_q=norm_q, fit=fit, log_pulse_energy=None)


def rough() -> Factor:
    """Weights a few prior sd wide everywhere."""
    keys = iter(jax.random.split(jax.random.key(1), 20))

    def drawn(leaf):
        return jax.random.normal(next(keys), leaf.shape) if leaf.ndim else leaf

    return jax.tree.map(drawn, Factor.start(jax.random.key(0), FRAME))


def test_a_new_factor_and_a_plain_one_are_1(obs):
    scale = jnp.full((4, 300), 7.0)
    for factor in (Factor.start(jax.random.key(0), FRAME), rough().plain()):
        np.testing.assert_allclose(factor(obs, scale), scale, rtol=1e-12)


def test_a_pinned_factor_has_no_mean_and_no_slope_where_it_was_trained(obs):
    factor, pinned = rough(), rough().pinned(obs)
    where = obs.metadata

    def ln(f):
        value = f.log_factor(where.x_mm, where.y_mm, obs.norm_q, where.order)
        return np.asarray(value)[obs.fit]

    quarter = obs.norm_q[obs.fit] ** 2 / 4
    assert abs(ln(pinned).mean()) < 1e-10
    assert abs(np.polyfit(quarter, ln(pinned), 1)[0]) < 1e-8
    change = ln(factor) - ln(pinned)  # of scale and B alone
    line = np.polyval(np.polyfit(quarter, change, 1), quarter)
    np.testing.assert_allclose(change, line, atol=1e-10)


def test_the_gauge_is_not_trained(obs):
    slope = eqx.filter_grad(lambda f: jnp.sum(f(obs, 1.0)))(rough())
    assert slope.offset == 0 and slope.slope == 0
    assert float(jnp.abs(slope.layers[0].weight).max()) > 0


def test_the_prior_is_that_of_the_first_weights():
    """−½(Σ n_in W² + Σ b²): unit outputs of unit inputs."""
    factor = rough()
    expected = -0.5 * sum(
        float(w.shape[1] * np.sum(np.asarray(w) ** 2) + np.sum(np.asarray(b) ** 2))
        for w, b in ((layer.weight, layer.bias) for layer in factor.layers)
    )
    assert float(factor.log_prior()) == pytest.approx(expected)


def test_observations_without_places_are_refused(obs):
    obs.metadata = None
    with pytest.raises(br.InputError, match="metadata=True"):
        rough()(obs, 1.0)


def test_the_pulse_energy_counts_only_where_it_was_known_in_training(obs):
    def ln(frame, energy):
        factor = eqx.tree_at(
            lambda f: f.layers, Factor.start(jax.random.key(0), frame), rough().layers
        )
        where = obs.metadata
        return factor.log_factor(where.x_mm, where.y_mm, obs.norm_q, where.order, energy)

    energy, none = np.array([[-0.5], [0.0], [0.5], [np.nan]]), np.full((4, 1), np.nan)
    known = FRAME._replace(log_energy=0.5)
    np.testing.assert_array_equal(ln(FRAME, energy), ln(FRAME, None))
    np.testing.assert_array_equal(ln(known, none), ln(known, None))
    moved = np.abs(np.asarray(ln(known, energy) - ln(known, None))).max(1)
    assert np.all(moved[[0, 2]] > 0.01) and not moved[[1, 3]].any()
