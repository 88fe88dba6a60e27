"""The learned profile: shares, and what is learned of a tail to one side of strong spots."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bayes_refine.measuring.point_spread import spread_template
from bayes_refine.measuring.shoebox import shoebox_for_width

pytest.importorskip("equinox")
pytest.importorskip("optax")
from bayes_refine.learned import profile_training as training
from bayes_refine.learned.factor import Frame
from bayes_refine.learned.profile import Profile, nodes_for
from bayes_refine.learned.strong_spots import StrongSpots
from bayes_refine.util.progress import SILENT

CORE_PX, TAIL = 1.0, (2, 0)  # of all spots; where their tails begin
IMAGES, OF_IMAGE = 10, 40


def tail_share(x_mm):
    return 0.2 + 0.1 * x_mm / 40


def spots(seed=0, share=tail_share) -> StrongSpots:
    """Spots with a tail of this share along x, as drawn from Poisson's law."""
    rng = np.random.default_rng(seed)
    n = IMAGES * OF_IMAGE
    offsets = shoebox_for_width(1.5 * np.sqrt(2) * CORE_PX).signal_offsets
    x_mm, y_mm = rng.uniform(-40, 40, (2, n))
    centre = rng.uniform(-0.5, 0.5, (n, 2))
    moment = np.tile([CORE_PX**2, CORE_PX**2, 0.0], (n, 1))
    moment[:, :2] *= rng.uniform(0.8, 1.2, (n, 1))
    J = 1500 * rng.uniform(0.3, 2, n)
    shares = np.stack([1 - share(x_mm), share(x_mm)], 1)
    frame, width = np.broadcast_to(np.eye(2), (n, 2, 2)), np.sqrt(moment[:, 0] + moment[:, 1])
    template = spread_template(
        *map(jnp.asarray, (centre, frame, moment, width)),
        offsets,
        ((0, 0), TAIL),
        jnp.asarray(shares),
    )[0]
    background = np.full(template.shape, 3.0)
    photons = rng.poisson(background + J[:, None] * np.maximum(np.asarray(template), 0)).astype(
        float
    )
    inside = np.sum((offsets - centre[:, None]) ** 2, 2) < np.max(offsets) ** 2
    wider = moment * [1.2, 1.2, 1]  # what a fit with Gaussian spots takes them for
    images = np.repeat(np.arange(IMAGES), OF_IMAGE)
    return StrongSpots(photons, background, inside, centre, wider, J, x_mm, y_mm, images, offsets)


def test_shares_are_positive_and_sum_to_one_and_the_plain_profile_is_a_gaussian():
    frame = Frame(0.0, 0.0, 40.0, 1.0)
    profile = Profile.start(jax.random.key(1), nodes_for(1.0), 1.0, frame)
    x = np.linspace(-60, 60, 7)
    shares = np.asarray(profile.shares(x, -x))
    assert np.all(shares > 0) and shares.shape == (7, len(profile.nodes))
    np.testing.assert_allclose(shares.sum(1), 1)
    plain = profile.plain()
    np.testing.assert_allclose(plain.shares(x, -x)[:, 0], 1, atol=1e-12)
    assert plain.trace_px2 < 1e-12
    r = np.linspace(-4, 4, 9)
    gaussian = np.exp(-0.5 * r**2) / (2 * np.pi)
    np.testing.assert_allclose(plain.density(r, 0 * r, 0.0, 0.0), gaussian, atol=1e-12)


@pytest.mark.parametrize("core", [0.5, 1.0, 2.3])
def test_nodes_begin_with_the_core_and_lie_close_enough(core):
    nodes = np.array(nodes_for(core))
    assert tuple(nodes[0]) == (0, 0) and len(nodes) == len({tuple(x) for x in nodes}) == 25
    apart = np.min(np.hypot(*nodes[1:].T))
    assert apart == max(1, int(1.4 * core))


def test_the_second_moment_that_is_told_is_that_of_the_density():
    profile = Profile.start(jax.random.key(2), nodes_for(1.0), 1.0, Frame(0.0, 0.0, 40.0, 1.0))
    profile = replace(profile, mean=profile.mean + 1.0)
    side = np.linspace(-9, 9, 181)
    x, y = np.meshgrid(side, side)
    density = np.asarray(profile.density(x, y, 0.0, 0.0)) * 0.01
    assert abs(density.sum() - 1) < 1e-3
    xx, yy, xy = profile.moments_px2()
    np.testing.assert_allclose(
        [np.sum(density * x * x) - 1, np.sum(density * y * y) - 1, np.sum(density * x * y)],
        [xx, yy, xy],
        atol=5e-3,
    )


def test_a_spots_own_numbers_are_found_by_their_steps():
    data = spots(share=lambda x: 0 * x)
    first = training.first_profile(data, 0)
    wide, place = training.wider(data.offsets, first.nodes)
    taught = training.Taught(data, wide, place)
    begun = training.start_of(data)
    begun = begun._replace(J=1.3 * begun.J, centre=begun.centre + 0.2)
    found = training.settled(taught, first.plain(), begun)
    off = (np.asarray(found.J) - data.J) / np.sqrt(data.J)
    assert abs(off.mean()) < 0.2 and off.std() < 1.3
    assert np.abs(np.asarray(found.centre) - data.centre).mean() < 0.05


@pytest.mark.slow
def test_a_tail_to_one_side_is_found():
    data = spots()
    profile, _members, evidence = training.learn_profile(data, 5, 80, 0, SILENT)
    assert evidence.total > 5 * evidence.se
    r = np.linspace(-3, 5, 17)
    for x_mm in (-30.0, 0.0, 30.0):
        share = tail_share(x_mm)
        at = np.array([0.0, 2.0]) - 2 * share
        truth = (np.exp(-0.5 * (r[:, None] - at) ** 2) @ [1 - share, share]) / (2 * np.pi)
        found = np.asarray(profile.density(r, 0 * r, x_mm, 0.0))
        assert np.abs(found - truth).max() < 0.05 * truth.max()


@pytest.mark.slow
def test_nothing_is_learned_of_gaussian_spots():
    *_, evidence = training.learn_profile(spots(share=lambda x: 0 * x), 5, 60, 0, SILENT)
    assert evidence.total < 3 * evidence.se + 1
    assert evidence.total > -3 * evidence.se - IMAGES
