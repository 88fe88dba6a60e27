"""Names of unknowns in tables, and what a model of stills is asked for."""

from __future__ import annotations

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import pytest

from bayes_refine import infer
from bayes_refine.physics.contract import REQUIRED, check_deterministic, order, unknown
from bayes_refine.util.errors import InputError


def test_numbers_have_names_with_units():
    assert unknown("log_R0").numbers(1) == ["R0_inv_angstrom"]
    assert unknown("rotation_mrad").numbers(3) == ["rot_x_mrad", "rot_y_mrad", "rot_z_mrad"]
    assert unknown("strain").numbers(2) == ["strain_1", "strain_2"]
    assert unknown("log_mine").numbers(2) == ["mine_1", "mine_2"]
    assert sorted(["a_mine", "strain", "B", "log_G"], key=order) == [
        "log_G",
        "B",
        "strain",
        "a_mine",
    ]


def test_a_missing_site_is_named():
    check_deterministic([*REQUIRED, "another"])
    with pytest.raises(InputError, match="no deterministic site spot_moment"):
        check_deterministic(set(REQUIRED) - {"spot_moment"})


def test_a_parameter_is_refused():
    """It would stay at its first value, and nobody would know."""

    def model(y):
        width = numpyro.param("width", 1.0)
        with numpyro.plate("image", 2):
            a = numpyro.sample("a", dist.Normal(0.0, width))
            numpyro.sample("y", dist.Normal(a, 1.0), obs=y)

    with pytest.raises(InputError, match=r"numpyro\.param 'width'"):
        infer.map_fit(model, jnp.zeros(2))
