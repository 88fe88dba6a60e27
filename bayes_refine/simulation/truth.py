"""The truth of a simulated run: crystals in random orientations, their scales, the detector."""

from __future__ import annotations

from dataclasses import dataclass

import gemmi
import numpy as np

from ..geometry.crystal import Crystal, space_group_from_hall, strain_basis
from ..geometry.detector import Beam, Detector
from ..util.errors import InputError


@dataclass(frozen=True)
class Simulation:
    """Parameters of a simulation: crystal, beam, detector and errors of indexing.

    Attributes:
        n_images, seed: images in the run, and the seed of every random number in it.
        cell, hall: Å and degrees; Hall symbol.
        wavelength: Å.
        bandwidth: rms Δλ/λ, a fraction.
        polarization_fraction: fraction of the intensity in the horizontal plane.
        distance_mm, n_pixels, pixel_size_mm: a square detector normal to the beam.
        beam_offset_px: beam centre (x, y) less the middle of the detector.
        n_panels, panel_gap_px: 1, or 4 for 2×2 tiles with a gap between them.
        d_min: Å; there are no reflections beyond.
        R0, R1: widths of the relp along ŝ and across, Å⁻¹, exp(−x²/R²).
        aspect_ratio: of the spot, radial over tangential width.
        mosaic_rad: η, exp(−φ²/η²) about each axis, rad.
        mosaic_shape: of the spread about the three axes, ``physics.mosaic_covariance``'s numbers.
        mean_photons: expected I_ref averaged over the unique reflections, photons.
        wilson_B: fall-off of I_ref, exp(−B/(2d²)), Å².
        ln_G_sd, B_mean, B_sd: ln G ~ N(0, sd); B ~ N(mean, sd), Å².
        background_photons, background_radius_mm: per pixel b·exp(−r²/(2·radius²)), r from the
            beam centre; an infinite radius is a flat background.
        gain, read_noise: counts per photon; counts rms a pixel.
        bad_fraction: fraction of masked pixels.
        model_error, mosaic_blocks: error of each J beyond counting, a fraction, and the number of
            mosaic blocks in a crystal (``simulation.errors``).
        position_error_px, shape_error: displacement of each spot along each axis, px, and error of
            the squares of its widths, a fraction; all rms.
        rotation_error_deg: rms angle between true and indexed orientation.
        cell_error: rms of each strain that keeps the crystal system, a fraction.
        distance_error_mm, beam_center_error_px: indexed less true.
    """

    n_images: int = 12
    seed: int = 1
    cell: tuple[float, float, float, float, float, float] = (79.3, 79.3, 37.8, 90.0, 90.0, 90.0)
    hall: str = "P 4nw 2abw"
    wavelength: float = 1.0
    bandwidth: float = 1e-3
    polarization_fraction: float = 0.99
    distance_mm: float = 110.0
    n_pixels: int = 480
    pixel_size_mm: float = 0.172
    beam_offset_px: tuple[float, float] = (0.0, 0.0)
    n_panels: int = 1
    panel_gap_px: int = 8
    d_min: float = 2.3
    R0: float = 5e-4
    R1: float = 8e-4
    aspect_ratio: float = 1.0
    mosaic_rad: float = 0.0
    mosaic_shape: tuple[float, ...] = (0.0,) * 5
    mean_photons: float = 400.0
    wilson_B: float = 15.0
    ln_G_sd: float = 0.5
    B_mean: float = 10.0
    B_sd: float = 4.0
    background_photons: float = 6.0
    background_radius_mm: float = np.inf
    gain: float = 1.0
    read_noise: float = 0.0
    bad_fraction: float = 0.0
    model_error: float = 0.0
    mosaic_blocks: float = np.inf
    position_error_px: float = 0.0
    shape_error: float = 0.0
    rotation_error_deg: float = 0.05
    cell_error: float = 1e-3
    distance_error_mm: float = 0.1
    beam_center_error_px: tuple[float, float] = (0.3, -0.2)

    @property
    def beam_center_px(self) -> np.ndarray:
        """(2,) true beam centre x, y, px from the corner of the whole detector."""
        return self.n_pixels / 2 + np.asarray(self.beam_offset_px, float)

    @property
    def dtype(self) -> np.dtype:
        """Of the counts: uint16 of a counting detector, int32 where they may be negative."""
        counting = self.gain == 1 and self.read_noise == 0
        return np.dtype(np.uint16 if counting else np.int32)

    @property
    def saturation(self) -> int:
        """Largest trusted count; the next, the largest of the type, marks a bad pixel."""
        return int(np.iinfo(self.dtype).max) - 1


@dataclass(frozen=True)
class TrueIntensities:
    """Intensities of reflections: ``hkl`` (m, 3) and ``intensity`` (m,), photons."""

    hkl: np.ndarray
    intensity: np.ndarray


@dataclass(frozen=True)
class SimulatedTruth:
    """The truth of a simulated run of N images.

    Attributes:
        A: (N, 3, 3) Å⁻¹, columns a*, b*, c* in the lab.
        G, B: (N,) scale, and Debye–Waller B in Å².
        rotation_mrad, strain: (N, 3), (N, K): the error of indexing, indexed from true, as
            :func:`~bayes_refine.geometry.crystal.refined_crystal` applies them.
        beam, detector: as they are, not as indexed.
        reference, sphere: unique reflections; all their equivalents and Friedel mates.
        bad: (P, height, width) masked pixels.
    """

    A: np.ndarray
    G: np.ndarray
    B: np.ndarray
    rotation_mrad: np.ndarray
    strain: np.ndarray
    beam: Beam
    detector: Detector
    reference: TrueIntensities
    sphere: TrueIntensities
    bad: np.ndarray


