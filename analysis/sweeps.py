"""What do frames of one crystal gain by sharing cell, mosaic blocks, and smooth scale and B?

Reads finished fits of one simulated crystal that turns by 0.1° a frame (`foreign/rotation`), with
and without a reference, and with frames that have numbers of their own (`--keep`):

    RUN=../shared/data/foreign/rotation
    bayes-refine fit $RUN/C5_indexed.expt --d-min 2.3 --images 0:40 --oscillation 0.1 \
        --spindle 1 0 0 --out fits/shared
    ... --keep --out fits/own
    python analysis/sweeps.py fits/own fits/shared --out sweeps.png

Along the frames: error of ln G and of B, each about its median, with the posterior sd; and the
median of IMEAN over truth, on one scale and B, of the strong quarter, at the frame of the largest
partiality.  A slow drift of scale and B along the sweep, which a fit without a reference cannot
tell from intensities but by the overlap of neighbours, is the error to look for.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import gemmi
import h5py
import matplotlib.pyplot as plt
import numpy as np
from known_run import SHARED, gauge
from rotation_frames import Truth, merged_of, truth_of

from bayes_refine.geometry.miller import find, pack_hkl
from bayes_refine.geometry.symmetry import asu_map

FRAMES = 8  # frames in a bin of intensities


def scales(fit: Path, data: Path) -> dict[str, np.ndarray]:
    """Frame, errors of ln G and B about their medians, and posterior sds, by name."""
    with (fit / "images.csv").open() as file:
        rows = list(csv.DictReader(file))
    frame = np.array([int(row["identifier"].split("-")[-1]) for row in rows])
    with h5py.File(next(data.glob("*_truth.h5"))) as truth:
        G, B = truth["G"][:][frame], truth["B"][:][frame]
    number = {k: np.array([float(row[k]) for row in rows]) for k in ("G", "G_sd", "B", "B_sd")}
    off = {"ln G": np.log(number["G"] / G), "B": number["B"] - B}
    off = {name: x - np.median(x) for name, x in off.items()}
    return off | {"frame": frame, "ln G sd": number["G_sd"] / number["G"], "B sd": number["B_sd"]}


def intensities(fit: Path, truth: Truth) -> dict[str, np.ndarray]:
    """Of merged reflections with a truth: frame, IMEAN over the truth, pull, whether strong."""
    key, mean, sd = merged_of(fit / "merged.mtz")
    true, d = truth.of(key)
    mtz = gemmi.read_mtz_file(str(fit / "unmerged.mtz"))
    mtz.switch_to_original_hkl()
    table = np.array(mtz.array)
    column = {c.label: table[:, k] for k, c in enumerate(mtz.columns)}
    order = np.argsort(column["PARTIALITY"])
    of = pack_hkl(asu_map(table[order, :3].astype(int), mtz.spacegroup)[0])
    at, seen = find(of, key)
    frame = np.full(len(key), -1)
    frame[at[seen]] = column["BATCH"][order][seen] - 1
    good = np.isfinite(true) & (frame >= 0)
    scaled = gauge(mean[good], sd[good], true[good], d[good]) * true[good]
    return {
        "frame": frame[good],
        "ratio": mean[good] / scaled,
        "pull": (mean[good] - scaled) / sd[good],
        "strong": true[good] > np.quantile(true[good], 0.75),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("fits", nargs="+", type=Path)
    parser.add_argument("--data", type=Path, default=SHARED / "foreign" / "rotation")
    parser.add_argument("--out", type=Path, default=Path("sweeps.png"))
    args = parser.parse_args()
    truth = truth_of(args.data)
    fig, axes = plt.subplots(1, 3, figsize=(13, 3.6), layout="constrained")
    for folder in args.fits:
        s, found = scales(folder, args.data), intensities(folder, truth)
        for name, ax in zip(("ln G", "B"), axes[:2], strict=True):
            sd = s[f"{name} sd"]
            held = 100 * np.mean(np.abs(s[name]) < 1.645 * sd)
            drift = np.corrcoef(s[name][:-1], s[name][1:])[0, 1]
            print(
                f"{folder.name}: {name} rms {np.std(s[name]):.3f}, sd {np.median(sd):.3f}, "
                f"90 % intervals hold {held:.0f} %, correlation with the next frame {drift:.2f}"
            )
            ax.errorbar(s["frame"], s[name], sd, fmt=".", label=folder.name)
        bins = found["frame"] // FRAMES
        places = np.unique(bins)
        some = [found["strong"] & (bins == b) for b in places]
        ratio = np.array([np.median(found["ratio"][k]) for k in some])
        print(
            f"{folder.name}: IMEAN over truth along the frames "
            + " ".join(f"{x:.3f}" for x in ratio)
            + "; strong quarter in 90 % intervals "
            + f"{100 * np.mean(np.abs(found['pull'][found['strong']]) < 1.645):.1f} %"
        )
        axes[2].plot((places + 0.5) * FRAMES, ratio, "o-", label=folder.name)
    axes[0].set(xlabel="frame", ylabel="ln G less the truth")
    axes[1].set(xlabel="frame", ylabel="B less the truth (Å²)")
    axes[2].set(xlabel="frame", ylabel="IMEAN over truth, strong quarter")
    for ax, zero in zip(axes, (0, 0, 1), strict=True):
        ax.axhline(zero, color="0.7", lw=1)
        ax.legend(fontsize=8)
    fig.savefig(args.out, dpi=150)


if __name__ == "__main__":
    main()
