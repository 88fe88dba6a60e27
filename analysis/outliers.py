"""Are hot pixels, zingers and ice found, and nothing else?

Spots: simulated ones, integrated over pixels with the error function, Poisson.  How many lose a
pixel by J where the expectation is right, ten times too small or large, and where the spot is
misplaced or narrower than expected; how the pull of J lies when none was hit (the choice of pixels
must not bias); and which share of zingers is left out by their photons, with the pull of J that
remains.

Runs: pixels found hot or dead and images found with rings of ice, against the truth where a folder
has it (`hot_yx`, `ice` in `*_truth.h5`).  Nothing of either is in the others.

    python analysis/outliers.py --out outliers.png [FOLDER ...]
"""

from __future__ import annotations

import argparse
from math import erf
from pathlib import Path

import h5py
import matplotlib.pyplot as plt
import numpy as np
from known_run import SHARED

import bayes_refine as br
from bayes_refine.measuring.bad_pixels import bad_pixels_of
from bayes_refine.measuring.detector_noise import noise_for
from bayes_refine.measuring.ice_rings import IceRings
from bayes_refine.measuring.shoebox import cut_shoeboxes, shoebox_for_width
from bayes_refine.measuring.statistics import Statistics, measure

PIXEL, SIZE, R1 = 1.1e-3, 21, 1.0  # Å⁻¹, pixels, pixels
MIDDLE = np.array([10.3, 9.8])
BOX = shoebox_for_width(R1)
BACKGROUND = 5.0
STRENGTHS = (0.0, 30.0, 300.0, 3000.0, 30_000.0)
RUNS = ("outliers", "plain", "rotation", "mosaic", "panels")


def share(centre: np.ndarray, width: float) -> np.ndarray:
    """(SIZE, SIZE) share of exp(−r²/width²) in each pixel."""
    edges = np.arange(SIZE + 1)
    x, y = (np.diff([0.5 * erf((e - c) / width) for e in edges]) for c in centre)
    return np.outer(y, x)


def spots(rng, n: int, J: float, shift=(0.0, 0.0), width: float = R1) -> np.ndarray:
    mean = BACKGROUND + J * share(MIDDLE + shift, width)
    return rng.poisson(mean, (n, SIZE, SIZE)).astype(float)


def measured(images: np.ndarray, expected: float) -> Statistics:
    n = len(images)
    at, mask = np.tile(MIDDLE, (n, 1)), np.ones(images.shape, bool)
    boxes = cut_shoeboxes(images, mask, np.arange(n), at, np.ones(n, bool), BOX)
    moment = np.tile([(R1 * PIXEL) ** 2 / 2] * 2 + [0.0], (n, 1))
    frame = np.tile(np.eye(2) * PIXEL, (n, 1, 1))
    return measure(boxes, frame, moment, np.full(n, expected), BOX)


def pull(found: Statistics, J: float) -> np.ndarray:
    variance = found.variance_background[:, 0] + J * found.variance_signal[:, 0]
    return (found.value[:, 0] - J) / np.sqrt(variance)


def false_alarms(rng, n: int) -> None:
    """Spots that lose a pixel though none was hit, of n; and the pull of J."""
    kinds = {
        "as expected": {},
        "0.4 px off": {"shift": (0.4, 0.0)},
        "1 px off": {"shift": (0.7, 0.7)},
        "narrow, 0.75": {"width": 0.75 * R1},
        "wide, 1.5": {"width": 1.5 * R1},
    }
    print(f"spots of {n} that lose a pixel (chance would take one from 0.00001 of them)")
    print(
        f"{'J':>8s}" + "".join(f"{kind:>16s}" for kind in kinds) + "  expected J/10   expected 10 J"
    )
    for J in STRENGTHS:
        lost = [
            int((measured(spots(rng, n, J, **kind), J).stray > 0).sum()) for kind in kinds.values()
        ]
        wrong = [int((measured(spots(rng, n, J), f * J).stray > 0).sum()) for f in (0.1, 10.0)]
        print(f"{J:8.0f}" + "".join(f"{k:16d}" for k in lost + wrong))
    print("pull of J as expected: mean ± its error, sd")
    for J in STRENGTHS:
        z = pull(measured(spots(rng, n, J), J), J)
        print(f"{J:8.0f} {z.mean():+.3f} ± {n**-0.5:.3f}  {z.std():.3f}")


def power(rng, n: int, zingers: np.ndarray) -> np.ndarray:
    """(J, zinger) share left out of zingers on a random pixel within R1 of the spot's centre."""
    y, x = np.mgrid[:SIZE, :SIZE] + 0.5
    near = np.argwhere(np.hypot(x - MIDDLE[0], y - MIDDLE[1]) < R1)
    found = np.empty((len(STRENGTHS), len(zingers)))
    print("zingers within R1 of the centre: share left out; median |pull| of J that remains")
    for i, J in enumerate(STRENGTHS):
        cells = []
        for k, photons in enumerate(zingers):
            images, at = spots(rng, n, J), near[rng.integers(0, len(near), n)]
            images[np.arange(n), at[:, 0], at[:, 1]] += photons
            result = measured(images, J)
            found[i, k] = np.mean(result.stray > 0)
            cells.append(f"{found[i, k]:5.2f} {np.median(np.abs(pull(result, J))):6.1f}")
        print(f"{J:8.0f}  " + "  ".join(cells))
    return found


def run_of(folder: Path) -> None:
    """What one folder's images show."""
    path = next(folder.glob("*.expt"))
    stills = br.read_experiments(path).stills
    with br.ImageReader() as reader:
        noise = noise_for(reader, stills)
        reader.gain = noise.gain
        bad = bad_pixels_of(reader, stills, noise.read_noise)
        ice = IceRings(noise.read_noise)
        for still in stills:
            ice(*reader.read(still), still)
    ringed = np.array([bool(ice.of(still)) for still in stills])
    line = f"{folder.name:18s} {bad}; rings on {ringed.sum()} of {len(stills)} images"
    for truth_file in folder.glob("*_truth.h5"):
        with h5py.File(truth_file) as truth:
            if "hot_yx" in truth:
                true = {tuple(at) for at in truth["hot_yx"][:].tolist()}
                hot = {tuple(at[1:]) for at in np.argwhere(bad.hot).tolist()}
                line += f"; hot: {len(true & hot)} of {len(true)} true, {len(hot - true)} false"
            if "ice" in truth:
                icy = truth["ice"][:]
                line += f"; ice: {(icy & ringed).sum()} of {icy.sum()} true"
                line += f", {(ringed & ~icy).sum()} false"
    print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--out", type=Path, default=Path("outliers.png"))
    parser.add_argument("--spots", type=int, default=20_000)
    args = parser.parse_args()
    rng = np.random.default_rng(1)
    false_alarms(rng, args.spots)
    zingers = np.array([20, 40, 80, 160, 320, 1000, 10_000])
    found = power(rng, max(args.spots // 20, 100), zingers)
    fig, ax = plt.subplots(figsize=(5, 3.6), layout="constrained")
    for J, row in zip(STRENGTHS, found, strict=True):
        ax.semilogx(zingers, row, "o-", label=f"J = {J:g}")
    ax.set(xlabel="photons of the zinger", ylabel="share left out", ylim=(-0.03, 1.03))
    ax.legend(title=f"background {BACKGROUND:g} a pixel", fontsize=8)
    fig.savefig(args.out, dpi=150)
    for folder in args.folders or [SHARED / "foreign" / name for name in RUNS]:
        run_of(folder)


if __name__ == "__main__":
    main()
