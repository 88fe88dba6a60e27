"""The loop of a fit: predict → measure → fit, round after round."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from .. import infer
from ..geometry.experiments import Still
from ..indexing.reindex import Reindexing
from ..io.protocols import Images
from ..measuring.ice_rings import Ring
from ..physics.observations import SpotStatistics
from ..physics.priors import Priors
from ..physics.reference import Reference
from ..util.progress import SILENT, Listener
from ..util.status import Kind
from ..util.store import Store
from .checkpoint import Progress
from .few_blocks import with_few_blocks
from .index_alike import stills_alike
from .learned_priors import learned_from, learned_numbers
from .measure_batch import Batch, Plan
from .measure_run import MeasuredRun
from .one_round import Movement, Round, one_round
from .over_batches import all_reflections, judged_images, with_intensities
from .problem import Run, Settings, Work, prepare_run
from .readable import Unread
from .reflections import Reflections
from .start import BROAD_MARGIN, find_start
from .state import State, geometry_of, moved
from .sweep_scales import joint_sweep_scales
from .sweeps import crystals_in_sweeps, said

SET_ASIDE = (Kind.NO_SIGNAL, Kind.DOUBTFUL)  # left out of the last round
LEARNING_ROUNDS = 2  # additional rounds where the intensities are learned too


@dataclass(frozen=True)
class RunFit:
    """A fitted run: n images.

    Attributes:
        stills: with refined geometry; indexed: with the geometry as given, all indexed alike.
        reindexing: the way of indexing that was taken for each image.
        reference: the intensities that were fitted to: the given ones, or the images' own estimate.
        status: (n,) ``util.status.Status``: converged, or what is wrong with the image.
        fit: the posterior mode; an image that could not be used has a row at its priors.
        reflections: all reflections that were predicted in the last round.
        batches: these reflections with all measurements; observed: the observations of the fit.
            Both lie on disk.
        movement: one entry for each round.
        ice: (n,) rings of each image; their pixels were not used.
        problem: the run with reader, model and settings. priors: of the fit. plan: of its shapes.
        unread: images that cannot be read, and why; they are not among the n.
        all_fitted: number of images when all were last fitted together; 0 for all of these.
    """

    stills: tuple[Still, ...]
    indexed: tuple[Still, ...]
    reindexing: Reindexing
    reference: Reference
    status: np.ndarray
    fit: infer.Fit
    reflections: Reflections
    batches: Store[Batch]
    observed: infer.Batches
    movement: tuple[Movement, ...]
    ice: tuple[tuple[Ring, ...], ...]
    problem: Run
    priors: Priors
    plan: Plan
    unread: Unread = ()
    all_fitted: int = 0

    @property
    def given_reference(self) -> Reference | None:
        """The reference that the fit was given; None of a fit without."""
        return None if self.problem.crosswise is not None else self.reference

    @property
    def observations(self) -> SpotStatistics:
        """The observations of the fit, all images together in memory."""
        return self.observed.whole()


def fit_run(
    stills: Sequence[Still],
    ref: Reference | None,
    reader: Images,
    model: infer.Model,
    priors: Priors | None = None,
    settings: Settings | None = None,
    progress: Listener = SILENT,
    work: Work | None = None,
) -> RunFit:
    """Refine a run of stills: predict → measure → fit.

    Where the lattice has more symmetry than the crystal, all stills are indexed alike first.

    Args:
        ref: reference intensities, or None: the reference of each image is then what the other
            images say (``crosswise_reference``), and two more rounds are taken.
        reader: anything with ``read(still) → (photons, valid)``; an image that cannot be read is
            reported in ``RunFit.status``.
        model: NumPyro program of ``(observations, priors)``, :func:`load_model`.
        progress: told of each round and of what goes on in it.
        work: where batches are worked on, where what is measured lies, and the checkpoint; by
            default this process, temporary files and none.

    Raises:
        InputError: the reference does not fit the crystals, no image can be used, the checkpoint is
            of another fit, or JAX computes in single precision.
    """
    priors, settings = priors or Priors(), settings or Settings()
    run = prepare_run(stills, ref, reader, model, priors, settings, work)
    if settings.sweeps and (sentence := said(run.stills)):
        progress.say(sentence)
    alike, reindexing = stills_alike(run, priors, progress, by_reference=ref is not None)
    if reindexing.changed.any():
        run = prepare_run(alike, ref, reader, model, priors, settings, work)
    return refine(run, reindexing, priors, one_round, progress)[0]


R = TypeVar("R", bound=Round)


def refine(
    run: Run,
    reindexing: Reindexing,
    priors: Priors,
    step: Callable[..., R],
    progress: Listener,
) -> tuple[RunFit, R]:
    """The loop: a start, then one round after the other, from a broad curve to convergence.

    Args:
        run: with stills indexed alike, as ``reindexing`` says.
        step: a round: ``one_round``, or another function of that signature.

    Returns:
        The fitted run, and its last round.
    """
    settings = run.settings
    rounds = settings.rounds + (LEARNING_ROUNDS if run.crosswise else 0)
    found: R | None = None
    now, margin, after = priors, settings.margin, {}
    checkpoint = run.work.checkpoint
    earlier = checkpoint.load(run) if checkpoint is not None else None
    if earlier is not None:
        done, run = earlier
        now = replace(priors, **done.learned)
        progress.say(f"continuing after round {done.rounds} of {rounds}")
    else:
        start = find_start(run, priors, progress)
        status = np.full(len(run.stills), "", dtype=object)
        done = Progress(0, start.state, status, start.plan, ())
        if settings.rounds == 1:  # no other round follows that could have the broad curve
            done = replace(done, state={**start.state, **start.after})
        else:
            now, margin, after = start.broad, BROAD_MARGIN, start.after
    state, status, plan, movement = done.state, done.status, done.plan, list(done.movement)
    for round_ in range(done.rounds + 1, rounds + 1):
        progress.say(f"round {round_} of {rounds}: {len(run.stills)} images")
        last = round_ == rounds
        if found is not None:
            found.measurements.batches.delete()
        found = None  # frees the memory of the previous round
        found = step(run, state, now, status, plan, margin, last, progress)
        if last:
            data = found.measurements.observations
            crystal = crystals_in_sweeps(run.stills)
            fit, now = with_few_blocks(run.model, data, now, found.fit, crystal)
            found = replace(found, fit=fit)
        state, plan = found.state, found.measurements.plan
        movement.append(found.movement)
        progress.say(f"round {round_}: {found.movement}")
        if round_ == rounds - 1:  # doubtful images do not inform the last round
            said = judged_images(run, found.measurements, state, priors, found.fit)
            wrong = (status == "") & np.isin([s.kind for s in said], SET_ASIDE)
            status[wrong] = said[wrong]
        if run.crosswise is not None:
            state = state if last else _pinned(state, found.measurements, run.stills)
            if (scales := joint_sweep_scales(run, found.measurements, state, now)) is not None:
                state = scales.moved(state)
                found = replace(found, fit=scales.of_fit(found.fit)) if last else found
            run = with_intensities(run, found.measurements, state, priors)
        if round_ == 1 and not last:
            state = {**state, **after}
        if not last:
            now, margin = learned_from(found.fit, priors, now, run.stills), settings.margin
        if checkpoint is not None and not last:
            done = Progress(round_, state, status, plan, tuple(movement), learned_numbers(now))
            checkpoint.save(done, run)

    assert found is not None, "a fit has at least one round"
    said = judged_images(run, found.measurements, state, now, found.fit)
    fitted = RunFit(
        stills=moved(run.stills, geometry_of(run.stills, found.fit.values())),
        indexed=run.stills,
        reindexing=reindexing,
        reference=run.ref,
        status=np.where(status == "", said, status),
        fit=found.fit,
        reflections=all_reflections(run, found.measurements, state, now),
        batches=found.measurements.batches,
        observed=found.measurements.observations,
        movement=tuple(movement),
        ice=tuple(run.ice.of(still) for still in run.stills),
        problem=run,
        priors=now,
        plan=found.measurements.plan,
    )
    return fitted, found


def _pinned(state: State, measurements: MeasuredRun, stills: Sequence[Still]) -> State:
    """The state with the means of ln G and B over images fixed: without a reference a common scale
    and a common B cannot be told from the intensities."""
    usable = measurements.counts > 0
    pinned = dict(state)
    for name, mean in (("log_G", measurements.plan.log_G0 or 0.0), ("B", 0.0)):
        if name in state:
            moved_by = mean - np.mean(state[name][usable])
            pinned[name] = state[name] + moved_by
            if name == "log_G" and "log_g" in state:
                pinned["log_g"] = state["log_g"] + moved_by
            if (sweep := stills[0].sweep) is not None and f"{name}_sweep" in state:
                pinned[f"{name}_sweep"] = state[f"{name}_sweep"] + moved_by * sweep.starts
    return pinned
