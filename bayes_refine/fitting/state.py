"""The current state of a run, as geometry and as the width of the partiality curve."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..geometry.crystal import refined_crystal, strain_basis
from ..geometry.detector import Beam, Detector, beam_frame
from ..geometry.experiments import Still
from ..physics.priors import Priors

State = dict[str, np.ndarray]  # the model's sites, constrained, by name
Width = Callable[[np.ndarray, Beam], np.ndarray]  # R0_eff (Å⁻¹) of d (Å) and the beam


def images_of(state: State, images: slice, size: int) -> State:
    """The part of a state that belongs to some images, the last one repeated up to ``size``.

    A site of images has the axes of their plate, (n, 1, ...); a shared site has those of its event,
    none or one.
    """
    rows = np.minimum(np.arange(images.start, images.start + size), images.stop - 1)
    return {k: np.asarray(v)[rows] if np.ndim(v) > 1 else v for k, v in state.items()}


def geometry_of(stills: Sequence[Still], state: State) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rotation (n, 3) mrad, strain (n, K) and shift (3,) mm of a state; zero where not refined."""
    n, K = len(stills), strain_basis(stills[0].crystal).shape[0]
    return (
        np.asarray(state.get("rotation_mrad", np.zeros((n, 3)))).reshape(n, 3),
        np.asarray(state.get("strain", np.zeros((n, K)))).reshape(n, -1),
        np.asarray(state.get("detector_shift_mm", np.zeros(3))),
    )


def moved(
    stills: Sequence[Still], rotation_mrad: np.ndarray, strain: np.ndarray, shift_mm: np.ndarray
) -> tuple[Still, ...]:
    """The stills with refined crystals and detector; those that share a detector go on doing so."""
    detectors: dict[tuple[int, int], Detector] = {}

    def one(still: Still, rotation, e) -> Still:
        key = id(still.detector), id(still.beam)
        if key not in detectors:
            axes = beam_frame(still.beam, still.detector) * np.array([[-1], [-1], [1]])
            detectors[key] = still.detector.shifted(shift_mm @ axes)
        crystal = refined_crystal(still.crystal, rotation, e)
        return replace(still, crystal=crystal, detector=detectors[key])

    return tuple(one(*row) for row in zip(stills, rotation_mrad, strain, strict=True))


def of_one_bandwidth(stills: Sequence[Still], priors: Priors) -> tuple[Still, ...]:
    """The stills with one bandwidth: the median of those that they state, else the prior's."""
    stated = [s.beam.bandwidth for s in stills if s.beam.bandwidth]
    expected = float(np.median(stated)) if stated else priors.bandwidth
    beams = {id(s.beam): replace(s.beam, bandwidth=expected) for s in stills}
    return tuple(replace(s, beam=beams[id(s.beam)]) for s in stills)


def widths(state: State, priors: Priors) -> tuple[float, float]:
    """R0 (Å⁻¹) and mosaic spread η (mrad) of a state; the priors' where it has none."""
    log_R0 = state.get("log_R0", np.log(priors.R0_inv_angstrom))
    log_mosaic_mrad = state.get("log_mosaic_mrad", np.log(priors.mosaic_spread_mrad))
    return float(np.exp(np.asarray(log_R0))), float(np.exp(np.asarray(log_mosaic_mrad)))


def tails(state: State, priors: Priors) -> float:
    """Degrees of freedom ν of the residuals of a state; infinite for normal ones."""
    return float(np.exp(state["log_nu"])) if "log_nu" in state else priors.student_t_nu


@dataclass(frozen=True)
class PartialityWidth:
    """R0_eff (Å⁻¹) at a state, a function of d (Å) and of the beam.

    Attributes:
        R0: Å⁻¹. eta: mosaic spread, rad. bandwidth: rms fraction; the beam's own for None.
    """

    R0: float
    eta: float
    bandwidth: float | None

    def __call__(self, d: np.ndarray, beam: Beam) -> np.ndarray:
        bandwidth = beam.bandwidth if self.bandwidth is None else self.bandwidth
        smeared = bandwidth * beam.wavelength / (np.sqrt(2) * d**2)
        return np.sqrt(self.R0**2 + smeared**2 + (self.eta / d) ** 2)


def partiality_width(state: State, priors: Priors) -> Width:
    """R0_eff (Å⁻¹) at a state, a function of d (Å) and of the beam."""
    R0, mosaic_mrad = widths(state, priors)
    bandwidth = float(np.exp(state["log_bandwidth"])) if "log_bandwidth" in state else None
    return PartialityWidth(R0, 1e-3 * mosaic_mrad, bandwidth)
