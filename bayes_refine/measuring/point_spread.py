"""How photons of a Gaussian spot land on the pixels beside it: the template's seam (JAX).

    P(x) = Σ_j s_j N(x − x_j + x̄; 0, M),   s_j ≥ 0,  Σ_j s_j = 1,  x̄ = Σ_j s_j x_j

with shares s_j of nodes x_j that are whole pixels apart: each term is the Gaussian template of
:mod:`.template`, read some pixels further on.  The centre of the spot is its mean, as before; M is
the second moment of the Gaussian alone.  As P is linear in the Gaussian, its derivatives along
centre and shape, and the bend that saturation is made of, are the same sums.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from .template import template_gradient_bend

Nodes = tuple[tuple[int, int], ...]  # (x, y) px


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Shares:
    """Of the photons of n spots, shares (n, J) on J nodes."""

    shares: jax.Array | np.ndarray
    nodes: Nodes = field(metadata={"static": True})


class PointSpread(Protocol):
    """A point spread that depends on the place on the detector."""

    @property
    def nodes(self) -> Nodes:
        """J nodes (x, y), px along the panel's axes."""

    @property
    def trace_px2(self) -> float:
        """Trace of the second moment that a spot in the middle of the detector gains, px²."""

    def shares(self, x_mm: np.ndarray, y_mm: np.ndarray) -> jax.Array:
        """(n, J) shares at places in the lab frame."""


def spread_template(centre, frame, moment, width, offsets, nodes: Nodes, shares):
    """As ``template_gradient_bend``, of spots whose photons are spread over nodes.

    Args:
        offsets: (K, 2) NumPy array of whole px. shares: (n, J).
    """
    wide, place = wider(offsets, nodes)
    away = shares @ jnp.asarray(nodes, shares.dtype)
    parts = template_gradient_bend(
        centre - away, frame, moment, width, jnp.asarray(wide, frame.dtype)
    )
    template, gradient, bend = (
        summed(part, shares, place) for part in (parts[0], parts[1], parts[3])
    )
    at = jnp.asarray(offsets, frame.dtype)[None] - centre[:, None]
    f = frame / width[:, None, None]
    u1, u2 = (jnp.einsum("na,nka->nk", f[:, i], at) for i in (0, 1))
    moments = jnp.stack([u1, u2, (u1**2 + u2**2) / 2, (u1**2 - u2**2) / 2, u1 * u2], axis=1)
    return template, gradient, moments, bend


def wider(offsets: np.ndarray, nodes: Nodes) -> tuple[np.ndarray, np.ndarray]:
    """The pixels (K', 2) that pixels (K, 2) are reached from, and the places (J, K) of pixel less
    node among them."""
    from_ = (offsets[None].astype(int) - np.asarray(nodes)[:, None]).reshape(-1, 2)
    wide, place = np.unique(from_, axis=0, return_inverse=True)
    return wide, place.reshape(len(nodes), len(offsets))


def summed(values, shares, place):
    """Σ_j s_j of values (n, ..., K') at the places (J, K): (n, ..., K)."""
    weight = shares.reshape(len(shares), *[1] * (values.ndim - 2), -1)

    def more(total, one):
        share, k = one
        return total + share * values[..., k], None

    start = jnp.zeros((*values.shape[:-1], place.shape[1]), values.dtype)
    rows = jnp.moveaxis(weight, -1, 0)[..., None], jnp.asarray(place)
    return jax.lax.scan(jax.checkpoint(more), start, rows)[0]
