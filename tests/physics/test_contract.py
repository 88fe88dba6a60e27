"""Names of unknowns in tables, and what a model of stills is asked for."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import pytest

from bayes_refine import infer
from bayes_refine.infer import Site
from bayes_refine.physics.contract import (
    REQUIRED,
    UNKNOWNS,
    check_deterministic,
    check_unknowns,
    order,
    unknown,
)
from bayes_refine.physics.priors import Priors
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


def test_every_prior_belongs_to_an_unknown():
    named = {name for row in UNKNOWNS.values() for name in row.priors}
    assert named == {field.name for field in fields(Priors)}


def test_the_how_to_shows_the_table():
    page = Path(__file__).parents[2] / "docs" / "how-to" / "new-model.md"
    lines = page.read_text(encoding="utf-8").splitlines()
    whose = {True: "image", False: "run", None: "either"}
    for row in UNKNOWNS.values():
        priors = ", ".join(f"`{name}`" for name in row.priors)
        cells = f"`{row.name}`", whose[row.of_image], str(row.size or "any"), priors, row.start
        assert f"| {' | '.join(cells)} |" in lines


@pytest.mark.parametrize(
    ("site", "said"),
    [
        (Site("rotation_mrad", (3,), False, None), "must be sampled in the plate 'image'"),
        (Site("log_R0", (1,), True, None), "must be sampled outside the plate 'image'"),
        (Site("detector_shift_mm", (2,), False, None), "has 2 numbers, not 3"),
    ],
)
def test_an_unknown_of_another_shape_is_named(site, said):
    check_unknowns([Site("mine", (7,), True, None), Site("log_R0", (), False, None)])
    with pytest.raises(InputError, match=f"'{site.name}' {said}"):
        check_unknowns([site])


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
