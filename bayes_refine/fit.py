"""The one loop: predict → measure → fit, until nothing moves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from . import infer, observe, predict, reference
from .experiments import Still
from .forward import Observations
from .io.images import ImageReader
from .measure import Statistics
from .predict import Predictions
from .priors import Priors
from .reference import Reference
from .rounds import (
    Movement,
    Run,
    Say,
    Seen,
    Settings,
    moved,
    one_round,
    partiality_width,
    pilot_geometry,
)
from .scout import BROAD_MARGIN, scout

MAX_LOG_G_SD = 0.25  # a scale that is less than four of its sd from zero is none


@dataclass(frozen=True)
class RunFit:
    """A fitted run: n images, N reflections (flat).

    Attributes:
        stills: refined geometry; indexed: as they came in.
        status: (n,) "converged" or why an image is not to be trusted.
        fit, observations: the posterior mode and what it was conditioned on; an image that
            could not be used stays in as an empty row, at its priors.
        predictions, statistics: of the last round, flat; where: their place in the padding.
        free: (N,) bool; informs: (N,) bool, reflections the fit was conditioned on.
        intensity_reference: (N,) I_ref, NaN where unknown.
        model_sites: the model's deterministic sites at the mode, padded.
        movement: one entry a round.
    """

    stills: tuple[Still, ...]
    indexed: tuple[Still, ...]
    status: np.ndarray
    fit: infer.Fit
    observations: Observations
    predictions: Predictions
    statistics: Statistics
    where: observe.Layout
    free: np.ndarray
    informs: np.ndarray
    intensity_reference: np.ndarray
    model_sites: dict[str, np.ndarray]
    movement: tuple[Movement, ...]

    @property
    def J(self) -> np.ndarray:
        """(N,) profile-fitted intensities, photons."""
        return self.statistics.value[:, 0]

    @property
    def scale(self) -> np.ndarray:
        """(N,) G·B_term·p·pol: photons per unit of I."""
        return self.where.flat(self.model_sites["scale"]) * self.predictions.polarisation

    @property
    def J_model(self) -> np.ndarray:
        """(N,) expected intensities, photons; NaN without a reference."""
        return self.scale * self.intensity_reference

    def variance(self, J_model: np.ndarray) -> np.ndarray:
        """(N,) counting variance of J expected for ``J_model`` (N,), photons²."""
        s = self.statistics
        return s.variance_background[:, 0] + np.maximum(J_model, 0) * s.variance_signal[:, 0]


def fit_run(
    stills: Sequence[Still],
    ref: Reference,
    reader: ImageReader,
    model: infer.Model,
    priors: Priors | None = None,
    settings: Settings | None = None,
    progress: Say | None = None,
) -> RunFit:
    """Refine a run of stills against a reference: predict → measure → fit.

    Args:
        reader: gives photons; what it cannot read is reported in ``RunFit.status``.
        model: NumPyro program of ``(observations, priors)``, :func:`load_model`.
        progress: called with a line now and then.

    Raises:
        InputError: the reference does not fit the crystals, or no image can be used.
    """
    priors, settings = priors or Priors(), settings or Settings()
    say = progress or (lambda line: None)
    stills = tuple(stills)
    reference.check_fits(ref, [s.crystal for s in stills], "the experiments")
    run = Run(stills, ref, reader, model, settings, _candidates(stills, ref, priors, settings))
    start = scout(run, priors, say)
    state, now, margin = start.state, start.broad, BROAD_MARGIN
    if settings.rounds == 1:  # no round to spare for a broad curve
        state, now, margin = {**state, **start.after}, priors, settings.margin
    status = np.full(len(stills), "", dtype=object)
    movement: list[Movement] = []
    fit: infer.Fit | None = None
    seen: Seen | None = None
    kept = start.kept
    for round_ in range(1, settings.rounds + 1):
        say(f"round {round_} of {settings.rounds}: {len(stills)} images")
        last = round_ == settings.rounds
        seen = None  # the last round's need not stay in memory through this one
        state, fit, seen, far = one_round(run, state, now, status, kept, margin, last, say)
        kept = seen.kept
        movement.append(far)
        say(f"round {round_}: {far}")
        if round_ == 1 and not last:
            state |= start.after
        now, margin = priors, settings.margin

    assert fit is not None and seen is not None, "a fit has at least one round"
    return RunFit(
        stills=moved(stills, *pilot_geometry(stills, state)),
        indexed=stills,
        status=np.where(status == "", _judged(fit), status),
        fit=fit,
        observations=seen.observations,
        predictions=seen.predictions,
        statistics=seen.statistics,
        where=seen.where,
        free=seen.free,
        informs=seen.informs,
        intensity_reference=seen.intensity,
        model_sites=infer.evaluate(model, state, seen.observations, priors),
        movement=tuple(movement),
    )


def _judged(fit: infer.Fit) -> np.ndarray:
    """(n,) status: the fit's, or that an image shows nothing of what is expected on it.

    A blank or misindexed image has a perfectly good mode too, at a scale next to nothing.
    """
    status = fit.status.copy()
    if any(site.name == "log_G" for site in fit.sites):
        sd = fit.sd("log_G").reshape(len(status))
        for i in np.flatnonzero((sd > MAX_LOG_G_SD) & (status == "converged")):
            status[i] = f"no signal (ln G known to {sd[i]:.2f} only)"
    return status


def _candidates(stills, ref, priors, settings) -> tuple[np.ndarray, ...]:
    """For each still the reflections that may come near the sphere in any round."""
    cell = stills[0].crystal.cell
    hkl = predict.candidate_indices(cell, ref.space_group, settings.d_min)
    hkl = hkl[ref.lookup(hkl) != 0]  # systematically absent
    width = partiality_width({}, priors)
    far = 3 * settings.margin
    return tuple(
        predict.near_sphere(s, hkl, 0.98 * settings.d_min, lambda d, s=s: far * width(d, s.beam))
        for s in stills
    )
