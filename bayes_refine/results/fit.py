"""Write the results of a fit: refined geometry, MTZ files, tables, posterior, report.

Only usable images (``tables.usable_images``) enter the MTZ files.  The other images appear in
``images.csv`` and in the counts, and keep the geometry of the input.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .. import report
from ..fitting.loop import RunFit
from ..fitting.outliers import outliers_of
from ..fitting.posterior_draws import Method, describe, laplace, with_spread
from ..fitting.prepare import Prepared
from ..fitting.problem import Settings
from ..fitting.tables import (
    image_table,
    mean_cell,
    panel_moves,
    shared_values,
    usable_images,
)
from ..geometry.miller import resolution
from ..merging.agreement import shell_edges, shell_table
from ..merging.mates import anomalous_table
from ..merging.merged_columns import blank
from ..merging.merged_intensities import Intensities
from ..physics.reference import Reference, free_set
from ..report.overview import write_overview
from ..util.folder import all_or_none
from ..util.large_arrays import trim
from ..util.output import jsonable, versions, write_summary
from ..util.progress import SILENT, Listener
from .fit_tables import forecast_of, merged_of, scale_uncertainty, write_tables
from .pictures import MAY_BE_ABSENT, draw_pictures
from .posterior import write_draws

N_SHELLS = 10
N_SCALE_DRAWS = 50
N_SHOWN = 400  # draws in the pictures of the report


def write_results(
    out_dir: str | Path,
    run: RunFit,
    prepared: Prepared,
    method: Method = laplace,
    *,
    anomalous: bool = False,
    pictures: bool = True,
    about: Mapping[str, Any] | None = None,
    progress: Listener = SILENT,
) -> dict[str, Any]:
    """Write the files of a fit and return the content of ``summary.json``.

        summary = write_results("fitted", run, prepared)
        summary["agreement"][-1]["cc_free"]

    All files are written or none (``folder.all_or_none``).  The pictures follow, ``overview.png``
    and ``report.html``: if one cannot be drawn, a sentence says so and the results stay.

    Args:
        out_dir: made if absent; results in it are replaced.
        run: returned by ``fit``. prepared: what ``fit`` was given.
        method: how to draw from the posterior: ``posterior_draws.laplace``, ``svi``, ``nuts``, or
            ``at_mode``, for which merged sigmas do not contain the uncertainty of scales.
        anomalous: keep Friedel mates apart in ``merged.mtz``.
        pictures: also draw pixels, for which images are read again; the report is always written.
        about: more entries of ``summary.json``: ``command``, ``model`` (a name), and ``seconds``
            of earlier stages.

    Raises:
        InputError: there is nothing to write, or ``out_dir`` cannot be written.
    """
    about = {"command": [], "model": "", **(about or {})}
    timed = dict(about.pop("seconds", {}))
    reader = prepared.reader if pictures else None
    model, priors, settings, ref = (
        run.problem.model,
        run.priors,
        run.problem.settings,
        run.given_reference,
    )

    def stage(name: str, call: Callable, *args, **named):
        progress.say(f"writing: {name}")
        started = time.perf_counter()
        value = call(*args, **named)
        trim()
        timed[name] = time.perf_counter() - started
        return value

    with all_or_none(out_dir, MAY_BE_ABSENT) as work:
        rng = np.random.default_rng(settings.seed)
        draws = method(run, model, priors, progress, rng=rng)
        timed["draws"] = draws.seconds
        scale_sd: np.ndarray | float = 0.0
        if draws.scales_vary:
            few = draws.flat(at_most=N_SCALE_DRAWS)
            scale_sd = stage("scale_sd", scale_uncertainty, run, model, priors, few)
        found = stage("merge", merged_of, run, ref, scale_sd, settings, priors, anomalous)
        told = replace(run, fit=with_spread(run.fit, draws))  # sd in tables are those of the draws
        stage("tables", write_tables, work, told, prepared.experiments, found, settings, anomalous)
        stage("posterior", write_draws, work / "posterior.nc", run, model, priors, draws, rng=rng)
        summary = {
            **about,
            "versions": versions(),
            "method": draws.method,
            **_summary(told, ref, found, settings),
            "experiments_left_out": prepared.experiments.left_out,
            "posterior": describe(draws, run.fit.sites),
            "noise": asdict(prepared.noise),
            "bad_pixels": prepared.bad_pixels.summary(),
            "outliers": outliers_of(told),
            "forecast": stage("forecast", _forecast, run, found, settings.seed),
            "panels": panel_moves(told),
            "beam": _beam(prepared),
            "settings": settings.shown(),
            "priors": asdict(priors),
            "seconds": timed,
        }
        summary = jsonable(summary)
        write_summary(work / "summary.json", summary)
    shown = draws.flat(at_most=N_SHOWN)
    drawn = {"report.html": lambda p: report.fit_report(p, told, summary, shown, reader)}
    if reader is not None:
        drawn["overview.png"] = partial(write_overview, run=run, reader=reader)
    draw_pictures(Path(out_dir), drawn, progress)
    return summary


def _forecast(run: RunFit, found: Intensities, seed: int) -> list[dict[str, Any]]:
    """``fit_tables.forecast_of`` in the shells of the agreement."""
    d = resolution(found.merged.hkl, mean_cell(run))
    return forecast_of(run, found, shell_edges(float(d.max()), float(d.min()), N_SHELLS), seed)


def _beam(prepared: Prepared) -> dict[str, float | None]:
    """The beam as files state it: median wavelength (Å), its relative sd over shots, bandwidth.

    The bandwidth is an rms fraction; None if no file states one.
    """
    beams = [still.beam for still in prepared.experiments.stills]
    wavelength = np.array([beam.wavelength for beam in beams])
    stated = [beam.bandwidth for beam in beams if beam.bandwidth]
    return {
        "wavelength": float(np.median(wavelength)),
        "wavelength_jitter": float(np.std(np.log(wavelength))),
        "bandwidth_stated": float(np.median(stated)) if stated else None,
    }


# -- summary.json ---------------------------------------------------------------------------


def _summary(
    run: RunFit, ref: Reference | None, found: Intensities, settings: Settings
) -> dict[str, Any]:
    merged, group = found.merged, run.reference.space_group
    free = free_set(merged.hkl, settings.free_fraction, settings.seed, group)
    cell, usable, r = mean_cell(run), usable_images(run), run.reflections
    d = resolution(merged.hkl, cell)
    edges = shell_edges(float(d.max()), float(d.min()), N_SHELLS)
    reference = None if ref is None else ref.lookup(merged.hkl)
    post = np.asarray(found.posterior.intensity)
    rows = shell_table(merged, cell, group, edges, reference, free, post)
    if found.mates is not None:
        more = anomalous_table(found.mates, merged, cell, edges)
        rows = [a | b for a, b in zip(rows, more, strict=True)]
    statuses = [*run.status, *(status for _, status in run.unread)]
    return {
        "globals": shared_values(run),
        "cell": list(cell.parameters),
        "reference_cell": None if ref is None else list(ref.cell.parameters),
        "space_group": group.hm,
        "reference": run.reference.source if ref is None else ref.describe(),
        "indexing": str(run.reindexing),
        "counts": {
            "images": len(run.stills) + len(run.unread),
            "images_used": int(usable.sum()),
            "images_failed": int((~usable).sum()) + len(run.unread),
            "status": dict(Counter(str(s.kind) for s in statuses)),
            "reflections_predicted": len(r),
            "reflections_measured": int(r.measured.sum()),
            "reflections_fitted": int(r.informs.sum()),
            "reflections_merged": len(merged),
            "reflections_blank": int(blank(found).sum()),
            "reflections_free": int(free.sum()),
        },
        "agreement": rows,
        "cc_model_median": float(np.nanmedian(image_table(run)["cc_model"])),
        "convergence": {
            "iterations": run.fit.iterations,
            "log_density": run.fit.log_density,
            "shared_distance_sd": run.fit.shared_distance,
            "image_distance_sd_max": float(np.max(run.fit.distance[usable])),
            "rounds": [asdict(round_) for round_ in run.movement],
        },
    }
