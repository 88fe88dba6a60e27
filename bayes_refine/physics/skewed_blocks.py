"""Mosaic blocks that are unevenly spread about their mean orientation (JAX).

Few blocks are no normal distribution, even about their own mean and covariance: the third cumulants
of N of them vary from crystal to crystal by about 1/√N.  With t_a the response of a relp along a to
the whitened rotation of a block (ω·(q×a) = u·t_a), κ the third cumulants of u, and κ_abc its
contraction with t_a, t_b, t_c, the partiality and the centroid change, to first order (Edgeworth's
series), by

    Δ ln p = κ_rrr/(6 R³)·D₃,
    Δ ε_i  = κ_irr/(2 R²)·D₂ − r_i κ_rrr/(12 R³)·(D₄ − D₁D₃),

where R = R0_eff, D_n = k⁽ⁿ⁾/k are derivatives of the partiality curve along x = ε_r/R, and r_i is
the slope of the centroid along e_i with x.  All spots of an image share these ten numbers: an
orientation that is found from spots goes wrong with them, however many the spots are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np

from .observations import Array

if TYPE_CHECKING:
    from .partiality import Partiality
    from .priors import Priors
    from .spot import Spot

# Of N points drawn from the unit normal the third cumulant κ_ijk has a variance of n/N, n the
# number of permutations of (i, j, k) that leave it as it is.
INDICES = tuple((i, j, k) for i in range(3) for j in range(i, 3) for k in range(j, 3))
N_CUMULANTS = len(INDICES)
_SHARED = {1: 6, 2: 2, 3: 1}  # by the number of different indices
_PLACE = np.zeros((3, 3, 3), int)
_SD = np.zeros(N_CUMULANTS)
for _n, _index in enumerate(INDICES):
    _SD[_n] = np.sqrt(_SHARED[len(set(_index))])
    for _i, _j, _k in np.ndindex(3, 3, 3):
        if tuple(sorted((_i, _j, _k))) == _index:
            _PLACE[_i, _j, _k] = _n


def even_blocks(priors: Priors) -> None:
    """No third cumulants, the default of a model: blocks are as a normal distribution is."""


def third_cumulants(numbers: Array) -> Array:
    """κ (..., 3, 3, 3) of ten numbers (..., 10), each N(0, 1/N) for N blocks."""
    return (numbers * _SD)[..., _PLACE]


def skewed(
    spot: Spot,
    slopes: tuple[Array, Array],
    response: Array,
    skewness: Array,
    partiality: Partiality,
) -> Spot:
    """The spot with blocks of third cumulants ``skewness`` (n, 3, 3, 3).

    Args:
        slopes: (n, m) r_i along e1 and e2. response: (n, 3, 3, m) t_a, a along ŝ, e1 and e2, Å⁻¹.
    """
    one, two, three, four = partiality.derivatives(spot)
    R = spot.R0_eff
    along = jnp.einsum("nijk,njm,nkm->nim", skewness, response[:, 0], response[:, 0])
    k_r, k_1, k_2 = (jnp.sum(along * response[:, a], 1) for a in range(3))
    turned = k_r / (12 * R**3) * (four - one * three)
    return spot._replace(
        log_tilt=k_r / (6 * R**3) * three,
        shift_1=spot.shift_1 + k_1 / (2 * R**2) * two - slopes[0] * turned,
        shift_2=spot.shift_2 + k_2 / (2 * R**2) * two - slopes[1] * turned,
    )


def tilted(p: Array, spot: Spot) -> Array:
    """Partialities (n, m) of even blocks as they are of skewed ones."""
    return p if spot.log_tilt is None else p * jnp.exp(spot.log_tilt)
