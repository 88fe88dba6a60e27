"""The physics a model is written in: partiality, B, J_model, expected statistics (JAX).

The reciprocal-lattice point is a three-dimensional Gaussian.  With r along ŝ and 1, 2 along
e1, e2 (``Predictions``), in the exp(−x²/R²) convention,

    Σ = R0² r̂r̂ᵀ + R1² (1 − r̂r̂ᵀ)                    size of the blocks, beam, point spread
      + m² (t tᵀ + e2 e2ᵀ),  t = (cosθ, −sinθ, 0)     mosaic spread, m = η|q|, the same about
                                                      all axes; else (q×a)ᵀ C (q×b) along a and b
      + R_bw² w wᵀ,          w = (1, cotθ, 0)·∓       bandwidth, R_bw = bλ/(√2 d²)

Its marginal along r is the partiality, its conditional given ε_r the spot: a mean that moves
with ε_r along e1 (and e2), and a second moment.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array | np.ndarray


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Observations:
    """What a model is conditioned on: n images, up to m reflections each, padded.

    Reflections are the last axis throughout, so that arithmetic on them is contiguous.

    Attributes:
        fit: (n, m) bool, reflections that inform the fit (padding and the free set do not).
        statistics: (n, 6, m) frozen T_k; response (n, 6, 6, m); variance_background,
            variance_signal (n, 6, m); width, saturation (n, m): as ``measure.Statistics``.
        pilot_moment: (n, 3, m) second moment of the template, Å⁻².
        intensity_reference: (n, m) polarisation × I_ref; reference_error: (n, m) its relative sd.
        norm_q (n, m): 1/d, Å⁻¹; sin_theta, cos_theta (n, m); e1, e2, s_hat (n, 3, m).
        q: (n, 3, m) A as indexed times h, Å⁻¹. excitation_error: (n, m) at the pilot, Å⁻¹.
        detector_axes: (n, 2, 3, m) change of (ε_1, ε_2) at a fixed pixel, Å⁻¹ per mm of beam
            centre x, beam centre y and distance.
        azimuth: (n, 2, m) cos and sin of the angle from the panel's fast axis to e1.
        wavevector: (n, 1) 1/λ, Å⁻¹; bandwidth: rms fraction that the run is expected to have.
        strain_basis: (n, K, 3, 3); pilot_setting (n, 3, 3): exp([ω]×)(1+E) at the pilot;
        pilot_shift: (n, 3) beam centre x, y and distance at the pilot, mm.
        log_G0: ln of the run's first estimate of G.
        pixel_inv_angstrom: median size of a pixel in ε_t, Å⁻¹.
    """

    fit: Array
    statistics: Array
    response: Array
    variance_background: Array
    variance_signal: Array
    width: Array
    saturation: Array
    pilot_moment: Array
    intensity_reference: Array
    reference_error: Array
    norm_q: Array
    sin_theta: Array
    cos_theta: Array
    e1: Array
    e2: Array
    s_hat: Array
    q: Array
    excitation_error: Array
    detector_axes: Array
    azimuth: Array
    wavevector: Array
    bandwidth: Array
    strain_basis: Array
    pilot_setting: Array
    pilot_shift: Array
    log_G0: Array
    pixel_inv_angstrom: Array


class Spot(NamedTuple):
    """Where a reflection is and how wide: arrays (n, m), Å⁻¹ and Å⁻².

    Attributes:
        excitation_error: ε_r. R0_eff: width of the partiality curve.
        shift_1, shift_2: centroid from the pilot centre. m11, m22, m12: second moment.
    """

    excitation_error: Array
    R0_eff: Array
    shift_1: Array
    shift_2: Array
    m11: Array
    m22: Array
    m12: Array


def rotation(rotation_mrad: Array) -> Array:
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


def setting(strain_basis: Array, rotation_mrad: Array, strain: Array) -> Array:
    """exp([ω]×)(1 + Σ e_k E_k), (n, 3, 3); rotation (n, 3) mrad, strain (n, K)."""
    stretch = jnp.eye(3) + jnp.einsum("nk,nkij->nij", strain, strain_basis)
    return rotation(rotation_mrad) @ stretch


def geometry(obs: Observations, rotation_mrad, strain, shift_mm) -> tuple[Array, Array, Array]:
    """ε_r and the predicted centre's shift from the pilot centre along e1 and e2, each (n, m), Å⁻¹.

    Args:
        rotation_mrad: (n, 3) and strain (n, K): about the crystal as indexed.
        shift_mm: (3,) beam centre x, y and distance about nominal.
    """
    change = setting(obs.strain_basis, rotation_mrad, strain) - obs.pilot_setting
    dq = change @ obs.q  # (n, 3, m)
    length = obs.wavevector + obs.excitation_error
    gained = 2 * length * jnp.sum(obs.s_hat * dq, 1) + jnp.sum(dq * dq, 1)
    excitation = obs.excitation_error + gained / (length + jnp.sqrt(length**2 + gained))
    moved = jnp.sum(obs.detector_axes * (shift_mm - obs.pilot_shift)[:, None, :, None], 2)
    scale = obs.wavevector / length
    shift_1 = jnp.sum(obs.e1 * dq, 1) * scale - moved[:, 0]
    shift_2 = jnp.sum(obs.e2 * dq, 1) * scale - moved[:, 1]
    return excitation, shift_1, shift_2


def bandwidth_width(obs: Observations, bandwidth: Array | float) -> Array:
    """R_bw = bλ/(√2 d²), (n, m), Å⁻¹, for an rms bandwidth b."""
    return bandwidth * obs.norm_q**2 / (jnp.sqrt(2.0) * obs.wavevector)


def spot(
    obs: Observations, rotation_mrad, strain, shift_mm, R0, bandwidth, mosaic_mrad2, R1_moment
) -> tuple[Spot, Array]:
    """Marginal and conditional of the Gaussian relp (module docstring), and m² (n, m), the part
    of R0_eff² that is mosaic spread.

    Blocks turned by ω move a relp by ω×q, along a by ω·(q×a).

    Args:
        rotation_mrad, strain, shift_mm: as :func:`geometry`.
        R0: Å⁻¹; bandwidth: rms fraction; mosaic_mrad2: (n, 3, 3) twice the covariance of the
            blocks' rotations, mrad²: η² for the same spread about all axes; R1_moment: (M11,
            M22, M12) of the spot without mosaic spread and bandwidth, broadcastable to (n, m),
            Å⁻²: R1²/2, R1²/2, 0 for round spots.
    """
    excitation, shift_1, shift_2 = geometry(obs, rotation_mrad, strain, shift_mm)
    q = obs.pilot_setting @ obs.q
    turned = jnp.stack([jnp.cross(q, a, axis=1) for a in (obs.s_hat, obs.e1, obs.e2)], 1) * 1e-3
    m = jnp.einsum("naim,nij,nbjm->nabm", turned, mosaic_mrad2, turned)  # twice the covariance
    bw2 = bandwidth_width(obs, bandwidth) ** 2
    cot = obs.cos_theta / obs.sin_theta
    rr = R0**2 + m[:, 0, 0] + bw2
    r1, r2 = -m[:, 0, 1] - bw2 * cot, -m[:, 0, 2]  # less their covariance with r: Δ_r = −ε_r
    found = Spot(
        excitation_error=excitation,
        R0_eff=jnp.sqrt(rr),
        shift_1=shift_1 + r1 / rr * excitation,
        shift_2=shift_2 + r2 / rr * excitation,
        m11=R1_moment[0] + 0.5 * (m[:, 1, 1] + bw2 * cot**2 - r1**2 / rr),
        m22=R1_moment[1] + 0.5 * (m[:, 2, 2] - r2**2 / rr),
        m12=R1_moment[2] + 0.5 * (m[:, 1, 2] - r1 * r2 / rr),
    )
    return found, m[:, 0, 0]


def partiality(excitation_error, R0, R0_eff) -> Array:
    """p = (R0/R0_eff)·exp(−ε_r²/R0_eff²): smearing R0 to R0_eff conserves the volume."""
    return R0 / R0_eff * jnp.exp(-((excitation_error / R0_eff) ** 2))


def peak_partiality(excitation_error, R0, R0_eff) -> Array:
    """p = exp(−ε_r²/R0_eff²): one on the sphere, whatever the smearing."""
    return jnp.exp(-((excitation_error / R0_eff) ** 2))


def mosaic_covariance(mosaic_mrad, shape) -> Array:
    """η²·LLᵀ (n, 3, 3), mrad², of η (n,) and five numbers (n, 5), zero for the same spread about
    all axes: L is lower triangular with det L = 1.

    That of a few blocks, drawn from a wide distribution with one η, varies as Wishart's does:
    ln L_ii by 1/√(2·blocks), the rest by √2 of that.
    """
    d1, d2 = shape[:, 0], shape[:, 1]
    zero = jnp.zeros_like(d1)
    a, b, c = jnp.sqrt(2.0) * shape[:, 2:].T
    rows = [[jnp.exp(d1), zero, zero], [a, jnp.exp(d2), zero], [b, c, jnp.exp(-d1 - d2)]]
    lower = mosaic_mrad[:, None, None] * jnp.stack([jnp.stack(row, -1) for row in rows], -2)
    return lower @ jnp.swapaxes(lower, 1, 2)


def block_variance(spot: Spot, m2) -> Array:
    """Relative variance of p, times the number of mosaic blocks, that their finite number causes.

    Each block has a curve k = exp(−(ε_r − x)²/R_k²), R_k² = R0² + R_bw², about its own place x
    with spread m = η|q|cosθ.  One draw of x varies by E[k²]/E[k]² − 1,

        E[k²]/E[k]² = R_eff²/(R_k √(R_k² + 2m²)) · exp(2ε_r²(1/R_eff² − 1/(R_k² + 2m²))),

    zero at low resolution and large in the tails, where few blocks diffract.
    """
    eff2 = spot.R0_eff**2
    k2, twice = eff2 - m2, eff2 + m2
    power = 2 * spot.excitation_error**2 * (1 / eff2 - 1 / twice)
    return eff2 / jnp.sqrt(k2 * twice) * jnp.exp(power) - 1


def debye_waller(B, norm_q) -> Array:
    """B_term = exp(−B/(4d²)) of SPEC section 2, with 1/d = ``norm_q``, B in Å²."""
    return jnp.exp(-0.25 * B * norm_q**2)


def profile_statistics(
    obs: Observations, spot: Spot, count: int = 4, shape_variance: Array | float = 0.0
) -> Array:
    """E[T_k]/J = r_k0 + Σ_j r_kj η_j (``measure``) of the first statistics, (n, count, m).

    Displacing a template by δ adds δδᵀ to its second moment, to second order.  The response to
    the spread has the form η/(1 + cη), positive however wrong the pilot's width is: with c = 1,
    the overlap of two Gaussians, exact for the total on a flat background; the spread's own as
    measured, which bends: spots that scatter in width look narrower, on average, than their mean,

        E[η/(1 + cη)] ≈ η/(1 + cη) − c Var[η]/(1 + cη)³.

    Args:
        count: 1 the total, 3 with the centroid, 4 with the spread, 6 with the quadrupoles.
        shape_variance: Var[η] of the spread, from spot to spot.
    """
    d1, d2 = spot.shift_1 / obs.width, spot.shift_2 / obs.width
    scale = 1 / obs.width**2
    g11 = (spot.m11 - obs.pilot_moment[:, 0]) * scale + d1**2
    g22 = (spot.m22 - obs.pilot_moment[:, 1]) * scale + d2**2
    g12 = (spot.m12 - obs.pilot_moment[:, 2]) * scale + d1 * d2
    wider = (g11 + g22) / 2
    damp = 1 / (1 + wider)
    eta = [jnp.ones_like(d1), d1, d2, wider * damp, (g11 - g22) / 2 * damp, g12 * damp]
    mean = jnp.sum(obs.response[:, :count] * jnp.stack(eta, 1)[:, None], 2)
    if count > 3:
        own = 1 / (1 + obs.saturation * wider)
        seen = wider * own - obs.saturation * shape_variance * own**3
        own = obs.response[:, 3, 3] * (seen - wider * damp)
        mean += own[:, None] * (jnp.arange(count) == 3)[:, None]
    return mean


def counting_variance(obs: Observations, J: Array, count: int = 4) -> Array:
    """Var[T_k] = V_bg,k + J V_sig,k of the first ``count`` statistics, (n, count, m), J (n, m)."""
    background, signal = obs.variance_background, obs.variance_signal
    return background[:, :count] + J[:, None] * signal[:, :count]


def given_total(J_model: Array, unsure: Array, J: Array, variance: Array) -> tuple[Array, Array]:
    """Mean and variance of a spot's photons, given J_model and the J that was measured.

    N(J_model, unsure·J_model²) × N(J, variance) on photons ≥ 0: where J_model is sure, it
    stands, however bright the spot.

    Args:
        unsure: (n, m) relative variance of J_model; J: (n, m) photons; variance: (n, m) of J by
            counting, photons².
    """
    prior = unsure * J_model**2 + 1e-30
    weight = prior / (prior + variance)
    mean, sd = J_model + weight * (J - J_model), jnp.sqrt(weight * variance)
    z = jnp.maximum(mean / sd, -10.0)  # further down the difference below is noise
    hazard = jnp.exp(-0.5 * z**2 - 0.5 * jnp.log(2 * jnp.pi) - jax.scipy.special.log_ndtr(z))
    return sd * (z + hazard), sd**2 * jnp.maximum(1 - hazard * (hazard + z), 0.0)
