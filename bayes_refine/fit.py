"""The one loop: predict → measure → fit, until nothing moves."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

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
BROAD_MARGIN = 1.7  # while the curve is held broad (p = 6 %)
MIN_COVERED = 0.6  # of a spot's template on usable pixels, for it to inform the fit
CLAIM = 1.5  # |ε_r| in R0_eff (p > 10 %) up to which a spot spoils its neighbours
BATCH = 8192  # shoeboxes in memory at a time
# errors to start from: too large is soon mended, too small is not
ROUGH = {"log_model_error": 0.5, "log_position_error": 5e-4, "log_shape_error": 0.5}
SCOUTS = 16  # images on which a larger run finds its widths
HOLD = 0.05  # sd of ln R0 and ln η in a first round
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
        rotation_mrad, log_R1, log_G: rms changes.
        iterations: Newton steps. seconds_measure, seconds_fit: wall time.
    """

    rotation_mrad: float
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
    reference.check_fits(ref, [s.crystal for s in stills], "the experiments")
    candidates = _candidates(stills, ref, priors, settings)
    run = _Run(stills, ref, reader, model, priors, settings, candidates)
    status = np.full(len(stills), "", dtype=object)
    state, log_G0, broad, after = _scout(run, say)
    movement: list[Movement] = []
    slots = 0
    for round_ in range(1, settings.rounds + 1):
        say(f"round {round_} of {settings.rounds}: {len(stills)} images")
        now, last = (broad if round_ == 1 else priors), round_ == settings.rounds
        new, result, seen, moved = _round(run, state, now, status, log_G0, slots, last, say)
        slots = seen.where.shape[1]
        movement.append(moved)
        say(f"round {round_}: {moved}")
        state = {**new, **after} if round_ == 1 else new  # the widths were held broad

    return RunFit(
        stills=_moved(stills, *_pilot_geometry(stills, state)),
        indexed=stills,
        status=np.where(status == "", result.status, status),
        fit=result,
        observations=seen.observations,
        predictions=seen.predictions,
        statistics=seen.statistics,
        where=seen.where,
        free=seen.free,
        informs=seen.informs,
        intensity_reference=seen.intensity,
        model_sites=infer.evaluate(model, state, seen.observations, priors),
        movement=tuple(movement),
    )


State = dict[str, np.ndarray]  # the model's sites, constrained, by name


@dataclass(frozen=True)
class _Run:
    """What stays the same from round to round; ``candidates`` (·, 3) hkl for each still."""

    stills: tuple[Still, ...]
    ref: Reference
    reader: ImageReader
    model: infer.Model
    priors: Priors
    settings: Settings
    candidates: list[np.ndarray]


@dataclass(frozen=True)
class _Seen:
    """What one round is conditioned on."""

    predictions: Predictions
    where: observe.Layout
    statistics: Statistics
    observations: Observations
    intensity: np.ndarray
    free: np.ndarray
    informs: np.ndarray


def _candidates(stills, ref, priors, settings):
    """For each still the reflections that may come near the sphere in any round."""
    cell = stills[0].crystal.cell
    hkl = predict.candidate_indices(cell, ref.space_group, settings.d_min)
    hkl = hkl[ref.lookup(hkl) != 0]  # systematically absent
    width = _partiality_width({}, priors)
    return [
        predict.near_sphere(
            s, hkl, 0.98 * settings.d_min, lambda d, s=s: 3 * MARGIN * width(d, s.beam)
        )
        for s in stills
    ]


def _predicted(run: _Run, state: State, priors: Priors, slots: int = 0):
    """Predictions at a state, their layout, and observations that still lack the statistics."""
    pilot = _pilot_geometry(run.stills, state)
    margin = MARGIN if priors.log_R0_sd > HOLD else BROAD_MARGIN
    width = _partiality_width(state, priors)
    stills = _moved(run.stills, *pilot)
    predictions = predict.concatenate(
        [
            predict.predict(
                s, hkl, run.settings.d_min, lambda d, s=s: margin * width(d, s.beam), i
            )
            for i, (s, hkl) in enumerate(zip(stills, run.candidates, strict=True))
        ]
    )
    if not len(predictions):
        raise InputError("no reflection is predicted on the detector; check d_min and the geometry")
    where = observe.layout(predictions, len(stills), slots)
    obs = observe.geometry_observations(list(run.stills), predictions, where, *pilot)
    return stills, predictions, where, obs


