"""Simulate integrated stills from the scaling model itself, so that every number is known."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import gemmi
import numpy as np

from ..geometry.symmetry import asu_map, epsilon_centric
from ..io.unmerged import Unmerged
from ..physics.partiality import effective_width
from ..physics.reference import Reference


@dataclass(frozen=True)
class UnmergedSimulation:
    """Parameters of a simulation of integrated stills.

    Attributes:
        n_images: stills. each: observations an image, of reflections to d_min (Å).
        n_unique: so many reflections at most, chosen at random; all of them if None.
        cell: a, b, c, α, β, γ in Å and degrees. space_group: its name.
        mean_intensity, B_wilson: Σ(d) = mean_intensity·exp(−B_wilson/2d²).
        log_G_sd, B_sd: of ln G and of B (Å²) from image to image.
        R0_inv_angstrom, mosaic_mrad, dispersion_angstrom: widths of a Lorentzian curve.
        reach_inv_angstrom: ε_r is uniform within ± this.
        sigma, model_error, nu: noise: sd at I = 0, fractional error, degrees of freedom.
        difference: 1 − ρ of Friedel mates, 0 where there is no anomalous scattering.
        seed: of every random number.
    """

    n_images: int = 40
    each: int = 120
    d_min: float = 3.0
    n_unique: int | None = None
    cell: tuple[float, ...] = (40.0, 40.0, 60.0, 90.0, 90.0, 90.0)
    space_group: str = "P 41 21 2"
    mean_intensity: float = 400.0
    B_wilson: float = 30.0
    log_G_sd: float = 0.7
    B_sd: float = 8.0
    R0_inv_angstrom: float = 1e-4
    mosaic_mrad: float = 0.0
    dispersion_angstrom: float = 2e-3
    reach_inv_angstrom: float = 4e-4
    sigma: float = 2.0
    model_error: float = 0.2
    nu: float = 6.0
    difference: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class SimulatedUnmerged:
    """Observations and truth of m reflections, hkl (m, 3) in the asymmetric unit.

    Attributes:
        data: as if read from a file.
        amplitude: (m, 2) F of the mates h and −h, equal where centric.
        log_G, B: (n_images,).
    """

    data: Unmerged
    hkl: np.ndarray
    amplitude: np.ndarray
    log_G: np.ndarray
    B: np.ndarray

    @property
    def truth(self) -> Reference:
        """Mean intensity of the mates."""
        I = (self.amplitude**2).mean(axis=1)  # noqa: E741
        return Reference(self.hkl, I, self.data.cell, self.data.space_group, "truth")


def simulate_unmerged(simulation: UnmergedSimulation) -> SimulatedUnmerged:
    """Draw a run: J = G·exp(−B/4d²)·p·F² + Student-t noise, F of Wilson's statistics."""
    rng = np.random.default_rng(simulation.seed)
    return _stills(simulation, *_reflections(simulation, rng=rng), rng=rng)


def simulate_in_parts(simulation: UnmergedSimulation, most: int) -> Iterator[SimulatedUnmerged]:
    """Draw a run as :func:`simulate_unmerged` does, some images at a time.

    Batch numbers go on from part to part.

        for part in simulate_in_parts(UnmergedSimulation(n_images=100_000), 10_000):
            part.data, part.log_G  # of 10,000 images; part.hkl and part.amplitude: the same

    Args:
        most: images of a part, the last of which has the rest.
    """
    s, rng = simulation, np.random.default_rng(simulation.seed)
    reflections = _reflections(s, rng=rng)
    for first in range(0, s.n_images, most):
        some = replace(s, n_images=min(most, s.n_images - first))
        part = _stills(some, *reflections, rng=rng)
        yield replace(part, data=replace(part.data, batch=part.data.batch + first))


def _reflections(s: UnmergedSimulation, *, rng) -> tuple[np.ndarray, np.ndarray]:
    """Indices (m, 3) in the asymmetric unit, and amplitudes of the mates (m, 2)."""
    cell, group = gemmi.UnitCell(*s.cell), gemmi.SpaceGroup(s.space_group)
    hkl = gemmi.make_miller_array(cell, group, s.d_min)
    hkl = hkl[rng.permutation(len(hkl))[: s.n_unique]]
    return hkl, _amplitudes(s, hkl, cell.calculate_d_array(hkl), group, rng=rng)


def _stills(
    s: UnmergedSimulation, hkl: np.ndarray, amplitude: np.ndarray, *, rng
) -> SimulatedUnmerged:
    """Observations of all images, given the reflections."""
    cell, group = gemmi.UnitCell(*s.cell), gemmi.SpaceGroup(s.space_group)
    d = cell.calculate_d_array(hkl)
    image = np.repeat(np.arange(s.n_images), s.each)
    which = rng.integers(len(hkl), size=len(image))
    mate = rng.integers(2, size=len(image))
    log_G, B = rng.normal(0, s.log_G_sd, s.n_images), rng.normal(0, s.B_sd, s.n_images)
    q = 1 / d[which]
    excitation = rng.uniform(-1, 1, len(q)) * s.reach_inv_angstrom
    width = np.asarray(effective_width(s.R0_inv_angstrom, s.mosaic_mrad, s.dispersion_angstrom, q))
    p = s.R0_inv_angstrom / width / (1 + (excitation / width) ** 2)
    expected = np.exp(log_G[image] - B[image] * q**2 / 4) * p * amplitude[which, mate] ** 2
    sd = np.sqrt(s.sigma**2 + (s.model_error * expected) ** 2)
    observed = hkl[which] * np.where(mate == 0, 1, -1)[:, None].astype(np.int32)
    asu, isym = asu_map(observed, group)
    data = Unmerged(
        hkl=observed,
        hkl_asu=asu,
        isym=isym,
        J=expected + sd * rng.standard_t(s.nu, len(q)),
        sigma=np.full(len(q), s.sigma),
        batch=image + 1,
        image=image,
        excitation_error=excitation,
        xy_px=None,
        cell=cell,
        space_group=group,
        source="simulated",
    )
    return SimulatedUnmerged(data, asu_map(hkl, group)[0], amplitude, log_G, B)


def _amplitudes(s: UnmergedSimulation, hkl, d, group, *, rng) -> np.ndarray:
    """(m, 2) of complex normal structure factors with the mates' correlation."""
    epsilon, centric = epsilon_centric(hkl, group)
    mean = s.mean_intensity * epsilon * np.exp(-s.B_wilson / (2 * d**2))
    plus, other = np.sqrt(mean / 2) * (rng.normal(size=(2, len(d), 2)) @ np.array([1, 1j]))
    rho = 1 - s.difference
    minus = rho * plus + np.sqrt(1 - rho**2) * other
    real = np.sqrt(2) * plus.real  # centric: one phase, and ⟨F²⟩ the same
    return np.abs(np.stack([np.where(centric, real, plus), np.where(centric, real, minus)], axis=1))
