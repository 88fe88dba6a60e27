"""What is an image of ten spots worth, and does it know?

Reads finished fits of a simulated run of a small molecule (`foreign/small_cell`, 10 × 12 × 14 Å),
with and without a reference:

    RUN=../shared/data/foreign/small_cell
    bayes-refine fit $RUN/C7b_indexed.expt --reference $RUN/C7b_reference.mtz --d-min 1.0 \
        --out fits/reference
    bayes-refine fit $RUN/C7b_indexed.expt --d-min 1.0 --out fits/none
    python analysis/sparse_images.py $RUN fits/reference fits/none --out sparse_images.png

By the sd that an image states of its ln G, B (about the median of all images) and orientation, in
quarters: rms error, and 90 % intervals that hold the truth.  Drawn: error against stated sd, a
point an image.  An image that says little should say so; none is left out for being sparse.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import h5py
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import LogLocator, NullFormatter

import bayes_refine as br
from bayes_refine.geometry.crystal import rotation_vector_mrad

UNKNOWNS = ("ln G", "B, Å²", "rotation, mrad")


def errors_of(fit: Path, truth: h5py.File) -> tuple[np.ndarray, dict[str, np.ndarray], list[str]]:
    """Number of reflections of each fitted image, error and stated sd (2, n) of each unknown of
    ``UNKNOWNS`` (a rotation is three), and the statuses of all images."""
    with (fit / "images.csv").open() as file:
        rows = list(csv.DictReader(file))
    used = [row for row in rows if row["status"] in ("converged", "not converged")]
    place = [int(row["identifier"].split("-")[-1]) for row in used]

    def column(name: str) -> np.ndarray:
        return np.array([float(row[name]) for row in used])

    A, G, B = (truth[name][:][place] for name in "AGB")
    stills = {s.identifier: s for s in br.read_experiments(fit / "refined.expt").stills}
    found = [stills[row["identifier"]].crystal.A for row in used]
    turned = [rotation_vector_mrad(x @ np.linalg.inv(y)) for x, y in zip(found, A, strict=True)]
    scale = np.log(column("G") / G)
    b = column("B") - B
    errors = {
        "ln G": np.stack([scale - np.median(scale), column("G_sd") / column("G")]),
        "B, Å²": np.stack([b - np.median(b), column("B_sd")]),
        "rotation, mrad": np.stack(
            [
                np.ravel(turned),
                np.stack([column(f"rot_{x}_mrad_sd") for x in "xyz"], axis=1).ravel(),
            ]
        ),
    }
    return column("n_reflections"), errors, [row["status"] for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("fits", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, default=Path("sparse_images.png"))
    args = parser.parse_args()
    size = len(UNKNOWNS), len(args.fits)
    figure, axes = plt.subplots(
        *size[::-1], figsize=(4.2 * size[0], 3.8 * size[1]), squeeze=False, layout="constrained"
    )
    with h5py.File(next(args.data.glob("*_truth.h5"))) as truth:
        for line, folder in zip(axes, args.fits, strict=True):
            n, errors, status = errors_of(folder, truth)
            print(f"{folder.name}: {len(n)} of {len(status)} images, {n.min():.0f} to {n.max():.0f}"
                  f" reflections each, half of them above {np.median(n):.0f}")  # fmt: skip
            for ax, (name, (error, sd)) in zip(line, errors.items(), strict=True):
                for quarter in np.array_split(np.argsort(sd), 4):
                    e, s = error[quarter], sd[quarter]
                    print(
                        f"  {name:15s} stated {s.min():7.3f} to {s.max():7.3f}:"
                        f" rms error {np.sqrt(np.mean(e**2)):7.3f},"
                        f" 90 % hold {np.mean(np.abs(e) < 1.645 * s):.2f}"
                    )
                ax.loglog(sd, np.maximum(np.abs(error), 1e-2 * sd), ".")
                ends = np.array([sd.min(), sd.max()])
                ax.loglog(ends, 1.645 * ends, "k-", lw=1, label="90 % below")
                ax.loglog(ends, 0.674 * ends, "k:", lw=1, label="half below")
                ax.set(xlabel=f"stated sd: {name}", ylabel="|error|", title=folder.name)
                ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                ax.xaxis.set_major_formatter("{x:g}")
                ax.xaxis.set_minor_formatter(NullFormatter())
            line[0].legend()
    figure.savefig(args.out, dpi=120)


if __name__ == "__main__":
    main()
