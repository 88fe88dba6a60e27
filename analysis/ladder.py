"""What does each step from pixels to intensities add, and how many images does it take?

(a) summation and averaging, (b) profile fit and averaging, (c) + scale and B of each image, (d) +
partiality at the indexed geometry, (e) + the fit: refined geometry, scales and widths, (f) latent
intensities.  No reference informs any of them; the run has its truth.

    python analysis/ladder.py --images 10 25 50 100 200 --out ladder.png
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from known_run import LYSOSIM, PLAIN, SHARED, gauge, load

import bayes_refine as br
from bayes_refine import infer
from bayes_refine.fitting.measure_batch import MIN_COVERED, Plan
from bayes_refine.fitting.measure_run import measure_run
from bayes_refine.fitting.merge_fit import intensities_of_fit, measured_of
from bayes_refine.fitting.problem import prepare_run
from bayes_refine.fitting.start import BROAD_MARGIN, spot_width
from bayes_refine.fitting.state import tails
from bayes_refine.fitting.tables import mean_cell, usable_images
from bayes_refine.geometry.miller import pack_hkl
from bayes_refine.indexing.first_scales import first_scales
from bayes_refine.measuring.weights import moment_weights, score_weights
from bayes_refine.merging.agreement import pearson, r1_intensity
from bayes_refine.merging.average import merge
from bayes_refine.results.fit import scale_uncertainty

D_MIN = 2.3
NEAR = 0.1  # of the largest partiality at a resolution: near the sphere
BEST = 2588  # unique reflections that partialator (offset model) keeps of 200 images
STEPS = (
    "summation, averaged",
    "profile fit, averaged",
    "+ scale and B",
    "+ partiality, geometry as indexed",
    "+ fit: geometry, scales, widths",
    "latent intensities",
)


def summation(template, gradient, moments, variance):
    """Weights of the plain sum over the shoebox; the other statistics as they are."""
    used = jnp.isfinite(variance)
    share = jnp.maximum(jnp.sum(template * used, axis=1, keepdims=True), 1e-3)
    other = moment_weights(template, gradient, moments, variance)
    return other.at[:, 0].set(used / share)


def as_indexed(stills, reader, weights):
    """hkl, image, J/pol, ε_r of what is measured at the geometry of indexing."""
    settings = br.Settings(d_min=D_MIN, weights=weights)
    priors = br.Priors()
    run = prepare_run(stills, None, reader, br.load_model("still"), priors, settings)
    few = run.few(np.arange(min(len(stills), 16)))
    state = {"log_R1": np.full((len(stills), 1), spot_width(few, priors))}
    status = np.full(len(stills), "", object)
    measurements = measure_run(run, state, priors, status, Plan(), BROAD_MARGIN, br.Listener())
    columns = []
    for batch in measurements.batches:
        p, s = batch.predictions, batch.statistics
        J, ok = s.value[:, 0] / p.polarisation, s.covered > MIN_COVERED
        rows = p.hkl, p.image + batch.images.start, J, p.excitation_error
        columns.append([column[ok] for column in rows])
    return [np.concatenate(x) for x in zip(*columns, strict=True)]


def averaged(hkl, image, J, g, group):
    """ΣJ/Σg of unique reflections: variances in proportion to what is expected."""
    asu = br.asu_map(hkl, group)[0]
    return merge(asu, J, g, g, image)


def steps(stills, reader, group, cell):
    """(hkl, I) of each step, which reflections are near the sphere, and how well determined."""
    found = []
    summed = as_indexed(stills, reader, summation)
    hkl, image, J, excitation = as_indexed(stills, reader, score_weights)
    one = np.ones(len(hkl))
    found.append(averaged(*summed[:3], np.ones(len(summed[0])), group))
    found.append(averaged(hkl, image, J, one, group))
    for offset in (None, excitation):
        g = first_scales(hkl, image, J, offset, cell, group)
        found.append(averaged(hkl, image, J, g / np.median(g), group))

    model, priors, settings = br.load_model("still"), br.Priors(), br.Settings(d_min=D_MIN)
    run = br.fit_run(stills, None, reader, model, priors, settings, progress=br.Listener(print))
    r = run.reflections
    rows = np.flatnonzero(r.measured & usable_images(run)[r.image])
    draws = infer.laplace_draws(run.fit, 25, rng=np.random.default_rng(0))
    sd = scale_uncertainty(run, model, priors, draws)
    nu = tails(run.fit.values(), priors)
    both = [
        intensities_of_fit(measured_of(r, rows, group, s, nu), mean_cell(run), group, None, 0, 0)
        for s in (0.0, sd)
    ]
    latent = both[1]
    found.append(latent.merged)
    found.append(replace(latent.merged, intensity=latent.posterior.intensity))
    wider = latent.posterior.intensity_sd / both[0].posterior.intensity_sd
    print(f"σ(I) with the scales' uncertainty over without: median {np.median(wider):.3f}")
    near = r.partiality[rows] > NEAR * np.interp(r.d[rows], *largest(r, rows))
    keys = np.unique(pack_hkl(br.asu_map(r.hkl[rows][near], group)[0]))
    precision = latent.posterior.intensity / latent.posterior.intensity_sd
    order = pack_hkl(latent.merged.hkl)[np.argsort(-precision)]
    return found, keys, order, latent


def largest(r, rows, bins=20):
    """d and the largest partiality there."""
    d = r.d[rows]
    edges = np.quantile(d, np.linspace(0, 1, bins + 1))
    at = np.clip(np.searchsorted(edges, d) - 1, 0, bins - 1)
    top = [np.quantile(r.partiality[rows][at == k], 0.99) for k in range(bins)]
    return (edges[1:] + edges[:-1]) / 2, np.array(top)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=SHARED)
    parser.add_argument("--run", choices=[PLAIN, LYSOSIM], default=PLAIN)
    parser.add_argument("--images", type=int, nargs="+", default=[10, 25, 50, 100, 200])
    parser.add_argument("--out", type=Path, default=Path("ladder.png"))
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    table = {}
    for n in sorted(options.images):
        stills, reference, _ = load(options.data, n, options.run)
        with br.ImageReader() as reader:
            found, keys, order, latent = steps(
                stills, reader, reference.space_group, stills[0].crystal.cell
            )
        rows = []
        for name, merged in zip(STEPS, found, strict=True):
            key, truth = pack_hkl(merged.hkl), reference.lookup(merged.hkl)
            line = []
            for chosen in (np.isin(key, keys), np.isin(key, order[:BEST])):
                I, T = merged.intensity[chosen], truth[chosen]  # noqa: E741
                line += [pearson(I, T), r1_intensity(I, T), int(chosen.sum())]
            rows.append(line)
            print(
                f"{n:4d} images  {name:34s} near the sphere: CC {line[0]:.4f} R1 {line[1]:.4f} "
                f"({line[2]});  best: CC {line[3]:.4f} R1 {line[4]:.4f} ({line[5]})",
                flush=True,
            )
        table[n] = np.array(rows, float)
        hkl, post = latent.merged.hkl, latent.posterior
        d = reference.cell.calculate_d_array(np.ascontiguousarray(hkl, np.int32))
        truth = reference.lookup(hkl)
        truth = truth * gauge(post.intensity, post.intensity_sd, truth, d)
        pull = (post.intensity - truth) / post.intensity_sd
        inside = np.mean(np.abs(pull) < 1.645)
        print(f"{n:4d} images  pulls of IPOST: sd {pull.std():.2f}, 90 % hold {inside:.3f}")
        r1 = [
            r1_intensity(post.intensity[k], truth[k])
            for k in (np.isin(pack_hkl(hkl), x) for x in (keys, order[:BEST]))
        ]
        print(f"{n:4d} images  R1 of IPOST beyond a common B: {r1[0]:.4f}; best {r1[1]:.4f}")

    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for k, name in enumerate(STEPS):
        for ax, column in zip(axes, (1, 0), strict=True):
            ax.plot(table.keys(), [t[k, column] for t in table.values()], "o-", label=name)
    for ax, name in zip(axes, ("R1(I)", "CC to true intensities"), strict=True):
        ax.set(xscale="log", xlabel="images", ylabel=name)
    axes[0].set_yscale("log")
    axes[0].legend(fontsize=8)
    figure.suptitle(
        f"{options.run}, no reference: all reflections to 2.3 Å near the sphere on some image"
    )
    figure.savefig(options.out, dpi=150)


if __name__ == "__main__":
    main()
