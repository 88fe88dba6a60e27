"""Do few mosaic blocks, which move many spots at once, spoil what is said of orientations?

Runs by an independent simulator whose crystals have 16 or 64 blocks (`foreign/plain`, `mosaic`).
Each is fitted with errors of spots that are independent; then the third moments of the blocks are
integrated out (`fitting.few_blocks`), once with the sd that the run itself says and with others.
Printed: rms error and pull of rotation, ln G and B of the images, and how many of their 90 %
intervals hold the truth.

    python analysis/few_blocks.py mosaic plain --images 24 --out few_blocks.png
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import h5py
import jax
import matplotlib.pyplot as plt
import numpy as np
from scipy.spatial.transform import Rotation

import bayes_refine as br
from bayes_refine.fitting.few_blocks import with_few_blocks
from bayes_refine.fitting.state import geometry_of, moved

jax.config.update("jax_enable_x64", True)
SHARED = Path(__file__).parents[2] / "shared" / "data" / "foreign"
FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)  # of the sd that the run says


def pulls_of(fit, stills, truth: h5py.File) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Errors and their sd, flat over images: rotation (mrad, three axes), ln G and B about their
    medians."""
    values = fit.values()
    where = np.array([int(still.identifier.split("-")[-1]) for still in stills])
    found = [still.crystal.A for still in moved(stills, geometry_of(stills, values))]
    U, _, V = np.linalg.svd(found @ np.linalg.inv(truth["A"][:][where]))
    turned = 1e3 * Rotation.from_matrix(U @ V).as_rotvec()
    off = {"ln G": values["log_G"][:, 0] - np.log(truth["G"][:][where])}
    off["B"] = values["B"][:, 0] - truth["B"][:][where]
    good = np.array([status.kind.usable for status in fit.status])
    sds = {"ln G": fit.sd("log_G").ravel(), "B": fit.sd("B").ravel()}
    found = {k: ((x - np.median(x[good]))[good], sds[k][good]) for k, x in off.items()}
    rotation = turned[good].ravel(), fit.sd("rotation_mrad").reshape(-1, 3)[good].ravel()
    return {"rotation": rotation, **found}


def held(errors: np.ndarray, sd: np.ndarray) -> float:
    """Share of errors within 90 % intervals."""
    return float(np.mean(np.abs(errors) < 1.645 * sd))


def rms(x: np.ndarray) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(x**2)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="*", default=["mosaic", "plain"])
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--data", type=Path, default=SHARED)
    parser.add_argument("--out", type=Path, default=Path("few_blocks.png"))
    args = parser.parse_args()
    figure, axes = plt.subplots(1, len(args.runs), figsize=(5 * len(args.runs), 4), squeeze=False)
    for name, ax in zip(args.runs, axes[0], strict=True):
        found = {0.0: None}
        folder = args.data / name
        experiments = br.read_experiments(next(folder.glob("*_indexed.expt")))
        experiments = replace(experiments, stills=experiments.stills[: args.images])
        reference = br.read_reference(next(folder.glob("*_reference.mtz")), d_min=2.2)
        model = br.load_model("still")
        with br.ImageReader(gain=1.0) as reader:
            ready = br.prepare(experiments, reader, reference, d_min=2.3, read_noise=0.0)
            run = br.fit(ready, model, br.Priors(uneven_blocks_sd=0.0))
        args_of = model, run.observed
        says = replace(run.priors, uneven_blocks_sd=br.Priors().uneven_blocks_sd)
        own = with_few_blocks(*args_of, says, run.fit)[1].uneven_blocks_sd
        print(f"{name}: 1/√blocks {own:.3f}, {own**-2:.0f} blocks")
        with h5py.File(next(folder.glob("*_truth.h5"))) as truth:
            found[0.0] = pulls_of(run.fit, run.indexed, truth)
            for factor in FACTORS:
                fixed = replace(says, uneven_blocks_sd=factor * own, log_uneven_blocks_sd_sd=1e-3)
                fit = with_few_blocks(*args_of, fixed, run.fit)[0]
                found[factor * own] = pulls_of(fit, run.indexed, truth)
        print("1/√blocks   " + "".join(f"{x:>32s}" for x in found[0.0]))
        for sd, pulls in found.items():
            line = (
                f"  rms {rms(x):7.4f} pull {np.std(x / s):5.2f} held {held(x, s):4.2f}"
                for x, s in pulls.values()
            )
            print(f"{sd:9.3f}   " + "".join(line), flush=True)
        for what in found[0.0]:
            ax.plot(list(found), [held(*pulls[what]) for pulls in found.values()], "o-", label=what)
        ax.axhline(0.9, color="0.6", lw=1)
        ax.axvline(own, color="0.6", lw=1, ls=":")
        ax.set(xlabel="1/√blocks", ylabel="truths in 90 % intervals", title=name)
        ax.legend()
    figure.tight_layout()
    figure.savefig(args.out, dpi=120)


if __name__ == "__main__":
    main()
