"""One round of a fit: predict at a state, measure there, fit."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from .. import infer
from ..physics.priors import Priors
from ..util.progress import Listener
from .measure_batch import Plan
from .measure_run import MeasuredRun, measure_run
from .problem import Run
from .state import State


@dataclass(frozen=True)
class Movement:
    """How far the state moved in one round, rms over images, and how much work it was.

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

    def __str__(self) -> str:
        return (
            f"orientations moved by {self.rotation_mrad:.3g} mrad, ln G by {self.log_G:.2g},"
            f" ln R1 by {self.log_R1:.2g}; {self.iterations} steps; measured in"
            f" {self.seconds_measure:.1f} s, fitted in {self.seconds_fit:.1f} s"
        )


@dataclass(frozen=True)
class Round:
    """The result of one round.

    Attributes:
        state: the new state. fit: its posterior mode. measurements: of all images.
        movement: from the previous state to the new one.
    """

    state: State
    fit: infer.Fit
    measurements: MeasuredRun
    movement: Movement


def one_round(
    run: Run,
    state: State,
    priors: Priors,
    status: np.ndarray,
    plan: Plan,
    margin: float,
    last: bool,
    progress: Listener,
) -> Round:
    """Predict, measure and fit the statistics once from a state.

    Args:
        state, status, plan, margin: as ``measure_run`` takes them.
        last: fit to convergence with the exact curvature, shared unknowns at their marginal mode.

    Raises:
        InputError: as ``measure_run``.
    """
    started = time.perf_counter()
    measurements = measure_run(run, state, priors, status, plan, margin, progress)
    ready = time.perf_counter()
    old = {**state, "log_G": measurements.log_G}
    problem = run.model, measurements.observations, priors
    search = infer.mode_of_many if last else infer.near_mode_of_many
    fit = search(*problem, init=old, progress=progress)
    seconds = (ready - started, time.perf_counter() - ready)
    new = fit.values()
    return Round(new, fit, measurements, movement_of(old, new, measurements, fit, *seconds))


def movement_of(
    old: State,
    new: State,
    measurements: MeasuredRun,
    fit: infer.Fit,
    seconds_measure: float,
    seconds_fit: float,
) -> Movement:
    """The change of the state in a round, over the images that could be used."""
    usable = measurements.counts > 0

    def rms(name):
        if name not in new:
            return 0.0
        change = np.asarray(new[name]) - np.asarray(old.get(name, 0.0))
        return float(np.sqrt(np.mean(change[usable] ** 2)))

    return Movement(
        rotation_mrad=rms("rotation_mrad"),
        log_R1=rms("log_R1"),
        log_G=rms("log_G"),
        iterations=fit.iterations,
        seconds_measure=seconds_measure,
        seconds_fit=seconds_fit,
    )
