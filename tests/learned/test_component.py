"""Components as files: written and read, refused where they do not serve."""

from __future__ import annotations

import json
from dataclasses import replace

import jax
import numpy as np
import pytest

import bayes_refine as br

pytest.importorskip("equinox")
from bayes_refine.learned.component import (
    Component,
    Evidence,
    Family,
    Origin,
    Setup,
    read_component,
    settings_with,
    with_components,
    write_component,
)
from bayes_refine.learned.curve import Curve
from bayes_refine.learned.factor import Factor, Frame
from bayes_refine.learned.profile import Profile, nodes_for

SETUP = Setup(1, (480, 480), 0.172, 110.0, 1.0)
ORIGIN = Origin(SETUP, 16, 4000, 2.0, Evidence((1.0, 2.0, 3.0), 40), {"bayes-refine": "0"})


def component(family: Family) -> Component:
    def module(seed):
        key = jax.random.key(seed)
        if family is Family.partiality:
            return Curve.start(key)
        if family is Family.profile:
            return Profile.start(key, nodes_for(1.2), 1.2, Frame(1.0, -2.0, 40.0, 0.25))
        return Factor.start(key, Frame(1.0, -2.0, 40.0, 0.25))

    draws = tuple(module(k) for k in range(6, 9)) if family is Family.partiality else ()
    return Component(family, module(0), tuple(module(k) for k in range(1, 6)), ORIGIN, draws)


@pytest.mark.parametrize("family", list(Family))
def test_a_component_is_the_same_after_writing_and_reading(family, tmp_path):
    path, made = tmp_path / "component.eqx", component(family)
    write_component(path, made)
    found = read_component(path)
    assert found.origin == made.origin and found.family is family
    ours, theirs = (jax.tree.leaves((c.module, c.members, c.draws)) for c in (made, found))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)
    if family is Family.profile:
        assert found.module.nodes == made.module.nodes


def test_a_profile_goes_into_the_settings_and_leaves_the_model_as_it_is():
    made, model = component(Family.profile), br.load_model("still")
    assert with_components(model, [made]) is model
    settings = settings_with(br.Settings(), [made])
    assert settings.point_spread is made.module
    told, plain = settings.shown(), br.Settings().shown()
    assert json.loads(json.dumps(told)) == told
    assert plain.items() < told.items() and len(told["point_spread"]) == 64
    other = settings_with(br.Settings(), [replace(made, module=made.members[0])]).shown()
    assert other["point_spread"] != told["point_spread"]


@pytest.mark.parametrize("content", [b"", b"not one", b'{"format": "bayes_refine component 1"}\n'])
def test_another_file_is_no_component(content, tmp_path):
    path = tmp_path / "other.eqx"
    path.write_bytes(content)
    with pytest.raises(br.InputError, match=r"other\.eqx: not a learned component"):
        read_component(path)


def test_a_damaged_component_is_told(tmp_path):
    path = tmp_path / "component.eqx"
    write_component(path, component(Family.correction))
    whole = path.read_bytes()
    for part in (
        whole[:-300],
        whole[: whole.index(b"\n") + 1],
        whole.replace(b"members", b"xx", 1),
    ):
        path.write_bytes(part)
        with pytest.raises(br.InputError, match=r"component\.eqx: is damaged"):
            read_component(path)


@pytest.mark.parametrize(
    ("change", "serves"),
    [
        ({}, True),
        ({"distance_mm": 110.5}, True),
        ({"distance_mm": 150.0}, False),
        ({"wavelength": 1.3}, False),
        ({"n_pixels": 400}, False),
        ({"n_panels": 4}, False),
    ],
)
def test_a_component_serves_only_the_geometry_that_trained_it(change, serves, tmp_path):
    simulation = replace(br.Simulation(n_images=1, d_min=6.0, cell_error=0), **change)
    stills = br.read_experiments(br.simulate_run(simulation, tmp_path)).stills
    made = component(Family.correction)
    if serves:
        made.check_serves(stills)
        return
    with pytest.raises(br.InputError, match="train a component on them"):
        made.check_serves(stills, "c.eqx")


def test_the_band_is_that_of_the_draws_where_members_agree():
    one = Curve.start(jax.random.key(1))
    draws = tuple(replace(one, odds=one.odds + step) for step in (-0.5, 0.5))
    alone = Component(Family.partiality, one, (one,) * 5, ORIGIN)
    drawn = replace(alone, draws=draws)
    of = lambda curve: curve.odds  # noqa: E731
    np.testing.assert_allclose(alone.band(of)[1], 0.0, atol=1e-12)
    np.testing.assert_allclose(drawn.band(of)[1], 0.5)
    spread = tuple(replace(one, odds=one.odds + k) for k in range(-2, 3))
    wide = replace(drawn, members=spread)
    np.testing.assert_allclose(wide.band(of)[1], np.sqrt(1.5) * np.sqrt(2))


def test_two_components_of_a_family_are_refused():
    one = component(Family.correction)
    with pytest.raises(br.InputError, match="two components of the family correction"):
        with_components(br.load_model("still"), [one, one])


def test_evidence_recommends_beyond_two_standard_errors():
    assert Evidence((1.0, 1.2, 0.8, 1.1), 10).recommended
    doubt = Evidence((1.0, -0.2, 0.8, -0.1), 10)
    assert doubt.se < doubt.total < 2 * doubt.se
    assert not doubt.recommended and "nothing to learn here" in str(doubt)
