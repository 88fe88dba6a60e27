"""Which unknowns does each likelihood tie together?

Correlations from the inverse Hessian at the optimum, each image as if it were alone (its own data,
the run's priors on what is shared), median over images; and in the run, where R0 is everybody's.
With geometry: the median over its unknowns too, and the one that is tied most closely.  How much
so few reflections tie by chance is what is left when each is put on a side of the Ewald sphere by
lot.  Both likelihoods start from one place on the same shoeboxes.

    python analysis/couplings.py --images 16 --out couplings.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
from known_run import SHARED, load
from map_vs_per_pixel import simulated
from pixel_start import at_mode, thermolysin

import bayes_refine as br
from bayes_refine import infer
from bayes_refine.infer import differences
from bayes_refine.infer.density import place_of
from bayes_refine.infer.programs import compiled_expectations
from bayes_refine.per_pixel import curvature, pixel_noise
from bayes_refine.per_pixel.curvature import spot_curvature, with_noise
from bayes_refine.per_pixel.pixels import frozen, pixels_of

FACTORED, PER_PIXEL = br.load_model("still"), br.load_model("per_pixel")
GEOMETRY = ("rotation_mrad", "strain", "detector_shift_mm")
TIES = tuple(f"|{x}–geometry|{y}" for x in ("G", "R1", "R0") for y in ("", " most"))
PAIRS = ("G–R0", "G–R1", "R0–R1", *TIES)
ORIGINAL = ("log_G", "log_R0", "log_R1", "rotation_mrad")  # what the original method refined


def image_of(tree, i, n):
    """One image of arrays that lead with n images."""
    return jax.tree.map(lambda x: x[i : i + 1] if np.ndim(x) > 1 and len(x) == n else x, tree)


def alone(curvature, fit, data):
    """(n, k + s, k + s) Hessian of −ln p of each image as if it were the run."""
    found = []
    for i in range(len(fit.image)):
        block_hessian = curvature(
            fit.image[i : i + 1], fit.shared, image_of(data, i, len(fit.image))
        )
        top = np.concatenate([block_hessian.blocks[0], block_hessian.coupling[0]], axis=1)
        below = np.concatenate(
            [np.asarray(block_hessian.coupling[0]).T, block_hessian.shared], axis=1
        )
        found.append(np.concatenate([top, below]))
    return np.array(found)


def factored_curvature(fit, priors):
    """Fisher's, of one image."""
    curvature, scale = differences.fisher(FACTORED, fit.sites, False), scale_of(fit)
    return lambda t, p, obs: curvature(t, p, np.ones(1), 1.0, scale, (obs, priors))


def scale_of(fit):
    """Posterior sd (1, k) and (s,), the scale of differences."""
    of_image = np.sqrt(np.diagonal(fit.image_covariance(), axis1=1, axis2=2).mean(0))
    return of_image[None], np.sqrt(np.diag(fit.shared_covariance))


def pixel_curvature(fit, noise, priors):
    """Fisher's, of one image's pixels."""
    curvature = spot_curvature(noise)(with_noise(PER_PIXEL, noise), fit.sites, False)
    return lambda t, p, pixels: curvature(t, p, np.ones(1), 1.0, None, (pixels, priors))


def places(fit):
    """Columns of each unknown in an image's Hessian."""
    k, found = fit.image.shape[1], {}
    for site in fit.sites:
        _, columns = place_of(fit.sites, site.name)
        found[site.name] = np.arange(columns.start, columns.stop) + (0 if site.per_image else k)
    return found


def ties(r):
    """|r| (n, ·): median over images and unknowns, and of the unknown tied most closely."""
    by_unknown = np.median(np.abs(r), axis=0)
    return [float(np.median(np.abs(r))), float(by_unknown.max())]


