"""The current state of a run, and the geometry and partiality width that follow from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from ..geometry.crystal import refined_crystal
from ..geometry.detector import Beam, Detector, beam_frame
from ..geometry.experiments import Still
from ..geometry.panel_groups import moved_groups
from ..physics.priors import Priors
from ..physics.spot import mosaic_covariance

State = dict[str, np.ndarray]  # the model's sites, constrained, by name
PANELS = "panel_x_px", "panel_y_px", "panel_turn_mrad"
Width = Callable[[np.ndarray, Beam], np.ndarray]  # R0_eff (Å⁻¹) of d (Å) and the beam


def images_of(state: State, images: slice, size: int) -> State:
    """The part of a state that belongs to some images, the last one repeated up to ``size``.

    A site of images has the axes of their plate, (n, 1, ...); a shared site has those of its event,
    none or one.
    """
    rows = np.minimum(np.arange(images.start, images.start + size), images.stop - 1)
    return {k: np.asarray(v)[rows] if np.ndim(v) > 1 else v for k, v in state.items()}


class Geometry(NamedTuple):
    """Changes of crystals and detector from those as indexed.

    Attributes:
        rotation_mrad: (n, 3). strain: (n, K). shift_mm: (3,) beam centre x, y and distance.
        panels: (g, 3) moves of groups of panels (``panel_groups``); None where they stay in place.
        wavelength: (n,) Å; None where as in the stills.
    """

    rotation_mrad: np.ndarray
    strain: np.ndarray
    shift_mm: np.ndarray
    panels: np.ndarray | None = None
    wavelength: np.ndarray | None = None


def geometry_of(stills: Sequence[Still], state: State) -> Geometry:
    """The geometry of a state; zero where not refined."""
    n, K = len(stills), len(stills[0].crystal.strains)
    panels = None
    if PANELS[0] in state:
        panels = np.stack([np.asarray(state[name]) for name in PANELS], axis=1)
    wavelength = None
    if "log_wavelength" in state:
        wavelength = np.exp(np.asarray(state["log_wavelength"])).reshape(n)
    return Geometry(
        np.asarray(state.get("rotation_mrad", np.zeros((n, 3)))).reshape(n, 3),
        np.asarray(state.get("strain", np.zeros((n, K)))).reshape(n, -1),
        np.asarray(state.get("detector_shift_mm", np.zeros(3))),
        panels,
        wavelength,
    )


def moved(stills: Sequence[Still], geometry: Geometry) -> tuple[Still, ...]:
    """The stills with refined crystals, wavelengths and detectors; shared detectors stay shared."""
    detectors: dict[tuple[int, bytes], Detector] = {}

    def one(still: Still, rotation, e, wavelength) -> Still:
        key = id(still.detector), still.beam.s0_direction.tobytes()
        if key not in detectors:
            axes = beam_frame(still.beam, still.detector) * np.array([[-1], [-1], [1]])
            detector = still.detector
            if geometry.panels is not None:
                detector = moved_groups(detector, geometry.panels)
            detectors[key] = detector.shifted(geometry.shift_mm @ axes)
        crystal = refined_crystal(still.crystal, rotation, e)
        beam = still.beam
        if wavelength != beam.wavelength:
            beam = replace(beam, wavelength=float(wavelength))
        return replace(still, beam=beam, crystal=crystal, detector=detectors[key])

    wavelengths = wavelengths_of(stills, geometry)
    rows = zip(stills, geometry.rotation_mrad, geometry.strain, wavelengths, strict=True)
    return tuple(one(*row) for row in rows)


def wavelengths_of(stills: Sequence[Still], geometry: Geometry) -> np.ndarray:
    """(n,) Å, of a geometry."""
    if geometry.wavelength is not None:
        return geometry.wavelength
    return np.array([still.beam.wavelength for still in stills])


def of_one_bandwidth(stills: Sequence[Still], priors: Priors) -> tuple[Still, ...]:
    """The stills with one bandwidth: the median of the stated ones, else that of the prior."""
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


def _widest_axis(state: State) -> float:
    """Mosaic spread about the widest axis of any sweep, over that of the run; 1 without sweeps."""
    if "mosaic_shape_sweep" not in state:
        return 1.0
    shape = np.reshape(state["mosaic_shape_sweep"], (-1, 5))
    spread = np.exp(np.asarray(state["log_mosaic_sweep"]))
    return float(np.sqrt(np.linalg.eigvalsh(mosaic_covariance(spread, shape)).max()))


def partiality_width(state: State, priors: Priors) -> Width:
    """R0_eff (Å⁻¹) at a state, a function of d (Å) and of the beam."""
    R0, mosaic_mrad = widths(state, priors)
    mosaic_mrad *= _widest_axis(state)
    bandwidth = float(np.exp(state["log_bandwidth"])) if "log_bandwidth" in state else None
    return PartialityWidth(R0, 1e-3 * mosaic_mrad, bandwidth)
