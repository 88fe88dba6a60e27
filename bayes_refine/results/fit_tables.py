"""Write the tables of a fit: merged and unmerged MTZ, refined geometry, ``images.csv``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from .. import infer
from ..fitting.loop import RunFit
from ..fitting.merge_fit import intensities_of_fit, measured_of, observed_rows
from ..fitting.partial_sums import partials_of
from ..fitting.posterior_draws import of_batch
from ..fitting.problem import Settings
from ..fitting.state import tails
from ..fitting.sweep_scales import smooth_scale_sd
from ..fitting.tables import image_table, lab_positions, mean_cell, usable_images
from ..geometry.experiments import Experiments
from ..geometry.miller import unique_hkl
from ..geometry.symmetry import asu_map
from ..io.expt import write_experiments
from ..io.mtz import write_merged, write_unmerged
from ..merging.forecast import forecast, so_far
from ..merging.merged_columns import merged_files
from ..merging.merged_intensities import Intensities
from ..physics.priors import Priors
from ..physics.reference import Reference, free_set
from ..util.errors import InputError
from ..util.output import write_table

UNBOUNDED = 1e3  # fractional sd of a scale that draws do not bound


def scale_uncertainty(
    run: RunFit, model: infer.Model, priors: Priors, draws: Mapping[str, np.ndarray]
) -> np.ndarray:
    """(N,) fractional sd of g = G·B_term·p·pol: the sd of ln g over draws (D, ...) by site.

    Correlations are neglected, though reflections of one image share the error of G.  A scale that
    is not finite in some draw has the sd ``UNBOUNDED``: it says nothing of an intensity.
    """
    count = len(next(iter(draws.values())))
    found = []
    for batch, obs in zip(run.batches, run.observed.parts, strict=True):
        here = of_batch(run, draws, batch.images)
        mean = total = np.zeros(len(batch.predictions))
        obs = jax.device_put(obs)
        for i in range(count):
            values = {name: value[i] for name, value in here.items()}
            scale = infer.evaluate(model, values, obs, priors)["scale"]
            g = batch.where.flat(scale)
            log_g = np.log(np.where(np.isfinite(g), np.maximum(g, 1e-300), np.nan))
            step = log_g - mean
            mean = mean + step / (i + 1)
            total = total + step * (log_g - mean)
        found.append(np.sqrt(total / max(count - 1, 1)))
    sd = np.concatenate(found)
    return np.where(np.isfinite(sd), np.minimum(sd, UNBOUNDED), UNBOUNDED)


def merged_of(
    run: RunFit,
    ref: Reference | None,
    scale_sd: np.ndarray | float,
    settings: Settings,
    priors: Priors,
    anomalous: bool,
) -> Intensities:
    """Merged intensities of the usable images.

    Args:
        scale_sd: fractional sd of the scales, (N,) from ``scale_uncertainty``; 0 neglects it.

    Raises:
        InputError: no image is usable.
    """
    measured = measured_of(
        run.reflections,
        _rows(run),
        run.reference.space_group,
        scale_sd,
        tails(run.fit.values(), priors),
        anomalous,
        run.stills,
        smooth_scale_sd(run.reflections, run.fit, run.stills),
    )
    return intensities_of_fit(
        measured,
        mean_cell(run),
        run.reference.space_group,
        ref,
        settings.free_fraction,
        settings.seed,
        anomalous,
    )


def forecast_of(
    run: RunFit, found: Intensities, edges: np.ndarray, seed: int
) -> list[dict[str, Any]]:
    """Forecast for 2, 5 and 10 times as many images, by shell (``merging.forecast``).

    Args:
        found: from ``merged_of``; if Friedel mates are apart, rows also have σ of their difference.
        edges: of shells, Å.
    """
    group = run.reference.space_group
    nu = tails(run.fit.values(), run.priors)
    measured = measured_of(run.reflections, _rows(run), group, 0.0, nu)
    seen = so_far(found, measured, mean_cell(run), group, edges, seed)
    more = [k * seen.n_images for k in (2, 5, 10)]
    rows = forecast(seen, more, rng=np.random.default_rng(seed))
    if found.mates is None:
        return rows
    seen = so_far(found, measured, mean_cell(run), group, edges, seed, mates=True)
    of_mates = forecast(seen, more, rng=np.random.default_rng(seed), mates=True)
    known = {(row["images"], row["shell"]): row for row in of_mates}
    return [row | known.get((row["images"], row["shell"]), {}) for row in rows]


def _rows(run: RunFit) -> np.ndarray:
    """Indices of the reflections that are written."""
    r = run.reflections
    rows = np.flatnonzero(r.measured & usable_images(run)[r.image])
    if not len(rows):
        raise InputError(f"no image could be fitted; the first one: {run.status[0]}")
    return rows


def _weights(run: RunFit, seen, group, weight: np.ndarray, anomalous: bool) -> np.ndarray:
    """Weight of each observation in the merge; partials share the weight of their sum."""
    hkl = asu_map(run.reflections.hkl[seen], group, anomalous)[0]
    partials = partials_of(run.reflections, seen, unique_hkl(hkl)[1], run.stills)
    return weight if partials is None else weight[partials.group] * partials.share


def write_tables(
    work: Path,
    run: RunFit,
    experiments: Experiments,
    found: Intensities,
    settings: Settings,
    anomalous: bool,
) -> None:
    """Write ``refined.expt``, ``images.csv``, and the unmerged and merged MTZ files.

    Args:
        found: from ``merged_of``, with the same ``anomalous``.
    """
    usable = usable_images(run)
    kept = zip(usable, run.stills, run.indexed, strict=True)
    stills = tuple(new if good else old for good, new, old in kept)
    of_all = (*stills, *(still for still, _ in run.unread))
    write_experiments(work / "refined.expt", replace(experiments, stills=of_all))
    cell, rows = mean_cell(run), _rows(run)
    r, group = run.reflections, run.reference.space_group
    place = lab_positions(run)

    def free(hkl):
        return free_set(hkl, settings.free_fraction, settings.seed, group)

    common = {
        "BATCH": r.image + 1,
        "XDET": place[:, 0],
        "YDET": place[:, 1],
        "PANEL": r.panel,
        "FREE": free(r.hkl),
    }
    raw = common | {
        "I": r.J,
        "SIGI": np.sqrt(r.variance),
        "PARTIALITY": r.partiality,
        "EPSILON_R": r.excitation_error,
        "SCALE": r.scale,
        "IMODEL": r.J_model,
    }
    raw = {name: values[rows] for name, values in raw.items()}
    write_unmerged(work / "unmerged.mtz", r.hkl[rows], raw, cell, group, stills)

    seen = observed_rows(r, rows, group, anomalous)
    with np.errstate(divide="ignore", over="ignore"):
        scaled = r.J[seen] / r.scale[seen]
        sigma = _weights(run, seen, group, found.merged.weight, anomalous) ** -0.5
    good = np.isfinite(np.float32(scaled)) & np.isfinite(np.float32(sigma))
    seen, scaled, sigma = seen[good], scaled[good], sigma[good]
    columns = {name: values[seen] for name, values in common.items()}
    columns |= {"I": scaled, "SIGI": sigma, "SCALEUSED": 1 / r.scale[seen]}
    write_unmerged(work / "unmerged_scaled.mtz", r.hkl[seen], columns, cell, group, stills)

    wavelength = float(np.mean([still.beam.wavelength for still in stills]))
    for name, (hkl, merged) in merged_files(found, free(found.merged.hkl)).items():
        write_merged(work / name, hkl, merged, cell, group, wavelength)
    write_table(work / "images.csv", image_table(run))