def reference_intensities(simulation: Simulation, *, rng: np.random.Generator) -> TrueIntensities:
    """Wilson's statistics: acentric exponential, centric χ²₁, mean ∝ ε·exp(−B/(2d²)).

    ε counts the symmetry operations that leave hkl alone; absent reflections are left out.
    The scale makes the expected mean over the unique reflections ``mean_photons``.
    """
    group = space_group_from_hall(simulation.hall)
    operations = group.operations()
    cell = gemmi.UnitCell(*simulation.cell)
    hkl = gemmi.make_miller_array(cell, group, simulation.d_min)
    centric = operations.centric_flag_array(hkl)
    epsilon = operations.epsilon_factor_without_centering_array(hkl)
    mean = epsilon * np.exp(-simulation.wilson_B * cell.calculate_1_d2_array(hkl) / 2)
    mean *= simulation.mean_photons / mean.mean()
    unit = np.where(centric, rng.chisquare(1, len(hkl)), rng.exponential(size=len(hkl)))
    return TrueIntensities(hkl=hkl, intensity=mean * unit)


def whole_sphere(hall: str, reference: TrueIntensities) -> TrueIntensities:
    """All equivalents and Friedel mates, each once, of unique reflections."""
    operations = space_group_from_hall(hall).operations().derive_symmorphic()
    rotations = np.array([op.rot for op in operations]) // gemmi.Op.DEN
    mates = np.concatenate([rotations, -rotations])
    equivalents = np.einsum("mi,rij->mrj", reference.hkl, mates).reshape(-1, 3)
    hkl, first = np.unique(equivalents, axis=0, return_index=True)
    return TrueIntensities(hkl=hkl, intensity=reference.intensity[first // len(mates)])


def square_detector(
    simulation: Simulation, distance_mm: float, beam_center_px: np.ndarray
) -> Detector:
    """One panel, or 2×2 with a gap, normal to a beam along +z; x right, y down.

    In the array of an image panels lie one below the other: dxtbx of DIALS 3.12 takes a mask of
    them in no other order ("numpy array is non-c-contiguous").

    Raises:
        InputError: a number of panels other than 1 and 4.
    """
    n = simulation.n_pixels
    if simulation.n_panels not in (1, 4):
        raise InputError(f"n_panels must be 1 or 4 (2×2 tiles), not {simulation.n_panels}")
    side = n if simulation.n_panels == 1 else (n - simulation.panel_gap_px) // 2
    starts = [0] if simulation.n_panels == 1 else [0, n - side]
    corners = np.array([(x, y) for y in starts for x in starts], float) - beam_center_px
    origin = np.column_stack(
        [corners * simulation.pixel_size_mm, np.full(len(corners), distance_mm)]
    )
    panels = len(corners)
    lowest = -1.0 - 10 * simulation.read_noise
    return Detector(
        origin_mm=origin,
        fast=np.tile([1.0, 0.0, 0.0], (panels, 1)),
        slow=np.tile([0.0, 1.0, 0.0], (panels, 1)),
        pixel_size_mm=np.full((panels, 2), simulation.pixel_size_mm),
        shape=np.full((panels, 2), side),
        trusted_range=np.tile([lowest, float(simulation.saturation)], (panels, 1)),
        gain=np.full(panels, simulation.gain),
        pedestal=np.zeros(panels),
        thickness_mm=np.zeros(panels),
        mu_per_mm=np.zeros(panels),
        untrusted=((),) * panels,
        raw_image_offset=tuple((0, p * side) for p in range(panels)),
    )


def draw_truth(simulation: Simulation, *, rng: np.random.Generator) -> SimulatedTruth:
    """Crystals in random orientations, their scales, and the errors of indexing them."""
    n = simulation.n_images
    B_matrix = np.array(gemmi.UnitCell(*simulation.cell).frac.mat.tolist()).T
    A = random_rotations(n, rng=rng) @ B_matrix
    n_strains = len(strain_basis(Crystal(A=B_matrix, hall=simulation.hall)))
    detector = square_detector(simulation, simulation.distance_mm, simulation.beam_center_px)
    reference = reference_intensities(simulation, rng=rng)
    rotation_sd_mrad = np.radians(simulation.rotation_error_deg) * 1e3 / np.sqrt(3)
    return SimulatedTruth(
        A=A,
        G=np.exp(simulation.ln_G_sd * rng.standard_normal(n)),
        B=simulation.B_mean + simulation.B_sd * rng.standard_normal(n),
        rotation_mrad=rotation_sd_mrad * rng.standard_normal((n, 3)),
        strain=simulation.cell_error * rng.standard_normal((n, n_strains)),
        beam=Beam(
            wavelength=simulation.wavelength,
            s0_direction=np.array([0.0, 0.0, 1.0]),
            polarization_normal=np.array([0.0, 1.0, 0.0]),
            polarization_fraction=simulation.polarization_fraction,
            bandwidth=simulation.bandwidth,
        ),
        detector=detector,
        reference=reference,
        sphere=whole_sphere(simulation.hall, reference),
        bad=rng.random((detector.n_panels, *detector.shape[0])) < simulation.bad_fraction,
    )


def random_rotations(n: int, *, rng: np.random.Generator) -> np.ndarray:
    """(n, 3, 3) rotations, uniform over orientations (from unit quaternions)."""
    w, x, y, z = (quaternion := rng.standard_normal((4, n))) / np.linalg.norm(quaternion, axis=0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.moveaxis(np.array(rows), -1, 0)
