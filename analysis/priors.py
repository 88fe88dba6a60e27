"""How far do the priors of R0 and G move merged intensities?

The same frozen statistics fitted under other priors, merged, and compared with the default's
intensities (R1(I), after one common scale) and with the truth.

    python analysis/priors.py --images 24 --out priors.png
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
from known_run import SHARED, load

import bayes_refine as br
from bayes_refine.fitting.reflections import reflections_of
from bayes_refine.merging.agreement import pearson, r1_intensity
from bayes_refine.merging.average import merge
from bayes_refine.per_pixel.compare import robust_sd

MODEL = br.load_model("still")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--data", type=Path, default=SHARED)
    parser.add_argument("--out", type=Path, default=Path("priors.png"))
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    default = br.Priors()
    stills, reference, truth = load(options.data, options.images)
    with br.ImageReader() as reader:
        run = br.fit_run(stills, reference, reader, MODEL, default, br.Settings(d_min=2.3))
    R0 = float(np.exp(run.fit.values()["log_R0"]))
    variants = {
        "default": default,
        "R0 prior median × ½": replace(default, R0_inv_angstrom=default.R0_inv_angstrom / 2),
        "R0 prior median × 2": replace(default, R0_inv_angstrom=default.R0_inv_angstrom * 2),
        "R0 known to 5 %, right": replace(default, R0_inv_angstrom=R0, log_R0_sd=0.05),
        "R0 known to 5 %, × 1.5": replace(default, R0_inv_angstrom=1.5 * R0, log_R0_sd=0.05),
        "R0 known to 5 %, ÷ 1.5": replace(default, R0_inv_angstrom=R0 / 1.5, log_R0_sd=0.05),
        "R0 free (sd of ln 5)": replace(default, log_R0_sd=5.0),
        "ln G sd 0.2": replace(default, log_G_sd=0.2),
        "ln G sd 10": replace(default, log_G_sd=10.0),
    }
    merged, rows = {}, []
    for name, priors in variants.items():
        fit = br.map_fit(MODEL, run.observed, priors, init=run.fit.values(), exact=False)
        values = fit.values()
        r = reflections_of(run.batches, run.observed.parts, reference, MODEL, values, priors)
        use = np.flatnonzero(r.measured)
        hkl = br.asu_map(r.hkl[use], reference.space_group)[0]
        merged[name] = merge(hkl, r.J[use], r.variance[use], r.scale[use], r.image[use])
        intensity = merged[name].intensity
        true = reference.lookup(merged[name].hkl)
        weight = merged[name].sigma < np.median(merged[name].sigma)
        rows.append(
            (
                float(np.exp(values["log_R0"])) * 1e5,
                robust_sd(values["log_G"][:, 0] - np.log(truth.G)),
                r1_intensity(intensity[weight], merged["default"].intensity[weight]),
                r1_intensity(intensity[weight], true[weight]),
                pearson(intensity[weight], true[weight]),
            )
        )
        print(
            f"{name:26s} R0 {rows[-1][0]:6.2f}e-5 Å⁻¹, ln G error {rows[-1][1]:.4f}, R1(I) to the"
            f" default's {rows[-1][2]:.4f}, to the truth {rows[-1][3]:.4f}, CC {rows[-1][4]:.4f}",
            flush=True,
        )
    figure, axes = plt.subplots(1, 2, figsize=(13, 4.5), layout="constrained", sharey=True)
    y = np.arange(len(rows))
    axes[0].barh(y, [row[2] for row in rows])
    axes[0].set_yticks(y, list(variants))
    axes[0].invert_yaxis()
    axes[0].set_xlabel("R1(I) against the default's intensities (better half by σ)")
    axes[1].barh(y, [row[3] for row in rows])
    axes[1].set_xlabel("R1(I) against the truth")
    figure.savefig(options.out, dpi=110)


if __name__ == "__main__":
    main()
