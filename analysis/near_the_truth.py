"""How near the truth is a fit of stills whose physics is not this model's?

python analysis/near_the_truth.py --images 200 --out near_the_truth.png
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
from known_run import (
    LYSOSIM,
    PLAIN,
    SHARED,
    errors,
    excitation_error,
    load,
    robust_sd,
    rotation_error_mrad,
)

import bayes_refine as br
from bayes_refine.geometry.crystal import rotation_matrix
from bayes_refine.measuring.weights import moment_weights, score_weights


def mosaic_floor(run, truth, sd_mrad, seed=0):
    """Median over images of the rms ε_r error of random rotations, ``sd_mrad`` an axis."""
    rng = np.random.default_rng(seed)
    rms = []
    for i, A in enumerate(truth.A):
        hkl = run.reflections.hkl[run.reflections.image == i]
        s0 = run.stills[i].beam.s0
        true = excitation_error(A, hkl, s0)
        moved = excitation_error(rotation_matrix(rng.normal(0, sd_mrad, 3)) @ A, hkl, s0)
        rms.append(np.sqrt(np.mean((moved - true)[np.abs(true) < 3e-4] ** 2)))
    return float(np.median(rms))


def half_rotations(run, model, priors):
    """Rotation (n, 3) mrad fitted to each of two halves of the reflections of every image."""
    observations = run.observations
    half = np.arange(observations.fit.shape[1]) % 2
    start = run.fit.values()
    fits = [
        br.map_fit(
            model,
            replace(observations, fit=observations.fit & (half == k)),
            priors,
            init=start,
        )
        for k in (0, 1)
    ]
    return [f.values()["rotation_mrad"].reshape(-1, 3) for f in fits]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--d-min", type=float, default=2.3)
    parser.add_argument("--data", type=Path, default=SHARED)
    parser.add_argument("--run", choices=[PLAIN, LYSOSIM], default=PLAIN)
    parser.add_argument("--model", default="still")
    parser.add_argument("--nu", type=float, default=br.Priors().student_t_nu)
    parser.add_argument("--moments", action="store_true", help="textbook moments, not scores")
    parser.add_argument("--out", type=Path, default=Path("near_the_truth.png"))
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)

    stills, reference, truth = load(options.data, options.images, options.run)
    weights = moment_weights if options.moments else score_weights
    with br.ImageReader() as reader:
        run = br.fit_run(
            stills,
            reference,
            reader,
            br.load_model(options.model),
            br.Priors(student_t_nu=options.nu),
            br.Settings(d_min=options.d_min, weights=weights),
        )
    values, sd = run.fit.values(), run.fit.sd
    found = errors(run, truth)
    print(f"images: {len(stills)}, converged: {np.sum(run.status == 'converged')}")
    print(
        f"rms ε_r error, median: indexed {np.median(found['indexed']):.3g} Å⁻¹,"
        f" refined {np.median(found['refined']):.3g}, worst {found['refined'].max():.3g}"
    )
    print(f"CC(J, J_model): median {np.median(found['cc']):.4f}, worst {found['cc'].min():.4f}")

    log_G = values["log_G"][:, 0] - np.log(truth.G)
    log_G -= np.median(log_G)
    pull = log_G / sd("log_G")[:, 0]
    print(
        f"ln(G/G_true): robust sd {robust_sd(log_G):.4f}, sd {log_G.std():.4f};"
        f" pulls: robust sd {robust_sd(pull):.3f}, sd {pull.std():.3f}"
    )
    B = values["B"][:, 0] - truth.B
    slope = np.polyfit(truth.B, values["B"][:, 0], 1)[0]
    print(
        f"B − B_true: median {np.median(B):+.2f} Å², robust sd {robust_sd(B):.2f},"
        f" slope {slope:.3f}, pulls {robust_sd(B / sd('B')[:, 0]):.2f}"
    )
    names = ("beam centre x", "beam centre y", "distance")
    shift_sd = sd("detector_shift_mm")
    for k, name in enumerate(names):
        print(
            f"{name}: {values['detector_shift_mm'][k]:+.4f} ± {shift_sd[k]:.4f} mm,"
            f" true {truth.shift_mm[k]:+.4f}"
        )
    for name in ("R0", "bandwidth", "mosaic_mrad", "model_error", "shape_error"):
        x, s = float(values[f"log_{name}"]), float(sd(f"log_{name}"))
        print(f"{name}: {np.exp(x):.4g} (ln sd {s:.3f})")
    variance, variance_sd = float(values["speckle_variance"]), float(sd("speckle_variance"))
    print(f"1/blocks: {variance:.4g} ± {variance_sd:.2g}")
    for k, direction in enumerate(("radial", "tangential")):
        x, s = values["log_position_error"][k], sd("log_position_error")[k]
        fall, fall_sd = values["position_error_fall"][k], sd("position_error_fall")[k]
        print(
            f"position error, {direction}: {np.exp(x):.3g} Å⁻¹ (ln sd {s:.3f}) at 4 Å, ln of it"
            f" falls by {fall:.2f} ± {fall_sd:.2f} Å with 1/d"
        )

    turned = rotation_error_mrad(run, truth)
    laplace = np.median(sd("rotation_mrad").reshape(-1, 3), axis=0)
    print(
        f"rotation error, sd by axis: {turned.std(0).round(4)} mrad; Laplace sd {laplace.round(4)}"
    )
    mosaic_rms_mrad = float(np.exp(values["log_mosaic_mrad"])) / np.sqrt(2)
    # ten domains, the first unturned; their spread about their own mean is what the spots show
    mean_of_ten = mosaic_rms_mrad / np.sqrt(0.9) * np.sqrt(9) / 10
    print(
        f"mosaic rms {mosaic_rms_mrad:.3f} mrad an axis; the mean of ten domains lies"
        f" {mean_of_ten:.3f} off"
    )
    print(
        f"rms ε_r error of the mean orientation against the nominal one:"
        f" {mosaic_floor(run, truth, mean_of_ten):.3g} Å⁻¹, which no estimate can go below"
    )
    model, priors = br.load_model(options.model), br.Priors(student_t_nu=options.nu)
    a, b = half_rotations(run, model, priors)
    noise = (a - b).std(0) / 2
    whole = turned + (a + b) / 2 - values["rotation_mrad"].reshape(-1, 3)
    print(
        f"two halves of each image's reflections: half their difference {noise.round(4)} mrad,"
        f" their mean against the nominal orientation {whole.std(0).round(4)} mrad"
    )
    for moved in run.movement:
        print(moved)

    figure, axes = plt.subplots(2, 2, figsize=(10, 8), layout="constrained")
    axes[0, 0].hist(1e5 * found["indexed"], bins=40, alpha=0.6, label="as indexed")
    axes[0, 0].hist(1e5 * found["refined"], bins=40, alpha=0.6, label="refined")
    axes[0, 0].set(xlabel="rms error of ε_r, 10⁻⁵ Å⁻¹", ylabel="images")
    axes[0, 0].legend()
    axes[0, 1].errorbar(np.log(truth.G), values["log_G"][:, 0], sd("log_G")[:, 0], fmt=".", lw=0.5)
    axes[0, 1].set(xlabel="ln G, true", ylabel="ln G, refined")
    axes[1, 0].errorbar(truth.B, values["B"][:, 0], sd("B")[:, 0], fmt=".", lw=0.5)
    axes[1, 0].axline((0, 0), slope=1, color="k", lw=0.5)
    axes[1, 0].set(xlabel="B true, Å²", ylabel="B refined, Å²")
    for k, axis in enumerate("xyz"):
        axes[1, 1].hist(turned[:, k], bins=30, histtype="step", label=f"about {axis}")
    axes[1, 1].set(xlabel="rotation error, mrad", ylabel="images")
    axes[1, 1].legend()
    figure.savefig(options.out, dpi=120)


if __name__ == "__main__":
    main()
