"""The one loop: predict → measure → fit, until nothing moves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from . import infer, predict, reference, running
from .experiments import Still
from .forward import Observations
from .io.images import ImageReader
from .pilot import moved, partiality_width, pilot_geometry
from .priors import Priors
from .reference import Reference
from .reflections import Reflections, reflections_of
from .rounds import Batch, Movement, Run, Say, Seen, Settings, one_round
from .scout import BROAD_MARGIN, scout
from .store import Store

MAX_LOG_G_SD = 0.25  # a scale that is less than four of its sd from zero is none


@dataclass(frozen=True)
class RunFit:
    """A fitted run: n images.

    Attributes:
        stills: refined geometry; indexed: as they came in.
        status: (n,) "converged" or why an image is not to be trusted.
        fit: the posterior mode; an image that could not be used stays in, at its priors.
        reflections: all that were predicted in the last round.
        batches: the same with everything that was measured; observed: what the fit was
            conditioned on.  Both on disk.
        movement: one entry a round.
    """

    stills: tuple[Still, ...]
    indexed: tuple[Still, ...]
    status: np.ndarray
    fit: infer.Fit
    reflections: Reflections
    batches: Store[Batch]
    observed: infer.Batches
    movement: tuple[Movement, ...]

    @property
    def observations(self) -> Observations:
        """What the fit was conditioned on, all images together in memory."""
        return self.observed.whole()


def fit_run(
    stills: Sequence[Still],
    ref: Reference | None,
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
    running_ = None
    if ref is None:
        crystal = stills[0].crystal
        running_ = running.start(
            crystal.cell, crystal.space_group, 0.97 * settings.d_min, len(stills)
        )
        ref = running_.reference
    reference.check_fits(ref, [s.crystal for s in stills], "the experiments")
    run = Run(
        stills, ref, reader, model, settings, _candidates(stills, ref, priors, settings), running_
    )
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
        if run.running is not None:
            state, run = _renewed(run, seen, state, priors, last)
        if round_ == 1 and not last:
            state |= start.after
        now, margin = priors, settings.margin

    assert fit is not None and seen is not None, "a fit has at least one round"
    return RunFit(
        stills=moved(stills, *pilot_geometry(stills, state)),
        indexed=stills,
        status=np.where(status == "", _judged(fit), status),
        fit=fit,
        reflections=reflections_of(
            seen.batches, seen.observations.parts, run.ref, model, state, priors
        ),
        batches=seen.batches,
        observed=seen.observations,
        movement=tuple(movement),
    )


def _renewed(run: Run, seen: Seen, state, priors: Priors, last: bool):
    if not last:
        usable = seen.counts > 0
        state = {
            **state,
            "B": state["B"] - np.mean(state["B"][usable]),
            "log_G": state["log_G"] - np.mean(state["log_G"][usable]) + seen.kept.log_G0,
        }
    r = reflections_of(seen.batches, seen.observations.parts, run.ref, run.model, state, priors)
    use = r.informs
    now = running.renewed(
        run.running,
        r.hkl[use],
        r.image[use],
        r.J[use].astype(float),
        r.scale[use].astype(float),
        tuple(
            x[use].astype(float)
            for x in (r.variance_background, r.variance_signal, r.relative_variance)
        ),
        float(np.exp(state["log_nu"])) if "log_nu" in state else np.inf,
    )
    return state, replace(run, ref=now.reference, running=now)


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
        predict.near_sphere(
            s, hkl, 0.98 * settings.d_min, lambda d, s=s: far * width(d, s.beam)
        ).astype(np.int16)  # a long list for each of many images
        for s in stills
    )
