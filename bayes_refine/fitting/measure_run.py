"""Predict and measure all images of a run at a given state, one batch of images in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .. import infer
from ..geometry.experiments import Still
from ..geometry.predict import Predictions, swept
from ..measuring.shoebox import Boxes, Shoebox, cut_shoeboxes, shoebox_for_width
from ..measuring.statistics import Statistics, measure
from ..physics import reference
from ..physics.observations import SpotStatistics
from ..physics.priors import Priors
from ..util.errors import InputError
from ..util.status import Kind, Status
from ..util.store import Store
from . import padding
from .problem import Run, Say
from .state import State, Width, images_of, partiality_width
from .statistics_of_images import geometry_at, pixel_size, predictions_of, stills_at

MIN_COVERED = 0.6  # of a spot's template on usable pixels, for it to inform the fit
UNKNOWN = 1e3  # sd over mean of a reference intensity that says nothing
CLAIM = 1.5  # |ε_r| in R0_eff (p > 10 %) up to which a spot spoils its neighbours


class Plan(NamedTuple):
    """Numbers that the start fixes for all rounds, so that shapes and units stay the same.

    Attributes:
        slots: reflections that an image has room for (``padding.slots``), a compiled shape.
        log_G0: first estimate of the run's ln G. pixel_inv_angstrom: size of a pixel in ε_t.
    """

    slots: int = 0
    log_G0: float | None = None
    pixel_inv_angstrom: float | None = None


@dataclass(frozen=True)
class Batch:
    """Predictions and measurements of a batch of images in one round: N reflections, flat.

    Attributes:
        images: the batch's among those of the run; ``Predictions.image`` counts from the first.
        where: the places of flat reflections in the padded observations.
        intensity: (N,) I_ref, NaN where unknown; free, informs: (N,) bool.
    """

    images: slice
    where: padding.Layout
    predictions: Predictions
    statistics: Statistics
    intensity: np.ndarray
    intensity_sd: np.ndarray
    free: np.ndarray
    informs: np.ndarray


@dataclass(frozen=True)
class MeasuredRun:
    """Measurements of all n images in one round.

    Attributes:
        batches, observations: of the same images, on disk.
        counts: (n,) number of reflections that inform the fit. log_G: (n, 1) start of the scales.
        plan: for the next round.
    """

    batches: Store[Batch]
    observations: infer.Batches
    counts: np.ndarray
    log_G: np.ndarray
    plan: Plan


def measure_run(
    run: Run,
    state: State,
    priors: Priors,
    status: np.ndarray,
    plan: Plan,
    margin: float,
    say: Say,
) -> MeasuredRun:
    """Predict and measure all images at a state.

    Args:
        state: absent sites start at their prior mean, scales at the measured ones.
        status: (n,) ``util.status.Status`` or ""; written to for each image that turns out not to
            be usable.
        plan: the ``MeasuredRun.plan`` of the round before.
        margin: largest |ε_r| of reflections that are taken, in R0_eff.

    Raises:
        InputError: nothing is predicted on the detector, or no image can be used.
    """
    batches, n = run.batches(), len(run.stills)
    predicted: Store[Predictions] = Store()
    for images in batches:
        predicted.append(predictions_of(run, state, priors, margin, images))
    counts = np.concatenate([np.bincount(p.image, minlength=run.size) for p in predicted])[:n]
    if not counts.any():
        raise InputError("no reflection is predicted on the detector; check d_min and the geometry")
    plan = plan._replace(slots=padding.slots(counts, plan.slots))
    pixel = plan.pixel_inv_angstrom
    if pixel is None:
        pixel = pixel_size(next(p for p in predicted if len(p)))
        plan = plan._replace(pixel_inv_angstrom=pixel)

    found: Store[Batch] = Store()
    observed: Store[SpotStatistics] = Store()
    log_G, informing, shoebox = np.zeros((n, 1)), np.zeros(n, int), None
    for images, predictions in zip(batches, predicted, strict=True):
        batch, obs, log_G[images], plan, shoebox = _measured_batch(
            run, state, priors, status, plan, pixel, predictions, images, shoebox
        )
        found.append(batch)
        observed.append(obs)
        informing[images] = np.bincount(
            predictions.image[batch.informs], minlength=images.stop - images.start
        )
        if len(batches) > 1:
            say(f"step: measured {images.stop} of {n} images")
    if not informing.any():
        raise InputError(f"no image can be used; the first one: {status[0]}")

    return MeasuredRun(found, infer.Batches(observed, run.size, n), informing, log_G, plan)


def _measured_batch(run, state, priors, status, plan: Plan, pixel, predictions, images, shoebox):
    """One batch, its observations and first scales, and what the first batch fixes for all."""
    where, obs = geometry_at(run, state, predictions, images, plan.slots, pixel)
    n, here = images.stop - images.start, images_of(state, images, run.size)
    scaled = "log_G" in state
    sites = infer.evaluate(run.model, {"log_G": np.zeros((run.size, 1)), **here}, obs, priors)
    intensity, sd, free, expected = references(run, predictions, images)
    J = where.flat(sites["scale"]) * predictions.polarisation * expected
    moment = where.flat(sites["spot_moment"])
    shoebox = shoebox or shoebox_for(predictions.frame, moment)
    # before there are scales nothing is expected, and weights are flat
    statistics, failed = statistics_of(
        run,
        stills_at(run, state, images),
        predictions,
        J * scaled,
        moment,
        partiality_width(state, priors),
        shoebox,
    )
    said = status[images]  # a view
    for i, why in failed.items():
        said[i] = Status(Kind.NOT_READ, why)
    unsure = np.divide(sd, intensity, out=np.zeros(len(sd)), where=intensity > 0)
    known = np.isfinite(intensity) & (unsure < UNKNOWN)
    informs = known & ~free & (statistics.covered > MIN_COVERED)
    counts = np.bincount(predictions.image[informs], minlength=n)
    predicted = np.bincount(predictions.image, minlength=n)
    for k in np.flatnonzero((counts == 0) & (said == "")):
        said[k] = Status(Kind.TOO_FEW, f"0 of {predicted[k]} predicted")
    informs &= (said == "")[predictions.image]
    log_G0 = plan.log_G0
    if scaled and log_G0 is not None:
        log_G = here["log_G"][:n]
    else:
        log_G, log_G0 = _first_scales(
            statistics.value[:, 0], J, informs, predictions.image, n, log_G0
        )
    obs = padding.with_statistics(
        obs,
        where,
        statistics,
        moment,
        predictions.polarisation * np.where(np.isfinite(intensity), intensity, 0.0),
        np.minimum(unsure, UNKNOWN),
        informs,
        log_G0 if log_G0 is not None else 0.0,
    )
    batch = Batch(images, where, predictions, statistics, intensity, sd, free, informs)
    return batch, obs, log_G, plan._replace(log_G0=log_G0), shoebox


def _first_scales(total, J1, informs, image, n, log_G0):
    """ln G (n, 1) from Σ T J1/Σ J1², J1 expected at G = 1, and the median, for images without."""
    use = informs & (J1 > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.bincount(image[use], (total * J1)[use], n) / np.bincount(
            image[use], J1[use] ** 2, n
        )
        log_G = np.log(ratio)
    usable = np.isfinite(log_G)
    if log_G0 is None and use.any():
        if not usable.any():
            raise InputError(
                "no image has more photons at the predicted spots than beside them; "
                "check that experiments, images and reference belong together"
            )
        log_G0 = float(np.median(log_G[usable]))
    typical = log_G0 or 0.0
    log_G = np.where(usable, np.clip(log_G, typical - 3, typical + 3), typical)
    return log_G[:, None], log_G0


def references(run: Run, predictions: Predictions, images: slice):
    """I_ref (NaN where unknown), its sd, the free set, and the expected I, (N,) each.

    The expected I of free reflections is the mean of their resolution.

    Without a reference I_ref is the estimate of the other images, and no reflection is free.
    """
    hkl, settings = predictions.hkl, run.settings
    if run.crosswise is not None:
        mean, sd = run.crosswise.without(hkl, predictions.image + images.start)
        return mean, sd, np.zeros(len(hkl), bool), mean
    intensity = run.ref.lookup(hkl)
    free = reference.free_set(hkl, settings.free_fraction, settings.seed, run.ref.space_group)
    mean = reference.wilson_mean(run.ref.d, run.ref.intensity, predictions.d)
    expected = np.where(np.isfinite(intensity) & ~free, intensity, mean)
    return intensity, np.zeros(len(hkl)), free, expected


def shoebox_for(frame: np.ndarray, moment: np.ndarray) -> Shoebox | None:
    """The shoebox for spots with ``frame`` (N, 2, 2) and second moments (N, 3); None for none."""
    if not len(moment):
        return None
    area = np.abs(np.linalg.det(frame))
    width_px = float(np.sqrt(np.median((moment[:, 0] + moment[:, 1]) / area)))
    return shoebox_for_width(width_px)


def cut(
    image: np.ndarray,
    mask: np.ndarray,
    still: Still,
    predictions: Predictions,
    rows: slice,
    R0_eff: Width,
    shoebox: Shoebox,
) -> Boxes:
    """Pixels of an image's shoeboxes; those of bright neighbours are marked as contested.

    Args:
        image, mask: (P, ny, nx) photons and validity.
        rows: of ``predictions``, the image's.
        R0_eff: ``state.partiality_width``.
    """
    near = CLAIM * R0_eff(predictions.d[rows], still.beam)
    nearest = np.abs(predictions.excitation_error[rows]) - swept(still, predictions.q[rows])
    claimed = nearest < near
    panel, xy_px = predictions.panel[rows], predictions.xy_px[rows]
    return cut_shoeboxes(image, mask, panel, xy_px, claimed, shoebox)


def statistics_of(
    run: Run, stills, predictions: Predictions, expected, moment, R0_eff, shoebox
) -> tuple[Statistics, dict[int, str]]:
    """Statistics of some images' reflections.

    Returns the statistics, and by image the reason why it cannot be read; spots of such an image
    count as uncovered.
    """
    if not len(predictions):
        return Statistics.none(), {}
    bounds = np.searchsorted(predictions.image, np.arange(len(stills) + 1))
    failed: dict[int, str] = {}
    boxes = []
    for i, still in enumerate(stills):
        rows = slice(*bounds[i : i + 2])
        if rows.start == rows.stop:
            continue
        try:
            image, mask = run.reader.read(still)
        except InputError as error:
            failed[i] = str(error)
            image = np.zeros(still.detector.image_shape, np.float32)
            mask = np.zeros(image.shape, bool)
        else:
            if (on_ring := run.ice(image, mask, still)) is not None:
                mask &= ~on_ring
        boxes.append(cut(image, mask, still, predictions, rows, R0_eff, shoebox))
    statistics = measure(
        Boxes(*(np.concatenate(x) for x in zip(*boxes, strict=True))),
        predictions.frame,
        moment,
        expected,
        shoebox,
        run.settings.read_noise,
        run.settings.weights,
    )
    return statistics, failed
