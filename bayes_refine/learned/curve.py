"""A learned partiality: a mixture of Gaussian-like peaks in x = ε_r/R0_eff.

    k(x) = Σ_j w_j exp(−v_j e^{−a_j tanh u_j}),   u_j = x/s_j,   s_1 = 1 < s_2 < s_3,   Σ w_j = 1,
    v_1 = u² ((u² + ½)/(3/2))^b,   v_2 = u_2²,   v_3 = u_3².

Each term falls on both sides of x = 0 where |a_j| < 4.4 and b > −½; here |a_j| < 2 and b > −0.4.
So k is positive, ln k(0) = 0, and its only maximum is at x = 0, whatever the weights are.  b > 0
makes the core blunter than a Gaussian, as a few blocks beside each other do.  s_1 = 1 keeps the
meaning of R0_eff, the width of the core; the maximum at 0 keeps the meaning of the orientation.
Each image may have its own log odds of both wider terms, about those of the run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ..physics import Array, Partiality, Spot
from ..physics.partiality import MAX_POWER

FARTHEST = 4.0  # |x| of reflections that teach the curve
TAIL = -3.0  # prior median of the ln odds of a wider term against the core
NONE = -30.0  # value of ``odds`` at which nothing of the wider terms is left


@dataclass(frozen=True)
class OfEachImage(Partiality):
    """A curve with two unknowns in each image, the site ``curve_shape``, each N(0, 1) a priori.

    ``log_curve`` and ``block_variance`` take these numbers, (n, 1, 2), as their second argument.
    """

    log_curve: Callable[..., Array]
    block_variance: Callable[..., Array]

    def of_images(self, normal: Callable[..., Array]) -> Partiality:
        """The curves of n images whose numbers are sampled."""
        shape = normal("curve_shape", 0.0, 1.0, 2)
        return Partiality(
            lambda x: self.log_curve(x, shape), lambda spot: self.block_variance(spot, shape)
        )


class Curve(eqx.Module):
    """ln k of three terms; every number has prior mean 0 and prior sd 1.

    Attributes:
        odds: (2,) log odds of the wider terms against the core. growth: (2,) how much wider each
            term is than the one before. skew: (3,) asymmetry of each term. blunt: () of the core.
        own: sd of an image's odds about the run's, over the prior sd of the run's; 0 for one curve
            that all images share.
    """

    odds: jax.Array
    growth: jax.Array
    skew: jax.Array
    blunt: jax.Array
    own: float = eqx.field(static=True, default=0.0)

    needs_metadata: ClassVar[bool] = False
    rate: ClassVar[float] = 0.06  # of Adam
    SIZE: ClassVar[int] = 8  # numbers

    def log_curve(self, x: Array, shape: Array | None = None) -> jax.Array:
        """ln k of x (any shape) of the run, or of images with numbers ``shape`` (n, 1, 2)."""
        odds = TAIL + 2 * (self.odds if shape is None else self.odds + self.own * shape)
        core = jnp.zeros((*odds.shape[:-1], 1))
        log_weight = jax.nn.log_softmax(jnp.concatenate([core, odds], -1))
        growth = jnp.log1p(jnp.exp(0.7 * self.growth))
        log_width = jnp.concatenate([jnp.zeros(1), jnp.cumsum(growth)])
        u = x[..., None] * jnp.exp(-log_width)
        skew = 2 * jnp.tanh(0.25 * self.skew)
        # −0.4 to 1, and 0 at 0
        power = 1.4 * jax.nn.sigmoid(0.9 * self.blunt - np.log(2.5)) - 0.4
        flat = jnp.exp(power * jnp.log((u[..., :1] ** 2 + 0.5) / 1.5))
        fall = u**2 * jnp.exp(-skew * jnp.tanh(u))
        fall = jnp.concatenate([flat * fall[..., :1], fall[..., 1:]], -1)
        return jax.nn.logsumexp(log_weight - fall, axis=-1)

    def block_variance(self, spot: Spot, shape: Array | None = None) -> Array:
        """Relative variance of p by one block: that of Gaussian blocks where k is as low as theirs,
        at x² = −ln k."""
        below = -self.log_curve(spot.excitation_error / spot.R0_eff, shape)
        eff2 = spot.R0_eff**2
        k2, twice = eff2 - spot.mosaic2, eff2 + spot.mosaic2
        power = jnp.minimum(2 * below * (1 - eff2 / twice), MAX_POWER)
        return eff2 / jnp.sqrt(k2 * twice) * jnp.exp(power) - 1

    def pieces(self) -> dict[str, Any]:
        """The arguments of a model that this component replaces."""
        if self.own > 0:
            return {"partiality": OfEachImage(self.log_curve, self.block_variance)}
        return {"partiality": Partiality(self.log_curve, self.block_variance)}

    def log_prior(self) -> jax.Array:
        """ln p of the numbers, up to a constant."""
        numbers = jnp.concatenate([self.odds, self.growth, self.skew, self.blunt[None]])
        return -0.5 * jnp.sum(numbers**2)

    def plain(self) -> Curve:
        """The module of the Gaussian curve, which is the plain model."""
        return Curve(NONE * jnp.ones(2), jnp.zeros(2), jnp.zeros(3), jnp.zeros(()), self.own)

    @classmethod
    def start(cls, key: jax.Array, own: float = 0.0) -> Curve:
        """A curve to begin training with, drawn narrowly about the prior mean."""
        return cls.of(0.2 * jax.random.normal(key, (cls.SIZE,)), own)

    @classmethod
    def of(cls, numbers: jax.Array, own: float = 0.0) -> Curve:
        """The curve of (8,) numbers: odds, growth, skew, blunt."""
        return cls(numbers[:2], numbers[2:4], numbers[4:7], numbers[7], own)

    def width(self) -> jax.Array:
        """x at which ln k, averaged over both sides, is −1; 1 for a Gaussian."""
        low, high = jnp.zeros(()), 20.0 * jnp.ones(())
        for _ in range(40):
            middle = (low + high) / 2
            above = self.log_curve(middle) + self.log_curve(-middle) > -2
            low, high = jnp.where(above, middle, low), jnp.where(above, high, middle)
        return low

    def shape(self, x: Array) -> jax.Array:
        """ln k of x in units of :meth:`width`, so that curves of runs with other R0 compare."""
        return self.log_curve(x * self.width())

    def reach(self) -> float:
        """|x|, from 2.4 to ``FARTHEST``, beyond which k < exp(−2.4²), a Gaussian's at 2.4."""
        x = jnp.linspace(2.4, FARTHEST, 65)
        low = jnp.maximum(self.log_curve(x), self.log_curve(-x)) < -(2.4**2)
        return float(x[jnp.argmax(low)]) if bool(low.any()) else FARTHEST
