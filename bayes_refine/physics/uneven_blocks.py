"""Few mosaic blocks, which are unevenly spread about their mean orientation (JAX).

Scale the rotations of a crystal's blocks to coordinates u of mean 0 and covariance 1.  The density
of the blocks in u is a normal density times the series of Gram and Charlier,

    1 + Σ_α h_α He_α(u)/α!,   |α| = α_1 + α_2 + α_3 ≥ 3,

where He_α is a product of Hermite's polynomials.  Of N blocks, h_α varies from crystal to crystal
with variance α!/N, so that h_α = c_α √(α!) with c_α ~ N(0, 1/N).

A rotation ω moves a relp along a direction a by ω·(q×a) = u·t_a, which defines t_a.  Write R for
R0_eff, D_n = k⁽ⁿ⁾/k for the derivatives of the partiality curve along x = ε_r/R, r_i for the slope
of the centroid along e_i with x, and

    P_k(t) = Σ_{|α|=k} c_α t^α/√(α!).

Then partiality and centroid of a spot change by

    Δp/p = Σ_k P_k(t_r) D_k/R^k,
    Δε_i = Σ_k (t_i·∇)P_k(t_r) D_{k−1}/R^{k−1} − (r_i/2) P_k(t_r) (D_{k+1} − D_1 D_k)/R^k,

the centroid to first order in c.  All spots of an image share the numbers c, so that their effect
on the orientation does not average out, however many spots there are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from .observations import Array

if TYPE_CHECKING:
    from .partiality import Partiality
    from .priors import Priors
    from .spot import Spot

# Orders 1 and 2 are the mean and the covariance of the blocks, which the model has as unknowns.
# Orders 4 and 5 take ten times as long and make orientations and scales no better.
ORDERS = (3,)
POWERS = {k: [(i, j, k - i - j) for i in range(k + 1) for j in range(k + 1 - i)] for k in ORDERS}
N_COEFFICIENTS = sum(map(len, POWERS.values()))


def even_blocks(priors: Priors) -> None:
    """None, the default of a model: blocks are normally distributed and need no coefficients."""


def uneven(
    spot: Spot,
    slopes: tuple[Array, Array],
    response: Array,
    coefficients: Array,
    partiality: Partiality,
) -> Spot:
    """Change a spot of evenly spread blocks into that of blocks with coefficients c.

    Args:
        slopes: (n, m) r_i along e1 and e2.
        response: (n, 3, 3, m) t_a for a along ŝ, e1 and e2, Å⁻¹.
        coefficients: (n, N_COEFFICIENTS) c.
    """
    t = response / spot.R0_eff[:, None, None]
    curve = partiality.derivatives(spot, max(ORDERS) + 1)

    def of_orders(along):
        return polynomials(along, coefficients)

    P, *changes = (
        of_orders(t[:, 0]),
        *(jax.jvp(of_orders, (t[:, 0],), (t[:, a],))[1] for a in (1, 2)),
    )
    shifts = [spot.shift_1, spot.shift_2]
    more = jnp.zeros_like(spot.R0_eff)
    for n, k in enumerate(ORDERS):
        more = more + P[n] * curve[k]
        bent = 0.5 * P[n] * (curve[k + 1] - curve[1] * curve[k])
        for i in range(2):
            moved = spot.R0_eff * changes[i][n] * curve[k - 1] - slopes[i] * bent
            shifts[i] = shifts[i] + moved
    return spot._replace(more=more, shift_1=shifts[0], shift_2=shifts[1])


def polynomials(t: Array, coefficients: Array) -> Sequence[Array]:
    """P_k(t), (n, m), for each order k, of t (n, 3, m) and c (n, N_COEFFICIENTS)."""
    powers = [[jnp.ones_like(t[:, a])] for a in range(3)]
    for a in range(3):
        for _ in range(max(ORDERS)):
            powers[a].append(powers[a][-1] * t[:, a])
    found, first = [], 0
    for k in ORDERS:
        terms = []
        for i, j, l in POWERS[k]:  # noqa: E741
            size = math.sqrt(math.factorial(i) * math.factorial(j) * math.factorial(l))
            terms.append(powers[0][i] * powers[1][j] * powers[2][l] / size)
        c = coefficients[:, first : first + len(terms)]
        found.append(jnp.einsum("nt,ntm->nm", c, jnp.stack(terms, 1)))
        first += len(terms)
    return found


def of_uneven(p: Array, spot: Spot) -> Array:
    """p·(1 + Δp/p), (n, m), of p for evenly spread blocks; p where the spot has no Δp/p."""
    return p if spot.more is None else p * (1 + spot.more)


def hermite_ratios(x: Array, order: int) -> list[Array]:
    """D_n of exp(−x²) for n = 0 … ``order``: its n-th derivative over exp(−x²) itself."""
    found = [jnp.ones_like(x), -2 * x]
    for n in range(1, order):
        found.append(-2 * x * found[n] - 2 * n * found[n - 1])
    return found[: order + 1]
