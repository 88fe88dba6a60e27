"""One round of a fit: predict at a state, measure there, fit."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from . import infer, measure, observe, predict, reference
from .crystal import refined_crystal
from .detector import Beam, beam_frame
from .errors import InputError
from .experiments import Still
from .forward import Observations
from .io.images import ImageReader
from .measure import Statistics, Weights, score_weights
from .predict import Predictions
from .priors import Priors
from .reference import Reference

MIN_COVERED = 0.6  # of a spot's template on usable pixels, for it to inform the fit
CLAIM = 1.5  # |ε_r| in R0_eff (p > 10 %) up to which a spot spoils its neighbours
BATCH = 8192  # shoeboxes in memory at a time
MIN_REFLECTIONS = 30  # in an image's fit: three for each of its ~ten unknowns

State = dict[str, np.ndarray]  # the model's sites, constrained, by name
Say = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """How a run is fitted.

    Attributes:
        d_min: Å. rounds: of predict → measure → fit.
        margin: reflections are taken up to |ε_r| of so many R0_eff; at 2.4, p = 0.3 %, well
            beyond where anything is seen.
        free_fraction, seed: the free set (``reference.free_set``).
        read_noise: photons rms a pixel.
        weights: ``measure.score_weights`` or ``measure.moment_weights``.
    """

    d_min: float = 2.0
    rounds: int = 3
    margin: float = 2.4
    free_fraction: float = 0.05
    seed: int = 0
    read_noise: float = 0.0
    weights: Weights = score_weights


@dataclass(frozen=True)
class Movement:
    """How far the pilot moved in one round: rms over images, and what was used.

    Attributes:
        rotation_mrad, log_R1, log_G: rms changes.
        iterations: Newton steps. seconds_measure, seconds_fit: wall time.
    """

    rotation_mrad: float
    log_R1: float
    log_G: float
    iterations: int
    seconds_measure: float
    seconds_fit: float

    def __str__(self) -> str:
        return (
            f"orientations moved by {self.rotation_mrad:.3g} mrad, ln G by {self.log_G:.2g},"
            f" ln R1 by {self.log_R1:.2g}; {self.iterations} steps; measured in"
            f" {self.seconds_measure:.1f} s, fitted in {self.seconds_fit:.1f} s"
        )


@dataclass(frozen=True)
class Run:
    """What stays the same from round to round; ``candidates``: (·, 3) hkl for each still."""

    stills: tuple[Still, ...]
    ref: Reference
    reader: ImageReader
    model: infer.Model
    settings: Settings
    candidates: tuple[np.ndarray, ...]

    def few(self, images: np.ndarray) -> Run:
        """The same for some of the images."""
        return replace(
            self,
            stills=tuple(self.stills[i] for i in images),
            candidates=tuple(self.candidates[i] for i in images),
        )


class Kept(NamedTuple):
    """What does not change between rounds: padding (``observe.layout``), ln G of the run."""

    slots: int = 0
    log_G0: float | None = None


@dataclass(frozen=True)
class Seen:
    """What one round is conditioned on: n images, N reflections (flat).

    Attributes:
        observations: padded; where: the place of flat reflections in the padding.
        predictions, statistics: flat.
        intensity: (N,) I_ref, NaN where unknown; free, informs: (N,) bool.
        log_G: (n, 1) where the scales start; log_G0: ln G of the run.
    """

    observations: Observations
    where: observe.Layout
    predictions: Predictions
    statistics: Statistics
    intensity: np.ndarray
    free: np.ndarray
    informs: np.ndarray
    log_G: np.ndarray
    log_G0: float

    @property
    def kept(self) -> Kept:
        """For the next round."""
        return Kept(self.where.shape[1], self.log_G0)


def one_round(
    run: Run,
    state: State,
    priors: Priors,
    status: np.ndarray,
    kept: Kept,
    margin: float,
    last: bool,
    say: Say,
) -> tuple[State, infer.Fit, Seen, Movement]:
    """Predict, measure and fit once from a state.

    Args:
        state: sites that are missing start at their prior mean, scales at what is measured.
        status: (n,) words; gets one for each image that turns out not to be usable.
        kept: from the round before, ``Seen.kept``.
        margin: |ε_r| up to which reflections are taken, in R0_eff.
        last: fit to convergence, with the exact curvature.

    Returns:
        The new state, the fit, what it was conditioned on, and how far things moved.
    """
    started = time.perf_counter()
    seen = measured(run, state, priors, status, kept, margin)
    ready = time.perf_counter()
    fit = infer.map_fit(
        run.model,
        seen.observations,
        priors,
        init={**state, "log_G": seen.log_G},
        tolerance=1e-2 if last else 0.5,
        stragglers=0.0 if last else 0.05,
        exact=last,
        progress=say,
    )
    new = fit.values()
    seconds = (ready - started, time.perf_counter() - ready)
    return new, fit, seen, _movement({"log_G": seen.log_G, **state}, new, seen, fit, *seconds)


def predicted(run: Run, state: State, priors: Priors, margin: float, slots: int = 0):
    """Stills and predictions at a state, their layout, and observations without statistics."""
    pilot = pilot_geometry(run.stills, state)
    width = partiality_width(state, priors)
    stills = moved(run.stills, *pilot)
    predictions = predict.concatenate(
        [
            predict.predict(s, hkl, run.settings.d_min, lambda d, s=s: margin * width(d, s.beam), i)
            for i, (s, hkl) in enumerate(zip(stills, run.candidates, strict=True))
        ]
    )
    if not len(predictions):
        raise InputError("no reflection is predicted on the detector; check d_min and the geometry")
    where = observe.layout(predictions, len(stills), slots)
    obs = observe.geometry_observations(list(run.stills), predictions, where, *pilot)
    return stills, predictions, where, obs


def measured(
    run: Run, state: State, priors: Priors, status: np.ndarray, kept: Kept, margin: float
) -> Seen:
    """Predict and measure at a state; the arguments are :func:`one_round`'s."""
    stills, predictions, where, obs = predicted(run, state, priors, margin, kept.slots)
    n = len(stills)
    scaled = "log_G" in state
    sites = infer.evaluate(run.model, {"log_G": np.zeros((n, 1)), **state}, obs, priors)
    intensity, free, expected = references(run.ref, predictions, run.settings)
    J = where.flat(sites["scale"]) * predictions.polarisation * expected
    moment = where.flat(sites["spot_moment"])
    R0_eff = partiality_width(state, priors)
    # without scales nothing is expected yet: flat weights
    statistics, failed = statistics_of(run, stills, predictions, J * scaled, moment, R0_eff)
    for i, why in failed.items():
        status[i] = why
    informs = np.isfinite(intensity) & ~free & (statistics.covered > MIN_COVERED)
    counts = np.bincount(predictions.image[informs], minlength=n)
    for i in np.flatnonzero((counts < MIN_REFLECTIONS) & (status == "")):
        status[i] = f"too few reflections ({counts[i]})"
    informs &= (status == "")[predictions.image]
    if not informs.any():
        raise InputError(f"no image can be used; the first one: {status[0]}")
    if scaled and kept.log_G0 is not None:
        log_G, log_G0 = state["log_G"], kept.log_G0
    else:
        log_G, log_G0 = _first_scales(statistics.value[:, 0], J, informs, predictions.image, n)
    obs = observe.with_statistics(
        obs,
        where,
        statistics,
        moment,
        predictions.polarisation * np.where(np.isfinite(intensity), intensity, 0.0),
        informs,
        log_G0,
    )
    return Seen(obs, where, predictions, statistics, intensity, free, informs, log_G, log_G0)


