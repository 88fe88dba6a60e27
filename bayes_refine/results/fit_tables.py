"""Write the tables of a fit: merged and unmerged MTZ, refined geometry, ``images.csv``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
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
from ..fitting.reflections import Reflections
from ..fitting.state import tails
from ..fitting.sweep_scales import smooth_scale_sd
from ..fitting.tables import image_table, lab_positions, mean_cell, usable_images
from ..geometry.experiments import Experiments
from ..io.expt import write_experiments
from ..io.mtz import batches_of, write_merged, write_observations
from ..merging.forecast import forecast, so_far
from ..merging.merged_columns import merged_files
from ..merging.merged_intensities import Intensities
from ..merging.pieces import whole_reflections
from ..physics.priors import Priors
from ..physics.reference import Reference, free_set
from ..util.errors import InputError
from ..util.large_arrays import joined, release, room, slices, taken
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

    def of_batches() -> Iterator[list[np.ndarray]]:
        for batch, obs in zip(run.batches, run.observed.parts, strict=True):
            here = of_batch(run, draws, batch.images)
            release(*draws.values())
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
            sd = np.sqrt(total / max(count - 1, 1))
            yield [np.where(np.isfinite(sd), np.minimum(sd, UNBOUNDED), UNBOUNDED)]

    return joined(of_batches())[0]


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
    usable = usable_images(run)
    rows = run.reflections.where(lambda r: r.measured & usable[r.image])
    if not len(rows):
        raise InputError(f"no image could be fitted; the first one: {run.status[0]}")
    return rows


def _weights(run: RunFit, rows: np.ndarray, weight: np.ndarray, anomalous: bool) -> np.ndarray:
    """(N,) weight in the merge of those reflections that are ``rows`` (n,), 0 of all others.

    Partials share the weight of their sum.

    Args:
        weight: of each observation, in the order of ``merge_fit.measured_of``.
    """
    r, found = run.reflections, room(len(run.reflections))
    rows, code, _ = observed_rows(r, rows, run.reference.space_group, anomalous)
    if (partials := partials_of(r, rows, code, run.stills)) is not None:
        weight = weight[partials.group] * partials.share
    for part in slices(len(rows), rows, weight, found):
        found[rows[part]] = weight[part]
    return found


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
    cell, group, rows = mean_cell(run), run.reference.space_group, _rows(run)
    weights = _weights(run, rows, found.merged.weight, anomalous)
    rows, code, hkl = observed_rows(run.reflections, rows, group)
    free = partial(free_set, fraction=settings.free_fraction, seed=settings.seed, space_group=group)
    of_unique, place, weight = free(hkl), taken(lab_positions(run), rows), taken(weights, rows)
    observed = run.reflections.taken(rows)

    def columns(part: slice) -> tuple[Reflections, dict[str, np.ndarray]]:
        observed.release()
        release(code, place, weight)
        r, (x, y) = observed.some(part), place[part].T
        common = {"BATCH": r.image + 1, "XDET": x, "YDET": y, "PANEL": r.panel}
        return r, common | {"FREE": of_unique[code[part]]}

    def raw(part: slice) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        r, common = columns(part)
        return r.hkl, common | {
            "I": r.J,
            "SIGI": np.sqrt(r.variance),
            "PARTIALITY": r.partiality,
            "EPSILON_R": r.excitation_error,
            "SCALE": r.scale,
            "IMODEL": r.J_model,
        }

    def scaled(part: slice) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        r, common = columns(part)
        with np.errstate(divide="ignore", over="ignore"):
            intensity, sigma = r.J / r.scale, weight[part] ** -0.5
            common |= {"I": intensity, "SIGI": sigma, "SCALEUSED": 1 / r.scale}
            good = np.isfinite(np.float32(intensity)) & np.isfinite(np.float32(sigma))
        return r.hkl[good], {name: values[good] for name, values in common.items()}

    for name, block in (("unmerged.mtz", raw), ("unmerged_scaled.mtz", scaled)):
        blocks = [partial(block, part) for part in whole_reflections(code)]
        n = sum(len(block()[0]) for block in blocks)
        batches = batches_of(stills)
        write_observations(work / name, (block() for block in blocks), n, cell, group, batches)

    wavelength = float(np.mean([still.beam.wavelength for still in stills]))
    for name, (hkl, merged) in merged_files(found, free(found.merged.hkl)).items():
        write_merged(work / name, hkl, merged, cell, group, wavelength)
    write_table(work / "images.csv", image_table(run))
