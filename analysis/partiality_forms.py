"""Which form of the partiality describes the data, and where does an offset of B come from?

With the true geometry and no fit, J/(G·pol·I) by |ε_r| and resolution shows the curve itself;
with fits, what B and ln p become when the volume under it is, or is not, conserved.

    python analysis/partiality_forms.py --images 60 --out partiality_forms.png
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
from known_run import SHARED, load, robust_sd

import bayes_refine as br
from bayes_refine import physics
from bayes_refine.geometry import predict
from bayes_refine.geometry.crystal import Crystal
from bayes_refine.geometry.detector import beam_frame
from bayes_refine.measuring.shoebox import cut_shoeboxes, shoebox_for_width
from bayes_refine.measuring.statistics import measure

SHELLS = (0.02, 0.12, 0.20, 0.25, 0.33, 0.39, 0.435)  # |q|, Å⁻¹


def true_geometry(stills, truth):
    """The stills with the crystals and the detector they were simulated with."""
    for still, A in zip(stills, truth.A, strict=True):
        axes = beam_frame(still.beam, still.detector) * np.array([[-1], [-1], [1]])
        yield replace(
            still,
            crystal=Crystal(A, still.crystal.hall),
            detector=still.detector.shifted(truth.shift_mm @ axes),
        )


def normalised_intensities(stills, reference, truth, d_min=2.3):
    """ε_r, |q|, J/(G·B_term·pol) and I of all reflections within 1.5e-3 Å⁻¹."""
    box = shoebox_for_width(1.5)
    candidates = predict.candidate_indices(stills[0].crystal.cell, reference.space_group, d_min)
    candidates = candidates[reference.lookup(candidates) != 0]
    rows = []
    with br.ImageReader() as reader:
        for i, still in enumerate(true_geometry(stills, truth)):
            p = predict.predict(still, candidates, d_min, lambda d: 1.5e-3 + 0 * d)
            image, mask = reader.read(still)
            claimed = np.abs(p.excitation_error) < 5e-4
            boxes = cut_shoeboxes(image, mask, p.panel, p.xy_px, claimed, box)
            m = np.full(len(p), (1.3 * 1.56e-3) ** 2 / 2)
            moment = np.stack([m, m, 0 * m], 1)
            s = measure(boxes, p.frame, moment, 0 * m, box)
            b_term = np.exp(-truth.B[i] / (4 * p.d**2))
            J = s.value[:, 0] / (truth.G[i] * b_term * p.polarisation)
            use = s.covered > 0.9
            I_ref = reference.lookup(p.hkl)
            rows.append(np.stack([p.excitation_error, 1 / p.d, J, I_ref], 1)[use])
    return np.concatenate(rows).T


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--data", type=Path, default=SHARED)
    parser.add_argument("--out", type=Path, default=Path("partiality_forms.png"))
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    stills, reference, truth = load(options.data, options.images)

    excitation, q, J, I_ref = normalised_intensities(stills, reference, truth)
    edges = np.linspace(-1.2e-3, 1.2e-3, 61)
    centre = (edges[1:] + edges[:-1]) / 2
    figure, axis = plt.subplots(figsize=(7, 5), layout="constrained")
    print("|q| range, Å⁻¹: width R0_eff (1e-5 Å⁻¹), peak, peak × width")
    for low, high in pairwise(SHELLS):
        mine = (q > low) & (q < high)
        k = np.digitize(excitation[mine], edges)
        sums = [np.bincount(k, x[mine], 62)[1:61] for x in (J, I_ref)]
        curve = sums[0] / np.maximum(sums[1], 1e-9)
        axis.plot(1e4 * centre, curve, label=f"{low:.2f}–{high:.2f} Å⁻¹")
        top = curve > 0.15 * curve.max()
        slope, level = np.polyfit(centre[top] ** 2, np.log(curve[top]), 1)
        width, peak = (-slope) ** -0.5, np.exp(level)
        print(f"{low:.2f}–{high:.2f}: {1e5 * width:6.2f} {peak:9.3e} {peak * width:9.3e}")
    axis.set(xlabel="ε_r, 10⁻⁴ Å⁻¹", ylabel="ΣJ/(G·B_term·pol) / ΣI")
    axis.legend(title="|q|")
    figure.savefig(options.out, dpi=120)

    still = br.load_model("still")
    for name, form in (
        ("conserved", physics.gaussian),
        ("peak", physics.gaussian_peak),
    ):
        with br.ImageReader() as reader:
            run = br.fit_run(
                stills,
                reference,
                reader,
                partial(still, partiality=form),
                br.Priors(),
                br.Settings(d_min=2.3),
            )
        B = run.fit.values()["B"][:, 0] - truth.B
        print(
            f"volume {name}: ln p {run.fit.log_density:.1f}, B − B_true median {np.median(B):+.2f}"
            f" Å², robust sd {robust_sd(B):.2f}"
        )


if __name__ == "__main__":
    main()
