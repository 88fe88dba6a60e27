"""How much of a reflection diffracts, as a function of its excitation error, and B_term (JAX).

A curve k is a function of x = ε_r/R0_eff, in which its width is one; the width R0_eff of the
curve in ε_r grows with resolution,

    R0_eff² = R0² + (η|q|)² + (β|q|²)²,   β = bλ/√2,

through mosaic spread η and bandwidth b (docs/theory.md, One reflection).  p = (R0/R0_eff)·k(x)
conserves the area under the curve: a reflection that is smeared over a wider range of ε_r is weaker
on the sphere.

A fit of stills takes ``gaussian``, a merge of integrated stills takes ``lorentzian``.  In a fit of
stills the places of spots tell a wrong orientation from a tail of the curve.  A merge has
intensities alone, so that its curve must also describe the errors of orientation that are left and
the tails of spectra, which fall as a power.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from .observations import Array, SpotStatistics
from .spot import Spot
from .uneven_blocks import of_uneven

MAX_POWER = 40.0  # largest power of e in the variance by few blocks; reached where p < 1e-17


@dataclass(frozen=True)
class Partiality:
    """A partiality curve, as a value that models take (docs/how-to/new-partiality.md).

    p(ε_r) = (R0/R0_eff)·k(x), or k(x) where volume is not conserved.  The conditional moments of a
    spot follow from the slope and the curvature of ln k (:meth:`displacement`, :meth:`narrowing`).

    Attributes:
        log_curve: ln k of x (any shape), 0 at x = 0.
        block_variance: of a Spot with arrays (n, m), the relative variance of p in a crystal of one
            mosaic block; in a crystal of N blocks the variance is 1/N of it.
        conserves: whether p on the sphere is R0/R0_eff rather than 1.
    """

    log_curve: Callable[[Array], Array]
    block_variance: Callable[[Spot], Array]
    conserves: bool = True

    def __call__(self, excitation_error: Array, R0: Array | float, R0_eff: Array) -> Array:
        """p (n, m) of ε_r, R0 and R0_eff, all Å⁻¹."""
        p = jnp.exp(self.log_curve(excitation_error / R0_eff))
        return R0 / R0_eff * p if self.conserves else p

    def of_images(self, normal: Callable[..., Array]) -> Partiality:
        """The curves of n images: here one curve, which all images share.

        A model asks for them in its plate of images.  A partiality whose curve has unknowns in each
        image is a subclass that samples them here (``learned.curve.OfEachImage``).

        Args:
            normal: ``infer.normal``; ``normal(name, mean, sd, size)`` samples the unknown ``name``,
                (n, 1, size) of independent normal distributions.
        """
        return self

    def of(self, spot: Spot, R0: Array | float) -> Array:
        """p (n, m) of spots, with what unevenly spread blocks change."""
        return of_uneven(self(spot.excitation_error, R0, spot.R0_eff), spot)

    def derivatives(self, spot: Spot, order: int) -> list[Array]:
        """D_j = k⁽ʲ⁾/k, (n, m) each, for j = 0 … ``order``: derivatives along x = ε_r/R0_eff."""
        ratios: list[Callable[[Array], Array]] = [lambda x: jnp.ones_like(x)]
        for _ in range(order):
            ratios.append(self._next(ratios[-1]))
        return [ratio(spot.excitation_error / spot.R0_eff) for ratio in ratios]

    def _next(self, ratio: Callable[[Array], Array]) -> Callable[[Array], Array]:
        """D_{n+1} = D_n′ + D_1 D_n."""
        return lambda x: _slope_of(ratio)(x) + self._slope(x) * ratio(x)

    def exposed(self, spot: Spot, slopes: tuple[Array, Array], half_turn: Array | None) -> Spot:
        """The spot over the whole exposure.  Here it is the spot of a still; ``turning.OverTurn``
        changes it for a crystal that turns.

        Args:
            slopes: (n, m) change of its centroid along e1 and e2 with ε_r/R0_eff.
            half_turn: ``Observations.half_turn``.
        """
        return spot

    def displacement(self, x: Array) -> Array:
        """−½ d ln k/dx; x for a Gaussian curve.

        Where ε_r is the sum of a part of any distribution and a Gaussian smear s, Tweedie's formula
        E[s | ε_r] = −Var[s]·(ln p)′ gives the mean of s, 2·Var[s]/R0_eff times this number.
        """
        return -0.5 * self._slope(x)

    def narrowing(self, x: Array) -> Array:
        """−½ d² ln k/dx²; 1 for a Gaussian curve.

        It gives the variance of the smear s: Var[s | ε_r] = Var[s] + Var[s]²·(ln p)″.
        """
        return -0.5 * _slope_of(self._slope)(x)

    def _slope(self, x: Array) -> Array:
        return _slope_of(self.log_curve)(x)


def _slope_of(curve: Callable[[Array], Array]) -> Callable[[Array], Array]:
    return lambda x: jax.jvp(curve, (x,), (jnp.ones_like(x),))[1]


def effective_width(R0, mosaic_mrad, dispersion_angstrom, norm_q) -> Array:
    """R0_eff, Å⁻¹ (n,), of R0 (Å⁻¹), η (mrad), β (Å) and |q| = 1/d (n,)."""
    mosaic = mosaic_mrad * 1e-3 * norm_q
    return jnp.sqrt(R0**2 + mosaic**2 + (dispersion_angstrom * norm_q**2) ** 2)


def _gaussian_curve(x) -> Array:
    return -(x**2)


def _lorentzian_curve(x) -> Array:
    return -jnp.log1p(x**2)


def _gaussian_blocks(spot: Spot) -> Array:
    """Relative variance of p by one block, E[k²]/E[k]² − 1.

    Each block has a curve k = exp(−(ε_r − x)²/R_k²), R_k² = R0² + R_bw², about its own place x of
    spread m = η|q|cosθ, so that

        E[k²]/E[k]² = R_eff²/(R_k √(R_k² + 2m²)) · exp(2ε_r²(1/R_eff² − 1/(R_k² + 2m²))).

    The variance is zero at low resolution and large in the tails, where few blocks diffract.  The
    power of e is cut at 40, which single precision still holds; p² < e⁻⁸⁰ there, so that the
    variance of J is zero all the same.
    """
    eff2 = spot.R0_eff**2
    k2, twice = eff2 - spot.mosaic2, eff2 + spot.mosaic2
    power = jnp.minimum(2 * spot.excitation_error**2 * (1 / eff2 - 1 / twice), MAX_POWER)
    return eff2 / jnp.sqrt(k2 * twice) * jnp.exp(power) - 1


def _lorentzian_blocks(spot: Spot) -> Array:
    """Relative variance of p by one block, for blocks with Lorentzian curves.

    The curves k = 1/(1 + (ε_r − x)²/R_k²) lie about places x of a Cauchy distribution of width
    R_eff − R_k, so that the mean curve is a Lorentzian of width R_eff:

        E[k²]/E[k]² = (R_eff²(R_eff + R_k) + ε_r²(R_eff − R_k))/(2 R_k R_eff²).
    """
    eff2 = spot.R0_eff**2
    k = jnp.sqrt(eff2 - spot.mosaic2)
    grown = spot.excitation_error**2 * (spot.R0_eff - k)
    return (eff2 * (spot.R0_eff + k) + grown) / (2 * k * eff2) - 1


gaussian = Partiality(_gaussian_curve, _gaussian_blocks)  # blocks and spectrum are Gaussian
gaussian_peak = Partiality(_gaussian_curve, _gaussian_blocks, conserves=False)  # 1 on the sphere
# tails that fall as a power, as those of a distribution of block sizes or of a spectrum
lorentzian = Partiality(_lorentzian_curve, _lorentzian_blocks)


def debye_waller(B, norm_q) -> Array:
    """B_term = exp(−B/(4d²)), with 1/d = ``norm_q``, B in Å²."""
    return jnp.exp(-0.25 * B * norm_q**2)


def uncorrected(obs: SpotStatistics, scale: jax.Array) -> jax.Array:
    """The scale G·B_term·p (n, m) as it is: the default correction of a model."""
    return scale
