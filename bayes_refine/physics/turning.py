"""Partiality of a frame on which the crystal turns: the Gaussian curve's mean over the turn (JAX).

While the shutter is open the crystal turns by Δφ about the spindle m at a constant rate, and a relp
that is at q in the middle of the exposure is at q + u·v, v = ½Δφ m×q, with u uniform from −1 to 1.
Along ŝ this is a box of half-width |v_r|.  With x = ε_r/R0_eff and b = |v_r|/R0_eff,

    p = (R0/R0_eff)·k,   k = (1/2b) ∫_{x−b}^{x+b} exp(−t²) dt.

The spot is the still's spot at the u at which the relp crosses the sphere, spread over these u
(docs/theory.md, Frames of a turning crystal).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.scipy.special import erf, erfc

from .observations import Array
from .partiality import MAX_POWER, Partiality, gaussian
from .spot import Spot
from .uneven_blocks import hermite_ratios, of_uneven

_NARROW = 2e-3  # b below which the box is taken as a Gaussian of its variance
_NARROW_DIFFERENCE = 0.01  # b below which derivatives are taken as those of a still
_FAR = 25.0  # |x| − b up to which erfc has a logarithm
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(12)
_TAU = np.concatenate([(_NODES - 1) / 2, (_NODES + 1) / 2])  # of integrals from −1 to 0 and 0 to 1
_WEIGHTS = np.tile(_WEIGHTS / 2, 2)


class Averaged(NamedTuple):
    """The Gaussian curve averaged over a box, any shape.

    Attributes:
        log_curve: ln k. mean, variance: of −u·sign(v_r) given x, whose law is a normal distribution
            of mean x/b and variance 1/(2b²), cut off at −1 and 1.
    """

    log_curve: Array
    mean: Array
    variance: Array


def averaged(x: Array, b: Array) -> Averaged:
    """ln k, and mean and variance of the place in the turn at which a relp crosses the sphere.

    k = (√π/4b)·(erfc(|x| − b) − erfc(|x| + b)) loses no digits far from the sphere; beyond
    |x| − b = 25, p < 1e-270, ln erfc(z) is −z² − ln(z√π).  For b → 0 ln k is the still's −x².
    """
    narrow = b < _NARROW
    wide = jnp.where(narrow, 1.0, b)
    below = x < 0
    x = jnp.where(below, -x, x)
    low, high = x - wide, x + wide
    far = low > _FAR
    near, beyond = jnp.where(far, 0.0, low), jnp.where(far, low, _FAR)
    log_erfc = jnp.log(erfc(near) - erfc(jnp.where(far, 1.0, high)))
    log_erfc = jnp.where(far, -(beyond**2) - jnp.log(beyond * jnp.sqrt(jnp.pi)), log_erfc)
    log_k = log_erfc + 0.5 * jnp.log(jnp.pi) - jnp.log(4 * wide)
    at_low, at_high = (jnp.exp(-(t**2) - log_k) / (2 * wide) for t in (low, high))
    slope = at_high - at_low  # of ln k
    mean = (x + slope / 2) / wide
    curvature = 2 * low * at_low - 2 * high * at_high - slope**2
    variance = jnp.clip((0.5 + curvature / 4) / wide**2, 0.0, 1.0)
    thin = 1 + 2 / 3 * jnp.where(narrow, b, 0.0) ** 2
    log_k = jnp.where(narrow, -0.5 * jnp.log(thin) - x**2 / thin, log_k)
    mean = jnp.where(narrow, 2 / 3 * x * b / thin, mean)
    variance = jnp.where(narrow, 1 / (3 * thin), variance)
    return Averaged(log_k, jnp.where(below, -mean, mean), variance)


@dataclass(frozen=True)
class OverTurn(Partiality):
    """The Gaussian curve averaged over the turn of each exposure; a still has a turn of zero."""

    def of(self, spot: Spot, R0: Array | float) -> Array:
        """p (n, m) of spots as :meth:`exposed` returns them."""
        return of_uneven(R0 / spot.R0_eff * jnp.exp(_log_curve(spot)), spot)

    def derivatives(self, spot: Spot, order: int) -> list[Array]:
        """D_n of the curve over the turn: (h⁽ⁿ⁻¹⁾(x+b) − h⁽ⁿ⁻¹⁾(x−b))/2bk, h = exp(−x²)."""
        x = spot.excitation_error / spot.R0_eff
        still = hermite_ratios(x, order)
        if spot.log_curve is None:
            return still
        b = spot.swept / spot.R0_eff
        narrow = b < _NARROW_DIFFERENCE
        wide = jnp.where(narrow, 1.0, b)
        ends = []
        for t in (x + wide, x - wide):
            weight = jnp.exp(jnp.minimum(-(t**2) - spot.log_curve, MAX_POWER)) / (2 * wide)
            ends.append([weight * ratio for ratio in hermite_ratios(t, order - 1)])
        found = [high - low for high, low in zip(*ends, strict=True)]
        return [still[0], *(jnp.where(narrow, s, f) for s, f in zip(still[1:], found, strict=True))]

    def exposed(self, spot: Spot, slopes: tuple[Array, Array], half_turn: Array | None) -> Spot:
        """The spot over the whole turn, from the still's spot at its middle.

        With r_i the still's slope of ε_i with x and u the place in the turn, the centroid along e_i
        is r_i·x + a_i·E[u], a_i = v_i + r_i·v_r/R0_eff, and a_i·a_j·Var[u] adds to its second
        moment.

        Args:
            half_turn: (n, 3, m) v along ŝ, e1 and e2, Å⁻¹.
        """
        if half_turn is None:
            return spot
        along = half_turn[:, 0] / spot.R0_eff
        curve = averaged(spot.excitation_error / spot.R0_eff, jnp.abs(along))
        u = -jnp.sign(along) * curve.mean
        a1, a2 = (half_turn[:, i + 1] + slopes[i] * along for i in (0, 1))
        return spot._replace(
            shift_1=spot.shift_1 + a1 * u,
            shift_2=spot.shift_2 + a2 * u,
            m11=spot.m11 + a1**2 * curve.variance,
            m22=spot.m22 + a2**2 * curve.variance,
            m12=spot.m12 + a1 * a2 * curve.variance,
            swept=jnp.abs(half_turn[:, 0]),
            log_curve=curve.log_curve,
        )


def _log_curve(spot: Spot) -> Array:
    """ln k (n, m) at the spot; of a still −x²."""
    still = -((spot.excitation_error / spot.R0_eff) ** 2)
    return still if spot.log_curve is None else spot.log_curve


def _blocks_over_turn(spot: Spot) -> Array:
    """Relative variance of p by one block, E[k²]/E[k]² − 1, as for stills (``partiality``).

    With each block's curve averaged over the same box, and τ the mean of two places in the turn,

        E[k²] ∝ ∫₋₁¹ (1−|τ|) H(√2 w (1−|τ|)/R_k) exp(−2(ε_r + wτ)²/(R_k² + 2m²)) dτ,

    w = |v_r| and H(z) = (√π/2) erf(z)/z, by Gauss and Legendre's rule.
    """
    eff2 = spot.R0_eff**2
    k2, twice = eff2 - spot.mosaic2, eff2 + spot.mosaic2
    x, b = spot.excitation_error / spot.R0_eff, spot.swept / spot.R0_eff
    mean_power = 2 * _log_curve(spot)
    rest = (1 - jnp.abs(_TAU)).reshape(-1, *[1] * x.ndim)
    z = jnp.sqrt(2.0) * spot.swept / jnp.sqrt(k2) * rest
    safe = jnp.where(z < 1e-3, 1.0, z)
    overlap = jnp.where(z < 1e-3, 1 - z**2 / 3, 0.5 * jnp.sqrt(jnp.pi) * erf(safe) / safe)
    power = -2 * eff2 / twice * (x + b * _TAU.reshape(rest.shape)) ** 2 - mean_power
    weight = _WEIGHTS.reshape(rest.shape) * rest * overlap
    total = jnp.sum(weight * jnp.exp(jnp.minimum(power, MAX_POWER)), 0)
    return jnp.maximum(eff2 / jnp.sqrt(k2 * twice) * total - 1, 0.0)


gaussian_over_turn = OverTurn(gaussian.log_curve, _blocks_over_turn)
