"""What do displaced panels do to a fit, and are they found?

Fits of a simulated run whose panels are off (`panel_origin_mm`, `panel_fast`, `panel_slow` in its
`*_truth.h5`), one with panels in place and one that moves them:

    echo "panel_shift_sd_px = 0" > in_place.toml
    bayes-refine fit C2_indexed.expt --reference C2_reference.mtz --d-min 2.3 --images 0:30 \
        --priors in_place.toml --out in_place
    bayes-refine fit C2_indexed.expt --reference C2_reference.mtz --d-min 2.3 --images 0:30 \
        --out moved
    python analysis/panels.py ../shared/data/foreign/panels in_place moved --out panels.png

Printed for the input and each fit: rms distance of the panels' middles from the truth, of what is
left once all are shifted alike, and of their turns; error of distance over its sd; position errors
that the fit learned.  Drawn: where panels are off in the input and in each fit.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import h5py
import matplotlib.pyplot as plt
import numpy as np

import bayes_refine as br
from bayes_refine.geometry.detector import Detector


def middles(origin, fast, slow, detector: Detector) -> np.ndarray:
    """(P, 3) mm of panels in these frames."""
    half = detector.shape[:, ::-1] * detector.pixel_size_mm / 2
    return origin + half[:, :1] * fast + half[:, 1:] * slow


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("fits", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, default=Path("panels.png"))
    args = parser.parse_args()
    with h5py.File(next(args.data.glob("*_truth.h5"))) as file:
        truth = [file[f"panel_{name}"][:] for name in ("origin_mm", "fast", "slow")]
        distance = float(file["distance_mm"][()])
    given = br.read_experiments(next(args.data.glob("*_indexed.expt"))).stills[0].detector
    detectors = {"input": given}
    for folder in args.fits:
        detectors[folder.name] = br.read_experiments(folder / "refined.expt").stills[0].detector
    size = given.pixel_size_mm[0, 0]
    true = middles(*truth, given)

    figure, axes = plt.subplots(1, len(detectors), figsize=(4.4 * len(detectors), 4.2))
    print("             panels off   less the common   turn   distance    position error, px")
    print("                     px                px   mrad       pull    radial, tangential")
    for ax, (name, detector) in zip(axes, detectors.items(), strict=True):
        off = middles(detector.origin_mm, detector.fast, detector.slow, given) - true
        plane = off[:, :2] / size
        left = plane - plane.mean(axis=0)
        turn = 1e3 * np.einsum("pi,pi->p", detector.fast - truth[1], truth[2])
        rms = [np.sqrt(np.mean(np.sum(x**2, axis=-1))) for x in (plane, left)]
        line = f"{name:12s} {rms[0]:10.3f} {rms[1]:17.3f} {np.sqrt(np.mean(turn**2)):6.2f}"
        folder = next((f for f in args.fits if f.name == name), None)
        if folder is not None:
            summary = json.loads((folder / "summary.json").read_text())
            found, pixel = summary["globals"], summary["outliers"]["pixel_inv_angstrom"]
            d = found["distance_mm"]
            way = ("radial", "tangential")
            errors = [found[f"position_error_{w}_inv_angstrom"]["value"] / pixel for w in way]
            line += f" {(d['value'] - distance) / d['sd']:+10.1f}"
            line += f"    {errors[0]:.2f}, {errors[1]:.2f}"
        print(line)
        ax.plot(*true[:, :2].T, "s", color="0.8", ms=14)
        ax.quiver(*true[:, :2].T, *plane.T, angles="xy", scale=0.1, scale_units="xy", width=0.008)
        ax.set(title=f"{name}: rms {rms[0]:.2f} px", aspect="equal", xlabel="x (mm)")
        ax.margins(0.3)
    figure.tight_layout()
    figure.savefig(args.out, dpi=120)


if __name__ == "__main__":
    main()