def by_chance(fit, hessian, priors, data, draws=100):
    """(draws, 2) of |G–geometry| when each reflection's slope along geometry has a random sign.

    A reflection's total falls as its node leaves the sphere, on either side: a turn that makes one
    stronger makes another weaker, and ties G as far as the two do not cancel.
    """
    expectations, scale = compiled_expectations(FACTORED, fit.sites), scale_of(fit)
    where, rng = places(fit), np.random.default_rng(0)
    geometry = np.concatenate([where[n] for n in GEOMETRY])
    n, found = len(fit.image), []
    slopes = [
        differences.fisher_slopes(
            expectations, fit.image[i : i + 1], fit.shared, scale, (image_of(data, i, n), priors)
        )[0]
        for i in range(n)
    ]
    m = data.fit.shape[1]
    for _ in range(draws):
        drawn = hessian.copy()
        for h, s in zip(drawn, slopes, strict=True):
            sign = rng.choice([-1.0, 1.0], size=m)
            turned = s.copy()
            turned[geometry] *= sign[np.arange(s.shape[1]) % m]
            h += turned @ turned.T - s @ s.T
        r = normalised(np.linalg.inv(drawn))
        found.append(ties(r[:, where["log_G"][0]][:, geometry]))
    return np.array(found)


def normalised(covariance):
    """Correlations (n, k, k)."""
    sd = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))
    return covariance / (sd[:, :, None] * sd[:, None])


def correlations(hessian, where, free=None):
    """{pair: median over images} of the inverse, with the unknowns not in ``free`` held."""
    names = list(where) if free is None else [n for n in where if n in free]
    columns = np.concatenate([where[n] for n in names])
    labels = np.concatenate([[n] * len(where[n]) for n in names])
    r = normalised(np.linalg.inv(hessian[:, columns][:, :, columns]))

    def pair(a, b):
        return float(np.median(r[:, labels == a][:, :, labels == b]))

    def parts(a):
        return r[:, labels == a][:, 0][:, np.isin(labels, GEOMETRY)]

    values = [pair("log_G", "log_R0"), pair("log_G", "log_R1"), pair("log_R0", "log_R1")]
    values += [x for name in ("G", "R1", "R0") for x in ties(parts(f"log_{name}"))]
    return dict(zip(PAIRS, values, strict=True))


def in_the_run(fit):
    """Correlations of ln G with the shared ln R0, and with the image's own R1 and geometry."""
    slope = np.linalg.solve(fit.image_precision, fit.coupling)
    cross = -slope @ fit.shared_covariance  # (n, k, s)
    covariance = fit.image_covariance()
    sd = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))
    shared_sd = np.sqrt(np.diag(fit.shared_covariance))
    columns = {s.name: place_of(fit.sites, s.name)[1] for s in fit.sites}
    G, R1, R0 = (columns[x].start for x in ("log_G", "log_R1", "log_R0"))
    own = [i for n in ("rotation_mrad", "strain") for i in range(*columns[n].indices(99))]
    run = list(range(*columns["detector_shift_mm"].indices(99)))
    mine = normalised(covariance)
    theirs = cross / (sd[:, :, None] * shared_sd)
    of_R0 = fit.shared_covariance[R0, run] / (shared_sd[R0] * shared_sd[run])

    def parts(a):
        return np.concatenate([mine[:, a, own], theirs[:, a, run]], axis=1)

    values = [np.median(theirs[:, G, R0]), np.median(mine[:, G, R1]), np.median(theirs[:, R1, R0])]
    values += [*ties(parts(G)), *ties(parts(R1))]
    values += ties(np.concatenate([theirs[:, own, R0], np.tile(of_R0, (len(mine), 1))], axis=1))
    return dict(zip(PAIRS, map(float, values), strict=True))


