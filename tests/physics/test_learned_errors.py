"""The variance of J_model by its fraction and by speckle."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayes_refine import physics
from bayes_refine.physics.learned_errors import variance_of_J_model


def _variance(speckle_variance, block_variance=2.0, fraction=0.1):
    errors = physics.PERFECT._replace(fraction=fraction, speckle_variance=speckle_variance)
    return variance_of_J_model(errors, jnp.asarray(block_variance))


def test_fraction_and_blocks_add():
    assert float(_variance(0.02)) == pytest.approx(0.1**2 + 2 * 0.02, rel=1e-12)
    assert float(variance_of_J_model(physics.PERFECT, jnp.asarray(3.0))) == 0.0


def test_below_zero_the_variance_falls_as_steeply_and_stays_positive():
    x = jnp.linspace(-1.0, 0.0, 101)
    below = jax.vmap(_variance)(x)
    assert np.all(np.diff(below) > 0) and below[0] > 0
    slope = jax.grad(_variance)
    assert float(slope(-1e-9)) == pytest.approx(float(slope(1e-9)), rel=1e-6) == 2.0
    assert float(_variance(-0.005)) == pytest.approx(0.1**4 / (0.1**2 + 2 * 0.005), rel=1e-12)
