"""Unevenly spread blocks, against exact mixtures of two kinds of blocks."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
import pytest
from numpy.polynomial.hermite_e import hermeval

from bayes_refine import physics
from bayes_refine.physics.spot import Spot
from bayes_refine.physics.uneven_blocks import N_COEFFICIENTS, ORDERS, POWERS, uneven

R0 = 0.5  # units of what follows
RESPONSE = np.array([[0.7, 0.2, -0.1], [0.1, 0.5, 0.3], [0.2, 0.1, 0.7]])  # along ŝ, e1, e2
ALONG = np.array([0.8, 0.48, -0.36])  # direction in which blocks are unevenly spread
SHARE, APART = 0.2, 0.15  # of two kinds of blocks
PLACES = np.array([np.sqrt((1 - SHARE) / SHARE), -np.sqrt(SHARE / (1 - SHARE))]) * APART
SHARES = np.array([SHARE, 1 - SHARE])
EPSILON = np.array([-1.3, -0.5, 0.0, 0.4, 1.1])


def exact(epsilon: float, sign: int) -> tuple[float, np.ndarray]:
    """p, and p times the centroid along e1 and e2, of blocks with covariance 1 in all."""
    covariance = RESPONSE @ (np.eye(3) - APART**2 * np.outer(ALONG, ALONG)) @ RESPONSE.T
    mean = sign * PLACES[:, None] * (RESPONSE @ ALONG)  # (2, 3)
    variance = covariance[0, 0] + R0**2 / 2
    off = -epsilon - mean[:, 0]
    weight = SHARES * np.exp(-(off**2) / (2 * variance)) * R0 / np.sqrt(2 * variance)
    given = mean[:, 1:] + off[:, None] * covariance[0, 1:] / variance
    return weight.sum(), weight @ given


def coefficients() -> np.ndarray:
    """c of the two kinds, from the moments of Hermite's polynomials along ``ALONG``."""
    found = []
    for k in ORDERS:
        h = SHARES @ hermeval(PLACES / APART, np.eye(k + 1)[k]) * APART**k
        for power in POWERS[k]:
            size = math.sqrt(math.prod(map(math.factorial, power)))
            found.append(h * np.prod(ALONG ** np.array(power)) / size)
    assert len(found) == N_COEFFICIENTS
    return np.array(found)


def spots() -> tuple[Spot, tuple]:
    R = np.sqrt(R0**2 + 2 * RESPONSE[0] @ RESPONSE[0])
    flat = jnp.ones((1, len(EPSILON)))
    r = tuple(-2 * (RESPONSE[0] @ RESPONSE[i]) / R * flat for i in (1, 2))
    x, zero = jnp.asarray(EPSILON)[None] / R, 0 * flat
    return Spot(x * R, R * flat, r[0] * x, r[1] * x, zero, zero, zero), r


def changed(spot: Spot, slopes: tuple, partiality) -> tuple[Spot, np.ndarray]:
    """The spot of uneven blocks, and how far its centroid moved, (m, 2)."""
    response = jnp.asarray(RESPONSE)[None, :, :, None] + 0 * spot.R0_eff[:, None, None]
    found = uneven(spot, slopes, response, jnp.asarray(coefficients())[None], partiality)
    moved = found.shift_1 - spot.shift_1, found.shift_2 - spot.shift_2
    return found, np.stack(moved, 2)[0]


def compare(found, moved, spot, partiality, exact_at) -> None:
    """Half the difference of mirror images has no moment of even order; that of fifth order is
    APART² of what is here.

    Args:
        exact_at: (ε, sign) → p, and p times the centroid.
    """
    p, total = (
        np.array([[exact_at(e, sign)[n] for e in EPSILON] for sign in (1, -1)]) for n in (0, 1)
    )
    even = np.asarray(partiality.of(spot, R0))[0]
    change = (p[0] - p[1]) / 2
    got = np.asarray(partiality.of(found, R0))[0] - even
    np.testing.assert_allclose(got, change, atol=0.04 * np.abs(change).max())
    centroid = total / p[..., None]
    change = (centroid[0] - centroid[1]) / 2
    np.testing.assert_allclose(moved, change, atol=0.04 * np.abs(change).max())


def test_partiality_and_centroid():
    spot, slopes = spots()
    found, moved = changed(spot, slopes, physics.gaussian)
    compare(found, moved, spot, physics.gaussian, exact)


@pytest.mark.parametrize("swept", [0.05, 0.5, 2.0])
def test_while_the_crystal_turns(swept):
    """A path along ŝ: the mean over places in the turn, by Gauss and Legendre's rule."""
    u, weight = np.polynomial.legendre.leggauss(40)
    spot, slopes = spots()
    zero = 0 * spot.R0_eff
    turning = physics.gaussian_over_turn
    spot = turning.exposed(spot, slopes, jnp.stack([swept + zero, zero, zero], 1))
    found, moved = changed(spot, slopes, turning)

    def over_turn(e, sign):
        p, centroid = zip(*(exact(e + swept * x, sign) for x in u), strict=True)
        return weight @ np.array(p) / 2, weight @ np.array(centroid) / 2

    compare(found, moved, spot, turning, over_turn)


def test_coefficients_of_few_blocks():
    """Of N points of the unit normal, about their own mean and covariance, c has a variance of
    1/N, but for terms of relative order 1/N."""
    rng, N, runs = np.random.default_rng(1), 200, 1500
    u = rng.standard_normal((runs, N, 3))
    u -= u.mean(1, keepdims=True)
    root = np.linalg.cholesky(np.einsum("rni,rnj->rij", u, u) / N)
    u = np.linalg.solve(root[:, None], u[..., None])[..., 0]
    he = [hermeval(u, np.eye(max(ORDERS) + 1)[k]) for k in range(max(ORDERS) + 1)]
    c = []
    for k in ORDERS:
        for i, j, l in POWERS[k]:  # noqa: E741
            size = math.sqrt(math.prod(map(math.factorial, (i, j, l))))
            c.append((he[i][..., 0] * he[j][..., 1] * he[l][..., 2]).mean(1) / size)
    variance = N * np.var(c, axis=1)
    np.testing.assert_allclose(variance, 1.0, atol=0.25)  # 1/√1500, and 1/N with factors of k²
    correlation = np.corrcoef(c)
    np.testing.assert_allclose(correlation, np.eye(len(c)), atol=0.15)
