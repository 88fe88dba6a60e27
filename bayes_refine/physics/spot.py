"""Where a reflection is and how wide its spot: the Gaussian reciprocal-lattice point (JAX).

The reciprocal-lattice point is a three-dimensional Gaussian.  With r along ŝ and 1, 2 along
e1, e2 (``Predictions``), in the exp(−x²/R²) convention,

    Σ = R0² r̂r̂ᵀ + R1² (1 − r̂r̂ᵀ)                    size of the blocks, beam, point spread
      + m² (t tᵀ + e2 e2ᵀ),  t = (cosθ, −sinθ, 0)     mosaic spread, m = η|q|, the same about
                                                      all axes; else (q×a)ᵀ C (q×b) along a and b
      + R_bw² w wᵀ,          w = (1, cotθ, 0)·∓       bandwidth, R_bw = bλ/(√2 d²)

The marginal of this Gaussian along r is the partiality; its conditional given ε_r is the spot, with
a mean that moves with ε_r along e1 (and e2) and a second moment.  A partiality curve that is not
Gaussian stands for blocks (the part along r alone) of another shape, smeared by the same
Gaussians.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from .observations import Array, SpotStatistics
from .sweeps import root_of_blocks
from .uneven_blocks import uneven


class Place(NamedTuple):
    """Where the geometry puts a reflection: arrays (n, m), Å⁻¹.

    Attributes:
        excitation_error: ε_r. shift_1, shift_2: predicted centre less the one at the current state
            (``SpotStatistics``), along e1 and e2.
    """

    excitation_error: Array
    shift_1: Array
    shift_2: Array


class Spot(NamedTuple):
    """Where a reflection is and how wide: arrays (n, m), Å⁻¹ and Å⁻².

    Attributes:
        excitation_error: ε_r. R0_eff: width of the partiality curve.
        shift_1, shift_2: centroid less the predicted centre at the current state.
        m11, m22, m12: second moment. mosaic2: the part of R0_eff² that is mosaic spread.
        swept: half of the path of a relp along ŝ while the crystal turns; 0 for a still.
        log_curve: ln k averaged over the turn; None for a still.
        more: Δp/p by unevenly spread blocks; None where blocks are evenly spread.
    """

    excitation_error: Array
    R0_eff: Array
    shift_1: Array
    shift_2: Array
    m11: Array
    m22: Array
    m12: Array
    mosaic2: Array | float = 0.0
    swept: Array | float = 0.0
    log_curve: Array | None = None
    more: Array | None = None


def rotation_matrix_mrad(rotation_mrad: Array) -> Array:
    """exp([ω]×), (..., 3, 3), of rotation vectors (..., 3) in mrad, differentiable at zero."""
    w = rotation_mrad * 1e-3
    zero = jnp.zeros_like(w[..., 0])
    rows = [
        [zero, -w[..., 2], w[..., 1]],
        [w[..., 2], zero, -w[..., 0]],
        [-w[..., 1], w[..., 0], zero],
    ]
    K = jnp.stack([jnp.stack(row, -1) for row in rows], -2)
    angle2 = jnp.sum(w * w, -1)[..., None, None]
    # series of sinx/x and (1−cosx)/x²: below 1e-12 for angles of a refinement (< 0.1 rad)
    a = 1 - angle2 / 6 * (1 - angle2 / 20 * (1 - angle2 / 42))
    b = 0.5 * (1 - angle2 / 12 * (1 - angle2 / 30 * (1 - angle2 / 56)))
    return jnp.eye(3, dtype=w.dtype) + a * K + b * (K @ K)


def crystal_setting(strain_basis: Array, rotation_mrad: Array, strain: Array) -> Array:
    """exp([ω]×)(1 + Σ e_k E_k), (n, 3, 3); rotation (n, 3) mrad, strain (n, K)."""
    stretch = jnp.eye(3) + jnp.einsum("nk,nkij->nij", strain, strain_basis)
    return rotation_matrix_mrad(rotation_mrad) @ stretch


def place_on_detector(
    obs: SpotStatistics,
    rotation_mrad,
    strain,
    shift_mm,
    panels: Array | None = None,
    log_wavelength: Array | None = None,
) -> Place:
    """ε_r, and how far the predicted centre is from the one at the current state.

    Args:
        rotation_mrad: (n, 3) and strain (n, K): about the crystal as indexed.
        shift_mm: (3,) beam centre x, y and distance about nominal.
        panels: (g, 3) moves of groups of panels, px and mrad; None where panels stay in place.
        log_wavelength: (n, 1) ln λ (Å) of each shot; None where λ is that of the current state.
    """
    change = crystal_setting(obs.strain_basis, rotation_mrad, strain) - obs.current_setting
    dq = change @ obs.q  # (n, 3, m)
    longer: Array | float = 0.0  # change of the wavevector's length
    if log_wavelength is not None:
        longer = jnp.exp(-log_wavelength) - obs.wavevector
        dq = dq + longer[:, :, None] * _beam_direction(obs)
    length = obs.wavevector + obs.excitation_error
    gained = 2 * length * jnp.sum(obs.s_hat * dq, 1) + jnp.sum(dq * dq, 1)
    excitation = obs.excitation_error + gained / (length + jnp.sqrt(length**2 + gained))
    if log_wavelength is not None:
        excitation = excitation - longer
    moved = jnp.sum(obs.detector_axes * (shift_mm - obs.current_shift)[:, None, :, None], 2)
    if panels is not None:
        moved += _of_panels(obs, panels)
    scale = obs.wavevector / length
    shift_1 = jnp.sum(obs.e1 * dq, 1) * scale - moved[:, 0]
    shift_2 = jnp.sum(obs.e2 * dq, 1) * scale - moved[:, 1]
    return Place(excitation, shift_1, shift_2)


def _beam_direction(obs: SpotStatistics) -> Array:
    """(n, 3, m) unit vector of the beam: ŝ cos2θ − e1 sin2θ, with the angle of each ray."""
    sin_2theta = 2 * obs.sin_theta * obs.cos_theta
    return (1 - 2 * obs.sin_theta**2)[:, None] * obs.s_hat - sin_2theta[:, None] * obs.e1


def _of_panels(obs: SpotStatistics, panels: Array) -> Array:
    """(n, 2, m) change of (ε_1, ε_2) at a fixed pixel as groups of panels move from the current
    state to (g, 3), Å⁻¹."""
    assert not (obs.panel_group is None or obs.panel_axes is None or obs.current_panels is None)
    on = jax.nn.one_hot(obs.panel_group, len(panels), axis=1)  # its derivatives are cheap
    change = jnp.einsum("ngk,ngm->nkm", panels - obs.current_panels, on)
    return jnp.sum(obs.panel_axes * change[:, None], 2)


def bandwidth_width(obs: SpotStatistics, bandwidth: Array | float) -> Array:
    """R_bw = bλ/(√2 d²), (n, m), Å⁻¹, for an rms bandwidth b."""
    return bandwidth * obs.norm_q**2 / (jnp.sqrt(2.0) * obs.wavevector)


def smeared_spot(
    obs: SpotStatistics,
    place: Place,
    R0,
    bandwidth,
    mosaic_mrad2,
    R1_moment,
    partiality,
    uneven_blocks: Array | None = None,
) -> Spot:
    """Marginal and conditional of the reciprocal-lattice point (relp; module docstring).

    Blocks turned by ω move a relp by ω×q, along a by ω·(q×a).

    Args:
        R0: Å⁻¹; bandwidth: rms fraction; mosaic_mrad2: (n, 3, 3) twice the covariance of the
            blocks' rotations, mrad²: η² for the same spread about all axes; R1_moment: (M11,
            M22, M12) of the spot without mosaic spread and bandwidth, broadcastable to (n, m),
            Å⁻²: R1²/2, R1²/2, 0 for round spots.
        partiality: ``partiality.Partiality``, which gives how far a spot moves with ε_r, how much
            narrower the spot is than the smear, and the spot over the turn of an exposure.
        uneven_blocks: (n, N_COEFFICIENTS) coefficients (module :mod:`uneven_blocks`); None for
            evenly spread blocks.
    """
    q = obs.current_setting @ obs.q
    turned = jnp.stack([jnp.cross(q, a, axis=1) for a in (obs.s_hat, obs.e1, obs.e2)], 1) * 1e-3
    m = jnp.einsum("naim,nij,nbjm->nabm", turned, mosaic_mrad2, turned)  # twice the covariance
    bw2 = bandwidth_width(obs, bandwidth) ** 2
    cot = obs.cos_theta / obs.sin_theta
    R0_eff = jnp.sqrt(R0**2 + m[:, 0, 0] + bw2)
    # slopes with ε_r, in R0_eff, less the covariance with r: Δ_r = −ε_r
    r1, r2 = (-m[:, 0, 1] - bw2 * cot) / R0_eff, -m[:, 0, 2] / R0_eff
    x = place.excitation_error / R0_eff
    moved, narrower = partiality.displacement(x), partiality.narrowing(x)
    spot = Spot(
        excitation_error=place.excitation_error,
        R0_eff=R0_eff,
        shift_1=place.shift_1 + r1 * moved,
        shift_2=place.shift_2 + r2 * moved,
        m11=R1_moment[0] + 0.5 * (m[:, 1, 1] + bw2 * cot**2 - r1**2 * narrower),
        m22=R1_moment[1] + 0.5 * (m[:, 2, 2] - r2**2 * narrower),
        m12=R1_moment[2] + 0.5 * (m[:, 1, 2] - r1 * r2 * narrower),
        mosaic2=m[:, 0, 0],
    )
    spot = partiality.exposed(spot, (r1, r2), obs.half_turn)
    if uneven_blocks is None:
        return spot
    root = root_of_blocks(obs, mosaic_mrad2 / 2)
    response = jnp.einsum("nji,najm->naim", root, turned)
    return uneven(spot, (r1, r2), response, uneven_blocks, partiality)


def mosaic_covariance(mosaic_mrad, shape) -> Array:
    """η²·LLᵀ (n, 3, 3), mrad², of η (n,) and five numbers (n, 5), L lower triangular, det L = 1.

    Five zeros are the same spread about all axes.  The covariance of a few blocks, drawn from a
    wide distribution with one η, varies as Wishart's distribution does: ln L_ii with an sd of
    1/√(2·blocks), the other elements with √2 times that.
    """
    d1, d2 = shape[:, 0], shape[:, 1]
    zero = jnp.zeros_like(d1)
    a, b, c = jnp.sqrt(2.0) * shape[:, 2:].T
    rows = [[jnp.exp(d1), zero, zero], [a, jnp.exp(d2), zero], [b, c, jnp.exp(-d1 - d2)]]
    lower = mosaic_mrad[:, None, None] * jnp.stack([jnp.stack(row, -1) for row in rows], -2)
    return lower @ jnp.swapaxes(lower, 1, 2)
