"""One place for factored statistics and pixels to start from, for the scripts beside this one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

import bayes_refine as br
from bayes_refine.fitting.measure_batch import Plan
from bayes_refine.fitting.measure_run import measure_run
from bayes_refine.fitting.problem import prepare_run
from bayes_refine.fitting.start import find_start


def at_start(stills, reference, reader, model, settings, priors=None):
    """Run, what is measured at the state that the start found, that state, and the priors."""
    priors = priors or br.Priors()
    run = prepare_run(stills, reference, reader, model, priors, settings)
    start = find_start(run, priors, br.Listener())
    state = {**start.state, **start.after}
    status = np.full(len(run.stills), "", dtype=object)
    measurements = measure_run(
        run, state, priors, status, start.plan, settings.margin, br.Listener()
    )
    return run, measurements, {**state, "log_G": measurements.log_G}, priors


def at_mode(fitted, reference, reader, model, settings, priors=None):
    """The same where a fitted run ended."""
    priors = priors or br.Priors()
    run = prepare_run(fitted.indexed, reference, reader, model, priors, settings)
    state = fitted.fit.values()
    status = np.full(len(run.stills), "", dtype=object)
    plan = Plan(
        log_G0=float(np.asarray(fitted.observations.log_G0)),
        pixel_inv_angstrom=float(np.asarray(fitted.observations.pixel_inv_angstrom)),
    )
    measurements = measure_run(run, state, priors, status, plan, settings.margin, br.Listener())
    return run, measurements, state, priors


def thermolysin(data: Path, reader: br.ImageReader):
    """The three measured stills, as ``thermolysin_terms.py`` treats them: stills, reference and
    read-out noise; sets the reader's gain.
    """
    folder = data / "thermolysin_xfel"
    stills = [
        replace(
            s,
            detector=replace(
                s.detector,
                thickness_mm=0 * s.detector.thickness_mm + 0.5,
                mu_per_mm=0 * s.detector.mu_per_mm + 8.49,
            ),
        )
        for s in br.read_experiments(folder / "thermolysin_xfel.expt").stills
    ]
    noise = br.noise_for(reader, stills)
    reader.gain = noise.gain
    return stills, br.read_reference(folder / "reference.mtz"), noise.read_noise
