"""Frames of a turning crystal: which stills turn while they are exposed, and their partiality."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache, partial

import numpy as np

from .. import infer, physics
from ..geometry.experiments import Experiments, Still
from ..io.expt.exposure import STILL_DEG, WIDEST_DEG
from ..util.errors import InputError


def exposed(
    experiments: Experiments,
    oscillation_deg: float | None = None,
    spindle: Sequence[float] | None = None,
    as_stills: bool = False,
) -> Experiments:
    """The experiments with the turn of the crystal during each exposure.

        frames = br.exposed(br.read_experiments("frames.expt"), 0.1, (1, 0, 0))

    Args:
        oscillation_deg: degrees an image, in place of the file's.
        spindle: (3,) axis in the lab frame, in place of the file's.
        as_stills: no turn, whatever the file says.

    Raises:
        InputError: the angle or the axis is unknown, or the turn is more than 0.5°.
    """
    turns = [still.turn_mrad for still in experiments.stills]
    if as_stills:
        if oscillation_deg is not None or spindle is not None:
            raise InputError("--as-stills excludes --oscillation and --spindle; drop one of them")
        return _with(experiments, [None] * len(turns))
    if oscillation_deg is not None and abs(oscillation_deg) > WIDEST_DEG:
        raise InputError(
            f"--oscillation {oscillation_deg:g}: frames of a turning crystal can be fitted up to "
            f"{WIDEST_DEG:g}°; integrate wider ones as rotation data (dials.integrate)"
        )
    axis = None
    if spindle is not None:
        length = float(np.linalg.norm(spindle))
        if not 0 < length < np.inf:
            raise InputError(f"--spindle {' '.join(f'{x:g}' for x in spindle)}: not a direction")
        axis = np.asarray(spindle, float) / length

    def turn_of(own: np.ndarray | None) -> np.ndarray | None:
        of_file = 0.0 if own is None else float(np.linalg.norm(own))
        size = of_file if oscillation_deg is None else np.radians(abs(oscillation_deg)) * 1e3
        if oscillation_deg is None and own is None and axis is not None:
            raise InputError("--spindle: the angle of the turn is unknown; give --oscillation DEG")
        if size < np.radians(STILL_DEG) * 1e3:
            return None
        if axis is not None:
            return size * axis
        if own is None:
            raise InputError("--oscillation: the axis of the turn is unknown; give --spindle X Y Z")
        return size / of_file * own

    return _with(experiments, [turn_of(own) for own in turns])


def _with(experiments: Experiments, turns: list[np.ndarray | None]) -> Experiments:
    """The experiments with these turns; if any turns, all do, since a run has one model."""
    if any(turn is not None for turn in turns):
        turns = [np.zeros(3) if turn is None else turn for turn in turns]
    stills = zip(experiments.stills, turns, strict=True)
    return replace(experiments, stills=tuple(replace(s, turn_mrad=turn) for s, turn in stills))


def model_of(model: infer.Model, stills: Sequence[Still]) -> infer.Model:
    """The model for some stills; for frames of a turning crystal, with the partiality over a turn.

    Raises:
        InputError: the model has no argument ``partiality``, or one of its own.
    """
    if all(still.turn_mrad is None for still in stills):
        return model
    own = getattr(model, "keywords", {})
    if "partiality" in own or "partiality" not in inspect.signature(model).parameters:
        raise InputError(
            "the crystal turns during an exposure, but the model has no argument partiality to "
            "account for it; give --as-stills, or another model"
        )
    return _over_turn(model)


@lru_cache
def _over_turn(model: infer.Model) -> infer.Model:
    """The same object each time for one model, since compiled code belongs to the object."""
    return partial(model, partiality=physics.gaussian_over_turn)
