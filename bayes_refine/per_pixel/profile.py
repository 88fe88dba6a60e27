"""A Gaussian spot integrated over the pixels of its shoebox, and its derivatives (JAX).

The integral is that of ``measuring.template``, with which a test compares it.  There it is taken
once for each spot, with second derivatives; here at every step of a fit, and so with fewer
exponentials.  A spot is (J, c_x, c_y, C_xx, C_yy, C_xy): photons, centre (px), second moment (px²),

    μ_p = Bg + J P_p,    P_p = ∫_pixel N(x; c, C) dx.

With d from the centre to the middle of the pixel and n a node of the quadrature,
exp(−½(d+n)ᵀC⁻¹(d+n)) = exp(−½dᵀC⁻¹d) · exp(−a_x n_x) · exp(−a_y n_y) · (of the reflection alone),
a = C⁻¹d: a handful of exponentials a pixel instead of one a node.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array | np.ndarray
N_SPOT = 6  # numbers that a spot is


def nodes_for_width(R1_px: float) -> int:
    """Gauss–Legendre nodes across a pixel: 3 are good to 1e-3 of the peak from 0.65 px on,
    4 from 0.45 px on.
    """
    return 3 if R1_px > 0.65 else 4


def photons(offset: Array, spot: Array, background: Array, nodes: int) -> Array:
    """Expected photons μ of the pixels at ``offset``.

    Args:
        offset: (K, 2) px, middle of a pixel from that of the box's middle pixel.
        spot: (n, 6, m); background: (n, K, m) photons. nodes: across a pixel.

    Returns:
        (n, K, m).
    """

    def of_pixel(at):
        return spot[:, 0] * _integrals(at, spot, nodes, 0)[0]

    return background + jnp.moveaxis(jax.vmap(of_pixel)(jnp.asarray(offset)), 0, 1)


def template_and_slopes(offset: Array, spot: Array, nodes: int) -> list[Array]:
    """P of one pixel and its derivatives along c_x, c_y, C_xx, C_yy, C_xy, each (n, m).

    ∂P/∂c = C⁻¹⟨d+n⟩ and ∂P/∂C = ½(C⁻¹⟨(d+n)(d+n)ᵀ⟩C⁻¹ − C⁻¹P), ⟨·⟩ over the pixel.

    Args:
        offset: (2,) px. spot: (n, 6, m). nodes: across a pixel.
    """
    P, s_x, s_y, s_xx, s_yy, s_xy = _integrals(offset, spot, nodes, 2)
    d_x, d_y = offset[0] - spot[:, 1], offset[1] - spot[:, 2]
    i_xx, i_yy, i_xy, _ = _inverse(spot)
    m_x, m_y = d_x * P + s_x, d_y * P + s_y
    q_xx, q_yy = d_x * (m_x + s_x) + s_xx, d_y * (m_y + s_y) + s_yy
    q_xy = d_x * m_y + d_y * s_x + s_xy
    a, b = i_xx * q_xx + i_xy * q_xy, i_xx * q_xy + i_xy * q_yy
    c, d = i_xy * q_xx + i_yy * q_xy, i_xy * q_xy + i_yy * q_yy
    return [
        P,
        i_xx * m_x + i_xy * m_y,
        i_xy * m_x + i_yy * m_y,
        0.5 * (a * i_xx + b * i_xy - i_xx * P),
        0.5 * (c * i_xy + d * i_yy - i_yy * P),
        a * i_xy + b * i_yy - i_xy * P,
    ]


def _inverse(spot):
    """C⁻¹ (xx, yy, xy) and |C|."""
    det = spot[:, 3] * spot[:, 4] - spot[:, 5] ** 2
    return spot[:, 4] / det, spot[:, 3] / det, -spot[:, 5] / det, det


def _integrals(offset, spot, nodes: int, order: int):
    """∫_pixel N, and for order 2 of N times n_x, n_y, n_x², n_y², n_x n_y: each (n, m)."""
    i_xx, i_yy, i_xy, det = _inverse(spot)
    d_x, d_y = offset[0] - spot[:, 1], offset[1] - spot[:, 2]
    a_x, a_y = i_xx * d_x + i_xy * d_y, i_xy * d_x + i_yy * d_y
    peak = jnp.exp(-0.5 * (d_x * a_x + d_y * a_y)) / (2 * jnp.pi * jnp.sqrt(det))
    at, weight = np.polynomial.legendre.leggauss(nodes)
    at, weight = at / 2, weight / 2
    along_x, along_y = (_exponentials(a, at) for a in (a_x, a_y))
    total: dict[tuple[int, int], jax.Array] = {}
    for x, w_x, e_x in zip(at, weight, along_x, strict=True):
        rows: list[jax.Array | float] = [0.0] * (order + 1)
        for y, w_y, e_y in zip(at, weight, along_y, strict=True):
            bend = jnp.exp(-0.5 * (i_xx * x**2 + i_yy * y**2) - i_xy * x * y)
            term = float(w_x * w_y) * bend * e_y
            rows = [row + float(y**q) * term for q, row in enumerate(rows)]
        for p in range(order + 1):
            for q in range(order + 1 - p):
                total[p, q] = total.get((p, q), 0.0) + float(x**p) * e_x * rows[q]
    powers = [(0, 0), (1, 0), (0, 1), (2, 0), (0, 2), (1, 1)][: 1 if order == 0 else 6]
    return [peak * total[power] for power in powers]


def _exponentials(a, at):
    """exp(−a·n) for nodes n that are symmetric about zero: half of them are reciprocals.

    Bounded so that two of them times a peak of zero, far out on a very narrow spot, are zero.
    """
    bound = 0.4 * float(np.log(np.finfo(a.dtype).max))
    low = [jnp.exp(jnp.clip(-a * float(n), -bound, bound)) for n in at[: len(at) // 2]]
    middle = [jnp.ones_like(a)] * (len(at) % 2)
    return [*low, *middle, *(1 / e for e in reversed(low))]
