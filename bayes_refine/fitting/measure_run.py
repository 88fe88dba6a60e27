"""Predict and measure all images of a run at a given state, one batch of images in memory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from .. import infer
from ..geometry.predict import Predictions
from ..infer.executor import InTwoSteps
from ..physics.priors import Priors
from ..util.errors import InputError
from ..util.progress import Listener, Pace
from ..util.status import Kind, Status
from ..util.store import Store
from . import padding
from .measure_batch import (
    Batch,
    MeasuredBatch,
    Plan,
    Said,
    cut_batch,
    fixed_for_all,
    measure_batch,
    predict_batch,
)
from .parts import Common, Part, depends_on, of_no_images, parts_of
from .problem import Run
from .state import State


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
    progress: Listener,
) -> MeasuredRun:
    """Predict and measure all images at a state.

    The numbers that all batches share (``FixedForAll``) are decided first.  The batches are then
    independent of each other, and the executor of the run has them measured.

    Args:
        state: absent sites start at their prior mean, scales at the measured ones.
        status: (n,) ``util.status.Status`` or ""; written to for each image that turns out not to
            be usable.
        plan: the ``MeasuredRun.plan`` of the round before.
        margin: largest |ε_r| of reflections that are taken, in R0_eff.

    Raises:
        InputError: nothing is predicted on the detector, or no image can be used.
    """
    batches, n, executor = run.batches(), len(run.stills), run.work.executor
    parts = parts_of(run, state, status)
    made_of = depends_on(run, state, priors, status, plan, margin)
    predicted: Store[Predictions] = run.work.store("predicted", len(parts), made_of)
    common = Common(executor.share(of_no_images(run)), priors)
    gone: dict[int, str] = {}  # batches that ended the processes they were worked on

    def not_predicted(item: tuple[int, Part], why: str) -> np.ndarray:
        gone[item[0]] = why
        return np.zeros(len(item[1].stills), int)

    counts = executor.map(
        partial(predict_batch, common, margin, predicted),
        list(enumerate(parts)),
        lost=not_predicted,
    )
    if not any(np.any(c) for c in counts):
        raise InputError("no reflection is predicted on the detector; check d_min and the geometry")
    first = next(b for b, c in enumerate(counts) if np.any(c))
    plan = plan._replace(slots=padding.slots(np.concatenate(counts), plan.slots))
    slots = padding.shapes(counts, run.size, plan.slots)
    fixed = fixed_for_all(
        common.run_of(parts[first]), parts[first].state, priors, plan, slots, predicted[first]
    )

    found: Store[MeasuredBatch] = run.work.store("measured", len(parts), made_of)
    about = common, predicted, found
    items = [(b, part, images) for b, (part, images) in enumerate(zip(parts, batches, strict=True))]
    nothing = predicted[first].select(np.zeros(0, int))

    def measuring() -> InTwoSteps[Said]:
        return InTwoSteps(partial(cut_batch, *about, fixed), partial(measure_batch, *about, fixed))

    def not_measured(item: tuple[int, Part, slice], why: str) -> Said:
        b, part, images = item
        predicted.put(b, nothing)
        said = np.array([s or Status(Kind.LOST, why) for s in part.status], object)
        return measuring()((b, replace(part, status=said), images))

    for b, why in gone.items():
        predicted.put(b, nothing)
        said = np.array([s or Status(Kind.LOST, why) for s in parts[b].status], object)
        items[b] = b, replace(parts[b], status=said), batches[b]
    log_G, informing = np.zeros((n, 1)), np.zeros(n, int)

    pace = Pace("measured", n, progress, executor.at_work)

    def measure(some: list, before: int) -> None:
        nonlocal fixed

        def count(done: int) -> None:
            if len(batches) > 1:
                pace.done(min((before + done) * run.size, n))

        for (_, _, images), one in zip(
            some, executor.map(measuring(), some, count, not_measured), strict=True
        ):
            log_G[images], informing[images], status[images] = one.log_G, one.counts, one.statuses()
            run.ice.found.update(one.rings_found())
            fixed = replace(fixed, log_G0=one.log_G0 if fixed.log_G0 is None else fixed.log_G0)

    ahead = 0
    while fixed.log_G0 is None and ahead < len(items):  # a first estimate of ln G serves all others
        measure(items[ahead : ahead + 1], ahead)
        ahead += 1
    measure(items[ahead:], ahead)
    if not informing.any():
        raise InputError(f"no image can be used; the first one: {status[0]}")

    predicted.delete()
    plan = Plan(plan.slots, fixed.log_G0, fixed.pixel_inv_angstrom)
    observations = infer.Batches(found.of("observations"), run.size, n, executor, run.earlier)
    return MeasuredRun(found.of("batch"), observations, informing, log_G, plan)
