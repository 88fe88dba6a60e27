"""A round of a fit to pixels: predict → cut → fit, in the loop of a factored fit."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from .. import infer
from ..fitting.loop import RunFit, refine
from ..fitting.measure_batch import Plan
from ..fitting.measure_run import measure_run
from ..fitting.one_round import Round, movement_of
from ..fitting.problem import Run, Settings, prepare_run
from ..fitting.state import State
from ..geometry.experiments import Still
from ..indexing.ambiguity import ambiguity
from ..indexing.reindex import nothing_to_choose
from ..io.protocols import Images
from ..physics.priors import Priors
from ..physics.reference import Reference
from ..util.progress import SILENT, Listener
from . import curvature, pixel_noise
from .pixels import Pixels, frozen, pixels_of


@dataclass(frozen=True)
class PixelRound(Round):
    """The result of one round, and the ``pixels`` that were fitted."""

    pixels: Pixels


def fit_pixels(
    stills: Sequence[Still],
    ref: Reference,
    reader: Images,
    factored: infer.Model,
    model: infer.Model,
    noise: pixel_noise.PixelLikelihood,
    priors: Priors,
    settings: Settings,
    errors: State | None = None,
    progress: Listener = SILENT,
) -> tuple[RunFit, Pixels]:
    """Refine a run as ``fitting.loop.fit_run`` does, but to the pixels themselves.

    The start, the reflections, shoeboxes, backgrounds, free set and rounds are the same; σ of
    ``pixel_noise.expected_variance`` is frozen at the state that a round begins with.  Reflections
    come from the statistics of the last round's shoeboxes at the final state.

    Args:
        stills: indexed alike.
        factored: the model of the start and of the numbers of each reflection.
        model, noise: the per-pixel model, and how its pixels scatter (``infer``).
        errors: sites of ``factored`` that ``model`` has none of; they weight the reflections
            when those are merged.

    Returns:
        The fit, and the pixels of its last round.  In ``movement``, seconds_measure is reading
        and cutting alone.
    """
    run = prepare_run(stills, ref, reader, factored, priors, settings)
    alike = nothing_to_choose(ambiguity(ref.cell, ref.space_group), len(run.stills))
    step = partial(pixel_round, model, noise, errors or {})
    fitted, last = refine(run, alike, priors, step, progress)
    return fitted, last.pixels


def pixel_round(
    model: infer.Model,
    noise: pixel_noise.PixelLikelihood,
    errors: State,
    run: Run,
    state: State,
    priors: Priors,
    status: np.ndarray,
    plan: Plan,
    margin: float,
    last: bool,
    progress: Listener,
) -> PixelRound:
    """Predict, measure and fit the pixels once from a state.

    Args:
        model, noise, errors: as of :func:`fit_pixels`; the state has ``errors`` after the last.
        run, state, priors, status, kept, margin, last: as of ``one_round``.
    """
    measurements = measure_run(run, state, priors, status, plan, margin, progress)
    begun = time.perf_counter()
    pixels = pixels_of(run, measurements, state, priors)
    cut = time.perf_counter()
    old = {**state, "log_G": measurements.log_G}
    pixels = frozen(pixels, infer.evaluate(model, old, pixels, priors)["spots"])
    fit = curvature.pixel_fit(
        model, noise, pixels, priors, old, tolerance=1e-2 if last else 0.5, progress=progress
    )
    seconds = cut - begun, time.perf_counter() - cut
    new = fit.values()
    movement = movement_of(old, new, measurements, fit, *seconds)
    return PixelRound({**new, **(errors if last else {})}, fit, measurements, movement, pixels)
