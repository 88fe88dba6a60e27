"""How far does R0 hide behind the scales, alone and in a run, and what does a weak run need?

Correlation of ln G_i and ln R0 with one image alone and with n, the share of Var(ln G_i) that
R0 explains, and what R0 becomes when every image of a weak run must find its own.

    python analysis/scale_and_width.py --out scale_and_width.png
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import h5py
import jax
import matplotlib.pyplot as plt
import numpy as np
from coverage import few
from known_run import SHARED, load, robust_sd
from simulate_shoeboxes import InMemory

import bayes_refine as br
from bayes_refine.geometry.crystal import Crystal

SIZES = (1, 2, 5, 10, 20, 50, 100, 200)
R0_TRUE = 3e-4  # Å⁻¹, of the simulated weak run
WEAK = br.Priors(log_R0_sd=2.0)  # a prior that does not find R0 by itself


def columns(fit: br.Fit, name: str) -> int:
    """Column of a scalar site among an image's unknowns, or among the shared ones."""
    per_image = next(s.per_image for s in fit.sites if s.name == name)
    before = [s for s in fit.sites if s.per_image == per_image]
    return sum(s.size for s in before[: [s.name for s in before].index(name)])


def correlation(fit: br.Fit) -> np.ndarray:
    """(n,) posterior correlation of ln G_i and ln R0, from the factors of the block Hessian."""
    g, r = columns(fit, "log_G"), columns(fit, "log_R0")
    slope = np.linalg.solve(fit.image_precision, fit.coupling)[:, g]
    cross = -slope @ fit.shared_covariance[:, r]
    variance = fit.image_covariance()[:, g, g] * fit.shared_covariance[r, r]
    return cross / np.sqrt(variance)


def prior_precision(fit: br.Fit, priors: br.Priors) -> np.ndarray:
    """(s, s) of the shared unknowns before any image."""
    sd = {
        "log_R0": priors.log_R0_sd,
        "log_bandwidth": priors.log_bandwidth_sd,
        "log_mosaic_mrad": priors.log_mosaic_spread_sd,
        "detector_shift_mm": [priors.beam_center_sd_mm] * 2 + [priors.distance_sd_mm],
        "log_model_error": priors.log_model_error_sd,
        "model_error_fall": priors.model_error_fall_sd_angstrom,
        "log_nu": priors.log_student_t_nu_sd,
        "log_nu_moments": priors.log_student_t_nu_sd,
        "speckle_variance": priors.speckle_variance_sd,
        "log_position_error": [priors.log_position_error_sd] * 2,
        "position_error_fall": [priors.position_error_fall_sd_angstrom] * 2,
        "log_shape_error": priors.log_shape_error_sd,
    }
    flat = [np.ravel(sd[site.name]) for site in fit.sites if not site.per_image]
    return np.diag(np.concatenate(flat) ** -2.0)


def by_size(run: br.RunFit, priors: br.Priors) -> dict[int, tuple[float, float, float, float]]:
    """For each number n of images: median corr(ln G, ln R0) and its square, sd ln G, sd ln R0.

    The precision of what is shared is its prior's and n times the average image's; an image's
    own factors are those of the whole run.
    """
    fit, good = run.fit, run.status == "converged"
    before = prior_precision(fit, priors)
    each = (np.linalg.inv(fit.shared_covariance) - before) / good.sum()
    g, r = columns(fit, "log_G"), columns(fit, "log_R0")
    rows = {}
    for n in (s for s in SIZES if s <= len(good)):
        smaller = replace(fit, shared_covariance=np.linalg.inv(before + n * each))
        corr = correlation(smaller)[good]
        sd = np.sqrt(smaller.image_covariance()[good, g, g])
        sd_R0 = float(np.sqrt(smaller.shared_covariance[r, r]))
        rows[n] = float(np.median(corr)), float(np.median(corr**2)), float(np.median(sd)), sd_R0
    return rows


def one_by_one(run: br.RunFit, model, priors, images) -> tuple[np.ndarray, np.ndarray]:
    """Correlation and ln R0 of images fitted alone, from the whole run's measurements."""
    values, n = run.fit.values(), len(run.status)
    found = []
    for i in images:
        start = {k: v[[i]] if v.shape[:1] == (n,) else v for k, v in values.items()}
        fit = br.map_fit(model, few(run.observations, [i]), priors, init=start)
        found.append((correlation(fit)[0], float(fit.values()["log_R0"])))
    corr, log_R0 = np.array(found).T
    return corr, log_R0


def thinned(stills, share: float, rng: np.random.Generator) -> InMemory:
    """The images with each photon kept with probability ``share``."""
    with br.ImageReader() as reader:
        images = [reader.read(s)[0] for s in stills]
    counts = np.maximum(np.stack(images), 0).astype(int)
    return InMemory(rng.binomial(counts, share).astype(np.float32))


def doubled(stills, A_true: np.ndarray):
    """The stills with twice the error of orientation and cell: A → A·A_true⁻¹·A."""
    return [
        replace(
            s,
            frame=i,
            crystal=Crystal(s.crystal.A @ np.linalg.inv(A) @ s.crystal.A, s.crystal.hall),
        )
        for i, (s, A) in enumerate(zip(stills, A_true, strict=True))
    ]


def simulated_weak(n: int, R0: float, folder: Path, share: float = 0.1):
    """Stills, reference, pixels: a share of the photons, orientations off by twice as much."""
    simulation = br.Simulation(
        n_images=n,
        seed=5,
        R0=R0,
        mosaic_rad=4e-4,
        mean_photons=400.0 * share,
        background_photons=6.0 * share,
        rotation_error_deg=0.1,
    )
    expt = br.simulate_run(simulation, folder)
    stills = list(br.read_experiments(expt).stills)
    stills = [
        replace(s, frame=i, beam=replace(s.beam, bandwidth=simulation.bandwidth))
        for i, s in enumerate(stills)
    ]
    with h5py.File(folder / "master.h5") as file:
        images = file["entry/data/data"][()].reshape(n, 1, *file["entry/data/data"].shape[-2:])
    return stills, br.read_reference(folder / "reference.mtz"), InMemory(images.astype(np.float32))


