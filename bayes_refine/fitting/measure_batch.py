"""Predict and measure one batch of images; any process can do this work, and can repeat it."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from .. import infer
from ..geometry.experiments import Still
from ..geometry.predict import Predictions, swept
from ..measuring.ice_rings import Ring
from ..measuring.point_spread import PointSpread, Shares
from ..measuring.shoebox import Boxes, Shoebox, cut_shoeboxes, shoebox_for_width
from ..measuring.statistics import Statistics, measure
from ..physics import reference
from ..physics.observations import SpotStatistics
from ..physics.priors import Priors
from ..util.errors import InputError
from ..util.status import Kind, Status
from ..util.store import Store
from ..util.threads import in_threads
from . import padding
from .parts import Common
from .problem import IMAGE_BYTES, Run
from .state import State, Width, images_of, partiality_width
from .statistics_of_images import geometry_at, pixel_size, predictions_of, stills_at

MIN_COVERED = 0.6  # share of its template on usable pixels that a spot needs to inform the fit
UNKNOWN = 1e3  # sd over mean from which a reference intensity counts as unknown
CLAIM = 1.5  # |ε_r| over R0_eff (p > 10 %) up to which a spot can spoil its neighbours


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
        images: which images of the run are in the batch; ``Predictions.image`` counts from 0.
        where: the places of flat reflections in the padded observations.
        intensity_reference: (N,) I_ref, NaN where unknown; free, informs: (N,) bool.
    """

    images: slice
    where: padding.Layout
    predictions: Predictions
    statistics: Statistics
    intensity_reference: np.ndarray
    intensity_sd: np.ndarray
    free: np.ndarray
    informs: np.ndarray


@dataclass(frozen=True)
class FixedForAll:
    """What all batches of a round have in common, decided before they are measured.

    Attributes:
        slots: reflections that an image has room for, of each shape of batches, ascending
            (``padding.shapes``). log_G0, pixel_inv_angstrom: as ``Plan``. shoebox: pixels of every
            spot. R0_eff: at the state.
    """

    slots: tuple[int, ...]
    log_G0: float | None
    pixel_inv_angstrom: float
    shoebox: Shoebox | None
    R0_eff: Width


@dataclass(frozen=True)
class Said:
    """What the run needs to know of the measurement of a batch of n images.

    Attributes:
        log_G: (n, 1) first scales. log_G0: their median, or the plan's. counts: (n,) reflections
            that inform the fit. status: of each image, as text. rings: of ice, (file, frame,
            ((inner, outer), ...)) of each image.
    """

    log_G: np.ndarray
    log_G0: float | None
    counts: np.ndarray
    status: tuple[str, ...]
    rings: tuple[tuple[str, int, tuple[tuple[float, ...], ...]], ...]

    def statuses(self) -> np.ndarray:
        """(n,) ``util.status.Status`` or ""."""
        return np.array([text and Status.parse(text) for text in self.status], object)

    def rings_found(self) -> dict[tuple[Hashable, int], tuple[Ring, ...]]:
        """As ``IceRings.found``."""
        return {(Path(f), frame): tuple(Ring(*r) for r in rings) for f, frame, rings in self.rings}


@dataclass(frozen=True)
class MeasuredBatch:
    """A batch as stored on disk."""

    batch: Batch
    observations: SpotStatistics
    said: Said


def predict_batch(common: Common, margin: float, predicted: Store, item) -> np.ndarray:
    """Predict the images of a batch into the store; return (n,) numbers of reflections."""
    b, part = item
    run, n = common.run_of(part), len(part.stills)
    predictions = predicted.find(b)
    if predictions is None:
        predictions = predictions_of(run, part.state, common.priors, margin, slice(0, n))
        predicted.put(b, predictions)
    return np.bincount(predictions.image, minlength=n)


def fixed_for_all(
    run: Run,
    state: State,
    priors: Priors,
    plan: Plan,
    slots: tuple[int, ...],
    predictions: Predictions,
) -> FixedForAll:
    """The numbers that are fixed for all batches, from the first batch that has predictions."""
    pixel = plan.pixel_inv_angstrom
    if pixel is None:
        pixel = pixel_size(predictions)
    *_, moment = _expected(run, state, priors, slots, pixel, predictions)
    shoebox = shoebox_for(predictions.frame, moment, run.settings.point_spread)
    width = partiality_width(state, priors)
    return FixedForAll(slots, plan.log_G0, pixel, shoebox, width)


def _expected(
    run: Run,
    state: State,
    priors: Priors,
    slots: tuple[int, ...],
    pixel: float,
    predictions: Predictions,
):
    """A batch's layout, observations without statistics, expected J at G = 1 or at the state's
    scales, references, and moments of spots."""
    n = len(run.stills)
    most = np.max(np.bincount(predictions.image), initial=0)
    m = next(m for m in slots if m >= most)
    where, obs = geometry_at(run, state, predictions, slice(0, n), m, pixel)
    here = images_of(state, slice(0, n), run.size)
    sites = infer.evaluate(run.model, {"log_G": np.zeros((run.size, 1)), **here}, obs, priors)
    refs = references(run, predictions, slice(0, n))
    J = where.flat(sites["scale"]) * predictions.polarisation * refs[3]
    return where, obs, J, refs, where.flat(sites["spot_moment"])


