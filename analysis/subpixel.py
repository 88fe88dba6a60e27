"""How much of what is left in `lysosim` is its simulator's sampling of the pixels?

The simulator takes each pixel at 4 × 4 points.  A spot narrower than their spacing is brighter
where it meets them than between them: with a period of a quarter of a pixel, in x and in y.  The
amplitude is found by resolution from J against what the fit itself, without any reference, says
of each true intensity; J is divided by it, and merged again with the same scales.  R1 and pulls
against the truth, before and after.

    python analysis/subpixel.py --images 200 --out subpixel.png
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
from intensity_calibration import fit_pixels, latent_of, ours
from known_run import LYSOSIM, SHARED, load
from ladder import BEST, D_MIN

import bayes_refine as br
from bayes_refine.geometry.miller import pack_hkl
from bayes_refine.merging.agreement import r1_intensity
from bayes_refine.merging.latent import intensity_posteriors, likelihood_only

PERIODS = np.arange(1, 13)  # a pixel
SAMPLED = 4  # points of a pixel that the simulator takes, in x and in y
SIGNAL = 8.0  # expected sd above nothing, of what the amplitude is found from
SHELLS = 24
CORE = 0.8  # |ln| of J over its expectation: further off is something else


def waves(xy_px: np.ndarray, periods: int) -> np.ndarray:
    """(N, 4) cosine and sine along x and along y."""
    phase = 2 * np.pi * periods * xy_px
    return np.concatenate([np.cos(phase), np.sin(phase)], axis=1)


def amplitudes(xy_px: np.ndarray, excess: np.ndarray, periods: int) -> np.ndarray:
    """(4,) of ``waves`` in ln J over its expectation."""
    design = np.concatenate([waves(xy_px, periods), np.ones((len(excess), 1))], axis=1)
    return np.linalg.lstsq(design, excess, rcond=None)[0][:4]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--data", type=Path, default=SHARED)
    parser.add_argument("--out", type=Path, default=Path("subpixel.png"))
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    stills, reference, _ = load(options.data, options.images, LYSOSIM)
    group = reference.space_group
    run, scale_sd = fit_pixels(stills, D_MIN)
    r = run.reflections
    measured, prior = latent_of(run, r, scale_sd, group)
    found = intensity_posteriors(measured, prior).posterior
    hkl = np.asarray(measured.hkl)
    best = np.argsort(-found.intensity / found.intensity_sd)[:BEST]

    said = br.Reference(hkl, found.intensity, reference.cell, group, "the fit itself")
    expected, norm_q = r.scale * said.lookup(r.hkl), 1 / r.d
    with np.errstate(invalid="ignore", divide="ignore"):
        excess = np.log(r.J / expected)
        sd = np.sqrt(r.variance_background + r.variance_signal * expected)
        use = r.measured & (expected > SIGNAL * sd) & (np.abs(excess) < CORE)
    edges = np.quantile(norm_q[use], np.linspace(0, 1, SHELLS + 1))
    shell = np.clip(np.searchsorted(edges, norm_q) - 1, 0, SHELLS - 1)
    factor, size = np.ones(len(r.J)), np.zeros((SHELLS, len(PERIODS), 2))
    print("1/d, Å⁻¹: reflections; amplitude of ln J along x, y; sd of ln J before, after")
    for k in range(SHELLS):
        here, all_here = use & (shell == k), shell == k
        for j, n in enumerate(PERIODS):
            c = amplitudes(r.xy_px[here], excess[here], n)
            size[k, j] = np.hypot(c[:2], c[2:])
        c = amplitudes(r.xy_px[here], excess[here], SAMPLED)
        factor[all_here] = np.exp(waves(r.xy_px[all_here], SAMPLED) @ c)
        left = (excess - np.log(factor))[here].std()
        x, y = size[k, SAMPLED - 1]
        print(
            f"{edges[k]:.3f}–{edges[k + 1]:.3f}: {here.sum():4d}; {x:.3f} {y:.3f};"
            f" {excess[here].std():.3f} {left:.3f}"
        )

    corrected = latent_of(run, replace(r, J=r.J / factor), scale_sd, group)
    truth = reference.lookup(hkl)
    at = np.flatnonzero(np.isfinite(truth) & (truth > 0))
    d = reference.cell.calculate_d_array(np.ascontiguousarray(hkl, np.int32))
    for name, (what, wilson) in {"as it is": (measured, prior), "corrected": corrected}.items():
        posterior = intensity_posteriors(what, wilson).posterior
        merged = likelihood_only(what, wilson, posterior.intensity)
        same = np.isin(pack_hkl(merged.hkl), pack_hkl(hkl[best]))
        R1 = [
            r1_intensity(merged.intensity[same], reference.lookup(merged.hkl[same])),
            r1_intensity(posterior.intensity[best], truth[best]),
        ]
        judged = ours(what, wilson, truth[at], at, d[at])
        print(f"{name}: R1(I) of the best {BEST}: {R1[0]:.4f} (posterior {R1[1]:.4f}); pulls by d:")
        print(f"{'n':>20s}{'mean':>9s}{'sd':>8s}{'robust':>8s}{'90 %':>9s}{'log score':>10s}")
        for low, high in pairwise(np.quantile(d[at], [0, 0.2, 0.4, 0.6, 0.8, 1])):
            rows = (d[at] >= low) & (d[at] <= high)
            print(f"{low:5.2f}–{high:5.2f} Å {judged.line(rows)}", flush=True)

    figure, (left_axis, right_axis) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    mean_square = np.sqrt((size**2).mean(0))
    middle = (edges[1:] + edges[:-1]) / 2
    for k, axis in enumerate("xy"):
        left_axis.plot(PERIODS, mean_square[:, k], "o-", label=axis)
        right_axis.plot(middle, size[:, SAMPLED - 1, k], "o-", label=axis)
    left_axis.set(xlabel="periods a pixel", ylabel="amplitude of ln J, rms over shells")
    right_axis.set(xlabel="1/d, Å⁻¹", ylabel=f"amplitude of ln J at {SAMPLED} periods a pixel")
    left_axis.legend()
    figure.savefig(options.out, dpi=120)


if __name__ == "__main__":
    main()
