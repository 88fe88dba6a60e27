"""Which model would have predicted the data best, had it not seen them?

Partiality forms, normal and Student-t residuals, round and elliptical spots, with and without
each term and each learned error, on the same frozen statistics of the same reflections: one state
measures, then every model is fitted to that.  PSIS-LOO by reflection (all that a shoebox says is
left out together) and by image (an image's own unknowns integrated over their prior), from
importance-weighted draws.  Round spots predict the quadrupoles too, so that both forms of R1 face
all six statistics; models with fewer terms are judged by the total of a reflection that was left
out with all its terms.

    python analysis/model_comparison.py --images 20 --out model_comparison.png
    python analysis/model_comparison.py --only "learned errors" --out learned_errors.png
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import matplotlib.pyplot as plt
import numpy as np
from fisher import thermolysin
from known_run import LYSOSIM, PLAIN, SHARED, load

import bayes_refine as br
from bayes_refine import infer, physics
from bayes_refine.measuring.weights import score_weights
from bayes_refine.physics.observations import STATISTICS

HELD = 1e-4  # sd of a prior that holds an unknown
ALL = "conserving, Student 4"


class Candidate(NamedTuple):
    """A model, its priors, and where its search begins if not at the run's own unknowns."""

    model: infer.Model
    priors: br.Priors
    start: dict[str, float] | None = None


class Assessed(NamedTuple):
    """Weighted draws of one model, and (S, N) ln p of each statistic of each reflection."""

    nested: infer.Nested
    log_likelihoods: dict[str, np.ndarray]


def without_an_error(model: infer.Model, priors: br.Priors, pixel: float) -> dict[str, Candidate]:
    """The model with one learned error held at next to nothing; ``pixel`` in Å⁻¹.

    All trace the same program: priors are data.
    """

    def held(label: str, site: str, start: float, **at: float) -> tuple[str, Candidate]:
        return label, Candidate(model, replace(priors, **at), {site: start})

    small = np.log(1e-5)
    return dict(
        [
            held("no speckle", "speckle_variance", 0.0,
                 speckle_variance=0.0, speckle_variance_sd=HELD**2),
            held("no model error", "log_model_error", small,
                 model_error=1e-5, log_model_error_sd=HELD),
            held("no fall of model error", "model_error_fall", 0.0,
                 model_error_fall_sd_angstrom=HELD),
            held("no position errors", "log_position_error", small + np.log(pixel),
                 position_error_px=1e-5, log_position_error_sd=HELD),
            held("no fall of position errors", "position_error_fall", 0.0,
                 position_error_fall_sd_angstrom=HELD),
            held("no shape error", "log_shape_error", small,
                 shape_error=1e-5, log_shape_error_sd=HELD),
        ]
    )  # fmt: skip


def assess(run: br.RunFit, candidate: Candidate, draws: int, seed: int = 0) -> Assessed:
    """Fit a model to a run's frozen statistics and draw from its posterior."""
    obs, rng = run.observations, np.random.default_rng(seed)
    model, priors, start = candidate
    values = run.fit.values()
    init = values | {name: np.full_like(values[name], x) for name, x in (start or {}).items()}
    fit = br.map_fit(model, run.observed, priors, init=init)
    fit = br.marginal_fit(model, run.observed, priors, fit=fit)
    nested = infer.nested_draws(fit, model, obs, priors, rng=rng, n_draws=draws)
    values = nested.values()
    return Assessed(nested, infer.log_likelihoods(model, values, obs.fit, obs, priors))


def by_reflection(x: Assessed, scored=None) -> infer.Loo:
    """All terms of a reflection left out together; ``scored``: names of those it is judged by."""
    whole = sum(x.log_likelihoods.values())
    judged = whole if scored is None else sum(x.log_likelihoods[name] for name in scored)
    return infer.leave_out(whole, judged, x.nested.log_weights)


def show(title: str, models: dict[str, infer.Loo], groups=None) -> list[infer.ModelComparison]:
    """Print a table of differences; with ``groups``, their standard error over images too."""
    rows = infer.compare(models)
    over = {r.name: r.difference_se for r in infer.compare(models, groups)} if len(groups) else {}
    print(f"\n{title}\n{'':28s}{'elpd':>11s}{'p':>8s}{'difference':>12s}{'se':>8s}", end="")
    print(f"{'se, images' if over else '':>12s}{'k-hat > 0.7':>13s}{'largest':>9s}")
    for r in rows:
        print(
            f"{r.name:28s}{r.elpd:11.1f}{r.effective:8.1f}{r.difference:12.1f}"
            f"{r.difference_se:8.1f}"
            + (f"{over[r.name]:12.1f}" if over else f"{'':12s}")
            + f"{r.unreliable:8d}/{len(models[r.name].khat)}{models[r.name].khat.max():9.2f}"
        )
    return rows