def _round(run: _Run, state: State, priors: Priors, status, log_G0: float, slots: int, last: bool, say):
    """One round from a state: the new state, the fit, what it was conditioned on, the movement."""
    started = time.perf_counter()
    seen = _measured(run, state, priors, status, log_G0, slots)
    measured = time.perf_counter()
    result = infer.map_fit(
        run.model,
        seen.observations,
        priors,
        init=state,
        tolerance=1e-2 if last else 0.5,
        stragglers=0.0 if last else 0.02,
        exact=last,
        progress=say,
    )
    new = result.values()
    seconds = (measured - started, time.perf_counter() - measured)
    return new, result, seen, _movement(state, new, seen, result, *seconds)


def _measured(run: _Run, state: State, priors: Priors, status, log_G0: float, slots: int) -> _Seen:
    """Predict and measure at a state; ``status`` gets a word for each image that cannot be used."""
    stills, predictions, where, obs = _predicted(run, state, priors, slots)
    sites = infer.evaluate(run.model, state, obs, priors)
    intensity, free, expected = _references(run.ref, predictions, run.settings)
    scale = where.flat(sites["scale"]) * predictions.polarisation
    moment = where.flat(sites["spot_moment"])
    statistics, failed = _statistics(run, stills, predictions, scale * expected, moment, state)
    for i, why in failed.items():
        status[i] = why
    informs = np.isfinite(intensity) & ~free & (statistics.covered > MIN_COVERED)
    informs &= (status == "")[predictions.image]
    counts = np.bincount(predictions.image[informs], minlength=len(stills))
    for i in np.flatnonzero((counts < MIN_REFLECTIONS) & (status == "")):
        status[i] = f"too few reflections ({counts[i]})"
    informs &= (status == "")[predictions.image]
    if not informs.any():
        raise InputError(f"no image can be used: {status[0]}")
    obs = observe.with_statistics(
        obs,
        where,
        statistics,
        moment,
        predictions.polarisation * np.where(np.isfinite(intensity), intensity, 0.0),
        informs,
        log_G0,
    )
    return _Seen(predictions, where, statistics, obs, intensity, free, informs)


def _scout(run: _Run, say) -> tuple[State, float, Priors, State]:
    """Where to start, ln G of the run, priors for the first round, what to expect after it.

    Found on up to 16 images.  Orientations that are off look like mosaic spread, so the first round of a run is fitted
    with η² + 2⟨ω²⟩ in place of η² and both widths held: a broad curve that every image can be
    found on.  ⟨ω²⟩, the widths, the detector and the errors come from the scouts, whose own
    first round has the priors' widths.
    """
    n = len(run.stills)
    some = np.unique(np.linspace(0, n - 1, SCOUTS).astype(int))
    few = replace(
        run,
        stills=tuple(run.stills[i] for i in some),
        candidates=[run.candidates[i] for i in some],
    )
    say(f"finding the width of spots and of the partiality curve on {len(some)} images")
    state, log_G0 = _first_scales(few, {"log_R1": _spot_width(few)})
    state |= {name: np.log(value) for name, value in ROUGH.items()}
    hold = {"log_R0_sd": HOLD, "log_mosaic_spread_sd": HOLD}
    broad = replace(run.priors, **hold)
    status = np.full(len(some), "", dtype=object)
    found, slots = [], 0
    for priors in (broad, run.priors):
        state, result, seen, moved = _round(few, state, priors, status, log_G0, slots, False, say)
        slots = seen.where.shape[1]
        found.append({site.name: state[site.name] for site in result.sites if not site.per_image})
        say(f"scouts: {moved}")
    wide, shared = found
    turned = np.asarray(state.get("rotation_mrad", 0.0))
    eta = float(np.exp(shared.get("log_mosaic_mrad", np.log(run.priors.mosaic_spread_mrad))))
    eta = float(np.hypot(eta, np.sqrt(2 * np.mean(turned**2))))
    R0 = float(np.exp(shared.get("log_R0", np.log(run.priors.R0_inv_angstrom))))
    broad = replace(run.priors, **hold, R0_inv_angstrom=R0, mosaic_spread_mrad=eta)
    start = {**wide, "log_R0": np.log(R0), "log_mosaic_mrad": np.log(eta)}
    start |= {"detector_shift_mm": shared.get("detector_shift_mm", np.zeros(3))}
    state, log_G0 = _first_scales(run, {**start, "log_R1": np.median(state["log_R1"])})
    if "log_mosaic_image_mrad" in result.values():
        shared["log_mosaic_image_mrad"] = np.full((n, 1), shared["log_mosaic_mrad"])
    return state, log_G0, broad, shared


