"""Reference amplitudes on the scale of the data, which is a smooth physical function.

Of reflection h, with s its reciprocal-lattice vector, |s| = 1/d and ŝ = d·s, and with Â and B̂
traceless tensors that the Laue group allows,

    ln α(h) = ln k − B/4d² − ŝᵀÂŝ − sᵀB̂s/4 + ln(1 − k_sol·exp(−B_sol/4d²)).

Â is what scales by direction at any resolution, as absorption does; B̂ is anisotropic displacement.
The last term is bulk solvent by Babinet's principle, in the data and not in the reference, or,
where k_sol < 0, in the reference and not in the data (docs/theory.md, The scale of a reference).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

import gemmi
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ..geometry.symmetry import epsilon_centric, reciprocal_rotations
from ..physics.reference import Reference, free_set, wilson_mean
from .latent import AmplitudePrior
from .pieces import rows_of

N_ANISOTROPY = 5  # traceless symmetric tensors
N_SCALE = 4 + 2 * N_ANISOTROPY
# sd of the normal priors of the scale's numbers; those of Â and B̂ are about zero
LOG_K_SD = 2.0  # about a first estimate
B_SD = 30.0  # Å², of the data's B less the reference's, about a first estimate
DIRECTION_SD = 0.1  # of Â along each of the orthonormal tensors
ANISOTROPY_SD = 5.0  # Å², of B̂ along each of the same tensors
SOLVENT_SD = 1.0  # u of k_sol = 1 − e⁻ᵘ
SOLVENT_B, LOG_SOLVENT_B_SD = 120.0, 0.7  # Å²: thermolysin has 40, fits of Babinet's term have 200
DEPARTURE_SD = 0.1  # of ln Σ(d) about ln(α²Σ_ref + β), where no reference informs
ALONE, DEPARTURE_ALONE_SD = 10.0, 1.0  # fewest informed reflections of a knot; the sd with fewer


@dataclass(frozen=True)
class ReferenceAmplitudes:
    """Reference amplitudes of m reflections, on the scale of the reference.

    Attributes:
        amplitude: (m,) F_ref, 0 where the reference must not inform.
        informed: (m,) bool, reflections of the reference that are not free.
        log_mean: (m,) ln Σ_ref(d), of reflections that are not free.
        quarter_q2: (m,) 1/4d², Å⁻². tensors: (m, 5) ŝᵀT_j ŝ for orthonormal tensors T_j that the
            Laue group allows, zero columns after the last.
        log_k0, B0: first estimates of ln k and of B (Å², the data's less the reference's).
    """

    amplitude: Array | np.ndarray
    informed: Array | np.ndarray
    log_mean: Array | np.ndarray
    quarter_q2: Array | np.ndarray
    tensors: Array | np.ndarray
    log_k0: Array | np.ndarray
    B0: Array | np.ndarray

    def scale_numbers(self, z: Array) -> dict[str, Array]:
        """The numbers of ln α by name, of N(0, 1) variables z (14,)."""
        return {
            "log_k": self.log_k0 + LOG_K_SD * z[0],
            "B": self.B0 + B_SD * z[1],
            "direction": DIRECTION_SD * z[2 : 2 + N_ANISOTROPY],
            "anisotropy": ANISOTROPY_SD * z[2 + N_ANISOTROPY : 2 + 2 * N_ANISOTROPY],
            "solvent": SOLVENT_SD * z[-2],
            "log_solvent_B": np.log(SOLVENT_B) + LOG_SOLVENT_B_SD * z[-1],
        }

    def log_scale(self, numbers: Mapping[str, Array]) -> Array:
        """(m,) ln α, of numbers by name as of :meth:`scale_numbers`."""
        smooth = numbers["log_k"] - numbers["B"] * self.quarter_q2
        k_sol = -jnp.expm1(-numbers["solvent"])
        solvent = k_sol * jnp.exp(-jnp.exp(numbers["log_solvent_B"]) * self.quarter_q2)
        directed = self.tensors @ numbers["direction"]
        directed += self.quarter_q2 * (self.tensors @ numbers["anisotropy"])
        return smooth - directed + jnp.log1p(-solvent)

    def double_wilson(
        self,
        numbers: Mapping[str, Array],
        log_beta: Array,
        log_departure: Array,
        log_epsilon: Array,
        centric: Array,
    ) -> tuple[AmplitudePrior, tuple[Array, Array]]:
        """The prior, and (ln α, ln V) (m,) that it depends on.

        Given F_ref the complex F has mean α·F_ref and variance V = ε·β(d).  Where no reference
        informs, V = ε·Σ(d) with Σ = α²·Σ_ref + β, times a departure of such reflections' own.

        Args:
            numbers: as of :meth:`log_scale`. log_beta, log_departure: (m,).
        """
        log_alpha = self.log_scale(numbers)
        log_mean = log_epsilon + jnp.logaddexp(2 * log_alpha + self.log_mean, log_beta)
        log_mean = log_mean + jnp.where(self.informed, 0.0, log_departure)
        log_variance = jnp.where(self.informed, log_epsilon + log_beta, log_mean)
        prior = AmplitudePrior(log_mean, centric, jnp.exp(log_alpha) * self.amplitude, log_variance)
        return prior, (log_alpha, log_variance)

    def starting_from(self, log_mean: np.ndarray, d: np.ndarray) -> ReferenceAmplitudes:
        """A copy that starts at k and B of a line through the data's ln Σ (K,) at ``d`` (K,) Å."""
        q2 = 4 * np.asarray(self.quarter_q2)
        order = np.argsort(q2)
        of_reference = np.interp(np.asarray(d) ** -2.0, q2[order], np.asarray(self.log_mean)[order])
        B0, log_k0 = np.polyfit(-0.25 / np.asarray(d) ** 2, 0.5 * (log_mean - of_reference), 1)
        return replace(self, log_k0=np.asarray(log_k0), B0=np.asarray(B0))

    def some(self, rows: slice | np.ndarray, places: int) -> ReferenceAmplitudes:
        """Of some reflections, padded as a piece's are (``pieces.rows_of``)."""
        names = ("amplitude", "informed", "log_mean", "quarter_q2", "tensors")
        return replace(self, **{name: rows_of(getattr(self, name), rows, places) for name in names})

    def departure_sd(self, knot_weight: np.ndarray) -> np.ndarray:
        """(K,) sd at knots of ln Σ of reflections without a reference about ln(α²Σ_ref + β)."""
        many = np.asarray(self.informed) @ knot_weight > ALONE
        return np.where(many, DEPARTURE_SD, DEPARTURE_ALONE_SD)


