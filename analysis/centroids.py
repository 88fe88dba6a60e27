"""What moves the centroids of spots, beyond geometry and counting?

By resolution, on `lysosim` and `thermolysin_xfel`: how far centroids move along the radius with
ε_r, which shows bandwidth (or the crystal's own spread of d, which looks the same) and mosaic
spread; how they scatter along and across the radius beyond counting; and where in its pixel a
spot seems to lie.

The simulator of `lysosim` blurs whole pixels: a spot narrower than one lies at the centre of its
own.  Its spectrum is three wavelengths 0.15 % apart, rms 0.122 %; the file says 0.087 %.

    python analysis/centroids.py --images 200 --out centroids.png
"""

from __future__ import annotations

import argparse
from itertools import pairwise
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
from fisher import expected
from known_run import LYSOSIM, SHARED, load
from pixel_start import thermolysin

import bayes_refine as br
from bayes_refine import infer, physics

SHELLS, PHASES = 8, 10


def centroids(run: br.RunFit, model, priors: br.Priors) -> dict[str, np.ndarray]:
    """Of n fitted reflections, Å⁻¹ and px.

    ``off`` (n, 2) of the centroids from where the model has them along and across the radius,
    ``counting`` and ``beyond`` (n, 2) their sd by counting and by the errors that the model
    learned; the slopes with ε_r that ``bandwidth`` and ``mosaic`` spread make; ``off_px`` (n, 2)
    and ``xy_px`` (n, 2) along x and y.
    """
    obs, values = run.observations, run.fit.values()
    mean, sd = map(np.asarray, jax.jit(expected, static_argnums=0)(model, values, obs, priors))
    sites = infer.evaluate(model, values, obs, priors)
    fit, r = np.asarray(obs.fit), run.reflections
    rows = np.flatnonzero(r.informs)  # padded arrays go by image too
    norm_q = np.asarray(obs.norm_q)[fit]
    photons = np.asarray(sites["scale"] * obs.intensity_reference)[fit]
    with np.errstate(divide="ignore", invalid="ignore"):
        unit = np.stack([np.asarray(obs.response[:, k, k] / obs.width)[fit] for k in (1, 2)], 1)
        unit *= photons[:, None]  # of a statistic, for a displacement
        off = np.stack([(obs.statistics[:, k] - mean[:, k])[fit] for k in (1, 2)], 1) / unit
        sd = np.stack([sd[:, k][fit] for k in (1, 2)], 1) / unit
    fall = np.outer(norm_q - 0.25, values["position_error_fall"])
    beyond = np.exp(values["log_position_error"] - fall)
    mosaic_rad = 1e-3 * np.exp(values["log_mosaic_image_mrad"])
    mosaic_variance = np.asarray((mosaic_rad * obs.norm_q * obs.cos_theta) ** 2)
    bw2 = np.asarray(physics.bandwidth_width(obs, np.exp(values["log_bandwidth"])) ** 2)
    rr = np.exp(2 * values["log_R0"]) + mosaic_variance + bw2
    tan = np.asarray(obs.sin_theta / obs.cos_theta)
    to_px = np.linalg.inv(r.frame[rows])
    return {
        "norm_q": norm_q,
        "photons": photons,
        "excitation_error": sites["excitation_error"][fit],
        "off": off,
        "counting": np.sqrt(np.maximum(sd**2 - beyond**2, 0)),
        "beyond": beyond,
        "bandwidth": (-bw2 / tan / rr)[fit],
        "mosaic": (mosaic_variance * tan / rr)[fit],
        "off_px": np.einsum("nij,nj->ni", to_px, off),
        "xy_px": r.xy_px[rows],
    }


def slope(found: dict[str, np.ndarray], here: np.ndarray) -> tuple[float, float]:
    """Of the radial displacement that is left with ε_r, and its sd."""
    x = found["excitation_error"][here]
    weight = 1 / np.hypot(found["counting"], found["beyond"])[here, 0] ** 2
    precision = np.sum(weight * x**2)
    return np.sum(weight * x * found["off"][here, 0]) / precision, precision**-0.5


