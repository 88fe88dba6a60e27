"""Learned components on the page."""

from __future__ import annotations

import json

import jax
import pytest

pytest.importorskip("equinox")
from bayes_refine.learned.component import Component, Evidence, Family, Origin, Setup
from bayes_refine.learned.curve import Curve
from bayes_refine.learned.factor import Factor, Frame
from bayes_refine.learned.profile import Profile, nodes_for
from bayes_refine.report import learned
from bayes_refine.report.page import failures
from bayes_refine.util.output import jsonable

SETUP = Setup(1, (480, 480), 0.172, 110.0, 1.0)


def shown(family, nats):
    """As it comes back from ``summary.json``."""
    origin = Origin(SETUP, len(nats), 4000, 2.0, Evidence(nats, 40), {})

    def module(seed):
        key = jax.random.key(seed)
        if family is Family.partiality:
            return Curve.start(key)
        if family is Family.profile:
            return Profile.start(key, nodes_for(1.0), 1.0, Frame(0.0, 0.0, 40.0, 0.25))
        return Factor.start(key, Frame(0.0, 0.0, 40.0, 0.25))

    members = tuple(module(k) for k in range(5))
    return json.loads(json.dumps(jsonable(Component(family, members[0], members, origin).shown())))


def test_what_is_learned_is_drawn_and_judged():
    better = shown(Family.partiality, (4.0, 6.0, 5.0))
    no_better = shown(Family.correction, (1.0, -1.0, 0.1))
    with failures() as failed:
        section = learned.components([better, no_better, shown(Family.profile, (1.0, 1.1, 1.2))])
    assert not failed and section is not None
    drawn = "partiality", "correction", "correction_sd", "profile", "profiles"
    for name in (f"learned-{one}" for one in drawn):
        assert f'id="{name}"' in section.html
    assert "+5.00 ± 0.58 an image, so that it describes such images better" in section.html
    assert "+0.03 ± 0.58 an image, so that the plain model describes such" in section.html


def test_a_run_without_components_has_no_section():
    assert learned.components(None) is None
