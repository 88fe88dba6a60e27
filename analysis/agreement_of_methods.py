"""Do all methods give the same answer, and what does each cost?

Laplace about the joint mode, three guides, and Laplace with importance weights, beside NUTS, on
the same frozen statistics of 20 images of `plain`: distance of the means in NUTS's sd, ratio of
the sds, wall time, independent draws a second.

    python analysis/agreement_of_methods.py --images 20 --out agreement_of_methods.png
"""

from __future__ import annotations

import argparse
import pickle
import time
from pathlib import Path
from typing import NamedTuple

import jax
import matplotlib.pyplot as plt
import numpy as np
from known_run import SHARED, load

import bayes_refine as br
from bayes_refine import infer
from bayes_refine.infer import guides
from bayes_refine.infer.diagnostics import extreme

N_DRAWS = 4000
MEAN, SD = 0.1, 0.1  # what counts as the same: posterior sd, and fraction of an sd


class Result(NamedTuple):
    """Draws (D, ...) by site, independent draws among them, wall time, and what was said."""

    draws: dict[str, np.ndarray]
    independent: float
    seconds: float
    message: str


def laplace(fit, model, obs, priors, rng) -> Result:
    """Draws from the curvature at the mode; the time is that of the draws alone."""
    started = time.perf_counter()
    draws = br.laplace_draws(fit, N_DRAWS, rng=rng)
    return Result(draws, N_DRAWS, time.perf_counter() - started, "")


def guide(family, fit, model, obs, priors, rng) -> Result:
    """Draws from a guide."""
    started = time.perf_counter()
    found = br.svi_fit(fit, model, obs, priors, rng=rng, guide=family)
    draws = found.draws(N_DRAWS, rng=rng)
    return Result(draws, N_DRAWS, time.perf_counter() - started, found.message)


def weighted(fit, model, obs, priors, rng) -> Result:
    """Laplace, each image given what is shared and what is shared weighted by importance."""
    started = time.perf_counter()
    nested = infer.nested_draws(fit, model, obs, priors, rng=rng, n_draws=400)
    independent = float(1 / np.sum(np.exp(2 * nested.log_weights)))
    said = f"k-hat {nested.khat:.2f} of what is shared, {nested.image_khat.max():.2f} of images"
    draws = nested.draws(N_DRAWS, rng=rng)
    return Result(draws, independent, time.perf_counter() - started, said)


def nuts(fit, model, obs, priors, rng) -> Result:
    """Four chains of 1000."""
    settings = {
        "n_draws": 1000,
        "n_warmup": 500,
        "progress": br.Listener(lambda s: print(f"  {s}", flush=True)),
    }
    found = br.nuts_fit(fit, model, obs, priors, rng=rng, **settings)
    fewest = extreme(found.summary, "ess_bulk")[1]
    return Result(found.flat(), fewest, found.seconds, found.message)


def compared(result: Result, exact: Result, site: infer.Site):
    """(·,) |difference of means| in exact sd, and ratio of sds, of each number of a site."""
    a, b = (x.draws[site.name].reshape(len(x.draws[site.name]), -1) for x in (result, exact))
    return np.abs(a.mean(0) - b.mean(0)) / b.std(0), a.std(0) / b.std(0)