def of_run(name, stills, reference, reader, settings):
    """Print and return the couplings of each likelihood on one run."""
    fitted = br.fit_run(stills, reference, reader, FACTORED, br.Priors(), settings)
    run, measurements, state, priors = at_mode(fitted, reference, reader, FACTORED, settings)
    observed, rows = measurements.observations.whole(), {}
    fit = br.map_fit(FACTORED, measurements.observations, priors, init=state, exact=False)
    pixels = pixels_of(run, measurements, state, priors)
    pixels = frozen(pixels, infer.evaluate(PER_PIXEL, state, pixels, priors)["spots"])
    noises = {
        "Poisson": pixel_noise.poisson,
        "expected variance": pixel_noise.expected_variance,
        "observed variance": pixel_noise.observed_variance,
    }
    found = {"factored": (fit, alone(factored_curvature(fit, priors), fit, observed))}
    for label, noise in noises.items():
        fit = curvature.pixel_fit(PER_PIXEL, noise, pixels, priors, state)
        hessian = alone(pixel_curvature(fit, noise, priors), fit, pixels)
        found[f"per pixel, {label}"] = fit, hessian
    chance = by_chance(*found["factored"], priors, observed)
    print(f"\n{name}: {len(stills)} images")
    for label, drawn in zip(TIES[:2], chance.T, strict=True):
        low, middle, high = np.quantile(drawn, (0.05, 0.5, 0.95))
        print(f"by chance {label} {middle:.3f}, 5–95 % {low:.3f}–{high:.3f}")
    print(f"{'':58s}" + "".join(f"{p:>19s}" for p in PAIRS))
    for label, (fit, hessian) in found.items():
        where = places(fit)
        rows[label] = {
            "alone": correlations(hessian, where),
            "alone, G R0 R1 ω free": correlations(hessian, where, ORIGINAL),
            "in the run": in_the_run(fit),
        }
        for kind, values in rows[label].items():
            print(
                f"{label + ' | ' + kind:58s}" + "".join(f"{v:19.3f}" for v in values.values()),
                flush=True,
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--data", type=Path, default=SHARED)
    parser.add_argument("--out", type=Path, default=Path("couplings.png"))
    parser.add_argument("--folder", type=Path, default=Path("couplings_run"), help="scratch")
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    settings, found = br.Settings(d_min=2.3), {}
    with br.ImageReader() as reader:
        stills, reference, _ = load(options.data, options.images)
        found["plain"] = of_run("plain", stills, reference, reader, settings)
    with br.ImageReader() as reader:
        stills, reference, _ = simulated(options.folder, n_images=options.images)
        found["simulated"] = of_run("simulated", stills, reference, reader, settings)
    with br.ImageReader() as reader:
        stills, reference, noise = thermolysin(options.data, reader)
        chosen = br.Settings(d_min=2.3, read_noise=noise)
        found["thermolysin_xfel"] = of_run("thermolysin_xfel", stills, reference, reader, chosen)
    draw(found).savefig(options.out, dpi=110)


def draw(found):
    kinds = list(next(iter(next(iter(found.values())).values())))
    figure, axes = plt.subplots(
        len(found), len(kinds), figsize=(15, 10), sharey=True, layout="constrained"
    )
    for row, (name, methods) in zip(axes, found.items(), strict=True):
        for axis, kind in zip(row, kinds, strict=True):
            for k, (method, values) in enumerate(methods.items()):
                x = np.arange(len(PAIRS)) + (k - 1.5) * 0.2
                axis.bar(x, list(values[kind].values()), 0.2, label=method)
            axis.axhspan(-0.05, 0.05, color="0.9", zorder=0)
            axis.set_xticks(range(len(PAIRS)), PAIRS, rotation=30, ha="right", fontsize=8)
            axis.set_title(f"{name}: {kind}", fontsize=10)
        row[0].set_ylabel("correlation, median over images")
    axes[0, 0].plot([0, 1], [-0.46, 0.51], "k_", ms=18, label="published, per pixel")
    axes[0, 0].legend(fontsize=7)
    return figure


if __name__ == "__main__":
    main()
