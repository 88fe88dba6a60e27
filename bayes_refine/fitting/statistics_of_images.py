"""The reflections of some images of a run, predicted at a state."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np

from .. import infer
from ..geometry import predict
from ..geometry.experiments import Still
from ..geometry.predict import Predictions
from ..physics.observations import SpotStatistics
from ..physics.priors import Priors
from . import padding
from .problem import Run
from .state import State, geometry_of, images_of, moved, partiality_width
from .sweeps import sweeps_at


def predictions_of(
    run: Run, state: State, priors: Priors, margin: float, images: slice
) -> Predictions:
    """Reflections of some images at a state with |ε_r| < ``margin`` R0_eff and finite numbers."""
    stills, width = stills_at(run, state, images), partiality_width(state, priors)
    candidates = [run.candidates.of(still) for still in run.stills[images]]
    found = predict.concatenate(
        [
            predict.predict(s, hkl, run.settings.d_min, lambda d, s=s: margin * width(d, s.beam), i)
            for i, (s, hkl) in enumerate(zip(stills, candidates, strict=True))
        ]
    )
    # a ray parallel to a panel has no pixel
    return found.select(infer.finite_rows(*(getattr(found, f.name) for f in fields(found))))


def pixel_size(predictions: Predictions) -> float:
    """Median size of a pixel in ε_t, Å⁻¹."""
    return float(np.median(np.sqrt(np.abs(np.linalg.det(predictions.frame)))))


def stills_at(run: Run, state: State, images: slice) -> tuple[Still, ...]:
    """Some stills of a run with the geometry of a state."""
    some = run.stills[images]
    return moved(some, geometry_of(some, images_of(state, images, len(some))))


def geometry_at(
    run: Run,
    state: State,
    predictions: Predictions,
    images: slice,
    slots: int,
    pixel_inv_angstrom: float,
) -> tuple[padding.Layout, SpotStatistics]:
    """The places of some images' reflections, and their observations, still without statistics."""
    some = run.stills[images]
    where = padding.layout(predictions.image, run.size, slots)
    geometry = geometry_of(some, images_of(state, images, len(some)))
    if run.panel_groups and geometry.panels is None:
        geometry = geometry._replace(panels=np.zeros((run.panel_groups, 3)))
    obs = padding.geometry_observations(
        list(some), predictions, where, geometry, pixel_inv_angstrom
    )
    if (sweeps := sweeps_at(some, run.size)) is not None:
        obs = replace(obs, sweeps=sweeps)
    if some[0].stated_wavelength is not None:
        stated = np.array([still.stated_wavelength for still in some])
        obs = replace(obs, wavelength=_padded(stated, run.size))
    if run.monitored:
        energy = np.array([still.log_pulse_energy for still in some])
        obs = replace(obs, log_pulse_energy=_padded(energy, run.size))
    if run.settings.metadata:
        at = stills_at(run, state, images)
        obs = replace(obs, metadata=padding.metadata(at, predictions, where))
    return where, obs


def _padded(values: np.ndarray, size: int) -> np.ndarray:
    """(size, 1): numbers of images, the last one repeated."""
    return np.append(values, [values[-1]] * (size - len(values)))[:, None]