def cut_batch(common: Common, predicted, found, fixed: FixedForAll, item) -> Pixels | None:
    """Read the images of a batch and cut out its shoeboxes; None if its store has it from before.

    Runs no JAX.
    """
    b, part, _ = item
    if found.of("said").find(b) is not None:
        return None
    run = common.run_of(part)
    stills = stills_at(run, part.state, slice(0, len(part.stills)))
    return pixels_of(run, stills, predicted[b], fixed.R0_eff, fixed.shoebox)


def measure_batch(
    common: Common, predicted, found, fixed: FixedForAll, item, pixels: Pixels | None
) -> Said:
    """Measure a batch into its store, unless the store has it from before.

    Args:
        pixels: :func:`cut_batch`.
    """
    b, part, images = item
    if pixels is None:
        return found.of("said")[b]
    run, state, n = common.run_of(part), part.state, len(part.stills)
    predictions, said = predicted[b], part.status.copy()
    where, obs, J, refs, moment = _expected(
        run, state, common.priors, fixed.slots, fixed.pixel_inv_angstrom, predictions
    )
    intensity, sd, free, _ = refs
    scaled = "log_G" in state
    # without scales no photons are expected, and all pixels have equal weight
    stills = stills_at(run, state, slice(0, n))
    statistics = statistics_of(run, stills, predictions, J * scaled, moment, pixels, fixed.shoebox)
    for i, why in pixels.failed.items():
        said[i] = Status(Kind.NOT_READ, why)
    unsure = np.divide(sd, intensity, out=np.zeros(len(sd)), where=intensity > 0)
    known = np.isfinite(intensity) & (unsure < UNKNOWN)
    informs = known & ~free & (statistics.covered > MIN_COVERED)
    counts = np.bincount(predictions.image[informs], minlength=n)
    of_image = np.bincount(predictions.image, minlength=n)
    for k in np.flatnonzero((counts == 0) & (said == "")):
        said[k] = Status(Kind.TOO_FEW, f"0 of {of_image[k]} predicted")
    informs &= (said == "")[predictions.image]
    log_G0 = fixed.log_G0
    if scaled and log_G0 is not None:
        log_G = np.asarray(state["log_G"])[:n]
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
    rings = tuple(
        (str(still.image_path), still.frame, tuple(tuple(ring) for ring in run.ice.of(still)))
        for still in part.stills
        if (still.image_path, still.frame) in run.ice.found
    )
    informing = np.bincount(predictions.image[informs], minlength=n)
    told = Said(log_G, log_G0, informing, tuple(str(s) for s in said), rings)
    batch = Batch(images, where, predictions, statistics, intensity, sd, free, informs)
    # on the device once for all evaluations, as long as there is memory for it
    found.put(b, MeasuredBatch(batch, jax.device_put(obs), told))
    return told


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


def shoebox_for(
    frame: np.ndarray, moment: np.ndarray, spread: PointSpread | None = None
) -> Shoebox | None:
    """The shoebox for spots with ``frame`` (N, 2, 2) and second moments (N, 3), and with a point
    spread beside these; None for no spot."""
    if not len(moment):
        return None
    area = np.abs(np.linalg.det(frame))
    square_px2 = float(np.median((moment[:, 0] + moment[:, 1]) / area))
    return shoebox_for_width(np.sqrt(square_px2 + (spread.trace_px2 if spread else 0.0)))


def shares_of(spread: PointSpread, stills: Sequence[Still], predictions: Predictions) -> Shares:
    """How a point spread shares out the photons of each predicted spot."""
    xy_mm = padding.positions_mm(stills, predictions)
    return Shares(np.asarray(spread.shares(*xy_mm.T)), spread.nodes)


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


class Pixels(NamedTuple):
    """Shoeboxes of some images' spots, None of no spot; why an image cannot be read, by image."""

    boxes: Boxes | None
    failed: dict[int, str]


def pixels_of(
    run: Run, stills, predictions: Predictions, R0_eff: Width, shoebox: Shoebox | None
) -> Pixels:
    """Read some images and cut out the shoeboxes of their reflections, in threads.

    Spots of an image that cannot be read have no usable pixel.
    """
    if not len(predictions) or shoebox is None:
        return Pixels(None, {})
    bounds = np.searchsorted(predictions.image, np.arange(len(stills) + 1))
    failed: dict[int, str] = {}

    def boxes_of(i: int) -> Boxes:
        still, rows = stills[i], slice(*bounds[i : i + 2])
        try:
            image, mask = run.reader.read(still)
        except InputError as error:
            failed[i] = str(error)
            image = np.zeros(still.detector.image_shape, np.float32)
            mask = np.zeros(image.shape, bool)
        else:
            if (on_ring := run.ice(image, mask, still)) is not None:
                mask &= ~on_ring
        return cut(image, mask, still, predictions, rows, R0_eff, shoebox)

    nbytes = IMAGE_BYTES * math.prod(stills[0].detector.image_shape)
    boxes = in_threads(boxes_of, np.flatnonzero(np.diff(bounds)).tolist(), nbytes)
    return Pixels(Boxes(*(np.concatenate(x) for x in zip(*boxes, strict=True))), failed)


def statistics_of(
    run: Run, stills, predictions: Predictions, expected, moment, pixels: Pixels, shoebox
) -> Statistics:
    """Statistics of some images' reflections."""
    if pixels.boxes is None:
        return Statistics.none()
    spread = run.settings.point_spread
    return measure(
        pixels.boxes,
        predictions.frame,
        moment,
        expected,
        shoebox,
        run.settings.read_noise,
        run.settings.weights,
        None if spread is None else shares_of(spread, stills, predictions),
    )