jax.tree_util.register_dataclass(
    ReferenceAmplitudes, [f.name for f in fields(ReferenceAmplitudes)], []
)


def amplitudes_of(
    reference: Reference | None,
    hkl: np.ndarray,
    d: np.ndarray,
    cell: gemmi.UnitCell,
    fraction: float,
    seed: int,
) -> ReferenceAmplitudes:
    """Look up ``hkl`` (m, 3) with ``d`` (m,) Å in a reference, without the free set.

    Args:
        cell: of the data, for directions.
        fraction, seed: of ``reference.free_set``.
    """
    m = len(hkl)
    amplitude, informed = np.zeros(m), np.zeros(m, bool)
    log_mean, tensors = np.zeros(m), np.zeros((m, N_ANISOTROPY))
    if reference is not None:
        group = reference.space_group
        log_mean = _log_mean(reference, ~free_set(reference.hkl, fraction, seed, group), d)
        intensity = reference.lookup(hkl)
        informed = np.isfinite(intensity) & ~free_set(hkl, fraction, seed, group)
        amplitude = np.sqrt(np.where(informed, np.maximum(intensity, 0), 0))
        s = hkl @ np.array(cell.frac.mat)
        allowed = allowed_tensors(cell, group)
        s *= np.asarray(d)[:, None]
        tensors[:, : len(allowed)] = np.einsum("ni,jik,nk->nj", s, allowed, s)
    arrays = (amplitude, informed, log_mean, 0.25 / np.asarray(d) ** 2, tensors, 0.0, 0.0)
    return ReferenceAmplitudes(*map(np.asarray, arrays))


def _log_mean(reference: Reference, known: np.ndarray, d: np.ndarray) -> np.ndarray:
    """(m,) ln Σ_ref at ``d``; a straight line in 1/d² beyond the reference's resolution."""
    per_epsilon = reference.intensity / epsilon_centric(reference.hkl, reference.space_group)[0]
    of_reference, q2 = reference.d[known], np.asarray(d) ** -2.0
    last = of_reference.min() ** -2.0
    outer = np.linspace(last / 2, last, 10)
    at = np.r_[np.minimum(q2, last), outer] ** -0.5
    found = np.log(wilson_mean(of_reference, per_epsilon[known], at))
    slope = np.polyfit(outer, found[len(q2) :], 1)[0]
    return found[: len(q2)] + min(slope, 0.0) * np.maximum(q2 - last, 0)


def allowed_tensors(cell: gemmi.UnitCell, group: gemmi.SpaceGroup) -> np.ndarray:
    """(k, 3, 3) orthonormal traceless symmetric tensors that the Laue group leaves as they are.

    Cartesian axes are gemmi's of ``cell``; k is 5 for triclinic, 0 for cubic crystals.
    """
    to_reciprocal = np.array(cell.frac.mat)  # s = h @ this
    back = np.linalg.inv(to_reciprocal)
    turns = [back @ r @ to_reciprocal for r in reciprocal_rotations(group)]
    pairs = [(0, 1), (0, 2), (1, 2)]
    basis = np.zeros((5, 3, 3))
    for k, (i, j) in enumerate(pairs):
        basis[k, i, j] = basis[k, j, i] = 0.5**0.5
    basis[3] = np.diag([1, -1, 0]) / 2**0.5
    basis[4] = np.diag([-1, -1, 2]) / 6**0.5
    # The mean over the group is a projection; singular values of one span the allowed tensors.
    mean = np.array([np.mean([t.T @ b @ t for t in turns], axis=0) for b in basis])
    projection = np.einsum("aij,bij->ab", basis, mean)
    u, size, _ = np.linalg.svd(projection)
    return np.einsum("ak,aij->kij", u[:, size > 0.5], basis)
