"""The reflections on a simulated still: where they are, how wide, how many photons.

The reciprocal-lattice point (relp) is a three-dimensional Gaussian exp(−Δᵀ Σ⁻¹ Δ), variance
Σ/2.  Its frame is (ŝ, e1, e2): ŝ along s0 + q; e1 in the plane of s0 and ŝ, normal to ŝ,
towards larger 2θ; e2 = ŝ × e1.  On the Ewald sphere Δ = (−ε_r, ε_1, ε_2), for a relp outside
the sphere (ε_r > 0) has the sphere on its −ŝ side.  With θ the Bragg angle,

    q̂ = (sin θ, cos θ, 0),    m̂ = (−cos θ, sin θ, 0),    ê2 = (0, 0, 1).

Three things widen the relp, and their Σ add up:

- the crystal itself: diag(R0², a·R1², R1²/a), a the aspect ratio of the spot;
- mosaic rotations, of variance η²/2 about each axis, move it normal to q:
  (η|q|)² (m̂m̂ᵀ + ê2ê2ᵀ); with a covariance C/2 of their own, by (q×a)ᵀC(q×b) along axes a and b;
- a wavelength λ(1 + u) looks with the pixel at x̂ at q_p/(1 + u), as if the relp were at
  (1 + u)q: along q, with <u²> = b²: 2(b|q|)² q̂q̂ᵀ.

Hence, with no further approximation,

    R0_eff² = Σ_rr = R0² + (η|q| cos θ)² + R_bw²,    R_bw² = 2(b|q| sin θ)² = (bλ)²/(2d⁴)
    p       = (R0/R0_eff) exp(−ε_r²/R0_eff²)                       the volume is conserved
    <ε_1>   = k ε_r,  k = −Σ_r1/Σ_rr = |q|² sin θ cos θ (η² − 2b²)/R0_eff²
    R1_1²   = Σ_11 − Σ_r1²/Σ_rr,  Σ_11 = a R1² + (η|q| sin θ)² + 2(b|q| cos θ)²
    R1_2²   = Σ_22 = R1²/a + (η|q|)²

and with a shape of the spread <ε_2> and the correlation of ε_1 and ε_2 in the same way.

Mosaic spread moves a spot outwards when its relp is outside the sphere (k → tan θ), bandwidth
inwards (k → −cot θ).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .truth import SimulatedTruth, Simulation

N_WIDTHS = 4.0  # relps and pixels further than this many R0_eff, R1 are left out: exp(−16)


@dataclass(frozen=True)
class Spots:
    """The n reflections on one image.

    Attributes:
        hkl, q: (n, 3) indices; Å⁻¹.
        frame: (n, 3, 3) rows ŝ, e1, e2.
        epsilon_r, partiality, J: (n,) Å⁻¹; 0..1; photons in the whole spot.
        center: (n, 2) mean of ε_1 and ε_2, Å⁻¹.
        width: (n, 2) R1_1 and R1_2, Å⁻¹; correlation: (n,) of ε_1 and ε_2.
    """

    hkl: np.ndarray
    q: np.ndarray
    frame: np.ndarray
    epsilon_r: np.ndarray
    partiality: np.ndarray
    J: np.ndarray
    center: np.ndarray
    width: np.ndarray
    correlation: np.ndarray


SpotsOf = Callable[[Simulation, SimulatedTruth, int], Spots]  # of an image


def diffraction_frame(s0: np.ndarray, s: np.ndarray) -> np.ndarray:
    """(n, 3, 3) rows ŝ, e1, e2 of scattered wavevectors ``s`` (n, 3); see the module."""
    s_hat = s / np.linalg.norm(s, axis=1, keepdims=True)
    along = s0 / np.linalg.norm(s0)
    e1 = (s_hat @ along)[:, None] * s_hat - along
    e1 /= np.linalg.norm(e1, axis=1, keepdims=True)
    return np.stack([s_hat, e1, np.cross(s_hat, e1)], axis=1)


def relp_covariance(simulation: Simulation, q: np.ndarray, frame: np.ndarray) -> np.ndarray:
    """Σ of relps, (n, 3, 3) in Å⁻², in the frame (ŝ, e1, e2); see the module.

    Args:
        q: (n, 3) Å⁻¹; frame: (n, 3, 3), :func:`diffraction_frame`.
    """
    a, mosaic_rad, b = simulation.aspect_ratio, simulation.mosaic_rad, simulation.bandwidth
    d1, d2, *below = simulation.mosaic_shape
    lower = np.diag(np.exp([d1, d2, -d1 - d2]))
    lower[[1, 2, 2], [0, 0, 1]] = np.sqrt(2) * np.array(below)
    turned = mosaic_rad * np.cross(q[:, None], frame) @ lower
    norm_q = np.linalg.norm(q, axis=1)
    sine = simulation.wavelength * norm_q / 2
    along = norm_q[:, None] * np.stack([sine, np.sqrt(1 - sine**2), 0 * sine], axis=1)
    return (
        np.diag([simulation.R0**2, a * simulation.R1**2, simulation.R1**2 / a])
        + turned @ np.swapaxes(turned, 1, 2)
        + 2 * b**2 * along[:, :, None] * along[:, None, :]
    )


def predict_spots(simulation: Simulation, truth: SimulatedTruth, image: int) -> Spots:
    """The reflections with |ε_r| < 4 R0_eff, J = G·B_term·p·pol·I_ref."""
    beam, s0 = truth.beam, truth.beam.s0
    q = truth.sphere.hkl @ truth.A[image].T
    epsilon_r = np.linalg.norm(s0 + q, axis=1) - 1 / beam.wavelength
    frame = diffraction_frame(s0, s0 + q)
    sigma = relp_covariance(simulation, q, frame)
    near = epsilon_r**2 < N_WIDTHS**2 * sigma[:, 0, 0]
    q, epsilon_r, frame, sigma = q[near], epsilon_r[near], frame[near], sigma[near]
    R0_eff_2 = sigma[:, 0, 0]
    partiality = simulation.R0 / np.sqrt(R0_eff_2) * np.exp(-(epsilon_r**2) / R0_eff_2)
    B_term = np.exp(-truth.B[image] * np.sum(q**2, axis=1) / 4)
    square = sigma[:, [1, 2], [1, 2]] - sigma[:, 0, 1:] ** 2 / R0_eff_2[:, None]
    f, s_hat = beam.polarization_fraction, frame[:, 0]
    cos_2theta_2 = (s_hat @ beam.s0_direction) ** 2
    normal_2 = (s_hat @ beam.polarization_normal) ** 2
    pol = (1 - 2 * f) * (1 - normal_2) + f * (1 + cos_2theta_2)
    return Spots(
        hkl=truth.sphere.hkl[near],
        q=q,
        frame=frame,
        epsilon_r=epsilon_r,
        partiality=partiality,
        J=truth.G[image] * B_term * partiality * pol * truth.sphere.intensity[near],
        center=-sigma[:, 0, 1:] * (epsilon_r / R0_eff_2)[:, None],
        width=np.sqrt(square),
        correlation=(sigma[:, 1, 2] - sigma[:, 0, 1] * sigma[:, 0, 2] / R0_eff_2)
        / np.sqrt(square[:, 0] * square[:, 1]),
    )
