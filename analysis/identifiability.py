"""What does each of the three statistics constrain?

The frozen statistics of `plain` fitted with the total alone (1), with the position (1+2), with
the spread (1+3), and with all three: posterior sd of every unknown as a share of its prior sd, and
errors against truth.

    python analysis/identifiability.py --images 12 --out identifiability.png
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
from known_run import SHARED, load
from robustness import near_sphere_rms

import bayes_refine as br
from bayes_refine.fitting.state import geometry_of, moved
from bayes_refine.per_pixel import compare

MODEL = br.load_model("still")
DROPPED = 1e12  # times the variance: the statistic says nothing any more


def without(observations, statistics):
    """The same with some statistics blinded."""
    blind = np.array(observations.variance_background)
    blind[:, statistics] *= DROPPED
    return replace(observations, variance_background=blind)


def prior_sd(priors: br.Priors):
    """Of every unknown in its own unit."""
    return {
        "log_G": priors.log_G_sd,
        "B": priors.B_sd,
        "rotation_mrad": priors.rotation_sd_mrad,
        "strain": priors.strain_sd,
        "log_mosaic_image_mrad": float(
            np.hypot(priors.log_mosaic_image_sd, priors.log_mosaic_spread_sd)
        ),
        "log_R1": priors.log_R1_sd,
        "log_R0": priors.log_R0_sd,
        "log_bandwidth": priors.log_bandwidth_sd,
        "log_mosaic_mrad": priors.log_mosaic_spread_sd,
        "detector_shift_mm": np.array(
            [priors.beam_center_sd_mm, priors.beam_center_sd_mm, priors.distance_sd_mm]
        ),
        "log_model_error": priors.log_model_error_sd,
        "speckle_variance": priors.speckle_variance_sd,
        "log_position_error": priors.log_position_error_sd,
        "log_shape_error": priors.log_shape_error_sd,
    }


def shares(fit, priors):
    """{label: posterior sd over prior sd, median over images}."""
    found = {}
    for name, prior in prior_sd(priors).items():
        sd = np.asarray(fit.sd(name))
        per_image = next(s for s in fit.sites if s.name == name).per_image
        row = np.atleast_1d(np.median(sd.reshape(len(sd), -1), 0) if per_image else sd) / prior
        ends = ["x", "y", "z"] if len(row) == 3 else list(range(1, len(row) + 1))
        for end, value in zip(ends, row, strict=True):
            found[name if len(row) == 1 else f"{name} {end}"] = float(value)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=12)
    parser.add_argument("--data", type=Path, default=SHARED)
    parser.add_argument("--out", type=Path, default=Path("identifiability.png"))
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    priors = br.Priors()
    stills, reference, truth = load(options.data, options.images)
    with br.ImageReader() as reader:
        run = br.fit_run(stills, reference, reader, MODEL, priors, br.Settings(d_min=2.3))
    observations, start = run.observations, run.fit.values()
    kinds = {
        "1": partial(without, statistics=[1, 2, 3]),
        "1+2": partial(without, statistics=[3]),
        "1+3": partial(without, statistics=[1, 2]),
        "1+2+3": lambda obs: obs,
    }
    table = {}
    for name, blinded in kinds.items():
        fit = br.map_fit(MODEL, blinded(observations), priors, init=start, exact=False)
        values, table[name] = fit.values(), shares(fit, priors)
        stills = moved(run.indexed, geometry_of(run.indexed, values))
        rms = 1e5 * np.median(near_sphere_rms(stills, run.reflections, truth))
        log_G = compare.robust_sd(values["log_G"][:, 0] - np.log(truth.G))
        B = compare.robust_sd(values["B"][:, 0] - truth.B)
        shift = values["detector_shift_mm"] - truth.shift_mm
        print(
            f"terms {name}: ε_r error {rms:.2f}e-5 Å⁻¹, ln G {log_G:.3f}, B {B:.2f} Å²,"
            f" centre {shift[:2].round(3)} mm, distance {shift[2]:+.3f} mm;"
            f" {fit.iterations} steps",
            flush=True,
        )
    print(f"{'posterior sd / prior sd':28s}" + "".join(f"{k:>10s}" for k in table))
    for label in table["1"]:
        print(f"{label:28s}" + "".join(f"{row[label]:10.4f}" for row in table.values()))

    figure, axis = plt.subplots(figsize=(9, 7), layout="constrained")
    y = np.arange(len(table["1"]))
    for k, (name, row) in enumerate(table.items()):
        axis.barh(y + (k - 1.5) * 0.2, list(row.values()), 0.2, label=f"terms {name}")
    axis.set_yticks(y, list(table["1"]))
    axis.invert_yaxis()
    axis.set_xscale("log")
    axis.axvline(1, color="k", lw=0.8)
    axis.set_xlabel("posterior sd / prior sd, median over images")
    axis.legend()
    figure.savefig(options.out, dpi=110)


if __name__ == "__main__":
    main()
