"""A learned profile: how the photons of a spot are spread over its pixels.

    P(x) = Σ_j s_j N(x − x_j + x̄; 0, M),   s = softmax(prior + SCALE·(b_0 + b_x·x/h + b_y·y/h))

is a sum of copies of the spot's core at nodes x_j, which lie on whole pixels about half a spot's
width apart.  x and y, the place on the detector over its half size h, run from −1 to 1; so the
shares have three sets of numbers, a mean and its changes along both directions.  All shares are
positive.  x̄ = Σ_j s_j x_j puts the mean of P at the spot's centre, so that the detector's place
keeps its meaning.  R1 is the width of the core; the nodes add the rest of the spot's second moment.
"""

from __future__ import annotations

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ..measuring.point_spread import Nodes
from ..physics import Array
from .factor import Frame

SCALE = 2.0  # prior sd of the ln odds of a node against the core
BESIDE = 0.02  # prior median of the share of all nodes but the core
NONE = -30.0  # value of ``mean`` at which the core has all photons
REACH = 2.9  # distance of the farthest node from the core, in node distances: 25 nodes


class Profile(eqx.Module):
    """Shares of nodes; every number has prior mean 0 and prior sd 1.

    Attributes:
        mean: (J − 1,) b_0 of the nodes beside the core.
        change: (2, J − 1) b_x and b_y, the changes of b_0 along x and y of the detector.
        nodes: (x, y) px, the core first.
        core_px: sd along x or y of the core of the spots that trained the profile, px.
        frame: scales of places on the detector.
    """

    mean: jax.Array
    change: jax.Array
    nodes: Nodes = eqx.field(static=True)
    core_px: float = eqx.field(static=True)
    frame: Frame = eqx.field(static=True)

    needs_metadata: ClassVar[bool] = False
    rate: ClassVar[float] = 0.15  # of Adam

    def shares(self, x_mm: Array, y_mm: Array) -> jax.Array:
        """(n, J) shares at places (n,) in the lab frame, mm."""
        frame, beside = self.frame, len(self.nodes) - 1
        place = jnp.stack([(x_mm - frame.x_mm), (y_mm - frame.y_mm)], -1) / frame.half_mm
        odds = SCALE * (self.mean + jnp.clip(place, -1.5, 1.5) @ self.change)
        odds += np.log(BESIDE / beside)
        return jax.nn.softmax(jnp.concatenate([jnp.zeros((len(odds), 1)), odds], -1))

    @property
    def trace_px2(self) -> float:
        """Trace of the second moment that a spot in the middle of the detector gains, px²."""
        return float(self.moments_px2()[:2].sum())

    def moments_px2(self) -> np.ndarray:
        """(3,) xx, yy and xy of the second moment that a spot in the middle of the detector gains,
        px²."""
        at = np.asarray(self.nodes, float)
        frame = self.frame
        share = np.asarray(self.shares(np.array([frame.x_mm]), np.array([frame.y_mm])))[0]
        dx, dy = (at - share @ at).T
        return np.array([share @ dx**2, share @ dy**2, share @ (dx * dy)])

    def density(self, x_px: Array, y_px: Array, x_mm: float, y_mm: float) -> jax.Array:
        """P, px⁻², at distances (any shape, px) from the centre of a spot at a place (mm)."""
        at = jnp.asarray(self.nodes, float)
        share = self.shares(jnp.array([x_mm]), jnp.array([y_mm]))[0]
        at = at - share @ at
        r2 = (x_px[..., None] - at[:, 0]) ** 2 + (y_px[..., None] - at[:, 1]) ** 2
        square = self.core_px**2
        return jnp.exp(-0.5 * r2 / square) @ share / (2 * np.pi * square)

    def pieces(self) -> dict[str, Any]:
        """The arguments of a model that this component replaces: none, since the profile acts on
        the pixels, when the statistics are measured."""
        return {}

    def log_prior(self) -> jax.Array:
        """ln p of the numbers, up to a constant."""
        return -0.5 * (jnp.sum(self.mean**2) + jnp.sum(self.change**2))

    def plain(self) -> Profile:
        """The module of the Gaussian profile, which is the plain model."""
        one = jnp.ones_like(self.mean)
        return Profile(NONE * one, 0 * self.change, self.nodes, self.core_px, self.frame)

    @classmethod
    def start(cls, key: jax.Array, nodes: Nodes, core_px: float, frame: Frame) -> Profile:
        """A profile to begin training with, drawn narrowly about the prior mean."""
        draw = 0.1 * jax.random.normal(key, (3, len(nodes) - 1))
        return cls(draw[0], draw[1:], nodes, core_px, frame)


def nodes_for(core_px: float) -> Nodes:
    """Nodes for spots of sd ``core_px``: on whole pixels, 1.4 sd apart, but at least one pixel."""
    apart = max(1, int(1.4 * core_px))
    most = int(REACH)
    places = [(x, y) for y in range(-most, most + 1) for x in range(-most, most + 1)]
    near = sorted((p for p in places if np.hypot(*p) <= REACH), key=lambda p: np.hypot(*p))
    return tuple((apart * x, apart * y) for x, y in near)