def together_and_alone(name, stills, reference, reader, d_min: float):
    """ln R0 of the run, and of each image fitted by itself, with sd; NaN where it failed."""
    model, settings = br.load_model("still"), br.Settings(d_min=d_min)
    run = br.fit_run(stills, reference, reader, model, WEAK, settings)
    shared = float(run.fit.values()["log_R0"]), float(run.fit.sd("log_R0"))
    alone = np.full((len(stills), 2), np.nan)
    for i, still in enumerate(stills):
        try:
            one = br.fit_run([still], reference, reader, model, WEAK, settings)
        except br.InputError as error:
            print(f"  image {i}: {error}")
            continue
        alone[i] = float(one.fit.values()["log_R0"]), float(one.fit.sd("log_R0"))
        if one.status[0] != "converged":
            print(f"  image {i}: {one.status[0]}")
    off = alone[:, 0] - shared[0]
    far = np.abs(off) > np.log(2)
    print(
        f"{name}: R0 of the run {1e5 * np.exp(shared[0]):.1f}e-5 Å⁻¹ (ln sd {shared[1]:.3f});"
        f" alone: ln R0 robust sd {robust_sd(off[np.isfinite(off)]):.2f}, range"
        f" {np.nanmin(off):+.2f} to {np.nanmax(off):+.2f}, {np.sum(far | np.isnan(off))} of"
        f" {len(off)} off by a factor of two or failed; median sd {np.nanmedian(alone[:, 1]):.2f}"
    )
    return shared, alone


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--weak", type=int, default=16, help="images of the weak runs")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.1, 0.01])
    parser.add_argument("--d-min", type=float, default=2.3)
    parser.add_argument("--data", type=Path, default=SHARED)
    parser.add_argument("--out", type=Path, default=Path("scale_and_width.png"))
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    model, priors = br.load_model("still"), br.Priors()
    stills, reference, truth = load(options.data, options.images)
    with br.ImageReader() as reader:
        settings = br.Settings(d_min=options.d_min)
        run = br.fit_run(stills, reference, reader, model, priors, settings)
    rows = by_size(run, priors)
    print("images  corr(ln G, ln R0)  share of Var(ln G)  sd ln G  sd ln R0")
    for n, (corr, share, sd_G, sd_R0) in rows.items():
        print(f"{n:6d} {corr:+18.3f} {share:19.4f} {sd_G:8.4f} {sd_R0:9.4f}")
    corr, log_R0 = one_by_one(run, model, priors, np.flatnonzero(run.status == "converged")[:10])
    print(
        f"ten images fitted alone: corr(ln G, ln R0) median {np.median(corr):+.2f}, from"
        f" {corr.min():+.2f} to {corr.max():+.2f}; ln R0 about the run's"
        f" {np.round(log_R0 - float(run.fit.values()['log_R0']), 2)}"
    )

    weak = {}
    few_images = doubled(stills[: options.weak], truth.A[: options.weak])
    for share in options.shares:
        name = f"{100 * share:g} %"
        with tempfile.TemporaryDirectory() as folder:
            made = simulated_weak(options.weak, R0_TRUE, Path(folder), share)
        weak[f"{name}, simulated"] = together_and_alone(f"{name}, simulated", *made, 2.6)
        faint = thinned(stills[: options.weak], share, np.random.default_rng(0))
        weak[f"{name}, plain"] = together_and_alone(
            f"{name}, plain thinned", few_images, reference, faint, 2.6
        )
    draw(rows, corr, weak, options.out)


def draw(rows, corr, weak, out: Path) -> None:
    """Correlation and share of variance by number of images; R0 of weak images alone."""
    figure, axes = plt.subplots(1, 3, figsize=(14, 4.2), layout="constrained")
    n = list(rows)
    axes[0].plot(n, [rows[k][0] for k in n], "o-")
    axes[0].plot(np.ones(len(corr)), corr, "k.", ms=4, label="one image alone, fitted")
    axes[0].axhline(0, color="k", lw=0.5)
    axes[0].legend()
    axes[0].set(xscale="log", xlabel="images in the fit", ylabel="corr(ln G, ln R0), median")
    axes[1].plot(n, [100 * rows[k][1] for k in n], "o-")
    axes[1].set(xscale="log", xlabel="images in the fit", ylabel="share of Var(ln G) from R0, %")
    first = 0
    for k, (name, (shared, alone)) in enumerate(weak.items()):
        x = first + np.arange(len(alone))
        off = (alone - [[shared[0], 0.0]]) / np.log(10)
        axes[2].errorbar(x, off[:, 0], off[:, 1], fmt=".", color=f"C{k}")
        width = shared[1] / np.log(10)
        axes[2].fill_between(x, -width, width, color=f"C{k}", alpha=0.6, label=name)
        if "simulated" in name:
            true = (np.log(R0_TRUE) - shared[0]) / np.log(10)
            axes[2].hlines(true, x[0], x[-1], color="k", lw=0.8, label="true" if k == 0 else None)
        first += len(alone) + 2
    axes[2].set(xlabel="image, fitted alone (band: all together)", ylabel="log₁₀ R0/R0 of the run")
    axes[2].legend(fontsize=7)
    figure.savefig(out, dpi=120)


if __name__ == "__main__":
    main()
