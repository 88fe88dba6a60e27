"""The loop of a fit to pixels: predict → cut → fit, from where a factored fit starts."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from . import infer
from .ambiguity import ambiguity
from .experiments import Still
from .fit import RunFit, _judged, _prepared, _reflections
from .io.images import ImageReader
from .pilot import State, moved, pilot_geometry
from .pixels import Pixels, frozen, pixels_of
from .priors import Priors
from .reference import Reference
from .reindex import nothing_to_choose
from .rounds import Movement, Say, Settings, _movement, measured
from .scout import BROAD_MARGIN, scout


def fit_pixels(
    stills: Sequence[Still],
    ref: Reference,
    reader: ImageReader,
    factored: infer.Model,
    model: infer.Model,
    noise: infer.Noise,
    priors: Priors,
    settings: Settings,
    errors: State | None = None,
    progress: Say | None = None,
) -> tuple[RunFit, Pixels]:
    """Refine a run as :func:`~bayes_refine.fit.fit_run` does, but to the pixels themselves.

    The scouts, the start, the reflections, shoeboxes, backgrounds, free set and rounds are the
    same; σ of ``infer.expected_variance`` is frozen where a round starts.  Reflections come from
    the statistics of the last round's boxes at the state found.

    Args:
        stills: indexed alike.
        factored: the model of the scouts and of what is said of each reflection.
        model, noise: the per-pixel model, and how its pixels scatter (``infer``).
        errors: sites of ``factored`` that ``model`` has none of; they weight the reflections
            when those are merged.

    Returns:
        The fit, and the pixels of its last round.  In ``movement``, seconds_measure is reading
        and cutting alone.
    """
    say = progress or (lambda line: None)
    stills = tuple(stills)
    run = _prepared(stills, ref, reader, factored, priors, settings)
    start = scout(run, priors, say)
    state, now, margin, kept = start.state, start.broad, BROAD_MARGIN, start.kept
    if settings.rounds == 1:
        state, now, margin = {**state, **start.after}, priors, settings.margin
    status = np.full(len(stills), "", dtype=object)
    movement: list[Movement] = []
    for round_ in range(1, settings.rounds + 1):
        seen = measured(run, state, now, status, kept, margin, say)
        kept, begun = seen.kept, time.perf_counter()
        pixels = pixels_of(run, seen, state, now)
        cut = time.perf_counter()
        old = {**state, "log_G": seen.log_G}
        pixels = frozen(pixels, infer.evaluate(model, old, pixels, now)["spots"])
        last = round_ == settings.rounds
        fit = infer.pixel_fit(
            model, noise, pixels, now, old, tolerance=1e-2 if last else 0.5, progress=say
        )
        seconds = cut - begun, time.perf_counter() - cut
        state = fit.values()
        movement.append(_movement(old, state, seen, fit, *seconds))
        say(f"round {round_}: {movement[-1]}")
        if round_ == 1 and not last:
            state |= start.after
        now, margin = priors, settings.margin
    state |= errors or {}
    fitted = RunFit(
        stills=moved(stills, *pilot_geometry(stills, state)),
        indexed=stills,
        reindexing=nothing_to_choose(ambiguity(ref.cell, ref.space_group), len(stills)),
        reference=ref,
        status=np.where(status == "", _judged(fit), status),
        fit=fit,
        reflections=_reflections(run, seen, state, priors),
        batches=seen.batches,
        observed=seen.observations,
        movement=tuple(movement),
    )
    return fitted, pixels
