"""A round of a fit to pixels, predict → cut → fit, for the loop of a factored fit."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

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


@dataclass(frozen=True)
class PixelModel:
    """A model of the pixels, and the law by which they scatter.

    Attributes:
        program: of (pixels, priors, noise). noise: law of a pixel.
        errors: sites of the factored model that ``program`` has none of; they weight the
            reflections when those are merged.
    """

    program: infer.Model
    noise: pixel_noise.PixelLikelihood
    errors: State = field(default_factory=dict)

    def round(
        self,
        run: Run,
        state: State,
        priors: Priors,
        status: np.ndarray,
        plan: Plan,
        margin: float,
        last: bool,
        progress: Listener,
    ) -> PixelRound:
        """Predict, measure and fit the pixels once from a state, as ``one_round`` does statistics.

        Returns:
            Of the last round, the state has ``errors`` too.
        """
        measurements = measure_run(run, state, priors, status, plan, margin, progress)
        begun = time.perf_counter()
        pixels = pixels_of(run, measurements, state, priors)
        cut = time.perf_counter()
        old = {**state, "log_G": measurements.log_G}
        pixels = frozen(pixels, infer.evaluate(self.program, old, pixels, priors)["spots"])
        tolerance = 1e-2 if last else 0.5
        fit = curvature.pixel_fit(
            self.program, self.noise, pixels, priors, old, tolerance=tolerance, progress=progress
        )
        seconds = cut - begun, time.perf_counter() - cut
        new = fit.values()
        movement = movement_of(old, new, measurements, fit, *seconds)
        new = {**new, **(self.errors if last else {})}
        return PixelRound(new, fit, measurements, movement, pixels)


def fit_pixels(
    stills: Sequence[Still],
    ref: Reference,
    reader: Images,
    factored: infer.Model,
    pixel: PixelModel,
    priors: Priors,
    settings: Settings,
    progress: Listener = SILENT,
) -> tuple[RunFit, Pixels]:
    """Refine a run as ``fitting.loop.fit_run`` does, but to the pixels themselves.

    The start, the reflections, shoeboxes, backgrounds, free set and rounds are the same; σ of
    ``pixel_noise.expected_variance`` is frozen at the state that a round begins with.  Reflections
    come from the statistics of the last round's shoeboxes at the final state.

    Args:
        stills: indexed alike.
        factored: the model of the start and of the numbers of each reflection.

    Returns:
        The fit, and the pixels of its last round.  In ``movement``, seconds_measure is reading
        and cutting alone.
    """
    run = prepare_run(stills, ref, reader, factored, priors, settings)
    alike = nothing_to_choose(ambiguity(ref.cell, ref.space_group), len(run.stills))
    fitted, last = refine(run, alike, priors, pixel.round, progress)
    return fitted, last.pixels
