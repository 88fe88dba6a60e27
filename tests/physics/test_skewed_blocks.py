"""Few blocks: the third cumulants of a distribution of blocks, against exact mixtures."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from bayes_refine import physics
from bayes_refine.physics.skewed_blocks import N_CUMULANTS, skewed, third_cumulants
from bayes_refine.physics.spot import Spot

R0 = 0.5  # units of what follows
RESPONSE = np.array([[0.6, 0.2, 0.1], [0.1, 0.5, 0.3], [0.2, 0.1, 0.7]])  # along ŝ, e1, e2
ALONG = np.array([0.8, 0.48, -0.36])  # direction in which blocks are skewed
SHARE, APART = 0.2, 0.15  # of two kinds of blocks
PLACES = np.array([np.sqrt((1 - SHARE) / SHARE), -np.sqrt(SHARE / (1 - SHARE))]) * APART
THIRD = APART**3 * (1 - 2 * SHARE) / np.sqrt(SHARE * (1 - SHARE))
EPSILON = np.array([-1.3, -0.5, 0.0, 0.4, 1.1])


def exact(epsilon: float, sign: int) -> tuple[float, np.ndarray]:
    """p, and the centroid along e1 and e2, of blocks of two kinds with covariance 1 in all."""
    covariance = RESPONSE @ (np.eye(3) - APART**2 * np.outer(ALONG, ALONG)) @ RESPONSE.T
    mean = sign * PLACES[:, None] * (RESPONSE @ ALONG)  # (2, 3)
    variance = covariance[0, 0] + R0**2 / 2
    off = -epsilon - mean[:, 0]
    weight = np.array([SHARE, 1 - SHARE]) * np.exp(-(off**2) / (2 * variance))
    given = mean[:, 1:] + off[:, None] * covariance[0, 1:] / variance
    p = R0 / np.sqrt(2 * variance) * weight.sum()
    return p, weight @ given / weight.sum()


def spot_of(epsilon, half_turn: float = 0.0) -> tuple[Spot, tuple]:
    R = np.sqrt(R0**2 + 2 * RESPONSE[0] @ RESPONSE[0])
    slopes = [-2 * (RESPONSE[0] @ RESPONSE[i]) / R for i in (1, 2)]
    x = jnp.asarray(epsilon)[None] / R
    flat = jnp.ones_like(x)
    r = tuple(s * flat for s in slopes)
    zero = 0 * flat
    spot = Spot(x * R, R * flat, r[0] * x, r[1] * x, zero, zero, zero)
    return spot, r


def skewed_spot(spot, slopes, sign, partiality):
    cubic = sign * THIRD * np.einsum("i,j,k->ijk", ALONG, ALONG, ALONG)
    response = jnp.asarray(RESPONSE)[None, :, :, None] + 0 * spot.R0_eff[:, None, None]
    return skewed(spot, slopes, response, jnp.asarray(cubic)[None], partiality)


def test_partiality_and_centroid_of_skewed_blocks():
    """Half the difference of mirror images has no cumulant of even order; that of fifth order is
    APART² of what is here."""
    spot, slopes = spot_of(EPSILON)
    for sign in (1, -1):
        found = skewed_spot(spot, slopes, sign, physics.gaussian)
        both = [[exact(e, s) for s in (1, -1)] for e in EPSILON]
        tilt = np.array([np.log(a[0] / b[0]) / 2 for a, b in both]) * sign
        moved = np.array([(a[1] - b[1]) / 2 for a, b in both]) * sign
        np.testing.assert_allclose(found.log_tilt[0], tilt, atol=0.03 * np.abs(tilt).max())
        here = np.stack([found.shift_1 - spot.shift_1, found.shift_2 - spot.shift_2], 2)[0]
        np.testing.assert_allclose(here, moved, atol=0.03 * np.abs(moved).max())
        ratio = physics.gaussian.of(found, R0) / physics.gaussian.of(spot, R0)
        np.testing.assert_allclose(ratio, np.exp(found.log_tilt))


@pytest.mark.parametrize("swept", [0.05, 0.5, 2.0])
def test_skewed_blocks_while_the_crystal_turns(swept):
    """A path along ŝ: the mean over places in the turn, by Gauss and Legendre's rule."""
    u, weight = np.polynomial.legendre.leggauss(40)
    spot, slopes = spot_of(EPSILON)
    zero = 0 * spot.R0_eff
    half_turn = jnp.stack([swept + zero, zero, zero], 1)
    turning = physics.gaussian_over_turn
    spot = turning.exposed(spot, slopes, half_turn)
    found = skewed_spot(spot, slopes, 1, turning)

    def over_turn(e, sign):
        each = [exact(e + swept * x, sign) for x in u]
        p = weight @ np.array([one[0] for one in each]) / 2
        moved = weight @ np.array([one[0] * one[1] for one in each]) / 2 / p
        return np.log(p), moved

    both = [[over_turn(e, s) for s in (1, -1)] for e in EPSILON]
    tilt = np.array([(a[0] - b[0]) / 2 for a, b in both])
    np.testing.assert_allclose(found.log_tilt[0], tilt, atol=0.04 * np.abs(tilt).max())
    moved = np.array([(a[1] - b[1]) / 2 for a, b in both])
    here = np.stack([found.shift_1 - spot.shift_1, found.shift_2 - spot.shift_2], 2)[0]
    np.testing.assert_allclose(here, moved, atol=0.04 * np.abs(moved).max())


def test_cumulants_of_few_blocks():
    """Ten independent numbers of variance 1/N are what N points of the unit normal have."""
    rng, N, runs = np.random.default_rng(1), 50, 4000
    u = rng.standard_normal((runs, N, 3))
    u -= u.mean(1, keepdims=True)
    root = np.linalg.cholesky(np.einsum("rni,rnj->rij", u, u) / N)
    u = np.linalg.solve(root[:, None], u[..., None])[..., 0]
    found = np.einsum("rni,rnj,rnk->rijk", u, u, u) / N
    drawn = third_cumulants(rng.standard_normal((runs, N_CUMULANTS)) / np.sqrt(N))
    for a, b in ((found, np.asarray(drawn)),):
        flat = [x.reshape(runs, 27) for x in (a, b)]
        sizes = [x.std(0) for x in flat]
        np.testing.assert_allclose(sizes[0], sizes[1], rtol=0.2)  # 1/N corrections, 1/√4000
        corr = [np.corrcoef(x.T) for x in flat]
        np.testing.assert_allclose(corr[0], corr[1], atol=0.12)