def report(results: dict[str, Result], sites) -> dict[str, dict[str, tuple]]:
    """Print the table of each method; (means, sds) by method and site."""
    exact, found = results["NUTS"], {}
    for name, result in results.items():
        each = result.independent / max(result.seconds, 1e-9)
        print(
            f"\n{name}: {result.seconds:.1f} s, {result.independent:.0f} independent draws (the"
            f" fewest of any unknown), {each:.3g} a second. {result.message}"
        )
        if result is exact:
            continue
        found[name] = {s.name: compared(result, exact, s) for s in sites}
        for shared in (True, False):
            some = [found[name][s.name] for s in sites if s.per_image != shared]
            mean, ratio = (np.concatenate(x) for x in zip(*some, strict=True))
            print(
                f"  {'shared' if shared else 'images':7s} {len(mean):4d} unknowns: means off by"
                f" {np.median(mean):.3f} sd (median), {mean.max():.3f} (largest),"
                f" {100 * np.mean(mean < MEAN):.0f} % within {MEAN}; sd ratio"
                f" {ratio.min():.3f} to {ratio.max():.3f}, median {np.median(ratio):.3f},"
                f" {100 * np.mean(np.abs(ratio - 1) < SD):.0f} % within 10 %"
            )
        worst = sorted(found[name].items(), key=lambda x: -x[1][0].max())[:4]
        print("  furthest means: " + ", ".join(f"{k} {v[0].max():.2f}" for k, v in worst))
    return found


def skewness(result: Result, sites) -> dict[str, float]:
    """Largest |skewness| of each site's posterior."""
    out = {}
    for site in sites:
        x = result.draws[site.name].reshape(len(result.draws[site.name]), -1)
        z = (x - x.mean(0)) / x.std(0)
        out[site.name] = float(np.abs((z**3).mean(0)).max())
    return out


def draw(found, sites, out: Path) -> None:
    """Each unknown's difference of means and ratio of sds: shared ones named, images as clouds."""
    order = [s for s in sites if not s.per_image] + [s for s in sites if s.per_image]
    figure, axes = plt.subplots(1, 2, figsize=(13, 7), sharey=True, layout="constrained")
    for k, (name, rows) in enumerate(found.items()):
        for i, site in enumerate(order):
            y = i + 0.16 * (k - (len(found) - 1) / 2)
            for axis, values in zip(axes, rows[site.name], strict=True):
                label = name if i == 0 else None
                axis.plot(values, 0 * values + y, ".", color=f"C{k}", ms=4, alpha=0.6, label=label)
    axes[0].axvspan(0, MEAN, color="0.88", zorder=0)
    axes[1].axvspan(1 - SD, 1 + SD, color="0.88", zorder=0)
    axes[0].set(xlabel="|mean − NUTS's mean|, posterior sd")
    axes[0].set_xscale("symlog", linthresh=0.1)
    axes[1].set(xlabel="sd / NUTS's sd")
    axes[0].set_yticks(range(len(order)), [s.name for s in order])
    axes[0].invert_yaxis()
    handles = axes[1].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=len(found))
    figure.savefig(out, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--data", type=Path, default=SHARED)
    parser.add_argument("--save", type=Path, help="keep the draws in this file")
    parser.add_argument("--out", type=Path, default=Path("agreement_of_methods.png"))
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    model, priors = br.load_model("still"), br.Priors()
    stills, reference, _ = load(options.data, options.images)
    with br.ImageReader() as reader:
        run = br.fit_run(stills, reference, reader, model, priors, br.Settings(d_min=2.3))
    obs = jax.device_put(run.observations)
    print(f"{len(stills)} images, {int(np.sum(obs.fit))} reflections", flush=True)
    results = {}
    for name, method in {
        "Laplace": laplace,
        "mean field": lambda *x: guide(guides.mean_field, *x),
        "structured": lambda *x: guide(guides.structured, *x),
        "low rank": lambda *x: guide(guides.low_rank(), *x),
        "Laplace, weighted": weighted,
        "NUTS": nuts,
    }.items():
        results[name] = method(run.fit, model, obs, priors, np.random.default_rng(1))
        print(f"{name}: {results[name].seconds:.0f} s {results[name].message}", flush=True)
    if options.save:
        options.save.write_bytes(pickle.dumps({k: tuple(v) for k, v in results.items()}))
    found = report(results, run.fit.sites)
    print("\nlargest |skewness| among NUTS's draws:")
    print(", ".join(f"{k} {v:.2f}" for k, v in skewness(results["NUTS"], run.fit.sites).items()))
    draw(found, run.fit.sites, options.out)


if __name__ == "__main__":
    main()