def scatter(found: dict[str, np.ndarray], here: np.ndarray) -> np.ndarray:
    """(2,) rms beyond counting, Å⁻¹."""
    counting, off = found["counting"][here], found["off"][here]
    weight = 1 / (found["beyond"][here] ** 2 + counting**2) ** 2
    excess = np.sum(weight * (off**2 - counting**2), 0) / np.sum(weight, 0)
    return np.sqrt(np.maximum(excess, 0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--d-min", type=float, default=2.3)
    parser.add_argument("--data", type=Path, default=SHARED)
    parser.add_argument("--out", type=Path, default=Path("centroids.png"))
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    model, priors = br.load_model("still"), br.Priors()
    settings = br.Settings(d_min=options.d_min)
    runs = {}
    with br.ImageReader() as reader:
        stills, reference, _ = load(options.data, options.images, LYSOSIM)
        runs["lysosim"] = br.fit_run(stills, reference, reader, model, priors, settings)
    with br.ImageReader() as reader:
        stills, reference, read_noise = thermolysin(options.data, reader)
        settings = br.Settings(d_min=options.d_min, read_noise=read_noise)
        runs["thermolysin_xfel"] = br.fit_run(stills, reference, reader, model, priors, settings)

    figure, axes = plt.subplots(2, 3, figsize=(15, 8), layout="constrained")
    for (name, run), (left, middle, right) in zip(runs.items(), axes, strict=True):
        bandwidth, sd = np.exp(run.fit.values()["log_bandwidth"]), run.fit.sd("log_bandwidth")
        print(f"{name}: bandwidth {100 * bandwidth:.4f} % ± {100 * sd:.1f} % of it")
        found = centroids(run, model, priors)
        edges = np.quantile(found["norm_q"], np.linspace(0, 1, SHELLS + 1))
        rows = []
        print("1/d, Å⁻¹: slope with ε_r as measured ± sd, by bandwidth, by mosaic spread;")
        print("   scatter beyond counting, 1e-4 Å⁻¹, radial and tangential; that of the model")
        for low, high in pairwise(edges):
            here = (found["norm_q"] >= low) & (found["norm_q"] <= high)
            beams = [np.mean(found[k][here]) for k in ("bandwidth", "mosaic")]
            left_over, error = slope(found, here)
            seen, known = 1e4 * scatter(found, here), 1e4 * found["beyond"][here].mean(0)
            rows.append(
                [(low + high) / 2, sum(beams) + left_over, error, sum(beams), *seen, *known]
            )
            print(
                f"{low:.3f}–{high:.3f}: {sum(beams) + left_over:+.3f} ± {error:.3f},"
                f" {beams[0]:+.3f}, {beams[1]:+.3f}; {seen[0]:.2f} {seen[1]:.2f};"
                f" {known[0]:.2f} {known[1]:.2f}"
            )
        q, total, error, of_model, *scatters = np.transpose(rows)
        left.errorbar(q, total, error, fmt="o", label="measured")
        left.plot(q, of_model, label="model")
        for k, direction in enumerate(("radial", "tangential")):
            middle.plot(q, scatters[k], f"C{k}o", label=f"{direction}, measured")
            middle.plot(q, scatters[2 + k], f"C{k}-", label="model")
        # where in its pixel: against where it should be
        bright = found["photons"] > np.quantile(found["photons"], 0.8)
        print("displacement along x, px, by place in the pixel, low and high resolution:")
        for label, part in {
            "low": found["norm_q"] < np.median(found["norm_q"][bright]),
            "high": found["norm_q"] >= np.median(found["norm_q"][bright]),
        }.items():
            use = bright & part
            bin_ = np.minimum((found["xy_px"][use, 0] % 1 * PHASES).astype(int), PHASES - 1)
            off = [np.median(found["off_px"][use, 0][bin_ == k]) for k in range(PHASES)]
            print(f"   {label}: " + " ".join(f"{x:+.3f}" for x in off))
            right.plot((np.arange(PHASES) + 0.5) / PHASES, off, "o-", label=f"{label} resolution")
        left.set(title=name, xlabel="1/d, Å⁻¹", ylabel="radial displacement per ε_r")
        middle.set(xlabel="1/d, Å⁻¹", ylabel="scatter beyond counting, 10⁻⁴ Å⁻¹")
        right.set(xlabel="place in the pixel along x", ylabel="displacement, px")
        for axis in (left, middle, right):
            axis.legend(fontsize=8)
    figure.savefig(options.out, dpi=110)


if __name__ == "__main__":
    main()
