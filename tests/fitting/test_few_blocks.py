"""Few blocks of crystals whose blocks are known: what their third moments do to orientations."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from bayes_refine import infer, physics
from bayes_refine.fitting.few_blocks import with_few_blocks
from bayes_refine.physics.partiality import gaussian
from bayes_refine.physics.priors import Priors
from bayes_refine.physics.spot import Spot
from bayes_refine.physics.uneven_blocks import uneven

N, M, BLOCKS, R0, NOISE = 60, 40, 40, 0.8, 0.08  # rotations in units of the blocks' sd
ANGLE = np.linspace(0, 2 * np.pi, M, endpoint=False)
AXES = np.stack([np.cos(ANGLE), np.sin(ANGLE), 0 * ANGLE])  # that spots say something about
PLACE = np.random.default_rng(5).uniform(-2, 2, (N, M))  # of spots off the sphere


class Data(NamedTuple):
    p: np.ndarray


def partialities(data, priors, blocks=physics.even_blocks):
    """The orientation about two axes from partialities of spots on a circle."""
    with numpyro.plate("image", len(data.p), dim=-2):
        turned = infer.normal("rotation", 0.0, 3.0, 2)[:, 0]
        c = blocks(priors)
        epsilon = PLACE[: len(data.p)] + turned @ AXES[:2]
        flat = jnp.ones_like(epsilon)
        spot = Spot(epsilon, np.sqrt(R0**2 + 2) * flat, *[0 * flat] * 5)
        if c is not None:
            response = np.stack([AXES, 0 * AXES, 0 * AXES])[None] + 0 * flat[:, None, None]
            spot = uneven(spot, (0 * flat, 0 * flat), response, c, gaussian)
        with numpyro.plate("reflection", M, dim=-1):
            numpyro.sample("p", dist.Normal(gaussian.of(spot, R0), NOISE), obs=data.p)


@pytest.fixture(scope="module")
def crystals():
    """Each of 40 blocks, which have a mean of 0 and a covariance of 1: errors are the truth's."""
    rng = np.random.default_rng(0)
    u = rng.standard_normal((N, BLOCKS, 3))
    u -= u.mean(1, keepdims=True)
    root = np.linalg.cholesky(np.einsum("nbi,nbj->nij", u, u) / BLOCKS)
    u = np.linalg.solve(root[:, None], u[..., None])[..., 0]
    off = PLACE[:, None] + u @ AXES
    p = np.exp(-(off**2) / R0**2).mean(1)
    return Data(p + NOISE * rng.standard_normal(p.shape))


def test_orientations_are_as_certain_as_they_are_right(crystals):
    priors = Priors()
    fit = infer.map_fit(partialities, crystals, priors)
    found, now = with_few_blocks(partialities, crystals, priors, fit)

    def pull(fit):
        return float(np.std(fit.values()["rotation"] / fit.sd("rotation")))

    assert pull(fit) > 1.3  # 120 numbers: a pull of one is known to 0.06
    assert 0.75 < pull(found) < 1.1
    assert np.std(found.values()["rotation"]) < np.std(fit.values()["rotation"])
    assert 1 < now.uneven_blocks_sd * BLOCKS**0.5 < 2.2  # higher moments are found with the third


def test_blocks_of_a_normal_distribution_change_nothing():
    p = np.exp(-(PLACE**2) / (R0**2 + 2)) * R0 / np.sqrt(R0**2 + 2)
    data = Data(p + NOISE * np.random.default_rng(1).standard_normal(p.shape))
    fit = infer.map_fit(partialities, data, Priors())
    found, now = with_few_blocks(partialities, data, Priors(), fit)
    assert now.uneven_blocks_sd < 0.07  # its prior has 0.1
    assert found.sd("rotation").mean() < 1.1 * fit.sd("rotation").mean()


def test_a_fit_stays_as_it_is(crystals):
    fit, off = infer.map_fit(partialities, crystals, Priors()), Priors(uneven_blocks_sd=0.0)
    assert with_few_blocks(partialities, crystals, off, fit)[0] is fit

    def without(data, priors):
        partialities(data, priors)

    assert with_few_blocks(without, crystals, Priors(), fit)[0] is fit
