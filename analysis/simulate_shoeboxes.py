"""A small run whose every unknown is drawn from its prior, painted in photons, and fitted.

What the calibration scripts beside this one share.  The unknowns are drawn here with NumPy,
the pixels come from ``bayes_refine.simulation`` (exact ray geometry, 25 nodes a pixel): of the
model under test nothing enters but its list of unknowns.  Then the loop of the library itself:
predict, cut, measure, fit, as many rounds as a run has by default.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import gemmi
import numpy as np
from scipy.spatial.transform import Rotation

import bayes_refine as br
from bayes_refine import infer
from bayes_refine.fitting.measure_batch import Batch, Plan
from bayes_refine.fitting.measure_run import MeasuredRun
from bayes_refine.fitting.one_round import Movement, one_round
from bayes_refine.fitting.problem import Candidates, Run
from bayes_refine.geometry import predict
from bayes_refine.geometry.crystal import strain_basis
from bayes_refine.physics.observations import SpotStatistics
from bayes_refine.simulation.pixels import background_photons, spot_photons
from bayes_refine.simulation.spots import predict_spots, relp_covariance
from bayes_refine.simulation.truth import (
    SimulatedTruth,
    TrueIntensities,
    random_rotations,
    reference_intensities,
    square_detector,
    whole_sphere,
)

# Informative and physical: what a second look at a well-behaved run may know beforehand.
PRIORS = br.Priors(
    R0_inv_angstrom=4e-4,
    log_R0_sd=0.25,
    log_bandwidth_sd=0.25,
    mosaic_spread_mrad=0.6,
    log_mosaic_spread_sd=0.25,
    log_mosaic_image_sd=0.15,
    mosaic_shape_sd=0.15,
    rotation_sd_mrad=0.5,
    strain_sd=1e-3,
    distance_sd_mm=0.2,
    beam_center_sd_mm=0.05,
    log_G_sd=0.4,
    B_mean=10.0,
    B_sd=5.0,
    R1_px=0.6,
    log_R1_sd=0.15,
    model_error=0.05,
    log_model_error_sd=0.3,
    speckle_variance=0.003,
    speckle_variance_sd=0.002,
    position_error_px=0.03,
    log_position_error_sd=0.3,
    position_error_fall_sd_angstrom=2.0,
    shape_error=0.05,
    log_shape_error_sd=0.3,
    student_t_nu=np.inf,
)
# Photons alone: the same with discrepancies too small to see, and fixed.
COUNTING = replace(
    PRIORS,
    model_error=1e-3,
    log_model_error_sd=0.05,
    speckle_variance=1e-6,
    speckle_variance_sd=1e-7,
    position_error_px=1e-3,
    log_position_error_sd=0.05,
    position_error_fall_sd_angstrom=0.1,
    shape_error=1e-3,
    log_shape_error_sd=0.05,
)
SMALL = br.Simulation(
    n_images=4,
    n_pixels=340,
    d_min=3.9,
    mean_photons=400.0,
    background_photons=6.0,
    wilson_B=15.0,
)
SETTINGS = br.Settings(d_min=4.0, free_fraction=0.05)
SLOTS = 192  # reflections an image: one shape for all replicates, compiled once


class InMemory:
    """Photons where the loop wants a reader: stills are told apart by their ``frame``."""

    def __init__(self, images: np.ndarray):
        self.images = images
        self.mask = np.ones(images.shape[1:], bool)

    def read(self, still: br.Still) -> tuple[np.ndarray, np.ndarray]:
        """(P, ny, nx) photons and validity."""
        return self.images[still.frame], self.mask


@dataclass(frozen=True)
class Setup:
    """What stays the same from replicate to replicate: crystal, beam, reference, model, priors."""

    simulation: br.Simulation
    priors: br.Priors
    model: infer.Model
    settings: br.Settings = SETTINGS
    reference_seed: int = 0
    skewed: bool = False  # errors of J_model gamma distributed, not normal as the model has them

    @cached_property
    def reference(self) -> TrueIntensities:
        """Unique intensities, known to the fit."""
        return reference_intensities(
            self.simulation, rng=np.random.default_rng(self.reference_seed)
        )

    @cached_property
    def sphere(self) -> TrueIntensities:
        """Their equivalents and mates."""
        return whole_sphere(self.simulation.hall, self.reference)

    @cached_property
    def known(self) -> br.Reference:
        """The reference as the fit reads it."""
        group = gemmi.find_spacegroup_by_ops(gemmi.symops_from_hall(self.simulation.hall))
        hkl, _ = br.asu_map(self.reference.hkl, group)
        cell = gemmi.UnitCell(*self.simulation.cell)
        return br.Reference(hkl, self.reference.intensity, cell, group, "simulated")

    @cached_property
    def beam(self) -> br.Beam:
        """As it is, and as it is known."""
        s = self.simulation
        return br.Beam(
            s.wavelength,
            np.array([0.0, 0.0, 1.0]),
            np.array([0.0, 1.0, 0.0]),
            s.polarization_fraction,
            s.bandwidth,
        )

    @cached_property
    def pixel(self) -> float:
        """Å⁻¹ that a pixel spans, about: the unit of R1_px and position_error_px."""
        s = self.simulation
        return s.pixel_size_mm / (s.distance_mm * s.wavelength)


def indexed_stills(setup: Setup, rng: np.random.Generator) -> tuple[br.Still, ...]:
    """Stills in random orientations at the nominal geometry."""
    s = setup.simulation
    B = np.array(gemmi.UnitCell(*s.cell).frac.mat.tolist()).T
    detector = square_detector(s, s.distance_mm, s.beam_center_px)
    crystals = random_rotations(s.n_images, rng=rng) @ B
    return tuple(
        br.Still(f"{i}", "", i, setup.beam, detector, br.Crystal(A, s.hall))
        for i, A in enumerate(crystals)
    )


def draw_unknowns(
    setup: Setup, rng: np.random.Generator, pixel: float, n_strain: int
) -> dict[str, np.ndarray]:
    """Every unknown of the model "still" from its prior; ``pixel`` in Å⁻¹."""
    p, n = setup.priors, setup.simulation.n_images

    def log(median, sd, shape=()):
        return np.log(median) + sd * rng.standard_normal(shape)

    run = {
        "log_R0": log(p.R0_inv_angstrom, p.log_R0_sd),
        "log_bandwidth": log(setup.simulation.bandwidth, p.log_bandwidth_sd),
        "log_mosaic_mrad": log(p.mosaic_spread_mrad, p.log_mosaic_spread_sd),
        "detector_shift_mm": rng.standard_normal(3)
        * [p.beam_center_sd_mm, p.beam_center_sd_mm, p.distance_sd_mm],
        "log_model_error": log(p.model_error, p.log_model_error_sd),
        "model_error_fall": p.model_error_fall_sd_angstrom * rng.standard_normal(),
        "speckle_variance": p.speckle_variance + p.speckle_variance_sd * rng.standard_normal(),
        "log_position_error": log(p.position_error_px * pixel, p.log_position_error_sd, 2),
        "position_error_fall": p.position_error_fall_sd_angstrom * rng.standard_normal(2),
        "log_shape_error": log(p.shape_error, p.log_shape_error_sd),
    }
    return run | {
        "log_G": p.log_G_sd * rng.standard_normal((n, 1)),
        "B": p.B_mean + p.B_sd * rng.standard_normal((n, 1)),
        "rotation_mrad": p.rotation_sd_mrad * rng.standard_normal((n, 1, 3)),
        "strain": p.strain_sd * rng.standard_normal((n, 1, n_strain)),
        "log_mosaic_image_mrad": log(np.exp(run["log_mosaic_mrad"]), p.log_mosaic_image_sd, (n, 1)),
        "mosaic_shape": p.mosaic_shape_sd * rng.standard_normal((n, 1, 5)),
        "log_R1": log(p.R1_px * pixel, p.log_R1_sd, (n, 1)),
    }


def true_spots(setup: Setup, stills, truth: dict[str, np.ndarray], i: int):
    """Spots of image i at the truth without any discrepancy, and the detector they fall on."""
    s, crystal = setup.simulation, stills[i].crystal
    turn = Rotation.from_rotvec(1e-3 * truth["rotation_mrad"][i, 0]).as_matrix()
    strain = np.einsum("k,kab->ab", truth["strain"][i, 0], strain_basis(crystal))
    x, y, along = truth["detector_shift_mm"]
    detector = square_detector(
        s, s.distance_mm + along, s.beam_center_px + np.array([x, y]) / s.pixel_size_mm
    )
    here = SimulatedTruth(
        A=(turn @ (np.eye(3) + strain) @ crystal.A)[None],
        G=np.exp(truth["log_G"][i]),
        B=truth["B"][i],
        rotation_mrad=truth["rotation_mrad"][i],
        strain=truth["strain"][i],
        beam=setup.beam,
        detector=detector,
        reference=setup.reference,
        sphere=setup.sphere,
        bad=np.zeros((1, s.n_pixels, s.n_pixels), bool),
    )
    relp = replace(
        s,
        R0=float(np.exp(truth["log_R0"])),
        R1=float(np.exp(truth["log_R1"][i, 0])),
        bandwidth=float(np.exp(truth["log_bandwidth"])),
        mosaic_rad=1e-3 * float(np.exp(truth["log_mosaic_image_mrad"][i, 0])),
        mosaic_shape=tuple(truth["mosaic_shape"][i, 0]),
    )
    return predict_spots(relp, here, 0), detector, relp


def with_discrepancies(setup: Setup, spots, relp, truth, rng: np.random.Generator):
    """Spots as bright, as wide and where the model's errors put them, independently.

    J about J_model with the variance of ``learned_errors.variance_of_J_model``, displaced by
    N(0, σ²) along e1 and along e2, σ falling with resolution, R1² changed by a fraction: the
    discrepancies of ``models/still.py``.
    """
    wavelength = setup.beam.wavelength
    n = len(spots.J)
    norm_q = np.linalg.norm(spots.q, axis=1)
    sigma = relp_covariance(relp, spots.q, spots.frame)
    k2 = relp.R0**2 + 0.5 * (relp.bandwidth * wavelength * norm_q**2) ** 2
    mosaic_variance = sigma[:, 0, 0] - k2
    power = 2 * spots.epsilon_r**2 * (1 / (k2 + mosaic_variance) - 1 / (k2 + 2 * mosaic_variance))
    of_one = (k2 + mosaic_variance) / np.sqrt(k2 * (k2 + 2 * mosaic_variance)) * np.exp(power) - 1
    error = np.exp(truth["log_model_error"] - truth["model_error_fall"] * (norm_q - 0.25))
    speckle = of_one * truth["speckle_variance"]
    variance = np.where(speckle < 0, error**4 / (error**2 - speckle), error**2 + speckle)
    fall = np.exp(-np.outer(truth["position_error_fall"], norm_q - 0.25))
    delta = np.exp(truth["log_position_error"])[:, None] * fall * rng.standard_normal((2, n))
    wider = np.exp(truth["log_shape_error"]) * rng.standard_normal((n, 1))
    square = spots.width**2
    square = np.maximum(square + wider * square.sum(1, keepdims=True), 0.1 * square)
    frame = spots.frame.copy()
    frame[:, 2] -= wavelength * delta[1][:, None] * frame[:, 0]  # e2·x̂/λ is less by δ_2
    if setup.skewed:
        factor = rng.gamma(1 / variance) * variance
    else:
        factor = np.maximum(1 + np.sqrt(variance) * rng.standard_normal(n), 0)
    return replace(
        spots,
        J=spots.J * factor,
        center=spots.center + np.outer(delta[0], [1, 0]),
        width=np.sqrt(square),
        frame=frame,
    )


def paint(setup: Setup, stills, truth, rng: np.random.Generator) -> np.ndarray:
    """Poisson photons (n, P, ny, nx) of a run at the truth."""
    images = []
    for i in range(len(stills)):
        spots, detector, relp = true_spots(setup, stills, truth, i)
        spots = with_discrepancies(setup, spots, relp, truth, rng)
        expected = background_photons(setup.simulation, detector)
        expected = expected + spot_photons(detector, setup.beam, spots)
        images.append(rng.poisson(expected))
    return np.stack(images).astype(np.float32)


@dataclass(frozen=True)
class Replicate:
    """One simulated run and its fit: the truth by site, and what the last round saw."""

    truth: dict[str, np.ndarray]
    fit: br.Fit
    measurements: MeasuredRun
    movement: Movement

    @property
    def observations(self) -> SpotStatistics:
        """All reflections, the free ones too; ``fit`` marks those that were fitted."""
        return self.measurements.observations.whole()

    @property
    def batch(self) -> Batch:
        """The same, flat, with predictions and statistics."""
        return self.measurements.batches[0]


def run_of(setup: Setup, stills, images: np.ndarray) -> Run:
    """What the loop wants, with the pixels in memory."""
    hkl = predict.candidate_indices(stills[0].crystal.cell, setup.known.space_group, 3.9)
    hkl = hkl[setup.known.lookup(hkl) != 0]
    near = Candidates(hkl, 3.9 / 0.98, lambda d, beam: 4e-3 / 3 + 0 * d, margin=1.0)
    return Run(stills, setup.known, InMemory(images), setup.model, setup.settings, near)


def fit_pixels(
    setup: Setup, stills, images: np.ndarray, n_rounds: int = 5, start: dict | None = None
) -> tuple[br.Fit, MeasuredRun, Movement]:
    """The library's rounds from the prior means, or from ``start``; the last one exact.

    As many as a run's start and the run itself have together: two and three.
    """
    run, n = run_of(setup, stills, images), len(stills)
    state = {"log_G": np.zeros((n, 1)), **(start or {})}
    plan = Plan(slots=SLOTS, log_G0=0.0, pixel_inv_angstrom=setup.pixel)
    status = np.full(n, "", dtype=object)
    for k in range(n_rounds):
        last = k == n_rounds - 1
        found = one_round(
            run, state, setup.priors, status, plan, setup.settings.margin, last, br.Listener()
        )
        state, measurements = found.state, found.measurements
    return found.fit, measurements, found.movement


def replicate(setup: Setup, seed, n_rounds: int = 5) -> Replicate:
    """Draw, paint, measure, fit: everything follows from the seed."""
    rng = np.random.default_rng(seed)
    stills = indexed_stills(setup, rng)
    truth = draw_unknowns(setup, rng, setup.pixel, len(strain_basis(stills[0].crystal)))
    images = paint(setup, stills, truth, rng)
    return Replicate(truth, *fit_pixels(setup, stills, images, n_rounds))