def candidates(run: br.RunFit) -> dict[str, Candidate]:
    """Every model of the tables."""
    still, tensor, priors = br.load_model("still"), br.load_model("tensor"), br.Priors()
    found = {
        ALL: Candidate(still, priors),
        "peak, Student 4": Candidate(partial(still, partiality=physics.gaussian_peak), priors),
        "Student 16": Candidate(still, replace(priors, student_t_nu=16.0)),
        "normal": Candidate(still, replace(priors, student_t_nu=float("inf"))),
        "round": Candidate(partial(still, terms=6), priors),
        "elliptical": Candidate(tensor, priors),
        "total, centroid": Candidate(partial(still, terms=3), priors),
        "total": Candidate(partial(still, terms=1), priors),
    }
    pixel = float(np.asarray(run.observations.pixel_inv_angstrom).reshape(-1)[0])
    return found | without_an_error(still, priors, pixel)


SHAPES = ["round", "elliptical"]
ERRORS = [ALL, "no speckle", "no model error", "no fall of model error", "no position errors",
          "no fall of position errors", "no shape error"]  # fmt: skip
TABLES = (  # title, models, the statistics they are judged by
    ("partiality", [ALL, "peak, Student 4"], None),
    ("residuals", [ALL, "Student 16", "normal"], None),
    ("shape of R1, six statistics", SHAPES, None),
    ("shape of R1, the four shared", SHAPES, STATISTICS[:4]),
    ("terms, judged by the total", ["total, centroid", "total", ALL], ("intensity",)),
    ("learned errors", ERRORS, None),
)


def comparisons(name: str, run: br.RunFit, draws: int, only: list[str]):
    """The tables of one run: (title, rows) each."""
    obs = run.observations
    image = np.nonzero(np.asarray(obs.fit))[0]
    print(f"\n{name}: {len(obs.fit)} images, {len(image)} reflections", flush=True)
    chosen = [table for table in TABLES if not only or table[0] in only]
    needed = {label for _, labels, _ in chosen for label in labels}
    found = {}
    for label, candidate in candidates(run).items():
        if label not in needed:
            continue
        started = time.perf_counter()
        found[label] = x = assess(run, candidate, draws)
        print(
            f"  {label}: {time.perf_counter() - started:.0f} s; k-hat of what is shared"
            f" {x.nested.khat:.2f}, of images {x.nested.image_khat.max():.2f} at most",
            flush=True,
        )
        if label not in ERRORS:  # else compiled models exhaust the process's memory maps
            jax.clear_caches()
    tables = []
    for title, labels, scored in chosen:
        some = {label: by_reflection(found[label], scored) for label in labels}
        tables.append((title, show(f"{title}, by reflection", some, image)))
        if scored is None:
            some = {label: infer.leave_out_images(found[label].nested) for label in labels}
            tables.append((f"{title}, by image", show(f"{title}, by image", some, ())))
    return tables


def draw(results, out: Path) -> None:
    """Differences to the best model of each table."""
    figure, axes = plt.subplots(1, len(results), figsize=(6.5 * len(results), 6))
    for axis, (name, tables) in zip(np.atleast_1d(axes), results.items(), strict=True):
        labels = []
        for title, rows in tables:
            for r in rows:
                axis.errorbar(r.difference, len(labels), xerr=r.difference_se, fmt="o", color="C0")
                labels.append(f"{r.name}  [{title}]" if r is rows[0] else r.name)
            axis.axhline(len(labels) - 0.5, color="0.8", lw=0.8)
        axis.set_yticks(range(len(labels)), labels, fontsize=7)
        axis.invert_yaxis()
        axis.axvline(0, color="k", lw=0.6)
        axis.set(xscale="symlog", xlabel="elpd − best, nats", title=name)
    figure.tight_layout()
    figure.savefig(out, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--draws", type=int, default=400)
    parser.add_argument("--only", nargs="+", default=[], choices=[t[0] for t in TABLES])
    parser.add_argument("--data", type=Path, default=SHARED)
    parser.add_argument("--run", choices=[PLAIN, LYSOSIM], default=PLAIN)
    parser.add_argument("--out", type=Path, default=Path("model_comparison.png"))
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    model = br.load_model("still")
    stills, reference, _ = load(options.data, options.images, options.run)
    with br.ImageReader() as reader:
        settings = br.Settings(d_min=2.3)
        fitted = br.fit_run(stills, reference, reader, model, br.Priors(), settings)
    results = {options.run: comparisons(options.run, fitted, options.draws, options.only)}
    measured = thermolysin(options.data, model, score_weights)
    results["thermolysin_xfel"] = comparisons(
        "thermolysin_xfel", measured, options.draws, options.only
    )
    draw(results, options.out)


if __name__ == "__main__":
    main()
