"""The one loop: predict → measure → fit, until nothing moves."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from . import infer, measure, observe, predict, reference
from .crystal import refined_crystal
from .detector import beam_frame
from .errors import InputError
from .experiments import Still
from .forward import Observations
from .io.images import ImageReader
from .measure import Statistics, Weights, score_weights
from .predict import Predictions
from .priors import Priors
from .reference import Reference

MARGIN = 2.4  # |ε_r| up to this many R0_eff: p = 0.3 % there, well beyond where anything is seen
MIN_COVERED = 0.6  # of a spot's template on usable pixels, for it to inform the fit
CLAIM = 1.5  # |ε_r| in R0_eff (p > 10 %) up to which a spot spoils its neighbours
MIN_REFLECTIONS = 30  # in an image's fit: three for each of its ~ten unknowns


@dataclass(frozen=True)
class Settings:
    """How a run is fitted.

    Attributes:
        d_min: Å. rounds: of predict → measure → fit.
        free_fraction, seed: the free set (``reference.free_set``).
        read_noise: photons rms a pixel.
        weights: ``measure.score_weights`` or ``measure.moment_weights``.
    """

    d_min: float = 2.0
    rounds: int = 3
    free_fraction: float = 0.05
    seed: int = 0
    read_noise: float = 0.0
    weights: Weights = score_weights


@dataclass(frozen=True)
class Movement:
    """How far the pilot moved in one round: rms over images, and what was used.

    Attributes:
        rotation_mrad, centre_px, log_R1, log_G: rms changes.
        iterations: Newton steps. seconds_measure, seconds_fit: wall time.
    """

    rotation_mrad: float
    centre_px: float
    log_R1: float
    log_G: float
    iterations: int
    seconds_measure: float
    seconds_fit: float


@dataclass(frozen=True)
class RunFit:
    """A fitted run: n images, N reflections (flat).

    Attributes:
        stills: refined geometry; indexed: as they came in.
        status: (n,) "converged" or why an image is not to be trusted.
        fit, observations: the posterior mode and what it was conditioned on (images with a
            usable status before the fit: ``used`` (n,) bool; others stay in as empty rows).
        predictions, statistics: of the last round, flat; where: their place in the padding.
        free: (N,) bool; informs: (N,) bool, reflections the fit was conditioned on.
        intensity_reference: (N,) I_ref, NaN where unknown.
        model_sites: the model's deterministic sites at the mode, padded.
        movement: one entry a round.
    """

    stills: tuple[Still, ...]
    indexed: tuple[Still, ...]
    status: np.ndarray
    fit: infer.Fit
    observations: Observations
    predictions: Predictions
    statistics: Statistics
    where: observe.Layout
    free: np.ndarray
    informs: np.ndarray
    intensity_reference: np.ndarray
    model_sites: dict[str, np.ndarray]
    movement: tuple[Movement, ...]

    @property
    def J(self) -> np.ndarray:
        """(N,) profile-fitted intensities, photons."""
        return self.statistics.value[:, 0]

    @property
    def scale(self) -> np.ndarray:
        """(N,) G·B_term·p·pol: photons per unit of I."""
        return self.where.flat(self.model_sites["scale"]) * self.predictions.polarisation

    @property
    def J_model(self) -> np.ndarray:
        """(N,) expected intensities, photons; NaN without a reference."""
        return self.scale * self.intensity_reference

    def variance(self, J_model: np.ndarray) -> np.ndarray:
        """(N,) counting variance of J expected for ``J_model`` (N,), photons²."""
        s = self.statistics
        return s.variance_background[:, 0] + np.maximum(J_model, 0) * s.variance_signal[:, 0]


def fit_run(
    stills: Sequence[Still],
    ref: Reference,
    reader: ImageReader,
    model: infer.Model,
    priors: Priors | None = None,
    settings: Settings | None = None,
    progress: Callable[[str], None] | None = None,
) -> RunFit:
    """Refine a run of stills against a reference: predict → measure → fit.

    Raises:
        InputError: the reference does not fit the crystals, or no image can be used.
    """
    priors, settings = priors or Priors(), settings or Settings()
    say = progress or (lambda line: None)
    stills = tuple(stills)
    conditioned = partial(model, priors=priors)
    reference.check_fits(ref, [s.crystal for s in stills], "the experiments")
    cell = stills[0].crystal.cell
    candidates = predict.candidate_indices(cell, ref.space_group, settings.d_min)
    candidates = candidates[ref.lookup(candidates) != 0]  # systematically absent
    hkl = [candidates] * len(stills)
    status = np.full(len(stills), "", dtype=object)

    state: dict[str, np.ndarray] = {}
    movement: list[Movement] = []
    slots = 0
    for round_ in range(1, settings.rounds + 1):
        started = time.perf_counter()
        pilot = _pilot_geometry(stills, state)
        current = _moved(stills, *pilot)
        limit = _excitation_limit(state, priors)
        say(f"round {round_} of {settings.rounds}: predicting and measuring {len(stills)} images")
        parts = [
            predict.predict(s, h, settings.d_min, limit, i)
            for i, (s, h) in enumerate(zip(current, hkl, strict=True))
        ]
        if round_ == 1:  # later rounds move by far less than the width of this shell
            hkl = [
                predict.predict(s, candidates, 0.98 * settings.d_min, _wider(limit), i).hkl
                for i, s in enumerate(current)
            ]
        predictions = predict.concatenate(parts)
        where = observe.layout(predictions, len(stills), slots)
        slots = where.shape[1]
        obs = observe.geometry_observations(list(stills), predictions, where, *pilot)
        intensity, free, expected = _references(ref, predictions, settings)
        sites = infer.evaluate(conditioned, state, obs)
        scale = where.flat(sites["scale"]) * predictions.polarisation
        J0 = scale * expected if state else np.zeros(len(predictions))
        moment = where.flat(sites["spot_moment"])
        predictions, statistics, failed = _measure(
            current, predictions, where, reader, J0, moment, limit, settings, say
        )
        for i, why in failed.items():
            status[i] = why
        informs = np.isfinite(intensity) & ~free & (statistics.covered > MIN_COVERED)
        informs &= np.array([not status[i] for i in range(len(stills))])[predictions.image]
        counts = np.bincount(predictions.image[informs], minlength=len(stills))
        for i in np.flatnonzero((counts < MIN_REFLECTIONS) & (status == "")):
            status[i] = f"too few reflections ({counts[i]})"
        informs &= (status == "")[predictions.image]
        if not informs.any():
            raise InputError(f"no image can be used: {status[0]}")

        if not state:
            log_G, log_G0 = _first_scales(statistics, scale * np.nan_to_num(intensity), informs,
                                          predictions.image, len(stills))
            init = {"log_G": log_G.reshape(-1, 1)}
        else:
            init = state
        prior_scale = log_G0
        obs = observe.with_statistics(
            obs, where, statistics, moment,
            predictions.polarisation * np.where(np.isfinite(intensity), intensity, 0.0),
            informs, prior_scale,
        )
        measured = time.perf_counter()
        result = infer.map_fit(conditioned, obs, init=init, progress=say)
        new = result.values()
        movement.append(
            _movement(state, new, obs, result, measured - started, time.perf_counter() - measured)
        )
        say(f"round {round_}: {movement[-1]}")
        state = new

    sites = infer.evaluate(conditioned, state, obs)
    return RunFit(
        stills=_moved(stills, *_pilot_geometry(stills, state)),
        indexed=stills,
        status=np.where(status == "", result.status, status),
        fit=result,
        observations=obs,
        predictions=predictions,
        statistics=statistics,
        where=where,
        free=free,
        informs=informs,
        intensity_reference=intensity,
        model_sites=sites,
        movement=tuple(movement),
    )


def _pilot_geometry(stills, state):
    """Rotation (n, 3) mrad, strain (n, K) and shift (3,) mm of a state; zero where not refined."""
    n, K = len(stills), observe.strain_basis(stills[0].crystal).shape[0]
    return (
        np.asarray(state.get("rotation_mrad", np.zeros((n, 3)))).reshape(n, 3),
        np.asarray(state.get("strain", np.zeros((n, K)))).reshape(n, -1),
        np.asarray(state.get("detector_shift_mm", np.zeros(3))),
    )


def _moved(stills, rotation_mrad, strain, shift_mm):
    """The stills with refined crystals and detector."""

    def one(still, rotation, e):
        axes = beam_frame(still.beam, still.detector) * np.array([[-1], [-1], [1]])
        return replace(
            still,
            crystal=refined_crystal(still.crystal, rotation, e),
            detector=still.detector.shifted(shift_mm @ axes),
        )

    return tuple(one(*row) for row in zip(stills, rotation_mrad, strain, strict=True))


def _excitation_limit(state, priors):
    """|ε_r| up to which reflections are taken, a function of d and λ: by the pilot, never by counts."""
    R0 = float(np.exp(state.get("log_R0", np.log(priors.R0_inv_angstrom))))
    eta = 1e-3 * float(np.exp(state.get("log_mosaic_mrad", np.log(priors.mosaic_spread_mrad))))
    return lambda d, wavelength: MARGIN * np.sqrt(R0**2 + (eta / d) ** 2)


def _wider(limit):
    return lambda d, wavelength: 3 * limit(d, wavelength)


def _references(ref, predictions, settings):
    """I_ref (NaN where unknown), the free set, and what to expect without looking at free I_ref."""
    intensity = ref.lookup(predictions.hkl)
    free = reference.free_set(predictions.hkl, settings.free_fraction, settings.seed, ref.space_group)
    mean = reference.wilson_mean(ref.d, ref.intensity, predictions.d)
    return intensity, free, np.where(np.isfinite(intensity) & ~free, intensity, mean)


def _measure(stills, predictions, where, reader, J0, moment, limit, settings, say):
    """Statistics of all reflections, image by image from disk; an unreadable image is reported."""
    width_px = np.sqrt(np.median((moment[:, 0] + moment[:, 1]) / np.abs(np.linalg.det(predictions.frame))))
    shoebox = measure.shoebox_for_width(float(width_px))
    bounds = np.searchsorted(predictions.image, np.arange(len(stills) + 1))
    R0_eff = limit(predictions.d, None) / MARGIN
    claimed = np.abs(predictions.excitation_error) < CLAIM * R0_eff
    failed, parts, waiting, size = {}, [], [], 0

    def flush():
        if waiting:
            rows = np.concatenate([w[0] for w in waiting])
            boxes = [np.concatenate([w[1][k] for w in waiting]) for k in range(4)]
            parts.append(measure.measure(
                *boxes, predictions.frame[rows], moment[rows], J0[rows], shoebox,
                settings.read_noise, settings.weights,
            ))
            waiting.clear()

    for i, still in enumerate(stills):
        rows = np.arange(bounds[i], bounds[i + 1])
        if not len(rows):
            continue
        try:
            image, mask = reader.read(still)
        except InputError as error:
            failed[i] = str(error)
            image = np.zeros((still.detector.n_panels, *still.detector.shape[0]), np.float32)
            mask = np.zeros(image.shape, bool)
        waiting.append((rows, measure.cut_shoeboxes(
            image, mask, predictions.panel[rows], predictions.xy_px[rows], claimed[rows], shoebox)))
        size += len(rows)
        if size >= 8192:
            flush()
            size = 0
    flush()
    return predictions, measure.concatenate(parts), failed


def _first_scales(statistics, J1, informs, image, n):
    """ln G of each image, and of the run, from totals: Σ T J1/Σ J1²; the run's where an image has none."""
    use = informs & (J1 > 0)
    top = np.bincount(image[use], statistics.value[use, 0] * J1[use], n)
    bottom = np.bincount(image[use], J1[use] ** 2, n)
    with np.errstate(divide="ignore", invalid="ignore"):
        log_G = np.log(top / bottom)
    usable = np.isfinite(log_G)
    if not usable.any():
        raise InputError("no image has more photons at the predicted spots than beside them; "
                         "check that experiments, images and reference belong together")
    typical = float(np.median(log_G[usable]))
    return np.where(usable, np.clip(log_G, typical - 3, typical + 3), typical), typical


def _movement(old, new, obs, result, seconds_measure, seconds_fit):
    def rms(name):
        if name not in new:
            return 0.0
        change = np.asarray(new[name]) - (np.asarray(old[name]) if name in old else 0.0)
        return float(np.sqrt(np.mean(change**2))) if name in old or name == "rotation_mrad" else float("nan")

    return Movement(
        rotation_mrad=rms("rotation_mrad"),
        centre_px=float("nan"),
        log_R1=rms("log_R1"),
        log_G=rms("log_G"),
        iterations=result.iterations,
        seconds_measure=seconds_measure,
        seconds_fit=seconds_fit,
    )
