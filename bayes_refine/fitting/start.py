"""The start of a run: fit a few of its images to find a state for all images."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .. import infer
from ..physics.contract import check_deterministic, check_unknowns
from ..physics.priors import Priors
from ..util.errors import InputError
from ..util.progress import Listener
from .measure_batch import (
    MIN_COVERED,
    Plan,
    pixels_of,
    references,
    shoebox_for,
    statistics_of,
)
from .one_round import one_round
from .padding import slots
from .problem import BATCH, Run
from .state import PANELS, State, images_of, partiality_width, widths
from .statistics_of_images import geometry_at, pixel_size, predictions_of, stills_at

HELD_SD = 0.05  # sd of ln of held unknowns: R0, η, bandwidth while the curve is broad; ν always
HELD_WIDTHS = dict.fromkeys(("log_R0_sd", "log_mosaic_spread_sd", "log_bandwidth_sd"), HELD_SD)
BROAD_MARGIN = 1.5  # largest |ε_r| in R0_eff while the curve is broad (p = 10 %)
# first values of errors: a fit soon corrects values that are too large, but not too small ones
FIRST_ERRORS = {
    "log_model_error": [0.5],
    "log_position_error": [5e-4] * 2,
    "log_shape_error": [0.5],
}


@dataclass(frozen=True)
class Start:
    """The start of a run.

    Attributes:
        state: for the first round, with a broad partiality curve.
        broad: the priors that hold the curve broad.
        after: sites that go into the state after the first round.
        plan: numbers that are the same in all rounds.
    """

    state: State
    broad: Priors
    after: State
    plan: Plan


def find_start(run: Run, priors: Priors, progress: Listener) -> Start:
    """Fit up to 16 images from all over the run to find a state for all images.

    Wrong orientations look like mosaic spread.  The first round of a run is therefore fitted with
    η² + 2⟨ω²⟩ in place of η² and with both widths held: the curve is then so broad that the spots
    of every image lie on it.  ⟨ω²⟩, the widths, the detector and the errors come from the start,
    whose own first round has the priors' widths.
    """
    n = len(run.stills)
    images = np.unique(np.linspace(0, n - 1, BATCH).astype(int))
    few = run.few(images)
    progress.say(f"finding the width of spots and of the partiality curve on {len(images)} images")
    # heavy tails while much is still wrong
    priors = replace(priors, log_student_t_nu_sd=HELD_SD)
    if run.crosswise is not None:  # errors of the model and unknown intensities look alike
        priors = replace(
            priors,
            log_model_error_sd=HELD_SD,
            model_error_fall_sd_angstrom=HELD_SD,
            speckle_variance_sd=HELD_SD * priors.speckle_variance,
        )
    state: State = {"log_R1": np.full((len(images), 1), spot_width(few, priors))}
    state |= wavelengths(few)
    state |= {name: np.log(np.squeeze(value)) for name, value in FIRST_ERRORS.items()}
    status, shared = np.full(len(images), "", dtype=object), []
    wide, narrow = (
        np.bincount(predictions_of(few, state, priors, margin, slice(0, len(images))).image)
        for margin in (run.settings.margin, BROAD_MARGIN)
    )
    # a small run has one shape for all its rounds, a large one shapes that waste little
    plan = Plan(slots(narrow, slots(wide), n))
    for now, margin in (
        (replace(priors, **HELD_WIDTHS), BROAD_MARGIN),
        (priors, run.settings.margin),
    ):
        found = one_round(few, state, now, status, plan, margin, False, progress)
        state, plan = found.state, found.measurements.plan
        found.measurements.batches.delete()
        sites = found.fit.sites
        shared.append({site.name: state[site.name] for site in sites if not site.per_image})
        progress.say(f"start: {found.movement}")
    of_broad_curve, after = shared

    curve, broad = broadened(after, np.asarray(state.get("rotation_mrad", 0.0)), priors)
    start = {**of_broad_curve, **curve}
    start |= {k: after[k] for k in ("detector_shift_mm", *PANELS) if k in after}
    if "strain" in state:  # the cell goes with the distance
        start["strain"] = np.repeat(np.median(state["strain"], axis=0)[None], n, axis=0)
    start |= wavelengths(run)
    if "log_R1" in state:
        start["log_R1"] = np.full((n, 1), np.median(state["log_R1"]))
    if "log_mosaic_image_mrad" in state:
        after["log_mosaic_image_mrad"] = np.full((n, 1), after["log_mosaic_mrad"])
    return Start(start, broad, after, plan)


def broadened(shared: State, turned: np.ndarray, priors: Priors) -> tuple[State, Priors]:
    """Widths of the partiality curve for images whose orientations are as indexed: η² + 2⟨ω²⟩ in
    place of η²; and the priors that hold the widths there.

    Args:
        shared: sites with the widths of refined images. turned: (n, 3) ω of images, mrad.
    """
    R0, mosaic_mrad = widths(shared, priors)
    mosaic_mrad = float(np.hypot(mosaic_mrad, np.sqrt(2 * np.mean(turned**2))))
    broad = replace(priors, **HELD_WIDTHS, R0_inv_angstrom=R0, mosaic_spread_mrad=mosaic_mrad)
    return {"log_R0": np.log(R0), "log_mosaic_mrad": np.log(mosaic_mrad)}, broad


def wavelengths(run: Run) -> State:
    """ln λ that the stills start with, where it is an unknown of each shot."""
    if run.stills[0].stated_wavelength is None:
        return {}
    return {"log_wavelength": np.log([[still.beam.wavelength] for still in run.stills])}


def spot_width(run: Run, priors: Priors) -> float:
    """ln R1 (Å⁻¹) of a run from the summed spread Σ T_spread J1/Σ T_total J1.

    Weights are flat; J1 is the expected J at G = 1.  Four iterations are made, since the width is
    right only if the template is nearly right.
    """
    n = len(run.stills)
    images = slice(0, n)
    state: State = {}
    log_R1 = 0.0
    for attempt in range(4):
        predictions = predictions_of(run, state, priors, BROAD_MARGIN, images)
        if not len(predictions):
            raise InputError(
                "no reflection is predicted on the detector; check d_min and the geometry"
            )
        pixel = pixel_size(predictions)
        m = slots(np.bincount(predictions.image))
        where, obs = geometry_at(run, state, predictions, images, m, pixel)
        here = images_of({**state, "log_G": np.zeros((n, 1))}, images, run.size)
        sites = infer.evaluate(run.model, here, obs, priors)
        if attempt == 0:
            check_deterministic(sites)
            check_unknowns(infer.sites_of(run.model, (obs, priors)))
        expected = references(run, predictions, images)[3]
        J1 = where.flat(sites["scale"]) * predictions.polarisation * expected
        moment = where.flat(sites["spot_moment"])
        stills = stills_at(run, state, images)
        shoebox = shoebox_for(predictions.frame, moment, run.settings.point_spread)
        width = partiality_width(state, priors)
        pixels = pixels_of(run, stills, predictions, width, shoebox)
        found = statistics_of(run, stills, predictions, 0 * J1, moment, pixels, shoebox)
        J1 = np.where(found.covered > MIN_COVERED, J1, 0.0)
        total, spread = np.sum(found.value[:, [0, 3]] * J1[:, None], axis=0)
        wider = np.clip(spread / total if total > 0 else 0.0, -0.3, 0.45)
        if attempt == 0:
            log_R1 = float(np.log(priors.R1_px * pixel))
        log_R1 += 0.5 * float(np.log1p(2 * wider / (1 - wider)))
        state = {"log_R1": np.full((n, 1), log_R1)}
    return log_R1