def _spot_width(run: _Run) -> float:
    """ln R1 of the run from the summed spread Σ T_spread J1/Σ T_total J1, flat weights, J1 the
    expected intensity at G = 1; four times, since the template has to be about right.
    """
    state: State = {}
    for _ in range(4):
        _, _, total, spread, pixel = _summed(run, state)
        eta = np.clip(spread / total if total > 0 else 0.0, -0.3, 0.45)
        log_R1 = float(state.get("log_R1", np.log(run.priors.R1_px * pixel)))
        state = {"log_R1": log_R1 + 0.5 * np.log1p(2 * eta / (1 - eta))}
    return float(state["log_R1"])


def _first_scales(run: _Run, state: State) -> tuple[State, float]:
    """ln G of the run, and the state with ln G of each image from Σ T J1/Σ J1²; the run's where an image shows nothing."""
    top, bottom = _summed(run, state)[:2]
    with np.errstate(divide="ignore", invalid="ignore"):
        log_G = np.log(top / bottom)
    usable = np.isfinite(log_G)
    if not usable.any():
        raise InputError(
            "no image has more photons at the predicted spots than beside them; "
            "check that experiments, images and reference belong together"
        )
    typical = float(np.median(log_G[usable]))
    log_G = np.where(usable, np.clip(log_G, typical - 3, typical + 3), typical)
    column = {k: np.full((len(log_G), 1), state[k]) for k in state if k == "log_R1"}
    return {**state, **column, "log_G": log_G[:, None]}, typical


def _summed(run: _Run, state: State):
    """Σ T J1 and Σ J1² by image; Σ T J1 and Σ T_spread J1 of the run; a pixel in Å⁻¹."""
    stills, predictions, where, obs = _predicted(run, state, run.priors)
    n = len(stills)
    unit = {**state, "log_G": np.zeros((n, 1))}
    if "log_R1" in state:
        unit["log_R1"] = np.full((n, 1), state["log_R1"])
    sites = infer.evaluate(run.model, unit, obs, run.priors)
    expected = _references(run.ref, predictions, run.settings)[2]
    J1 = where.flat(sites["scale"]) * predictions.polarisation * expected
    moment = where.flat(sites["spot_moment"])
    statistics, _ = _statistics(run, stills, predictions, 0 * J1, moment, state)
    J1 = np.where(statistics.covered > MIN_COVERED, J1, 0.0)
    top = np.bincount(predictions.image, statistics.value[:, 0] * J1, n)
    bottom = np.bincount(predictions.image, J1**2, n)
    spread = float(np.sum(statistics.value[:, 3] * J1))
    return top, bottom, float(top.sum()), spread, float(obs.pixel_inv_angstrom)


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


def _partiality_width(state: State, priors: Priors):
    """R0_eff (Å⁻¹) at a state, a function of d (Å) and of the beam."""
    R0 = float(np.exp(state.get("log_R0", np.log(priors.R0_inv_angstrom))))
    eta = 1e-3 * float(np.exp(state.get("log_mosaic_mrad", np.log(priors.mosaic_spread_mrad))))

    def width(d, beam):
        smeared = beam.bandwidth * beam.wavelength / (np.sqrt(2) * d**2)
        return np.sqrt(R0**2 + smeared**2 + (eta / d) ** 2)

    return width


def _references(ref, predictions, settings):
    """I_ref (NaN where unknown), the free set, and what to expect without looking at free I_ref."""
    intensity = ref.lookup(predictions.hkl)
    free = reference.free_set(predictions.hkl, settings.free_fraction, settings.seed, ref.space_group)
    mean = reference.wilson_mean(ref.d, ref.intensity, predictions.d)
    return intensity, free, np.where(np.isfinite(intensity) & ~free, intensity, mean)


def _statistics(run: _Run, stills, predictions: Predictions, expected, moment, state):
    """Statistics of all reflections, a few images in memory at a time.

    Returns the statistics and, for images that cannot be read, why: their spots count as
    uncovered.
    """
    pixel_area = np.abs(np.linalg.det(predictions.frame))
    width_px = float(np.sqrt(np.median((moment[:, 0] + moment[:, 1]) / pixel_area)))
    shoebox = measure.shoebox_for_width(width_px)
    R0_eff = _partiality_width(state, run.priors)
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


def _movement(old: State, new: State, seen: _Seen, result, seconds_measure, seconds_fit):
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
