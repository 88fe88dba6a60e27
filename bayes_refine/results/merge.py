"""Write the results of a merge: ``merged.mtz``, ``images.csv``, posterior, summary, report."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..geometry.miller import find, numbered, pack_hkl
from ..io.mtz import new_batch, write_merged, write_observations
from ..io.posterior import About, Variable, pointwise_draws, write_posterior
from ..merging.agreement import pearson, shell_edges, shell_index, shell_table
from ..merging.mates import anomalous_table
from ..merging.merge import (
    MergeRun,
    MergeSettings,
    all_images,
    image_table,
    shared_draws,
    shared_values,
)
from ..merging.merged_columns import blank, merged_files
from ..merging.observations import by_reflection
from ..merging.pieces import whole_reflections
from ..merging.scaling import compiled_sites, pinned_draws
from ..physics.reference import Reference, free_set
from ..physics.variance_of_J import variance_of_J
from ..report import Content, ObservedAndExpected, run_report
from ..report.drawing import SHOWN
from ..util.folder import all_or_none
from ..util.kept_programs import kept
from ..util.large_arrays import release, taken, trim
from ..util.output import jsonable, versions, write_summary, write_table
from ..util.progress import SILENT, Listener
from ..util.student_t import draw_student_t, log_student_t
from .pictures import MAY_BE_ABSENT, draw_pictures

N_SHELLS = 10
N_DRAWS = 100
ROWS = 1 << 22  # observations in one unmerged_scaled.mtz
BLOCK = 1 << 15  # observations whose pointwise terms are in memory at a time
# other axes: knots
AXES = {"reference_direction": "tensor", "reference_anisotropy": "tensor", "curve": "number"}
# sites with several numbers, and their names in summary.json
LISTS = {"log_Sigma": "log_Sigma_knots", "log_beta": "log_beta_knots", "curve": "curve"}


def write_merge(
    out_dir: str | Path,
    run: MergeRun,
    reference: Reference | None = None,
    n_draws: int | None = None,
    facts: Mapping[str, Any] | None = None,
    seconds: Mapping[str, float] | None = None,
    progress: Listener = SILENT,
) -> dict[str, Any]:
    """Write the files of a merge and return the content of ``summary.json``.

        write_merge("merged", run)

    All files are written or none (``folder.all_or_none``).  ``report.html`` follows: if a picture
    cannot be drawn, a sentence says so and the results stay.

    Args:
        reference: to compare with, whether or not it informed the run.
        n_draws: number of draws of scales, and of I and F of every reflection, in
            ``posterior.nc``; None for 100 draws of scales alone.
        facts: more entries of the summary: command, prior, model.
        seconds: of earlier stages.

    Raises:
        InputError: ``out_dir`` cannot be written.
    """
    timed, settings = {**(seconds or {}), **run.seconds}, run.settings
    table = image_table(run)
    draws = pinned_draws(run.scaled.fit, settings.seed, n_draws or N_DRAWS)
    earlier = [path.name for path in Path(out_dir).glob("unmerged_scaled*.mtz")]
    with all_or_none(out_dir, (*MAY_BE_ABSENT, *earlier)) as work:

        def stage(name: str, call: Callable, *args):
            progress.say(f"writing: {name}")
            started = time.perf_counter()
            call(*args)
            trim()
            timed[name] = time.perf_counter() - started

        stage("tables", _write_tables, work, run, table, settings)
        stage("posterior", _write_draws, work / "posterior.nc", run, run.model, run.priors, draws,
              n_draws is not None, settings.seed)  # fmt: skip
        summary: dict[str, Any] = {
            **(facts or {}),
            "versions": versions(),
            **_summary(run, reference, draws),
            "settings": asdict(settings),
            "priors": asdict(run.priors),
            "seconds": timed,
        }
        summary = jsonable(summary)
        write_summary(work / "summary.json", summary)

    def page(path: Path) -> list[str]:
        shared = shared_draws(draws)
        return run_report(
            path,
            "bayes-refine merge",
            summary,
            Content(table, _observed_and_expected(run), shared),
        )

    draw_pictures(Path(out_dir), {"report.html": page}, progress)
    return summary


# -- tables ---------------------------------------------------------------------------------


def _write_tables(
    work: Path, run: MergeRun, table: Mapping[str, np.ndarray], settings: MergeSettings
) -> None:
    data, found = run.data, run.intensities
    _write_scaled(work, run, settings)
    for name, (hkl, columns) in merged_files(found, run.free).items():
        write_merged(work / name, hkl, columns, data.cell, data.space_group, data.wavelength)
    write_table(work / "images.csv", all_images(run, table))


def _write_scaled(work: Path, run: MergeRun, settings: MergeSettings) -> None:
    """Write observations on one scale; their means weighted by 1/σ² are those in ``merged.mtz``.

    Of a run with more than ``ROWS`` observations every file has those of a part of the asymmetric
    unit.
    """
    data, d = run.data, run.scaled.measured
    order, _, _ = by_reflection(data, settings.d_min, settings.anomalous)
    free = free_set(np.asarray(d.hkl), settings.free_fraction, settings.seed, data.space_group)
    weight, xy = run.intensities.merged.weight, data.xy_px
    if xy is not None and not np.isfinite(xy).all():
        xy = None

    def scaled(part: slice) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """I and sigma on one scale, and which of them are numbers."""
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            intensity = (data.J[order[part]] / d.scale[part]).astype(np.float32)
            sigma = (weight[part] ** -0.5).astype(np.float32)
        return intensity, sigma, np.isfinite(intensity) & np.isfinite(sigma)

    def block(part: slice) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        intensity, sigma, good = scaled(part)
        rows = order[part][good]
        columns = {
            "BATCH": data.batch[rows],
            "I": intensity[good],
            "SIGI": sigma[good],
            "PARTIALITY": run.scaled.partiality[part][good],
            "SCALEUSED": 1 / np.asarray(d.scale[part])[good],
            "FREE": free[np.asarray(d.code[part])[good]],
        }
        if data.excitation_error is not None:
            columns["EPSILON_R"] = data.excitation_error[rows]
        if xy is not None:
            columns["XDET"], columns["YDET"] = xy[rows].T
        hkl = data.hkl[rows]
        release(*vars(data).values(), *vars(d).values(), order, weight, run.scaled.partiality)
        return hkl, columns

    # mates that are apart are not neighbours in the asymmetric unit
    n = len(order)
    parts = [slice(0, n)] if settings.anomalous else list(whole_reflections(np.asarray(d.code)))
    counts = np.array([scaled(part)[2].sum() for part in parts])
    in_file = (np.cumsum(counts) - counts) // ROWS
    batches = np.union1d(numbered(data.batch)[0], data.empty)
    for k in np.unique(in_file):
        chosen = np.flatnonzero(in_file == k)
        number = f"_{k + 1:03d}" if in_file[-1] else ""
        write_observations(
            work / f"unmerged_scaled{number}.mtz",
            (block(parts[i]) for i in chosen),
            int(counts[chosen].sum()),
            data.cell,
            data.space_group,
            (new_batch(int(b), data.name(b), data.cell, data.wavelength) for b in batches),
        )


def _observed_and_expected(run: MergeRun) -> ObservedAndExpected:
    """J of each observation, beside g times the posterior mean of its true intensity.

    Of a large run every so many are taken, some ``SHOWN`` in all.
    """
    d, obs = run.scaled.measured, run.scaled.observations
    n = len(d.J)
    rows = np.arange(0, n, -(-n // SHOWN))
    expected = run.expected(rows)
    rows, expected = rows[np.isfinite(expected)], expected[np.isfinite(expected)]
    variance = variance_of_J(
        expected, np.asarray(d.variance)[rows], 0.0, np.asarray(d.fraction)[rows] ** 2
    )
    return ObservedAndExpected(
        image=np.asarray(d.image)[rows],
        J=np.asarray(d.J)[rows],
        J_model=expected,
        sigma=np.sqrt(variance),
        d=1 / np.asarray(obs.norm_q)[rows],
        fitted=np.ones(len(rows), bool),
        free=np.zeros(len(rows), bool),
        excitation_error=np.asarray(obs.excitation_error)[rows],
        partiality=run.scaled.partiality[rows],
    )


# -- posterior.nc ---------------------------------------------------------------------------


def _write_draws(
    path: Path, run: MergeRun, model, priors, draws, with_intensities: bool, seed: int
) -> None:
    obs, data, latent = run.scaled.observations, run.data, run.intensities.latent
    posterior = {
        site.name: Variable(
            np.asarray(draws[site.name])[None],
            ("image",) if site.per_image else (AXES.get(site.name, "knot"),) * len(site.shape),
        )
        for site in run.scaled.fit.sites
    }
    F = latent.draws(len(next(iter(draws.values()))), seed=seed)
    hkl = run.intensities.latent_hkl
    labels = {"batch": ("image", numbered(data.batch)[0])}
    if with_intensities:
        posterior["F"] = Variable(F.astype(np.float32)[None], ("unique",))
        posterior["I"] = Variable((F**2).astype(np.float32)[None], ("unique",))
        labels |= {
            f"unique_{name}": ("unique", column) for name, column in zip("hkl", hkl.T, strict=True)
        }
    observed_hkl = dict(
        zip("hkl", (taken(x, np.asarray(obs.code)) for x in np.asarray(obs.hkl).T), strict=True)
    )
    kept = pointwise_draws((1, len(F)), len(obs.J), len(F))
    some = {name: value[kept] for name, value in draws.items()}
    write_posterior(
        path,
        posterior,
        _pointwise(run, model, priors, some, F[kept], rng=np.random.default_rng(seed)),
        {"intensity": np.asarray(obs.J)},
        {"image": np.asarray(obs.image), **observed_hkl},
        About(
            labels=labels,
            attrs={
                "inference_library": "bayes_refine",
                "method": "Laplace draws of scales; draws of F by quadrature at the mode's scales, "
                "the uncertainty of each scale in the likelihood",
            },
        ),
        kept=kept,
    )


def _pointwise(run: MergeRun, model, priors, draws, F, *, rng) -> Iterator[dict[str, tuple]]:
    """ln p(J | scales, I) and a replicate of J for each draw, a block of observations at a time."""
    obs, d = run.scaled.observations, run.scaled.measured
    n, hkl = len(obs.J), run.intensities.latent_hkl
    column, _ = find(pack_hkl(np.asarray(obs.hkl)), pack_hkl(hkl))
    for start in range(0, n, BLOCK):
        rows = slice(start, min(start + BLOCK, n))
        pad = np.minimum(np.arange(start, start + BLOCK), n - 1)  # one shape, compiled once
        here = replace(
            obs, **{name: getattr(obs, name)[pad] for name in
                    ("J", "sigma", "weight", "image", "code", "norm_q",
                     "excitation_error")},
        )  # fmt: skip
        here = jax.device_put(here)
        of, mode = column[np.asarray(d.code)[pad]], np.maximum(d.scale[pad], 1e-300)
        width = rows.stop - start
        terms = np.empty((2, len(F), width), np.float32)  # as they are written
        for i, key in enumerate(rng.integers(2**31, size=len(F))):
            values = {name: value[i] for name, value in draws.items()}
            g = compiled_sites(model)(here, priors, values)["scale"]
            found = _term(jax.random.key(key), here.J, here.sigma, g, mode, F[i][of] ** 2, values)
            terms[:, i] = [np.asarray(x)[:width] for x in found]
        release(*vars(obs).values(), *vars(d).values())
        yield {"intensity": (terms[0][None], terms[1][None])}


@kept
def _term(key, J, sigma, g, mode, intensity, values):
    """ln t_ν(J; gI, s²) and a draw of J; s² as in ``true_intensities.log_observations``.

    Intensities have the scale of the mode, whose g are ``mode``: a factor common to all g is taken
    out.
    """
    g = g * jnp.exp(jnp.mean(jnp.log(mode / jnp.maximum(g, 1e-300))))
    nu, expected = jnp.exp(values["log_nu"]), g * intensity
    of_sigma = (jnp.exp(values["log_sigma_factor"]) * sigma) ** 2
    s = jnp.sqrt(variance_of_J(expected, of_sigma, 0.0, jnp.exp(2 * values["log_model_error"])))
    log_p = log_student_t(J, nu, expected, s, jnp)
    return log_p, expected + s * draw_student_t(key, nu, expected.shape)


# -- summary.json ---------------------------------------------------------------------------


def _summary(run: MergeRun, reference: Reference | None, draws) -> dict[str, Any]:
    data, found, scaled = run.data, run.intensities, run.scaled
    merged, fit = found.merged, scaled.fit
    edges = shell_edges(float(run.d.max()), float(run.d.min()), N_SHELLS)
    truth = reference.lookup(merged.hkl) if reference is not None else None
    post = np.asarray(found.posterior.intensity)
    rows = shell_table(merged, data.cell, data.space_group, edges, truth, run.free, post)
    more: list[dict[str, Any]] = [{} for _ in rows]
    if found.mates is not None:
        more = anomalous_table(found.mates, merged, data.cell, edges)
    if run.halves is not None:
        more = [a | b for a, b in zip(more, _refitted_table(run, edges), strict=True)]
    rows = [a | b for a, b in zip(rows, more, strict=True)]
    n = np.bincount(np.asarray(scaled.measured.image), minlength=scaled.observations.n_images)
    return {
        "globals": shared_values(run, draws),
        "prior_numbers": {
            **{
                called: scaled.shared[name][0].tolist()
                for name, called in LISTS.items()
                if name in scaled.shared
            },
            **found.numbers,
        },
        "cell": list(data.cell.parameters),
        "space_group": data.space_group.hm,
        "reference": reference.describe() if reference is not None else None,
        "counts": {
            "images": len(n) + len(data.empty),
            "images_used": int((n > 0).sum()),
            "status": dict(Counter(map(str, all_images(run, {"status": fit.status})["status"]))),
            "rows_left_out": dict(data.left_out),
            "images_unread": len(data.unread),
            "reflections_measured": len(scaled.measured.J),
            "reflections_merged": len(merged),
            "reflections_blank": int(blank(found).sum()),
            "reflections_free": int(run.free.sum()),
        },
        "agreement": rows,
        "convergence": {
            "evaluations": fit.iterations,
            "log_density": fit.log_density,
            "shared_distance_sd": fit.shared_distance,
            "image_distance_sd_max": float(np.max(fit.distance)),
        },
    }


def _refitted_table(run: MergeRun, edges: np.ndarray) -> list[dict[str, Any]]:
    """CC½ by shell of halves that were fitted separately, of posterior and likelihood."""
    assert run.halves is not None
    hkl = np.asarray(run.scaled.measured.hkl)
    shell = shell_index(run.data.cell.calculate_d_array(hkl), edges)
    rows = []
    for chosen in [*(shell == k for k in range(len(edges) - 1)), shell >= 0]:
        post, merged = run.halves.posterior[chosen], run.halves.merged[chosen]
        rows.append(
            {
                "cc_half_refitted": pearson(post[:, 0], post[:, 1]),
                "cc_half_refitted_likelihood": pearson(merged[:, 0], merged[:, 1]),
            }
        )
    return rows