def _first_scales(total, J1, informs, image, n) -> tuple[np.ndarray, float]:
    """ln G (n, 1) from Σ T J1/Σ J1², J1 expected at G = 1, and the run's, for an image without."""
    use = informs & (J1 > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.bincount(image[use], (total * J1)[use], n) / np.bincount(
            image[use], J1[use] ** 2, n
        )
        log_G = np.log(ratio)
    usable = np.isfinite(log_G)
    if not usable.any():
        raise InputError(
            "no image has more photons at the predicted spots than beside them; "
            "check that experiments, images and reference belong together"
        )
    typical = float(np.median(log_G[usable]))
    log_G = np.where(usable, np.clip(log_G, typical - 3, typical + 3), typical)
    return log_G[:, None], typical


def pilot_geometry(stills, state):
    """Rotation (n, 3) mrad, strain (n, K) and shift (3,) mm of a state; zero where not refined."""
    n, K = len(stills), observe.strain_basis(stills[0].crystal).shape[0]
    return (
        np.asarray(state.get("rotation_mrad", np.zeros((n, 3)))).reshape(n, 3),
        np.asarray(state.get("strain", np.zeros((n, K)))).reshape(n, -1),
        np.asarray(state.get("detector_shift_mm", np.zeros(3))),
    )


def moved(stills, rotation_mrad, strain, shift_mm):
    """The stills with refined crystals and detector."""

    def one(still, rotation, e):
        axes = beam_frame(still.beam, still.detector) * np.array([[-1], [-1], [1]])
        return replace(
            still,
            crystal=refined_crystal(still.crystal, rotation, e),
            detector=still.detector.shifted(shift_mm @ axes),
        )

    return tuple(one(*row) for row in zip(stills, rotation_mrad, strain, strict=True))


def widths(state: State, priors: Priors) -> tuple[float, float]:
    """R0 (Å⁻¹) and mosaic spread η (mrad) of a state; the priors' where it has none."""
    log_R0 = state.get("log_R0", np.log(priors.R0_inv_angstrom))
    log_eta = state.get("log_mosaic_mrad", np.log(priors.mosaic_spread_mrad))
    return float(np.exp(np.asarray(log_R0))), float(np.exp(np.asarray(log_eta)))


def partiality_width(state: State, priors: Priors) -> Callable[[np.ndarray, Beam], np.ndarray]:
    """R0_eff (Å⁻¹) at a state, a function of d (Å) and of the beam."""
    R0, eta_mrad = widths(state, priors)

    def width(d, beam):
        smeared = beam.bandwidth * beam.wavelength / (np.sqrt(2) * d**2)
        return np.sqrt(R0**2 + smeared**2 + (1e-3 * eta_mrad / d) ** 2)

    return width


def references(ref, predictions, settings):
    """I_ref (NaN where unknown), the free set, and what to expect without looking at free I_ref."""
    intensity = ref.lookup(predictions.hkl)
    free = reference.free_set(
        predictions.hkl, settings.free_fraction, settings.seed, ref.space_group
    )
    mean = reference.wilson_mean(ref.d, ref.intensity, predictions.d)
    return intensity, free, np.where(np.isfinite(intensity) & ~free, intensity, mean)


def statistics_of(run: Run, stills, predictions: Predictions, expected, moment, R0_eff):
    """Statistics of all reflections, a few images in memory at a time.

    Returns the statistics and, for images that cannot be read, why: their spots count as
    uncovered.
    """
    pixel_area = np.abs(np.linalg.det(predictions.frame))
    width_px = float(np.sqrt(np.median((moment[:, 0] + moment[:, 1]) / pixel_area)))
    shoebox = measure.shoebox_for_width(width_px)
    bounds = np.searchsorted(predictions.image, np.arange(len(stills) + 1))
    failed: dict[int, str] = {}
    parts: list[Statistics] = []
    waiting: list[tuple] = []

    def flush():
        if waiting:
            rows = np.concatenate([w[0] for w in waiting])
            boxes = zip(*(w[1] for w in waiting), strict=True)
            parts.append(
                measure.measure(
                    measure.Boxes(*(np.concatenate(x) for x in boxes)),
                    predictions.frame[rows],
                    moment[rows],
                    expected[rows],
                    shoebox,
                    run.settings.read_noise,
                    run.settings.weights,
                )
            )
            waiting.clear()

    for i, still in enumerate(stills):
        rows = np.arange(bounds[i], bounds[i + 1])
        if not len(rows):
            continue
        try:
            image, mask = run.reader.read(still)
        except InputError as error:
            failed[i] = str(error)
            image = np.zeros((still.detector.n_panels, *still.detector.shape[0]), np.float32)
            mask = np.zeros(image.shape, bool)
        near = CLAIM * R0_eff(predictions.d[rows], still.beam)
        claimed = np.abs(predictions.excitation_error[rows]) < near
        boxes = measure.cut_shoeboxes(
            image, mask, predictions.panel[rows], predictions.xy_px[rows], claimed, shoebox
        )
        waiting.append((rows, boxes))
        if sum(len(w[0]) for w in waiting) >= BATCH:
            flush()
    flush()
    return measure.concatenate(parts), failed


def _movement(old: State, new: State, seen: Seen, result, seconds_measure, seconds_fit):
    """What changed in a round, over the images that could be used."""
    usable = np.bincount(seen.predictions.image[seen.informs], minlength=len(result.status)) > 0

    def rms(name):
        if name not in new:
            return 0.0
        change = np.asarray(new[name]) - np.asarray(old.get(name, 0.0))
        return float(np.sqrt(np.mean(change[usable] ** 2)))

    return Movement(
        rotation_mrad=rms("rotation_mrad"),
        log_R1=rms("log_R1"),
        log_G=rms("log_G"),
        iterations=result.iterations,
        seconds_measure=seconds_measure,
        seconds_fit=seconds_fit,
    )
